"""A transaction of the user's, and what moves in it are written with."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, LiteralString, TypeVar
from uuid import uuid4
from weakref import WeakKeyDictionary

from psycopg import AsyncConnection, AsyncRawCursor
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row
from psycopg.types.numeric import Int8

from workflow.errors import Conflict, StoreError, StoreUnavailable
from workflow.record import Answer, Commit, Line, Loaded, Locked
from workflow.store import Store, enter, inside

from . import pg_rows, pg_sql, pg_tables
from .pg_link import (
    DRIVER,
    LOCKED,
    PATIENCE,
    RACED,
    REPEATED,
    Connection,
    Pool,
    Rows,
    rows_of,
    sqlstate,
    stale,
    translated,
)
from .pg_write import Run, load, refused, whole
from .rule import try_puts

_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05
"""Seconds between two looks whether another transaction has let an instance go."""
_MARKED, _MARK = "application_name", re.compile("enumflow [0-9a-f]{16}")
_SET_MARK = b"SELECT set_config('application_name', $1, true)"
_NOTIFY = b"SELECT pg_notify($1, '')"
_SET_PATIENCE = b"SELECT set_config('lock_timeout', $1, true)"
_OPEN = (TransactionStatus.INTRANS, TransactionStatus.ACTIVE, TransactionStatus.INERROR)

T = TypeVar("T")


class _Seat:
    """What all transactions on one connection share."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        """Moves that are made at the same time take turns: each is undone back to the same savepoint."""
        self.last = ""
        """The instance that was last asked for, empty if none was."""
        self.stale = False
        """The server that the connection leads to is of no more use."""


_seats: WeakKeyDictionary[AsyncConnection[Any], _Seat] = WeakKeyDictionary()


class PostgresTransaction:
    """See `workflow.store.Transaction`. The connection is psycopg's; its settings stay the user's.

    Moves may be made in it at the same time. The user's own statements are to be run one after another
    and not beside a move: a move that is refused takes back whatever was done on the connection meanwhile.
    """

    def __init__(
        self, store: Store, schema: pg_tables.Schema, connection: AsyncConnection[Any], where: str, channel: str = ""
    ) -> None:
        self._store = store
        self._schema = schema
        self._connection = connection
        self._where = where
        self._channel = channel
        self._mark = _mark(connection) if channel else ""
        self.seat = _seats.setdefault(connection, _Seat())
        self.over = False
        """The block that this was for has ended; its connection may be at another's transaction."""

    @property
    def connection(self) -> AsyncConnection[Any]:
        """See `Transaction.connection`."""
        return self._connection

    @property
    def store(self) -> Store:
        """See `Transaction.store`."""
        return self._store

    @property
    def open(self) -> bool:
        """See `Transaction.open`."""
        connection = self._connection
        if self.over or connection.closed or connection.info.transaction_status not in _OPEN:
            return False
        return not self._mark or connection.info.parameter_status(_MARKED) == self._mark

    # --- the verbs --------------------------------------------------------------------------------

    async def lock(self, workflow: str, id: str, timeout: float) -> bool:
        """See `Transaction.lock`. By looking again and again: who waited would be ended by a deadlock or a
        timeout of the server's, and the user's transaction with him."""
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + timeout, _FIRST_PAUSE
        while not await self._ask(pg_sql.LOCK_HEAD, (workflow, id), id):
            if not (await self._ask(pg_sql.HAS_HEAD, (workflow, id), id))[0][0]:
                return True
            if loop.time() + pause > deadline:
                return False
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)
        return True

    async def load(self, workflow: str, ids: Sequence[str], *, rows: bool = False) -> Sequence[Loaded | None]:
        """See `Store.load`."""

        async def run(statement: bytes, values: Sequence[Any]) -> Rows:
            return await self._run(statement, values, ids[0])

        if not ids:
            return ()
        async with self.seat.turn:
            return await load(self._schema, run, [(workflow, id) for id in ids], rows=rows)

    async def history(self, workflow: str, id: str, after: int = 0, limit: int | None = None) -> Sequence[Line]:
        """See `Store.history`."""
        values = (workflow, id, Int8(after), None if limit is None else Int8(limit))
        return [pg_rows.line_of(row) for row in await self._ask(pg_sql.HISTORY, values, id)]

    async def recall(self, workflow: str, id: str, key: str) -> Line | None:
        """See `Store.recall`."""
        rows = await self._ask(pg_sql.KEYED_LINES, ([workflow], [id], [key]), id)
        return pg_rows.line_of(rows[0]) if rows else None

    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        """See `Store.append`. Each commit can be undone alone."""
        for commit in commits:
            try_puts(commit)
        return [await self._append(commit, timeout or 0.0) for commit in commits]

    # --- one commit -------------------------------------------------------------------------------

    async def _append(self, commit: Commit, timeout: float) -> Answer:
        loop = asyncio.get_running_loop()
        deadline, pause = loop.time() + timeout, _FIRST_PAUSE
        while True:
            async with self.seat.turn:
                answer = await self._attempt(commit)
            if answer is not None:
                return answer
            if loop.time() + pause > deadline:
                return Locked()
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _attempt(self, commit: Commit) -> Answer | None:
        """The answer, or None while another transaction holds what the commit needs."""
        id = commit.changes[0].id

        async def run(statement: bytes, values: Sequence[Any]) -> Rows:
            return await self._run(statement, values, id)

        await firmly(run(b"SAVEPOINT enumflow", ()))
        try:
            patience = await self._hurry(run) if any(not change.seq for change in commit.changes) else None
            done = await whole(self._schema, run, commit)
            if patience is not None:
                await run(_SET_PATIENCE, (patience,))
            if done is not None and self._channel:
                await run(_NOTIFY, (self._channel,))
        except StoreError as error:
            if sqlstate(error) not in (LOCKED, REPEATED):
                await self._undo(run)
                raise
            await self._undo(run)
            if sqlstate(error) == LOCKED:
                return None
            answer = (await refused(self._schema, run, [commit]))[0]
            if answer is None:
                raise
            return answer
        except BaseException:
            await self._undo(run)
            raise
        if done is None and len(commit.changes) > 1:
            await self._undo(run)
        else:  # also where nothing was written: what somebody did meanwhile is not to be undone
            await firmly(run(b"RELEASE enumflow", ()))
        return done if done is not None else (await refused(self._schema, run, [commit]))[0]

    async def _hurry(self, run: Run) -> str:
        """A start waits for another's open start of the same id, here not for long; what was set before."""
        ((patience,),) = await run(b"SELECT current_setting('lock_timeout')", ())
        await run(_SET_PATIENCE, ("50ms",))
        return str(patience)

    async def _undo(self, run: Run) -> None:
        """Back to before the commit: the user's own work stays."""
        if self.open:
            await firmly(_back(run))

    # --- one statement ----------------------------------------------------------------------------

    async def _ask(self, statement: str, values: Sequence[Any], id: str) -> Rows:
        async with self.seat.turn:
            return await self._run(self._schema[statement], values, id)

    async def _run(self, statement: bytes, values: Sequence[Any], id: str) -> Rows:
        """Raises Conflict where the server has ended the transaction: it did not happen, and must be done again."""
        if self.over or nothing_open(self._connection):
            raise StoreError("the transaction has ended; make the move within one that is open")
        self.seat.last = id
        cursor = AsyncRawCursor(self._connection, row_factory=tuple_row)
        try:
            if self._mark and not self.open:
                await cursor.execute(_SET_MARK, (self._mark,))
            await cursor.execute(statement, values or None, binary=True)  # text would follow the session's habits
            return await rows_of(cursor)
        except DRIVER as error:
            self.seat.stale |= stale(error)
            if getattr(error, "sqlstate", None) in RACED:
                raise Conflict(id, 1, inside=True) from error
            raise translated(error, self._where) from error


