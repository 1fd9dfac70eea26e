"""The drawing compiled: what the engine looks up, keyed by word."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any, cast

from attrs import frozen

from .check import Way
from .record import TIMEOUT
from .retry import Retry
from .word import After, Edge, Hooks, Undos, Wild, word

_PREFIX = {"on_enter": "enter", "on_exit": "exit", "compensators": "undo"}


@frozen
class Callback:
    """A hook or compensator as drawn, with what a decorator said of it."""

    call: Callable[[Any], Any]
    name: str
    retry: Retry | None = None
    timeout: timedelta | None = None
    waits: bool = False
    """It is a coroutine function: it runs on the loop, others in a thread."""


@frozen
class Timer:
    """A timeout of a state, all in words."""

    row: str
    """Name of its due row."""
    event: str
    delay: timedelta | Callable[[Any], Any]


@frozen
class Arc:
    """An edge seen from one source state, all in words."""

    source: str
    event: str
    target: str
    stay: bool
    guard: Callable[[Any], Any] | None
    assign: Callable[[Any], Any] | None
    owes: tuple[str, ...]
    """Names of the effects it causes: exit hooks, action, enter hooks."""
    timers: tuple[Timer, ...]
    """The timeouts of the state it enters."""
    drops: tuple[str, ...]
    """Names of the due rows of the state it leaves."""
    plain: bool
    """Neither guard nor assign, nor a function that tells a timeout: judged without calling anybody."""


@frozen
class Tables:
    """What the engine looks up; made once all decorators have run."""

    arcs: Mapping[str, Mapping[str, tuple[Arc, ...]]]
    effects: Mapping[str, Callback]
    enter: Mapping[str, tuple[str, ...]]
    undo: Mapping[str, tuple[str, ...]]
    timers: Mapping[str, tuple[Timer, ...]]


def compiled(
    edges: Sequence[Edge[Any, Any, Any]],
    ways: Sequence[Way],
    hooks: Mapping[Any, Mapping[Any, Sequence[Callback]]],
    timeouts: Mapping[Any, Sequence[After[Any, Any, Any]]],
    renames: Mapping[str, Any],
) -> Tables:
    """The tables of a drawing that was found sound."""
    effects: dict[str, Callback] = {}
    owed: dict[str, dict[str, tuple[str, ...]]] = {}
    for point, states in hooks.items():
        owed[point] = {
            word(state): _named(effects, f"{_PREFIX[point]}/{word(state)}", callbacks)
            for state, callbacks in states.items()
        }
    timers = {word(state): tuple(map(_timer, afters)) for state, afters in timeouts.items()}
    arcs: dict[str, dict[str, list[Arc]]] = {}
    for edge, way in zip(edges, ways, strict=True):
        actions = [] if edge.action is None else callbacks(edge.action)
        for source in way.sources:
            here, event = word(source), word(edge.event)
            twins = arcs.setdefault(here, {}).setdefault(event, [])
            label = edge.name if edge.name is not None else str(len(twins))
            action = _named(effects, f"action/{here}/{event}/{label}", actions)
            stay = edge.target is Wild.STAY
            target = here if isinstance(edge.target, Wild) else word(edge.target)
            owes = action if stay else owed["on_exit"].get(here, ()) + action + owed["on_enter"].get(target, ())
            entered = () if stay else timers.get(target, ())
            drops = () if stay else tuple(timer.row for timer in timers.get(here, ()))
            plain = edge.guard is None and edge.assign is None and not any(callable(t.delay) for t in entered)
            twins.append(Arc(here, event, target, stay, edge.guard, edge.assign, owes, entered, drops, plain))
    for old, state in renames.items():  # what was owed under the former word is owed under it still
        for name, callback in list(effects.items()):
            spot, _, rest = name.partition("/")
            if rest.startswith(f"{word(state)}/"):
                effects.setdefault(f"{spot}/{old}/{rest.removeprefix(f'{word(state)}/')}", callback)
    return Tables(
        arcs={s: {e: tuple(a) for e, a in by_event.items()} for s, by_event in arcs.items()},
        effects=effects,
        enter=owed["on_enter"],
        undo=owed["compensators"],
        timers=timers,
    )


def callbacks(hooks: Hooks[Any, Any, Any] | Undos[Any, Any, Any]) -> list[Callback]:
    """One hook or several, as a constructor takes them."""
    several = cast("Sequence[Callable[[Any], Any]]", hooks if isinstance(hooks, Sequence) else (hooks,))
    return [callback(hook, None, None, None) for hook in several]


def callback(hook: Callable[[Any], Any], name: str | None, retry: Retry | None, timeout: timedelta | None) -> Callback:
    """A hook with what its decorator said."""
    inner: Any = hook
    while isinstance(inner, functools.partial):
        inner = cast("Any", inner.func)
    known = name if name is not None else getattr(inner, "__qualname__", type(inner).__qualname__)
    method = getattr(cast("object", type(inner)), "__call__", None)  # noqa: B004  # an object may have an async one
    waits = inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(method)
    return Callback(hook, known, retry, timeout, waits)


def _timer(after: After[Any, Any, Any]) -> Timer:
    event = word(after.event)
    return Timer(f"{TIMEOUT}{event if after.name is None else after.name}", event, after.delay)


def _named(effects: dict[str, Callback], point: str, callbacks: Sequence[Callback]) -> tuple[str, ...]:
    """Give each callback its persisted name, `#2` for the second of one name, and file it."""
    names: list[str] = []
    for callback in callbacks:
        plain = f"{point}/{callback.name}"
        count, name = 1, plain
        while name in effects:
            count += 1
            name = f"{plain}#{count}"
        names.append(name)
        effects[name] = callback
    return tuple(names)
