"""A schedule as it is kept: a small instance whose one due row is its next tick. Pure.

Each is alone in an internal workflow of its own, for rows are claimed by workflow: so a process never
holds a tick of a schedule that it does not name. That it exists is noted once in the spec's list, an
internal workflow whose instances say nothing but their names.

Its context holds cron and zone, so that all processes, whatever their code says, go by the same; its
lines tell of changes of these, of pauses and of ticks that were given up. The row's body holds the
tick's own time, which is also its key: what is started or sent twice for a tick is a duplicate.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from . import cron
from .codec import Codec
from .cron import Schedule
from .kernel import Author, noted
from .owed import Fault
from .record import Change, Due, Head, Kind, Lease, Line, Loaded, Put, Status
from .retry import Retry

TICK = "tick"
_STATE = "scheduled"
_STRANGE = 1000
"""How often a row is left to others before it is set aside."""

AnySchedule: TypeAlias = Schedule[Any, Any]


class ScheduleState(Struct, frozen=True):
    """A schedule as the store has it."""

    name: str
    cron: str
    tz: str
    next_at: datetime | None
    """When it is due next (a tick, or another try of one that failed); None while it is held."""
    last_at: datetime | None
    """The last tick that was fired."""
    paused: bool
    reason: str | None
    """Why it was paused."""
    error: str | None
    """What went wrong at the last tick."""
    known: bool
    """Does this Manager name it? What nobody names stays as it is."""


class Rule(Struct, frozen=True):
    """The context of a schedule: when it ticks."""

    cron: str
    tz: str


class Ticking(Struct, frozen=True, omit_defaults=True):
    """The body of its row."""

    at: datetime
    """The first tick that was not fired."""
    last: datetime | None = None
    error: Fault | None = None


class Did(Struct, frozen=True):
    """A tick was fired; or (None) all that were missed are let go. `fault`: what it came to was not taken."""

    tick: datetime | None
    fault: Fault | None = None


class Failed(Struct, frozen=True):
    """A tick could not be fired."""

    tick: datetime
    fault: Fault
    cause: Exception
    again: bool
    """May it be tried once more?"""


_rules: Codec[Rule] = Codec(Rule)
_tickings: Codec[Ticking] = Codec(Ticking)


def list_of(spec: str) -> str:
    """The workflow whose instances bear the names of a spec's schedules."""
    return f"{spec}.schedules"


def workflow_of(spec: str, name: str) -> str:
    """The workflow whose one instance is the schedule."""
    return f"{list_of(spec)}/{name}"


def key_of(name: str, tick: datetime, *, triggered: bool = False) -> str:
    """The key of what a tick starts or sends."""
    return f"{name}/{'triggered/' if triggered else ''}{tick.isoformat()}"


def rule_of(head: Head) -> Rule:
    """When it ticks. Raises `msgspec.DecodeError`."""
    return _rules.decode(head.context)


def ticking_of(row: Due) -> Ticking:
    """Where it stands. Raises `msgspec.DecodeError`."""
    return _tickings.decode(row.body or "")


def row_of(loaded: Loaded) -> Due | None:
    """The row of its next tick."""
    return next((row for row in loaded.rows if row.name == TICK), None)


def state_of(loaded: Loaded, known: bool) -> ScheduleState:
    """As people read it."""
    head, row = loaded.head, row_of(loaded)
    ticking = None
    try:
        rule = rule_of(head)
        ticking = None if row is None else ticking_of(row)
        error = None if ticking is None or ticking.error is None else str(ticking.error)
    except msgspec.DecodeError as e:
        rule, error = Rule("", ""), f"what is stored cannot be read: {e}"
    at = None
    if row is not None and ticking is not None and not row.held:
        at = row.at if row.token is None else ticking.at
    return ScheduleState(
        name=head.id,
        cron=rule.cron,
        tz=rule.tz,
        next_at=at,
        last_at=None if ticking is None else ticking.last,
        paused=head.status == Status.PAUSED,
        reason=head.reason,
        error=error,
        known=known,
    )


# --- what is written about it ---------------------------------------------------------------------


def listed(workflow: str, name: str, author: Author) -> Change:
    """Its name in the spec's list."""
    line, head = _first(workflow, name, "null", author)
    return Change(workflow, name, 0, (line,), head)


def registered(
    workflow: str, schedule: AnySchedule, loaded: Loaded | None, author: Author, now: datetime
) -> Change | None:
    """What code that names this schedule makes of it; None: it stands as it should.

    Where cron or zone are others, it goes on from now; ticks of the old ones are not made up for. A
    version above the author's knows better.
    """
    rule = Rule(schedule.cron, schedule.tz)
    first = Ticking(cron.following(rule.cron, rule.tz, now))
    text = _encoded(rule)
    if loaded is None:
        return _born(workflow, schedule.name, text, first, author)
    head, row = loaded.head, row_of(loaded)
    paused = head.status == Status.PAUSED
    if head.version > author.version:
        return None
    if head.context != text:
        line, after = noted(head, Kind.UPDATE, author, context=text)
        last = None if row is None else _understood(row, first).last
        put = _put(after, msgspec.structs.replace(first, last=last), held=paused)
        return Change(workflow, head.id, head.seq, (line,), after, puts=(put,))
    if row is None:
        put = msgspec.structs.replace(_put(head, first, held=paused), absent=True)
    elif row.held and not paused:  # set aside by code that could not read it
        put = _put(head, _understood(row, first))
    else:
        return None
    return Change(workflow, head.id, head.seq, puts=(put,))


