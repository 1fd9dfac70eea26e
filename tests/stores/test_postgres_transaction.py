"""Transactions of the user's on PostgreSQL: many moves at once, connections that are lent again, servers that change."""

from __future__ import annotations

import asyncio
import random
import socket
import string
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from psycopg import AsyncConnection, AsyncCursor, AsyncRawCursor, errors
from psycopg.rows import dict_row, tuple_row

from stores import PostgresStore, pg_write
from stores import pg_transaction as room
from tests.flows import E, flow
from tests.server import Server
from tests.storm import tell, terminated
from workflow import Conflict, Manager, Reentrant, StoreUnavailable
from workflow.record import Committed
from workflow.testing.conformance.rows import FLOW, ME, MINUTE, NOON, commit, move, queue
from workflow.testing.conformance.suite import done, loaded, one, seqs, started

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(fsync=False) as server:
        yield server


@pytest.fixture
def app(server: Server) -> str:
    """The url of a role in a database of the test's own."""
    return server.create_role("".join(random.choices(string.ascii_lowercase, k=12)))


@pytest.fixture
async def store(app) -> AsyncIterator[PostgresStore]:
    """Open, and lends one connection."""
    async with asyncio.timeout(22), PostgresStore(app, pool=1) as store:
        yield store


@pytest.fixture
async def manager(store) -> AsyncIterator[Manager[Any, Any, Any]]:
    async with Manager(flow(), store, work=False) as manager:
        yield manager


# --- at the same time -------------------------------------------------------------------------------


async def test_moves_at_the_same_time_do_not_undo_each_other(manager):
    """Some are repeats, whose writes are taken back: of the others nothing is lost, and settings stay the user's."""
    ids = [f"i-{n}" for n in range(20)]
    await asyncio.gather(*(manager.start(id) for id in ids))
    await asyncio.gather(*(manager.send(id, E.ADD, 5, key="seen") for id in ids[::2]))
    async with manager.store.transaction() as tx:
        calls = [manager.send(id, E.ADD, 5, key="seen", within=tx) for id in ids]
        calls += [manager.start(f"new-{n}", within=tx.connection if n % 2 else tx) for n in range(4)]
        heard = await asyncio.gather(*calls)
        shown = await (await tx.connection.execute("SHOW lock_timeout")).fetchone()
    assert shown == ("0",)
    assert [each.duplicate for each in heard] == [n % 2 == 0 for n in range(20)] + [False] * 4
    assert [(await manager.get(id)).context.n for id in ids] == [5] * 20
    assert [(await manager.get(f"new-{n}")).seq for n in range(4)] == [1] * 4


async def test_the_store_s_own_answers_do_not_undo_each_other(store):
    """Below the Manager, which looks before it writes: every answer is true at the end of the block."""
    ids = [f"i-{n}" for n in range(30)]
    for id in ids:
        await started(store, id)
    for id in ids[::3]:
        await done(store, move(id, 1, "key"))
    async with store.transaction() as tx:
        moves = [commit(move(id, 2 if n % 3 == 0 else 1, "key")) for n, id in enumerate(ids)]
        answers = await asyncio.gather(*(one(tx, each) for each in moves), *(tx.load(FLOW, [id]) for id in ids))
    written = [isinstance(answer, Committed) for answer in answers[:30]]
    assert written == [n % 3 != 0 for n in range(30)]
    assert [await seqs(store, id) for id in ids] == [[1, 2]] * 30


async def test_a_refused_move_leaves_the_user_s_rows_alone(store):
    """What he wrote beside it stays: nothing was written that had to be undone."""
    await started(store, "a")
    async with store.transaction() as tx:
        await tx.connection.execute("CREATE TABLE mine (n integer)")
        move_on = asyncio.Event()

        async def slowly(*args: Any) -> Any:
            answer = await pg_write.whole(*args)
            move_on.set()
            await asyncio.sleep(0.1)
            return answer

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(room, "whole", slowly)
            refused = asyncio.create_task(one(tx, commit(move("a", 7))))
            await move_on.wait()
            await tx.connection.execute("INSERT INTO mine VALUES (1)")
            assert not isinstance(await refused, Committed)
    async with store.transaction() as tx:
        assert await (await tx.connection.execute("SELECT n FROM mine")).fetchall() == [(1,)]


async def test_moves_that_are_cancelled_leave_the_transaction_usable(store):
    """At any moment: each is there whole or not at all, and others' moves and the user's rows are."""
    ids = [f"i-{n}" for n in range(60)]
    async with store.transaction() as tx:
        await tx.connection.execute("CREATE TABLE mine (n integer)")
        moving = [asyncio.create_task(one(tx, commit(move(id, 0)))) for id in ids]
        for each in moving[::2]:
            await asyncio.sleep(random.random() * 0.004)
            each.cancel()
        heard = await asyncio.gather(*moving, return_exceptions=True)
        await tx.connection.execute("INSERT INTO mine VALUES (1)")
    for id, answer in zip(ids, heard, strict=True):
        assert isinstance(answer, (Committed, asyncio.CancelledError)), answer
        if isinstance(answer, Committed):
            assert await seqs(store, id) == [1]


