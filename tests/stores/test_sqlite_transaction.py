"""Moves in SQLite together with the user's own rows: both or neither, and nobody waits on a thread."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from contextvars import copy_context
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from stores import SQLiteStore
from workflow.errors import StoreError, StoreUnavailable
from workflow.record import QUEUE, Committed, Conflicted, Duplicate, Locked, Query
from workflow.store import Transaction, Transactional, inside
from workflow.testing.conformance.rows import FLOW, ME, MINUTE, NOON, commit, move, queue, timer, touch
from workflow.testing.conformance.suite import done, feed, loaded, names, one, seqs, started

ROOT = Path(__file__).parents[2]
SOON, LONG = timedelta(milliseconds=100), timedelta(seconds=30)
ENDED = "was ended inside its block"
CLEAN = copy_context()
"""The context of a task that is in no transaction."""


@pytest.fixture(params=["file", "memory"])
async def store(request, tmp_path) -> AsyncGenerator[SQLiteStore]:
    path = tmp_path / "orders.db" if request.param == "file" else ":memory:"
    async with SQLiteStore(path, busy=LONG) as store:
        await started(store, "a")
        async with store.transaction() as tx:
            await tx.connection.execute("CREATE TABLE ledger (id INTEGER PRIMARY KEY, note TEXT UNIQUE)")
        yield store


async def wrote(tx: Transaction, *notes: str) -> None:
    """The user's own rows."""
    for note in notes:
        await tx.connection.execute("INSERT INTO ledger (note) VALUES (?)", (note,))


async def notes(store: SQLiteStore) -> list[str]:
    """What is in the user's table."""
    async with store.transaction() as tx:
        return [note for (note,) in await tx.connection.execute_fetchall("SELECT note FROM ledger ORDER BY id")]


async def moved(tx: Transaction, id: str, seq: int, *keys: str) -> None:
    """A move in the transaction, which must succeed."""
    (answer,) = await tx.append([commit(move(id, seq, *keys))])
    assert isinstance(answer, Committed), answer


async def soon(text: str, tasks: Sequence[asyncio.Future[Any]]) -> None:
    """Nobody is done yet, however often others had their turn."""
    for _ in range(20):
        await asyncio.sleep(0)
    assert not any(task.done() for task in tasks), text


# --- both or neither ----------------------------------------------------------------------------------


def test_a_sqlite_store_is_transactional():
    """It has what the protocol asks for; a connection of the user's own cannot be joined."""
    store = SQLiteStore(":memory:")
    assert isinstance(store, Transactional)
    for stranger in (object(), None, sqlite3.connect(":memory:")):
        with pytest.raises(TypeError, match="only in transactions that it began"):
            store.joined(stranger)
        if isinstance(stranger, sqlite3.Connection):
            stranger.close()


async def test_a_transaction_needs_an_open_store():
    """As every verb does."""
    with pytest.raises(RuntimeError, match="async with"):
        async with SQLiteStore(":memory:").transaction():
            pass


async def test_rows_and_moves_commit_together(store):
    """Several instances, and the user's own row, are there from one moment on."""
    async with store.transaction() as tx:
        assert isinstance(tx, Transaction)
        assert isinstance(tx.connection, aiosqlite.Connection)
        assert tx.store is store
        assert tx.open
        assert inside(store)
        assert await tx.lock(FLOW, "a", 0.0)
        await wrote(tx, "paid")
        await moved(tx, "a", 1, "k")
        await moved(tx, "b", 0)
    assert not tx.open
    assert not inside(store)
    assert await notes(store) == ["paid"]
    assert await seqs(store, "a") == [1, 2]
    assert await seqs(store, "b") == [1]
    assert [(line.id, line.seq) for line in (await feed(store))[0]] == [("a", 1), ("a", 2), ("b", 1)]


