"""Timers and delayed events: mistakes that the model found, each a rule."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from stores import MemoryStore
from tests.flows import MINUTE, SECOND, Ctx, E, Gate, Log, S, Tap, edged, flow, until
from workflow import After, Edge, GuardError, HookFailed, InvalidSpec, Manager, Retry, StoreUnavailable

HOUR = timedelta(hours=1)


async def test_a_timer_does_not_wait_for_a_retry_that_waits_for_it(store, clock):
    """`resume()` ends although a timer is due of an instance whose undoing awaits the retry of a
    compensator: the row is put off, and fires when the undoing is done."""
    log = Log()
    spec = flow(compensators={S.B: log.failing("undo", 1)}, retry=Retry(first=MINUTE, factor=1.0, jitter=0.0))
    async with Manager(spec, store, clock=clock, work=False) as m:
        await m.start("i")
        await m.send("i", E.GO)
        await m.send_later("i", E.NOTE, after=SECOND, key="k")
        with pytest.raises(HookFailed):
            await m.compensate("i", S.A)
        await clock.advance(2 * SECOND)
        async with asyncio.timeout(5):
            resumed = await m.resume()
        assert (resumed.timers, resumed.failed) == (0, ("i",))
        await clock.advance(MINUTE)
        assert (await m.resume()).effects == 1
        await clock.advance(MINUTE)
        await m.resume()
        assert (await m.history("i"))[-1].key == "k"
        assert log == ["undo", "undo"]


async def test_waiting_timers_leave_the_loop_its_places(memory, clock):
    """However many timers wait for undoings, the loop has a place for the retries that end these."""
    log = Log()
    spec = flow(
        compensators={S.B: log.failing("undo", 3)},
        retry=Retry(first=MINUTE, factor=1.0, jitter=0.0),
    )
    async with Manager(spec, memory, clock=clock, concurrency=1) as m:
        for n in range(3):
            await m.start(f"i{n}")
            await m.send(f"i{n}", E.GO)
            await m.send_later(f"i{n}", E.NOTE, after=SECOND)
            with pytest.raises(HookFailed):
                await m.compensate(f"i{n}", S.A)
        await clock.advance(3 * MINUTE)
        for n in range(3):
            assert [line.kind for line in await m.history(f"i{n}")] == ["start", "event", "compensate", "event"]


async def test_taking_back_is_told_although_the_first_try_was_never_answered(clock):
    """The row is gone by a try whose answer was lost, and a move came between that and the next: True."""
    memory = MemoryStore()
    tap = Tap(memory)
    async with Manager(flow(), tap, clock=clock) as m, Manager(flow(), memory, clock=clock) as other:
        await m.start("i")
        due = await m.send_later("i", E.ADD, 1, after=HOUR, key="k")

        async def lost(*_: Any) -> None:
            del tap.after["append"]
            await other.send("i", E.NOTE)
            raise StoreUnavailable("the answer was lost", None)

        tap.after["append"] = lost
        assert await m.cancel_later(due)
        assert not await m.cancel_later(due)
        await clock.advance(2 * HOUR)
        assert (await m.get("i")).context.n == 0


@pytest.mark.parametrize("compensate", [False, True])
async def test_what_is_sent_later_while_all_is_cancelled_does_not_stay(clock, compensate):
    """A row that was put, held, after the cancel looked for what is due: it goes when it comes due."""
    memory = MemoryStore()
    tap = Tap(memory)
    log = Log()
    spec = flow(on_enter={S.A: log.failing("a")}, retry=Retry(attempts=1))
    async with Manager(spec, tap, clock=clock) as m, Manager(spec, memory, clock=clock) as other:
        with pytest.raises(HookFailed):
            await m.start("i")

        async def meanwhile(*_: Any) -> None:
            del tap.before["append"]
            await other.send_later("i", E.NOTE, after=HOUR)

        tap.before["append"] = meanwhile
        await m.cancel("i", compensate=compensate)
        await clock.advance(2 * HOUR)
        (loaded,) = await memory.load("flow", ("i",), rows=True)
        assert loaded is not None
        assert loaded.rows == ()
        assert [line.kind for line in await m.history("i")] == ["start", "fail", "cancel"]


async def test_a_timer_handed_back_at_a_close_stays_held(memory, clock):
    """It waited for a hook when the instance was paused and the Manager closed: nobody is woken by it."""
    gate = Gate()
    spec = flow(on_enter={S.B: gate.hook}, timeouts={S.B: After(MINUTE, E.STOP)})
    async with Manager(spec, memory, clock=clock, drain=timedelta(0)) as m:
        await m.start("i")
        sending = asyncio.ensure_future(m.send("i", E.GO))
        await gate.entered.wait()
        advancing = asyncio.ensure_future(clock.advance(2 * MINUTE))
        await until(lambda: m._background.firer.firing)
        await m.pause("i")
    sending.cancel()
    advancing.cancel()
    await asyncio.gather(sending, advancing, return_exceptions=True)
    async with memory:
        (loaded,) = await memory.load("flow", ("i",), rows=True)
        assert [(row.name, row.held, row.token) for row in loaded.rows if row.name != "effects"] == [
            ("timeout/stop", True, None)
        ]


async def test_what_was_due_first_fires_first(store, clock):
    """After an outage the rows of one instance fire in order of their times, whatever their names."""
    spec = flow(timeouts={S.A: After(HOUR, E.STOP)})
    async with store:
        async with Manager(spec, store, clock=clock) as m:
            for id in ("i", "j"):
                await m.start(id)
            await m.send_later("i", E.ADD, 2, after=2 * MINUTE, key="a")
            await m.send_later("i", E.ADD, 1, after=MINUTE, key="z")
            await m.send_later("j", E.GO, after=5 * HOUR, key="late")
        await clock.advance(9 * HOUR)
        async with Manager(spec, store, clock=clock) as m:
            await clock.advance(SECOND)
            assert [line.key for line in await m.history("i")] == [None, "z", "a", None]
            assert [line.kind for line in await m.history("j")] == ["start", "timeout", "refused"]


async def test_a_delayed_event_whose_key_another_request_used_is_on_record(store, clock):
    """It is not sent, and the history says so; the same request sent by hand is no other."""
    async with Manager(flow(), store, clock=clock) as m:
        await m.start("i")
        await m.send_later("i", E.ADD, 1, after=HOUR, key="k")
        await m.send("i", E.GO, key="k")
        await clock.advance(2 * HOUR)
        line = (await m.history("i"))[-1]
        assert (line.kind, line.event, line.payload, line.key) == ("refused", E.ADD, 1, None)
        assert "key was used by line 2" in (line.reason or "")
        (loaded,) = await store.load("flow", ("i",), rows=True)
        assert loaded.rows == ()


async def test_one_dead_owner_does_not_fail_what_nobody_judged(memory, clock):
    """A row that is claimed by a process that then dies is judged by the next, though hooks may not be repeated."""
    spec = flow(timeouts={S.A: After(HOUR, E.GO)}, retry=Retry(attempts=1))
    async with memory:
        async with Manager(spec, memory, clock=clock) as m:
            await m.start("i")
        await clock.advance(HOUR)
        for n in range(3):
            (row,) = await memory.claim({"flow": 1}, f"elsewhere-{n}", SECOND, 1, (), clock.now())
            assert row.attempt == n + 1
            await clock.advance(2 * SECOND)
        async with Manager(spec, memory, clock=clock) as m:
            await clock.advance(SECOND)
            assert [line.kind for line in await m.history("i")] == ["start", "timeout"]


async def test_what_gave_up_and_is_freed_is_judged_anew(memory, clock):
    """A delayed event whose guard failed for good: once undoing has led out, the guard is asked again."""
    asked: list[str] = []

    def guard(m: Any) -> bool:
        asked.append(m.source)
        if m.source == S.B:
            raise ConnectionError
        return True

    edges = edged(Edge[S, E, Ctx]([S.A, S.B], E.BACK, S.C, guard=guard))
    spec = flow(edges=edges, retry=Retry(attempts=2, first=SECOND, jitter=0))
    async with Manager(spec, memory, clock=clock) as m:
        await m.start("i")
        await m.send("i", E.GO)
        await m.send_later("i", E.BACK, after=MINUTE)
        await clock.advance(HOUR)
        assert (await m.get("i")).status == "failed"
        await m.compensate("i", S.A)
        await clock.advance(MINUTE)
        assert asked == [S.B, S.B, S.A]
        assert await m.state("i") == S.C


async def test_unpausing_frees_what_is_sent_later_at_that_moment(store):
    """Whichever is first, no row of a running instance is left held."""
    async with Manager(flow(), store) as m, Manager(flow(), store) as other:
        ids = [f"i{n}" for n in range(60)]
        await asyncio.gather(*(m.start(id) for id in ids))
        await asyncio.gather(*(m.pause(id) for id in ids))
        await asyncio.gather(
            *(m.unpause(id) for id in ids), *(other.send_later(id, E.GO, after=HOUR, key="k") for id in ids)
        )
        found = [loaded for loaded in await store.load("flow", ids, rows=True) if loaded is not None]
        assert {(loaded.head.status, row.name, row.held) for loaded in found for row in loaded.rows} == {
            ("running", "later/k", False)
        }


def test_what_is_sent_without_a_payload_needs_none():
    """Timeouts and `on_failure` send no payload: an event that must have one is a problem of the drawing."""
    wrong: tuple[dict[str, Any], ...] = ({"timeouts": {S.A: After(HOUR, E.ADD)}}, {"on_failure": E.ADD})
    for more in wrong:
        with pytest.raises(InvalidSpec, match="carries a payload"):
            flow(**more)
    flow(payloads={E.ADD: int | None}, timeouts={S.A: After(HOUR, E.ADD)}, on_failure=E.ADD)


async def test_a_timeout_beyond_all_calendars_is_told_at_once(memory, clock):
    """Drawn, it is a problem of the drawing; told by a function, nothing is written."""
    with pytest.raises(InvalidSpec, match="1,000 years"):
        flow(timeouts={S.A: After(timedelta.max, E.GO)})
    async with Manager(flow(timeouts={S.B: After(lambda m: timedelta.max, E.GO)}), memory, clock=clock) as m:
        await m.start("i")
        with pytest.raises(GuardError, match="1,000 years"):
            await m.send("i", E.GO)
        assert (await m.get("i")).seq == 1
