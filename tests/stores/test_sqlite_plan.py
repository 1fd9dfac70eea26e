"""SQLite's work follows what is asked for, not what is stored."""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections import Counter
from contextlib import asynccontextmanager

import pytest
from msgspec.structs import replace

from stores import SQLiteStore, sql
from workflow.record import QUEUE, Committed, Conflicted, Duplicate, Query
from workflow.testing.conformance.rows import FLOW, ME, MINUTE, NOON, commit, lease_of, move, queue, timer, touch
from workflow.testing.conformance.suite import loaded, one

STATEMENTS = {
    name: text
    for name, text in vars(sql).items()
    if isinstance(text, str) and text.strip().startswith(("SELECT", "INSERT", "UPDATE", "DELETE", "WITH"))
}
SORTED = {"ORPHAN_DUE"}
"""Statements that may sort what they found: the rows of one dead process."""


@pytest.fixture
def tables():
    db = sqlite3.connect(":memory:")
    db.execute(sql.MAKE_META)
    for statement in (each for step in sql.STEPS for each in step):
        db.execute(statement)
    yield db
    db.close()


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_statement_scans_a_table(tables, name):
    """Planned on empty tables without statistics, every statement finds its rows by an index."""
    text = STATEMENTS[name]
    words = dict.fromkeys(re.findall(r":(\w+)", text), "")
    marks = len(set(re.findall(r"\?\d+", text))) or text.count("?")
    rows = tables.execute(f"EXPLAIN QUERY PLAN {text}", words or [""] * marks).fetchall()
    for *_, step in rows:
        assert not step.startswith("SCAN") or step.startswith(("SCAN json_each", "SCAN CONSTANT", "SCAN owner")), step
        assert "TEMP B-TREE" not in step or name in SORTED, step


def test_tables_have_the_fields_of_the_records(tables):
    """A new field of a record needs a column: the suite would notice late, this test at once."""
    for table, fields in (("head", sql.HEAD), ("line", ("pos", *sql.LINE)), ("due", sql.DUE)):
        columns = [row[1] for row in tables.execute(f"PRAGMA table_info({table})")]
        assert sorted(columns) == sorted(fields)


@pytest.mark.parametrize(
    "at", [NOON, NOON.replace(microsecond=999_999), NOON.replace(year=1900), NOON.replace(year=9999)]
)
def test_times_are_kept_to_the_microsecond(at):
    """Years before 1970 included."""
    assert sql.moment(sql.micros(at)) == at


@asynccontextmanager
async def traced(store: SQLiteStore):
    """Counts statements by their first words, and how many steps SQLite's machine took (in tens)."""
    said: Counter[str] = Counter()

    def watch(db: sqlite3.Connection) -> None:
        db.set_trace_callback(lambda text: said.update([re.sub(r"\W.*", "", text), "statements"]))
        db.set_progress_handler(lambda: said.update(["steps"]), 10)

    def leave(db: sqlite3.Connection) -> None:
        db.set_trace_callback(None)
        db.set_progress_handler(None, 0)

    links = store._use().writer, store._use().reader
    for link in links:
        await link.run(watch)
    yield said
    for link in links:
        await link.run(leave)


async def one_turn(store: SQLiteStore, id: str, seq: int) -> Counter[str]:
    """What a move with a hook costs: load, move and lease, settle, recall, the last page of history."""
    said: Counter[str]
    async with traced(store) as said:
        await loaded(store, id)
        answer = await one(store, commit(move(id, seq, f"k-{seq}", owes=["hook"], puts=[queue(seq + 1, absent=True)])))
        assert isinstance(answer, Committed)
        assert answer.leased is not None
        await one(store, commit(touch(id, seq + 1, lease=lease_of(answer.leased), drops=[QUEUE])))
        await store.recall(FLOW, id, f"k-{seq}")
        await store.history(FLOW, id, seq - 5)
    return said


async def test_a_move_costs_the_same_after_a_hundred_thousand(tmp_path):
    """The same statements, as often, and about as many steps; and the long history comes in one go."""
    async with SQLiteStore(tmp_path / "long.db") as store:
        await one(store, commit(move("short", 0, *[None] * 10)))
        await one(store, commit(move("long", 0, *[None] * 100_000)))
        await one_turn(store, "short", 10)  # the first turn prepares the statements
        short, long = await one_turn(store, "short", 11), await one_turn(store, "long", 100_000)
        assert long["statements"] == short["statements"] > 0
        assert long["steps"] <= short["steps"] + 5
        lines = await store.history(FLOW, "long")
        assert [line.seq for line in lines] == list(range(1, 100_002))


async def test_looking_for_due_work_costs_what_is_due(tmp_path):
    """Ten thousand timers of the future, superseded once, cost a claim and a look nothing."""
    async with SQLiteStore(tmp_path / "due.db") as store:
        costs: list[Counter[str]] = []
        for crowd in (10, 10_000):
            later = [timer(f"t{n}", NOON + MINUTE * (n + 9)) for n in range(crowd)]
            await one(store, commit(touch(f"crowd-{crowd}", 0, puts=later)))
            await one(store, commit(touch(f"crowd-{crowd}", 0, puts=later)))
            await one(store, commit(touch("a", 0, puts=[timer("now", NOON), queue(1)])))
            async with traced(store) as said:
                assert len(await store.claim({FLOW: 1}, ME, MINUTE, 100, ("dead",), NOON)) == 1
                assert (await store.next_due({FLOW: 1}, NOON)).tokens == {ME}
            costs.append(said)
        assert costs[0]["statements"] == costs[1]["statements"]
        assert costs[1]["steps"] <= costs[0]["steps"] + 5


