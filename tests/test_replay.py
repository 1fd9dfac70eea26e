from __future__ import annotations

from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.drawings import live, specs
from workflow.errors import IllegalTransition
from workflow.record import Instance, Kind, Status, Transition
from workflow.spec import Spec
from workflow.testing.replay import replay
from workflow.word import ANY, STAY, Edge, word

START = datetime(2026, 1, 1, tzinfo=UTC)
NOTES = [k for k in Kind if k not in {Kind.START, Kind.EVENT, Kind.TIMEOUT, Kind.COMPENSATE}]
_LIVE = {Status.RUNNING, Status.PAUSED, Status.FAILED, Status.FINISHED}
AFTER = {
    Kind.UPDATE: _LIVE,
    Kind.FAIL: _LIVE,
    Kind.REFUSED: _LIVE | {Status.CANCELLED},
    Kind.PAUSE: {Status.RUNNING},
    Kind.UNPAUSE: {Status.PAUSED},
    Kind.RETRY: _LIVE - {Status.PAUSED},
    Kind.SKIP: _LIVE - {Status.PAUSED},
    Kind.CANCEL: _LIVE - {Status.FINISHED},
    Kind.ERASE: {Status.FINISHED, Status.CANCELLED},
}
"""Which status each kind of note may follow."""


class S(StrEnum):
    CREATED = "created"
    PAID = "paid"
    SHIPPED = "shipped"


class E(StrEnum):
    PAY = "pay"
    SHIP = "ship"
    NOTE = "note"


def line(seq: int, kind: str, source: Any, event: Any, target: Any, status: str = "running", **more: Any) -> Any:
    facts: dict[str, Any] = {
        "workflow": "order",
        "id": "o-1",
        "key": None,
        "payload": None,
        "context": seq,
        "labels": None,
        "at": START + timedelta(minutes=seq),
        "by": "token",
        "undoes": None,
        "reason": None,
    }
    facts |= {"seq": seq, "kind": kind, "source": source, "event": event, "target": target, "status": Status(status)}
    return Transition(**facts | more)


order = Spec[S, E, int](
    "order",
    initial=S.CREATED,
    final={S.SHIPPED},
    context=int,
    edges=[
        Edge(S.CREATED, E.PAY, S.PAID, guard=lambda m: pytest.fail("replay asks no guard")),
        Edge(S.PAID, E.SHIP, S.SHIPPED, assign=lambda m: pytest.fail("replay assigns nothing")),
        Edge(ANY, E.NOTE, STAY),
    ],
    renames={"new": S.CREATED},
)
LINES = [
    line(1, "start", None, None, S.CREATED, below=0, labels={"shop": "north"}),
    line(2, "event", S.CREATED, E.PAY, S.PAID, below=1, key="k"),
    line(3, "event", S.PAID, E.NOTE, S.PAID),
    line(4, "event", S.PAID, E.SHIP, S.SHIPPED, "finished", below=2),
    line(5, "update", S.SHIPPED, None, S.SHIPPED, "finished", labels={"shop": "south"}),
    line(6, "refused", S.SHIPPED, E.PAY, S.SHIPPED, "failed", reason="too late"),
    line(7, "update", S.SHIPPED, None, S.SHIPPED, "failed"),
    line(8, "compensate", S.SHIPPED, None, S.PAID, undoes=4),
    line(9, "compensate", S.PAID, None, S.CREATED, undoes=2),
    line(10, "pause", S.CREATED, None, S.CREATED, "paused", reason="lunch"),
    line(11, "unpause", S.CREATED, None, S.CREATED),
    line(12, "timeout", S.CREATED, E.PAY, S.PAID, below=1),
]


def wrong(lines: list[Any]) -> str:
    with pytest.raises(IllegalTransition) as caught:
        replay(order, lines)
    return str(caught.value)


