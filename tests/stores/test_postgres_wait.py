"""How stores of several processes wake each other, and what a lost notification costs: time, nothing else."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection, sql

from stores import PostgresStore
from stores.pg_bell import APART
from workflow.testing.conformance.rows import commit, move
from workflow.testing.conformance.suite import done, seqs, started

SOON = 10
"""Seconds in which somebody is woken, far below the ceiling of his wait."""
NEVER = 3600.0


@pytest.fixture
async def near(postgres: str, schema: str) -> AsyncIterator[PostgresStore]:
    """The store that waits."""
    async with PostgresStore(postgres, schema=schema) as store:
        yield store


@pytest.fixture
async def far(postgres: str, schema: str, near: PostgresStore) -> AsyncIterator[PostgresStore]:
    """The one that commits."""
    async with PostgresStore(postgres, schema=schema) as store:
        yield store


@asynccontextmanager
async def woken(store: PostgresStore) -> AsyncGenerator[None]:
    """What is done in the block wakes who waits."""
    waiting = asyncio.create_task(store.wait(NEVER))
    await asyncio.sleep(2 * APART)  # what was told before is heard by now
    if waiting.done():
        waiting = asyncio.create_task(store.wait(NEVER))
        await asyncio.sleep(0)
    yield
    assert await asyncio.wait_for(waiting, SOON)


def listening(store: PostgresStore, url: str) -> set[int]:
    """The server's processes that listen for this store's schema."""
    assert store._links is not None
    query = "SELECT pid FROM pg_stat_activity WHERE query = %s"
    with psycopg.connect(url) as connection:
        return {pid for (pid,) in connection.execute(query, (f'LISTEN "{store._links.channel}"',))}


async def test_a_commit_elsewhere_is_heard(near, far):
    """Plain ones, and each that comes after."""
    for n in range(5):
        async with woken(near):
            await started(far, f"i-{n}")


async def test_a_block_of_the_store_s_is_heard_when_it_is_committed(near, far):
    """Not before: there would be nothing to see."""
    async with woken(near), far.transaction() as transaction:
        await transaction.append([commit(move("a", 0))])
        assert await seqs(near, "a") == []


async def test_a_transaction_of_the_user_s_is_heard(near, far, postgres):
    """Nobody tells the store when it is committed, so the notification is part of it."""
    async with await AsyncConnection.connect(postgres) as connection, woken(near):
        await far.joined(connection).append([commit(move("a", 0))])
        await connection.commit()
    assert await seqs(near, "a") == [1]


async def test_other_schemas_are_not_heard(near, postgres):
    """A store is woken by its own schema only."""
    async with PostgresStore(postgres, schema="somebody else's") as other:
        waiting = asyncio.create_task(near.wait(0.5))
        await asyncio.sleep(0)
        for n in range(3):
            await done(other, move(f"{id(waiting)}-{n}", 0))
        assert not await waiting
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier("somebody else's")))


async def test_a_lost_listener_costs_time_only(near, postgres, far):
    """Its connection is ended, again and again: what was committed meanwhile wakes who waits when it listens again."""
    async with asyncio.timeout(20):
        for n in range(3):
            before = listening(near, postgres)
            assert len(before) == 2
            async with woken(near):
                with psycopg.connect(postgres, autocommit=True) as connection:
                    for pid in before:
                        connection.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
                await started(far, f"i-{n}")
            while len(listening(near, postgres)) < 2:  # noqa: ASYNC110  # the server has its own pace
                await asyncio.sleep(0.01)
            assert not listening(near, postgres) & before
            async with woken(near):
                await done(far, move(f"i-{n}", 1))


# --- as few as need be ------------------------------------------------------------------------------


class Ear:
    """Hears what stores tell each other, and looks only when it hears something."""

    def __init__(self, connection: AsyncConnection[Any], store: PostgresStore) -> None:
        self.connection, self.store = connection, store
        self.heard: list[str] = []
        self.seen: list[int] = []

    async def listen(self) -> None:
        async for notification in self.connection.notifies():
            self.heard.append(notification.payload)
            self.seen = await seqs(self.store, "a")

    async def until_seen(self, seq: int) -> None:
        """A notification came after line `seq` was there."""
        async with asyncio.timeout(SOON):
            while seq not in self.seen:  # noqa: ASYNC110  # nothing but a notification changes it
                await asyncio.sleep(0.001)


@pytest.fixture
async def ear(postgres: str, near: PostgresStore) -> AsyncIterator[Ear]:
    """One that belongs to no store."""
    assert near._links is not None
    async with await AsyncConnection.connect(postgres, autocommit=True) as connection:
        await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(near._links.channel)))
        ear = Ear(connection, near)
        listening = asyncio.create_task(ear.listen())
        yield ear
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening


async def test_notifications_are_few_and_the_last_one_always_comes(far, ear):
    """However many commits there are a second, there are at most twenty notifications, and one after the last."""
    loop = asyncio.get_running_loop()

    async def commits(id: str) -> int:
        seq = 0
        while loop.time() < end:
            await done(far, move(id, seq))
            seq += 1
        return seq

    began, end = loop.time(), loop.time() + 1.0
    counts = await asyncio.gather(*(commits(id) for id in "abcdefgh"))
    await ear.until_seen(counts[0])
    assert sum(counts) > 100
    assert 2 <= len(ear.heard) <= (loop.time() - began) / APART + 2
    assert len(set(ear.heard)) == 1


async def test_what_follows_a_notification_at_once_is_told_later(far, ear):
    """A commit right behind another is not forgotten because it came too soon for a notification of its own."""
    for seq in range(0, 20, 2):
        await done(far, move("a", seq))
        await done(far, move("a", seq + 1))
        await ear.until_seen(seq + 2)


async def test_who_commits_and_leaves_has_told_it(postgres, schema, ear):
    """A store that is closed right after its commit has told the others, also if it had to wait for its turn to."""
    for seq in range(6):
        brief = PostgresStore(postgres, schema=schema)
        await brief.__aenter__()
        assert brief._links is not None
        async with brief._links.keeper._turn:  # as if it were renewing leases
            await done(brief, move("a", seq))
            closing = asyncio.create_task(brief.__aexit__(None, None, None))
            for _ in range(seq * 10):
                await asyncio.sleep(0)
        await closing
        await ear.until_seen(seq + 1)
