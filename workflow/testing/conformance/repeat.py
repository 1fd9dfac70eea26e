"""Keys, and commits appended again because nobody heard the answer."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from workflow.record import QUEUE, Committed, Conflicted, Duplicate, Gone, Lost

from .rows import FLOW, ME, MINUTE, NOON, OTHER, commit, lease_of, move, queue, timer, touch
from .suite import Suite, done, feed, loaded, names, one, seqs, started


class Keys(Suite):
    """Promises about idempotency keys."""

    async def test_a_key_is_used_once(self) -> None:
        """A second commit with a key hears `Duplicate` with the line that has it; nothing is written."""
        async with self.opened() as store:
            await started(store, "a")
            await done(store, move("a", 1, "k"))
            (_, line) = await store.history(FLOW, "a")
            assert await one(store, commit(move("a", 2, "k", puts=[timer("t", NOON)]))) == Duplicate(line)
            assert await seqs(store, "a") == [1, 2]
            assert (await loaded(store, "a")).head.seq == 2
            assert await names(store, NOON) == []

    async def test_a_key_is_found_behind_a_stale_seq(self) -> None:
        """Who lost the race to his own twin hears `Duplicate`, not `Conflicted`."""
        async with self.opened() as store:
            await done(store, move("a", 0, "k"))
            await done(store, move("a", 1, "l"))
            first, second = await store.history(FLOW, "a")
            assert await one(store, commit(move("a", 0, "k"))) == Duplicate(first)
            assert await one(store, commit(move("a", 0, "l"))) == Duplicate(second)
            assert await one(store, commit(move("a", 1, "m"))) == Conflicted()

    async def test_every_line_s_key_counts(self) -> None:
        """Any line of a change may be the one whose key is known."""
        async with self.opened() as store:
            await done(store, move("a", 0, None, "k", None))
            line = await store.recall(FLOW, "a", "k")
            assert line is not None
            assert await one(store, commit(move("a", 3, "x", "k"))) == Duplicate(line)
            assert await store.recall(FLOW, "a", "x") is None
            assert await seqs(store, "a") == [1, 2, 3]

    async def test_a_refused_commit_uses_up_no_key(self) -> None:
        """The key of a commit that was refused is free."""
        async with self.opened() as store:
            await started(store, "a")
            assert await one(store, commit(move("a", 5, "k"))) == Conflicted()
            assert await store.recall(FLOW, "a", "k") is None
            await done(store, move("a", 1, "k"))

    async def test_keys_belong_to_one_instance(self) -> None:
        """The same key may be used on another id and in another workflow."""
        async with self.opened() as store:
            await done(store, move("a", 0, "k"))
            await done(store, move("b", 0, "k"))
            await done(store, move("a", 0, "k", workflow="other"))
            line = await store.recall("other", "a", "k")
            assert line is not None
            assert (line.workflow, line.id) == ("other", "a")
            line = await store.recall(FLOW, "b", "k")
            assert line is not None
            assert (line.workflow, line.id) == (FLOW, "b")

    async def test_recall_finds_only_this_key_of_this_instance(self) -> None:
        """`recall` answers the line that the key caused, or None."""
        async with self.opened() as store:
            await done(store, move("a", 0, "k", "l"))
            await started(store, "b")
            found = await store.recall(FLOW, "a", "l")
            assert found == (await store.history(FLOW, "a"))[1]
            for workflow, id, key in ((FLOW, "a", "m"), (FLOW, "b", "k"), ("other", "a", "k"), (FLOW, "c", "k")):
                assert await store.recall(workflow, id, key) is None

    async def test_a_known_key_is_told_before_a_lost_lease(self) -> None:
        """The conditions are looked at in their order: seq, key, lease."""
        async with self.opened() as store:
            await done(store, move("a", 0, "k", puts=[queue(1)]))
            (line,) = await store.history(FLOW, "a")
            row = (await loaded(store, "a")).effects
            assert row is not None
            foreign = replace(lease_of(row), token=OTHER)
            assert await one(store, commit(move("a", 1, "k", lease=foreign))) == Duplicate(line)
            assert await one(store, commit(move("a", 7, "l", lease=foreign))) == Conflicted()
            assert await one(store, commit(move("a", 1, "l", lease=foreign))) == Lost()

    async def test_eight_starts_of_one_key_make_one_run(self) -> None:
        """Of concurrent commits with one key one is written, the others hear of its line."""
        async with self.opened() as store:
            rivals = [commit(move("a", 0, "k")) for _ in range(8)]
            answers = await asyncio.gather(*(one(store, rival) for rival in rivals))
            (line,) = await store.history(FLOW, "a")
            assert answers.count(Committed(NOON)) == 1
            assert answers.count(Duplicate(line)) == 7

    async def test_a_key_known_to_one_of_several_instances_refuses_all(self) -> None:
        """`Duplicate` answers for a whole commit."""
        async with self.opened() as store:
            await done(store, move("b", 0, "k"))
            (line,) = await store.history(FLOW, "b")
            assert await one(store, commit(move("a", 0), move("b", 1, "k"), move("c", 0))) == Duplicate(line)
            assert await store.load(FLOW, ["a", "c"]) == [None, None]


class Repeating(Suite):
    """Promises about the identical commit, appended again."""

    async def test_a_commit_that_landed_is_committed(self) -> None:
        """The identical commit is done once and answered with the stamp that it has."""
        async with self.opened() as store:
            start, step = commit(move("a", 0, "k")), commit(move("a", 1))
            for each in (start, start, step, start, step):
                assert await one(store, replace(each, now=NOON)) == Committed(NOON)
            assert await one(store, replace(step, now=NOON + MINUTE)) == Committed(NOON)
            assert await seqs(store, "a") == [1, 2]
            assert len((await feed(store))[0]) == 2

    async def test_it_is_recognised_behind_later_lines(self) -> None:
        """Others may have moved on since it landed."""
        async with self.opened() as store:
            lost = commit(move("a", 0, "k", None))
            await one(store, lost)
            for seq in (2, 3, 4):
                await done(store, move("a", seq))
            assert await one(store, lost) == Committed(NOON)
            assert await seqs(store, "a") == [1, 2, 3, 4, 5]

    async def test_only_the_commit_s_own_id_is_recognised(self) -> None:
        """Another commit of the same content is another commit."""
        async with self.opened() as store:
            await done(store, move("a", 0))
            assert await one(store, commit(move("a", 0))) == Conflicted()

    async def test_the_same_commit_at_the_same_time_is_done_once(self) -> None:
        """The first copy may still be under way when the second comes."""
        async with self.opened() as store:
            start, step = commit(move("a", 0, "k", None)), commit(move("a", 2), move("b", 0))
            for each in (start, step):
                answers = await asyncio.gather(*(one(store, each) for _ in range(6)))
                assert answers == [Committed(NOON)] * 6
            assert await seqs(store, "a") == [1, 2, 3]
            assert await seqs(store, "b") == [1]

    async def test_twice_in_one_call_is_done_once(self) -> None:
        """Copies in one call find each other."""
        async with self.opened() as store:
            start = commit(move("a", 0, "k"))
            assert list(await store.append([start, start])) == [Committed(NOON)] * 2
            assert await seqs(store, "a") == [1]

    async def test_a_repeat_touches_no_due_row(self) -> None:
        """What was put, dropped or held since is left as it is."""
        async with self.opened() as store:
            first = commit(move("a", 0, puts=[timer("t", NOON), timer("u", NOON)]))
            await one(store, first)
            await done(store, touch("a", 1, drops=["t"], puts=[timer("v", NOON)]))
            assert await one(store, first) == Committed(NOON)
            assert await names(store, NOON) == ["u", "v"]

    async def test_a_commit_over_several_instances_is_recognised(self) -> None:
        """One line is enough to know that all of it landed, whatever became of the others."""
        async with self.opened() as store:
            await started(store, "a")
            lost = commit(touch("a", 1, puts=[timer("t", NOON)]), move("b", 0), move("z", 0))
            await one(store, lost)
            await done(store, touch("a", 1, drops=["t"]))
            await done(store, move("z", 1))
            assert await one(store, lost) == Committed(NOON)
            assert await names(store, NOON) == []
            await done(store, move("a", 1))
            assert await one(store, lost) == Committed(NOON)
            assert [await seqs(store, id) for id in "abz"] == [[1, 2], [1], [1, 2]]

    async def test_a_settle_that_landed_hears_gone(self) -> None:
        """A settle without lines bears no id: the row that it moved on tells."""
        async with self.opened() as store:
            row = (await started(store, "a", queue(1))).leased
            assert row is not None
            onward = commit(touch("a", 1, lease=lease_of(row), puts=[queue(1, number=1)]))
            assert isinstance(await one(store, onward), Committed)
            assert await one(store, onward) == Gone()
            row = (await loaded(store, "a")).effects
            assert row is not None
            assert (row.number, row.attempt) == (1, 1)
            last = commit(touch("a", 1, lease=lease_of(row), drops=[QUEUE]))
            assert isinstance(await one(store, last), Committed)
            assert await one(store, last) == Gone()

    async def test_a_settle_with_a_line_that_landed_is_committed(self) -> None:
        """Its line bears the id, so the lease is not looked at again."""
        async with self.opened() as store:
            row = (await started(store, "a", queue(1))).leased
            assert row is not None
            settle = commit(move("a", 1, lease=lease_of(row), drops=[QUEUE]))
            assert await one(store, settle) == Committed(NOON)
            assert await one(store, settle) == Committed(NOON)
            assert await seqs(store, "a") == [1, 2]

    async def test_a_repeat_tells_whether_the_row_is_still_mine(self) -> None:
        """`leased` of a repeat is the present row, if the committer owns it."""
        async with self.opened() as store:
            start = commit(move("a", 0, puts=[queue(1)]))
            first = await one(store, start)
            assert isinstance(first, Committed)
            assert first.leased is not None
            assert await one(store, start) == first
            assert first.leased.token == ME
            await store.claim({FLOW: 1}, OTHER, MINUTE, 1, (ME,), NOON)
            assert await one(store, start) == Committed(NOON)
