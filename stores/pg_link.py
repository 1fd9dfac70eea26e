"""Connections to PostgreSQL, and their errors in the words of the contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection, AsyncCursor, AsyncRawCursor
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow, tuple_row
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from workflow.errors import StoreError, StoreUnavailable

from . import pg_tables

Connection: TypeAlias = AsyncConnection[TupleRow]
Rows: TypeAlias = list[TupleRow]

PATIENCE = 30.0
"""Seconds that a statement may take before its connection is given up."""
OLDEST = 13_00_00  # the server's version that has all that is used here
LENDING = 10.0
"""Seconds that a verb waits for a connection."""
_DEFAULTS = {
    "client_encoding": "utf8",
    "connect_timeout": "10",
    "keepalives_idle": "20",
    "keepalives_interval": "5",
    "tcp_user_timeout": "30000",
}
"""So that a server that vanished is noticed, and any text can be written; the user's URL overrides them."""
DRIVER = (psycopg.Error, UnicodeError, OSError, TimeoutError)
_PASSING = ("08", "53", "57", "58", "40", "55", "25006")
"""Classes of SQLSTATE whose cause may go away by itself: connection, resources, shutdown and cancellation,
system, serialization, locks; and a standby that may become the primary."""
LOCKED, REPEATED, RACED = "55P03", "23505", ("40001", "40P01")
_READ_ONLY, _ENDED = "25006", "57P0"
_PREPARES = 5  # uses after which psycopg prepares a statement, if nobody says otherwise
_CLEAN = b"CLOSE ALL; RESET ROLE; RESET ALL; UNLISTEN *; DISCARD TEMP; SELECT pg_advisory_unlock_all()"
"""Undoes what a guest leaves in the session; not what psycopg has prepared, since it would not know."""


def sqlstate(error: BaseException) -> str | None:
    """The SQLSTATE of the driver's error behind a `StoreError`."""
    return getattr(error.__cause__, "sqlstate", None)


def translated(error: BaseException, what: str, *, committed: bool | None = False) -> StoreError:
    """The error of the contract that says what the driver's says."""
    if isinstance(error, StoreError):
        return error
    state = getattr(error, "sqlstate", None)
    if isinstance(error, (OSError, TimeoutError)):
        passing = True
    elif state is None:
        passing = isinstance(error, (psycopg.OperationalError, psycopg.InterfaceError))
    else:
        passing = state.startswith(_PASSING)
    kind = StoreUnavailable if passing else StoreError
    text = str(error).strip() or type(error).__name__
    made = kind(f"{what}: {text}", committed)
    made.__cause__ = error
    return made


def stale(error: BaseException) -> bool:
    """Is the connection that met this of no more use? After a failover another may lead to the new primary."""
    return str(getattr(error, "sqlstate", None) or sqlstate(error)).startswith((_READ_ONLY, _ENDED))


def _unheard(connection: Connection, error: BaseException) -> bool:
    """Was the answer lost? A server that shuts down may have written, and said no more than that it ends."""
    ended = str(getattr(error, "sqlstate", None)).startswith(_ENDED)
    return ended or connection.closed or isinstance(error, (OSError, TimeoutError))


class Source:
    """Where connections come from: one server, one schema, perhaps behind a pooler."""

    def __init__(self, url: str, pooler: bool | None) -> None:
        try:
            self.url = make_conninfo("", **(_DEFAULTS | conninfo_to_dict(url)))
        except DRIVER as error:
            raise translated(error, "the url of PostgreSQL") from error
        self.pooler = pooler
        self.where = _named(url)

    async def connect(self) -> Connection:
        """A connection in autocommit, set up unless a pooler would give it to somebody else."""
        connection: Connection = await AsyncConnection.connect(
            self.url, autocommit=True, prepare_threshold=0, cursor_factory=AsyncRawCursor
        )
        await _or_closed(self.set_up)(connection)
        return connection

    async def set_up(self, connection: Connection) -> None:
        """Make a new connection ours. A pooler answers for the server with a process id of its own."""
        found = connection.info.server_version
        if found < OLDEST:
            raise StoreError(f"{self.where}: PostgreSQL {found} is too old; {OLDEST} is needed")
        if self.pooler is None:
            row = await (await connection.execute("SELECT pg_backend_pid()", prepare=False)).fetchone()
            self.pooler = row is not None and row[0] != connection.info.backend_pid
        await self.receive(connection)
        if not self.pooler:
            await connection.execute(pg_tables.SESSION.encode(), prepare=False)

    async def receive(self, connection: Connection) -> None:
        """Make a new connection fit for what stands between."""
        if self.pooler:
            connection.prepare_threshold = None

    async def clean(self, connection: Connection) -> None:
        """Make a connection that a guest had as if it were new; behind a pooler its session is another's already."""
        connection.row_factory, connection.cursor_factory = tuple_row, AsyncCursor
        connection.prepare_threshold = None if self.pooler else _PREPARES
        if not self.pooler:
            async with asyncio.timeout(PATIENCE):
                await connection.execute(_CLEAN, prepare=False)


