"""All that reads. These functions run on the thread of their connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime
from heapq import merge
from itertools import islice
from json import dumps

from msgspec.structs import replace

from workflow.clock import utcnow
from workflow.record import QUEUE, Due, Head, Line, Loaded, Page, Query, Wake

from . import sql
from .rule import cursor_position, cursor_text, labelled, not_given_out

FEED = "sqlite"


def load(db: sqlite3.Connection, places: Sequence[tuple[str, str]]) -> list[Loaded | None]:
    """What is found at each (workflow, id), all of one instant."""
    db.execute("BEGIN")
    found = peek(db, places)
    db.execute("COMMIT")
    return found


def peek(db: sqlite3.Connection, places: Sequence[tuple[str, str]]) -> list[Loaded | None]:
    """The same inside a transaction."""
    return [_loaded(db, place) for place in places]


def load_rows(db: sqlite3.Connection, places: Sequence[tuple[str, str]]) -> list[Loaded | None]:
    """As `load`, each with all its due rows."""
    db.execute("BEGIN")
    found = peek_rows(db, places)
    db.execute("COMMIT")
    return found


def peek_rows(db: sqlite3.Connection, places: Sequence[tuple[str, str]]) -> list[Loaded | None]:
    """The same inside a transaction."""
    found = zip(places, peek(db, places), strict=True)
    return [None if loaded is None else replace(loaded, rows=_rows(db, place)) for place, loaded in found]


def _rows(db: sqlite3.Connection, place: tuple[str, str]) -> tuple[Due, ...]:
    return tuple(sql.due_of(row) for row in db.execute(sql.DUE_ROWS, place).fetchall())


def _loaded(db: sqlite3.Connection, place: tuple[str, str]) -> Loaded | None:
    head = db.execute(sql.GET_HEAD, place).fetchone()
    if head is None:
        return None
    row = db.execute(sql.GET_DUE, (*place, QUEUE)).fetchone()
    if row is None:
        return Loaded(sql.head_of(head), None, ())
    effects = sql.due_of(row)
    return Loaded(sql.head_of(head), effects, tuple(_lines(db, sql.OWING, (*place, effects.seq))))


def history(db: sqlite3.Connection, workflow: str, id: str, after: int, limit: int | None) -> list[Line]:
    """See `Store.history`."""
    return _lines(db, sql.HISTORY, (workflow, id, after, -1 if limit is None else limit))


def recall(db: sqlite3.Connection, workflow: str, id: str, key: str) -> Line | None:
    """See `Store.recall`."""
    lines = _lines(db, sql.KEYED_LINE, (workflow, id, key))
    return lines[0] if lines else None


def _lines(db: sqlite3.Connection, statement: str, values: tuple[object, ...]) -> list[Line]:
    return [sql.line_of(row) for row in db.execute(statement, values).fetchall()]


def find(db: sqlite3.Connection, query: Query) -> list[Head]:
    """See `Store.find`."""
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


def read(db: sqlite3.Connection, cursor: str | None, limit: int) -> Page:
    """See `Store.read`."""
    position = cursor_position(FEED, cursor)
    rows: list[sql.Row] = db.execute(sql.READ, (position, limit)).fetchall()
    if rows:
        return Page(tuple(sql.line_of(row[:-1]) for row in rows), cursor_text(FEED, rows[-1][-1]))
    if cursor is not None and position > (db.execute(sql.LAST).fetchone()[0] or 0):
        raise not_given_out(cursor)
    return Page((), cursor_text(FEED, position))


def next_due(db: sqlite3.Connection, workflows: Mapping[str, int], now: datetime | None) -> Wake:
    """See `Store.next_due`."""
    times: list[int] = []
    tokens: set[str] = set()
    db.execute("BEGIN")
    for known in workflows.items():
        times += (at for (at,) in db.execute(sql.NEXT_DUE, known))
        tokens.update(token for (token,) in db.execute(sql.OWNERS, known))
    db.execute("COMMIT")
    return Wake(sql.moment(min(times)) if times else None, frozenset(tokens), now or utcnow())
