"""Was every call answered rightly? Calls and their answers against the lines and what the model made of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from typing import TypeVar

from tests.model import Instance
from tests.stage import Began, Call, DoubtError, Ended, Gone, Past, Sketch, Stage, Written, height
from workflow import (
    AlreadyStarted,
    Busy,
    Conflict,
    Finished,
    GuardError,
    IllegalTransition,
    KeyConflict,
    LeaseLost,
    NotRunning,
    StoreError,
    UnknownInstance,
)
from workflow.record import Line
from workflow.undoing import TAKEN_UP, WITHDRAWN

MOVES = ("start", "send", "open", "compensate", "withdraw")
"""Calls that are judged in the order of arrival."""
STEERS = ("pause", "unpause", "cancel", "retry", "skip", "erase")
"""Calls that are not."""
M = TypeVar("M", bound=Instance)
_VERBS = {"start": "start", "event": "send", "compensate": "compensate"} | {verb: verb for verb in STEERS}


def judged(stage: Stage, *, fenced: bool, model: Callable[[Sketch, bool], M]) -> Mapping[str, M]:
    """Every instance as the model has it after all that happened. AssertionError at the first wrong step."""
    instances: dict[str, M] = defaultdict(lambda: model(stage.sketch, fenced))
    for entry in stage.record:
        if isinstance(entry, Written):
            instances[entry.line.id].take(entry)
        elif isinstance(entry, Began):
            instances[entry.id].began(entry)
        elif isinstance(entry, Ended):
            instances[entry.id].ended(entry)
        elif isinstance(entry, Gone):
            for instance in instances.values():
                instance.gone(entry.seat)
        else:
            instances[entry.id].due(entry)
    for id in {call.id for call in stage.calls}:
        safe = fenced and not any(isinstance(entry, Gone) for entry in stage.record)
        _answered(
            [call for call in stage.calls if call.id == id and call.verb in MOVES + STEERS], instances[id], fenced=safe
        )
    return instances


def at_rest(instance: Instance) -> None:
    """Nothing is owed any more, unless the instance failed."""
    if instance.status not in ("failed", "paused"):
        assert not instance.pending(), f"never run: {instance.pending()}"
        assert (instance.events, instance.updates) == ([], []), "forgotten"
        assert not instance.goal, "the undoing stopped half-way"


def _answered(calls: list[Call], instance: Instance, *, fenced: bool) -> None:
    keys = Counter(line.key for line in instance.lines if line.key is not None)
    assert not keys or max(keys.values()) == 1, "a key on two lines"
    owner: dict[int, Call] = {}
    newest: dict[str, int] = defaultdict(int)
    for call in calls:
        _allowed(call, instance, fenced=fenced)
        outcome = call.outcome
        if outcome is None:
            continue
        line = instance.lines[outcome.transition.seq - 1]
        assert _same(call, line), f"{call} was answered with {line}"
        assert line.seq <= call.after
        if not outcome.duplicate:
            assert call.before < line.seq, f"{call} was answered with an older line"
            assert line.seq not in owner, f"{call} was answered with the line of {owner.get(line.seq)}"
            owner[line.seq] = call
            if call.verb in MOVES:
                assert newest[call.seat] < line.seq, f"{call} was judged out of order"
                newest[call.seat] = line.seq
    _caused(instance, owner, [call for call in calls if call.unknown])


def _same(call: Call, line: Line) -> bool:
    sent = call.what == line.event if line.kind == "event" else True
    verb = "send" if call.verb == "open" else call.verb
    if line.payload in (TAKEN_UP, WITHDRAWN):
        return call.verb == ("compensate" if line.payload == TAKEN_UP else "withdraw") and call.key == line.key
    return _VERBS.get(line.kind) == verb and call.key == line.key and sent


def _caused(instance: Instance, owner: dict[int, Call], unknown: list[Call]) -> None:
    """Each line that only a call can cause has one, and so a refused call has none."""
    left, lines = list(unknown), instance.lines
    for n, line in enumerate(lines):
        asked = line.kind in ("start", *STEERS) or (line.kind == "event" and not line.chain)
        if line.kind in ("compensate", "cancel"):
            asked = line.key is not None
        if line.seq in instance.fired:
            asked = False
        if line.kind == "start" and len(lines) > 1 and lines[1].commit_id == line.commit_id:
            asked = False  # `send(start=)`: the next line says who
        if not asked or line.seq in owner:
            continue
        call = next((c for c in left if _same(c, line)), None)
        assert call is not None, f"nobody asked for line {n + 1}: {line}"
        left.remove(call)


def _allowed(call: Call, instance: Instance, *, fenced: bool) -> None:
    """Was it right to refuse? So if the reason held at some time between arrival and answer."""
    error, during = call.answer, instance.past[call.before : call.after + 1]
    if call.verb == "open" and not call.before:
        during.append(Past(instance.sketch.states[0], "running", 0, (), 0))
    if isinstance(error, IllegalTransition) and call.verb in STEERS:
        wrong = ("finished",) if isinstance(error, Finished) else ("running", "finished")
        assert any(past.status in wrong for past in during), f"{call}: {error!r}"
    elif isinstance(error, IllegalTransition) and call.verb == "compensate":
        heights = [(height(call.what, past.below), past.goal) for past in during]
        assert any(not to or to > goal > 0 for to, goal in heights), f"{call} could have been undone"
    elif isinstance(error, IllegalTransition):
        ways = [instance.sketch.way(call.what, p.state, p.context) for p in during if p.state == error.state.name]
        assert None in ways, f"{call} might have been taken"
    elif isinstance(error, NotRunning):
        assert any(past.status == error.status for past in during), f"{call}: it never was {error.status}"
    elif isinstance(error, AlreadyStarted):
        assert len(during) > 1 or call.before
    elif isinstance(error, UnknownInstance):
        assert not call.before
    elif isinstance(error, KeyConflict):
        line = next(line for line in instance.lines if line.key == call.key)
        assert not _same(call, line), f"{call} repeats {line}"
    elif isinstance(error, LeaseLost):
        assert not fenced, "nobody lost a lease"
    elif isinstance(error, GuardError):
        assert isinstance(error.__cause__, (TimeoutError, DoubtError)), f"{call}: no guard here raises anything else"
    elif call.outcome is None and call.answer is not None:
        assert isinstance(error, (Busy, Conflict, StoreError)), f"{call}: {error!r}"
