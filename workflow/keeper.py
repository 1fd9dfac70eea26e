"""The leases that one Manager holds, renewed while work is done under them."""

from __future__ import annotations

from datetime import timedelta

from .clock import Bell, SystemClock, utcnow
from .codec import said
from .commit import Writer
from .effect import Runner
from .fire import Firer
from .observer import Trouble
from .record import QUEUE

_LATER = timedelta(days=10_000)


class Keeper:
    """Renews leases three times in their length, and tells runs that lost theirs."""

    def __init__(self, writer: Writer, runner: Runner, firer: Firer) -> None:
        self._writer = writer
        self._runner = runner
        self._firer = firer
        self._beat = Bell()
        self._idle = False
        self._last = writer.now()
        """The last beat: no lease that we hold ends before a lease's length after it."""

    def begun(self) -> None:
        """There is a lease to keep."""
        if self._idle:
            self._beat.ring()

    async def keep(self) -> None:
        """Renew until cancelled."""
        writer, clock, third = self._writer, self._writer.clock, self._writer.lease / 3
        while True:
            if not self._runner.running and not self._firer.firing:
                self._idle = True
                await clock.sleep(self._beat, writer.now() + _LATER, 0)
                self._idle = False
            await clock.sleep(Bell(), writer.now() + third, 0)
            if not await self.renew():
                await clock.sleep(Bell(), writer.now() + third / 4, 0)
                await self.renew()

    async def stir(self) -> None:
        """A beat if the last was long ago: the clock may have jumped, and what runs here must not look abandoned."""
        if not timedelta(0) <= self._writer.now() - self._last < self._writer.lease / 3:
            await self.renew()

    async def renew(self) -> bool:
        """One beat; False if the store did not answer."""
        began = self._writer.now()
        rows = self._runner.rows() + self._firer.rows()
        if not rows:
            self._last = began
            return True
        runs = {id: self._runner.running.get(id) for _, id, name in rows if name == QUEUE}
        writer = self._writer
        now = writer.now() if writer.own_clock else None
        try:
            with writer.clock.working("the lease keeper"):
                before = utcnow()
                renewed = await writer.store.renew(writer.incarnation.token, rows, writer.lease, now)
                after = utcnow()
        except Exception as e:  # noqa: BLE001  # only our own cancellation stops our loops
            pause = (writer.lease / 12).total_seconds()
            fact = Trouble(writer.spec.name, "renewing leases", said(e), e, pause)
            writer.watch.tell("store_unavailable", fact)
            return False
        self._last = began
        clock = writer.clock
        if isinstance(clock, SystemClock):
            clock.follow(renewed.now, before, after)
        for _, id, name in renewed.lost:
            # A run that ended, or a new one of the same instance, is not meant; a row that fires compares its lease.
            run = runs.get(id) if name == QUEUE else None
            if run is not None and self._runner.running.get(id) is run:
                self._runner.lose(id)
        return True
