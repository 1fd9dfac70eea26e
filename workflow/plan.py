"""What a caller wants written: start, send and compensate as plans that `commit` carries out.

A plan decides on a head it is shown (as often as it is shown one) and recognises its own line when
its key was seen before. It reads and writes nothing itself.
"""

from __future__ import annotations

from collections.abc import Generator
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeAlias

from msgspec import Struct

from .errors import AlreadyStarted, UnknownInstance, WorkflowError
from .kernel import Accepted, AnySpec, Author, born, judge, moved, straight
from .queue import Desk, Fault, lease_of, owe
from .record import QUEUE, Change, Head, Kind, Line, Loaded, Put
from .stack import Peek, today
from .undoing import compensate


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


class Plan(Protocol):
    """One call's intention."""

    id: str
    key: str | None
    blind: bool
    """Decide without a look at the store first: a head is not expected, and none is waited for."""

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

    def decide(self, around: Around, loaded: Loaded | None) -> Decision:
        """See `Plan.decide`."""
        if loaded is not None:
            return AlreadyStarted(around.spec.name, self.id)
        author = around.author()
        line, head = born(around.spec, self.id, self.context, self.labels, author, self.key)
        puts = owe(around.lessee(author), around.lease, (line,), None) if line.owes else ()
        return Decided(_appended(0, (line,), head, puts), line, head, (line,) if line.owes else ())

    def same(self, spec: AnySpec, line: Line, peek: Peek) -> Generator[Any, Any, bool]:
        """See `Plan.same`."""
        return line.kind == Kind.START and line.context == self.context
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
        if not line.owes:
            return Decided(_appended(loaded.head.seq, (line,), head, ()), line, head)
        puts = owe(around.lessee(author), around.lease, (line,), loaded.effects)
        return Decided(_appended(loaded.head.seq, (line,), head, puts), line, head, (line,))

    def _first(self, around: Around, context: str) -> Deciding:
        author = around.author()
        start, head = born(around.spec, self.id, context, None, author, None)
        verdict = yield from judge(around.spec, head, self.event, self.value, around.now())
        if not isinstance(verdict, Accepted):
            return verdict.error
        line, head = moved(around.spec, head, verdict, author, key=self.key, payload=self.payload)
        lines = (start, line)
        puts = owe(around.lessee(author), around.lease, lines, None)
        return Decided(_appended(0, lines, head, puts), line, head, tuple(ln for ln in lines if ln.owes))

    def same(self, spec: AnySpec, line: Line, peek: Peek) -> Generator[Any, Any, bool]:
        """See `Plan.same`."""
        return line.kind == Kind.EVENT and line.event == self.event and line.payload == self.payload
        yield


class Compensate(Struct):
    """The first step back to an earlier entry."""

    id: str
    key: str | None
    to: str
    blind: bool = False

    def decide(self, around: Around, loaded: Loaded | None) -> Decision | Deciding:
        """See `Plan.decide`."""
        if loaded is None:
            return UnknownInstance(around.spec.name, self.id)
        return self._decide(around, loaded)

    def _decide(self, around: Around, loaded: Loaded) -> Deciding:
        desk = around.desk(self.id, around.author())
        step = yield from compensate(desk, loaded, self.to, self.key)
        if isinstance(step, WorkflowError):
            return step
        seen = loaded.effects
        change = Change(
            workflow=loaded.head.workflow,
            id=self.id,
            seq=loaded.head.seq,
            lines=step.lines,
            head=step.head,
            lease=None if seen is None else lease_of(seen),
            puts=() if step.put is None else (step.put,),
            drops=() if seen is None or step.put is not None else (QUEUE,),
            held=step.held,
        )
        return Decided(change, step.lines[0], step.head, step.known, step.whole, step.fault, step.culprit)

    def same(self, spec: AnySpec, line: Line, peek: Peek) -> Generator[Any, Any, bool]:
        """See `Plan.same`."""
        if line.kind not in (Kind.COMPENSATE, Kind.RETRY):
            return False
        goal = line
        if line.goal:
            goal = yield peek(line.goal)
        return today(spec, goal.target) == self.to


def _appended(seq: int, lines: tuple[Line, ...], head: Head, puts: tuple[Put, ...]) -> Change:
    return Change(head.workflow, head.id, seq, lines, head, None, puts)
