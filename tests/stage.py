"""A stage for interleavings: time that jumps, a scheduler that steps, a store and hooks that wait for it.

Everything runs in one thread and every choice comes from one seeded generator, so a seed is a play
that can be given again. Nothing here knows the rules: it tells `tests.model` what happened.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast
from zlib import crc32

from attrs import define, field, frozen
from msgspec.structs import replace

from stores import MemoryStore
from workflow import (
    ANY,
    STAY,
    After,
    Deny,
    Edge,
    HookFailed,
    Manager,
    Move,
    Outcome,
    Permanent,
    Retry,
    Spec,
    Store,
    StoreUnavailable,
)
from workflow.clock import SystemClock
from workflow.record import QUEUE, Commit, Committed, Due, Line
from workflow.testing import replay

T = TypeVar("T")
EPOCH = datetime(2030, 1, 1, tzinfo=UTC)
LEASE = timedelta(seconds=30)
RETRY = Retry(attempts=4, first=timedelta(seconds=1), max=timedelta(seconds=4))
UPDATED = 1000
"""What `m.update` adds to the context; an assign adds one."""
_WEEK = 7 * 86400.0
_STALL = 60.0
_STEPS = 20_000


# --- time -----------------------------------------------------------------------------------------


class _Nobody(selectors.SelectSelector):
    """Hears of no socket; when the loop would sleep, it asks what happens next."""

    idle: Callable[[float | None], None]

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None or timeout > 0:
            self.idle(timeout)
        return []


class Loop(asyncio.SelectorEventLoop):
    """An event loop on which time passes only when nothing else can happen."""

    def __init__(self) -> None:
        selector = _Nobody()
        super().__init__(selector)
        selector.idle = self._idle
        self.seconds = 0.0
        self.step: Callable[[float | None], bool] = lambda timeout: False

    def time(self) -> float:
        return self.seconds

    def _idle(self, timeout: float | None) -> None:
        if self.step(timeout):
            return
        if timeout is None or self.seconds > _WEEK:
            raise AssertionError("everybody waits for ever")
        self.seconds += timeout


class Clock:
    """The engine's clock on such a loop."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop

    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.loop.seconds)

    sleep = SystemClock.sleep
    working = SystemClock.working


# --- drawings -------------------------------------------------------------------------------------


@frozen
class Way:
    """An edge in words; `source` and `target` None are ANY and STAY."""

    source: str | None
    event: str
    target: str | None
    limit: int | None = None
    """Its guard passes while the context is below it."""
    adds: bool = False
    """Its assign adds one to the context."""
    actions: int = 0


@frozen
class Wait:
    """A timeout in words."""

    event: str
    seconds: int
    name: str | None = None
    varies: bool = False
    """A function tells it: longer by the rest of the context divided by three, none where that is two."""

    @property
    def row(self) -> str:
        """The name of its due row."""
        return f"timeout/{self.name or self.event}"

    def lasts(self, n: int) -> timedelta | None:
        """How long after an entry with this context."""
        if not self.varies:
            return timedelta(seconds=self.seconds)
        return None if n % 3 == 2 else timedelta(seconds=self.seconds + n % 3)


