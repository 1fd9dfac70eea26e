"""A real process against its drawing: an incident log, each row sent as an event.

    python -m examples.incidents LOG [--db PATH | --memory] [--tasks N]

LOG is a csv or csv.gz with the columns at, incident, status, substatus, group, impact, ordered by time. A step that
the drawing does not allow is refused with its reason and counted. Run it again: all is known, nothing changes.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import gzip
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from statistics import median

from attrs import define, field, frozen
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from stores import MemoryStore, SQLiteStore
from workflow import (
    STAY,
    Deny,
    Edge,
    Finished,
    GuardRejected,
    IllegalTransition,
    KeyConflict,
    Manager,
    Move,
    Spec,
    Transition,
    UnknownInstance,
)
from workflow.diagram import mermaid

# --- the drawing ----------------------------------------------------------------------------------


class State(StrEnum):
    """Where an incident is."""

    REPORTED = "reported"
    QUEUED = "queued"
    ASSIGNED = "assigned"
    WORK = "in_progress"
    WAIT = "waiting"
    WAIT_USER = "waiting_user"
    WAIT_CUSTOMER = "waiting_customer"
    WAIT_VENDOR = "waiting_vendor"
    WAIT_CHANGE = "waiting_change"
    RESOLVED = "resolved"
    IN_CALL = "resolved_in_call"
    CLOSED = "closed"
    CANCELLED = "cancelled"


class Event(StrEnum):
    """What a row says has happened, in the words of the log: status/substatus."""

    QUEUE = "Queued/Awaiting Assignment"
    ASSIGN = "Accepted/Assigned"
    WORK = "Accepted/In Progress"
    WAIT = "Accepted/Wait"
    WAIT_USER = "Accepted/Wait - User"
    WAIT_CUSTOMER = "Accepted/Wait - Customer"
    WAIT_VENDOR = "Accepted/Wait - Vendor"
    WAIT_CHANGE = "Accepted/Wait - Implementation"
    RESOLVE = "Completed/Resolved"
    IN_CALL = "Completed/In Call"
    CLOSE = "Completed/Closed"
    CANCEL = "Completed/Cancelled"
    UNMATCHED = "Unmatched/Unmatched"  # a slip between two systems: no edge takes it


@frozen
class Row:
    """What an event carries: its place among the rows of the incident, and what else the log says."""

    number: int
    at: datetime
    group: str
    impact: str


@frozen
class Incident:
    """The last row that counted."""

    number: int = 0
    at: datetime | None = None


IncidentMove = Move[State, Event, Incident]
IncidentEdge = Edge[State, Event, Incident]
History = list[Transition[State, Event, Incident]]


def newer(m: IncidentMove) -> bool | Deny:
    """A row older than what is known comes too late; so a refused row stays refused when it comes again."""
    return m.payload.number > m.context.number or Deny("a later row is known already")


def soon(m: IncidentMove) -> bool | Deny:
    """Reopening has a limit."""
    late = m.context.at is not None and m.payload.at - m.context.at > timedelta(days=7)
    return newer(m) and (not late or Deny("resolved more than 7 days ago: report a new incident"))


def note(m: IncidentMove) -> Incident:
    """Keep the row."""
    return Incident(m.payload.number, m.payload.at)


HANDED = {Event.QUEUE: State.QUEUED, Event.ASSIGN: State.ASSIGNED, Event.WORK: State.WORK}
WAITS = {
    Event.WAIT: State.WAIT,
    Event.WAIT_USER: State.WAIT_USER,
    Event.WAIT_CUSTOMER: State.WAIT_CUSTOMER,
    Event.WAIT_VENDOR: State.WAIT_VENDOR,
    Event.WAIT_CHANGE: State.WAIT_CHANGE,
}
WAITING = {*WAITS.values()}
OPEN = {State.REPORTED, *HANDED.values(), *WAITING}
DONE = {State.RESOLVED, State.IN_CALL}


def edges() -> Iterator[IncidentEdge]:
    """The process as it is meant."""
    for event, state in HANDED.items():  # whoever has it may hand it on, and what was done may come back
        yield IncidentEdge(OPEN - {state}, event, state, guard=newer, assign=note)
        yield IncidentEdge(DONE, event, state, guard=soon, assign=note)
    for event, state in WAITS.items():  # only who works on it may wait; a wait without a reason may be given one
        sources = {State.WORK, State.WAIT} - {state}
        yield IncidentEdge(sources, event, state, guard=newer, assign=note)
    for event, state in (HANDED | WAITS).items():  # said again, by another group perhaps
        yield IncidentEdge(state, event, STAY, guard=newer, assign=note)
    # nobody resolves what nobody worked on, unless in the very call that reported it
    yield IncidentEdge({State.WORK, *WAITING}, Event.RESOLVE, State.RESOLVED, guard=newer, assign=note)
    yield IncidentEdge({State.REPORTED, State.WORK}, Event.IN_CALL, State.IN_CALL, guard=newer, assign=note)
    yield IncidentEdge(DONE, Event.CLOSE, State.CLOSED, guard=newer, assign=note)
    yield IncidentEdge(OPEN, Event.CANCEL, State.CANCELLED, guard=newer, assign=note)


incident = Spec[State, Event, Incident](
    "incident",
    initial=State.REPORTED,
    final={State.CLOSED, State.CANCELLED},  # who comes back after that reports a new incident
    context=Incident,
    payloads=dict.fromkeys(Event, Row),
    edges=[*edges()],
)

# --- the log --------------------------------------------------------------------------------------

Rows = dict[str, list[tuple[Event, Row]]]


def read(path: Path) -> tuple[Rows, Counter[str]]:
    """The rows of each incident in order; and what is wrong with those that cannot be read."""
    rows: Rows = {}
    numbers, unreadable = Counter[str](), Counter[str]()
    with gzip.open(path, "rt", newline="") if path.suffix == ".gz" else path.open(newline="") as file:
        for record in csv.DictReader(file):
            try:
                id, said = record["incident"], f"{record['status']}/{record['substatus']}"
                numbers[id] += 1
                at = datetime.fromisoformat(record["at"])
                row = Row(numbers[id], at if at.tzinfo else at.replace(tzinfo=UTC), record["group"], record["impact"])
                rows.setdefault(id, []).append((Event(said), row))
            except KeyError as e:
                raise SystemExit(f"{path} has no column {e}") from e
            except ValueError as e:
                unreadable[str(e)] += 1
    return rows, unreadable


# --- the run --------------------------------------------------------------------------------------

Step = tuple[State, Event]


@define
class Tally:
    """What became of the rows."""

    legal: Counter[Step] = field(factory=Counter[Step])
    known: Counter[Step] = field(factory=Counter[Step])
    refused: Counter[Step] = field(factory=Counter[Step])
    reasons: Counter[str] = field(factory=Counter[str])
    why: dict[Step, Counter[str]] = field(factory=dict[Step, Counter[str]])

    def refuse(self, step: Step, reason: str) -> None:
        """Count what was refused, by step and by reason."""
        self.refused[step] += 1
        self.reasons[reason] += 1
        self.why.setdefault(step, Counter())[reason] += 1


def reason(refusal: IllegalTransition) -> str:
    """Why the drawing does not allow a step."""
    match refusal:
        case GuardRejected():
            return "; ".join(refusal.reasons)
        case Finished():
            return "the incident has ended"
        case _:
            return "the drawing has no such step"


async def send_all(incidents: Manager[State, Event, Incident], rows: Rows, tasks: int, progress: Progress) -> Tally:
    """Each incident's rows in order, so many incidents at once."""
    tally, todo = Tally(), iter(rows.items())
    bar = progress.add_task("rows", total=sum(map(len, rows.values())))

    async def work() -> None:
        for id, events in todo:
            for event, row in events:
                try:
                    done = await incidents.send(id, event, row, key=f"row {row.number}", start=Incident())
                except IllegalTransition as refusal:
                    tally.refuse((refusal.state, event), reason(refusal))
                except KeyConflict as conflict:
                    tally.refuse((conflict.transition.source, event), "a former log says something else in this row")
                else:
                    assert done.transition.source is not None
                    (tally.known if done.duplicate else tally.legal)[done.transition.source, event] += 1
            progress.advance(bar, len(events))

    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(work())
    return tally


