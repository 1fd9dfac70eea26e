"""Sends per second: each store, one task and many, with and without a hook.

All cases take turns within each round, so that a noisy machine is noisy for all of them; medians and
the spread over the rounds are printed. Afterwards every history is checked to be whole.

    python -m benchmarks.sends --rounds 5 --sends 2000
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from attrs import frozen

from stores import MemoryStore, SQLiteStore
from workflow import Edge, Manager, Move, Spec, Store


class Light(StrEnum):
    """A light that is switched to and fro: each send is one move."""

    RED = "red"
    GREEN = "green"


class Press(StrEnum):
    """What happens to it."""

    GO = "go"
    HALT = "halt"


LightMove = Move[Light, Press, None]
LightEdge = Edge[Light, Press, None]


def light(*, hooked: bool) -> Spec[Light, Press, None]:
    """The workflow; with `hooked` each move owes one hook that does nothing."""

    async def seen(m: LightMove) -> None:
        pass

    hooks = dict.fromkeys(Light, seen) if hooked else {}
    edges = [LightEdge(Light.RED, Press.GO, Light.GREEN), LightEdge(Light.GREEN, Press.HALT, Light.RED)]
    return Spec[Light, Press]("light", initial=Light.RED, edges=edges, on_enter=hooks)


@frozen
class Case:
    """One line of the result."""

    name: str
    store: Callable[[Path], Store]
    tasks: int
    hooked: bool


def cases(many: int) -> Iterator[Case]:
    """All that is measured."""
    stores: list[tuple[str, Callable[[Path], Store]]] = [
        ("memory", lambda _: MemoryStore()),
        ("SQLite", lambda folder: SQLiteStore(folder / f"{time.monotonic_ns()}.db")),
    ]
    for name, store in stores:
        for tasks in (1, many):
            for hooked in (False, True):
                yield Case(
                    f"{name}, {tasks} task(s), {'one hook a move' if hooked else 'no hook'}", store, tasks, hooked
                )


async def measure(case: Case, sends: int, folder: Path) -> float:
    """Sends per second of one round, each with a key of its own."""
    each = max(2, sends // case.tasks)
    async with Manager(light(hooked=case.hooked), case.store(folder), lease=timedelta(minutes=5)) as lights:

        async def drive(id: str) -> None:
            for n in range(each):
                await lights.send(id, Press.HALT if n % 2 else Press.GO, key=f"press {n}")

        ids = [f"light {n}" for n in range(case.tasks)]
        for id in ids:
            await lights.start(id)
        began = time.perf_counter()
        await asyncio.gather(*(drive(id) for id in ids))
        seconds = time.perf_counter() - began
        for id in ids:
            lines = await lights.history(id)
            if [line.seq for line in lines] != list(range(1, each + 2)):
                raise SystemExit(f"{case.name}: the history of {id} is not whole")
    return each * case.tasks / seconds


def main() -> None:
    """Run the rounds and print a table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument(
        "--sends", type=int, default=2000, help="a case and round (on SQLite; ten times that in memory)"
    )
    options.add_argument("--tasks", type=int, default=64)
    given = options.parse_args()
    store = f"SQLite {sqlite3.sqlite_version} (WAL, synchronous=FULL)"
    print(f"Python {platform.python_version()}, {store}, {platform.machine()}, {os.cpu_count()} cores")
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(given.rounds):
            for case in cases(given.tasks):
                sends = given.sends * (10 if case.name.startswith("memory") else 1)
                rates.setdefault(case.name, []).append(asyncio.run(measure(case, sends, Path(folder))))
    for name, seen in rates.items():
        print(f"{name:40} {statistics.median(seen):10,.0f} sends/s   ({min(seen):,.0f} to {max(seen):,.0f})")


if __name__ == "__main__":
    main()
