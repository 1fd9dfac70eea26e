"""Rules that every store applies alike: lease against row, cursors, filters of `find`."""

from __future__ import annotations

import re
from collections.abc import Collection
from datetime import datetime, timedelta
from json import loads

from workflow.clock import utcnow
from workflow.errors import StoreError
from workflow.record import Change, Commit, Due, Gone, Head, Lease, Lost, Put, Query

_GONE, _LOST = Gone(), Lost()
_SAFE = timedelta(days=365)
"""A pause that leads to the end of no calendar."""
_NUMBER = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)


def placed(change: Change) -> tuple[str, str]:
    """The order in which the instances of one commit are locked."""
    return change.workflow, change.id


def compared(row: Due | None, lease: Lease | None) -> Gone | Lost | None:
    """What an expected lease hears when `row` is the present due row of its name; None: it holds."""
    if lease is None:
        return None
    if row is None or (row.seq, row.number) > (lease.seq, lease.number):
        return _GONE
    same = (row.token, row.seq, row.number, row.attempt) == (lease.token, lease.seq, lease.number, lease.attempt)
    return None if same else _LOST


def urgency(dead: Collection[str], row: Due) -> tuple[bool, datetime, str, str, str]:
    """The order in which due rows find an owner: what the dead had begun was due before, then the earliest."""
    return row.token not in dead, row.at, row.workflow, row.id, row.name


def fits(query: Query, head: Head) -> bool:
    """Whether a head passes the filters of a query (its page aside)."""
    return (
        (query.status is None or head.status in query.status)
        and (query.state is None or head.state in query.state)
        and (query.changed_before is None or head.changed_at < query.changed_before)
        and (not query.labels or labelled(query, head.labels))
    )


def labelled(query: Query, labels: str) -> bool:
    """Whether the JSON object `labels` has every pair that the query names."""
    found: dict[str, str] = loads(labels)
    return found.items() >= set(query.labels)


def cursor_text(feed: str, position: int) -> str:
    """The cursor after the line at `position` of this kind of feed."""
    return f"{feed}:{position}"


def cursor_position(feed: str, cursor: str | None) -> int:
    """The position in a cursor, 0 for None. Raises `StoreError` for another feed's, or none at all."""
    if cursor is None:
        return 0
    kind, _, number = cursor.partition(":")
    if kind != feed or not _NUMBER.fullmatch(number):
        raise not_given_out(cursor)
    return int(number)


def not_given_out(cursor: str) -> StoreError:
    """What a reader with a strange cursor hears."""
    return StoreError(f"cursor {cursor!r} was not given out by this store; begin again with None")


def not_open(store: object) -> RuntimeError:
    """What every verb raises outside of `async with`."""
    return RuntimeError(f"{type(store).__name__} is not open: use it inside `async with store:`")


def due_put(change: Change, put: Put, now: datetime) -> Due:
    """The row that a put makes in a commit of this time. Raises `StoreError` for a time beyond all calendars."""
    at = _due_at(change, put, now)
    return Due(  # by place: names would cost five times as much
        change.workflow,
        change.id,
        put.name,
        at,
        put.seq,
        put.number,
        put.attempt,
        put.version,
        put.token,
        put.held,
        put.body,
    )


def try_puts(commit: Commit) -> None:
    """Raises what `due_put` raises, before anything is written."""
    for change in commit.changes:
        for put in change.puts:
            if put.wait > _SAFE:
                _due_at(change, put, commit.now or utcnow())


def _due_at(change: Change, put: Put, now: datetime) -> datetime:
    try:
        return now + put.wait if put.at is None else put.at
    except OverflowError as error:
        raise StoreError(f"{change.id!r}: {put.name!r} cannot be due {put.wait} from now", committed=False) from error
