"""The tasks of one Manager: they belong to it, not to the calls that caused them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from .store import outside

_PRESSING = 1.0
"""Seconds until a task that goes on though it was cancelled is cancelled again: it may have to clean up."""
_PATIENCE = 5.0
"""Seconds until a task that goes on though it was cancelled is left behind."""
_log = logging.getLogger("enumflow")


class House:
    """Tasks that anybody may start and that one call ends.

    No task group: one that is opened in `__aenter__` has to be closed by the same task, which
    fixtures of test frameworks and ASGI lifespans do not promise.
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._first: asyncio.Task[None] | None = None
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
        task = asyncio.get_running_loop().create_task(self._guarded(work, name), name=name)
        self._first = self._first or task
        self._tasks.add(task)

    @property
    def ending(self) -> bool:
        """Are the tasks of the house being cancelled, by `close` or by an event loop that ends without it?

        Such a loop cancels all tasks before any of them runs, so the first, which lives as long as the
        house, tells.
        """
        first = self._first
        return self.shut or (first is not None and (first.done() or first.cancelling() > 0))

    @property
    def left(self) -> bool:
        """After `close`: does a task go on all the same?"""
        return bool(self._tasks)

    async def close(self) -> None:
        """Cancel what still runs and wait for its end, also if the caller is cancelled, who hears of it
        afterwards. What has not ended after some seconds is left behind."""
        self.shut = True
        cancelled = None
        loop = asyncio.get_running_loop()
        until = loop.time() + _PATIENCE
        pressing = self._press(again=False)
        import anyio  # takes its time, once

        with anyio.CancelScope(shield=True):  # a cancelled scope would interrupt each turn of the loop
            while self._tasks and (now := loop.time()) < until:
                if now >= pressing:
                    pressing = self._press(again=True)
                try:
                    await asyncio.wait(self._tasks, timeout=min(pressing, until) - now)
                except asyncio.CancelledError as e:
                    cancelled = e
                self._tasks = {task for task in self._tasks if not task.done()}  # some never began
        self._open = False
        for task in self._tasks:
            _log.error("enumflow task %r does not end though it was cancelled; it is left behind", task.get_name())
        if cancelled is not None:
            raise cancelled

    def _press(self, *, again: bool) -> float:
        """Cancel what runs, at first only what nobody cancelled before; when to press again."""
        for task in self._tasks:
            if again or not task.cancelling():
                task.cancel()
        return asyncio.get_running_loop().time() + _PRESSING

    async def _guarded(self, work: Callable[[], Awaitable[object]], name: str) -> None:
        outside()
        try:
            await work()
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except asyncio.CancelledError:  # ours, or a stray one: not to be handed to its neighbours
            pass
        except BaseException:  # noqa: BLE001  # a task's error must not end its neighbours
            _log.exception("enumflow task %r ended with an error", name)
        me = asyncio.current_task()
        if me is not None:
            self._tasks.discard(me)  # not by a callback, which would be another turn of the loop
