"""The two workflows that are measured.

A light that is switched to and fro, each press one move with a key: what a send costs, and nothing
else. And an order from start to end, with payload and one hook: what all peers can do as well.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum

from attrs import frozen

from workflow import Edge, Move, Retry, Spec


class Light(StrEnum):
    """A light that is switched to and fro."""

    RED = "red"
    GREEN = "green"


class Press(StrEnum):
    """What happens to it."""

    GO = "go"
    HALT = "halt"


LightMove = Move[Light, Press, None]
LightEdge = Edge[Light, Press, None]
DAY = timedelta(days=1)
PRESSES = (Press.GO, Press.HALT)
"""The n-th press of a light is PRESSES[n % 2], with the key `key(n)`."""


def key(n: int) -> str:
    """The n-th press's key."""
    return f"press {n}"


def light(*, hooked: bool = False, broken: bool = False) -> Spec[Light, Press, None]:
    """The light; with `hooked` each move owes one hook that does nothing, or if `broken` fails for a day."""

    async def seen(m: LightMove) -> None:
        if broken:
            raise ConnectionError(m.id)

    hooks = dict.fromkeys(Light, seen) if hooked else {}
    edges = [LightEdge(Light.RED, Press.GO, Light.GREEN), LightEdge(Light.GREEN, Press.HALT, Light.RED)]
    return Spec[Light, Press]("light", initial=Light.RED, edges=edges, on_enter=hooks, retry=Retry(first=DAY, max=DAY))


class OrderState(StrEnum):
    """Where an order is."""

    CREATED = "created"
    PAID = "paid"
    PACKED = "packed"
    SHIPPED = "shipped"


class OrderEvent(StrEnum):
    """What happens to it."""

    PAY = "pay"
    PACK = "pack"
    SHIP = "ship"


@frozen
class Order:
    """What an order knows."""

    total: int = 100


@frozen
class Payment:
    """What PAY carries."""

    amount: int


OrderMove = Move[OrderState, OrderEvent, Order]
OrderEdge = Edge[OrderState, OrderEvent, Order]


def order() -> Spec[OrderState, OrderEvent, Order]:
    """The order: three events, one hook."""

    async def reserve(m: OrderMove) -> None:
        pass

    return Spec[OrderState, OrderEvent, Order](
        "order",
        initial=OrderState.CREATED,
        final={OrderState.SHIPPED},
        context=Order,
        payloads={OrderEvent.PAY: Payment},
        edges=[
            OrderEdge(OrderState.CREATED, OrderEvent.PAY, OrderState.PAID),
            OrderEdge(OrderState.PAID, OrderEvent.PACK, OrderState.PACKED),
            OrderEdge(OrderState.PACKED, OrderEvent.SHIP, OrderState.SHIPPED),
        ],
        on_enter={OrderState.PAID: reserve},
    )
