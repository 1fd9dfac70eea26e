"""Moves inside a transaction of the user's: judged there, durable with it, gone with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from stores import MemoryStore, PostgresStore
from tests.flows import EVERY_SECOND, NOON, ONCE, Ctx, E, Gate, Log, S, edged, flow, inner, quiet, story, until
from tests.shadow import Shadow, ShadowStore
from workflow import (
    STAY,
    AlreadyStarted,
    Busy,
    Conflict,
    Deny,
    Edge,
    Finished,
    GuardError,
    GuardRejected,
    HookFailed,
    IllegalTransition,
    KeyConflict,
    Manager,
    NotRunning,
    Reentrant,
    StoreError,
    UnknownInstance,
)
from workflow.record import Conflicted, Locked
from workflow.store import Transactional, _entered, enter, inside


@pytest.fixture
def shared(store: Any) -> Any:
    """Every store that has transactions; in memory one that was made for tests."""
    return store if isinstance(store, Transactional) else ShadowStore()


class Mine(Exception):
    """An error of the user's."""


@asynccontextmanager
async def rolled_back(store: Any) -> AsyncGenerator[Any]:
    """A block that ends with the user's own error."""
    with suppress(Mine):
        async with store.transaction() as tx:
            yield tx
            raise Mine


class Contended(ShadowStore):
    """Its transactions meet others as these lists say."""

    def __init__(self) -> None:
        super().__init__()
        self.shadow = Meeting
        self.locks: list[bool] = []
        self.answers: list[Any] = []
        self.waited: list[float] = []
        self.commits: list[Any] = []


class Meeting(Shadow):
    """Others hold what this one wants, or were there first."""

    async def lock(self, workflow, id, timeout):
        assert isinstance(self._store, Contended)
        self._store.waited.append(timeout)
        return self._store.locks.pop(0) if self._store.locks else True

    async def append(self, commits, *, timeout=None):
        assert isinstance(self._store, Contended)
        self._store.commits += commits
        return [self._store.answers.pop(0)] if self._store.answers else await super().append(commits)


@pytest.fixture
def contended() -> Any:
    """A store whose transactions meet others."""
    return Contended()


# --- both or neither ------------------------------------------------------------------------------


async def test_a_move_is_committed_with_the_block(shared):
    """It is one line like any other, seen once the block has ended."""
    async with Manager(flow(), shared) as m:
        await m.start("i")
        async with shared.transaction() as tx:
            moved = await m.send("i", E.GO, within=tx)
            assert (moved.state, moved.transition.seq, moved.duplicate, moved.settled) == (S.B, 2, False, True)
        assert await m.state("i") is S.B
        assert (await m.history("i"))[-1] == moved.transition
        assert await story(m) == ["start", "event"]
        assert quiet(m)


async def test_a_rollback_leaves_no_trace(shared):
    """Neither a line, nor a key, nor a head in memory."""
    async with Manager(flow(), shared) as m:
        await m.start("i", Ctx(1))
        async with rolled_back(shared) as tx:
            assert (await m.send("i", E.ADD, 5, key="k", within=tx)).transition.context == Ctx(6)
            await m.start("j", within=tx)
        assert not inner(m)._heads
        assert await story(m) == ["start"]
        with pytest.raises(UnknownInstance):
            await m.get("j")
        again = await m.send("i", E.ADD, 7, key="k")
        assert (again.duplicate, again.transition.context, again.transition.seq) == (False, Ctx(8), 2)
        assert await story(m) == ["start", "event"]


@pytest.mark.parametrize("fails", [True, False])
async def test_several_moves_are_one(shared, fails):
    """Of one instance and of several, of two workflows: all or none."""
    async with Manager(flow("one"), shared) as m, Manager(flow("two"), shared) as n:
        await m.start("i")
        await n.start("i")
        async with rolled_back(shared) if fails else shared.transaction() as tx:
            assert (await m.send("i", E.GO, within=tx)).transition.seq == 2
            assert (await m.send("i", E.ADD, 3, within=tx)).transition.seq == 3
            assert (await n.send("i", E.GO, within=tx)).state is S.B
            assert (await m.send("j", E.GO, start=Ctx(1), within=tx)).transition.seq == 2
            assert (await n.start("j", Ctx(2), labels={"a": "b"}, within=tx)).state is S.A
        assert await story(m) == ["start"] + ["event"] * (0 if fails else 2)
        assert await story(n) == ["start"] + ["event"] * (not fails)
        for manager, seq in ((m, 2), (n, 1)):
            if fails:
                with pytest.raises(UnknownInstance):
                    await manager.get("j")
            else:
                assert (await manager.get("j")).seq == seq


