"""Undoing asked for, be it back to a state or before a cancel: its first step, with its plan in head and queue."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import msgspec

from .codec import pack
from .errors import IllegalTransition, NotRunning, StoreError, UnknownState, WorkflowError
from .kernel import noted
from .owed import Body, Desk, Held, Step, body_of
from .place import leased, put_back
from .queue import proceed
from .record import QUEUE, Due, Kind, Line, Loaded, Status
from .stack import base, bottom, today, undo
from .timer import Turn
from .view import state

TAKEN_UP = pack({"compensate": True})
"""Payload of the `retry` line of a `compensate` that only went on with an undoing."""
WITHDRAWN = pack({"cancel": True})
"""Payload of the first line of a cancel that undoes everything first."""


def compensate(desk: Desk, loaded: Loaded, to: str, key: str | None) -> Generator[Any, Any, Step | WorkflowError]:
    """The first step of undoing entries until the topmost `to` below is the state again.

    Effects of entries that stay keep their place in the queue and run first; those of undone
    entries are dropped, with the events they returned.
    """
    spec, head, due = desk.spec, loaded.head, loaded.effects
    if head.status not in (Status.RUNNING, Status.FINISHED, Status.FAILED):
        return NotRunning(head.id, Status(head.status), head.reason)
    if due is not None and not _legible(due):
        return _illegible(loaded)
    if due is not None and _gave_up(loaded, due) and today(spec, head.state) == to:
        return _taken_up(desk, loaded, due, key, TAKEN_UP, None)
    found = yield from base(spec, head, to, desk.peek)
    if found is None:
        why = f"no entry of {to!r} lies below the present one, so it cannot be undone to"
        return IllegalTransition(head.id, state(spec, head), None, (), why)
    if isinstance(found, UnknownState):
        return found
    goal, lowest = found
    if goal.seq > head.goal > 0:
        # What that undoing dropped cannot be had again, so it may only be taken further.
        why = f"an undoing below {to!r} has begun (to line {head.goal}); go on with it"
        return IllegalTransition(head.id, state(spec, head), None, (), why)
    if due is not None and _stays(loaded, due, lowest.seq):
        place = loaded.queue[0]
        if due.held and place.kind != Kind.COMPENSATE:
            return NotRunning(head.id, Status(head.status), head.reason)
    return (yield from _undone(desk, loaded, goal, lowest.seq, key, None, None))


def withdraw(desk: Desk, loaded: Loaded, reason: str, key: str | None) -> Generator[Any, Any, Step | WorkflowError]:
    """The first step of undoing everything, the end of which is a cancel; that cancel where nothing is to be undone.

    Effects not begun are dropped, those of the first entry too; compensators of an undoing that
    has begun run first.
    """
    head, due = loaded.head, loaded.effects
    if due is not None and not _legible(due):
        return _illegible(loaded)
    if due is not None and _gave_up(loaded, due) and head.top == 1:
        return _taken_up(desk, loaded, due, key, WITHDRAWN, reason)
    found = yield from bottom(desk.spec, head, desk.peek)
    if isinstance(found, UnknownState):
        return found
    if found is not None:
        return (yield from _undone(desk, loaded, found[0], 1, key, WITHDRAWN, reason))
    turn = Turn()
    rows = yield desk.rows()
    turn.end(rows)
    line, after = noted(
        head, Kind.CANCEL, desk.author, status=Status.CANCELLED, reason=reason or None, payload=WITHDRAWN, key=key
    )
    return Step(after, (line,), held=False, void=turn.drops)


def _undone(
    desk: Desk, loaded: Loaded, goal: Line, lowest: int, key: str | None, mark: str | None, cancel: str | None
) -> Generator[Any, Any, Step | WorkflowError]:
    """Pop what lies above `goal` up to the first compensator; effects of entries from line `lowest` on are dropped."""
    head, due, turn = loaded.head, loaded.effects, Turn()
    stays = due is not None and _stays(loaded, due, lowest)
    body = Body() if due is None else _without(body_of(due), due, lowest, head.seq, stays=stays)
    body = msgspec.structs.replace(body, cancel=body.cancel if cancel is None else cancel)
    lines, after = yield from undo(desk.spec, head, goal.seq, body.void, desk.author, desk.peek, key)
    lines[0] = msgspec.structs.replace(lines[0], payload=mark)
    error = yield from turn.undone(desk.spec, lines, after, desk.peek, desk.now, ends=body.cancel is not None)
    if error is not None:
        return error
    if lines[-1].owes:
        body = msgspec.structs.replace(body, plan=lines[-1].seq)
    if due is None:
        empty = Due(workflow=head.workflow, id=head.id, name=QUEUE, at=desk.now, seq=0)
        step = yield from proceed(desk, Held(head, empty, (), True), after, lines, body, 1, turn)
        return msgspec.structs.replace(step, held=_freed(loaded, step))
    place = loaded.queue[0]
    held = Held(head, due, loaded.queue, len(loaded.queue) < 2)
    if not stays:
        step = yield from proceed(desk, held, after, lines, body, 1, turn)
    elif due.held:
        step = Step(after, tuple(lines), leased(desk, place, body, due.number), None, held.lines, False)
    else:
        put = put_back(due, body, due.attempt, due.number)
        at = due.at if due.token is None else None  # a dead owner's lease does not count
        step = Step(after, tuple(lines), msgspec.structs.replace(put, at=at), None, held.lines, False)
    return msgspec.structs.replace(step, held=_freed(loaded, step), timers=turn.puts, void=turn.drops)


def _freed(loaded: Loaded, step: Step) -> bool | None:
    """What was held with the instance goes on with it."""
    due = loaded.effects
    stopped = loaded.head.status == Status.FAILED or (due is not None and due.held)
    return False if step.held is None and stopped else step.held


def _stays(loaded: Loaded, due: Due, lowest: int) -> bool:
    """Does the effect at the place stay: of an entry that does, or a compensator?"""
    place = loaded.queue[0]
    return due.number < len(place.owes) and (due.seq < lowest or place.kind == Kind.COMPENSATE)


def _legible(due: Due) -> bool:
    try:
        body_of(due)
    except msgspec.DecodeError:
        return False
    return True


def _illegible(loaded: Loaded) -> StoreError:
    return StoreError(f"what {loaded.head.id!r} owes cannot be read, so nothing can be undone safely")


def _gave_up(loaded: Loaded, due: Due) -> bool:
    """Are all entries popped that were to be, and is a compensator held that failed for good?"""
    place = loaded.queue[0]
    return due.held and not loaded.head.goal and place.kind == Kind.COMPENSATE and due.number < len(place.owes)


def _taken_up(desk: Desk, loaded: Loaded, due: Due, key: str | None, mark: str, cancel: str | None) -> Step:
    """All entries are popped, but a compensator had given up: go on with it, on the record."""
    line, head = noted(loaded.head, Kind.RETRY, desk.author, status=Status.RUNNING, payload=mark, key=key)
    body = body_of(due)
    body = msgspec.structs.replace(body, error=None, cancel=body.cancel if cancel is None else cancel)
    put = leased(desk, loaded.queue[0], body, due.number)
    return Step(head, (line,), put, False, loaded.queue, False)


def _without(body: Body, due: Due, lowest: int, last: int, *, stays: bool) -> Body:
    """The body once the entries from line `lowest` on are undone."""
    attempted = due.number > 0 or due.attempt > 0 or body.begun
    start = max(lowest, due.seq + 1 if attempted else due.seq)
    return msgspec.structs.replace(
        body,
        error=None,
        begun=body.begun and stays,
        events=tuple(e for e in body.events if e.origin < lowest),
        void=(*body.void, (start, last + 1)),
    )
