"""Opening, closing, opening again; waiting; several store objects on the same data."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from workflow.errors import StoreError
from workflow.record import Committed, Query
from workflow.store import Store

from .rows import FLOW, ME, MINUTE, NOON, OTHER, commit, move, queue, timer, touch
from .suite import Suite, claimed, done, feed, loaded, names, one, seqs, started

CEILING = 4.0
"""Seconds within which a hint must have come: far more than any store needs."""


def verbs(store: Store) -> dict[str, Callable[[], Awaitable[object]]]:
    """Each verb with plain arguments."""
    return {
        "append": lambda: store.append([commit(move("v", 0))]),
        "load": lambda: store.load(FLOW, ["a"]),
        "history": lambda: store.history(FLOW, "a"),
        "recall": lambda: store.recall(FLOW, "a", "k"),
        "find": lambda: store.find(Query(workflow=FLOW)),
        "read": store.read,
        "wait": lambda: store.wait(0.01),
        "claim": lambda: store.claim({FLOW: 1}, ME, MINUTE, 1),
        "renew": lambda: store.renew(ME, [], MINUTE),
        "next_due": lambda: store.next_due({FLOW: 1}),
    }


async def refuses(store: Store) -> None:
    """Every verb raises the `RuntimeError` that says what to do."""
    for name, call in verbs(store).items():
        try:
            await call()
        except RuntimeError as error:
            assert "async with" in str(error), f"{name}: {error}"
        else:
            raise AssertionError(f"{name} worked on a store that is not open")


class Opening(Suite):
    """Promises of `async with`."""

    async def test_a_store_must_be_open(self) -> None:
        """Before it is opened and after it was closed every verb raises `RuntimeError`."""
        store = await self.make()
        await refuses(store)
        async with store as same:
            assert same is store
            for call in verbs(store).values():
                await call()
        await refuses(store)

    async def test_openings_are_counted(self) -> None:
        """The second opening shares the first; the last closing closes."""
        store = await self.make()
        async with store:
            async with store, store:
                await started(store, "a")
            await started(store, "b")
        await refuses(store)

    async def test_two_may_open_at_once(self) -> None:
        """Managers that start together share one opening."""
        store = await self.make()
        opened = await asyncio.gather(*(store.__aenter__() for _ in range(4)))
        assert all(each is store for each in opened)
        await started(store, "a")
        await asyncio.gather(*(store.__aexit__(None, None, None) for _ in range(4)))
        await refuses(store)

    async def test_an_error_inside_closes_all_the_same(self) -> None:
        """The user's own error passes through."""
        store = await self.make()
        try:
            async with store:
                raise KeyError("mine")
        except KeyError:
            await refuses(store)

    async def test_what_was_written_is_there_when_opened_again(self) -> None:
        """Heads, lines, keys, due rows, leases and cursors outlive the store object."""
        if "reopen" in self.lacks:
            return
        first = await self.make()
        async with first:
            start = commit(move("a", 0, "k", owes=["hook"], puts=[queue(1), timer("t", NOON)]))
            await one(first, start)
            before = await loaded(first, "a")
            lines, cursor = await feed(first)
        second = await self.reopen(first)
        async with second:
            assert await loaded(second, "a") == before
            assert (await feed(second))[0] == lines
            assert (await feed(second, cursor))[0] == []
            assert await second.recall(FLOW, "a", "k") == lines[0]
            assert await one(second, start) == Committed(NOON, before.effects)
            await done(second, move("a", 1))
            assert [line.seq for line in (await feed(second, cursor))[0]] == [2]
            assert await names(second, NOON) == ["t"]


