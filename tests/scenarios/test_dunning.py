"""Three months of one invoice after another: reminders by timeouts, a dispute on hold, an end that nobody has to remember."""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum, auto
from typing import Any

import pytest
from attrs import evolve, frozen

from tests.flows import NOON, crashing, story
from workflow import STAY, After, Edge, Manager, Move, NotRunning, Retry, Spec, Status

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


class State(StrEnum):
    OPEN = auto()
    REMINDED = auto()
    WARNED = auto()
    COLLECTION = auto()
    PAID = auto()


class Event(StrEnum):
    LATE = auto()
    PAY = auto()


@frozen
class Invoice:
    owed: int = 100


InvoiceMove = Move[State, Event, Invoice]
OPEN = {State.OPEN, State.REMINDED, State.WARNED}


def settles(m: InvoiceMove) -> bool:
    return bool(m.payload >= m.context.owed)


def pay(m: InvoiceMove) -> Invoice:
    return evolve(m.context, owed=max(0, m.context.owed - m.payload))


class Office:
    """Letters by the day on which they were posted, once for each key; and days on which the printer does not work."""

    def __init__(self, clock: Any) -> None:
        self.clock = clock
        self.letters: dict[str, tuple[int, str, State]] = {}
        self.jammed = range(0)
        self.tried: list[float] = []

    @property
    def day(self) -> int:
        return int((self.clock.now() - NOON) / DAY)

    async def post(self, m: InvoiceMove) -> None:
        self.tried.append((self.clock.now() - NOON) / HOUR)
        if self.day in self.jammed:
            raise OSError("the printer is jammed")
        self.letters[m.key] = (self.day, m.id, m.target)

    def posted(self, id: str) -> list[tuple[int, State]]:
        return [(day, state) for day, whose, state in self.letters.values() if whose == id]

    def spec(self) -> Spec[State, Event, Invoice]:
        edges: list[Any] = [
            Edge(OPEN, Event.PAY, State.PAID, guard=settles, assign=pay),
            Edge(OPEN, Event.PAY, STAY, assign=pay),
            Edge(State.OPEN, Event.LATE, State.REMINDED),
            Edge(State.REMINDED, Event.LATE, State.WARNED),
            Edge(State.WARNED, Event.LATE, State.COLLECTION),
        ]
        return Spec[State, Event, Invoice](
            "invoice",
            initial=State.OPEN,
            final={State.PAID, State.COLLECTION},
            context=Invoice,
            payloads={Event.PAY: int},
            edges=edges,
            timeouts={
                State.OPEN: After(30 * DAY, Event.LATE),
                State.REMINDED: After(14 * DAY, Event.LATE),
                State.WARNED: After(14 * DAY, Event.LATE),
            },
            on_enter=dict.fromkeys((State.REMINDED, State.WARNED, State.COLLECTION), self.post),
            retry=Retry(attempts=4, first=HOUR, max=DAY, jitter=0.0),
        )


FULL = [(30, State.REMINDED), (44, State.WARNED), (58, State.COLLECTION)]


async def test_nobody_pays(store, clock):
    """Each letter on its day; a service that dies and comes back, also much later, sends none twice and none in vain."""
    office = Office(clock)
    async with store:
        async with crashing(Manager(office.spec(), store, clock=clock)) as invoices:
            await invoices.start("a")
            await clock.advance(31 * DAY)
        await clock.advance(DAY)
        async with Manager(office.spec(), store, clock=clock) as invoices:
            await clock.advance(60 * DAY)
            assert office.posted("a") == FULL
            assert await story(invoices, "a") == ["start", "timeout", "timeout", "timeout"]
            assert (await invoices.get("a")).status is Status.FINISHED


async def test_parts(store, clock):
    """What is paid in parts stays in the same dunning: a part moves no date, the last one ends it."""
    office = Office(clock)
    async with Manager(office.spec(), store, clock=clock) as invoices:
        await invoices.start("a")
        for day, amount in ((20, 30), (12, 30), (11, 40)):
            await clock.advance(day * DAY)
            await invoices.send("a", Event.PAY, amount)
        assert (await invoices.get("a")).context == Invoice(0)
        await clock.advance(90 * DAY)
        assert office.posted("a") == FULL[:1]
        assert await story(invoices, "a") == ["start", "event", "timeout", "event", "event"]


