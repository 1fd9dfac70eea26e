"""The row of an instance's effects: who owns it, and what a settle compares."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from workflow.record import QUEUE, Conflicted, Due, Gone, Lease, Lost

from .rows import FLOW, ME, MINUTE, NOON, OTHER, SECOND, commit, lease_of, move, place, queue, timer, touch
from .suite import Suite, claimed, done, loaded, one, seqs, started


class Leasing(Suite):
    """Promises of `append` about `Change.lease`, of its answer about `leased`, and of `renew`."""

    async def test_a_put_can_lease_the_row_to_the_committer(self) -> None:
        """Move and first lease are one commit; the answer is the row as `load` shows it."""
        async with self.opened() as store:
            answer = await started(store, "a", queue(1, attempt=1))
            row = Due(
                workflow=FLOW, id="a", name=QUEUE, at=NOON + MINUTE, seq=1, number=0, attempt=1, version=1, token=ME
            )
            assert answer.leased == row
            assert (await loaded(store, "a")).effects == row
            assert await claimed(store, NOON + MINUTE - SECOND) == []

    async def test_leased_is_only_what_this_commit_left_mine(self) -> None:
        """No row of the committer, no `leased`: an unowned put, one that came too late, none at all."""
        async with self.opened() as store:
            assert (await started(store, "a", queue(1, token=None))).leased is None
            assert (await done(store, move("a", 1, puts=[queue(2, absent=True)]))).leased is None
            assert (await started(store, "b", timer("t", NOON))).leased is None
            assert (await done(store, move("b", 1, puts=[queue(2, token=OTHER)]))).leased is None
            assert (await done(store, move("b", 2))).leased is None

    async def test_an_absent_put_leases_where_there_is_no_row(self) -> None:
        """An absent put writes the row, owner included, when none is there."""
        async with self.opened() as store:
            row = (await started(store, "a", queue(1, absent=True))).leased
            assert row is not None
            assert row == (await loaded(store, "a")).effects

    async def test_leased_speaks_of_the_first_change(self) -> None:
        """Of several changes the first one's row is told, in the order given."""
        async with self.opened() as store:
            answer = await done(store, move("b", 0, puts=[queue(1)]), move("a", 0, puts=[queue(1)]))
            assert answer.leased is not None
            assert answer.leased.id == "b"

    async def test_a_settle_goes_on_to_the_next_effect(self) -> None:
        """The owner moves the row in one commit and is told what he owns now."""
        async with self.opened() as store:
            row = (await started(store, "a", queue(1))).leased
            assert row is not None
            answer = await done(store, touch("a", 1, lease=lease_of(row), puts=[queue(1, number=1)]))
            assert answer.leased is not None
            assert (answer.leased.seq, answer.leased.number, answer.leased.attempt) == (1, 1, 1)
            last = await done(store, touch("a", 1, lease=lease_of(answer.leased), drops=[QUEUE]))
            assert last.leased is None
            assert (await loaded(store, "a")).effects is None

    async def test_a_lease_that_is_only_compared_stays(self) -> None:
        """A commit that holds its lease and leaves the row alone still owns it."""
        async with self.opened() as store:
            row = (await started(store, "a", queue(1))).leased
            assert row is not None
            assert (await done(store, move("a", 1, lease=lease_of(row)))).leased == row

    async def test_a_row_that_is_only_held_is_not_told(self) -> None:
        """`leased` is a row that was put or compared: to hold it, or let it go, is neither."""
        async with self.opened() as store:
            row = (await started(store, "a", queue(1))).leased
            assert row is not None
            assert (await done(store, touch("a", 1, held=True))).leased is None
            assert (await done(store, move("a", 1, held=False))).leased is None
            assert (await done(store, touch("a", 2, puts=[queue(2, absent=True)], held=True))).leased is None
            assert (await loaded(store, "a")).effects == replace(row, held=True)
            compared = await done(store, touch("a", 2, lease=lease_of(row), held=False))
            assert compared.leased == row
            put = await done(store, touch("a", 2, puts=[queue(2)], held=True))
            assert put.leased is not None
            assert put.leased == (await loaded(store, "a")).effects

    async def test_a_foreign_token_is_lost(self) -> None:
        """A settle under another token than the row's is `Lost`."""
        await self._refused(Lost(), token=OTHER)
        await self._refused(Lost(), token=None)

    async def test_another_attempt_is_lost(self) -> None:
        """The same owner at another attempt is another lease."""
        await self._refused(Lost(), attempt=1)
        await self._refused(Lost(), attempt=3)

    async def test_a_row_at_an_earlier_place_is_lost(self) -> None:
        """A lease on a place that the row has not reached is not this row's."""
        await self._refused(Lost(), seq=6)
        await self._refused(Lost(), number=4)

    async def test_a_row_at_a_later_place_is_gone(self) -> None:
        """The row is past the effect: it was settled, whoever owns the row now."""
        await self._refused(Gone(), number=2)
        await self._refused(Gone(), seq=4, number=9)
        await self._refused(Gone(), seq=4, number=9, token=OTHER, attempt=7)

    async def _refused(self, expected: Gone | Lost, **wrong: str | int | None) -> None:
        """With a row at (5, 3), attempt 2, a lease that is wrong in this way is refused without a trace."""
        async with self.opened() as store:
            row = (await started(store, "a", queue(5, number=3, attempt=2))).leased
            assert row is not None
            lease = replace(lease_of(row), **wrong)
            for bad in (
                move("a", 1, "k", lease=lease, drops=[QUEUE], puts=[timer("t", NOON)], held=True),
                touch("a", 1, lease=lease, drops=[QUEUE], puts=[timer("t", NOON)], held=True),
            ):
                assert await one(store, commit(bad)) == expected
            assert await seqs(store, "a") == [1]
            assert (await loaded(store, "a")).effects == row
            assert await store.recall(FLOW, "a", "k") is None
            assert await claimed(store, NOON) == []
            await done(store, touch("a", 1, lease=lease_of(row)))

    async def test_no_row_is_gone(self) -> None:
        """Where nothing is owed, the effect was settled."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON))
            nothing = Lease(token=ME, seq=1, number=0, attempt=1)
            assert await one(store, commit(move("a", 1, lease=nothing))) == Gone()
            assert await one(store, commit(touch("a", 1, lease=nothing))) == Gone()
            assert await seqs(store, "a") == [1]

    async def test_a_stale_settle_is_conflicted(self) -> None:
        """`seq` is compared before the lease."""
        async with self.opened() as store:
            row = (await started(store, "a", queue(1))).leased
            assert row is not None
            await done(store, move("a", 1, puts=[queue(2, absent=True)]))
            assert await one(store, commit(touch("a", 1, lease=lease_of(row), drops=[QUEUE]))) == Conflicted()
            assert (await loaded(store, "a")).effects == row

    async def test_a_lease_that_ran_out_still_counts(self) -> None:
        """The token decides, not the clock: nobody has taken the row."""
        async with self.opened() as store:
            row = (await started(store, "a", queue(1))).leased
            assert row is not None
            await done(store, touch("a", 1, lease=lease_of(row), drops=[QUEUE]), now=NOON + 60 * MINUTE)

    async def test_a_row_without_owner_can_be_expected(self) -> None:
        """A lease with token None compares with a row that nobody owns."""
        async with self.opened() as store:
            await started(store, "a", queue(1, token=None, attempt=3))
            free = Lease(token=None, seq=1, number=0, attempt=3)
            assert await one(store, commit(touch("a", 1, lease=replace(free, token=ME)))) == Lost()
            assert (await done(store, touch("a", 1, lease=free))).leased is None

    async def test_a_former_owner_writes_nothing(self) -> None:
        """Whoever claimed the row after its lease ran out fences the one before."""
        async with self.opened() as store:
            row = (await started(store, "a", queue(1))).leased
            assert row is not None
            (taken,) = await claimed(store, NOON + MINUTE, token=OTHER)
            assert (taken.token, taken.attempt) == (OTHER, 2)
            assert await one(store, commit(move("a", 1, lease=lease_of(row), drops=[QUEUE]))) == Lost()
            await done(store, move("a", 1, lease=lease_of(taken), drops=[QUEUE]), token=OTHER)

    async def test_concurrent_settles_have_one_winner(self) -> None:
        """Two commits that settle one effect cannot both succeed."""
        async with self.opened() as store:
            row = (await started(store, "a", queue(1))).leased
            assert row is not None
            rivals = [commit(touch("a", 1, lease=lease_of(row), puts=[queue(1, number=1)])) for _ in range(6)]
            answers = await asyncio.gather(*(one(store, rival) for rival in rivals))
            assert sorted(type(answer).__name__ for answer in answers) == ["Committed", *["Gone"] * 5]

    async def test_a_refused_lease_refuses_all_changes(self) -> None:
        """A lease that is lost on one instance undoes the commit on the others."""
        async with self.opened() as store:
            row = (await started(store, "m", queue(1))).leased
            assert row is not None
            foreign = replace(lease_of(row), token=OTHER)
            assert await one(store, commit(move("a", 0), touch("m", 1, lease=foreign), move("z", 0))) == Lost()
            assert await store.load(FLOW, ["a", "z"]) == [None, None]


class Renewing(Suite):
    """Promises of `renew`."""

    async def test_renewing_pushes_the_end_of_the_lease(self) -> None:
        """A renewed row comes due at `now` plus the lease, and keeps its place and attempt."""
        async with self.opened() as store:
            row = (await started(store, "a", queue(1))).leased
            assert row is not None
            found = await store.renew(ME, [place(row)], MINUTE, NOON + 30 * SECOND)
            assert (found.lost, found.now) == (frozenset(), NOON + 30 * SECOND)
            assert (await loaded(store, "a")).effects == replace(row, at=NOON + 90 * SECOND)
            assert await claimed(store, NOON + 89 * SECOND, token=OTHER) == []
            assert len(await claimed(store, NOON + 90 * SECOND, token=OTHER)) == 1

    async def test_a_late_renewal_shortens_nothing(self) -> None:
        """A renewal that was long on its way leaves the later end of a newer lease."""
        async with self.opened() as store:
            row = (await started(store, "a", queue(1))).leased
            assert row is not None
            assert not (await store.renew(ME, [place(row)], MINUTE, NOON - 30 * SECOND)).lost
            assert (await loaded(store, "a")).effects == row

    async def test_what_is_no_longer_mine_is_lost_and_untouched(self) -> None:
        """Rows of other owners, of nobody, and rows that are gone are told and left alone."""
        async with self.opened() as store:
            mine = (await started(store, "a", queue(1))).leased
            await started(store, "b", queue(1, token=OTHER))
            await started(store, "c", queue(1, token=None))
            assert mine is not None
            places = [place(mine), *((FLOW, id, QUEUE) for id in "bcd"), (FLOW, "a", "t"), ("other", "a", QUEUE)]
            found = await store.renew(ME, places, 5 * MINUTE, NOON)
            assert found.lost == frozenset(places[1:])
            ends = [row.effects.at for id in "abc" if (row := await loaded(store, id)).effects]
            assert ends == [NOON + 5 * MINUTE, NOON + MINUTE, NOON]

    async def test_only_the_named_rows_are_renewed(self) -> None:
        """Other rows of the same owner keep their end."""
        async with self.opened() as store:
            rows = [(await started(store, id, queue(1))).leased for id in "ab"]
            assert rows[0] is not None
            await store.renew(ME, [place(rows[0])], 5 * MINUTE, NOON)
            assert (await loaded(store, "b")).effects == rows[1]
            assert (await store.renew(ME, [], MINUTE, NOON)).lost == frozenset()

    async def test_a_renewal_without_a_time_takes_the_store_s(self) -> None:
        """`Renewed.now` and the new end come from the store's clock."""
        async with self.opened() as store:
            row = (await started(store, "a", queue(1), now=None)).leased
            assert row is not None
            before = (await store.next_due({})).now
            found = await store.renew(ME, [place(row)], 5 * MINUTE)
            after = (await store.next_due({})).now
            assert before <= found.now <= after
            effects = (await loaded(store, "a")).effects
            assert effects is not None
            assert before <= effects.at - 5 * MINUTE <= after
