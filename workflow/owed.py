"""What an instance owes, as data.

The queue is made of the lines that owe effects, in order; the one due row named `effects` holds the
place (line, number) of the first unfinished effect. Its body keeps what else waits there: the last
error, events that hooks returned, and what an undoing has dropped.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import TypeAlias

import msgspec
from msgspec import Struct

from .codec import Codec
from .errors import WorkflowError
from .kernel import AnySpec, Author
from .record import Due, Head, Lease, Line, Loaded, Put
from .stack import Peek, Spans

More: TypeAlias = Callable[[int], Awaitable[Line | None]]
"""Reads the first owing line after the one with this number."""
Rows: TypeAlias = Callable[[], Awaitable[tuple[str, ...]]]
"""Reads the names of all due rows."""


class Fault(Struct, frozen=True, omit_defaults=True, gc=False):
    """What went wrong at the last attempt, bounded in size."""

    type: str
    message: str
    traceback: str = ""

    def __str__(self) -> str:
        """As a reason: type and message."""
        return f"{self.type}: {self.message}" if self.message else self.type


class Returned(Struct, frozen=True, omit_defaults=True, gc=False):
    """An event that a hook returned, waiting to be judged."""

    event: str
    hook: str
    """Name of the hook that returned it."""
    origin: int
    """The line whose hook returned it."""
    after: int
    """Judged once the effects of this line are settled."""
    chain: int
    payload: str | None = None


class Body(Struct, frozen=True, omit_defaults=True, gc=False):
    """What the effects row carries beside the place."""

    error: Fault | None = None
    events: tuple[Returned, ...] = ()
    void: Spans = ()
    """Effects of lines in these spans were dropped by an undoing; its own lines are exempt."""
    plan: int = 0
    """The last line of an undoing that owes compensators."""
    begun: bool = False
    """The effect at the place was handed back after it had begun, or is tried anew."""
    cancel: str | None = None
    """Why the instance is cancelled once the undoing under way is done."""


class Strange(WorkflowError):
    """A returned event that this code does not know."""


class Held(Struct, frozen=True, gc=False):
    """What the owner of a queue knows of it."""

    head: Head
    due: Due
    lines: tuple[Line, ...]
    """Owing lines in order; the first is the one at the place."""
    whole: bool
    """No owing line exists beyond `lines`."""


class Step(Struct, frozen=True, gc=False):
    """What one commit writes, and what its author knows of the queue afterwards."""

    head: Head
    lines: tuple[Line, ...] = ()
    put: Put | None = None
    """The effects row from now on; None: there is none."""
    held: bool | None = None
    known: tuple[Line, ...] = ()
    whole: bool = True
    fault: Fault | None = None
    """Something failed, or a returned event was refused; `put` says when it is tried again."""
    culprit: str = ""
    """Name of the hook that failed, or that returned the event."""
    goes_on: bool = False
    """What failed was given up, and the queue goes on all the same."""
    timers: tuple[Put, ...] = ()
    """Timeouts that begin."""
    void: tuple[str, ...] = ()
    """Names of timeouts that are void."""


class Desk(Struct, frozen=True):
    """Everything a step needs from outside, as values and readers."""

    spec: AnySpec
    author: Author
    token: str | None
    """Who leases the next effect; None: nobody, it is due now."""
    lease: timedelta
    now: datetime
    dice: float
    peek: Peek
    more: More
    rows: Rows


class _Erring(Struct, frozen=True, gc=False):
    """What the bodies of all due rows have in common."""

    error: Fault | None = None


_bodies: Codec[Body] = Codec(Body)
_errors: Codec[_Erring] = Codec(_Erring)


def body_of(due: Due | None) -> Body:
    """What the effects row carries."""
    return Body() if due is None or due.body is None else _bodies.decode(due.body)


def error_of(due: Due) -> Fault | None:
    """The last error of any due row."""
    try:
        return None if due.body is None else _errors.decode(due.body).error
    except msgspec.DecodeError as e:
        return Fault("Unknown", f"what is stored cannot be read: {e}")


def undoing(loaded: Loaded) -> bool:
    """Is an undoing under way: entries still to be popped, or compensators not yet settled?"""
    if loaded.head.goal:
        return True
    due = loaded.effects
    if due is None:
        return False
    try:
        body = body_of(due)
    except msgspec.DecodeError:
        return False  # set aside, it blocks nobody
    plan = body.plan
    return body.cancel is not None or plan > due.seq or (plan == due.seq and due.number < _owed(loaded.queue, due))


def settled(loaded: Loaded, seq: int) -> bool:
    """Are the effects that line `seq` owed done (or dropped)?"""
    due = loaded.effects
    if due is None or due.seq > seq:
        return True
    return due.seq == seq and due.number >= _owed(loaded.queue, due)


def lease_of(due: Due) -> Lease:
    """What a commit that builds on this sight of the row must still find."""
    return Lease(due.token, due.seq, due.number, due.attempt)


def _owed(queue: Sequence[Line], due: Due) -> int:
    """How many effects the line at the place owes."""
    return len(queue[0].owes) if queue and queue[0].seq == due.seq else due.number + 1
