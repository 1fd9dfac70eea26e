"""Group commit: what queues while one transaction is in flight goes out together in the next.

Nobody lingers: a caller that finds a writer idle commits alone. Each caller is answered when his
commit is durable, and whether he is still there makes no difference to the others.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from workflow.errors import StoreError, StoreUnavailable
from workflow.record import Answer, Commit, Locked

from .rule import placed

A = TypeVar("A")

LARGEST = 512
"""Most commits that go out in one transaction."""
HEAVIEST = 4 << 20
"""Characters of payloads and contexts after which a transaction takes no more."""
RETRIES = 32
"""Most commits in one transaction whose instances were held by others the last time."""
SPLIT = 64
"""So many waiting commits are worth the round trip of a second writer."""
BOUND = 8192
"""Commits that may wait; who comes later waits for room."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.05
"""Seconds until an instance that another transaction holds is tried again, if only a few are held."""
SWEEP = 0.25
"""Seconds between two looks for callers whose time is over."""
_GRACE = 1.0
"""Seconds beyond his time that a caller waits for a flight that has begun; then he hears that nobody knows."""
_LOCKED = Locked()

Place = tuple[str, str]


class Write(Protocol):
    """One transaction of one writer."""

    async def __call__(self, writer: int, commits: Sequence[Commit], timeout: float | None) -> Sequence[Answer | None]:
        """An answer for each commit; None: another transaction holds its instance, try again later.

        `timeout` (seconds) is the time that the most hurried caller has left, None if none is hurried. A
        StoreError whose `committed` is False says that nothing was written: perhaps for one bad commit.
        """
        ...


class _Entry:
    """A commit in the queue. It holds its places from its first flight until it is answered."""

    __slots__ = ("answer", "commit", "deadline", "flying", "holds", "pause", "places", "until")

    def __init__(self, commit: Commit, deadline: float, until: float, answer: asyncio.Future[Answer]) -> None:
        self.commit = commit
        self.places: list[Place] = [placed(change) for change in commit.changes]
        self.deadline = deadline
        self.until = until
        self.answer = answer
        self.holds = False
        self.flying = False
        self.pause = _FIRST_PAUSE / 2

    def weight(self) -> int:
        """Characters to be sent, roughly."""
        weight = 0
        for change in self.commit.changes:
            for line in change.lines:
                weight += len(line.payload or "") + len(line.context or "")
            weight += len(change.head.context) if change.head is not None else 0
        return weight


