"""Processes of `test_takeover`: `python -m tests.crew hold FOLDER SECONDS`, and Workers for `python -m workflow work`.

The folder, for Workers in the environment, names the store (`tests.crash.place`); hooks keep a journal in it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any

from tests.crash import place
from workflow import Edge, LeaseLost, Manager, Move, Retry, Spec, Worker

LIFE = 50
"""Seconds after which a process that was forgotten ends itself."""
ATTEMPTS = 3


class State(StrEnum):
    OPEN = "open"
    SHUT = "shut"


class Event(StrEnum):
    SHUT = "shut"


def folder() -> Path:
    """Where the store and the journal are."""
    return Path(os.environ["CREW"])


def note(text: str) -> None:
    """One line of the journal, whole, whoever else writes."""
    journal = os.open(folder() / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(journal, f"{os.getpid()} {text}\n".encode())
    os.close(journal)


def journal(where: Path) -> list[list[str]]:
    """[pid, text] of each line so far."""
    path = where / "journal"
    return [line.split(" ", 1) for line in path.read_text().splitlines()] if path.exists() else []


def drawn(hook: Any, name: str = "crew", **more: Any) -> Spec[State, Event, int]:
    """One hook, at the entry of SHUT; the context is the pid of whoever did it."""
    return Spec[State, Event, int](
        name,
        initial=State.OPEN,
        final={State.SHUT},
        context=int,
        edges=[Edge(State.OPEN, Event.SHUT, State.SHUT)],
        on_enter={State.SHUT: [hook]},
        **more,
    )


# --- a process that holds a lease -------------------------------------------------------------------


async def held(m: Move[State, Event, int]) -> None:
    """Goes on until the file `go` is there."""
    note(f"begins {m.attempt}")
    try:
        while not (folder() / "go").exists():  # noqa: ASYNC110  # another process makes it
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        note("cancelled")
        raise
    m.update(lambda _: os.getpid())
    note("ends")


held.__qualname__ = "hook"


async def hold(seconds: float) -> None:
    """Send, with a hook that does not end, and tell what came of it."""
    lease = timedelta(seconds=seconds)
    async with Manager(drawn(held), place.store(folder()), lease=lease, drain=timedelta(0)) as crew:
        try:
            outcome = await crew.send("i", Event.SHUT, start=0, timeout=LIFE)
            note(f"settled {outcome.settled}")
        except LeaseLost as e:
            note(f"lost {e.committed}")


# --- processes that work ----------------------------------------------------------------------------


async def brief(m: Move[State, Event, int]) -> None:
    note(m.key)
    await asyncio.sleep(0.002)


async def deadly(m: Move[State, Event, int]) -> None:
    note(f"attempt {m.attempt}")
    os._exit(9)


RETRY = Retry(attempts=ATTEMPTS, first=timedelta(milliseconds=10))


def worker() -> Worker:
    """Works at both."""
    signal.alarm(LIFE)
    lease, store = timedelta(seconds=1), place.store(folder())
    managers = [Manager(spec, store, lease=lease) for spec in (drawn(brief), drawn(deadly, "deadly", retry=RETRY))]
    return Worker(*managers, concurrency=4)


nothing = 3
"""No Worker."""


def broken() -> Worker:
    """Its folder is not there, so its store cannot be opened."""
    return Worker(Manager(drawn(brief), place.store(folder() / "nowhere")))


if __name__ == "__main__":
    os.environ["CREW"] = sys.argv[2]
    signal.alarm(LIFE)
    asyncio.run(hold(float(sys.argv[3])))
