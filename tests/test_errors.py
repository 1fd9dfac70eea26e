"""One tree of errors; each keeps its facts, says what to do next and whether the move was committed."""

from __future__ import annotations

import inspect
from datetime import UTC, datetime
from enum import Enum, StrEnum
from types import SimpleNamespace
from typing import Any

import pytest

from workflow import errors
from workflow.errors import (
    AlreadyStarted,
    Busy,
    Conflict,
    Finished,
    GuardError,
    GuardRejected,
    HookFailed,
    IllegalTransition,
    InvalidContext,
    InvalidName,
    InvalidPayload,
    InvalidSpec,
    KeyConflict,
    LeaseLost,
    NotRunning,
    Reentrant,
    StoreError,
    StoreUnavailable,
    UnknownInstance,
    UnknownSchedule,
    UnknownState,
    WorkflowError,
)

TREE: dict[type[Exception], tuple[type[Exception], ...]] = {
    InvalidSpec: (WorkflowError, ValueError),
    UnknownInstance: (WorkflowError, LookupError),
    UnknownSchedule: (WorkflowError, LookupError),
    UnknownState: (WorkflowError, LookupError),
    AlreadyStarted: (WorkflowError,),
    IllegalTransition: (WorkflowError,),
    GuardRejected: (IllegalTransition,),
    Finished: (IllegalTransition,),
    NotRunning: (WorkflowError,),
    InvalidPayload: (WorkflowError, ValueError),
    InvalidContext: (WorkflowError, ValueError),
    InvalidName: (InvalidPayload, InvalidContext),
    GuardError: (WorkflowError,),
    KeyConflict: (WorkflowError,),
    Conflict: (WorkflowError,),
    Busy: (WorkflowError,),
    Reentrant: (WorkflowError,),
    LeaseLost: (WorkflowError,),
    HookFailed: (WorkflowError,),
    StoreError: (WorkflowError,),
    StoreUnavailable: (StoreError,),
    WorkflowError: (Exception,),
}


class Door(StrEnum):
    SHUT = "shut"
    OPEN = "open"


class Act(Enum):
    PUSH = "push"
    PULL = 2


LINE = SimpleNamespace(id="d-1", seq=7, kind="event", target=Door.OPEN)
OUTCOME = SimpleNamespace(transition=LINE)
LATER = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_the_tree():
    """Who catches a parent catches exactly the children that the design draws."""
    found = {c: c.__bases__ for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, Exception)}
    assert found == TREE


