"""Group commit in bad weather: many that are held, callers whose time is over, heavy commits."""

from __future__ import annotations

import asyncio

import pytest
from msgspec.structs import replace

from stores.batch import HEAVIEST, RETRIES, Batch
from tests.stores.test_batch import DONE, Disk, one, turns
from workflow.errors import StoreUnavailable
from workflow.record import Commit, Locked
from workflow.testing.conformance.rows import commit, move


async def test_many_that_are_held_leave_room_for_the_others():
    """However many others hold, a flight has only a few of them, and who is free goes in the next."""
    disk = Disk()
    disk.locked = {f"held-{n}" for n in range(600)}
    queue = Batch(disk)
    stalled = [one(queue, id) for id in sorted(disk.locked)]
    await asyncio.sleep(0.3)
    for n in range(20):
        before = len(disk.flights)
        assert await one(queue, "free", seq=n) == [DONE]
        assert len(disk.flights) - before <= 2
    assert not any(each.done() for each in stalled)
    again = [flight for flight in disk.flights[2:] if flight != ["free"]]
    assert again
    assert all(len(flight) <= RETRIES + 1 for flight in again)
    disk.locked.clear()
    assert await asyncio.gather(*stalled) == [[DONE]] * 600


async def test_who_waits_behind_a_held_one_is_answered_in_time():
    """Its own timeout counts, however long the one before may wait."""
    disk = Disk()
    disk.locked = {"a"}
    queue = Batch(disk)
    first = one(queue, "a", timeout=60.0)
    await turns()
    assert await asyncio.wait_for(one(queue, "a", seq=1, timeout=0.05), 10) == [Locked()]
    assert not first.done()
    disk.locked.clear()
    assert await first == [DONE]
    assert await asyncio.wait_for(one(queue, "a", seq=2), 10) == [DONE]


async def test_who_waits_for_a_busy_writer_is_answered_in_time():
    """Nothing of his was sent: Locked. Who is under way hears that nobody knows, once the flight is far beyond his time."""
    disk = Disk(hold=True)
    queue = Batch(disk)
    aloft = one(queue, "a", timeout=0.05)
    await turns()
    waiting = one(queue, "b", timeout=0.05)
    assert await asyncio.wait_for(waiting, 10) == [Locked()]
    with pytest.raises(StoreUnavailable) as caught:
        await asyncio.wait_for(aloft, 10)
    assert caught.value.committed is None
    again = one(queue, "a")
    await disk.land(0)
    await disk.land(1)
    assert await again == [DONE]
    assert disk.flights == [["a"], ["a"]]


def heavy(id: str) -> Commit:
    """A commit of three quarters of what a transaction takes."""
    change = move(id, 0)
    assert change.head is not None
    return commit(replace(change, head=replace(change.head, context="x" * (HEAVIEST * 3 // 4))))


async def test_a_transaction_takes_only_so_much():
    """Heavy commits are spread over several; one that is too heavy for any goes alone."""
    disk = Disk(hold=True)
    queue = Batch(disk)
    first = one(queue, "first")
    await turns()
    calls = [asyncio.ensure_future(queue.append([heavy(f"h{n}")], None)) for n in range(5)]
    light = one(queue, "light")
    await turns()
    for n in range(4):
        await disk.land(n)
    assert disk.flights == [["first"], ["h0", "h1"], ["h2", "h3"], ["h4", "light"]]
    assert [await each for each in (first, *calls, light)] == [[DONE]] * 7
