"""Where a PostgresStore lives: schemas of any name, made by whoever comes first, for roles of any habits."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from stores import PostgresStore
from stores.pg_tables import STEPS
from tests.flows import Ctx, E, Log, S, flow, story
from tests.server import Server
from workflow import Manager
from workflow.errors import StoreError
from workflow.record import Query
from workflow.store import Store
from workflow.testing.conformance.rows import FLOW, ME, MINUTE, NOON, commit, move, queue, timer
from workflow.testing.conformance.suite import claimed, done, feed, loaded, seqs, started

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """One on which roles can be made."""
    with Server(fsync=False) as server:
        yield server


@pytest.fixture
def url(server: Server) -> str:
    """Of a new role in a new database of its own."""
    return server.create_role(f"role {uuid4().hex}")


def execute(url: str, statement: LiteralString, *names: str) -> None:
    """One statement, `{}` standing for a name."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names)))


def used_to(url: str, name: str, value: str) -> None:
    """From now on the role's sessions begin with this setting."""
    with psycopg.connect(url, autocommit=True) as connection:
        alter = sql.SQL("ALTER ROLE {} SET {} = {}")
        connection.execute(alter.format(sql.Identifier(role(url)), sql.Identifier(name), sql.Literal(value)))


def rows(url: str, statement: LiteralString, *names: str) -> list[Any]:
    """What a query finds."""
    with psycopg.connect(url) as connection:
        return connection.execute(sql.SQL(statement).format(*map(sql.Identifier, names))).fetchall()


def role(url: str) -> str:
    """Who comes by this url."""
    return str(conninfo_to_dict(url)["user"])


async def works(store: Store, id: str = "a") -> None:
    """Every verb does on an open store what it should."""
    before, cursor = await feed(store)
    await started(store, id, queue(1), timer("t", NOON))
    await done(store, move(id, 1, "key \u2603", None, labels='{"who":"\\ud83e\\udd86"}'), move(f"{id} too", 0))
    assert (await loaded(store, id)).head.seq == 3
    assert await seqs(store, id) == [1, 2, 3]
    line = await store.recall(FLOW, id, "key \u2603")
    assert line is not None
    assert (line.seq, line.at) == (2, NOON)
    assert [head.id for head in await store.find(Query(workflow=FLOW, labels=(("who", "\U0001f986"),)))] == [id]
    assert {row.name for row in await claimed(store, NOON + 2 * MINUTE)} == {"t", "effects"}
    assert not (await store.renew(ME, [(FLOW, id, "t")], MINUTE, NOON)).lost
    assert (await store.next_due({FLOW: 1}, NOON)).at == NOON + 3 * MINUTE
    assert len((await feed(store, cursor))[0]) == 4
    await store.wait(0.01)
    assert isinstance(store, PostgresStore)
    async with store.transaction() as transaction:
        await transaction.append([commit(move(id, 3))])
        assert await seqs(transaction, id) == [1, 2, 3, 4]
    assert len((await feed(store))[0]) == len(before) + 5


# --- names ------------------------------------------------------------------------------------------

NAMES = [
    "plain",
    "UPPER and lower",
    'a "quoted" one',
    '"',
    "it's; DROP SCHEMA plain --",
    "with.a.dot",
    "{S}",
    "%s {} $1",
    "back\\slash",
    " ",
    "select",
    "\u00dcn\u00efc\u00f6de \U0001f986",
    "x" * 63,
    "x" + "\u00fc" * 31,
]


@pytest.mark.parametrize("name", NAMES)
async def test_a_schema_may_have_any_name(postgres, name):
    """Quoted as it must be, wherever it is used; opened again it is found again."""
    try:
        for id in ("a", "b"):
            async with asyncio.timeout(20), PostgresStore(postgres, schema=name) as store:
                await works(store, id)
        assert rows(postgres, "SELECT count(*) FROM {}.line", name) == [(10,)]
    finally:
        execute(postgres, "DROP SCHEMA {} CASCADE", name)


@pytest.mark.parametrize("name", ["", "x" * 64, "\u00fc" * 32, "a\0b"])
def test_a_name_that_postgresql_would_cut_is_refused(name):
    """PostgreSQL keeps 63 bytes: two such names might be one schema."""
    with pytest.raises(ValueError, match="1 to 63 bytes"):
        PostgresStore("postgresql://db/orders", schema=name)


async def test_a_name_that_postgresql_refuses_is_a_store_error(postgres):
    """Names that begin with pg_ are the server's own. Nothing stays open, and another name works."""
    store = PostgresStore(postgres, schema="pg_mine")
    with pytest.raises(StoreError, match="pg_mine") as e:
        await store.__aenter__()
    assert (type(e.value), e.value.committed) == (StoreError, False)
    with pytest.raises(RuntimeError, match="async with"):
        await store.load(FLOW, ["a"])


async def test_two_schemas_know_nothing_of_each_other(url):
    """Neither instances nor cursors, and none hears the other."""
    async with PostgresStore(url, schema="one") as one, PostgresStore(url, schema="two") as two:
        await started(one, "a")
        _, cursor = await feed(one)
        assert await two.load(FLOW, ["a"]) == [None]
        with pytest.raises(StoreError, match="not given out"):
            await two.read(cursor)


# --- made and migrated ------------------------------------------------------------------------------


