"""Orders that take care of themselves, and a worker for them: `python -m workflow work tests.fleet.app:worker`.

Timers, a delayed event, chains, hooks that fail once or twice and some that fail for good: after it has been
placed nobody touches an order, so whatever happens to it is the fleet's doing.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import time
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Self, TypeAlias
from zlib import crc32

from attrs import evolve, frozen

from tests.crash import place
from tests.fleet.journal import BEGUN, DONE, FAILED, REFUSED, UP, Journal
from workflow import ANY, STAY, After, Edge, Manager, Move, Permanent, Retry, Spec, Worker

LEASE = timedelta(seconds=3)
CONCURRENCY = 16
LIFETIME = 600
"""Seconds after which a worker ends, whatever became of those who started it."""
_PR_SET_PDEATHSIG = 1
FOLDER, NAME, PARENT = "FLEET_FOLDER", "FLEET_NAME", "FLEET_PARENT"


class State(StrEnum):
    NEW = "new"
    PAID = "paid"
    PACKED = "packed"
    SENT = "sent"
    LOST = "lost"


class Event(StrEnum):
    PAY = "pay"
    PACK = "pack"
    SHIP = "ship"
    NOTE = "note"
    DROP = "drop"


@frozen
class Order:
    wait: float = 1.0
    """Seconds until it is paid."""
    charged: int = 0
    packed: int = 0
    notes: int = 0


OrderMove = Move[State, Event, Order]
OrderEdge = Edge[State, Event, Order]
Desk: TypeAlias = Manager[State, Event, Order]


class Hands:
    """Where this process writes what it does."""

    journal: Journal


def _begin(m: OrderMove) -> None:
    """On the record; some fail at their first attempt, some at their second, too."""
    Hands.journal.write(BEGUN, m.attempt, m.key)
    if m.attempt <= {0: 1, 1: 2}.get(crc32(m.key.encode()) % 8, 0):
        Hands.journal.write(FAILED, m.attempt, m.key)
        raise ConnectionError(f"nobody answers {m.key}")


def _end(m: OrderMove) -> None:
    Hands.journal.write(DONE, m.attempt, m.key)


def _seconds(m: OrderMove) -> float:
    """How long its work takes: 10 to 80 ms, a few more than half a second."""
    dice = crc32(m.key.encode(), 7)
    return 0.6 if dice % 40 == 0 else 0.01 + dice % 70 / 1000


def broke(id: str) -> bool:
    """Can this order never be charged?"""
    return crc32(id.encode(), 3) % 12 == 0


def book(m: OrderMove) -> None:
    """Runs in a thread, which nobody can cancel."""
    _begin(m)
    time.sleep(_seconds(m) / 2)
    _end(m)


async def charge(m: OrderMove) -> Event:
    _begin(m)
    await asyncio.sleep(_seconds(m))
    if broke(m.id):
        Hands.journal.write(REFUSED, m.attempt, m.key)
        raise Permanent(f"{m.id} has no money")
    m.update(lambda order: evolve(order, charged=order.charged + 1))
    _end(m)
    return Event.PACK


async def pack(m: OrderMove) -> None:
    _begin(m)
    await asyncio.sleep(_seconds(m))
    m.update(lambda order: evolve(order, packed=order.packed + 1))
    _end(m)


async def tell(m: OrderMove) -> None:
    _begin(m)
    await asyncio.sleep(_seconds(m))
    _end(m)


spec = Spec[State, Event, Order](
    "fleet",
    initial=State.NEW,
    final={State.SENT, State.LOST},
    context=Order,
    edges=[
        OrderEdge(State.NEW, Event.PAY, State.PAID, action=book),
        OrderEdge(State.PAID, Event.PACK, State.PACKED),
        OrderEdge(State.PACKED, Event.SHIP, State.SENT),
        OrderEdge(ANY, Event.NOTE, STAY, assign=lambda m: evolve(m.context, notes=m.context.notes + 1), action=tell),
        OrderEdge(ANY, Event.DROP, State.LOST),
    ],
    on_enter={State.PAID: charge, State.PACKED: [pack, tell], State.SENT: tell, State.LOST: tell},
    timeouts={
        State.NEW: After(lambda m: timedelta(seconds=m.context.wait), Event.PAY),
        State.PAID: After(timedelta(days=1), Event.DROP),
        State.PACKED: [After(timedelta(seconds=3), Event.SHIP), After(timedelta(days=1), Event.DROP)],
    },
    retry=Retry(attempts=40, first=timedelta(seconds=0.3), max=timedelta(seconds=2)),
    on_failure=Event.DROP,
)


def manager(folder: Path, kind: type[Manager[Any, Any, Any]] = Manager, *, work: bool = True) -> Desk:
    """On the store of this folder."""
    return kind(spec, place.store(folder), work=work, lease=LEASE)


class Heard(Manager[State, Event, Order]):
    """It writes down when it is open."""

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        Hands.journal.write(UP)
        return self


def worker() -> Worker:
    """For a process that whoever started it names in its environment, see `environment`."""
    folder, name, parent = Path(os.environ[FOLDER]), os.environ[NAME], int(os.environ[PARENT])
    _never_alone(parent)
    Hands.journal = Journal(folder, name)
    return Worker(manager(folder, Heard), concurrency=CONCURRENCY, drain=timedelta(seconds=5))


def environment(folder: Path, name: str) -> dict[str, str]:
    """For a worker process of this one's."""
    return os.environ | {FOLDER: str(folder), NAME: name, PARENT: str(os.getpid())}


def _never_alone(parent: int) -> None:
    """Nobody is left behind: killed when the process that started this one ends, though it be stopped then."""
    signal.alarm(LIFETIME)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("nobody waits for this worker")
