"""Group commit with nothing around it: what queues while one transaction is on its way shares the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

R = TypeVar("R")


class Group(Generic[R]):
    """One writer for all callers; `write` makes all rows durable or raises."""

    def __init__(self, write: Callable[[list[R]], Awaitable[object]]) -> None:
        self._write = write
        self._rows: list[R] = []
        self._callers: list[asyncio.Future[None]] = []
        self._writer: asyncio.Task[None] | None = None

    def commit(self, row: R) -> asyncio.Future[None]:
        """Done when the row is durable."""
        caller = asyncio.get_running_loop().create_future()
        self._rows.append(row)
        self._callers.append(caller)
        if self._writer is None:
            self._writer = asyncio.create_task(self._run())
        return caller

    async def _run(self) -> None:
        while self._rows:
            rows, callers = self._rows, self._callers
            self._rows, self._callers = [], []
            try:
                await self._write(rows)
            except Exception as e:  # noqa: BLE001  # whatever it was, the callers hear it
                for caller in callers:
                    caller.set_exception(e)
            else:
                for caller in callers:
                    caller.set_result(None)
            await asyncio.sleep(0)  # a turn for the callers, else groups of 1 and 63 take turns
        self._writer = None
