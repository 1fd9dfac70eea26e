"""Undoing: entries popped one a line, each compensated, the plan kept over every trouble."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from attrs import evolve

from tests.flows import (
    EVERY_SECOND,
    MINUTE,
    ONCE,
    SECOND,
    TWICE,
    Ctx,
    E,
    Gate,
    Log,
    S,
    Tap,
    crashing,
    edged,
    flow,
    inner,
    quiet,
    story,
    until,
)
from workflow import (
    STAY,
    Busy,
    Edge,
    HookFailed,
    IllegalTransition,
    KeyConflict,
    Manager,
    NotRunning,
    Status,
    UnknownInstance,
)


def undoing(log, *states, **more):
    """Compensators for these states that write into the log."""
    return flow(compensators={s: log.hook(f"undo {s}") for s in states}, **more)


async def walk(m, *events, id="i"):
    """Start and send these events."""
    await m.start(id)
    for event in events:
        await m.send(id, event)


async def test_compensators_run_from_the_top_down(store):
    """Leaving each entry runs its compensator, newest first; `to` itself is not compensated."""
    log = Log()
    async with Manager(undoing(log, S.B, S.C, S.D), store) as m:
        await walk(m, E.GO, E.GO, E.GO)
        done = await m.compensate("i", S.B, key="k")
        assert log == ["undo d", "undo c"]
        assert (done.state, done.settled, done.duplicate) == (S.B, True, False)
        assert (done.transition.kind, done.transition.seq, done.transition.undoes) == ("compensate", 5, 4)
        assert (done.transition.source, done.transition.target, done.transition.key) == (S.D, S.C, "k")
        lines = await m.history("i")
        assert [(t.undoes, t.source, t.target, t.key) for t in lines[4:]] == [(4, S.D, S.C, "k"), (3, S.C, S.B, None)]
        assert await story(m) == ["start"] + ["event"] * 3 + ["compensate"] * 2
        assert (await m.send("i", E.GO)).state is S.C
        assert quiet(m)


async def test_no_other_hooks_run(store):
    """Neither exit nor enter hooks run when entries are undone."""
    log = Log()
    hooks = {s: log.hook(f"enter {s}") for s in (S.A, S.B)}, {s: log.hook(f"exit {s}") for s in (S.A, S.B)}
    async with Manager(undoing(log, S.B, on_enter=hooks[0], on_exit=hooks[1]), store) as m:
        await walk(m, E.GO)
        del log[:]
        await m.compensate("i", S.A)
        assert log == ["undo b"]


async def test_steps_without_compensator_share_a_commit(store):
    """Entries with nothing to undo go with the commit of the next that has."""
    log, tap = Log(), Tap(store)
    async with Manager(undoing(log, S.B), tap, work=False) as m:
        await walk(m, E.GO, E.GO, E.GO)
        tap.calls.clear()
        await m.compensate("i", S.A)
        assert tap.calls["append"] == 2
        assert await story(m) == ["start"] + ["event"] * 3 + ["compensate"] * 3
    async with Manager(flow("bare"), tap, work=False) as m:
        await walk(m, E.GO, E.GO, E.GO)
        tap.calls.clear()
        done = await m.compensate("i", S.A)
        assert tap.calls["append"] == 1
        assert (done.settled, done.state) == (True, S.A)
        assert await story(m) == ["start"] + ["event"] * 3 + ["compensate"] * 3
        assert (await m.send("i", E.GO)).state is S.B


async def test_to_is_the_topmost_below(store):
    """`to` is the topmost entry below the present one with that state; the present one does not count."""
    log = Log()
    async with Manager(undoing(log, S.B, S.C), store) as m:
        await walk(m, E.GO, E.GO, E.BACK, E.GO, E.BACK)  # a b c b c b
        await m.compensate("i", S.B)
        assert log == ["undo b", "undo c"]
        assert (await m.get("i")).state is S.B
        await m.compensate("i", S.B)
        assert (await m.get("i")).state is S.B
        with pytest.raises(IllegalTransition):
            await m.compensate("i", S.B)
        await m.compensate("i", S.A)
        await story(m)


async def test_to_that_is_not_on_the_stack(store):
    """Nothing to go back to: IllegalTransition, nothing written, the key free."""
    async with Manager(flow(), store) as m:
        await walk(m, E.GO)
        for to in (S.B, S.C, S.END):
            with pytest.raises(IllegalTransition) as e:
                await m.compensate("i", to, key="k")
            assert e.value.committed is False
        assert await story(m) == ["start", "event"]
        assert not (await m.compensate("i", S.A, key="k")).duplicate
        with pytest.raises(IllegalTransition):
            await m.compensate("i", S.A)
        with pytest.raises(UnknownInstance):
            await m.compensate("j", S.A)


async def test_stay_neither_pushes_nor_pops(store):
    """Lines of STAY stand between entries and are not undone."""
    log = Log()
    async with Manager(undoing(log, S.B), store) as m:
        await walk(m, E.GO, E.NOTE, E.NOTE)
        await m.compensate("i", S.A)
        assert log == ["undo b"]
        assert await story(m) == ["start", "event", "event", "event", "compensate"]


async def test_what_a_compensator_is_told(store):
    """As source the state undone, as target that below, event and payload those of the undone entry, context the head's."""
    seen: list[Any] = []

    async def undo(m):
        seen.append(m)

    def plain(m):
        seen.append(m)

    spec = flow(
        edges=edged(Edge(S.B, E.BACK, S.C, assign=lambda m: evolve(m.context, n=5))), compensators={S.C: [undo, plain]}
    )
    async with Manager(spec, store) as m:
        await walk(m, E.GO)
        await m.send("i", E.BACK, {"x": 1})
        await m.send("i", E.ADD, 2)
        await m.compensate("i", S.A)
    for move in seen:
        assert (move.source, move.target, move.event, move.payload) == (S.C, S.B, E.BACK, {"x": 1})
        assert (move.undoes, move.seq, move.context, move.attempt) == (3, 5, Ctx(7), 1)
        assert move.key.startswith("flow/i/5/undo/c/")
    assert seen[0].key != seen[1].key


