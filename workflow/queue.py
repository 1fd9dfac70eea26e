"""What an instance owes, and what comes next: the queue of effects as data.

The queue is made of the lines that owe effects, in order; the one due row named `effects` holds the
place (line, number) of the first unfinished effect. Its body keeps what else waits there: the last
error, events that hooks returned, and what an undoing has dropped. Everything here is pure;
generators yield an awaitable where somebody must be asked (a guard, or the store for a line).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from .codec import Codec, clean, pack
from .errors import GuardError, IllegalTransition, InvalidContext, UnknownState, WorkflowError
from .kernel import Accepted, AnySpec, Author, judge, moved, noted
from .record import QUEUE, Change, Due, Head, Kind, Lease, Line, Loaded, Put, Status
from .stack import Peek, Spans, undo, within

More: TypeAlias = Callable[[int], Awaitable[Line | None]]
"""Reads the first owing line after the one with this number."""
Thinking: TypeAlias = Generator[Awaitable[Any], Any, "Step"]


class Fault(Struct, frozen=True, omit_defaults=True, gc=False):
    """What went wrong at the last attempt, bounded in size."""

    type: str
    message: str
    traceback: str = ""

    def __str__(self) -> str:
        """As a reason: type and message."""
        return f"{self.type}: {self.message}" if self.message else self.type


class Returned(Struct, frozen=True, omit_defaults=True, gc=False):
    """An event that a hook returned, waiting to be judged."""

    event: str
    hook: str
    """Name of the hook that returned it."""
    origin: int
    """The line whose hook returned it."""
    after: int
    """Judged once the effects of this line are settled."""
    chain: int
    payload: str | None = None


class Body(Struct, frozen=True, omit_defaults=True, gc=False):
    """What the effects row carries beside the place."""

    error: Fault | None = None
    events: tuple[Returned, ...] = ()
    void: Spans = ()
    """Effects of lines in these spans were dropped by an undoing; its own lines are exempt."""
    plan: int = 0
    """The last line of an undoing that owes compensators."""
    begun: bool = False
    """The effect at the place was handed back after it had begun."""


class Strange(WorkflowError):
    """A returned event that this code does not know."""


class Held(Struct, frozen=True, gc=False):
    """What the owner of a queue knows of it."""

    head: Head
    due: Due
    lines: tuple[Line, ...]
    """Owing lines in order; the first is the one at the place."""
    whole: bool
    """No owing line exists beyond `lines`."""


class Step(Struct, frozen=True, gc=False):
    """What one commit writes, and what its author knows of the queue afterwards."""

    head: Head
    lines: tuple[Line, ...] = ()
    put: Put | None = None
    """The effects row from now on; None: there is none."""
    held: bool | None = None
    known: tuple[Line, ...] = ()
    whole: bool = True
    fault: Fault | None = None
    """Something failed, or a returned event was refused; `put` says when it is tried again."""
    culprit: str = ""
    """Name of the hook that failed, or that returned the event."""


class Desk(Struct, frozen=True):
    """Everything a step needs from outside, as values and readers."""

    spec: AnySpec
    author: Author
    token: str | None
    """Who leases the next effect; None: nobody, it is due now."""
    lease: timedelta
    now: datetime
    dice: float
    peek: Peek
    more: More


_bodies: Codec[Body] = Codec(Body)


def body_of(due: Due | None) -> Body:
    """What the effects row carries."""
    return Body() if due is None or due.body is None else _bodies.decode(due.body)


def undoing(loaded: Loaded) -> bool:
    """Is an undoing under way: entries still to be popped, or compensators not yet settled?"""
    if loaded.head.goal:
        return True
    due = loaded.effects
    if due is None:
        return False
    try:
        plan = body_of(due).plan
    except msgspec.DecodeError:
        return False  # set aside, it blocks nobody
    return plan > due.seq or (plan == due.seq and due.number < _owed(loaded.queue, due))


def settled(loaded: Loaded, seq: int) -> bool:
    """Are the effects that line `seq` owed done (or dropped)?"""
    due = loaded.effects
    if due is None or due.seq > seq:
        return True
    return due.seq == seq and due.number >= _owed(loaded.queue, due)


def lease_of(due: Due) -> Lease:
    """What a commit that builds on this sight of the row must still find."""
    return Lease(due.token, due.seq, due.number, due.attempt)


def owe(lessee: str | None, lease: timedelta, lines: Sequence[Line], seen: Due | None) -> tuple[Put, ...]:
    """The row that new lines write if there is none: leased to the sender if he saw no queue."""
    first = next((line for line in lines if line.owes), None)
    if first is None:
        return ()
    if seen is not None or lessee is None:
        return (Put(name=QUEUE, seq=first.seq, version=first.version, absent=True),)
    return (Put(QUEUE, first.seq, 0, 1, first.version, lessee, False, None, lease, None, True),)


def change(before: Held, step: Step) -> Change:
    """The step as one change of the contract."""
    drops, puts = ((QUEUE,), ()) if step.put is None else ((), (step.put,))
    head, lease = step.head if step.lines else None, lease_of(before.due)
    now = before.head
    return Change(now.workflow, now.id, now.seq, step.lines, head, lease, puts, drops, step.held)


# --- the owner's steps ----------------------------------------------------------------------------


def succeed(
    desk: Desk, held: Held, context: str | None, hook: str, returned: Sequence[tuple[str, str | None]]
) -> Thinking:
    """The effect at the place is done; `context` is what `m.update` made of the head's (None: nothing)."""
    place = held.lines[0]
    body = body_of(held.due)
    seq, chain = place.seq, place.chain + 1
    events = tuple(Returned(event, hook, seq, seq, chain, payload) for event, payload in returned)
    body = msgspec.structs.replace(body, error=None, begun=False, events=body.events + events)
    head, lines = held.head, []
    if context is not None and context != head.context:
        line, head = noted(head, Kind.UPDATE, desk.author, context=context)
        lines = [line]
    if held.due.number + 1 < len(place.owes):
        put = leased(desk, place, body, held.due.number + 1)
        return Step(head, tuple(lines), put, None, held.lines, held.whole)
    return (yield from proceed(desk, held, head, lines, body, 1))


