"""How often PostgreSQL is asked: groups are shared out, one alone takes the plain way, each hook is one commit more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

import psycopg
import pytest

from stores import PostgresStore, SQLiteStore, pg_sql
from stores.pg_bell import Bell
from stores.pg_link import Wire
from stores.pg_write import Writer
from tests.flows import E, Log, S, Tap, edged, flow
from tests.server import Server
from workflow import Edge, Manager
from workflow.record import QUEUE, Commit, Committed
from workflow.testing.conformance.rows import FLOW, commit, lease_of, move, queue, touch
from workflow.testing.conformance.suite import done, one, started


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Nobody but the tests gets transaction ids on it."""
    with Server(fsync=False, settings={"autovacuum": "off"}) as server:
        yield server


@pytest.fixture(scope="module")
def app(server: Server) -> str:
    """The url of a role, no superuser."""
    return server.create_role("app")


@pytest.fixture
async def store(app, request) -> AsyncIterator[PostgresStore]:
    async with asyncio.timeout(20), PostgresStore(app, schema=request.node.name[:60]) as store:
        yield store


class Flights:
    """Which writer wrote how many commits, and with which statements."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.groups: list[tuple[int, int]] = []
        self.statements: list[str] = []
        write, run = Writer.__call__, Wire.run
        names = {text: name for name, text in vars(pg_sql).items() if isinstance(text, str)}

        async def written(writer: Writer, n: int, commits: Sequence[Commit], timeout: float | None) -> Any:
            self.groups.append((n, len(commits)))
            return await write(writer, n, commits, timeout)

        async def ran(wire: Wire, statement: bytes, values: Sequence[Any]) -> Any:
            text, schema = statement.decode(), wire_schema[0]
            self.statements.append(names.get(text.replace(schema, "{S}"), text))
            return await run(wire, statement, values)

        wire_schema = ['"nothing"']
        self.schema = wire_schema
        patch.setattr(Writer, "__call__", written)
        patch.setattr(Wire, "run", ran)
        patch.setattr(Bell, "ring", lambda bell: None)


@pytest.fixture
def flights(monkeypatch, store) -> Flights:
    flights = Flights(monkeypatch)
    flights.schema[0] = store._schema.name
    return flights


def transactions(url: str) -> int:
    """How many transactions of this server have written."""
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint").fetchone()
    assert row is not None
    return int(row[0])


async def test_two_writers_share_the_queue(store, flights):
    """With 64 or more waiting each takes its share; fewer go out together."""
    for many, shares in ((100, [50, 50]), (64, [32, 32]), (63, [63])):
        flights.groups.clear()
        await asyncio.gather(*(started(store, f"{many}-{n}") for n in range(many)))
        assert [size for _, size in flights.groups] == shares
        assert len({writer for writer, _ in flights.groups}) == len(shares)


async def test_both_writers_are_kept_busy(store, flights):
    """In the long run callers do not fall into one lockstep group: both write, at the same time."""
    flying: set[int] = set()
    together = 0
    write = Writer.__call__

    async def counted(writer: Writer, n: int, commits: Sequence[Commit], timeout: float | None) -> Any:
        nonlocal together
        flying.add(n)
        together += len(flying) == 2
        try:
            return await write(writer, n, commits, timeout)
        finally:
            flying.discard(n)

    async def go(id: str) -> None:
        for seq in range(40):
            await done(store, move(id, seq))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "__call__", counted)
        await asyncio.gather(*(go(f"i-{n}") for n in range(64)))
    by = {n: sum(size for writer, size in flights.groups if writer == n) for n in (0, 1)}
    assert sum(by.values()) == 64 * 40
    assert min(by.values()) > 64 * 40 / 5, by
    assert together > len(flights.groups) / 5, (together, len(flights.groups))


async def test_one_alone_takes_the_plain_statement(store, flights):
    """A move, one that owes, the settle of a last effect: each is one statement of its own, without BEGIN."""
    await started(store, "a")
    flights.statements.clear()
    await done(store, move("a", 1, "key"))
    owing = await one(store, commit(move("a", 2, "k", owes=["h"], puts=[queue(3, absent=True)])))
    assert isinstance(owing, Committed)
    assert owing.leased is not None
    await done(store, touch("a", 3, lease=lease_of(owing.leased), drops=[QUEUE]))
    assert flights.statements == ["MOVE", "MOVE_OWING", "SETTLE"]
    assert flights.groups[1:] == [(flights.groups[-1][0], 1)] * 3
    await asyncio.gather(*(done(store, move(f"i-{n}", 0)) for n in range(3)))
    assert flights.statements[3:] == ["GROUP"]


@pytest.mark.parametrize("hooks", [0, 1, 2, 5])
async def test_a_move_with_hooks_is_one_commit_and_one_for_each(app, store, flights, hooks):
    """Counted by the server's own transaction ids: settling leases the next effect in the same commit."""
    log = Log()
    spec = flow(on_enter={S.B: [log.hook(f"hook-{n}") for n in range(hooks)]})
    async with Manager(spec, store, work=False) as manager:
        for id in ("warm", "i"):
            await manager.start(id)
            flights.statements.clear()
            before = transactions(app)
            assert (await manager.send(id, E.GO)).settled
            assert transactions(app) - before == 1 + hooks
    assert log == [f"hook-{n}" for n in range(hooks)] * 2
    assert flights.statements == (["MOVE_OWING"] + ["GROUP"] * (hooks - 1) + ["SETTLE"] if hooks else ["MOVE"])


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_commits_of_a_move_are_counted_alike(app, store, tmp_path, kind):
    """Three hooks in all, at the exit, on the edge and at the entry: four commits; without hooks one."""
    log = Log()
    tap = Tap(SQLiteStore(tmp_path / "i.db") if kind == "sqlite" else PostgresStore(app, schema="counted"))
    edges = edged(Edge(S.A, E.GO, S.B, action=log.hook("on the edge")))
    spec = flow(edges=edges[:1] + edges[2:], on_exit={S.A: log.hook("exit")}, on_enter={S.B: log.hook("entry")})
    async with Manager(spec, tap, work=False) as manager:
        await manager.start("i")
        for event, commits in ((E.NOTE, 1), (E.GO, 4), (E.NOTE, 1)):
            tap.calls.clear()
            assert (await manager.send("i", event)).settled
            assert tap.calls["append"] == commits
    assert log == ["exit", "on the edge", "entry"]


