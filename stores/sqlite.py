"""Instances in one SQLite file, shared by the processes of one machine."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import NoReturn, Self, TypeVar, TypeVarTuple

from attrs import frozen

from workflow.clock import utcnow
from workflow.errors import StoreError, StoreUnavailable
from workflow.record import Answer, Commit, Committed, Due, Head, Line, Loaded, Locked, Page, Query, Renewed, Wake
from workflow.store import Transaction, enter, inside

from . import lite, seek, sql
from .batch import Batch
from .file import MEMORY, open_reader, open_writer
from .gate import Gate
from .hint import Hint
from .joint import PAUSE, Joint
from .link import Link
from .looks import Looks
from .rule import not_open, try_puts

T = TypeVar("T")
Args = TypeVarTuple("Args")

BEAT = 0.25
"""Seconds between two looks for other processes' commits while somebody waits."""
TICK = 20_000
"""Microseconds within which a second commit may leave the log as old as the first: files' clocks can be coarse."""
_LOCKED = Locked()


@frozen(eq=False)
class _Links:
    """All that one opening has."""

    writer: Link
    reader: Link
    guest: Link
    """For transactions of the user's."""
    batch: Batch
    looks: Looks[tuple[str, str], Loaded | None]
    gate: Gate
    """Writers of this process, or one transaction of the user's: nobody waits for it on a thread."""

    @property
    def shared(self) -> bool:
        """In memory there is one connection only: what a transaction has written, all would see."""
        return self.reader is self.guest

    async def close(self) -> None:
        """Finish what was handed in, then close."""
        await self.batch.landed()
        await self.looks.landed()
        closed = await asyncio.gather(
            *(link.close() for link in {self.reader, self.guest, self.writer}), return_exceptions=True
        )
        for error in closed:
            if error is not None:
                raise error