class Waiting(Suite):
    """Promises of `wait`."""

    async def test_a_wait_ends_at_its_ceiling(self) -> None:
        """At idle it answers False, in time."""
        async with self.opened() as store:
            await started(store, "a")
            for timeout in (0.0, 0.05):
                await asyncio.wait_for(store.wait(timeout), CEILING)
            answers = [await asyncio.wait_for(store.wait(0.05), CEILING) for _ in range(3)]
            assert False in answers, "it says that something was committed each time"

    async def test_a_commit_wakes_all_who_wait(self) -> None:
        """Long before the ceiling."""
        async with self.opened() as store:
            waiting = [asyncio.ensure_future(store.wait(60.0)) for _ in range(3)]
            await asyncio.sleep(0.05)
            await started(store, "a")
            assert await asyncio.wait_for(asyncio.gather(*waiting), CEILING) == [True] * 3

    async def test_a_cancelled_wait_leaves_nothing_behind(self) -> None:
        """Others still wait, and commits go on."""
        async with self.opened() as store:
            gone, stays = (asyncio.ensure_future(store.wait(60.0)) for _ in range(2))
            await asyncio.sleep(0.02)
            gone.cancel()
            await asyncio.gather(gone, return_exceptions=True)
            assert gone.cancelled()
            await started(store, "a")
            assert await asyncio.wait_for(stays, CEILING)

    async def test_a_cancelled_append_is_done_or_not_done(self) -> None:
        """Whole or not at all, and the identical commit appended again settles it."""
        async with self.opened() as store:
            start = commit(move("a", 0, "k", None), move("b", 0))
            writing = asyncio.ensure_future(store.append([start]))
            await asyncio.sleep(0)
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
            assert await one(store, start) == Committed(NOON)
            assert await seqs(store, "a") == [1, 2]
            assert await seqs(store, "b") == [1]


class Sharing(Suite):
    """Promises between store objects on the same data, as processes have them."""

    async def test_a_commit_is_seen_by_the_others(self) -> None:
        """Once it was answered, every reader sees it."""
        if {"processes", "reopen"} & self.lacks:
            return
        async with self.opened() as one_store, await self.reopen(one_store) as other:
            for seq in range(10):
                await done(one_store if seq % 2 else other, move("a", seq))
                assert await seqs(other if seq % 2 else one_store, "a") == list(range(1, seq + 2))

    async def test_a_race_between_them_has_one_winner(self) -> None:
        """Starts, moves and claims alike."""
        if {"processes", "reopen"} & self.lacks:
            return
        async with self.opened() as one_store, await self.reopen(one_store) as other:
            both = [one_store, other] * 4
            for seq in range(3):
                moved = await asyncio.gather(*(one(store, commit(move("a", seq))) for store in both))
                assert sum(isinstance(answer, Committed) for answer in moved) == 1
            await done(other, touch("a", 3, puts=[timer(f"t{n}", NOON) for n in range(20)]))
            shares = await asyncio.gather(*(claimed(store, NOON, limit=4, token=OTHER) for store in both))
            taken = [row.name for share in shares for row in share]
            taken += await names(other, NOON)
            assert len(taken) == len(set(taken)) == 20

    async def test_a_commit_elsewhere_wakes_who_waits(self) -> None:
        """A waiter hears of another process's commit long before its ceiling."""
        if {"processes", "reopen"} & self.lacks:
            return
        async with self.opened() as one_store, await self.reopen(one_store) as other:
            await started(one_store, "a")
            waiting = asyncio.ensure_future(other.wait(60.0))
            await asyncio.sleep(0.05)
            await started(one_store, "b")
            assert await asyncio.wait_for(waiting, CEILING)

    async def test_a_cursor_is_good_everywhere(self) -> None:
        """What one gave out another reads on from; a cursor from ahead of the data is refused."""
        if {"processes", "reopen"} & self.lacks:
            return
        async with self.opened() as one_store, await self.reopen(one_store) as other:
            await started(one_store, "a")
            cursor = (await feed(one_store))[1]
            await started(other, "b")
            assert [line.id for line in (await feed(other, cursor))[0]] == ["b"]
            ahead = (await feed(one_store))[1]
            async with self.opened() as empty:
                try:
                    await empty.read(ahead)
                except StoreError:
                    return
                raise AssertionError("a cursor from ahead of the data was taken")
