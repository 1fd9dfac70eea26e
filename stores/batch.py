"""All that writes: a list of commits, claims or renewals in one transaction of SQLite.

These functions run on the writer's thread. `append` takes a list so that what queues while one
transaction is flushed can go out together in the next.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from time import monotonic

from msgspec.structs import replace

from workflow.clock import utcnow
from workflow.record import (
    QUEUE,
    Answer,
    Change,
    Commit,
    Committed,
    Conflicted,
    Due,
    Duplicate,
    Locked,
    Renewed,
)

from . import sql
from .link import code, translated
from .rule import compared, due_put, placed

_KNOWN = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL)
"""Ways for COMMIT to fail after which the transaction is surely rolled back."""


class _Refused(Exception):  # no error: it carries an answer out of the transaction
    def __init__(self, answer: Answer) -> None:
        super().__init__(answer)
        self.answer = answer


# --- transactions -----------------------------------------------------------------------------------


def _begin(db: sqlite3.Connection, busy: float, deadline: float | None) -> bool:
    """Take the write lock within `busy` seconds; False if `deadline` (monotonic) passed before."""
    left = busy if deadline is None else max(0.0, deadline - monotonic())
    hurried = left < busy
    try:
        if hurried:
            _patience(db, left)
        db.execute(sql.BEGIN)
    except sqlite3.OperationalError as error:
        if hurried and code(error) == sqlite3.SQLITE_BUSY:
            return False
        raise
    finally:
        if hurried:
            _patience(db, busy)
    return True


def _patience(db: sqlite3.Connection, seconds: float) -> None:
    db.execute(f"PRAGMA busy_timeout = {round(seconds * 1000)}")


def _end(db: sqlite3.Connection) -> None:
    """COMMIT. If that fails, what was written is either rolled back or unknown."""
    try:
        db.execute("COMMIT")
    except sqlite3.Error as error:
        committed = False if code(error) in _KNOWN else None
        raise translated(error, "COMMIT failed", committed=committed) from error


# --- commits ----------------------------------------------------------------------------------------


def append(
    db: sqlite3.Connection, commits: Sequence[Commit], busy: float, deadline: float | None = None
) -> list[Answer]:
    """The whole of `Store.append`: one transaction, one flush, an answer for each commit."""
    if not _begin(db, busy, deadline):
        return [Locked() for _ in commits]
    if len(commits) == 1 and len(commits[0].changes) == 1:
        answers = [_attempt(db, commits[0], undo="ROLLBACK")]
    else:
        answers = [_saved(db, commit) for commit in commits]
    if db.in_transaction:
        _end(db)
    return answers


def _saved(db: sqlite3.Connection, commit: Commit) -> Answer:
    """A commit that can be undone alone."""
    db.execute("SAVEPOINT commit_")
    answer = _attempt(db, commit, undo="ROLLBACK TO commit_")
    db.execute("RELEASE commit_")
    return answer


def _attempt(db: sqlite3.Connection, commit: Commit, *, undo: str) -> Answer:
    try:
        return _committed(db, commit)
    except _Refused as refused:
        db.execute(undo)  # first: the commit's own half must not pass for one that landed before
        return _landed(db, commit) or refused.answer


def _committed(db: sqlite3.Connection, commit: Commit) -> Committed:
    now = commit.now or utcnow()
    written = {placed(change): _apply(db, commit, change, now) for change in sorted(commit.changes, key=placed)}
    first = next((change for change in commit.changes if change.lines), commit.changes[0])
    leased = written[placed(commit.changes[0])][1]
    return Committed(sql.moment(written[placed(first)][0]), leased)


def _landed(db: sqlite3.Connection, commit: Commit) -> Committed | None:
    """The answer if one of its changes, and so all of them, was written before."""
    for change in commit.changes:
        row = _fetch(db, sql.GET_LINE, change.workflow, change.id, change.seq + 1) if change.lines else None
        if row is not None and (line := sql.line_of(row)).commit_id == commit.id:
            effects = _effects(db, commit.changes[0])
            return Committed(line.at, effects if effects is not None and effects.token == commit.token else None)
    return None


def _apply(db: sqlite3.Connection, commit: Commit, change: Change, now: datetime) -> tuple[int, Due | None]:
    """Do a change; its stamp, and the effects row if that is left leased to the committer."""
    stamp = _move(db, commit, change, sql.micros(now))
    effects = None
    if change.lease is not None:
        effects = _effects(db, change)
        refusal = compared(effects, change.lease)
        if refusal is not None:
            raise _Refused(refusal)
    effects = _schedule(db, change, effects, now)
    return stamp, effects if effects is not None and effects.token == commit.token else None


def _move(db: sqlite3.Connection, commit: Commit, change: Change, now: int) -> int:
    """Compare `seq`, replace the head, append the lines."""
    stamp = _compare_and_set(db, change, now)
    if stamp is None:
        raise _Refused(_key_seen(db, commit, change) or Conflicted())
    try:
        for line in change.lines:
            db.execute(sql.INSERT_LINE, sql.line_row(line, stamp))
    except sqlite3.IntegrityError:
        seen = _key_seen(db, commit, change)
        if seen is None:
            raise
        raise _Refused(seen) from None
    return stamp


def _compare_and_set(db: sqlite3.Connection, change: Change, now: int) -> int | None:
    """The stamp; None if the head is not at the expected `seq`."""
    if change.head is None:
        seq, changed = _fetch(db, sql.PRESENT, change.workflow, change.id) or (0, now)
        return max(now, changed) if seq == change.seq else None
    if change.seq == 0:
        return now if db.execute(sql.INSERT_HEAD, sql.head_row(change.head, now)).rowcount else None
    replaced = db.execute(sql.REPLACE_HEAD, sql.head_change(change.head, now, change.seq)).fetchall()
    return replaced[0][0] if replaced else None


def _key_seen(db: sqlite3.Connection, commit: Commit, change: Change) -> Duplicate | None:
    for line in change.lines:
        row = _fetch(db, sql.KEYED_LINE, change.workflow, change.id, line.key) if line.key is not None else None
        if row is not None and (known := sql.line_of(row)).commit_id != commit.id:
            return Duplicate(known)
    return None


def _schedule(db: sqlite3.Connection, change: Change, effects: Due | None, now: datetime) -> Due | None:
    """Drop, put, hold. `effects` is the row that the change compared; answers what became of it."""
    for name in change.drops:
        db.execute(sql.DROP_DUE, (change.workflow, change.id, name))
        effects = None if name == QUEUE else effects
    for put in change.puts:
        due = due_put(change, put, now)
        wrote = db.execute(sql.PUT_ABSENT if put.absent else sql.PUT_DUE, sql.due_row(due)).rowcount
        effects = due if put.name == QUEUE and wrote else effects
    if change.held is not None:
        db.execute(sql.HOLD_DUE, (change.held, change.workflow, change.id))
        effects = replace(effects, held=change.held) if effects is not None else None
    return effects


def _effects(db: sqlite3.Connection, change: Change) -> Due | None:
    row = _fetch(db, sql.GET_DUE, change.workflow, change.id, QUEUE)
    return sql.due_of(row) if row is not None else None


def _fetch(db: sqlite3.Connection, statement: str, *values: object) -> sql.Row | None:
    rows: list[sql.Row] = db.execute(statement, values).fetchall()
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
    busy: float,
) -> list[Due]:
    """The whole of `Store.claim`."""
    _begin(db, busy, None)
    now = now or utcnow()
    until = now + lease
    rows: set[sql.Row] = set()
    for workflow, version in workflows.items():
        rows.update(db.execute(sql.RIPE_DUE, (workflow, sql.micros(now), version, limit)))
        for gone in dead:
            rows.update(db.execute(sql.ORPHAN_DUE, (workflow, gone, version, limit)))
    first = sorted((sql.due_of(row) for row in rows), key=_time)[:limit]
    for row in first:
        db.execute(sql.LEASE_DUE, (token, sql.micros(until), row.workflow, row.id, row.name))
    _end(db)
    return [replace(row, token=token, attempt=row.attempt + 1, at=until) for row in first]


def renew(
    db: sqlite3.Connection,
    token: str,
    rows: Collection[tuple[str, str, str]],
    lease: timedelta,
    now: datetime | None,
    busy: float,
) -> Renewed:
    """The whole of `Store.renew`."""
    _begin(db, busy, None)
    now = now or utcnow()
    until = sql.micros(now + lease)
    lost = frozenset(row for row in rows if not db.execute(sql.RENEW_DUE, (until, *row, token)).rowcount)
    _end(db)
    return Renewed(lost, now)


def _time(row: Due) -> tuple[datetime, str, str, str]:
    return row.at, row.workflow, row.id, row.name
