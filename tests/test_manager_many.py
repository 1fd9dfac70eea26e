"""Many instances at once in one process."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from stores import MemoryStore, PostgresStore, SQLiteStore
from tests.flows import Ctx, E, S, flow, inner, quiet
from workflow import Manager
from workflow.ledger import HEADS


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def crowd(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A store and a number of instances that it serves in a few seconds."""
    match request.param:
        case "memory":
            return MemoryStore(), 3000
        case "sqlite":
            return SQLiteStore(tmp_path / "many.db"), 1000
        case _:
            return PostgresStore(request.getfixturevalue("postgres"), schema=request.getfixturevalue("schema")), 1000


async def test_thousands_of_sends_on_thousands_of_instances(crowd):
    """Every one of thousands of concurrent sends gets its own answer, and each hook runs once."""
    store, count = crowd
    ran: Counter[str] = Counter()

    async def hook(m):
        ran[m.id] += 1

    async with Manager(flow(on_enter={S.B: hook}), store) as m:
        await asyncio.gather(*(m.start(f"i{n}", Ctx(n)) for n in range(count)))
        moved = await asyncio.gather(*(m.send(f"i{n}", E.GO) for n in range(count)))
        added = await asyncio.gather(*(m.send(f"i{n}", E.ADD, 1) for n in range(count)))
        assert [done.transition.id for done in moved] == [f"i{n}" for n in range(count)]
        assert {done.state for done in moved} == {S.B}
        assert [done.transition.context.n for done in added] == [n + 1 for n in range(count)]
        assert ran == Counter(f"i{n}" for n in range(count))
        assert quiet(m)


async def test_nothing_grows_with_instances_at_rest(memory):
    """Lanes are gone when nobody is in them, and of heads only so many are kept."""
    async with Manager(flow(), memory) as m:
        for n in range(HEADS + 100):
            await m.start(f"i{n}")
        assert quiet(m)
        assert len(inner(m)._heads) == HEADS
        assert (await m.send("i0", E.GO)).state is S.B
