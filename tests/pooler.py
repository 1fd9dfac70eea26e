"""A connection pooler as PgBouncer with `pool_mode=transaction`: what a store loses behind one it loses here, too.

A client has a server connection from the first message of a transaction to the end of it, and for the next one that
which is free the longest: what SET, LISTEN or PREPARE leave in a session is gone, or meets a stranger. Harsher than
PgBouncer, it carries no setting and no prepared statement over.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import struct
from collections.abc import Coroutine
from types import TracebackType
from typing import Self

from psycopg.conninfo import conninfo_to_dict

from tests.server import PATIENCE

_PROTOCOL, _CANCEL, _ENCRYPT = 3 << 16, 80877102, (80877103, 80877104)
_ALLOWED = {b"user", b"database", b"client_encoding", b"application_name"}
"""What a client may say of itself; `options` are refused, since nobody would keep them."""


class _Server:
    """A connection to the server, and who has it."""

    guest: _Client | None = None

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.key = self.parameters = b""

    async def log_in(self, user: str, database: str) -> None:
        """Ready for the first message, without a password."""
        words = "".join(f"{word}\0" for word in ("user", user, "database", database))
        self.writer.write(_message(b"", struct.pack("!i", _PROTOCOL) + words.encode() + b"\0"))
        while (message := await _read(self.reader))[:1] != b"Z":
            match message[:1]:
                case b"R" if message[5:] == bytes(4):
                    pass
                case b"S":
                    self.parameters += message
                case b"K":
                    self.key = message[5:]
                case _:
                    raise ConnectionError(message.decode(errors="replace"))


class _Client:
    """A connection of a client, and what is in flight on it."""

    server: _Server | None = None
    owed = 0  # ReadyForQuery
    begun = False  # a Sync is to come

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def sends(self, kind: bytes) -> None:
        """Simple query, Sync and function call are answered by ReadyForQuery; other requests wait for a Sync."""
        if kind in b"QSF":
            self.owed += 1
            self.begun = False
        elif kind in b"PBDEC":
            self.begun = True

    def rests(self, ready: bytes) -> bool:
        """Does this ReadyForQuery end a transaction, with nothing behind it?"""
        self.owed -= 1
        return not self.owed and not self.begun and ready.endswith(b"I")


class Pooler:
    """`size` connections as the user and to the database of `url`, for any number of clients on a loopback port."""

    def __init__(self, url: str, *, size: int = 2) -> None:
        self._to = {name: str(value) for name, value in conninfo_to_dict(url).items()}
        self._size = size
        self._free = asyncio.Queue[_Server | None]()  # None: to be connected
        self._clients: dict[bytes, _Client] = {}
        self._tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._pids = itertools.count(2_000_000_000)  # no process has such

    async def __aenter__(self) -> Self:
        first = await self._connect()
        self._parameters = first.parameters
        for server in (first, *[None] * (self._size - 1)):
            self._free.put_nowait(server)
        self._door = await asyncio.start_server(self._enter, "127.0.0.1", 0)
        port = self._door.sockets[0].getsockname()[1]
        self.url = f"postgresql://{self._to['user']}@127.0.0.1:{port}/{self._to['dbname']}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._door.close()
        async with asyncio.timeout(PATIENCE):
            while tasks := dict(self._tasks):
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                for writer in tasks.values():
                    with contextlib.suppress(ConnectionError):
                        await writer.wait_closed()
            await self._door.wait_closed()

    def _spawn(self, work: Coroutine[None, None, None], writer: asyncio.StreamWriter) -> None:
        """The connection is closed when the work on it ends, be it before it began."""

        def ended(task: asyncio.Task[None]) -> None:
            del self._tasks[task]
            writer.close()

        task = asyncio.create_task(work)
        self._tasks[task] = writer
        task.add_done_callback(ended)

    # --- clients --------------------------------------------------------------------------------------

    def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._spawn(self._attend(_Client(reader, writer)), writer)

    async def _attend(self, client: _Client) -> None:
        key = struct.pack("!i", next(self._pids)) + secrets.token_bytes(4)
        try:
            if await self._greet(client, key):
                self._clients[key] = client
                await self._forward(client)
        except (OSError, EOFError):
            pass
        finally:
            self._clients.pop(key, None)
            if client.server is not None:  # in the middle of a transaction, which nobody else may get
                client.server.writer.close()

    async def _greet(self, client: _Client, key: bytes) -> bool:
        while True:
            (size,) = struct.unpack("!i", await client.reader.readexactly(4))
            body = await client.reader.readexactly(size - 4)
            (code,) = struct.unpack_from("!i", body)
            if code not in _ENCRYPT:
                break
            client.writer.write(b"N")
        if code == _CANCEL:
            await self._cancel(body[4:])
            return False
        if unknown := {*body[4:-2].split(b"\0")[::2]} - _ALLOWED:
            client.writer.write(_fatal("08P01", f"unsupported startup parameter: {unknown.pop().decode()}"))
            return False
        key_data, ready = _message(b"K", key), _message(b"Z", b"I")
        client.writer.write(_message(b"R", bytes(4)) + self._parameters + key_data + ready)
        return True

    async def _forward(self, client: _Client) -> None:
        while (message := await _read(client.reader))[:1] != b"X":
            try:
                server = client.server or await self._check_out(client)
            except (OSError, EOFError) as error:
                client.writer.write(_fatal("08006", f"no server: {error}"))
                return
            client.sends(message[:1])
            server.writer.write(message)
            await server.writer.drain()

    async def _cancel(self, key: bytes) -> None:
        """For the transaction in which the client is, on its server."""
        client = self._clients.get(key)
        if client is not None and client.server is not None:
            server = client.server
            reader, writer = await self._open()
            with contextlib.closing(writer):
                writer.write(_message(b"", struct.pack("!i", _CANCEL) + server.key))
                async with asyncio.timeout(PATIENCE):
                    await reader.read()

    # --- servers --------------------------------------------------------------------------------------

    async def _check_out(self, client: _Client) -> _Server:
        server = await self._free.get()
        try:
            if server is None or server.writer.is_closing():
                server = await self._connect()
        except BaseException:
            self._free.put_nowait(None)
            raise
        server.guest, client.server = client, server
        return server

    async def _relay(self, server: _Server) -> None:
        """All that the server says goes to its guest; what it says to nobody, say a notification, is lost."""
        try:
            while True:
                message = await _read(server.reader)
                if (guest := server.guest) is None:
                    continue
                if message[:1] == b"Z" and guest.rests(message):
                    server.guest = guest.server = None
                    self._free.put_nowait(server)
                guest.writer.write(message)
                with contextlib.suppress(ConnectionError):
                    await guest.writer.drain()
        except (OSError, EOFError):
            pass
        finally:
            if (guest := server.guest) is not None:
                server.guest = guest.server = None
                guest.writer.close()
                self._free.put_nowait(None)

    async def _connect(self) -> _Server:
        server = _Server(*await self._open())
        try:
            async with asyncio.timeout(PATIENCE):
                await server.log_in(self._to["user"], self._to["dbname"])
        except BaseException:
            server.writer.close()
            raise
        self._spawn(self._relay(server), server.writer)
        return server

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self._to["host"], self._to["port"]
        async with asyncio.timeout(PATIENCE):
            if host.startswith("/"):
                return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
            return await asyncio.open_connection(host, int(port))


async def _read(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(5)
    (size,) = struct.unpack_from("!i", head, 1)
    return head + await reader.readexactly(size - 4)


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def _fatal(code: str, text: str) -> bytes:
    return _message(b"E", f"SFATAL\0VFATAL\0C{code}\0M{text}\0\0".encode())