async def test_together_with_rows(shared):
    """What the user writes on the connection of the transaction shares its fate."""
    if isinstance(shared, ShadowStore):
        pytest.skip("has no rows of the user's")
    async with Manager(flow(), shared) as m:
        await m.start("i")
        async with shared.transaction() as tx:
            await tx.connection.execute("CREATE TABLE mine (seq integer)")
        for block in (rolled_back(shared), shared.transaction()):
            async with block as tx:
                seq = (await m.send("i", E.GO, within=tx)).transition.seq
                await tx.connection.execute(f"INSERT INTO mine VALUES ({seq})")
        async with shared.transaction() as tx:
            rows = await (await tx.connection.execute("SELECT seq FROM mine")).fetchall()
        assert [tuple(row) for row in rows] == [(2,)]
        assert (await m.get("i")).seq == 2


async def test_it_is_judged_on_what_the_transaction_wrote(shared):
    """And never on a head in memory, which others may have made stale."""
    async with Manager(flow(), shared) as m, Manager(flow(), shared) as n:
        await m.start("i")
        await n.send("i", E.GO)
        async with shared.transaction() as tx:
            assert (await m.send("i", E.GO, within=tx)).transition.source is S.B
            assert (await n.send("i", E.GO, within=tx)).transition.source is S.C
            with pytest.raises(IllegalTransition, match="is in 'd'"):
                await m.send("i", E.GO, within=tx)
        assert await story(n) == ["start", "event", "event", "event"]


async def test_the_head_in_memory_is_forgotten(shared):
    """Before the move and for good: a plain send after the block judges on the new head."""
    async with Manager(flow(), shared) as m:
        await m.start("i")
        assert "i" in inner(m)._heads
        async with shared.transaction() as tx:
            await m.send("i", E.GO, within=tx)
            assert "i" not in inner(m)._heads
        assert "i" not in inner(m)._heads
        assert (await m.send("i", E.GO)).state is S.C


async def test_the_time_is_that_of_the_clock(shared, clock):
    """A clock handed to the Manager stamps these lines too."""
    async with Manager(flow(), shared, clock=clock) as m:
        async with shared.transaction() as tx:
            await m.start("i", within=tx)
        assert (await m.history("i"))[0].at == NOON


async def test_without_one_the_time_is_the_store_s(contended):
    """The Manager then says none."""
    async with Manager(flow(), contended) as m, contended.transaction() as tx:
        await m.start("i", within=tx)
        assert [commit.now for commit in contended.commits] == [None]


async def test_start_within(shared):
    """It answers and refuses like any start."""
    async with Manager(flow(), shared) as m:
        async with shared.transaction() as tx:
            assert (await m.start("i", Ctx(1), key="k", within=tx)).transition.seq == 1
            assert (await m.start("i", Ctx(1), key="k", within=tx)).duplicate
            with pytest.raises(KeyConflict):
                await m.start("i", Ctx(2), key="k", within=tx)
            with pytest.raises(AlreadyStarted):
                await m.start("i", Ctx(1), within=tx)
        async with shared.transaction() as tx:
            assert (await m.start("i", Ctx(1), key="k", within=tx)).duplicate
            with pytest.raises(AlreadyStarted):
                await m.start("i", within=tx)
        assert await story(m) == ["start"]


# --- keys -----------------------------------------------------------------------------------------