async def test_context_is_kept_and_may_be_updated(store):
    """The context is not rolled back; a compensator may update it, and the next one sees that."""
    seen: list[Any] = []

    async def undo(m):
        seen.append(m.context.n)
        m.update(lambda c: evolve(c, n=c.n + 1))

    async with Manager(flow(compensators={S.B: undo, S.C: undo}), store) as m:
        await walk(m, E.GO, E.GO)
        await m.send("i", E.ADD, 10)
        await m.compensate("i", S.A)
        assert seen == [10, 11]
        assert (await m.get("i")).context == Ctx(12)
        assert await story(m) == ["start", "event", "event", "event", "compensate", "update", "compensate", "update"]


async def test_from_a_final_state(store):
    """Allowed from a final state: status is running again."""
    log = Log()
    async with Manager(undoing(log, S.END), store) as m:
        await walk(m, E.STOP)
        assert (await m.compensate("i", S.A)).state is S.A
        assert (await m.get("i")).status is Status.RUNNING
        assert log == ["undo end"]
        assert (await m.send("i", E.GO)).state is S.B
        await story(m)


async def test_from_failed(store, clock):
    """A `failed` instance is left by compensate; what its undone entry owed is dropped."""
    log = Log()
    spec = undoing(log, S.B, on_enter={S.B: [log.failing("b1"), log.hook("b2")]}, retry=ONCE)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        assert (await m.get("i")).status is Status.FAILED
        done = await m.compensate("i", S.A)
        assert (done.state, done.settled) == (S.A, True)
        head = await m.get("i")
        assert (head.status, head.reason) == (Status.RUNNING, None)
        await clock.advance(MINUTE)
        assert log == ["b1", "undo b"]
        assert await story(m) == ["start", "event", "fail", "compensate"]


# --- duplicates -----------------------------------------------------------------------------------


async def test_a_repeated_compensate(store):
    """The key stands on the first undone line: the repeat answers it; another `to` is a KeyConflict."""
    log = Log()
    async with Manager(undoing(log, S.B, S.C, S.D), store) as m:
        await walk(m, E.GO, E.GO, E.GO)
        first = await m.compensate("i", S.A, key="k")
        again = await m.compensate("i", S.A, key="k")
        assert (again.duplicate, again.settled) == (True, True)
        assert again.transition == first.transition
        with pytest.raises(KeyConflict):
            await m.compensate("i", S.B, key="k")
        with pytest.raises(KeyConflict):
            await m.send("i", E.GO, key="k")
        assert len(log) == 3


