"""Ticks of schedules, fired by the owner of their row's lease.

First what the tick is for (an instance started, an event put on its way), under a key made of the
tick's time, then the commit that puts the row at the next. Whoever dies between leaves a row that
comes due again, and the second time is a duplicate.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Protocol, cast

import msgspec

from . import cron, intake, schedule, told
from .call import patient
from .clock import SystemClock, utcnow
from .codec import checked, said
from .commit import TRIES, Writer
from .effect import Runner
from .errors import (
    AlreadyStarted,
    Busy,
    Conflict,
    Finished,
    KeyConflict,
    NotRunning,
    StoreError,
    StoreUnavailable,
    UnknownInstance,
)
from .fire import Firer, Firing
from .observer import Ran
from .owed import Fault, Held
from .plan import Start
from .record import Change, Committed, Conflicted, Due, Loaded, Locked, Status
from .schedule import AnySchedule, Did, Failed
from .sight import LONGEST_PAUSE

_PATIENCE = 30.0
"""Seconds for which one try waits for the store, and for others who move the instance."""
_MESSAGE = 2000
"""Longest text of an error that is kept, in characters."""
_GRACE = 2
"""Leases after which a tick is late: within that another process has taken over from one that died."""
_CRASHES = 20
"""Attempts that a tick always has for crashes: only the end of a process leaves them without an outcome."""


class Later(Protocol):
    """Puts an event on its way. See `Manager.send_later`."""

    def __call__(self, id: str, event: Any, payload: Any, *, at: datetime, key: str) -> Awaitable[object]:
        """The event, once it is due."""
        ...


class Ticker:
    """The schedules that one Manager names."""

    def __init__(self, writer: Writer, runner: Runner, schedules: Mapping[str, AnySchedule], later: Later) -> None:
        self.writer = writer
        self.runner = runner
        self.schedules = schedules
        self.list = schedule.list_of(writer.spec.name)
        self._later = later

    # --- at open ----------------------------------------------------------------------------------

    async def register(self) -> None:
        """See to it that the store has each of these schedules as the code has it. Raises StoreError,
        StoreUnavailable, Conflict, Busy."""
        if not self.schedules:
            return
        now, names = await self.now(), list(self.schedules)
        listed = await self.writer.store.load(self.list, names)
        for name, entry, loaded in zip(names, listed, await self.load(names), strict=True):
            if entry is None:  # and if another was faster, it is listed as well
                author = self.writer.author()
                await self.write(schedule.listed(self.list, name, author), author.commit_id)
            await self._register(self.schedules[name], loaded, now)

    def serve(self, firer: Firer) -> None:
        """From now on rows of these schedules are claimed, and come here."""
        for name in self.schedules:
            firer.others[self._workflow(name)] = self.fire

    def _workflow(self, name: str) -> str:
        return schedule.workflow_of(self.writer.spec.name, name)

    async def _register(self, named: AnySchedule, loaded: Loaded | None, now: datetime) -> None:
        for _ in range(TRIES):
            author = self.writer.author()
            change = schedule.registered(self._workflow(named.name), named, loaded, author, now)
            if change is None or await self.write(change, author.commit_id):
                return
            (loaded,) = await self.load((named.name,))
        raise Conflict(named.name, TRIES)

    async def now(self) -> datetime:
        """The present on the store's clock, unless ours overrides it."""
        writer = self.writer
        if isinstance(writer.clock, SystemClock):
            before = utcnow()
            wake = await writer.store.next_due({self.list: writer.spec.version})
            writer.clock.follow(wake.now, before, utcnow())
        return writer.now()

    async def load(self, names: Sequence[str]) -> Sequence[Loaded | None]:
        """Schedules with their rows."""
        found: list[Loaded | None] = []
        for name in names:
            found += await self.writer.store.load(self._workflow(name), (name,), rows=True)
        return found

    async def write(self, change: Change, commit_id: str) -> bool:
        """Commit what a caller waits for; False if another was faster. Raises StoreError, Busy."""
        writer = self.writer
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        answer, _ = await writer.append(writer.commit(change, commit_id), deadline)
        if isinstance(answer, Locked):
            raise Busy(change.id, "another transaction holds it")
        if isinstance(answer, Committed) and change.puts:
            writer.made_work(change.puts[0].at)
        return isinstance(answer, Committed)

    # --- a claimed row ----------------------------------------------------------------------------

    async def fire(self, firing: Firing) -> None:
        """Do what the row is for, and put it at what comes next."""
        due, outcome = firing.due, None
        while True:
            loaded = await patient(lambda: self.load((due.id,)))
            found = loaded[0]
            if found is None or not schedule.owned(found, due):
                firing.over = True
                return
            if outcome is None:
                outcome = await self._outcome(firing, found)
            try:
                change, commit_id = self._next(found, due, outcome)
                answer, _ = await self.writer.append(self.writer.commit(change, commit_id), None)
            except StoreError as e:
                told.abandoned(self.writer.watch, due.workflow, f"firing {due.id}", e)
                return
            if not isinstance(answer, (Conflicted, Locked)):
                break
        if isinstance(answer, Committed):
            self._tell(due, outcome, answer.at + change.puts[0].wait)
            self.writer.made_work(change.puts[0].at)
        firing.fired = isinstance(outcome, Did) and outcome.tick is not None
        firing.over = not isinstance(outcome, Failed)

    def _next(self, loaded: Loaded, due: Due, outcome: Did | Failed | Change) -> tuple[Change, str]:
        """The change that ends the lease, and the id of its commit."""
        author = self.writer.author()
        if isinstance(outcome, Did):
            change = schedule.went_on(loaded, due, outcome, self.writer.now())
        elif isinstance(outcome, Failed):
            change = schedule.failed(loaded, due, outcome, self.writer.spec.retry, author, random.random())
        else:
            change = msgspec.structs.replace(outcome, seq=loaded.head.seq)
        return change, author.commit_id

    async def _outcome(self, firing: Firing, loaded: Loaded) -> Did | Failed | Change:
        """What the row comes to: a tick was fired, or could not be, or it is put off."""
        head, due, writer = loaded.head, firing.due, self.writer
        if head.status != Status.RUNNING:
            return schedule.put_off(head, due, attempt=due.attempt - 1, held=True)
        named = self.schedules[head.id]
        try:
            rule, ticking = schedule.rule_of(head), schedule.ticking_of(due)
        except msgspec.DecodeError:
            return schedule.put_off(head, due, attempt=0, held=True)
        now, retry = max(writer.now(), ticking.at), writer.spec.retry
        grace = (_GRACE + due.number) * writer.lease  # who leaves it to others does so for a lease at most
        try:
            tick = cron.due(rule.cron, rule.tz, ticking.at, now, named.catch_up, grace)
        except ValueError:  # other code put it there, and on its host there may be more zones
            return schedule.left_to_others(head, due, min(retry.pause(due.number + 1, random.random()), writer.lease))
        if tick is None:
            return Did(None)
        limit = max(retry.attempts, _CRASHES)
        if due.attempt > limit:
            lost = RuntimeError(f"none of {limit} attempts is left, the last one never ended")
            return _failed(tick, lost, again=False)
        return await self._fired(firing, named, tick, loaded)

    async def _fired(self, firing: Firing, named: AnySchedule, tick: datetime, loaded: Loaded) -> Did | Failed | Change:
        """Try until the store has answered; a store that is away is no failure of the schedule's."""
        due, pause, retry = firing.due, 0.05, self.writer.spec.retry
        if self.runner.caller.closing:
            return schedule.put_off(loaded.head, due, attempt=due.attempt - 1)
        try:
            deliver = self.asked(named, tick, schedule.key_of(named.name, tick))
        except Exception as e:  # noqa: BLE001  # whatever a user's function raises, also what a store might
            return _failed(tick, e, again=retry.again(e, due.attempt))
        while not self.runner.caller.closing:
            try:
                held = await deliver()
            except (AlreadyStarted, KeyConflict):  # by this tick, before a crash, or by whomever
                return Did(tick)
            except (UnknownInstance, Finished, NotRunning) as e:
                return Did(tick, _fault(e))
            except (StoreUnavailable, Busy, Conflict, TimeoutError):
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            except Exception as e:  # noqa: BLE001  # what the function answered is not taken
                if self.runner.caller.closing:  # perhaps it is only that
                    break
                return _failed(tick, e, again=retry.again(e, due.attempt))
            else:
                if held is not None:
                    firing.run = self.runner.start(held)
                return Did(tick)
        return schedule.put_off(loaded.head, due, attempt=due.attempt - 1)

    def asked(self, named: AnySchedule, tick: datetime, key: str) -> Callable[[], Awaitable[Held | None]]:
        """What the schedule's function wants for the tick, to be done as often as it takes: start the instance (its
        effects, if they are ours to run, are the answer) or put the event on its way.

        Raises what that function does, and TypeError, InvalidName, InvalidContext for what it answers.
        """
        there = tick.astimezone(cron.zone(named.tz))
        if named.start is None:
            id, event, payload = _parts(named, cast("Any", named.send)(there), 3)
            return partial(self._send, id, event, payload, tick, key)
        id, context = _parts(named, named.start(there), 2)
        return partial(self._start, Start(checked("an id", id), key, intake.context(self.writer.spec, context), None))

    async def _send(self, id: str, event: Any, payload: Any, tick: datetime, key: str) -> None:
        await self._later(id, event, payload, at=tick, key=key)

    async def _start(self, plan: Start) -> Held | None:
        written = await self.writer.run(plan, asyncio.get_running_loop().time() + _PATIENCE)
        return written.held

    def _tell(self, due: Due, outcome: Did | Failed | Change, at: datetime) -> None:
        """The observer hears of what failed, and of what nobody took."""
        if isinstance(outcome, Change) or outcome.fault is None:
            return
        cause = outcome.cause if isinstance(outcome, Failed) else None
        again = at if isinstance(outcome, Failed) and outcome.again else None
        name = f"tick {'' if outcome.tick is None else outcome.tick.isoformat()}"
        fact = Ran(
            due.workflow,
            due.id,
            due.seq,
            name,
            due.name,
            due.attempt,
            error=str(outcome.fault),
            cause=cause,
            retry_at=again,
        )
        self.writer.watch.tell("effect_gave_up" if again is None else "effect_retried", fact)


def _parts(named: AnySchedule, answer: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    if not isinstance(answer, tuple) or len(answer) != count:  # pyright: ignore[reportUnnecessaryIsInstance]  # users' functions may be untyped
        what = "(id, context)" if count == 2 else "(id, event, payload)"
        raise TypeError(f"the function of schedule {named.name!r} must answer {what}, not {answer!r}")
    return answer


def _fault(error: Exception) -> Fault:
    return Fault(type(error).__name__, said(error)[:_MESSAGE])


def _failed(tick: datetime, error: Exception, *, again: bool) -> Failed:
    return Failed(tick, _fault(error), error, again)
