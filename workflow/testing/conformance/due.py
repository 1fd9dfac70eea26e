"""Due rows: how they are written, held, claimed, and when they wake somebody."""

from __future__ import annotations

import asyncio

from msgspec.structs import replace

from workflow.record import QUEUE, Due

from .rows import FLOW, ME, MINUTE, NOON, OTHER, SECOND, move, queue, timer, touch
from .suite import Suite, claimed, done, loaded, names, started


class Owing(Suite):
    """Promises of `append` about `puts`, `drops` and `held`."""

    async def test_a_row_comes_back_whole(self) -> None:
        """Every field of a put is found in the row."""
        async with self.opened() as store:
            put = replace(queue(1, number=4, attempt=7, token=OTHER), version=3, body='{"a": [1, "é"]}')
            await started(store, "a", put)
            row = Due(
                workflow=FLOW,
                id="a",
                name=QUEUE,
                at=NOON + MINUTE,
                seq=1,
                number=4,
                attempt=7,
                version=3,
                token=OTHER,
                body='{"a": [1, "é"]}',
            )
            assert (await loaded(store, "a")).effects == row

    async def test_a_time_is_given_or_counted_from_the_commit(self) -> None:
        """A put is due at `at`, or `wait` after the commit."""
        async with self.opened() as store:
            exact = NOON.replace(microsecond=1)
            later = replace(timer("later", NOON), at=None, wait=2 * SECOND)
            await started(store, "a", timer("exact", exact), later)
            assert await names(store, NOON) == []
            assert await names(store, exact) == ["exact"]
            assert await names(store, NOON + 2 * SECOND) == ["later"]

    async def test_a_put_replaces_the_row_of_its_name(self) -> None:
        """There is one row of a name, and a superseded time is forgotten."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON))
            await done(store, touch("a", 1, puts=[timer("t", NOON + MINUTE, seq=7)]))
            assert await claimed(store, NOON) == []
            assert [row.seq for row in await claimed(store, NOON + MINUTE)] == [7]

    async def test_an_absent_put_leaves_the_row(self) -> None:
        """An absent put writes only where no row of that name is, owner and place included."""
        async with self.opened() as store:
            row = (await started(store, "a", queue(1))).leased
            await done(store, move("a", 1, puts=[queue(2, token=None, absent=True)]))
            assert (await loaded(store, "a")).effects == row
            await done(store, touch("a", 2, puts=[replace(timer("t", NOON), absent=True)]))
            assert await names(store, NOON) == ["t"]

    async def test_drops_go_before_puts(self) -> None:
        """A row that is dropped and put in one commit is the one put; an unknown name is no trouble."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON), timer("u", NOON))
            again = replace(timer("t", NOON + MINUTE), absent=True)
            await done(store, touch("a", 1, drops=["t", "u", "never"], puts=[again]))
            assert await names(store, NOON) == []
            assert await names(store, NOON + MINUTE) == ["t"]

    async def test_a_move_may_drop_and_put(self) -> None:
        """Timeouts of the left state go in the commit that leaves it."""
        async with self.opened() as store:
            await started(store, "a", timer("old", NOON))
            await done(store, move("a", 1, drops=["old"], puts=[timer("new", NOON, seq=2)]))
            assert [(row.name, row.seq) for row in await claimed(store, NOON)] == [("new", 2)]

    async def test_holding_an_instance_holds_all_its_rows(self) -> None:
        """`held` reaches the rows that are there and those just put, of this instance only."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON), queue(1, token=None))
            await started(store, "b", timer("other", NOON))
            await done(store, move("a", 1, puts=[timer("new", NOON)], held=True))
            effects = (await loaded(store, "a")).effects
            assert effects is not None
            assert effects.held
            assert (await store.next_due({FLOW: 1}, NOON)).at == NOON
            assert await names(store, NOON) == ["other"]
            await done(store, move("a", 2, held=False))
            assert sorted(await names(store, NOON)) == [QUEUE, "new", "t"]

    async def test_holding_comes_last(self) -> None:
        """`held` overrules what a put says of itself; None leaves all rows as they are."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON, held=True), timer("u", NOON))
            await done(store, touch("a", 1, puts=[timer("v", NOON, held=True)]))
            assert await names(store, NOON) == ["u"]
            await done(store, touch("a", 1, drops=["u"], puts=[timer("w", NOON, held=True)], held=False))
            assert sorted(await names(store, NOON)) == ["t", "v", "w"]


