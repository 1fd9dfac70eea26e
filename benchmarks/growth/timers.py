"""A million timers, each of an instance of its own, most of them far ahead: the next time, a claim of what is due."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from time import perf_counter
from typing import Final

from workflow.record import Change, Commit, Put

from .. import whole
from ..book import Book
from ..case import Missing, Stage
from ..pace import share
from . import CLAIM, NEXT_DUE, Size
from .ground import Ground, copies, fields_of, grounds

NOW: Final = datetime(2030, 1, 1, tzinfo=UTC)
STEP: Final = timedelta(seconds=100)
"""Within which a hundred come due: one a second."""
LEASED: Final = 10_000
"""Rows that others hold leases on, which end after all timers."""
OWNERS: Final = 8
CLAIMS: Final = 100
LEASE: Final = timedelta(days=100_000)
"""What was claimed is not in the way of the next."""


async def measure(stage: Stage, size: Size, book: Book) -> None:
    """Figures `ms: next_due at N timers, STORE` and `ms: claim of 100 at N timers, STORE`: medians."""
    for name, entering in grounds(stage):
        try:
            async with entering as ground:
                await _fill(ground, size.timers)
                took = await _look(ground)
        except Missing as e:
            book.missing[f"timers, {name}"] = str(e)
        else:
            for what, seconds in took.items():
                book.note({f"ms: {what} at {size.timers:,} timers, {name}": share(sorted(seconds), 0.5) * 1000})


async def _fill(ground: Ground, many: int) -> None:
    """Neighbours in time are none on the disk."""
    puts = (Put("timeout/seed", 1, at=NOW + timedelta(days=50_000)),)
    await ground.store.append([Commit("0" * 32, "seed", (Change("light", "seed", 0, puts=puts),), NOW)])
    seed, fields = "r.workflow = 'light' AND r.id = 'seed' AND r.name = 'timeout/seed'", fields_of(ground, "due")
    id = f"'light ' || (10000000 + CAST(s.n AS bigint) * 7919 % {many})"
    at = ground.after(NOW, "s.n")
    await copies(ground, "due", fields, seed, (1, many), id=id, name="'timeout/late'", at=at)
    at = ground.after(NOW + timedelta(days=25_000), "s.n")
    token = f"'owner ' || (s.n % {OWNERS})"
    await copies(ground, "due", fields, seed, (1, LEASED), id=id, name="'effects'", at=at, token=token)


async def _look(ground: Ground) -> dict[str, list[float]]:
    """Each claim after a look for the next time, as a Manager does it."""
    took: dict[str, list[float]] = {NEXT_DUE: [], CLAIM: []}
    first = NOW + timedelta(seconds=1)
    for n in range(CLAIMS):
        began = perf_counter()
        wake = await ground.store.next_due({"light": 1}, NOW)
        took[NEXT_DUE].append(perf_counter() - began)
        whole.same("the next time", [wake.at, len(wake.tokens) - min(n, 1)], [first + n * STEP, OWNERS])
        began = perf_counter()
        rows = await ground.store.claim({"light": 1}, "me", LEASE, 100, (), NOW + (n + 1) * STEP)
        took[CLAIM].append(perf_counter() - began)
        whole.same("rows claimed", [len({row.id for row in rows})], [100])
    return took
