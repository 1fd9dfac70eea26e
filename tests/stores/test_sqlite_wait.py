"""Other processes' commits on SQLite are noticed by the age and size of the log, whatever the file's clock is like."""

from __future__ import annotations

import asyncio

from stores import SQLiteStore, sql, sqlite
from workflow.clock import utcnow
from workflow.testing.conformance.suite import started

CEILING = 20.0


async def test_a_commit_that_left_the_log_as_old_as_the_one_before_is_noticed(tmp_path, monkeypatch):
    """Where a file's clock ticks every few milliseconds two commits can bear one time: the waiter looks once more."""
    monkeypatch.setattr(sqlite, "TICK", 60_000_000)
    async with SQLiteStore(tmp_path / "orders.db") as here, SQLiteStore(tmp_path / "orders.db") as there:
        await started(there, "a")
        same = _now(), 4096, 1
        monkeypatch.setattr(here, "_tide", lambda: same)
        waiting = asyncio.ensure_future(here.wait(60.0))
        await asyncio.sleep(0)
        await started(there, "b")
        assert await asyncio.wait_for(waiting, CEILING)


async def test_an_old_log_that_stays_as_it_is_wakes_nobody(tmp_path, monkeypatch):
    """At rest there is nothing to look at again."""
    async with SQLiteStore(tmp_path / "orders.db") as store:
        await started(store, "a")
        same = _now() - 60 * 10**9, 4096, 1
        monkeypatch.setattr(store, "_tide", lambda: same)
        assert not await asyncio.wait_for(store.wait(2.5 * sqlite.BEAT), CEILING)


async def test_other_processes_are_looked_for_often_enough():
    """Within the second that is promised."""
    assert sqlite.BEAT <= 0.5


def _now() -> int:
    return 1000 * sql.micros(utcnow())