# --- what it tells --------------------------------------------------------------------------------


def stays(history: History) -> Iterator[tuple[State, timedelta]]:
    """How long each state lasted, by the log's own times, until it was left; what still lasts is not told."""
    entered = None
    for line, following in pairwise(history[1:]):
        entered = entered or line.payload.at
        if following.target != line.target:
            yield line.target, following.payload.at - entered
            entered = None


def steps_table(tally: Tally) -> Table:
    """Every pair of state and event that came."""
    table = Table("state", "event", "legal", "known", "refused", "why", title="What the rows were")
    total = tally.legal + tally.known + tally.refused
    for step, _ in total.most_common():
        counts = [f"{c[step]:,}" if c[step] else "" for c in (tally.legal, tally.known, tally.refused)]
        why = ", ".join(f"{reason} ({n:,})" for reason, n in tally.why.get(step, Counter[str]()).most_common())
        table.add_row(*step, *counts, why)
    return table


def stays_table(histories: list[History]) -> Table:
    """Visits and times of each state."""
    times: dict[State, list[float]] = {}
    for history in histories:
        for state, time_there in stays(history):
            times.setdefault(state, []).append(time_there.total_seconds() / 3600)
    table = Table("state", "visits", "median hours", "mean hours", "days in all", title="Time spent in each state")
    for state, hours in sorted(times.items(), key=lambda item: -sum(item[1])):
        mean, days = sum(hours) / len(hours), sum(hours) / 24
        table.add_row(state, f"{len(hours):,}", f"{median(hours):,.2f}", f"{mean:,.2f}", f"{days:,.0f}")
    return table


