"""What an operator finds: instances that do not go on by themselves, and many retried at once."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from enum import Enum
from typing import Any

import pytest

from tests.flows import EVERY_SECOND, MINUTE, ONCE, SECOND, TWICE, E, Gate, Log, S, Tap, crashing, edged, flow, story
from tests.steer import kept as kept
from workflow import After, Edge, HookFailed, Manager, Query, Reentrant, Spec, Status

DAY = timedelta(days=1)


async def reasons(m, older_than=None):
    """Why each instance is stuck."""
    return {case.id: case.reason for case in await m.stuck(older_than)}


async def test_what_goes_on_by_itself_is_not_stuck(store, clock):
    """Running, waiting for a retry or a timer, finished, cancelled, paused: nothing to see to."""
    log = Log()
    spec = flow(on_enter={S.B: log.failing("b")}, timeouts={S.A: After(DAY, E.STOP)}, retry=EVERY_SECOND)
    async with Manager(spec, store, clock=clock, work=False) as m:
        for id in ("rests", "waits", "finished", "cancelled", "paused", "erased"):
            await m.start(id)
        with pytest.raises(HookFailed):
            await m.send("waits", E.GO)
        await m.send("finished", E.STOP)
        await m.cancel("cancelled")
        await m.pause("paused")
        await m.cancel("erased")
        await m.erase("erased")
        assert await m.stuck() == []
        assert await m.stuck(older_than=DAY) == []


async def test_failed_instances_with_their_error(store, clock):
    """State, status, reason and time of the last change."""
    log = Log()
    async with Manager(flow(on_enter={S.B: log.failing("b")}, retry=ONCE), store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        (case,) = await m.stuck()
        assert (case.workflow, case.id, case.state, case.status) == ("flow", "i", "b", Status.FAILED)
        assert case.reason == "b: ValueError: b fails"
        assert case.changed_at == clock.now()


async def test_what_is_set_aside(kept, clock):
    """An effect or a timeout that this code does not know is listed with what is the matter."""
    log = Log()
    timeouts: Any = {S.B: After(MINUTE, E.STOP, name="old")}
    async with Manager(
        flow(on_enter={S.B: log.hook("b")}, timeouts=timeouts), kept, clock=clock, work=False, inline=False
    ) as m:
        await m.start("i")
        await m.send("i", E.GO)
    async with Manager(flow(), kept, clock=clock) as m:
        await clock.advance(2 * MINUTE)
        why = await reasons(m)
        assert "effects set aside: Unknown: the spec has no effect of this name" in why["i"]
        assert "timeout/old set aside: Unknown" in why["i"]


async def test_overdue_work(kept, clock):
    """Due for longer than a lease and not done: nobody works, or its owner is gone."""
    gate, log = Gate(), Log()
    timeouts: Any = {S.C: After(MINUTE, E.STOP)}
    spec = flow(on_enter={S.B: gate.hook}, timeouts=timeouts)
    async with crashing(Manager(spec, kept, clock=clock)) as first:
        await first.start("i")
        sending = asyncio.create_task(first.send("i", E.GO))
        await gate.entered.wait()
    sending.cancel()
    spec = flow(on_enter={S.B: log.hook("b")}, timeouts=timeouts)
    async with Manager(spec, kept, clock=clock, work=False, lease=timedelta(seconds=30)) as m:
        await m.start("j")
        for _ in range(2):
            await m.send("j", E.GO)
        assert await m.stuck() == []
        await clock.advance(2 * MINUTE)
        why = await reasons(m)
        assert "effects overdue since" in why["i"]
        assert "owner is gone" in why["i"]
        assert "timeout/stop overdue since" in why["j"]
        await m.resume()
        assert await m.stuck() == []


async def test_work_of_a_newer_version(kept, clock):
    """It is not this process's to do, which is said."""
    log = Log()
    newer = flow(on_enter={S.B: log.hook("b")}, version=2)
    async with Manager(newer, kept, clock=clock, work=False, inline=False) as m:
        await m.start("i")
        await m.send("i", E.GO)
    async with Manager(flow(on_enter={S.B: log.hook("b")}), kept, clock=clock) as m:
        await clock.advance(MINUTE)
        assert "version 2 of the spec, this is 1" in (await reasons(m))["i"]


