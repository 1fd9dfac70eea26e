"""Due rows beside the effects row: how they come and go, and what a commit expects of one by its name."""

from __future__ import annotations

from msgspec.structs import replace

from workflow.record import QUEUE, Committed, Conflicted, Due, Duplicate, Gone, Lease, Lost
from workflow.store import Transactional

from .rows import FLOW, ME, MINUTE, NOON, OTHER, SECOND, commit, lease_of, move, place, queue, timer, touch
from .suite import Suite, claimed, done, loaded, names, one, seqs, started, timers


class Timing(Suite):
    """Promises about several due rows of one instance."""

    async def test_rows_of_one_instance_are_claimed_each_for_itself(self) -> None:
        """An owner, an attempt and a time for each row; the others of the instance stay as they are."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON), timer("u", NOON + SECOND), timer("v", NOON + MINUTE), queue(1))
            both = await claimed(store, NOON + SECOND, token=OTHER)
            until = NOON + SECOND + MINUTE
            assert [(row.name, row.token, row.attempt, row.at) for row in both] == [
                ("t", OTHER, 1, until),
                ("u", OTHER, 1, until),
            ]
            rows = await timers(store, "a")
            assert [(row.name, row.token, row.attempt) for row in rows.values()] == [
                (QUEUE, ME, 1),
                ("t", OTHER, 1),
                ("u", OTHER, 1),
                ("v", None, 0),
            ]

    async def test_a_lease_on_one_row_is_renewed_alone(self) -> None:
        """A row is named by its instance and its name."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON), timer("u", NOON), queue(1))
            t, u = await claimed(store, NOON)
            renewed = await store.renew(ME, [place(t), (FLOW, "a", "never")], 5 * MINUTE, NOON)
            assert renewed.lost == {(FLOW, "a", "never")}
            rows = await timers(store, "a")
            assert [rows[name].at for name in ("t", "u", QUEUE)] == [NOON + 5 * MINUTE, u.at, NOON + MINUTE]

    async def test_a_superseded_timer_leaves_no_trace(self) -> None:
        """Dropped, put again or replaced in the commit that moves, its former time wakes nobody."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON))
            for seq in range(1, 6):
                later = NOON + seq * MINUTE
                drops = ["t"] if seq % 2 else []
                await done(store, move("a", seq, drops=drops, puts=[timer("t", later, seq=seq + 1)]))
                assert (await store.next_due({FLOW: 1}, NOON)).at == later
            assert await claimed(store, NOON + 4 * MINUTE) == []
            assert [row.seq for row in await claimed(store, NOON + 5 * MINUTE)] == [6]
            await done(store, move("a", 6, drops=["t"]))
            assert (await store.next_due({FLOW: 1}, NOON)).at is None

    async def test_a_timer_put_again_begins_anew(self) -> None:
        """Nothing of the row before it survives: owner, attempt, place, hold and body are the put's."""
        async with self.opened() as store:
            await started(store, "a", replace(timer("t", NOON), body='{"n":1}', number=4))
            await claimed(store, NOON)
            await done(store, move("a", 1, puts=[timer("t", NOON, seq=2)], held=True))
            await done(store, touch("a", 2, puts=[timer("t", NOON + MINUTE, seq=3)]))
            assert await timers(store, "a") == {
                "t": Due(workflow=FLOW, id="a", name="t", at=NOON + MINUTE, seq=3, number=0, attempt=0)
            }

    async def test_held_timers_keep_their_time(self) -> None:
        """While an instance is held its rows are neither claimed nor told; set free, they are due as they were."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON), timer("u", NOON + MINUTE), timer("v", NOON))
            (_, taken) = await claimed(store, NOON, token="dead")
            assert taken.name == "v"
            await done(store, move("a", 1, drops=["t"], held=True))
            wake = await store.next_due({FLOW: 1}, NOON)
            assert (wake.at, wake.tokens) == (None, frozenset())
            assert await names(store, NOON + 9 * MINUTE, dead=["dead"]) == []
            assert [row.held for row in (await timers(store, "a")).values()] == [True, True]
            await done(store, move("a", 2, held=False))
            wake = await store.next_due({FLOW: 1}, NOON)
            assert (wake.at, wake.tokens) == (NOON + MINUTE, frozenset({"dead"}))
            assert sorted(await names(store, NOON, dead=["dead"])) == ["v"]
            assert sorted(await names(store, NOON + MINUTE - SECOND)) == []
            assert sorted(await names(store, NOON + MINUTE)) == ["u", "v"]

    async def test_a_timer_put_into_a_held_instance_is_held_if_it_says_so(self) -> None:
        """`held` reaches the rows of its own commit; later puts speak for themselves."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON))
            await done(store, move("a", 1, held=True))
            await done(store, touch("a", 2, puts=[timer("u", NOON, held=True), timer("v", NOON)]))
            assert await names(store, NOON) == ["v"]

    async def test_rows_of_many_owners_are_told_once_each(self) -> None:
        """However many rows an owner has, in however many workflows."""
        async with self.opened() as store:
            for n, flow in enumerate([FLOW, "other", FLOW]):
                puts = [replace(timer(f"t{k}", NOON), token=f"token-{k % 3}") for k in range(9)]
                await done(store, move(f"i-{n}", 0, workflow=flow, puts=puts))
            await done(store, move("last", 0, puts=[replace(timer("t", NOON), token="token-z", version=2)]))
            wake = await store.next_due({FLOW: 1, "other": 1, "none": 1}, NOON)
            assert wake.tokens == {"token-0", "token-1", "token-2"}
            assert (await store.next_due({FLOW: 2}, NOON)).tokens == {"token-0", "token-1", "token-2", "token-z"}


