"""Due work: resume() and the loop, bounded, patient with the store, blind to what is not theirs."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from stores import MemoryStore
from tests.flows import (
    EVERY_SECOND,
    MINUTE,
    SECOND,
    E,
    Gate,
    Log,
    S,
    Tap,
    flow,
    inner,
    quiet,
    story,
    until,
)
from workflow import HookFailed, Manager, Retry, Status, StoreError, StoreUnavailable
from workflow.testing import Faults


async def owing(spec, store, clock, count, event=E.GO):
    """So many instances whose effect failed once and waits."""
    async with Manager(spec, store, clock=clock, work=False) as m:
        for n in range(count):
            await m.start(f"i{n:03}")
            with pytest.raises(HookFailed):
                await m.send(f"i{n:03}", event)
    await clock.advance(MINUTE)


async def test_resume_counts(store, clock):
    """`effects` counts what this call settled with the chains it caused, `failed` lists what it could not."""
    log = Log()

    async def enter(m):
        log.append(m.id)
        if m.attempt == 1 or m.id == "i002":
            raise ValueError
        return E.GO

    spec = flow(on_enter={S.B: enter, S.C: log.hook("c")}, retry=EVERY_SECOND)
    async with store:
        await owing(spec, store, clock, 4)
        del log[:]
        async with Manager(spec, store, clock=clock, work=False) as m:
            resumed = await m.resume()
            assert (resumed.effects, resumed.timers, resumed.failed) == (6, 0, ("i002",))
            assert sorted(x for x in log if x != "c") == ["i000", "i001", "i002", "i003"]
            assert (await m.resume()).effects == 0
            await clock.advance(SECOND)
            assert (await m.resume()).failed == ("i002",)


async def test_resume_tries_once_without_pause(store):
    """Also with pauses of nothing a failing effect is tried once by one resume()."""
    log = Log()
    spec = flow(on_enter={S.B: log.failing("b")}, retry=Retry(first=timedelta(0), jitter=0.0))
    async with store, Manager(spec, store, work=False) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await asyncio.sleep(0.005)
        assert (await m.resume()).failed == ("i",)
        assert log == ["b", "b"]


async def test_resume_begins_in_instance_order_with_bounded_concurrency(store, clock):
    """Instances are begun in order of their id, at most `concurrency` at a time."""
    log, most, running = Log(), 0, 0

    async def enter(m):
        nonlocal most, running
        if m.attempt == 1:
            raise ValueError
        log.append(m.id)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        running -= 1

    spec = flow(on_enter={S.B: enter}, retry=EVERY_SECOND)
    async with store:
        await owing(spec, store, clock, 12)
        async with Manager(spec, store, clock=clock, work=False, concurrency=3) as m:
            assert (await m.resume()).effects == 12
    assert log == [f"i{n:03}" for n in range(12)]
    assert 1 < most <= 3


async def test_resume_survives_store_errors(store, clock):
    """resume() backs off while the store is away and then does its work."""
    log, faults = Log(), Faults(store)
    spec = flow(on_enter={S.B: log.failing("b", 2)}, retry=EVERY_SECOND)
    async with store:
        await owing(spec, store, clock, 2)
        async with Manager(spec, faults, clock=clock, work=False) as m:
            faults.fail("next_due", 1).fail("claim", 1).fail("load", 1)
            resumed = await m.resume()
            assert (resumed.effects, resumed.failed) == (2, ())


async def test_resume_with_nothing_due(store):
    """Nothing due: nothing done."""
    async with Manager(flow(), store) as m:
        resumed = await m.resume()
        assert (resumed.effects, resumed.timers, resumed.failed) == (0, 0, ())


async def test_waiting_instances_are_not_touched():
    """The cost of resume() follows the due rows: 2,000 instances at rest are neither loaded nor claimed."""
    tap, log = Tap(MemoryStore()), Log()
    async with Manager(flow(on_enter={S.C: log.failing("c", 1)}, retry=EVERY_SECOND), tap, work=False) as m:
        for n in range(2000):
            await m.start(f"i{n}")
        await m.send("i7", E.GO)
        with pytest.raises(HookFailed):
            await m.send("i7", E.GO)
        tap.calls.clear()
        loaded: list[Any] = []

        async def watch(workflow, ids):
            loaded.extend(ids)

        tap.before["load"] = watch
        await m.resume()
        assert set(loaded) <= {"i7"}
        assert sum(tap.calls.values()) < 10


async def test_the_loop_does_what_resume_does(store, clock):
    """Opening a Manager works off what is due; opening itself waits for no scan."""
    gate, log = Gate(), Log()
    spec = flow(on_enter={S.B: log.failing("b", 1)}, retry=EVERY_SECOND)
    async with store:
        await owing(spec, store, clock, 1)
        tap = Tap(store)
        held = asyncio.Event()

        async def hold(*args):
            await held.wait()

        tap.before["next_due"] = hold
        async with Manager(spec, tap, clock=clock) as m:
            assert (await m.get("i000")).seq == 2
            held.set()
            await m.settled("i000")
        assert log == ["b", "b"]
        assert not gate.calls


async def test_the_loop_is_bounded(store, clock):
    """The loop runs at most `concurrency` queues at a time."""
    gates: list[Any] = []

    async def enter(m):
        if m.attempt == 1:
            raise ValueError
        gate = asyncio.Event()
        gates.append(gate)
        await gate.wait()

    spec = flow(on_enter={S.B: enter}, retry=EVERY_SECOND)
    async with store:
        await owing(spec, store, clock, 5)
        async with Manager(spec, store, clock=clock, concurrency=2) as m:
            for done in range(5):
                await until(lambda: len(gates) > done)  # noqa: B023
                assert len(gates) <= done + 2
                gates[done].set()
            await m.settled("i004")
            assert len(gates) == 5


@pytest.mark.parametrize("verb", ["next_due", "claim", "wait"])
@pytest.mark.parametrize("error", [StoreUnavailable, StoreError, ValueError])
async def test_the_loop_backs_off(memory, verb, error):
    """A store that only fails is asked a handful of times, not thousands; when it is back, work goes on."""
    log, tap = Log(), Tap(memory)
    spec = flow(on_enter={S.B: log.failing("b", 1)}, retry=Retry(first=timedelta(milliseconds=1)))
    broken = True

    async def down(*args):
        if broken:
            raise error("away")

    tap.before[verb] = down
    async with Manager(spec, tap) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await asyncio.sleep(0.25)
        assert sum(tap.calls[v] for v in ("next_due", "claim", "wait")) < 25
        broken = False
        await m.settled("i")
        assert log == ["b", "b"]


async def test_an_idle_loop_is_quiet(memory):
    """With nothing due the loop asks nothing again and again, also beside a busy sender."""
    tap = Tap(memory)
    async with Manager(flow(), tap) as m:
        await m.start("i")
        for _ in range(100):
            await m.send("i", E.NOTE)
        await asyncio.sleep(0.1)
        assert tap.calls["next_due"] < 60
        assert tap.calls["claim"] == 0


async def test_rows_that_others_hold_wake_nobody_for_nothing(memory, clock):
    """A row due that cannot be claimed makes no hot loop."""
    log, tap = Log(), Tap(memory)
    spec = flow(on_enter={S.B: log.failing("b", 1)}, retry=EVERY_SECOND)
    async with memory:
        await owing(spec, memory, clock, 1)
        claimed: list[Any] = []

        async def none(*args):
            claimed.append(1)
            raise StoreUnavailable("busy", committed=False)

        tap.before["claim"] = none
        async with Manager(spec, tap):
            await asyncio.sleep(0.1)
        assert len(claimed) < 5


async def test_many_due_at_once(store, clock):
    """More rows due than one claim takes are all done."""
    log = Log()
    spec = flow(on_enter={S.B: log.failing("b", 150)}, retry=EVERY_SECOND)
    async with store:
        await owing(spec, store, clock, 150)
        async with Manager(spec, store, clock=clock, concurrency=64) as m:
            await clock.advance(SECOND)
            assert len(log) == 300
            assert quiet(m)


async def test_one_bad_instance_harms_no_other(store, clock):
    """One instance's trouble is its own: stored junk is set aside, the rest is done."""
    log = Log()
    spec = flow(on_enter={S.B: log.failing("b", 3)}, retry=EVERY_SECOND)
    async with store:
        await owing(spec, store, clock, 3)
        narrow = flow(on_enter={S.B: log.hook("other")}, retry=EVERY_SECOND)
        async with Manager(narrow, store, clock=clock, work=False) as m:
            resumed = await m.resume()
            assert resumed.failed == ("i000", "i001", "i002")
            assert (await m.resume()).failed == ()
            assert (await m.get("i001")).status is Status.RUNNING
            done = await m.send("i001", E.GO)
            assert not done.settled
            assert await story(m, "i001") == ["start", "event", "event"]
        assert log == ["b"] * 3