async def test_a_dispute(store, clock):
    """Paused over five weeks: no letter, no payment; what is overdue then comes at once, what follows from there."""
    office = Office(clock)
    async with Manager(office.spec(), store, clock=clock) as invoices:
        await invoices.start("a")
        await clock.advance(35 * DAY)
        await invoices.pause("a", "the customer disputes it", key="ticket-7")
        assert (await invoices.pause("a", "the customer disputes it", key="ticket-7")).duplicate
        await clock.advance(35 * DAY)
        with pytest.raises(NotRunning, match="disputes"):
            await invoices.send("a", Event.PAY, 100)
        head = await invoices.get("a")
        assert (head.state, head.status, head.reason) == (State.REMINDED, Status.PAUSED, "the customer disputes it")
        await invoices.unpause("a", "settled by ticket-7")
        await clock.advance(20 * DAY)
        assert office.posted("a") == [(30, State.REMINDED), (70, State.WARNED), (84, State.COLLECTION)]
        assert await story(invoices, "a") == ["start", "timeout", "pause", "unpause", "timeout", "timeout"]


async def test_goodwill(store, clock):
    """Cancelled by an operator: no letter any more, not after three months; a payment is told why it is not taken."""
    office = Office(clock)
    async with Manager(office.spec(), store, clock=clock) as invoices:
        await invoices.start("a")
        await clock.advance(50 * DAY)
        await invoices.cancel("a", "goodwill")
        (loaded,) = await store.load("invoice", ("a",), rows=True)
        assert loaded.rows == ()
        await clock.advance(90 * DAY)
        assert office.posted("a") == FULL[:2]
        head = await invoices.get("a")
        assert (head.state, head.status, head.reason) == (State.WARNED, Status.CANCELLED, "goodwill")
        with pytest.raises(NotRunning, match="goodwill"):
            await invoices.send("a", Event.PAY, 100)
        assert await story(invoices, "a") == ["start", "timeout", "timeout", "cancel"]


async def test_a_printer(store, clock):
    """Jammed for a day: four attempts, an hour, two and four apart; failed, found by an operator, retried, and on it goes."""
    office = Office(clock)
    office.jammed = range(30, 31)
    async with Manager(office.spec(), store, clock=clock) as invoices:
        for id in ("a", "b"):
            await invoices.start(id)
            await clock.advance(DAY)
        await clock.advance(31 * DAY)
        assert office.tried[:4] == [720, 721, 723, 727]
        (stuck,) = await invoices.stuck(older_than=100 * DAY)
        assert (stuck.id, stuck.state, stuck.status) == ("a", State.REMINDED, Status.FAILED)
        assert "the printer is jammed" in stuck.reason
        await clock.advance(7 * DAY)
        assert office.posted("b") == [(31, State.REMINDED)]
        await invoices.retry("a", "new printer")
        await clock.advance(timedelta(0))
        assert office.posted("a") == [(40, State.REMINDED)]
        assert await invoices.stuck(older_than=100 * DAY) == []
        await clock.advance(60 * DAY)
        # The state was entered on day 30: its fortnight has gone on, held only where it would have fired.
        assert office.posted("a") == [(40, State.REMINDED), (44, State.WARNED), (58, State.COLLECTION)]
        assert await story(invoices, "a") == ["start", "timeout", "fail", "retry", "timeout", "timeout"]


async def test_all_letters_of_a_quarter(store, clock):
    """Forty invoices, one a day, some paid on their 20th, some forgiven on their 40th: each letter on its day, none besides."""
    office, last = Office(clock), {0: 20, 1: 40, 2: 1000}
    async with Manager(office.spec(), store, clock=clock) as invoices:
        for today in range(100):
            if today < 40:
                await invoices.start(f"i{today}")
            if 0 <= today - 20 < 40 and (today - 20) % 3 == 0:
                await invoices.send(f"i{today - 20}", Event.PAY, 100)
            if 0 <= today - 40 < 40 and (today - 40) % 3 == 1:
                await invoices.cancel(f"i{today - 40}", "goodwill")
            await clock.advance(DAY)
        for n in range(40):
            assert office.posted(f"i{n}") == [(n + day, state) for day, state in FULL if day <= last[n % 3]]
