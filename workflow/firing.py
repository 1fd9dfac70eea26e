"""What becomes of a due row that came due: a timeout, or an event sent with a delay. Pure.

The commit that fires a row removes it and compares its lease, so of two that fire it one is told
that it is gone. Whatever is not taken ends on the record, never in a loop.
"""

from __future__ import annotations

from collections.abc import Generator
from datetime import datetime, timedelta
from typing import Any

import msgspec
from msgspec import Struct

from .codec import Codec, clean
from .errors import GuardError, InvalidContext, UnknownState, WorkflowError
from .kernel import Accepted, AnySpec, Author, judge, moved, noted
from .owed import Fault
from .place import owe
from .plan import Around
from .record import LATER, TIMEOUT, Change, Due, Head, Kind, Lease, Line, Loaded, Put, Status
from .word import word

CRASHES = 20
"""How often the owner of a row may end before it has judged it: as judging does nothing outside, more often than a
hook may be."""


class Later(Struct, frozen=True, omit_defaults=True, gc=False):
    """The body of a row that is an event sent with a delay."""

    event: str
    payload: str | None
    at: datetime
    """When it was to be sent."""
    error: Fault | None = None


class Waiting(Struct, frozen=True, omit_defaults=True, gc=False):
    """The body of a timeout that could not be judged."""

    error: Fault | None = None


class Fired(Struct, frozen=True, gc=False):
    """What to write for a row, and what is known when it is written."""

    change: Change
    line: Line | None = None
    """What was put on record; None where the row was only removed or put off."""
    head: Head | None = None
    fault: Fault | None = None
    """Nobody could tell whether to take the event; the row says when it is tried again, or is held."""


_laters: Codec[Later] = Codec(Later)


def later_of(due: Due) -> Later:
    """What is to be sent. Raises `msgspec.DecodeError`."""
    return _laters.decode(due.body or "")


def fire(around: Around, loaded: Loaded, due: Due, dice: float) -> Generator[Any, Any, Fired]:
    """The fate of a claimed row on this sight of its instance."""
    spec, head = around.spec, loaded.head
    timeout = due.name.startswith(TIMEOUT)
    if head.status in (Status.CANCELLED, Status.ERASED) or (timeout and head.top != due.seq):
        return Fired(_only(head, due, drops=(due.name,)))
    if head.status in (Status.PAUSED, Status.FAILED):  # held meanwhile
        return Fired(_only(head, due, put=_back(due, due.attempt - 1, due.body, held=True)))
    try:
        event, payload = _timed(spec, head, due) if timeout else _sent(due)
        spec.event_of(event)
        value = None if payload is None else spec.payload_codec(event).decode(payload)
    except (KeyError, msgspec.DecodeError) as e:
        return _set_aside(head, due, f"what is stored does not fit the spec: {e}")
    most = max(spec.retry.attempts, CRASHES)
    if due.attempt > most:
        return _given_up(around, head, due, Fault("RuntimeError", f"{most} times its owner ended before it was judged"))
    verdict = yield from judge(spec, head, event, value, around.now())
    key = None if timeout else due.name.removeprefix(LATER)
    if isinstance(verdict, Accepted):
        author = around.author()
        kind = Kind.TIMEOUT if timeout else Kind.EVENT
        line, after = moved(spec, head, verdict, author, key=key, payload=payload, kind=kind.value)
        rows = owe(around.lessee(author), around.lease, (line,), loaded.effects) + verdict.timers
        drops = tuple(dict.fromkeys((due.name, *verdict.arc.drops)))
        change = Change(head.workflow, head.id, head.seq, (line,), after, lease_of(due), rows, drops)
        return Fired(change, line, after)
    return _not_taken(around, head, due, verdict.error, event, payload, key, dice)


def lease_of(due: Due) -> Lease:
    """What the commit that fires this row must still find."""
    return Lease(due.token, due.seq, due.number, due.attempt, due.name)