async def test_resume_beside_the_loop(store, clock):
    """What the loop took from under a resume() is waited for and counted; nothing is run twice."""
    log = Log()
    spec = flow(on_enter={S.B: log.failing("b", 20)}, retry=EVERY_SECOND)
    async with store:
        await owing(spec, store, clock, 20)
        async with Manager(spec, store, clock=clock) as m:
            resumed = await m.resume()
            assert (resumed.effects, resumed.failed) == (20, ())
        assert len(log) == 40


async def test_due_at_its_start(store):
    """What became due just before resume() is tried, whatever the clocks of process and store say."""

    async def enter(m):
        if m.attempt == 1:
            raise ValueError

    spec = flow(on_enter={S.B: enter}, retry=Retry(first=timedelta(0), jitter=0.0))
    async with Manager(spec, store, work=False) as m:
        for n in range(50):
            await m.start(f"i{n}")
            with pytest.raises(HookFailed) as e:
                await m.send(f"i{n}", E.GO)
            while inner(m).now() <= e.value.retry_at:  # noqa: ASYNC110  # the real clock is what is tested
                await asyncio.sleep(0)
            assert (await m.resume()).effects == 1


async def test_what_the_loop_is_just_taking_counts(memory, clock, monkeypatch):
    """A claim of the loop's that is not answered yet when resume() finds nothing due any more."""
    log, slow = Log(), asyncio.Event()
    spec = flow(on_enter={S.B: log.failing("b", 5)}, retry=EVERY_SECOND)
    claim = memory.claim

    async def dawdling(*arguments):
        rows = await claim(*arguments)
        if rows:
            slow.set()
            await asyncio.sleep(0.05)
        return rows

    async with memory:
        await owing(spec, memory, clock, 5)
        monkeypatch.setattr(memory, "claim", dawdling)
        async with Manager(spec, memory, clock=clock) as m:
            await slow.wait()
            resumed = await m.resume()
            assert (resumed.effects, resumed.failed) == (5, ())
        assert len(log) == 10
