"""Instances in PostgreSQL, shared by any number of processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from json import dumps
from time import monotonic
from types import TracebackType
from typing import Any, NamedTuple, Self
from zlib import crc32

import msgspec
from psycopg.types.numeric import Int4, Int8

from workflow.clock import utcnow
from workflow.errors import StoreError
from workflow.record import Answer, Commit, Due, Head, Line, Loaded, Page, Query, Renewed, Wake

from . import pg_rows, pg_sql, pg_tables
from .batch import Batch
from .hint import Hint
from .looks import Looks
from .pg_bell import Bell
from .pg_link import Pool, Source, Wire
from .pg_schema import prepare
from .pg_transaction import PostgresTransaction, begun, joined
from .pg_write import Writer, load
from .rule import not_given_out, not_open, try_puts

WRITERS = 2
"""Connections that write: while one waits for the disk, the other's rows are on their way."""
READERS = 4
"""Connections that read."""
BEAT = 1.0
"""Seconds between two looks for other processes' commits where nothing can be heard."""
_CURSOR = "postgres:"


class _Place(NamedTuple):
    """Where a reader of the feed stands: in which store, after which line."""

    store: str
    pos: int = 0
    workflow: str = ""
    id: str = ""
    seq: int = 0
    commit: str = ""
    """By this the line is known again: a server that went back in time may have another one in its place."""


class _Links:
    """What an open store holds."""

    def __init__(self, url: str, schema: pg_tables.Schema, pooler: bool | None, pool: int, hint: Hint) -> None:
        self.source = Source(url, pooler)
        self.keeper = Wire(self.source)
        self.wires = [Wire(self.source) for _ in range(WRITERS)]
        self.scout = Wire(self.source)
        self.readers = Pool(self.source, READERS)
        self.guests = Pool(self.source, pool, guests=True)
        self.channel = f"enumflow_{crc32(schema.name.encode()):08x}"
        self.bell = Bell(self.source, self.channel, self.keeper, hint.ring)
        self.batch = Batch(self._write, writers=WRITERS)
        self._hint = hint
        self._known: set[str] = set()
        """Tokens under which something was written."""
        self._writer = Writer(schema, self.wires)
        self.looks = Looks(self._look, flights=1)
        self.name = ""
        self._schema = schema
        self._ready: asyncio.Future[None] | None = None

    async def ready(self) -> None:
        """Connected, the schema made: once, for all who open the store at the same time."""
        if self._ready is None:
            self._ready = asyncio.ensure_future(self._prepare())
        await asyncio.shield(self._ready)

    async def _prepare(self) -> None:
        async with self.keeper.transaction() as transaction:
            self.name = await prepare(self._schema, transaction.run)
        await self.readers.open()
        await self.guests.open()
        await self.bell.listen()

    async def _write(self, writer: int, commits: Sequence[Commit], timeout: float | None) -> Sequence[Answer | None]:
        newcomers = {commit.token for commit in commits} - self._known
        if newcomers:  # who dies just after its first commit was at least heard of, and looked for
            self._known |= newcomers
            await self.bell.announce(self.wires[writer])
        try:
            return await self._writer(writer, commits, timeout)
        finally:
            self.tell()

    def tell(self) -> None:
        """Wake those who wait for commits, here and elsewhere."""
        self._hint.ring()
        self.bell.ring()

    async def _look(self, places: Sequence[tuple[str, str]]) -> list[Loaded | None]:
        return await load(self._schema, self.scout.look, places)

    async def close(self) -> None:
        """Finish what was handed in, then close."""
        if self._ready is not None:
            self._ready.cancel()  # nobody waits for it any more
            await asyncio.wait((self._ready,))
            if not self._ready.cancelled():
                self._ready.exception()  # who opened heard of it, or is gone
        await self.batch.landed()
        await self.looks.landed()
        await self.bell.close()
        for wire in (*self.wires, self.scout, self.keeper):
            await wire.drop()
        await self.readers.close()
        await self.guests.close()