async def main(log: Path, db: Path | None, tasks: int) -> None:
    """Read, send, tell."""
    console = Console()
    rows, unreadable = read(log)
    async with Manager(incident, SQLiteStore(db) if db else MemoryStore()) as incidents:
        with Progress(console=console) as progress:
            began = time.perf_counter()
            tally = await send_all(incidents, rows, tasks, progress)
            seconds = time.perf_counter() - began
        histories: list[History] = []
        for id in rows:
            try:
                histories.append(await incidents.history(id))
            except UnknownInstance:  # not one of its rows was legal
                continue
    taken = Counter[Step]()
    for history in histories:
        taken.update((line.source, line.event) for line in history[1:] if line.source and line.event)
    console.print(steps_table(tally), stays_table(histories))
    console.print(mermaid(incident, counts=taken), markup=False, highlight=False, soft_wrap=True)
    legal, known, refused = (c.total() for c in (tally.legal, tally.known, tally.refused))
    for reason, count in (tally.reasons + unreadable).most_common():
        console.print(f"{count:8,} × {reason}")
    console.print(
        f"{legal + known + refused:,} rows of {len(rows):,} incidents in {seconds:.1f} s, "
        f"{(legal + known + refused) / seconds:,.0f} a second: "
        f"{legal:,} legal, {known:,} known already, {refused:,} refused, {unreadable.total():,} unreadable."
    )
    if known and not legal:
        console.print("Nothing changed: all that is legal was known already.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Send every row of an incident log as an event.")
    parser.add_argument("log", type=Path, metavar="LOG")
    parser.add_argument("--db", type=Path, default=Path("incidents.db"), help="where the instances live (%(default)s)")
    parser.add_argument("--memory", action="store_true", help="keep the instances in memory instead")
    parser.add_argument("--tasks", type=int, default=64, help="how many incidents at once (%(default)s)")
    args = parser.parse_args()
    asyncio.run(main(args.log, None if args.memory else args.db, args.tasks))
