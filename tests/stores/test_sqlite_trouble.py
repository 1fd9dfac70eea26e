"""SQLite in trouble: clear errors that say what was committed, nothing lost, and back to work afterwards."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from stores import SQLiteStore, sql
from workflow.errors import StoreError, StoreUnavailable
from workflow.record import Committed, Conflicted, Locked
from workflow.testing.conformance.rows import FLOW, ME, MINUTE, NOON, commit, move
from workflow.testing.conformance.suite import done, feed, loaded, one, seqs, started

ROOT = Path(__file__).parents[2]
SOON = timedelta(milliseconds=100)


def child(script: str, *arguments: object) -> list[str]:
    """The command that runs `script` in a process of its own, with the modules it needs."""
    head = (
        "import asyncio, os, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "import stores.sqlite\n"
        "from stores import SQLiteStore\n"
        "from workflow.errors import *\n"
        "from workflow.testing.conformance.rows import *\n"
        "from workflow.testing.conformance.suite import *\n"
    )
    return [sys.executable, "-c", head + script, *map(str, arguments)]


def run(script: str, *arguments: object) -> list[str]:
    """Lines printed by a child that must end well."""
    ended = subprocess.run(child(script, *arguments), capture_output=True, text=True, timeout=50, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split("\n")[:-1]


# --- files that cannot be opened --------------------------------------------------------------------


async def test_a_file_that_is_no_database(tmp_path):
    """Refused with the driver's error as cause; once it is gone the same store opens."""
    path = tmp_path / "text.db"
    path.write_text("no database, but a long enough text about one " * 40)
    store = SQLiteStore(path)
    with pytest.raises(StoreError, match="not a database") as caught:
        await store.__aenter__()
    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)
    assert not isinstance(caught.value, StoreUnavailable)
    assert caught.value.committed is False
    assert path.read_text().startswith("no database")
    path.unlink()
    async with store:
        await started(store, "a")


@pytest.mark.parametrize("where", ["", "missing/orders.db"])
async def test_a_path_that_is_no_file(tmp_path, where):
    """A directory, or a file in none."""
    with pytest.raises(StoreError, match="unable to open") as caught:
        async with SQLiteStore(tmp_path / where):
            pass
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)


async def test_a_schema_from_the_future(tmp_path):
    """A newer schema is left alone, and the error says so."""
    path = tmp_path / "new.db"
    async with SQLiteStore(path) as store:
        await started(store, "a")
    with sqlite3.connect(path) as db:
        db.execute("UPDATE meta SET version = 99")
    db.close()
    with pytest.raises(StoreError, match="schema 99, this code knows 1; upgrade enumflow"):
        await SQLiteStore(path).__aenter__()


async def test_a_step_that_fails_leaves_the_schema_as_it_was(tmp_path, monkeypatch):
    """Migration is one transaction."""
    path = tmp_path / "step.db"
    async with SQLiteStore(path) as store:
        await started(store, "a")
    with monkeypatch.context() as patch:
        patch.setattr(sql, "STEPS", (*sql.STEPS, ("CREATE TABLE extra (x)", "CREATE TABLE line (x)")))
        with pytest.raises(StoreError, match="already exists"):
            await SQLiteStore(path).__aenter__()
        patch.setattr(sql, "STEPS", (*sql.STEPS[:1], ("CREATE TABLE extra (x)",)))
        async with SQLiteStore(path) as store:
            assert await seqs(store, "a") == [1]
    with pytest.raises(StoreError, match="schema 2"):
        await SQLiteStore(path).__aenter__()


def test_a_file_that_may_only_be_read():
    """Without the right to write the file, or its directory, opening is refused: also for root's children."""
    script = """
folder = sys.argv[1]
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
async def main():
    for name in ("file/orders.db", "folder/orders.db"):
        try:
            async with SQLiteStore(os.path.join(folder, name)) as store:
                await started(store, "b")
        except StoreError as error:
            print(type(error.__cause__).__name__, error.committed, error)
asyncio.run(main())
"""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("file", "folder"):
            (folder / part).mkdir()

            async def fill(path: Path) -> None:
                async with SQLiteStore(path) as store:
                    await started(store, "a")

            asyncio.run(fill(folder / part / "orders.db"))
        (folder / "file" / "orders.db").chmod(0o444)
        (folder / "file").chmod(0o777)
        (folder / "folder" / "orders.db").chmod(0o666)
        (folder / "folder").chmod(0o555)
        said = run(script, folder)
        (folder / "folder").chmod(0o755)
    assert len(said) == 2
    assert all(line.startswith("OperationalError False ") for line in said)


