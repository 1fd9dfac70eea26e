"""A clock that stands still until it is told to go on."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from datetime import datetime, timedelta

from attrs import define

from ..clock import Bell

_CEILING = 5.0
"""Most real seconds that one instant's work may take."""
_TURNS = 10
"""Turns of the loop after which whoever was woken has either gone back to sleep or is at work."""


@define(eq=False)
class _Sleeper:
    bell: Bell
    until: datetime
    look: datetime | None
    rank: int
    wake: Callable[[], None]


class FakeClock:
    """Hand it to a Manager; `advance` then walks from due time to due time.

    Time stands still while work that came due is done. At one instant leases are renewed before
    others may take them over.
    """

    def __init__(self, now: datetime) -> None:
        if now.tzinfo is None:
            raise ValueError("a clock shows aware times; give it one with tzinfo, such as UTC")
        self._now = now
        self._sleepers: list[_Sleeper] = []
        self._working: Counter[Hashable] = Counter()

    def now(self) -> datetime:
        """The present."""
        return self._now

    async def sleep(self, bell: Bell, until: datetime, rank: int = 1, *, look: datetime | None = None) -> None:
        """See `Clock.sleep`."""
        if not bell.rung and until > self._now:
            awake: asyncio.Future[None] = asyncio.get_running_loop().create_future()

            def wake() -> None:
                if not awake.done():
                    awake.set_result(None)

            sleeper = _Sleeper(bell, until, look, rank, wake)
            self._sleepers.append(sleeper)
            bell.listen(wake)
            try:
                await awake
            finally:
                self._sleepers.remove(sleeper)
                bell.listen(None)
        bell.answer()

    @contextmanager
    def working(self, what: Hashable) -> Generator[None]:
        """See `Clock.working`."""
        self._working[what] += 1
        try:
            yield
        finally:
            self._working[what] -= 1
            if not self._working[what]:
                del self._working[what]

    async def advance(self, step: timedelta) -> None:
        """Let `step` pass. Returns when all that came due meanwhile is done.

        Raises TimeoutError, naming what still runs, if that takes more than 5 real seconds at one
        instant; ValueError for a step backwards.
        """
        if step < timedelta(0):
            raise ValueError("time does not go back")
        end = self._now + step
        await self._wake()
        while True:
            due = min((s.until for s in self._sleepers if s.until <= end), default=None)
            if due is None:
                break
            self._now = max(self._now, due)
            await self._wake()
        self._now = end
        await self._wake()

    async def _wake(self) -> None:
        """Wake those whose time has come, rank by rank, and wait for what they do."""
        ready = [s for s in self._sleepers if s.until <= self._now or s.look is not None]
        for rank in sorted({s.rank for s in ready}):
            for sleeper in ready:
                if sleeper.rank == rank:
                    sleeper.wake()
            await self._rest()
        await self._rest()

    async def _rest(self) -> None:
        """Wait until whoever was woken sleeps again and nothing that came due still runs."""
        loop = asyncio.get_running_loop()
        end = loop.time() + _CEILING
        quiet = 0
        while quiet < _TURNS:
            busy = self._working or any(s.bell.rung for s in self._sleepers)
            quiet = 0 if busy else quiet + 1
            if loop.time() > end:
                names = ", ".join(str(w) for w in self._working) or "a loop that does not wake"
                raise TimeoutError(f"after {_CEILING:g} real seconds this still runs: {names}")
            await asyncio.sleep(0 if not busy else 0.0005)
