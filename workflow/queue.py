"""The owner's steps through the queue of effects: what is done, failed or handed back, and what comes next.

Everything here is pure; generators yield an awaitable where somebody must be asked (a guard, or the
store for a line).
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator, Sequence
from datetime import timedelta
from typing import Any, TypeAlias

import msgspec

from .codec import clean, pack
from .errors import GuardError, IllegalTransition, InvalidContext, UnknownState, WorkflowError
from .kernel import Accepted, judge, moved, noted
from .owed import Body, Desk, Fault, Held, Returned, Step, Strange, body_of, lease_of
from .place import following, halted, heard_next, leased, over, parked, put_back
from .record import QUEUE, Change, Head, Kind, Line, Put, Status
from .stack import undo
from .timer import Turn
from .word import word

Thinking: TypeAlias = Generator[Awaitable[Any], Any, "Step"]


def change(before: Held, step: Step) -> Change:
    """The step as one change of the contract."""
    drops = (QUEUE, *step.void) if step.put is None else step.void
    head, lease = step.head if step.lines else None, lease_of(before.due)
    now = before.head
    return Change(now.workflow, now.id, now.seq, step.lines, head, lease, puts(step), drops, step.held)


def puts(step: Step) -> tuple[Put, ...]:
    """All due rows that the step writes."""
    return step.timers if step.put is None else (step.put, *step.timers)


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
        put = leased(desk, place, body, held.due.number + 1, hold=halted(head))
        return Step(head, tuple(lines), put, None, held.lines, held.whole)
    return (yield from proceed(desk, held, head, lines, body, 1))


def unwanted(desk: Desk, held: Held, hook: str, returned: Sequence[tuple[str, str | None]], *, updated: bool) -> Step:
    """The effect at the place was done, but meanwhile all was cancelled: what it wants is dropped, on the record."""
    if not (returned or updated):
        return Step(held.head)
    wanted = (["its update"] if updated else []) + [f"event {event!r}" for event, _ in returned]
    event, payload = returned[0] if returned else (None, None)
    why = f"{hook} ended after the cancel; dropped: {', '.join(wanted)}"
    line, head = noted(held.head, Kind.REFUSED, desk.author, reason=why, event=event, payload=payload)
    return Step(head, (line,))


def plainly_ended(held: Held) -> Step | None:
    """What `succeed` comes to where nothing was returned or changed and the last effect known is done; None
    where only `succeed` can tell."""
    due, lines = held.due, held.lines
    alone = held.whole and len(lines) == 1 and due.number + 1 == len(lines[0].owes)
    return Step(held.head) if alone and due.body is None and not held.head.goal else None


def again(desk: Desk, held: Held) -> Thinking:
    """Only returned events are left at the place: judge them once more."""
    return (yield from proceed(desk, held, held.head, [], body_of(held.due), held.due.attempt))


def fail(desk: Desk, held: Held, fault: Fault, culprit: str, pause: timedelta | None) -> Thinking:
    """The effect at the place failed: due again after `pause`, or (None) given up."""
    head, due = held.head, held.due
    if over(head):
        return Step(head, fault=fault, culprit=culprit)
    body = body_of(due)
    event = desk.spec.on_failure
    place = held.lines[0]
    owed = due.number < len(place.owes)
    undoing = place.kind == Kind.COMPENSATE or head.goal or body.plan > place.seq
    if pause is None and event is not None and owed and not undoing and head.status != Status.FAILED:
        instead = Returned(word(event), culprit, place.seq, place.seq, place.chain + 1)
        step = yield from _given_up(desk, held, body, fault, instead)
        if isinstance(step, Step):
            return step
        why = clean(f"{fault.message}; nor was on_failure={instead.event!r} taken: {step}")
        fault = msgspec.structs.replace(fault, message=why)
    body = msgspec.structs.replace(body, error=fault)
    return _failed(desk, head, [], put_back(due, body, due.attempt, due.number), fault, culprit, pause, held)


def _given_up(
    desk: Desk, held: Held, body: Body, fault: Fault, instead: Returned
) -> Generator[Awaitable[Any], Any, Step | WorkflowError]:
    """The effect at the place is given up on the record, the spec's event for that is sent, and the queue goes
    on; or why that event is not taken. While paused the event waits."""
    place, number, turn = held.lines[0], held.due.number + 1, Turn()
    line, head = noted(held.head, Kind.FAIL, desk.author, reason=f"{instead.hook}: {fault}")
    lines = [line]
    body = msgspec.structs.replace(body, error=None, begun=False, events=(instead, *body.events))
    if not halted(head):
        verdict = yield from _heard(desk, head, instead)
        if not isinstance(verdict, Accepted):
            return verdict
        line, head = moved(desk.spec, head, verdict, desk.author, chain=instead.chain)
        lines.append(line)
        turn.moved(verdict)
        body = _behind(body, line)
    if number < len(place.owes):
        put = leased(desk, place, body, number, hold=halted(head))
        known = (*held.lines, *(line for line in lines if line.owes)) if held.whole else held.lines
        step = Step(head, tuple(lines), put, None, known, held.whole, timers=turn.puts, void=turn.drops)
    else:
        step = yield from proceed(desk, held, head, lines, body, 1, turn)
    if step.fault is not None:
        return step
    return msgspec.structs.replace(step, fault=fault, culprit=instead.hook, goes_on=True)


def hand_back(held: Held, *, begun: bool) -> Step:
    """Give the lease up as if it had never been taken; only that the effect had begun is kept."""
    if over(held.head):
        return Step(held.head)
    due, body = held.due, body_of(held.due)
    body = msgspec.structs.replace(body, begun=begun or body.begun)
    put = put_back(due, body, max(0, due.attempt - 1), due.number)
    return Step(held.head, (), msgspec.structs.replace(put, held=halted(held.head)), None, held.lines)


def set_aside(held: Held, fault: Fault, culprit: str) -> Step:
    """This code does not know the piece: hold it, where it is in nobody's way."""
    if over(held.head):
        return Step(held.head)
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