CASES: list[tuple[WorkflowError, dict[str, Any], list[str], bool | None]] = [
    (
        InvalidSpec("door", ["a is bad", "b is worse"]),
        {"problems": ("a is bad", "b is worse")},
        ["'door' has 2 problem(s)", "\n  - a is bad", "\n  - b is worse"],
        False,
    ),
    (
        UnknownInstance("door", "d-1"),
        {"workflow": "door", "id": "d-1"},
        ["door 'd-1' was never started", "call start()", "send(..., start=context)"],
        False,
    ),
    (
        UnknownState("door", "d-1", "ajar"),
        {"workflow": "door", "id": "d-1", "state": "ajar"},
        ["state 'ajar'", "Spec(renames={'ajar': ...})"],
        False,
    ),
    (
        UnknownSchedule("door", "nightly", ["hourly"]),
        {"workflow": "door", "name": "nightly", "names": ("hourly",)},
        ["door has no schedule 'nightly'", "known: 'hourly'", "schedules=[...]"],
        False,
    ),
    (
        AlreadyStarted("door", "d-1"),
        {"workflow": "door", "id": "d-1"},
        ["door 'd-1' was already started", "give start() a key"],
        False,
    ),
    (
        IllegalTransition("d-1", Door.SHUT, Act.PULL, [Act.PUSH]),
        {"id": "d-1", "state": Door.SHUT, "event": Act.PULL, "available": (Act.PUSH,)},
        ["'d-1' is in 'shut'", "no edge takes 'PULL'", "events drawn here: push"],
        False,
    ),
    (
        GuardRejected("d-1", Door.SHUT, Act.PUSH, [Act.PUSH, Act.PULL], ["locked", "rusty"]),
        {"id": "d-1", "state": Door.SHUT, "available": (Act.PUSH, Act.PULL), "reasons": ("locked", "rusty")},
        ["every guard on 'push' refused (locked; rusty)", "events drawn here: push, PULL"],
        False,
    ),
    (
        Finished("d-1", Door.OPEN, Act.PUSH),
        {"id": "d-1", "state": Door.OPEN, "event": Act.PUSH, "available": ()},
        ["'open'", "final", "'push' comes too late", "events drawn here: none"],
        False,
    ),
    (
        NotRunning("d-1", "paused", "audit"),
        {"id": "d-1", "status": "paused", "reason": "audit"},
        ["'d-1' is paused (audit)", "bring it back to running"],
        False,
    ),
    (
        NotRunning("d-1", "failed", None),
        {"reason": None},
        ["failed (no reason given)"],
        False,
    ),
    (
        GuardError("d-1", Door.SHUT, Act.PUSH, "is_free", "raised ZeroDivisionError"),
        {"id": "d-1", "state": Door.SHUT, "event": Act.PUSH, "callback": "is_free"},
        ["'d-1' in 'shut' on 'push'", "is_free raised ZeroDivisionError", "nothing was written"],
        False,
    ),
    (
        KeyConflict("d-1", "k", LINE),
        {"id": "d-1", "key": "k", "transition": LINE},
        ["key 'k' of 'd-1' was used by line 7 (event)", "one key for one request"],
        False,
    ),
    (Conflict("d-1", 20), {"id": "d-1", "tries": 20, "inside": False}, ["20 times", "call again"], False),
    (Conflict("d-1", 2, inside=True), {"inside": True}, ["'d-1'", "roll it back and do the whole block again"], False),
    (Busy("d-1", "effects are running"), {"id": "d-1"}, ["effects are running", "longer timeout"], False),
    (Busy("d-1", "effects are running", True), {"id": "d-1"}, ["call again later"], True),
    (Reentrant("d-1"), {"id": "d-1"}, ["a hook waits for 'd-1'", "return the event"], False),
    (Reentrant("d-1", True), {"id": "d-1", "inside": False}, ["or Then"], True),
    (Reentrant("d-1", inside=True), {"id": "d-1", "inside": True}, ["inside a transaction", "'d-1'", "within=", "when the block has ended"], False),
    (LeaseLost("d-1", "ring"), {"id": "d-1", "hook": "ring"}, ["'ring'", "Use m.key"], True),
    (
        HookFailed(OUTCOME, "ring", 3, LATER, "OSError: down"),
        {"outcome": OUTCOME, "hook": "ring", "attempt": 3, "retry_at": LATER},
        ["line 7 stands", "'d-1' moved to 'open'", "'ring' failed at attempt 3: OSError: down", "2030-01-02 03:04:05.000+00:00"],
        True,
    ),
    (
        HookFailed(OUTCOME, "ring", 20, None, "OSError: down"),
        {"retry_at": None},
        ["the instance is failed"],
        True,
    ),
    (StoreError("no such table"), {}, ["no such table"], False),
    (StoreUnavailable("gone away", None), {}, ["gone away"], None),
    (InvalidPayload("not equal"), {}, ["not equal"], False),
    (InvalidContext("not equal"), {}, ["not equal"], False),
    (InvalidName("id must be a str"), {}, ["id must be a str"], False),
]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "facts", "said", "committed"), CASES, ids=[f"{type(c[0]).__name__}-{n}" for n, c in enumerate(CASES)]
)
def test_facts_message_and_commitment(
    error: WorkflowError, facts: dict[str, Any], said: list[str], committed: bool | None
):
    """The facts are attributes, the message is built from them and ends with what to do."""
    assert {name: getattr(error, name) for name in facts} == facts
    for words in said:
        assert words in str(error)
    assert error.committed is committed


def test_every_error_is_covered_here():
    """A new error brings its facts and its message along."""
    assert {type(case[0]) for case in CASES} == TREE.keys() - {WorkflowError}


def test_an_unknown_outcome_is_not_a_refusal():
    """None is neither: who retries without a key must look at it with `is`."""
    assert StoreUnavailable("gone", committed=None).committed is None
    assert StoreUnavailable("gone").committed is False
