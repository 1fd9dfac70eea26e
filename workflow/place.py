"""The effects row as it is written: leased, put back, or left lying at what comes next. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Generator, Sequence
from datetime import timedelta
from typing import Any

import msgspec

from .codec import pack
from .owed import Body, Desk, Held, Step
from .record import QUEUE, Due, Head, Kind, Line, Put, Status
from .stack import Spans, within


def halted(head: Head) -> bool:
    """Is nothing to go on for now: what comes next is held?"""
    return head.status in (Status.PAUSED, Status.FAILED)


def over(head: Head) -> bool:
    """Is nothing to go on any more: what is left is dropped?"""
    return head.status in (Status.CANCELLED, Status.ERASED)


def owe(lessee: str | None, lease: timedelta, lines: Sequence[Line], seen: Due | None) -> tuple[Put, ...]:
    """The row that new lines write if there is none: leased to the sender if he saw no queue."""
    first = next((line for line in lines if line.owes), None)
    if first is None:
        return ()
    if seen is not None or lessee is None:
        return (Put(name=QUEUE, seq=first.seq, version=first.version, absent=True),)
    return (Put(QUEUE, first.seq, 0, 1, first.version, lessee, False, None, lease, None, True),)


def leased(desk: Desk, line: Line, body: Body, number: int = 0, *, hold: bool = False) -> Put:
    """The row at this effect, leased to whoever writes it; work above his version, or held, is nobody's yet."""
    mine = desk.token is not None and line.version <= desk.spec.version and not hold
    return Put(
        name=QUEUE,
        seq=line.seq,
        number=number,
        attempt=1 if mine else 0,
        version=line.version,
        token=desk.token if mine else None,
        held=hold,
        body=None if body == Body() else pack(body),
        wait=desk.lease if mine else timedelta(0),
    )


def put_back(due: Due, body: Body, attempt: int, number: int) -> Put:
    """The row as it is, nobody's and due now."""
    return Put(
        name=due.name,
        seq=due.seq,
        number=number,
        attempt=attempt,
        version=due.version,
        body=None if body == Body() else pack(body),
    )


def parked(
    desk: Desk, held: Held, head: Head, made: Sequence[Line], body: Body, *, hold: bool
) -> Generator[Awaitable[Any], Any, Step]:
    """All effects of the line at the place are settled, and what comes next is for others, or (`hold`) for
    later: the row as it lies then. Nothing is judged or undone here."""
    after = yield from following(desk, held, made, body.void)
    if pending(head, body, after, held.due.seq):
        put = put_back(held.due, body, 0, len(held.lines[0].owes))
    elif after is not None:
        put = Put(QUEUE, after.seq, version=after.version, body=None if body == Body() else pack(body))
    else:
        return Step(head, tuple(made))
    return Step(head, tuple(made), msgspec.structs.replace(put, held=hold), None, held.lines, held.whole)


def pending(head: Head, body: Body, after: Line | None, seq: int) -> bool:
    """Is there something to decide before the effects of the next line: an entry to undo, a returned event, the
    end of a cancel?"""
    if head.goal or body.cancel is not None:
        return after is None
    return heard_next(head, body, after, seq)


def heard_next(head: Head, body: Body, after: Line | None, seq: int) -> bool:
    """Is it the turn of a returned event, once the effects of line `seq` are settled?"""
    return bool(body.events) and not head.goal and (after is None or max(body.plan, body.events[0].after) <= seq)


def following(desk: Desk, held: Held, made: Sequence[Line], void: Spans) -> Generator[Awaitable[Any], Any, Line | None]:
    """The next owing line after the place that was not dropped."""
    seq = held.due.seq
    for line in held.lines:
        if line.seq > seq and not _dropped(line, void):
            return line
        seq = max(seq, line.seq)
    while not held.whole:
        found: Line | None = yield desk.more(seq)
        if found is None:
            break
        if not _dropped(found, void):
            return found
        seq = found.seq
    return next((line for line in made if line.owes and line.seq > held.due.seq), None)


def _dropped(line: Line, void: Spans) -> bool:
    return line.kind != Kind.COMPENSATE and within(void, line.seq)
