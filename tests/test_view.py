"""Plain rows as people read them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.flows import Ctx, E, S, flow
from workflow import InvalidContext, Status, UnknownState, view
from workflow.kernel import Author, born
from workflow.record import Line

ME = Author("c0ffee", "me", 1)


def line(seq, **more):
    """A line of an instance."""
    plain: dict[str, Any] = {
        "kind": "event",
        "source": "a",
        "event": "go",
        "target": "b",
        "status": "running",
        "context_seq": 1,
    }
    return Line(workflow="flow", id="i", seq=seq, commit_id="c", by="me", **plain | more)


def head(**more):
    """A head after the start."""
    return msgspec.structs.replace(born(flow(), "i", '{"n":2,"words":["x"]}', '{"a":"b"}', ME, None)[1], **more)


def test_instance():
    """Members and values."""
    seen = view.instance(flow(), head())
    assert (seen.state, seen.status, seen.context, seen.labels) == (S.A, Status.RUNNING, Ctx(2, ("x",)), {"a": "b"})


def test_drift_is_loud():
    """An unknown state and a context that does not fit are errors of their own."""
    with pytest.raises(UnknownState):
        view.instance(flow(), head(state="x"))
    with pytest.raises(InvalidContext):
        view.instance(flow(), head(context='{"n":"two"}'))
    assert view.instance(flow(renames={"x": S.C}), head(state="x")).state is S.C


def test_transitions_carry_the_context_forward():
    """Each line shows the context in force after it."""
    lines = [line(1, context='{"n":1}'), line(2), line(3, context='{"n":3}'), line(4)]
    assert [t.context for t in view.transitions(flow(), lines)] == [Ctx(1), Ctx(1), Ctx(3), Ctx(3)]


def test_what_nobody_knows_is_given_bare():
    """Reading a history never raises: unknown words, payloads and contexts come as they are stored."""
    odd = line(1, source="x", event="y", target="z", payload='{"p":[1]}', context='{"n":"odd"}')
    (seen,) = view.transitions(flow(), [odd])
    assert (seen.source, seen.event, seen.target, seen.payload, seen.context) == (
        "x",
        "y",
        "z",
        {"p": [1]},
        {"n": "odd"},
    )
    known = view.transition(flow(), line(1, event="add", payload='"three"'), "{}")
    assert (known.event, known.payload, known.target) == (E.ADD, "three", S.B)