@pytest.mark.parametrize("error", [KeyError, asyncio.CancelledError, KeyboardInterrupt])
async def test_a_block_that_raises_leaves_no_trace(store, error):
    """No row, line, head, key, due row; and the next move is judged as if nothing had been."""

    async def block() -> None:
        async with store.transaction() as tx:
            await wrote(tx, "paid")
            (answer,) = await tx.append([commit(move("a", 1, "k", owes=["hook"], puts=[queue(2), timer("t", NOON)]))])
            assert isinstance(answer, Committed)
            assert answer.leased is not None
            await moved(tx, "b", 0)
            raise error

    with pytest.raises(error):
        await block()
    assert await notes(store) == []
    assert (await loaded(store, "a")).head.seq == 1
    assert await store.load(FLOW, ["b"]) == [None]
    assert await store.recall(FLOW, "a", "k") is None
    assert await names(store, NOON) == []
    assert (await store.next_due({FLOW: 1}, NOON)).tokens == frozenset()
    assert len((await feed(store))[0]) == 1
    await done(store, move("a", 1, "k"), move("b", 0))


async def test_the_verbs_see_what_was_written_in_the_block(store):
    """Load, history and recall; and an append is judged by it."""
    async with store.transaction() as tx:
        await tx.append([commit(move("a", 1, "k", owes=["hook"], puts=[queue(2)]))])
        a, b = await tx.load(FLOW, ["a", "b"])
        assert a.head.seq == 2
        assert a.effects.name == QUEUE
        assert [line.seq for line in a.queue] == [2]
        assert b is None
        assert [line.seq for line in await tx.history(FLOW, "a")] == [1, 2]
        assert [line.seq for line in await tx.history(FLOW, "a", 1, 5)] == [2]
        line = await tx.recall(FLOW, "a", "k")
        assert line.seq == 2
        assert await tx.recall(FLOW, "a", "other") is None
        assert list(await tx.append([commit(move("a", 1)), commit(move("a", 2, "k"))])) == [
            Conflicted(),
            Duplicate(line),
        ]
    assert await seqs(store, "a") == [1, 2]


async def test_a_refused_append_is_undone_alone(store):
    """The user's rows and the other commits stay, the transaction goes on."""
    async with store.transaction() as tx:
        await wrote(tx, "before")
        answers = await tx.append([commit(move("b", 0)), commit(move("c", 0), move("z", 9)), commit(move("a", 1))])
        assert list(answers) == [Committed(NOON), Conflicted(), Committed(NOON)]
        with pytest.raises(StoreError) as caught:
            await tx.append([commit(move("d", 0), move("e\ud800", 0))])
        assert caught.value.committed is False
        with pytest.raises(sqlite3.IntegrityError):
            await wrote(tx, "before")
        await wrote(tx, "after")
        assert await tx.append([]) == []
    assert await notes(store) == ["before", "after"]
    assert await store.load(FLOW, ["c", "d"]) == [None, None]
    assert [await seqs(store, id) for id in "ab"] == [[1, 2], [1]]


async def test_a_commit_that_landed_before_is_known(store):
    """Appended again in another transaction, it is committed once."""
    paid = commit(move("a", 1, "k"))
    for _ in range(2):
        async with store.transaction() as tx:
            assert list(await tx.append([paid])) == [Committed(NOON)]
    assert await seqs(store, "a") == [1, 2]


async def test_the_users_ways_of_reading_do_not_disturb(store):
    """Rows and texts as he likes them, also unfinished; the next transaction begins afresh."""
    async with store.transaction() as tx:
        tx.connection.row_factory = lambda cursor, row: {"row": row}
        tx.connection.text_factory = bytes
        await wrote(tx, "x", "y")
        cursor = await tx.connection.execute("SELECT note FROM ledger")
        assert await cursor.fetchone() == {"row": (b"x",)}
        await moved(tx, "a", 1, "k")
        assert (await tx.load(FLOW, ["a"]))[0].head.id == "a"
    await done(store, move("a", 2))
    assert await notes(store) == ["x", "y"]
    async with store.transaction() as tx:
        await moved(tx, "a", 3)
    assert await seqs(store, "a") == [1, 2, 3, 4]
    with suppress(ValueError):  # a file's next transaction needed another connection
        await cursor.close()


