"""The drawing, checked and compiled into tables keyed by word."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import timedelta
from enum import Enum
from typing import Any, Generic, Literal, cast

import msgspec

from .check import Drawing, Way, hook_problems, option_problems, problems
from .codec import Codec
from .errors import InvalidSpec
from .record import Head, Line, Loaded, Query, Status, Stuck
from .retry import Retry
from .store import Store
from .table import Callback, Tables, callback, callbacks, compiled
from .word import After, Edge, Hook, Hooks, Register, RegisterUndo, Undos, Wild, word
from .word import C as C
from .word import E as E
from .word import S as S

Point = Literal["on_enter", "on_exit", "compensators"]
_ALIVE = frozenset({"running", "paused", "failed", "finished"})
_PAGE = 500


class Spec(Generic[S, E, C]):
    """A state machine drawn out of two enum classes.

    `edges` are tried in the order given. `context` is the type of the data each instance carries,
    `payloads` names the types that events carry. Hooks run after the commit, at least once, in
    order; compensators undo what entering their state did. `timeouts` send an event when a state has
    lasted for so long. An effect that fails is tried again by `retry`; when it is given up the
    instance has failed, or `on_failure` is sent to it. All problems of the drawing are raised
    together as `InvalidSpec`.
    """

    def __init__(
        self,
        name: str,
        *,
        initial: S,
        edges: Sequence[Edge[S, E, C]],
        context: type[C] | None = None,
        final: Collection[S] = (),
        on_enter: Mapping[S, Hooks[S, E, C]] = {},
        on_exit: Mapping[S, Hooks[S, E, C]] = {},
        compensators: Mapping[S, Undos[S, E, C]] = {},
        payloads: Mapping[E, Any] = {},
        timeouts: Mapping[S, After[S, E, C] | Sequence[After[S, E, C]]] = {},
        retry: Retry = Retry(),  # noqa: B008  # frozen
        on_failure: E | None = None,
        renames: Mapping[str, S] = {},
        version: int = 1,
        max_chain: int = 100,
    ) -> None:
        self.name = name
        self.initial = initial
        self.final = frozenset(final)
        self.edges = tuple(edges)
        foreign = [edge for edge in cast("Sequence[object]", self.edges) if not isinstance(edge, Edge)]
        if foreign:
            how = "use Edge(source, event, target)"
            raise InvalidSpec(name, [f"edges holds {edge!r}, which is no Edge; {how}" for edge in foreign])
        self.context = context
        self.retry = retry
        self.renames = dict(renames)
        self.version = version
        self.max_chain = max_chain
        self._hooks: dict[Point, dict[S, list[Callback]]] = {
            "on_enter": {state: callbacks(hooks) for state, hooks in on_enter.items()},
            "on_exit": {state: callbacks(hooks) for state, hooks in on_exit.items()},
            "compensators": {state: callbacks(undos) for state, undos in compensators.items()},
        }
        self._timeouts = {state: _several(afters) for state, afters in timeouts.items()}
        self.on_failure = on_failure
        self._held = False
        self._tables: Tables | None = None
        self.drawing = Drawing(
            name=name,
            initial=initial,
            final=tuple(final),
            ways=tuple(_way(edge, initial, self.final) for edge in self.edges),
            hooks={p: {s: tuple(c.call for c in cs) for s, cs in by.items()} for p, by in self._hooks.items()},
            context=context,
            payloads=dict(payloads),
            renames=self.renames,
            version=version,
            max_chain=max_chain,
            retry=retry,
            timeouts=self._timeouts,
            on_failure=on_failure,
        )
        found = problems(self.drawing)
        if found:
            raise InvalidSpec(name, found)
        self._states: dict[str, S] = {word(s): s for s in type(initial)} | self.renames
        self._finals = frozenset(text for text, state in self._states.items() if state in self.final)
        self._events: dict[str, E] = {word(e): e for e in type(self.edges[0].event)}
        self.context_codec: Codec[C] = Codec(context)
        self._plain: Codec[Any] = Codec(Any)
        self._payloads: dict[str, Codec[Any]] = {word(e): Codec(t) for e, t in payloads.items()}

    # --- drawing ----------------------------------------------------------------------------------

    def on_enter(
        self, state: S, *, name: str | None = None, retry: Retry | None = None, timeout: timedelta | None = None
    ) -> Register[S, E, C]:
        """Decorator: run this hook after `state` was entered. Returns the function unchanged.

        `name` keeps the hook's identity when the function is renamed, `retry` overrides the spec's,
        after `timeout` (without the wait for a thread) an async hook is cancelled and has failed.
        Raises InvalidSpec for a state that cannot be entered, RuntimeError once a Manager holds the spec.
        """
        return self._register("on_enter", state, name, retry, timeout)

    def on_exit(
        self, state: S, *, name: str | None = None, retry: Retry | None = None, timeout: timedelta | None = None
    ) -> Register[S, E, C]:
        """Decorator: run this hook after `state` was left; otherwise as `on_enter`."""
        return self._register("on_exit", state, name, retry, timeout)

    def compensator(
        self, state: S, *, name: str | None = None, retry: Retry | None = None, timeout: timedelta | None = None
    ) -> RegisterUndo[S, E, C]:
        """Decorator: undo the effects of entering `state`; otherwise as `on_enter`."""
        return cast("RegisterUndo[S, E, C]", self._register("compensators", state, name, retry, timeout))

    def _register(
        self, point: Point, state: S, name: str | None, retry: Retry | None, timeout: timedelta | None
    ) -> Register[S, E, C]:
        def register(hook: Hook[S, E, C]) -> Hook[S, E, C]:
            if self._held:
                raise RuntimeError(f"a Manager holds spec {self.name!r}; register hooks before making the Manager")
            found = list(hook_problems(self.drawing, point, state))
            found += option_problems(point, state, hook, name, retry, timeout)
            if found:
                raise InvalidSpec(self.name, found)
            self._hooks[point].setdefault(state, []).append(callback(hook, name, retry, timeout))
            self._tables = None
            return hook

        return cast("Register[S, E, C]", register)

    def hold(self) -> None:
        """A Manager takes the spec: from now on it is immutable."""
        self._held = True

    # --- what people ask --------------------------------------------------------------------------

    @property
    def states(self) -> tuple[S, ...]:
        """All states, in the order of their enum."""
        return tuple(type(self.initial))

    @property
    def events(self) -> tuple[E, ...]:
        """All events, in the order of their enum."""
        return tuple(self._events.values())

    def accepted(self, state: S) -> tuple[E, ...]:
        """The events that some edge takes in this state, guards aside."""
        return tuple(self._events[event] for event in self.tables.arcs.get(word(state), {}))

    async def drifted(self, store: Store) -> list[Stuck]:
        """The instances in `store` that this drawing would strand: their state, an effect they owe or
        their context is not known here. Ended ones that owe nothing do not count. Raises StoreError, StoreUnavailable.
        """
        found: list[Stuck] = []
        query = Query(workflow=self.name, status=_ALIVE, limit=_PAGE)
        async with store:
            while heads := await store.find(query):
                for loaded in await store.load(self.name, [head.id for head in heads]):
                    why = None if loaded is None else self._strange(loaded, await self._owed(store, loaded))
                    if loaded is not None and why is not None:
                        found.append(_stuck(loaded.head, why))
                query = msgspec.structs.replace(query, after=heads[-1].id)
        return found

    async def _owed(self, store: Store, loaded: Loaded) -> list[str]:
        """Names of the effects not yet settled."""
        due = loaded.effects
        lines: Sequence[Line] = loaded.queue
        if due is None:
            return []
        if len(lines) > 1:  # and perhaps more than these two
            lines = await store.history(self.name, loaded.head.id, due.seq - 1)
        return [effect for line in lines for effect in line.owes][due.number :]

    def _strange(self, loaded: Loaded, owed: Sequence[str]) -> str | None:
        head = loaded.head
        if head.status == Status.FINISHED and loaded.effects is None:
            return None
        if head.state not in self._states:
            return f"state {head.state!r} is not drawn"
        for effect in owed:
            if effect not in self.tables.effects:
                return f"effect {effect!r}, which is owed, is not drawn"
        try:
            self.context_codec.decode(head.context)
        except msgspec.DecodeError as e:
            return f"the context does not fit: {e}"
        return None

    def __repr__(self) -> str:
        """Name and size."""
        return f"Spec({self.name!r}, {len(self.states)} states, {len(self.edges)} edges, version={self.version})"

    # --- what the engine looks up -----------------------------------------------------------------

    @property
    def tables(self) -> Tables:
        """The compiled drawing."""
        if self._tables is None:
            self._tables = compiled(self.edges, self.drawing.ways, self._hooks, self._timeouts, self.renames)
        return self._tables

    def state_of(self, text: str) -> S:
        """The state of a persisted word, renames applied. Raises KeyError."""
        return self._states[text]

    def knows(self, text: str) -> bool:
        """Does this word stand for a state?"""
        return text in self._states

    def event_of(self, text: str) -> E:
        """The event of a persisted word. Raises KeyError."""
        return self._events[text]

    def is_final(self, text: str) -> bool:
        """Does this word stand for a final state?"""
        return text in self._finals

    @property
    def declared(self) -> Collection[str]:
        """Words of the events whose payload has a declared type."""
        return self._payloads.keys()

    def payload_codec(self, event: str | None) -> Codec[Any]:
        """How the payload of the event with this word is written."""
        return self._plain if event is None else self._payloads.get(event, self._plain)


def _several(afters: After[S, E, C] | Sequence[After[S, E, C]]) -> tuple[After[S, E, C], ...]:
    return tuple(afters) if isinstance(afters, Sequence) else (afters,)


def _stuck(head: Head, why: str) -> Stuck:
    return Stuck(
        workflow=head.workflow,
        id=head.id,
        state=head.state,
        status=Status(head.status),
        reason=why,
        changed_at=head.changed_at,
    )


def _way(edge: Edge[Any, Any, Any], initial: Enum, final: frozenset[Any]) -> Way:
    states = list(type(initial)) if isinstance(initial, Enum) else []  # pyright: ignore[reportUnnecessaryIsInstance]  # `problems` tells untyped callers
    source: Any = edge.source
    sources: tuple[Any, ...] = (source,)
    if source is Wild.ANY:
        sources = tuple(s for s in states if s not in final)
    elif hasattr(source, "__iter__") and not isinstance(source, (Enum, str)):
        sources = tuple(dict.fromkeys(cast("Iterable[Any]", source)))
        if isinstance(source, AbstractSet):  # sets come in another order in every process
            sources = tuple(sorted(sources, key=lambda s: states.index(s) if s in states else len(states)))
    return Way(
        sources=sources,
        wild=source is Wild.ANY,
        event=edge.event,
        target=edge.target,
        guard=edge.guard,
        assign=edge.assign,
        action=edge.action,
    )
