"""What the doors of `stores` promise beyond the contract, and the store that fails on purpose."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

import stores
from stores import MemoryStore
from stores.agenda import Agenda
from workflow.errors import StoreError, StoreUnavailable
from workflow.record import Committed, Due, Query
from workflow.store import Store, Transactional
from workflow.testing.conformance import StoreConformance
from workflow.testing.conformance.rows import FLOW, ME, MINUTE, NOON, SECOND, commit, move, timer, touch
from workflow.testing.conformance.suite import done, names, one, seqs, started
from workflow.testing.faults import Faults, When

ROOT = Path(__file__).parents[2]


def test_importing_stores_imports_no_driver():
    """Each store's driver is there when it is asked for, and not before."""
    script = (
        "import sys, stores; loaded = lambda: {'sqlite3', 'aiosqlite', 'psycopg'} & set(sys.modules); "
        "stores.MemoryStore; assert not loaded(); "
        "stores.SQLiteStore; assert loaded() == {'sqlite3', 'aiosqlite'}; "
        "stores.PostgresStore; assert 'psycopg' in loaded()"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=50)


def test_stores_names_its_doors():
    """`__all__` is what there is, and an unknown name is the usual error."""
    assert stores.__all__ == ["MemoryStore", "SQLiteStore", "PostgresStore"]
    assert dir(stores) == sorted(stores.__all__)
    assert isinstance(stores.MemoryStore(), Store)
    assert isinstance(stores.SQLiteStore("orders.db"), Transactional)
    assert isinstance(stores.PostgresStore("postgresql://db/orders"), Transactional)
    with pytest.raises(AttributeError, match="OracleStore"):
        _ = stores.OracleStore  # pyright: ignore[reportAttributeAccessIssue]


# --- memory -----------------------------------------------------------------------------------------


async def test_an_append_in_memory_does_not_suspend():
    """A send in memory costs no turn of the loop."""
    async with MemoryStore() as store:
        with pytest.raises(StopIteration) as ended:
            store.append([commit(move("a", 0))]).send(None)
        assert ended.value.value == [Committed(NOON)]


def test_a_memory_store_outlives_event_loops():
    """Two runs on one object: the second finds what the first wrote, and waiting works in both."""
    store = MemoryStore()

    async def use(seq: int) -> None:
        async with store:
            waiting = asyncio.ensure_future(store.wait(30.0))
            await asyncio.sleep(0)
            await done(store, move("a", seq))
            assert await waiting
            assert await seqs(store, "a") == list(range(1, seq + 2))

    for seq in range(3):
        asyncio.run(use(seq))


async def test_superseded_timers_do_not_fill_the_memory():
    """However often a timer is moved, the agenda stays about as large as the rows."""
    async with MemoryStore() as store:
        for n in range(2000):
            await done(store, touch("a", 0, puts=[timer("t", NOON + n * SECOND), timer("u", NOON)]))
        agenda = store._agendas[FLOW][1]
        assert len(agenda) == 2
        assert agenda.entries < 100
        assert await names(store, NOON) == ["u"]
        assert await names(store, NOON + 1999 * SECOND) == ["u", "t"]


def test_an_agenda_forgets_what_was_removed():
    """Rows, owners and times; a row added again at the same time is met once."""
    agenda = Agenda()
    row = Due(workflow=FLOW, id="a", name="t", at=NOON, seq=1, token=ME)
    for _ in range(3):
        agenda.add(row)
        agenda.remove(row)
    assert agenda.earliest() is None
    assert list(agenda.owners()) == []
    for _ in range(3):
        agenda.add(row)
        agenda.remove(row)
    agenda.add(row)
    assert agenda.due(NOON, 10) == [row]
    assert agenda.due(NOON, 10) == [row]
    assert list(agenda.owned([ME, "other"])) == [row]


# --- faults -----------------------------------------------------------------------------------------


