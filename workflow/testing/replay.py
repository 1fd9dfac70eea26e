"""The head that a history adds up to, each line checked against the drawing.

Pure: no guard, assign or hook is called; what they once decided is recorded in the lines.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, TypeAlias

from attrs import define, field

from workflow.errors import IllegalTransition
from workflow.lifecycle import FOLLOWS
from workflow.record import Instance, Kind, Status, Transition
from workflow.spec import C, E, S, Spec
from workflow.word import word

Lines: TypeAlias = Sequence[Transition[S, E, C]]
_Line: TypeAlias = Transition[Any, Any, Any]

_UNDOABLE = frozenset({Status.RUNNING, Status.FINISHED, Status.FAILED})
_GOING = frozenset({Status.RUNNING, Status.FINISHED})
_SET: Mapping[str, frozenset[Status]] = {
    Kind.PAUSE: frozenset({Status.PAUSED}),
    Kind.UNPAUSE: _GOING,
    Kind.RETRY: _GOING,
    Kind.SKIP: _GOING,
    Kind.CANCEL: frozenset({Status.CANCELLED}),
    Kind.ERASE: frozenset({Status.ERASED}),
}
"""Which status these kinds may leave behind; all others keep the status they find, or fail it."""
_OVER = frozenset({Status.CANCELLED, Status.ERASED})


def replay(spec: Spec[S, E, C], history: Lines[S, E, C]) -> Instance[S, C]:
    """The head after these lines, which start at line 1 and may end anywhere.

    A line must be one that the drawing of today allows after those before it: next in number, its
    edge drawn (and not hidden behind an unguarded twin), its place on the stack of entries and its
    status as the move makes them. The context is the recorded one of the last line; labels are the
    last ones given; the reason is that of the line that last set the status.

    Raises IllegalTransition at the first line of which that is not true; its message names the line
    and what is wrong with it. Raises ValueError for no lines at all.
    """
    if not history:
        raise ValueError("an empty history has no head; give at least line 1, the start")
    run = _Run(spec, history[0].id)
    for line in history:
        run.take(line)
    last = history[-1]
    return Instance(
        workflow=spec.name,
        id=run.id,
        state=spec.state_of(run.state),
        seq=run.seq,
        status=run.status,
        context=last.context,
        labels=run.labels,
        started_at=history[0].at,
        changed_at=last.at,
        reason=run.reason,
    )


@define
class _Run:
    """What is known after the lines taken so far."""

    spec: Spec[Any, Any, Any]
    id: str
    words: Mapping[str, str] = field(init=False)
    """Today's word of every state word that the spec knows, renamed ones included."""
    seq: int = 0
    state: str = ""
    status: Status = Status.RUNNING
    reason: str | None = None
    labels: Mapping[str, str] = field(factory=dict[str, str])
    at: datetime | None = None
    entries: list[tuple[int, str]] = field(factory=list[tuple[int, str]])
    """The stack of entries: line and state of each."""

    def __attrs_post_init__(self) -> None:
        same = {word(s): word(s) for s in self.spec.states}
        self.words = same | {old: word(s) for old, s in self.spec.renames.items()}

    def take(self, line: _Line) -> None:
        """Go on to this line. Raises IllegalTransition."""
        wrong = self._misplaced(line) or _CHECKS[line.kind](self, line)
        if wrong is not None:
            raise self._illegal(line, wrong)
        if line.below is not None:
            self.entries.append((line.seq, self.word(line.target)))
        elif line.undoes is not None:
            self.entries.pop()
        if line.status != self.status or line.kind in _MOVES:
            self.reason = line.reason
        if line.labels is not None:
            self.labels = dict(line.labels)
        self.seq, self.at = line.seq, line.at
        self.state, self.status = self.word(line.target), Status(line.status)

    def word(self, member: object) -> str:
        """Today's word of a state; of a bare word nobody knows, the word itself."""
        text = _text(member)
        return self.words.get(text, text)

    def _illegal(self, line: _Line, wrong: str) -> IllegalTransition:
        here = self.spec.state_of(self.state) if self.seq else self.spec.initial
        why = f"line {self.seq + 1} ({line.kind}) cannot follow, {wrong}"
        return IllegalTransition(self.id, here, line.event, self.spec.accepted(here), why)

    def _misplaced(self, line: _Line) -> str | None:
        if line.kind not in _CHECKS:
            return f"nothing is known of a kind {line.kind!r}"
        if self.at is not None and line.at < self.at:
            return f"its time {line.at} is before that of the line above, {self.at}"
        return (
            _off("seq", line.seq, self.seq + 1)
            or _off("workflow", line.workflow, self.spec.name)
            or _off("id", line.id, self.id)
            or (None if self.seq or line.kind == Kind.START else "a history begins with its start")
        )

    # --- what each kind must say ------------------------------------------------------------------

    def start(self, line: _Line) -> str | None:
        return (
            ("an instance starts once" if self.seq else None)
            or _off("source", line.source, None)
            or _off("event", line.event, None)
            or _off("target", self.word(line.target), word(self.spec.initial))
            or _off("below", line.below, 0)
            or _off("undoes", line.undoes, None)
            or _off("status", line.status, Status.RUNNING)
        )

    def move(self, line: _Line) -> str | None:
        target = self.word(line.target)
        return (
            (None if self.status == Status.RUNNING else f"it is {self.status} and takes no event")
            or _off("source", self.word(line.source), self.state)
            or _off("undoes", line.undoes, None)
            or self._undrawn(line, target)
            or (None if line.below is None else _off("below", line.below, self.entries[-1][0]))
            or _off("status", line.status, Status.FINISHED if self.spec.is_final(target) else Status.RUNNING)
        )

    def undo(self, line: _Line) -> str | None:
        if len(self.entries) < 2:
            return "the start is not undone"
        return (
            (None if self.status in _UNDOABLE else f"it is {self.status} and undoes nothing")
            or _off("source", self.word(line.source), self.state)
            or _off("event", line.event, None)
            or _off("target", self.word(line.target), self.entries[-2][1])
            or _off("undoes", line.undoes, self.entries[-1][0])
            or _off("below", line.below, None)
            or _off("status", line.status, Status.RUNNING)
        )

    def note(self, line: _Line) -> str | None:
        return (
            _off("source", self.word(line.source), self.state)
            or _off("target", self.word(line.target), self.state)
            or _off("below", line.below, None)
            or _off("undoes", line.undoes, None)
            or self._misnamed(line)
            or self._unset(line)
        )

    def _undrawn(self, line: _Line, target: str) -> str | None:
        """Is there no edge that could have won and does what the line says?"""
        event, stay = _text(line.event), line.below is None
        for arc in self.spec.tables.arcs.get(self.state, {}).get(event, ()):
            if arc.target == target and arc.stay == stay:
                return None
            if arc.guard is None:  # it always wins, those after it are never asked
                break
        return f"no edge takes {event!r} " + (f"and stays in {target!r}" if stay else f"to {target!r}")

    def _misnamed(self, line: _Line) -> str | None:
        if line.kind == Kind.UPDATE:
            return _off("event", line.event, None)
        if line.kind == Kind.REFUSED and line.event is None and self.status != Status.CANCELLED:
            return "it does not name the event"  # after a cancel it may be an update that came too late
        return None

    def _unset(self, line: _Line) -> str | None:
        """Is the status one that this kind of line cannot leave behind?"""
        final = self.spec.is_final(self.state)
        impossible = Status.RUNNING if final else Status.FINISHED
        allowed = _SET.get(line.kind)
        if allowed is None:
            late = line.kind == Kind.REFUSED and self.status == Status.CANCELLED
            if self.status in _OVER and not late:
                return f"it is {self.status}"
            fails = line.kind in (Kind.REFUSED, Kind.FAIL) and line.status == Status.FAILED and not late
            return None if fails else _off("status", line.status, self.status)
        if self.status not in FOLLOWS[line.kind]:
            return f"it is {self.status}"
        if line.status in allowed and line.status != impossible:
            return None
        return f"its status {_said(line.status)} is not what it leads to in {self.state!r}"


_MOVES = frozenset({Kind.START, Kind.EVENT, Kind.TIMEOUT, Kind.COMPENSATE})
_CHECKS: Mapping[str, Callable[[_Run, _Line], str | None]] = {
    **dict.fromkeys(Kind, _Run.note),
    Kind.START: _Run.start,
    Kind.EVENT: _Run.move,
    Kind.TIMEOUT: _Run.move,
    Kind.COMPENSATE: _Run.undo,
}


def _off(what: str, found: object, wanted: object) -> str | None:
    return None if found == wanted else f"its {what} is {_said(found)}, not {_said(wanted)}"


def _said(value: object) -> str:
    return repr(_text(value)) if isinstance(value, str) else repr(value)


def _text(member: object) -> str:
    """The word of an enum member; a bare word, which history gives where the spec knows none, is its own."""
    return word(member) if isinstance(member, Enum) else str(member)