async def test_a_commit_that_others_stand_in_the_way_of(app):
    """Serializable blocks that fail at their end are told to do all of it again."""
    ready = [asyncio.Event(), asyncio.Event()]
    async with PostgresStore(app) as store, Manager(flow(), store, work=False) as manager:
        async with await AsyncConnection.connect(app, autocommit=True) as other:
            await other.execute("CREATE TABLE word (text text)")
        for n in range(2):
            await manager.start(f"i-{n}")

        async def block(n: int, *, moves: bool = True) -> None:
            async with store.transaction() as tx:
                await tx.connection.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
                await tx.connection.execute("SELECT count(*) FROM word")
                if moves:
                    await manager.send(f"i-{n}", E.ADD, 1, within=tx.connection if n else tx)
                ready[n].set()
                await ready[1 - n].wait()
                await tx.connection.execute("INSERT INTO word VALUES ('x')")

        heard = await asyncio.gather(block(0), block(1), return_exceptions=True)
        (refused,) = [each for each in heard if each is not None]
        assert isinstance(refused, (Conflict, errors.SerializationFailure)), refused
        if isinstance(refused, Conflict):
            assert (refused.id, refused.inside, refused.committed) == (f"i-{heard.index(refused)}", True, False)


async def test_a_commit_that_is_refused_is_a_conflict(manager):
    """Of the instance that was moved last; where none was moved it is trouble of the user's own."""
    failing = """
        CREATE TABLE word (text text);
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'raced' USING ERRCODE = '40001'; END $$;
        CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON word DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION refuse()"""
    await manager.start("a")

    async def block(*, moves: bool) -> None:
        async with manager.store.transaction() as tx:
            await tx.connection.execute("INSERT INTO word VALUES ('x')")
            if moves:
                await manager.send("a", E.ADD, 1, within=tx.connection)

    async with manager.store.transaction() as tx:
        await tx.connection.execute(failing)
    with pytest.raises(Conflict, match="whole block") as caught:
        await block(moves=True)
    assert (caught.value.id, caught.value.inside, caught.value.committed) == ("a", True, False)
    with pytest.raises(StoreUnavailable, match="raced") as refused:
        await block(moves=False)
    assert refused.value.committed is False
    assert (await manager.get("a")).seq == 1


# --- a connection that is lent again ----------------------------------------------------------------


async def test_a_guest_leaves_nothing_behind(store, app):
    """Settings, what is listened to, locks, temporary tables and psycopg's habits are those of a new connection."""
    async with store.transaction() as tx:
        pid, connection = tx.connection.info.backend_pid, tx.connection
        connection.row_factory, connection.cursor_factory = dict_row, AsyncRawCursor
        connection.prepare_threshold = None
        for statement in (
            "SET search_path = pg_temp",
            "SET default_transaction_isolation = serializable",
            "LISTEN somebody",
            "SELECT pg_advisory_lock(7)",
            "CREATE TEMP TABLE mine (n integer)",
            "DECLARE held CURSOR WITH HOLD FOR SELECT 1",
        ):
            await connection.execute(statement)
    async with store.transaction() as tx, await AsyncConnection.connect(app, autocommit=True) as fresh:
        assert tx.connection.info.backend_pid == pid, "another connection proves nothing"
        assert (tx.connection.row_factory, tx.connection.cursor_factory) == (tuple_row, AsyncCursor)
        assert tx.connection.prepare_threshold == fresh.prepare_threshold
        for question in (
            "SELECT name, setting FROM pg_settings WHERE name <> 'transaction_isolation' ORDER BY name",
            "SELECT pg_listening_channels()",
            "SELECT name FROM pg_cursors WHERE is_holdable",
            "SELECT current_setting('transaction_isolation'), to_regclass('mine')",
        ):
            mine, new = [await (await each.execute(question)).fetchall() for each in (tx.connection, fresh)]
            assert mine == new
        assert await (await fresh.execute("SELECT pg_try_advisory_lock(7)")).fetchone() == (True,)