def test_the_head_is_what_the_lines_add_up_to() -> None:
    """State, status, context and time are those of the last line, labels the last ones given."""
    assert replay(order, LINES) == Instance(
        workflow="order",
        id="o-1",
        state=S.PAID,
        seq=12,
        status=Status.RUNNING,
        context=12,
        labels={"shop": "south"},
        started_at=LINES[0].at,
        changed_at=LINES[-1].at,
        reason=None,
    )


@pytest.mark.parametrize("upto", range(1, len(LINES) + 1))
def test_a_prefix_gives_the_head_of_that_moment(upto: int) -> None:
    """Any beginning of a history is a history."""
    head = replay(order, LINES[:upto])
    last = LINES[upto - 1]
    assert (head.state, head.seq, head.status, head.context) == (last.target, upto, last.status, upto)
    assert head.changed_at == last.at


def test_the_reason_is_that_of_the_status() -> None:
    """A line that leaves the status alone leaves its reason alone, too."""
    reasons = {upto: replay(order, LINES[:upto]).reason for upto in (5, 6, 7, 8, 10, 11)}
    assert reasons == {5: None, 6: "too late", 7: "too late", 8: None, 10: "lunch", 11: None}


def test_no_lines_are_no_history() -> None:
    """An empty history is an error that says what is missing."""
    with pytest.raises(ValueError, match="empty history"):
        replay(order, [])


def test_a_tuple_of_lines_will_do() -> None:
    """Any sequence is accepted."""
    assert replay(order, tuple(LINES)) == replay(order, LINES)


def test_renamed_words_count_as_what_they_are_called_now() -> None:
    """A bare old word that `renames` maps stands for its state of today."""
    old: Any = "new"
    lines = [replace(LINES[0], target=old), replace(LINES[1], source=old)]
    assert replay(order, lines[:1]).state is S.CREATED
    assert replay(order, lines).state is S.PAID


def test_a_word_that_the_spec_does_not_know_is_no_step() -> None:
    """A history through a state that is drawn no more stops where it enters that state."""
    lines = [LINES[0], replace(LINES[1], target="packed")]
    assert "line 2 (event) cannot follow, no edge takes 'pay' to 'packed'" in wrong(lines)


def test_a_history_begins_with_its_start() -> None:
    """The first line is the start at seq 1, and there is no second."""
    assert "line 1 (event) cannot follow, its seq is 2, not 1" in wrong(LINES[1:])
    assert "a history begins with its start" in wrong([replace(LINES[1], seq=1)])
    assert "line 2 (start) cannot follow, an instance starts once" in wrong([LINES[0], replace(LINES[0], seq=2)])


def test_the_start_is_not_undone() -> None:
    """Nothing is below the first entry."""
    lines = [LINES[0], line(2, "compensate", S.CREATED, None, S.CREATED, undoes=1)]
    assert "line 2 (compensate) cannot follow, the start is not undone" in wrong(lines)


def test_only_a_running_instance_takes_events() -> None:
    """Between pause and unpause no event is accepted and nothing is undone."""
    event = replace(LINES[11], seq=11)
    assert "line 11 (timeout) cannot follow, it is paused and takes no event" in wrong([*LINES[:10], event])
    paused = line(4, "pause", S.PAID, None, S.PAID, "paused")
    undoing = line(5, "compensate", S.PAID, None, S.CREATED, undoes=2)
    assert "line 5 (compensate) cannot follow, it is paused" in wrong([*LINES[:3], paused, undoing])


def test_lines_of_others_are_noticed() -> None:
    """Workflow, id, time and kind must fit as well."""
    line = LINES[1]
    assert "its workflow is 'trip', not 'order'" in wrong([LINES[0], replace(line, workflow="trip")])
    assert "its id is 'o-2', not 'o-1'" in wrong([LINES[0], replace(line, id="o-2")])
    assert "nothing is known of a kind 'migrate'" in wrong([LINES[0], replace(line, kind="migrate")])
    assert "is before that of the line above" in wrong([LINES[0], replace(line, at=START)])


