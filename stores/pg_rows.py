"""What PostgreSQL answers, as records."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from json import loads
from typing import Any, TypeAlias

import msgspec

from workflow.record import QUEUE, Change, Commit, Committed, Due, Head, Line, Loaded

from .rule import due_put
from .sql import DUE, HEAD, LINE

Row: TypeAlias = tuple[Any, ...]

_OWES, _AT = LINE.index("owes"), LINE.index("at")
_STARTED, _CHANGED = HEAD.index("started_at"), HEAD.index("changed_at")
_DUE_AT = DUE.index("at")


def due_known(commit: Commit, change: Change, time: datetime, *, wrote: bool | None) -> Due | None:
    """The effects row as a done change put it, if it did and leased it to the committer."""
    for put in reversed(change.puts):
        if put.name == QUEUE and (not put.absent or wrote or QUEUE in change.drops):
            due = due_put(change, put, time)
            held = due.held if change.held is None else change.held
            return msgspec.structs.replace(due, held=held) if due.token == commit.token else None
    return None


def due_unknown(commit: Commit, change: Change, *, wrote: bool | None) -> bool:
    """Did a done change leave a row of the committer's as it was, so that only a look can tell it?"""
    lease = change.lease
    if lease is None or lease.name != QUEUE or lease.token != commit.token or QUEUE in change.drops:
        return False
    return all(put.name != QUEUE or (put.absent and not wrote) for put in change.puts)


def moment(at: datetime) -> datetime:
    """The time in UTC, whatever the session's zone."""
    return at if at.tzinfo is UTC else at.astimezone(UTC)


def line_of(row: Row) -> Line:
    """The line in a row of LINE columns."""
    values = list(row)  # columns are the record's fields, in their order
    values[_OWES] = tuple(loads(values[_OWES])) if values[_OWES] is not None else ()
    values[_AT] = moment(values[_AT])
    return Line(*values)


def head_of(row: Row) -> Head:
    """The head in a row of HEAD columns."""
    values = list(row)
    values[_STARTED], values[_CHANGED] = moment(values[_STARTED]), moment(values[_CHANGED])
    return Head(*values)


def due_of(row: Row) -> Due:
    """The due row in a row of DUE columns."""
    values = list(row)
    values[_DUE_AT] = moment(values[_DUE_AT])
    return Due(*values)


_HEAD_END, _DUE_END = 1 + len(HEAD), 1 + len(HEAD) + len(DUE)
_LINE_END = _DUE_END + len(LINE)


def loaded_of(rows: Sequence[Row], count: int) -> list[Loaded | None]:
    """What LOAD found for each of `count` places."""
    found: list[Loaded | None] = [None] * count
    for row in rows:
        place = int(row[0]) - 1
        before = found[place]
        if before is None:
            effects = due_of(row[_HEAD_END:_DUE_END]) if row[_HEAD_END] is not None else None
            queue: tuple[Line, ...] = (line_of(row[_DUE_END:]),) if row[_DUE_END] is not None else ()
            found[place] = Loaded(head_of(row[1:_HEAD_END]), effects, queue)
        else:
            found[place] = msgspec.structs.replace(before, queue=(*before.queue, line_of(row[_DUE_END:])))
    return found


def loaded_rows_of(rows: Sequence[Row], count: int) -> list[Loaded | None]:
    """What LOAD_ROWS found for each of `count` places."""
    found = loaded_of([row[:_LINE_END] for row in rows], count)
    for row in rows:
        loaded = found[int(row[0]) - 1]
        if loaded is not None and not loaded.rows and row[_LINE_END] is not None:
            due = tuple(due_of(each) for each in zip(*row[_LINE_END:], strict=True))
            found[int(row[0]) - 1] = msgspec.structs.replace(loaded, rows=due)
    return found


def answered(commit: Commit, change: Change, row: Row) -> Committed:
    """What a row of GROUP, MOVE or SETTLE says to its commit."""
    _, stamp, time, wrote = row
    at = moment(stamp)
    if not change.puts:
        return Committed(at)
    return Committed(at, due_known(commit, change, at if time is None else moment(time), wrote=wrote))
