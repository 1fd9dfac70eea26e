"""What every part of the suite uses: the store under test and a few short ways to use it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import TypeAlias

from workflow.record import Answer, Change, Commit, Committed, Due, Line, Loaded, Put
from workflow.store import Store, Transaction

from .rows import FLOW, ME, MINUTE, NOON, commit, move

Book: TypeAlias = Store | Transaction
"""Where lines are written and read."""


class Suite:
    """Base of all parts. See `StoreConformance`."""

    lacks: frozenset[str] = frozenset()

    async def make(self) -> Store:
        """A new store without any data, not opened."""
        raise NotImplementedError

    async def reopen(self, store: Store) -> Store:
        """Another store object, not opened, on the data of `store`, which may still be open."""
        raise NotImplementedError

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[Store]:
        """A new store, open."""
        async with await self.make() as store:
            yield store


async def one(store: Book, commit: Commit) -> Answer:
    """The answer to this commit, appended alone."""
    (answer,) = await store.append([commit])
    return answer


async def done(store: Book, *changes: Change, token: str = ME, now: datetime | None = NOON) -> Committed:
    """Commit these changes, which must succeed."""
    answer = await one(store, commit(*changes, token=token, now=now))
    assert isinstance(answer, Committed), answer
    return answer


async def started(store: Book, id: str, *puts: Put, workflow: str = FLOW, now: datetime | None = NOON) -> Committed:
    """Start an instance, with these due rows."""
    return await done(store, move(id, 0, workflow=workflow, puts=puts), now=now)


async def loaded(store: Book, id: str, workflow: str = FLOW) -> Loaded:
    """The instance, which must be there."""
    (found,) = await store.load(workflow, [id])
    assert found is not None, f"{id!r} is not there"
    return found


async def timers(store: Book, id: str, workflow: str = FLOW) -> dict[str, Due]:
    """All due rows of the instance by name, in order."""
    (found,) = await store.load(workflow, [id], rows=True)
    assert found is not None, f"{id!r} is not there"
    return {row.name: row for row in found.rows}


async def seqs(store: Book, id: str, workflow: str = FLOW) -> list[int]:
    """Numbers of the instance's lines."""
    return [line.seq for line in await store.history(workflow, id)]


async def claimed(
    store: Store,
    now: datetime,
    *,
    token: str = ME,
    limit: int = 100,
    workflows: Mapping[str, int] | None = None,
    lease: timedelta = MINUTE,
    dead: Collection[str] = (),
) -> Sequence[Due]:
    """Claim what is due at `now`."""
    known = {FLOW: 1} if workflows is None else workflows
    return await store.claim(known, token, lease, limit, dead, now)


async def names(store: Store, now: datetime, dead: Collection[str] = ()) -> list[str]:
    """Names of the rows that a claim at `now` takes, in its order."""
    return [row.name for row in await claimed(store, now, dead=dead)]


async def feed(store: Store, cursor: str | None = None, limit: int = 1000) -> tuple[list[Line], str]:
    """The feed from `cursor` until it is dry, and the cursor there."""
    lines: list[Line] = []
    while True:
        page = await store.read(cursor, limit)
        lines.extend(page.transitions)
        cursor = page.cursor
        if not page.transitions and not page.behind:
            return lines, cursor
