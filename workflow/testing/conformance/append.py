"""Commits: what is compared, what is written, what is stamped."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from msgspec.structs import replace

from workflow.errors import StoreError
from workflow.record import Committed, Conflicted

from .rows import FLOW, MINUTE, NOON, SECOND, commit, move, timer, touch
from .suite import Suite, claimed, done, feed, loaded, names, one, seqs, started


class Appending(Suite):
    """Promises of `append` about one instance."""

    async def test_a_start_writes_the_head_and_its_first_line(self) -> None:
        """What was appended is what is read, but for the stamps."""
        async with self.opened() as store:
            start = commit(move("a", 0, "k-1"))
            answer = await one(store, start)
            assert answer == Committed(NOON)
            change = start.changes[0]
            assert change.head is not None
            assert (await loaded(store, "a")).head == replace(change.head, started_at=NOON, changed_at=NOON)
            assert tuple(await store.history(FLOW, "a")) == (replace(change.lines[0], at=NOON),)

    async def test_a_move_adds_a_line_and_replaces_the_head(self) -> None:
        """A commit at the present `seq` makes the next line and the head that belongs to it."""
        async with self.opened() as store:
            await started(store, "a")
            await done(store, move("a", 1), now=NOON + SECOND)
            head = (await loaded(store, "a")).head
            assert (head.seq, head.state, head.context, head.context_seq, head.top) == (2, "s2", '{"total":2}', 2, 2)
            assert await seqs(store, "a") == [1, 2]

    async def test_every_field_comes_back(self) -> None:
        """No column is forgotten: lines and heads with every field set are read back equal."""
        async with self.opened() as store:
            change = move("a", 0, "k")
            line = replace(
                change.lines[0],
                labels='{"a":"b"}',
                goal=7,
                below=0,
                undoes=3,
                owes=("enter:s1:reserve", "enter:s1:naïve, 'quoted'"),
                chain=4,
                version=5,
                reason="because",
            )
            assert change.head is not None
            head = replace(change.head, goal=7, labels='{"a":"b"}', reason="because", version=5, status="paused")
            await done(store, replace(change, lines=(line,), head=head))
            found = (await loaded(store, "a")).head
            assert found == replace(head, started_at=NOON, changed_at=NOON)
            (read,) = await store.history(FLOW, "a")
            assert read == replace(line, at=NOON, commit_id=read.commit_id, by=read.by)

    async def test_a_stale_seq_is_refused(self) -> None:
        """A commit whose `seq` is not the head's is `Conflicted` and writes nothing."""
        async with self.opened() as store:
            await started(store, "a")
            await done(store, move("a", 1))
            for seq in (1, 3, 7):
                stale = move("a", seq, "k", puts=[timer("t", NOON)], drops=["x"], held=True)
                assert await one(store, commit(stale)) == Conflicted()
            assert await seqs(store, "a") == [1, 2]
            assert (await loaded(store, "a")).head.seq == 2
            assert await store.recall(FLOW, "a", "k") is None
            assert await names(store, NOON) == []

    async def test_a_change_without_lines_compares_too(self) -> None:
        """`seq` is compared even where only due rows change."""
        async with self.opened() as store:
            await started(store, "a")
            assert await one(store, commit(touch("a", 2, puts=[timer("t", NOON)]))) == Conflicted()
            assert await one(store, commit(touch("a", 0, puts=[timer("t", NOON)]))) == Conflicted()
            assert await names(store, NOON) == []
            await done(store, touch("a", 1, puts=[timer("t", NOON)]))
            assert await seqs(store, "a") == [1]
            assert await names(store, NOON) == ["t"]

    async def test_an_unknown_instance_cannot_be_moved(self) -> None:
        """A commit that expects a head where none is, is `Conflicted`."""
        async with self.opened() as store:
            assert await one(store, commit(move("a", 1))) == Conflicted()
            assert await one(store, commit(touch("a", 1))) == Conflicted()
            assert await store.load(FLOW, ["a"]) == [None]

    async def test_an_id_is_started_once(self) -> None:
        """`seq` 0 means that there must be no head."""
        async with self.opened() as store:
            await started(store, "a")
            assert await one(store, commit(move("a", 0))) == Conflicted()
            assert await seqs(store, "a") == [1]

    async def test_instances_of_two_workflows_may_share_an_id(self) -> None:
        """An instance is a workflow and an id."""
        async with self.opened() as store:
            await started(store, "a")
            await started(store, "a", workflow="other")
            await done(store, move("a", 1, workflow="other"))
            assert await seqs(store, "a") == [1]
            assert await seqs(store, "a", "other") == [1, 2]

    async def test_several_lines_are_one_commit(self) -> None:
        """The lines of a change stand in its order, the head after the last of them."""
        async with self.opened() as store:
            await done(store, move("a", 0, "k-1", None, "k-3"))
            assert [line.key for line in await store.history(FLOW, "a")] == ["k-1", None, "k-3"]
            assert (await loaded(store, "a")).head.seq == 3
            await done(store, move("a", 3, None, None))
            assert await seqs(store, "a") == [1, 2, 3, 4, 5]

    async def test_nothing_to_append_is_no_trouble(self) -> None:
        """No commits, no answers."""
        async with self.opened() as store:
            assert list(await store.append([])) == []

    async def test_labels_are_replaced_not_merged(self) -> None:
        """A deleted label does not come back."""
        async with self.opened() as store:
            await done(store, move("a", 0, labels='{"city":"Bonn","tier":"gold"}'))
            await done(store, move("a", 1, labels='{"tier":"tin"}'))
            assert (await loaded(store, "a")).head.labels.replace(" ", "") == '{"tier":"tin"}'

    async def test_no_field_of_the_old_head_survives(self) -> None:
        """The head is replaced, its reason and goal included; only `started_at` stays."""
        async with self.opened() as store:
            change = move("a", 0)
            assert change.head is not None
            await done(store, replace(change, head=replace(change.head, reason="why", goal=1, status="paused")))
            await done(store, move("a", 1), now=NOON + MINUTE)
            head = (await loaded(store, "a")).head
            assert (head.reason, head.goal, head.status) == (None, 0, "running")
            assert (head.started_at, head.changed_at) == (NOON, NOON + MINUTE)