def plainly_ended(held: Held) -> Step | None:
    """What `succeed` comes to where nothing was returned or changed and the last effect known is done; None
    where only `succeed` can tell."""
    due, lines = held.due, held.lines
    alone = held.whole and len(lines) == 1 and due.number + 1 == len(lines[0].owes)
    return Step(held.head) if alone and due.body is None and not held.head.goal else None


def again(desk: Desk, held: Held) -> Thinking:
    """Only returned events are left at the place: judge them once more."""
    return (yield from proceed(desk, held, held.head, [], body_of(held.due), held.due.attempt))


def fail(desk: Desk, held: Held, fault: Fault, culprit: str, pause: timedelta | None) -> Step:
    """The effect at the place failed: due again after `pause`, or (None) given up."""
    body = msgspec.structs.replace(body_of(held.due), error=fault)
    due = held.due
    return _failed(desk, held.head, [], put_back(due, body, due.attempt, due.number), fault, culprit, pause, held)


def hand_back(held: Held, *, begun: bool) -> Step:
    """Give the lease up as if it had never been taken; only that the effect had begun is kept."""
    due, body = held.due, body_of(held.due)
    body = msgspec.structs.replace(body, begun=begun or body.begun)
    return Step(held.head, (), put_back(due, body, max(0, due.attempt - 1), due.number), None, held.lines)


def set_aside(held: Held, fault: Fault, culprit: str) -> Step:
    """This code does not know the piece: hold it, where it is in nobody's way."""
    due = held.due
    body: str | None
    try:
        body = pack(msgspec.structs.replace(body_of(due), error=fault))
    except msgspec.DecodeError:
        body = due.body
    put = Put(
        name=due.name,
        seq=due.seq,
        number=due.number,
        attempt=max(0, due.attempt - 1),
        version=due.version,
        held=True,
        body=body,
    )
    return Step(held.head, (), put, None, held.lines, held.whole, fault, culprit)


def proceed(desk: Desk, held: Held, head: Head, lines: list[Line], body: Body, attempt: int) -> Thinking:
    """All effects of the line at the place are settled: what comes next?"""
    seq = held.due.seq
    while True:
        following = yield from _following(desk, held, lines, body.void)
        if head.goal and following is None:
            undone, head = yield from undo(desk.spec, head, head.goal, body.void, desk.author, desk.peek)
            lines += undone
            body = msgspec.structs.replace(body, plan=undone[-1].seq if undone[-1].owes else body.plan)
        elif body.events and not head.goal and (following is None or max(body.plan, body.events[0].after) <= seq):
            first = body.events[0]
            verdict = yield from _heard(desk, head, first)
            if not isinstance(verdict, Accepted):
                return _unheard(desk, held, head, lines, body, verdict, attempt)
            line, head = moved(desk.spec, head, verdict, desk.author, payload=first.payload, chain=first.chain)
            lines.append(line)
            body, attempt = _behind(body, line), 1
        elif following is not None:
            put = leased(desk, following, body)
            known: tuple[Line, ...] = (following,)
            if held.whole:
                known = tuple(line for line in (*held.lines, *lines) if line.owes and line.seq >= following.seq)
            return Step(head, tuple(lines), put, None, known, held.whole)
        else:
            return Step(head, tuple(lines))


