"""A store in memory that has transactions, one at a time: what tests of `within` need and no more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from copy import deepcopy
from datetime import datetime, timedelta

from stores import MemoryStore
from workflow.errors import StoreError
from workflow.record import Answer, Commit, Due, Line, Loaded, Locked, Renewed
from workflow.store import Store, Transaction, enter

DATA = ("_instances", "_ids", "_feed", "_agendas")


class Shadow:
    """A copy of all there is, written instead of it."""

    def __init__(self, store: ShadowStore) -> None:
        self._store = store
        self.open = True
        self.copy = MemoryStore()
        self.copy._opened = 1
        for name in DATA:
            setattr(self.copy, name, deepcopy(getattr(store, name)))

    @property
    def connection(self) -> MemoryStore:
        return self.copy

    @property
    def store(self) -> Store:
        return self._store

    async def lock(self, workflow: str, id: str, timeout: float) -> bool:
        return True

    async def load(self, workflow: str, ids: Sequence[str], *, rows: bool = False) -> Sequence[Loaded | None]:
        return await self.copy.load(workflow, ids, rows=rows)

    async def history(self, workflow: str, id: str, after: int = 0, limit: int | None = None) -> Sequence[Line]:
        return await self.copy.history(workflow, id, after, limit)

    async def recall(self, workflow: str, id: str, key: str) -> Line | None:
        return await self.copy.recall(workflow, id, key)

    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        return await self.copy.append(commits, timeout=timeout)


class ShadowStore(MemoryStore):
    """While a transaction is open everybody else who would write waits for its end."""

    shadow: type[Shadow] = Shadow

    def __init__(self) -> None:
        super().__init__()
        self._turn = asyncio.Lock()
        self._open: Shadow | None = None

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Transaction]:
        async with self._turn:
            self._open = shadow = self.shadow(self)
            enter(shadow)
            try:
                yield shadow
                self.keep(shadow)
            except BaseException:
                self.drop(shadow)
                raise
            finally:
                shadow.open, self._open = False, None

    def joined(self, connection: object) -> Transaction:
        if not isinstance(connection, MemoryStore):
            raise TypeError(f"{connection!r} is no connection")
        shadow = self._open
        if shadow is None or shadow.copy is not connection:
            raise StoreError("no transaction is open on this connection")
        enter(shadow)
        return shadow

    def keep(self, shadow: Shadow) -> None:
        for name in DATA:
            setattr(self, name, getattr(shadow.copy, name))
        self._hint.ring()

    def drop(self, shadow: Shadow) -> None:
        pass

    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        self._check()
        try:
            async with asyncio.timeout(timeout):
                await self._turn.acquire()
        except TimeoutError:
            return [Locked() for _ in commits]
        try:
            return await super().append(commits, timeout=timeout)
        finally:
            self._turn.release()

    async def claim(
        self,
        workflows: Mapping[str, int],
        token: str,
        lease: timedelta,
        limit: int,
        dead: Collection[str] = (),
        now: datetime | None = None,
    ) -> Sequence[Due]:
        async with self._turn:
            return await super().claim(workflows, token, lease, limit, dead, now)

    async def renew(
        self, token: str, rows: Collection[tuple[str, str, str]], lease: timedelta, now: datetime | None = None
    ) -> Renewed:
        async with self._turn:
            return await super().renew(token, rows, lease, now)
