"""How late timers fire, spread out and all at one instant; and how soon the work of a killed process goes on.

Run as a module it is the process that will be killed: it takes work on, says so and never ends it.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from time import monotonic_ns
from typing import Any, Final

from attrs import frozen

from stores import PostgresStore, SQLiteStore
from workflow import After, Edge, Manager, Move, Spec, Store
from workflow.clock import utcnow
from workflow.record import Query

from .. import whole
from ..book import Book
from ..case import MANY, MEMORY, POSTGRES, SQLITE, Missing, Stage
from ..database import schema
from ..ours import memory, sqlite
from ..pace import share
from . import Size

ROOT: Final = Path(__file__).parents[2]
AHEAD: Final = timedelta(seconds=3)
"""From the making of timers to the first that is due."""
PATIENCE: Final = 60.0
"""Seconds after which what was to happen has not."""


class Bell(StrEnum):
    """It waits, then it has rung."""

    SILENT = "silent"
    RUNG = "rung"


class Ring(StrEnum):
    """What happens to it."""

    NOW = "now"


@frozen
class Hour:
    """When it is to ring."""

    at: datetime


BellMove = Move[Bell, Ring, Hour]


def bell() -> Spec[Bell, Ring, Hour]:
    """A timer and nothing else."""
    edges = [Edge[Bell, Ring, Hour](Bell.SILENT, Ring.NOW, Bell.RUNG)]
    timeouts = {Bell.SILENT: After[Bell, Ring, Hour](lambda m: m.context.at, Ring.NOW)}
    return Spec("bell", initial=Bell.SILENT, final={Bell.RUNG}, context=Hour, edges=edges, timeouts=timeouts)


def task(work: Callable[[Move[Bell, Ring, None]], Coroutine[Any, Any, None]]) -> Spec[Bell, Ring, None]:
    """One hook, owed from the start on."""
    edges = [Edge[Bell, Ring, None](Bell.SILENT, Ring.NOW, Bell.RUNG)]
    spec = Spec[Bell, Ring]("task", initial=Bell.SILENT, final={Bell.RUNG}, edges=edges)
    spec.on_enter(Bell.SILENT, name="work")(work)
    return spec


async def measure(stage: Stage, size: Size, book: Book) -> None:
    """Figures `ms: p99 lateness of N timers over S s, STORE`, `s: N timers at one instant, STORE` and
    `s: takeover, STORE`."""
    many, seconds = size.delays
    for name, opener in ((MEMORY, memory), (SQLITE, sqlite), (POSTGRES, _server)):
        with _told(name, book):
            async with opener(stage) as store:
                late = await _late(store, [AHEAD + n * timedelta(seconds=seconds / many) for n in range(many)])
                spread = share(late, 0.99) * 1000
            async with opener(stage) as store:
                burst = (await _late(store, [AHEAD] * many))[-1]
            book.note({f"ms: p99 lateness of {many:,} timers over {seconds:g} s, {name}": spread})
            book.note({f"s: {many:,} timers at one instant, {name}": burst})
    for name, shared in ((SQLITE, _file), (POSTGRES, _schema)):
        with _told(name, book):
            for _ in range(size.turns):
                book.note({f"s: takeover, {name}": await _taken_over(shared(stage))})


@contextmanager
def _told(name: str, book: Book) -> Generator[None]:
    """What is missing goes into the book."""
    try:
        yield
    except Missing as e:
        book.missing[f"timer lateness, {name}"] = str(e)


# --- timers -------------------------------------------------------------------------------------------


@asynccontextmanager
async def _server(stage: Stage) -> AsyncGenerator[Store]:
    async with _schema(stage) as words:
        yield opened(words)


async def _late(store: Store, after: Sequence[timedelta]) -> list[float]:
    """Seconds from the time of each timer to its line, sorted."""
    async with Manager(bell(), store) as bells:
        began = utcnow()
        hours = {f"bell {n:05}": Hour(began + wait) for n, wait in enumerate(after)}
        lanes = [list(hours)[n::MANY] for n in range(MANY)]

        async def made(ids: Sequence[str]) -> None:
            for id in ids:
                await bells.start(id, hours[id])

        await asyncio.gather(*map(made, lanes))
        if utcnow() > began + AHEAD:
            raise RuntimeError("the timers were due before all were made: no figure")
        await asyncio.sleep((began + max(after) - utcnow()).total_seconds())
        silent = Query(workflow="bell", status=frozenset({"running"}), limit=1)
        async with asyncio.timeout(PATIENCE):
            while await store.find(silent):  # noqa: ASYNC110  # nothing tells
                await asyncio.sleep(0.2)
        histories = {id: await bells.history(id) for id in hours}
    whole.same("kinds of lines", sorted({len(lines) for lines in histories.values()}), [2])
    return sorted((lines[1].at - hours[id].at).total_seconds() for id, lines in histories.items())


# --- takeover -----------------------------------------------------------------------------------------


@asynccontextmanager
async def _file(stage: Stage) -> AsyncGenerator[Sequence[str]]:
    """The words that name a store, for `opened` in another process."""
    yield (str(stage.folder / f"takeover-{monotonic_ns()}.db"),)


@asynccontextmanager
async def _schema(stage: Stage) -> AsyncGenerator[Sequence[str]]:
    url = stage.url()
    async with schema(url) as name:
        yield url, name


def opened(words: Sequence[str]) -> Store:
    """The store that is named so."""
    return SQLiteStore(words[0]) if len(words) == 1 else PostgresStore(words[0], schema=words[1])


async def _taken_over(sharing: AbstractAsyncContextManager[Sequence[str]]) -> float:
    """Seconds from the kill of a process, with the usual lease, to the next attempt at what it was doing."""
    again: asyncio.Future[datetime] = asyncio.get_running_loop().create_future()

    async def work(_: Move[Bell, Ring, None]) -> None:
        if not again.done():
            again.set_result(utcnow())

    async with sharing as words, Manager(task(work), opened(words)):
        hand = await _hand(words)
        try:
            if hand.stdout is None or await hand.stdout.readline() != b"held\n":
                raise RuntimeError("the process that was to be killed ended early; its error stands above")
            await asyncio.sleep(1)  # as long as it takes others to know of it, no more is promised
            killed = utcnow()
            hand.kill()
            await hand.wait()
            async with asyncio.timeout(PATIENCE):
                return ((await again) - killed).total_seconds()
        finally:
            with suppress(ProcessLookupError):
                hand.kill()
            await hand.wait()


async def _hand(words: Sequence[str]) -> Process:
    return await asyncio.create_subprocess_exec(sys.executable, "-m", __name__, *words, stdout=PIPE, cwd=ROOT)


async def _hold(words: Sequence[str]) -> None:
    async def work(_: Move[Bell, Ring, None]) -> None:
        print("held", flush=True)
        await asyncio.sleep(PATIENCE * 2)

    async with Manager(task(work), opened(words), work=False) as tasks:
        await tasks.start("task", timeout=PATIENCE * 2)


if __name__ == "__main__":
    asyncio.run(_hold(sys.argv[1:]))
