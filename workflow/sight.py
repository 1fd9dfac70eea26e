"""How plans see instances: through the store, or through a transaction of the user's.

What is judged, signed and answered for a key depends only on what a reader shows, so it is said
once for both.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Generator, Sequence
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar, cast

import msgspec
from msgspec import Struct

from . import incarnation
from .clock import Clock, SystemClock
from .errors import Busy, GuardError, KeyConflict, StoreError
from .incarnation import Incarnation
from .kernel import AnySpec, Author
from .lifecycle import known_again
from .owed import Desk, Fault, Held, settled, undoing
from .plan import Decided, Deciding, Decision, Plan
from .record import UNSTAMPED, Change, Commit, Head, Kind, Line, Loaded, Status
from .rest import Rest
from .view import transition

T = TypeVar("T")

LONGEST_PAUSE = 0.5
"""Most seconds between two tries."""
_PAGE = 100
_MOMENT = 0.5
"""Seconds that guards get even from a caller in a hurry."""


class Reader(Protocol):
    """What can show instances. See `Store` for each verb."""

    async def load(self, workflow: str, ids: Sequence[str], *, rows: bool = False) -> Sequence[Loaded | None]:
        """Heads and what they owe."""
        ...

    async def history(self, workflow: str, id: str, after: int = 0, limit: int | None = None) -> Sequence[Line]:
        """Lines in order."""
        ...

    async def recall(self, workflow: str, id: str, key: str) -> Line | None:
        """The line of a key."""
        ...


class Written(Struct, frozen=True, gc=False):
    """What a plan came to."""

    line: Line
    context: str
    """The context in force after that line."""
    head: Head
    duplicate: bool = False
    settled: bool = True
    held: Held | None = None
    """The queue of effects, if it is now leased to us: run it."""
    fault: Fault | None = None
    """A returned event that was judged on the way was not taken."""
    culprit: str = ""
    retry_at: datetime | None = None


class Sight:
    """The instances of one spec as one reader shows them."""

    def __init__(
        self,
        spec: AnySpec,
        reader: Reader,
        clock: Clock | None,
        lease: timedelta,
        incarnation: Incarnation,
        rest: Rest,
    ) -> None:
        self.spec = spec
        self.reader = reader
        self.lease = lease
        self.clock: Clock = SystemClock() if clock is None else clock
        self.own_clock = clock is not None
        self.incarnation = incarnation
        self.rest = rest

    # --- what plans and steps ask -----------------------------------------------------------------

    def now(self) -> datetime:
        """The present on the clock that counts."""
        return self.clock.now()

    def author(self) -> Author:
        """A signature with a new commit id."""
        return Author(self.incarnation.commit_id(), self.incarnation.token, self.spec.version)

    def lessee(self, author: Author) -> str | None:
        """See `plan.Around`."""
        return author.token

    def desk(self, id: str, author: Author, *, leasing: bool = True) -> Desk:
        """All that a step of the queue needs."""
        seen: dict[int, Line] = {}
        reader = self.reader

        async def peek(seq: int) -> Line:
            # Down a deep stack one look fetches more and more of what lies below.
            if seq not in seen:
                span = min(len(seen) + 1, _PAGE, seq)
                seen.update((line.seq, line) for line in await reader.history(self.spec.name, id, seq - span, span))
            if seq not in seen:
                raise StoreError(f"line {seq} of {id!r} is missing from the store")
            return seen[seq]

        async def more(after: int) -> Line | None:
            while page := await reader.history(self.spec.name, id, after, _PAGE):
                for line in page:
                    if line.owes:
                        return line
                after = page[-1].seq
            return None

        async def rows() -> tuple[str, ...]:
            loaded = await self.load(id, rows=True)
            return () if loaded is None else tuple(row.name for row in loaded.rows)

        token = author.token if leasing else None
        return Desk(self.spec, author, token, self.lease, self.now(), random.random(), peek, more, rows)

    def commit(self, change: Change, commit_id: str) -> Commit:
        """The change as a commit of its own."""
        now = self.now() if self.own_clock else None
        return Commit(commit_id, self.incarnation.token, (change,), now)

    async def consider(self, plan: Plan, deciding: Deciding, deadline: float) -> Decision:
        """Guards may take what time the caller has, but a moment in any case."""
        loop = asyncio.get_running_loop()
        limit = max(deadline, loop.time() + _MOMENT)
        try:
            decision = await think(deciding, limit)
        except TimeoutError as e:
            raise Busy(plan.id, "the store did not answer in time") from e
        if isinstance(decision, GuardError) and loop.time() >= limit:
            raise Busy(plan.id, "its guards did not answer in time") from decision
        return decision

    # --- reading ----------------------------------------------------------------------------------

    async def load(self, id: str, *, rows: bool = False) -> Loaded | None:
        """A fresh look at one instance, with `rows` at all that is due of it."""
        if rows:
            return (await self.reader.load(self.spec.name, (id,), rows=True))[0]
        return (await self.reader.load(self.spec.name, (id,)))[0]

    async def context_of(self, line: Line) -> str:
        """The context in force after `line`."""
        if line.context is not None:
            return line.context
        stored = await self.reader.history(self.spec.name, line.id, line.context_seq - 1, 1)
        return stored[0].context or "null"

    async def recall(self, plan: Plan, seen: Loaded | None = None) -> Written | None:
        """The answer to a call whose key was seen before. Raises KeyConflict.

        `seen` is a sight of the instance had since the call came, if there is one.
        """
        if plan.key is None:
            return None
        line = await self.reader.recall(self.spec.name, plan.id, plan.key)
        return None if line is None else await self.repeated(plan, line, seen)

    async def repeated(self, plan: Plan, line: Line, seen: Loaded | None) -> Written | None:
        """The answer where `line` bears the key. Raises KeyConflict if another request wrote it."""
        loaded = seen if seen is not None and seen.head.seq >= line.seq else await self.load(plan.id)
        if loaded is None:
            return None
        head = loaded.head
        context = head.context if line.context_seq == head.context_seq else await self.context_of(line)
        desk = self.desk(plan.id, self.author())
        if not await think(plan.same(self.spec, await self.in_full(line, head), desk.peek)):
            raise KeyConflict(plan.id, plan.key or "", transition(self.spec, line, context))
        done = settled(loaded, line.seq) and not (line.kind == Kind.COMPENSATE and undoing(loaded))
        return Written(line, context, head, True, done)

    def runs(self, loaded: Loaded) -> bool:
        """See `plan.Around`."""
        due = loaded.effects
        if due is None or due.token is None:
            return False
        if due.token == self.incarnation.token and loaded.head.id in self.rest:
            return True
        return due.at > self.now() and not incarnation.dead((due.token,))

    async def in_full(self, line: Line, head: Head) -> Line:
        """The line, with what is kept of its payload or context where these were erased."""
        if head.status != Status.ERASED or line.seq >= head.seq:
            return line
        (last,) = await self.reader.history(self.spec.name, line.id, head.seq - 1, 1)
        return known_again(line, last)

    def occupied(self, loaded: Loaded) -> float | None:
        """None if an event may be judged now; else the most seconds before another look makes sense."""
        due = loaded.effects
        if due is None or loaded.head.status not in (Status.RUNNING, Status.FINISHED):
            return None
        if due.token == self.incarnation.token and loaded.head.id in self.rest:
            return LONGEST_PAUSE
        if due.token is not None:
            left = (due.at - self.now()).total_seconds()
            if left > 0 and not incarnation.dead((due.token,)):
                return left
        return LONGEST_PAUSE if undoing(loaded) else None


async def think(thoughts: Generator[Awaitable[Any], Any, T], deadline: float | None = None) -> T:
    """Drive a pure generator: await what it yields and send the result back.

    What is not there at the `deadline` (on the loop's clock) is a TimeoutError to the generator.
    """
    try:
        wanted = next(thoughts)
        while True:
            try:
                async with asyncio.timeout_at(deadline):
                    value = await wanted
            except BaseException as e:  # the generator decides what an error means
                if isinstance(e, asyncio.CancelledError) and _cancelled():
                    raise
                wanted = thoughts.throw(e)
            else:
                wanted = thoughts.send(value)
    except StopIteration as stop:
        return cast("T", stop.value)
    finally:
        thoughts.close()


def _cancelled() -> bool:
    """Was this task cancelled, or did somebody only raise as if?"""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def stamped_line(line: Line, at: datetime) -> Line:
    """The line as the store keeps it."""
    return msgspec.structs.replace(line, at=at) if line.at is UNSTAMPED else line


def context_after(decided: Decided, line: Line) -> str:
    """The context in force after the caller's line."""
    return decided.head.context if line.context is None else line.context