# --- a file that others hold --------------------------------------------------------------------------


@pytest.fixture
def rival(tmp_path):
    """Another process's connection, as far as SQLite can tell."""
    db = sqlite3.connect(tmp_path / "orders.db", isolation_level=None)
    yield db
    db.close()


async def test_a_file_that_is_locked(tmp_path, rival):
    """After `busy` a write raises `StoreUnavailable`, with a timeout it is `Locked`; reads go on."""
    async with SQLiteStore(tmp_path / "orders.db", busy=SOON) as store:
        await started(store, "a")
        again = commit(move("a", 1, "k"))
        rival.execute("BEGIN IMMEDIATE")
        for write in (
            store.append([again]),
            store.append([again], timeout=60.0),
            store.claim({FLOW: 1}, ME, MINUTE, 1),
            store.renew(ME, [], MINUTE),
        ):
            with pytest.raises(StoreUnavailable, match="locked") as caught:
                await write
            assert caught.value.committed is False
            assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert list(await store.append([again, again], timeout=0.01)) == [Locked(), Locked()]
        assert await seqs(store, "a") == [1]
        rival.execute("ROLLBACK")
        assert await one(store, again) == Committed(NOON)
        assert await seqs(store, "a") == [1, 2]


async def test_a_short_timeout_is_not_stretched(tmp_path, rival):
    """`timeout` ends the wait long before `busy` would, and does not stay for the next call."""
    async with SQLiteStore(tmp_path / "orders.db", busy=timedelta(seconds=50)) as store:
        await started(store, "a")
        rival.execute("BEGIN IMMEDIATE")
        answers = await asyncio.wait_for(store.append([commit(move("a", 1))], timeout=0.05), 20)
        assert list(answers) == [Locked()]
        waiting = asyncio.ensure_future(store.append([commit(move("a", 1))]))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        rival.execute("ROLLBACK")
        assert list(await waiting) == [Committed(NOON)]


async def test_who_may_wait_long_keeps_nobody_waiting(tmp_path, rival):
    """Callers wait for other processes side by side, each as long as he may; nobody's wait is on the thread."""
    async with SQLiteStore(tmp_path / "orders.db", busy=timedelta(seconds=50)) as store:
        await started(store, "a")
        rival.execute("BEGIN IMMEDIATE")
        patient = asyncio.ensure_future(store.append([commit(move("a", 1))], timeout=60.0))
        claiming = asyncio.ensure_future(store.claim({FLOW: 1}, ME, MINUTE, 1))
        await asyncio.sleep(0.1)
        began = asyncio.get_running_loop().time()
        assert list(await store.append([commit(move("b", 0))], timeout=0.05)) == [Locked()]
        assert asyncio.get_running_loop().time() - began < 2
        assert not patient.done()
        assert not claiming.done()
        rival.execute("ROLLBACK")
        assert list(await patient) == [Committed(NOON)]
        assert await claiming == []


async def test_a_bad_row_among_many_harms_only_itself(tmp_path):
    """It shares their transaction, not their fate."""
    async with SQLiteStore(tmp_path / "orders.db") as store:
        moves = [move(f"i-{n}", 0) for n in range(40)]
        moves[17] = move("i-17", 0, "\ud800")
        heard = await asyncio.gather(*(one(store, commit(each)) for each in moves), return_exceptions=True)
        bad = heard.pop(17)
        assert isinstance(bad, StoreError)
        assert bad.committed is False
        assert heard == [Committed(NOON)] * 39
        assert len((await feed(store))[0]) == 39


async def test_a_file_that_is_locked_at_opening(tmp_path, rival):
    """Opening waits for `busy`, too, and works when the lock is gone."""
    rival.execute("PRAGMA journal_mode = WAL")
    rival.execute("BEGIN IMMEDIATE")
    store = SQLiteStore(tmp_path / "orders.db", busy=SOON)
    with pytest.raises(StoreUnavailable, match="locked"):
        await store.__aenter__()
    rival.execute("ROLLBACK")
    async with store:
        await started(store, "a")


# --- a disk that is full ------------------------------------------------------------------------------


