"""A transaction of SQLite that moves and the user's own rows share."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TypeVar, TypeVarTuple

import aiosqlite

from workflow.errors import StoreError
from workflow.record import Answer, Commit, Line, Loaded
from workflow.store import Store

from . import lite, seek
from .link import Link, gone

T = TypeVar("T")
Args = TypeVarTuple("Args")

ENDED = "the transaction was ended inside its block: leave COMMIT, ROLLBACK and closing to the end of the block"
PAUSE = 0.01
"""Seconds between two tries for the lock that another process holds."""


class Joint:
    """See `workflow.store.Transaction`. It holds the file's write lock: nobody else can move anything."""

    def __init__(self, store: Store, link: Link) -> None:
        self.store = store
        self.open = False
        self._link = link
        self._connection: aiosqlite.Connection | None = None

    @property
    def connection(self) -> aiosqlite.Connection:
        """The connection, for the user's own statements."""
        if self._connection is None:
            raise RuntimeError("the transaction has not begun")
        return self._connection

    async def begin(self, until: float) -> None:
        """Wait for other processes until that time (monotonic). Raises `StoreUnavailable`."""
        while True:
            self._connection = await self._link.open()
            try:
                await self._link.part(lite.begin)
            except lite.Held as held:
                if held.outdated:
                    self._link.forget()
                elif monotonic() > until:
                    raise
                else:
                    await asyncio.sleep(PAUSE)
            else:
                self.open = True
                return

    async def commit(self) -> None:
        """End it. Raises `StoreError` if that was done before."""
        if gone(self.connection):
            raise StoreError(ENDED, committed=None)
        await self._link.run(_commit)

    async def roll_back(self) -> None:
        """End it, or what there is of it."""
        await self._link.run(_roll_back)

    async def lock(self, workflow: str, id: str, timeout: float) -> bool:
        """See `Transaction.lock`."""
        await self._part(_nothing)
        return True

    async def load(self, workflow: str, ids: Sequence[str], *, rows: bool = False) -> Sequence[Loaded | None]:
        """See `Transaction.load`."""
        return await self._part(seek.peek_rows if rows else seek.peek, [(workflow, id) for id in ids])

    async def history(self, workflow: str, id: str, after: int = 0, limit: int | None = None) -> Sequence[Line]:
        """See `Transaction.history`."""
        return await self._part(seek.history, workflow, id, after, limit)

    async def recall(self, workflow: str, id: str, key: str) -> Line | None:
        """See `Transaction.recall`."""
        return await self._part(seek.recall, workflow, id, key)

    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        """See `Transaction.append`."""
        return await self._part(_append, tuple(commits))

    async def _part(self, work: Callable[[sqlite3.Connection, *Args], T], *args: *Args) -> T:
        if not self.open:
            raise StoreError("the transaction is over")
        return await self._link.part(_plainly, work, args)


# --- on the connection's thread ---------------------------------------------------------------------


def _plainly(db: sqlite3.Connection, work: Callable[[sqlite3.Connection, *Args], T], args: tuple[*Args]) -> T:
    """With plain rows, whatever the user made of his."""
    if not db.in_transaction:
        raise StoreError(ENDED)
    kept = db.row_factory, db.text_factory
    _plain(db)
    try:
        return work(db, *args)
    finally:
        db.row_factory, db.text_factory = kept


def _plain(db: sqlite3.Connection) -> None:
    db.row_factory, db.text_factory = None, str


def _nothing(db: sqlite3.Connection) -> None:
    """Only to hear whether the transaction is still there."""


def _append(db: sqlite3.Connection, commits: Sequence[Commit]) -> list[Answer]:
    return [lite.saved(db, commit) for commit in commits]


def _commit(db: sqlite3.Connection) -> None:
    _plain(db)
    if not db.in_transaction:
        raise StoreError(ENDED, committed=None)
    lite.end(db)


def _roll_back(db: sqlite3.Connection) -> None:
    _plain(db)
    if db.in_transaction:
        db.execute("ROLLBACK")