@frozen
class Sketch:
    """A machine in words, which the model reads and of which a Spec is made."""

    states: tuple[str, ...]
    final: frozenset[str]
    ways: tuple[Way, ...]
    enter: dict[str, int] = field(factory=dict)
    """How many hooks a state has."""
    leave: dict[str, int] = field(factory=dict)
    undo: dict[str, int] = field(factory=dict)
    waits: dict[str, tuple[Wait, ...]] = field(factory=dict)
    """The timeouts of a state."""
    max_chain: int = 5
    on_failure: str | None = None

    @property
    def events(self) -> list[str]:
        return list(dict.fromkeys(way.event for way in self.ways))

    def way(self, event: str | None, state: str, n: int) -> tuple[int, Way] | None:
        """The edge that wins, and its number."""
        for k, way in enumerate(self.ways):
            drawn = way.source in (None, state) and state not in self.final
            if drawn and way.event == event and (way.limit is None or n < way.limit):
                return k, way
        return None

    def build(self) -> Spec[Any, Any, int]:
        """The Spec; its hooks ask the stage of the moment what to do."""
        states: Any = Enum("State", {s: s for s in self.states})  # type: ignore[misc]  # functional
        events: Any = Enum("Event", {e: e for e in self.events})  # type: ignore[misc]  # functional
        edges = [
            Edge(
                ANY if way.source is None else states[way.source],
                events[way.event],
                STAY if way.target is None else states[way.target],
                guard=None if way.limit is None else _guard(way.limit),
                assign=(lambda m: m.context + 1) if way.adds else None,
                action=[_hook(k) for k in range(way.actions)],
                name=f"w{n}",
            )
            for n, way in enumerate(self.ways)
        ]
        hooks = [
            {states[s]: [_hook(k) for k in range(count)] for s, count in counts.items()}
            for counts in (self.enter, self.leave, self.undo)
        ]
        return Spec(
            "play",
            initial=states[self.states[0]],
            final={states[s] for s in self.final},
            context=int,
            edges=edges,
            on_enter=hooks[0],
            on_exit=hooks[1],
            compensators=hooks[2],
            timeouts={states[s]: [_after(wait, events) for wait in waits] for s, waits in self.waits.items()},
            retry=RETRY,
            on_failure=None if self.on_failure is None else events[self.on_failure],
            max_chain=self.max_chain,
        )


def height(to: str, states: tuple[str, ...]) -> int:
    """Of a stack of entries when the topmost of `to` is on top; 0 if there is none."""
    return next((k for k in range(len(states), 0, -1) if states[k - 1] == to), 0)


def _after(wait: Wait, events: Any) -> After[Any, Any, int]:
    def told(m: Move[Any, Any, int]) -> timedelta | None:
        STAGE.get().doubt()
        return wait.lasts(m.context)

    return After(told if wait.varies else timedelta(seconds=wait.seconds), events[wait.event], name=wait.name)


def _guard(limit: int) -> Callable[[Move[Any, Any, int]], Any]:
    async def below(m: Move[Any, Any, int]) -> bool | Deny:
        await STAGE.get().gate()
        STAGE.get().doubt()
        return m.context < limit or Deny("enough")

    return below


def _hook(number: int) -> Callable[[Move[Any, Any, int]], Any]:
    async def hook(m: Move[Any, Any, int]) -> Any:
        return await STAGE.get().perform(m)

    hook.__qualname__ = f"h{number}"
    return hook


# --- what happens ---------------------------------------------------------------------------------


class Written(NamedTuple):
    line: Line
    row: str = ""
    """The due row that was fired, where that caused the line."""


class Began(NamedTuple):
    seat: str
    id: str
    name: str
    """The hook's m.key."""
    context: int


class Ended(NamedTuple):
    seat: str
    id: str
    name: str
    did: bool
    event: str | None
    update: bool


class Gone(NamedTuple):
    """Gone, or standing still for longer than a lease."""

    seat: str


class Rows(NamedTuple):
    """What is due of an instance after a commit, its queue of effects aside."""

    number: int
    """Of this entry in the record."""
    id: str
    rows: dict[str, Due]
    call: Call | None
    """In which it was written, if in any."""
    queue: Due | None
    """Its queue of effects."""


class Claimed(NamedTuple):
    """A due row was taken, as it is then."""

    id: str
    row: Due
    now: datetime


class Past(NamedTuple):
    """What an instance was after a line."""

    state: str
    status: str
    context: int
    below: tuple[str, ...]
    """States of the entries under the present one."""
    goal: int


@define
class Effect:
    """What a line owes."""

    seq: int
    name: str
    undoing: bool
    seat: str = ""
    """Who began it last."""
    again: bool = False
    """It may run once more: it failed, or who ran it died."""
    done: bool = False
    void: bool = False
    fresh: bool = False
    """When it was dropped, the effects of an earlier line came first."""


@define
class Call:
    """One call, from its arrival to its answer."""

    seat: str
    id: str
    verb: str
    what: str
    """Event, or the state to go back to."""
    key: str | None
    before: int
    """Number of the last line at arrival."""
    after: int = 0
    answer: Outcome[Any, Any, Any] | BaseException | object | None = None
    """None: it never came."""
    begin: int = 0
    """What was on record at arrival."""
    end: int = 10**9
    """And at the answer."""

    @property
    def outcome(self) -> Outcome[Any, Any, Any] | None:
        """What is known to have been accepted."""
        if isinstance(self.answer, HookFailed):
            known: Outcome[Any, Any, Any] = self.answer.outcome
            return known
        return self.answer if isinstance(self.answer, Outcome) else None

    @property
    def unknown(self) -> bool:
        """May its line be there or not?"""
        if self.answer is None or not isinstance(self.answer, Exception):
            return self.outcome is None
        return self.outcome is None and getattr(self.answer, "committed", None) is not False