class PostgresStore:
    """A store in the schema `schema` of the database at `url` (libpq's URL or keywords).

    The schema is made if it is not there. An answered commit is durable as the server is set up, and
    at least on its own disk. Needs no superuser: CREATE on the database, or on a schema that is there.

    It keeps two connections that write, one that looks at instances, one that renews leases, one that listens,
    up to four that read, and lends up to `pool` to `transaction()`. Behind a pooler that gives each transaction another
    connection (noticed by itself, or said by `pooler`) settings go with each transaction, and other
    processes' commits are looked for once a second instead of being heard.
    """

    def __init__(self, url: str, *, schema: str = "enumflow", pool: int = 8, pooler: bool | None = None) -> None:
        if not schema or "\0" in schema or len(schema.encode()) > 63:
            raise ValueError(f"a schema's name has 1 to 63 bytes, not {schema!r}")
        if pool < 1:
            raise ValueError(f"pool must be at least 1, not {pool}")
        self._url = url
        self._schema = pg_tables.Schema(schema)
        self._pooler = pooler
        self._pool = pool
        self._links: _Links | None = None
        self._opened = 0
        self._hint = Hint()

    async def __aenter__(self) -> Self:
        """See `Store.__aenter__`. Raises `StoreUnavailable` where no server answers."""
        if self._links is None:
            self._links = _Links(self._url, self._schema, self._pooler, self._pool, self._hint)
        self._opened += 1
        try:
            await self._links.ready()
        except BaseException:
            await self._leave()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """See `Store.__aexit__`. What was handed in before is finished first."""
        self._use()
        await self._leave()

    async def _leave(self) -> None:
        self._opened -= 1
        links = self._links
        if self._opened or links is None:
            return
        self._links = None
        self._hint.ring()
        await asyncio.shield(asyncio.ensure_future(links.close()))

    def _use(self) -> _Links:
        if self._links is None:
            raise not_open(self)
        return self._links

    # --- writing ----------------------------------------------------------------------------------

    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        """See `Store.append`."""
        links = self._use()
        for commit in commits:
            try_puts(commit)  # first: of a call that holds a time beyond all calendars nothing is written
        return await links.batch.append(commits, timeout) if commits else ()

    async def claim(
        self,
        workflows: Mapping[str, int],
        token: str,
        lease: timedelta,
        limit: int,
        dead: Collection[str] = (),
        now: datetime | None = None,
    ) -> Sequence[Due]:
        """See `Store.claim`."""
        _end(now, lease)
        values = (*_known(workflows), now, Int8(limit), lease.total_seconds(), token, list(dead))
        rows = await self._use().readers.run(self._schema[pg_sql.CLAIM], values, reads=False)
        rows.sort(key=lambda row: (*row[-2:], *row[:3]))
        return [pg_rows.due_of(row[:-2]) for row in rows]

    async def renew(
        self, token: str, rows: Collection[tuple[str, str, str]], lease: timedelta, now: datetime | None = None
    ) -> Renewed:
        """See `Store.renew`. On a connection of its own, so that it never waits for another verb."""
        _end(now, lease)
        keeper = self._use().keeper
        values = (*_columns(rows), token, now, lease.total_seconds())
        *renewed, last = await keeper.run(self._schema[pg_sql.RENEW], values)
        missing = frozenset(rows) - {row[:3] for row in renewed}
        if missing:
            owned = await keeper.run(self._schema[pg_sql.OWNED], (*_columns(missing), token))
            missing -= {row[:3] for row in owned}
        return Renewed(missing, pg_rows.moment(last[3]))

    # --- together with the user's rows ------------------------------------------------------------

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[PostgresTransaction]:
        """See `Transactional.transaction`. Raises StoreUnavailable when none of `pool` connections is free in time,
        Conflict when the commit is refused since others came first (serialization): do the block again."""
        links = self._use()
        try:
            async with begun(self, self._schema, links.guests, links.source.where) as transaction:
                yield transaction
        finally:  # who was cancelled at its end has committed all the same
            links.tell()

    def joined(self, connection: object) -> PostgresTransaction:
        """See `Transactional.joined`: an `AsyncConnection` of psycopg's to the database that the schema is in."""
        links = self._use()
        return joined(self, self._schema, connection, links.source.where, links.channel)

    # --- reading ----------------------------------------------------------------------------------

    async def load(self, workflow: str, ids: Sequence[str], *, rows: bool = False) -> Sequence[Loaded | None]:
        """See `Store.load`. What is asked for at the same time without `rows` is looked for together."""
        links, places = self._use(), [(workflow, id) for id in ids]
        if not places:
            return ()
        return await (load(self._schema, links.readers.run, places, rows=True) if rows else links.looks.ask(places))

    async def history(self, workflow: str, id: str, after: int = 0, limit: int | None = None) -> Sequence[Line]:
        """See `Store.history`."""
        values = (workflow, id, Int8(after), None if limit is None else Int8(limit))
        return await self._lines(pg_sql.HISTORY, values)

    async def recall(self, workflow: str, id: str, key: str) -> Line | None:
        """See `Store.recall`."""
        lines = await self._lines(pg_sql.KEYED_LINES, ([workflow], [id], [key]))
        return lines[0] if lines else None

    async def _lines(self, statement: str, values: tuple[Any, ...]) -> list[Line]:
        return [pg_rows.line_of(row) for row in await self._use().readers.run(self._schema[statement], values)]

    async def find(self, query: Query) -> Sequence[Head]:
        """See `Store.find`. Indexed by workflow and status; other filters cost what they pass over."""
        values: tuple[Any, ...] = (
            query.workflow,
            query.after or "",
            None if query.state is None else list(query.state),
            query.changed_before,
            dumps(dict(query.labels)) if query.labels else None,
            Int8(query.limit),
        )
        if query.status is None:
            rows = await self._use().readers.run(self._schema[pg_sql.FIND], values)
        else:
            rows = await self._use().readers.run(self._schema[pg_sql.FIND_STATUS], (*values, list(query.status)))
        return [pg_rows.head_of(row) for row in rows]

    async def read(self, cursor: str | None = None, limit: int = 1000) -> Page:
        """See `Store.read`. A transaction that writes anywhere on the server holds up the feed until it ends."""
        links = self._use()
        place = _place(links.name, cursor)
        line = place.workflow, place.id, Int8(place.seq)
        # The horizon first: what is not shown because it lies beyond is then surely told.
        ((low, known, more),) = await links.readers.run(self._schema[pg_sql.HORIZON], (*line, place.commit))
        if not known:
            raise not_given_out(cursor or "")
        values = (Int8(place.pos), *line, Int8(limit), Int8(low))
        rows = await links.readers.run(self._schema[pg_sql.READ], values)
        lines = tuple(pg_rows.line_of(row[:-1]) for row in rows)
        if lines:
            last = lines[-1]
            place = _Place(links.name, rows[-1][-1], last.workflow, last.id, last.seq, last.commit_id)
        return Page(lines, _CURSOR + msgspec.json.encode(place).decode(), behind=more)

    async def next_due(self, workflows: Mapping[str, int], now: datetime | None = None) -> Wake:
        """See `Store.next_due`."""
        ((at, tokens, server),) = await self._use().readers.run(self._schema[pg_sql.NEXT_DUE], _known(workflows))
        return Wake(None if at is None else pg_rows.moment(at), frozenset(tokens), now or pg_rows.moment(server))

    async def wait(self, timeout: float) -> bool:
        """See `Store.wait`. Where nothing can be heard, other processes are noticed within `BEAT`."""
        links = self._use()
        if not links.source.pooler:
            return await self._hint.wait(timeout)
        deadline, seen = monotonic() + timeout, await self._tide(links)
        while True:
            left = max(0.0, deadline - monotonic())
            if await self._hint.wait(min(left, BEAT)):
                return True
            if left <= BEAT:
                return False
            if await self._tide(links) != seen:
                return True

    async def _tide(self, links: _Links) -> object:
        """What changes when anybody commits."""
        try:
            return await links.readers.run(self._schema[pg_sql.TIDE], ())
        except StoreError:
            return None


def _end(now: datetime | None, lease: timedelta) -> datetime:
    """When a lease ends. Raises OverflowError: the server's calendar is longer than ours, and such a row unreadable."""
    return (now or utcnow()) + lease


def _known(workflows: Mapping[str, int]) -> tuple[list[str], list[Int4]]:
    return list(workflows), [Int4(version) for version in workflows.values()]


def _columns(rows: Collection[tuple[str, str, str]]) -> tuple[list[str], list[str], list[str]]:
    return [row[0] for row in rows], [row[1] for row in rows], [row[2] for row in rows]


def _place(store: str, cursor: str | None) -> _Place:
    """Where a cursor points. Raises `StoreError` for one that this store did not give out."""
    if cursor is None:
        return _Place(store)
    try:
        place = msgspec.json.decode(cursor.removeprefix(_CURSOR) if cursor.startswith(_CURSOR) else "", type=_Place)
    except (msgspec.DecodeError, UnicodeError):
        raise not_given_out(cursor) from None
    if place.store != store or place.pos < 0:
        raise not_given_out(cursor)
    return place
