"""Grouped loads: what is asked while one look is under way is asked together in the next."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from workflow.errors import StoreError, StoreUnavailable

from .batch import LARGEST, apart, divisible, own

K = TypeVar("K")
V = TypeVar("V")


class Looks(Generic[K, V]):
    """The queue before the readers of one store."""

    def __init__(self, look: Callable[[Sequence[K]], Awaitable[Sequence[V]]], *, flights: int = 2) -> None:
        self._look = look
        self._idle = flights
        self._queue: deque[tuple[Sequence[K], asyncio.Future[Sequence[V]]]] = deque()
        self._flights: set[asyncio.Task[None]] = set()

    async def ask(self, keys: Sequence[K]) -> Sequence[V]:
        """What is found for each key, seen after this call."""
        answer: asyncio.Future[Sequence[V]] = asyncio.get_running_loop().create_future()
        self._queue.append((keys, answer))
        if self._idle:
            self._idle -= 1
            flight = apart(self._work())
            self._flights.add(flight)
            flight.add_done_callback(self._flights.discard)
        return await answer

    async def landed(self) -> None:
        """Wait until everybody has his answer."""
        while self._flights:
            await asyncio.wait(self._flights)

    async def _work(self) -> None:
        try:
            while self._queue:
                group = [self._queue.popleft() for _ in range(min(len(self._queue), LARGEST))]
                await self._fly(group)
                await asyncio.sleep(0)
        finally:
            self._idle += 1

    async def _fly(self, group: Sequence[tuple[Sequence[K], asyncio.Future[Sequence[V]]]]) -> None:
        try:
            found = await self._look([key for keys, _ in group for key in keys])
        except StoreError as error:
            if len(group) > 1 and divisible(error):
                half = len(group) // 2
                await self._fly(group[:half])
                await self._fly(group[half:])
                return
            for _, answer in group:
                if not answer.done():
                    answer.set_exception(own(error))
        except BaseException as error:
            ended = StoreUnavailable(f"the reader ended: {error!r}", committed=False)
            ended.__cause__ = error
            for _, answer in group:
                if not answer.done():
                    answer.set_exception(own(ended))
            if not isinstance(error, Exception):
                raise
        else:
            at = 0
            for keys, answer in group:
                if not answer.done():
                    answer.set_result(found[at : at + len(keys)])
                at += len(keys)
