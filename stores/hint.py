"""Waking those who wait for a commit of this process."""

from __future__ import annotations

import asyncio


class Hint:
    """Rings all who wait at the moment. Belongs to no event loop: only its waiters do."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], None] = {}  # in order of arrival, not by chance

    def ring(self) -> None:
        """Wake everybody. Costs nothing when nobody waits."""
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def wait(self, timeout: float) -> bool:
        """True when it rang since the call, False after `timeout` seconds."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = None
        try:
            done, _ = await asyncio.wait((waiter,), timeout=timeout)
        finally:
            self._waiting.pop(waiter, None)
        return bool(done)
