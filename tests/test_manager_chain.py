"""Events that hooks return, and changes of the context by hooks."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from attrs import evolve

from tests.flows import (
    EVERY_SECOND,
    ONCE,
    SECOND,
    TWICE,
    Ctx,
    E,
    Gate,
    Log,
    S,
    Tap,
    edged,
    flow,
    inner,
    quiet,
    standing_by,
    story,
    until,
)
from workflow import STAY, Busy, Deny, Edge, GuardError, HookFailed, InvalidContext, Manager, NotRunning, Status, Then

NAN: Any = float("nan")

# --- returned events ------------------------------------------------------------------------------


async def test_a_returned_event_is_sent_next(store):
    """The event is judged in the commit that settles the transition's last effect; the sender hears the end."""
    log, tap = Log(), Tap(store)
    spec = flow(on_enter={S.B: [log.hook("b1", E.GO), log.hook("b2")], S.C: log.hook("c", E.GO)})
    async with Manager(spec, tap, work=False) as m:
        await m.start("i")
        tap.calls.clear()
        done = await m.send("i", E.GO)
        assert (done.transition.seq, done.state, done.settled) == (2, S.D, True)
        assert log == ["b1", "b2", "c"]
        assert tap.calls == {"append": 1 + 3}
        assert await story(m) == ["start", "event", "event", "event"]
        assert quiet(m)


async def test_returned_events_come_before_waiting_senders(store):
    """A sender that waited is judged only when the chain is at its end."""
    gate = Gate(E.GO)
    async with Manager(flow(on_enter={S.B: gate.hook}), store) as m:
        await m.start("i")
        first = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        waiter = asyncio.create_task(m.send("i", E.BACK))
        await until(lambda: standing_by(m, "i"))
        gate.open.set()
        assert (await first).transition.seq == 2
        assert (await waiter).transition.seq == 4
        assert [(t.event, t.target) for t in (await m.history("i"))[1:4]] == [(E.GO, S.B), (E.GO, S.C), (E.BACK, S.B)]
        await m.settled("i")


async def test_several_returned_events_form_a_queue(store):
    """Each is judged when the effects of the one before are settled; events returned meanwhile queue behind."""
    log = Log()
    spec = flow(
        edges=edged(
            Edge(S.B, E.BACK, STAY, action=log.hook("x1", Then(E.ADD, 100))),
            Edge(S.B, E.NOTE, STAY, action=log.hook("note")),
        ),
        on_enter={S.B: [log.hook("b1", Then(E.ADD, 1)), log.hook("b2", E.BACK), log.hook("b3", Then(E.ADD, 10))]},
    )
    async with Manager(spec, store) as m:
        await m.start("i")
        await m.send("i", E.GO)
        events = [(t.event, t.payload) for t in await m.history("i")]
        assert events[1:] == [(E.GO, None), (E.ADD, 1), (E.BACK, None), (E.ADD, 10), (E.ADD, 100)]
        assert (await m.get("i")).context == Ctx(111)
        assert log == ["b1", "b2", "b3", "x1"]
        await story(m)