async def test_savepoints_of_the_users_work(store):
    """He may undo a part of his block, moves included."""
    async with store.transaction() as tx:
        await wrote(tx, "kept")
        await tx.connection.execute("SAVEPOINT mine")
        await wrote(tx, "undone")
        await moved(tx, "a", 1)
        await tx.connection.execute("ROLLBACK TO mine")
        assert (await tx.load(FLOW, ["a"]))[0].head.seq == 1
    assert await notes(store) == ["kept"]
    assert await seqs(store, "a") == [1]


# --- the end ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["COMMIT", "ROLLBACK"])
async def test_a_transaction_that_the_user_ended_himself(store, how):
    """An error says so, since nobody knows what came to be; further verbs refuse, and the store goes on."""

    async def block() -> None:
        async with store.transaction() as tx:
            await wrote(tx, "paid")
            await tx.connection.execute(how)
            for verb in (tx.load(FLOW, ["a"]), tx.append([commit(move("a", 1))]), tx.lock(FLOW, "a", 1.0)):
                with pytest.raises(StoreError, match=ENDED):
                    await verb

    with pytest.raises(StoreError, match=ENDED) as caught:
        await block()
    assert caught.value.committed is None
    assert await notes(store) == (["paid"] if how == "COMMIT" else [])
    await done(store, move("a", 1))


async def test_an_error_of_the_block_is_not_hidden_by_its_end(store):
    """Who ended the transaction and then failed hears of his failure."""

    async def block() -> None:
        async with store.transaction() as tx:
            await tx.connection.commit()
            raise KeyError

    with pytest.raises(KeyError):
        await block()
    await done(store, move("a", 1))


async def test_a_connection_that_the_user_closed(tmp_path):
    """The same; the next transaction has a new one."""

    async def block(store: SQLiteStore, error: BaseException | None) -> None:
        async with store.transaction() as tx:
            await moved(tx, "a", 0)
            await tx.connection.close()
            with pytest.raises(StoreUnavailable, match="closed"):
                await tx.load(FLOW, ["a"])
            if error is not None:
                raise error

    async with SQLiteStore(tmp_path / "orders.db", busy=SOON) as store:
        with pytest.raises(StoreError, match=ENDED):
            await block(store, None)
        with pytest.raises(KeyError):
            await block(store, KeyError())
        async with store.transaction() as tx:
            await moved(tx, "a", 0)
        assert await seqs(store, "a") == [1]


async def test_a_transaction_that_is_over_is_over(store):
    """No verb works afterwards, and nothing is written."""
    async with store.transaction() as tx:
        pass
    for verb in (
        tx.append([commit(move("a", 1))]),
        tx.load(FLOW, ["a"]),
        tx.history(FLOW, "a"),
        tx.recall(FLOW, "a", "k"),
        tx.lock(FLOW, "a", 1.0),
    ):
        with pytest.raises(StoreError, match="is over"):
            await verb
    assert await seqs(store, "a") == [1]


async def test_a_commit_that_fails_is_no_commit(store):
    """A deferred constraint of the user's: nothing stands, the error says so, the store goes on."""
    async with store.transaction() as tx:
        await tx.connection.execute("CREATE TABLE strict (id REFERENCES ledger(id) DEFERRABLE INITIALLY DEFERRED)")
        connection = tx.connection
    await connection.execute("PRAGMA foreign_keys = ON")

    async def block() -> None:
        async with store.transaction() as tx:
            await moved(tx, "a", 1)
            await tx.connection.execute("INSERT INTO strict VALUES (77)")

    with pytest.raises(StoreError, match="COMMIT failed: FOREIGN KEY") as caught:
        await block()
    assert caught.value.committed is False
    assert isinstance(caught.value.__cause__, sqlite3.IntegrityError)
    assert await seqs(store, "a") == [1]
    await done(store, move("a", 1))


