"""Due rows of timeouts and delayed events, fired by the owner of their lease."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial

from . import told
from .call import patient
from .codec import alike
from .commit import Writer
from .effect import Run, Runner
from .errors import StoreError
from .firing import Fired, dropped, fire, key_taken, put_off
from .lane import Full
from .ledger import took
from .owed import Held
from .record import QUEUE, Change, Committed, Conflicted, Due, Duplicate, Head, Kind, Line, Loaded, Locked
from .sight import LONGEST_PAUSE, stamped_line, think

_MOMENT = timedelta(seconds=1)
"""Until a row is due again that waits for a running hook, and others need its place."""
_GUARD = 30.0
"""Seconds that the guards of an event in due work may take."""


class Firing:
    """A row in work."""

    __slots__ = ("done", "due", "fired", "over", "run")

    def __init__(self, due: Due) -> None:
        self.due = due
        self.fired = False
        """Did this firing put a line on record?"""
        self.over = False
        """Is the row gone, or somebody else's?"""
        self.run: Run | None = None
        """The effects that it caused, if they are ours to run."""
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Set when the row is fired, or cannot be, and the effects that it caused have ended."""

    def end(self, _: object = None) -> None:
        """Nothing more is done about the row itself."""
        if self.run is not None and not self.run.result.done():
            self.run.result.add_done_callback(self.end)
        elif not self.done.done():
            self.done.set_result(None)


class Firer:
    """Fires the rows whose lease this Manager holds."""

    def __init__(self, writer: Writer, runner: Runner) -> None:
        self.writer = writer
        self.runner = runner
        self.firing: dict[tuple[str, str, str], Firing] = {}
        """By place, as `Store.renew` names it."""
        self.others: dict[str, Callable[[Firing], Awaitable[None]]] = {}
        """Who fires the rows of workflows that are not the spec's own."""
        self.crowds: Callable[[Firing], bool] = lambda firing: False
        """Does it take a place that other work waits for? Set by `background`."""

    def rows(self) -> list[tuple[str, str, str]]:
        """The due rows under lease, as `Store.renew` names them."""
        return list(self.firing)

    def start(self, due: Due) -> Firing:
        """Fire this row in a task of the house."""
        firing = Firing(due)
        place, fire = (due.workflow, due.id, due.name), self.others.get(due.workflow, self._in_turn)
        self.firing[place] = firing

        async def work() -> None:
            try:
                await fire(firing)
            finally:
                if self.firing.get(place) is firing:
                    del self.firing[place]
                firing.end()

        self.writer.house.spawn(work, f"{due.name} of {due.id}")
        return firing

    async def _in_turn(self, firing: Firing) -> None:
        """As a send: in the order of arrival, and not while effects of the instance run."""
        lanes, id = self.writer.lanes, firing.due.id
        if not lanes.enter(id):
            try:
                ticket = lanes.queue(id)
            except Full:
                await self._hand_back(firing, _MOMENT)
                return
            try:
                await ticket
            except BaseException:
                lanes.give_up(id, ticket)
                raise
        try:
            await self._carry_out(firing)
        finally:
            lanes.leave(id)

    async def _carry_out(self, firing: Firing) -> None:
        writer, due = self.writer, firing.due
        while True:
            loaded = await patient(lambda: writer.load(due.id))
            if loaded is None or self.firing.get((due.workflow, due.id, due.name)) is not firing:
                return
            if self.runner.caller.closing:
                await self._hand_back(firing)
                return
            seconds = writer.occupied(loaded)
            if seconds is not None and not writer.runs(loaded):
                # An undoing awaits a retry, perhaps for long, and who waited here might keep its place from it.
                await self._hand_back(firing, self._until_retried(loaded))
                return
            if seconds is not None and self.crowds(firing):
                await self._hand_back(firing, _MOMENT)
                return
            if seconds is not None:
                await writer.rest.wait(due.id, min(seconds, LONGEST_PAUSE))
                continue
            fired = await patient(partial(self._judged, loaded, due))
            if await self._written(firing, loaded, fired):
                return

    async def _judged(self, loaded: Loaded, due: Due) -> Fired:
        until = asyncio.get_running_loop().time() + _GUARD
        return await think(fire(self.writer, loaded, due, random.random()), until)

    async def _written(self, firing: Firing, loaded: Loaded, fired: Fired) -> bool:
        """Is the row done with? False: look again."""
        writer, due = self.writer, firing.due
        line = fired.line
        commit_id = writer.author().commit_id if line is None else line.commit_id
        writer.forget(due.id)
        commit = writer.commit(fired.change, commit_id)
        try:
            answer, _ = await patient(lambda: writer.append(commit, None))
        except StoreError as e:
            told.abandoned(writer.watch, due.workflow, f"firing {due.name} of {due.id}", e)
            return True
        if isinstance(answer, (Conflicted, Locked)):
            return False
        if isinstance(answer, Duplicate):  # the key was used meanwhile by a call
            await self._alone(due, self._repeated(answer.line, fired.line))
            firing.over = True
            return True
        firing.over = fired.fault is None
        if not isinstance(answer, Committed):  # another fired it, or it was cancelled
            return True
        if fired.fault is not None:
            told.unfired(writer.watch, due, fired.change, fired.fault, answer.at)
        firing.fired = line is not None
        if line is not None and fired.head is not None:
            self._landed(firing, loaded, fired.change, fired.head, stamped_line(line, answer.at), answer)
        writer.made_work(None)
        return True

    def _repeated(self, known: Line, mine: Line | None) -> Callable[[Head, Due], Change]:
        """The same request: the event is not to be sent again. Another: that is put on record."""
        if mine is None:
            return dropped
        same = known.kind in (Kind.EVENT, Kind.REFUSED) and known.event == mine.event
        if same and alike(known.payload, mine.payload, known.commit_id):
            return dropped
        return partial(key_taken, self.writer.author(), mine.event, mine.payload, known.seq)

    def _landed(
        self, firing: Firing, loaded: Loaded, change: Change, head: Head, line: Line, answer: Committed
    ) -> None:
        """As after a send: run the effects that are now ours."""
        writer = self.writer
        puts = tuple(put for put in change.puts if put.name == QUEUE)
        leased = took(answer, puts)
        if leased is not None and head.id not in writer.rest:
            firing.run = self.runner.start(Held(head, leased, (line,), whole=True))
        elif not puts and loaded.effects is None:
            writer.remember(head)

    def _until_retried(self, loaded: Loaded) -> timedelta:
        """Until what is owed is tried again, but never so long that a retry asked for goes unnoticed."""
        pause = timedelta(seconds=LONGEST_PAUSE)
        left = pause if loaded.effects is None else loaded.effects.at - self.writer.now()
        return min(max(left, pause), self.writer.lease / 3)

    async def _hand_back(self, firing: Firing, wait: timedelta = timedelta(0)) -> None:
        await self._alone(firing.due, partial(put_off, wait=wait))

    async def _alone(self, due: Due, change: Callable[[Head, Due], Change]) -> None:
        """Write what touches the row alone, whatever happens to the instance meanwhile."""
        writer = self.writer
        while True:
            loaded = await patient(lambda: writer.load(due.id))
            if loaded is None:
                return
            made = change(loaded.head, due)
            commit = writer.commit(made, made.lines[0].commit_id if made.lines else writer.author().commit_id)
            try:
                answer, _ = await writer.append(commit, None)
            except StoreError:
                return  # the lease runs out
            if not isinstance(answer, (Conflicted, Locked)):
                return
