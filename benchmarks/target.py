"""What is promised, what is aimed at, and how a run stands to both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from statistics import median
from typing import Final

from attrs import frozen

from .book import Book
from .case import (
    APART,
    DICT,
    FORGETFUL,
    GROUP,
    HOOKED,
    HOPS,
    MANY,
    MEMORY,
    ORDERS,
    OURS,
    POOL,
    POSTGRES,
    SINGLE,
    SQLITE,
    named,
)
from .growth import CLAIM, NEXT_DUE, Size
from .peer import DBOS, STATEMACHINE, TRANSITIONS

Values = Callable[[Book], list[float]]
MET: Final = "aim met"
ENOUGH: Final = "met"
MISSED: Final = "**missed**"
UNKNOWN: Final = "not measured"


@frozen
class Target:
    """One row of the table. `most`: the figure must be at most so much, else at least."""

    what: str
    values: Values
    least: float
    aim: float
    unit: str = ""
    most: bool = False


@frozen
class Verdict:
    """How a run stands to a target; `values` one for each round."""

    target: Target
    values: tuple[float, ...]

    @property
    def value(self) -> float | None:
        """The median."""
        return median(self.values) if self.values else None

    @property
    def word(self) -> str:
        """In one word."""
        value, target = self.value, self.target
        if value is None:
            return UNKNOWN
        if value <= target.aim if target.most else value >= target.aim:
            return MET
        return ENOUGH if (value <= target.least if target.most else value >= target.least) else MISSED


def verdicts(book: Book, size: Size) -> list[Verdict]:
    """All rows, in the order of the table."""
    return [Verdict(target, tuple(target.values(book))) for target in (*_speeds(), *_grown(size))]


def ratio(ours: str, other: str) -> Values:
    """Ours to the other, round by round."""
    return lambda book: [a / b for a, b in zip(book.rates(ours), book.rates(other), strict=False)]


def tail(ours: str, other: str) -> Values:
    """Our p99 to the other's, round by round."""
    return lambda book: [a / b for a, b in zip(book.tails(ours), book.tails(other), strict=False)]


def figure(name: str) -> Values:
    """A probe's figure."""
    return lambda book: book.figures.get(name, [])


def _ours(store: str, tasks: int, **what: str) -> str:
    return named(store, OURS, tasks, **what)


def _speeds() -> Iterator[Target]:
    """Ratios of cases."""
    memory = _ours(MEMORY, MANY)
    yield Target("memory, 64 tasks: to the bare loop", ratio(memory, named(MEMORY, DICT, MANY)), 0.15, 0.30)
    for peer, least, aim in ((TRANSITIONS, 2.5, 5), (STATEMACHINE, 6, 12)):
        yield Target(f"memory, 64 tasks: to {peer}", ratio(memory, named(MEMORY, peer, MANY)), least, aim)
    lite = _ours(SQLITE, MANY)
    yield Target(
        "SQLite, 1 task: to one function per commit", ratio(_ours(SQLITE, 1), named(SQLITE, HOPS, 1)), 0.75, 0.90
    )
    yield Target("SQLite, 64 tasks: to raw group commit", ratio(lite, named(SQLITE, GROUP, MANY)), 0.60, 0.80)
    yield Target("SQLite, 64 tasks: to one function per commit", ratio(lite, named(SQLITE, HOPS, MANY)), 2.5, 3.2)
    server, group = _ours(POSTGRES, MANY), named(POSTGRES, GROUP, MANY)
    alone = ratio(_ours(POSTGRES, 1), named(POSTGRES, SINGLE, 1))
    yield Target("PostgreSQL, 1 task: to single statements, one connection", alone, 0.70, 0.85)
    yield Target("PostgreSQL, 64 tasks: to raw group commit", ratio(server, group), 0.50, 0.60)
    yield Target(
        "PostgreSQL, 64 tasks: to single statements, pool of 8", ratio(server, named(POSTGRES, POOL, MANY)), 2, 3
    )
    hooked = ratio(_ours(POSTGRES, MANY, what=HOOKED), group)
    yield Target("PostgreSQL, 64 tasks, one hook a move: moves to raw group commit", hooked, 0.25, 0.35)
    yield Target("engine's processor time a send without hooks", figure("µs: engine a send"), 30, 20, "µs", most=True)
    yield Target("PostgreSQL, 64 tasks: p99 to raw group commit's", tail(server, group), 2.5, 2, most=True)
    for what in (APART, FORGETFUL):
        values = ratio(_ours(POSTGRES, MANY, what=what), group)
        yield Target(f"PostgreSQL, 64 tasks, {what}: to raw group commit", values, 0.4, 0.6)
    for store in (SQLITE, POSTGRES):
        values = ratio(_ours(store, MANY, what=ORDERS), named(store, DBOS, MANY, ORDERS))
        yield Target(f"{store}, 64 orders at a time: to DBOS", values, 30, 60)


def _grown(size: Size) -> Iterator[Target]:
    """Figures of probes."""
    stores = (SQLITE, POSTGRES)
    few, many = size.history
    for store in stores:
        yield Target(f"{store}, history {few:,} → {many:,}: send keeps", figure(f"keeps: history, {store}"), 0.85, 0.95)
    few, many = size.instances
    for store in stores:
        values = figure(f"keeps: instances, {store}")
        yield Target(f"{store}, {few:,} → {many:,} instances: send keeps", values, 0.70, 0.90)
    for store in stores:
        values = figure(f"ms: page of 100 in flight, {store}, {many:,} instances")
        yield Target(f"{store}, page of 100 in flight at {many:,}", values, 1, 0.3, "ms", most=True)
        scans = figure(f"scans: {store}, {many:,} instances")
        yield Target(f"{store}, sequential scans by these pages", scans, 0, 0, most=True)
    for store in stores:
        what = f"{store}, resume with {size.waiting:,} waiting, {size.due:,} due"
        yield Target(what, figure(f"s: resume, {store}"), 2, 0.5, "s", most=True)
    for store in stores:
        for what, most, aim in ((NEXT_DUE, 1, 0.5), (CLAIM, 5, 2.5)):
            values = figure(f"ms: {what} at {size.timers:,} timers, {store}")
            yield Target(f"{store}, {what} at {size.timers:,} timers", values, most, aim, "ms", most=True)
    for store in stores:
        yield Target(f"{store}, idle manager", figure(f"queries/s: idle, {store}"), 1, 0.1, "/s", most=True)
    many, seconds = size.delays
    for store in (MEMORY, *stores):
        what = f"p99 lateness of {many:,} timers over {seconds:g} s"
        yield Target(f"{store}, {what}", figure(f"ms: {what}, {store}"), 50, 20, "ms", most=True)
        what = f"{many:,} timers at one instant"
        yield Target(f"{store}, {what}", figure(f"s: {what}, {store}"), 1, 0.5, "s", most=True)
    for store, most in ((SQLITE, 2), (POSTGRES, 1)):
        what = f"{store}, a killed process's work is taken over"
        yield Target(what, figure(f"s: takeover, {store}"), most, most / 2, "s", most=True)
    few, many = size.parked
    what = f"memory of a parked instance, {few:,} → {many:,}"
    yield Target(what, figure("bytes: parked instance"), 1, 1, "bytes", most=True)
    yield Target("import workflow", figure("ms: import workflow"), 100, 100, "ms", most=True)
