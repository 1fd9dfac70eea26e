"""The words of a run: a case, where it runs, and what it says when it cannot."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from attrs import frozen

from .pace import Pace, Sample

MEMORY: Final = "memory"
SQLITE: Final = "SQLite"
POSTGRES: Final = "PostgreSQL"
OURS: Final = "enumflow"
GROUP: Final = "raw group commit"
HOPS: Final = "one aiosqlite function per commit"
LOOP: Final = "raw sqlite3 commit loop"
SINGLE: Final = "single statement, one connection"
POOL: Final = "single statement, pool of 8"
DICT: Final = "bare dict+lock+idempotency+log loop"
MOVES: Final = "moves"
HOOKED: Final = "moves with one hook"
FORGETFUL: Final = "moves, no head in memory"
APART: Final = "moves, 2 processes"
ORDERS: Final = "orders"
MANY: Final = 64
CURVE: Final = (1, 4, 16, 64, 256)
"""Tasks at once, for the plot."""


class Missing(Exception):
    """Something that a case needs is not there; it is reported, never guessed."""


class NotWhole(Exception):
    """What was acknowledged is not in the store, in order, once. Fails the whole run."""


@frozen
class Stage:
    """Where cases run."""

    folder: Path
    """For SQLite's files."""
    server: str | None
    """URL of a PostgreSQL server."""
    why: str = ""
    """Why there is no server."""

    def url(self) -> str:
        """The server's. Raises Missing."""
        if self.server is None:
            raise Missing(self.why)
        return self.server


@frozen
class Case:
    """One line of the result. `run` checks, after measuring, that what was done is in the store."""

    store: str
    side: str
    tasks: int
    what: str
    run: Callable[[Stage, Pace], Awaitable[Sample]]

    @property
    def name(self) -> str:
        """How figures are found again."""
        return named(self.store, self.side, self.tasks, self.what)


def named(store: str, side: str, tasks: int, what: str = MOVES) -> str:
    """The name of such a case."""
    return f"{store}: {side}, {tasks} {'task' if tasks == 1 else 'tasks'}, {what}"