def test_an_edge_behind_an_unguarded_twin_is_never_taken() -> None:
    """What the engine could not have chosen is no legal line."""
    spec = Spec[S, E, None]("order", initial=S.CREATED, edges=[
        Edge(S.CREATED, E.PAY, S.PAID),
        Edge(ANY, E.PAY, S.SHIPPED),
        Edge(S.SHIPPED, E.SHIP, S.CREATED),
    ])  # fmt: skip
    move = line(2, "event", S.CREATED, E.PAY, S.SHIPPED, below=1)
    with pytest.raises(IllegalTransition, match=r"line 2 .* no edge takes 'pay' to 'shipped'; events drawn here: pay"):
        replay(spec, [LINES[0], move])


def test_the_facts_are_kept_on_the_error() -> None:
    """The error holds the state before the line, its event, and what that state accepts."""
    with pytest.raises(IllegalTransition) as caught:
        replay(order, [*LINES[:3], replace(LINES[3], event=E.PAY)])
    error = caught.value
    assert (error.id, error.state, error.event, error.available) == ("o-1", S.PAID, E.PAY, (E.SHIP, E.NOTE))
    assert error.committed is False


def test_a_hundred_thousand_lines() -> None:
    """The cost of a line does not grow with those before it."""
    spec = Spec[S, E, None]("order", initial=S.CREATED, edges=[
        Edge(S.CREATED, E.PAY, S.PAID),
        Edge(S.PAID, E.SHIP, S.CREATED),
        Edge(S.SHIPPED, E.PAY, S.PAID),
        Edge(S.PAID, E.NOTE, S.SHIPPED),
    ])  # fmt: skip
    ways = [(S.CREATED, E.PAY, S.PAID), (S.PAID, E.SHIP, S.CREATED)]
    lines = [LINES[0], *(line(n, "event", *ways[n % 2], below=n - 1) for n in range(2, 100_001))]
    assert replay(spec, lines).seq == 100_000


# --- random walks -----------------------------------------------------------------------------------


class Walk:
    """A history in the making, and what its head should be: a model apart from `replay`."""

    def __init__(self, spec: Spec[Any, Any, None]) -> None:
        self.spec, self.ways = spec, live(spec)
        self.lines: list[Any] = []
        self.entries: list[tuple[int, str]] = []
        self.add(Kind.START, None, None, word(spec.initial), below=0)

    @property
    def state(self) -> str:
        return word(self.lines[-1].target)

    @property
    def status(self) -> Status:
        return Status(self.lines[-1].status)

    @property
    def rest(self) -> Status:
        return Status.FINISHED if self.spec.is_final(self.state) else Status.RUNNING

    def add(
        self, kind: Kind, source: str | None, event: str | None, target: str, status: str = "", **more: Any
    ) -> None:
        final = Status.FINISHED if self.spec.is_final(target) else Status.RUNNING
        seq = len(self.lines) + 1
        made = line(
            seq,
            kind,
            None if source is None else self.spec.state_of(source),
            None if event is None else self.spec.event_of(event),
            self.spec.state_of(target),
            status or final,
            workflow="drawn",
            **more,
        )
        self.lines.append(made)
        if made.below is not None:
            self.entries.append((seq, target))

    def steps(self) -> list[tuple[Kind, str | None, str, bool]]:
        """What may come next: kind, event, target, stays."""
        found: list[tuple[Kind, str | None, str, bool]] = []
        if self.status == Status.RUNNING:
            ends = [(e, *end) for (s, e), twins in self.ways.items() if s == self.state for end in twins]
            found += [(kind, *end) for end in ends for kind in (Kind.EVENT, Kind.TIMEOUT)]
        if self.status in {Status.RUNNING, Status.FINISHED, Status.FAILED} and len(self.entries) > 1:
            found.append((Kind.COMPENSATE, None, self.entries[-2][1], False))
        return found + [(kind, None, self.state, True) for kind in NOTES if self.status in AFTER[kind]]

    def go(self, kind: Kind, event: str | None, target: str, stays: bool) -> None:
        if kind in NOTES:
            self.note(kind)
        elif kind == Kind.COMPENSATE:
            self.add(kind, self.state, None, target, undoes=self.entries.pop()[0])
        else:
            self.add(kind, self.state, event, target, below=None if stays else self.entries[-1][0])

    def note(self, kind: Kind) -> None:
        event = next(iter(self.spec.events)).value if kind == Kind.REFUSED else None
        status = {
            Kind.UPDATE: self.status,
            Kind.REFUSED: Status.CANCELLED if self.status == Status.CANCELLED else Status.FAILED,
            Kind.FAIL: Status.FAILED,
            Kind.PAUSE: Status.PAUSED,
            Kind.CANCEL: Status.CANCELLED,
            Kind.ERASE: Status.ERASED,
        }.get(kind, self.rest)
        self.add(kind, self.state, event, self.state, status, reason=f"{kind} {len(self.lines)}")