async def _back(run: Run) -> None:
    await run(b"ROLLBACK TO enumflow", ())
    await run(b"RELEASE enumflow", ())


# --- beginning and ending ---------------------------------------------------------------------------


@asynccontextmanager
async def begun(store: Store, schema: pg_tables.Schema, pool: Pool, where: str) -> AsyncGenerator[PostgresTransaction]:
    """A transaction on a connection of the pool; committed at the end of the block, rolled back if it raises."""
    if inside(store):
        raise StoreError("this task is inside a transaction of the store; do both in that one")
    connection = await _begun(pool, where)
    _seats[connection] = _Seat()
    transaction = PostgresTransaction(store, schema, connection, where)
    try:
        enter(transaction)
        try:
            yield transaction
        except BaseException as error:
            transaction.seat.stale |= stale(error)
            if transaction.open:
                await firmly(_ended(connection, "ROLLBACK", where))
            raise
        finally:
            transaction.over = True
        await _end(transaction, where)
    finally:
        if transaction.seat.stale:
            pool.give_up(connection)
        await pool.take_back(connection)


async def _begun(pool: Pool, where: str, *, again: bool = True) -> Connection:
    """A connection in a transaction. That one broke while nobody used it is not the caller's trouble."""
    connection = await pool.lend()
    try:
        await _ended(connection, "BEGIN", where)
    except BaseException as error:
        broken = connection.closed and not isinstance(error.__cause__, TimeoutError)
        await pool.take_back(connection)
        if not (again and broken and isinstance(error, StoreError)):
            raise
    else:
        return connection
    await pool.check()
    return await _begun(pool, where, again=False)