async def test_a_key_counts_across_transactions(shared):
    """A repeat is answered with the same line, whether that was written outside, before or here."""
    async with Manager(flow(), shared) as m:
        await m.start("i")
        outside = await m.send("i", E.ADD, 1, key="out")
        async with shared.transaction() as tx:
            assert (await m.send("i", E.ADD, 1, key="out", within=tx)).transition == outside.transition
            mine = await m.send("i", E.ADD, 2, key="in", within=tx)
            again = await m.send("i", E.ADD, 2, key="in", within=tx)
            assert (again.duplicate, again.transition) == (True, mine.transition)
            with pytest.raises(KeyConflict):
                await m.send("i", E.ADD, 3, key="in", within=tx)
            await m.send("i", E.STOP, key="end", within=tx)
            assert (await m.send("i", E.ADD, 2, key="in", within=tx)).duplicate
        again = await m.send("i", E.ADD, 2, key="in")
        assert (again.duplicate, again.transition, again.state) == (True, mine.transition, S.END)
        assert (await m.get("i")).context == Ctx(3)


# --- refusals -------------------------------------------------------------------------------------


def broken(_):
    raise ZeroDivisionError


async def test_refusals_are_those_of_outside_and_harm_nothing(shared):
    """Whatever is refused, the transaction goes on and commits the rest."""
    edges = edged(
        Edge(S.A, E.BACK, S.C, guard=lambda m: Deny("no way")),
        Edge(S.B, E.BACK, S.C, guard=broken),
        Edge(S.D, E.GO, STAY, action=Log().failing("d")),
    )
    spec = flow(edges=edges, on_enter={S.D: Log().failing("d")}, retry=EVERY_SECOND)
    async with Manager(spec, shared) as m:
        await m.start("i")
        async with shared.transaction() as tx:
            with pytest.raises(UnknownInstance):
                await m.send("j", E.GO, within=tx)
            with pytest.raises(GuardRejected, match="no way"):
                await m.send("i", E.BACK, within=tx)
            await m.send("i", E.GO, within=tx)
            with pytest.raises(GuardError, match="ZeroDivisionError"):
                await m.send("i", E.BACK, within=tx)
            await m.send("i", E.STOP, within=tx)
            with pytest.raises(Finished) as e:
                await m.send("i", E.GO, within=tx)
            assert e.value.committed is False
        assert await story(m) == ["start", "event", "event"]


async def test_what_has_failed_is_refused(shared):
    """Inside as outside."""
    spec = flow(on_enter={S.B: Log().failing("b")}, retry=ONCE)
    async with Manager(spec, shared) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        async with shared.transaction() as tx:
            with pytest.raises(NotRunning):
                await m.send("i", E.GO, within=tx)
            await m.start("j", within=tx)
        assert await story(m, "j") == ["start"]


async def test_guards_are_awaited_inside(shared):
    """An async one may look at what the transaction wrote; one that takes too long is given up."""
    seen: list[Any] = []
    tx: Any = None

    async def guard(m):
        found = await tx.load("flow", ["j"])
        seen.append(found[0].head.seq)
        if m.context.n:
            await asyncio.sleep(60)
        return True

    async with Manager(flow(edges=edged(Edge(S.A, E.BACK, S.C, guard=guard))), shared) as m:
        async with shared.transaction() as tx:
            await m.start("j", within=tx)
            assert (await m.send("i", E.BACK, start=True, within=tx)).state is S.C
            with pytest.raises(Busy, match="guards"):
                await m.send("k", E.BACK, start=Ctx(1), timeout=0, within=tx)
        assert seen == [1, 1]
        assert await story(m) == ["start", "event"]


# --- effects --------------------------------------------------------------------------------------


async def test_hooks_run_after_the_commit(shared):
    """Soon, by the loop; never inside, and never after a rollback."""
    log = Log()
    spec = flow(on_enter={S.A: log.hook("a"), S.B: log.hook("b", E.GO), S.C: log.hook("c")})
    async with Manager(spec, shared) as m:
        async with rolled_back(shared) as tx:
            await m.send("i", E.GO, start=True, within=tx)
        async with shared.transaction() as tx:
            assert not (await m.start("i", within=tx)).settled
            moved = await m.send("i", E.GO, within=tx)
            assert (moved.state, moved.settled) == (S.B, False)
            await asyncio.sleep(0.05)
            assert log == []
        await until(lambda: log == ["a", "b", "c"])
        assert (await m.settled("i")).state is S.C
        assert await story(m) == ["start", "event", "event"]