@st.composite
def walks(draw: st.DrawFn) -> Walk:
    walk = Walk(draw(specs()))
    for _ in range(draw(st.integers(0, 12))):
        steps = walk.steps()
        if not steps:
            break
        # moves as often as notes, else most walks would stand still
        moves = [step for step in steps if step[0] not in NOTES]
        moving = bool(moves) and draw(st.booleans())
        walk.go(*draw(st.sampled_from(moves if moving else steps)))
    return walk


@given(walks())
def test_a_walk_over_the_drawing_is_accepted(walk: Walk) -> None:
    """Every history that the drawing allows replays to its head."""
    head = replay(walk.spec, walk.lines)
    assert (head.state, head.status, head.seq) == (walk.lines[-1].target, walk.status, len(walk.lines))


def legal(walk: Walk, line: Any, field: str, found: Any) -> bool:
    """Is the line, with that other value, one that may stand in its place after all?"""
    kind = Kind(line.kind)
    if kind in {Kind.EVENT, Kind.TIMEOUT}:
        moved = found.below is not None
        if (
            field not in {"event", "target", "below"}
            or found.event is None
            or (moved and found.below != top(walk, line))
        ):
            return False
        ends = walk.ways.get((word(line.source), word(found.event)), [])
        return (getattr(found.target, "value", None), not moved) in ends
    if field == "event":
        return kind not in {Kind.START, Kind.COMPENSATE, Kind.UPDATE} and (
            kind != Kind.REFUSED or found.event is not None or line.status == Status.CANCELLED
        )
    if field == "status" and kind in {Kind.REFUSED, Kind.FAIL}:
        return bool(found.status == walk.lines[line.seq - 2].status)
    return False


def top(walk: Walk, line: Any) -> int:
    """The line of the entry on top of the stack just before this line."""
    before = walk.lines[: line.seq - 1]
    undone = {other.undoes for other in before}
    return max(int(other.seq) for other in before if other.below is not None and other.seq not in undone)


def others(walk: Walk, field: str) -> list[Any]:
    numbers = range(-1, len(walk.lines) + 2)
    return {
        "seq": [*numbers],
        "source": [None, *walk.spec.states, "unknown"],
        "event": [None, *walk.spec.events],
        "target": [*walk.spec.states, "unknown"],
        "undoes": [None, *numbers],
        "below": [None, *numbers],
        "status": [*Status],
    }[field]


@pytest.mark.parametrize("field", ["seq", "source", "event", "target", "undoes", "below", "status"])
@given(walk=walks(), dice=st.randoms(use_true_random=False))
def test_a_corrupted_line_is_noticed_and_named(field: str, walk: Walk, dice: Any) -> None:
    """Any one field changed into what it cannot be is reported, at that very line and not at a later one."""
    for at, line in enumerate(walk.lines):
        value = dice.choice([v for v in others(walk, field) if v != getattr(line, field)])
        found = replace(line, **{field: value})
        if not legal(walk, line, field, found):
            with pytest.raises(IllegalTransition, match=rf"line {at + 1} \("):
                replay(walk.spec, [*walk.lines[:at], found, *walk.lines[at + 1 :]])
