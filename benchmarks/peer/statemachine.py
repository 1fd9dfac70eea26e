"""python-statemachine: a chart for each order and each light, on the asynchronous engine."""

from __future__ import annotations

from functools import cache
from typing import Any

from .. import whole
from ..case import MANY, Stage
from ..pace import Lane, Pace, Sample, drive
from .installed import needed


@cache
def _chart() -> Any:
    package = needed("statemachine")
    state = package.State
    created, paid, packed = state(initial=True), state(), state()
    shipped = state(final=True)

    async def on_enter_paid(self: Any, amount: int) -> None:
        self.reserved = amount

    drawn = {
        "created": created,
        "paid": paid,
        "packed": packed,
        "shipped": shipped,
        "pay": created.to(paid),
        "pack": paid.to(packed),
        "ship": packed.to(shipped),
        "on_enter_paid": on_enter_paid,
    }
    return type(package.StateChart)("OrderChart", (package.StateChart,), drawn)


async def orders(_: Stage, pace: Pace) -> Sample:
    """The case."""
    chart = _chart()
    ends: list[list[object]] = []

    def seller() -> Lane:
        done: list[object] = []
        ends.append(done)

        async def fulfil(_: int) -> None:
            order = chart()
            await order.activate_initial_state()
            await order.pay(amount=100)
            await order.pack()
            await order.ship()
            done.append((*order.configuration_values, order.reserved))

        return fulfil

    ran = await drive([seller() for _ in range(MANY)], pace, chunk=8)
    for done, count in zip(ends, ran.counts, strict=True):
        whole.same("orders", done, [("shipped", 100)] * count)
    return ran.sample


@cache
def _light() -> Any:
    package = needed("statemachine")
    red, green = package.State(initial=True), package.State()

    async def on_press(self: Any) -> None:
        """A callback that is a coroutine function chooses the asynchronous engine."""

    drawn = {"red": red, "green": green, "press": red.to(green) | green.to(red), "on_press": on_press}
    return type(package.StateChart)("LightChart", (package.StateChart,), drawn)


async def moves(_: Stage, pace: Pace) -> Sample:
    """Each task presses a light of its own."""
    lights = [_light()() for _ in range(MANY)]
    for light in lights:
        await light.activate_initial_state()

    def presser(light: Any) -> Lane:
        return lambda _: light.press()

    ran = await drive([presser(light) for light in lights], pace, chunk=32)
    ends = [next(iter(light.configuration_values)) for light in lights]
    whole.same("lights", ends, [("red", "green")[count % 2] for count in ran.counts])
    return ran.sample
