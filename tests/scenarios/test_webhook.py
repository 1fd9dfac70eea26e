"""A payment provider delivers its events at least once, in any order, to several processes of a service."""

from __future__ import annotations

import asyncio
from enum import StrEnum, auto

import pytest
from attrs import evolve, frozen

from workflow import ANY, Deny, Edge, GuardRejected, Manager, Move, Spec, Status


class State(StrEnum):
    CREATED = auto()
    PAID = auto()
    SHIPPED = auto()
    CANCELLED = auto()


class Event(StrEnum):
    PAY = auto()
    SHIP = auto()
    CANCEL = auto()


@frozen
class Order:
    total: int = 100
    received: int = 0


@frozen
class Payment:
    amount: int


OrderMove = Move[State, Event, Order]
OrderEdge = Edge[State, Event, Order]


def covers_total(m: OrderMove) -> bool | Deny:
    return m.context.received + m.payload.amount >= m.context.total or Deny("payment does not cover the total")


def add_payment(m: OrderMove) -> Order:
    return evolve(m.context, received=m.context.received + m.payload.amount)


def drawn() -> Spec[State, Event, Order]:
    return Spec[State, Event, Order](
        "order",
        initial=State.CREATED,
        final={State.SHIPPED, State.CANCELLED},
        context=Order,
        payloads={Event.PAY: Payment},
        edges=[
            OrderEdge(State.CREATED, Event.PAY, State.PAID, guard=covers_total, assign=add_payment),
            OrderEdge(State.PAID, Event.SHIP, State.SHIPPED),
            OrderEdge(ANY, Event.CANCEL, State.CANCELLED),
        ],
    )


async def test_each_event_counts_once(store):
    """Two services, forty orders, every event delivered three times at once: each is done once, its goods reserved once."""
    order, reserved = drawn(), []

    @order.on_enter(State.PAID)
    async def reserve_stock(m: OrderMove) -> None:
        reserved.append(m.key)

    async with Manager(order, store) as one, Manager(order, store) as two:

        async def deliver(service, number):
            id = f"o-{number}"
            return await service.send(id, Event.PAY, Payment(100), key=f"evt-{number}", start=Order())

        answers = await asyncio.gather(*(deliver(s, n) for n in range(40) for s in (one, two, one)))
        assert sum(not answer.duplicate for answer in answers) == 40
        await asyncio.gather(*(one.settled(f"o-{n}") for n in range(40)))
        assert len(reserved) == len(set(reserved)) == 40
        for number in range(40):
            head = await two.get(f"o-{number}")
            assert (head.state, head.context) == (State.PAID, Order(100, 100))


async def test_what_is_refused_now_may_come_again(store):
    """A payment that does not cover the total is refused with the reason; the same event may be tried again later."""
    async with Manager(drawn(), store) as orders:
        await orders.start("o-1", Order(total=200))
        with pytest.raises(GuardRejected, match="does not cover"):
            await orders.send("o-1", Event.PAY, Payment(150), key="evt-1")
        done = await orders.send("o-1", Event.PAY, Payment(250), key="evt-2")
        assert (done.state, done.transition.context.received) == (State.PAID, 250)
        await orders.send("o-1", Event.SHIP)
        assert (await orders.get("o-1")).status is Status.FINISHED