async def test_looking_for_owners_costs_the_owners(tmp_path):
    """Ten thousand leases of three owners cost a look as much as ten."""
    async with SQLiteStore(tmp_path / "owners.db") as store:
        costs: list[Counter[str]] = []
        for crowd in (10, 10_000):
            leases = [replace(timer(f"t{n}", NOON), token=f"token-{n % 3}") for n in range(crowd)]
            await one(store, commit(touch("a", 0, puts=leases)))
            async with traced(store) as said:
                assert len((await store.next_due({FLOW: 1}, NOON)).tokens) == 3
            costs.append(said)
        assert costs[1]["steps"] <= costs[0]["steps"] + 5


async def test_an_instance_of_many_rows_costs_its_rows(tmp_path):
    """All due rows of one instance are found by its id, whatever others have."""
    async with SQLiteStore(tmp_path / "rows.db") as store:
        await one(store, commit(move("a", 0, puts=[timer("t", NOON)])))
        costs: list[Counter[str]] = []
        for crowd in (10, 10_000):
            await one(store, commit(touch("b", 0, puts=[timer(f"t{n}", NOON) for n in range(crowd)])))
            async with traced(store) as said:
                (found,) = await store.load(FLOW, ["a"], rows=True)
                assert found is not None
                assert [row.name for row in found.rows] == ["t"]
            costs.append(said)
        assert costs[1]["steps"] <= costs[0]["steps"] + 5


async def test_a_page_of_heads_costs_a_page(tmp_path):
    """By workflow and by status, in a crowd of other heads."""
    async with SQLiteStore(tmp_path / "find.db") as store:
        changes = [move(f"i-{n:05}", 0, status="failed" if n % 100 == 0 else "running") for n in range(5000)]
        await store.append([commit(change) for change in changes])
        for query in (
            Query(workflow=FLOW, after="i-02500", limit=10),
            Query(workflow=FLOW, after="i-00500", limit=10, status=frozenset({"failed", "paused"})),
        ):
            async with traced(store) as said:
                assert len(await store.find(query)) == 10
            assert said["steps"] < 100


async def test_an_append_alone_needs_no_savepoint(tmp_path):
    """One commit over one instance is BEGIN, its rows and COMMIT; nothing is asked twice."""
    async with SQLiteStore(tmp_path / "one.db") as store:
        await one(store, commit(move("a", 0)))
        async with traced(store) as said:
            await one(store, commit(move("a", 1, "key", puts=[queue(2, absent=True)])))
        del said["steps"]
        assert said == {"BEGIN": 1, "UPDATE": 1, "INSERT": 2, "COMMIT": 1, "statements": 5}


async def test_a_group_is_one_transaction_without_savepoints(tmp_path):
    """Also when a member is refused before it has written anything."""
    async with SQLiteStore(tmp_path / "group.db") as store:
        ids = [f"i-{n}" for n in range(10)]
        await store.append([commit(move(id, 0)) for id in ids])
        moves = [commit(move(id, 1, "key")) for id in ids]
        moves[3] = commit(move("i-3", 7, "key"))
        async with traced(store) as said:
            answers = await asyncio.gather(*(one(store, each) for each in moves))
        assert [answer == Conflicted() for answer in answers] == [n == 3 for n in range(10)]
        assert (said["BEGIN"], said["COMMIT"], said["UPDATE"], said["INSERT"]) == (1, 1, 10, 9)
        assert said["SAVEPOINT"] == said["ROLLBACK"] == 0


async def test_a_group_with_a_half_written_refusal_is_done_again_with_savepoints(tmp_path):
    """Once: the member is undone alone, the others stand."""
    async with SQLiteStore(tmp_path / "group.db") as store:
        ids = [f"i-{n}" for n in range(10)]
        await store.append([commit(move(id, 0, "seen" if id == "i-3" else None)) for id in ids])
        async with traced(store) as said:
            answers = await asyncio.gather(*(one(store, commit(move(id, 1, "seen"))) for id in ids))
        assert [isinstance(answer, Duplicate) for answer in answers] == [n == 3 for n in range(10)]
        assert (said["BEGIN"], said["COMMIT"], said["SAVEPOINT"]) == (2, 1, 10)
        heads = [found.head.seq for found in await store.load(FLOW, ids) if found is not None]
        assert heads == [1 if n == 3 else 2 for n in range(10)]


async def test_loads_at_the_same_time_are_looked_for_together(tmp_path):
    """One look for all who ask at once."""
    async with SQLiteStore(tmp_path / "loads.db") as store:
        ids = [f"i-{n}" for n in range(50)]
        await store.append([commit(move(id, 0)) for id in ids])
        async with traced(store) as said:
            found = await asyncio.gather(*(loaded(store, id) for id in ids))
        assert [each.head.id for each in found] == ids
        assert said["BEGIN"] == 1


async def test_waiting_asks_nothing(tmp_path):
    """Other processes are watched without a query."""
    async with SQLiteStore(tmp_path / "idle.db") as store:
        async with traced(store) as said:
            await store.wait(0.6)
        assert said["statements"] == 0