def paused(loaded: Loaded, author: Author, reason: str) -> Change:
    """It stands still until told otherwise."""
    head = loaded.head
    line, after = noted(head, Kind.PAUSE, author, status=Status.PAUSED, reason=reason)
    return Change(head.workflow, head.id, head.seq, (line,), after, held=True)


def unpaused(loaded: Loaded, author: Author, now: datetime) -> Change:
    """It goes on with the first tick after now."""
    head, row, rule = loaded.head, row_of(loaded), rule_of(loaded.head)
    line, after = noted(head, Kind.UNPAUSE, author, status=Status.RUNNING)
    first = Ticking(cron.following(rule.cron, rule.tz, now))
    put = _put(after, msgspec.structs.replace(first, last=None if row is None else _understood(row, first).last))
    return Change(head.workflow, head.id, head.seq, (line,), after, puts=(put,), held=False)


# --- what becomes of a claimed row ----------------------------------------------------------------


def went_on(loaded: Loaded, due: Due, did: Did, now: datetime) -> Change:
    """The row at what comes after."""
    head, rule, ticking = loaded.head, rule_of(loaded.head), ticking_of(due)
    later = cron.following(rule.cron, rule.tz, did.tick or max(now, ticking.at))
    body = Ticking(later, did.tick or ticking.last, did.fault if did.tick else ticking.error)
    return _of_row(head, due, _put(head, body, held=head.status != Status.RUNNING))


def failed(loaded: Loaded, due: Due, failure: Failed, retry: Retry, author: Author, dice: float) -> Change:
    """Another try later; or the tick is given up, on the record, and the schedule goes on."""
    head, rule = loaded.head, rule_of(loaded.head)
    held = head.status != Status.RUNNING
    ticking = msgspec.structs.replace(ticking_of(due), error=failure.fault)
    if failure.again:
        # No tick before the one that failed is still to be fired.
        body = _encoded(msgspec.structs.replace(ticking, at=failure.tick))
        wait = retry.pause(due.attempt, dice)
        put = Put(TICK, due.seq, due.number, due.attempt, due.version, held=held, body=body, wait=wait)
        return _of_row(head, due, put)
    line, after = noted(head, Kind.FAIL, author, reason=f"tick {failure.tick.isoformat()}: {failure.fault}")
    later = cron.following(rule.cron, rule.tz, failure.tick)
    put = _put(after, msgspec.structs.replace(ticking, at=later), held=held)
    return Change(head.workflow, head.id, head.seq, (line,), after, lease_of(due), (put,))


def put_off(head: Head, due: Due, *, attempt: int, held: bool = False) -> Change:
    """Not now: the row as it is, nobody's."""
    put = Put(TICK, due.seq, due.number, attempt, due.version, held=held, body=due.body)
    return _of_row(head, due, put)


def left_to_others(head: Head, due: Due, wait: timedelta) -> Change:
    """Not here: nothing was tried, so no attempt counts; the row's `number` says how often that was."""
    number, held = due.number + 1, due.number >= _STRANGE
    put = Put(TICK, due.seq, number, due.attempt - 1, due.version, held=held, body=due.body, wait=wait)
    return _of_row(head, due, put)


def lease_of(due: Due) -> Lease:
    """What whoever claimed the row must still find."""
    return Lease(due.token, due.seq, due.number, due.attempt, TICK)


def owned(loaded: Loaded, due: Due) -> bool:
    """Is the row still as it was claimed?"""
    row = row_of(loaded)
    return row is not None and (row.token, row.seq, row.attempt) == (due.token, due.seq, due.attempt)


def _born(workflow: str, name: str, context: str, first: Ticking, author: Author) -> Change:
    line, head = _first(workflow, name, context, author)
    return Change(workflow, name, 0, (line,), head, puts=(_put(head, first),))


def _first(workflow: str, name: str, context: str, author: Author) -> tuple[Line, Head]:
    line = Line(
        workflow=workflow,
        id=name,
        seq=1,
        kind=Kind.START.value,
        source=None,
        event=None,
        target=_STATE,
        status=Status.RUNNING.value,
        commit_id=author.commit_id,
        by=author.token,
        context_seq=1,
        context=context,
        below=0,
        version=author.version,
    )
    head = Head(
        workflow=workflow,
        id=name,
        seq=1,
        state=_STATE,
        status=Status.RUNNING.value,
        context=context,
        context_seq=1,
        top=1,
        version=author.version,
    )
    return line, head


def _put(head: Head, body: Ticking, *, held: bool = False) -> Put:
    """A new row: its line is the head's, so that whoever had claimed an older one finds it past."""
    return Put(TICK, head.seq, version=head.version, held=held, body=_encoded(body), at=body.at)


def _of_row(head: Head, due: Due, put: Put) -> Change:
    return Change(head.workflow, head.id, head.seq, lease=lease_of(due), puts=(put,))


def _understood(row: Due, otherwise: Ticking) -> Ticking:
    try:
        return ticking_of(row)
    except msgspec.DecodeError:
        return otherwise


def _encoded(value: Struct) -> str:
    return msgspec.json.encode(value).decode()
