"""What a caller wants written: start, send and compensate as plans that `commit` carries out.

A plan decides on a head it is shown (as often as it is shown one) and recognises its own line when
its key was seen before. It reads and writes nothing itself.
"""

from __future__ import annotations

from collections.abc import Generator
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeAlias

from msgspec import Struct

from .codec import alike
from .errors import AlreadyStarted, GuardError, UnknownInstance, WorkflowError
from .kernel import Accepted, AnySpec, Author, begun, born, judge, moved, straight
from .owed import Desk, Fault, Step, lease_of
from .place import owe
from .queue import puts
from .record import QUEUE, Change, Head, Kind, Line, Loaded, Put
from .stack import Peek, today
from .undoing import TAKEN_UP, compensate


class Decided(Struct, frozen=True, gc=False):
    """What to write, and what is known when it is written."""

    change: Change
    line: Line
    """The line the caller hears of."""
    head: Head
    known: tuple[Line, ...] = ()
    """Owing lines from the place of the effects row on, should it become ours."""
    whole: bool = True
    fault: Fault | None = None
    """A returned event was judged on the way, and not taken."""
    culprit: str = ""


Decision: TypeAlias = Decided | WorkflowError
Deciding: TypeAlias = Generator[Any, Any, Decision]


class Around(Protocol):
    """What a plan may ask of whoever carries it out."""

    spec: AnySpec
    lease: timedelta

    def now(self) -> datetime:
        """The present."""
        ...

    def author(self) -> Author:
        """A signature with a new commit id."""
        ...

    def lessee(self, author: Author) -> str | None:
        """Who leases the first effect of a move; None: nobody, it is due at once."""
        ...

    def desk(self, id: str, author: Author) -> Desk:
        """All that a step of the queue needs."""
        ...

    def runs(self, loaded: Loaded) -> bool:
        """Is an effect of it running: is the lease on its queue a live one?"""
        ...


class Plan(Protocol):
    """One call's intention."""

    id: str
    key: str | None
    blind: bool
    """Decide without a look at the store first: a head is not expected, and none is waited for."""
    waits: bool
    """In the order of arrival, and until no effects of the instance run; else at once, beside everybody, and
    on a fresh sight with all due rows."""

    def decide(self, around: Around, loaded: Loaded | None) -> Decision | Deciding:
        """What to write on this head, or why not; a generator where somebody must be asked."""
        ...

    def same(self, spec: AnySpec, line: Line, peek: Peek) -> Generator[Any, Any, bool]:
        """Is this line, which bears the key, what this plan would write?"""
        ...


class Start(Struct, gc=False):
    """Line 1 of a new instance."""

    id: str
    key: str | None
    context: str
    labels: str | None
    blind: bool = True
    waits: bool = True

    def decide(self, around: Around, loaded: Loaded | None) -> Decision:
        """See `Plan.decide`."""
        if loaded is not None:
            return AlreadyStarted(around.spec.name, self.id)
        timers = begun(around.spec, self.id, self.context, around.now())
        if isinstance(timers, GuardError):
            return timers
        author = around.author()
        line, head = born(around.spec, self.id, self.context, self.labels, author, self.key)
        rows = owe(around.lessee(author), around.lease, (line,), None) if line.owes else ()
        return Decided(_appended(0, (line,), head, rows + timers), line, head, (line,) if line.owes else ())

    def same(self, spec: AnySpec, line: Line, peek: Peek) -> Generator[Any, Any, bool]:
        """See `Plan.same`."""
        return line.kind == Kind.START and alike(line.context, self.context, line.commit_id)
        yield


