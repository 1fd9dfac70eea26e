"""Pure judgement: (spec, head, event, payload, now) -> decision, as data.

No await, no clock, no dice. A guard that is async makes `judge` yield its awaitable and go on with
what is sent back; whoever may wait drives it (`commit.think`).
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Generator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias, cast

import msgspec
from attrs import evolve
from msgspec import Struct

from .codec import Unstorable, said
from .errors import (
    Finished,
    GuardError,
    GuardRejected,
    IllegalTransition,
    InvalidContext,
    NotRunning,
    UnknownState,
    WorkflowError,
)
from .record import Head, Kind, Line, Put, Status
from .spec import Spec
from .table import Arc, Timer
from .word import LONGEST, Deny, Move, word

AnySpec: TypeAlias = Spec[Any, Any, Any]
Thinking: TypeAlias = Generator[Awaitable[Any], Any, "Verdict"]
_NOW = timedelta(0)


class Accepted(Struct, frozen=True, gc=False):
    """The edge that wins, the context it makes (JSON; None: unchanged), and the timeouts that begin."""

    arc: Arc
    context: str | None = None
    timers: tuple[Put, ...] = ()


class Refused(Struct, frozen=True):
    """No edge may be taken, and why. A `GuardError` or `InvalidContext` says that nobody could tell."""

    error: WorkflowError


Verdict: TypeAlias = Accepted | Refused


class Author(Struct, frozen=True, gc=False):
    """Who writes: kept on each line."""

    commit_id: str
    token: str
    version: int


def straight(spec: AnySpec, head: Head, event: str) -> Accepted | None:
    """The verdict where nobody need be asked: the first edge has no guard, no assign, no function."""
    if head.status == "running":
        arcs = spec.tables.arcs.get(head.state)
        if arcs is not None:
            twins = arcs.get(event)
            if twins is not None and twins[0].plain:
                arc = twins[0]
                return Accepted(arc, None, _plainly(spec, arc.timers, head.seq + 1) if arc.timers else ())
    return None


def judge(spec: AnySpec, head: Head, event: str, payload: Any, now: datetime) -> Thinking:
    """The first edge in declared order for (state, event) whose guard passes wins."""
    closed = _closed(spec, head, event)
    if closed is not None:
        return Refused(closed)
    try:
        context = spec.context_codec.decode(head.context)
    except msgspec.DecodeError as e:
        return Refused(_because(InvalidContext(f"the stored context of {head.id!r} does not fit the spec: {e}"), e))
    reasons: list[str] = []
    for arc in _arcs(spec, head, event):
        move = _move(spec, head, arc, context, payload, now)
        if arc.guard is None:
            return _assigned(spec, head, arc, move)
        try:
            answer: object = arc.guard(move)
            if inspect.isawaitable(answer):
                answer = yield answer
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as e:  # noqa: BLE001  # whatever a guard raises is its author's error, told to the caller
            return Refused(_because(_guard_error(move, arc.guard, f"raised {_text(e)}"), e))
        if answer is True:
            return _assigned(spec, head, arc, move)
        if answer is False:
            reasons.append(f"{_name(arc.guard)} answered False")
        elif isinstance(answer, Deny):
            reasons.append(answer.reason)
        else:
            return Refused(_guard_error(move, arc.guard, f"answered {answer!r}, neither bool nor Deny"))
    here, taken = spec.state_of(head.state), spec.event_of(event)
    return Refused(GuardRejected(head.id, here, taken, spec.accepted(here), reasons))


def _closed(spec: AnySpec, head: Head, event: str) -> WorkflowError | None:
    try:
        here = spec.state_of(head.state)
    except KeyError:
        return UnknownState(head.workflow, head.id, head.state)
    if head.status == Status.FINISHED:
        return Finished(head.id, here, spec.event_of(event))
    if head.status != Status.RUNNING:
        return NotRunning(head.id, Status(head.status), head.reason)
    if not _arcs(spec, head, event):
        return IllegalTransition(head.id, here, spec.event_of(event), spec.accepted(here))
    return None


def _arcs(spec: AnySpec, head: Head, event: str) -> tuple[Arc, ...]:
    return spec.tables.arcs.get(word(spec.state_of(head.state)), {}).get(event, ())


def _move(spec: AnySpec, head: Head, arc: Arc, context: Any, payload: Any, now: datetime) -> Move[Any, Any, Any]:
    return Move(
        workflow=head.workflow,
        id=head.id,
        seq=head.seq + 1,
        source=spec.state_of(arc.source),
        event=spec.event_of(arc.event),
        target=spec.state_of(arc.target),
        context=context,
        at=now,
        payload=payload,
        changes=None,
    )


def _assigned(spec: AnySpec, head: Head, arc: Arc, move: Move[Any, Any, Any]) -> Verdict:
    if arc.assign is None:
        return _timed(spec, arc, None, move)
    try:
        made = arc.assign(move)
    except KeyboardInterrupt:
        raise
    except BaseException as e:  # noqa: BLE001  # as for guards
        return Refused(_because(_guard_error(move, arc.assign, f"raised {_text(e)}"), e))
    if inspect.iscoroutine(made):
        made.close()
        return Refused(_guard_error(move, arc.assign, "is async; an assign is a plain function"))
    try:
        text, copy = spec.context_codec.encode(made)
    except Unstorable as e:
        return Refused(_because(InvalidContext(f"{_name(arc.assign)} made a context for {head.id!r}: {e}"), e))
    return _timed(spec, arc, text, evolve(move, context=copy) if arc.timers else move)


def _timed(spec: AnySpec, arc: Arc, context: str | None, after: Move[Any, Any, Any]) -> Verdict:
    """The edge is taken; its target's timeouts are told by the move with the context it makes."""
    timers = timed(spec, arc.timers, after) if arc.timers else ()
    return Refused(timers) if isinstance(timers, GuardError) else Accepted(arc, context, timers)


