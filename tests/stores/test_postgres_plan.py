"""PostgreSQL's work follows what is asked for, not what is stored, with plans made before anything was."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, LiteralString

import pytest
from msgspec.structs import replace
from psycopg import AsyncConnection, sql

from stores import PostgresStore, postgres
from tests.server import Server
from workflow.record import QUEUE, Committed, Lease, Put, Query
from workflow.testing.conformance.rows import FLOW, ME, MINUTE, NOON, commit, lease_of, move, queue, timer, touch
from workflow.testing.conformance.suite import done, one, started

LONG = 100_000
SETTINGS = {
    "autovacuum": "off",  # and so no ANALYZE either
    "shared_buffers": "512MB",
    "max_wal_size": "8GB",
    "shared_preload_libraries": "auto_explain",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_buffers": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_format": "json",
}
FILL: tuple[tuple[LiteralString, ...], ...] = (
    (
        """INSERT INTO enumflow.head SELECT 1, 3, 1, 1, 0, '2020-01-01', '2020-01-01', 1, 'order', 'i-' || to_char(n, 'FM0000000'),
             's1', CASE WHEN n % 10 = 0 THEN 'running' ELSE 'finished' END, '{}', '{}' FROM generate_series(1, 1000000) n""",
        """INSERT INTO enumflow.due SELECT '2020-01-01'::timestamptz + n * interval '1 second', 1, 0, 0, 1, n % 10 = 0, 'order',
             'i-' || to_char(n, 'FM0000000'), 'effects', CASE WHEN n % 1000 = 1 THEN 'dead' END FROM generate_series(1, 200000) n""",
        """INSERT INTO enumflow.due SELECT '2040-01-01'::timestamptz + n * interval '1 second', 1, 0, 0, 1, false, 'order',
             'i-' || to_char(n, 'FM0000000'), 'timer', CASE WHEN n % 10000 = 1 THEN 'gone' END FROM generate_series(1, 200000) n""",
    ),
    (
        """INSERT INTO enumflow.line SELECT n / 64, 1, 1, NULL, 0, NULL, '2020-01-01', gen_random_uuid(), 0, 1, 'order',
             'i-' || to_char(n, 'FM0000000'), 'start', NULL, NULL, 's1', 'running', 'me', CASE WHEN n % 4 = 0 THEN 'key' END, NULL, '{}', NULL,
             CASE WHEN n <= 200000 THEN '["hook"]'::json END FROM generate_series(1, 1000000) n""",
        """INSERT INTO enumflow.line SELECT 16000 + n / 64, n, 1, NULL, 0, NULL, '2020-01-01', gen_random_uuid(), 0, 1, 'order',
             'long', 'event', 's1', 'go', 's1', 'running', 'me', 'key-' || n FROM generate_series(1, 100000) n""",
        """INSERT INTO enumflow.head SELECT 100001, 3, 1, 1, 0, '2020-01-01', '2020-01-01', 1, 'order', 'long',
             's1', 'running', '{}', '{}'""",
        """INSERT INTO enumflow.line SELECT 3, 100001, 1, NULL, 0, NULL, '2020-01-01', gen_random_uuid(), 0, 1, 'order',
             'long', 'event', 's1', 'go', 's1', 'running', 'me', NULL, NULL, '{}', NULL, '["hook"]'""",
        """INSERT INTO enumflow.due SELECT '2040-01-01', 0, 0, 1, 1, true, 'order', 'long', 'effects'""",
        "UPDATE enumflow.meta SET shift = 20000",  # so that these places in the feed lie in the past
    ),
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(fsync=False, settings=SETTINGS) as server:
        yield server


class Watch:
    """What the server says of the plans it has just run."""

    def __init__(self, server: Server) -> None:
        self._server = server

    @asynccontextmanager
    async def plans(self) -> AsyncIterator[list[dict[str, Any]]]:
        """Those run in the block, when it is over."""
        found: list[dict[str, Any]] = []
        await self._say("0")
        start = len(self._server.log)
        yield found
        await self._say("-1")
        found += [plan for plan in _plans(self._server.log[start:]) if "enumflow" in plan["Query Text"]]

    async def _say(self, least: LiteralString) -> None:
        name = "auto_explain.log_min_duration"
        async with await AsyncConnection.connect(self._server.url, autocommit=True) as connection:
            await connection.execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.SQL(name), least))
            await connection.execute("SELECT pg_reload_conf()")
        await asyncio.sleep(0.1)


def _plans(log: str) -> Iterator[dict[str, Any]]:
    for part in log.split("  plan:\n")[1:]:
        lines: list[str] = []
        for line in part.splitlines():
            if not line.startswith("\t"):
                break
            lines.append(line[1:])
        yield json.loads("\n".join(lines))


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def blocks(plans: Collection[dict[str, Any]]) -> int:
    """How many blocks they touched, wherever these were; each table by an index only."""
    for plan in plans:
        for node in _nodes(plan["Plan"]):
            scanned = node["Node Type"] == "Seq Scan" and node["Relation Name"] != "meta"
            assert not scanned, (node, plan["Query Text"])
            if "Relation Name" in node:
                assert node.get("Rows Removed by Filter", 0) <= 64, (node, plan["Query Text"])
    return sum(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] for plan in plans)


async def fill(url: str) -> None:
    """A million instances, without ANALYZE."""

    async def run(statements: tuple[LiteralString, ...]) -> None:
        async with await AsyncConnection.connect(url) as connection:
            await connection.execute("SET synchronous_commit = off")
            for statement in statements:
                await connection.execute(statement)

    await asyncio.gather(*map(run, FILL))


class Verbs:
    """Every verb, on other instances at each round."""

    def __init__(self, store: PostgresStore) -> None:
        self.store = store
        self.n = 0

    def ids(self, many: int) -> list[str]:
        self.n += many
        return [f"i-{n:07}" for n in range(500_000 + self.n, 500_000 + self.n + many)]

    async def group(self) -> None:
        await self.store.append([commit(move(id, 1, "new")) for id in self.ids(64)])

    async def group_that_owes(self) -> None:
        ids = self.ids(64)
        owing = [commit(move(id, 1, "new", owes=["hook"], puts=[queue(2, absent=True)])) for id in ids]
        answers = await self.store.append(owing)
        rows = [answer.leased for answer in answers if isinstance(answer, Committed) and answer.leased]
        settles = [commit(touch(row.id, 2, lease=lease_of(row), drops=[QUEUE])) for row in rows]
        await self.store.append(settles)

    async def starts(self) -> None:
        await self.store.append([commit(move(f"new-{id}", 0, "new")) for id in self.ids(64)])

    async def single(self) -> None:
        await one(self.store, commit(move(self.ids(1)[0], 1, "new")))

    async def single_that_owes(self) -> None:
        (id,) = self.ids(1)
        answer = await one(self.store, commit(move(id, 1, "new", owes=["hook"], puts=[queue(2, absent=True)])))
        if isinstance(answer, Committed) and answer.leased:
            await one(self.store, commit(touch(id, 2, lease=lease_of(answer.leased), drops=[QUEUE])))

    async def long_move(self) -> None:
        await one(self.store, commit(move("long", LONG + 1, f"new-{self.n}")))

    async def refused(self) -> None:
        await self.store.append([commit(move(id, 7, "key")) for id in self.ids(64)])

    async def whole(self) -> None:
        await one(self.store, commit(*(move(id, 1, "new") for id in self.ids(2))))

    async def load(self) -> None:
        await self.store.load(FLOW, ["long", *(f"i-{n:07}" for n in random.sample(range(1, 200_000), 63))])

    async def load_rows(self) -> None:
        await self.store.load(FLOW, ["long", *(f"i-{n:07}" for n in random.sample(range(1, 200_000), 63))], rows=True)

    async def fire(self) -> None:
        """Timers of 64 instances: claimed by hand, fired, and once more in vain."""
        lease = Lease(token=ME, seq=1, number=0, attempt=1, name="t")
        ids = self.ids(64)
        await self.store.append([commit(touch(id, 1, puts=[fired(NOON)])) for id in ids])
        for _ in range(2):
            moves = [move(id, 1, lease=lease, drops=["t"], puts=[timer("t-2", NOON, seq=2)]) for id in ids]
            await self.store.append([commit(each) for each in moves])
        await self.store.append([commit(touch(id, 2, lease=lease, drops=["t"])) for id in ids])

    async def erase(self) -> None:
        await one(self.store, commit(replace(move(self.ids(1)[0], 1, "new"), erase=True)))

    async def history(self) -> None:
        await self.store.history(FLOW, "i-0000777")
        await self.store.history(FLOW, "long", 50_000, 100)

    async def recall(self) -> None:
        await self.store.recall(FLOW, "long", "key-5000")

    async def claim(self) -> None:
        await self.store.claim({FLOW: 1}, ME, MINUTE, 100)

    async def claim_from_the_dead(self) -> None:
        await self.store.claim({FLOW: 1}, ME, MINUTE, 100, ["gone", "other"], NOON - timedelta(days=9000))

    async def renew(self) -> None:
        await self.store.renew(ME, [(FLOW, f"i-{n:07}", "effects") for n in range(1, 65)], MINUTE)

    async def next_due(self) -> None:
        await self.store.next_due({FLOW: 1})

    async def find(self) -> None:
        await self.store.find(Query(workflow=FLOW, status=frozenset({"running"}), after="i-0300000", limit=100))

    async def find_any(self) -> None:
        await self.store.find(Query(workflow=FLOW, after="i-0300000", limit=100))

    async def read(self) -> None:
        page = await self.store.read(limit=100)
        await self.store.read(page.cursor, 100)

    async def within(self) -> None:
        async with self.store.transaction() as transaction:
            await transaction.lock(FLOW, self.ids(1)[0], 0.0)
            await transaction.load(FLOW, self.ids(1))
            await transaction.recall(FLOW, "long", "key-5000")
            await transaction.history(FLOW, "long", 50_000, 10)
            owing: dict[str, Any] = {"owes": ["hook"], "puts": [queue(2, absent=True)]}
            await transaction.append([commit(move(id, 1, "new", **owing)) for id in self.ids(2)])
            await transaction.append([commit(move(self.ids(1)[0], 1, "new")), commit(move("long", 7))])


def fired(at: datetime) -> Put:
    """A timer that the caller has claimed."""
    return replace(timer("t", at), token=ME, attempt=1)


MOST = {
    "group": 64 * 30,
    "group_that_owes": 64 * 60,
    "starts": 64 * 35,
    "single": 40,
    "single_that_owes": 80,
    "long_move": 40,
    "refused": 64 * 40,
    "whole": 60,
    "load": 64 * 20,
    "load_rows": 64 * 20,
    "fire": 64 * 120,
    "erase": 60,
    "history": 30,
    "recall": 12,
    "claim": 100 * 30,
    "claim_from_the_dead": 20 * 30,
    "renew": 64 * 30,
    "next_due": 90,
    "find": 60,
    "find_any": 20,
    "read": 60,
    "within": 200,
}
"""Blocks that a verb may touch: a few for each row that it writes or finds, in each index."""


async def test_plans_made_on_empty_tables_serve_a_million_rows(server, monkeypatch):
    """No verb scans a table or reads more than it needs, though nobody ever counted the rows."""
    watch = Watch(server)
    monkeypatch.setattr(postgres, "WRITERS", 1)  # so that what is prepared before is what is run afterwards
    monkeypatch.setattr(postgres, "READERS", 1)
    async with PostgresStore(server.create_role("app"), pool=1) as store:
        verbs = Verbs(store)
        for _ in range(8):  # often enough for a plan that is kept
            for name in MOST:
                await getattr(verbs, name)()
        await fill(store._url)
        for name, most in MOST.items():
            async with watch.plans() as plans:
                await getattr(verbs, name)()
            assert plans, name
            assert blocks(plans) <= most, name


async def test_updates_stay_in_their_block(server):
    """Moves of instances in any order touch no index of the heads: HOT, as long as no index holds what moves change."""
    url = server.create_role("hot")
    ids = [f"i-{n:05}" for n in range(4000)]
    async with PostgresStore(url) as store:
        await asyncio.gather(*(started(store, id) for id in ids))
        for seq in (1, 2, 3):
            random.shuffle(ids)
            await asyncio.gather(*(done(store, move(id, seq)) for id in ids))
    async with await AsyncConnection.connect(url) as connection, asyncio.timeout(10):
        updated = hot = 0
        while updated < 3 * len(ids):  # a connection that was closed has told all, in a moment
            found = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'head'"
            ((updated, hot),) = await (await connection.execute(found)).fetchall()
            await connection.rollback()
            await asyncio.sleep(0.05)
        names = "SELECT indexdef FROM pg_indexes WHERE tablename = 'head'"
        indexes = [text for (text,) in await (await connection.execute(names)).fetchall()]
    assert hot >= 0.9 * updated
    assert sorted(text.partition(" USING btree ")[2] for text in indexes) == [
        "(workflow, id)",
        "(workflow, status, id) WHERE (status > ''::text)",
    ]
