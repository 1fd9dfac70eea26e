"""Few and many instances, one in ten of them in flight: sends, loads, and a page of those in flight."""

from __future__ import annotations

from asyncio import gather
from collections.abc import Sequence
from random import Random
from statistics import median
from time import perf_counter
from typing import Final

from workflow import Manager
from workflow.record import Query

from .. import whole
from ..bare.press import row
from ..book import Book
from ..case import MANY, Missing, Stage
from ..flow import PRESSES, Light, Press, key, light
from ..ours import LEASE
from ..pace import Lane, Pace, drive, share
from . import Size
from .ground import Ground, grounds, multiply, numbered

EACH: Final = 7
"""Instances that one task presses in turn: 64 times 7 on each side, spread over all."""
PAGE: Final = 100


async def measure(stage: Stage, size: Size, book: Book) -> None:
    """Figures `keeps: instances, STORE`, `ms: page of 100 …`, `ms: load …`, `scans: …`."""
    for name, entering in grounds(stage):
        try:
            async with entering as ground, Manager(light(), ground.store, lease=LEASE, work=False) as lights:
                await lights.start("seed")
                ratios: list[float] = []
                have = 0
                for many in size.instances:
                    await _fill(ground, have + 1, many)
                    ratios.append(await _ratio(ground, lights, (have, many), size.turns, book))
                    await _reads(ground, many, book)
                    have = many
        except Missing as e:
            book.missing[f"instances, {name}"] = str(e)
        else:
            book.note({f"keeps: instances, {name}": ratios[1] / ratios[0]})


async def _fill(ground: Ground, first: int, last: int) -> None:
    """Nine of ten are finished."""
    status = "CASE WHEN s.n % 10 = 0 THEN 'running' ELSE 'finished' END"
    await multiply(ground, "seed", (first, last), status=status)


async def _ratio(
    ground: Ground, lights: Manager[Light, Press, None], span: tuple[int, int], turns: int, book: Book
) -> float:
    """Ours to the raw group commit, 64 tasks each, heads in memory on both sides."""
    ids = _spread(span, MANY * EACH * 2)
    ours, bare = ids[::2], ids[1::2]
    counts = dict.fromkeys(ids, 0)
    await gather(*(lights.send(id, Press.GO, key=key(0)) for id in ours))
    counts |= dict.fromkeys(ours, 1)
    ratios: list[float] = []
    for _ in range(turns):
        rates: list[float] = []
        for side, mine in (("ours", ours), ("bare", bare)):
            lanes = [_lane(ground, lights if side == "ours" else None, mine[n::MANY], counts) for n in range(MANY)]
            ran = await drive(lanes, Pace(0.5, 0.1))
            rates.append(ran.sample.rate)
            book.note({f"sends/s: {ground.name}, {span[1]:,} instances, {side}": ran.sample.rate})
        ratios.append(rates[0] / rates[1])
    for id in ids:
        lines = await ground.store.history("light", id)
        whole.presses([(id, line.seq, line.key) for line in lines], {id: len(lines)}, {id: counts[id]})
    return median(ratios)


def _lane(
    ground: Ground, lights: Manager[Light, Press, None] | None, ids: Sequence[str], counts: dict[str, int]
) -> Lane:
    """Presses some lights in turn."""

    async def press(n: int) -> None:
        id = ids[n % len(ids)]
        count = counts[id]
        counts[id] = count + 1
        if lights is None:
            await ground.bare.commit(row(id, count, count))
        else:
            await lights.send(id, PRESSES[count % 2], key=key(count))

    return press


def _spread(span: tuple[int, int], many: int) -> list[str]:
    """Ids of instances in flight, evenly from all of the span."""
    step = (span[1] - span[0]) / many
    return [numbered((span[0] + int(step * n)) // 10 * 10 + 10) for n in range(many)]


async def _reads(ground: Ground, many: int, book: Book) -> None:
    dice = Random(many)
    loads: list[float] = []
    pages: list[float] = []
    scans = await ground.scans()
    for _ in range(200):
        id = numbered(dice.randrange(1, many))
        began = perf_counter()
        found = await ground.store.load("light", (id,))
        loads.append(perf_counter() - began)
        whole.same("a load", [loaded.head.id for loaded in found if loaded is not None], [id])
        query = Query(
            workflow="light", status=frozenset({"running"}), after=numbered(dice.randrange(many // 2)), limit=PAGE
        )
        began = perf_counter()
        page = await ground.store.find(query)
        pages.append(perf_counter() - began)
        whole.same("a page", [len(page), all(head.status == "running" for head in page)], [PAGE, True])
    for name, took in (("load of 1", loads), (f"page of {PAGE} in flight", pages)):
        book.note({f"ms: {name}, {ground.name}, {many:,} instances": share(sorted(took), 0.5) * 1000})
    book.notes[f"plan of a page, {ground.name}, {many:,} instances"] = await ground.plan()
    book.note({f"scans: {ground.name}, {many:,} instances": await ground.scans() - scans})
