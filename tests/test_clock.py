"""The clock asks the time in one place, and its sleepers can be woken."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from workflow.clock import Bell, Clock, SystemClock, utcnow

FAR = timedelta(days=365 * 500)
"""Nobody wakes by himself within a test."""


def test_the_system_clock_is_a_clock():
    """What a Manager is given by default keeps the protocol."""
    assert isinstance(SystemClock(), Clock)


def test_times_are_aware_utc():
    """A naive time would be another instant on another machine."""
    assert utcnow().tzinfo is UTC
    assert SystemClock().now().tzinfo is UTC


def test_following_another_clock():
    """All processes on one store follow the store's clock, however wrong their own."""
    clock = SystemClock()
    there = datetime(1999, 12, 31, tzinfo=UTC)
    clock.follow(there, utcnow(), utcnow())
    assert there <= clock.now() < there + timedelta(minutes=5)
    here = utcnow()
    clock.follow(here, here, utcnow())
    assert abs(clock.offset) < timedelta(minutes=5)


async def test_a_sleeper_whose_time_has_come_wakes_by_itself():
    """A time in the past needs no bell."""
    clock = SystemClock()
    await clock.sleep(Bell(), clock.now() - timedelta(seconds=1))


async def test_sleep_follows_the_clock_that_was_followed():
    """What is due by the store's clock is due, whatever the machine says."""
    clock = SystemClock()
    here = utcnow()
    clock.follow(here + FAR, here, here)
    await clock.sleep(Bell(), utcnow() + FAR / 2)


async def test_a_ring_wakes_the_sleeper():
    """An idle process hears of new work at once."""
    clock, bell = SystemClock(), Bell()
    asyncio.get_running_loop().call_soon(bell.ring)
    await clock.sleep(bell, clock.now() + FAR)
    assert not bell.rung


async def test_a_ring_before_the_sleep_is_kept():
    """Work that came between the look and the sleep is not slept over."""
    clock, bell = SystemClock(), Bell()
    bell.ring()
    await clock.sleep(bell, clock.now() + FAR)


async def test_rings_are_not_counted():
    """Many rings are one look."""
    clock, bell = SystemClock(), Bell()
    bell.ring()
    bell.ring()
    await clock.sleep(bell, clock.now() + FAR)
    sleeper = asyncio.ensure_future(clock.sleep(bell, clock.now() + FAR))
    await asyncio.sleep(0)
    assert not sleeper.done()
    bell.ring()
    bell.ring()
    await sleeper


async def test_a_ring_that_the_cancelled_sleeper_missed_is_kept():
    """Whoever sleeps next hears it."""
    clock, bell = SystemClock(), Bell()
    sleeper = asyncio.ensure_future(clock.sleep(bell, clock.now() + FAR))
    await asyncio.sleep(0)
    bell.ring()
    sleeper.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeper
    await clock.sleep(bell, clock.now() + FAR)


async def test_a_bell_after_its_sleeper_is_gone():
    """A ring calls nobody who does not sleep any more."""
    clock, bell = SystemClock(), Bell()
    sleeper = asyncio.ensure_future(clock.sleep(bell, clock.now() + FAR))
    await asyncio.sleep(0)
    sleeper.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeper
    bell.ring()
    assert bell.rung


def test_working_does_not_stop_real_time():
    """Only a clock for tests stands still."""
    with SystemClock().working("anything"):
        pass


@pytest.mark.parametrize("call", ["datetime.now(UTC)", "datetime.utcnow()", "date.today()", "time.time()"])
def test_nobody_else_may_ask_the_time(call: str, tmp_path: Path):
    """The lint rule that guards this is switched on for the engine, the stores and everything else."""
    code = f"import time\nfrom datetime import UTC, date, datetime\n\nprint({call}, UTC, date, datetime, time)\n"
    for room in ("workflow/room.py", "stores/room.py", "tests/room.py", "examples/room.py"):
        said = subprocess.run(
            [sys.executable, "-m", "ruff", "check", "--select=TID251", "--stdin-filename", room, "-"],
            cwd=Path(__file__).parents[1],
            input=code,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "TID251" in said.stdout, said
        assert "ask the clock" in said.stdout
