"""The bare limits on PostgreSQL: tables and indexes as our store's, the one statement of a move.

Nothing is judged, encoded or kept beyond the expected `seq`. A statement is its own transaction and
is prepared: compare-and-set of the head, the line with its key. The same planner settings as ours.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from typing import Any, Final, TypeAlias, cast

import msgspec
from psycopg import AsyncConnection, sql
from psycopg_pool import AsyncConnectionPool

from stores import pg_tables

from .. import whole
from ..case import CURVE, GROUP, MANY, MOVES, POOL, POSTGRES, SINGLE, Case, NotWhole, Stage
from ..database import schema
from ..pace import Lane, Pace, Sample, drive
from .group import Group
from .press import Row, row

Db: TypeAlias = AsyncConnection[tuple[Any, ...]]

_encoder = msgspec.json.Encoder()
SET: Final = """
  UPDATE head h SET seq = r.seq + 1, changed_at = greatest(r.at, h.changed_at),
         pos = greatest((SELECT shift FROM meta) + pg_current_xact_id()::text::bigint, h.pos),
         state = r.target, status = 'running', context = 'null', context_seq = 1, top = r.seq + 1, goal = 0,
         labels = '{}', reason = NULL, version = 1 FROM r"""
"""Every column that a move of ours writes."""
LINES: Final = """
INSERT INTO line (workflow, id, seq, pos, at, kind, source, event, target, status, commit_id, by, key, context_seq,
                  below, chain, version)
SELECT workflow, id, seq + 1, pos, changed_at, 'event', source, event, target, 'running', commit_id, 'bare', key, 1,
       seq, 0, 1 FROM moved"""
ONE: Final = f"""
WITH r AS (SELECT %s::text AS workflow, %s::text AS id, %s::bigint AS seq, %s::text AS source, %s::text AS event,
                  %s::text AS target, %s::uuid AS commit_id, %s::text AS key, to_timestamp(%s::float8) AS at),
moved AS ({SET} WHERE h.workflow = r.workflow AND h.id = r.id AND h.seq = r.seq
  RETURNING r.workflow, r.id, r.seq, r.source, r.event, r.target, r.commit_id, r.key, h.pos, h.changed_at)
{LINES}"""  # of the constants above
"""One move."""
ALL: Final = f"""
WITH r AS (SELECT workflow, id, seq, source, event, target, commit_id, key, to_timestamp(at / 1e6) AS at
             FROM json_to_recordset(%s::json)
               AS r(workflow text, id text, seq bigint, source text, event text, target text, commit_id uuid, key text,
                    at bigint)),
moved AS ({SET} WHERE h.workflow = ANY (ARRAY[r.workflow]) AND h.id = ANY (ARRAY[r.id]) AND h.seq = r.seq
  RETURNING r.workflow, r.id, r.seq, r.source, r.event, r.target, r.commit_id, r.key, h.pos, h.changed_at)
{LINES}"""  # noqa: S608  # of the constants above
"""Many moves of different lights; each head is looked up in the index, however large the table."""
START: Final = """
WITH born AS (
  INSERT INTO head (workflow, id, seq, pos, state, status, context, context_seq, top, goal, labels, version, started_at,
                    changed_at)
  SELECT 'light', id, 1, 0, 'red', 'running', 'null', 1, 1, 0, '{}', 1, now(), now() FROM unnest(%s::text[]) AS id
  RETURNING id)
INSERT INTO line (workflow, id, seq, pos, at, kind, target, status, commit_id, by, context_seq, context, below, chain,
                  version)