def timed(spec: AnySpec, timers: Sequence[Timer], entry: Move[Any, Any, Any]) -> tuple[Put, ...] | GuardError:
    """The due rows of a state that was entered by this move."""
    puts: list[Put] = []
    for timer in timers:
        delay: object = timer.delay
        if callable(delay):
            try:
                delay = delay(entry)
            except KeyboardInterrupt:
                raise
            except BaseException as e:  # noqa: BLE001  # as for guards
                error = _guard_error(entry, timer.delay, f"raised {_text(e)}")
                error.__cause__ = e
                return error
        if delay is None:
            continue
        if isinstance(delay, datetime) and delay.tzinfo is not None:
            try:
                at = delay.astimezone(UTC)
            except OverflowError:  # a row that no store could read again would stop everybody's timers
                return _guard_error(entry, timer.delay, f"answered {delay!r}, which no calendar has in UTC")
            puts.append(Put(timer.row, entry.seq, version=spec.version, at=at))
        elif isinstance(delay, timedelta) and delay <= LONGEST:
            puts.append(Put(timer.row, entry.seq, version=spec.version, wait=max(delay, _NOW)))
        else:
            if inspect.iscoroutine(delay):
                delay.close()
            why = f"answered {delay!r}, neither timedelta (of 1,000 years at most), aware datetime nor None"
            return _guard_error(entry, timer.delay, why)
    return tuple(puts)


def _plainly(spec: AnySpec, timers: Sequence[Timer], seq: int) -> tuple[Put, ...]:
    """The same where no timer is told by a function."""
    return tuple(Put(timer.row, seq, version=spec.version, wait=cast("timedelta", timer.delay)) for timer in timers)


def _guard_error(move: Move[Any, Any, Any], callback: object, why: str) -> GuardError:
    return GuardError(move.id, move.source, move.event, _name(callback), why)


def _because(error: WorkflowError, cause: BaseException) -> WorkflowError:
    error.__cause__ = cause
    return error


def _name(callback: object) -> str:
    return str(getattr(callback, "__qualname__", callback))


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {said(error)}"