def proceed(
    desk: Desk, held: Held, head: Head, lines: list[Line], body: Body, attempt: int, turn: Turn | None = None
) -> Thinking:
    """All effects of the line at the place are settled: what comes next? `turn`: what `lines` did to timeouts."""
    if over(head):
        return Step(head, tuple(lines))
    if halted(head):
        return (yield from parked(desk, held, head, lines, body, hold=True))
    turn = Turn() if turn is None else turn
    step = yield from _proceed(desk, held, head, lines, body, attempt, turn)
    return msgspec.structs.replace(step, timers=turn.puts, void=turn.drops)


def _proceed(desk: Desk, held: Held, head: Head, lines: list[Line], body: Body, attempt: int, turn: Turn) -> Thinking:
    seq = held.due.seq
    while True:
        after = yield from following(desk, held, lines, body.void)
        if head.goal and after is None:
            undone, below = yield from undo(desk.spec, head, head.goal, body.void, desk.author, desk.peek)
            ends = body.cancel is not None
            error = yield from turn.undone(desk.spec, undone, below, desk.peek, desk.now, ends=ends)
            if error is not None:
                return _unheard(desk, held, head, lines, body, error, attempt)
            lines, head = lines + undone, below
            body = msgspec.structs.replace(body, plan=undone[-1].seq if undone[-1].owes else body.plan)
        elif heard_next(head, body, after, seq):
            first = body.events[0]
            verdict = yield from _heard(desk, head, first)
            if not isinstance(verdict, Accepted):
                return _unheard(desk, held, head, lines, body, verdict, attempt)
            line, head = moved(desk.spec, head, verdict, desk.author, payload=first.payload, chain=first.chain)
            lines.append(line)
            turn.moved(verdict)
            body, attempt = _behind(body, line), 1
        elif after is not None:
            put = leased(desk, after, body)
            known: tuple[Line, ...] = (after,)
            if held.whole:
                known = tuple(line for line in (*held.lines, *lines) if line.owes and line.seq >= after.seq)
            return Step(head, tuple(lines), put, None, known, held.whole)
        elif body.cancel is not None:
            rows = yield desk.rows()
            turn.end(rows)
            line, head = noted(head, Kind.CANCEL, desk.author, status=Status.CANCELLED, reason=body.cancel or None)
            return Step(head, (*lines, line), held=False)
        else:
            return Step(head, tuple(lines))


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
    """A returned event was refused, or nobody could tell whether to (nor when a timeout is due)."""
    culprit = error.callback if not body.events and isinstance(error, GuardError) else body.events[0].hook
    fault = Fault(type(error).__name__, clean(str(error)))
    body = msgspec.structs.replace(body, error=fault)
    put = put_back(held.due, body, attempt, len(held.lines[0].owes) if held.lines else 0)
    if isinstance(error, (Strange, UnknownState)) or isinstance(error.__cause__, msgspec.DecodeError):
        put = msgspec.structs.replace(put, attempt=max(0, attempt - 1), held=True)
        return Step(head, tuple(lines), put, None, held.lines, held.whole, fault, culprit)
    if isinstance(error, (GuardError, InvalidContext)):
        pause = desk.spec.retry.pause(attempt, desk.dice) if attempt < desk.spec.retry.attempts else None
        return _failed(desk, head, lines, put, fault, culprit, pause, held)
    event = body.events[0]
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
    return Step(head, (*lines, line), put, True, held.lines, held.whole, fault, culprit)


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
        put = msgspec.structs.replace(put, wait=pause, held=halted(head))
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
