"""PostgreSQL refuses, is away or runs out of something: typed errors in time, nothing leaked, and back to work."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar
from uuid import uuid4

import pytest
from psycopg import AsyncConnection

from stores import PostgresStore, pg_link
from tests.server import Server
from tests.storm import nothing_leaks, tell, terminated
from workflow.errors import StoreError, StoreUnavailable
from workflow.record import Committed, Locked
from workflow.testing.conformance.rows import FLOW, ME, MINUTE, commit, move
from workflow.testing.conformance.suite import done, loaded, one, seqs, started

T = TypeVar("T")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(fsync=False) as server:
        yield server


@pytest.fixture
def app(server: Server) -> str:
    """The url of a role of the test's own, no superuser."""
    return server.create_role(f"app_{uuid4().hex}")


@pytest.fixture
async def store(app) -> AsyncIterator[PostgresStore]:
    """Open, with an instance in it."""
    async with asyncio.timeout(22), PostgresStore(app) as store:
        await started(store, "a")
        yield store


@pytest.fixture(autouse=True)
async def _nothing_leaks() -> AsyncIterator[None]:
    """No socket and no task outlives a test."""
    async with nothing_leaks():
        yield


async def insisting(work: Callable[[], Awaitable[T]]) -> T:
    """What it answers, but for the news that a connection had been ended."""
    while True:
        try:
            return await work()
        except StoreUnavailable as error:
            if error.committed is False:
                raise


# --- too many connections -----------------------------------------------------------------------------


async def test_too_many_connections(server, app, monkeypatch):
    """At opening and later: no connection is no outcome in doubt, and a new one is made when there is room."""
    monkeypatch.setattr(pg_link, "LENDING", 0.5)
    store = PostgresStore(app)
    tell(server, app, "ALTER ROLE {} CONNECTION LIMIT 0")
    with pytest.raises(StoreUnavailable, match="too many connections"):
        await store.__aenter__()
    tell(server, app, "ALTER ROLE {} CONNECTION LIMIT 2")
    async with store:
        for work in (store.append([commit(move("a", 0))]), store.load(FLOW, ["a"]), store.transaction().__aenter__()):
            with pytest.raises(StoreUnavailable) as caught:
                await work
            assert caught.value.committed is False
        tell(server, app, "ALTER ROLE {} CONNECTION LIMIT -1")
        await started(store, "a")
        await asyncio.gather(*(loaded(store, "a") for _ in range(9)))


# --- refusals of the server -------------------------------------------------------------------------


async def test_a_role_that_may_only_read(server, app, store):
    """As on a server that became a standby: it may become the primary again."""
    tell(server, app, "ALTER ROLE {} SET default_transaction_read_only = on")
    assert await asyncio.to_thread(terminated, app, 1.0, 5000) >= 2
    async with await AsyncConnection.connect(app) as other:  # the server's part is done
        assert await (await other.execute("SHOW transaction_read_only")).fetchone() == ("on",)
    first = commit(move("a", 1))
    for work in (lambda: one(store, first), lambda: store.claim({FLOW: 1}, ME, MINUTE, 1)):
        heard: object = (await asyncio.gather(insisting(work), return_exceptions=True))[0]
        assert isinstance(heard, StoreUnavailable), heard
        assert "read-only" in str(heard)
        assert heard.committed is False
    assert await seqs(store, "a") == [1]
    tell(server, app, "ALTER ROLE {} RESET default_transaction_read_only")
    assert isinstance(await one(store, first), Committed), "the connections that could not write are given up"
    assert await seqs(store, "a") == [1, 2]


async def test_a_standby(app, store, server):
    """Nothing can be written there: it cannot even be opened."""
    with server.standby() as standby:
        url = app.replace(str(server.home).replace("/", "%2F"), str(standby.home).replace("/", "%2F"))
        with pytest.raises(StoreUnavailable, match="read-only") as caught:
            await PostgresStore(url).__aenter__()
    assert caught.value.committed is False
    assert await seqs(store, "a") == [1]


async def test_a_statement_timeout_of_the_role(server, app, store):
    """What the server cut off is not written, and is told so."""
    tell(server, app, "ALTER ROLE {} SET statement_timeout = '20ms'")
    async with PostgresStore(app) as hurried, await AsyncConnection.connect(app) as other:
        await done(hurried, move("a", 1))
        await other.execute("LOCK TABLE enumflow.line")
        for work in (one(hurried, commit(move("a", 2))), hurried.history(FLOW, "a"), hurried.load(FLOW, ["a"])):
            with pytest.raises(StoreUnavailable, match="statement timeout") as caught:
                await work
            assert caught.value.committed is False
        await other.rollback()
        await done(hurried, move("a", 2))
    assert await seqs(store, "a") == [1, 2, 3]


