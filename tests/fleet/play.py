"""One whole run: orders are placed all the while, workers die all the while; then everything must agree."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import psycopg
from attrs import frozen
from psycopg import sql

from tests.crash import place
from tests.fleet.app import Desk, Event, Order, manager, spec
from tests.fleet.fleet import Fleet, fleet
from tests.fleet.verdict import Verdict, judged
from workflow import Busy, Conflict, StoreUnavailable
from workflow.record import Query

T = TypeVar("T")
EVERY: Final = 2.0
"""Seconds from one trouble to the next."""
TAIL: Final = 20.0
"""Seconds in which all must be finished when the last trouble is over."""
_TRIES = 5


@frozen
class Size:
    """How much."""

    orders: int
    troubles: int


SHORT: Final = {"postgres": Size(400, 8), "sqlite": Size(300, 6)}
LONG: Final = dict.fromkeys(SHORT, Size(2000, 60))
WORKERS: Final = {"postgres": 4, "sqlite": 2}


async def play(folder: Path, workers: int, size: Size) -> Verdict:
    """The run, and what it came to. AssertionError if anything is lost, left, or done twice for no reason."""
    async with manager(folder, work=False) as desk:  # it makes the schema, too
        with fleet(folder, workers) as crew:
            await crew.ready()
            async with asyncio.TaskGroup() as group:
                placing = group.create_task(_placed(desk, crew, size))
                await crew.suffer(size.troubles, EVERY)
                watching = group.create_task(crew.watch())
                promised = await placing
                await _finished(desk, folder)
                watching.cancel()
            await asyncio.to_thread(crew.dismiss)
    assert not _due(folder)
    return await judged(folder, [_id(n) for n in range(size.orders)], promised, crew.troubles)


# --- orders -----------------------------------------------------------------------------------------


def _id(n: int) -> str:
    return f"o-{n:04}"


async def _placed(desk: Desk, crew: Fleet, size: Size) -> dict[tuple[str, str], datetime]:
    """Place the orders, evenly as long as there is trouble; when the delayed events of each are due."""
    promised: dict[tuple[str, str], datetime] = {}
    loop = asyncio.get_running_loop()
    turn, apart = loop.time(), size.troubles * EVERY / size.orders
    for n in range(size.orders):
        while len(crew.troubles) < n * size.troubles // size.orders:  # noqa: ASYNC110  # it has its own pace
            await asyncio.sleep(apart)
        turn = max(turn + apart, loop.time() - 0.1)
        await asyncio.sleep(turn - loop.time())
        id = _id(n)
        order = Order(wait=random.uniform(0.5, 3))
        await _insist(partial(desk.start, id, order, key="start"))
        for event, key, most in ((Event.SHIP, "ship", 6), (Event.NOTE, "note", 8)):
            after = timedelta(seconds=random.uniform(0.1, most))
            due = await _insist(partial(desk.send_later, id, event, after=after, key=key))
            promised[id, key] = due.at
    return promised


async def _insist(call: Callable[[], Awaitable[T]]) -> T:
    """Again with the same key, as a caller does."""
    for _ in range(_TRIES):
        try:
            return await call()
        except (Busy, Conflict, StoreUnavailable):
            await asyncio.sleep(0.1)
    return await call()


async def _finished(desk: Desk, folder: Path) -> None:
    """Every order is, and nothing is owed any more."""
    running = Query(workflow=spec.name, status=frozenset({"running", "failed"}), limit=5)
    try:
        async with asyncio.timeout(TAIL):
            while await desk.store.find(running) or _due(folder):  # noqa: ASYNC110  # what others do rings nobody here
                await asyncio.sleep(0.2)
    except TimeoutError:
        left = [f"{head.id}: {head.state} {head.status} {head.reason}" for head in await desk.store.find(running)]
        raise AssertionError(f"{_due(folder)} rows are left due; not finished: {left}") from None


def _due(folder: Path) -> int:
    """How many due rows there are, held ones too."""
    noted = place.noted(folder)
    if noted is None:
        with sqlite3.connect(folder / "store.db") as db:
            (count,) = db.execute("SELECT count(*) FROM due").fetchone()
        db.close()
        return int(count)
    url, schema = noted
    with psycopg.connect(url, autocommit=True) as connection:
        query = sql.SQL("SELECT count(*) FROM {}.due").format(sql.Identifier(schema))
        found = connection.execute(query).fetchone()
    assert found is not None
    return int(found[0])
