"""Three months of invoices in a second: timeouts, retries, and what an operator does. `python -m examples.dunning`"""

import asyncio
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import pairwise

from stores import MemoryStore
from workflow import After, Edge, Manager, Move, Observer, Retry, Spec
from workflow.observer import Ran
from workflow.testing import FakeClock

State = StrEnum("State", ["OPEN", "REMINDED", "WARNED", "COLLECTED", "PAID"])
Event = StrEnum("Event", ["LATE", "PAY"])
InvoiceMove = Move[State, Event, int]  # all that an invoice carries is what is owed
InvoiceEdge = Edge[State, Event, int]
LADDER = [State.OPEN, State.REMINDED, State.WARNED, State.COLLECTED]
DAY = timedelta(days=1)


class Printer(Observer):
    """The letters, and a red lamp for what does not go on by itself."""

    jammed = False

    async def post(self, m: InvoiceMove) -> None:
        """Fails on some days; tried again it has the same `m.key`, so that no letter is posted twice."""
        if self.jammed:
            raise OSError("the printer is jammed")

    def effect_gave_up(self, fact: Ran) -> None:
        """An observer hears of it at once; `stuck` tells it to whoever asks."""
        print(f"the lamp: {fact.id}, attempt {fact.attempt}, {fact.error}")


def draw(printer: Printer) -> Spec[State, Event, int]:
    """A timeout begins with the commit that enters its state, and is gone with the one that leaves it."""
    # Who owes much gets a week instead of a fortnight.
    late = After[State, Event, int](lambda m: (7 if m.context > 1000 else 14) * DAY, Event.LATE)
    steps = [InvoiceEdge(here, Event.LATE, there) for here, there in pairwise(LADDER)]
    return Spec[State, Event, int](
        "invoice",
        initial=State.OPEN,
        final={State.COLLECTED, State.PAID},
        context=int,
        edges=[*steps, InvoiceEdge(LADDER[:-1], Event.PAY, State.PAID)],
        timeouts={State.OPEN: After(30 * DAY, Event.LATE), State.REMINDED: late, State.WARNED: late},
        on_enter={State.REMINDED: printer.post, State.WARNED: printer.post},
        retry=Retry(attempts=4, first=timedelta(hours=2), max=DAY),
    )


async def main() -> None:
    """Anna pays, Bert disputes, Carl does neither. With a real clock it would be the same, only longer."""
    clock, printer = FakeClock(datetime(2030, 1, 1, tzinfo=UTC)), Printer()
    async with Manager(draw(printer), MemoryStore(), clock=clock, observer=printer) as invoices:
        for id, owed in (("anna", 100), ("bert", 2000), ("carl", 300)):
            await invoices.start(id, owed)
        await clock.advance(33 * DAY)
        await invoices.pause("bert", "disputes the amount")  # no timer fires, no event is taken
        await clock.advance(7 * DAY)
        await invoices.send("anna", Event.PAY)
        printer.jammed = True
        await clock.advance(7 * DAY)
        for stuck in await invoices.stuck():
            print(f"the list: {stuck.id} has {stuck.status} in {stuck.state}, {stuck.reason}")
        printer.jammed = False
        await invoices.retry("carl", "printer repaired")
        await invoices.unpause("bert", "was wrong")  # what is overdue fires now
        await clock.advance(50 * DAY)
        lines = [line for id in ("anna", "bert", "carl") for line in await invoices.history(id)]
        for line in sorted(lines, key=lambda line: line.at):
            print(f"{line.at:%d %b} {line.id} {line.kind}: {line.reason or line.target}")


if __name__ == "__main__":
    asyncio.run(main())