class DoubtError(Exception):
    """What a guard raises that cannot tell."""


@frozen
class Temper:
    """How bad things may get, each a share of the chances."""

    fail: float = 0.0
    """Hooks that raise at first."""
    permanent: float = 0.0
    """Of these, those that give up at once."""
    update: float = 0.0
    answer: float = 0.0
    """Hooks that return an event."""
    before: float = 0.0
    """Store verbs that raise, undone."""
    after: float = 0.0
    """Store verbs that are done and raise."""
    late: float = 0.0
    """Appends that raise and are done later."""
    stall: float = 0.0
    """Steps at which time passes although somebody could go on."""
    freeze: float = 0.0
    """Hooks in which the process stands still for longer than a lease."""
    slow: float = 0.0
    """Hooks that take a few seconds."""
    doubt: float = 0.0
    """Guards, and functions of timeouts, that raise."""


Gate: TypeAlias = tuple[asyncio.Future[None], object]
"""Where a task waits, and which."""
STAGE: ContextVar[Stage] = ContextVar("stage")
SEAT: ContextVar[Seat] = ContextVar("seat")
CALL: ContextVar[Call | None] = ContextVar("call", default=None)


class Stage:
    """One play: its chances, its gates, and the record of what happened."""

    def __init__(self, loop: Loop, sketch: Sketch, seed: int, temper: Temper) -> None:
        self.loop, self.sketch, self.seed, self.temper = loop, sketch, seed, temper
        self.dice = random.Random(seed)
        self.clock = Clock(loop)
        self.store = MemoryStore()
        self.record: list[Written | Began | Ended | Gone | Rows | Claimed] = []
        self.timed = False
        """Due rows are put on record, too."""
        self.calls: list[Call] = []
        self.lines: dict[str, int] = {}
        self.steps = 0
        self.planned: dict[int, Callable[[], object]] = {}
        self.curtain = False
        """The end: nothing goes wrong any more."""
        self._gates: list[Gate] = []
        self._fair = self.dice.random() < 0.5
        self._ranks: dict[object, float] = {}
        self._seats: dict[object, Seat] = {}
        random.seed(seed)
        loop.seconds = 0.0
        loop.step = self._step
        STAGE.set(self)

    # --- the scheduler ----------------------------------------------------------------------------

    async def gate(self) -> None:
        """Wait until the scheduler says go."""
        seat = SEAT.get(None)
        if seat is not None and seat.dead:
            await self.loop.create_future()
        if self.curtain:
            return
        going = self.loop.create_future()
        task = asyncio.current_task()
        self._gates.append((going, task))
        if seat is not None:
            self._seats[task] = seat
        try:
            await going
        finally:
            if (going, task) in self._gates:
                self._gates.remove((going, task))
        if seat is not None and seat.dead:
            await self.loop.create_future()

    def _step(self, timeout: float | None) -> bool:
        """Let one go on; False: let time pass."""
        self.steps += 1
        if self.steps > _STEPS:
            raise AssertionError(f"no end after {_STEPS} steps")
        plan = self.planned.pop(self.steps, None)
        if plan is not None:
            plan()
            return True
        stall = 0.0 if self.curtain or timeout is None or timeout > _STALL else self.temper.stall
        able = [gate for gate in self._gates if self.curtain or self._able(gate[1])]
        if not able or (stall and self.dice.random() < stall):
            return False
        gate = self._next(able)
        self._gates.remove(gate)
        if not gate[0].done():
            gate[0].set_result(None)
        return True

    def _able(self, task: object) -> bool:
        seat = self._seats.get(task)
        return seat is None or seat.frozen <= self.loop.seconds

    def _next(self, able: list[Gate]) -> Gate:
        """Either any of them, or the one of highest rank, ranks changing now and then."""
        if self._fair or len(able) == 1:
            return self.dice.choice(able)
        for _, task in able:
            if task not in self._ranks or self.dice.random() < 0.05:
                self._ranks[task] = self.dice.random()
        return max(able, key=lambda gate: self._ranks[gate[1]])

    # --- hooks ------------------------------------------------------------------------------------

    async def perform(self, m: Move[Any, Any, int]) -> Any:
        """What a hook does: all of it a function of its key, but for failing at first."""
        temper, chance, seat = self.temper, self._chances(m.key), SEAT.get()
        await self.gate()
        self.record.append(Began(seat.name, m.id, m.key, m.context))
        if self.dice.random() < temper.freeze and not self.curtain:
            seat.freeze()
        try:
            if temper.slow and not self.curtain and self.dice.random() < temper.slow:
                await asyncio.sleep(self.dice.randint(1, 15))
            await self.gate()
        except asyncio.CancelledError:
            if not seat.dead:
                self.record.append(Ended(seat.name, m.id, m.key, False, None, False))
            raise
        permanent = chance() < temper.permanent
        if chance() < temper.fail and (m.attempt <= 2 or permanent) and not (self.curtain and self.timed):
            self.record.append(Ended(seat.name, m.id, m.key, False, None, False))
            raise Permanent("it is no use") if permanent else ValueError("not yet")
        update = chance() < temper.update
        event = None
        if chance() < temper.answer and m.undoes is None:
            event = self.sketch.events[int(chance() * len(self.sketch.events))]
        if update:
            m.update(lambda n: n + UPDATED)
        self.record.append(Ended(seat.name, m.id, m.key, True, event, update))
        return None if event is None else seat.event(event)

    def doubt(self) -> None:
        """Perhaps nobody can tell."""
        if self.temper.doubt and not self.curtain and self.dice.random() < self.temper.doubt:
            raise DoubtError("perhaps")

    def _chances(self, key: str) -> Callable[[], float]:
        return random.Random(crc32(key.encode()) ^ self.seed).random

    # --- the store --------------------------------------------------------------------------------

    def saw(self, commits: Sequence[Commit], answers: Sequence[Any]) -> None:
        """Commits were answered: put their lines on record, once."""
        for commit, answer in zip(commits, answers, strict=True):
            if isinstance(answer, Committed):
                for change in commit.changes:
                    row = "" if change.lease is None or change.lease.name == QUEUE else change.lease.name
                    for line in change.lines:
                        if line.seq > self.lines.get(line.id, 0):
                            self.lines[line.id] = line.seq
                            self.record.append(Written(replace(line, at=answer.at), row))
                    if self.timed:
                        due = self.store._instances[change.workflow, change.id].due
                        rows = {name: row for name, row in due.items() if name != QUEUE}
                        self.record.append(Rows(len(self.record), change.id, rows, CALL.get(), due.get(QUEUE)))

    def trouble(self, verb: str) -> str | None:
        """What goes wrong with this call of a store verb."""
        if self.curtain or not (self.temper.before or self.temper.after or self.temper.late):
            return None
        luck = self.dice.random()
        for kind in ("before", "after", "late"):
            luck -= getattr(self.temper, kind)
            if luck < 0:
                return kind if kind != "late" or verb == "append" else None
        return None


