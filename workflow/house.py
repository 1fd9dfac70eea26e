"""The tasks of one Manager, in a task of their own.

A task group opened in `__aenter__` would have to be closed by the same task, which fixtures of test
frameworks and ASGI lifespans do not promise. Here enter and exit only signal.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskGroup

_log = logging.getLogger("enumflow")


class House:
    """A task group that anybody may put tasks into and that one call ends."""

    def __init__(self) -> None:
        self._group: TaskGroup | None = None
        self._home: asyncio.Task[None] | None = None
        self._shut = asyncio.Event()

    @property
    def shut(self) -> bool:
        """Has its end begun? Then nothing new may be spawned."""
        return self._shut.is_set()

    async def open(self) -> None:
        """Start the group."""
        ready = asyncio.Event()
        self._home = asyncio.create_task(self._live(ready), name="enumflow house")
        await ready.wait()

    async def _live(self, ready: asyncio.Event) -> None:
        async with anyio.create_task_group() as group:
            self._group = group
            ready.set()
            await self._shut.wait()
            group.cancel_scope.cancel()

    def spawn(self, work: Callable[[], Awaitable[object]], name: str) -> None:
        """Run `work` as a task of the house; its error is logged and harms no other task."""
        if self._group is None:
            raise RuntimeError("the Manager is not open; use `async with manager`")
        self._group.start_soon(_guarded, work, name, name=f"enumflow {name}")

    async def close(self) -> None:
        """Cancel what still runs and wait for its end."""
        self._shut.set()
        if self._home is not None:
            await asyncio.shield(self._home)
            self._group = None


async def _guarded(work: Callable[[], Awaitable[object]], name: str) -> None:
    try:
        await work()
    except (KeyboardInterrupt, SystemExit):
        raise
    except asyncio.CancelledError:  # ours, or a stray one: not to be handed to its neighbours
        pass
    except BaseException:  # noqa: BLE001  # a task's error must not end its neighbours
        _log.exception("enumflow task %r ended with an error", name)
