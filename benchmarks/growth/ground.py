"""A store with its tables within reach: to fill them in bulk, and for the bare loop on the same rows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from time import monotonic_ns
from typing import Any, Protocol

from psycopg import AsyncRawCursor
from psycopg.types.numeric import Int8

from stores import PostgresStore, SQLiteStore, pg_sql, sql
from workflow import Store

from ..bare import postgres, sqlite
from ..bare.group import Group
from ..bare.press import Row
from ..case import POSTGRES, SQLITE, Stage
from ..database import schema

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Ground(Protocol):
    """An opened store and a connection of the bare loop to its tables."""

    name: str
    store: Store
    bare: Group[Row]

    async def query(self, statement: str) -> Sequence[tuple[Any, ...]]:
        """Run a statement; what it answers."""
        ...

    def moment(self, at: datetime) -> str:
        """A time as SQL."""
        ...

    def after(self, at: datetime, seconds: str) -> str:
        """A time so many seconds (SQL) later, as SQL."""
        ...

    async def plan(self) -> str:
        """How the database finds a page of instances in flight."""
        ...

    async def scans(self) -> int:
        """How often the whole table of heads was read so far."""
        ...


class _Lite:
    name = SQLITE

    def __init__(self, store: Store, db: Any, run: sqlite.Run) -> None:
        self.store, self._db, self._run = store, db, run
        self.bare = sqlite.grouped(db, run)

    async def query(self, statement: str) -> Sequence[tuple[Any, ...]]:
        return await self._run(lambda: self._db.execute(statement).fetchall())  # type: ignore[no-any-return]

    def moment(self, at: datetime) -> str:
        return str(sql.micros(at))

    def after(self, at: datetime, seconds: str) -> str:
        return f"{sql.micros(at)} + ({seconds}) * 1000000"

    async def plan(self) -> str:
        values = {"workflow": "light", "status": "running", "after": "", "states": None, "before": None}
        found = await self._run(lambda: self._db.execute(f"EXPLAIN QUERY PLAN {sql.FIND_STATUS}", values).fetchall())
        return "\n".join(row[-1] for row in found)

    async def scans(self) -> int:
        return (await self.plan()).count("SCAN head")


class _Server:
    name = POSTGRES

    def __init__(self, store: Store, db: postgres.Db) -> None:
        self.store, self._db = store, db
        self.bare = Group[Row](partial(postgres.move_all, db))

    async def query(self, statement: str) -> Sequence[tuple[Any, ...]]:
        done = await self._db.execute(statement.encode())
        return await done.fetchall() if done.description else []

    def moment(self, at: datetime) -> str:
        return f"to_timestamp({(at - _EPOCH).total_seconds()})"

    def after(self, at: datetime, seconds: str) -> str:
        return f"to_timestamp({(at - _EPOCH).total_seconds()} + ({seconds}))"

    async def plan(self) -> str:
        values = ("light", "", None, None, None, Int8(100), ["running"])
        statement = "EXPLAIN (ANALYZE, BUFFERS) " + pg_sql.FIND_STATUS.replace("{S}.", "")
        found = await AsyncRawCursor(self._db).execute(statement.encode(), values)
        return "\n".join(row[0] for row in await found.fetchall())

    async def scans(self) -> int:
        await asyncio.sleep(1.1)  # a session tells its counts once a second
        await self.query("SELECT pg_stat_clear_snapshot()")
        found = await self.query(
            "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'head' AND schemaname = current_schema()"
        )
        return int(found[0][0])


@asynccontextmanager
async def _lite(stage: Stage) -> AsyncGenerator[Ground]:
    path = stage.folder / f"growth-{monotonic_ns()}.db"
    async with SQLiteStore(path) as store:
        db = sqlite.connect(path)
        async with sqlite.threaded(db) as run:
            yield _Lite(store, db, run)
    for file in stage.folder.glob(f"{path.name}*"):
        file.unlink()


@asynccontextmanager
async def _server(stage: Stage) -> AsyncGenerator[Ground]:
    url = stage.url()
    async with schema(url) as name, PostgresStore(url, schema=name) as store, await postgres.connect(url, name) as db:
        yield _Server(store, db)


def grounds(stage: Stage) -> list[tuple[str, AbstractAsyncContextManager[Ground]]]:
    """One of each kind, not yet entered."""
    return [(SQLITE, _lite(stage)), (POSTGRES, _server(stage))]


# --- filling --------------------------------------------------------------------------------------------


async def copies(
    ground: Ground, table: str, fields: Sequence[str], where: str, span: tuple[int, int], **changed: str
) -> None:
    """Copy a row once for each s.n of `span`, with some fields changed to SQL expressions."""
    names = ", ".join(f'"{field}"' for field in fields)
    values = ", ".join(changed.get(field, f'r."{field}"') for field in fields)
    await ground.query(
        f"WITH RECURSIVE s(n) AS (SELECT {span[0]} UNION ALL SELECT n + 1 FROM s WHERE n < {span[1]}) "  # noqa: S608  # ours
        f"INSERT INTO {table} ({names}) SELECT {values} FROM {table} r, s WHERE {where}"
    )


def fields_of(ground: Ground, table: str) -> tuple[str, ...]:
    """The columns of a table."""
    own = {"head": sql.HEAD, "line": sql.LINE, "due": sql.DUE}[table]
    placed = ("pos",) if ground.name == POSTGRES and table != "due" else ()
    return (*own, *placed)


async def lengthen(ground: Ground, id: str, to: int) -> None:
    """Press a light that was pressed twice on and on, to a history of `to` lines, without an engine."""
    mine = f"r.workflow = 'light' AND r.id = '{id}' AND r.seq = 2 + s.n % 2"
    await copies(
        ground,
        "line",
        fields_of(ground, "line"),
        mine,
        (4, to),
        seq="s.n",
        key="'press ' || (s.n - 2)",
        below="s.n - 1",
    )
    state = "green" if to % 2 == 0 else "red"
    await ground.query(f"UPDATE head SET seq = {to}, top = {to}, state = '{state}' WHERE id = '{id}'")  # noqa: S608  # ours


async def multiply(ground: Ground, seed: str, span: tuple[int, int], **head: str) -> None:
    """Copy a whole light, its due rows too, once for each number: `light 10000001` and on."""
    mine = f"r.workflow = 'light' AND r.id = '{seed}'"
    id = "'light ' || (10000000 + s.n)"
    for table in ("line", "due"):
        await copies(ground, table, fields_of(ground, table), mine, span, id=id)
    await copies(ground, "head", fields_of(ground, "head"), mine, span, id=id, **head)


def numbered(n: int) -> str:
    """The id of the n-th copy."""
    return f"light {10_000_000 + n}"