@pytest.mark.parametrize("name", ["enumflow orders", "enumflow 0123456789abcdef0", "enumflow "])
async def test_an_application_s_name_that_looks_like_ours(manager, app, name):
    """It is not taken for our mark: who joined one transaction is not inside the next."""
    await manager.start("a")
    async with await AsyncConnection.connect(app, autocommit=True, application_name=name) as own:
        async with own.transaction():
            await manager.send("a", E.ADD, 1, within=own)
            with pytest.raises(Reentrant):
                await manager.send("a", E.ADD, 1)
        async with own.transaction():
            await own.execute("SELECT 1")
            await manager.send("a", E.ADD, 1)
    assert (await manager.get("a")).context.n == 2


# --- servers that change ----------------------------------------------------------------------------


async def test_a_server_that_may_be_written_again(store, server, app):
    """Connections that had become read-only are given up, those of writers, readers and guests."""
    await started(store, "a")
    tell(server, app, "ALTER ROLE {} SET default_transaction_read_only = on")

    async def inside() -> None:
        async with store.transaction() as tx:
            await tx.append([commit(move("a", 1))])

    async def by_hand() -> None:
        async with store.transaction() as tx:
            await tx.connection.execute("CREATE TABLE word ()")

    works = [lambda: done(store, move("a", 1)), lambda: store.claim({FLOW: 1}, ME, MINUTE, 1), inside, by_hand]
    await asyncio.to_thread(terminated, app, 1.0, 5000)
    for work in works:
        for _ in range(2):
            with pytest.raises((StoreUnavailable, errors.ReadOnlySqlTransaction)):
                await work()
    tell(server, app, "ALTER ROLE {} RESET default_transaction_read_only")
    await inside()
    await done(store, move("a", 2), move("b", 0))
    await done(store, move("a", 3))
    assert await store.claim({FLOW: 1}, ME, MINUTE, 1) == []
    await by_hand()


async def test_dead_connections_cost_no_transaction(app):
    """After a restart of the server the first block of each finds a new one."""
    async with PostgresStore(app, pool=4) as store:

        async def inside(n: int) -> None:
            async with store.transaction() as tx:
                await tx.append([commit(move(f"i-{n}", 0))])
                await asyncio.sleep(0.05)

        for turn in range(3):
            await asyncio.gather(*(inside(10 * turn + n) for n in range(4)))
            assert await asyncio.to_thread(terminated, app, 1.0, 5000) >= 4
        async with store.transaction() as tx:
            assert await seqs(tx, "i-3") == [1]


async def test_a_transaction_whose_end_is_cancelled_wakes_others(store, monkeypatch):
    """It may have been committed."""
    committing, end = asyncio.Event(), room._ended

    async def slowly(connection: Any, statement: Any, where: str) -> None:
        if statement == "COMMIT":
            committing.set()
            await asyncio.sleep(0.1)
        await end(connection, statement, where)

    async def inside() -> None:
        async with store.transaction() as tx:
            await tx.append([commit(move("a", 0))])

    monkeypatch.setattr(room, "_ended", slowly)
    waiting = asyncio.create_task(store.wait(20.0))
    moving = asyncio.create_task(inside())
    await committing.wait()
    assert not waiting.done()
    moving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await moving
    assert await waiting
    assert (await loaded(store, "a")).head.seq == 1


async def test_a_lease_beyond_all_calendars(store):
    """Refused before it is written: no one could read it."""
    late = datetime(9999, 12, 31, 23, 59, 30, tzinfo=UTC)
    await started(store, "a", queue(1, token=None))
    before = await loaded(store, "a")
    with pytest.raises(OverflowError):
        await store.claim({FLOW: 1}, ME, MINUTE, 10, (), late)
    with pytest.raises(OverflowError):
        await store.renew(ME, [], timedelta.max)
    assert await loaded(store, "a") == before
    assert len(await store.claim({FLOW: 1}, ME, MINUTE, 10, (), NOON + MINUTE)) == 1


# --- opening ----------------------------------------------------------------------------------------


async def test_an_opening_that_nobody_waits_for_any_more():
    """A server that never answers: the last one who goes takes the connecting with him."""
    with socket.socket() as hole:
        hole.bind(("127.0.0.1", 0))
        hole.listen(5)
        store = PostgresStore(f"host=127.0.0.1 port={hole.getsockname()[1]} dbname=x user=x")
        began = monotonic()
        other = asyncio.create_task(store.__aenter__())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await store.__aenter__()
        assert not other.done()
        other.cancel()
        with pytest.raises(asyncio.CancelledError):
            await other
        assert monotonic() - began < 4


def test_without_the_driver():
    """It is said how to get it, from what was missing."""
    script = (
        "import sys; sys.modules['psycopg'] = None\n"
        "try:\n    from stores import PostgresStore\n"
        "except ImportError as error:\n"
        "    assert type(error) is ImportError and isinstance(error.__cause__, ModuleNotFoundError), repr(error)\n"
        "    assert \"pip install 'enumflow[postgres]'\" in str(error), error\n"
        "else:\n    raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=50)
