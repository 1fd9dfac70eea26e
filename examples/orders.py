"""A thousand orders, a SIGKILL half-way, and a count that proves that nothing was lost.

`python -m examples.orders [COUNT]`; to be read from top to bottom: the drawing, the service, the kill, the proof.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from attrs import evolve, frozen
from rich import print as print_out
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from stores import SQLiteStore
from workflow import Deny, Edge, IllegalTransition, Manager, Move, Spec, Transition
from workflow.diagram import mermaid

# --- the drawing ----------------------------------------------------------------------------------


class State(StrEnum):
    """Where an order can be."""

    CREATED = "created"
    PAID = "paid"
    RESERVED = "reserved"
    SHIPPING = "shipping"
    SHIPPED = "shipped"
    REFUSED = "refused"
    CANCELLED = "cancelled"


class Event(StrEnum):
    """What can happen to it."""

    PAY = "pay"
    RESERVE = "reserve"
    SHIP = "ship"
    CONFIRM = "confirm"
    REFUSE = "refuse"
    CANCEL = "cancel"


@frozen
class Order:
    """The context: what each order carries along."""

    total: int
    weight: int
    received: int = 0


@frozen
class Payment:
    """The payload of PAY."""

    amount: int


OrderMove = Move[State, Event, Order]
OrderEdge = Edge[State, Event, Order]
History = list[Transition[State, Event, Order]]


def covers_total(m: OrderMove) -> bool | Deny:
    """A guard: it may refuse the move, and does nothing else."""
    return m.payload.amount >= m.context.total or Deny(f"{m.payload.amount} does not cover {m.context.total}")


def add_payment(m: OrderMove) -> Order:
    """An assign: the context after the move."""
    return evolve(m.context, received=m.payload.amount)


class Shop:
    """The hooks. Bank, warehouse and carrier are one journal here: it shows what they were asked."""

    def __init__(self, journal: IO[str]) -> None:
        self.journal = journal

    async def ask(self, what: str, m: OrderMove) -> None:
        """A request to the outside. `m.key` is the same if it must be repeated after a crash."""
        print(what, m.id, m.seq, m.key, file=self.journal, flush=True)
        await asyncio.sleep(0.002)  # the answer is on its way: who is killed now never hears that it was done

    async def charge(self, m: OrderMove) -> Event:
        """A hook: it runs once its move is durable. The event that it returns is sent next."""
        await self.ask("charge", m)
        return Event.RESERVE

    async def reserve(self, m: OrderMove) -> Event:
        """Hooks of later states run when the machine gets there."""
        await self.ask("reserve", m)
        return Event.SHIP

    async def ship(self, m: OrderMove) -> Event:
        """What the outside answers decides how it goes on."""
        await self.ask("ship", m)
        return Event.CONFIRM if m.context.weight <= 30 else Event.REFUSE

    async def release(self, m: OrderMove) -> None:
        """A compensator: it undoes what entering its state did."""
        await self.ask("release", m)

    async def refund(self, m: OrderMove) -> None:
        """Compensators run newest first: the stock was given back before."""
        await self.ask("refund", m)


def draw(shop: Shop) -> Spec[State, Event, Order]:
    """The whole machine; a test hands in another shop."""
    return Spec[State, Event, Order](
        "order",
        initial=State.CREATED,
        final={State.SHIPPED, State.REFUSED, State.CANCELLED},
        context=Order,
        payloads={Event.PAY: Payment},
        edges=[
            OrderEdge(State.CREATED, Event.PAY, State.PAID, guard=covers_total, assign=add_payment),
            OrderEdge(State.PAID, Event.RESERVE, State.RESERVED),
            OrderEdge(State.RESERVED, Event.SHIP, State.SHIPPING),
            OrderEdge(State.SHIPPING, Event.CONFIRM, State.SHIPPED),
            OrderEdge(State.SHIPPING, Event.REFUSE, State.REFUSED),
            OrderEdge(State.CREATED, Event.CANCEL, State.CANCELLED),
        ],
        on_enter={State.PAID: shop.charge, State.RESERVED: shop.reserve, State.SHIPPING: shop.ship},
        compensators={State.PAID: shop.refund, State.RESERVED: shop.release},
    )


# --- the service ----------------------------------------------------------------------------------


async def serve(orders: Manager[State, Event, Order], number: int) -> None:
    """One customer. Each call has a key, so a new process says it all again and only the rest is done."""
    id = f"order-{number}"
    await orders.start(id, Order(total=100, weight=number % 33), key="start")
    try:
        done = await orders.send(id, Event.PAY, Payment(100 if number % 25 else 99), key="pay")
    except IllegalTransition:  # the guard refused it (or, said again after the cancelling: too late)
        await orders.send(id, Event.CANCEL, key="cancel")
        return
    if done.state is not State.SHIPPED:  # the carrier refused: give back stock and money, newest first
        await orders.compensate(id, to=State.CREATED, key="undo")
        await orders.send(id, Event.CANCEL, key="cancel")


async def service(folder: Path, count: int) -> None:
    """The process that is killed: it finishes what a former one left, then serves all customers."""
    with (folder / "journal").open("a") as journal:
        async with Manager(draw(Shop(journal)), SQLiteStore(folder / "orders.db")) as orders:
            print("resumed", (await orders.resume()).effects, flush=True)
            numbers = iter(range(count))

            async def customers() -> None:
                for number in numbers:
                    await serve(orders, number)
                    print("served", number, flush=True)

            await asyncio.gather(*(customers() for _ in range(32)))


# --- the kill -------------------------------------------------------------------------------------


def run(folder: Path, count: int, progress: Progress, kill_after: int = 0) -> set[int]:
    """The service in a process of its own, killed once so many are served. Tells who was served."""
    task = progress.add_task("a new process" if not kill_after else "to be killed", total=count)
    command = [sys.executable, __file__, str(count), str(folder)]
    served = set[int]()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:  # noqa: S603  # this very file
        for word, number in map(str.split, child.stdout or ()):
            if word == "resumed":
                progress.print(f"A process starts and resumes {number} effects that a dead one owed.")
                continue
            served.add(int(number))
            progress.update(task, completed=len(served))
            if len(served) == kill_after:
                child.kill()
                progress.print(f"Killed by SIGKILL: {kill_after} orders were served, others were under way.")
                return served
    if child.returncode:
        raise SystemExit(f"the service ended with {child.returncode}")
    return served


# --- the proof ------------------------------------------------------------------------------------

DOES = {State.PAID: "charge", State.RESERVED: "reserve", State.SHIPPING: "ship"}
UNDOES: dict[State | None, str] = {State.PAID: "refund", State.RESERVED: "release"}


async def look(folder: Path, numbers: Iterable[int]) -> dict[int, History]:
    """What the file says of these orders; with `work=False` looking changes nothing."""
    async with Manager(draw(Shop(sys.stdout)), SQLiteStore(folder / "orders.db"), work=False) as orders:
        return {number: await orders.history(f"order-{number}") for number in numbers}


def prove(found: list[History], answered: dict[int, History], journal: list[str], before: int) -> bool:
    """Compare the histories with those of the orders answered before the kill, and with what the outside saw."""
    lines = [line for history in found for line in history]
    owed = {(DOES[x.target], x.id, str(x.seq)) for x in lines if x.kind == "event" and x.target in DOES}
    owed |= {(UNDOES[x.source], x.id, str(x.seq)) for x in lines if x.kind == "compensate" and x.source in UNDOES}

    asked = {key: (what, id, seq) for what, id, seq, key in map(str.split, journal)}
    first, second = Counter(journal[:before]), Counter(journal[before:])
    repeated = [line for line, times in Counter(journal).items() if times > 1]
    ends = Counter(history[-1].target for history in found)
    wrong = {
        "answered before the kill, but not the same after it": sum(found[n] != answered[n] for n in answered),
        "orders that did not end": len(found) - ends[State.SHIPPED] - ends[State.CANCELLED],
        "effects lost": len(owed - set(asked.values())),
        "effects that nobody owed": len(set(asked.values()) - owed),
        "effects done twice unnoticed": len(asked) - len(set(asked.values())),  # one work under two keys
        "repeats not explained by the kill": sum(first[x] != 1 or second[x] != 1 for x in repeated),
    }
    table = Table("counted from the histories and the journal of the outside", "")
    table.add_row("orders shipped", str(ends[State.SHIPPED]))
    table.add_row("orders cancelled", str(ends[State.CANCELLED]))
    table.add_row("effects owed", str(len(owed)))
    table.add_row("requests seen outside", str(len(journal)))
    table.add_row("repeated by the second process, recognised by the key", str(len(repeated)), end_section=True)
    for name, number in wrong.items():
        table.add_row(name, str(number), style="red" if number else "green")
    print_out(table)
    show(next((history for history in found if any(x.kind == "compensate" for x in history)), found[-1]))
    return not any(wrong.values())


def show(history: History) -> None:
    """One order: each line of its life, and the drawing with the way it took."""
    table = Table("line", "kind", "event", "from", "to", "key", title=f"The history of {history[0].id}")
    for x in history:
        table.add_row(str(x.seq), x.kind, x.event, x.source, x.target, x.key)
    print_out(table)
    print(mermaid(draw(Shop(sys.stdout)), history=history))


def main(count: int = 1000) -> None:
    """Start, kill, start again, count."""
    with TemporaryDirectory() as name:
        folder, journal = Path(name), Path(name) / "journal"
        with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()) as progress:
            served = run(folder, count, progress, kill_after=count // 2)
            before, answered = len(journal.read_text().splitlines()), asyncio.run(look(folder, served))
            run(folder, count, progress)
        found = asyncio.run(look(folder, range(count)))
        if not prove([*found.values()], answered, journal.read_text().splitlines(), before):
            raise SystemExit("Something was lost or done twice unnoticed: see the red lines.")
    print("Nothing lost, nothing done twice unnoticed.")


if __name__ == "__main__":
    if len(sys.argv) == 3:  # the demo starts itself: the count and its folder
        asyncio.run(service(Path(sys.argv[2]), int(sys.argv[1])))
    else:
        main(*map(int, sys.argv[1:]))