async def test_a_repeat_of_a_second_plan(store, clock):
    """A compensate that goes on where an earlier plan failed is known again by its own `to`."""
    log = Log()
    spec = flow(compensators={S.D: log.failing("undo d"), S.C: log.hook("undo c"), S.B: log.hook("undo b")}, retry=ONCE)
    async with Manager(spec, store, clock=clock) as m:
        await walk(m, E.GO, E.GO, E.GO)
        with pytest.raises(HookFailed):
            await m.compensate("i", S.A, key="one")
        with pytest.raises(HookFailed):
            await m.compensate("i", S.A, key="two")
        again = await m.compensate("i", S.A, key="two")
        assert again.duplicate
        assert (await m.compensate("i", S.A, key="one")).duplicate
        with pytest.raises(KeyConflict):
            await m.compensate("i", S.B, key="two")


async def test_a_repeat_is_settled_when_the_plan_is_done(store):
    """`settled` speaks of the whole plan, not of its first step."""
    gate, log = Gate(), Log()
    async with Manager(flow(compensators={S.C: log.hook("undo c"), S.B: gate.hook}), store) as m:
        await walk(m, E.GO, E.GO)
        first = asyncio.create_task(m.compensate("i", S.A, key="k"))
        await gate.entered.wait()
        again = await m.compensate("i", S.A, key="k")
        assert (again.duplicate, again.settled, log) == (True, False, ["undo c"])
        gate.open.set()
        assert (await first).settled
        assert (await m.compensate("i", S.A, key="k")).settled


async def test_a_claim_between_look_and_commit(store, clock):
    """A compensate that saw an effect waiting, which another Manager took meanwhile, waits for it."""
    log, tap, gate = Log(), Tap(store), Gate()

    async def enter(m):
        if m.attempt == 1:
            raise ValueError
        await gate.hook(m)

    enter.__qualname__ = "enter"
    spec = flow(on_enter={S.B: enter}, compensators={S.B: log.hook("undo b")}, retry=EVERY_SECOND)
    async with Manager(spec, tap, clock=clock, work=False) as m, Manager(spec, store, clock=clock, work=False) as n:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await clock.advance(SECOND)
        resumed: list[Any] = []

        async def faster(commits):
            if not resumed:
                resumed.append(asyncio.create_task(n.resume()))
                await gate.entered.wait()

        tap.before["append"] = faster
        undone = asyncio.create_task(m.compensate("i", S.A))
        await until(lambda: tap.calls["load"] > 3)
        assert log == []
        gate.open.set()
        assert (await undone).settled
        assert (await resumed[0]).effects == 1
        assert log == ["undo b"]
        assert await story(m) == ["start", "event", "compensate"]


async def test_a_repeat_while_the_plan_is_at_work(store):
    """The key is looked for before any wait."""
    gate = Gate()
    async with Manager(flow(compensators={S.B: gate.hook}), store) as m:
        await walk(m, E.GO)
        first = asyncio.create_task(m.compensate("i", S.A, key="k"))
        await gate.entered.wait()
        again = await m.compensate("i", S.A, key="k")
        assert (again.duplicate, again.settled, again.state) == (True, False, S.A)
        gate.open.set()
        assert (await first).settled


# --- waiting --------------------------------------------------------------------------------------


async def test_compensate_waits_like_a_send(store):
    """While effects run a compensate waits, then undoes what they did; Busy when time is over."""
    gate, log = Gate(), Log()
    async with Manager(undoing(log, S.B, on_enter={S.B: gate.hook}), store) as m:
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        with pytest.raises(Busy):
            await m.compensate("i", S.A, timeout=0)
        undone = asyncio.create_task(m.compensate("i", S.A))
        await until(lambda: len(inner(m).lanes))
        gate.open.set()
        assert (await sent).settled
        assert (await undone).state is S.A
        assert log == ["undo b"]


async def test_a_send_waits_until_the_plan_is_done(store, clock):
    """A send during an undoing waits, retries of compensators included, then Busy."""
    log = Log()
    spec = flow(compensators={S.B: log.hook("undo b"), S.C: log.failing("undo c", 1)}, retry=EVERY_SECOND)
    async with Manager(spec, store, clock=clock) as m:
        await walk(m, E.GO, E.GO)
        with pytest.raises(HookFailed) as e:
            await m.compensate("i", S.A)
        assert e.value.retry_at == clock.now() + SECOND
        assert e.value.outcome.transition.undoes == 3
        with pytest.raises(Busy):
            await m.send("i", E.GO, timeout=0)
        with pytest.raises(Busy):
            await m.compensate("i", S.A, timeout=0)
        sent = asyncio.create_task(m.send("i", E.GO))
        await until(lambda: len(inner(m).lanes))
        await clock.advance(SECOND)
        assert (await sent).state is S.B
        assert log == ["undo c", "undo c", "undo b"]
        assert await story(m) == ["start", "event", "event", "compensate", "compensate", "event"]