def test_an_error_of_the_disk_at_commit_is_an_unknown_outcome(tmp_path):
    """The identical commits, done again in another transaction, settle it."""
    script = """
import resource
async def main():
    async with SQLiteStore(sys.argv[1]) as store:
        await started(store, "a")
        steps = [commit(move("a", seq, f"{seq}" * 100)) for seq in range(1, 400)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        try:
            async with store.transaction() as tx:
                await tx.append(steps)
        except StoreError as error:
            print(type(error).__name__, error.committed, error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        async with store.transaction() as tx:
            print({type(answer).__name__ for answer in await tx.append(steps)})
        print(await seqs(store, "a") == list(range(1, 401)))
asyncio.run(main())
"""
    said = run(script, tmp_path / "orders.db")
    assert said == ["StoreUnavailable None COMMIT failed: disk I/O error", "{'Committed'}", "True"]


# --- others meanwhile ----------------------------------------------------------------------------------


async def test_reads_go_on_and_see_what_is_committed(tmp_path):
    """In a file nobody who reads waits, or sees what may never be."""
    async with SQLiteStore(tmp_path / "orders.db", busy=SOON) as store:
        await started(store, "a")
        async with store.transaction() as tx:
            await tx.append([commit(move("a", 1, "k", puts=[timer("t", NOON)]), move("b", 0))])
            assert (await loaded(store, "a")).head.seq == 1
            assert await seqs(store, "a") == [1]
            assert await store.recall(FLOW, "a", "k") is None
            assert len(await store.find(Query(workflow=FLOW))) == 1
            assert len((await feed(store))[0]) == 1
            assert (await store.next_due({FLOW: 1}, NOON)).at is None
        assert await seqs(store, "a") == [1, 2]


async def test_in_memory_reads_wait():
    """There is one connection: who reads at once would see what may never be."""
    async with SQLiteStore(":memory:") as store:
        await started(store, "a")
        reading: list[asyncio.Future[Any]] = []

        async def block() -> None:
            async with store.transaction() as tx:
                await moved(tx, "a", 1)
                reading.extend((asyncio.ensure_future(seqs(store, "a")), asyncio.ensure_future(loaded(store, "a"))))
                await soon("a read waits", reading)
                with pytest.raises(StoreError, match="by its own verbs"):
                    await store.load(FLOW, ["a"])
                raise KeyError

        with pytest.raises(KeyError):
            await block()
        assert await reading[0] == [1]
        assert (await reading[1]).head.seq == 1


async def test_in_memory_a_read_does_not_wait_for_ever():
    """After `busy` it says what is the matter."""
    async with SQLiteStore(":memory:", busy=SOON) as store, store.transaction():
        with pytest.raises(StoreUnavailable, match="locked by a transaction of this process"):
            await asyncio.ensure_future(store.load(FLOW, ["a"]))


async def test_writers_wait_for_the_block(tmp_path):
    """As coroutines: the writer's thread is free; afterwards they go on with what the block made."""
    async with SQLiteStore(tmp_path / "orders.db") as store:
        await started(store, "a", timer("t", NOON))
        async with store.transaction() as tx:
            writing: list[asyncio.Future[Any]] = [
                asyncio.ensure_future(store.append([commit(move("a", 1))])),
                asyncio.ensure_future(store.append([commit(move("b", 0))], timeout=60.0)),
                asyncio.ensure_future(store.claim({FLOW: 1}, ME, MINUTE, 1, now=NOON)),
                asyncio.ensure_future(store.renew(ME, [(FLOW, "a", "t")], MINUTE, NOON)),
            ]
            await soon("writers wait", writing)
            assert await store._use().writer.run(lambda db: db.in_transaction) is False
            await tx.append([commit(move("a", 1))])
        assert list(await writing[0]) == [Conflicted()]
        assert list(await writing[1]) == [Committed(NOON)]
        assert [row.name for row in await writing[2]] == ["t"]
        await writing[3]


