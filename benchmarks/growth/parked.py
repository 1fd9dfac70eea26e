"""What an instance at rest costs in the process that has run it: heads are kept only of the last few thousand."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc

from workflow import Manager

from ..book import Book
from ..case import MANY, Stage
from ..flow import Light, Press, light
from ..ours import LEASE, sqlite
from . import Size


async def measure(stage: Stage, size: Size, book: Book) -> None:
    """Figure `bytes: parked instance`: the growth between the two sizes, by tracemalloc."""
    few, many = size.parked
    tracemalloc.start()
    try:
        async with sqlite(stage) as store, Manager(light(), store, lease=LEASE) as lights:
            await _start(lights, 0, few)
            before = _held()
            await _start(lights, few, many)
            grown = _held() - before
    finally:
        tracemalloc.stop()
    book.note({"bytes: parked instance": grown / (many - few)})


async def _start(lights: Manager[Light, Press, None], first: int, last: int) -> None:
    async def some(task: int) -> None:
        for n in range(first + task, last, MANY):
            await lights.start(f"light {n:07}")

    await asyncio.gather(*(some(task) for task in range(MANY)))


def _held() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]