class Naming(Suite):
    """Promises of `append` about `Lease.name`."""

    async def test_a_named_row_is_compared_and_dropped(self) -> None:
        """A claimed timer is fired by the commit that drops it, whatever its neighbours are."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON), timer("u", NOON, seq=9), queue(1, token=OTHER))
            (row,) = [row for row in await claimed(store, NOON) if row.name == "t"]
            await done(store, move("a", 1, lease=lease_of(row), drops=["t"]))
            assert list(await timers(store, "a")) == [QUEUE, "u"]
            again = commit(move("a", 2, lease=lease_of(row), drops=["t"]))
            assert await one(store, again) == Gone()
            assert await seqs(store, "a") == [1, 2]

    async def test_a_named_lease_may_come_without_a_line(self) -> None:
        """As where a row is put off, set aside or thrown away; alone and among others."""
        async with self.opened() as store:
            for id in "abc":
                await started(store, id, timer("t", NOON), queue(1))
            rows = {row.id: row for row in await claimed(store, NOON)}
            await done(store, touch("a", 1, lease=lease_of(rows["a"]), drops=["t"]))
            off = touch("b", 1, lease=lease_of(rows["b"]), puts=[timer("t", NOON + MINUTE)])
            aside = touch("c", 1, lease=lease_of(rows["c"]), puts=[timer("t", NOON, held=True)])
            answers = await store.append([commit(off), commit(aside)])
            assert all(isinstance(answer, Committed) for answer in answers), answers
            assert [list(await timers(store, id)) for id in "abc"] == [[QUEUE], [QUEUE, "t"], [QUEUE, "t"]]
            assert [row.id for row in await claimed(store, NOON + MINUTE - SECOND)] == []
            assert sorted((row.id, row.name) for row in await claimed(store, NOON + MINUTE)) == [
                ("a", QUEUE),
                ("b", QUEUE),
                ("b", "t"),
                ("c", QUEUE),
            ]

    async def test_a_named_lease_compares_no_other_row(self) -> None:
        """The token of the effects row is no key to a timer, nor the other way round."""
        async with self.opened() as store:
            mine = await started(store, "a", queue(1), replace(timer("t", NOON), token=OTHER, attempt=1))
            assert mine.leased is not None
            crossed = replace(lease_of(mine.leased), name="t")
            assert await one(store, commit(move("a", 1, lease=crossed, drops=["t"]))) == Lost()
            theirs = Lease(token=OTHER, seq=1, number=0, attempt=1)
            assert await one(store, commit(move("a", 1, lease=theirs, drops=[QUEUE]))) == Lost()
            assert await one(store, commit(move("a", 1, lease=replace(theirs, name="u")))) == Gone()
            await done(store, move("a", 1, lease=replace(theirs, name="t"), drops=["t"]))
            assert list(await timers(store, "a")) == [QUEUE]

    async def test_a_foreign_token_on_a_named_row_is_lost(self) -> None:
        """Another owner, nobody where somebody is expected, or somebody where nobody is; another attempt too."""
        await self._fired_wrongly(Lost(), token=OTHER)
        await self._fired_wrongly(Lost(), token=None)
        await self._fired_wrongly(Lost(), attempt=1)
        await self._fired_wrongly(Lost(), attempt=3)

    async def test_a_named_row_at_an_earlier_place_is_lost(self) -> None:
        """It is not the row that was claimed."""
        await self._fired_wrongly(Lost(), seq=6)
        await self._fired_wrongly(Lost(), number=4)

    async def test_a_named_row_at_a_later_place_is_gone(self) -> None:
        """A timer put for a later entry has taken the place of the one that was claimed."""
        await self._fired_wrongly(Gone(), seq=4)
        await self._fired_wrongly(Gone(), number=2, token=OTHER)

    async def _fired_wrongly(self, expected: Gone | Lost, **wrong: str | int | None) -> None:
        """With a timer at (5, 3), attempt 2, a lease that is wrong in this way is refused without a trace."""
        async with self.opened() as store:
            put = replace(timer("t", NOON, seq=5), number=3, attempt=2, token=ME)
            await started(store, "a", put, replace(queue(5, number=3, attempt=2)))
            before = await timers(store, "a")
            lease = replace(lease_of(before["t"]), **wrong)
            for change in (
                move("a", 1, lease=lease, drops=["t"], puts=[timer("u", NOON)]),
                touch("a", 1, lease=lease, drops=["t"]),
                touch("a", 1, lease=lease, puts=[timer("t", NOON)], held=True),
            ):
                assert await one(store, commit(change)) == expected, (wrong, change)
            assert await timers(store, "a") == before
            assert await seqs(store, "a") == [1]
            await done(store, move("a", 1, lease=lease_of(before["t"]), drops=["t"]))

    async def test_a_row_that_nobody_owns_can_be_compared(self) -> None:
        """As who cancels a delayed event does: the row is still the one that was seen."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON + MINUTE, seq=3))
            lease = Lease(token=None, seq=3, number=0, attempt=0, name="t")
            await claimed(store, NOON + MINUTE)
            assert await one(store, commit(touch("a", 1, lease=lease, drops=["t"]))) == Lost()
            await done(store, touch("a", 1, puts=[timer("t", NOON + MINUTE, seq=3)]))
            await done(store, touch("a", 1, lease=lease, drops=["t"]))
            assert await one(store, commit(touch("a", 1, lease=lease, drops=["t"]))) == Gone()

    async def test_a_named_lease_that_has_run_out_still_counts(self) -> None:
        """The token counts, not the time."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON))
            (row,) = await claimed(store, NOON)
            await done(store, move("a", 1, lease=lease_of(row), drops=["t"]), now=NOON + 9 * MINUTE)

    async def test_seq_and_keys_come_before_a_named_lease(self) -> None:
        """A stale commit is `Conflicted`, a repeated key `Duplicate`, even where the lease is wrong too."""
        async with self.opened() as store:
            await started(store, "a", replace(timer("t", NOON), token=OTHER))
            await done(store, move("a", 1, "k"))
            wrong = Lease(token=ME, seq=1, number=0, attempt=0, name="t")
            assert await one(store, commit(move("a", 1, lease=wrong))) == Conflicted()
            assert await one(store, commit(touch("a", 1, lease=wrong))) == Conflicted()
            answer = await one(store, commit(move("a", 2, "k", lease=wrong)))
            assert isinstance(answer, Duplicate)
            assert answer.line.seq == 2
            assert await one(store, commit(move("a", 2, "l", lease=wrong))) == Lost()

    async def test_leased_is_of_the_effects_row_only(self) -> None:
        """A row of another name that was compared or put is never told; an effects row only if it was put."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON), timer("u", NOON))
            t, u = await claimed(store, NOON)
            assert (await done(store, move("a", 1, lease=lease_of(t)))).leased is None
            kept = replace(timer("t", NOON), token=ME)
            assert (await done(store, move("a", 2, lease=lease_of(t), puts=[kept]))).leased is None
            answer = await done(store, move("a", 3, lease=lease_of(u), drops=["u"], puts=[queue(4, absent=True)]))
            assert answer.leased is not None
            assert answer.leased == (await timers(store, "a"))[QUEUE]
            lease = Lease(token=ME, seq=1, number=0, attempt=0, name="t")
            late = move("a", 4, lease=lease, drops=["t"], puts=[queue(5, absent=True)])
            assert (await done(store, late)).leased is None

    async def test_a_commit_with_a_named_lease_is_done_once(self) -> None:
        """Appended again after its row is gone it has landed before."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON))
            (row,) = await claimed(store, NOON)
            fired = commit(move("a", 1, lease=lease_of(row), drops=["t"], puts=[queue(2, absent=True)]))
            first, again = await one(store, fired), await one(store, fired)
            assert isinstance(first, Committed)
            assert first == again
            assert await seqs(store, "a") == [1, 2]

    async def test_of_two_who_fire_a_timer_one_does(self) -> None:
        """Even where both had been given it, one after the other."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON))
            (slow,) = await claimed(store, NOON, token=OTHER)
            (quick,) = await claimed(store, NOON + MINUTE)
            stale = commit(move("a", 1, lease=lease_of(slow), drops=["t"]), token=OTHER)
            assert await one(store, stale) == Lost()
            await done(store, move("a", 1, lease=lease_of(quick), drops=["t"]))
            assert await one(store, stale) == Conflicted()

    async def test_a_named_lease_without_an_instance(self) -> None:
        """Rows that stand without a head are compared too."""
        async with self.opened() as store:
            await done(store, touch("tick", 0, puts=[timer("tick", NOON)]))
            (row,) = await claimed(store, NOON)
            wrong = replace(lease_of(row), token=OTHER)
            assert await one(store, commit(touch("tick", 0, lease=wrong, drops=["tick"]))) == Lost()
            await done(store, touch("tick", 0, lease=lease_of(row), puts=[timer("tick", NOON + MINUTE, seq=2)]))
            assert await one(store, commit(touch("tick", 0, lease=lease_of(row), drops=["tick"]))) == Gone()
            assert [row.seq for row in await claimed(store, NOON + MINUTE)] == [2]

    async def test_each_change_of_a_commit_has_its_own_lease(self) -> None:
        """One that is refused undoes the others, whose rows stay."""
        async with self.opened() as store:
            for id in "ab":
                await started(store, id, timer("t", NOON), queue(1))
            a, b = sorted(await claimed(store, NOON), key=lambda row: row.id)
            stale = replace(lease_of(b), attempt=7)
            drop = [move("a", 1, lease=lease_of(a), drops=["t"]), move("b", 1, lease=stale, drops=["t"])]
            assert await one(store, commit(*drop)) == Lost()
            assert [list(await timers(store, id)) for id in "ab"] == [[QUEUE, "t"]] * 2
            await done(store, drop[0], move("b", 1, lease=lease_of(b), drops=["t"]))
            assert [list(await timers(store, id)) for id in "ab"] == [[QUEUE]] * 2

    async def test_a_named_lease_holds_inside_a_transaction(self) -> None:
        """It is compared there as anywhere."""
        if "transaction" in self.lacks:
            return
        async with self.opened() as store:
            assert isinstance(store, Transactional)
            await started(store, "a", timer("t", NOON), queue(1))
            (row,) = await claimed(store, NOON)
            async with store.transaction() as tx:
                assert await one(tx, commit(move("a", 1, lease=replace(lease_of(row), attempt=9)))) == Lost()
                await done(tx, move("a", 1, lease=lease_of(row), drops=["t"]))
                assert await one(tx, commit(move("a", 2, lease=lease_of(row)))) == Gone()
                assert list(await timers(tx, "a")) == [QUEUE]
            assert list(await timers(store, "a")) == [QUEUE]
            assert (await loaded(store, "a")).head.seq == 2
