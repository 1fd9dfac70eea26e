from __future__ import annotations

from enum import StrEnum
from typing import Any

from hypothesis import given

from tests.drawings import live, specs
from workflow.spec import Spec
from workflow.testing.paths import paths
from workflow.word import ANY, STAY, Edge, word


class S(StrEnum):
    CREATED = "created"
    PAID = "paid"
    SHIPPED = "shipped"
    CANCELLED = "cancelled"


class E(StrEnum):
    PAY = "pay"
    SHIP = "ship"
    CANCEL = "cancel"
    NOTE = "note"


def spec_of(*edges: Edge[S, E, None], final: tuple[S, ...] = (S.SHIPPED, S.CANCELLED)) -> Spec[S, E, None]:
    return Spec("order", initial=S.CREATED, final=final, edges=edges)


def required(spec: Spec[Any, Any, None]) -> set[tuple[str, str, str, bool]]:
    """Every (source, event, target, stays) that can be taken from the initial state on."""
    ways = live(spec)
    reached = [word(spec.initial)]
    for state in reached:
        reached += [t for (s, _), ends in ways.items() if s == state for t, _ in ends if t not in reached]
    return {(s, e, *end) for (s, e), ends in ways.items() if s in reached for end in ends}


def runs(spec: Spec[Any, Any, None], path: list[Any]) -> set[tuple[str, str, str, bool]]:
    """The steps that some run of this path takes; empty if none gets to its end."""
    ways = live(spec)
    befores: list[set[str]] = [{word(spec.initial)}]
    for event in path:
        befores.append({t for s in befores[-1] for t, _ in ways.get((s, word(event)), ())})
    ends = befores.pop()
    taken: set[tuple[str, str, str, bool]] = set()
    for before, event in zip(reversed(befores), reversed(path), strict=True):
        steps = {(s, word(event), *end) for s in before for end in ways.get((s, word(event)), ())}
        taken |= (good := {step for step in steps if step[2] in ends})
        ends = {step[0] for step in good}
    return taken


def test_order() -> None:
    """The longest way comes first, then one short path for each other way to an end."""
    spec = spec_of(
        Edge(ANY, E.CANCEL, S.CANCELLED),
        Edge(S.CREATED, E.PAY, S.PAID),
        Edge(S.PAID, E.SHIP, S.SHIPPED),
        Edge(S.PAID, E.NOTE, STAY),
    )
    assert paths(spec) == [[E.PAY, E.NOTE, E.CANCEL], [E.CANCEL], [E.PAY, E.SHIP]]


def test_guarded_twins_are_taken_each() -> None:
    """Of two guarded edges by one event each gets its path, the wanted one being assumed to win."""
    spec = spec_of(
        Edge(S.CREATED, E.PAY, S.PAID, guard=lambda m: True),
        Edge(S.CREATED, E.PAY, S.CANCELLED),
        Edge(S.PAID, E.SHIP, S.SHIPPED),
    )
    assert paths(spec) == [[E.PAY, E.SHIP], [E.PAY]]


def test_what_an_unguarded_twin_hides_is_not_asked_for() -> None:
    """Where an earlier edge overrides ANY there is one step, not two."""
    spec = spec_of(
        Edge(S.CREATED, E.CANCEL, S.PAID),
        Edge(ANY, E.CANCEL, S.CANCELLED),
        Edge(S.PAID, E.SHIP, S.SHIPPED),
    )
    assert paths(spec) == [[E.CANCEL, E.CANCEL], [E.CANCEL, E.SHIP]]


def test_a_source_that_cannot_be_reached_is_not_asked_for() -> None:
    """States that only hidden edges lead to have no path, and nothing is said of them."""
    spec = spec_of(
        Edge(S.CREATED, E.SHIP, S.SHIPPED),
        Edge((S.CREATED, S.PAID), E.SHIP, S.PAID),
        Edge(S.PAID, E.CANCEL, S.CANCELLED),
    )
    assert paths(spec) == [[E.SHIP]]


@given(specs(twins=False))
def test_every_edge_is_taken(spec: Spec[Any, Any, None]) -> None:
    """Walked from the initial state, the paths take every (source, edge) that can be taken, and end where they say."""
    ways = live(spec)
    taken: set[tuple[str, str, str, bool]] = set()
    for path in paths(spec):
        state = word(spec.initial)
        for event in path:
            ((target, stays),) = ways[state, word(event)]
            taken.add((state, word(event), target, stays))
            state = target
    assert taken == required(spec)


@given(specs())
def test_guarded_edges_are_taken_by_some_run(spec: Spec[Any, Any, None]) -> None:
    """With guards set aside each path can be walked to its end, and together they can take every edge."""
    walked = [runs(spec, path) for path in paths(spec)]
    assert all(walked)
    assert set().union(*walked) == required(spec)


@given(specs())
def test_paths_are_few_and_short(spec: Spec[Any, Any, None]) -> None:
    """No path is idle, and none is longer than a detour through all states for each edge."""
    found = paths(spec)
    # one step for each edge drawn, twins that differ only in their guards included
    steps = sum(len(ends) for (state, _), ends in live(spec).items() if state in {s for s, *_ in required(spec)})
    assert len(found) <= steps
    assert sum(map(len, found)) <= steps * len(spec.states)
    assert all(found)


@given(specs(finals=False))
def test_one_path_suffices_where_one_can_always_come_back(spec: Spec[Any, Any, None]) -> None:
    """If every state leads back to the initial one, a single path takes all edges."""
    back = {word(spec.initial)}
    edges = {(s, t) for s, _, t, _ in required(spec)}
    for _ in spec.states:
        back |= {s for s, t in edges if t in back}
    if all(s in back for s, _ in edges):
        assert len(paths(spec)) == 1


@given(specs())
def test_the_same_drawing_gives_the_same_paths(spec: Spec[Any, Any, None]) -> None:
    """Nothing depends on the order in which sets happen to be read."""
    assert paths(spec) == paths(spec)