class Batch:
    """The queue before the writers of one store.

    No instance is in two flights at once, nor twice in one; of two commits that touch one instance
    the earlier goes first. A commit over several instances flies alone. `patience` (seconds) is how
    long a commit without a timeout waits for other transactions.
    """

    def __init__(self, write: Write, *, writers: int = 1, patience: float = 5.0) -> None:
        self._write = write
        self._idle = list(range(writers))
        self._waking = 0  # writers that were woken and have not looked into the queue yet: one at a time
        self._patience = patience
        self._queue: deque[_Entry] = deque()
        self._again: deque[_Entry] = deque()
        self._stalled = 0
        self._entries: set[_Entry] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._held: set[Place] = set()
        self._waiting = 0
        self._room: deque[asyncio.Future[None]] = deque()
        self._coming = 0  # who was let in and has not put his commits in the queue yet
        self._flights: set[asyncio.Task[None]] = set()

    async def append(self, commits: Sequence[Commit], timeout: float | None) -> Sequence[Answer]:
        """See `Store.append`."""
        loop = asyncio.get_running_loop()
        until = loop.time() + (self._patience if timeout is None else timeout)
        deadline = math.inf if timeout is None else until
        if self._room or self._waiting + self._coming >= BOUND:
            await self._wait_for_room(loop, until)
        entries = [_Entry(commit, deadline, until, loop.create_future()) for commit in commits]
        self._queue.extend(entries)
        self._entries.update(entries)
        self._waiting += len(entries)
        if self._sweeper is None:
            self._sweeper = loop.call_later(SWEEP, self._sweep)
        self._dispatch()
        if not entries:
            return ()
        if len(entries) == 1:
            return [await entries[0].answer]
        return await _all([entry.answer for entry in entries])

    async def landed(self) -> None:
        """Wait until everybody in the queue has his answer."""
        while self._waiting or self._coming:
            if self._flights:
                await asyncio.wait(self._flights)
            else:
                await asyncio.sleep(_FIRST_PAUSE)

    async def _wait_for_room(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        """Callers are let in in the order in which they came."""
        turn: asyncio.Future[None] = loop.create_future()
        self._room.append(turn)
        try:
            async with asyncio.timeout_at(deadline):
                await turn
        except BaseException as error:
            self._room_left(turn)
            if isinstance(error, TimeoutError):
                raise StoreUnavailable(f"{BOUND} commits are waiting to be written", committed=False) from None
            raise
        self._coming -= 1

    def _room_left(self, turn: asyncio.Future[None]) -> None:
        """Somebody in the line goes away: if he had been let in, the next one is."""
        if turn.done() and not turn.cancelled():
            self._coming -= 1
            self._let_in()
        elif turn in self._room:
            self._room.remove(turn)

    def _let_in(self) -> None:
        while self._room and self._waiting + self._coming < BOUND:
            turn = self._room.popleft()
            if not turn.done():
                turn.set_result(None)
                self._coming += 1

    # --- flights ----------------------------------------------------------------------------------

    def _dispatch(self) -> None:
        """Wake an idle writer, if there is something to write."""
        if self._idle and (self._queue or self._again) and not self._waking:
            self._waking = 1
            flight = apart(self._work(self._idle.pop()))
            self._flights.add(flight)
            flight.add_done_callback(self._flights.discard)

    async def _work(self, writer: int) -> None:
        self._waking = 0
        try:
            while group := self._cut():
                self._dispatch()
                await self._fly(writer, group)
                # One turn for those who were just answered: they may have the next commit ready.
                await asyncio.sleep(0)
        finally:
            self._idle.append(writer)

    def _cut(self) -> list[_Entry]:
        """Take what goes out next: all that waits, or a fair share if other writers are idle too."""
        group = self._retries()
        if group and len(group[0].places) > 1:
            return group
        queue, waiting = self._queue, len(self._queue)
        share = waiting if waiting < SPLIT else -(-waiting // (1 + len(self._idle) + self._waking))
        most = min(share + len(group), LARGEST)
        weight = sum(entry.weight() for entry in group)
        passed: list[_Entry] = []
        passed_places: set[Place] = set()
        while queue and len(group) < most and weight < HEAVIEST:
            entry = queue.popleft()
            if entry.answer.done():  # its caller is gone or has his answer; nothing was written
                self._dismiss(entry)
                continue
            alone = len(entry.places) > 1
            free = passed_places.isdisjoint(entry.places) and self._held.isdisjoint(entry.places)
            if not free or (alone and group):
                passed.append(entry)
                passed_places.update(entry.places)
                if alone and free:
                    break
                continue
            entry.holds = True
            self._held.update(entry.places)
            group.append(entry)
            weight += entry.weight()
            if alone:
                break
        queue.extendleft(reversed(passed))
        return group

    def _retries(self) -> list[_Entry]:
        """A few of those that others held: they must not keep off who is held by nobody."""
        group: list[_Entry] = []
        while self._again and len(group) < RETRIES:
            entry = self._again.popleft()
            if entry.answer.done():
                self._dismiss(entry)
            elif len(entry.places) == 1:
                group.append(entry)
            elif not group:
                return [entry]
            else:
                self._again.appendleft(entry)
                break
        return group

    async def _fly(self, writer: int, group: Sequence[_Entry]) -> None:
        for entry in group:
            entry.flying = True
        deadline = min(entry.deadline for entry in group)
        timeout = None if deadline == math.inf else max(0.0, deadline - asyncio.get_running_loop().time())
        try:
            answers = await self._write(writer, [entry.commit for entry in group], timeout)
        except StoreError as error:
            if len(group) > 1 and divisible(error):
                half = len(group) // 2
                await self._fly(writer, group[:half])
                await self._fly(writer, group[half:])
                return
            for entry in group:
                self._refuse(entry, error)
        except BaseException as error:
            ended = StoreUnavailable(f"the writer ended: {error!r}", committed=None)
            ended.__cause__ = error
            for entry in group:
                self._refuse(entry, ended)
            if not isinstance(error, Exception):  # else the callers have heard of it, and others wait
                raise
        else:
            for entry, answer in zip(group, answers, strict=True):
                if answer is None:
                    self._stall(entry)
                else:
                    self._dismiss(entry)
                    if not entry.answer.done():
                        entry.answer.set_result(answer)

    def _stall(self, entry: _Entry) -> None:
        """Another transaction holds it: it keeps its places, so that none behind it overtakes it."""
        loop = asyncio.get_running_loop()
        entry.flying = False
        entry.pause = min(entry.pause * 2, _LONGEST_PAUSE)
        left = entry.until - loop.time()
        if left <= 0:
            self._dismiss(entry)
            if not entry.answer.done():
                entry.answer.set_result(_LOCKED)
        else:
            self._stalled += 1
            pause = min(entry.pause * (1 + self._stalled / RETRIES), 1.0)
            loop.call_later(min(pause, left), self._retry, entry)

    def _retry(self, entry: _Entry) -> None:
        self._stalled -= 1
        self._again.append(entry)
        self._dispatch()

    def _sweep(self) -> None:
        """Answer those whose time is over, whatever they are waiting for."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for entry in self._entries:
            if entry.answer.done() or now < entry.until:
                continue
            if not entry.flying:
                entry.answer.set_result(_LOCKED)
            elif now > entry.deadline + _GRACE:
                entry.answer.set_exception(StoreUnavailable("the store does not answer", committed=None))
        self._sweeper = loop.call_later(SWEEP, self._sweep) if self._entries else None

    def _refuse(self, entry: _Entry, error: StoreError) -> None:
        self._dismiss(entry)
        if not entry.answer.done():
            entry.answer.set_exception(own(error))

    def _dismiss(self, entry: _Entry) -> None:
        if entry.holds:
            self._held.difference_update(entry.places)
        self._entries.discard(entry)
        self._waiting -= 1
        if self._room:
            self._let_in()


def apart(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task that knows nothing of the caller who happened to start it."""
    return asyncio.get_running_loop().create_task(work, context=contextvars.Context())


def divisible(error: StoreError) -> bool:
    """May one row be at fault, and the others be written without it?"""
    return error.committed is False and not isinstance(error, StoreUnavailable)


def own(error: StoreError) -> StoreError:
    """Each caller raises an error of his own."""
    each = type(error)(str(error), error.committed)
    each.__cause__ = error.__cause__
    return each


async def _all(answers: Sequence[asyncio.Future[A]]) -> list[A]:
    """All answers, or the first error; what others heard meanwhile makes the outcome unknown."""
    try:
        await asyncio.wait(answers)
    except asyncio.CancelledError:
        for answer in answers:
            answer.cancel()
        raise
    errors = [error for answer in answers if (error := answer.exception()) is not None]
    if not errors:
        return [answer.result() for answer in answers]
    error = errors[0]
    if len(errors) < len(answers) and isinstance(error, StoreError):
        error.committed = None
    raise error
