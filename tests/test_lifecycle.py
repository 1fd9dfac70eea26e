"""What an operator may do when; pause and unpause; races and lost answers."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve
from msgspec.structs import replace

from tests.flows import (
    EVERY_SECOND,
    MINUTE,
    ONCE,
    SECOND,
    Ctx,
    E,
    Gate,
    Log,
    S,
    crashing,
    flow,
    quiet,
    story,
)
from tests.steer import VERBS, call, rows
from tests.steer import kept as kept
from workflow import (
    After,
    Finished,
    HookFailed,
    IllegalTransition,
    KeyConflict,
    Manager,
    NotRunning,
    Permanent,
    Reentrant,
    Status,
    StoreUnavailable,
    Then,
    UnknownInstance,
)
from workflow.lifecycle import FOLLOWS
from workflow.testing import Faults, replay

# --- the table -------------------------------------------------------------------------------------

TABLE = {
    "pause": {"running": "paused"},
    "unpause": {"paused": "running"},
    "cancel": {"running": "cancelled", "paused": "cancelled", "failed": "cancelled"},
    "cancel(compensate=True)": {"running": "cancelled", "failed": "cancelled"},
    "retry": {"failed": "running"},
    "skip": {"failed": "running"},
    "erase": {"finished": "erased", "cancelled": "erased"},
}
"""What comes out for an instance that owes nothing else; all other pairs are refused."""


async def bring(m, status):
    """An instance of this status."""
    await m.start("i")
    if status == "failed":
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
    elif status == "finished":
        await m.send("i", E.STOP)
    elif status in ("paused", "cancelled"):
        await (m.pause("i", "audit") if status == "paused" else m.cancel("i", "fraud"))
    elif status == "erased":
        await m.cancel("i")
        await m.erase("i", "law")
    assert (await m.get("i")).status == status


@pytest.mark.parametrize("status", ["running", "paused", "failed", "cancelled", "finished", "erased"])
@pytest.mark.parametrize("verb", VERBS)
async def test_what_each_verb_may_follow(store, clock, verb, status):
    """The whole table: a verb leads where it says, or is refused by a typed error and writes nothing."""
    log = Log()
    spec = flow(on_enter={S.B: log.failing("b", 1)}, retry=ONCE)
    async with Manager(spec, store, clock=clock, work=False) as m:
        await bring(m, status)
        before = await m.history("i")
        wanted = TABLE[verb].get(status)
        if wanted is None:
            refusal: Any = {"running": IllegalTransition, "finished": Finished}.get(status, NotRunning)
            if verb in ("retry", "skip") and status == "finished":
                refusal = IllegalTransition  # it may follow, but there is nothing of the kind
            with pytest.raises(refusal) as e:
                await call(m, verb, key="k")
            assert e.value.committed is False
            assert await m.history("i") == before
        else:
            done = await call(m, verb, "i", "why", key="k")
            assert done.transition.key == "k"
            assert not done.duplicate
            assert (await m.get("i")).status == wanted
            again = await call(m, verb, key="k")
            assert (again.duplicate, again.transition) == (True, done.transition)
        await story(m)
        assert quiet(m)
    assert (wanted is not None) <= (Status(status) in FOLLOWS[verb])


def test_the_table_of_the_engine_is_that_of_the_test():
    """Every pair that the engine lets pass is in the table, or needs something that failed or waits."""
    for verb, follows in FOLLOWS.items():
        needy = {Status.RUNNING, Status.FINISHED} if verb in ("retry", "skip") else set()
        assert {str(s) for s in follows - needy} == set(TABLE[verb])


@pytest.mark.parametrize("verb", VERBS)
async def test_what_no_verb_takes(store, verb):
    """An unknown instance, a bad id or key or reason: a typed error."""
    async with Manager(flow(), store, work=False) as m:
        with pytest.raises(UnknownInstance):
            await call(m, verb, "nobody")
        for id, key in (("", None), ("i", "")):
            with pytest.raises(ValueError, match="1 to 512 bytes"):
                await call(m, verb, id, key=key)
        with pytest.raises(TypeError, match="a reason is a text"):
            await call(m, verb, "i", 7)
        await m.start("i")
        with pytest.raises(ValueError, match="at most"):
            await call(m, verb, "i", "x" * (1 << 20) + "x")


async def test_a_key_is_one_verbs(store, clock):
    """A repeat is a duplicate whatever its reason; another verb with the key is a KeyConflict."""
    async with Manager(flow(), store, clock=clock, work=False) as m:
        await m.start("i")
        first = await m.pause("i", "one", key="k")
        again = await m.pause("i", "two", key="k")
        assert (again.duplicate, again.transition.reason) == (True, "one")
        for other in (m.unpause, m.cancel, m.retry, m.skip, m.erase):
            with pytest.raises(KeyConflict):
                await other("i", key="k")
        with pytest.raises(KeyConflict):
            await m.cancel("i", key="k", compensate=True)
        await m.unpause("i", key="u")
        assert (await m.pause("i", key="k")).transition == first.transition  # long past, still known
        assert (await m.get("i")).status == "running"
        await m.cancel("i", key="c")
        with pytest.raises(KeyConflict):
            await m.cancel("i", key="c", compensate=True)
        assert await story(m) == ["start", "pause", "unpause", "cancel"]


async def test_the_reason_is_on_the_record(store, clock):
    """Line and head carry it; without one there is none; what no database stores is cleaned."""
    async with Manager(flow(), store, clock=clock, work=False) as m:
        await m.start("i")
        done = await m.pause("i", "audit\0of 2030")
        assert (done.transition.reason, done.transition.status) == ("audit\\0of 2030", Status.PAUSED)
        with pytest.raises(NotRunning, match=r"paused \(audit.*unpause\(\)"):
            await m.send("i", E.GO)
        assert (await m.get("i")).reason == "audit\\0of 2030"
        await m.unpause("i")
        assert (await m.get("i")).reason is None


# --- pause -----------------------------------------------------------------------------------------


async def test_a_paused_instance_takes_nothing_and_runs_nothing(store, clock):
    """No event, no undoing; what is due is held and wakes nobody, and is done when it goes on."""
    log = Log()
    spec = flow(on_enter={S.B: log.failing("b", 1)}, timeouts={S.B: After(MINUTE, E.GO)}, retry=EVERY_SECOND)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await m.send_later("i", E.NOTE, after=2 * MINUTE)
        done = await m.pause("i", "audit")
        assert (done.state, done.settled) == (S.B, False)
        assert all(row.held for row in (await rows(store)).values())
        assert (await store.next_due({"flow": 1})).at is None
        for refused in (m.send("i", E.NOTE), m.compensate("i", S.A)):
            with pytest.raises(NotRunning):
                await refused
        assert await m.accepted("i") == ()
        assert (await m.settled("i", timeout=0)).status == "paused"
        await m.send_later("i", E.ADD, 5, after=SECOND)
        await clock.advance(timedelta(hours=1))
        assert await m.resume() == type(await m.resume())(0, 0, ())
        assert log == ["b"]
        await m.unpause("i")
        await clock.advance(timedelta(0))
        assert log == ["b", "b"]
        head = await m.get("i")
        assert (head.state, head.context.n) == (S.C, 5)
        assert sorted(await story(m)) == sorted(["start", "event", "pause", "unpause", "timeout", "event", "event"])
        assert await rows(store) == {}


async def test_a_hook_that_runs_when_paused_may_settle(store, clock):
    """Its update counts; what it returns and the next effect are held until it goes on."""
    log, gate = Log(), Gate(E.ADD)
    entered = gate.hook

    async def first(m):
        m.update(lambda c: evolve(c, words=(*c.words, "first")))
        await entered(m)
        return Then(E.ADD, 7)

    spec = flow(on_enter={S.B: [first, log.hook("second")], S.C: log.hook("c")})
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        sending = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        assert not (await m.pause("i")).settled
        gate.open.set()
        done = await sending
        assert (done.state, done.settled) == (S.B, False)
        head = await m.get("i")
        assert (head.status, head.context) == ("paused", Ctx(0, ("first",)))
        row = (await rows(store))["effects"]
        assert (row.held, row.token, row.number) == (True, None, 1)
        await clock.advance(timedelta(hours=1))
        assert log == []
        await m.unpause("i")
        assert (await m.settled("i")).context == Ctx(7, ("first",))
        assert log == ["second"]
        assert await story(m) == ["start", "event", "pause", "update", "unpause", "event"]


async def test_an_event_returned_while_paused_is_judged_afterwards(store, clock):
    """Also when no effect is left: the event waits, then it is judged before any waiting sender."""
    gate = Gate(E.GO)
    async with Manager(flow(on_enter={S.B: gate.hook}), store, clock=clock) as m:
        await m.start("i")
        sending = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        await m.pause("i")
        gate.open.set()
        assert (await sending).state is S.B
        await m.unpause("i")
        assert (await m.settled("i")).state is S.C
        assert gate.calls == 1
        assert await story(m) == ["start", "event", "pause", "unpause", "event"]
        assert quiet(m)


async def test_nothing_is_left_of_a_last_hook_that_ends_while_paused(store, clock):
    """With nothing to come the queue is gone, and stays so."""
    gate = Gate()
    async with Manager(flow(on_enter={S.B: gate.hook}), store, clock=clock) as m:
        await m.start("i")
        sending = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        await m.pause("i")
        gate.open.set()
        assert (await sending).settled
        assert await rows(store) == {}
        await m.unpause("i")
        assert (await m.send("i", E.GO)).state is S.C


async def test_a_retry_waits_while_paused(store, clock):
    """A hook that fails after the pause is tried again only when it goes on, and not before its time."""
    gate = Gate()
    inner = gate.hook

    async def b(m):
        await inner(m)
        if m.attempt == 1:
            raise ValueError("not yet")

    async with Manager(flow(on_enter={S.B: b}, retry=EVERY_SECOND), store, clock=clock) as m:
        await m.start("i")
        sending = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        await m.pause("i")
        gate.open.set()
        with pytest.raises(HookFailed):
            await sending
        assert (await rows(store))["effects"].held
        await clock.advance(MINUTE)
        assert gate.calls == 1
        await m.unpause("i")
        await m.settled("i")
        assert [move.attempt for move in gate.moves] == [1, 2]


async def test_a_hook_that_fails_for_good_while_paused(store, clock):
    """The instance has failed, never a silent end; retry goes on."""
    gate = Gate()
    inner = gate.hook

    async def b(m):
        await inner(m)
        if gate.calls == 1:
            raise Permanent("no use")

    async with Manager(flow(on_enter={S.B: b}), store, clock=clock) as m:
        await m.start("i")
        sending = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        await m.pause("i", "audit")
        gate.open.set()
        with pytest.raises(HookFailed, match="the instance is failed"):
            await sending
        assert (await m.get("i")).status == "failed"
        with pytest.raises(NotRunning, match=r"retry\(\)"):
            await m.unpause("i")
        await m.retry("i")
        assert (await m.settled("i")).status == "running"
        assert await story(m) == ["start", "event", "pause", "fail", "retry"]


async def test_the_owner_dies_while_its_instance_is_paused(kept, clock):
    """The effect is taken over once it goes on, not before."""
    gate, log = Gate(), Log()
    async with crashing(Manager(flow(on_enter={S.B: gate.hook}), kept, clock=clock)) as first:
        await first.start("i")
        sending = asyncio.create_task(first.send("i", E.GO))
        await gate.entered.wait()
        await first.pause("i")
    sending.cancel()
    async with Manager(flow(on_enter={S.B: log.hook("b")}), kept, clock=clock) as m:
        await clock.advance(timedelta(hours=1))
        assert log == []
        await m.unpause("i")
        await m.settled("i")
        assert log == ["b"]


async def test_a_row_claimed_just_before_the_pause_is_not_run(store, clock):
    """Whoever claimed the effect but sees the pause before he begins puts it back."""
    log = Log()
    spec = flow(on_enter={S.B: log.hook("b")})
    async with Manager(spec, store, clock=clock, work=False, inline=False) as m:
        await m.start("i")
        await m.send("i", E.GO)
        (row,) = await store.claim({"flow": 1}, m._open().incarnation.token, MINUTE, 9, now=clock.now())
        await m.pause("i")
        taken = await m._background._begin([row])
        await asyncio.wait([run.result for run in taken.runs])
        put = (await rows(store))["effects"]
        assert (log, put.held, put.token, put.attempt) == ([], True, None, 0)
        await m.unpause("i")
        assert (await m.resume()).effects == 1
        assert log == ["b"]


async def test_pause_in_the_middle_of_an_undoing(store, clock):
    """The compensator that runs may settle; the next begins when it goes on, and no event comes between."""
    gate, log = Gate(), Log()
    spec = flow(compensators={S.C: gate.hook, S.B: log.hook("undo b")})
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        await m.send("i", E.GO)
        await m.send("i", E.GO)
        undoing = asyncio.create_task(m.compensate("i", S.A))
        await gate.entered.wait()
        await m.pause("i")
        gate.open.set()
        assert not (await undoing).settled
        assert (log, (await m.get("i")).state) == ([], S.B)
        await m.unpause("i")
        assert (await m.send("i", E.GO)).transition.source is S.A
        assert log == ["undo b"]
        assert await story(m) == [
            "start", "event", "event", "compensate", "pause", "unpause", "compensate", "event"
        ]  # fmt: skip


# --- races and trouble -----------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["pause", "cancel"])
async def test_a_verb_races_with_senders(store, clock, verb):
    """Sends before it stand, those after it are refused; the history adds up."""
    async with Manager(flow(), store, clock=clock, work=False) as m:
        await m.start("i")
        sends = [m.send("i", E.ADD, 1, key=f"k{n}") for n in range(20)]
        *done, last = await asyncio.gather(*sends, call(m, verb), return_exceptions=True)
        assert not isinstance(last, BaseException)
        taken = [each for each in done if not isinstance(each, NotRunning)]
        assert (await m.get("i")).context.n == len(taken)
        assert last.transition.seq == len(taken) + 2
        await story(m)


async def test_no_verb_waits_for_a_hook(store, clock):
    """Pause, unpause and cancel from within the very hook; only a cancel that undoes first would wait for it."""
    seen: list[Any] = []

    async def b(m):
        with pytest.raises(Reentrant):
            await manager.cancel("i", compensate=True)
        seen.append((await manager.pause("i")).transition.status)
        seen.append((await manager.unpause("i")).transition.status)
        seen.append((await manager.cancel("i")).transition.status)

    async with Manager(flow(on_enter={S.B: b}), store, clock=clock) as manager:
        await manager.start("i")
        assert (await manager.send("i", E.GO)).settled
        assert seen == ["paused", "running", "cancelled"]
        assert await story(manager) == ["start", "event", "pause", "unpause", "cancel"]


@pytest.mark.parametrize("verb", ["pause", "cancel", "retry", "skip"])
@pytest.mark.parametrize("when", ["before", "after", "late"])
async def test_a_lost_acknowledgement(store, clock, verb, when):
    """The identical commit is appended again: the verb is done once."""
    log = Log()
    faulty = Faults(store)
    async with Manager(flow(on_enter={S.B: log.failing("b", 1)}, retry=ONCE), faulty, clock=clock, work=False) as m:
        await m.start("i")
        if verb in ("retry", "skip"):
            with pytest.raises(HookFailed):
                await m.send("i", E.GO)
        faulty.fail("append", when=when, error=StoreUnavailable)
        done = await call(m, verb, key="k")
        assert not done.duplicate
        assert (await story(m)).count(verb) == 1


async def test_a_moving_queue_does_not_keep_off_a_cancel(store, clock):
    """Each settle moves the row: a cancel that finds an effect running needs only the head to stand still."""
    begun: list[int] = []
    first = asyncio.Event()

    async def hook(m):
        begun.append(m.attempt)
        first.set()
        await asyncio.sleep(0)

    async with Manager(flow(on_enter={S.B: [hook] * 300}), store, clock=clock) as m:
        await m.start("i")
        sending = asyncio.create_task(m.send("i", E.GO))
        await first.wait()
        await m.cancel("i")
        await sending
        assert (await m.settled("i")).status == "cancelled"
        assert (len(begun) < 300, await rows(store)) == (True, {})
        await story(m)


async def test_replay_knows_what_each_verb_may_follow(memory):
    """A history in which a verb follows what it may not is no history."""
    spec = flow()
    async with Manager(spec, memory, work=False) as m:
        await m.start("i")
        for verb in ("pause", "unpause", "cancel", "erase"):
            await call(m, verb)
        lines = await m.history("i")
    assert replay(spec, lines).status == "erased"
    for without in (1, 3):
        broken = [*lines[:without], *lines[without + 1 :]]
        with pytest.raises(IllegalTransition, match="it is running"):
            replay(spec, [replace(line, seq=n) for n, line in enumerate(broken, 1)])
