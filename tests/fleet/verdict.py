"""Was anything lost, was anything done twice without a reason, and how late was it?

The histories say what was owed, the journals what was done.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

from attrs import define, field

from tests.fleet.app import CONCURRENCY, LEASE, Event, State, broke, manager, spec
from tests.fleet.fleet import Trouble
from tests.fleet.journal import BEGUN, DONE, FAILED, REFUSED, Deed, read
from workflow.record import Kind
from workflow.testing import replay

AWAKE = 1.0
"""Seconds in which a process that goes on finds out that its leases are gone."""

Promised = Mapping[tuple[str, str], datetime]
"""When the event with this key is due on this instance."""


@define
class Verdict:
    """What a run came to."""

    troubles: Sequence[Trouble]
    orders: int = 0
    lines: int = 0
    effects: int = 0
    doubled: int = 0
    after_kill: list[float] = field(factory=list[float])
    """Seconds from a kill to the next attempt of what the dead process was at."""
    after_stop: list[float] = field(factory=list[float])
    timers: list[float] = field(factory=list[float])
    """Seconds by which timeouts came late that had nothing to wait for."""
    delayed: list[float] = field(factory=list[float])
    """The same for delayed events, which may have had to wait for a hook of their instance."""

    def __str__(self) -> str:
        kills = sum(trouble.killed for trouble in self.troubles)
        return "\n".join(
            (
                f"{self.orders} orders, {self.lines} lines, {self.effects} effects",
                f"{kills} kills, {len(self.troubles) - kills} stops: {self.doubled} attempts too many, none lost",
                f"  taken over after a kill: {_times(self.after_kill)}",
                f"  taken over after a stop: {_times(self.after_stop)}",
                f"  timeouts late by:        {_times(self.timers)}",
                f"  delayed events late by:  {_times(self.delayed)}",
            )
        )


async def judged(folder: Path, ids: Sequence[str], promised: Promised, troubles: Sequence[Trouble]) -> Verdict:
    """Look at every order and every deed. AssertionError at the first that is wrong."""
    verdict = Verdict(troubles, len(ids))
    owed: set[str] = set()
    kept: dict[tuple[str, str], datetime] = {}
    async with manager(folder, work=False) as orders:
        assert (await orders.store.next_due({spec.name: spec.version})).at is None
        for id in ids:
            history = await orders.history(id)
            instance = await orders.get(id)
            assert replay(spec, history) == instance
            assert [line.seq for line in history] == [*range(1, len(history) + 1)]
            lost = broke(id)
            context = instance.context
            assert instance.status == "finished", f"{id} is {instance}"
            assert instance.state == (State.LOST if lost else State.SENT), f"{id} is {instance}"
            assert (context.charged, context.packed) == ((0, 0) if lost else (1, 1)), f"settled twice: {instance}"
            notes = [line for line in history if line.event is Event.NOTE and line.kind == Kind.EVENT]
            assert context.notes == len(notes) <= 1
            kept |= {(id, line.key): line.at for line in history if line.key is not None and line.seq > 1}
            first = next(line for line in history if line.kind == Kind.TIMEOUT)
            verdict.timers.append((first.at - history[0].at - timedelta(seconds=context.wait)).total_seconds())
            lines = await orders.store.history(spec.name, id)
            owed |= {f"{line.workflow}/{line.id}/{line.seq}/{name}" for line in lines for name in line.owes}
            verdict.lines += len(lines)
    assert kept.keys() == promised.keys(), f"delayed events lost: {promised.keys() ^ kept.keys()}"
    verdict.delayed += [(kept[place] - at).total_seconds() for place, at in promised.items()]
    judge_deeds(read(folder), owed, verdict)
    return verdict


def judge_deeds(deeds: Sequence[Deed], owed: set[str], verdict: Verdict) -> None:
    """Was all that is owed done, and nothing but that, and twice only for a reason?"""
    told: dict[str, list[Deed]] = defaultdict(list)
    for deed in deeds:
        if deed.key:
            told[deed.key].append(deed)
    assert told.keys() == owed, f"never run, or never owed: {told.keys() ^ owed}"
    verdict.effects = len(owed)
    for key, story in told.items():
        assert any(deed.what in (DONE, REFUSED) for deed in story), f"{key} was never done: {story}"
        begun = sorted((deed for deed in story if deed.what == BEGUN), key=lambda deed: (deed.attempt, deed.at))
        assert len({deed.attempt for deed in begun}) == len(begun), f"an attempt of two owners: {story}"
        failed = {deed.attempt for deed in story if deed.what == FAILED}
        for earlier, later in pairwise(begun):
            if earlier.attempt in failed:
                continue
            verdict.doubled += 1
            trouble = _reason(verdict.troubles, earlier, later)
            assert trouble is not None, f"{later} though nothing happened to {earlier.worker}: {story}"
            (verdict.after_kill if trouble.killed else verdict.after_stop).append(later.at - trouble.at)
    most = len(verdict.troubles) * CONCURRENCY
    assert verdict.doubled <= most, f"{verdict.doubled} attempts too many, at most {most} can be explained"


def _reason(troubles: Sequence[Trouble], earlier: Deed, later: Deed) -> Trouble | None:
    """What happened to the earlier attempt's process while it was at it. One that was stopped between claim
    and hook begins when it goes on, its successor perhaps before."""
    for trouble in troubles:
        ended = trouble.until if trouble.killed else trouble.until + AWAKE
        if trouble.worker == earlier.worker and trouble.at <= later.at and earlier.at <= ended:
            return trouble
    return None


def _times(seconds: Sequence[float]) -> str:
    if not seconds:
        return "none"
    ranked = sorted(seconds)
    shares = [ranked[min(len(ranked) - 1, int(len(ranked) * share))] * 1000 for share in (0.5, 0.9, 0.99)]
    p50, p90, p99 = shares
    return f"p50 {p50:.0f} ms, p90 {p90:.0f} ms, p99 {p99:.0f} ms, most {ranked[-1] * 1000:.0f} ms ({len(ranked)})"


assert timedelta(seconds=AWAKE) < LEASE
