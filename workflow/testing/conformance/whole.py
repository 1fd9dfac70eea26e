"""All of one instance: its due rows with its head, and what is left of it when it is erased."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from workflow.record import QUEUE, Change, Committed, Conflicted, Duplicate, Line, Lost
from workflow.store import Transactional

from .rows import FLOW, MINUTE, NOON, OTHER, commit, lease_of, move, queue, timer, touch
from .suite import Suite, claimed, done, feed, loaded, one, seqs, started, timers


class Gathering(Suite):
    """Promises of `load` with `rows`."""

    async def test_all_due_rows_come_with_the_head(self) -> None:
        """In order of name, each whole, the effects row and held rows included; beside all that comes without."""
        async with self.opened() as store:
            puts = [
                replace(timer("timeout/z", NOON), body='{"a": "é"}', number=2, attempt=3, version=4),
                timer("later/Z", NOON + MINUTE, held=True),
                replace(queue(1, token=OTHER), held=True),
                timer("later/a", NOON, seq=7),
                timer("later/é", NOON),
            ]
            await done(store, move("a", 0, owes=["x"], puts=puts))
            await done(store, move("a", 1, owes=["y"]))
            (found,) = await store.load(FLOW, ["a"], rows=True)
            assert found is not None
            assert [row.name for row in found.rows] == [QUEUE, "later/Z", "later/a", "later/é", "timeout/z"]
            assert found.rows[0] == found.effects
            last = found.rows[-1]
            assert (last.at, last.seq, last.number, last.attempt, last.version) == (NOON, 1, 2, 3, 4)
            assert (last.workflow, last.id, last.token, last.held, last.body) == (FLOW, "a", None, False, '{"a": "é"}')
            assert [row.held for row in found.rows] == [True, True, False, False, False]
            assert [line.seq for line in found.queue] == [1, 2]
            assert replace(found, rows=()) == await loaded(store, "a")

    async def test_rows_come_only_if_they_are_asked_for(self) -> None:
        """A plain load brings none of them."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON), queue(1))
            assert (await loaded(store, "a")).rows == ()

    async def test_rows_are_those_of_their_instance(self) -> None:
        """Many at once: in the order asked, None where no head is, no rows where none are due."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON), timer("u", NOON))
            await started(store, "b")
            await started(store, "c", queue(1), timer("t", NOON))
            await started(store, "a", timer("x", NOON), workflow="other")
            await done(store, touch("tick", 0, puts=[timer("tick", NOON)]))
            found = await store.load(FLOW, ["c", "no", "b", "a", "tick", "c"], rows=True)
            rows = [None if each is None else [row.name for row in each.rows] for each in found]
            assert rows == [[QUEUE, "t"], None, [], ["t", "u"], None, [QUEUE, "t"]]
            assert list(await store.load(FLOW, [], rows=True)) == []

    async def test_rows_are_as_the_last_commit_or_claim_left_them(self) -> None:
        """Put, replaced, claimed, held and dropped."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON), timer("u", NOON + MINUTE))
            (taken,) = await claimed(store, NOON)
            assert (await timers(store, "a"))["t"] == taken
            await done(store, move("a", 1, drops=["t"], puts=[timer("u", NOON, seq=2)], held=True))
            (row,) = (await timers(store, "a")).values()
            assert (row.name, row.seq, row.at, row.held) == ("u", 2, NOON, True)
            await done(store, move("a", 2, drops=["u"]))
            assert await timers(store, "a") == {}

    async def test_rows_can_be_many(self) -> None:
        """As many as there are."""
        async with self.opened() as store:
            await started(store, "a", *(timer(f"later/{n:04}", NOON) for n in range(1500)))
            assert list(await timers(store, "a")) == [f"later/{n:04}" for n in range(1500)]

    async def test_head_and_rows_are_of_one_instant(self) -> None:
        """Whoever moves an instance meanwhile, its timer is the one that was put with its last line."""
        async with self.opened() as store:
            await started(store, "a", timer("t-1", NOON), timer("u", NOON))

            async def go() -> None:
                for seq in range(1, 60):
                    puts = [timer(f"t-{seq + 1}", NOON, seq=seq + 1), timer("u", NOON, seq=seq + 1)]
                    await done(store, move("a", seq, drops=[f"t-{seq}"], puts=puts))

            moving = asyncio.ensure_future(go())
            while not moving.done():
                (found,) = await store.load(FLOW, ["a"], rows=True)
                assert found is not None
                seq = found.head.seq
                assert [(row.name, row.seq) for row in found.rows] == [(f"t-{seq}", seq), ("u", seq)]
                await asyncio.sleep(0)
            await moving

    async def test_rows_are_seen_inside_a_transaction(self) -> None:
        """As it has written them."""
        if "transaction" in self.lacks:
            return
        async with self.opened() as store:
            assert isinstance(store, Transactional)
            await started(store, "a", timer("t", NOON))
            async with store.transaction() as tx:
                await done(tx, move("a", 1, drops=["t"], puts=[timer("u", NOON), queue(2)]))
                assert list(await timers(tx, "a")) == [QUEUE, "u"]
                assert await tx.load(FLOW, ["b"], rows=True) == [None]
                assert list(await tx.load(FLOW, [], rows=True)) == []
            assert list(await timers(store, "a")) == [QUEUE, "u"]