class Stamping(Suite):
    """Promises of `append` about time."""

    async def test_the_time_of_a_commit_is_its_argument(self) -> None:
        """`Commit.now` stamps lines, head and answer, to the microsecond."""
        async with self.opened() as store:
            at = NOON.replace(microsecond=123457)
            assert await started(store, "a", now=at) == Committed(at)
            (line,) = await store.history(FLOW, "a")
            head = (await loaded(store, "a")).head
            assert line.at == head.started_at == head.changed_at == at
            assert line.at.utcoffset() == head.changed_at.utcoffset() == SECOND * 0

    async def test_a_commit_without_a_time_takes_the_store_s(self) -> None:
        """A stamp lies between two looks at the store's own clock."""
        async with self.opened() as store:
            before = (await store.next_due({})).now
            at = (await started(store, "a", now=None)).at
            after = (await store.next_due({})).now
            assert before <= at <= after

    async def test_time_never_goes_back_within_an_instance(self) -> None:
        """A commit earlier than the head's `changed_at` is stamped with that."""
        async with self.opened() as store:
            await started(store, "a")
            assert (await done(store, move("a", 1), now=NOON - MINUTE)).at == NOON
            assert (await done(store, move("a", 2), now=NOON + MINUTE)).at == NOON + MINUTE
            assert [line.at for line in await store.history(FLOW, "a")] == [NOON, NOON, NOON + MINUTE]
            head = (await loaded(store, "a")).head
            assert (head.started_at, head.changed_at) == (NOON, NOON + MINUTE)

    async def test_waits_count_from_the_commit_not_from_the_stamp(self) -> None:
        """A put's `wait` is added to the time of the commit."""
        async with self.opened() as store:
            await started(store, "a")
            row = replace(timer("t", NOON), at=None, wait=SECOND)
            await done(store, move("a", 1, puts=[row]), now=NOON - MINUTE)
            assert (await store.next_due({FLOW: 1}, NOON)).at == NOON - MINUTE + SECOND

    async def test_the_answer_names_the_first_stamp_with_lines(self) -> None:
        """Of several changes the first that has lines gives `Committed.at`."""
        async with self.opened() as store:
            await started(store, "a")
            await started(store, "b", now=NOON + MINUTE)
            answer = await done(store, touch("a", 1, puts=[timer("t", NOON)]), move("b", 1), move("c", 0))
            assert answer.at == NOON + MINUTE
            assert [line.at for line in await store.history(FLOW, "c")] == [NOON]


