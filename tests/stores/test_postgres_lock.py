"""Other transactions stand in the way: nobody else is held up, and each hears what is his."""

from __future__ import annotations

import asyncio
import random
import string
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from psycopg import AsyncConnection, IsolationLevel, errors

from stores import PostgresStore, pg_link
from tests.flows import E, S, flow, story
from tests.server import Server
from workflow import AlreadyStarted, Busy, Conflict, Manager, StoreError, StoreUnavailable
from workflow.record import QUEUE, Committed, Conflicted, Lease
from workflow.store import outside
from workflow.testing.conformance.rows import FLOW, ME, MINUTE, commit, move, queue, touch
from workflow.testing.conformance.suite import done, loaded, one, seqs, started

LOCK = "SELECT FROM enumflow.head WHERE id = %s FOR UPDATE"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(fsync=False, settings={"deadlock_timeout": "200ms"}) as server:
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
    """With a hundred instances."""
    async with Manager(flow(), store) as manager:
        await asyncio.gather(*(manager.start(f"i-{n}") for n in range(100)))
        yield manager


# --- one connection, one transaction ----------------------------------------------------------------


async def test_a_pool_that_is_exhausted(app, monkeypatch):
    """Who wants a second transaction hears of it in time; sends without one go on."""
    monkeypatch.setattr(pg_link, "LENDING", 0.3)

    async def another(store: PostgresStore) -> None:
        outside()
        async with store.transaction():
            pytest.fail("there is but one connection")

    async with PostgresStore(app, pool=1) as store:
        await started(store, "a")
        async with asyncio.timeout(20), store.transaction() as transaction:
            refused = [asyncio.create_task(another(store)) for _ in range(3)]
            moving = [asyncio.create_task(done(store, move(f"i-{n}", 0))) for n in range(20)]
            await asyncio.wait(moving)
            await asyncio.gather(*moving)
            for task in refused:
                with pytest.raises(StoreUnavailable) as caught:
                    await task
                assert caught.value.committed is False
            await done(transaction, move("a", 1))
        async with store.transaction():
            assert await seqs(store, "a") == [1, 2]


async def test_a_pool_of_one_serves_many_that_send_inside(manager):
    """Sixteen tasks, each with its transaction, none of which needs a second connection."""

    async def transfer(n: int) -> None:
        async with manager.store.transaction() as transaction:
            for id in (f"i-{n}", f"i-{99 - n}", f"new-{n}"):
                await manager.send(id, E.ADD, 1, key="key", start=True, within=transaction)

    await asyncio.gather(*(transfer(n) for n in range(16)))
    for n in range(16):
        for id in (f"i-{n}", f"i-{99 - n}", f"new-{n}"):
            assert (await manager.get(id)).context.n == 1


async def test_no_verb_inside_a_transaction_takes_a_second_connection(manager, monkeypatch):
    """Not one that writes, nor one that reads."""

    async def refuse(*args: object) -> None:
        pytest.fail("a second connection")

    async with manager.store.transaction() as transaction:
        with monkeypatch.context() as patch:
            patch.setattr(pg_link.Pool, "lend", refuse)
            patch.setattr(pg_link.Wire, "use", refuse)
            await manager.start("new", within=transaction)
            await manager.send("i-1", E.ADD, 1, key="key", within=transaction)
            repeated = await manager.send("i-1", E.ADD, 1, key="key", within=transaction)
            assert repeated.duplicate
            for verb in (transaction.load("flow", ["new"]), transaction.history("flow", "new")):
                assert await verb
            assert await transaction.recall("flow", "i-1", "key")
            assert await transaction.lock("flow", "i-2", 0.0)
    assert await manager.state("new") is S.A


# --- heads that are held ------------------------------------------------------------------------------


