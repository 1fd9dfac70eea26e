"""A process's work for many Managers: opened together, in places they share, and ended together."""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from .codec import said
from .errors import StoreUnavailable
from .manager import Manager
from .observer import Trouble
from .places import Places

_log = logging.getLogger("enumflow")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class Worker:
    """Works off what is due for these Managers, whatever their own `work` says.

    `async with worker` opens them (and waits for stores that are away), inside a service whose
    handlers then use the Managers; `await worker.run()` is a process of its own. `concurrency` bounds
    what all of them do at once, shared fairly, in place of their own; likewise `drain`, the time that
    running hooks get to end before they are cancelled and their leases handed back.
    """

    def __init__(
        self, *managers: Manager[Any, Any, Any], concurrency: int = 64, drain: timedelta = timedelta(seconds=30)
    ) -> None:
        if not managers or not all(isinstance(manager, Manager) for manager in managers):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
            raise TypeError(f"a Worker takes one Manager or more, not {managers!r}")
        if len({id(manager) for manager in managers}) < len(managers):
            raise ValueError("a Worker takes each Manager once")
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {concurrency}")
        if drain < timedelta(0):
            raise ValueError(f"drain must not be negative, not {drain}")
        self.managers = managers
        self._concurrency = concurrency
        self._drain = drain
        self._begun = False
        self._opened: list[Manager[Any, Any, Any]] = []

    async def __aenter__(self) -> Self:
        """Open all Managers; a store that is away is waited for. Raises StoreError, and RuntimeError if
        the Worker or one of its Managers is open already."""
        if self._begun:
            raise RuntimeError("this Worker is open already")
        self._begun = True
        terms = Places(self._concurrency), self._drain
        try:
            for manager in self.managers:
                manager.employ(terms)
            for manager in self.managers:
                await _opened(manager)
                self._opened.append(manager)
        except BaseException:
            await self._close()
            raise
        _log.info("working on %s", ", ".join(manager.spec.name for manager in self.managers))
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Let running hooks end within `drain`, hand back the others, close. Cancelled, it drains no longer."""
        if self._begun:
            await self._close()

    async def run(self) -> None:
        """Work until SIGTERM, SIGINT or cancellation, then close as at the end of `async with`.

        Opens the Managers if they are not open yet. A second signal ends the drain. Signals are
        heard in the main thread only.
        """
        working = asyncio.get_running_loop().create_task(self._run())
        signals: list[int] = []

        def stop(number: int) -> None:
            _log.info("stopping, at signal %d", number)
            signals.append(number)
            working.cancel()

        with _heard(stop):
            try:
                await working
            except asyncio.CancelledError:
                me = asyncio.current_task()
                if not signals or (me is not None and me.cancelling()):
                    raise

    async def _run(self) -> None:
        try:
            if not self._begun:
                await self.__aenter__()
            await asyncio.get_running_loop().create_future()
        finally:
            await self.__aexit__(None, None, None)

    async def _close(self) -> None:
        """Close all at once: the drain is theirs together."""
        opened, self._opened = self._opened, []
        try:
            ends = await asyncio.gather(
                *(manager.__aexit__(None, None, None) for manager in opened), return_exceptions=True
            )
        finally:
            self._begun = False
            for manager in self.managers:
                manager.employ(None)
        for end in ends:
            if end is not None:
                raise end


async def _opened(manager: Manager[Any, Any, Any]) -> None:
    """Open it, as soon as its store can be reached."""
    pause = _FIRST_PAUSE
    while True:
        try:
            await manager.__aenter__()
        except StoreUnavailable as e:
            wait = pause * (0.5 + random.random())
            fact = Trouble(manager.spec.name, "opening the store", said(e), e, wait)
            manager.watch.tell("store_unavailable", fact)
            await asyncio.sleep(wait)
            pause = min(pause * 2, _LONGEST_PAUSE)
        else:
            return


@contextmanager
def _heard(stop: Callable[[int], None]) -> Generator[None]:
    """Signals that end a process call `stop` instead, where they can be heard."""
    loop, before = asyncio.get_running_loop(), dict[int, Any]()
    for number in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(number)
        try:
            loop.add_signal_handler(number, stop, number)
        except (NotImplementedError, RuntimeError, ValueError):  # another thread, or a system without
            continue
        before[number] = handler
    try:
        yield
    finally:
        for heard, handler in before.items():
            loop.remove_signal_handler(heard)
            if handler is not None:
                signal.signal(heard, handler)
