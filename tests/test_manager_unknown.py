"""Unknown outcomes and senders that are gone: one line, one run, whatever the store said."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve

from tests.flows import (
    EVERY_SECOND,
    SECOND,
    Ctx,
    E,
    Gate,
    Log,
    S,
    Tap,
    flow,
    quiet,
    standing_by,
    story,
    turns,
    until,
    waiting,
)
from workflow import Busy, HookFailed, Manager, StoreError, StoreUnavailable, UnknownInstance
from workflow.testing import Faults

TIMES = ["before", "after", "late"]
SOON = timedelta(milliseconds=30)


@pytest.mark.parametrize("when", TIMES)
async def test_an_unknown_outcome_is_settled_by_the_identical_commit(store, when):
    """Acknowledgement lost, whether the commit landed, did not, or lands later: one line, effects once."""
    log, faults = Log(), Faults(store, delay=SOON)
    spec = flow(on_enter={S.A: log.hook("a"), S.B: [log.hook("b1"), log.hook("b2")]})
    async with Manager(spec, faults) as m:
        faults.fail("append", 1, when)
        begun = await m.start("i", key="s")
        assert (begun.duplicate, begun.settled) == (False, True)
        faults.fail("append", 1, when)
        done = await m.send("i", E.GO, key="k")
        assert (done.duplicate, done.settled, done.transition.seq) == (False, True, 2)
        await faults.landed()
        assert log == ["a", "b1", "b2"]
        assert await story(m) == ["start", "event"]
        assert quiet(m)


@pytest.mark.parametrize("when", TIMES)
@pytest.mark.parametrize("nth", [2, 3, 4])
async def test_a_settle_whose_acknowledgement_is_lost(store, when, nth):
    """A settle is appended again, not the hook run again, wherever in the queue it was lost."""
    log, faults = Log(), Faults(store, delay=SOON)

    async def update(m):
        log.append("update")
        m.update(lambda c: evolve(c, n=c.n + 1))
        return E.NOTE

    spec = flow(on_enter={S.B: [log.hook("b1"), update, log.hook("b3", E.GO)]})
    async with Manager(spec, faults) as m:
        await m.start("i")
        faults.fail("append", nth, when)
        done = await m.send("i", E.GO)
        assert (done.settled, done.state) == (True, S.C)
        await faults.landed()
        assert log == ["b1", "update", "b3"]
        assert (await m.get("i")).context == Ctx(1)
        assert await story(m) == ["start", "event", "update", "event", "event"]
        assert quiet(m)


@pytest.mark.parametrize("when", TIMES)
async def test_the_settle_of_a_failure_whose_acknowledgement_is_lost(store, clock, when):
    """A failure is recorded once: the attempt counts once and is told with its time."""
    log, faults = Log(), Faults(store, delay=SOON)
    async with Manager(flow(on_enter={S.B: log.failing("b", 1)}, retry=EVERY_SECOND), faults, clock=clock) as m:
        await m.start("i")
        faults.fail("append", 2, when)
        with pytest.raises(HookFailed) as e:
            await m.send("i", E.GO)
        assert (e.value.attempt, e.value.retry_at) == (1, clock.now() + SECOND)
        await faults.landed()
        await clock.advance(SECOND)
        assert log == ["b", "b"]
        assert await story(m) == ["start", "event"]


@pytest.mark.parametrize("when", TIMES)
async def test_an_undoing_with_lost_acknowledgements(store, when):
    """Every commit of an undoing may be lost on the way: each compensator runs once."""
    for nth in (1, 2, 3):
        log, faults = Log(), Faults(store, delay=SOON)
        spec = flow(f"flow{nth}", compensators={S.C: log.hook("undo c"), S.B: log.hook("undo b")})
        async with Manager(spec, faults) as m:
            await m.start("i")
            await m.send("i", E.GO)
            await m.send("i", E.GO)
            faults.fail("append", nth, when)
            done = await m.compensate("i", S.A, key="k")
            assert (done.settled, done.state) == (True, S.A)
            await faults.landed()
            assert log == ["undo c", "undo b"]
            assert await story(m) == ["start", "event", "event", "compensate", "compensate"]


async def test_a_commit_that_lands_while_somebody_else_moves(store):
    """The commit landed, then another moved: the repeat finds its own line and is no conflict."""
    spec, faults = flow(), Faults(store)
    async with Manager(spec, store) as other, Manager(spec, Tap(faults)) as m:
        await m.start("i")
        tap: Any = m.store
        calls: list[Any] = []

        async def between(commits):
            calls.append(commits)
            if len(calls) == 2:
                await other.send("i", E.NOTE)

        tap.before["append"] = between
        faults.fail("append", 1, "after")
        done = await m.send("i", E.GO, key="k")
        assert (done.transition.seq, done.duplicate) == (2, False)
        assert await story(m) == ["start", "event", "event"]


async def test_a_commit_that_never_landed_while_somebody_else_moves(store):
    """It did not land and another moved: judged again, on the new head."""
    spec, faults = flow(), Faults(store)
    async with Manager(spec, store) as other, Manager(spec, Tap(faults)) as m:
        await m.start("i")
        tap: Any = m.store
        calls: list[Any] = []

        async def between(commits):
            calls.append(commits)
            if len(calls) == 2:
                await other.send("i", E.GO)

        tap.before["append"] = between
        faults.fail("append", 1, "before")
        done = await m.send("i", E.GO)
        assert (done.transition.seq, done.transition.source) == (3, S.B)
        assert await story(m) == ["start", "event", "event"]


async def test_a_store_that_is_away_for_long(store):
    """Given up: StoreUnavailable with committed=None; settled in the background before the instance goes on."""
    log, faults = Log(), Faults(store)
    async with Manager(flow(on_enter={S.B: log.hook("b")}), faults) as m:
        await m.start("i")
        for nth in range(1, 4):
            faults.fail("append", nth, "before")
        with pytest.raises(StoreUnavailable) as e:
            await m.send("i", E.GO, key="k", timeout=0)
        assert e.value.committed is None
        follower = asyncio.create_task(m.send("i", E.GO))
        assert (await follower).transition.seq == 3
        again = await m.send("i", E.GO, key="k")
        assert (again.duplicate, again.transition.seq) == (True, 2)
        assert log == ["b"]
        await m.settled("i")
        assert quiet(m)


async def test_nobody_passes_an_unknown_outcome(store):
    """While an outcome is unknown the lane stays taken: others wait, then hear Busy."""
    tap = Tap(store)
    gate = asyncio.Event()
    async with Manager(flow(), tap) as m:
        await m.start("i")

        async def down(commits):
            if not gate.is_set():
                raise StoreUnavailable("away", committed=None)

        tap.before["append"] = down
        with pytest.raises(StoreUnavailable):
            await m.send("i", E.GO, timeout=0)
        with pytest.raises(Busy) as e:
            await m.send("i", E.NOTE, timeout=0.01)
        assert e.value.committed is False
        gate.set()
        assert (await m.send("i", E.NOTE)).transition.seq == 3
        assert quiet(m)


async def test_a_store_that_surely_wrote_nothing(store):
    """An error with committed=False is told at once and not repeated; nothing is left."""
    faults = Faults(store)
    async with Manager(flow(), faults) as m:
        await m.start("i")
        faults.fail("append", 1, "before", StoreError("disk full", committed=False))
        with pytest.raises(StoreError, match="disk full") as e:
            await m.send("i", E.GO, key="k")
        assert e.value.committed is False
        assert not (await m.send("i", E.GO, key="k")).duplicate
        assert quiet(m)


@pytest.mark.parametrize("verb", ["load", "recall"])
async def test_reads_that_fail(store, verb):
    """A read that fails before anything was written says so, and frees the lane."""
    faults, spec = Faults(store), flow()
    async with Manager(spec, faults) as m, Manager(spec, store) as other:
        await other.start("i")
        await other.send("i", E.STOP, key="k")
        faults.fail(verb)
        with pytest.raises(StoreUnavailable) as e:
            await m.send("i", E.STOP, key="k")
        assert e.value.committed is False
        assert (await m.send("i", E.STOP, key="k")).duplicate
        with pytest.raises(UnknownInstance):
            await m.send("j", E.STOP, key="k")
        assert quiet(m)


async def test_a_settle_survives_a_store_that_is_away(store):
    """The store goes away while a hook runs: the result is recorded when it is back, the hook not run again."""
    gate, tap = Gate(), Tap(store)
    away = True
    async with Manager(flow(on_enter={S.B: gate.hook}), tap) as m:
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        tries: list[Any] = []

        async def down(commits):
            tries.append(1)
            if away:
                raise StoreUnavailable("away", committed=None)

        tap.before["append"] = down
        gate.open.set()
        await until(lambda: len(tries) > 2)
        away = False
        assert (await sent).settled
        assert gate.calls == 1


# --- senders that are gone ------------------------------------------------------------------------


async def test_cancelling_a_sender_never_stops_its_hook(store):
    """Cancelled while its effects run: the hook goes on, its result is kept, later callers wait for it."""
    gate = Gate(E.GO)
    async with Manager(flow(on_enter={S.B: gate.hook}), store) as m:
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        later = asyncio.create_task(m.send("i", E.NOTE))
        await until(lambda: standing_by(m, "i"))
        sent.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sent
        assert gate.cancelled == 0
        gate.open.set()
        assert (await later).transition.seq == 4
        assert gate.ended == 1
        assert await story(m) == ["start", "event", "event", "event"]
        assert quiet(m)


async def test_cancelling_one_caller_cancels_no_other(store):
    """Of several waiting callers only the cancelled one is cancelled."""
    gate = Gate()
    async with Manager(flow(on_enter={S.B: gate.hook}), store) as m:
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        one, two, three = (asyncio.create_task(m.send("i", E.NOTE, n)) for n in range(3))
        rest = asyncio.create_task(m.settled("i"))
        await until(lambda: waiting(m, "i") == 2 and standing_by(m, "i") == 2)
        one.cancel()
        two.cancel()
        await turns()
        gate.open.set()
        answers = await asyncio.gather(sent, one, two, three, rest, return_exceptions=True)
        assert [isinstance(a, BaseException) for a in answers] == [False, True, True, False, False]
        assert quiet(m)


@pytest.mark.parametrize("landed", [False, True])
async def test_cancelled_while_the_commit_is_on_its_way(store, landed):
    """An unknown outcome that the Manager settles: the line is there once, its hook runs once, the lane is free."""
    log, tap = Log(), Tap(store)
    on_its_way, go_on = asyncio.Event(), asyncio.Event()

    async def hold(commits):
        if not on_its_way.is_set():
            on_its_way.set()
            await go_on.wait()

    async with Manager(flow(on_enter={S.B: [log.hook("b1"), log.hook("b2")]}), tap) as m:
        await m.start("i")
        (tap.after if landed else tap.before)["append"] = hold
        sent = asyncio.create_task(m.send("i", E.GO, key="k"))
        await on_its_way.wait()
        follower = asyncio.create_task(m.send("i", E.GO))
        await until(lambda: waiting(m, "i"))
        sent.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sent
        assert (await follower).transition.seq == 3
        again = await m.send("i", E.GO, key="k")
        assert (again.duplicate, again.transition.seq) == (True, 2)
        assert log == ["b1", "b2"]
        assert await story(m) == ["start", "event", "event"]
        assert quiet(m)


async def test_cancelled_start_on_its_way(store):
    """The same for a start."""
    log, tap = Log(), Tap(store)
    on_its_way = asyncio.Event()

    async def hold(commits):
        if not on_its_way.is_set():
            on_its_way.set()
            await asyncio.Event().wait()

    async with Manager(flow(on_enter={S.A: log.hook("a")}), tap) as m:
        tap.before["append"] = hold
        begun = asyncio.create_task(m.start("i", Ctx(1), key="k"))
        await on_its_way.wait()
        begun.cancel()
        await asyncio.gather(begun, return_exceptions=True)
        assert (await m.start("i", Ctx(1), key="k")).duplicate
        await m.settled("i")
        assert log == ["a"]


async def test_cancelled_in_line_and_while_judging(store):
    """Cancelled before anything was written: nothing is written, the lane goes to the next."""
    gate, tap = asyncio.Event(), Tap(store)
    loading = asyncio.Event()

    async def hold(*args):
        loading.set()
        await gate.wait()

    spec = flow()
    async with Manager(spec, store) as other, Manager(spec, tap) as m:
        await other.start("i")
        tap.before["load"] = hold
        one = asyncio.create_task(m.send("i", E.GO))
        await loading.wait()
        two = asyncio.create_task(m.send("i", E.NOTE))
        await until(lambda: waiting(m, "i"))
        one.cancel()
        gate.set()
        assert (await two).transition.seq == 2
        assert await story(m) == ["start", "event"]
        assert quiet(m)


# --- closing --------------------------------------------------------------------------------------


async def test_closing_while_a_commit_is_on_its_way(store):
    """The Manager closes while a commit is on its way: the sender hears that the move stands, its hook is not lost."""
    log, tap = Log(), Tap(store)
    on_its_way, go_on = asyncio.Event(), asyncio.Event()

    async def hold(commits):
        on_its_way.set()
        await go_on.wait()

    spec = flow(on_enter={S.B: log.hook("b")})
    async with store:
        m = Manager(spec, tap, drain=SECOND * 0)
        async with m:
            await m.start("i")
            tap.after["append"] = hold
            sent = asyncio.create_task(m.send("i", E.GO))
            await on_its_way.wait()
            tap.after.clear()
        go_on.set()
        done = await sent
        assert (done.transition.seq, done.settled) == (2, False)
        async with Manager(spec, store, work=False) as n:
            assert (await n.resume()).effects == 1
            assert log == ["b"]


async def test_closing_waits_for_an_unknown_outcome(store):
    """Within the drain the outcome of a commit whose sender is gone is settled."""
    log, tap = Log(), Tap(store)
    tries: list[Any] = []

    async def down(commits):
        tries.append(1)
        if len(tries) < 4:
            raise StoreUnavailable("away", committed=None)

    spec = flow(on_enter={S.B: log.hook("b")})
    async with store:
        async with Manager(spec, tap) as m:
            await m.start("i")
            tap.before["append"] = down
            with pytest.raises(StoreUnavailable):
                await m.send("i", E.GO, timeout=0)
        assert log == ["b"]
        async with Manager(spec, store, work=False) as n:
            assert (await n.get("i")).seq == 2
