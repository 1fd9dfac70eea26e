"""Compensation asked for: the first step of undoing entries, with its plan in the head and the queue."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import msgspec

from .errors import IllegalTransition, NotRunning, StoreError, UnknownState, WorkflowError
from .kernel import noted
from .queue import Body, Desk, Held, Step, body_of, leased, proceed, put_back
from .record import QUEUE, Due, Kind, Loaded, Status
from .stack import base, today, undo
from .view import state


def compensate(desk: Desk, loaded: Loaded, to: str, key: str | None) -> Generator[Any, Any, Step | WorkflowError]:
    """The first step of undoing entries until the topmost `to` below is the state again.

    Effects of entries that stay keep their place in the queue and run first; those of undone
    entries are dropped, with the events they returned.
    """
    spec, head, due = desk.spec, loaded.head, loaded.effects
    if head.status not in (Status.RUNNING, Status.FINISHED, Status.FAILED):
        return NotRunning(head.id, Status(head.status), head.reason)
    if due is not None and not _legible(due):
        return StoreError(f"what {head.id!r} owes cannot be read, so nothing can be undone safely")
    if due is not None and _gave_up(loaded, due) and today(spec, head.state) == to:
        return _taken_up(desk, loaded, due, key)
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
    if due is None:
        lines, after = yield from undo(spec, head, goal.seq, (), desk.author, desk.peek, key)
        empty = Due(workflow=head.workflow, id=head.id, name=QUEUE, at=desk.now, seq=0)
        plan = lines[-1].seq if lines[-1].owes else 0
        return (yield from proceed(desk, Held(head, empty, (), True), after, lines, Body(plan=plan), 1))
    place, count = loaded.queue[0], len(loaded.queue[0].owes)
    stays = due.number < count and (due.seq < lowest.seq or place.kind == Kind.COMPENSATE)
    if stays and due.held and place.kind != Kind.COMPENSATE:
        return NotRunning(head.id, Status(head.status), head.reason)
    body = _without(body_of(due), due, lowest.seq, head.seq, stays=stays)
    lines, after = yield from undo(spec, head, goal.seq, body.void, desk.author, desk.peek, key)
    if lines[-1].owes:
        body = msgspec.structs.replace(body, plan=lines[-1].seq)
    held = Held(head, due, loaded.queue, len(loaded.queue) < 2)
    if not stays:
        step = yield from proceed(desk, held, after, lines, body, 1)
    elif due.held:
        step = Step(after, tuple(lines), leased(desk, place, body, due.number), None, held.lines, False)
    else:
        put = put_back(due, body, due.attempt, due.number)
        at = due.at if due.token is None else None  # a dead owner's lease does not count
        step = Step(after, tuple(lines), msgspec.structs.replace(put, at=at), None, held.lines, False)
    return msgspec.structs.replace(step, held=False if step.held is None and due.held else step.held)


def _legible(due: Due) -> bool:
    try:
        body_of(due)
    except msgspec.DecodeError:
        return False
    return True


def _gave_up(loaded: Loaded, due: Due) -> bool:
    """Are all entries popped that were to be, and is a compensator held that failed for good?"""
    place = loaded.queue[0]
    return due.held and not loaded.head.goal and place.kind == Kind.COMPENSATE and due.number < len(place.owes)


def _taken_up(desk: Desk, loaded: Loaded, due: Due, key: str | None) -> Step:
    """All entries are popped, but a compensator had given up: go on with it, on the record."""
    line, head = noted(loaded.head, Kind.RETRY, desk.author, status=Status.RUNNING)
    line = msgspec.structs.replace(line, key=key)
    body = msgspec.structs.replace(body_of(due), error=None)
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
