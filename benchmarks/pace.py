"""How a case is driven: some lanes at once, for some seconds, each doing one thing after another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import TypeAlias

from attrs import frozen

Lane: TypeAlias = Callable[[int], Awaitable[object]]
"""Does its n-th piece of work, from 0."""


@frozen
class Pace:
    """Seconds of measuring, and of the warming-up before that."""

    seconds: float
    warm: float


@frozen
class Sample:
    """What one case showed in one round."""

    rate: float
    """Pieces of work per second."""
    p50: float
    """Seconds that half of them took at most."""
    p99: float


@frozen
class Ran:
    """A sample, and how many pieces each lane did, the warming-up included."""

    sample: Sample
    counts: tuple[int, ...]
    took: tuple[float, ...] = ()
    """Seconds of each piece, in order of length."""


async def drive(lanes: Sequence[Lane], pace: Pace, *, chunk: int = 1) -> Ran:
    """Drive all lanes at once. Work that was begun in time is finished and counted, its time too.

    Work that never waits (in memory) comes in chunks, with a turn for the others after each: so the
    clock and the turn cost both sides of a ratio next to nothing. A latency is then a chunk's mean.
    """
    counts = (0,) * len(lanes)
    if pace.warm:
        counts = tuple(count for count, _ in await _leg(lanes, counts, pace.warm, chunk))
    began = perf_counter()
    legs = await _leg(lanes, counts, pace.seconds, chunk)
    seconds = perf_counter() - began
    took = sorted(each for _, lane in legs for each in lane)
    sample = Sample(rate=len(took) * chunk / seconds, p50=share(took, 0.50), p99=share(took, 0.99))
    return Ran(sample, tuple(count for count, _ in legs), tuple(took))


def share(ordered: Sequence[float], part: float) -> float:
    """The value that `part` of them do not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))]


async def _leg(
    lanes: Sequence[Lane], counts: Sequence[int], seconds: float, chunk: int
) -> Sequence[tuple[int, list[float]]]:
    until = perf_counter() + seconds
    return await asyncio.gather(*(_one(lane, count, until, chunk) for lane, count in zip(lanes, counts, strict=True)))


async def _one(lane: Lane, count: int, until: float, chunk: int) -> tuple[int, list[float]]:
    took: list[float] = []
    began = perf_counter()
    while began < until:
        for n in range(count, count + chunk):
            await lane(n)
        took.append((perf_counter() - began) / chunk)
        count += chunk
        if chunk > 1:
            await asyncio.sleep(0)
        began = perf_counter()
    return count, took