async def test_a_full_disk(tmp_path):
    """Nothing is lost or half done, and the store goes on when there is room again."""
    async with SQLiteStore(tmp_path / "orders.db") as store:
        await started(store, "a")

        def limit(db: sqlite3.Connection, spare: int) -> None:
            (pages,) = db.execute("PRAGMA page_count").fetchone()
            db.execute(f"PRAGMA max_page_count = {pages + spare}")

        await store._use().writer.run(limit, 30)
        big = [
            commit(replace(move("b", 0), lines=(_big("b"),))),
            commit(move("a", 1, "k"), replace(move("c", 0), lines=(_big("c"),))),
        ]
        for each in big:
            with pytest.raises(StoreUnavailable, match="full") as caught:
                await one(store, each)
            assert caught.value.committed is False
            assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
        assert await store.load(FLOW, ["b", "c"]) == [None, None]
        await done(store, move("a", 1))
        await store._use().writer.run(limit, 1 << 20)
        assert isinstance(await one(store, big[0]), Committed)
        assert await one(store, big[1]) == Conflicted()
        assert [line.id for line in (await feed(store))[0]] == ["a", "a", "b"]


def _big(id: str):
    return replace(move(id, 0).lines[0], payload='"' + "x" * 1_000_000 + '"')


def test_a_file_that_may_not_grow(tmp_path):
    """An error of the disk at COMMIT is an unknown outcome, which the identical commit settles."""
    script = """
import resource
async def main():
    async with SQLiteStore(sys.argv[1]) as store:
        await started(store, "a")
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
        for seq in range(1, 1000):
            step = commit(move("a", seq, "k" * 400))if seq == 1 else commit(move("a", seq, f"{seq}" * 100))
            try:
                await one(store, step)
            except StoreError as error:
                print(type(error).__name__, error.committed, type(error.__cause__).__name__)
                break
        before = await seqs(store, "a")
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(type(await one(store, step)).__name__, type(await one(store, step)).__name__)
        print(before == list(range(1, seq + 1)), await seqs(store, "a") == list(range(1, seq + 2)))
asyncio.run(main())
"""
    said = run(script, tmp_path / "orders.db")
    assert said == ["StoreUnavailable None OperationalError", "Committed Committed", "True True"]


async def test_a_value_that_no_database_can_hold(tmp_path):
    """A StoreError, and nothing of the commit is left."""
    async with SQLiteStore(tmp_path / "orders.db") as store:
        for strange in (move("a\ud800", 0), move("a", 0, "\ud800")):
            with pytest.raises(StoreError) as caught:
                await one(store, commit(strange))
            assert caught.value.committed is False
        assert (await feed(store))[0] == []
        await started(store, "a")


# --- processes ----------------------------------------------------------------------------------------


def test_many_processes_may_open_a_new_file_at_once(tmp_path):
    """One makes the schema, the others wait for it; what all of them write is there."""
    script = """
async def main():
    async with SQLiteStore(sys.argv[1]) as store:
        await started(store, sys.argv[2])
asyncio.run(main())
"""
    path = tmp_path / "orders.db"
    children = [subprocess.Popen(child(script, path, n), stderr=subprocess.PIPE) for n in range(5)]
    for each in children:
        _, said = each.communicate(timeout=50)
        assert each.returncode == 0, said.decode()

    async def look() -> None:
        async with SQLiteStore(path) as store:
            assert len((await feed(store))[0]) == 5

    asyncio.run(look())