async def test_many_stores_make_one_schema(url):
    """Twelve open a schema that is not there, at once: all of them can use it."""
    stores = [PostgresStore(url, schema="new") for _ in range(12)]
    async with asyncio.timeout(20):
        await asyncio.gather(*(store.__aenter__() for store in stores))
        await asyncio.gather(*(started(store, f"i-{n}") for n, store in enumerate(stores)))
        assert len((await feed(stores[0]))[0]) == 12
        await asyncio.gather(*(store.__aexit__(None, None, None) for store in stores))
    assert rows(url, "SELECT version FROM {}.meta", "new") == [(len(STEPS),)]


def test_many_processes_make_one_schema(url):
    """Whoever comes first makes it, the others find it."""
    script = """
import asyncio, sys
from stores import PostgresStore
from workflow.testing.conformance.suite import started

async def main():
    async with PostgresStore(sys.argv[1]) as store:
        await started(store, sys.argv[2])
asyncio.run(main())
"""
    command = [sys.executable, "-W", "error", "-c", script, url]
    children = [subprocess.Popen([*command, str(n)], cwd=ROOT, stderr=subprocess.PIPE) for n in range(5)]
    for each in children:
        _, said = each.communicate(timeout=40)
        assert each.returncode == 0, said.decode()
    assert len(rows(url, "SELECT id FROM {}.head", "enumflow")) == 5


async def test_a_newer_schema_is_refused(url):
    """Older code would not know what it destroys. Nothing is changed, and nothing stays open."""
    async with PostgresStore(url) as store:
        await started(store, "a")
    execute(url, "UPDATE enumflow.meta SET version = version + 1")
    with pytest.raises(StoreError, match="upgrade enumflow"):
        await PostgresStore(url).__aenter__()
    assert rows(url, "SELECT version FROM enumflow.meta") == [(len(STEPS) + 1,)]
    query: LiteralString = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    async with asyncio.timeout(5):
        while rows(url, query) != [(0,)]:  # noqa: ASYNC110  # the server has its own pace
            await asyncio.sleep(0.01)


# --- roles ------------------------------------------------------------------------------------------


@pytest.fixture
def guest(server: Server, url: str) -> str:
    """The url of a role that may do nothing in that database but connect."""
    name = f"guest {uuid4().hex}"
    execute(server.url, "CREATE ROLE {} LOGIN", name)
    return make_conninfo(url, user=name)


async def test_a_role_that_was_given_a_schema_needs_to_create_none(url, guest):
    """CREATE and USAGE on a schema that is there are enough."""
    execute(url, "CREATE SCHEMA given")
    execute(url, "GRANT USAGE, CREATE ON SCHEMA given TO {}", role(guest))
    async with PostgresStore(guest, schema="given") as store:
        await works(store)
    assert rows(guest, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") == [(False,)]


async def test_a_role_that_may_only_use_the_tables(url, guest):
    """Who deploys makes the schema, who serves needs to read and write its rows."""
    async with PostgresStore(url) as store:
        await works(store)
    execute(url, "GRANT USAGE ON SCHEMA enumflow TO {}", role(guest))
    execute(url, "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA enumflow TO {}", role(guest))
    async with PostgresStore(guest) as store:
        await works(store, "b")


async def test_a_role_that_may_nothing_hears_so(guest):
    """It is told what is missing, and nothing was written."""
    with pytest.raises(StoreError, match="permission denied") as e:
        await PostgresStore(guest).__aenter__()
    assert (type(e.value), e.value.committed) == (StoreError, False)


HABITS = {
    "search_path": "nowhere",
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "TimeZone": "Asia/Kathmandu",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "sql_standard",
    "bytea_output": "escape",
    "standard_conforming_strings": "off",
    "escape_string_warning": "off",
    "row_security": "off",
    "array_nulls": "off",
    "extra_float_digits": "-5",
    "client_encoding": "latin1",
    "client_min_messages": "debug1",
    "synchronous_commit": "off",
    "transform_null_equals": "on",
    "lock_timeout": "1ms",
    "plan_cache_mode": "force_custom_plan",
    "quote_all_identifiers": "on",
}


@pytest.mark.parametrize("habit", HABITS)
async def test_the_habits_of_a_role_do_not_matter(url, habit):
    """Whatever its sessions are set to, the store's own statements mean the same."""
    used_to(url, habit, HABITS[habit])
    async with PostgresStore(url) as store:
        await works(store)


async def test_all_habits_at_once_and_a_workflow(url):
    """Hooks, timers, transactions of the user's: a whole workflow on a role that is odd in every way."""
    for name, value in HABITS.items():
        used_to(url, name, value)
    log, store = Log(), PostgresStore(url)
    async with Manager(flow(on_enter={S.B: log.hook("b \u00e9")}), store) as m:
        await m.start("\u00e9", Ctx(1, ("\u00e9",)))
        assert (await m.send("\u00e9", E.GO, key="k")).settled
        async with store.transaction() as tx:
            await tx.connection.execute("CREATE TABLE public.word (at timestamptz, for_long interval)")
            await tx.connection.execute("INSERT INTO public.word VALUES (%s, %s)", (NOON, timedelta(days=-1, hours=3)))
            await m.send("\u00e9", E.ADD, 2, within=tx)
        assert (await m.get("\u00e9")).context == Ctx(3, ("\u00e9",))
        assert await story(m, "\u00e9") == ["start", "event", "event"]
        assert log == ["b \u00e9"]
    assert rows(url, "SHOW default_transaction_isolation") == [("serializable",)]