class SQLiteStore:
    """A store in the file `path`, or with ":memory:" in this process for as long as it is open.

    Made if it is not there. An answered commit is on disk (write-ahead log, flushed for each group of
    commits that came together). One connection writes, another reads, so that reads never wait for
    writes. `busy` is how long a verb waits while another process writes, or a transaction is open,
    before it raises `StoreUnavailable`.
    """

    def __init__(self, path: str | os.PathLike[str], *, busy: timedelta = timedelta(seconds=5)) -> None:
        self._path = os.fspath(path)
        self._busy = busy.total_seconds()
        self._log = Path(f"{os.path.realpath(self._path)}-wal") if self._path != MEMORY else None
        self._links: _Links | None = None
        self._opened = 0
        self._hint = Hint()
        self._held: lite.Held | None = None
        self._ends: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        """See `Store.__aenter__`. Raises `StoreError` for a file that cannot be used."""
        self._opened += 1
        if self._links is None:
            self._links = self._connect()
        try:
            await self._links.writer.open()
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
        writes = partial(open_writer, self._path, self._busy, lite.PATIENCE)
        writer = reader = guest = Link(self._path, writes)
        if self._path != MEMORY:
            reader = Link(self._path, partial(open_reader, self._path, self._busy))
            guest = Link(self._path, writes)
        batch = Batch(partial(self._fly, writer), patience=self._busy)
        return _Links(writer, reader, guest, batch, Looks(lambda places: reader.run(seek.load, places)), Gate())

    async def _leave(self) -> None:
        self._opened -= 1
        links = self._links
        if self._opened or links is None:
            return
        self._links = None
        self._hint.ring()
        await asyncio.shield(asyncio.create_task(links.close()))

    def _use(self) -> _Links:
        if self._links is None:
            raise not_open(self)
        return self._links

    async def _admitted(self, links: _Links, seconds: float, *, alone: bool = False) -> bool:
        """Wait for transactions of this process. On True the caller must leave the gate."""
        if not await links.gate.enter(seconds, alone=alone):
            return False
        if self._links is not links:  # closed meanwhile
            links.gate.leave()
            raise not_open(self)
        return True

    def _taken(self) -> StoreUnavailable:
        return StoreUnavailable(
            f"{self._path}: locked by a transaction of this process for over {self._busy} s; inside its block use "
            "the transaction's own verbs"
        )

    # --- writing ----------------------------------------------------------------------------------

    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        """See `Store.append`. Another process that writes is waited for `timeout` or `busy`."""
        links, hurried = self._use(), timeout is not None and timeout < self._busy
        seconds = self._busy if timeout is None else min(timeout, self._busy)
        until = monotonic() + seconds
        if len(commits) != 1:
            if not commits:
                return ()
            for commit in commits:
                try_puts(commit)  # first: of a call that holds a time beyond all calendars nothing is written
        if not await self._admitted(links, seconds):
            if hurried:
                return [_LOCKED] * len(commits)
            raise self._taken()
        try:
            answers = await links.batch.append(commits, max(0.0, until - monotonic()))
        finally:
            links.gate.leave()
        if not hurried and _LOCKED in answers:
            self._give_up(answers)
        return answers

    def _give_up(self, answers: Sequence[Answer]) -> NoReturn:
        """The caller had the patience to wait as long as the store does."""
        committed = None if any(isinstance(answer, Committed) for answer in answers) else False
        held = self._held
        raise StoreUnavailable(f"{self._path}: {held}", committed) from held and held.__cause__

    async def _fly(
        self, link: Link, writer: int, commits: Sequence[Commit], timeout: float | None
    ) -> Sequence[Answer | None]:
        patience = lite.PATIENCE if timeout is None else min(timeout, lite.PATIENCE)
        try:
            return await link.run(lite.append, commits, patience)
        except lite.Held as held:
            self._held = held
            return [None] * len(commits)
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
        return await self._write(lite.claim, dict(workflows), token, lease, limit, tuple(dead), now)

    async def renew(
        self, token: str, rows: Collection[tuple[str, str, str]], lease: timedelta, now: datetime | None = None
    ) -> Renewed:
        """See `Store.renew`."""
        return await self._write(lite.renew, token, tuple(rows), lease, now)

    async def _write(self, work: Callable[[sqlite3.Connection, *Args], T], *args: *Args) -> T:
        links, until = self._use(), monotonic() + self._busy
        if not await self._admitted(links, self._busy):
            raise self._taken()
        try:
            while True:
                try:
                    return await links.writer.run(work, *args)
                except lite.Held:
                    if monotonic() > until:
                        raise
                    await asyncio.sleep(PAUSE)
        finally:
            links.gate.leave()

    # --- together with the user's own rows --------------------------------------------------------

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Transaction]:
        """See `Transactional.transaction`. `tx.connection` is an `aiosqlite.Connection`.

        From its first moment on it holds the write lock of the file: other writers wait. Raises
        `StoreUnavailable` if another holds it for `busy`.
        """
        links, until = self._use(), monotonic() + self._busy
        if inside(self):
            raise StoreError("a transaction of this store is open here: use that one, they cannot be nested")
        if not await self._admitted(links, self._busy, alone=True):
            raise self._taken()
        joint = Joint(self, links.guest)
        try:
            # Callers who have gone may have left something on its way.
            await links.batch.landed()
            await links.looks.landed()
            await joint.begin(until)
            enter(joint)
            yield joint
        except BaseException:
            with suppress(StoreError):  # the connection is gone, and what was written in it
                await self._end(links, joint, joint.roll_back)
            raise
        await self._end(links, joint, joint.commit)

    def joined(self, connection: object) -> Transaction:
        """See `Transactional.joined`: always a TypeError."""
        raise TypeError("SQLite takes part only in transactions that it began: use `async with store.transaction()`")

    async def _end(self, links: _Links, joint: Joint, how: Callable[[], Awaitable[None]]) -> None:
        """In a task of its own: a caller who is cancelled must not leave the file locked."""
        joint.open = False

        async def ending() -> None:
            try:
                await how()
            finally:
                links.gate.leave()
                self._hint.ring()

        task = asyncio.create_task(ending())
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)
        await asyncio.shield(task)

    # --- reading ----------------------------------------------------------------------------------

    async def load(self, workflow: str, ids: Sequence[str], *, rows: bool = False) -> Sequence[Loaded | None]:
        """See `Store.load`."""
        places = [(workflow, id) for id in ids]
        if rows:
            return await self._ask(seek.load_rows, places)
        links = self._use()
        return await self._look(links, links.looks.ask, places)

    async def history(self, workflow: str, id: str, after: int = 0, limit: int | None = None) -> Sequence[Line]:
        """See `Store.history`."""
        return await self._ask(seek.history, workflow, id, after, limit)

    async def recall(self, workflow: str, id: str, key: str) -> Line | None:
        """See `Store.recall`."""
        return await self._ask(seek.recall, workflow, id, key)

    async def find(self, query: Query) -> Sequence[Head]:
        """See `Store.find`. Indexed by workflow and status; other filters cost what they pass over."""
        return await self._ask(seek.find, query)

    async def read(self, cursor: str | None = None, limit: int = 1000) -> Page:
        """See `Store.read`."""
        return await self._ask(seek.read, cursor, limit)

    async def next_due(self, workflows: Mapping[str, int], now: datetime | None = None) -> Wake:
        """See `Store.next_due`."""
        return await self._ask(seek.next_due, dict(workflows), now)

    async def _ask(self, work: Callable[[sqlite3.Connection, *Args], T], *args: *Args) -> T:
        links = self._use()
        return await self._look(links, links.reader.run, work, *args)

    async def _look(self, links: _Links, ask: Callable[[*Args], Awaitable[T]], *args: *Args) -> T:
        """Only at what is committed."""
        if not links.shared:
            return await ask(*args)
        if links.gate.alone is asyncio.current_task():
            raise StoreError("inside its block a transaction in memory is to be read by its own verbs")
        if not await self._admitted(links, self._busy):
            raise self._taken()
        try:
            return await ask(*args)
        finally:
            links.gate.leave()

    async def wait(self, timeout: float) -> bool:
        """See `Store.wait`. Other processes are noticed within `BEAT`, without a query."""
        self._use()
        deadline, seen = monotonic() + timeout, self._tide()
        fresh = seen is not None and abs(sql.micros(utcnow()) - seen[0] // 1000) < TICK
        while True:
            left = max(0.0, deadline - monotonic())
            if await self._hint.wait(min(left, BEAT)) or self._tide() != seen or fresh:
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
