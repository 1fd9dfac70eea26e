"""Which instances have effects running in this Manager, and who waits for them to come to rest."""

from __future__ import annotations

import asyncio


class Rest:
    """Running instances by id. Nothing is kept for one at rest."""

    __slots__ = ("_running",)

    def __init__(self) -> None:
        self._running: dict[str, list[asyncio.Future[None]]] = {}

    def begin(self, id: str) -> None:
        """Effects of this instance run from now on."""
        self._running.setdefault(id, [])

    def end(self, id: str) -> None:
        """They came to rest; whoever waited goes on."""
        for waiter in self._running.pop(id, ()):
            if not waiter.done():
                waiter.set_result(None)

    def __contains__(self, id: str) -> bool:
        """Do effects of this instance run here?"""
        return id in self._running

    async def wait(self, id: str, seconds: float) -> None:
        """Return when they are at rest, or after `seconds`."""
        waiters = self._running.get(id)
        if waiters is None:
            await asyncio.sleep(seconds)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiters.append(waiter)
        try:
            async with asyncio.timeout(seconds):
                await waiter
        except TimeoutError:
            pass
        finally:
            if waiter in waiters:
                waiters.remove(waiter)
