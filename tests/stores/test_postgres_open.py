"""Opening a store on PostgreSQL: what can be wrong with the way there, and many who open at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import psycopg
import pytest

from stores import PostgresStore, pg_tables
from tests.server import Server
from tests.storm import nothing_leaks, tell
from workflow.errors import StoreError, StoreUnavailable
from workflow.testing.conformance.rows import FLOW, move
from workflow.testing.conformance.suite import done, loaded, seqs, started


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(fsync=False) as server:
        yield server


@pytest.fixture
def app(server: Server) -> str:
    """The url of a role of the test's own, no superuser."""
    return server.create_role(f"app_{uuid4().hex}")


@pytest.fixture(autouse=True)
async def _nothing_leaks() -> AsyncIterator[None]:
    """No socket and no task outlives a test."""
    async with nothing_leaks():
        yield


@pytest.mark.parametrize(
    "wrong",
    [
        ("host=/tmp/pg", "host=/tmp/nowhere/pg"),
        ("@/app", "@/no_app"),
        ("//app", "//no_app"),
        ("port=5432", "port=5433"),
        ("host=/tmp/", "host=127.0.0.1&ignored=/tmp/"),
    ],
    ids=["host", "database", "role", "port", "option"],
)
async def test_a_url_that_leads_nowhere(app, wrong):
    """An error in time, by three callers at once."""
    url = app.replace("%2F", "/").replace(*wrong)
    assert url != app.replace("%2F", "/")
    async with asyncio.timeout(20):
        store = PostgresStore(url)
        failed = await asyncio.gather(*(store.__aenter__() for _ in range(3)), return_exceptions=True)
    assert all(isinstance(error, StoreError) and error.committed is False for error in failed), failed
    with pytest.raises(RuntimeError, match="async with"):
        await store.load(FLOW, ["a"])


async def test_a_wrong_password(server, app):
    """Refused, and not with the password in the message."""
    hba = server.home / "data" / "pg_hba.conf"
    before = hba.read_text()
    tell(server, app, "ALTER ROLE {} PASSWORD 'right'")
    hba.write_text(before.replace("trust", "scram-sha-256").replace("# ", "local all postgres trust\n# ", 1))
    tell(server, app, "SELECT pg_reload_conf()")
    try:
        await asyncio.sleep(0.3)
        with pytest.raises(StoreError, match="password authentication failed") as caught:
            await PostgresStore(app.replace("@", ":very-wrong@")).__aenter__()
        assert "very-wrong" not in str(caught.value)
        async with PostgresStore(app.replace("@", ":right@")) as store:
            await started(store, "a")
            assert ":right" not in repr(store)
    finally:
        hba.write_text(before)
        tell(server, app, "SELECT pg_reload_conf()")


async def test_a_server_that_comes_later(app, server):
    """The same store object opens when there is something to open."""
    store = PostgresStore(app)
    await asyncio.to_thread(server.stop)
    try:
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await store.__aenter__()
    finally:
        await asyncio.to_thread(server.start)
    async with store:
        await started(store, "a")


async def test_a_schema_that_may_not_be_made(server, app):
    """The role's trouble, no passing one: and one made for it is taken."""
    tell(server, app, "GRANT CONNECT ON DATABASE postgres TO {}")
    url = app.replace(app[app.index("@/") : app.index("?")], "@/postgres")
    name = uuid4().hex
    store = PostgresStore(url, schema=name)
    with pytest.raises(StoreError, match="permission denied") as caught:
        await store.__aenter__()
    assert not isinstance(caught.value, StoreUnavailable)
    tell(server, app, "CREATE SCHEMA {} AUTHORIZATION {}", name)
    async with store:
        await started(store, "a")


async def test_many_that_open_a_new_schema_at_once(app, server):
    """One makes it, even if that takes a while, the others wait for it."""
    with psycopg.connect(app) as slow:  # as if the first were a slow one
        slow.execute(pg_tables.LOCK_SCHEMA.replace("$1", "'\"enumflow\"'").encode())
        stores = [PostgresStore(app, pool=1) for _ in range(8)]
        opening = asyncio.gather(*(store.__aenter__() for store in stores))
        await asyncio.sleep(0.3)
        assert not opening.done()
    await opening
    await asyncio.gather(*(started(store, f"i-{n}") for n, store in enumerate(stores)))
    await asyncio.gather(*(store.__aexit__(None, None, None) for store in stores))


async def test_an_opening_that_is_cancelled(app):
    """At any moment; nothing stays open, and the next opening works."""
    store = PostgresStore(app)
    for pause in (0, 0.001, 0.003, 0.006, 0.01, 0.02):
        opening = asyncio.ensure_future(store.__aenter__())
        await asyncio.sleep(pause)
        if opening.cancel():
            with pytest.raises(asyncio.CancelledError):
                await opening
        else:
            await store.__aexit__(None, None, None)
    async with store:
        await started(store, "a")


def test_a_store_may_serve_one_loop_after_another(app):
    """Nothing in it belongs to an event loop."""
    store = PostgresStore(app)

    async def use(seq: int) -> None:
        async with store, store:
            await done(store, move("a", seq))
            assert (await loaded(store, "a")).head.seq == seq + 1
            async with store.transaction() as transaction:
                assert await seqs(transaction, "a") == [*range(1, seq + 2)]

    for seq in range(3):
        asyncio.run(use(seq))
