"""A service under load while its database is in trouble; when it is over, everything must agree."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import stat
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, LiteralString

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.conninfo import conninfo_to_dict

from stores import PostgresStore
from tests.flows import ROW, E, added, flow, story
from tests.server import Server
from workflow import ANY, STAY, Busy, Conflict, Edge, LeaseLost, Manager, StoreError, WorkflowError

LEASE = timedelta(seconds=2)


class Storm:
    """Callers that send ADD, each accepted one of which owes a hook; what they heard, and what hooks did."""

    def __init__(self, url: str, schema: str, *, instances: int = 20) -> None:
        self.url, self.schema = url, schema
        self.ids = [f"i-{n:03}" for n in range(instances)]
        self.heard: dict[tuple[str, str], int] = {}
        self.errors: list[WorkflowError] = []
        self.unwritten: set[tuple[str, str]] = set()
        self.ran: Counter[tuple[str, int]] = Counter()
        self._over = asyncio.Event()

        async def count(m: Any) -> None:
            self.ran[m.id, m.seq] += 1

        add: Any = Edge(ANY, E.ADD, STAY, assign=added, action=count)
        self.spec = flow("storm", edges=[add if edge.event is E.ADD else edge for edge in ROW])

    def manager(self, url: str | None = None, **more: Any) -> Manager[Any, Any, Any]:
        """A Manager on a store object of its own."""
        store = PostgresStore(url or self.url, schema=self.schema)
        chosen: dict[str, Any] = {"lease": LEASE, "drain": timedelta(seconds=5)} | more
        return Manager(self.spec, store, **chosen)

    async def begin(self, manager: Manager[Any, Any, Any]) -> None:
        """Every instance is there."""
        await asyncio.gather(*(manager.start(id) for id in self.ids))

    async def leave(self, manager: Manager[Any, Any, Any], many: int) -> None:
        """So many instances more, each with an effect that is due and nobody's."""
        ids = [f"left-{n:04}" for n in range(many)]
        store: PostgresStore = manager.store  # type: ignore[assignment]
        async with store.transaction() as transaction:
            for id in ids:
                await manager.send(id, E.ADD, 1, start=True, within=transaction)
        self.ids += ids

    async def rage(
        self, manager: Manager[Any, Any, Any], trouble: Callable[[], Awaitable[object]], *, tasks: int = 64
    ) -> None:
        """Callers call until the trouble is over."""
        async with asyncio.TaskGroup() as group:
            for n in range(tasks):
                group.create_task(self._call(manager, n))
            try:
                await trouble()
            finally:
                self._over.set()

    async def _call(self, manager: Manager[Any, Any, Any], n: int) -> None:
        turn = 0
        while not self._over.is_set():
            turn += 1
            id, key = random.choice(self.ids), f"{n}-{turn}"
            try:
                outcome = await manager.send(id, E.ADD, 1, key=key, timeout=5.0)
            except (StoreError, Busy, Conflict, LeaseLost) as error:  # anything else fails the test
                self.errors.append(error)
                if error.committed is False:
                    self.unwritten.add((id, key))
                await asyncio.sleep(0.01)
            else:
                self.heard[id, key] = outcome.transition.seq

    async def agree(self) -> None:
        """What is stored is what was heard; every hook ran; nothing is left to do."""
        async with self.manager() as manager:
            async with asyncio.timeout(12):
                while await rows(self.url, self.schema, "SELECT * FROM {}.due"):  # noqa: ASYNC110  # no event
                    await asyncio.sleep(0.05)
            total = 0
            for id in self.ids:
                await story(manager, id)
                history = await manager.history(id)
                kept = Counter(line.key for line in history[1:])
                assert kept.keys() >= {key for of, key in self.heard if of == id}
                assert not kept.keys() & {key for of, key in self.unwritten if of == id}, "said to be unwritten"
                assert set(kept.values()) <= {1}, "a key on two lines"
                assert all(self.heard.get((id, str(line.key)), line.seq) == line.seq for line in history)
                assert all(self.ran[id, line.seq] for line in history[1:]), "a hook that never ran"
                assert (await manager.get(id)).context.n == len(history) - 1
                assert [line.seq for line in history] == [*range(1, len(history) + 1)]
                total += len(history) - 1
        assert total >= len(self.heard)
        assert self.ran.total() - total <= len(self.errors) + total // 20, "hooks ran again and again"


async def rows(url: str, schema: str, query: LiteralString) -> list[tuple[Any, ...]]:
    """What a query finds, `{}` being the schema."""
    async with await AsyncConnection.connect(url, autocommit=True) as connection:
        return await (await connection.execute(sql.SQL(query).format(sql.Identifier(schema)))).fetchall()


def terminated(url: str, share: float = 1.0, wait: int = 0) -> int:
    """Ends backends of this role, each with this probability, and waits so many ms for the end of each; how many."""
    with psycopg.connect(url, autocommit=True) as connection:
        return len(
            connection.execute(
                "SELECT pg_terminate_backend(pid, %s) FROM pg_stat_activity"
                " WHERE usename = current_user AND pid <> pg_backend_pid() AND random() < %s",
                (wait, share),
            ).fetchall()
        )


def tell(server: Server, url: str, statement: LiteralString, *names: str) -> None:
    """The superuser says this of the names and then of the role of this url, in place of each `{}`."""
    role = str(conninfo_to_dict(url)["user"])
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(*map(sql.Identifier, (*names, role))))


@asynccontextmanager
async def nothing_leaks() -> AsyncIterator[None]:
    """No socket and no task outlives the block."""
    before = _sockets()
    yield
    gc.collect()
    async with asyncio.timeout(5):
        while _sockets() > before or len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110  # the last word may take a moment
            await asyncio.sleep(0.01)


def _sockets() -> int:
    with os.scandir("/proc/self/fd") as links:
        return sum(stat.S_ISSOCK(link.stat().st_mode) for link in links if link.is_symlink())
