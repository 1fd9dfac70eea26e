"""All that writes: a group of commits, a claim or a renewal in one transaction of SQLite.

These functions run on the thread of their connection.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial

from msgspec.structs import replace

from workflow.clock import utcnow
from workflow.errors import StoreUnavailable
from workflow.record import (
    QUEUE,
    Answer,
    Change,
    Commit,
    Committed,
    Conflicted,
    Due,
    Duplicate,
    Renewed,
)

from . import sql
from .link import code, translated
from .rule import compared, due_put, placed, urgency

PATIENCE = 0.05
"""Seconds that a thread waits for another process: no longer, since others wait for the thread."""
_KNOWN = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CONSTRAINT)
"""Ways for COMMIT to fail after which the transaction is surely rolled back."""
_CONFLICTED = Conflicted()


class Held(StoreUnavailable):
    """Another process holds the write lock: try again."""

    outdated = False
    """This very connection is in the way: a statement that was left unfinished reads an older state."""


class _Refused(Exception):  # no error: it carries an answer out of the transaction
    def __init__(self, answer: Answer, *, dirty: bool = True) -> None:
        super().__init__(answer)
        self.answer = answer
        self.dirty = dirty
        """Something was written before, and is to be undone."""


class _Spoilt(Exception):
    """A commit was refused that cannot be undone alone."""


# --- transactions -----------------------------------------------------------------------------------


def begin(db: sqlite3.Connection, patience: float = PATIENCE) -> None:
    """Take the write lock within so many seconds. Raises `Held`."""
    hurried = patience < PATIENCE
    try:
        if hurried:
            _wait(db, patience)
        db.execute(sql.BEGIN)
    except sqlite3.OperationalError as error:
        if code(error) == sqlite3.SQLITE_BUSY:
            held = Held(str(error), committed=False)
            held.outdated = error.sqlite_errorcode == sqlite3.SQLITE_BUSY_SNAPSHOT
            raise held from error
        raise
    finally:
        if hurried:
            _wait(db, PATIENCE)


def _wait(db: sqlite3.Connection, seconds: float) -> None:
    db.execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}")


def end(db: sqlite3.Connection) -> None:
    """COMMIT. If that fails, what was written is either rolled back or unknown."""
    try:
        db.execute("COMMIT")
    except sqlite3.Error as error:
        committed = False if code(error) in _KNOWN else None
        raise translated(error, "COMMIT failed", committed=committed) from error


# --- commits ----------------------------------------------------------------------------------------


def append(db: sqlite3.Connection, commits: Sequence[Commit], patience: float) -> list[Answer]:
    """One transaction, one flush, an answer for each commit. Raises `Held`."""
    begin(db, patience)
    if len(commits) == 1:
        answers = [_attempt(db, db.cursor(), commits[0], undo="ROLLBACK")]
    else:
        answers = _together(db, commits, patience)
    if db.in_transaction:
        end(db)
    return answers


def _together(db: sqlite3.Connection, commits: Sequence[Commit], patience: float) -> list[Answer]:
    """A savepoint for each commit costs a fifth, and few are refused after they have written something."""
    cursor = db.cursor()
    try:
        return [_attempt(db, cursor, commit, undo=None) for commit in commits]
    except _Spoilt:
        db.execute("ROLLBACK")
        begin(db, patience)
        return [saved(db, commit) for commit in commits]


def saved(db: sqlite3.Connection, commit: Commit) -> Answer:
    """A commit inside a transaction, that is undone alone if it is refused or fails."""
    db.execute("SAVEPOINT commit_")
    try:
        answer = _attempt(db, db.cursor(), commit, undo="ROLLBACK TO commit_")
    except BaseException:
        if db.in_transaction:  # some errors end the whole transaction
            db.execute("ROLLBACK TO commit_")
            db.execute("RELEASE commit_")
        raise
    db.execute("RELEASE commit_")
    return answer


def _attempt(db: sqlite3.Connection, cursor: sqlite3.Cursor, commit: Commit, *, undo: str | None) -> Answer:
    try:
        return _committed(cursor, commit)
    except _Refused as refused:
        if refused.dirty or len(commit.changes) > 1:
            if undo is None:
                raise _Spoilt from None
            db.execute(undo)  # first: the commit's own half must not pass for one that landed before
        return _landed(cursor, commit) or refused.answer


def _committed(cursor: sqlite3.Cursor, commit: Commit) -> Committed:
    now = commit.now or utcnow()
    changes = commit.changes
    if len(changes) == 1:
        stamp, leased = _apply(cursor, commit, changes[0], now)
        return Committed(sql.moment(stamp), leased)
    written = {placed(change): _apply(cursor, commit, change, now) for change in sorted(changes, key=placed)}
    first = next((change for change in changes if change.lines), changes[0])
    return Committed(sql.moment(written[placed(first)][0]), written[placed(changes[0])][1])


def _landed(cursor: sqlite3.Cursor, commit: Commit) -> Committed | None:
    """The answer if one of its changes, and so all of them, was written before."""
    for change in commit.changes:
        row = _fetch(cursor, sql.GET_LINE, change.workflow, change.id, change.seq + 1) if change.lines else None
        if row is not None and (line := sql.line_of(row)).commit_id == commit.id:
            effects = _due(cursor, commit.changes[0], QUEUE)
            return Committed(line.at, effects if effects is not None and effects.token == commit.token else None)
    return None


def _apply(cursor: sqlite3.Cursor, commit: Commit, change: Change, now: datetime) -> tuple[int, Due | None]:
    """Do a change; its stamp, and the effects row if that is left leased to the committer."""
    stamp = _move(cursor, commit, change, sql.micros(now))
    effects, lease = None, change.lease
    if lease is not None:
        row = _due(cursor, change, lease.name)
        refusal = compared(row, lease)
        if refusal is not None:
            raise _Refused(refusal, dirty=change.head is not None)
        effects = row if lease.name == QUEUE else None
    if change.erase:
        cursor.execute(sql.ERASE_LINES, (change.workflow, change.id, change.seq))
    effects = _schedule(cursor, change, effects, now)
    return stamp, effects if effects is not None and effects.token == commit.token else None


def _move(cursor: sqlite3.Cursor, commit: Commit, change: Change, now: int) -> int:
    """Compare `seq`, replace the head, append the lines."""
    stamp = _compare_and_set(cursor, change, now)
    if stamp is None:
        raise _Refused(_key_seen(cursor, commit, change) or _CONFLICTED, dirty=False)
    try:
        for line in change.lines:
            cursor.execute(sql.INSERT_LINE, sql.line_row(line, stamp))
    except sqlite3.IntegrityError:
        seen = _key_seen(cursor, commit, change)
        if seen is None:
            raise
        raise _Refused(seen) from None
    return stamp


def _compare_and_set(cursor: sqlite3.Cursor, change: Change, now: int) -> int | None:
    """The stamp; None if the head is not at the expected `seq`."""
    head, seq = change.head, change.seq
    present: int
    changed: int
    if head is not None:
        if seq == 0:
            return now if cursor.execute(sql.INSERT_HEAD, sql.head_row(head, now)).rowcount else None
        if cursor.execute(sql.REPLACE_HEAD, sql.head_change(head, now, seq)).rowcount:
            return now
    found = _fetch(cursor, sql.PRESENT, change.workflow, change.id)
    present, changed = found if found is not None else (0, now)
    if present != seq:
        return None
    stamp = max(now, changed)
    if head is not None:  # clocks differ: it was changed later than now
        cursor.execute(sql.REPLACE_HEAD, sql.head_change(head, stamp, seq))
    return stamp


def _key_seen(cursor: sqlite3.Cursor, commit: Commit, change: Change) -> Duplicate | None:
    for line in change.lines:
        row = _fetch(cursor, sql.KEYED_LINE, change.workflow, change.id, line.key) if line.key is not None else None
        if row is not None and (known := sql.line_of(row)).commit_id != commit.id:
            return Duplicate(known)
    return None


def _schedule(cursor: sqlite3.Cursor, change: Change, effects: Due | None, now: datetime) -> Due | None:
    """Drop, put, hold. `effects` is the effects row if the change compared it; answers what became of it."""
    for name in change.drops:
        cursor.execute(sql.DROP_DUE, (change.workflow, change.id, name))
        effects = None if name == QUEUE else effects
    for put in change.puts:
        due = due_put(change, put, now)
        wrote = cursor.execute(sql.PUT_ABSENT if put.absent else sql.PUT_DUE, sql.due_row(due)).rowcount
        effects = due if put.name == QUEUE and wrote else effects
    if change.held is not None:
        cursor.execute(sql.HOLD_DUE, (change.held, change.workflow, change.id))
        effects = replace(effects, held=change.held) if effects is not None else None
    return effects


def _due(cursor: sqlite3.Cursor, change: Change, name: str) -> Due | None:
    row = _fetch(cursor, sql.GET_DUE, change.workflow, change.id, name)
    return sql.due_of(row) if row is not None else None


def _fetch(cursor: sqlite3.Cursor, statement: str, *values: object) -> sql.Row | None:
    rows: list[sql.Row] = cursor.execute(statement, values).fetchall()
    return rows[0] if rows else None


# --- due work ---------------------------------------------------------------------------------------


def claim(
    db: sqlite3.Connection,
    workflows: Mapping[str, int],
    token: str,
    lease: timedelta,
    limit: int,
    dead: Collection[str],
    now: datetime | None,
) -> list[Due]:
    """The whole of `Store.claim`. Raises `Held`."""
    begin(db)
    now = now or utcnow()
    until = now + lease
    rows: set[sql.Row] = set()
    for workflow, version in workflows.items():
        rows.update(db.execute(sql.RIPE_DUE, (workflow, sql.micros(now), version, limit)))
        for gone in dead:
            rows.update(db.execute(sql.ORPHAN_DUE, (workflow, gone, version, limit)))
    first = sorted((sql.due_of(row) for row in rows), key=partial(urgency, dead))[:limit]
    for row in first:
        db.execute(sql.LEASE_DUE, (token, sql.micros(until), row.workflow, row.id, row.name))
    end(db)
    return [replace(row, token=token, attempt=row.attempt + 1, at=until) for row in first]


def renew(
    db: sqlite3.Connection,
    token: str,
    rows: Collection[tuple[str, str, str]],
    lease: timedelta,
    now: datetime | None,
) -> Renewed:
    """The whole of `Store.renew`. Raises `Held`."""
    begin(db)
    now = now or utcnow()
    until = sql.micros(now + lease)
    lost = frozenset(row for row in rows if not db.execute(sql.RENEW_DUE, (until, *row, token)).rowcount)
    end(db)
    return Renewed(lost, now)
