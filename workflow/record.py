"""What has happened and what is owed, as plain rows; and the forms in which people read it.

Rows (`msgspec.Struct`) are what a store keeps: words, numbers, times and JSON text, never enum
members or users' objects. All are frozen and hold only immutable values, so that no copy handed
out can change what is stored.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum, StrEnum
from typing import Any, Generic, TypeAlias

from msgspec import Struct
from typing_extensions import TypeVar

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)
C = TypeVar("C", default=None)

UNSTAMPED = datetime(1, 1, 1, tzinfo=UTC)
"""The time of a row that no store has written yet: the store stamps it as it commits."""
QUEUE = "effects"
"""Name of the due row that is an instance's queue of effects."""
TIMEOUT = "timeout/"
"""What the names of due rows begin with that are timeouts of a state."""
LATER = "later/"
"""What the names of due rows begin with that are events sent with a delay."""


class Status(StrEnum):
    """What may be done with an instance; says nothing of its business state."""

    RUNNING = "running"
    PAUSED = "paused"
    FAILED = "failed"
    CANCELLED = "cancelled"
    FINISHED = "finished"
    ERASED = "erased"


class Kind(StrEnum):
    """What a line of history records."""

    START = "start"
    EVENT = "event"
    TIMEOUT = "timeout"
    COMPENSATE = "compensate"
    UPDATE = "update"
    REFUSED = "refused"
    PAUSE = "pause"
    UNPAUSE = "unpause"
    FAIL = "fail"
    RETRY = "retry"
    SKIP = "skip"
    CANCEL = "cancel"
    ERASE = "erase"


# --- rows ---------------------------------------------------------------------------------------
# `gc=False`: no row can be part of a cycle, and thousands are made each second.


class Head(Struct, frozen=True, gc=False):
    """The present of one instance. `replay` of its lines gives it again."""

    workflow: str
    id: str
    seq: int
    """Number of its last line; every commit that adds a line compares it."""
    state: str
    status: str
    context: str
    """JSON."""
    context_seq: int
    """The line on which that context is stored."""
    top: int
    """Line of the present entry: the top of the stack of entries."""
    goal: int = 0
    """Line of the entry that an undoing under way leads back to; 0 when none is."""
    labels: str = "{}"
    """JSON object of strings."""
    reason: str | None = None
    """Why the status is what it is."""
    version: int = 1
    """Spec.version of the last writer."""
    # The store stamps what it keeps; a head that was just made, or kept in memory, has no times.
    started_at: datetime = UNSTAMPED
    changed_at: datetime = UNSTAMPED


class Line(Struct, frozen=True, gc=False):
    """One line of an instance's history; written once, never changed."""

    workflow: str
    id: str
    seq: int
    """From 1, without gaps."""
    kind: str
    source: str | None
    event: str | None
    target: str
    """The state after the line."""
    status: str
    """The status after the line."""
    commit_id: str
    """The commit that wrote it; how a lost acknowledgement is recognised."""
    by: str
    """Token of the incarnation that wrote it."""
    context_seq: int
    """The line on which the context in force after this one is stored; its own seq if here."""
    key: str | None = None
    payload: str | None = None
    """JSON."""
    context: str | None = None
    """JSON; present where it changed or where effects are owed."""
    labels: str | None = None
    """JSON object; present where they changed."""
    goal: int | None = None
    """Head.goal after the line, present where it changed."""
    below: int | None = None
    """Present on a line that pushes an entry: the line of the entry under it, 0 for the first."""
    undoes: int | None = None
    """Present on a line that pops an entry: the line that had pushed it."""
    owes: tuple[str, ...] = ()
    """Names of the effects owed, in the order in which they run."""
    chain: int = 0
    """How many returned events led here, one causing the next."""
    version: int = 1
    reason: str | None = None
    at: datetime = UNSTAMPED


class Due(Struct, frozen=True, gc=False):
    """Work with a time. The row named `effects` is the place in the instance's queue of effects."""

    workflow: str
    id: str
    name: str
    at: datetime
    """When it comes due; while `token` is set, when the lease ends."""
    seq: int
    """The line it belongs to."""
    number: int = 0
    """Which effect of that line comes first; their count when only returned events are left."""
    attempt: int = 0
    """How often a lease was taken for it."""
    version: int = 1
    token: str | None = None
    held: bool = False
    """Set aside: never claimed, wakes nobody."""
    body: str | None = None
    """JSON, the engine's own."""


class Put(Struct, frozen=True, gc=False):
    """A due row to write. Its time is `at`, or `wait` after the time of the commit."""

    name: str
    seq: int
    number: int = 0
    attempt: int = 0
    version: int = 1
    token: str | None = None
    held: bool = False
    body: str | None = None
    wait: timedelta = timedelta(0)
    at: datetime | None = None
    absent: bool = False
    """Only if no row of that name is there; otherwise it replaces the row."""


class Lease(Struct, frozen=True, gc=False):
    """What a commit expects of a due row of the instance's."""

    token: str | None
    seq: int
    number: int
    attempt: int
    name: str = QUEUE
    """Which due row is compared."""


