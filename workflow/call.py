"""One effect called once, and what became of it.

`async def` callbacks run on the loop, plain ones in a thread: they usually do I/O, and a blocked loop
would lose every lease.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import msgspec
from msgspec import Struct

from . import circle
from .codec import Unstorable
from .errors import InvalidPayload, StoreUnavailable
from .ledger import Ledger
from .observer import Ran
from .owed import Held, body_of
from .place import halted, over
from .record import Kind, Line
from .retry import Retry
from .table import Callback
from .word import Move, Then, word

if TYPE_CHECKING:
    import anyio

T = TypeVar("T")

_PRESSING = 1.0
"""Seconds until a hook that goes on though it was cancelled is cancelled again: it may have to clean up."""

Changes: TypeAlias = list[Callable[[Any], Any]]


class Did(Struct, frozen=True):
    """The effect was done; the events it returned (word, payload) and its changes of the context."""

    returned: tuple[tuple[str, str | None], ...]
    hook: str
    changes: Changes


class Failed(Struct, frozen=True):
    """The effect raised."""

    error: BaseException
    culprit: str
    pause: timedelta | None
    """Until it is tried again; None: given up."""


class Unknown(Struct, frozen=True):
    """This code cannot run the piece."""

    culprit: str
    why: str


class Only(Struct, frozen=True):
    """Nothing was to be run: only returned events are left."""


class Stopped(Struct, frozen=True):
    """Cancelled because the Manager closes."""

    begun: bool = True


Report: TypeAlias = Did | Failed | Unknown | Only | Stopped


class Call:
    """The hook that a run is at."""

    __slots__ = ("attempt", "effect", "hook", "seconds", "seq", "stopped", "task", "threaded", "watched")

    def __init__(self) -> None:
        self.hook = ""
        self.effect = ""
        self.seq = 0
        self.attempt = 0
        self.seconds: float | None = None
        """How long the hook ran; None where nobody asks."""
        self.watched = False
        """Does the observer hear of an effect that goes its way?"""
        self.task: asyncio.Task[Any] | None = None
        """In which the hook runs, while it does."""
        self.stopped = False
        self.threaded = False
        """A thread runs the hook: cancelled, it goes on alone."""

    def stop(self) -> None:
        """Cancel the hook, again and again until it ends."""
        if self.task is not None:
            self.stopped = True
            self.task.cancel()
            self.task.get_loop().call_later(_PRESSING, self.stop)


class Caller:
    """Calls effects for one Manager."""

    def __init__(self, ledger: Ledger, threads: int) -> None:
        self.ledger = ledger
        self.spec = ledger.spec
        self.closing = False
        """The Manager cancels whatever still runs."""
        self.abandoned = False
        """A thread or a task was left behind that still runs a hook."""
        self._threads = threads
        self._limiter: anyio.CapacityLimiter | None = None

    @property
    def _ending(self) -> bool:
        return self.closing or self.ledger.house.ending

    async def perform(self, here: Call, held: Held) -> Report:
        """Call the effect at the place. Never raises what the effect raises."""
        due, place = held.due, held.lines[0]
        here.seq, here.attempt, here.hook, here.effect, here.seconds = place.seq, due.attempt, "", "", None
        try:
            last = None if due.body is None else body_of(due).error
        except msgspec.DecodeError as e:
            return Unknown("the effects row", f"what is stored does not fit the spec: {e}")
        if due.number >= len(place.owes):
            return Only()
        name = here.effect = place.owes[due.number]
        callback = self.spec.tables.effects.get(name)
        if callback is None:
            return Unknown(name, "the spec has no effect of this name")
        here.hook = callback.name
        retry = callback.retry or self.spec.retry
        try:
            move = await self._move(held, place, name)
        except (KeyError, msgspec.DecodeError) as e:
            return Unknown(name, f"what is stored does not fit the spec: {e}")
        if self.closing or halted(held.head) or over(held.head):
            return Stopped(begun=False)
        if due.attempt > retry.attempts:
            lost = RuntimeError(f"none of {retry.attempts} attempts is left, the last one never ended; before: {last}")
            return Failed(lost, callback.name, None)
        watch, head = self.ledger.watch, held.head
        here.watched = watch.hears_effects()
        if here.watched:
            watch.tell("effect_started", Ran(head.workflow, head.id, place.seq, callback.name, name, due.attempt))
        began = monotonic()
        try:
            value = await self._call(here, callback, move)
            if here.watched:
                here.seconds = monotonic() - began
            return (
                Stopped()
                if value is Stopped
                else Did(self._returned(place, value), callback.name, list(move.changes or ()))
            )
        except (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as e:  # noqa: BLE001  # whatever a hook raises is stored and told to the caller
            here.seconds = monotonic() - began
            return Failed(e, callback.name, pause_after(retry, e, due.attempt))
        finally:
            object.__setattr__(move, "changes", None)  # what is left of the hook must not believe it is heard

    async def _move(self, held: Held, place: Line, name: str) -> Move[Any, Any, Any]:
        head, undone = held.head, place.undoes
        told = place
        if place.kind == Kind.COMPENSATE and undone is not None:
            peek = self.ledger.desk(head.id, self.ledger.author()).peek
            told = await patient(lambda: peek(undone))
        context = head.context if told is not place else place.context or "null"
        payload = None if told.payload is None else self.spec.payload_codec(told.event).decode(told.payload)
        return Move(
            workflow=head.workflow,
            id=head.id,
            seq=place.seq,
            source=None if place.source is None else self.spec.state_of(place.source),
            event=None if told.event is None else self.spec.event_of(told.event),
            target=self.spec.state_of(place.target),
            context=self.spec.context_codec.decode(context),
            at=place.at,
            payload=payload,
            key=f"{head.workflow}/{head.id}/{place.seq}/{name}",
            attempt=held.due.attempt,
            undoes=undone,
            current=head.top <= place.seq if place.below is None else head.top == place.seq,
        )

    async def _call(self, here: Call, callback: Callback, move: Move[Any, Any, Any]) -> Any:
        """The hook's own result, or the class `Stopped` if we cancelled it. Raises what it raises."""
        here.task, here.stopped, here.threaded = asyncio.current_task(), False, False
        try:
            with circle.hook(self.ledger.node(move.id)):
                if callback.timeout is None:
                    value = await self._awaited(here, callback, move, None)
                else:
                    async with asyncio.timeout(None) as limit:
                        value = await self._awaited(here, callback, move, limit)
            task, here.task = here.task, None
            if task is not None and task.cancelling() and not self._ending:
                await _forgive()
            return value  # noqa: TRY300  # what comes next is for those that were cancelled
        except asyncio.CancelledError as e:
            if here.stopped:
                _uncancel()
                return Stopped
            if self._ending:  # not of the hook's making, and no time to write: the lease runs out
                self.abandoned |= here.threaded
                raise
            _uncancel()
            raise RuntimeError("the hook raised CancelledError") from e
        finally:
            here.task = None

    async def _awaited(
        self, here: Call, callback: Callback, move: Move[Any, Any, Any], limit: asyncio.Timeout | None
    ) -> Any:
        if callback.waits:
            _count(limit, callback)
            value = callback.call(move)
        else:
            value = await self._in_thread(here, callback, move, limit)
        return await value if inspect.isawaitable(value) else value

    async def _in_thread(
        self, here: Call, callback: Callback, move: Move[Any, Any, Any], limit: asyncio.Timeout | None
    ) -> Any:
        """Call a plain function where it may block. Cancelled, the thread goes on alone."""

        def attempt() -> tuple[Any, BaseException | None]:
            # Not every exception can travel through a future (StopIteration), so it is carried.
            try:
                return callback.call(move), None
            except BaseException as e:  # noqa: BLE001  # raised again on the loop
                return None, e

        import anyio.to_thread  # a tenth of the time of `import workflow`, and few need it

        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(self._threads)
        async with self._limiter:
            here.threaded = True  # from here on; whoever only waits for a thread may be handed back
            _count(limit, callback)
            alone = anyio.CapacityLimiter(1)
            value, error = await anyio.to_thread.run_sync(attempt, abandon_on_cancel=True, limiter=alone)
        here.threaded = False
        if isinstance(error, StopIteration):
            raise RuntimeError("the hook raised StopIteration") from error  # noqa: TRY004  # as a coroutine would
        if error is not None:
            raise error
        return value

    def _returned(self, place: Line, value: Any) -> tuple[tuple[str, str | None], ...]:
        """The events a hook returned, as they are stored. Raises InvalidPayload, TypeError."""
        if value is None:
            return ()
        then: Then[Any] = value if isinstance(value, Then) else Then(value)  # pyright: ignore[reportUnknownVariableType]  # checked below
        if place.kind == Kind.COMPENSATE or not isinstance(then.event, type(self.spec.events[0])):
            raise TypeError(f"it returned {value!r}; a hook returns an event, Then or None, a compensator nothing")
        event = word(then.event)
        if then.payload is None and event not in self.spec.declared:
            return ((event, None),)
        try:
            text, _ = self.spec.payload_codec(event).encode(then.payload)
        except Unstorable as e:
            raise InvalidPayload(f"the payload returned with {event!r}: {e}") from e
        return ((event, None if text == "null" else text),)


def pause_after(retry: Retry, error: BaseException, attempt: int) -> timedelta | None:
    """Until the next attempt; None: there is none."""
    return retry.pause(attempt, random.random()) if retry.again(error, attempt) else None


async def patient(ask: Callable[[], Awaitable[T]]) -> T:
    """Ask again while the store is away: the owner of a lease has nothing better to do."""
    pause = 0.05
    while True:
        try:
            return await ask()
        except (StoreUnavailable, TimeoutError):
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)


def _count(limit: asyncio.Timeout | None, callback: Callback) -> None:
    """From here on: a hook that only waits for a thread has not begun."""
    if limit is not None and callback.timeout is not None:
        limit.reschedule(asyncio.get_running_loop().time() + callback.timeout.total_seconds())


async def _forgive() -> None:
    """Take a cancellation that a hook asked of its own task and did not wait for."""
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    _uncancel()


def _uncancel() -> None:
    """Forget a cancellation that a hook asked of its own task."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()