async def test_a_transaction_that_holds_a_head_stalls_nobody_else(manager):
    """Its instance's senders wait, up to their timeouts; all others move on while it is held."""
    async with manager.store.transaction() as transaction:
        await manager.send("i-0", E.ADD, 1, within=transaction)
        hasty = asyncio.create_task(_add(manager, "i-0", timeout=0.3))
        await asyncio.sleep(0)
        patient = asyncio.create_task(_add(manager, "i-0"))
        for _ in range(5):
            await asyncio.gather(*[asyncio.create_task(_add(manager, f"i-{n}")) for n in range(1, 64)])
        with pytest.raises(Busy) as caught:
            await hasty
        assert caught.value.committed is False
        await asyncio.sleep(0.1)
        assert not patient.done()
    await patient
    assert [(await manager.get(f"i-{n}")).context.n for n in range(64)] == [2, *[5] * 63]


async def _add(manager: Manager[Any, Any, Any], id: str, timeout: float = 20.0) -> None:
    outside()
    await manager.send(id, E.ADD, 1, timeout=timeout)


async def test_a_start_that_another_transaction_has_open_stalls_nobody_else(app, manager):
    """Ten ids are being started elsewhere: whoever wants them waits, all others start and move on."""
    async with await AsyncConnection.connect(app) as other:
        for n in range(10):
            await manager.start(f"open-{n}", within=other)
        waiting = [asyncio.create_task(_start(manager, f"open-{n}")) for n in range(10)]
        for turn in range(3):
            mixed = [_add(manager, f"i-{n}") for n in range(60)] + [_start(manager, f"{turn}-{n}") for n in range(60)]
            await asyncio.gather(*map(asyncio.create_task, mixed))
        assert not any(task.done() for task in waiting)
        with pytest.raises(Busy):
            await asyncio.create_task(_start(manager, "open-3", timeout=0.2))
        await other.commit()
    heard = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(each, AlreadyStarted) for each in heard), heard


async def _start(manager: Manager[Any, Any, Any], id: str, timeout: float = 20.0) -> None:
    outside()
    await manager.start(id, timeout=timeout)


async def test_a_start_whose_rival_rolls_back(app, manager):
    """It was waiting, and is the first after all."""
    async with await AsyncConnection.connect(app) as other:
        await manager.start("open", within=other)
        waiting = asyncio.create_task(_start(manager, "open"))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await other.rollback()
    await waiting
    assert await story(manager, "open") == ["start"]


