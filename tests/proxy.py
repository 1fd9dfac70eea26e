"""A way to PostgreSQL on which answers, or the question itself, get lost."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from tests.server import PATIENCE

Loss = Literal["answer", "question", "late"]
_SYNC, _READY = b"S\0\0\0\x04", b"Z\0\0\0\x05"


class Proxy:
    """Between a store and the socket of a server in `home`.

    `lose(mark, how)`: of the next request that holds `mark` the client hears nothing but the end of its connection.
    `answer`: the server did it before; `question`: it never hears of it; `late`: it does it at `land()`.
    `weather`: each request is lost with this probability, one way or the other; `late` ones land a moment later.
    """

    def __init__(self, home: Path) -> None:
        self._to = home / ".s.PGSQL.5432"
        self._tasks: set[asyncio.Task[None]] = set()
        self._mark: bytes = b""
        self._how: Loss = "answer"
        self._late: list[tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]] = []
        self.weather = 0.0
        self.lost = 0

    async def __aenter__(self) -> Self:
        self.home = Path(tempfile.mkdtemp(prefix="way-", dir="/tmp"))
        self._door = await asyncio.start_unix_server(self._enter, self.home / self._to.name)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._door.close()
        await self.land()
        async with asyncio.timeout(PATIENCE):
            while self._tasks:
                for task in self._tasks:
                    task.cancel()
                await asyncio.wait(self._tasks)
        shutil.rmtree(self.home)

    def url(self, server: str) -> str:
        """The way of a server's url by this proxy."""
        before, _, after = server.partition("?host=")
        return f"{before}?host={self.home}&port={after.rpartition('=')[2]}"

    def lose(self, mark: str, how: Loss) -> None:
        """The next request with these letters in it is lost."""
        self._mark, self._how = mark.encode(), how

    async def land(self) -> None:
        """What was late reaches the server, and is done when this returns."""
        late, self._late = self._late, []
        for reader, writer, request in late:
            await _done(reader, writer, request)
            writer.close()

    def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._attend(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attend(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(OSError, EOFError):
            server, to_server = await asyncio.open_unix_connection(str(self._to))
            back = asyncio.get_running_loop().create_task(_copy(server, writer))
            late = False
            try:
                while request := await reader.read(1 << 20):
                    how = self._fate(request)
                    if how is None:
                        to_server.write(request)
                        await to_server.drain()
                        continue
                    back.cancel()
                    await asyncio.wait((back,))
                    self.lost += 1
                    while request[:1] == b"B" and not request.endswith(_SYNC) and (more := await reader.read(1 << 20)):
                        request += more
                    if how == "answer":
                        await _done(server, to_server, request)
                    elif how == "late":
                        late = True
                        self._late.append((server, to_server, request))
                        if self.weather:
                            asyncio.get_running_loop().call_later(random.random() * 0.1, self._soon)
                    return
            finally:
                back.cancel()
                await asyncio.wait((back,))
                if not late:
                    to_server.close()

    def _fate(self, request: bytes) -> Loss | None:
        if request[:1] not in b"BQ":  # a statement is only prepared
            return None
        if self._mark and self._mark in request:
            self._mark = b""
            return self._how
        if random.random() < self.weather:
            return random.choice(("answer", "question", "late"))
        return None

    def _soon(self) -> None:
        task = asyncio.get_running_loop().create_task(self.land())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the end, which is passed on; who cancels this has other plans."""
    with contextlib.suppress(OSError, EOFError):
        while answer := await reader.read(1 << 20):
            writer.write(answer)
            await writer.drain()
    writer.close()


async def _done(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
    """Ask, and hear the answer to its end."""
    with contextlib.suppress(OSError, EOFError):
        writer.write(request)
        answer = b""
        async with asyncio.timeout(PATIENCE):
            while answer[-6:-1] != _READY and (more := await reader.read(1 << 20)):
                answer += more