class Claiming(Suite):
    """Promises of `claim`."""

    async def test_a_claimed_row_is_owned(self) -> None:
        """Token, one more attempt and the end of the lease; answered as the row is afterwards."""
        async with self.opened() as store:
            await started(store, "a", queue(1, token=None, attempt=2), now=NOON - MINUTE)
            (row,) = await claimed(store, NOON, token=OTHER, lease=5 * SECOND)
            assert (row.token, row.attempt, row.at, row.seq) == (OTHER, 3, NOON + 5 * SECOND, 1)
            assert (await loaded(store, "a")).effects == row
            assert await claimed(store, NOON + 4 * SECOND) == []
            (again,) = await claimed(store, NOON + 5 * SECOND)
            assert (again.token, again.attempt) == (ME, 4)

    async def test_only_what_is_due_is_claimed(self) -> None:
        """A row is due from its very time on."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON))
            assert await names(store, NOON - NOON.resolution) == []
            assert await names(store, NOON) == ["t"]

    async def test_the_earliest_come_first(self) -> None:
        """In order of time over all instances and workflows, as many as asked for."""
        async with self.opened() as store:
            for n, (id, flow) in enumerate(zip("dbcaef", [FLOW, "other"] * 3, strict=True)):
                row = timer(f"t-{id}", NOON + n * SECOND)
                await done(store, move(id, 0, workflow=flow, puts=[row]))
            both = {FLOW: 1, "other": 1}
            later = NOON + MINUTE
            first = await claimed(store, later, limit=4, workflows=both)
            assert [row.name for row in first] == ["t-d", "t-b", "t-c", "t-a"]
            assert [row.name for row in await claimed(store, later, limit=4, workflows=both)] == ["t-e", "t-f"]

    async def test_many_rows_of_one_time_are_paged(self) -> None:
        """Row upon row is taken, each once, until none is left."""
        async with self.opened() as store:
            for id in "abc":
                await started(store, id, *(timer(f"t{n}", NOON) for n in range(40)))
            taken: list[tuple[str, str]] = []
            while rows := await claimed(store, NOON, limit=50):
                assert len(rows) <= 50
                taken += [(row.id, row.name) for row in rows]
            assert len(taken) == len(set(taken)) == 120

    async def test_concurrent_claims_share_the_rows(self) -> None:
        """Each row goes to one owner."""
        async with self.opened() as store:
            for id in "abcd":
                await started(store, id, *(timer(f"t{n}", NOON) for n in range(10)))
            tokens = [f"token-{n}" for n in range(8)]
            shares = await asyncio.gather(*(claimed(store, NOON, token=token, limit=10) for token in tokens))
            for token, share in zip(tokens, shares, strict=True):
                assert all(row.token == token and row.attempt == 1 for row in share)
            rest = await claimed(store, NOON)
            rows = [(row.id, row.name) for share in (*shares, rest) for row in share]
            assert len(rows) == len(set(rows)) == 40

    async def test_only_the_named_workflows_are_claimed(self) -> None:
        """What a process does not know, it does not claim."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON))
            assert await claimed(store, NOON, workflows={}) == []
            assert await claimed(store, NOON, workflows={"other": 9}) == []
            assert await names(store, NOON) == ["t"]

    async def test_newer_versions_are_left_alone(self) -> None:
        """A row of a version above the one given is for newer processes, and hides no other."""
        async with self.opened() as store:
            await started(store, "a", *(timer(f"v{n}", NOON + n * SECOND, version=n) for n in (3, 2, 1)))
            later = NOON + MINUTE
            first = await claimed(store, later, workflows={FLOW: 2}, limit=1)
            assert [(row.name, row.version) for row in first] == [("v1", 1)]
            assert [row.name for row in await claimed(store, later, workflows={FLOW: 2})] == ["v2"]
            assert [row.name for row in await claimed(store, later, workflows={FLOW: 3})] == ["v3"]

    async def test_held_rows_are_never_claimed(self) -> None:
        """Neither when due nor when their owner is dead."""
        async with self.opened() as store:
            await started(store, "a", replace(queue(1, token="dead"), held=True), timer("t", NOON, held=True))
            assert await names(store, NOON + MINUTE, dead=["dead"]) == []

    async def test_rows_of_the_dead_are_claimed_at_once(self) -> None:
        """Their leases need not run out; those of the living must."""
        async with self.opened() as store:
            for id, token in zip("abcd", ["dead-1", "dead-2", OTHER, "dead-1"], strict=True):
                await started(store, id, queue(1, token=token))
            await done(store, touch("d", 1, puts=[replace(queue(1, token="dead-1"), version=2)]))
            assert await claimed(store, NOON) == []
            rows = await claimed(store, NOON, dead=["dead-1", "dead-2", "never"])
            assert sorted(row.id for row in rows) == ["a", "b"]
            assert all((row.token, row.attempt, row.at) == (ME, 2, NOON + MINUTE) for row in rows)

    async def test_the_dead_are_served_first(self) -> None:
        """What they had begun was due before what is due now, whenever their leases would have ended."""
        async with self.opened() as store:
            await started(store, "a", queue(1, token="dead"))
            await started(store, "b", timer("t", NOON))
            await started(store, "c", timer("u", NOON - SECOND))
            taken = await claimed(store, NOON, dead=["dead"], limit=2)
            assert [row.id for row in taken] == ["a", "c"]
            assert [row.id for row in await claimed(store, NOON, dead=["dead"])] == ["b"]

    async def test_a_row_both_due_and_of_the_dead_is_taken_once(self) -> None:
        """One row, one claim."""
        async with self.opened() as store:
            await started(store, "a", queue(1, token="dead"))
            (row,) = await claimed(store, NOON + MINUTE, dead=["dead"])
            assert row.attempt == 2

    async def test_dropped_rows_are_not_claimed(self) -> None:
        """What was removed does not come back."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON), timer("u", NOON))
            await done(store, touch("a", 1, drops=["t"]))
            assert await names(store, NOON) == ["u"]

    async def test_a_claim_without_a_time_takes_the_store_s(self) -> None:
        """A row due by the store's clock is claimed, one due later is not."""
        async with self.opened() as store:
            now = (await store.next_due({})).now
            await started(store, "a", timer("past", now - SECOND), timer("future", now + 60 * MINUTE))
            (row,) = await store.claim({FLOW: 1}, ME, MINUTE, 10)
            assert row.name == "past"
            assert now + MINUTE <= row.at <= (await store.next_due({})).now + MINUTE


