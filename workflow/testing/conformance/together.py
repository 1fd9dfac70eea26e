"""Moves inside a transaction of the user's: durable with it, gone with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from msgspec.structs import replace

from workflow.errors import StoreError
from workflow.record import QUEUE, Committed, Conflicted, Duplicate, Gone, Locked, Lost, Query
from workflow.store import Transaction, Transactional, inside

from .life import CEILING
from .rows import FLOW, NOON, OTHER, SECOND, commit, lease_of, move, queue, timer, touch
from .suite import Suite, claimed, done, feed, loaded, names, one, seqs, started

MOMENT = 0.2
"""Seconds after which a look from outside counts as one that waits for the end of the transaction."""


class Glimpse:
    """What somebody outside sees while a transaction is open; he may be made to wait for its end."""

    def __init__(self, look: Callable[[], Awaitable[object]]) -> None:
        self._task = asyncio.ensure_future(self._look(look))

    async def _look(self, look: Callable[[], Awaitable[object]]) -> object:
        try:
            return await look()
        except StoreError as error:
            assert error.committed is False, "a look that failed wrote nothing"
            return None

    async def before(self, nothing: object) -> None:
        """The transaction is still open: who is not kept waiting sees this."""
        await asyncio.wait((self._task,), timeout=MOMENT)
        if self._task.done():
            assert self._task.result() == nothing

    async def after(self) -> object:
        """The transaction has ended: nobody waits any more."""
        return await asyncio.wait_for(self._task, 2 * CEILING)


class Transacting(Suite):
    """Promises of `transaction()` and of what it gives."""

    @asynccontextmanager
    async def transactional(self) -> AsyncGenerator[Transactional]:
        """A new store that has transactions, open."""
        async with self.opened() as store:
            assert isinstance(store, Transactional), "a store without transactions lacks 'transaction'"
            yield store

    async def test_what_is_written_inside_is_seen_inside(self) -> None:
        """Heads, what they owe, lines and keys; together with what was there before."""
        if "transaction" in self.lacks:
            return
        async with self.transactional() as store:
            await started(store, "a")
            async with store.transaction() as tx:
                assert (tx.store is store, tx.open) == (True, True)
                assert await done(tx, move("a", 1, "k", owes=["hook"], puts=[queue(2, token=None)])) == Committed(NOON)
                found = await loaded(tx, "a")
                assert found.effects is not None
                assert (found.head.seq, found.effects.seq, [line.seq for line in found.queue]) == (2, 2, [2])
                assert (await seqs(tx, "a"), await seqs(tx, "b")) == ([1, 2], [])
                line = await tx.recall(FLOW, "a", "k")
                assert line is not None
                assert line.seq == 2
                assert await tx.load(FLOW, ["b", "a"]) == [None, found]
            assert not tx.open

    async def test_nothing_is_seen_outside_before_the_commit(self) -> None:
        """Neither by a read, nor in the feed, nor by who looks for work; after it all of it is."""
        if "transaction" in self.lacks:
            return
        async with self.transactional() as store:
            looks: dict[str, tuple[Callable[[], Awaitable[object]], object]] = {
                "load": (lambda: store.load(FLOW, ["a"]), [None]),
                "history": (lambda: store.history(FLOW, "a"), []),
                "recall": (lambda: store.recall(FLOW, "a", "k"), None),
                "find": (lambda: store.find(Query(workflow=FLOW)), []),
                "read": (lambda: _lines(store), 0),
                "next_due": (lambda: _wake(store), None),
            }
            async with store.transaction() as tx:
                await done(tx, move("a", 0, "k", puts=[timer("t", NOON)]))
                glimpses = {name: Glimpse(look) for name, (look, _) in looks.items()}
                await asyncio.gather(*(glimpse.before(looks[name][1]) for name, glimpse in glimpses.items()))
            for name, (look, nothing) in looks.items():
                await glimpses[name].after()
                assert await look() != nothing, name
            assert await names(store, NOON) == ["t"]

    async def test_an_error_in_the_block_leaves_no_trace(self) -> None:
        """It passes through, and heads, lines, keys, due rows and feed are as before."""
        if "transaction" in self.lacks:
            return
        async with self.transactional() as store:
            await started(store, "a", timer("t", NOON))
            before, lines = await loaded(store, "a"), await feed(store)
            try:
                async with store.transaction() as tx:
                    await done(tx, move("a", 1, "k", puts=[queue(2), timer("u", NOON)], drops=["t"]))
                    await done(tx, move("b", 0, "k"))
                    raise KeyError("mine")
            except KeyError:
                assert not inside(store)
            else:
                raise AssertionError("the error was swallowed")
            assert await loaded(store, "a") == before
            assert await store.load(FLOW, ["b"]) == [None]
            assert [await seqs(store, id) for id in "ab"] == [[1], []]
            assert [await store.recall(FLOW, id, "k") for id in "ab"] == [None, None]
            assert await feed(store) == lines
            assert await names(store, NOON) == ["t"]
            await done(store, move("a", 1, "k"), move("b", 0, "k"))

    async def test_several_appends_are_one_with_the_transaction(self) -> None:
        """Of one instance and of several, of several workflows, each building on the one before."""
        if "transaction" in self.lacks:
            return
        async with self.transactional() as store:
            for fails in (True, False):
                try:
                    async with store.transaction() as tx:
                        await done(tx, move("a", 0))
                        await done(tx, move("a", 1), move("b", 0, workflow="other"))
                        assert (
                            list(await tx.append([commit(move("a", 2)), commit(move("c", 0))])) == [Committed(NOON)] * 2
                        )
                        await done(tx, touch("c", 1, puts=[timer("t", NOON)]))
                        if fails:
                            raise KeyError("mine")
                except KeyError:
                    assert [await seqs(store, id) for id in "ac"] == [[], []]
            assert [await seqs(store, id) for id in "ac"] == [[1, 2, 3], [1]]
            assert await seqs(store, "b", "other") == [1]
            assert await names(store, NOON) == ["t"]

    async def test_a_refusal_inside_leaves_the_transaction_usable(self) -> None:
        """What was refused leaves no trace, what was written before and after it is committed."""
        if "transaction" in self.lacks:
            return
        async with self.transactional() as store:
            row = (await done(store, move("a", 0, "k", owes=["hook"], puts=[queue(1)]))).leased
            assert row is not None
            mine = lease_of(row)
            async with store.transaction() as tx:
                await done(tx, move("b", 0))
                assert await one(tx, commit(move("a", 7))) == Conflicted()
                duplicate = await one(tx, commit(move("a", 1, "k")))
                assert isinstance(duplicate, Duplicate)
                assert duplicate.line.seq == 1
                assert await one(tx, commit(move("a", 1, lease=replace(mine, token=OTHER)))) == Lost()
                assert await one(tx, commit(touch("a", 1, lease=replace(mine, seq=0)))) == Gone()
                assert await one(tx, commit(move("c", 0), move("a", 7))) == Conflicted()
                assert await tx.load(FLOW, ["c"]) == [None]
                await done(tx, move("d", 0))
            assert [await seqs(store, id) for id in "abcd"] == [[1], [1], [], [1]]

    async def test_what_was_written_inside_is_compared_with(self) -> None:
        """`seq` and keys of the transaction itself count; the identical commit is done once."""
        if "transaction" in self.lacks:
            return
        async with self.transactional() as store, store.transaction() as tx:
            start = commit(move("a", 0, "k"))
            assert [await one(tx, start), await one(tx, start)] == [Committed(NOON)] * 2
            assert await one(tx, commit(move("a", 0))) == Conflicted()
            assert isinstance(await one(tx, commit(move("a", 1, "k"))), Duplicate)
            await done(tx, move("a", 1))
            assert await seqs(tx, "a") == [1, 2]

    async def test_a_lock_keeps_others_from_moving(self) -> None:
        """Until the transaction ends; a lock may be taken twice, and where nothing is yet."""
        if "transaction" in self.lacks:
            return
        async with self.transactional() as store:
            await started(store, "a")
            async with store.transaction() as tx:
                assert [await tx.lock(FLOW, id, 1.0) for id in "aab"] == [True] * 3
                late = Glimpse(lambda: store.append([commit(move("a", 1, "late"))], timeout=MOMENT / 2))
                await late.before([Locked()])
                await done(tx, move("a", 1, "mine"))
            await late.after()
            assert [line.key for line in await store.history(FLOW, "a")] == [None, "mine"]
            await done(store, move("a", 2))

    async def test_a_lock_waits_no_longer_than_told(self) -> None:
        """Then it answers False, and the transaction goes on. Where transactions are one at a time
        the second begins when the first has ended."""
        if "transaction" in self.lacks:
            return
        async with self.transactional() as store:
            await started(store, "a")
            begin, entered = asyncio.Event(), asyncio.Event()

            async def second() -> bool:
                await begin.wait()
                async with store.transaction() as tx:
                    entered.set()
                    took = await tx.lock(FLOW, "a", 0.05)
                    await done(tx, move("b", 0))
                    return took

            other = asyncio.ensure_future(second())  # out here: it is to be inside its own transaction only
            async with store.transaction() as tx:
                assert await tx.lock(FLOW, "a", 1.0)
                begin.set()
                await asyncio.wait((other,), timeout=MOMENT)
                alone = not entered.is_set()
                if not alone:
                    assert await asyncio.wait_for(other, CEILING) is False
            assert await asyncio.wait_for(other, CEILING) is alone
            assert await seqs(store, "b") == [1]

    async def test_rows_are_claimed_after_the_commit_only(self) -> None:
        """Work that a transaction makes is nobody's before it is durable."""
        if "transaction" in self.lacks:
            return
        async with self.transactional() as store:
            async with store.transaction() as tx:
                await done(tx, move("a", 0, owes=["hook"], puts=[queue(1, token=None), timer("t", NOON)]))
                early = Glimpse(lambda: claimed(store, NOON))
                await early.before([])
            taken = await early.after()
            rows = [row.name for row in await claimed(store, NOON + 120 * SECOND)]
            assert sorted(rows) == sorted([QUEUE, "t"]), f"lost, or claimed too early: {taken}"

    async def test_the_end_of_a_block_wakes_all_who_wait(self) -> None:
        """Long before the ceiling."""
        if "transaction" in self.lacks:
            return
        async with self.transactional() as store:
            async with store.transaction() as tx:
                await done(tx, move("a", 0))
                waiting = [asyncio.ensure_future(store.wait(60.0)) for _ in range(3)]
                await asyncio.sleep(0.05)
            assert await asyncio.wait_for(asyncio.gather(*waiting), CEILING) == [True] * 3

    async def test_a_cancelled_block_is_rolled_back(self) -> None:
        """Whatever it was at; the next transaction begins at once."""
        if "transaction" in self.lacks:
            return
        async with self.transactional() as store:
            written = asyncio.Event()

            async def block() -> None:
                async with store.transaction() as tx:
                    await done(tx, move("a", 0))
                    written.set()
                    await asyncio.sleep(60.0)

            task = asyncio.ensure_future(block())
            await asyncio.wait_for(written.wait(), CEILING)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()
            async with asyncio.timeout(CEILING), store.transaction() as tx:
                await done(tx, move("b", 0))
            assert [await seqs(store, id) for id in "ab"] == [[], [1]]

    async def test_a_task_is_inside_until_the_block_ends(self) -> None:
        """The task of the block and those it starts; nobody else, and nobody afterwards."""
        if "transaction" in self.lacks:
            return
        async with self.transactional() as store:
            asked, answered = asyncio.Event(), asyncio.Event()

            async def elsewhere() -> bool:
                await asked.wait()
                answered.set()
                return inside(store)

            async def within() -> bool:
                return inside(store)

            other = asyncio.ensure_future(elsewhere())
            async with store.transaction():
                asked.set()
                await answered.wait()
                assert (inside(store), await asyncio.ensure_future(within())) == (True, True)
            assert (inside(store), await other) == (False, False)

    async def test_what_has_ended_stays_ended(self) -> None:
        """Also when its connection is at another's transaction."""
        if "transaction" in self.lacks:
            return
        async with self.transactional() as store:
            begin, entered, end = asyncio.Event(), asyncio.Event(), asyncio.Event()

            async def another() -> None:
                await begin.wait()
                async with store.transaction() as tx:
                    await done(tx, move("a", 0))
                    entered.set()
                    await end.wait()

            other = asyncio.ensure_future(another())
            ended: list[Transaction] = []
            for _ in range(20):
                async with store.transaction() as tx:
                    ended.append(tx)
            begin.set()
            await asyncio.wait_for(entered.wait(), CEILING)
            assert not any(tx.open for tx in ended)
            assert not inside(store)
            end.set()
            await other

    async def test_what_is_no_connection_cannot_be_joined(self) -> None:
        """It is a TypeError."""
        if "transaction" in self.lacks:
            return
        async with self.transactional() as store:
            try:
                joined: Transaction = store.joined(object())
            except TypeError:
                return
            raise AssertionError(f"it joined {joined!r}")


async def _lines(store: Transactional) -> int:
    return len((await store.read()).transitions)


async def _wake(store: Transactional) -> object:
    return (await store.next_due({FLOW: 1}, NOON)).at