async def test_settles_go_through_the_same_groups(store, flights):
    """Sixty-four moves with a hook each: their settles share statements, too."""
    spec = flow(on_enter={S.B: Log().hook("hook")})
    async with Manager(spec, store, work=False) as manager:
        ids = [f"i-{n}" for n in range(64)]
        await asyncio.gather(*(manager.start(id) for id in ids))
        flights.groups.clear()
        await asyncio.gather(*(manager.send(id, E.GO) for id in ids))
    assert sum(size for _, size in flights.groups) == 128
    assert len(flights.groups) <= 128 / 4, flights.groups
    assert await store.next_due({"flow": 1})


async def test_loads_are_grouped(store, monkeypatch):
    """What is asked for while a look is under way is looked for together in the next."""
    await started(store, "a")
    asked: list[int] = []
    scout = store._use().scout
    run = scout.run

    async def counted(statement: bytes, values: Sequence[Any]) -> Any:
        asked.append(len(values[0]))
        return await run(statement, values)

    monkeypatch.setattr(scout, "run", counted)
    found = await asyncio.gather(*(store.load(FLOW, ["a", f"no-{n}"]) for n in range(50)))
    assert all(a is not None and none is None for a, none in found)
    assert sum(asked) == 100
    assert len(asked) <= 4
