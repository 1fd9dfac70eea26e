"""Opening a database file: its write-ahead log, its flushes, its schema."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from functools import partial
from time import monotonic, sleep

from workflow.errors import StoreError

from . import sql
from .link import code

MEMORY = ":memory:"


def open_writer(path: str, busy: float, patience: float) -> sqlite3.Connection:
    """A connection that writes. It waits `busy` seconds for others until the file is ready, then `patience`."""
    if sqlite3.sqlite_version_info < (3, 24):
        raise StoreError(f"SQLite {sqlite3.sqlite_version} is too old: 3.24 is needed (ON CONFLICT)")
    return _open(path, busy, partial(_prepare, path, patience))


def open_reader(path: str, busy: float) -> sqlite3.Connection:
    """A connection that reads."""
    return _open(path, busy, lambda db, _: _pragma(db, "query_only = ON"))


def _open(path: str, busy: float, prepare: Callable[[sqlite3.Connection, float], None]) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=busy, isolation_level=None)
    try:
        prepare(db, busy)
    except BaseException:
        db.close()
        raise
    return db


def _prepare(path: str, patience: float, db: sqlite3.Connection, busy: float) -> None:
    _log_ahead(path, db, monotonic() + busy)
    _pragma(db, "synchronous = FULL")
    _pragma(db, "fullfsync = ON")  # macOS: a plain fsync leaves the data in the drive's cache
    _migrate(path, db)
    _pragma(db, f"busy_timeout = {round(patience * 1000)}")


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
