"""The tasks of one Manager: they belong to it, not to the calls that caused them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from .store import outside

_PRESSING = 0.05
"""Seconds until a task that goes on though it was cancelled is cancelled again."""
_log = logging.getLogger("enumflow")


class House:
    """Tasks that anybody may start and that one call ends.

    No task group: one that is opened in `__aenter__` has to be closed by the same task, which
    fixtures of test frameworks and ASGI lifespans do not promise.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = False
        self.shut = False
        """Has its end begun? Then nothing new may be spawned."""

    def open(self) -> None:
        """Tasks may be started from now on."""
        self._open = True

    def spawn(self, work: Callable[[], Awaitable[object]], name: str) -> None:
        """Run `work` as a task of the house; its error is logged and harms no other task."""
        if not self._open:
            raise RuntimeError("the Manager is not open; use `async with manager`")
        task = asyncio.get_running_loop().create_task(_guarded(work, name), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cancel what still runs and wait for its end, also if the caller is cancelled."""
        self.shut = True
        await asyncio.shield(asyncio.get_running_loop().create_task(self._clear()))
        self._open = False

    async def _clear(self) -> None:
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks, timeout=_PRESSING)


async def _guarded(work: Callable[[], Awaitable[object]], name: str) -> None:
    outside()
    try:
        await work()
    except (KeyboardInterrupt, SystemExit):
        raise
    except asyncio.CancelledError:  # ours, or a stray one: not to be handed to its neighbours
        pass
    except BaseException:  # noqa: BLE001  # a task's error must not end its neighbours
        _log.exception("enumflow task %r ended with an error", name)