# --- trouble --------------------------------------------------------------------------------------


async def test_a_compensator_that_gives_up(store, clock):
    """Exhausted: status failed, the plan kept; a new compensate goes on with it, later ones in order."""
    log, broken = Log(), [True]

    async def undo(m):
        log.append("undo d")
        if broken:
            raise ValueError("closed")

    spec = flow(compensators={S.D: undo, S.C: log.hook("undo c"), S.B: log.hook("undo b")}, retry=ONCE)
    async with Manager(spec, store, clock=clock) as m:
        await walk(m, E.GO, E.GO, E.GO)
        with pytest.raises(HookFailed) as e:
            await m.compensate("i", S.A)
        assert e.value.retry_at is None
        head = await m.get("i")
        assert (head.status, head.state) == (Status.FAILED, S.C)
        with pytest.raises(NotRunning):
            await m.send("i", E.GO)
        broken.clear()
        done = await m.compensate("i", S.A)
        assert (done.state, done.settled) == (S.A, True)
        assert log == ["undo d", "undo d", "undo c", "undo b"]
        assert (await m.get("i")).status is Status.RUNNING
        assert await story(m) == ["start"] + ["event"] * 3 + ["compensate", "fail", "compensate", "compensate"]


async def test_the_last_compensator_that_gives_up(store, clock):
    """Also when all entries are popped already a failed plan is left by a new compensate."""
    log, broken = Log(), [True]

    async def undo(m):
        log.append("undo b")
        if broken:
            raise ValueError("closed")

    async with Manager(flow(compensators={S.B: undo}, retry=ONCE), store, clock=clock) as m:
        await walk(m, E.GO)
        with pytest.raises(HookFailed):
            await m.compensate("i", S.A)
        assert (await m.get("i")).status is Status.FAILED
        broken.clear()
        done = await m.compensate("i", S.A, key="k")
        assert (done.state, done.settled) == (S.A, True)
        assert (await m.compensate("i", S.A, key="k")).duplicate
        assert log == ["undo b", "undo b"]
        assert (await m.get("i")).status is Status.RUNNING
        await story(m)
        assert (await m.send("i", E.GO)).state is S.B


async def test_a_failed_plan_is_taken_up_not_exceeded(store, clock):
    """The same compensate again goes on with the plan; it does not undo down to an older entry of that state."""
    log, broken = Log(), [True]

    async def undo(m):
        log.append("undo c")
        if broken:
            raise ValueError("closed")

    spec = flow(compensators={S.C: undo, S.B: log.hook("undo b")}, retry=ONCE)
    async with Manager(spec, store, clock=clock) as m:
        await walk(m, E.GO, E.GO, E.BACK, E.GO)  # a b c b c
        with pytest.raises(HookFailed):
            await m.compensate("i", S.B)
        with pytest.raises(HookFailed):
            await m.compensate("i", S.B)
        broken.clear()
        await m.compensate("i", S.B)
        assert log == ["undo c"] * 3
        await m.compensate("i", S.B)
        assert log == ["undo c"] * 3 + ["undo b", "undo c"]
        await story(m)


async def test_a_refused_event_is_no_plan_to_take_up(store, clock):
    """Once an undoing is complete, an event that is refused leaves nothing that the same compensate could go on with."""
    log = Log()
    spec = undoing(log, S.C, on_enter={S.B: [log.failing("b1", 1), log.hook("b2", E.BACK)]}, retry=EVERY_SECOND)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await m.send("i", E.GO)
        await m.compensate("i", S.B)
        await clock.advance(2 * SECOND)
        assert (await m.get("i")).status is Status.FAILED
        before = await story(m)
        with pytest.raises(IllegalTransition):
            await m.compensate("i", S.B)
        assert await story(m) == before


