"""One Manager's store as every room uses it: read, sign, append until the outcome is known.

An acknowledgement that never came is an unknown outcome. A read that finds nothing proves nothing,
so the identical commit is appended again until the store answers.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Generator, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast

import msgspec

from . import circle
from .clock import Clock, SystemClock
from .errors import StoreError, StoreUnavailable
from .house import House
from .incarnation import Incarnation
from .kernel import AnySpec, Author
from .queue import Desk
from .record import UNSTAMPED, Answer, Change, Commit, Committed, Due, Head, Line, Loaded, Locked, Put
from .rest import Rest
from .store import Store

T = TypeVar("T")

HEADS = 8192
"""Heads of instances at rest that are kept in memory."""
_PAGE = 100
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5
"""Seconds between two tries."""


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


class Ledger:
    """Reads and writes for one spec, signed by one incarnation."""

    def __init__(self, spec: AnySpec, store: Store, clock: Clock | None, lease: timedelta) -> None:
        self.spec = spec
        self.store = store
        self.lease = lease
        self.clock: Clock = SystemClock() if clock is None else clock
        self.own_clock = clock is not None
        self.rest = Rest()
        self.house = House()
        self.incarnation = Incarnation()
        self.made_work: Callable[[], None] = lambda: None
        """Told when a commit left work that is due and nobody's; set by `worker`."""
        self._place = id(store)
        self._heads: dict[str, Head] = {}

    # --- what plans and steps ask -----------------------------------------------------------------

    def now(self) -> datetime:
        """The present on the clock that counts."""
        return self.clock.now()

    def author(self) -> Author:
        """A signature with a new commit id."""
        return Author(self.incarnation.commit_id(), self.incarnation.token, self.spec.version)

    def desk(self, id: str, author: Author, *, leasing: bool = True) -> Desk:
        """All that a step of the queue needs."""
        seen: dict[int, Line] = {}

        async def peek(seq: int) -> Line:
            # Down a deep stack one look fetches more and more of what lies below.
            if seq not in seen:
                span = min(len(seen) + 1, _PAGE, seq)
                seen.update((line.seq, line) for line in await self.store.history(self.spec.name, id, seq - span, span))
            if seq not in seen:
                raise StoreError(f"line {seq} of {id!r} is missing from the store")
            return seen[seq]

        async def more(after: int) -> Line | None:
            while page := await self.store.history(self.spec.name, id, after, _PAGE):
                for line in page:
                    if line.owes:
                        return line
                after = page[-1].seq
            return None

        token = author.token if leasing else None
        return Desk(self.spec, author, token, self.lease, self.now(), random.random(), peek, more)

    def node(self, id: str) -> circle.Node:
        """The instance as the circle knows it."""
        return (self._place, self.spec.name, id)

    # --- reading ----------------------------------------------------------------------------------

    async def load(self, id: str) -> Loaded | None:
        """A fresh look at one instance."""
        return (await self.store.load(self.spec.name, (id,)))[0]

    async def context_of(self, line: Line) -> str:
        """The context in force after `line`."""
        if line.context is not None:
            return line.context
        stored = await self.store.history(self.spec.name, line.id, line.context_seq - 1, 1)
        return stored[0].context or "null"

    # --- writing ----------------------------------------------------------------------------------

    def commit(self, change: Change, commit_id: str) -> Commit:
        """The change as a commit of its own."""
        now = self.now() if self.own_clock else None
        return Commit(id=commit_id, token=self.incarnation.token, changes=(change,), now=now)

    async def append(self, commit: Commit, deadline: float | None) -> tuple[Answer, bool]:
        """Append until the outcome is known; the answer, and whether an earlier try may have landed.

        Raises StoreUnavailable(committed=None) at the `deadline` (on the loop's clock; None: never),
        and at once what the store says of a commit that certainly was not written.
        """
        loop = asyncio.get_running_loop()
        pause, repeated = FIRST_PAUSE, False
        while True:
            try:
                timeout = None if deadline is None else max(0.0, deadline - loop.time())
                answers = await self.store.append((commit,), timeout=timeout)
            except StoreError as e:
                if e.committed is False and not repeated:
                    raise
                unknown: Exception = e
            else:
                if not (repeated and isinstance(answers[0], Locked)):
                    return answers[0], repeated
                unknown = TimeoutError("the instance is locked, perhaps by the first try")
            if deadline is not None and loop.time() + pause > deadline:
                raise StoreUnavailable(
                    f"the store never said whether it wrote the commit: {unknown}", None
                ) from unknown
            repeated = True
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, LONGEST_PAUSE)

    # --- heads in memory --------------------------------------------------------------------------

    def recollect(self, id: str) -> Head | None:
        """Take out the head that was kept, if any: it may be out of date, the compare-and-set tells."""
        return self._heads.pop(id, None)

    def remember(self, head: Head) -> None:
        """Keep the head of an instance at rest."""
        heads = self._heads
        heads[head.id] = head
        if len(heads) > HEADS:
            del heads[next(iter(heads))]

    def forget(self, id: str) -> None:
        """The head in memory, if any, is out of date."""
        self._heads.pop(id, None)


def stamped(head: Head, at: datetime) -> Head:
    """The head as the store keeps it."""
    if head.started_at is UNSTAMPED:
        return msgspec.structs.replace(head, changed_at=at, started_at=at)
    return msgspec.structs.replace(head, changed_at=at)


def stamped_line(line: Line, at: datetime) -> Line:
    """The line as the store keeps it."""
    return msgspec.structs.replace(line, at=at) if line.at is UNSTAMPED else line


def took(answer: Committed, puts: Sequence[Put]) -> Due | None:
    """The effects row if it is leased to us just as one of `puts` left it.

    After an unknown outcome the row may have gone on: then its present lease, though ours, is
    another run's.
    """
    row = answer.leased
    if row is not None and any((p.seq, p.number, p.attempt) == (row.seq, row.number, row.attempt) for p in puts):
        return row
    return None