SLOW = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF new.id = 'slow' THEN PERFORM pg_sleep(0.4); END IF; RETURN new; END $$;
CREATE TRIGGER slow BEFORE UPDATE ON enumflow.head FOR EACH ROW EXECUTE FUNCTION slow()"""


async def test_a_row_that_is_renewed_while_a_group_is_written(app, store):
    """The group sees the row as it was when it began, but settles and leases it as it is."""
    ids = ["settled", "led on", "moved"]
    for id in ("slow", *ids):
        await started(store, id)
        await done(store, move(id, 1, None, owes=["one", "two"], puts=[queue(2, absent=True)]))
    lease = Lease(ME, 2, 0, 1)
    changes = [
        move("slow", 2),
        touch("settled", 2, lease=lease, drops=[QUEUE]),
        touch("led on", 2, lease=lease, puts=[queue(2, number=1)]),
        move("moved", 2, "key", lease=lease, drops=[QUEUE]),
    ]
    async with await AsyncConnection.connect(app, autocommit=True) as other:
        await other.execute(SLOW)
        write = store._use().batch._write
        group = asyncio.ensure_future(write(0, [commit(change) for change in changes], None))
        await asyncio.sleep(0.2)
        await store.renew(ME, [(FLOW, id, QUEUE) for id in ids], 9 * MINUTE)
        answers = await group
    now = [(await loaded(store, id)).effects for id in ids]
    for answer, row, goes in zip(answers[1:], now, (True, False, True), strict=True):
        assert (row is None or (row.number, row.attempt) == (1, 1)) == isinstance(answer, Committed), (answer, row)
        assert isinstance(answer, Committed) or (row is not None and row.number == 0)
        assert row is not None or goes


# --- deadlocks and serialization ----------------------------------------------------------------------


async def test_heads_locked_by_hand_in_the_opposite_order(app, manager):
    """Moves inside a transaction never wait in the server, so there is no deadlock: Busy, and it stays usable."""
    async with await AsyncConnection.connect(app) as other:
        await other.execute(LOCK, ["i-1"])
        async with manager.store.transaction() as transaction:
            await manager.send("i-2", E.ADD, 1, within=transaction)
            opposite = asyncio.create_task(other.execute(LOCK, ["i-2"]))
            with pytest.raises(Busy):
                await manager.send("i-1", E.ADD, 1, within=transaction, timeout=0.5)
            await manager.send("i-3", E.ADD, 1, within=transaction)
        await opposite
    assert [(await manager.get(f"i-{n}")).context.n for n in (1, 2, 3)] == [0, 1, 1]


async def test_a_deadlock_of_the_users_own_statements(app, manager):
    """One of the two is ended by the server; a multi-instance commit beside them waits for neither for ever."""
    async with await AsyncConnection.connect(app) as other:
        await other.execute(LOCK, ["i-1"])
        ended: list[Exception] = []
        moved = asyncio.Event()

        async def mine() -> None:
            async with manager.store.transaction() as transaction:
                await manager.send("i-2", E.ADD, 1, within=transaction)
                moved.set()
                await transaction.connection.execute(LOCK, ["i-1"])

        async def theirs() -> None:
            await moved.wait()
            await other.execute(LOCK, ["i-2"])
            await other.commit()

        beside = asyncio.create_task(one(manager.store, commit(move("i-1", 9), move("i-2", 9))))
        for result in await asyncio.gather(mine(), theirs(), return_exceptions=True):
            ended += [result] if isinstance(result, Exception) else []
        await other.rollback()
        assert await beside == Conflicted()
    assert [type(error) for error in ended] == [errors.DeadlockDetected]
    await manager.send("i-2", E.ADD, 1)
    assert await story(manager, "i-2") in (["start", "event"], ["start", "event", "event"])


@pytest.mark.parametrize("level", [IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE])
async def test_a_serialization_failure(app, manager, level):
    """The user's connection sees an old instance: Conflict, and the whole block again works."""
    async with await AsyncConnection.connect(app) as own:
        await own.set_isolation_level(level)
        await own.execute("SELECT FROM enumflow.head")
        await asyncio.create_task(_add(manager, "i-1"))
        with pytest.raises(Conflict) as caught:
            await manager.send("i-1", E.ADD, 1, within=own)
        assert caught.value.committed is False
        await own.rollback()
        await manager.send("i-1", E.ADD, 1, within=own)
        await own.commit()
    assert (await manager.get("i-1")).context.n == 2


async def test_a_serialization_failure_at_the_end(app, manager):
    """The user's COMMIT fails: nothing of the move is left, here or in memory."""
    async with await AsyncConnection.connect(app) as own, await AsyncConnection.connect(app) as other:
        for connection in (own, other):
            await connection.set_isolation_level(IsolationLevel.SERIALIZABLE)
            await connection.execute("CREATE TABLE IF NOT EXISTS word (text text)")
            await connection.commit()
        for connection, id in ((own, "i-1"), (other, "i-2")):
            await connection.execute("SELECT count(*) FROM word")
            await manager.send(id, E.ADD, 1, within=connection)
            await connection.execute("INSERT INTO word VALUES ('x')")
        await own.commit()
        with pytest.raises(errors.SerializationFailure):
            await other.commit()
    await asyncio.create_task(_add(manager, "i-2"))
    assert [(await manager.get(f"i-{n}")).context.n for n in (1, 2)] == [1, 1]
    assert await story(manager, "i-2") == ["start", "event"]


async def test_a_transaction_that_idles_too_long(manager):
    """The server ends it: a typed error for who goes on, nothing written, the pool heals."""

    async def idle() -> None:
        async with manager.store.transaction() as transaction:
            await manager.send("i-1", E.ADD, 1, within=transaction)
            await transaction.connection.execute("SET idle_in_transaction_session_timeout = '50ms'")
            await asyncio.sleep(0.3)
            with pytest.raises(StoreError) as caught:
                await manager.send("i-2", E.ADD, 1, within=transaction)
            assert caught.value.committed is False

    with pytest.raises(StoreError):
        await idle()
    async with manager.store.transaction() as transaction:
        await manager.send("i-1", E.ADD, 1, within=transaction)
    assert (await manager.get("i-1")).context.n == 1
