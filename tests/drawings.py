"""Random small specs for property tests, valid by construction."""

from __future__ import annotations

import itertools
from enum import Enum
from functools import partial
from typing import Any

from hypothesis import strategies as st

from workflow.check import Way
from workflow.spec import Spec
from workflow.word import ANY, STAY, Edge, Wild, word


def _asked(m: object) -> bool:
    raise AssertionError("a pure reading of the drawing asks no guard")


@st.composite
def specs(draw: st.DrawFn, *, twins: bool = True, finals: bool = True) -> Spec[Any, Any, None]:
    """Two to five states, one to three events; `ANY`, `STAY`, several sources, guarded and hidden twins.

    Without `twins` each edge has an event of its own.
    """
    states = members("s", draw(st.integers(2, 5)))
    final = draw(st.sets(st.sampled_from(states[1:]))) if finals else set()
    alive = [s for s in states if s not in final]
    pairs = [(draw(st.sampled_from([s for s in alive if s in states[:n]])), states[n]) for n in range(1, len(states))]
    pairs += [(s, draw(st.sampled_from(sorted(final, key=word) or [t for t in states if t is not s]))) for s in alive]
    source = st.one_of(st.sampled_from(alive), st.just(ANY), st.lists(st.sampled_from(alive), min_size=1, unique=True))
    more = draw(st.lists(st.tuples(source, st.one_of(st.sampled_from(states), st.just(STAY))), max_size=6))
    ways = draw(st.permutations([*pairs, *more]))
    events = members("e", draw(st.integers(1, 3)) if twins else len(ways))
    edges = [
        Edge(
            source,
            draw(st.sampled_from(events)) if twins else event,
            target,
            guard=_guard() if draw(st.booleans()) else None,
        )
        for (source, target), event in zip(ways, itertools.cycle(events), strict=False)
    ]
    return Spec("drawn", initial=states[0], final=final, edges=_seen(edges, alive))


def members(letter: str, count: int) -> list[Any]:
    """So many members of a new enum."""
    enum: Any = Enum(letter.upper(), {f"{letter.upper()}{n}": f"{letter}{n}" for n in range(count)})  # type: ignore[misc]  # functional
    return list(enum)


def live(spec: Spec[Any, Any, Any]) -> dict[tuple[str, str], list[tuple[str, bool]]]:
    """(source, event) -> (target, stays) of every edge that could ever win there, read off the drawing."""
    found: dict[tuple[str, str], list[Way]] = {}
    for way in spec.drawing.ways:
        for source in way.sources:
            twins = found.setdefault((word(source), word(way.event)), [])
            if not twins or twins[-1].guard is not None:
                twins.append(way)
    return {
        pair: [(pair[0], True) if way.target is Wild.STAY else (word(way.target), False) for way in ways]
        for pair, ways in found.items()
    }


def _guard() -> Any:
    return partial(_asked)  # a new one for each edge, so that no two are identical twins


def _seen(edges: list[Edge[Any, Any, None]], alive: list[Any]) -> list[Edge[Any, Any, None]]:
    """The same edges; one that others hide everywhere gets a guard and goes first."""
    closed: set[tuple[Any, Any]] = set()
    first: list[Edge[Any, Any, None]] = []
    rest: list[Edge[Any, Any, None]] = []
    for edge in edges:
        sources = alive if edge.source is ANY else edge.source if isinstance(edge.source, list) else [edge.source]
        pairs = {(s, edge.event) for s in sources}
        if pairs <= closed:
            first.append(Edge(edge.source, edge.event, edge.target, guard=_guard()))
        else:
            rest.append(edge)
            closed |= pairs if edge.guard is None else set()
    return first + rest