class Seat:
    """One Manager's place on the stage, and the store as this Manager sees it."""

    def __init__(self, stage: Stage, name: str, spec: Spec[Any, Any, int], *, work: bool) -> None:
        self.stage, self.name = stage, name
        self.dead = False
        self._late: list[asyncio.Task[None]] = []
        self.frozen = 0.0
        """Until then its process stands still, and its leases may run out."""
        SEAT.set(self)
        self._events = {e.name: e for e in spec.events}
        self._states = {s.name: s for s in spec.states}
        self.manager: Manager[Any, Any, int] = Manager(
            spec, cast("Store", self), clock=stage.clock, work=work, lease=LEASE
        )

    def event(self, text: str) -> Any:
        return self._events[text]

    def freeze(self) -> None:
        """The process stands still for longer than a lease."""
        self.stage.record.append(Gone(self.name))
        self.frozen = self.stage.loop.seconds + 1.5 * LEASE.total_seconds()
        self.stage.loop.call_at(self.frozen, lambda: None)

    def crash(self) -> None:
        """The process is no more: nothing it does reaches the world, and everybody can tell."""
        self.dead = True
        self.stage.record.append(Gone(self.name))
        self.manager._open().incarnation.close()

    # --- a store ----------------------------------------------------------------------------------

    async def __aenter__(self) -> Seat:
        await self.stage.store.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stage.store.__aexit__(None, None, None)

    async def wait(self, timeout: float) -> bool:
        return await self.stage.store.wait(timeout)

    async def renew(self, token: str, rows: Collection[Any], lease: timedelta, now: datetime | None = None) -> Any:
        return await self._verb("renew", lambda: self.stage.store.renew(token, rows, lease, now))

    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Any:
        return await self._verb("append", lambda: self._append(commits))

    async def claim(self, *args: Any) -> Any:
        return await self._verb("claim", lambda: self._claim(*args))

    async def _claim(self, *args: Any) -> Any:
        rows = await self.stage.store.claim(*args)
        if self.stage.timed:
            self.stage.record += [Claimed(row.id, row, self.stage.clock.now()) for row in rows]
        return rows

    async def _append(self, commits: Sequence[Commit]) -> Any:
        answers = await self.stage.store.append(commits)
        self.stage.saw(commits, answers)
        return answers

    def __getattr__(self, verb: str) -> Any:
        if verb.startswith("_"):
            raise AttributeError(verb)
        known = getattr(self.stage.store, verb)
        return lambda *args, **options: self._verb(verb, lambda: known(*args, **options))

    async def _verb(self, verb: str, work: Callable[[], Awaitable[T]]) -> T:
        stage = self.stage
        await stage.gate()
        trouble = stage.trouble(verb)
        if trouble == "before":
            raise StoreUnavailable("before", None if verb == "append" else False)
        if trouble == "late":
            self._late.append(asyncio.create_task(self._later(work)))
            raise StoreUnavailable("late", None)
        result = await work()
        await stage.gate()
        if trouble == "after":
            raise StoreUnavailable("after", None if verb == "append" else False)
        return result

    async def _later(self, work: Callable[[], Awaitable[object]]) -> None:
        await self.stage.gate()
        await work()

    # --- calls ------------------------------------------------------------------------------------

    async def call(self, id: str, verb: str, what: str, key: str | None) -> None:
        """Do one call and put it on record."""
        stage = self.stage
        call = Call(self.name, id, verb, what, key, stage.lines.get(id, 0), begin=len(stage.record))
        stage.calls.append(call)
        CALL.set(call)
        try:
            call.answer = await self._do(id, verb, what, key)
        except Exception as e:  # noqa: BLE001  # the model judges it
            call.answer = e
        finally:
            CALL.set(None)
            call.after, call.end = stage.lines.get(id, 0), len(stage.record)

    async def _do(self, id: str, verb: str, what: str, key: str | None) -> Any:
        if verb == "start":
            return await self.manager.start(id, key=key)
        if verb == "compensate":
            return await self.manager.compensate(id, self._states[what], key=key)
        return await self.manager.send(id, self._events[what], key=key, start=True if verb == "open" else None)


