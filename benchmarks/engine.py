"""What the engine itself costs: processor time of a send with the store's taken out, and its import."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import Sequence
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time
from typing import Final

from stores import MemoryStore
from workflow import Manager
from workflow.clock import utcnow
from workflow.record import Answer, Commit, Committed

from .book import Book
from .case import MANY, Stage
from .flow import Light, Press, light
from .growth import Size
from .ours import LEASE, presser

SENDS: Final = 400
"""Of each of the 64 tasks."""
_IMPORT = "from time import perf_counter as now; began = now(); import workflow; print(now() - began)"


class _Nowhere(MemoryStore):
    """Says that it wrote and writes nothing."""

    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        return [Committed(utcnow()) for _ in commits]


async def cost(_stage: Stage, size: Size, book: Book) -> None:
    """Figures `µs: engine a send`: of the process, on a store that does nothing, less what that takes."""
    for _ in range(size.turns):
        gc.collect()
        async with Manager(light(), _Nowhere(), lease=LEASE) as lights:
            ids = [f"light {n}" for n in range(MANY)]
            for id in ids:
                await lights.start(id)
            await _presses(lights, ids, 0, 20)
            began = process_time()
            await _presses(lights, ids, 20, 20 + SENDS)
            spent = process_time() - began
            began = process_time()
            for _ in range(MANY * SENDS):
                await lights.store.append(((),), timeout=1.0)  # type: ignore[arg-type]  # it looks at none
            spent -= process_time() - began
        book.note({"µs: engine a send": spent / (MANY * SENDS) * 1e6})


async def _presses(lights: Manager[Light, Press, None], ids: Sequence[str], first: int, last: int) -> None:
    async def press(id: str) -> None:
        send = presser(lights, id)
        for n in range(first, last):
            await send(n)

    await asyncio.gather(*(press(id) for id in ids))


async def imported(_stage: Stage, size: Size, book: Book) -> None:
    """Figure `ms: import workflow`: in a process that has imported nothing else, files in the cache."""
    took: list[float] = []
    # An installed library is compiled, whatever this machine says of writing bytecode.
    settings = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with TemporaryDirectory() as cache:
        settings["PYTHONPYCACHEPREFIX"] = cache
        for _ in range(size.turns + 1):
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", _IMPORT],
                capture_output=True,
                check=True,
                text=True,
                env=settings,
            )
            took.append(float(done.stdout) * 1000)
    book.note({"ms: import workflow": median(took[1:])})
