"""Waking many who wait long: one timer for all of them, where each of their own would cost more than the wait."""

from __future__ import annotations

import asyncio

NEAR = 1.0
"""Seconds before a deadline from which on it has a timer of its own."""


class Alarm:
    """Futures by the moment (on the loop's clock) at which they are to be done, if nothing else did it."""

    __slots__ = ("_tick", "_waiting")

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], float] = {}
        self._tick: asyncio.TimerHandle | None = None

    async def wait(self, waiter: asyncio.Future[None], deadline: float) -> None:
        """Return when `waiter` is done, by whomever, at `deadline` at the latest."""
        loop = asyncio.get_running_loop()
        if deadline - loop.time() <= NEAR:
            await _exactly(waiter, deadline)
            return
        self._waiting[waiter] = deadline
        if self._tick is None:
            self._tick = loop.call_later(NEAR / 2, self._look)
        try:
            await waiter
        finally:
            self._waiting.pop(waiter, None)

    def _look(self) -> None:
        """Give those whose time is near a timer of their own."""
        loop = asyncio.get_running_loop()
        near = loop.time() + NEAR
        for waiter in [waiter for waiter, deadline in self._waiting.items() if deadline <= near]:
            loop.call_at(self._waiting.pop(waiter), wake, waiter)
        self._tick = loop.call_later(NEAR / 2, self._look) if self._waiting else None


async def _exactly(waiter: asyncio.Future[None], deadline: float) -> None:
    timer = asyncio.get_running_loop().call_at(deadline, wake, waiter)
    try:
        await waiter
    finally:
        timer.cancel()


def wake(waiter: asyncio.Future[None]) -> None:
    """Done, if it is not yet."""
    if not waiter.done():
        waiter.set_result(None)
