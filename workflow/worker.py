"""Due work: claim it, run it, keep its leases, hand it back.

Recovery is the ordinary path. What a dead process left, what failed and waits, what a commit could
not take itself: all of it is a due row, and the loop, `resume()` and a restart do the same with it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from datetime import datetime, timedelta
from functools import partial

from . import circle, incarnation
from .clock import Bell, SystemClock
from .commit import Writer
from .effect import Result, Run, Runner
from .errors import StoreError
from .queue import Held
from .record import QUEUE, Due, Loaded, Resumed, Wake

_log = logging.getLogger("enumflow")
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_HANDING_BACK = 5.0
"""Seconds that hand-backs may take after the drain."""
_HUSH = 0.05
"""Seconds between two looks that a busy store can cause."""
_LATER = timedelta(days=10_000)
_SHY = timedelta(milliseconds=200)
"""Pause when rows are due that somebody else is about to take."""


class Worker:
    """The background of one Manager."""

    def __init__(self, writer: Writer, runner: Runner, *, concurrency: int, drain: timedelta) -> None:
        self.writer = writer
        self.runner = runner
        self._concurrency = concurrency
        self._drain = drain
        self._ours: set[str] = set()
        """Instances that the loop is at."""
        self._witnesses: list[list[Run]] = []
        """Calls of `resume` that count what the loop takes."""
        self._taking = asyncio.Lock()
        """Held from a claim until its runs are known: who finds nothing due must know what others took."""
        self._work, self._beat = Bell(), Bell()
        self._stopped = False
        self._idle = False
        runner.began = self._begun
        writer.made_work = self._work.ring

    def start(self, *, loop: bool) -> None:
        """Begin to keep leases, and (with `loop`) to look for due work."""
        house = self.writer.house
        house.spawn(self._keep, "lease keeper")
        if loop:
            house.spawn(self._loop, "loop")
            house.spawn(self._listen, "listener")

    async def stop(self) -> None:
        """Let hooks end within the drain; then cancel them and hand their leases back. To cancel this
        cuts the drain short, not the hand-backs: what is cancelled with it must not look like failures."""
        self._stopped = True
        self._work.ring()
        try:
            await self._quiet(self._drain.total_seconds())
        finally:
            self.runner.caller.closing = True
            for run in list(self.runner.running.values()):
                run.call.stop()
            await self._quiet(_HANDING_BACK)

    async def _quiet(self, seconds: float) -> None:
        """Wait until nothing runs and no outcome is unknown, at most `seconds`."""
        try:
            async with asyncio.timeout(seconds):
                while self.runner.running or self.writer.unsettled:  # noqa: ASYNC110  # two rooms' counts, once a life
                    await asyncio.sleep(0.005)
        except TimeoutError:
            pass

    # --- the loop ---------------------------------------------------------------------------------

    async def _loop(self) -> None:
        clock, pause = self.writer.clock, _FIRST_PAUSE
        while not self._stopped:
            try:
                with clock.working("the loop"):
                    until = await self._round()
                pause = _FIRST_PAUSE
            except Exception as e:  # noqa: BLE001  # only our own cancellation stops our loops
                _log.warning("looking for due work failed, trying again in %.1f s: %s", pause, e)
                await asyncio.sleep(pause * (0.5 + random.random()))
                pause = min(pause * 2, _LONGEST_PAUSE)
                continue
            # Others may take leases that end before anything I know of.
            await clock.sleep(self._work, until, 2, look=self.writer.now() + self.writer.lease / 3)

    async def _round(self) -> datetime:
        """Start what is due; when the next is."""
        while True:
            wake = await self._look()
            gone = incarnation.dead(wake.tokens)
            free = self._concurrency - len(self._ours)
            if self._stopped or free <= 0:
                return wake.now + _LATER
            if not gone and (wake.at is None or wake.at > wake.now):
                return wake.at or wake.now + _LATER
            await self._renew()  # the clock may have jumped: what runs here must not look abandoned
            async with self._taking:
                rows = await self._claim(free, gone, None)
                for run in await self._begin(rows):
                    self._mind(run)
            if not rows:
                return wake.now + _SHY

    async def _look(self) -> Wake:
        own = self.writer.own_clock
        wake = await self.writer.store.next_due(self._workflows(), self.writer.now() if own else None)
        clock = self.writer.clock
        if isinstance(clock, SystemClock):
            clock.follow(wake.now)
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
                await asyncio.sleep(_LONGEST_PAUSE)

    def _mind(self, run: Run) -> None:
        """Count a run that the loop started against its concurrency, until it ends."""
        self._ours.add(run.id)
        for runs in self._witnesses:
            runs.append(run)

        def ended(_: asyncio.Future[Result]) -> None:
            self._ours.discard(run.id)
            self._work.ring()

        run.result.add_done_callback(ended)

    # --- claiming ---------------------------------------------------------------------------------

    def _workflows(self) -> dict[str, int]:
        return {self.writer.spec.name: self.writer.spec.version}

    async def _claim(self, limit: int, dead: Iterable[str], cut: datetime | None) -> Sequence[Due]:
        """Rows due now (or at `cut`), leased to us."""
        writer, lease = self.writer, self.writer.lease
        now = writer.now() if writer.own_clock else None
        if cut is not None:
            lease += writer.now() - cut
            now = cut
        token = writer.incarnation.token
        rows = await writer.store.claim(self._workflows(), token, lease, limit, tuple(dead), now)
        return [row for row in rows if row.name == QUEUE]

    async def _begin(self, rows: Sequence[Due]) -> list[Run]:
        """Run the claimed queues, in the order of their instances."""
        if not rows:
            return []
        rows = sorted(rows, key=lambda row: row.id)
        loaded = await self._load([row.id for row in rows])
        runs: list[Run] = []
        for row, found in zip(rows, loaded, strict=True):
            if found is None or found.effects is None or found.effects.token != row.token or not found.queue:
                continue
            held = Held(found.head, found.effects, found.queue, len(found.queue) < 2)
            working = ExitStack()
            working.enter_context(self.writer.clock.working(f"effects of {row.id}"))
            run = self.runner.start(held)
            run.result.add_done_callback(partial(_close, working))
            runs.append(run)
        return runs

    async def _load(self, ids: Sequence[str]) -> Sequence[Loaded | None]:
        """Heads of rows that are already ours: not to be lost to a passing error."""
        pause = _FIRST_PAUSE
        while True:
            try:
                return await self.writer.store.load(self.writer.spec.name, ids)
            except StoreError:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    # --- leases -----------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Renew the leases of running effects, three times in their length."""
        clock, third = self.writer.clock, self.writer.lease / 3
        while True:
            if not self.runner.running:
                self._idle = True
                await clock.sleep(self._beat, self.writer.now() + _LATER, 0)
                self._idle = False
            await clock.sleep(Bell(), self.writer.now() + third, 0)
            if not await self._renew():
                await clock.sleep(Bell(), self.writer.now() + third / 4, 0)
                await self._renew()

    def _begun(self) -> None:
        if self._idle:
            self._beat.ring()

    async def _renew(self) -> bool:
        """One beat; False if the store did not answer."""
        rows = self.runner.rows()
        if not rows:
            return True
        runs = {id: self.runner.running.get(id) for _, id, _ in rows}
        writer = self.writer
        now = writer.now() if writer.own_clock else None
        try:
            with writer.clock.working("the lease keeper"):
                renewed = await writer.store.renew(writer.incarnation.token, rows, writer.lease, now)
        except Exception as e:  # noqa: BLE001  # only our own cancellation stops our loops
            _log.warning("leases could not be renewed, trying again: %s", e)
            return False
        clock = writer.clock
        if isinstance(clock, SystemClock):
            clock.follow(renewed.now)
        for _, id, _ in renewed.lost:
            # A run that ended, or a new one of the same instance, is not meant.
            run = runs.get(id)
            if run is not None and self.runner.running.get(id) is run:
                self.runner.lose(id)
        return True

    # --- resume -----------------------------------------------------------------------------------

    async def resume(self) -> Resumed:
        """Try once what was due when called and no living process owns, with the chains it causes."""
        start = self.writer.now()
        # What the loop is at, or takes before us, was due as well.
        runs = [run for run in self.runner.running.values() if run.id in self._ours and not self._awaits_us(run)]
        self._witnesses.append(runs)
        try:
            await self._work_off(start, runs)
        finally:
            self._witnesses = [other for other in self._witnesses if other is not runs]
        settled = {run.id: run.result.result().settled for run in runs}
        failed = tuple(sorted(id for id, done in settled.items() if not done))
        return Resumed(effects=sum(run.done for run in runs), timers=0, failed=failed)

    def _awaits_us(self, run: Run) -> bool:
        """Is it a hook of this very run that called `resume`?"""
        return circle.closes(self.writer.node(run.id))

    async def _work_off(self, start: datetime, runs: list[Run]) -> None:
        while True:
            active = [run.result for run in runs if not run.result.done()]
            free = self._concurrency - len(active)
            async with self._taking:
                rows = await self._claim_patiently(free, start) if free > 0 else ()
                runs += await self._begin(rows)
            if not rows and free > 0:
                break
            if not rows:
                await asyncio.wait(active, return_when=asyncio.FIRST_COMPLETED)
        self._witnesses = [other for other in self._witnesses if other is not runs]
        if runs:
            await asyncio.wait([run.result for run in runs])

    async def _claim_patiently(self, limit: int, cut: datetime) -> Sequence[Due]:
        pause = _FIRST_PAUSE
        while True:
            try:
                wake = await self._look()
                await self._renew()
                return await self._claim(limit, incarnation.dead(wake.tokens), cut)
            except StoreError as e:
                _log.warning("resume() waits for the store: %s", e)
                await asyncio.sleep(pause * (0.5 + random.random()))
                pause = min(pause * 2, _LONGEST_PAUSE)


def _close(working: ExitStack, _: object) -> None:
    working.close()
