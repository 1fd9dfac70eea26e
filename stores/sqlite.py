"""Instances in one SQLite file, shared by the processes of one machine."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from functools import partial
from heapq import merge
from itertools import islice
from json import dumps
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import NamedTuple, Self

from workflow.clock import utcnow
from workflow.errors import StoreError
from workflow.record import QUEUE, Answer, Commit, Due, Head, Line, Loaded, Page, Query, Renewed, Wake

from . import batch, sql
from .hint import Hint
from .link import Link, code
from .rule import cursor_position, cursor_text, labelled, not_given_out, not_open

FEED = "sqlite"
MEMORY = ":memory:"
BEAT = 0.25
"""Seconds between two looks for other processes' commits while somebody waits."""


class _Links(NamedTuple):
    writer: Link
    reader: Link


class SQLiteStore:
    """A store in the file `path`, or with ":memory:" in this process for as long as it is open.

    Made if it is not there. An answered commit is on disk (write-ahead log, flushed at each
    commit). One connection writes, another reads, so that reads never wait for writes. `busy` is
    how long a verb waits while another process writes before it raises `StoreUnavailable`.
    """

    def __init__(self, path: str | os.PathLike[str], *, busy: timedelta = timedelta(seconds=5)) -> None:
        self._path = os.fspath(path)
        self._busy = busy.total_seconds()
        self._log = Path(f"{os.path.realpath(self._path)}-wal") if self._path != MEMORY else None
        self._links: _Links | None = None
        self._opened = 0
        self._hint = Hint()

    async def __aenter__(self) -> Self:
        """See `Store.__aenter__`. Raises `StoreError` for a file that cannot be used."""
        self._opened += 1
        if self._links is None:
            self._links = self._connect()
        try:
            await self._links.writer.run(_ready)
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

    def _connect(self) -> _Links:
        writer = Link(self._path, partial(_open_writer, self._path, self._busy))
        if self._path == MEMORY:
            return _Links(writer, writer)
        return _Links(writer, Link(self._path, partial(_open_reader, self._path, self._busy)))

    async def _leave(self) -> None:
        self._opened -= 1
        links = self._links
        if self._opened or links is None:
            return
        self._links = None
        self._hint.ring()
        try:
            await links.reader.close()
        finally:
            if links.writer is not links.reader:
                await links.writer.close()

    def _use(self) -> _Links:
        if self._links is None:
            raise not_open(self)
        return self._links

    # --- writing ----------------------------------------------------------------------------------

    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        """See `Store.append`. Another process that writes is waited for `timeout` or `busy`."""
        deadline = None if timeout is None else monotonic() + timeout
        try:
            return await self._use().writer.run(batch.append, tuple(commits), self._busy, deadline)
        finally:
            self._hint.ring()

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
        known, gone = dict(workflows), tuple(dead)
        return await self._use().writer.run(batch.claim, known, token, lease, limit, gone, now, self._busy)

    async def renew(
        self, token: str, rows: Collection[tuple[str, str, str]], lease: timedelta, now: datetime | None = None
    ) -> Renewed:
        """See `Store.renew`."""
        return await self._use().writer.run(batch.renew, token, tuple(rows), lease, now, self._busy)

    # --- reading ----------------------------------------------------------------------------------

    async def load(self, workflow: str, ids: Sequence[str]) -> Sequence[Loaded | None]:
        """See `Store.load`."""
        return await self._use().reader.run(_load, workflow, tuple(ids))

    async def history(self, workflow: str, id: str, after: int = 0, limit: int | None = None) -> Sequence[Line]:
        """See `Store.history`."""
        return await self._use().reader.run(_lines, sql.HISTORY, (workflow, id, after, -1 if limit is None else limit))

    async def recall(self, workflow: str, id: str, key: str) -> Line | None:
        """See `Store.recall`."""
        lines = await self._use().reader.run(_lines, sql.KEYED_LINE, (workflow, id, key))
        return lines[0] if lines else None

    async def find(self, query: Query) -> Sequence[Head]:
        """See `Store.find`. Indexed by workflow and status; other filters cost what they pass over."""
        return await self._use().reader.run(_find, query)

    async def read(self, cursor: str | None = None, limit: int = 1000) -> Page:
        """See `Store.read`."""
        return await self._use().reader.run(_read, cursor, limit)

    async def next_due(self, workflows: Mapping[str, int], now: datetime | None = None) -> Wake:
        """See `Store.next_due`."""
        return await self._use().reader.run(_next_due, dict(workflows), now)

    async def wait(self, timeout: float) -> bool:
        """See `Store.wait`. Other processes are noticed within `BEAT`, without a query."""
        self._use()
        deadline, seen = monotonic() + timeout, self._tide()
        while True:
            left = max(0.0, deadline - monotonic())
            if await self._hint.wait(min(left, BEAT)) or self._tide() != seen:
                return True
            if left <= BEAT:
                return False

    def _tide(self) -> tuple[int, int, int] | None:
        """What changes when anybody commits.

        The log is only asked for its size and age: to open and close a database file beside SQLite
        would give up the locks that SQLite holds on it.
        """
        if self._log is None:
            return None
        try:
            log = self._log.stat()
        except OSError:
            return None
        return log.st_mtime_ns, log.st_size, log.st_ino


# --- opening, on the connection's thread ------------------------------------------------------------


def _ready(db: sqlite3.Connection) -> None:
    """Nothing to do: the connection is opened by its first use."""


