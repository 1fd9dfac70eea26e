"""transitions: one AsyncMachine for all models; an order is added as one and removed at its end."""

from __future__ import annotations

from typing import Any

from .. import whole
from ..case import MANY, Stage
from ..pace import Lane, Pace, Sample, drive
from .installed import needed

STATES = ["created", {"name": "paid", "on_enter": ["reserve"]}, "packed", "shipped"]
TRANSITIONS = [["pay", "created", "paid"], ["pack", "paid", "packed"], ["ship", "packed", "shipped"]]


LIGHT = [["press", "red", "green"], ["press", "green", "red"]]


class _Light:
    state: str


class _Order:
    state: str

    def __init__(self) -> None:
        self.reserved = 0

    async def reserve(self, amount: int) -> None:
        self.reserved += amount


async def orders(_: Stage, pace: Pace) -> Sample:
    """The case."""
    made: Any = needed("transitions.extensions.asyncio").AsyncMachine
    machine = made(
        model=None, states=STATES, transitions=TRANSITIONS, initial="created", auto_transitions=False, queued=False
    )
    ends: list[list[object]] = []

    def seller() -> Lane:
        done: list[object] = []
        ends.append(done)

        async def fulfil(_: int) -> None:
            order: Any = _Order()
            machine.add_model(order)
            await order.pay(amount=100)
            await order.pack()
            await order.ship()
            machine.remove_model(order)
            done.append((order.state, order.reserved))

        return fulfil

    ran = await drive([seller() for _ in range(MANY)], pace, chunk=8)
    for done, count in zip(ends, ran.counts, strict=True):
        whole.same("orders", done, [("shipped", 100)] * count)
    return ran.sample


async def moves(_: Stage, pace: Pace) -> Sample:
    """Each task presses a light of its own."""
    made: Any = needed("transitions.extensions.asyncio").AsyncMachine
    lights: list[Any] = [_Light() for _ in range(MANY)]
    made(
        model=lights,
        states=["red", "green"],
        transitions=LIGHT,
        initial="red",
        auto_transitions=False,
        queued=False,
    )

    def presser(light: Any) -> Lane:
        return lambda _: light.press()

    ran = await drive([presser(light) for light in lights], pace, chunk=32)
    whole.same("lights", [light.state for light in lights], [("red", "green")[count % 2] for count in ran.counts])
    return ran.sample
