"""One queue of effects run to its end, by the owner of its lease.

Each effect is called, then settled in a commit that also judges the events it returned and leases
the next. Runs belong to the Manager, not to the call that caused them.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from datetime import datetime

import msgspec
from msgspec import Struct

from . import queue, told
from .alarm import Alarm, wake
from .call import Call, Caller, Changes, Did, Failed, Only, Report, Stopped, Unknown, patient, pause_after
from .codec import Unstorable, clean, said
from .errors import InvalidContext, StoreError, StoreUnavailable
from .kernel import Author
from .ledger import Ledger, took
from .owed import Desk, Fault, Held, Step, lease_of
from .place import over
from .record import QUEUE, Answer, Committed, Due, Head, Loaded, Status
from .sight import stamped_line, think

_TRACEBACK = 4000
_MESSAGE = 1000
_GUARD = 30.0
"""Seconds that the guards of a returned event may take."""
_SETTLING = 5
"""How often a settle is tried that the store refuses for another reason than being away."""


class Result(Struct, frozen=True):
    """How a run ended."""

    head: Head
    settled: bool = False
    """Nothing is left in the queue."""
    done: int = 0
    """Effects settled by this run."""
    fault: Fault | None = None
    culprit: str = ""
    attempt: int = 0
    retry_at: datetime | None = None
    error: BaseException | None = None
    lost: bool = False
    """The lease went to another owner."""


class Run:
    """A queue in work."""

    __slots__ = ("_alarm", "_sender", "call", "done", "gave_up", "head", "id", "lost", "result")

    def __init__(self, id: str, head: Head, alarm: Alarm) -> None:
        self._alarm = alarm
        self.id = id
        self.head = head
        self.call = Call()
        self.lost = False
        self.done = 0
        self.gave_up: Result | None = None
        """An effect was given up and the queue went on: what the sender is to hear of it in the end."""
        self.result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._sender: asyncio.Future[None] | None = None

    async def over(self, deadline: float) -> None:
        """For the sender: wait for the end until `deadline` (on the loop's clock). To cancel him does not
        touch the run."""
        if self.result.done():
            return
        waiter = self._sender = asyncio.get_running_loop().create_future()
        try:
            await self._alarm.wait(waiter, deadline)
        finally:
            self._sender = None

    def end(self, result: Result) -> None:
        """It is over; whoever waits hears of it."""
        known = self.gave_up
        if known is not None and result.fault is None:
            result = msgspec.structs.replace(
                result, fault=known.fault, culprit=known.culprit, attempt=known.attempt, error=known.error
            )
        if not self.result.done():
            self.result.set_result(result)
        if self._sender is not None:
            wake(self._sender)


class Runner:
    """Runs the queues whose lease this Manager holds."""

    def __init__(self, ledger: Ledger, caller: Caller) -> None:
        self.ledger = ledger
        self.spec = ledger.spec
        self.caller = caller
        self._alarm = Alarm()
        self.running: dict[str, Run] = {}
        self.tires: Callable[[Run], bool] = lambda run: False
        """Asked after each effect: is this run to make way for other instances? Set by `background`."""
        self.began: Callable[[], None] = lambda: None
        """Told when a run begins; set by `worker`."""

    def rows(self) -> list[tuple[str, str, str]]:
        """The due rows under lease, as `Store.renew` names them."""
        return [(self.spec.name, id, QUEUE) for id in self.running]

    def start(self, held: Held) -> Run:
        """Run this queue in a task of the house."""
        id = held.head.id
        run = Run(id, held.head, self._alarm)
        if self.ledger.house.shut:  # the move stands; whoever comes next finds its effects due
            run.result.set_result(Result(held.head))
            return run
        self.lose(id)  # a run whose lease ran out, if it is still here
        self.running[id] = run
        self.ledger.forget(id)
        self.ledger.rest.begin(id)
        self.began()

        async def work() -> None:
            result = Result(held.head)
            try:
                result = await self._work(run, held)
                if result.lost:
                    told.lost(self.ledger.watch, run.head, run.call)
            finally:
                self._over(run, result)

        self.ledger.house.spawn(work, f"effects of {id}")
        return run

    def lose(self, id: str) -> None:
        """The lease is gone: cancel the hook, drop its result."""
        run = self.running.get(id)
        if run is not None:
            run.lost = True
            run.call.stop()

    def leave(self) -> None:
        """The house is closed. A hook that did not end goes on alone, as a thread would: nobody waits
        for it, and what it does is not heard."""
        self.caller.abandoned |= self.ledger.house.left
        for run in list(self.running.values()):
            run.lost, run.call.task = True, None
            self._over(run, Result(run.head, done=run.done))

    def _over(self, run: Run, result: Result) -> None:
        if self.running.get(run.id) is run:
            del self.running[run.id]
            self.ledger.rest.end(run.id)
        run.end(result)

    async def _work(self, run: Run, held: Held) -> Result:
        while True:
            report = await self.caller.perform(run.call, held)
            if run.lost:
                return Result(held.head, done=run.done, culprit=run.call.hook, lost=True)
            if isinstance(report, Stopped) and run.call.threaded:
                self.caller.abandoned = True
                return Result(held.head, done=run.done)
            after = await self._settle(run, held, report)
            if isinstance(after, Result):
                return after
            held = after
            run.head = held.head

    # --- settling ---------------------------------------------------------------------------------

    async def _settle(self, run: Run, held: Held, report: Report) -> Held | Result:
        """Record what became of the effect; the queue as it is then, or the end of the run."""
        while True:
            author = self.ledger.author()
            try:
                step = await self._next(run, author, held, report)
            except _Unfit as e:
                callback = self.spec.tables.effects[held.lines[0].owes[held.due.number]]
                report = Failed(
                    e.error, run.call.hook, pause_after(callback.retry or self.spec.retry, e.error, held.due.attempt)
                )
                continue
            answer, again = await self._append(run, held, step, author.commit_id)
            if answer is None:
                return Result(held.head, done=run.done)
            if isinstance(answer, Committed):
                run.done += isinstance(report, Did)
                return await self._after(run, held, report, step, answer)
            loaded = await patient(lambda: self.ledger.load(run.id))
            due = None if loaded is None else loaded.effects
            if loaded is None or due is None or lease_of(due) != lease_of(held.due):
                return await self._superseded(run, held, report, loaded, again)
            held = _held(loaded, due)

    async def _next(self, run: Run, author: Author, held: Held, report: Report) -> Step:
        if isinstance(report, Did) and not report.changes and not report.returned:
            plain = queue.plainly_ended(held)
            if plain is not None:
                return plain
        desk = self.ledger.desk(run.id, author, leasing=not (self.caller.closing or self.tires(run)))
        return await patient(lambda: self._step(desk, held, report))

    async def _step(self, desk: Desk, held: Held, report: Report) -> Step:
        if isinstance(report, Did) and over(held.head):
            return queue.unwanted(desk, held, report.hook, report.returned, updated=bool(report.changes))
        if isinstance(report, Did):
            context = self._updated(held.head, report.changes)
            step = queue.succeed(desk, held, context, report.hook, report.returned)
        elif isinstance(report, Only):
            step = queue.again(desk, held)
        elif isinstance(report, Failed):
            step = queue.fail(desk, held, _fault(report.error), report.culprit, report.pause)
        elif isinstance(report, Unknown):
            return queue.set_aside(held, Fault("Unknown", report.why), report.culprit)
        else:
            return queue.hand_back(held, begun=report.begun)
        return await think(step, asyncio.get_running_loop().time() + _GUARD)

    def _updated(self, head: Head, changes: Changes) -> str | None:
        """The head's context after `m.update`. Raises _Unfit if that cannot be had or stored."""
        if not changes:
            return None
        try:
            context = self.spec.context_codec.decode(head.context)
            for change in changes:
                context = change(context)
            return self.spec.context_codec.encode(context)[0]
        except Unstorable as e:
            raise _Unfit(InvalidContext(f"m.update() made a context that cannot be kept: {e}")) from e
        except Exception as e:
            raise _Unfit(e) from e

    async def _append(self, run: Run, held: Held, step: Step, commit_id: str) -> tuple[Answer | None, bool]:
        """Append until answered; None for what the store refuses again and again: the lease runs out."""
        commit = self.ledger.commit(queue.change(held, step), commit_id)
        pause, tries = 0.05, 0
        while True:
            try:
                return await self.ledger.append(commit, None)
            except StoreError as e:
                tries += not isinstance(e, StoreUnavailable)
                if tries >= _SETTLING:
                    told.abandoned(self.ledger.watch, self.spec.name, f"settling effects of {run.id}", e)
                    return None, False
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)

    async def _after(self, run: Run, held: Held, report: Report, step: Step, answer: Committed) -> Held | Result:
        """The step is durable: the queue as it is then."""
        head = step.head if step.lines else held.head
        put = step.put
        if run.call.watched or step.fault is not None or not isinstance(report, Did):
            told.settled(self.ledger.watch, held, run.call, report, step, answer.at)
        if step.fault is not None:
            self.ledger.made_work(None)
            retry_at = None if put is None or put.held else answer.at + put.wait
            error = report.error if isinstance(report, Failed) else None
            attempt = held.due.attempt if isinstance(report, Failed) else (put.attempt if put else 0)
            result = Result(head, put is None, run.done, step.fault, step.culprit, attempt, retry_at, error)
            if not step.goes_on:
                return result
            run.gave_up = result
        leased = took(answer, () if put is None else (put,))
        if leased is not None:
            run.lost = False
            lines = tuple(stamped_line(line, answer.at) for line in step.known)
            return Held(head, leased, lines, step.whole)
        if answer.leased is not None:
            # It had landed before, and then a sender's commit was leased to this Manager.
            return await self._look(run, head)
        if put is None:
            self.ledger.remember(head)
            return Result(head, True, run.done)
        if put.token is None:
            self.ledger.made_work(None)
        return Result(head, False, run.done)

    async def _superseded(
        self, run: Run, held: Held, report: Report, loaded: Loaded | None, again: bool
    ) -> Held | Result:
        """The place is no longer mine as I knew it: an earlier try of this settle landed, or the lease is lost."""
        due = None if loaded is None else loaded.effects
        head = held.head if loaded is None else loaded.head
        past = due is None or (due.seq, due.number) > (held.due.seq, held.due.number)
        if not again or (isinstance(report, (Did, Only)) and not past):
            return Result(head, done=run.done, culprit=run.call.hook, lost=True)
        if isinstance(report, (Did, Only)):
            if isinstance(report, Did):
                run.done += 1
                told.ended(self.ledger.watch, head, run.call)
            return await self._look(run, head)
        gone_on = past and head.status != Status.FAILED
        if isinstance(report, Failed) and report.pause is None and gone_on:  # given up, as the step said
            fault, attempt = _fault(report.error), held.due.attempt
            run.gave_up = Result(head, fault=fault, culprit=report.culprit, attempt=attempt, error=report.error)
            return await self._look(run, head)
        if isinstance(report, Failed) and not gone_on:
            retry_at = None if due is None or due.held else due.at
            attempt = held.due.attempt
            return Result(head, False, run.done, _fault(report.error), report.culprit, attempt, retry_at, report.error)
        return Result(head, due is None, run.done)

    async def _look(self, run: Run, head: Head) -> Held | Result:
        """Go on with whatever of the queue is leased to this run; another of this Manager may have it."""
        loaded = await patient(lambda: self.ledger.load(run.id))
        due = None if loaded is None else loaded.effects
        if loaded is None or due is None:
            return Result(head if loaded is None else loaded.head, True, run.done)
        mine = due.token == self.ledger.incarnation.token and self.running.get(run.id) is run
        if not mine or not loaded.queue:
            return Result(loaded.head, False, run.done)
        run.lost = False
        return _held(loaded, due)


def _held(loaded: Loaded, due: Due) -> Held:
    return Held(loaded.head, due, loaded.queue, len(loaded.queue) < 2)


class _Unfit(Exception):
    """What `m.update` was given does not work on the head's context."""

    def __init__(self, error: BaseException) -> None:
        self.error = error


def _fault(error: BaseException) -> Fault:
    trace = "".join(traceback.format_exception(error))[-_TRACEBACK:]
    return Fault(type(error).__name__, said(error)[:_MESSAGE], clean(trace))