async def test_then_carries_a_typed_payload(store, clock):
    """The payload of `Then` is checked like a sent one; a wrong one is the hook's failure."""
    seen: list[Any] = []

    async def enter(m):
        seen.append(m.attempt)
        return Then(E.ADD, 3) if m.attempt > 1 else Then(E.ADD, "three")

    async with Manager(flow(on_enter={S.B: enter}, retry=EVERY_SECOND), store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await clock.advance(SECOND)
        assert seen == [1, 2]
        assert (await m.get("i")).context == Ctx(3)


@pytest.mark.parametrize("answer", [E.ADD, Then(E.ADD), Then(E.NOTE, float("nan"))])
async def test_returned_payloads_that_cannot_be_stored(store, clock, answer):
    """A returned event without its declared payload, or with an unstorable one, is the hook's failure."""
    log = Log()
    async with Manager(flow(on_enter={S.B: log.hook("b", answer)}, retry=ONCE), store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        assert await story(m) == ["start", "event", "fail"]


async def test_a_returned_event_that_is_refused(store, clock):
    """Refused: a `refused` line, status failed, HookFailed without a retry; the effect stays settled."""
    log = Log()
    async with Manager(flow(on_enter={S.B: log.hook("b", E.BACK)}), store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed) as e:
            await m.send("i", E.GO)
        assert e.value.retry_at is None
        assert e.value.outcome.transition.seq == 2
        assert await story(m) == ["start", "event", "refused"]
        line = (await m.history("i"))[-1]
        assert (line.event, line.status, line.source, line.target) == (E.BACK, Status.FAILED, S.B, S.B)
        with pytest.raises(NotRunning):
            await m.send("i", E.GO)
        await clock.advance(SECOND * 3600)
        assert log == ["b"]


async def test_a_returned_event_that_guards_refuse(store):
    """A denial is a refusal; its reason is kept."""
    log = Log()
    edges = edged(Edge(S.B, E.BACK, S.C, guard=lambda m: Deny("closed today")))
    async with Manager(flow(edges=edges, on_enter={S.B: log.hook("b", E.BACK)}), store) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        assert "closed today" in ((await m.get("i")).reason or "")


async def test_a_returned_event_after_the_end(store):
    """What a final state's hook returns is refused."""
    log = Log()
    async with Manager(flow(on_enter={S.END: log.hook("end", E.GO)}), store) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.STOP)
        assert (await m.get("i")).status is Status.FAILED
        assert await story(m) == ["start", "event", "refused"]


async def test_refused_in_the_middle_keeps_what_waits(store):
    """When one of several returned events is refused those before stand and those behind wait."""
    log = Log()
    spec = flow(on_enter={S.B: [log.hook("1", Then(E.ADD, 1)), log.hook("2", E.BACK), log.hook("3", Then(E.ADD, 10))]})
    async with Manager(spec, store) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        assert await story(m) == ["start", "event", "event", "refused"]
        assert (await m.get("i")).context == Ctx(1)


async def test_max_chain(store):
    """A chain longer than max_chain is refused, on the record."""
    log = Log()
    spec = flow(edges=edged(Edge(S.A, E.BACK, S.A)), on_enter={S.A: log.hook("a", E.BACK)}, max_chain=5)
    async with Manager(spec, store) as m:
        with pytest.raises(HookFailed):
            await m.start("i")
        assert await story(m) == ["start"] + ["event"] * 5 + ["refused"]
        assert "max_chain" in ((await m.get("i")).reason or "")
        assert len(log) == 6


async def test_a_guard_error_in_a_chain_is_retried(store, clock):
    """Nobody can tell whether to refuse: it comes due again by the spec's retry; the hook is not re-run."""
    log, tries = Log(), []

    def guard(m):
        tries.append(m.at)
        if len(tries) < 3:
            raise ConnectionError("no answer")
        return True

    edges = edged(Edge(S.B, E.BACK, S.C, guard=guard))
    spec = flow(edges=edges, on_enter={S.B: log.hook("b", E.BACK), S.C: log.hook("c")}, retry=EVERY_SECOND)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed) as e:
            await m.send("i", E.GO)
        assert e.value.retry_at == clock.now() + SECOND
        assert (await m.get("i")).status is Status.RUNNING
        await clock.advance(SECOND)
        await clock.advance(SECOND)
        assert (log, len(tries)) == (["b", "c"], 3)
        assert await story(m) == ["start", "event", "event"]


async def test_a_guard_error_in_a_chain_for_good(store, clock):
    """Exhausted, the instance is failed with the error kept."""
    log = Log()

    def guard(m):
        raise ConnectionError("no answer")

    spec = flow(edges=edged(Edge(S.B, E.BACK, S.C, guard=guard)), on_enter={S.B: log.hook("b", E.BACK)}, retry=TWICE)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await clock.advance(SECOND * 10)
        head = await m.get("i")
        assert (head.status, log) == (Status.FAILED, ["b"])
        assert "no answer" in (head.reason or "")
        assert await story(m) == ["start", "event", "fail"]


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, StopIteration, StopAsyncIteration])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_strange_errors_of_guards(store, clock, error, asynchronous):
    """Whatever a guard raises is a GuardError, in a send and in a chain; the Manager works on."""
    log = Log()

    def guard(m):
        raise error

    async def waits(m):
        await asyncio.sleep(0)
        raise error

    edges = edged(Edge((S.A, S.B), E.BACK, S.C, guard=waits if asynchronous else guard))
    spec = flow(edges=edges, on_enter={S.B: log.hook("b", E.BACK)}, retry=EVERY_SECOND)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(GuardError):
            await m.send("i", E.BACK)
        with pytest.raises(HookFailed):
            await m.send("i", E.GO, timeout=5)
        await m.send("i", E.STOP)
        assert quiet(m)


