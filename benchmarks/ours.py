"""The cases of this project: the same presses and orders on each store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import timedelta
from functools import partial
from time import monotonic_ns

from stores import MemoryStore, SQLiteStore
from workflow import Manager, Store, ledger

from . import whole
from .case import CURVE, FORGETFUL, HOOKED, MANY, MEMORY, MOVES, ORDERS, OURS, POSTGRES, SQLITE, Case, Stage
from .database import postgres
from .flow import PRESSES, Light, Order, OrderEvent, OrderState, Payment, Press, key, light, order
from .pace import Lane, Pace, Sample, drive

LEASE = timedelta(minutes=5)
Opener = Callable[[Stage], AbstractAsyncContextManager[Store]]


@asynccontextmanager
async def memory(_: Stage) -> AsyncGenerator[Store]:
    """A store of its own for one case and round."""
    yield MemoryStore()


@asynccontextmanager
async def sqlite(stage: Stage) -> AsyncGenerator[Store]:
    """The same in a file."""
    yield SQLiteStore(stage.folder / f"{monotonic_ns()}.db")


def cases() -> list[Case]:
    """All of ours."""
    found: list[Case] = []
    for name, opener, chunk in ((MEMORY, memory, 32), (SQLITE, sqlite, 1), (POSTGRES, postgres, 1)):
        found += [Case(name, OURS, tasks, MOVES, partial(moves, opener, tasks, chunk)) for tasks in CURVE]
        found.append(Case(name, OURS, MANY, HOOKED, partial(moves, opener, MANY, chunk, hooked=True)))
        found.append(Case(name, OURS, MANY, ORDERS, partial(orders, opener, MANY, chunk // 4 or 1)))
    found.append(Case(POSTGRES, OURS, MANY, FORGETFUL, partial(forgetful, postgres)))
    return found


def presser(lights: Manager[Light, Press, None], id: str) -> Lane:
    """Presses one light."""
    return lambda n: lights.send(id, PRESSES[n % 2], key=key(n))


async def moves(opener: Opener, tasks: int, chunk: int, stage: Stage, pace: Pace, *, hooked: bool = False) -> Sample:
    """Each task presses a light of its own."""
    async with opener(stage) as store, Manager(light(hooked=hooked), store, lease=LEASE) as lights:
        ids = [f"light {n}" for n in range(tasks)]
        await asyncio.gather(*(lights.start(id) for id in ids))
        ran = await drive([presser(lights, id) for id in ids], pace, chunk=chunk)
        await verified(store, dict(zip(ids, ran.counts, strict=True)))
    return ran.sample


async def verified(store: Store, counts: dict[str, int]) -> None:
    """Look at each light in the store. Raises NotWhole."""
    found = [(id, line.seq, line.key) for id in counts for line in await store.history("light", id)]
    heads = [loaded.head for loaded in await store.load("light", tuple(counts)) if loaded is not None]
    whole.presses(found, {head.id: head.seq for head in heads}, counts)


async def orders(opener: Opener, tasks: int, chunk: int, stage: Stage, pace: Pace) -> Sample:
    """Each task takes one order after another from start to end."""
    async with opener(stage) as store, Manager(order(), store, lease=LEASE) as desk:

        async def fulfil(task: int, n: int) -> None:
            id = f"order {task}-{n}"
            await desk.start(id, Order(), key="start")
            await desk.send(id, OrderEvent.PAY, Payment(100), key="pay")
            await desk.send(id, OrderEvent.PACK, key="pack")
            await desk.send(id, OrderEvent.SHIP, key="ship")

        ran = await drive([partial(fulfil, task) for task in range(tasks)], pace, chunk=chunk)
        for task, count in enumerate(ran.counts):
            for n in range(count):
                lines = await store.history("order", f"order {task}-{n}")
                whole.same("an order", [(line.seq, line.key, line.target) for line in lines], FULFILLED)
    return ran.sample


FULFILLED: Sequence[tuple[int, str, str]] = (
    (1, "start", OrderState.CREATED),
    (2, "pay", OrderState.PAID),
    (3, "pack", OrderState.PACKED),
    (4, "ship", OrderState.SHIPPED),
)


async def forgetful(opener: Opener, stage: Stage, pace: Pace) -> Sample:
    """As `moves`, by a Manager that keeps no head: each send loads first."""
    kept, ledger.HEADS = ledger.HEADS, 0
    try:
        return await moves(opener, MANY, 1, stage, pace)
    finally:
        ledger.HEADS = kept
