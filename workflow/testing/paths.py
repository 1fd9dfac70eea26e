"""Walks over the drawing that together take every edge."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

from attrs import frozen

from workflow.spec import C, E, S, Spec
from workflow.word import word


@frozen(eq=False)
class _Step:
    """An edge seen from one state, in words; of guarded twins each is a step of its own."""

    source: str
    event: str
    target: str


_Steps: TypeAlias = Mapping[str, tuple[_Step, ...]]


def paths(spec: Spec[S, E, C]) -> list[list[E]]:
    """Lists of events, each from the initial state, together taking every (source, edge).

    Few and short, and always the same for one drawing. Guards are set aside: where several guarded
    edges leave one state by one event, a path means the one that leads on. An edge drawn from
    several states counts for each of them that can be reached; one that an unguarded twin before it
    hides in some state cannot be taken there and is not asked for.
    """
    steps = _steps(spec)
    home = _homes(steps)
    start = word(spec.initial)
    missing = {step for state in _reach(steps, start) for step in steps.get(state, ())}
    found: list[list[E]] = []
    while missing:
        walk = _walk(steps, home, start, missing)
        found.append([spec.event_of(step.event) for step in walk])
    return found


def _steps(spec: Spec[S, E, C]) -> _Steps:
    """The steps that can be taken out of each state: of twins, those up to the first without a guard."""
    steps: dict[str, list[_Step]] = {}
    for state, by_event in spec.tables.arcs.items():
        for event, twins in by_event.items():
            for arc in twins:
                steps.setdefault(state, []).append(_Step(state, event, arc.target))
                if arc.guard is None:
                    break
    return {state: tuple(out) for state, out in steps.items()}


def _walk(steps: _Steps, home: Mapping[str, frozenset[str]], start: str, missing: set[_Step]) -> list[_Step]:
    """One path: on to the nearest step that is missing, as long as there is one. Takes them from `missing`.

    What lies where one can come back from is taken first, ways out later, ways to a dead end last:
    so that a path ends only when nothing more can be had on it.
    """
    walk: list[_Step] = []
    here = start
    while True:
        leg = (
            _route(steps, here, lambda s: s in missing and s.target in home[s.source], within=home[here])
            or _route(steps, here, lambda s: s in missing and s.target in steps)
            or _route(steps, here, missing.__contains__)
        )
        if not leg:
            return walk
        walk += leg
        missing.difference_update(leg)
        here = leg[-1].target


def _route(
    steps: _Steps, here: str, wanted: Callable[[_Step], bool], within: Collection[str] | None = None
) -> list[_Step]:
    """The shortest way from `here`, over the states `within`, that ends with a wanted step; empty if there is none."""
    into: dict[str, _Step | None] = {here: None}
    todo = [here]
    for state in todo:
        for step in steps.get(state, ()):
            if wanted(step):
                return [*_back(into, state), step]
            if step.target not in into and (within is None or step.target in within):
                into[step.target] = step
                todo.append(step.target)
    return []


def _back(into: Mapping[str, _Step | None], state: str) -> list[_Step]:
    """The way that was found to `state`, by the step into each state on it."""
    way: list[_Step] = []
    step = into[state]
    while step is not None:
        way.append(step)
        step = into[step.source]
    return way[::-1]


def _homes(steps: _Steps) -> Mapping[str, frozenset[str]]:
    """For each state, those that can be had from it and lead back to it, itself included."""
    states = {*steps, *(step.target for out in steps.values() for step in out)}
    reach = {state: _reach(steps, state) for state in states}
    return {state: frozenset(s for s in reach[state] if state in reach[s]) for state in states}


def _reach(steps: _Steps, start: str) -> list[str]:
    """The states that can be had from `start`, itself included, nearest first."""
    found = [start]
    seen = {start}
    for state in found:
        for step in steps.get(state, ()):
            if step.target not in seen:
                seen.add(step.target)
                found.append(step.target)
    return found