async def test_what_is_owed_is_due_and_nobody_s(shared):
    """Without a loop it waits, not leased to anybody, for whoever works off what is due."""
    log = Log()
    async with Manager(flow(on_enter={S.B: log.hook("b")}), shared, work=False) as m:
        await m.start("i")
        async with shared.transaction() as tx:
            await m.send("i", E.GO, within=tx)
        wake = await shared.next_due({"flow": 1})
        assert wake.at is not None
        assert (wake.at <= wake.now, wake.tokens, log) == (True, frozenset(), [])
        assert (await m.resume()).effects == 1
        assert log == ["b"]
        assert (await m.settled("i")).seq == 2


async def test_a_later_plain_send_runs_behind_them(shared):
    """The queue keeps its order, whoever wrote the lines."""
    log = Log()
    async with Manager(flow(on_enter={S.B: log.hook("b"), S.C: log.hook("c")}), shared, work=False) as m:
        await m.start("i")
        async with shared.transaction() as tx:
            await m.send("i", E.GO, within=tx)
        assert not (await m.send("i", E.GO)).settled
        assert (await m.resume()).effects == 2
        assert log == ["b", "c"]


async def test_running_effects_are_not_waited_for(shared):
    """Busy at once, for they might wait for this transaction; a repeat is answered all the same."""
    gate = Gate()
    async with Manager(flow(on_enter={S.B: gate.hook}), shared) as m:
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.GO, key="k"))
        await gate.entered.wait()
        async with asyncio.timeout(3), shared.transaction() as tx:
            with pytest.raises(Busy, match="effects are running") as e:
                await m.send("i", E.NOTE, key="other", within=tx)
            assert e.value.committed is False
            again = await m.send("i", E.GO, key="k", within=tx)
            assert (again.duplicate, again.settled) == (True, False)
            with pytest.raises(AlreadyStarted):
                await m.start("i", within=tx)
            await m.start("j", within=tx)
        gate.open.set()
        assert (await sent).settled
        assert await story(m) == ["start", "event"]
        assert await story(m, "j") == ["start"]


