"""A SQLite connection on aiosqlite's thread, and its errors in the words of the contract."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from typing import TypeVar, TypeVarTuple

import aiosqlite

from workflow.errors import StoreError, StoreUnavailable

T = TypeVar("T")
Args = TypeVarTuple("Args")

_DRIVER = (sqlite3.Error, UnicodeError, OverflowError)
"""What the driver raises; the last two for values that no SQLite text or integer can hold."""
_PASSING = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_INTERRUPT,
        sqlite3.SQLITE_PROTOCOL,
    }
)
"""Errors whose cause may go away by itself."""


def code(error: BaseException) -> int:
    """SQLite's primary result code; 0 for an error that is not SQLite's."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def translated(error: BaseException, what: str, *, committed: bool | None = False) -> StoreError:
    """The error of the contract that says what the driver's says."""
    kind = StoreUnavailable if code(error) in _PASSING else StoreError
    return error if isinstance(error, StoreError) else kind(f"{what}: {error}", committed)


class Link:
    """Runs functions on one connection, one at a time, in the order in which they were handed in.

    A function once begun runs to its end, whatever becomes of its caller. The connection is opened
    at the first use, and never again after `close`.
    """

    def __init__(self, name: str, connect: Callable[[], sqlite3.Connection]) -> None:
        self._name = name
        self._connect = connect
        self._driver: aiosqlite.Connection | None = None
        self._db: sqlite3.Connection | None = None
        self._failure: Exception | None = None
        self._opening: asyncio.Task[aiosqlite.Connection] | None = None
        self._closed = False

    async def run(self, work: Callable[[sqlite3.Connection, *Args], T], *args: *Args) -> T:
        """What `work(connection, *args)` returns. The driver's errors come as `StoreError`. A transaction
        that is open afterwards, by an error, is rolled back."""
        driver = self._driver
        if driver is None or self._db is None:
            driver = await self.open()
        return await _hop(driver, self._alone, work, args)

    async def part(self, work: Callable[[sqlite3.Connection, *Args], T], *args: *Args) -> T:
        """The same as a part of a transaction, which stays open. Raises `StoreUnavailable` where the
        connection, and so the transaction, is gone."""
        driver = self._driver
        if driver is None or gone(driver):
            raise StoreUnavailable(f"{self._name}: the connection of the transaction was closed")
        return await _hop(driver, self._work, work, args)

    async def open(self) -> aiosqlite.Connection:
        """The connection, to be used as it is."""
        driver = self._driver
        if driver is not None and self._db is not None and not gone(driver):
            return driver
        if self._closed:
            raise StoreUnavailable(f"{self._name}: closed")
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(self._opening)

    def forget(self) -> None:
        """The next use opens another connection."""
        self._db = None

    async def close(self) -> None:
        """Finish what was handed in, close, and end the thread; also if the caller is cancelled."""
        self._closed = True
        await asyncio.shield(asyncio.create_task(self._close()))

    async def _close(self) -> None:
        opening = self._opening
        if opening is not None:
            await asyncio.wait((opening,))
            opening.exception()  # its caller heard of it, or is gone
        driver, self._driver = self._driver, None
        if driver is not None:
            await driver.close()

    async def _open(self) -> aiosqlite.Connection:
        """In a task of its own: half an opening would leave aiosqlite's thread behind."""
        try:
            broken, self._driver = self._driver, None
            if broken is not None:
                await broken.close()
            driver = await aiosqlite.Connection(self._made, 64)
            failure, self._failure = self._failure, None
            if failure is not None:
                await driver.close()
                raise translated(failure, self._name) from failure
            self._driver = driver
            return driver
        finally:
            self._opening = None

    def _made(self) -> sqlite3.Connection:
        """A connection. An error is kept: raised here, it would leave aiosqlite's thread behind."""
        try:
            self._db = self._connect()
        except (*_DRIVER, StoreError) as error:
            self._failure = error
            return sqlite3.connect(":memory:")
        return self._db

    def _work(self, work: Callable[[sqlite3.Connection, *Args], T], args: tuple[*Args]) -> T:
        try:
            if self._db is None:
                raise StoreUnavailable(f"{self._name}: the connection broke and is being opened again")
            return work(self._db, *args)
        except _DRIVER as error:
            raise translated(error, self._name) from error

    def _alone(self, work: Callable[[sqlite3.Connection, *Args], T], args: tuple[*Args]) -> T:
        try:
            return self._work(work, args)
        finally:
            if self._db is not None and self._db.in_transaction:
                try:
                    self._db.rollback()
                except sqlite3.Error:
                    self._db = None  # beyond repair: the next use opens another connection


def gone(driver: aiosqlite.Connection) -> bool:
    """Whether somebody closed it."""
    try:
        _ = driver.in_transaction
    except ValueError:
        return True
    return False


async def _hop(driver: aiosqlite.Connection, run: Callable[..., T], *args: object) -> T:
    """The driver offers a hop to its thread for each statement; a whole transaction in one hop is only to
    be had by the method that all of these use."""
    execute: Callable[..., Awaitable[T]] = driver._execute  # noqa: SLF001  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType, reportUnknownVariableType]
    try:
        return await execute(run, *args)
    except ValueError as error:
        if gone(driver):
            raise StoreUnavailable("the connection was closed") from error
        raise
