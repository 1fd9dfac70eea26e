"""PostgresStore behind a pooler that gives each transaction another connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import pytest
from psycopg import AsyncConnection

from stores import PostgresStore, pg_link, pg_sql
from stores import postgres as room
from stores.pg_tables import SETTINGS
from tests.flows import Ctx, E, Log, S, flow, quiet, story
from tests.pooler import Pooler
from workflow import Manager
from workflow.errors import StoreError
from workflow.record import Committed
from workflow.store import Store
from workflow.testing.conformance import StoreConformance
from workflow.testing.conformance.rows import commit, move
from workflow.testing.conformance.suite import feed, one, started


@pytest.fixture
async def pooler(postgres: str) -> AsyncIterator[Pooler]:
    """Few connections for all, each with a stranger's leavings."""
    async with Pooler(postgres, size=6) as pooler:
        yield pooler


class TestBehindAPooler(StoreConformance):
    """Every promise of a store is kept."""

    @pytest.fixture(autouse=True)
    async def behind(self, pooler: Pooler) -> None:
        self._url = pooler.url

    async def make(self) -> Store:
        return PostgresStore(self._url, schema=uuid4().hex)

    async def reopen(self, store: Store) -> Store:
        assert isinstance(store, PostgresStore)
        return PostgresStore(store._url, schema=store._schema.name.strip('"'), pooler=True)


def pooled(store: PostgresStore) -> bool | None:
    """Does it know that there is one?"""
    assert store._links is not None
    return store._links.source.pooler


async def test_a_pooler_is_noticed_or_told_of(pooler, postgres, schema):
    """By the server's process id, which it does not know; who says that there is one is believed."""
    for url, said, known in (
        (pooler.url, None, True),
        (pooler.url, True, True),
        (postgres, None, False),
        (postgres, False, False),
        (postgres, True, True),
    ):
        async with PostgresStore(url, schema=schema, pooler=said) as store:
            assert pooled(store) is known
            await started(store, uuid4().hex)


async def test_many_tasks_in_two_managers_on_few_connections(pooler, schema):
    """Hundreds of concurrent sends with hooks: each counts once, nothing waits for ever."""
    log = Log()
    spec = flow(on_enter={S.B: log.hook("b")})
    one, two = (PostgresStore(pooler.url, schema=schema) for _ in range(2))
    async with asyncio.timeout(20), Manager(spec, one) as m, Manager(spec, two) as n:
        await asyncio.gather(*(m.send(f"i-{i}", E.GO, key="go", start=Ctx(i)) for i in range(100)))
        again = await asyncio.gather(*(n.send(f"i-{i}", E.GO, key="go", start=Ctx(i)) for i in range(100)))
        assert all(done.duplicate for done in again)
        await asyncio.gather(*(way.send("i-0", E.ADD, 1, timeout=15) for way in (m, n) for _ in range(10)))
        assert (await m.get("i-0")).context == Ctx(20)
        assert len(await story(n, "i-0")) == 22
        assert len(log) == 100
        async with one.transaction() as tx:
            await asyncio.gather(*(n.send(f"i-{i}", E.ADD, 1) for i in range(1, 50)))
            await m.send("i-0", E.ADD, 1, within=tx)
        assert (await n.get("i-0")).context == Ctx(21)
        assert quiet(m)
        assert quiet(n)


async def test_nothing_is_left_in_a_session(pooler, schema):
    """No setting, no prepared statement, no LISTEN, no lock: the next transaction may be anybody's."""
    stores = [PostgresStore(pooler.url, schema=schema) for _ in range(2)]
    async with AsyncExitStack() as stack:
        for store in stores:
            await stack.enter_async_context(store)
        for n in range(12):  # psycopg would prepare by now
            await asyncio.gather(*(one(store, commit(move(f"i-{n}-{i}", 0))) for i, store in enumerate(stores)))
            await asyncio.gather(*(feed(store) for store in stores))
            async with stores[0].transaction() as transaction:
                await transaction.append([commit(move(f"i-{n}", 0))])
        for found in await everywhere(pooler, _LEFT, size=6):
            assert found == (0, 0, 0, 0), found


_LEFT = f"""
SELECT (SELECT count(*) FROM pg_settings WHERE source = 'session' AND name IN ({", ".join(f"'{s}'" for s in SETTINGS)})),
       (SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_listening_channels()),
       (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory')"""


