"""eventsourcing: an aggregate for each order, its SQLite persistence, in threads as it is synchronous.

Aggregates are kept in memory and not looked up again, as our heads are; a save inserts under a
unique (aggregate, version), which refuses what is out of date.
"""

# mypy: disable-error-code="misc, name-defined, untyped-decorator"
# its types are known only where it is installed

from __future__ import annotations

import asyncio
from functools import cache
from time import monotonic_ns
from typing import Any

from .. import whole
from ..case import MANY, Stage
from ..pace import Lane, Pace, Sample, drive
from .installed import needed


@cache
def _classes() -> tuple[Any, Any]:
    domain, application = needed("eventsourcing.domain"), needed("eventsourcing.application")
    event = domain.event

    class Order(domain.Aggregate):
        @event("Started")
        def __init__(self, total: int) -> None:
            self.total, self.state, self.paid = total, "created", 0

        @event("Paid")
        def pay(self, amount: int) -> None:
            self.state, self.paid = "paid", amount

        @event("Packed")
        def pack(self) -> None:
            self.state = "packed"

        @event("Shipped")
        def ship(self) -> None:
            self.state = "shipped"

    return Order, application.Application


def _fulfil(desk: Any, made: Any) -> Any:
    """Four saves; each gets the aggregate anew, as calls of a service would."""
    order = made(total=100)
    desk.save(order)
    for name, values in (("pay", (100,)), ("pack", ()), ("ship", ())):
        order = desk.repository.get(order.id)
        getattr(order, name)(*values)
        desk.save(order)
        if name == "pay":
            _reserve(order)
    return order.id


def _reserve(order: Any) -> None:
    """The hook."""


async def orders(stage: Stage, pace: Pace) -> Sample:
    """The case."""
    made, application = _classes()
    desk = application(
        env={
            "PERSISTENCE_MODULE": "eventsourcing.sqlite",
            "SQLITE_DBNAME": str(stage.folder / f"events-{monotonic_ns()}.db"),
            "AGGREGATE_CACHE_MAXSIZE": "8192",
            "AGGREGATE_CACHE_FASTFORWARD": "n",
        }
    )
    ends: list[list[Any]] = []

    def seller() -> Lane:
        done: list[Any] = []
        ends.append(done)

        async def fulfil(_: int) -> None:
            done.append(await asyncio.to_thread(_fulfil, desk, made))

        return fulfil

    try:
        ran = await drive([seller() for _ in range(MANY)], pace)
        for done, count in zip(ends, ran.counts, strict=True):
            whole.same("orders", [len(set(done))], [count])
            for id in done:
                versions = [stored.originator_version for stored in desk.recorder.select_events(id)]
                whole.same("an order", versions, [1, 2, 3, 4])
    finally:
        desk.close()
    return ran.sample