class Erasing(Suite):
    """Promises of `append` about `Change.erase`."""

    async def test_erasing_empties_the_earlier_lines(self) -> None:
        """Payload, context and reason of each go; all else stays, and so does what the commit itself writes."""
        async with self.opened() as store:
            await done(store, _told(move("a", 0, "k-1", owes=["hook"])))
            await done(store, _told(move("a", 1, "k-2", None)))
            before = await store.history(FLOW, "a")
            await done(store, _erasing(move("a", 3, "k-4", labels='{"x":"y"}')))
            *earlier, last = await store.history(FLOW, "a")
            assert earlier == [_bare(line) for line in before]
            assert (last.payload, last.context, last.key) == ('{"n":4}', '{"total":4}', "k-4")
            assert [await store.recall(FLOW, "a", f"k-{n}") for n in (1, 2, 4)] == [earlier[0], earlier[1], last]
            assert (await feed(store))[0] == [*earlier, last]

    async def test_erasing_reaches_no_other_instance(self) -> None:
        """Neither its neighbours in a call, nor those of its id in other workflows."""
        async with self.opened() as store:
            for id in "abc":
                await started(store, id)
            await started(store, "a", workflow="other")
            kept = [await store.history(FLOW, "b"), await store.history("other", "a")]
            answers = await store.append([commit(move("b", 1)), commit(_erasing(move("a", 1))), commit(move("c", 1))])
            assert list(answers) == [Committed(NOON)] * 3
            assert [(await store.history(FLOW, "b"))[:1], await store.history("other", "a")] == kept
            assert [line.payload for line in await store.history(FLOW, "a")] == [None, '{"n":2}']
            assert [line.payload for line in await store.history(FLOW, "c")] == ['{"n":1}', '{"n":2}']

    async def test_an_erasing_commit_does_all_else_too(self) -> None:
        """Head, due rows, hold and keys as in any commit; known keys are still known."""
        async with self.opened() as store:
            await done(store, move("a", 0, "k", puts=[timer("t", NOON), timer("u", NOON)]))
            change = move("a", 1, status="erased", drops=["t"], puts=[timer("v", NOON)], held=True)
            await done(store, _erasing(change))
            head = (await loaded(store, "a")).head
            assert (head.seq, head.status, head.started_at) == (2, "erased", NOON)
            assert {name: row.held for name, row in (await timers(store, "a")).items()} == {"u": True, "v": True}
            assert isinstance(await one(store, commit(move("a", 2, "k"))), Duplicate)
            await done(store, move("a", 2))
            assert [line.payload for line in await store.history(FLOW, "a")] == [None, '{"n":2}', '{"n":3}']

    async def test_erasing_that_is_refused_erases_nothing(self) -> None:
        """All or nothing, alone and among several changes."""
        async with self.opened() as store:
            row = (await started(store, "a", queue(1))).leased
            await started(store, "b")
            assert row is not None
            before = await feed(store)
            lost = replace(lease_of(row), token=OTHER)
            assert await one(store, commit(_erasing(move("a", 7)))) == Conflicted()
            assert await one(store, commit(_erasing(move("a", 1, lease=lost)))) == Lost()
            assert await one(store, commit(_erasing(move("a", 1)), move("b", 9))) == Conflicted()
            assert await feed(store) == before

    async def test_erasing_again_is_no_trouble(self) -> None:
        """The identical commit is done once; a second erasing finds what the first had left."""
        async with self.opened() as store:
            await started(store, "a")
            first = commit(_erasing(move("a", 1)))
            assert await one(store, first) == await one(store, first)
            assert [line.payload for line in await store.history(FLOW, "a")] == [None, '{"n":2}']
            await done(store, _erasing(move("a", 2)))
            assert [line.payload for line in await store.history(FLOW, "a")] == [None, None, '{"n":3}']

    async def test_a_start_may_say_erase(self) -> None:
        """There is nothing before it."""
        async with self.opened() as store:
            await done(store, _erasing(move("a", 0)))
            assert [line.payload for line in await store.history(FLOW, "a")] == ['{"n":1}']

    async def test_erasing_inside_a_transaction(self) -> None:
        """With it, or not at all."""
        if "transaction" in self.lacks:
            return
        async with self.opened() as store:
            assert isinstance(store, Transactional)
            for id in "ab":
                await started(store, id)
            async with store.transaction() as tx:
                await done(tx, move("a", 1))
                await done(tx, _erasing(move("a", 2)))
                assert [line.payload for line in await tx.history(FLOW, "a")] == [None, None, '{"n":3}']
            assert [line.payload for line in await store.history(FLOW, "a")] == [None, None, '{"n":3}']
            try:
                async with store.transaction() as tx:
                    await done(tx, _erasing(move("b", 1)))
                    raise KeyError("mine")
            except KeyError:
                pass
            assert [line.payload for line in await store.history(FLOW, "b")] == ['{"n":1}']
            assert await seqs(store, "b") == [1]


def _erasing(change: Change) -> Change:
    return replace(change, erase=True)


def _told(change: Change) -> Change:
    return replace(change, lines=tuple(replace(line, reason="since") for line in change.lines))


def _bare(line: Line) -> Line:
    return replace(line, payload=None, context=None, reason=None)