SELECT 'light', id, 1, 0, now(), 'start', 'red', 'running', gen_random_uuid(), 'bare', 1, 'null', 0, 0, 1 FROM born"""


def cases() -> list[Case]:
    """All bare limits on PostgreSQL."""
    return [
        Case(POSTGRES, SINGLE, 1, MOVES, _single),
        Case(POSTGRES, POOL, MANY, MOVES, _pool),
        *(Case(POSTGRES, GROUP, tasks, MOVES, partial(_group, tasks)) for tasks in CURVE),
    ]


# --- the database -----------------------------------------------------------------------------------


async def connect(url: str, name: str) -> Db:
    """A connection whose statements are their own transactions in this schema."""
    db = await AsyncConnection.connect(url, autocommit=True)
    await prepare(db, name)
    return db


async def prepare(db: Db, name: str) -> None:
    """The settings of a session."""
    await db.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(name)))
    await db.execute(pg_tables.SESSION.encode())


async def move(db: Db, r: Row) -> None:
    """One statement for one row."""
    values = (r.workflow, r.id, r.seq, r.source, r.event, r.target, r.commit_id, r.key, r.at / 1e6)
    done = await db.execute(ONE, values, prepare=True)
    if done.rowcount != 1:
        raise NotWhole(f"{r.id} was not at {r.seq}")


async def move_all(db: Db, rows: Sequence[Row]) -> None:
    """One statement for all rows."""
    if len(rows) == 1:
        await move(db, rows[0])
        return
    done = await db.execute(ALL, (_encoder.encode(rows).decode(),), prepare=True)
    if done.rowcount != len(rows):
        raise NotWhole(f"{len(rows) - done.rowcount} lights were not where they were expected")


@asynccontextmanager
async def made(stage: Stage, ids: Sequence[str]) -> AsyncGenerator[tuple[str, str, Db]]:
    """URL, schema with these lights, and a connection to it."""
    url = stage.url()
    async with schema(url) as name, await AsyncConnection.connect(url, autocommit=True) as db:
        await db.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
        await prepare(db, name)
        for statement in (
            pg_tables.MAKE_META,
            pg_tables.FIRST_META,
            *(each for step in pg_tables.STEPS for each in step),
        ):
            await db.execute(statement.replace("{S}.", "").encode())
        await db.execute(START, (list(ids),))
        yield url, name, db


# --- the cases --------------------------------------------------------------------------------------


async def _single(stage: Stage, pace: Pace) -> Sample:
    """One connection, one statement after another."""
    ids = _ids(1)
    async with made(stage, ids) as (_, _, db):
        numbers = count()
        ran = await drive([lambda n: move(db, row(ids[0], n, next(numbers)))], pace)
        return await _verified(db, ids, ran.counts, ran.sample)


async def _pool(stage: Stage, pace: Pace) -> Sample:
    """Every caller borrows one of eight connections."""
    ids = _ids(MANY)
    async with made(stage, ids) as (url, name, db):
        pool = AsyncConnectionPool(
            url, min_size=8, max_size=8, kwargs={"autocommit": True}, configure=partial(prepare, name=name), open=False
        )
        async with pool:
            await pool.wait()
            numbers = count()

            async def press(id: str, n: int) -> None:
                async with pool.connection() as own:
                    await move(own, row(id, n, next(numbers)))

            ran = await drive([partial(press, id) for id in ids], pace)
        return await _verified(db, ids, ran.counts, ran.sample)


async def _group(tasks: int, stage: Stage, pace: Pace) -> Sample:
    """All callers share one connection, and the transactions on it."""
    ids = _ids(tasks)
    async with made(stage, ids) as (_, _, db):
        group = Group[Row](partial(move_all, db))
        numbers = count()

        def presser(id: str) -> Lane:
            return lambda n: group.commit(row(id, n, next(numbers)))

        ran = await drive([presser(id) for id in ids], pace)
        return await _verified(db, ids, ran.counts, ran.sample)


def _ids(tasks: int) -> list[str]:
    return [f"light {n}" for n in range(tasks)]


async def _verified(db: Db, ids: Sequence[str], counts: Sequence[int], sample: Sample) -> Sample:
    lines = await (await db.execute("SELECT id, seq, key FROM line ORDER BY id, seq")).fetchall()
    heads: dict[str, int] = dict(await (await db.execute("SELECT id, seq FROM head")).fetchall())
    whole.presses(cast("list[tuple[str, int, str | None]]", lines), heads, dict(zip(ids, counts, strict=True)))
    return sample