async def everywhere(pooler: Pooler, query: str, size: int) -> list[tuple[Any, ...]]:
    """The same question to each of the pooler's connections."""
    async with AsyncExitStack() as stack:
        found: dict[int, tuple[Any, ...]] = {}
        for _ in range(size):
            connection = await AsyncConnection.connect(pooler.url, prepare_threshold=None)
            await stack.enter_async_context(connection)  # a transaction, and so its connection, until all were asked
            pid = await (await connection.execute("SELECT pg_backend_pid()")).fetchone()
            row = await (await connection.execute(query.encode())).fetchone()
            assert pid is not None
            assert row is not None
            found[pid[0]] = row
        assert len(found) == size
        return list(found.values())


async def test_settings_hold_in_each_transaction(pooler, postgres, schema):
    """Whichever connection a statement comes to, it is planned and isolated as it must be."""
    async with PostgresStore(pooler.url, schema=schema) as store:
        assert store._links is not None
        names = [*SETTINGS, "transaction_isolation"]
        query = f"SELECT {', '.join(f'current_setting({name!r})' for name in names)}, pg_backend_pid()"
        rows = [(await store._links.readers.run(query.encode(), ()))[0] for _ in range(12)]
        assert len({row[-1] for row in rows}) > 1
        direct = pg_link.Wire(pg_link.Source(postgres, pooler=False))
        try:
            ((*expected, _),) = await direct.run(query.encode(), ())
        finally:
            await direct.drop()
        for row in rows:
            assert row[:-1] == tuple(expected)


async def test_a_failed_statement_leaves_its_connection_usable(pooler, schema):
    """An error in the middle of what is sent at once ends that transaction, not the connection."""
    async with PostgresStore(pooler.url, schema=schema) as store:
        assert store._links is not None
        for _ in range(12):
            with pytest.raises(StoreError, match="division by zero") as e:
                await store._links.readers.run(b"SELECT 1 / 0", ())
            assert (type(e.value), e.value.committed) == (StoreError, False)
        await started(store, "a")
        assert len((await feed(store))[0]) == 1


async def test_commits_elsewhere_are_noticed_by_looking(pooler, schema, monkeypatch):
    """Nobody can be heard, so `wait` looks: it answers when another store has committed, and else at its ceiling."""
    monkeypatch.setattr(room, "BEAT", 0.05)
    looks: list[bytes] = []
    run = pg_link.Pool.run

    async def seen(pool: Any, statement: bytes, *args: Any, **more: Any) -> Any:
        looks.append(statement)
        return await run(pool, statement, *args, **more)

    monkeypatch.setattr(pg_link.Pool, "run", seen)
    async with PostgresStore(pooler.url, schema=schema) as near, PostgresStore(pooler.url, schema=schema) as far:
        waiting = asyncio.create_task(near.wait(20))
        await asyncio.sleep(0.12)
        assert isinstance(await one(far, commit(move("a", 0))), Committed)
        assert await asyncio.wait_for(waiting, 10)
        assert near._links is not None
        assert looks.count(near._schema[pg_sql.TIDE]) >= 2
        assert near._links.bell._listener is None or near._links.bell._listener.done()


async def test_a_wait_of_its_own_process_is_not_delayed(pooler, schema, monkeypatch):
    """What this store commits itself wakes its waiters at once."""
    monkeypatch.setattr(room, "BEAT", 3600.0)
    async with PostgresStore(pooler.url, schema=schema) as store:
        waiting = asyncio.create_task(store.wait(3600))
        await asyncio.sleep(0.05)
        await started(store, "a")
        assert await asyncio.wait_for(waiting, 10)


async def test_what_strangers_leave_does_not_matter(pooler, schema):
    """Sessions that are serializable and plan as they like: the store's own transactions are as they must be."""
    for name, value in (
        ("default_transaction_isolation", "serializable"),
        ("lock_timeout", "1ms"),
        ("datestyle", "SQL"),
    ):
        await everywhere(pooler, f"SELECT set_config('{name}', '{value}', false)", size=6)
    async with PostgresStore(pooler.url, schema=schema) as store:
        assert store._links is not None
        found = await store._links.readers.run(b"SELECT current_setting('transaction_isolation')", ())
        assert found == [("read committed",)]
        await asyncio.gather(*(started(store, f"i-{n}") for n in range(50)))
        assert len((await feed(store))[0]) == 50
