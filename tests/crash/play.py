"""A process to be killed: a spec with everything in it, a script of calls, and numbered boundaries.

The work is the same at every run: one call after the other, a clock that only the script moves.
Answers and hooks are written to files, flushed to disk, before anything goes on.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from attrs import evolve, frozen

from stores import PostgresStore
from tests.crash import place
from workflow import (
    ANY,
    STAY,
    Deny,
    Edge,
    HookFailed,
    IllegalTransition,
    Manager,
    Move,
    Outcome,
    Retry,
    Spec,
    Store,
    Then,
)
from workflow.clock import Bell, SystemClock
from workflow.record import Change, Commit

EPOCH = datetime(2030, 1, 1, tzinfo=UTC)
LEASE = timedelta(seconds=30)


class State(StrEnum):
    NEW = "new"
    PAID = "paid"
    PACKED = "packed"
    SENT = "sent"
    GONE = "gone"


class Event(StrEnum):
    PAY = "pay"
    PACK = "pack"
    LABEL = "label"
    NOTE = "note"
    MARK = "mark"
    SHIP = "ship"
    CLOSE = "close"
    NEVER = "never"


@frozen
class Box:
    size: int


@frozen
class Order:
    notes: int = 0
    done: tuple[str, ...] = ()


OrderMove = Move[State, Event, Order]
OrderEdge = Edge[State, Event, Order]


# --- boundaries -------------------------------------------------------------------------------------


class Scene:
    """One process's place: its files, its clock, and the boundary at which it dies."""

    def __init__(self, folder: Path, kill: int | None = None, *, seconds: int = 0) -> None:
        self.folder, self.kill = folder, kill
        self.clock = Clock(EPOCH + timedelta(seconds=seconds))
        self.trace: list[tuple[str, str, str]] = []
        """(what, before, amid or after, a hook's key) of each boundary passed."""

    def mark(self, what: str, when: str, key: str = "") -> None:
        """A boundary: the process dies here if it is to."""
        if len(self.trace) == self.kill:
            self.write("killed", f"{what} {when} {key}")
            os.kill(os.getpid(), signal.SIGKILL)
        self.trace.append((what, when, key))

    def write(self, name: str, text: str) -> None:
        """Append a line to a file and flush it to disk."""
        with (self.folder / name).open("a") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self, name: str) -> list[str]:
        """The lines of a file so far."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []


class Clock:
    """It moves when told, and nobody sleeps on it but until a ring."""

    def __init__(self, now: datetime) -> None:
        self._now = now

    def now(self) -> datetime:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += timedelta(seconds=seconds)

    async def sleep(self, bell: Bell, until: datetime, rank: int = 1, *, look: datetime | None = None) -> None:
        await SystemClock.sleep(_STILL, bell, _STILL.now() + timedelta(days=1))

    working = SystemClock.working


_STILL = SystemClock()
_scene: Scene | None = None


def scene() -> Scene:
    """The scene that hooks write to."""
    assert _scene is not None
    return _scene


def set_scene(new: Scene) -> None:
    global _scene  # noqa: PLW0603  # hooks of the one Spec find it here, also in threads
    _scene = new


class Marked:
    """A store with a boundary before and after each verb, and amid a commit that a server does.

    One verb at a time, in the order asked, so that the boundaries come in the same order at every
    run: `resume()` looks for more work while the first is done.
    """

    def __init__(self, store: Store, scene: Scene) -> None:
        self.store, self.scene = store, scene
        self._abroad = isinstance(store, PostgresStore)
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Marked:
        await self._do("open", self.store.__aenter__)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._do("close", lambda: self.store.__aexit__(None, None, None))

    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Any:
        what = "append " + " ".join(_kind(change) for commit in commits for change in commit.changes)
        return await self._do(what, lambda: self.store.append(commits, timeout=timeout))

    def __getattr__(self, verb: str) -> Any:
        known = getattr(self.store, verb)
        return lambda *args, **options: self._do(verb, lambda: known(*args, **options))

    async def _do(self, what: str, work: Callable[[], Awaitable[Any]]) -> Any:
        async with self._turn:
            self.scene.mark(what, "before")
            if self._abroad and what.startswith("append"):
                appending = asyncio.ensure_future(work())
                await asyncio.wait((appending,), timeout=0.0005)  # a server may finish what a dead client has sent
                self.scene.mark(what, "amid")
                answer = await appending
            else:
                answer = await work()
            self.scene.mark(what, "after")
            return answer


def _kind(change: Change) -> str:
    """What a commit is about: a settle or not, its lines, what becomes of the queue."""
    words = ["settle"] if change.lease is not None and change.lease.token is not None else []
    words += [line.kind for line in change.lines]
    words += ["first"] if change.seq == 0 else []
    words += [("lease" if put.token else "queue" if put.wait == timedelta(0) else "retry") for put in change.puts]
    words += ["rest" for _ in change.drops]
    return "+".join(words)


# --- the spec ---------------------------------------------------------------------------------------


def _never(m: OrderMove) -> Deny:
    return Deny("never")


def _noted(m: OrderMove) -> Order:
    return evolve(m.context, notes=m.context.notes + 1)


def _point(m: OrderMove) -> str:
    return "hook " + m.key.split("/", 3)[3]


def _begin(m: OrderMove) -> None:
    scene().mark(_point(m), "before", m.key)
    scene().write("hooks", f"start {m.key}")
    scene().mark(_point(m), "inside", m.key)


def _end(m: OrderMove) -> None:
    scene().write("hooks", f"end {m.key}")
    scene().mark(_point(m), "after", m.key)


def _fail_once(m: OrderMove) -> None:
    """The first time that this is ever said, and only then."""
    if f"fail {m.key}" not in scene().read("hooks"):
        scene().write("hooks", f"fail {m.key}")
        scene().mark(_point(m), "failing", m.key)
        raise ConnectionError("nobody answers")


def plain(m: OrderMove) -> None:
    """Runs in a thread."""
    _begin(m)
    _end(m)


async def waiting(m: OrderMove) -> None:
    _begin(m)
    _end(m)


def remembering(m: OrderMove) -> None:
    _begin(m)
    m.update(lambda order: evolve(order, done=(*order.done, f"{m.seq} {_point(m)}")))
    _end(m)


async def boxing(m: OrderMove) -> Then[Event]:
    _begin(m)
    _end(m)
    return Then(Event.PACK, Box(3))


def labelling(m: OrderMove) -> Event:
    _begin(m)
    m.update(lambda order: evolve(order, done=(*order.done, "labelled")))
    _end(m)
    return Event.LABEL


# Those that fail are async: they run beside the look of `resume()`, and a thread would come when it likes.


async def failing(m: OrderMove) -> None:
    _begin(m)
    _fail_once(m)
    _end(m)


async def failing_and_remembering(m: OrderMove) -> None:
    _begin(m)
    _fail_once(m)
    m.update(lambda order: evolve(order, done=(*order.done, f"undone {m.undoes}")))
    _end(m)


spec = Spec[State, Event, Order](
    "order",
    initial=State.NEW,
    final={State.GONE},
    context=Order,
    payloads={Event.PACK: Box},
    retry=Retry(attempts=5, first=timedelta(seconds=1), jitter=0),
    edges=[
        OrderEdge(State.NEW, Event.PAY, State.PAID, action=waiting),
        OrderEdge(State.PAID, Event.PACK, State.PACKED),
        OrderEdge(State.PACKED, Event.LABEL, STAY, action=remembering),
        OrderEdge(State.PACKED, Event.SHIP, State.SENT, action=plain),
        OrderEdge(ANY, Event.NOTE, STAY, assign=_noted, action=waiting),
        OrderEdge(ANY, Event.MARK, STAY),
        OrderEdge(ANY, Event.NEVER, STAY, guard=_never),
        OrderEdge(ANY, Event.CLOSE, State.GONE),
    ],
    on_enter={
        State.NEW: waiting,
        State.PAID: [boxing, plain],
        State.PACKED: labelling,
        State.SENT: [failing, waiting],
        State.GONE: plain,
    },
    on_exit={State.NEW: plain, State.PACKED: remembering},
    compensators={
        State.PAID: [plain, remembering],
        State.PACKED: waiting,
        State.SENT: [failing_and_remembering, waiting],
    },
)


# --- the script -------------------------------------------------------------------------------------


class Cast:
    """Does the script's calls and writes down how they were answered."""

    def __init__(self, manager: Manager[State, Event, Order], scene: Scene) -> None:
        self.manager, self.scene = manager, scene
        self.answers: dict[str, str] = {}
        self.known = dict(json.loads(line) for line in scene.read("answers"))

    async def do(self, name: str, call: Awaitable[Outcome[State, Event, Order]]) -> None:
        """One call; its answer is on disk before the script goes on."""
        try:
            outcome: Any = await call
        except HookFailed as e:
            outcome = e.outcome
        except IllegalTransition:
            outcome = "refused"
        if isinstance(outcome, Outcome):
            assert not (name in self.known and not outcome.duplicate), f"{name} was done twice"
            outcome = repr(outcome.transition)
        self.answers[name] = outcome
        if name not in self.known:
            self.scene.write("answers", json.dumps([name, outcome]))

    async def play(self) -> None:
        """The script. Each call has a key, so that all of it can be done again."""
        m = self.manager
        await self.do("start", m.start("o-1", key="start"))
        await self.do("note", m.send("o-1", Event.NOTE, {"by": "me"}, key="note"))
        await self.do("mark", m.send("o-1", Event.MARK, key="mark"))
        await self.do("never", m.send("o-1", Event.NEVER, key="never"))
        await self.do("pay", m.send("o-1", Event.PAY, key="pay"))
        await self.do("pay again", m.send("o-1", Event.PAY, key="pay"))
        await self.do("ship", m.send("o-1", Event.SHIP, key="ship"))
        await self.do("note behind", m.send("o-1", Event.NOTE, key="note behind"))
        await self.rest("o-1")
        await self.do("open", m.send("o-2", Event.PAY, key="open", start=Order(notes=7)))
        await self.do("open again", m.send("o-2", Event.PAY, key="open", start=Order(notes=7)))
        await self.do("back", m.compensate("o-1", State.NEW, key="back"))
        await self.rest("o-1")
        await self.do("back again", m.compensate("o-1", State.NEW, key="back"))
        await self.do("close", m.send("o-1", Event.CLOSE, key="close"))
        await self.do("back a step", m.compensate("o-2", State.PAID, key="step"))
        await self.rest("o-2")
        await self.do("third", m.send("o-3", Event.PAY, key="third", start=Order()))
        await self.do("pause", m.pause("o-3", "lunch", key="pause"))
        await self.do("unpause", m.unpause("o-3", key="unpause"))
        await self.do("cancel", m.cancel("o-3", "fraud", key="cancel", compensate=True))
        await self.do("cancel again", m.cancel("o-3", key="cancel", compensate=True))
        await self.rest("o-3")

    async def rest(self, id: str) -> None:
        """What failed is tried again when its time has come."""
        self.scene.clock.advance(2)
        await self.manager.resume()
        await self.manager.settled(id, timeout=5)


async def perform(scene: Scene) -> None:
    """The whole play in this process, from the opening of the store to its closing."""
    set_scene(scene)
    store = cast("Store", Marked(place.store(scene.folder), scene))
    async with Manager(spec, store, clock=scene.clock, work=False, lease=LEASE) as manager:
        await Cast(manager, scene).play()