def _following(
    desk: Desk, held: Held, made: Sequence[Line], void: Spans
) -> Generator[Awaitable[Any], Any, Line | None]:
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


def _heard(desk: Desk, head: Head, event: Returned) -> Generator[Awaitable[Any], Any, Accepted | WorkflowError]:
    """Judge a returned event like any other."""
    spec = desk.spec
    try:
        member = spec.event_of(event.event)
        payload = None if event.payload is None else spec.payload_codec(event.event).decode(event.payload)
    except (KeyError, msgspec.DecodeError) as e:
        return Strange(f"event {event.event!r}, which a hook returned, does not fit the spec: {e}")
    if event.chain > spec.max_chain:
        here = spec.state_of(head.state)
        return IllegalTransition(head.id, here, member, (), f"more than max_chain={spec.max_chain} events in a row")
    verdict = yield from judge(spec, head, event.event, payload, desk.now)
    return verdict if isinstance(verdict, Accepted) else verdict.error


def _unheard(
    desk: Desk, held: Held, head: Head, lines: list[Line], body: Body, error: WorkflowError, attempt: int
) -> Step:
    """A returned event was refused, or nobody could tell whether to."""
    event = body.events[0]
    fault = Fault(type(error).__name__, clean(str(error)))
    body = msgspec.structs.replace(body, error=fault)
    put = put_back(held.due, body, attempt, len(held.lines[0].owes) if held.lines else 0)
    if isinstance(error, (Strange, UnknownState)) or isinstance(error.__cause__, msgspec.DecodeError):
        put = msgspec.structs.replace(put, attempt=max(0, attempt - 1), held=True)
        return Step(head, tuple(lines), put, None, held.lines, held.whole, fault, event.hook)
    if isinstance(error, (GuardError, InvalidContext)):
        pause = desk.spec.retry.pause(attempt, desk.dice) if attempt < desk.spec.retry.attempts else None
        return _failed(desk, head, lines, put, fault, event.hook, pause, held)
    line, head = noted(
        head,
        Kind.REFUSED,
        desk.author,
        status=Status.FAILED,
        reason=fault.message,
        event=event.event,
        payload=event.payload,
        chain=event.chain,
    )
    put = msgspec.structs.replace(put, held=True)
    return Step(head, (*lines, line), put, True, held.lines, held.whole, fault, event.hook)


def _failed(
    desk: Desk,
    head: Head,
    lines: list[Line],
    put: Put,
    fault: Fault,
    culprit: str,
    pause: timedelta | None,
    held: Held,
) -> Step:
    if pause is not None:
        put = msgspec.structs.replace(put, wait=pause)
        return Step(head, tuple(lines), put, None, held.lines, held.whole, fault, culprit)
    line, head = noted(head, Kind.FAIL, desk.author, status=Status.FAILED, reason=f"{culprit}: {fault}")
    put = msgspec.structs.replace(put, held=True)
    return Step(head, (*lines, line), put, True, held.lines, held.whole, fault, culprit)


def _behind(body: Body, line: Line) -> Body:
    """The first event became `line`; those behind it wait for that line's effects, if it owes any."""
    rest = body.events[1:]
    if line.owes:
        rest = tuple(msgspec.structs.replace(e, after=max(e.after, line.seq)) for e in rest)
    return msgspec.structs.replace(body, events=rest)


# --- rows -----------------------------------------------------------------------------------------


def leased(desk: Desk, line: Line, body: Body, number: int = 0) -> Put:
    """The row at this effect, leased to whoever writes it; work above his version is nobody's yet."""
    mine = desk.token is not None and line.version <= desk.spec.version
    return Put(
        name=QUEUE,
        seq=line.seq,
        number=number,
        attempt=1 if mine else 0,
        version=line.version,
        token=desk.token if mine else None,
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


def _owed(queue: Sequence[Line], due: Due) -> int:
    """How many effects the line at the place owes."""
    return len(queue[0].owes) if queue and queue[0].seq == due.seq else due.number + 1
