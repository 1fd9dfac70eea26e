"""Due work: claim it, run it, keep its leases, hand it back.

Recovery is the ordinary path. What a dead process left, what failed and waits, what a commit could
not take itself: all of it is a due row, and the loop, `resume()` and a restart do the same with it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from . import circle, incarnation
from .clock import Bell, SystemClock, utcnow
from .codec import said
from .commit import Writer
from .effect import Run, Runner
from .errors import StoreError
from .fire import Firer, Firing
from .keeper import Keeper
from .observer import Trouble
from .owed import Held
from .peers import Peers
from .places import Places
from .record import QUEUE, Due, Loaded, Resumed, Wake

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_HANDING_BACK = 5.0
"""Seconds that hand-backs may take after the drain."""
_HUSH = 0.05
"""Seconds between two looks that a busy store can cause."""
_LATER = timedelta(days=10_000)
_TURN = 16
"""Effects after which a run makes way, if work of other instances waits for a place."""
_SHY = timedelta(milliseconds=200)
"""Pause when rows are due that somebody else is about to take."""


class Taken:
    """What was taken on: queues of effects, and rows that fire."""

    __slots__ = ("firings", "runs")

    def __init__(self, runs: Iterable[Run] = (), firings: Iterable[Firing] = ()) -> None:
        self.runs = list(runs)
        self.firings = list(firings)

    def __bool__(self) -> bool:
        """Is there anything?"""
        return bool(self.runs or self.firings)

    def add(self, other: Taken) -> None:
        """That as well."""
        self.runs += other.runs
        self.firings += other.firings

    def active(self) -> list[asyncio.Future[Any]]:
        """What has not ended yet."""
        ends: list[asyncio.Future[Any]] = [run.result for run in self.runs]
        ends += [firing.done for firing in self.firings]
        return [end for end in ends if not end.done()]


class Background:
    """The background of one Manager."""

    def __init__(self, writer: Writer, runner: Runner, *, places: Places, drain: timedelta) -> None:
        self.writer = writer
        self.runner = runner
        self.firer = Firer(writer, runner)
        self._drain = drain
        self._places = places.size
        self._ours: set[Run | Firing] = set()
        """What the loop is at."""
        self._witnesses: list[Taken] = []
        """Calls of `resume` that count what the loop takes."""
        self._taking = asyncio.Lock()
        """Held from a claim until its runs are known: who finds nothing due must know what others took."""
        self._work = Bell()
        self._guest = places.join(self._work.ring)
        self.keeper = Keeper(writer, runner, self.firer)
        self._peers = Peers(self._work.ring)
        self._stopped = False
        runner.began = self.keeper.begun
        runner.tires = self._tires
        self.firer.crowds = self._crowds
        self._until = writer.now() + _LATER
        """When the loop looks again, if nothing wakes it."""
        writer.made_work = self._sooner

    def start(self, *, loop: bool) -> None:
        """Begin to keep leases, and (with `loop`) to look for due work."""
        house = self.writer.house
        house.spawn(self.keeper.keep, "lease keeper")
        if loop:
            house.spawn(self._loop, "loop")
            house.spawn(self._listen, "listener")
            house.spawn(self._peers.watch, "watch over peers")

    async def stop(self) -> None:
        """Let hooks end within the drain; then cancel them and hand their leases back. To cancel this
        cuts the drain short, not the hand-backs: what is cancelled with it must not look like failures."""
        self._stopped = True
        self._guest.leave()
        self._work.ring()
        try:
            await self._quiet(self._drain.total_seconds())
        finally:
            self.runner.caller.closing = True
            for run in list(self.runner.running.values()):
                run.call.stop()
            await self._quiet(_HANDING_BACK)

    async def _quiet(self, seconds: float) -> None:
        """Wait until nothing is being claimed, nothing runs and no outcome is unknown, at most `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                while self._busy():  # noqa: ASYNC110  # several rooms' counts, once a life
                    await asyncio.sleep(0.005)
        except TimeoutError:
            pass

    def _busy(self) -> bool:
        claiming = self._taking.locked()
        return bool(claiming or self.runner.running or self.firer.firing or self.writer.unsettled)

    # --- the loop ---------------------------------------------------------------------------------

    async def _loop(self) -> None:
        clock, pause = self.writer.clock, _FIRST_PAUSE
        while not self._stopped:
            try:
                with clock.working("the loop"):
                    until = await self._round()
                pause = _FIRST_PAUSE
            except Exception as e:  # noqa: BLE001  # only our own cancellation stops our loops
                self._guest.sate()
                await self._back_off("looking for due work", e, pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
                continue
            self._until = until
            # Others may take leases that end before anything I know of.
            await clock.sleep(self._work, until, 2, look=self.writer.now() + self.writer.lease / 3)
            self._until = self.writer.now() + _LATER  # what is committed during the look may not be seen by it

    def _sooner(self, at: datetime | None) -> None:
        """Work was left: look in time."""
        if at is None or at < self._until:
            self._work.ring()

    async def _round(self) -> datetime:
        """Start what is due; when the next is."""
        while True:
            wake = await self._look()
            gone = incarnation.dead(wake.tokens)
            self._peers.seen(wake.tokens - gone)
            if not gone and (wake.at is None or wake.at > wake.now):
                self._guest.sate()
                return wake.at or wake.now + _LATER
            free = 0 if self._stopped else self._guest.take()
            if free <= 0:
                return wake.now + _LATER
            rows = await self._take_on(free, gone)
            if len(rows) < free:
                self._guest.sate()
            if not rows:
                return wake.now + _SHY

    async def _take_on(self, places: int, gone: frozenset[str]) -> Sequence[Due]:
        """Claim and begin what finds a place."""
        begun = 0
        try:
            await self.keeper.stir()
            async with self._taking:
                rows = await self._claim(places, gone, None)
                taken = await self._begin(rows)
                begun = len(taken.runs) + len(taken.firings)
                self._mind(taken)
        finally:
            self._guest.give_back(places - begun)
        return rows

    async def _back_off(self, what: str, error: Exception, pause: float) -> None:
        """Tell of trouble with the store, and wait about `pause` seconds."""
        pause *= 0.5 + random.random()
        name, watch = self.writer.spec.name, self.writer.watch
        watch.tell("store_unavailable", Trouble(name, what, said(error), error, pause))
        await asyncio.sleep(pause)

    def _tires(self, run: Run) -> bool:
        """Is it the turn of other instances? Not while somebody waits for what was due to be done."""
        return run.done >= _TURN and run in self._ours and not self._witnesses and self._guest.pressed()

    def _crowds(self, firing: Firing) -> bool:
        """Is its place wanted while it only waits?"""
        return firing in self._ours and not self._witnesses and self._guest.pressed()

    async def _look(self) -> Wake:
        own = self.writer.own_clock
        before = utcnow()
        wake = await self.writer.store.next_due(self._workflows(), self.writer.now() if own else None)
        clock = self.writer.clock
        if isinstance(clock, SystemClock):
            clock.follow(wake.now, before, utcnow())
        return wake

    async def _listen(self) -> None:
        """Ring when another process changed something."""
        seconds = self.writer.lease.total_seconds() / 3
        while not self._stopped:
            try:
                if await self.writer.store.wait(seconds):
                    self._work.ring()
                    await asyncio.sleep(_HUSH)
                    self._work.ring()  # for what came meanwhile
            except Exception:  # noqa: BLE001  # only our own cancellation stops our loops; the loop tells of errors
                await asyncio.sleep(_LONGEST_PAUSE * (0.5 + random.random()))

    def _mind(self, taken: Taken) -> None:
        """Count what the loop started against its concurrency, until it ends."""
        for witness in self._witnesses:
            witness.add(taken)

        def ended(work: Run | Firing, _: object) -> None:
            self._ours.discard(work)
            self._guest.give_back()
            self._work.ring()

        self._ours.update(taken.runs, taken.firings)
        for run in taken.runs:
            run.result.add_done_callback(partial(ended, run))
        for firing in taken.firings:
            firing.done.add_done_callback(partial(ended, firing))

    # --- claiming ---------------------------------------------------------------------------------

    def _workflows(self) -> dict[str, int]:
        spec = self.writer.spec
        return dict.fromkeys((spec.name, *self.firer.others), spec.version)

    async def _claim(self, limit: int, dead: Iterable[str], cut: datetime | None) -> Sequence[Due]:
        """Rows due now (or at `cut`), leased to us."""
        writer, lease = self.writer, self.writer.lease
        now = writer.now() if writer.own_clock else None
        if cut is not None:
            lease += writer.now() - cut
            now = cut
        token = writer.incarnation.token
        return await writer.store.claim(self._workflows(), token, lease, limit, tuple(dead), now)

    async def _begin(self, rows: Sequence[Due]) -> Taken:
        """Work off the claimed rows, in the order of their instances."""
        taken = Taken()
        queues = sorted((row for row in rows if row.name == QUEUE), key=lambda row: row.id)
        loaded = await self._load([row.id for row in queues]) if queues else ()
        for row, found in zip(queues, loaded, strict=True):
            if found is None or found.effects is None or found.effects.token != row.token or not found.queue:
                continue
            working = self._working(f"effects of {row.id}")
            run = self.runner.start(Held(found.head, found.effects, found.queue, len(found.queue) < 2))
            run.result.add_done_callback(partial(_close, working))
            taken.runs.append(run)
        for row in rows:  # as they were claimed: of one instance the one that was due first fires first
            if row.name == QUEUE:
                continue
            working = self._working(f"{row.name} of {row.id}")
            firing = self.firer.start(row)
            firing.done.add_done_callback(partial(_close, working))
            taken.firings.append(firing)
        self.keeper.begun()
        return taken

    def _working(self, what: str) -> ExitStack:
        working = ExitStack()
        working.enter_context(self.writer.clock.working(what))
        return working

    async def _load(self, ids: Sequence[str]) -> Sequence[Loaded | None]:
        """Heads of rows that are already ours: not to be lost to a passing error."""
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self.writer.store.load(self.writer.spec.name, ids)
            except StoreError:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    # --- resume -----------------------------------------------------------------------------------

    async def resume(self) -> Resumed:
        """Try once what was due when called and no living process owns, with the chains it causes."""
        start = self.writer.now()
        # What the loop is at, or takes before us, was due as well.
        runs = [run for run in self.runner.running.values() if run in self._ours and not self._awaits_us(run)]
        taken = Taken(runs, [firing for firing in self.firer.firing.values() if firing in self._ours])
        self._witnesses.append(taken)
        try:
            await self._work_off(start, taken)
        finally:
            self._witnesses = [other for other in self._witnesses if other is not taken]
        runs = taken.runs + [firing.run for firing in taken.firings if firing.run is not None]
        await _all([run.result for run in runs])
        settled = {run.id: run.result.result().settled for run in runs}
        unfired = {firing.due.id for firing in taken.firings if not firing.over}
        failed = {id for id, done in settled.items() if not done} | unfired
        fired = sum(firing.fired for firing in taken.firings)
        return Resumed(effects=sum(run.done for run in runs), timers=fired, failed=tuple(sorted(failed)))

    def _awaits_us(self, run: Run) -> bool:
        """Is it a hook of this very run that called `resume`?"""
        return circle.closes(self.writer.node(run.id))

    async def _work_off(self, start: datetime, taken: Taken) -> None:
        while True:
            active = taken.active()
            free = self._places - len(active)
            async with self._taking:
                rows = await self._claim_patiently(free, start) if free > 0 else ()
                taken.add(await self._begin(rows))
            if not rows and not active:
                break
            if not rows:  # what is fired may leave what was due as well: a schedule's next tick
                enough = asyncio.ALL_COMPLETED if free > 0 else asyncio.FIRST_COMPLETED
                await asyncio.wait(active, return_when=enough)
        self._witnesses = [other for other in self._witnesses if other is not taken]
        await _all(taken.active())

    async def _claim_patiently(self, limit: int, cut: datetime) -> Sequence[Due]:
        pause = _FIRST_PAUSE
        while True:
            try:
                wake = await self._look()
                await self.keeper.stir()
                return await self._claim(limit, incarnation.dead(wake.tokens), cut)
            except StoreError as e:
                await self._back_off("looking for what to resume", e, pause)
                pause = min(pause * 2, _LONGEST_PAUSE)


async def _all(ends: Sequence[asyncio.Future[Any]]) -> None:
    if ends:
        await asyncio.wait(ends)


def _close(working: ExitStack, _: object) -> None:
    working.close()