async def test_too_long_in_one_state(store, clock):
    """Counted from the entry: events that stay do not begin anew, an undoing does; paused too, a final state not."""
    async with Manager(flow(), store, clock=clock, work=False) as m:
        for id in ("idle", "noted", "undone", "moved", "paused", "finished"):
            await m.start(id)
        for id in ("noted", "undone"):
            await m.send(id, E.GO)
        await m.send("undone", E.GO)
        await m.pause("paused")
        await m.send("finished", E.STOP)
        await clock.advance(2 * DAY)
        await m.send("noted", E.NOTE)
        await m.send("moved", E.GO)
        await m.compensate("undone", S.B)
        assert await m.stuck() == []
        assert await m.stuck(older_than=3 * DAY) == []
        why = await reasons(m, DAY)
        assert why == {
            "idle": "in 'a' since 2030-01-01 12:00:00+00:00",
            "noted": "in 'b' since 2030-01-01 12:00:00+00:00",
            "paused": "in 'a' since 2030-01-01 12:00:00+00:00, paused",
        }


async def test_a_state_that_is_not_drawn(kept, clock):
    """No event can be judged there."""

    class Old(Enum):
        A = "a"
        END = "end"

    async with Manager(flow(), kept, clock=clock, work=False) as m:
        await m.start("i")
        await m.send("i", E.GO)
    spec: Any = Spec("flow", initial=Old.A, edges=[Edge(Old.A, E.STOP, Old.END)], final={Old.END})
    async with Manager(spec, kept, clock=clock, work=False) as m:
        assert await reasons(m) == {"i": "state 'b' is not drawn"}


async def failed(m, log, *ids):
    for id in ids:
        await m.start(id, labels={"shop": "north" if id < "i3" else "south"})
        with pytest.raises(HookFailed):
            await m.send(id, E.GO)


async def test_redrive_retries_all_that_failed(store, clock):
    """Page by page, each once; those that fail again are failed again."""
    log, tap = Log(), Tap(store)
    ids = [f"i{n}" for n in range(7)]
    spec = flow(on_enter={S.B: log.failing("b", 8)}, retry=ONCE)
    async with Manager(spec, tap, clock=clock) as m:
        await failed(m, log, *ids)
        await m.start("fine")
        assert await m.redrive(Query(workflow="flow", limit=3), "mended") == 7
        for id in ids:
            await m.settled(id)
        states = [(await m.get(id)).status for id in ids]
        assert sorted(states) == ["failed"] + ["running"] * 6
        assert await m.redrive() == 1
        await clock.advance(SECOND)
        assert await m.redrive() == 0
        assert await m.stuck() == []
        assert [t.reason for t in await m.history("i0")][-1 if states[0] == "running" else -3] == "mended"
        for id in ids:
            await story(m, id)


async def test_redrive_by_query(store, clock):
    """Only what the query finds; states as words or members."""
    log = Log()
    spec = flow(on_enter={S.B: log.failing("b", 6)}, retry=ONCE)
    async with Manager(spec, store, clock=clock, work=False) as m:
        await failed(m, log, *[f"i{n}" for n in range(6)])
        assert await m.redrive(Query(workflow="flow", status=frozenset({"running"}))) == 0
        assert await m.redrive(Query(workflow="flow", state=frozenset({"a"}))) == 0
        assert await m.redrive(Query(workflow="flow", labels=(("shop", "north"),))) == 3
        assert await m.redrive(Query(workflow="flow", state=frozenset({S.B}))) == 3
        with pytest.raises(ValueError, match="the query is for 'other'"):
            await m.redrive(Query(workflow="other"))
        assert (await m.resume()).effects == 6


async def test_redrive_passes_over_what_moves_meanwhile(store, clock):
    """An instance that another call frees in between is no error."""
    log, tap = Log(), Tap(store)
    async with Manager(flow(on_enter={S.B: log.failing("b", 2)}, retry=ONCE), tap, clock=clock, work=False) as m:
        await failed(m, log, "i0", "i1")

        async def cancelled(*_: object) -> None:
            tap.after.clear()
            await m.cancel("i0")

        tap.after["find"] = cancelled
        assert await m.redrive() == 1
        assert (await m.get("i0")).status == "cancelled"


async def test_many_pages(store, clock):
    """Both go on behind the first page."""
    log = Log()
    spec = flow(on_enter={S.B: log.failing("b")}, edges=edged(), retry=TWICE)
    async with Manager(spec, store, clock=clock, work=False) as m:
        await asyncio.gather(*(m.start(f"i{n:03}") for n in range(450)))
        await clock.advance(2 * DAY)
        cases = await m.stuck(older_than=DAY)
        assert [case.id for case in cases] == [f"i{n:03}" for n in range(450)]


async def test_redrive_inside_a_transaction(store, clock):
    """It would wait for itself: Reentrant."""
    async with Manager(flow(), store, clock=clock, work=False) as m:
        if hasattr(store, "transaction"):
            async with store.transaction():
                with pytest.raises(Reentrant):
                    await m.redrive()
                with pytest.raises(Reentrant):
                    await m.pause("i")