async def _end(transaction: PostgresTransaction, where: str) -> None:
    """COMMIT, if that is still to be had. Raises Conflict where others' transactions are in its way."""
    connection = transaction.connection
    status = connection.info.transaction_status
    if status == TransactionStatus.INTRANS:
        try:
            await firmly(_ended(connection, "COMMIT", where))
        except StoreError as error:
            if transaction.seat.last and sqlstate(error) in RACED:
                raise Conflict(transaction.seat.last, 1, inside=True) from error.__cause__
            raise
    elif status == TransactionStatus.INERROR:
        await firmly(_ended(connection, "ROLLBACK", where))
        raise StoreError("a statement in the block had failed, so nothing was committed")
    elif connection.closed:
        raise StoreUnavailable("the connection was lost in the block, so nothing was committed")
    else:
        raise StoreError("the block ended the transaction itself; leave that to its end", committed=None)


async def _ended(connection: AsyncConnection[Any], statement: LiteralString, where: str) -> None:
    """BEGIN, COMMIT or ROLLBACK. Of a COMMIT on a connection that was lost nobody knows the outcome."""
    try:
        async with asyncio.timeout(PATIENCE):
            await connection.execute(statement, prepare=False)
    except DRIVER as error:
        if isinstance(error, TimeoutError):
            await connection.close()
        committed = None if statement == "COMMIT" and connection.closed else False
        raise translated(error, where, committed=committed) from error


def joined(store: Store, schema: pg_tables.Schema, connection: object, where: str, channel: str) -> PostgresTransaction:
    """The transaction on a connection of the user's own; psycopg begins one by itself where it does not autocommit."""
    if not isinstance(connection, AsyncConnection):
        raise TypeError(f"within= takes a transaction of the store or a psycopg.AsyncConnection, not {connection!r}")
    own: AsyncConnection[Any] = connection  # pyright: ignore[reportUnknownVariableType]  # rows of any kind
    if nothing_open(own):
        raise StoreError("no transaction is open on this connection; begin one (async with connection.transaction())")
    transaction = PostgresTransaction(store, schema, own, where, channel)
    enter(transaction)
    return transaction


def _mark(connection: AsyncConnection[Any]) -> str:
    """What tells this transaction from the next on the same connection, perhaps another task's: a setting that the
    server takes back, and tells us so, when the transaction ends."""
    found = connection.info.parameter_status(_MARKED) or ""
    return found if _MARK.fullmatch(found) else f"enumflow {uuid4().hex[:16]}"


def nothing_open(connection: AsyncConnection[Any]) -> bool:
    """Would a statement be a transaction of its own, or fail?"""
    return connection.closed or (connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE)


async def firmly(work: Coroutine[Any, Any, T]) -> T:
    """Do it to the end, also if the caller is cancelled meanwhile; then he is."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait((task,))
        if not task.cancelled():
            task.exception()
        raise