async def test_a_chain_goes_on_after_a_crash(store, clock):
    """Returned events are stored with their hook's settle: a crash before their judgement loses none."""
    log, stop = Log(), asyncio.Event()

    async def slow(m):
        log.append("slow")
        if len(log) < 3:
            stop.set()
            await asyncio.Event().wait()

    spec = flow(on_enter={S.B: [log.hook("b", E.GO), slow], S.C: log.hook("c")})
    one = Manager(spec, store, clock=clock, drain=SECOND * 0)
    async with store, one:
        await one.start("i")
        sent = asyncio.create_task(one.send("i", E.GO))
        await stop.wait()
        sent.cancel()
        await one.__aexit__(None, None, None)
        async with Manager(spec, store, clock=clock, work=False) as two:
            assert (await two.get("i")).state is S.B
            done = await two.resume()
            assert (done.effects, done.failed) == (2, ())
            assert log == ["b", "slow", "slow", "c"]
            assert await story(two) == ["start", "event", "event"]
        await one.__aenter__()


# --- m.update -------------------------------------------------------------------------------------


def more(n):
    """A change that adds `n`."""
    return lambda c: evolve(c, n=c.n + n)


async def test_update_is_a_line(store):
    """`m.update` is applied in the settle, as one line of kind `update`."""

    async def enter(m):
        m.update(more(1))
        m.update(more(10))

    tap = Tap(store)
    async with Manager(flow(on_enter={S.B: enter}), tap, work=False) as m:
        await m.start("i")
        tap.calls.clear()
        await m.send("i", E.GO)
        assert tap.calls == {"append": 2}
        assert (await m.get("i")).context == Ctx(11)
        assert await story(m) == ["start", "event", "update"]
        line = (await m.history("i"))[-1]
        assert (line.source, line.target, line.event, line.context) == (S.B, S.B, None, Ctx(11))


async def test_an_update_that_changes_nothing_is_no_line(store):
    """Only a change of the context is a line."""

    async def enter(m):
        m.update(lambda c: c)

    async with Manager(flow(on_enter={S.B: enter}), store) as m:
        await m.start("i")
        await m.send("i", E.GO)
        assert await story(m) == ["start", "event"]


async def test_update_with_a_returned_event(store):
    """Update, then the returned event judged on the updated context: one commit."""
    tap = Tap(store)

    async def enter(m):
        m.update(more(1))
        return E.BACK

    def guard(m):
        return m.context.n == 1

    edges = edged(Edge(S.B, E.BACK, S.C, guard=guard))
    async with Manager(flow(edges=edges, on_enter={S.B: enter}), tap, work=False) as m:
        await m.start("i")
        tap.calls.clear()
        assert (await m.send("i", E.GO)).state is S.C
        assert tap.calls == {"append": 2}
        assert await story(m) == ["start", "event", "update", "event"]


async def test_update_is_applied_again_when_the_line_number_moved(store, clock):
    """If another line came between, the change is applied to the new head; the hook is not re-run."""
    log, gate = Log(), Gate()

    async def enter(m):
        log.append(m.context.n)
        m.update(more(10))
        await gate.hook(m)

    spec = flow(on_enter={S.B: enter})
    async with Manager(spec, store, clock=clock, lease=SECOND * 30) as m, Manager(spec, store, clock=clock) as n:
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        # Only a lease that ran out lets another move in between.
        inner(n).occupied = lambda loaded: None
        await n.send("i", E.ADD, 1)
        gate.open.set()
        assert (await sent).settled
        assert (await m.get("i")).context == Ctx(11)
        assert log == [0]
        assert await story(m) == ["start", "event", "event", "update"]


