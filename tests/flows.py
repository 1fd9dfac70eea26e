"""Small workflows, stores that can be watched and held up, and short ways to wait for what must come."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from attrs import evolve, frozen

from workflow import ANY, STAY, Edge, Manager, Move, Retry, Spec
from workflow.testing import replay

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


class S(StrEnum):
    """Four states in a row, and a final one."""

    A = "a"
    B = "b"
    C = "c"
    D = "d"
    END = "end"


class E(StrEnum):
    """GO leads to the next state, BACK from C to B, STOP to the end; the others stay."""

    GO = "go"
    BACK = "back"
    NOTE = "note"
    ADD = "add"
    STOP = "stop"


@frozen
class Ctx:
    """What an instance carries."""

    n: int = 0
    words: tuple[str, ...] = ()


M = Move[S, E, Ctx]


def added(m: M) -> Ctx:
    """The context after ADD."""
    return evolve(m.context, n=m.context.n + m.payload)


ROW: Any = (
    Edge(S.A, E.GO, S.B),
    Edge(S.B, E.GO, S.C),
    Edge(S.C, E.GO, S.D),
    Edge(S.C, E.BACK, S.B),
    Edge(ANY, E.ADD, STAY, assign=added),
    Edge(ANY, E.NOTE, STAY),
    Edge(ANY, E.STOP, S.END),
)


def flow(name: str = "flow", *, edges: Sequence[Any] = ROW, **more: Any) -> Spec[Any, Any, Any]:
    """The row of states with these hooks."""
    drawn: dict[str, Any] = {"initial": S.A, "final": {S.END}, "context": Ctx, "payloads": {E.ADD: int}} | more
    return Spec(name, edges=edges, **drawn)


def edged(*edges: Any) -> tuple[Any, ...]:
    """The row, with these edges before all others."""
    return (*edges, *ROW)


class Log(list[Any]):
    """What hooks did, in order; makes hooks that write into it."""

    def hook(self, name: str, answer: Any = None) -> Callable[[M], Awaitable[Any]]:
        """An async hook that notes `name`."""

        async def noted(m: M) -> Any:
            self.append(name)
            return answer

        noted.__qualname__ = name
        return noted

    def plain(self, name: str, answer: Any = None) -> Callable[[M], Any]:
        """A `def` hook that notes `name`."""

        def noted(m: M) -> Any:
            self.append(name)
            return answer

        noted.__qualname__ = name
        return noted

    def failing(
        self, name: str, times: int = 10**6, error: BaseException | None = None
    ) -> Callable[[M], Awaitable[Any]]:
        """An async hook that notes `name` and fails so often."""
        left = [times]

        async def noted(m: M) -> None:
            self.append(name)
            if left[0] > 0:
                left[0] -= 1
                raise error or ValueError(f"{name} fails")

        noted.__qualname__ = name
        return noted


class Gate:
    """A hook that tells when it was entered and waits until it may go on."""

    def __init__(self, answer: Any = None, name: str = "b") -> None:
        self.entered = asyncio.Event()
        self.open = asyncio.Event()
        self.moves: list[M] = []
        self.ended = 0
        self.cancelled = 0
        self.answer = answer

        async def gate(m: M) -> Any:
            self.moves.append(m)
            self.entered.set()
            try:
                await self.open.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
            self.ended += 1
            return self.answer

        gate.__qualname__ = name
        self.hook = gate

    @property
    def calls(self) -> int:
        """How often it was called."""
        return len(self.moves)


class _Tap:
    """A store that counts its verbs and does what a test wants before or after each."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.calls: Counter[str] = Counter()
        self.commits: list[Any] = []
        self.before: dict[str, Callable[..., Awaitable[None]]] = {}
        self.after: dict[str, Callable[..., Awaitable[None]]] = {}

    async def __aenter__(self) -> Any:
        await self.store.__aenter__()
        return self

    async def __aexit__(self, *args: Any) -> None:
        await self.store.__aexit__(*args)

    def __getattr__(self, verb: str) -> Any:
        async def call(*args: Any, **more: Any) -> Any:
            self.calls[verb] += 1
            if verb == "append":
                self.commits += args[0]
            if verb in self.before:
                await self.before[verb](*args)
            answer = await getattr(self.store, verb)(*args, **more)
            if verb in self.after:
                await self.after[verb](*args)
            return answer

        return call


Tap: Any = _Tap


def inner(manager: Manager[Any, Any, Any]) -> Any:
    """What lies behind the front desk of an open Manager."""
    return manager._writer


async def until(true: Callable[[], Any]) -> None:
    """Let others work until it is so."""
    async with asyncio.timeout(5):
        while not true():  # noqa: ASYNC110  # whatever is waited for has no event
            await asyncio.sleep(0.001)


async def turns(count: int = 20) -> None:
    """Let everybody who can go on do so."""
    for _ in range(count):
        await asyncio.sleep(0)


def waiting(manager: Manager[Any, Any, Any], id: str) -> int:
    """How many callers wait for the lane of this instance."""
    lane = inner(manager).lanes._lanes.get(id)
    return len(lane) if lane else 0


def standing_by(manager: Manager[Any, Any, Any], id: str) -> int:
    """How many callers wait for effects of this instance that run here."""
    return len(inner(manager).rest._running.get(id, ()))


@asynccontextmanager
async def crashing(manager: Manager[Any, Any, Any]) -> AsyncGenerator[Manager[Any, Any, Any]]:
    """An open Manager that ends as by SIGKILL: no drain, nothing handed back, nothing more written."""
    await manager.__aenter__()
    writer = manager._writer
    assert writer is not None
    try:
        yield manager
    finally:
        manager._writer = None
        manager._runner.caller.closing = True
        await writer.house.close()
        writer.incarnation.close()
        await manager.store.__aexit__(None, None, None)


def kinds(history: Sequence[Any]) -> list[str]:
    """The kinds of these lines."""
    return [str(line.kind) for line in history]


async def story(manager: Manager[Any, Any, Any], id: str = "i") -> list[str]:
    """The kinds of an instance's lines, once head = replay(history) was seen to hold."""
    history = await manager.history(id)
    head = await manager.get(id)
    assert [line.seq for line in history] == list(range(1, len(history) + 1))
    replayed = replay(manager.spec, history)
    assert replayed == head, (replayed, head)
    return kinds(history)


def quiet(manager: Manager[Any, Any, Any]) -> bool:
    """Is nothing left of calls: no lane, no waiter, no run?"""
    writer = manager._writer
    assert writer is not None
    return not len(writer.lanes) and not writer.rest._running and not manager._runner.running and not writer._handed


ONCE = Retry(attempts=1)
TWICE = Retry(attempts=2, first=SECOND, jitter=0.0)
EVERY_SECOND = Retry(first=SECOND, factor=1.0, jitter=0.0)
