"""Worker processes that are killed and stopped, and started again; none of them outlives the block."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attrs import define, field, frozen

from tests.fleet import app, journal
from workflow.clock import utcnow

ROOT = Path(__file__).parents[2]
LIFE = 3.0
"""Seconds that each lives at least, since it was ready or went on."""
STOP = app.LEASE.total_seconds() * 1.5
"""Seconds for which a process is stopped: longer than its lease."""
_PATIENCE = 15
_BEAT = 0.02


@frozen
class Trouble:
    """What was done to a worker, from when to when."""

    worker: str
    how: str
    at: float
    until: float

    @property
    def killed(self) -> bool:
        """Killed, not stopped?"""
        return self.how == "SIGKILL"


@define
class Hand:
    """A worker process."""

    name: str
    process: subprocess.Popen[bytes]
    since: float | None = None
    """When it became ready or went on; None before, and while it is stopped."""
    until: float | None = None
    """When it is to go on, if it is stopped."""


@define
class Fleet:
    """So many workers on the store of a folder, each replaced at once when it is killed."""

    folder: Path
    many: int
    hands: list[Hand] = field(factory=list[Hand])
    troubles: list[Trouble] = field(factory=list[Trouble])
    born: int = 0

    async def ready(self) -> None:
        """All have opened the store."""
        async with asyncio.timeout(_PATIENCE):
            while any(hand.since is None for hand in self.hands):
                await self._beat()

    async def suffer(self, count: int, every: float) -> None:
        """One after the other is killed or stopped, as many of each, while at least one goes on."""
        last = now()
        kinds = [stop for _ in range(0, count, 2) for stop in random.sample((False, True), 2)]
        while len(self.troubles) < count:
            await self._beat()
            fit = [n for n, hand in enumerate(self.hands) if hand.since is not None]
            old = [n for n in fit if now() - (self.hands[n].since or 0) >= LIFE]
            if old and len(fit) > 1 and now() - last >= every:
                last = now()
                self._strike(random.choice(old), stop=kinds[len(self.troubles)])

    async def watch(self) -> None:
        """Wake those who are stopped; raises if one ended that nobody killed."""
        while True:
            await self._beat()

    def _strike(self, n: int, *, stop: bool) -> None:
        hand = self.hands[n]
        how = signal.SIGSTOP if stop else signal.SIGKILL
        at = now()
        hand.process.send_signal(how)
        self.troubles.append(Trouble(hand.name, how.name, at, at + STOP if stop else at))
        if stop:
            hand.since, hand.until = None, at + STOP
        else:
            hand.process.wait(_PATIENCE)
            self.hands[n] = self.start()

    async def _beat(self) -> None:
        await asyncio.sleep(_BEAT)
        for hand in self.hands:
            if hand.process.poll() is not None:
                raise AssertionError(f"{hand.name} ended with {hand.process.returncode}: {self.said(hand)}")
            if hand.until is not None and now() >= hand.until:
                hand.process.send_signal(signal.SIGCONT)
                hand.since, hand.until = now(), None
            elif hand.since is None and hand.until is None and journal.ready(self.folder, hand.name):
                hand.since = now()

    def start(self) -> Hand:
        """One more."""
        self.born += 1
        name = f"w{self.born:03}"
        command = [sys.executable, "-W", "error", "-m", "workflow", "work", "tests.fleet.app:worker"]
        around = app.environment(self.folder, name)
        with (self.folder / f"log-{name}").open("wb") as log:
            return Hand(name, subprocess.Popen(command, cwd=ROOT, env=around, stdin=subprocess.DEVNULL, stderr=log))

    def said(self, hand: Hand) -> str:
        """The last of what it wrote to stderr."""
        return (self.folder / f"log-{hand.name}").read_text()[-2000:]

    def dismiss(self) -> None:
        """Each ends well when it is told to."""
        for hand in self.hands:
            hand.process.send_signal(signal.SIGCONT)
            hand.process.terminate()
        for hand in self.hands:
            code = hand.process.wait(_PATIENCE)
            assert code == 0, f"{hand.name} ended with {code}: {self.said(hand)}"


@contextmanager
def fleet(folder: Path, many: int) -> Iterator[Fleet]:
    """Workers at work; at the end of the block all are gone, however it ends."""
    fleet = Fleet(folder, many)
    try:
        for _ in range(many):
            fleet.hands.append(fleet.start())  # one by one: what fails leaves none unknown
        yield fleet
    finally:
        for hand in fleet.hands:
            hand.process.kill()  # also those that are stopped
        for hand in fleet.hands:
            hand.process.wait(_PATIENCE)


def now() -> float:
    """As the journals count."""
    return utcnow().timestamp()