def test_what_was_answered_survives_a_kill(tmp_path):
    """Killed right after it printed an answer, again and again: every printed line is there, in order."""
    script = """
async def main():
    async with SQLiteStore(sys.argv[1]) as store:
        seq = len(await store.history(FLOW, "a"))
        while True:
            await done(store, move("a", seq), move("b", seq))
            seq += 1
            print(seq, flush=True)
asyncio.run(main())
"""
    path = tmp_path / "orders.db"

    async def look(answered: int) -> None:
        async with SQLiteStore(path) as store:
            a, b = await seqs(store, "a"), await seqs(store, "b")
            assert a == b == list(range(1, len(a) + 1))
            assert len(a) in {answered, answered + 1}
            assert (await loaded(store, "a")).head.seq == len(a)
            assert len((await feed(store))[0]) == 2 * len(a)

    for kills in (1, 7, 23, 40):
        with subprocess.Popen(child(script, path), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = [process.stdout.readline() for _ in range(kills)]
            os.kill(process.pid, signal.SIGKILL)
            said += process.stdout.readlines()
        asyncio.run(look(int(said[-1])))


def test_processes_that_write_at_once_lose_nothing(tmp_path):
    """A reader that tails meanwhile sees each line once, each instance in its order."""
    script = """
async def main():
    async with SQLiteStore(sys.argv[1], busy=timedelta(seconds=30)) as store:
        for seq in range(40):
            await done(store, move(sys.argv[2], seq))
            await store.append([commit(move("shared", n)) for n in range(seq, seq + 9)])
asyncio.run(main())
"""
    path = tmp_path / "orders.db"

    async def tail() -> None:
        async with SQLiteStore(path, busy=timedelta(seconds=30)) as store:
            children = [await asyncio.create_subprocess_exec(*child(script, path, n)) for n in range(3)]
            ended = asyncio.gather(*(each.wait() for each in children))
            lines, cursor = await feed(store)
            while not ended.done():
                await store.wait(0.5)
                more, cursor = await feed(store, cursor)
                lines += more
            assert await ended == [0, 0, 0]
            lines += (await feed(store, cursor))[0]
            assert lines == (await feed(store))[0]
            for n in range(3):
                assert [line.seq for line in lines if line.id == str(n)] == list(range(1, 41))
            shared = [line.seq for line in lines if line.id == "shared"]
            assert shared == list(range(1, len(shared) + 1))

    asyncio.run(tail())


# --- callers and threads ------------------------------------------------------------------------------


def connections() -> list[threading.Thread]:
    """The threads of connections that are open."""
    return [thread for thread in threading.enumerate() if "_connection_worker_thread" in thread.name]


def ended() -> None:
    """No connection's thread is left; the last word of one may take a moment."""
    for thread in connections():
        thread.join(5)
        assert not thread.is_alive(), thread.name


async def test_cancelled_callers_do_not_disturb_the_writer(tmp_path):
    """Every commit is whole or absent, and appended again it is committed, once."""
    async with SQLiteStore(tmp_path / "orders.db") as store:
        commits = [commit(move(f"i-{n}", 0, "k", None)) for n in range(60)]
        calls = [asyncio.ensure_future(one(store, each)) for each in commits]
        for call in calls[::2]:
            await asyncio.sleep(0)
            call.cancel()
        heard = await asyncio.gather(*calls, return_exceptions=True)
        assert all(answer == Committed(NOON) for answer in heard[1::2])
        for each in commits:
            assert await one(store, each) == Committed(NOON)
        assert len((await feed(store))[0]) == 120


def test_a_store_may_serve_one_loop_after_another(tmp_path):
    """Nothing in it belongs to an event loop, and closing leaves no thread."""
    store = SQLiteStore(tmp_path / "orders.db")

    async def use(seq: int) -> None:
        async with store, store:
            await done(store, move("a", seq))
            assert connections(), "a thread under another name would make `ended` blind"
            await asyncio.gather(*(store.wait(0.01) for _ in range(3)))

    for seq in range(3):
        asyncio.run(use(seq))
        ended()


async def test_a_failed_opening_leaves_no_thread(tmp_path):
    """Also when several wanted it at once."""
    store = SQLiteStore(tmp_path)
    failed = await asyncio.gather(*(store.__aenter__() for _ in range(3)), return_exceptions=True)
    assert all(isinstance(error, StoreError) for error in failed)
    ended()
    with pytest.raises(RuntimeError, match="async with"):
        await store.load(FLOW, ["a"])


async def test_closing_finishes_what_was_handed_in(tmp_path):
    """A commit on the way when the store closes is answered, and a waiter is let go."""
    store = SQLiteStore(tmp_path / "orders.db")
    await store.__aenter__()
    writing = [asyncio.ensure_future(one(store, commit(move(f"i-{n}", 0)))) for n in range(20)]
    waiting = asyncio.ensure_future(store.wait(60.0))
    await asyncio.sleep(0)
    await asyncio.wait_for(store.__aexit__(None, None, None), 20)
    assert await asyncio.gather(*writing) == [Committed(NOON)] * 20
    await asyncio.wait_for(waiting, 20)
    async with store:
        assert len((await feed(store))[0]) == 20


async def test_an_opening_that_is_cancelled_closes(tmp_path, rival):
    """No thread, no open file, and the next opening works."""
    rival.execute("PRAGMA journal_mode = WAL")
    rival.execute("BEGIN IMMEDIATE")
    store = SQLiteStore(tmp_path / "orders.db", busy=SOON)
    opening = asyncio.ensure_future(store.__aenter__())
    await asyncio.sleep(0.01)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    rival.execute("ROLLBACK")
    ended()
    async with store:
        await started(store, "a")
