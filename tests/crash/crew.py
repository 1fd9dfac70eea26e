"""Processes that share one store: one that leaves work behind, and those that find it.

`python -m tests.crash.crew leave|take FOLDER`. Nobody sleeps: each says a word and waits for one.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from tests.crash import place
from workflow import Edge, Manager, Move, Spec

COUNT = 60
AT_ONCE = 4
"""Few enough that one process cannot take all before the other begins."""


class State(StrEnum):
    OPEN = "open"
    SHUT = "shut"


class Event(StrEnum):
    SHUT = "shut"


class Crew:
    """What this process does in a hook."""

    folder: Path
    role = ""
    begun = 0
    go: asyncio.Event


def note(text: str) -> None:
    """One line, whole, whoever else writes."""
    journal = os.open(Crew.folder / "hooks", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(journal, f"{text}\n".encode())
    os.close(journal)


def say(word: str) -> None:
    """To whoever started this process."""
    print(word, flush=True)  # noqa: T201  # this is the protocol


async def greet(m: Move[State, Event, None]) -> None:
    Crew.begun += 1
    if Crew.role == "leave":
        if Crew.begun == COUNT:
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.Event().wait()
    if Crew.begun == 1:
        say("begun")
    await Crew.go.wait()
    note(f"{os.getpid()} {m.key}")


async def farewell(m: Move[State, Event, None]) -> None:
    note(f"{os.getpid()} {m.key}")


spec = Spec[State, Event, None](
    "crew",
    initial=State.OPEN,
    final={State.SHUT},
    edges=[Edge(State.OPEN, Event.SHUT, State.SHUT)],
    on_enter={State.OPEN: [greet, farewell]},
)


def manager(folder: Path, **options: object) -> Manager[State, Event, None]:
    """On the store of this folder, with a lease that no test waits for."""
    lease = timedelta(hours=1)
    return Manager(spec, place.store(folder), work=False, lease=lease, **options)  # type: ignore[arg-type]


async def leave() -> None:
    """Start many, and die in the middle of their first hooks."""
    async with manager(Crew.folder) as crew, asyncio.TaskGroup() as group:
        for n in range(COUNT):
            group.create_task(crew.start(f"i-{n:02}"))


async def take() -> None:
    """Resume when told; the first hooks wait until the other process has begun, too."""
    Crew.go = asyncio.Event()
    async with manager(Crew.folder, concurrency=AT_ONCE) as crew:
        say("open")
        await asyncio.to_thread(sys.stdin.readline)
        working = asyncio.create_task(crew.resume())
        await asyncio.to_thread(sys.stdin.readline)
        Crew.go.set()
        resumed = await working
        assert not resumed.failed


if __name__ == "__main__":
    Crew.role, Crew.folder = sys.argv[1], Path(sys.argv[2])
    signal.alarm(40)
    asyncio.run(leave() if Crew.role == "leave" else take())