# --- beginning and end ------------------------------------------------------------------------------


def run(loop: Loop, play: Coroutine[Any, Any, None]) -> None:
    """The play from beginning to end, and nobody left on the stage."""
    try:
        loop.run_until_complete(play)
    finally:
        loop.step = lambda timeout: False
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))


async def finish(
    stage: Stage,
    spec: Spec[Any, Any, int],
    seats: list[Seat],
    ids: list[str],
    over: Callable[[int], bool] = lambda rounds: False,
) -> None:
    """Nothing goes wrong any more: everything owed is done, and what the store holds adds up. What is due
    after so many rounds that it is `over` need not be."""
    stage.curtain = True
    stage.planned.clear()
    for seat in seats:
        if not seat.dead:
            await seat.manager.__aexit__(None, None, None)
    last = Seat(stage, "last", spec, work=False)
    async with last.manager as manager:
        for rounds in range(300):
            wake = await stage.store.next_due({spec.name: spec.version})
            if wake.at is None or (over(rounds) and wake.at > stage.clock.now()):
                break
            await asyncio.sleep(max(0.0, (wake.at - stage.clock.now()).total_seconds()))
            await manager.resume()
        else:
            raise AssertionError("something is always due")
        for id in ids:
            if id in stage.lines:
                history = await manager.history(id)
                assert replay(spec, history) == await manager.get(id)
                assert len(history) == stage.lines[id]
