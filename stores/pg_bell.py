"""Waking other processes by LISTEN and NOTIFY; a lost notification costs time only."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any
from uuid import uuid4

from workflow.errors import StoreError

from . import pg_sql, pg_tables
from .pg_link import Source, Wire

APART = 0.05
"""Seconds between two notifications of one process: inside each commit they would serialise all commits."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
"""Seconds until a lost connection is opened again."""


class Bell:
    """Tells the others that something was committed, and hears it from them.

    It listens on a connection of its own and tells on one that is never busy for long. Behind a pooler
    nothing can be heard, only told.
    """

    def __init__(self, source: Source, channel: str, wire: Wire, heard: Callable[[], None]) -> None:
        self._source = source
        self._channel = channel
        self._wire = wire
        self._heard = heard
        self._name = uuid4().hex
        self._due = False
        self._teller: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None
        self._began: asyncio.Event = asyncio.Event()
        self._closing: asyncio.Event = asyncio.Event()

    def ring(self) -> None:
        """Tell the others, soon."""
        self._due = True
        if self._teller is None and not self._closing.is_set():
            self._teller = _apart(self._tell())

    async def announce(self, wire: Wire | None = None) -> None:
        """Tell the others, now."""
        with suppress(StoreError):  # who waits looks again at its ceiling
            await (wire or self._wire).run(pg_sql.NOTIFY.encode(), (self._channel, self._name))

    async def _tell(self) -> None:
        try:
            while self._due:
                self._due = False
                await self.announce()
                with suppress(TimeoutError):
                    async with asyncio.timeout(APART):
                        await self._closing.wait()
        finally:
            self._teller = None

    async def listen(self) -> None:
        """Hear the others from now on."""
        self._listener = _apart(self._listen())
        await self._began.wait()

    async def _listen(self) -> None:
        pause = _FIRST_PAUSE
        while not self._source.pooler:
            with suppress(Exception):  # whatever it was: the ceiling of each wait still holds
                connection = await self._source.connect()
                try:
                    await connection.execute(f"LISTEN {pg_tables.quoted(self._channel)}".encode(), prepare=False)
                    if self._began.is_set():
                        self._heard()  # what was told meanwhile is not heard any more
                    self._began.set()
                    pause = _FIRST_PAUSE
                    async for notification in connection.notifies():
                        if notification.payload != self._name:
                            self._heard()
                finally:
                    await connection.close()
            self._began.set()
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        self._began.set()

    async def close(self) -> None:
        """Tell what is still to be told, and hear no more."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait((self._listener,))
            self._listener = None
        self._closing.set()
        if self._teller is not None:
            await asyncio.wait((self._teller,))


def _apart(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work, context=contextvars.Context())
