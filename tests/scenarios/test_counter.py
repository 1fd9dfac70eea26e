"""Many callers count on many instances at once."""

from __future__ import annotations

import asyncio
import random

from attrs import evolve

from tests.flows import E, S, edged, flow, quiet, story
from workflow import STAY, Edge, Manager


async def test_nothing_is_lost_or_done_twice(store):
    """Hundreds of concurrent sends with repeats, in two Managers: every key counts once, every action runs once."""
    ran = []

    async def action(m):
        ran.append((m.id, m.payload))
        m.update(lambda c: evolve(c, words=(*c.words, str(m.payload))))

    edges = edged(Edge(S.A, E.BACK, STAY, action=action, assign=lambda m: evolve(m.context, n=m.context.n + 1)))
    spec, dice = flow(edges=edges), random.Random(7)
    calls = [(f"i{n % 5}", n) for n in range(60)] * 2
    dice.shuffle(calls)
    async with Manager(spec, store) as a, Manager(spec, store) as b:
        sends = [dice.choice((a, b)).send(id, E.BACK, n, key=f"k{n}", start=True, timeout=60) for id, n in calls]
        answers = await asyncio.gather(*sends)
        assert sum(not answer.duplicate for answer in answers) == 60
        for n in range(5):
            head = await a.settled(f"i{n}")
            assert (head.context.n, len(set(head.context.words))) == (12, 12)
            assert (await story(b, f"i{n}")).count("update") == 12
        assert sorted(ran) == sorted({(id, n) for id, n in calls})
        assert quiet(a)
        assert quiet(b)
