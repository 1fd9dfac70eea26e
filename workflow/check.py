"""All problems of a drawing, each one sentence that says how to mend it."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from enum import Enum
from typing import Any, cast

from attrs import frozen

from .codec import Codec
from .retry import Retry
from .word import LONGEST, After, Wild, word

NAME_LIMIT = 128
"""Longest name of a spec, in bytes of UTF-8."""
_ROLE = {"on_enter": "on_enter", "on_exit": "on_exit", "compensators": "the compensator"}


@frozen(kw_only=True)
class Way:
    """An edge with its sources spelled out."""

    sources: tuple[Any, ...]
    wild: bool
    event: Any
    target: Any
    guard: Callable[..., Any] | None
    assign: Callable[..., Any] | None
    action: object

    def __str__(self) -> str:
        """The edge as a reader of the spec would point at it."""
        sources = "ANY" if self.wild else " | ".join(said(s) for s in self.sources)
        target = "STAY" if self.target is Wild.STAY else said(self.target)
        return f"edge {sources} --{said(self.event)}--> {target}"


@frozen(kw_only=True)
class Drawing:
    """What the author drew, plain."""

    name: str
    initial: Any
    final: tuple[Any, ...]
    ways: tuple[Way, ...]
    hooks: Mapping[str, Mapping[Any, tuple[object, ...]]]
    """The callbacks of each state, by "on_enter", "on_exit" and "compensators"."""
    context: Any
    payloads: Mapping[Any, Any]
    renames: Mapping[str, Any]
    version: int
    max_chain: int
    retry: object
    timeouts: Mapping[Any, tuple[Any, ...]]
    on_failure: object


def said(member: object) -> str:
    """How a problem names a state or event: by its word, anything else by its repr."""
    return repr(word(member)) if isinstance(member, Enum) else repr(member)


def problems(drawing: Drawing) -> list[str]:
    """Every problem; the shape is only examined once all names are members of the right enum."""
    strangers = list(_strangers(drawing))
    shape = [] if strangers else [*_words(drawing), *_shape(drawing), *_twins(drawing), *_timers(drawing)]
    return [*_scalars(drawing), *_types(drawing), *_uncallable(drawing), *strangers, *shape]


def hook_problems(drawing: Drawing, point: str, state: Any) -> Iterator[str]:
    """The problems of a hook at `point` of `state`."""
    strangers = list(_foreign_hook(drawing, point, state))
    yield from strangers or _idle_hook(drawing, point, state)


def _foreign_hook(drawing: Drawing, point: str, state: object) -> Iterator[str]:
    states = _enum(drawing.initial)
    if not isinstance(state, states):
        yield f"{_ROLE[point]} names {said(state)}, which is no {states.__name__}; use a member of that enum"


def _idle_hook(drawing: Drawing, point: str, state: Any) -> Iterator[str]:
    reached = _reached(drawing)
    entered = {w.target for w in drawing.ways if w.target is not Wild.STAY and any(s in reached for s in w.sources)}
    hook = f"{_ROLE[point]} of {said(state)}"
    if point == "compensators" and state == drawing.initial and state not in entered:
        yield f"{hook} never runs, the start is not undone; remove it or draw an edge that enters the state again"
    elif state not in reached:
        yield f"{hook} never runs, the state cannot be entered; draw an edge to it or remove it"
    elif point == "on_exit" and state in drawing.final:
        yield f"{hook} never runs, final states are not left; use on_enter"


def option_problems(
    point: str, state: Any, hook: object, name: object, retry: object, timeout: object
) -> Iterator[str]:
    """The problems of what a decorator was given."""
    place = f"{point} of {said(state)}"
    if not callable(hook):
        yield f"{place} is {hook!r}, which cannot be called; decorate a function"
    if name is not None and not _storable(name):
        yield f"{place}: the name {name!r} cannot be stored; use a text"
    if retry is not None and not isinstance(retry, Retry):
        yield f"{place}: retry {retry!r} is no Retry; use Retry(attempts=..., first=...)"
    if timeout is not None and not (isinstance(timeout, timedelta) and timeout > timedelta(0)):
        yield f"{place}: timeout {timeout!r} is no length of time; use a timedelta above zero"


def _scalars(drawing: Drawing) -> Iterator[str]:
    if not _storable(drawing.name) or len(drawing.name.encode()) > NAME_LIMIT:
        yield f"the name {drawing.name!r} cannot be stored; use a text of 1 to {NAME_LIMIT} bytes"
    if type(drawing.version) is not int or drawing.version < 1:
        yield f"version {drawing.version!r} is no whole number from 1 on; count versions upwards from 1"
    if type(drawing.max_chain) is not int or drawing.max_chain < 1:
        yield f"max_chain {drawing.max_chain!r} lets no returned event through; use a whole number from 1 on"
    if not isinstance(drawing.retry, Retry):
        yield f"retry {drawing.retry!r} is no Retry; use Retry(attempts=..., first=...)"
    for old in drawing.renames:
        if not _storable(old):
            yield f"renames names {old!r}, which never was the word of a state; use the word that is stored"


def _strangers(drawing: Drawing) -> Iterator[str]:
    states = _enum(drawing.initial)
    if not _drawn(drawing.initial):
        yield f"initial {drawing.initial!r} is no enum member; draw states as an Enum class"
        return
    for state in drawing.final:
        if not isinstance(state, states):
            yield f"final names {said(state)}, which is no {states.__name__}; use a member of that enum"
    if not drawing.ways:
        yield "there are no edges; draw at least one"
        return
    events = _enum(drawing.ways[0].event)
    if not _drawn(drawing.ways[0].event):
        yield f"{drawing.ways[0]}: the event is no enum member; draw events as an Enum class"
        return
    for way in drawing.ways:
        if not way.sources and not way.wild:
            yield f"{way} has no source; name at least one state"
        for source in way.sources:
            if not isinstance(source, states):
                yield f"{way}: source {said(source)} is no {states.__name__}; use a member of that enum"
        if way.target is not Wild.STAY and not isinstance(way.target, states):
            yield f"{way}: target {said(way.target)} is no {states.__name__}; use a member of that enum or STAY"
        if not isinstance(way.event, events):
            yield f"{way}: event {said(way.event)} is no {events.__name__}; use a member of the first edge's enum"
    for point, hooked in drawing.hooks.items():
        for state in hooked:
            yield from _foreign_hook(drawing, point, state)
    yield from _foreign_timers(drawing, states, events)
    for event in drawing.payloads:
        if not isinstance(event, events):
            yield f"payloads names {said(event)}, which is no {events.__name__}; use a member of that enum"
    for old, state in drawing.renames.items():
        if not isinstance(state, states):
            yield f"renames maps {old!r} to {said(state)}, which is no {states.__name__}; use a member of that enum"


def _foreign_timers(drawing: Drawing, states: type[Enum], events: type[Enum]) -> Iterator[str]:
    for state, afters in drawing.timeouts.items():
        if not isinstance(state, states):
            yield f"timeouts names {said(state)}, which is no {states.__name__}; use a member of that enum"
        for known in afters:
            place, after = f"the timeout of {said(state)}", known
            if not isinstance(after, After):
                yield f"{place} is {after!r}, which is no After; use After(delay, event)"
                continue
            if not isinstance(known.event, events):
                yield f"{place} sends {said(known.event)}, which is no {events.__name__}; use a member of that enum"
            if known.name is not None and not _storable(known.name):
                yield f"{place} has the name {known.name!r}, which cannot be stored; use a text"
            delay = cast("object", known.delay)
            if not callable(delay) and not (isinstance(delay, timedelta) and timedelta(0) <= delay <= LONGEST):
                yield f"{place} is due after {delay!r}; use a timedelta from 0 to 1,000 years, or a function"
            if inspect.iscoroutinefunction(delay):
                yield f"{place} asks an async function; use a plain one"
    if drawing.on_failure is not None and not isinstance(drawing.on_failure, events):
        yield f"on_failure is {said(drawing.on_failure)}, which is no {events.__name__}; use a member of that enum"


def _timers(drawing: Drawing) -> Iterator[str]:
    """What is wrong with timeouts and `on_failure` once all names are known."""
    reached = _reached(drawing)
    taken = {(source, way.event) for way in drawing.ways for source in way.sources}
    for state, afters in drawing.timeouts.items():
        place = f"the timeout of {said(state)}"
        if state not in reached:
            yield f"{place} never starts, the state cannot be entered; draw an edge to it or remove it"
        elif state in drawing.final:
            yield f"{place} never fires, final states are not left; remove it"
        else:
            for after in afters:
                if (state, after.event) not in taken:
                    yield f"{place} sends {said(after.event)}, which no edge of that state takes; draw one"
                yield from _loaded(drawing, place, after.event)
        names = Counter(word(after.event) if after.name is None else after.name for after in afters)
        for name, count in names.items():
            if count > 1:
                yield f"{count} timeouts of {said(state)} are named {name!r}; give each a name of its own"
    if drawing.on_failure is not None and not any(way.event == drawing.on_failure for way in drawing.ways):
        yield f"on_failure sends {said(drawing.on_failure)}, which no edge takes; draw one"
    if drawing.on_failure is not None:
        yield from _loaded(drawing, "on_failure", drawing.on_failure)


def _loaded(drawing: Drawing, place: str, event: Any) -> Iterator[str]:
    """Is this event, which is sent without a payload, one that cannot do without?"""
    if event not in drawing.payloads:
        return
    try:
        Codec(drawing.payloads[event]).decode("null")
    except (TypeError, ValueError, NameError, RecursionError):
        yield f"{place} sends {said(event)}, which carries a payload; send an event without one, or allow None"


def _uncallable(drawing: Drawing) -> Iterator[str]:
    calls: list[tuple[str, object]] = [
        (f"{point} of {said(state)}", call)
        for point, states in drawing.hooks.items()
        for state, callbacks in states.items()
        for call in callbacks
    ]
    for way in drawing.ways:
        several = isinstance(way.action, Sequence)
        actions = cast("Sequence[object]", way.action if several else (way.action,))
        drawn = [("guard", way.guard), ("assign", way.assign), *(("action", action) for action in actions)]
        calls += [(f"{way}: {part}", call) for part, call in drawn if call is not None]
    for place, call in calls:
        if not callable(call):
            yield f"{place} is {call!r}, which cannot be called; name a function"


def _types(drawing: Drawing) -> Iterator[str]:
    pairs = [("context", drawing.context), *((f"payload of {said(e)}", t) for e, t in drawing.payloads.items())]
    for what, type in pairs:
        try:
            Codec(type)
        except (TypeError, ValueError, NameError, RecursionError) as e:
            yield f"the {what} cannot be decoded from JSON ({e}); use attrs, dataclass, Struct, TypedDict or JSON types"


def _words(drawing: Drawing) -> Iterator[str]:
    for enum in (_enum(drawing.initial), _enum(drawing.ways[0].event)):
        for member in enum:
            if not _storable(word(member)):
                yield f"{enum.__name__}.{member.name} has no storable word; give it a value that is text"
        for text, count in Counter(word(m) for m in enum).items():
            if count > 1:
                names = ", ".join(m.name for m in enum if word(m) == text)
                yield f"{enum.__name__} members {names} are all stored as {text!r}; give each a word of its own"
    known = {word(s) for s in _enum(drawing.initial)}
    for old in drawing.renames:
        if old in known:
            yield f"renames maps {old!r}, which is still a state of the spec; rename only words that are gone"


def _shape(drawing: Drawing) -> Iterator[str]:
    states = list(_enum(drawing.initial))
    reached = _reached(drawing)
    if drawing.initial in drawing.final:
        yield f"initial {said(drawing.initial)} is declared final; start in a state that can be left"
    for state in states:
        if state not in reached:
            yield f"state {said(state)} cannot be reached from {said(drawing.initial)}; draw an edge to it or remove it"
    left = {s for w in drawing.ways for s in w.sources if len(states) == 1 or w.target not in (Wild.STAY, s)}
    for state in states:
        if state in reached and state not in left and state not in drawing.final:
            yield f"state {said(state)} is a trap, no edge leads out of it; draw one or declare it final"
    if drawing.final:
        saved = _closure(drawing.final, drawing.ways, lambda w: (w.target,), lambda w: w.sources)
        for state in states:
            if state in reached and state in left and state not in saved:
                yield f"from state {said(state)} no path leads to a final state; draw one or declare no final states"
    for way in drawing.ways:
        for source in way.sources:
            if source in drawing.final:
                yield f"{way} leaves the final state {said(source)}; remove the edge or do not declare it final"
    for point, hooked in drawing.hooks.items():
        for state in hooked:
            yield from _idle_hook(drawing, point, state)


def _twins(drawing: Drawing) -> Iterator[str]:
    closed: dict[tuple[Any, Any], Way] = {}
    for number, way in enumerate(drawing.ways):
        if way in drawing.ways[:number]:
            yield f"{way} is drawn twice; remove one"
        elif way.sources and all((s, way.event) in closed for s in way.sources):
            first = closed[way.sources[0], way.event]
            yield f"{way} is never taken, the unguarded {first} comes before it; guard that one or swap them"
        if way.guard is None:
            for source in way.sources:
                closed.setdefault((source, way.event), way)


def _enum(member: object) -> type[Enum]:
    """The class of a member, once `_strangers` found no fault with it."""
    return cast("type[Enum]", type(member))


def _drawn(member: object) -> bool:
    """Is it a member of an author's enum?"""
    return isinstance(member, Enum) and not isinstance(member, Wild)


def _storable(text: object) -> bool:
    """Is it a text that every store can hold and find again?"""
    if not isinstance(text, str):
        return False
    try:
        return text.encode().find(0) < 0 < len(text)
    except UnicodeEncodeError:
        return False


def _reached(drawing: Drawing) -> set[Any]:
    return _closure((drawing.initial,), drawing.ways, lambda w: w.sources, lambda w: (w.target,))


def _closure(
    start: Iterable[Any],
    ways: Sequence[Way],
    tails: Callable[[Way], tuple[Any, ...]],
    heads: Callable[[Way], tuple[Any, ...]],
) -> set[Any]:
    """All states that can be had from `start` by going from the tails of a way to its heads."""
    steps: dict[Any, set[Any]] = {}
    for way in ways:
        for tail in tails(way):
            steps.setdefault(tail, set()).update(heads(way))
    found: set[Any] = set()
    todo = list(start)
    while todo:
        state = todo.pop()
        if state not in found and state is not Wild.STAY:
            found.add(state)
            todo.extend(steps.get(state, ()))
    return found