def _open(path: str, busy: float, prepare: Callable[[sqlite3.Connection, float], None]) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=busy, isolation_level=None)
    try:
        prepare(db, busy)
    except BaseException:
        db.close()
        raise
    return db


def _open_reader(path: str, busy: float) -> sqlite3.Connection:
    return _open(path, busy, lambda db, _: _pragma(db, "query_only = ON"))


def _open_writer(path: str, busy: float) -> sqlite3.Connection:
    if sqlite3.sqlite_version_info < (3, 35):
        raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old: 3.35 is needed (RETURNING)")
    return _open(path, busy, partial(_prepare, path))


def _prepare(path: str, db: sqlite3.Connection, busy: float) -> None:
    _log_ahead(path, db, monotonic() + busy)
    _pragma(db, "synchronous = FULL")
    _pragma(db, "fullfsync = ON")  # macOS: a plain fsync leaves the data in the drive's cache
    _migrate(path, db)


def _pragma(db: sqlite3.Connection, setting: str) -> None:
    db.execute(f"PRAGMA {setting}")


def _log_ahead(path: str, db: sqlite3.Connection, deadline: float) -> None:
    """Switch to the write-ahead log. SQLite does not wait for others here, so we do."""
    while True:
        try:
            (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if code(error) != sqlite3.SQLITE_BUSY or monotonic() >= deadline:
                raise
            sleep(0.01)
        else:
            break
    if mode != "wal" and path != MEMORY:
        raise StoreError(
            f"{path}: SQLite cannot keep a write-ahead log here (its journal is {mode!r}); use a local disk"
        )


def _migrate(path: str, db: sqlite3.Connection) -> None:
    """Bring the schema to this code's version, under the write lock; others wait and find it done."""
    db.execute(sql.BEGIN)
    db.execute(sql.MAKE_META)
    found = db.execute(sql.GET_VERSION).fetchone()
    version = found[0] if found is not None else 0
    if version > len(sql.STEPS):
        raise StoreError(f"{path} has schema {version}, this code knows {len(sql.STEPS)}; upgrade enumflow")
    for step in sql.STEPS[version:]:
        for statement in step:
            db.execute(statement)
    db.execute(sql.SET_VERSION, (len(sql.STEPS),))
    db.execute("COMMIT")


# --- reading, on the reader's thread ----------------------------------------------------------------


def _lines(db: sqlite3.Connection, statement: str, values: tuple[object, ...]) -> list[Line]:
    return [sql.line_of(row) for row in db.execute(statement, values).fetchall()]


def _load(db: sqlite3.Connection, workflow: str, ids: Sequence[str]) -> list[Loaded | None]:
    db.execute("BEGIN")  # all of one instant
    found = [_loaded(db, workflow, id) for id in ids]
    db.execute("COMMIT")
    return found


def _loaded(db: sqlite3.Connection, workflow: str, id: str) -> Loaded | None:
    head = db.execute(sql.GET_HEAD, (workflow, id)).fetchone()
    if head is None:
        return None
    row = db.execute(sql.GET_DUE, (workflow, id, QUEUE)).fetchone()
    if row is None:
        return Loaded(sql.head_of(head), None, ())
    effects = sql.due_of(row)
    return Loaded(sql.head_of(head), effects, tuple(_lines(db, sql.OWING, (workflow, id, effects.seq))))


def _find(db: sqlite3.Connection, query: Query) -> list[Head]:
    values: dict[str, object] = {
        "workflow": query.workflow,
        "after": query.after or "",
        "states": None if query.state is None else dumps(sorted(query.state), ensure_ascii=False),
        "before": None if query.changed_before is None else sql.micros(query.changed_before),
    }
    if query.status is None:
        return list(islice(_heads(db, sql.FIND, values, query), query.limit))
    db.execute("BEGIN")  # one instant for all statuses: no head is met twice or missed between them
    each = (_heads(db, sql.FIND_STATUS, values | {"status": status}, query) for status in query.status)
    found = list(islice(merge(*each, key=lambda head: head.id), query.limit))
    db.execute("COMMIT")
    return found


def _heads(db: sqlite3.Connection, statement: str, values: dict[str, object], query: Query) -> Iterator[Head]:
    """The heads that match, read one by one: a page ends where it is full."""
    labels = sql.HEAD.index("labels")
    with closing(db.execute(statement, values)) as rows:
        for row in rows:
            if not query.labels or labelled(query, row[labels]):
                yield sql.head_of(row)


def _read(db: sqlite3.Connection, cursor: str | None, limit: int) -> Page:
    position = cursor_position(FEED, cursor)
    rows: list[sql.Row] = db.execute(sql.READ, (position, limit)).fetchall()
    if rows:
        return Page(tuple(sql.line_of(row[:-1]) for row in rows), cursor_text(FEED, rows[-1][-1]))
    if cursor is not None and position > (db.execute(sql.LAST).fetchone()[0] or 0):
        raise not_given_out(cursor)
    return Page((), cursor_text(FEED, position))


def _next_due(db: sqlite3.Connection, workflows: Mapping[str, int], now: datetime | None) -> Wake:
    times: list[int] = []
    tokens: set[str] = set()
    db.execute("BEGIN")
    for known in workflows.items():
        times += (at for (at,) in db.execute(sql.NEXT_DUE, known))
        tokens.update(token for (token,) in db.execute(sql.OWNERS, known))
    db.execute("COMMIT")
    return Wake(sql.moment(min(times)) if times else None, frozenset(tokens), now or utcnow())