def put_off(head: Head, due: Due, wait: timedelta = timedelta(0)) -> Change:
    """Give the lease up as if it had never been taken; due again after `wait`, and held if the instance is."""
    held = head.status in (Status.PAUSED, Status.FAILED)
    return _only(head, due, put=_back(due, due.attempt - 1, due.body, held=held, wait=wait))


def dropped(head: Head, due: Due) -> Change:
    """Remove the row without a word: what it was to say was said."""
    return _only(head, due, drops=(due.name,))


def key_taken(author: Author, event: str | None, payload: str | None, by: int, head: Head, due: Due) -> Change:
    """Remove the row on the record: another request had used its key."""
    line, after = noted(
        head, Kind.REFUSED, author, reason=f"its key was used by line {by}", event=event, payload=payload
    )
    return Change(head.workflow, head.id, head.seq, (line,), after, lease_of(due), (), (due.name,))


def _timed(spec: AnySpec, head: Head, due: Due) -> tuple[str, str | None]:
    for timer in spec.tables.timers.get(word(spec.state_of(head.state)), ()):
        if timer.row == due.name:
            return timer.event, None
    raise KeyError(due.name)


def _sent(due: Due) -> tuple[str, str | None]:
    later = later_of(due)
    return later.event, later.payload


def _not_taken(
    around: Around,
    head: Head,
    due: Due,
    error: WorkflowError,
    event: str,
    payload: str | None,
    key: str | None,
    dice: float,
) -> Fired:
    fault = Fault(type(error).__name__, clean(str(error)))
    if isinstance(error, UnknownState) or isinstance(error.__cause__, msgspec.DecodeError):
        return _set_aside(head, due, fault.message)
    if isinstance(error, (GuardError, InvalidContext)):
        retry = around.spec.retry
        if due.attempt >= retry.attempts:
            return _given_up(around, head, due, fault)
        put = _back(due, due.attempt, _body(due, fault), wait=retry.pause(due.attempt, dice))
        return Fired(_only(head, due, put=put), fault=fault)
    line, after = noted(
        head, Kind.REFUSED, around.author(), reason=fault.message, event=event, payload=payload, key=key
    )
    change = Change(head.workflow, head.id, head.seq, (line,), after, lease_of(due), (), (due.name,))
    return Fired(change, line, after)


def _given_up(around: Around, head: Head, due: Due, fault: Fault) -> Fired:
    line, after = noted(head, Kind.FAIL, around.author(), status=Status.FAILED, reason=f"{due.name}: {fault}")
    put = _back(due, 0, _body(due, fault), held=True)  # whoever frees it has it judged anew
    change = Change(head.workflow, head.id, head.seq, (line,), after, lease_of(due), (put,), (), True)
    return Fired(change, line, after, fault)


def _set_aside(head: Head, due: Due, why: str) -> Fired:
    fault = Fault("Unknown", clean(why))
    put = _back(due, due.attempt - 1, _body(due, fault), held=True)
    return Fired(_only(head, due, put=put), fault=fault)


def _body(due: Due, fault: Fault) -> str | None:
    """The row's body with its last error."""
    if due.name.startswith(TIMEOUT):
        return msgspec.json.encode(Waiting(fault)).decode()
    try:
        return msgspec.json.encode(msgspec.structs.replace(later_of(due), error=fault)).decode()
    except msgspec.DecodeError:
        return due.body


def _back(due: Due, attempt: int, body: str | None, *, held: bool = False, wait: timedelta = timedelta(0)) -> Put:
    """The row as it is, nobody's."""
    return Put(due.name, due.seq, due.number, max(0, attempt), due.version, None, held, body, wait)


def _only(head: Head, due: Due, *, put: Put | None = None, drops: tuple[str, ...] = ()) -> Change:
    """A change of the row alone."""
    puts = () if put is None else (put,)
    return Change(head.workflow, head.id, head.seq, (), None, lease_of(due), puts, drops)