async def test_a_table_that_is_locked(app, store):
    """By DDL or a dump of somebody's: a commit waits until its timeout, a read is told at once."""
    async with await AsyncConnection.connect(app) as other:
        await other.execute("LOCK TABLE enumflow.line")
        assert await store.append([commit(move("a", 1))], timeout=0.3) == [Locked()]
        patient = asyncio.ensure_future(store.append([commit(move("a", 1))], timeout=20.0))
        with pytest.raises(StoreUnavailable):
            await store.history(FLOW, "a")
        assert not patient.done()
        await other.rollback()
        assert isinstance((await patient)[0], Committed)
    assert await seqs(store, "a") == [1, 2]


async def test_a_table_that_is_gone(app, store):
    """No passing trouble; and nothing is in doubt."""
    async with await AsyncConnection.connect(app) as other:
        await other.execute("ALTER TABLE enumflow.due RENAME TO gone")
        await other.commit()
        for work in (one(store, commit(move("a", 1), move("b", 0))), store.load(FLOW, ["a"])):
            with pytest.raises(StoreError, match="does not exist") as caught:
                await work
            assert caught.value.committed is False
            assert not isinstance(caught.value, StoreUnavailable)
        await other.execute("ALTER TABLE enumflow.gone RENAME TO due")
        await other.commit()
    await done(store, move("a", 1), move("b", 0))
    assert await seqs(store, "b") == [1]


# --- callers that go away -----------------------------------------------------------------------------


async def test_callers_that_are_cancelled(store):
    """In the middle of anything: each commit is whole or absent, no connection is lost, the store works on."""
    ids = [f"i-{n}" for n in range(12)]
    await asyncio.gather(*(started(store, id) for id in ids))
    commits = {id: commit(move(id, 1, "key")) for id in ids}

    async def inside() -> None:
        async with store.transaction() as transaction:
            await transaction.connection.execute("SELECT 1")
            await transaction.append([commit(move(random.choice(ids), 9))])

    async def call(n: int) -> None:
        id = ids[n % len(ids)]
        verbs = (
            lambda: one(store, commits[id]),
            lambda: store.load(FLOW, ids),
            lambda: store.claim({FLOW: 1}, ME, MINUTE, 10),
            lambda: store.renew(ME, [(FLOW, id, "effects")], MINUTE),
            lambda: store.history(FLOW, id),
            inside,
        )
        await verbs[n % len(verbs)]()

    for _ in range(20):
        calls = [asyncio.ensure_future(call(n)) for n in range(60)]
        for each in random.sample(calls, 40):
            await asyncio.sleep(random.random() * 0.003)
            each.cancel()
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            assert answer is None or isinstance(answer, asyncio.CancelledError), answer
    for id in ids:
        assert isinstance(await one(store, commits[id]), Committed)
        assert await seqs(store, id) == [1, 2]
    links = store._use()
    for pool, size in ((links.readers, 4), (links.guests, 8)):
        lent = [await pool.lend() for _ in range(size)]
        for connection in lent:
            await pool.take_back(connection)


async def test_closing_finishes_what_was_handed_in(app):
    """Whoever waits for an answer gets it."""
    store = PostgresStore(app)
    await store.__aenter__()
    writing = [asyncio.ensure_future(one(store, commit(move(f"i-{n}", 0)))) for n in range(100)]
    waiting = asyncio.ensure_future(store.wait(60.0))
    await asyncio.sleep(0)
    await asyncio.wait_for(store.__aexit__(None, None, None), 20)
    assert all(isinstance(answer, Committed) for answer in await asyncio.gather(*writing))
    await asyncio.wait_for(waiting, 20)
    async with store:
        assert all(await store.load(FLOW, [f"i-{n}" for n in range(100)]))


async def test_closing_while_the_server_is_away(app, server):
    """Ends in time, and raises nothing."""
    store = PostgresStore(app)
    await store.__aenter__()
    await started(store, "a")
    await asyncio.to_thread(server.stop, "immediate")
    try:
        writing = asyncio.ensure_future(one(store, commit(move("a", 1))))
        await asyncio.sleep(0)
        await asyncio.wait_for(store.__aexit__(None, None, None), 20)
        with pytest.raises(StoreUnavailable):
            await writing
    finally:
        await asyncio.to_thread(server.start)
