"""The operator's verbs by name, and what tests of them look at."""

from __future__ import annotations

import pytest

from tests.flows import E

VERBS = ("pause", "unpause", "cancel", "cancel(compensate=True)", "retry", "skip", "erase")


@pytest.fixture
async def kept(store):
    """A store that outlives its Managers: open before the first and after the last."""
    async with store:
        yield store


async def call(m, verb, id="i", *args, **more):
    """The verb by its name in the table."""
    if verb.endswith("(compensate=True)"):
        return await m.cancel(id, *args, compensate=True, **more)
    return await getattr(m, verb)(id, *args, **more)


async def rows(store, id="i", workflow="flow"):
    """The due rows of an instance, by name."""
    (loaded,) = await store.load(workflow, (id,), rows=True)
    return {row.name: row for row in loaded.rows}


async def walked(m, steps=2):
    """Start and go on so often."""
    await m.start("i", key="s")
    for _ in range(steps):
        await m.send("i", E.GO)
