"""The drawing as a Mermaid state diagram, with the way that one instance took or how often all did.

A label reads `event [guard] / action`. Edges that differ only in guard or action are one arrow, as
history does not tell them apart. `(stays)` marks a `STAY` edge, `✓ 2, 5` the lines of history that
took the arrow, `×40` how often it was counted, `↩` a state that has a compensator. Visited states
have the class `taken`, the last one the class `present`.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, cast

from attrs import define, field, frozen

from .check import Way
from .record import Kind, Transition
from .spec import C, E, S, Spec
from .word import Hooks, Wild, word

__all__ = ["mermaid"]

_WIDE = 3
"""An ANY edge with more sources than this is drawn as one arrow from a node of its own."""
_SHOWN = 6
"""So many lines are named on an arrow before its middle is left out."""
_STYLES = (
    "classDef taken fill:#d7f0dd,stroke:#2e7d46,color:#123",
    "classDef present fill:#2e7d46,stroke:#123,color:#fff,stroke-width:3px",
)
_PLAIN = re.compile(
    r"""(?!(?:accdescr|acctitle|as|choice|class|classdef|click|default|direction|end|fork|hide|href|join|left|linkstyle
        |note|of|over|right|root|root_end|root_start|scale|state|statediagram|style)$)     # Mermaid's own words
    (?!(?:constructor|hasownproperty|isprototypeof|prototype|tolocalestring|tostring|valueof)$)     # JavaScript's
    [a-z][a-z0-9_]*$""",
    re.VERBOSE | re.IGNORECASE | re.ASCII,
)
_UNSAFE = re.compile(
    r"""[!-~](?<![\w.,()/'+=-])         # syntax, HTML and Markdown
    | (?<![^\W_])_ | _(?![^\W_])        # emphasis; an underscore inside a word is none
    | (?<=www)\.                        # a link
    | [.)](?=\ |$) | ^[()/'+=-] | ^[.,] # the number or bullet of a list
    | ^\  | \ (?=\ |$)                  # space that would be lost
    """,
    re.VERBOSE,
)


def mermaid(
    spec: Spec[S, E, C],
    *,
    history: Sequence[Transition[S, E, C]] | None = None,
    counts: Mapping[tuple[S, E], int] | None = None,
) -> str:
    """A `stateDiagram-v2` of the drawing.

    `history`, the lines of one instance, marks the way taken and the present state; what was refused
    was not taken. Undoings, and steps taken that are no longer drawn, get arrows of their own.
    `counts` says how often (state, event) happened; where several arrows share a pair the number is
    that of all together, and a pair that no edge takes becomes a note at the state.
    """
    picture = _Picture(spec)
    for line in history or ():
        picture.walk(line)
    for (state, event), count in (counts or {}).items():
        picture.count(_text(state), _text(event), count)
    return "".join(f"{line}\n" for line in ("stateDiagram-v2", *(f"    {line}" for line in picture.lines())))


@frozen
class _Key:
    """What tells one arrow from another."""

    source: str | None
    """None: the arrow to a first state."""
    event: str | None
    """None: no edge of the drawing, a start or an undoing."""
    target: str
    stay: bool = False


@define
class _Arrow:
    """What an arrow stands for."""

    remark: str = ""
    clauses: list[str] = field(factory=list[str])
    """Guard and action of each edge in it."""
    ways: list[int] = field(factory=list[int])
    """The number of each edge in it."""
    lines: list[int] = field(factory=list[int])
    """The lines of history that took it."""


class _Picture:
    """The arrows in the order drawn, and what is known of the states."""

    def __init__(self, spec: Spec[Any, Any, Any]) -> None:
        self.spec = spec
        self.states = dict.fromkeys(word(s) for s in spec.states)
        self.arrows = {_Key(None, None, word(spec.initial)): _Arrow()}
        self.hidden: dict[int, list[str]] = {}
        """By number of an edge: the sources in which an unguarded twin before it always wins."""
        self.counts: dict[tuple[str | None, str | None], int] = {}
        self.taken: dict[str, None] = {}
        self.present: str | None = None
        self._draw(spec.drawing.ways)
        self.shared = Counter((key.source, key.event) for key in self.arrows)

    def _draw(self, ways: Sequence[Way]) -> None:
        asked: dict[tuple[str, str], bool] = {}
        for number, way in enumerate(ways):
            stay = way.target is Wild.STAY
            for source in map(word, way.sources):
                pair = source, word(way.event)
                if asked.get(pair) is False:
                    self.hidden.setdefault(number, []).append(source)
                    continue
                arrow = self.arrows.setdefault(_Key(*pair, source if stay else word(way.target), stay), _Arrow())
                arrow.clauses.append(_clause(way, later=pair in asked))
                arrow.ways.append(number)
                asked[pair] = way.guard is not None

    # --- what happened ----------------------------------------------------------------------------

    def walk(self, line: Transition[Any, Any, Any]) -> None:
        """Mark what this line took."""
        target = _text(line.target)
        if line.kind == Kind.START:
            self._take(_Key(None, None, target), line.seq)
        elif line.kind == Kind.COMPENSATE:
            self._take(_Key(_text(line.source), None, target), line.seq, "undo")
        elif line.kind in (Kind.EVENT, Kind.TIMEOUT):
            self._take(self._arrow(_text(line.source), _text(line.event), target, line.below), line.seq, "(not drawn)")
        self.states.setdefault(target)
        self.taken.setdefault(target)
        self.present = target

    def _arrow(self, source: str, event: str, target: str, below: int | None) -> _Key:
        """The arrow of a step; lines written by hand may not tell a `STAY` from a move to the same state."""
        stays = source == target and below is None
        keys = [_Key(source, event, target, stay) for stay in (stays, not stays)]
        return next((key for key in keys if key in self.arrows), keys[0])

    def _take(self, key: _Key, seq: int, remark: str = "") -> None:
        if key.source is not None:
            self.states.setdefault(key.source)
        self.arrows.setdefault(key, _Arrow(remark)).lines.append(seq)

    def count(self, state: str, event: str, count: int) -> None:
        """Note how often `event` came in `state`."""
        self.states.setdefault(state)
        self.counts[state, event] = count

    # --- as text ----------------------------------------------------------------------------------

    def lines(self) -> Iterator[str]:
        """The diagram, line by line."""
        labels = {key: self._label(key, arrow) for key, arrow in self.arrows.items()}
        folds = self._folds(labels)
        ids = _ids([*self.states])
        anywhere = _fresh("any", ids.values())
        yield from self._names(ids)
        if folds:
            yield f'state "any state" as {anywhere}'
        for key, label in labels.items():
            number = folds.get(key)
            if number is None:
                source = "[*]" if key.source is None else ids[key.source]
                yield _row(source, ids[key.target], label)
            elif next(k for k, n in folds.items() if n == number) == key:
                yield _row(anywhere, anywhere if key.stay else ids[key.target], label + self._except(number))
        yield from (f"{ids[word(s)]} --> [*]" for s in self.spec.states if s in self.spec.final)
        yield from self._notes(ids)
        yield from self._classes(ids)

    def _names(self, ids: Mapping[str, str]) -> Iterator[str]:
        for state, id in ids.items():
            name = _safe(state) + (" ↩" if state in self.spec.tables.undo else "")
            if name != id:
                yield f'state "{name}" as {id}'

    def _label(self, key: _Key, arrow: _Arrow) -> str:
        pair = key.source, key.event
        parts = [
            "" if key.event is None else _safe(key.event),
            " or ".join(clause for clause in arrow.clauses if clause),
            "(stays)" if key.stay else "",
            arrow.remark,
            _times(self.counts[pair], together=self.shared[pair] > 1) if pair in self.counts and arrow.ways else "",
            _ticks(arrow.lines),
        ]
        return " ".join(part for part in parts if part)

    def _folds(self, labels: Mapping[_Key, str]) -> dict[_Key, int]:
        """The arrows that become part of one from `any state`, by the number of their ANY edge.

        An arrow about which more is to be said than about the others of its edge stays on its own.
        """
        groups: dict[tuple[int, str], list[_Key]] = {}
        for key, arrow in self.arrows.items():
            apart = arrow.lines or (key.source, key.event) in self.counts
            if len(arrow.ways) == 1 and self.spec.drawing.ways[arrow.ways[0]].wild and not apart:
                groups.setdefault((arrow.ways[0], labels[key]), []).append(key)
        return {key: number for (number, _), keys in groups.items() if len(keys) > _WIDE for key in keys}

    def _except(self, number: int) -> str:
        states = self.hidden.get(number)
        return f" (not from {', '.join(map(_safe, states))})" if states else ""

    def _notes(self, ids: Mapping[str, str]) -> Iterator[str]:
        drawn = {(key.source, key.event) for key, arrow in self.arrows.items() if arrow.ways}
        for state, id in ids.items():
            strays = [
                f"{_safe(e or '')} ×{n:,}" for (s, e), n in self.counts.items() if s == state and (s, e) not in drawn
            ]
            if strays:
                yield f"note right of {id} : no edge takes {', '.join(strays)}"

    def _classes(self, ids: Mapping[str, str]) -> Iterator[str]:
        if self.present is None:
            return
        yield from _STYLES
        past = [ids[state] for state in self.taken if state != self.present]
        if past:
            yield f"class {','.join(past)} taken"
        yield f"class {ids[self.present]} present"


def _row(source: str, target: str, label: str) -> str:
    return f"{source} --> {target} : {label}" if label else f"{source} --> {target}"


def _clause(way: Way, *, later: bool) -> str:
    """Guard and action of an edge; `later`: others of the same state and event are asked before it."""
    said = ["[else]"] if later else []
    if way.guard is not None:
        said = [f"[{_called(way.guard, 'guarded')}]"]
    if way.action is not None:
        action = cast("Hooks[Any, Any, Any]", way.action)
        actions = cast("Sequence[object]", action if isinstance(action, Sequence) else (action,))
        said.append(f"/ {', '.join(_called(each, 'action') for each in actions)}")
    return " ".join(said)


def _called(callback: object, nameless: str) -> str:
    while isinstance(callback, functools.partial):
        callback = cast("object", callback.func)
    name = str(getattr(callback, "__name__", type(callback).__name__))
    return nameless if name == "<lambda>" else _safe(name)


def _times(count: int, *, together: bool) -> str:
    return f"×{count:,} in all" if together else f"×{count:,}"


def _ticks(lines: Sequence[int]) -> str:
    if len(lines) > _SHOWN:
        return f"✓ {', '.join(map(str, lines[: _SHOWN - 1]))} … {lines[-1]} ({len(lines):,} times)"
    return f"✓ {', '.join(map(str, lines))}" if lines else ""


def _ids(states: Sequence[str]) -> dict[str, str]:
    """A name that Mermaid takes for each state: its word where that is one, else a number."""
    plain = {s: s for s in states if _PLAIN.fullmatch(s)}
    return {s: plain.get(s) or _fresh(f"s{number}", plain) for number, s in enumerate(states)}


def _fresh(name: str, used: Iterable[str]) -> str:
    taken = set(used)
    while name in taken:
        name += "_"
    return name


def _safe(text: str) -> str:
    """`text` as Mermaid shows it unchanged; what cannot be printed is shown as Python would write it."""
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return _UNSAFE.sub(lambda m: f"#{ord(m[0])};", shown)


def _text(member: object) -> str:
    """The word of an enum member; a bare word, which history gives where the spec knows none, is its own."""
    return word(member) if isinstance(member, Enum) else str(member)
