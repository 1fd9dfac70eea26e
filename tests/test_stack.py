"""Entries as a list linked through the lines."""

from __future__ import annotations

import msgspec
import pytest

from tests.flows import NOON, E, Log, S, flow
from workflow import UnknownState
from workflow.kernel import Author, born, judge, moved
from workflow.stack import base, today, undo, within

ME = Author("c0ffee", "me", 1)


def drive(thinking, lines):
    """Answer each peek from these lines; what it returns, and how many peeks it took."""
    peeks, answer = 0, None
    while True:
        try:
            seq = thinking.send(answer)
        except StopIteration as stop:
            return stop.value, peeks
        answer, peeks = lines[seq - 1], peeks + 1


def peek(seq):
    """The number itself stands for the awaitable."""
    return seq


def walked(spec, *events):
    """Lines and head after these events."""
    line, head = born(spec, "i", '{"n":0,"words":[]}', None, ME, None)
    lines = [line]
    for event in events:
        with pytest.raises(StopIteration) as stop:
            next(judge(spec, head, event.value, None, NOON))
        line, head = moved(spec, head, stop.value.value, ME)
        lines.append(line)
    return lines, head


def test_within():
    """Spans are half open."""
    assert not within((), 1)
    assert [n for n in range(6) if within(((1, 3), (4, 5)), n)] == [1, 2, 4]


def test_base():
    """The topmost entry below the present one; STAY lines are stepped over; the present one does not count."""
    lines, head = walked(flow(), E.GO, E.NOTE, E.GO, E.BACK, E.NOTE)  # a b . c b .
    (found, _) = drive(base(flow(), head, "b", peek), lines)
    assert [line.seq for line in found] == [2, 4]
    (found, _) = drive(base(flow(), head, "a", peek), lines)
    assert [line.seq for line in found] == [1, 2]
    assert drive(base(flow(), head, "d", peek), lines)[0] is None
    start, first = walked(flow())
    assert drive(base(flow(), first, "a", peek), start)[0] is None


def test_base_over_an_unknown_state():
    """A state that nobody knows on the way is told."""
    lines, head = walked(flow(), E.GO, E.GO)
    lines[1] = msgspec.structs.replace(lines[1], target="x")
    assert isinstance(drive(base(flow(), head, "a", peek), lines)[0], UnknownState)
    assert today(flow(renames={"x": S.B}), "x") == "b"
    assert today(flow(), "x") == "x"


def test_undo_stops_at_who_owes():
    """Entries without compensator go with the next that has one."""
    spec = flow(compensators={S.B: Log().hook("b")})
    lines, head = walked(spec, E.GO, E.GO, E.GO)
    (undone, after), _ = drive(undo(spec, head, 1, (), ME, peek, "k"), lines)
    assert [(line.undoes, line.source, line.target, line.owes, line.key) for line in undone] == [
        (4, "d", "c", (), "k"),
        (3, "c", "b", (), None),
        (2, "b", "a", ("undo/b/b",), None),
    ]
    assert (after.state, after.top, after.goal, after.seq) == ("a", 1, 0, 7)


def test_undo_goes_step_by_step():
    """An entry that owes ends the step; the goal stays in the head until it is reached."""
    spec = flow(compensators={s: Log().hook("undo") for s in (S.B, S.C, S.D)})
    lines, head = walked(spec, E.GO, E.GO, E.GO)
    seen = []
    while head.top != 1:
        (undone, head), peeks = drive(undo(spec, head, 1, (), ME, peek), lines)
        lines += undone
        seen.append((len(undone), head.state, head.goal))
        assert peeks <= 2 + len(undone)
    assert seen == [(1, "c", 1), (1, "b", 1), (1, "a", 0)]


def test_untouched_entries_owe_nothing():
    """An entry whose effects were all dropped before any was attempted is not compensated."""
    log = Log()
    spec = flow(on_enter={S.C: log.hook("c")}, compensators={S.B: log.hook("undo b"), S.C: log.hook("undo c")})
    lines, head = walked(spec, E.GO, E.GO)
    (undone, _), _ = drive(undo(spec, head, 1, ((3, 4),), ME, peek), lines)
    assert [line.owes for line in undone] == [(), ("undo/b/undo b",)]
