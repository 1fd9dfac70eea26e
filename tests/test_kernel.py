"""Pure judgement: nobody waits, nothing is written, the same answer for the same question."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from attrs import evolve

from tests.flows import NOON, ROW, Ctx, E, Log, S, edged, flow
from workflow import STAY, Deny, Edge, Finished, GuardError, GuardRejected, IllegalTransition, NotRunning, UnknownState
from workflow.kernel import Accepted, Author, Refused, born, judge, moved, noted, straight
from workflow.record import Kind, Status

ME = Author("c0ffee", "me", 3)


def begun(spec, **more):
    """A head after the start."""
    _, head = born(spec, "i", '{"n":1,"words":[]}', None, ME, None)
    return msgspec.structs.replace(head, **more)


def verdict(spec, head, event, payload=None):
    """Drive a judgement that asks nobody."""
    thinking = judge(spec, head, event, payload, NOON)
    with pytest.raises(StopIteration) as stop:
        next(thinking)
    return stop.value.value


def test_birth():
    """Line 1 enters the initial state, stores the context and owes the first entry's hooks."""
    spec = flow(on_enter={S.A: Log().hook("a")})
    line, head = born(spec, "i", "{}", '{"l":"x"}', ME, "k")
    assert (line.seq, line.kind, line.source, line.event, line.target, line.below) == (1, "start", None, None, "a", 0)
    assert (line.owes, line.key, line.commit_id, line.by, line.version) == (("enter/a/a",), "k", "c0ffee", "me", 3)
    assert (head.seq, head.state, head.status, head.top, head.goal, head.context_seq) == (1, "a", "running", 1, 0, 1)
    assert head.labels == '{"l":"x"}'


def test_the_straight_way_agrees_with_judgement():
    """Where the first edge asks nobody both ways give the same verdict; elsewhere the straight way knows nothing."""
    spec = flow(edges=edged(Edge(S.A, E.BACK, S.C, guard=lambda m: True)))
    for state in ("a", "b", "c", "d"):
        head = begun(spec, state=state)
        for event in E:
            quick = straight(spec, head, event.value)
            if quick is not None:
                assert quick == verdict(spec, head, event.value)
    assert straight(spec, begun(spec), "back") is None
    assert straight(spec, begun(spec), "add") is None
    assert straight(spec, begun(spec, status="failed"), "go") is None
    assert straight(spec, begun(spec, state="nowhere"), "go") is None


def test_refusals():
    """Each refusal with its facts."""
    spec = flow()
    assert isinstance(verdict(spec, begun(spec), "back"), Refused)
    for head, event, error in (
        (begun(spec), "back", IllegalTransition),
        (begun(spec, state="end", status="finished"), "go", Finished),
        (begun(spec, status="failed", reason="why"), "go", NotRunning),
        (begun(spec, status="paused"), "go", NotRunning),
        (begun(spec, state="nowhere"), "go", UnknownState),
    ):
        assert type(verdict(spec, head, event).error) is error


def test_guards():
    """First passing edge wins; denials are collected; junk and errors are nobody's no."""
    tries: list[Any] = [False, Deny("why"), True]
    edges: list[Any] = []
    for n, state in enumerate((S.B, S.C, S.D)):
        guard: Any = lambda m, n=n: tries[n]  # noqa: E731
        edges.append(Edge(S.A, E.BACK, state, guard=guard))
    spec = flow(edges=edged(*edges))
    assert verdict(spec, begun(spec), "back").arc.target == "d"
    tries[2] = False
    error = verdict(spec, begun(spec), "back").error
    assert isinstance(error, GuardRejected)
    assert error.reasons[1] == "why"
    tries[0] = 0
    assert isinstance(verdict(spec, begun(spec), "back").error, GuardError)
    cause = KeyError("x")

    def raises(m):
        raise cause

    spec = flow(edges=edged(Edge(S.A, E.BACK, S.B, guard=raises)))
    assert verdict(spec, begun(spec), "back").error.__cause__ is cause


def test_async_guards_are_yielded():
    """An async guard's awaitable is handed out, its answer or error sent in."""

    async def guard(m):
        return True

    spec = flow(edges=edged(Edge(S.A, E.BACK, S.B, guard=guard)))
    thinking: Any = judge(spec, begun(spec), "back", None, NOON)
    next(thinking).close()
    with pytest.raises(StopIteration) as stop:
        thinking.send(True)
    assert isinstance(stop.value.value, Accepted)
    thinking = judge(spec, begun(spec), "back", None, NOON)
    next(thinking).close()
    with pytest.raises(StopIteration) as stop:
        thinking.throw(ValueError("no"))
    assert isinstance(stop.value.value.error, GuardError)


def test_async_assigns_are_refused():
    """An assign is a plain function."""

    async def assign(m):
        return m.context

    spec = flow(edges=edged(Edge(S.A, E.BACK, S.B, assign=assign)))
    assert isinstance(verdict(spec, begun(spec), "back").error, GuardError)


def test_lines():
    """A move pushes, STAY does not; the context stands where it changed or where effects are owed."""
    log = Log()
    spec = flow(on_enter={S.B: log.hook("b")}, on_exit={S.A: log.hook("a")})
    head = begun(spec)
    line, after = moved(spec, head, verdict(spec, head, "go"), ME, key="k", payload="1", chain=2)
    assert (line.seq, line.below, line.owes, line.key, line.payload, line.chain) == (
        2,
        1,
        ("exit/a/a", "enter/b/b"),
        "k",
        "1",
        2,
    )
    assert (line.context, line.context_seq, after.context_seq) == (head.context, 2, 2)
    assert (after.state, after.top, after.status) == ("b", 2, "running")
    line, after = moved(spec, after, verdict(spec, after, "note"), ME)
    assert (line.seq, line.below, line.owes, line.context, line.context_seq) == (3, None, (), None, 2)
    assert after.top == 2
    line, after = moved(spec, after, verdict(spec, after, "add", 4), ME)
    assert (line.context, line.context_seq) == ('{"n":5,"words":[]}', 4)
    line, after = moved(spec, after, verdict(spec, after, "stop"), ME)
    assert (line.status, after.status) == ("finished", "finished")


def test_notes():
    """A note leaves the state and the stack alone; it keeps the status unless it sets one."""
    spec = flow()
    head = begun(spec, reason="old")
    line, after = noted(head, Kind.UPDATE, ME, context="{}")
    assert (line.source, line.target, line.status, line.context, line.below) == ("a", "a", "running", "{}", None)
    assert (after.seq, after.top, after.context, after.context_seq, after.reason) == (2, 1, "{}", 2, "old")
    line, after = noted(head, Kind.FAIL, ME, status=Status.FAILED, reason="new")
    assert (line.status, line.reason, after.status, after.reason, after.context_seq) == (
        "failed",
        "new",
        "failed",
        "new",
        1,
    )


def test_judging_changes_nothing():
    """The caller's head is frozen; asked twice the answer is the same."""
    spec = flow(edges=edged(Edge(S.A, E.BACK, STAY, assign=lambda m: evolve(m.context, n=m.context.n + 1))))
    head = begun(spec)
    assert verdict(spec, head, "back") == verdict(spec, head, "back")
    assert head == begun(spec)
    with pytest.raises(AttributeError):
        setattr(head, "seq", 7)  # noqa: B010  # a checker would not let it pass
    assert Ctx(1) == spec.context_codec.decode(head.context)
    assert len(ROW) == 7
