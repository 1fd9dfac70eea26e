"""The one place that asks the time, and the one way to sleep.

A `Clock` is handed to everything that needs one, so that tests can jump months. Calls' own
timeouts are not on it: they bound a real wait and run on the event loop's monotonic clock.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Protocol, runtime_checkable


def utcnow() -> datetime:
    """The machine's wall clock, aware UTC."""
    return datetime.now(UTC)


class Bell:
    """Wakes one sleeper early. A ring that nobody heard yet is kept, never counted."""

    __slots__ = ("_wake", "rung")

    def __init__(self) -> None:
        self.rung = False
        self._wake: Callable[[], None] | None = None

    def ring(self) -> None:
        """Wake the sleeper, or let the next sleep return at once."""
        self.rung = True
        if self._wake is not None:
            self._wake()

    def listen(self, wake: Callable[[], None] | None) -> None:
        """For clocks: whom a ring calls; None when nobody sleeps."""
        self._wake = wake

    def answer(self) -> None:
        """For clocks: the sleeper is awake, what comes now is a new ring."""
        self.rung = False
        self._wake = None


@runtime_checkable
class Clock(Protocol):
    """What the engine asks of time."""

    def now(self) -> datetime:
        """The present, aware UTC."""
        ...

    async def sleep(self, bell: Bell, until: datetime, rank: int = 1, *, look: datetime | None = None) -> None:
        """Return when `bell` rings, at `until`, or at `look`, whichever is first.

        Of those due at one instant the lower `rank` wakes first (renewals before takeovers). `look`
        is only for a look around: a clock for tests need not stop there.
        """
        ...

    def working(self, what: Hashable) -> AbstractContextManager[object]:
        """Entered while work that came due is done; a clock for tests stands still meanwhile."""
        ...


class SystemClock:
    """Wall time, moved to where the store's own clock is known to be."""

    def __init__(self) -> None:
        self.offset = timedelta(0)

    def now(self) -> datetime:
        """The present on the store's clock, as well as this process knows it."""
        return utcnow() + self.offset

    def follow(self, there: datetime, before: datetime, after: datetime) -> None:
        """Keep pace with a clock that showed `there` at some time from `before` to `after` by the machine's.

        A slow answer tells little: the offset moves only as far as it was certainly wrong.
        """
        self.offset = max(there - after, min(self.offset, there - before))

    async def sleep(self, bell: Bell, until: datetime, rank: int = 1, *, look: datetime | None = None) -> None:
        """See `Clock.sleep`."""
        until = until if look is None else min(until, look)
        if not bell.rung:
            loop = asyncio.get_running_loop()
            awake: asyncio.Future[None] = loop.create_future()

            def wake() -> None:
                if not awake.done():
                    awake.set_result(None)

            bell.listen(wake)
            timer = loop.call_later(max(0.0, (until - self.now()).total_seconds()), wake)
            try:
                await awake
            finally:
                timer.cancel()
                bell.listen(None)
        bell.answer()

    def working(self, what: Hashable) -> AbstractContextManager[object]:
        """Real time waits for nobody."""
        return nullcontext()
