"""One instance with a short and with a long history: what a send keeps of its speed, beside the bare loop."""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import Final

from workflow import Manager

from .. import whole
from ..bare.press import row
from ..book import Book
from ..case import Missing, Stage
from ..flow import PRESSES, Light, Press, key, light
from ..ours import LEASE
from . import Size
from .ground import Ground, grounds, lengthen

SENDS: Final = 300
"""In one turn; each turn has instances of its own, so that a short history stays short."""

Lights = Manager[Light, Press, None]


async def measure(stage: Stage, size: Size, book: Book) -> None:
    """Figures `keeps: history, STORE`, and the rates they come from."""
    for name, entering in grounds(stage):
        try:
            async with entering as ground, Manager(light(), ground.store, lease=LEASE, work=False) as lights:
                ratios = [await _ratio(ground, lights, size.turns, length, book) for length in size.history]
        except Missing as e:
            book.missing[f"history, {name}"] = str(e)
        else:
            book.note({f"keeps: history, {name}": ratios[1] / ratios[0]})


async def _ratio(ground: Ground, lights: Lights, turns: int, length: int, book: Book) -> float:
    """Ours to bare at this length: the median of some turns."""
    ratios: list[float] = []
    for turn in range(turns):
        ours, bare = (f"{side} {length} {turn}" for side in ("ours", "bare"))
        for id in (ours, bare):
            await _grown(ground, lights, id, length)
        rates = (await _sends(lights, ours, length), await _presses(ground, bare, length))
        ratios.append(rates[0] / rates[1])
        for side, rate in zip(("ours", "bare"), rates, strict=True):
            book.note({f"sends/s: {ground.name}, history {length:,}, {side}": rate})
        for id in (ours, bare):
            await _verified(ground, id, length)
    return median(ratios)


async def _grown(ground: Ground, lights: Lights, id: str, length: int) -> None:
    """A light with so many lines, whose head is in memory."""
    await lights.start(id)
    for n in range(2):
        await lights.send(id, PRESSES[n % 2], key=key(n))
    await lengthen(ground, id, length - 1)
    await lights.send(id, PRESSES[length % 2], key=key(length - 2))  # the head in memory was out of date


async def _sends(lights: Lights, id: str, lines: int) -> float:
    began = perf_counter()
    for n in range(lines - 1, lines - 1 + SENDS):
        await lights.send(id, PRESSES[n % 2], key=key(n))
    return SENDS / (perf_counter() - began)


async def _presses(ground: Ground, id: str, lines: int) -> float:
    began = perf_counter()
    for n in range(lines - 1, lines - 1 + SENDS):
        await ground.bare.commit(row(id, n, n))
    return SENDS / (perf_counter() - began)


async def _verified(ground: Ground, id: str, length: int) -> None:
    """What came after the filling."""
    seen = [(line.seq, line.key) for line in await ground.store.history("light", id, length)]
    whole.same(id, seen, [(n, key(n - 2)) for n in range(length + 1, length + 1 + SENDS)])
