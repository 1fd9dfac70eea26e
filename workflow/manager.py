"""The front desk: what a service calls."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Literal, Self

from . import circle, intake, view
from .background import Background
from .call import Caller
from .clock import Clock
from .codec import checked
from .commit import Writer
from .cron import Schedule
from .effect import Runner
from .errors import (
    Busy,
    IllegalTransition,
    Reentrant,
    UnknownInstance,
)
from .front import seconds
from .kernel import Accepted, judge
from .observer import Observer, Watch
from .operator import Operator
from .places import Places
from .plan import Compensate, Send, Start
from .record import Instance, Outcome, Resumed, Status, Transition
from .scheduler import Scheduler, by_name
from .sight import think
from .spec import C, E, S, Spec
from .store import Store, Transaction, inside
from .ticker import Ticker
from .timekeeper import Timekeeper
from .word import word

_PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2)


class Manager(Operator[S, E, C], Timekeeper[S, E, C], Scheduler[S, E, C]):
    """Runs the instances of one spec on one store; use it as `async with Manager(spec, store)`.

    Entering opens the store and starts the background loop (`work=False`: none; then only calls run
    effects). Leaving gives running hooks `drain` to end, then cancels them and hands their leases
    back. `concurrency` bounds the effects that the loop runs at once, and the threads for `def`
    hooks. `lease` is how long a dead process's work stays its own. `clock` overrides the store's.
    With `inline=False` calls answer right after their commit, and effects are left to whichever process
    finds them due first. `observer` is told what happens; by default a `LoggingObserver`. `schedules` tick
    once over all processes that name them.
    """

    def __init__(
        self,
        spec: Spec[S, E, C],
        store: Store,
        *,
        clock: Clock | None = None,
        work: bool = True,
        concurrency: int = 64,
        lease: timedelta = timedelta(seconds=30),
        drain: timedelta = timedelta(seconds=30),
        inline: bool = True,
        observer: Observer | None = None,
        schedules: Sequence[Schedule[E, C]] = (),
    ) -> None:
        if not isinstance(spec, Spec) or not hasattr(store, "__aenter__"):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
            raise TypeError(f"a Manager takes a Spec and a store, not {spec!r} and {store!r}")
        if concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {concurrency}")
        if lease <= timedelta(0):
            raise ValueError(f"lease must be longer than nothing, not {lease}")
        if drain < timedelta(0):
            raise ValueError(f"drain must not be negative, not {drain}")
        self._named = by_name(schedules)
        self.watch = Watch(observer)
        spec.hold()
        self.spec = spec
        self.store = store
        self._clock = clock
        self._works = work
        self._concurrency = concurrency
        self._lease = lease
        self._drain = drain
        self._inline = inline
        self._employed: tuple[Places, timedelta] | None = None
        self._words: dict[Any, str] = {event: word(event) for event in spec.events}
        self._events = type(spec.events[0])
        self._writer: Writer | None = None

    async def __aenter__(self) -> Self:
        """Open the store and start the background. Raises StoreError, StoreUnavailable."""
        if self._writer is not None:
            raise RuntimeError("this Manager is open already; make a second one for a second opening")
        await self.store.__aenter__()
        writer = Writer(self.spec, self.store, self._clock, self._lease, self.watch, inline=self._inline)
        writer.house.open()
        places, drain = self._employed or (Places(self._concurrency), self._drain)
        self._runner = Runner(writer, Caller(writer, places.size))
        writer.adopt = self._runner.start
        self._ticker = Ticker(writer, self._runner, self._named, self.send_later)
        await self._register()
        self._background = Background(writer, self._runner, places=places, drain=drain)
        self._ticker.serve(self._background.firer)
        self._background.start(loop=self._works or self._employed is not None)
        self._writer = writer
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Drain, stop the background, close the store."""
        writer = self._open()
        try:
            await self._background.stop()
        finally:
            self._writer = None
            try:
                await writer.house.close()
            finally:
                self._runner.leave()
                if not self._runner.caller.abandoned:  # else only the end of the lease frees what still runs
                    writer.incarnation.close()
                await self.store.__aexit__(None, None, None)

    def employ(self, terms: tuple[Places, timedelta] | None) -> None:
        """For `Worker`: when it is opened next, the Manager works in these places and with this drain
        instead of its own, whatever `work` says; None: no more."""
        if terms is not None and self._writer is not None:
            raise RuntimeError(f"the Manager of {self.spec.name!r} is open already; leave its opening to the Worker")
        self._employed = terms

    # --- moving -----------------------------------------------------------------------------------

    async def start(
        self,
        id: str,
        context: C | None = None,
        *,
        key: str | None = None,
        labels: Mapping[str, str] | None = None,
        timeout: float | timedelta = 30.0,
        within: Transaction | object | None = None,
    ) -> Outcome[S, E, C]:
        """Start an instance in the initial state; without `context` with `Spec.context()`.

        Answers when its effects are settled or after `timeout` (seconds or timedelta). `within`: see
        `send`. Raises AlreadyStarted, KeyConflict, InvalidContext, InvalidName, HookFailed,
        LeaseLost, Busy, Reentrant, StoreError, StoreUnavailable.
        """
        checked("an id", id)
        if key is not None:
            checked("a key", key)
        plan = Start(id, key, intake.context(self.spec, context), None if not labels else intake.labels(labels))
        return await self._carry_out(plan, timeout, within)

    async def send(
        self,
        id: str,
        event: E,
        payload: Any = None,
        *,
        key: str | None = None,
        timeout: float | timedelta = 30.0,
        start: C | Literal[True] | None = None,
        within: Transaction | object | None = None,
    ) -> Outcome[S, E, C]:
        """Judge the event and make the move durable, then run its effects.

        Waits while effects of the instance are running, at most `timeout` (seconds or timedelta).
        With `key`, a repeat answers what the first call did, with `duplicate=True`. `start` (a
        context, or True for `Spec.context()`) starts the instance first if the id is unknown.

        `within` makes the move part of a transaction: one of `store.transaction()`, or the driver's
        connection on which one of your own is open. The outcome is then only as durable as that
        transaction: its effects run after the commit (`settled` is False if it owes any), and a
        rollback leaves no trace. What is running on the instance is not waited for: Busy at once.
        After any error but Conflict, and StoreError of the driver's own making, the transaction can
        go on. Without `within`, a call inside a transaction of the same store raises Reentrant.

        Raises TypeError for what is no event, InvalidPayload, UnknownInstance, IllegalTransition,
        GuardRejected, Finished, NotRunning, GuardError, KeyConflict, Conflict, Busy, Reentrant: in
        all of these nothing was written. HookFailed and LeaseLost: the move stands. StoreError,
        StoreUnavailable: see their `committed`.
        """
        if type(event) is not self._events:
            raise TypeError(f"{event!r} is no {self._events.__name__}; send a member of that enum")
        text = self._words[event]
        checked("an id", id)
        if key is not None:
            checked("a key", key)
        encoded = None
        if payload is not None or text in self.spec.declared:
            encoded, payload = intake.payload(self.spec, text, payload)
        first = None if start is None else intake.context(self.spec, None if start is True else start)
        return await self._carry_out(Send(id, key, text, encoded, payload, first), timeout, within)

    async def compensate(
        self, id: str, to: S, *, key: str | None = None, timeout: float | timedelta = 30.0
    ) -> Outcome[S, E, C]:
        """Undo entries, newest first, until the topmost entry of `to` below is the state again.

        Leaving each entry runs its compensator. The outcome's transition is the first undone step.
        Raises as `send`; IllegalTransition if no entry of `to` lies below the present one.
        """
        if not isinstance(to, type(self.spec.initial)):
            raise TypeError(f"{to!r} is no {type(self.spec.initial).__name__}; name a state of the spec")
        checked("an id", id)
        if key is not None:
            checked("a key", key)
        return await self._carry_out(Compensate(id, key, word(to)), timeout)

    # --- looking ----------------------------------------------------------------------------------

    async def settled(self, id: str, *, timeout: float | timedelta = 30.0) -> Instance[S, C]:
        """Wait until nothing is owed any more; at once when something failed or paused holds it up.

        Raises UnknownInstance, Busy when `timeout` is over, Reentrant from a hook that it waits for
        and inside a transaction of the store.
        """
        writer = self._open()
        if inside(self.store):
            raise Reentrant(id, inside=True)
        loop = asyncio.get_running_loop()
        deadline, tries = loop.time() + seconds(timeout), 0
        while True:
            loaded = await writer.load(id)
            if loaded is None:
                raise UnknownInstance(self.spec.name, id)
            due = loaded.effects
            if due is None or due.held or loaded.head.status in (Status.PAUSED, Status.FAILED):
                return view.instance(self.spec, loaded.head)
            if circle.closes(writer.node(id)):
                raise Reentrant(id)
            left = deadline - loop.time()
            if left <= 0:
                raise Busy(id, "its effects are not settled yet")
            pause = _PAUSES[min(tries, len(_PAUSES) - 1)]
            tries += 1
            with circle.waiting(writer.node(id)):
                await writer.rest.wait(id, left if id in writer.rest else min(left, pause))
            self._open()

    async def state(self, id: str) -> S:
        """The present state, from the store. Raises UnknownInstance, UnknownState."""
        return view.state(self.spec, (await self._load(id)))

    async def get(self, id: str) -> Instance[S, C]:
        """The present, from the store. Raises UnknownInstance, UnknownState, InvalidContext."""
        return view.instance(self.spec, await self._load(id))

    async def history(self, id: str) -> list[Transition[S, E, C]]:
        """All lines in order, from the store. Raises UnknownInstance."""
        lines = await self._open().store.history(self.spec.name, id)
        if not lines:
            raise UnknownInstance(self.spec.name, id)
        return view.transitions(self.spec, lines)

    async def accepted(self, id: str) -> tuple[E, ...]:
        """The events whose guards pass now, with no payload; one whose guard raises counts as perhaps
        and is listed. Raises UnknownInstance, UnknownState."""
        head = await self._load(id)
        here = view.state(self.spec, head)
        if head.status != Status.RUNNING:
            return ()
        events: list[E] = []
        for event in self.spec.accepted(here):
            verdict = await think(judge(self.spec, head, self._words[event], None, self._open().now()))
            # A refusal is a no; any other error says that nobody can tell.
            if isinstance(verdict, Accepted) or not isinstance(verdict.error, IllegalTransition):
                events.append(event)
        return tuple(events)

    async def resume(self) -> Resumed:
        """Try once everything that was due when called and that no living process owns.

        Backs off while the store is away. Its cost follows the due rows, not the instances.
        """
        self._open()
        if inside(self.store):
            raise RuntimeError("resume() would wait for the transaction that this task is inside; call it afterwards")
        return await self._background.resume()