async def test_writers_wait_no_longer_than_they_may(store):
    """A timeout ends as `Locked`; without one it is `StoreUnavailable` after `busy`, and so for transactions."""
    store._busy = SOON.total_seconds()
    async with store.transaction() as tx:
        assert list(await store.append([commit(move("a", 1)), commit(move("b", 0))], timeout=0.01)) == [Locked()] * 2

        async def second() -> None:
            async with store.transaction():
                raise AssertionError("two at once")

        calls = [
            store.append([commit(move("a", 1))]),
            store.append([commit(move("a", 1))], timeout=60.0),
            store.claim({FLOW: 1}, ME, MINUTE, 1),
            store.renew(ME, [], MINUTE),
            asyncio.get_running_loop().create_task(second(), context=CLEAN),
        ]
        for heard in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(heard, StoreUnavailable)
            assert heard.committed is False
            assert "locked by a transaction of this process" in str(heard)
        await moved(tx, "a", 1)
    assert await seqs(store, "a") == [1, 2]


async def test_transactions_do_not_nest(store):
    """At once, not after a wait for oneself; the outer one is still good."""
    async with store.transaction() as tx:
        with pytest.raises(StoreError, match="cannot be nested"):
            async with store.transaction():
                pass
        await wrote(tx, "fine")
    assert await notes(store) == ["fine"]


async def test_transactions_of_two_stores_may_nest(tmp_path, store):
    """Only one's own is in the way."""
    async with SQLiteStore(tmp_path / "other.db") as other, store.transaction() as tx:
        async with other.transaction() as inner:
            await moved(inner, "x", 0)
        await moved(tx, "a", 1)
        assert await seqs(other, "x") == [1]


async def test_nobody_overtakes_at_the_gate(store):
    """Transactions and other writers have their turn in the order in which they came."""
    order: list[str] = []

    async def block(name: str) -> None:
        async with store.transaction():
            order.append(name)
            await asyncio.sleep(0)

    async def write(name: str) -> None:
        await store.append([commit(move(name, 0))], timeout=30.0)
        order.append(name)

    tasks: list[asyncio.Task[None]] = []
    async with store.transaction():
        loop = asyncio.get_running_loop()
        for work in (block("1"), write("2"), block("3"), write("4"), write("5"), block("6")):
            tasks.append(loop.create_task(work, context=CLEAN.copy()))
            await asyncio.sleep(0)
        tasks.append(loop.create_task(block("gone"), context=CLEAN.copy()))
        await asyncio.sleep(0)
        tasks.pop().cancel()
    await asyncio.gather(*tasks)
    assert [*order[:3], *sorted(order[3:5]), *order[5:]] == ["1", "2", "3", "4", "5", "6"]


async def test_writers_are_not_starved_by_transactions(store):
    """Eight tasks open one after the other; an append waits for those that came before it, no more."""
    over, blocks = False, 0

    async def crowd() -> None:
        nonlocal blocks
        while not over:
            async with store.transaction():
                blocks += 1
                await asyncio.sleep(0)

    crowds = [asyncio.ensure_future(crowd()) for _ in range(8)]
    for seq in range(1, 10):
        before = blocks
        assert list(await store.append([commit(move("a", seq))])) == [Committed(NOON)]
        assert blocks - before <= 9
    over = True
    await asyncio.gather(*crowds)


async def test_another_process_is_waited_for(tmp_path):
    """For `busy` at most; if it ends in time the block begins."""
    async with SQLiteStore(tmp_path / "orders.db", busy=timedelta(milliseconds=300)) as store:
        rival = sqlite3.connect(tmp_path / "orders.db", isolation_level=None)
        rival.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable, match="locked") as caught:
            async with store.transaction():
                raise AssertionError
        assert caught.value.committed is False
        asyncio.get_running_loop().call_later(0.1, rival.execute, "ROLLBACK")
        async with store.transaction() as tx:
            await moved(tx, "a", 0)
        rival.close()
        assert await seqs(store, "a") == [1]


async def test_a_waiter_hears_of_the_commit(store):
    """This process's workers wake at once."""
    waiting = asyncio.ensure_future(store.wait(60.0))
    async with store.transaction() as tx:
        await asyncio.sleep(0)
        await moved(tx, "a", 1)
    assert await asyncio.wait_for(waiting, 5)