class Together:
    """Statements of one transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.committing = False
        self.undone = False

    async def run(self, statement: bytes, values: Sequence[Any]) -> Rows:
        """The rows of one statement."""
        return await rows_of(await self._connection.execute(statement, values))

    def undo(self) -> None:
        """Roll back at the end of the block."""
        self.undone = True


class Wire:
    """One connection, one task at a time; opened at its first use, and again after it broke."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()

    async def use(self) -> Connection:
        """The connection. Raises StoreUnavailable, StoreError: nothing was sent."""
        connection = self._connection
        if connection is None or connection.closed:
            try:
                async with asyncio.timeout(PATIENCE):
                    connection = await self._source.connect()
            except DRIVER as error:
                raise translated(error, self._source.where) from error
            self._connection = connection
        return connection

    async def run(self, statement: bytes, values: Sequence[Any]) -> Rows:
        """The rows of one statement in a transaction of its own. Of a StoreError `committed` is None if
        the connection was lost before the server had answered."""
        async with self._turn:
            connection = await self.use()
            try:
                async with asyncio.timeout(PATIENCE):
                    return await run(self._source, connection, statement, values)
            except DRIVER as error:
                raise await self.failed(connection, error) from error
            except BaseException:
                await self.drop()
                raise

    async def look(self, statement: bytes, values: Sequence[Any]) -> Rows:
        """As `run`, for one that only reads: it may be run twice, as a connection that broke while nobody
        used it is not the caller's trouble."""
        return await _twice(self.run, statement, values)

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Together]:
        """Statements that are committed together; rolled back if the block raises or says so."""
        connection = await self.use()
        together = Together(connection)
        try:
            async with asyncio.timeout(PATIENCE):
                await connection.execute(pg_tables.BEGIN, prepare=False)
                if self._source.pooler:
                    await connection.execute(pg_tables.LOCAL.encode(), prepare=False)
                yield together
                together.committing = not together.undone
                await connection.execute(b"ROLLBACK" if together.undone else b"COMMIT", prepare=False)
        except DRIVER as error:
            raise await self.failed(connection, error, committing=together.committing) from error
        except StoreError:
            await self._roll_back(connection)
            raise
        except BaseException:
            await self.drop()
            raise

    async def failed(self, connection: Connection, error: BaseException, *, committing: bool = True) -> StoreError:
        """What an error of the driver means; afterwards the wire can be used again."""
        lost = _unheard(connection, error)
        if lost or stale(error):
            await self.drop()
        else:
            await self._roll_back(connection)
        return translated(error, self._source.where, committed=None if lost and committing else False)

    async def _roll_back(self, connection: Connection) -> None:
        if connection.info.transaction_status != TransactionStatus.IDLE:
            try:
                async with asyncio.timeout(PATIENCE):
                    await connection.rollback()
            except DRIVER:
                await self.drop()

    async def drop(self) -> None:
        """Close; the next use opens another connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*DRIVER):
                await connection.close()


class Pool:
    """Connections that are lent, each to one task at a time; `guests` find the settings of psycopg and the server."""

    def __init__(self, source: Source, size: int, *, guests: bool = False) -> None:
        self._source = source
        threshold, cursor = (_PREPARES, AsyncCursor) if guests else (0, AsyncRawCursor)
        set_up = source.receive if guests else source.set_up
        self._era = 0
        self._born: WeakKeyDictionary[Connection, int] = WeakKeyDictionary()

        async def receive(connection: Connection) -> None:
            self._born[connection] = self._era
            await set_up(connection)

        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            source.url,
            kwargs={"autocommit": True, "prepare_threshold": threshold, "cursor_factory": cursor},
            min_size=0,
            max_size=size,
            timeout=LENDING,
            reconnect_timeout=LENDING,  # else its pauses grow to minutes, long after the server is back
            configure=_or_closed(receive),
            reset=source.clean if guests else None,
            open=False,
        )

    async def open(self) -> None:
        """Ready to lend; connections are made when they are needed."""
        await self._pool.open()

    async def close(self) -> None:
        """Lend no more."""
        await self._pool.close()

    async def run(self, statement: bytes, values: Sequence[Any], *, reads: bool = True) -> Rows:
        """The rows of one statement in a transaction of its own. One that only reads may be run twice: a
        connection that broke while nobody used it is not the caller's trouble."""
        return await _twice(self._run, statement, values, self.check) if reads else await self._run(statement, values)

    async def _run(self, statement: bytes, values: Sequence[Any]) -> Rows:
        connection = await self.lend()
        try:
            async with asyncio.timeout(PATIENCE):
                return await run(self._source, connection, statement, values)
        except DRIVER as error:
            committed = None if _unheard(connection, error) else False
            if stale(error):
                self.give_up(connection)
            raise translated(error, self._source.where, committed=committed) from error
        except BaseException:
            await connection.close()
            raise
        finally:
            await self.take_back(connection)

    async def check(self) -> None:
        """Replace the connections that broke while nobody used them."""
        await self._pool.check()

    async def lend(self) -> Connection:
        """A connection, to be given back. Raises StoreUnavailable when none is free in time."""
        try:
            connection = await self._pool.getconn()
        except (PoolTimeout, PoolClosed, *DRIVER) as error:
            raise translated(error, self._source.where) from error
        if self._born.get(connection) == self._era:
            return connection
        await connection.close()
        await self.take_back(connection)
        return await self.lend()

    def give_up(self, connection: Connection) -> None:
        """Lend it no more, nor any as old. They are replaced when they would be lent: till then servers may change."""
        if self._born.get(connection) == self._era:
            self._era += 1

    async def take_back(self, connection: Connection) -> None:
        """The pool rolls back what was left open, and replaces what broke."""
        await asyncio.shield(asyncio.ensure_future(self._pool.putconn(connection)))