# --- lines ----------------------------------------------------------------------------------------


def begun(spec: AnySpec, id: str, context: str, now: datetime) -> tuple[Put, ...] | GuardError:
    """The timeouts of the initial state."""
    timers = spec.tables.timers.get(word(spec.initial), ())
    if not any(callable(timer.delay) for timer in timers):
        return _plainly(spec, timers, 1)
    value = spec.context_codec.decode(context)
    entry: Move[Any, Any, Any] = Move(
        workflow=spec.name,
        id=id,
        seq=1,
        source=None,
        event=None,
        target=spec.initial,
        context=value,
        at=now,
        changes=None,
    )
    return timed(spec, timers, entry)


def born(
    spec: AnySpec, id: str, context: str, labels: str | None, author: Author, key: str | None
) -> tuple[Line, Head]:
    """Line 1: the first entry."""
    state = word(spec.initial)
    line = Line(
        workflow=spec.name,
        id=id,
        seq=1,
        kind=Kind.START.value,
        source=None,
        event=None,
        target=state,
        status=Status.RUNNING.value,
        commit_id=author.commit_id,
        by=author.token,
        context_seq=1,
        key=key,
        context=context,
        labels=labels,
        below=0,
        owes=spec.tables.enter.get(state, ()),
        version=author.version,
    )
    head = Head(
        workflow=spec.name,
        id=id,
        seq=1,
        state=state,
        status=Status.RUNNING.value,
        context=context,
        context_seq=1,
        top=1,
        labels="{}" if labels is None else labels,
        version=author.version,
    )
    return line, head


def moved(
    spec: AnySpec,
    head: Head,
    verdict: Accepted,
    author: Author,
    *,
    key: str | None = None,
    payload: str | None = None,
    chain: int = 0,
    kind: str = "event",
) -> tuple[Line, Head]:
    """The line of an accepted event, and the head after it."""
    arc = verdict.arc
    seq = head.seq + 1
    owes = arc.owes
    context = verdict.context
    changed = context is not None
    after = context if context is not None else head.context
    stored = changed or bool(owes)
    status = "finished" if spec.is_final(arc.target) else "running"
    context_seq = seq if stored else head.context_seq
    line = Line(  # by place, here and below: names would cost five times as much
        head.workflow,
        head.id,
        seq,
        kind,
        arc.source,
        arc.event,
        arc.target,
        status,
        author.commit_id,
        author.token,
        context_seq,
        key,
        payload,
        after if stored else None,
        None,  # labels
        None,  # goal
        None if arc.stay else head.top,
        None,  # undoes
        owes,
        chain,
        author.version,
    )
    return line, Head(
        head.workflow,
        head.id,
        seq,
        arc.target,
        status,
        after,
        context_seq,
        head.top if arc.stay else seq,
        head.goal,
        head.labels,
        None,  # reason
        author.version,
    )


def noted(
    head: Head,
    kind: Kind,
    author: Author,
    *,
    status: Status | None = None,
    reason: str | None = None,
    context: str | None = None,
    event: str | None = None,
    payload: str | None = None,
    chain: int = 0,
    key: str | None = None,
) -> tuple[Line, Head]:
    """A line that leaves the state alone: an update, a refusal, a giving up."""
    seq = head.seq + 1
    line = Line(
        workflow=head.workflow,
        id=head.id,
        seq=seq,
        kind=kind.value,
        source=head.state,
        event=event,
        target=head.state,
        status=head.status if status is None else status.value,
        commit_id=author.commit_id,
        by=author.token,
        context_seq=head.context_seq if context is None else seq,
        key=key,
        payload=payload,
        context=context,
        chain=chain,
        version=author.version,
        reason=reason,
    )
    return line, msgspec.structs.replace(
        head,
        seq=seq,
        status=line.status,
        reason=head.reason if status is None else reason,
        context=head.context if context is None else context,
        context_seq=line.context_seq,
        version=author.version,
    )