class Change(Struct, frozen=True, gc=False):
    """What one commit does to one instance."""

    workflow: str
    id: str
    seq: int
    """The head's `seq` that must be found; 0 when there must be no head."""
    lines: tuple[Line, ...] = ()
    head: Head | None = None
    """Replaces the head; present exactly when there are lines. Its `seq` is the last line's."""
    lease: Lease | None = None
    puts: tuple[Put, ...] = ()
    drops: tuple[str, ...] = ()
    """Names of due rows to remove."""
    held: bool | None = None
    """When set, all due rows of the instance, those just put included, become held or free."""
    erase: bool = False
    """Payloads, contexts and reasons of its lines before these are removed."""


class Commit(Struct, frozen=True, gc=False):
    """All of it or nothing. Appended again under the same `id`, it is done once."""

    id: str
    """A UUID (32 lower-case hex digits), kept on its lines."""
    token: str
    """Who commits."""
    changes: tuple[Change, ...]
    now: datetime | None = None
    """The time of the commit; None: the store's own clock."""


class Committed(Struct, frozen=True, gc=False):
    """It is durable, by this append or by an earlier one of the same commit."""

    at: datetime
    """The stamp of its lines (of the first change that has lines)."""
    leased: Due | None = None
    """The `effects` row of the first change, if this commit left it leased to the committer."""


class Conflicted(Struct, frozen=True, gc=False):
    """A head was not at the expected `seq`. Nothing was written."""


class Duplicate(Struct, frozen=True, gc=False):
    """A key was seen before, on this line, which another commit wrote. Nothing was written."""

    line: Line


class Lost(Struct, frozen=True, gc=False):
    """The due row belongs to another owner, or stands at another attempt. Nothing was written."""


class Gone(Struct, frozen=True, gc=False):
    """The effect that was to be settled is settled already, the timer fired or dropped. Nothing was written."""


class Locked(Struct, frozen=True, gc=False):
    """Another transaction still held the instance when the timeout passed. Nothing was written."""


Answer: TypeAlias = Committed | Conflicted | Duplicate | Lost | Gone | Locked


class Loaded(Struct, frozen=True, gc=False):
    """A head with what it owes."""

    head: Head
    effects: Due | None
    queue: tuple[Line, ...]
    """The first two owing lines from the effects row's line on; none without that row."""
    rows: tuple[Due, ...] = ()
    """All its due rows, in order of name, if they were asked for."""


class Page(Struct, frozen=True, gc=False):
    """A piece of the feed of all lines."""

    transitions: tuple[Line, ...]
    cursor: str
    """Hand it to the next read; opaque."""
    behind: bool = False
    """Lines exist beyond this page that may not be shown yet."""


class Wake(Struct, frozen=True, gc=False):
    """When to look for due work again."""

    at: datetime | None
    """The earliest time of a row that is not held; None when there is none."""
    tokens: frozenset[str]
    """Owners of leases on rows of these workflows."""
    now: datetime
    """The store's clock (or the `now` that was given)."""


class Renewed(Struct, frozen=True, gc=False):
    """What a renewal found."""

    lost: frozenset[tuple[str, str, str]]
    """(workflow, id, name) of the rows that are no longer the caller's."""
    now: datetime
    """The store's clock (or the `now` that was given)."""


class Query(Struct, frozen=True, kw_only=True, gc=False):
    """Which heads to find. An empty collection matches nothing; None does not filter."""

    workflow: str
    status: frozenset[str] | None = None
    state: frozenset[str] | None = None
    labels: tuple[tuple[str, str], ...] = ()
    """Every one of these (name, value) pairs must be there."""
    changed_before: datetime | None = None
    after: str | None = None
    """Only ids greater than this one: the last of the page before."""
    limit: int = 100


# --- what people read -----------------------------------------------------------------------------


class Transition(Struct, Generic[S, E, C], frozen=True):
    """One line of history with enum members and decoded values.

    A word that the spec no longer knows is given bare, as a `str`. `context` is the one in force
    after the line. `source` and `event` are None for seq 1. `by` is the token of the incarnation
    that wrote it.
    """

    workflow: str
    id: str
    seq: int
    kind: str
    source: S | None
    event: E | None
    target: S
    status: Status
    key: str | None
    payload: Any
    context: C
    labels: Mapping[str, str] | None
    at: datetime
    by: str
    undoes: int | None
    reason: str | None
    below: int | None = None
    """For a line that enters a state: the line of the entry under it on the stack of entries."""


class Instance(Struct, Generic[S, C], frozen=True):
    """The present of one run."""

    workflow: str
    id: str
    state: S
    seq: int
    status: Status
    context: C
    labels: Mapping[str, str]
    started_at: datetime
    changed_at: datetime
    reason: str | None


class Outcome(Struct, Generic[S, E, C], frozen=True):
    """What `start`, `send` and `compensate` answer.

    `state` is the state when answered, after the events that hooks returned. `duplicate`: the key
    was seen before and nothing ran now. `settled`: all effects of the instance are done.
    """

    transition: Transition[S, E, C]
    state: S
    duplicate: bool
    settled: bool


class Stuck(Struct, frozen=True):
    """An instance that does not go on by itself, and why. `state` is the bare word."""

    workflow: str
    id: str
    state: str
    status: Status
    reason: str
    changed_at: datetime


class Resumed(Struct, frozen=True):
    """What one `resume()` did: effects settled, timers fired, ids that it could not finish."""

    effects: int
    timers: int
    failed: tuple[str, ...]
