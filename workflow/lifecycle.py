"""What an operator wants written: pause, unpause, cancel, retry, skip and erase as plans. Pure.

Each is one line with a reason and a key. None waits for a hook that runs (but a cancel that undoes
first), so each is decided on a fresh sight of the head with all its due rows.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import msgspec
from msgspec import Struct

from .codec import alike, digest, pack
from .errors import Busy, Finished, IllegalTransition, NotRunning, StoreError, UnknownInstance, WorkflowError
from .kernel import AnySpec, noted
from .owed import Body, Held, Step, body_of, error_of, lease_of
from .place import parked, put_back
from .plan import Around, Decided, Deciding, Decision, stepped
from .queue import puts
from .record import QUEUE, Change, Due, Head, Kind, Lease, Line, Loaded, Put, Status
from .stack import Peek
from .undoing import WITHDRAWN, withdraw

FOLLOWS: Mapping[str, frozenset[Status]] = {
    "pause": frozenset({Status.RUNNING}),
    "unpause": frozenset({Status.PAUSED}),
    "cancel": frozenset({Status.RUNNING, Status.PAUSED, Status.FAILED}),
    "cancel(compensate=True)": frozenset({Status.RUNNING, Status.FAILED}),
    "retry": frozenset({Status.RUNNING, Status.FAILED, Status.FINISHED}),
    "skip": frozenset({Status.RUNNING, Status.FAILED, Status.FINISHED}),
    "erase": frozenset({Status.FINISHED, Status.CANCELLED}),
}
"""Which status each verb may follow."""
_RUNNING = {
    "unpause": "it runs, only what is paused can be unpaused",
    "erase": "it runs; let it finish or cancel() it, then erase() it",
}


class Verb(Struct, gc=False):
    """What all these calls have in common."""

    id: str
    key: str | None
    reason: str | None
    blind: bool = False
    waits: bool = False

    verb = ""
    kind = Kind.PAUSE

    def decide(self, around: Around, loaded: Loaded | None) -> Decision | Deciding:
        """See `Plan.decide`."""
        if loaded is None:
            return UnknownInstance(around.spec.name, self.id)
        closed = self._closed(around.spec, loaded.head)
        return self._decided(around, loaded) if closed is None else closed

    def _decided(self, around: Around, loaded: Loaded) -> Decision | Deciding:
        raise NotImplementedError

    def same(self, spec: AnySpec, line: Line, peek: Peek) -> Generator[Any, Any, bool]:
        """See `Plan.same`. The reason is no matter."""
        return line.kind == self.kind and line.payload is None
        yield

    def _closed(self, spec: AnySpec, head: Head) -> WorkflowError | None:
        """Why the verb may not follow this status."""
        status = Status(head.status)
        if status in FOLLOWS[self.verb]:
            return None
        if status == Status.FINISHED:
            return Finished(head.id, _here(spec, head), self.verb)
        if status == Status.RUNNING:
            return self._nothing(spec, head, _RUNNING[self.verb])
        ended = status in (Status.CANCELLED, Status.ERASED)
        way = "cancel() it, then erase() it" if self.verb == "erase" and not ended else None
        return NotRunning(head.id, status, head.reason, way)

    def _nothing(self, spec: AnySpec, head: Head, why: str) -> IllegalTransition:
        here = _here(spec, head)
        events = spec.accepted(here) if spec.knows(head.state) else ()
        return IllegalTransition(head.id, here, self.verb, events, why)

    def _noted(
        self, around: Around, head: Head, status: Status, payload: str | None = None, context: str | None = None
    ) -> tuple[Line, Head]:
        """The line. Where the status stays what it is, so does its reason."""
        to = None if status == head.status else status
        return noted(
            head,
            self.kind,
            around.author(),
            status=to,
            reason=self.reason,
            key=self.key,
            payload=payload,
            context=context,
        )


class Pause(Verb, gc=False):
    """Nothing more is taken or begun."""

    verb = "pause"

    def _decided(self, around: Around, loaded: Loaded) -> Decided:
        line, head = self._noted(around, loaded.head, Status.PAUSED)
        return _written(loaded, line, head, held=True)


class Unpause(Verb, gc=False):
    """On it goes; what is overdue is due at once."""

    verb = "unpause"
    kind = Kind.UNPAUSE

    def _decided(self, around: Around, loaded: Loaded) -> Decided:
        line, head = self._noted(around, loaded.head, Status.RUNNING)
        return _written(loaded, line, head, held=False)


class Cancel(Verb, gc=False):
    """Over, wherever it stands. A hook that runs may settle, all else that is due is dropped."""

    verb = "cancel"
    kind = Kind.CANCEL

    def _decided(self, around: Around, loaded: Loaded) -> Decided:
        due, runs = loaded.effects, around.runs(loaded)
        line, head = self._noted(around, loaded.head, Status.CANCELLED)
        if head.goal:
            line, head = msgspec.structs.replace(line, goal=0), msgspec.structs.replace(head, goal=0)
        drops = tuple(row.name for row in loaded.rows if not (runs and row.name == QUEUE))
        lease = None if due is None or runs else lease_of(due)
        # A row that was put since the look is dropped when it is claimed, so it must not be held.
        return _written(loaded, line, head, lease=lease, drops=drops, held=False)


class Withdraw(Verb, gc=False):
    """Everything undone, then over. In the order of arrival, like `compensate`."""

    waits: bool = True

    verb = "cancel(compensate=True)"
    kind = Kind.CANCEL

    def _decided(self, around: Around, loaded: Loaded) -> Deciding:
        step = yield from withdraw(around.desk(self.id, around.author()), loaded, self.reason or "", self.key)
        return step if isinstance(step, WorkflowError) else stepped(loaded, step)

    def same(self, spec: AnySpec, line: Line, peek: Peek) -> Generator[Any, Any, bool]:
        """See `Plan.same`."""
        return alike(line.payload, WITHDRAWN, line.commit_id)
        yield


class Retry(Verb, gc=False):
    """What failed, waits to be tried again or is set aside is due now, all its attempts before it."""

    verb = "retry"
    kind = Kind.RETRY

    def _decided(self, around: Around, loaded: Loaded) -> Decision:
        head, due = loaded.head, loaded.effects
        failed = head.status == Status.FAILED
        fresh: list[Put] = []
        lease = None
        if due is not None and not around.runs(loaded) and (failed or _troubled(due)):
            fresh.append(_anew(due, loaded))
            lease = lease_of(due)
        others = (row for row in loaded.rows if row.name != QUEUE)
        fresh += [_anew(row, loaded) for row in others if error_of(row) is not None or (row.held and not failed)]
        if not fresh and not failed:
            return self._nothing(around.spec, head, "nothing of it failed, waits to be tried again or is set aside")
        line, head = self._noted(around, head, _free(around.spec, head))
        return _written(loaded, line, head, lease=lease, puts=tuple(fresh), held=False)


class Skip(Verb, gc=False):
    """What failed, waits to be tried again or is set aside is dropped, and what follows it is due."""

    verb = "skip"
    kind = Kind.SKIP

    def _decided(self, around: Around, loaded: Loaded) -> Decision | Deciding:
        head, due = loaded.head, loaded.effects
        failed = head.status == Status.FAILED
        others = [row for row in loaded.rows if row.name != QUEUE and (_troubled(row) if not failed else error_of(row))]
        culprit = next((row for row in others if failed and (head.reason or "").startswith(f"{row.name}: ")), None)
        if culprit is None and due is not None:
            if around.runs(loaded):
                return Busy(self.id, "its effect is running and may yet succeed; skip() drops what has failed")
            if error_of(due) is not None or (due.held and not failed):
                return self._effect(around, loaded, due)
        if culprit is None:
            culprit = next(iter(others), None)
        if culprit is None and not failed:
            return self._nothing(around.spec, head, "nothing of it failed, waits to be tried again or is set aside")
        what = None if culprit is None else _skipped(culprit.name)
        line, head = self._noted(around, head, _free(around.spec, head), what)
        drops = () if culprit is None else (culprit.name,)
        return _written(loaded, line, head, drops=drops, held=False)

    def _effect(self, around: Around, loaded: Loaded, due: Due) -> Deciding:
        """Drop the effect at the place, or the returned event that is judged there."""
        head, place = loaded.head, loaded.queue[0]
        try:
            body = body_of(due)
        except msgspec.DecodeError:
            why = "cannot be read, so nothing can be skipped safely; cancel() drops it all"
            return StoreError(f"what {self.id!r} owes {why}")
        body = msgspec.structs.replace(body, error=None, begun=False)
        number = due.number
        if number < len(place.owes):
            what, number = place.owes[number], number + 1
        elif body.events:
            what, body = f"event {body.events[0].event}", msgspec.structs.replace(body, events=body.events[1:])
        else:
            return self._nothing(around.spec, head, "the undoing itself cannot go on; retry() or cancel() it")
        line, after = self._noted(around, head, _free(around.spec, head), _skipped(what))
        step = Step(after, (line,), put_back(due, body, 0, number))
        if number == len(place.owes):
            held = Held(head, due, loaded.queue, len(loaded.queue) < 2)
            step = yield from parked(around.desk(self.id, around.author()), held, after, (line,), body, hold=False)
        drops = (QUEUE,) if step.put is None else ()
        return _written(loaded, line, after, lease=lease_of(due), puts=puts(step), drops=drops, held=False)

    def same(self, spec: AnySpec, line: Line, peek: Peek) -> Generator[Any, Any, bool]:
        """See `Plan.same`."""
        return line.kind == Kind.SKIP
        yield


class Erase(Verb, gc=False):
    """Context, payloads, errors and reasons of the past are removed; of what bears a key a digest is kept."""

    verb = "erase"
    kind = Kind.ERASE

    def _decided(self, around: Around, loaded: Loaded) -> Decision | Deciding:
        if loaded.effects is not None:
            return Busy(self.id, "effects are still owed; let them end, or skip() what is set aside, then erase() it")
        return self._erased(around, loaded)

    def _erased(self, around: Around, loaded: Loaded) -> Deciding:
        desk, kept = around.desk(self.id, around.author()), dict[str, str]()
        for seq in range(loaded.head.seq, 0, -1):
            line: Line = yield desk.peek(seq)
            text = line.context if line.kind == Kind.START else line.payload
            if line.key is not None and text is not None:
                kept[str(seq)] = digest(text, line.commit_id)
        line, head = self._noted(around, loaded.head, Status.ERASED, pack(kept) if kept else None, "null")
        drops = tuple(row.name for row in loaded.rows)
        return _written(loaded, line, head, drops=drops, held=False, erase=True)

    def same(self, spec: AnySpec, line: Line, peek: Peek) -> Generator[Any, Any, bool]:
        """See `Plan.same`."""
        return line.kind == Kind.ERASE
        yield


def known_again(line: Line, last: Line) -> Line:
    """The line with the digest of what it held, from the line of the erasure."""
    kept: dict[str, str] = {} if last.payload is None else msgspec.json.decode(last.payload)
    text = kept.get(str(line.seq))
    if line.kind == Kind.START:
        return msgspec.structs.replace(line, context=text)
    return msgspec.structs.replace(line, payload=text)


def _written(
    loaded: Loaded,
    line: Line,
    head: Head,
    *,
    lease: Lease | None = None,
    puts: tuple[Put, ...] = (),
    drops: tuple[str, ...] = (),
    held: bool | None = None,
    erase: bool = False,
) -> Decided:
    change = Change(head.workflow, head.id, loaded.head.seq, (line,), head, lease, puts, drops, held, erase)
    return Decided(change, line, head)


def _here(spec: AnySpec, head: Head) -> Any:
    """The state; the bare word of one that nobody knows."""
    return spec.state_of(head.state) if spec.knows(head.state) else head.state


def _free(spec: AnySpec, head: Head) -> Status:
    """The status of an instance that nothing stops."""
    return Status.FINISHED if spec.is_final(head.state) else Status.RUNNING


def _troubled(row: Due) -> bool:
    """Is it set aside, or tried again after an error? Only where all rows are not held for the instance's sake."""
    return row.held or error_of(row) is not None


def _anew(row: Due, loaded: Loaded) -> Put:
    """The row, due now and never tried. That an effect was once begun is kept: it may have to be compensated."""
    text = row.body
    if row.name == QUEUE:
        owed = len(loaded.queue[0].owes) if loaded.queue else 0
        try:
            body = body_of(row)
        except msgspec.DecodeError:
            return Put(row.name, row.seq, row.number, 0, row.version, body=text)
        begun = body.begun or (row.attempt > 0 and row.number < owed)
        body = msgspec.structs.replace(body, error=None, begun=begun)
        text = None if body == Body() else pack(body)
    elif text is not None:
        text = _calmed(text)
    return Put(row.name, row.seq, row.number, 0, row.version, body=text)


def _calmed(text: str) -> str | None:
    """The body of a timer's row without its last error; one that cannot be read as it is."""
    try:
        body: Any = msgspec.json.decode(text)
        body.pop("error", None)
    except (msgspec.DecodeError, AttributeError):
        return text
    return pack(body) if body else None


def _skipped(what: str) -> str:
    return pack({"skipped": what})