def _or_closed(work: Callable[[Connection], Awaitable[None]]) -> Callable[[Connection], Awaitable[None]]:
    """Do it to a connection, which is closed if that fails."""

    async def attempt(connection: Connection) -> None:
        try:
            await work(connection)
        except BaseException:
            await connection.close()
            raise

    return attempt


async def _twice(
    run: Callable[[bytes, Sequence[Any]], Awaitable[Rows]],
    statement: bytes,
    values: Sequence[Any],
    mend: Callable[[], Awaitable[None]] | None = None,
) -> Rows:
    try:
        return await run(statement, values)
    except StoreError as error:
        if error.committed is False:
            raise
    if mend is not None:
        await mend()
    try:
        return await run(statement, values)
    except StoreError as error:
        error.committed = False  # there was nothing to write
        raise


async def run(source: Source, connection: Connection, statement: bytes, values: Sequence[Any]) -> Rows:
    """The rows of one statement in a transaction of its own."""
    if not source.pooler:
        return await rows_of(await connection.execute(statement, values, prepare=True))
    async with connection.pipeline():
        await connection.execute(pg_tables.BEGIN)
        await connection.execute(pg_tables.LOCAL.encode())
        cursor = await connection.execute(statement, values)
        await connection.execute(b"COMMIT")
    return await rows_of(cursor)


async def rows_of(cursor: AsyncCursor[TupleRow]) -> Rows:
    """What a statement answered, if it answers with rows."""
    result = cursor.pgresult  # `description` would make an object of each column
    return await cursor.fetchall() if result is not None and result.nfields else []


def _named(url: str) -> str:
    """Where the server is, without a password."""
    given = conninfo_to_dict(url)
    return f"PostgreSQL at {given.get('host') or 'localhost'}, database {given.get('dbname') or 'default'}"