async def test_an_update_that_raises_is_the_hooks_failure(store, clock):
    """A change that raises, or makes what cannot be stored, fails the hook; nothing of it is kept."""
    bad = [lambda c: 1 / 0, lambda c: "no context", lambda c: evolve(c, n=float("nan"))]
    seen: list[Any] = []

    async def enter(m):
        seen.append(m.attempt)
        m.update(more(1))
        if bad:
            m.update(bad.pop())

    async with Manager(flow(on_enter={S.B: enter}, retry=EVERY_SECOND), store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await clock.advance(SECOND * 3)
        assert seen == [1, 2, 3, 4]
        assert (await m.get("i")).context == Ctx(1)
        assert await story(m) == ["start", "event", "update"]


async def test_an_update_of_a_failed_attempt_is_dropped(store, clock):
    """Changes belong to the attempt that made them."""

    async def enter(m):
        m.update(more(1))
        if m.attempt == 1:
            raise ValueError

    async with Manager(flow(on_enter={S.B: enter}, retry=EVERY_SECOND), store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await clock.advance(SECOND)
        assert (await m.get("i")).context == Ctx(1)


async def test_an_update_after_the_end_raises(store):
    """What a hook left behind cannot change the context any more, and hears so."""
    moves: list[Any] = []

    async def enter(m):
        moves.append(m)
        m.update(more(1))

    async with Manager(flow(on_enter={S.B: enter}), store) as m:
        await m.start("i")
        await m.send("i", E.GO)
        with pytest.raises(RuntimeError):
            moves[0].update(more(10))
        assert (await m.get("i")).context == Ctx(1)


# --- assigns --------------------------------------------------------------------------------------


async def test_assign_that_raises(store):
    """A guard or assign that raises is a GuardError from its error; nothing is written, the key is free."""
    boom = ValueError("boom")
    broken = True

    def assign(m):
        if broken:
            raise boom
        return m.context

    async with Manager(flow(edges=edged(Edge(S.A, E.BACK, S.B, assign=assign))), store) as m:
        await m.start("i")
        with pytest.raises(GuardError) as e:
            await m.send("i", E.BACK, key="k")
        assert e.value.__cause__ is boom
        assert e.value.committed is False
        assert await story(m) == ["start"]
        broken = False
        assert not (await m.send("i", E.BACK, key="k")).duplicate


@pytest.mark.parametrize("made", ["junk", Ctx(NAN), None])
async def test_assign_that_makes_junk(store, made):
    """A context that cannot be stored is InvalidContext; nothing is written."""
    async with Manager(flow(edges=edged(Edge(S.A, E.BACK, S.B, assign=lambda m: made))), store) as m:
        await m.start("i")
        with pytest.raises(InvalidContext):
            await m.send("i", E.BACK, key="k")
        assert await story(m) == ["start"]


@pytest.mark.parametrize("answer", [1, None, "yes", Ctx()])
async def test_a_guard_that_answers_junk(store, answer):
    """Anything but bool or Deny is a GuardError."""
    async with Manager(flow(edges=edged(Edge(S.A, E.BACK, S.B, guard=lambda m: answer))), store) as m:
        await m.start("i")
        with pytest.raises(GuardError):
            await m.send("i", E.BACK)


async def test_update_in_a_guard(store):
    """Guards have no side effects: `update` raises there."""

    def guard(m):
        m.update(more(1))
        return True

    async with Manager(flow(edges=edged(Edge(S.A, E.BACK, S.B, guard=guard))), store) as m:
        await m.start("i")
        with pytest.raises(GuardError):
            await m.send("i", E.BACK)


async def test_async_guards(store):
    """Guards may wait; meanwhile other instances go on and this one's order is kept."""
    gate = asyncio.Event()

    async def guard(m):
        await gate.wait()
        return True

    async with Manager(flow(edges=edged(Edge(S.A, E.BACK, S.B, guard=guard))), store) as m:
        await m.start("i")
        await m.start("j")
        first = asyncio.create_task(m.send("i", E.BACK))
        await until(lambda: len(inner(m).lanes))
        second = asyncio.create_task(m.send("i", E.GO))
        assert (await m.send("j", E.GO)).state is S.B
        with pytest.raises(Busy):
            await m.send("i", E.NOTE, timeout=0)
        gate.set()
        assert [(await first).state, (await second).state] == [S.B, S.C]
