"""What a drawer writes: edges, moves, denials, and the types of the callbacks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Final, Generic, Literal, Protocol, TypeAlias, overload

from attrs import Factory, field, frozen
from typing_extensions import TypeVar

S = TypeVar("S", bound=Enum)
E = TypeVar("E", bound=Enum)
C = TypeVar("C", default=None)


class Wild(Enum):
    """The two words that stand where a state stands."""

    ANY = "*"
    STAY = "."


ANY: Final = Wild.ANY
"""As an edge's source: every state that is not final."""
STAY: Final = Wild.STAY
"""As an edge's target: no exit, no enter; the event is still a line of history."""
AnyState: TypeAlias = Literal[Wild.ANY]
Stay: TypeAlias = Literal[Wild.STAY]


def word(member: Enum) -> str:
    """The persisted word of an enum member: its value if that is a `str`, else its name."""
    value = member.value
    return value if isinstance(value, str) else member.name


@frozen
class Deny:
    """A guard's refusal with its reason. Falsy, so `a(m) and b(m)` works."""

    reason: str

    def __bool__(self) -> Literal[False]:
        """Always false."""
        return False


@frozen
class Then(Generic[E]):
    """Returned by a hook: send this event with this payload to the same instance next."""

    event: E
    payload: Any = None


def _no_changes() -> list[Callable[[Any], Any]]:
    return []


@frozen(kw_only=True)
class Move(Generic[S, E, C]):
    """The one argument of guards, assigns, hooks and compensators.

    In guards and assigns `context` is the one before the move, `key` is "" and `attempt` 0; in
    hooks it is the one stored with the move. `key` is the same at every attempt: hand it to other
    systems as their idempotency key. `current` says whether, when this attempt began, the state
    entered by this move was still the state.
    """

    workflow: str
    id: str
    seq: int
    source: S | None
    event: E | None
    target: S
    context: C
    at: datetime
    payload: Any = None
    key: str = ""
    attempt: int = 0
    undoes: int | None = None
    current: bool = True
    changes: list[Callable[[C], C]] | None = field(default=Factory(_no_changes), repr=False, eq=False)
    """What `update` collected; None where updating is not allowed."""

    def update(self, change: Callable[[C], C]) -> None:
        """Apply `change` to the head's context when this hook is settled (a line of kind `update`).

        `change` must be pure: it is applied again if the instance moved meanwhile.
        Raises RuntimeError in a guard or an assign.
        """
        if self.changes is None:
            msg = "m.update() is for hooks and compensators; an assign returns the new context instead"
            raise RuntimeError(msg)
        self.changes.append(change)


Guard: TypeAlias = Callable[[Move[S, E, C]], bool | Deny | Awaitable[bool | Deny]]
Assign: TypeAlias = Callable[[Move[S, E, C]], C]
Hook: TypeAlias = Callable[[Move[S, E, C]], E | Then[E] | Awaitable[E | Then[E] | None] | None]
Undo: TypeAlias = Callable[[Move[S, E, C]], Awaitable[None] | None]
Hooks: TypeAlias = Hook[S, E, C] | Sequence[Hook[S, E, C]]
Undos: TypeAlias = Undo[S, E, C] | Sequence[Undo[S, E, C]]


@frozen
class Edge(Generic[S, E, C]):
    """One way from a state, several states or `ANY`, by an event, to a state or `STAY`.

    `guard` vetoes, `assign` makes the context after the move, `action` runs after the commit
    between the exit and the enter hooks. `name` keeps the action's identity over code changes.
    """

    source: S | Iterable[S] | AnyState
    event: E
    target: S | Stay
    guard: Guard[S, E, C] | None = field(default=None, kw_only=True)
    assign: Assign[S, E, C] | None = field(default=None, kw_only=True)
    action: Hooks[S, E, C] | None = field(default=None, kw_only=True)
    name: str | None = field(default=None, kw_only=True)


LONGEST = timedelta(days=365_000)
"""Longest delay of a timeout: what is due later has no date in any calendar."""


@frozen
class After(Generic[S, E, C]):
    """A timeout: `event` is sent when the state has lasted for `delay` since it was entered.

    `delay` may be a function of the move that enters (its context is the one after it): how long,
    or when (an aware datetime), or None for no timeout. It must be pure. `name` tells two timeouts
    of one state apart; without it the event's word does.
    """

    delay: timedelta | Callable[[Move[S, E, C]], timedelta | datetime | None]
    event: E
    name: str | None = field(default=None, kw_only=True)


class Register(Protocol[S, E, C]):
    """A decorator that keeps the hook's own type, so that a unit test can `await hook(m)`."""

    @overload
    def __call__(
        self, hook: Callable[[Move[S, E, C]], Coroutine[Any, Any, E | Then[E] | None]], /
    ) -> Callable[[Move[S, E, C]], Coroutine[Any, Any, E | Then[E] | None]]: ...
    @overload
    def __call__(
        self, hook: Callable[[Move[S, E, C]], E | Then[E] | None], /
    ) -> Callable[[Move[S, E, C]], E | Then[E] | None]: ...


class RegisterUndo(Protocol[S, E, C]):
    """The same for compensators, which return nothing."""

    @overload
    def __call__(
        self, hook: Callable[[Move[S, E, C]], Coroutine[Any, Any, None]], /
    ) -> Callable[[Move[S, E, C]], Coroutine[Any, Any, None]]: ...
    @overload
    def __call__(self, hook: Callable[[Move[S, E, C]], None], /) -> Callable[[Move[S, E, C]], None]: ...