# --- cancelled, closed, killed ---------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(12))
async def test_a_block_cancelled_at_any_moment(store, turns):
    """As it begins, in its statements, as it ends: whole or absent, and the next one finds the store free."""

    async def block() -> None:
        async with store.transaction() as tx:
            await wrote(tx, "paid")
            await moved(tx, "a", 1)

    task = asyncio.get_running_loop().create_task(block())
    for _ in range(turns):
        await asyncio.sleep(0.0005)
    task.cancel()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    found = await notes(store)
    assert (found, await seqs(store, "a")) in (([], [1]), (["paid"], [1, 2]))
    await done(store, move("b", 0))


async def test_appends_whose_callers_are_gone_do_not_meet_a_block(store):
    """What they left on its way is through before the block begins."""
    for n in range(20):
        calls = [asyncio.ensure_future(one(store, commit(move(f"{n}-{i}", 0)))) for i in range(5)]
        calls += [asyncio.ensure_future(store.load(FLOW, ["a"]))]
        await asyncio.sleep(0)
        for call in calls:
            call.cancel()
        async with store.transaction() as tx:
            await moved(tx, "a", n + 1)
    assert await seqs(store, "a") == list(range(1, 22))


async def test_closing_the_store_rolls_back(store):
    """A block that outlives its store cannot commit, and says so."""
    waiting: list[asyncio.Future[Any]] = []

    async def block() -> None:
        async with store.transaction() as tx:
            await moved(tx, "a", 1)
            waiting.append(asyncio.ensure_future(store.append([commit(move("b", 0))])))
            await asyncio.sleep(0)
            await store.__aexit__(None, None, None)
            with pytest.raises(StoreUnavailable, match="closed"):
                await tx.load(FLOW, ["a"])

    with pytest.raises(StoreError, match=ENDED):
        await block()
    with pytest.raises(RuntimeError, match="not open"):
        await waiting[0]
    await store.__aenter__()


def test_a_store_with_transactions_may_serve_one_loop_after_another(tmp_path):
    """The gate belongs to no loop."""
    store = SQLiteStore(tmp_path / "orders.db")

    async def block(seq: int) -> None:
        async with store.transaction() as tx:
            await moved(tx, "a", seq)

    async def use(seq: int) -> None:
        async with store:
            await asyncio.gather(block(seq), started(store, f"{seq}"), store.claim({FLOW: 1}, ME, MINUTE, 1))

    for seq in range(3):
        asyncio.run(use(seq))


HEAD = f"""
import asyncio, os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import stores.sqlite
from stores import SQLiteStore
from workflow.errors import *
from workflow.testing.conformance.rows import *
from workflow.testing.conformance.suite import *
"""


def run(script: str, *arguments: object, code: int = 0) -> list[str]:
    """Lines printed by a child that must end so."""
    command = [sys.executable, "-c", HEAD + script, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == code, ended.stderr
    return ended.stdout.split("\n")[:-1]


@pytest.mark.parametrize(("moment", "there"), [("insert", False), ("append", False), ("commit", True)])
def test_a_process_killed_in_a_block(tmp_path, moment, there):
    """Between the user's insert, the move and COMMIT neither stands; after COMMIT both do."""
    script = """
async def main():
    def die(moment):
        if moment == sys.argv[2]:
            os.kill(os.getpid(), signal.SIGKILL)
    async with SQLiteStore(sys.argv[1]) as store:
        async with store.transaction() as tx:
            await tx.connection.execute("INSERT INTO ledger VALUES ('paid')")
            die("insert")
            await tx.append([commit(move("a", 0), move("b", 0))])
            die("append")
        die("commit")
asyncio.run(main())
"""
    path = tmp_path / "orders.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE ledger (note TEXT)")
    db.close()
    run(script, path, moment, code=-signal.SIGKILL)

    async def look() -> None:
        async with SQLiteStore(path) as store:
            found = await store.load(FLOW, ["a", "b"])
            assert [each is not None for each in found] == [there, there]
            async with store.transaction() as tx:
                rows = await tx.connection.execute_fetchall("SELECT note FROM ledger")
            assert [note for (note,) in rows] == ["paid"] * there
            await done(store, touch("a", int(there)), move("c", 0))

    asyncio.run(look())