class TestFaultsIsAStore(StoreConformance):
    lacks = frozenset({"processes", "transaction"})

    async def make(self) -> Store:
        return Faults(MemoryStore())

    async def reopen(self, store: Store) -> Store:
        assert isinstance(store, Faults)
        return Faults(store.store)


async def test_before_does_nothing_and_after_does_it():
    """Both leave an unknown outcome, which the identical commit settles."""
    cases: list[tuple[str, When, list[int]]] = [("a", "before", []), ("b", "after", [1])]
    async with Faults(MemoryStore()) as store:
        for id, when, there in cases:
            start = commit(move(id, 0))
            store.fail("append", when=when)
            with pytest.raises(StoreUnavailable) as caught:
                await one(store, start)
            assert caught.value.committed is None
            assert await seqs(store, id) == there
            assert await one(store, start) == Committed(NOON)
            assert await seqs(store, id) == [1]


async def test_late_lands_when_nobody_expects_it():
    """Nothing is there after the error, all of it after a while."""
    async with Faults(MemoryStore(), delay=timedelta(milliseconds=20)) as store:
        store.fail("append", when="late")
        with pytest.raises(StoreUnavailable):
            await one(store, commit(move("a", 0)))
        assert await seqs(store, "a") == []
        await store.landed()
        assert await seqs(store, "a") == [1]


async def test_closing_waits_for_what_is_late():
    """A late commit is not lost with its store."""
    inner = MemoryStore()
    async with Faults(inner, delay=timedelta(milliseconds=20)) as store:
        store.fail("append", when="late")
        with pytest.raises(StoreUnavailable):
            await one(store, commit(move("a", 0)))
    async with inner:
        assert await seqs(inner, "a") == [1]


async def test_the_nth_call_from_now_on_fails_once():
    """Plans add up, count from when they are made, and calls are counted."""
    async with Faults(MemoryStore()) as store:
        await store.load(FLOW, ["a"])
        assert (
            store.fail("load", nth=2).fail("load", nth=3, error=KeyError).fail("find", error=OSError("mine")) is store
        )
        assert await store.load(FLOW, ["a"]) == [None]
        with pytest.raises(StoreUnavailable) as caught:
            await store.load(FLOW, ["a"])
        assert caught.value.committed is False
        with pytest.raises(KeyError):
            await store.load(FLOW, ["a"])
        assert await store.load(FLOW, ["a"]) == [None]
        with pytest.raises(OSError, match="mine"):
            await store.find(Query(workflow=FLOW))
        assert store.calls == {"load": 5, "find": 1}


@pytest.mark.parametrize("plan", [{"verb": "apend"}, {"verb": "append", "nth": 0}, {"verb": "append", "when": "never"}])
async def test_a_plan_that_could_never_come_true_is_refused(plan):
    """A misspelt verb would make a test pass for nothing."""
    with pytest.raises(ValueError, match="no such call"):
        Faults(MemoryStore()).fail(**plan)


async def test_every_verb_can_fail():
    """One error for each."""
    async with Faults(MemoryStore()) as store:
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "append": lambda: store.append([]),
            "load": lambda: store.load(FLOW, []),
            "history": lambda: store.history(FLOW, "a"),
            "recall": lambda: store.recall(FLOW, "a", "k"),
            "find": lambda: store.find(Query(workflow=FLOW)),
            "read": store.read,
            "wait": lambda: store.wait(0),
            "claim": lambda: store.claim({}, ME, MINUTE, 1),
            "renew": lambda: store.renew(ME, [], MINUTE),
            "next_due": lambda: store.next_due({}),
        }
        for verb, call in calls.items():
            store.fail(verb, error=StoreError)
            with pytest.raises(StoreError, match=verb):
                await call()
            await call()


async def test_nothing_handed_out_can_be_changed():
    """Rows are frozen; only a changed copy can be made."""
    async with MemoryStore() as store:
        await started(store, "a")
        (line,) = await store.history(FLOW, "a")
        with pytest.raises(AttributeError):
            line.seq = 9  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
        assert replace(line, seq=9) != line
