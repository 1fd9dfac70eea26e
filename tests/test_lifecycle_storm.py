"""All verbs at once, from two Managers, with hooks that fail, return events and take their time."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from attrs import evolve

from stores import MemoryStore
from tests.flows import MINUTE, NOON, SECOND, E, S, edged, flow, quiet, story
from tests.steer import VERBS, call, rows
from workflow import After, Edge, Manager, Permanent, Query, Retry, WorkflowError
from workflow.testing import FakeClock

STOPPED = {"paused", "failed"}
OVER = {"cancelled", "erased"}


def stormy(dice, on_failure, begun):
    """Hooks and compensators of which nobody knows what they will do."""

    async def hook(m):
        begun(m)
        for _ in range(dice.choice([0, 1, 5, 20, 60])):
            await asyncio.sleep(0)
        luck = dice.random()
        if luck < 0.25:
            raise ValueError("not now") if luck < 0.2 else Permanent("no use")
        if luck < 0.5:
            m.update(lambda c: evolve(c, n=c.n + 1))
        return dice.choice([None, None, E.GO, E.BACK, E.NOTE]) if m.undoes is None else None

    async def undo(m):
        await hook(m)

    def guard(m):
        if dice.random() < 0.3:
            raise ValueError("cannot tell")
        return True

    return flow(
        edges=edged(Edge(S.D, E.BACK, S.A), Edge([S.A, S.B], E.BACK, S.D, guard=guard)),
        on_enter={S.B: [hook, hook], S.D: hook, S.END: hook},
        on_exit={S.C: hook},
        compensators={S.B: undo, S.D: [undo, undo]},
        timeouts={S.A: After(MINUTE, E.BACK), S.C: [After(MINUTE, E.BACK), After(2 * MINUTE, E.STOP)]},
        on_failure=on_failure,
        retry=Retry(attempts=2, first=SECOND),
        max_chain=5,
    )


async def move(m, dice, id, n):
    """One call of any kind; whatever it raises is typed."""
    kind, key = dice.random(), dice.choice([None, f"k{n}", f"k{n // 4}"])
    try:
        if kind < 0.4:
            await m.send(id, dice.choice(list(E)[:3]), key=key, timeout=0.05, start=True)
        elif kind < 0.5:
            await m.compensate(id, dice.choice(list(S)[:3]), key=key, timeout=0.05)
        elif kind < 0.6:
            await m.send_later(id, dice.choice([E.GO, E.NOTE]), after=SECOND * dice.randrange(90), key=key)
        else:
            verbs = [v for v in VERBS if v != "erase"] * 3 + ["erase"]
            weights = [1 if "cancel" in v else 12 for v in verbs]
            (verb,) = dice.choices(verbs, weights)
            await call(m, verb, id, "why", key=key, timeout=0.05)
    except WorkflowError:
        pass


async def looked_over(m, store, id):
    """What holds at rest: head = replay, and rows are held exactly where the status says so."""
    await story(m, id)
    head, due = await m.get(id), await rows(store, id)
    if head.status in OVER:
        assert not due
    else:
        assert {row.held for row in due.values()} <= {head.status in STOPPED}, (head, due)


async def calmed(m, store, clock, id):
    """Let it go on until nothing is due."""
    for _ in range(400):
        status = (await m.get(id)).status
        if status == "paused":
            await m.unpause(id)
        elif status == "failed":
            await m.skip(id)
        elif not await rows(store, id):
            break
        await clock.advance(timedelta(minutes=3))
        await looked_over(m, store, id)
        if (await m.get(id)).seq > 300:  # hooks that always return another event
            await m.cancel(id)
    assert not await rows(store, id)
    await looked_over(m, store, id)


@pytest.mark.parametrize("seed", range(40))
async def test_a_storm_of_verbs(seed):
    """History adds up, nothing is forgotten or stuck: let go on, every instance comes to rest with nothing due.

    Of one halt at most the hooks that were claimed before it begin, and none after a cancel.
    """
    dice, clock, store, ids = random.Random(seed), FakeClock(NOON), MemoryStore(), ["i0"]
    late: Counter[tuple[str, int]] = Counter()

    def begun(m):
        line = next(
            line for line in reversed(store._instances["flow", m.id].lines) if line.kind not in ("update", "refused")
        )
        if line.status in STOPPED | OVER:
            late[m.id, line.seq] += 1

    spec = stormy(dice, E.BACK if seed % 2 else None, begun)
    async with Manager(spec, store, clock=clock) as one, Manager(spec, store, clock=clock, inline=False) as two:
        for n in range(40):
            id = ids[-1]
            calls: list[Any] = [move(dice.choice([one, two]), dice, id, n * 5 + k) for k in range(dice.randrange(1, 6))]
            await asyncio.gather(*calls)
            if dice.random() < 0.5:
                await clock.advance(SECOND * dice.choice([0, 0, 1, 70]))
                if id in {head.id for head in await store.find(Query(workflow="flow"))}:
                    await looked_over(one, store, id)
                    if (await one.get(id)).status in OVER:
                        ids.append(f"i{n}x")
        await clock.advance(timedelta(0))
        for head in await store.find(Query(workflow="flow")):
            await calmed(one, store, clock, head.id)
        assert quiet(one)
        assert quiet(two)
    assert set(late.values()) <= {1}, late