class Grouping(Suite):
    """Promises of `append` about several commits, and commits over several instances."""

    async def test_each_commit_has_its_own_answer(self) -> None:
        """A refused commit disturbs none of its neighbours."""
        async with self.opened() as store:
            await started(store, "a")
            asked = [move("b", 0), move("a", 0), move("c", 0, "k"), move("a", 1), move("d", 4)]
            answers = await store.append([commit(change) for change in asked])
            assert list(answers) == [Committed(NOON), Conflicted(), Committed(NOON), Committed(NOON), Conflicted()]
            assert [await seqs(store, id) for id in "abcd"] == [[1, 2], [1], [1], []]

    async def test_of_two_commits_on_one_instance_the_earlier_goes_first(self) -> None:
        """Within a call the order of the commits counts."""
        async with self.opened() as store:
            ordered = await store.append([commit(move("a", 0)), commit(move("a", 1, "x")), commit(move("a", 1, "y"))])
            assert list(ordered) == [Committed(NOON), Committed(NOON), Conflicted()]
            assert [line.key for line in await store.history(FLOW, "a")] == [None, "x"]

    async def test_a_commit_over_several_instances_is_whole(self) -> None:
        """All changes of a commit are written together."""
        async with self.opened() as store:
            await started(store, "b")
            await done(store, move("c", 0), move("b", 1), touch("b-2", 0, puts=[timer("t", NOON)]), move("a", 0))
            assert [await seqs(store, id) for id in "abc"] == [[1], [1, 2], [1]]
            assert await names(store, NOON) == ["t"]

    async def test_a_commit_over_several_instances_leaves_nothing_when_refused(self) -> None:
        """One change that is refused undoes lines, heads, keys, puts, drops and holds of all others."""
        async with self.opened() as store:
            for id in "am":
                await started(store, id, timer(f"t-{id}", NOON))
            good = [move(id, 1, "k", puts=[timer("new", NOON)], drops=[f"t-{id}"], held=True) for id in "am"]
            for changes in ((*good, move("z", 9)), (move("0", 9), *good), (good[0], move("f", 9), good[1])):
                assert await one(store, commit(*changes)) == Conflicted()
            assert [await seqs(store, id) for id in "am"] == [[1], [1]]
            assert await store.recall(FLOW, "a", "k") is None
            assert sorted(await names(store, NOON)) == ["t-a", "t-m"]
            assert len((await feed(store))[0]) == 2

    async def test_a_refused_commit_in_a_call_is_undone_alone(self) -> None:
        """All-or-nothing is per commit, also between neighbours that succeed."""
        async with self.opened() as store:
            refused = commit(move("a", 0), move("z", 9))
            answers = await store.append([commit(move("b", 0)), refused, commit(move("a", 0, "k"))])
            assert list(answers) == [Committed(NOON), Conflicted(), Committed(NOON)]
            assert [line.key for line in await store.history(FLOW, "a")] == ["k"]

    async def test_what_cannot_be_written_leaves_nothing(self) -> None:
        """A put that no store can write is `StoreError`, not committed: of all commits of that call nothing stands."""
        async with self.opened() as store:
            await started(store, "b", timer("old", NOON))
            never = replace(timer("never", NOON), at=None, wait=timedelta.max)
            absurd = move("b", 1, "k", puts=[timer("new", NOON), never], drops=["old"], held=True)
            fine = move("a", 0, "k", puts=[timer("fine", NOON)])
            calls = [[commit(absurd)], [commit(fine, absurd)], [commit(absurd, fine)], [commit(fine), commit(absurd)]]
            for commits in calls:
                try:
                    answers = await store.append(commits)
                except StoreError as error:
                    assert error.committed is False
                else:
                    raise AssertionError(answers)
            assert await store.load(FLOW, ["a"]) == [None]
            assert await seqs(store, "b") == [1]
            assert [await store.recall(FLOW, id, "k") for id in "ab"] == [None, None]
            assert len((await feed(store))[0]) == 1
            assert await names(store, NOON) == ["old"]
            await done(store, fine, move("b", 1, "k"))

    async def test_opposite_orders_do_not_deadlock(self) -> None:
        """Commits that name the same instances in opposite orders end, each whole or refused."""
        async with self.opened() as store:
            await started(store, "a")
            await started(store, "b")
            for seq in range(1, 11):
                pairs = [commit(move(x, seq), move(y, seq)) for x, y in ("ab", "ba", "ab", "ba")]
                answers = await asyncio.gather(*(one(store, pair) for pair in pairs))
                assert sorted(type(answer).__name__ for answer in answers) == ["Committed", *["Conflicted"] * 3]
            assert await seqs(store, "a") == await seqs(store, "b") == list(range(1, 12))

    async def test_concurrent_moves_have_one_winner(self) -> None:
        """Of many commits at one `seq` exactly one is written."""
        async with self.opened() as store:
            await started(store, "a")
            for seq in range(1, 6):
                rivals = [commit(move("a", seq, f"{seq}-{n}")) for n in range(8)]
                answers = await asyncio.gather(*(one(store, rival) for rival in rivals))
                (winner,) = [n for n, answer in enumerate(answers) if isinstance(answer, Committed)]
                assert all(answer == Conflicted() for n, answer in enumerate(answers) if n != winner)
                assert (await store.history(FLOW, "a"))[-1].key == f"{seq}-{winner}"
            assert await seqs(store, "a") == [1, 2, 3, 4, 5, 6]

    async def test_a_timeout_that_does_not_pass_changes_nothing(self) -> None:
        """`timeout` bounds waiting; where nobody holds the instance there is none."""
        async with self.opened() as store:
            answers = await store.append([commit(move("a", 0)), commit(move("a", 0))], timeout=5.0)
            assert list(answers) == [Committed(NOON), Conflicted()]

    async def test_due_rows_may_stand_without_an_instance(self) -> None:
        """A change at `seq` 0 without lines writes due rows and no head."""
        async with self.opened() as store:
            await done(store, touch("tick", 0, puts=[timer("cron", NOON)]))
            assert await store.load(FLOW, ["tick"]) == [None]
            assert [(row.id, row.name) for row in await claimed(store, NOON)] == [("tick", "cron")]