async def test_effects_of_entries_that_stay_run_first(store, clock):
    """What an entry that stays still owes is done before anything is compensated; what undone ones owe is dropped."""
    log = Log()
    spec = undoing(
        log,
        S.B,
        S.C,
        S.D,
        on_enter={S.B: [log.failing("b1", 1), log.hook("b2")], S.C: log.hook("c"), S.D: log.hook("d")},
        retry=EVERY_SECOND,
    )
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await m.send("i", E.GO)
        await m.send("i", E.GO)
        done = await m.compensate("i", S.B, key="k")
        assert not done.settled
        assert not (await m.compensate("i", S.B, key="k")).settled
        await clock.advance(SECOND)
        assert log == ["b1", "b1", "b2"]  # neither c nor d was attempted, so neither is compensated
        assert (await m.compensate("i", S.B, key="k")).settled
        assert (await m.send("i", E.GO)).settled
        assert await story(m) == ["start"] + ["event"] * 3 + ["compensate"] * 2 + ["event"]


async def test_compensators_wait_for_effects_of_entries_that_stay(store, clock):
    """Until then the undoing is not done, so a send waits."""
    log = Log()
    spec = undoing(log, S.B, S.C, S.D, on_enter={S.B: log.failing("b", 1)}, retry=EVERY_SECOND)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await m.send("i", E.GO)
        await m.send("i", E.GO)
        assert not (await m.compensate("i", S.B, key="k")).settled
        with pytest.raises(Busy):
            await m.send("i", E.GO, timeout=0)
        await clock.advance(SECOND)
        assert log == ["b", "b", "undo d", "undo c"]
        assert (await m.compensate("i", S.B, key="k")).settled
        assert await story(m) == ["start"] + ["event"] * 3 + ["compensate"] * 2


async def test_an_attempted_entry_is_compensated(store, clock):
    """An entry whose effects were attempted, if only once and in vain, is compensated; the rest of them is dropped."""
    log = Log()
    spec = undoing(log, S.B, on_enter={S.B: [log.failing("b1"), log.hook("b2")]}, retry=EVERY_SECOND)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        assert (await m.compensate("i", S.A)).settled
        await clock.advance(MINUTE)
        assert log == ["b1", "undo b"]
        assert await story(m) == ["start", "event", "compensate"]


async def test_an_entry_that_owed_nothing_is_compensated(store):
    """A compensator without enter hooks runs."""
    log = Log()
    async with Manager(undoing(log, S.B), store) as m:
        await walk(m, E.GO)
        await m.compensate("i", S.A)
        assert log == ["undo b"]


async def test_an_entry_that_was_begun_and_handed_back_is_compensated(store):
    """A hook that began and was cancelled by a closing Manager may have done something: it is compensated."""
    gate, log = Gate(), Log()
    spec = undoing(log, S.B, on_enter={S.B: gate.hook})
    async with store:
        m = Manager(spec, store, work=False, drain=SECOND * 0)
        async with m:
            await m.start("i")
            sent = asyncio.create_task(m.send("i", E.GO))
            await gate.entered.wait()
        assert not (await sent).settled
        async with Manager(spec, store, work=False) as n:
            await n.compensate("i", S.A)
            assert log == ["undo b"]


async def test_effects_that_stay_and_failed_for_good(store, clock):
    """If an effect of an entry that stays has failed for good: NotRunning, nothing written."""
    log = Log()
    spec = undoing(log, S.C, on_enter={S.B: log.failing("b")}, retry=TWICE)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await m.send("i", E.GO)
        await clock.advance(MINUTE)
        with pytest.raises(NotRunning) as e:
            await m.compensate("i", S.B)
        assert (e.value.status, e.value.committed) == ("failed", False)
        assert (await m.compensate("i", S.A)).state is S.A
        assert log == ["b", "b", "undo c"]  # c owed nothing, so nobody knows that nothing was done
        assert await story(m) == ["start", "event", "event", "fail", "compensate", "compensate"]


async def test_returned_events_of_undone_entries_are_dropped(store, clock):
    """Events that hooks of undone entries returned are dropped with them; those of entries that stay are kept."""
    log = Log()
    spec = undoing(log, S.B, on_enter={S.B: [log.hook("b1", E.NOTE), log.failing("b2")]}, retry=EVERY_SECOND)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await m.compensate("i", S.A)
        assert log == ["b1", "b2", "undo b"]
        assert await story(m) == ["start", "event", "compensate"]


async def test_a_refused_chain_is_left_by_compensate(store):
    """A returned event that was refused is dropped when its entry is undone."""
    log = Log()
    async with Manager(undoing(log, S.B, on_enter={S.B: log.hook("b", E.BACK)}), store) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        assert (await m.compensate("i", S.A)).settled
        assert log == ["b", "undo b"]
        assert await story(m) == ["start", "event", "refused", "compensate"]
        assert (await m.send("i", E.NOTE)).settled


