"""Every error a caller can meet.

WorkflowError                      .committed: True | False | None (unknown)
├── InvalidSpec(ValueError)        .problems
├── UnknownInstance(LookupError)   .workflow .id
├── UnknownState(LookupError)      .workflow .id .state
├── UnknownSchedule(LookupError)   .workflow .name .names
├── AlreadyStarted                 .workflow .id
├── IllegalTransition              .id .state .event .available
│   ├── GuardRejected              .reasons
│   └── Finished
├── NotRunning                     .status .reason
├── InvalidPayload InvalidContext  (ValueError, from the cause)
│   └── InvalidName                an id or a key that no store can hold (is both)
├── GuardError                     (from the cause)
├── KeyConflict                    .key .transition
├── Conflict  Busy  Reentrant  LeaseLost
├── HookFailed                     .outcome .hook .attempt .retry_at
└── StoreError ── StoreUnavailable

Each message is built here from its facts and says what to do next. `committed` tells what a
retrying caller must know: did the move this error speaks of become durable?
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any


def _word(member: object) -> str:
    value = getattr(member, "value", member)
    return value if isinstance(value, str) else str(getattr(member, "name", member))


_WAYS = {
    "paused": "unpause() it to bring it back to running first",
    "failed": "retry() goes on from what failed, skip() drops that, compensate() leads out of it",
    "cancelled": "nothing more can happen to it; start another",
    "erased": "nothing more can happen to it; start another",
}


def _words(members: Sequence[object]) -> str:
    return ", ".join(_word(m) for m in members) or "none"


class WorkflowError(Exception):
    """Root of all errors of this library.

    `committed` is True when the move is durable all the same, False when nothing was written, None
    when the store never answered: repeat the call with the same key to find out.
    """

    committed: bool | None = False


class InvalidSpec(WorkflowError, ValueError):
    """The drawing has problems; `problems` lists all of them, one sentence each."""

    def __init__(self, name: str, problems: Sequence[str]) -> None:
        self.name = name
        self.problems = tuple(problems)
        lines = "".join(f"\n  - {p}" for p in self.problems)
        super().__init__(f"spec {name!r} has {len(self.problems)} problem(s):{lines}")


class UnknownInstance(WorkflowError, LookupError):
    """No instance of this workflow has this id."""

    def __init__(self, workflow: str, id: str) -> None:
        self.workflow = workflow
        self.id = id
        super().__init__(f"{workflow} {id!r} was never started; call start(), or send(..., start=context) to do both")


class UnknownState(WorkflowError, LookupError):
    """The stored state is one the spec no longer draws."""

    def __init__(self, workflow: str, id: str, state: str) -> None:
        self.workflow = workflow
        self.id = id
        self.state = state
        super().__init__(
            f"{workflow} {id!r} is in state {state!r}, which the spec does not know; "
            f"draw it again or map it with Spec(renames={{{state!r}: ...}})"
        )


class UnknownSchedule(WorkflowError, LookupError):
    """No schedule of this workflow has this name; `names` holds those that are known."""

    def __init__(self, workflow: str, name: str, names: Sequence[str]) -> None:
        self.workflow = workflow
        self.name = name
        self.names = tuple(names)
        known = ", ".join(repr(n) for n in self.names) or "none"
        super().__init__(f"{workflow} has no schedule {name!r} (known: {known}); name it in Manager(schedules=[...])")


class AlreadyStarted(WorkflowError):
    """The id is taken. Nothing was written."""

    def __init__(self, workflow: str, id: str) -> None:
        self.workflow = workflow
        self.id = id
        super().__init__(f"{workflow} {id!r} was already started; give start() a key to make repeats harmless")


class IllegalTransition(WorkflowError):
    """No edge leads from the state by this event (or, for compensate, back to that state)."""

    def __init__(self, id: str, state: Any, event: Any, available: Sequence[Any] = (), why: str | None = None) -> None:
        self.id = id
        self.state = state
        self.event = event
        self.available = tuple(available)
        said = why or f"no edge takes {_word(event)!r}"
        super().__init__(f"{id!r} is in {_word(state)!r}: {said}; events drawn here: {_words(self.available)}")


class GuardRejected(IllegalTransition):
    """Edges exist, but every guard refused; `reasons` holds what each `Deny` said."""

    def __init__(self, id: str, state: Any, event: Any, available: Sequence[Any], reasons: Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        said = "; ".join(reason or "no reason given" for reason in self.reasons)
        super().__init__(id, state, event, available, f"every guard on {_word(event)!r} refused ({said})")


class Finished(IllegalTransition):
    """A final state was reached; no event is accepted any more."""

    def __init__(self, id: str, state: Any, event: Any) -> None:
        super().__init__(id, state, event, (), f"that state is final, {_word(event)!r} comes too late")


class NotRunning(WorkflowError):
    """The instance accepts nothing while its status is not `running`."""

    def __init__(self, id: str, status: str, reason: str | None, way: str | None = None) -> None:
        self.id = id
        self.status = status
        self.reason = reason
        said = f"{id!r} is {status} ({reason or 'no reason given'})"
        super().__init__(f"{said}; {_WAYS.get(status, 'wait for it') if way is None else way}")


class InvalidPayload(WorkflowError, ValueError):
    """A payload that cannot be stored and read back equal. Nothing was written."""


class InvalidContext(WorkflowError, ValueError):
    """A context that cannot be stored and read back equal. Nothing was written."""


class InvalidName(InvalidPayload, InvalidContext):
    """An id or key that is empty, over 512 bytes of UTF-8, or not storable text."""


class GuardError(WorkflowError):
    """A guard, an assign or the function of a timeout raised (see the cause), or answered what it may not."""

    def __init__(self, id: str, state: Any, event: Any, callback: str, why: str) -> None:
        self.id = id
        self.state = state
        self.event = event
        self.callback = callback
        super().__init__(f"{id!r} in {_word(state)!r} on {_word(event)!r}: {callback} {why}; nothing was written")


class KeyConflict(WorkflowError):
    """The idempotency key was used before, for another verb or other arguments. `transition` is None where
    that is still to come (`send_later`)."""

    def __init__(self, id: str, key: str, transition: Any) -> None:
        self.id = id
        self.key = key
        self.transition = transition
        where = "by an event that waits to be sent"
        if transition is not None:
            where = f"by line {transition.seq} ({transition.kind})"
        super().__init__(f"key {key!r} of {id!r} was used {where} with other arguments; use one key for one request")


class Conflict(WorkflowError):
    """Others moved the instance each time we were about to; `inside` a transaction of the user's, which
    cannot be judged anew, once is enough."""

    def __init__(self, id: str, tries: int, *, inside: bool = False) -> None:
        self.id = id
        self.tries = tries
        self.inside = inside
        super().__init__(
            f"others moved {id!r} while your transaction was at it; roll it back and do the whole block again"
            if inside
            else f"{id!r} was moved by others {tries} times while this call judged; call again"
        )


class Busy(WorkflowError):
    """The wait for running effects, for a lock or for earlier callers took longer than the timeout."""

    def __init__(self, id: str, why: str, committed: bool | None = False) -> None:
        self.id = id
        self.committed = committed
        super().__init__(f"{id!r} is busy: {why}; call again later or with a longer timeout")


class Reentrant(WorkflowError):
    """Waiting would close a circle: of hooks, or (`inside`) of a call and the transaction it is made in."""

    def __init__(self, id: str, committed: bool | None = False, *, inside: bool = False) -> None:
        self.id = id
        self.committed = committed
        self.inside = inside
        super().__init__(
            f"this task is inside a transaction of the store, for whose end a call for {id!r} would wait; make the "
            "move part of it (within=...), or call when the block has ended"
            if inside
            else f"a hook waits for {id!r}, whose effects wait for that hook; return the event (or Then) from the hook "
            "to have it sent next"
        )


class LeaseLost(WorkflowError):
    """Another process took over the effects of a committed move; it will finish them."""

    committed = True

    def __init__(self, id: str, hook: str) -> None:
        self.id = id
        self.hook = hook
        super().__init__(
            f"the lease on {id!r} ran out while {hook!r} was running; its new owner runs it again. "
            "Use m.key so that the other side sees one request"
        )


class HookFailed(WorkflowError):
    """The move stands, but one of its effects failed; `retry_at` is None when nobody will try again."""

    committed = True

    def __init__(
        self,
        outcome: Any,
        hook: str,
        attempt: int,
        retry_at: datetime | None,
        error: str,
        status: str = "failed",
    ) -> None:
        self.outcome = outcome
        self.hook = hook
        self.attempt = attempt
        self.retry_at = retry_at
        self.error = error
        line = outcome.transition
        when = None if retry_at is None else retry_at.isoformat(" ", "milliseconds")
        then = f"it is tried again at {when}"
        if when is None:
            then = "the instance is failed" if status == "failed" else f"it is given up, the instance is {status}"
        super().__init__(
            f"{line.id!r} moved to {_word(line.target)!r} (line {line.seq} stands), but {hook!r} failed at attempt "
            f"{attempt}: {error}; {then}"
        )


class StoreError(WorkflowError):
    """The store refused or is not usable; the driver's error is the cause."""

    def __init__(self, message: str, committed: bool | None = False) -> None:
        self.committed = committed
        super().__init__(message)


class StoreUnavailable(StoreError):
    """The store cannot be reached or is locked; with `committed=None` the outcome is unknown."""
