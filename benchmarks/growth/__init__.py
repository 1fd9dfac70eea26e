"""What stays the same as instances, histories and due rows grow; and what an idle Manager costs.

Runs apart from the rounds, once per size; the bare loop on the same tables at the same size is
measured in turns with ours.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

from attrs import frozen

from ..book import Book
from ..case import Stage

NEXT_DUE: Final = "next_due"
CLAIM: Final = "claim of 100"


@frozen
class Size:
    """How far things grow."""

    history: tuple[int, int] = (10, 100_000)
    instances: tuple[int, int] = (10_000, 1_000_000)
    waiting: int = 100_000
    due: int = 1_000
    parked: tuple[int, int] = (10_000, 100_000)
    turns: int = 5
    """How often each measurement is taken."""
    idle: float = 30.0
    """Seconds."""
    delays: tuple[int, float] = (1_000, 10.0)
    """How many timers, over how many seconds."""
    timers: int = 1_000_000
    """How many are pending while the next is asked for and some are claimed."""


QUICK = Size(
    (10, 10_000), (10_000, 100_000), 20_000, 1_000, (10_000, 20_000), 3, 6.0, delays=(500, 3.0), timers=100_000
)


@frozen
class Probe:
    """One measurement outside of the rounds; writes its figures into the book."""

    name: str
    run: Callable[[Stage, Size, Book], Coroutine[Any, Any, None]]