async def test_a_refused_event_of_an_entry_that_stays(store, clock):
    """A returned event that was refused is judged again where the undoing led, if its own entry stays."""
    log, fails = Log(), [True]

    async def enter(m):
        if fails:
            fails.clear()
            raise ValueError
        return E.BACK if m.attempt == 2 else None

    async with Manager(undoing(log, S.D, on_enter={S.B: enter}, retry=EVERY_SECOND), store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await m.send("i", E.GO)
        await m.send("i", E.GO)
        await clock.advance(SECOND)
        assert await story(m) == ["start"] + ["event"] * 3 + ["refused"]
        await m.compensate("i", S.C)
        await m.settled("i")
        assert log == ["undo d"]
        assert await story(m) == ["start"] + ["event"] * 3 + ["refused", "compensate", "event"]
        assert (await m.get("i")).state is S.B


async def test_a_compensator_that_returns_something(store, clock):
    """A compensator returns nothing; anything else is its failure."""
    log = Log()
    async with Manager(flow(compensators={S.B: log.hook("b", E.GO)}, retry=ONCE), store, clock=clock) as m:
        await walk(m, E.GO)
        with pytest.raises(HookFailed, match="returned"):
            await m.compensate("i", S.A)


async def test_a_crash_in_the_middle(store, clock):
    """Target and place of an undoing are in the store: whoever comes next resumes it, and skips nothing."""
    log, gate = Log(), Gate()
    dying = flow(compensators={S.D: log.hook("undo d"), S.C: gate.hook, S.B: log.hook("undo b")})
    spec = flow(compensators={S.D: log.hook("undo d"), S.C: gate.hook, S.B: log.hook("undo b")})
    async with store:
        async with crashing(Manager(dying, store, clock=clock)) as m:
            await walk(m, E.GO, E.GO, E.GO)
            undone = asyncio.create_task(m.compensate("i", S.A))
            await gate.entered.wait()
        await asyncio.gather(undone, return_exceptions=True)
        gate.open.set()
        async with Manager(spec, store, clock=clock, work=False) as n:
            assert (await n.get("i")).state is S.B
            with pytest.raises(Busy):
                await n.send("i", E.GO, timeout=0)
            resumed = await n.resume()
            assert resumed.failed == ()
            assert log == ["undo d", "undo b"]
            assert gate.calls == 2
            assert gate.moves[1].attempt == 2
            assert gate.moves[0].key == gate.moves[1].key
            assert (await n.get("i")).state is S.A
            assert await story(n) == ["start"] + ["event"] * 3 + ["compensate"] * 3


async def test_undo_again_and_again(store):
    """Entries made after an undoing stand on the entry it led back to."""
    log = Log()
    async with Manager(undoing(log, S.B, S.C), store) as m:
        await walk(m, E.GO, E.GO)
        await m.compensate("i", S.B)
        await m.send("i", E.GO)
        await m.compensate("i", S.A)
        await m.send("i", E.GO)
        await m.compensate("i", S.A)
        assert log == ["undo c", "undo c", "undo b", "undo b"]
        await story(m)


async def test_effects_after_an_undoing_are_not_taken_for_undone_ones(store, clock):
    """What was dropped is dropped by its lines: the same state entered again runs its hooks."""
    log = Log()
    spec = undoing(log, S.B, on_enter={S.A: log.failing("a", 2), S.B: log.hook("b")}, retry=EVERY_SECOND)
    async with Manager(spec, store, clock=clock) as m:
        with pytest.raises(HookFailed):
            await m.start("i")
        await m.send("i", E.GO)
        assert not (await m.compensate("i", S.A)).settled
        await clock.advance(SECOND)
        assert log == ["a", "a"]
        await clock.advance(SECOND)
        assert (await m.send("i", E.GO)).settled
        assert log == ["a", "a", "a", "b"]
        await story(m)


async def test_stay_effects_of_undone_entries(store, clock):
    """Actions that wait behind a failed one are dropped with the entry they were made in."""
    log = Log()
    edges = edged(Edge(S.B, E.BACK, STAY, action=log.hook("act")))
    spec = undoing(log, S.B, edges=edges, on_enter={S.B: log.failing("b")}, retry=EVERY_SECOND)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await m.send("i", E.BACK)
        await m.compensate("i", S.A)
        assert log == ["b", "undo b"]
        assert (await m.settled("i")).state is S.A
