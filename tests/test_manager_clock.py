"""A Manager on the clock of tests: months in milliseconds, each thing at its own time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.flows import EVERY_SECOND, NOON, SECOND, Ctx, E, Gate, S, Tap, flow
from workflow import HookFailed, Manager
from workflow.testing import FakeClock


async def test_advance_walks_from_due_time_to_due_time(memory, clock):
    """Each effect runs at its own time, not at the end of the step."""
    seen: list[Any] = []

    async def enter(m):
        seen.append((m.id, clock.now() - NOON))
        if m.attempt < 3:
            raise ValueError

    async with Manager(flow(on_enter={S.B: enter}, retry=EVERY_SECOND), memory, clock=clock) as m:
        for n, id in enumerate("ij"):
            await clock.advance(timedelta(milliseconds=500 * n))
            await m.start(id)
            with pytest.raises(HookFailed):
                await m.send(id, E.GO)
        await clock.advance(timedelta(hours=1))
        assert [(id, at.total_seconds()) for id, at in seen] == [
            ("i", 0),
            ("j", 0.5),
            ("i", 1),
            ("j", 1.5),
            ("i", 2),
            ("j", 2.5),
        ]
        assert clock.now() == NOON + timedelta(hours=1, milliseconds=500)


async def test_months_pass_in_no_time(store, clock):
    """A year with nothing due costs a few turns of the loop."""
    tap = Tap(store)
    async with Manager(flow(), tap, clock=clock) as m:
        await m.start("i")
        before = sum(tap.calls.values())
        await clock.advance(timedelta(days=400))
        assert sum(tap.calls.values()) - before < 20
        assert (await m.send("i", E.GO)).transition.at == clock.now()


async def test_advance_names_what_still_runs(memory, clock, monkeypatch):
    """Work that does not end is named, after a ceiling of real time."""
    monkeypatch.setattr("workflow.testing.clock._CEILING", 0.05)
    gate = Gate()

    async def enter(m):
        if m.attempt == 1:
            raise ValueError
        await gate.hook(m)

    async with Manager(flow(on_enter={S.B: enter}, retry=EVERY_SECOND), memory, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        with pytest.raises(TimeoutError, match="effects of i"):
            await clock.advance(SECOND)
        gate.open.set()
        await m.settled("i")


async def test_time_does_not_go_back(clock):
    """A step backwards, and a clock without a zone, are refused."""
    with pytest.raises(ValueError, match="back"):
        await clock.advance(-SECOND)
    with pytest.raises(ValueError, match="aware"):
        FakeClock(datetime(2030, 1, 1))  # noqa: DTZ001
    assert FakeClock(datetime(2030, 1, 1, tzinfo=UTC)).now().year == 2030


async def test_at_never_goes_back(store):
    """Within an instance times never go back, whatever clocks do."""
    late, early = FakeClock(NOON + timedelta(days=1)), FakeClock(NOON)
    spec = flow()
    async with Manager(spec, store, clock=late) as m, Manager(spec, store, clock=early) as n:
        await m.start("i", Ctx())
        await n.send("i", E.NOTE)
        await m.send("i", E.NOTE)
        times = [line.at for line in await n.history("i")]
        assert times == sorted(times)
        assert (await n.get("i")).changed_at == times[-1]
