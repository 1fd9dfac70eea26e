"""An order waits half an hour for its payment; the provider's webhook comes in time, late, twice, or just then."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from enum import StrEnum, auto
from typing import Any

from tests.flows import MINUTE, NOON, SECOND, crashing, story
from workflow import After, Edge, Manager, Move, Retry, Spec, Status

PATIENCE = timedelta(minutes=30)


class State(StrEnum):
    AWAITING = auto()
    PAID = auto()
    EXPIRED = auto()
    REFUNDING = auto()
    REFUNDED = auto()
    CLOSED = auto()


class Event(StrEnum):
    PAY = auto()
    EXPIRE = auto()
    REFUNDED = auto()
    CLOSE = auto()


PaymentMove = Move[State, Event, None]


class Provider:
    """Who holds the money: what was asked of it, by idempotency key; its first answers are errors."""

    def __init__(self, errors: int = 0) -> None:
        self.asked: list[str] = []
        self.refunds: dict[str, int] = {}
        self.errors = errors

    async def refund(self, m: PaymentMove) -> Event:
        self.asked.append(m.id)
        if len(self.asked) <= self.errors:
            raise ConnectionError("the bank is closed")
        self.refunds[m.key] = m.payload
        return Event.REFUNDED

    def spec(self) -> Spec[State, Event, None]:
        """A payment that comes too late is given back; after a quarter nobody waits for one any more."""
        edges: list[Any] = [
            Edge(State.AWAITING, Event.PAY, State.PAID),
            Edge(State.AWAITING, Event.EXPIRE, State.EXPIRED),
            Edge(State.EXPIRED, Event.PAY, State.REFUNDING),
            Edge(State.EXPIRED, Event.CLOSE, State.CLOSED),
            Edge(State.REFUNDING, Event.REFUNDED, State.REFUNDED),
        ]
        return Spec[State, Event, None](
            "payment",
            initial=State.AWAITING,
            final={State.PAID, State.REFUNDED, State.CLOSED},
            payloads={Event.PAY: int},
            edges=edges,
            timeouts={
                State.AWAITING: After(PATIENCE, Event.EXPIRE),
                State.EXPIRED: After(timedelta(days=90), Event.CLOSE),
            },
            on_enter={State.REFUNDING: self.refund},
            retry=Retry(first=MINUTE, jitter=0.0),
        )


async def test_in_time(store, clock):
    """Who pays in the last second has paid; nothing is due any more, nothing happens when the half hour is over."""
    async with Manager(Provider().spec(), store, clock=clock) as payments:
        await payments.start("p")
        await clock.advance(PATIENCE - SECOND)
        done = await payments.send("p", Event.PAY, 100, key="evt-1")
        assert (done.state, done.settled) == (State.PAID, True)
        await clock.advance(timedelta(days=400))
        assert await story(payments, "p") == ["start", "event"]
        assert (await payments.send("p", Event.PAY, 100, key="evt-1")).duplicate


async def test_late_webhook(store, clock):
    """The order has expired: the money is given back once, though the webhook comes twice and the bank is closed."""
    provider = Provider(errors=2)
    async with Manager(provider.spec(), store, clock=clock) as payments:
        await payments.start("p")
        await clock.advance(PATIENCE)
        assert await payments.state("p") is State.EXPIRED
        await clock.advance(timedelta(hours=3))
        late = [payments.send("p", Event.PAY, 100, key="evt-1") for _ in range(2)]
        answers = await asyncio.gather(*late, return_exceptions=True)
        assert len([e for e in answers if "the bank is closed" in str(e)]) == 1
        await clock.advance(5 * MINUTE)
        head = await payments.get("p")
        assert (head.state, head.status) == (State.REFUNDED, Status.FINISHED)
        assert (provider.asked, [*provider.refunds.values()]) == (["p"] * 3, [100])
        assert await story(payments, "p") == ["start", "timeout", "event", "event"]


async def test_never(store, clock):
    """After the half hour and the quarter, each at its own instant, the order is closed by itself."""
    async with Manager(Provider().spec(), store, clock=clock) as payments:
        await payments.start("p")
        await clock.advance(timedelta(days=365))
        history = await payments.history("p")
        assert [(x.kind, x.target, x.at - NOON) for x in history[1:]] == [
            ("timeout", State.EXPIRED, PATIENCE),
            ("timeout", State.CLOSED, PATIENCE + timedelta(days=90)),
        ]


async def test_just_then(store, clock):
    """Webhook and timeout race at one instant, in two services: each order is paid or its money goes back, never both."""
    provider = Provider()
    spec, ids = provider.spec(), [f"p-{n}" for n in range(40)]
    async with Manager(spec, store, clock=clock) as one, Manager(spec, store, clock=clock) as two:
        await asyncio.gather(*(one.start(id) for id in ids))
        await clock.advance(PATIENCE - SECOND)
        webhooks = [service.send(id, Event.PAY, 7, key="evt") for id in ids for service in (one, two)]
        await asyncio.gather(clock.advance(SECOND), *webhooks)
        await asyncio.gather(*(one.settled(id) for id in ids))
        ends = {id: (await two.get(id)).state for id in ids}
        assert set(ends.values()) <= {State.PAID, State.REFUNDED}
        assert sorted(provider.asked) == sorted(id for id, end in ends.items() if end is State.REFUNDED)
        for id in ids:
            kinds = await story(one, id)
            assert kinds == (["start", "event"] if ends[id] is State.PAID else ["start", "timeout", "event", "event"])


async def test_while_nobody_runs(store, clock):
    """The service dies before the half hour is over; the next one finds the order expired, and pays back."""
    provider = Provider()
    async with store:
        async with crashing(Manager(provider.spec(), store, clock=clock)) as dying:
            await dying.start("p")
        await clock.advance(2 * PATIENCE)
        async with Manager(provider.spec(), store, clock=clock) as living:
            assert (await living.resume()).timers == 1
            done = await living.send("p", Event.PAY, 100, key="evt-1")
            assert (done.state, [*provider.refunds.values()]) == (State.REFUNDED, [100])
            assert [x.at for x in await living.history("p")][1] == NOON + 2 * PATIENCE