async def test_what_waits_for_a_retry_blocks_nobody(shared, clock):
    """The event is judged at once, its effects queue behind."""
    log = Log()
    spec = flow(on_enter={S.B: log.failing("b", 1), S.C: log.hook("c")}, retry=EVERY_SECOND)
    async with Manager(spec, shared, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        async with shared.transaction() as tx:
            assert not (await m.send("i", E.GO, within=tx)).settled
            assert not (await m.send("i", E.NOTE, within=tx)).settled, "earlier effects are not done"
        await clock.advance(timedelta(seconds=2))
        await m.settled("i")
        assert log == ["b", "b", "c"]


async def test_an_undoing_is_not_waited_for(shared, clock):
    """It holds events up until it is done, and a transaction does not wait."""
    spec = flow(compensators={S.B: Log().failing("undo")}, retry=EVERY_SECOND)
    async with Manager(spec, shared, clock=clock) as m:
        await m.start("i")
        await m.send("i", E.GO)
        with pytest.raises(HookFailed):
            await m.compensate("i", S.A)
        async with asyncio.timeout(3), shared.transaction() as tx:
            with pytest.raises(Busy):
                await m.send("i", E.NOTE, within=tx)


# --- calls beside it ------------------------------------------------------------------------------


async def test_a_call_inside_that_is_no_part_of_it_is_told(shared):
    """Keyed or not: it would wait for the end of the block it stands in."""
    async with Manager(flow(), shared) as m:
        await m.start("i", key="k")
        async with asyncio.timeout(3), shared.transaction() as tx:
            for call in (
                lambda: m.send("i", E.GO),
                lambda: m.start("i", key="k"),
                lambda: m.compensate("i", S.A),
                lambda: m.settled("i"),
                lambda: asyncio.create_task(m.send("i", E.GO)),
            ):
                with pytest.raises(Reentrant, match="within") as e:
                    await call()
                assert (e.value.id, e.value.committed, e.value.inside) == ("i", False, True)
            with pytest.raises(RuntimeError, match="resume"):
                await m.resume()
            await m.send("i", E.GO, within=tx)
        assert (await m.send("i", E.GO)).state is S.C
        assert (await m.resume()).effects == 0


async def test_other_tasks_and_other_stores_are_not_meant(shared):
    """Who stands outside waits for the end of the block and is judged on what it wrote."""
    begun, go_on = asyncio.Event(), asyncio.Event()
    async with Manager(flow(), shared) as m, Manager(flow("other"), MemoryStore()) as n:
        await m.start("i")

        async def block() -> None:
            async with shared.transaction() as tx:
                await m.send("i", E.GO, within=tx)
                await n.start("i")
                begun.set()
                await go_on.wait()

        blocking = asyncio.create_task(block())
        await begun.wait()
        plain = asyncio.create_task(m.send("i", E.GO))
        await asyncio.sleep(0.05)
        go_on.set()
        await blocking
        assert (await plain).state is S.C
        assert await story(m) == ["start", "event", "event"]


async def test_hooks_are_outside(shared):
    """A hook that a call from inside set going is not part of the block: its own sends just wait."""
    caught: list[Any] = []

    async def hook(_):
        try:
            caught.append((await m.send("i", E.GO)).state)
        except Exception as e:  # noqa: BLE001  # looked at below
            caught.append(e)

    async with Manager(flow(), shared) as m, Manager(flow(on_enter={S.A: hook}), MemoryStore()) as n:
        await m.start("i")
        async with shared.transaction() as tx:
            await m.send("i", E.GO, within=tx)
            assert not (await n.start("j", timeout=0.05)).settled
            assert inside(shared)
        await n.settled("j")
        assert caught == [S.C]


async def test_a_block_in_a_hook(shared):
    """A hook may make a transaction of its own; what comes after it is outside again."""
    log = Log()

    async def hook(move):
        async with shared.transaction() as tx:
            await m.send("j", E.GO, key=move.key, within=tx)
        log.append((await m.send("k", E.GO)).state)

    async with Manager(flow(on_enter={S.C: hook}), shared) as m:
        for id in "ijk":
            await m.start(id)
        await m.send("i", E.GO)
        assert (await m.send("i", E.GO)).settled
        assert log == [S.B]
        assert await m.state("j") is S.B


# --- whose transaction ----------------------------------------------------------------------------


async def test_a_store_without_transactions_says_so(memory):
    """`within` is no use there."""
    async with Manager(flow(), memory) as m:
        with pytest.raises(TypeError, match="MemoryStore has no transactions"):
            await m.start("i", within=object())


async def test_only_an_open_transaction_of_the_same_store(shared):
    """Another's is a ValueError, what is none a TypeError, one that has ended a StoreError."""
    other = ShadowStore()
    async with Manager(flow(), shared) as m, other:
        await m.start("i")
        async with other.transaction() as strange:
            with pytest.raises(ValueError, match="another store"):
                await m.send("i", E.GO, within=strange)
        with pytest.raises(TypeError):
            await m.send("i", E.GO, within=object())
        async with shared.transaction() as tx:
            pass
        with pytest.raises(StoreError, match="ended") as e:
            await m.send("i", E.GO, within=tx)
        assert e.value.committed is False
        assert await story(m) == ["start"]


async def test_a_connection_of_the_users_own():
    """It is joined, and from then on the task is inside; it is entered once, however many moves it makes."""
    store = ShadowStore()
    async with Manager(flow(), store) as m:
        async with store.transaction() as tx:
            connection = tx.connection
            for _ in range(3):
                await m.send("i", E.NOTE, start=True, within=connection)
            with pytest.raises(Reentrant):
                await m.send("i", E.NOTE)
        assert (await m.send("i", E.NOTE)).transition.seq == 5
        with pytest.raises(StoreError):
            await m.send("i", E.NOTE, within=connection)


async def test_a_connection_of_the_users_own_to_postgres(postgres, schema):
    """Made by psycopg, begun and ended by the user; plain sends are welcome again when that transaction is over."""
    store, log = PostgresStore(postgres, schema=schema), Log()
    connection = await psycopg.AsyncConnection.connect(postgres, autocommit=True)
    async with connection, Manager(flow(on_enter={S.B: log.hook("b")}), store) as m:
        with pytest.raises(StoreError, match="no transaction is open"):
            await m.start("i", within=connection)
        with suppress(Mine):
            async with connection.transaction():
                await m.send("i", E.GO, start=True, within=connection)
                raise Mine
        async with connection.transaction():
            await m.start("i", within=connection)
            assert (await m.send("i", E.GO, key="k", within=connection)).state is S.B
            assert (await m.send("i", E.GO, key="k", within=connection)).duplicate
            with pytest.raises(Reentrant):
                await m.send("i", E.NOTE)
            assert log == []
        await until(lambda: log == ["b"])
        assert (await m.send("i", E.NOTE)).transition.seq == 3


async def test_the_next_transaction_on_a_connection_is_another(postgres, schema):
    """Who joined one is not inside what somebody does with the connection afterwards."""
    store = PostgresStore(postgres, schema=schema)
    connection = await psycopg.AsyncConnection.connect(postgres, autocommit=True)
    async with connection, Manager(flow(), store) as m:
        for _ in range(2):
            async with connection.transaction():
                await m.start("i", within=connection)
                with pytest.raises(Reentrant):
                    await m.start("j")
                raise psycopg.Rollback
        async with connection.transaction():
            await connection.execute("SELECT 1")
            await m.start("i")
            await m.start("j", within=connection)
        assert [await m.state(id) for id in "ij"] == [S.A, S.A]


async def test_what_was_entered_is_forgotten_when_it_has_ended():
    """A task that lives long does not collect transactions."""
    async with ShadowStore() as store:
        for _ in range(5):
            async with store.transaction() as tx:
                enter(tx)
                enter(tx)
                assert _entered.get() == (tx,)


# --- others' locks --------------------------------------------------------------------------------


async def test_what_others_hold_is_busy(contended):
    """After the caller's time, and after a look for the key before and after the wait."""
    async with Manager(flow(), contended) as m:
        await m.start("i", key="k")
        async with contended.transaction() as tx:
            contended.locks[:] = [False, False]
            with pytest.raises(Busy, match="another transaction holds it"):
                await m.send("i", E.GO, key="new", timeout=7, within=tx)
            assert contended.waited[0] == 0
            assert 6 < contended.waited[1] <= 7
            contended.locks[:] = [False]
            assert (await m.start("i", key="k", within=tx)).duplicate
            contended.answers[:] = [Locked()]
            with pytest.raises(Busy, match="another transaction holds it"):
                await m.send("i", E.GO, within=tx)
            contended.locks[:] = [False, True]
            assert (await m.send("i", E.GO, within=tx)).state is S.B
        assert await story(m) == ["start", "event"]


async def test_what_others_moved_is_judged_again_once(contended):
    """More often would show the transaction nothing new: it has to be done again."""
    async with Manager(flow(), contended) as m:
        async with contended.transaction() as tx:
            contended.answers[:] = [Conflicted()]
            assert (await m.start("i", within=tx)).state is S.A
            contended.answers[:] = [Conflicted(), Conflicted()]
            with pytest.raises(Conflict, match="do the whole block again") as e:
                await m.send("i", E.GO, within=tx)
            assert (e.value.inside, e.value.committed) == (True, False)
        assert await story(m) == ["start"]


async def test_a_dead_transaction_is_not_taken_for_a_refusal(contended):
    """A Conflict that the store raises comes through."""
    async with Manager(flow(), contended) as m, contended.transaction() as tx:

        async def ended(*args: Any, **more: Any) -> Any:
            raise Conflict("i", 1, inside=True)

        tx.load = ended
        with pytest.raises(Conflict, match="whole block"):
            await m.start("i", within=tx)


async def test_many_blocks_at_once(shared):
    """Each is judged on what those before it wrote: nothing is lost, and nothing counted twice."""
    done: list[int] = []

    async def block(number: int) -> None:
        async with shared.transaction() if number % 3 else rolled_back(shared) as tx:
            await m.send("i", E.ADD, number, within=tx)
            await n.send("i", E.ADD, -number, within=tx)
        if number % 3:
            done.append(number)

    async with Manager(flow("one"), shared) as m, Manager(flow("two"), shared) as n:
        await m.start("i")
        await n.start("i")
        await asyncio.gather(*(block(number) for number in range(30)), *(m.send("i", E.NOTE) for _ in range(10)))
        assert len(done) == 20
        assert (await m.get("i")).context == Ctx(sum(done))
        assert (await n.get("i")).context == Ctx(-sum(done))
        await story(m)
        await story(n)
        assert quiet(m)
