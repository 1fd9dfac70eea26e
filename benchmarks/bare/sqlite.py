"""The bare limits on SQLite: the tables and indexes of our store, the two statements of a move.

Nothing is judged, encoded or kept beyond the expected `seq`. A transaction is `BEGIN IMMEDIATE`,
compare-and-set of the head, the line with its key, `COMMIT` with a flush.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from time import monotonic_ns
from typing import Any

import aiosqlite

from stores import sql

from .. import whole
from ..case import CURVE, GROUP, HOPS, LOOP, MANY, MOVES, SQLITE, Case, NotWhole, Stage
from ..pace import Lane, Pace, Sample, drive
from .group import Group
from .press import Row, row

MOVE = (
    "UPDATE head SET seq = ?, state = ?, status = 'running', context = 'null', context_seq = 1, top = ?, goal = 0, "
    "labels = '{}', reason = NULL, version = 1, changed_at = max(?, changed_at) "
    "WHERE workflow = ? AND id = ? AND seq = ?"
)
"""Compare-and-set of the head: every column that a move of ours writes."""
APPEND = (
    'INSERT INTO line (workflow, id, seq, kind, source, event, target, status, commit_id, "by", "key", context_seq, '
    "below, chain, version, at) VALUES (?, ?, ?, 'event', ?, ?, ?, 'running', ?, 'bare', ?, 1, ?, 0, 1, ?)"
)
"""The line; the unique indexes on seq and key are looked at."""
START = (
    "INSERT INTO head (workflow, id, seq, state, status, context, context_seq, top, goal, labels, version, "
    "started_at, changed_at) VALUES ('light', ?, 1, 'red', 'running', 'null', 1, 1, 0, '{}', 1, 0, 0)"
)
FIRST = (
    'INSERT INTO line (workflow, id, seq, kind, target, status, commit_id, "by", context_seq, context, below, chain, '
    "version, at) VALUES ('light', ?, 1, 'start', 'red', 'running', '0', 'bare', 1, 'null', 0, 0, 1, 0)"
)


def cases() -> list[Case]:
    """All bare limits on SQLite."""
    return [
        Case(SQLITE, LOOP, 1, MOVES, _loop),
        *(Case(SQLITE, HOPS, tasks, MOVES, partial(_hops, tasks)) for tasks in (1, MANY)),
        *(Case(SQLITE, GROUP, tasks, MOVES, partial(_group, tasks)) for tasks in CURVE),
    ]


# --- the database -----------------------------------------------------------------------------------


def connect(path: Path) -> sqlite3.Connection:
    """As our store's writer: write-ahead log, a flush at each commit."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    for setting in ("journal_mode = WAL", "synchronous = FULL", "fullfsync = ON"):
        db.execute(f"PRAGMA {setting}")
    return db


def create(path: Path, ids: Sequence[str]) -> sqlite3.Connection:
    """A new file with our store's tables and these lights."""
    db = connect(path)
    db.execute("BEGIN")
    for step in sql.STEPS:
        for statement in step:
            db.execute(statement)
    db.executemany(START, [(id,) for id in ids])
    db.executemany(FIRST, [(id,) for id in ids])
    db.execute("COMMIT")
    return db


def move(db: sqlite3.Connection, r: Row) -> None:
    """One transaction for one row."""
    db.execute("BEGIN IMMEDIATE")
    seq = r.seq + 1
    if db.execute(MOVE, (seq, r.target, seq, r.at, r.workflow, r.id, r.seq)).rowcount != 1:
        raise NotWhole(f"{r.id} was not at {r.seq}")
    db.execute(APPEND, (r.workflow, r.id, seq, r.source, r.event, r.target, r.commit_id, r.key, r.seq, r.at))
    db.execute("COMMIT")


def move_all(db: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """One transaction for all rows."""
    if len(rows) == 1:
        move(db, rows[0])
        return
    db.execute("BEGIN IMMEDIATE")
    moved = db.executemany(
        MOVE, [(r.seq + 1, r.target, r.seq + 1, r.at, r.workflow, r.id, r.seq) for r in rows]
    ).rowcount
    if moved != len(rows):
        raise NotWhole(f"{len(rows) - moved} lights were not where they were expected")
    db.executemany(
        APPEND,
        [(r.workflow, r.id, r.seq + 1, r.source, r.event, r.target, r.commit_id, r.key, r.seq, r.at) for r in rows],
    )
    db.execute("COMMIT")


# --- the cases --------------------------------------------------------------------------------------


async def _loop(stage: Stage, pace: Pace) -> Sample:
    """No thread, no task: the loop itself writes."""
    ids = ["light 0"]
    db = create(_new(stage), ids)
    numbers = count()

    async def press(n: int) -> None:
        move(db, row(ids[0], n, next(numbers)))

    ran = await drive([press], pace)
    return _verified(db, ids, ran.counts, ran.sample)


async def _hops(tasks: int, stage: Stage, pace: Pace) -> Sample:
    """Each commit is one function on aiosqlite's thread."""
    async with _opened(_new(stage), tasks) as (db, run):
        numbers = count()
        ids = _ids(tasks)

        def presser(id: str) -> Lane:
            return lambda n: run(move, db, row(id, n, next(numbers)))

        ran = await drive([presser(id) for id in ids], pace)
        return _verified(db, ids, ran.counts, ran.sample)


async def _group(tasks: int, stage: Stage, pace: Pace) -> Sample:
    """Commits share transactions, each transaction one function on aiosqlite's thread."""
    async with _opened(_new(stage), tasks) as (db, run):
        ids = _ids(tasks)
        group = grouped(db, run)
        numbers = count()

        def presser(id: str) -> Lane:
            return lambda n: group.commit(row(id, n, next(numbers)))

        ran = await drive([presser(id) for id in ids], pace)
        return _verified(db, ids, ran.counts, ran.sample)


Run = Callable[..., Awaitable[Any]]


def grouped(db: sqlite3.Connection, run: Run) -> Group[Row]:
    """A group commit on aiosqlite's thread."""
    return Group[Row](lambda rows: run(move_all, db, rows))


@asynccontextmanager
async def threaded(db: sqlite3.Connection) -> AsyncGenerator[Run]:
    """A way to run a function on aiosqlite's thread."""
    driver = await aiosqlite.Connection(lambda: db, 64)
    try:
        yield driver._execute  # noqa: SLF001  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType]  # as our store
    finally:
        await driver.close()


@asynccontextmanager
async def _opened(path: Path, tasks: int) -> AsyncGenerator[tuple[sqlite3.Connection, Run]]:
    db = create(path, _ids(tasks))
    async with threaded(db) as run:
        yield db, run


def _ids(tasks: int) -> list[str]:
    return [f"light {n}" for n in range(tasks)]


def _new(stage: Stage) -> Path:
    return stage.folder / f"bare-{monotonic_ns()}.db"


def _verified(db: sqlite3.Connection, ids: Sequence[str], counts: Sequence[int], sample: Sample) -> Sample:
    found = db.execute('SELECT id, seq, "key" FROM line ORDER BY id, seq').fetchall()
    heads = dict(db.execute("SELECT id, seq FROM head").fetchall())
    whole.presses(found, heads, dict(zip(ids, counts, strict=True)))
    return sample