class Send(Struct, gc=False):
    """An event, and the start before it if the instance may be new."""

    id: str
    key: str | None
    event: str
    payload: str | None
    value: Any
    """The payload as the hooks will see it."""
    start: str | None = None
    """Context of the instance to be started if there is none."""
    blind: bool = False
    waits: bool = True

    def decide(self, around: Around, loaded: Loaded | None) -> Decision | Deciding:
        """See `Plan.decide`."""
        if loaded is None:
            if self.start is None:
                return UnknownInstance(around.spec.name, self.id)
            return self._first(around, self.start)
        verdict = straight(around.spec, loaded.head, self.event)
        if verdict is None:
            return self._judged(around, loaded)
        return self._written(around, loaded, verdict)

    def _judged(self, around: Around, loaded: Loaded) -> Deciding:
        verdict = yield from judge(around.spec, loaded.head, self.event, self.value, around.now())
        return self._written(around, loaded, verdict) if isinstance(verdict, Accepted) else verdict.error

    def _written(self, around: Around, loaded: Loaded, verdict: Accepted) -> Decided:
        author = around.author()
        line, head = moved(around.spec, loaded.head, verdict, author, key=self.key, payload=self.payload)
        drops = verdict.arc.drops
        if not line.owes:
            return Decided(_appended(loaded.head.seq, (line,), head, verdict.timers, drops), line, head)
        rows = owe(around.lessee(author), around.lease, (line,), loaded.effects) + verdict.timers
        return Decided(_appended(loaded.head.seq, (line,), head, rows, drops), line, head, (line,))

    def _first(self, around: Around, context: str) -> Deciding:
        author = around.author()
        timers = begun(around.spec, self.id, context, around.now())
        if isinstance(timers, GuardError):
            return timers
        start, head = born(around.spec, self.id, context, None, author, None)
        verdict = yield from judge(around.spec, head, self.event, self.value, around.now())
        if not isinstance(verdict, Accepted):
            return verdict.error
        line, head = moved(around.spec, head, verdict, author, key=self.key, payload=self.payload)
        lines = (start, line)
        left = timers if verdict.arc.stay else verdict.timers
        rows = owe(around.lessee(author), around.lease, lines, None) + left
        return Decided(_appended(0, lines, head, rows), line, head, tuple(ln for ln in lines if ln.owes))

    def same(self, spec: AnySpec, line: Line, peek: Peek) -> Generator[Any, Any, bool]:
        """See `Plan.same`."""
        same = line.kind == Kind.EVENT and line.event == self.event
        return same and alike(line.payload, self.payload, line.commit_id)
        yield


class Compensate(Struct):
    """The first step back to an earlier entry."""

    id: str
    key: str | None
    to: str
    blind: bool = False
    waits: bool = True

    def decide(self, around: Around, loaded: Loaded | None) -> Decision | Deciding:
        """See `Plan.decide`."""
        if loaded is None:
            return UnknownInstance(around.spec.name, self.id)
        return self._decide(around, loaded)

    def _decide(self, around: Around, loaded: Loaded) -> Deciding:
        desk = around.desk(self.id, around.author())
        step = yield from compensate(desk, loaded, self.to, self.key)
        return step if isinstance(step, WorkflowError) else stepped(loaded, step)

    def same(self, spec: AnySpec, line: Line, peek: Peek) -> Generator[Any, Any, bool]:
        """See `Plan.same`."""
        mark = TAKEN_UP if line.kind == Kind.RETRY else None
        if line.kind not in (Kind.COMPENSATE, Kind.RETRY) or not alike(line.payload, mark, line.commit_id):
            return False
        goal = line
        if line.goal:
            goal = yield peek(line.goal)
        return today(spec, goal.target) == self.to


def stepped(loaded: Loaded, step: Step) -> Decided:
    """A step of the queue that a call asks for, as what it writes; its first line is the caller's."""
    seen, head = loaded.effects, loaded.head
    lease = None if seen is None else lease_of(seen)
    drops = step.void if seen is None or step.put is not None else (QUEUE, *step.void)
    change = Change(head.workflow, head.id, head.seq, step.lines, step.head, lease, puts(step), drops, step.held)
    return Decided(change, step.lines[0], step.head, step.known, step.whole, step.fault, step.culprit)


def _appended(
    seq: int, lines: tuple[Line, ...], head: Head, puts: tuple[Put, ...], drops: tuple[str, ...] = ()
) -> Change:
    return Change(head.workflow, head.id, seq, lines, head, None, puts, drops)