class Waking(Suite):
    """Promises of `next_due`."""

    async def test_the_earliest_row_tells_when_to_wake(self) -> None:
        """Over the named workflows; None when nothing is due ever; `now` is given back."""
        async with self.opened() as store:
            wake = await store.next_due({FLOW: 1, "other": 1}, NOON)
            assert (wake.at, wake.tokens, wake.now) == (None, frozenset(), NOON)
            await started(store, "a", timer("t", NOON + 2 * MINUTE))
            await done(store, move("b", 0, workflow="other", puts=[timer("u", NOON + MINUTE)]))
            assert (await store.next_due({FLOW: 1}, NOON)).at == NOON + 2 * MINUTE
            assert (await store.next_due({FLOW: 1, "other": 1}, NOON)).at == NOON + MINUTE
            assert (await store.next_due({}, NOON)).at is None

    async def test_rows_past_due_count(self) -> None:
        """A time in the past says: now."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON - MINUTE))
            assert (await store.next_due({FLOW: 1}, NOON)).at == NOON - MINUTE

    async def test_a_lease_wakes_when_it_ends(self) -> None:
        """The time of an owned row is the end of its lease; a settled one is forgotten."""
        async with self.opened() as store:
            await started(store, "a", timer("t", NOON))
            await claimed(store, NOON, lease=5 * MINUTE)
            assert (await store.next_due({FLOW: 1}, NOON)).at == NOON + 5 * MINUTE
            await done(store, touch("a", 1, drops=["t"]))
            assert (await store.next_due({FLOW: 1}, NOON)).at is None

    async def test_the_owners_of_leases_are_told(self) -> None:
        """So that a process may ask whether they live: those of these workflows only."""
        async with self.opened() as store:
            await started(store, "a", queue(1, token="x"), timer("t", NOON))
            await started(store, "b", queue(1, token="y"))
            await done(store, move("c", 0, workflow="other", puts=[queue(1, token="z")]))
            assert (await store.next_due({FLOW: 1}, NOON)).tokens == {"x", "y"}
            assert (await store.next_due({FLOW: 1, "other": 1}, NOON)).tokens == {"x", "y", "z"}
            await done(store, touch("a", 1, drops=[QUEUE]))
            assert (await store.next_due({FLOW: 1}, NOON)).tokens == {"y"}

    async def test_held_rows_and_newer_versions_do_not_count(self) -> None:
        """Neither their time nor their owner."""
        async with self.opened() as store:
            newer = replace(queue(1, token="new"), version=2)
            await started(store, "a", newer)
            await started(store, "b", replace(queue(1, token="held"), held=True), timer("t", NOON, held=True))
            wake = await store.next_due({FLOW: 1}, NOON)
            assert (wake.at, wake.tokens) == (None, frozenset())
            wake = await store.next_due({FLOW: 2}, NOON)
            assert wake.at == NOON + MINUTE
            assert wake.tokens == {"new"}
