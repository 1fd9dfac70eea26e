"""Leases: who may run effects, who takes them over, what a former owner hears."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from tests.flows import (
    EVERY_SECOND,
    MINUTE,
    SECOND,
    E,
    Gate,
    Log,
    S,
    Tap,
    crashing,
    flow,
    inner,
    quiet,
    story,
    turns,
    until,
)
from workflow import Busy, HookFailed, LeaseLost, Manager, StoreUnavailable
from workflow.testing import Faults

LEASE = timedelta(seconds=3)


async def test_a_long_hook_keeps_its_lease(store, clock):
    """While a hook runs its lease is renewed: no other Manager takes it, however long it takes."""
    gate = Gate()
    spec = flow(on_enter={S.B: gate.hook})
    async with (
        Manager(spec, store, clock=clock, lease=LEASE, drain=SECOND) as m,
        Manager(spec, store, clock=clock, lease=LEASE, drain=SECOND) as n,
    ):
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        for _ in range(20):
            await clock.advance(SECOND)
        assert (await n.resume()).effects == 0
        assert gate.calls == 1
        gate.open.set()
        assert (await sent).settled


async def test_leases_are_renewed_without_a_loop(store, clock):
    """Also with work=False."""
    gate = Gate()
    spec = flow(on_enter={S.B: gate.hook})
    async with (
        Manager(spec, store, clock=clock, lease=LEASE, work=False, drain=SECOND) as m,
        Manager(spec, store, clock=clock, lease=LEASE, drain=SECOND) as n,
    ):
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        await clock.advance(MINUTE)
        with pytest.raises(Busy):
            await n.send("i", E.NOTE, timeout=0)
        gate.open.set()
        assert (await sent).settled
        assert gate.calls == 1


@pytest.mark.parametrize("verb", ["renew"])
async def test_a_renewal_that_fails_is_tried_again(store, clock, verb):
    """One renewal that the store does not answer costs no lease."""
    gate, faults = Gate(), Faults(store)
    spec = flow(on_enter={S.B: gate.hook})
    async with (
        Manager(spec, faults, clock=clock, lease=LEASE, drain=SECOND) as m,
        Manager(spec, store, clock=clock, lease=LEASE, drain=SECOND) as n,
    ):
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        for nth in (1, 3, 5):
            faults.fail(verb, nth)
        await clock.advance(SECOND * 20)
        gate.open.set()
        assert (await sent).settled
        assert gate.calls == 1
        assert quiet(n)


async def test_a_keeper_survives_any_error(store, clock):
    """An error of another kind from the store does not end the renewals."""
    gate, faults = Gate(), Faults(store)
    spec = flow(on_enter={S.B: gate.hook})
    async with (
        Manager(spec, faults, clock=clock, lease=LEASE, drain=SECOND) as m,
        Manager(spec, store, clock=clock, lease=LEASE, drain=SECOND),
    ):
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        faults.fail("renew", 1, error=ValueError("a bug in a driver"))
        await clock.advance(SECOND * 20)
        gate.open.set()
        assert (await sent).settled
        assert gate.calls == 1


async def away(*args):
    """No renewal comes through."""
    raise StoreUnavailable("away", committed=False)


async def test_a_lost_lease(store, clock):
    """A former owner's hook is cancelled, its result dropped; the sender hears LeaseLost, committed."""
    one, two, tap = Gate(E.GO), Gate(E.GO), Tap(store)
    mine, other = flow(on_enter={S.B: one.hook}), flow(on_enter={S.B: two.hook})
    async with (
        Manager(mine, tap, clock=clock, lease=LEASE, drain=SECOND, work=False) as m,
        Manager(other, store, clock=clock, lease=LEASE, drain=SECOND) as n,
    ):
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.GO))
        await one.entered.wait()
        tap.before["renew"] = away
        two.open.set()
        await clock.advance(LEASE)
        assert (two.ended, two.moves[0].attempt, two.moves[0].key) == (1, 2, one.moves[0].key)
        del tap.before["renew"]
        await clock.advance(LEASE)
        with pytest.raises(LeaseLost) as e:
            await sent
        assert (e.value.committed, e.value.id) == (True, "i")
        assert (one.cancelled, one.ended) == (1, 0)
        assert await story(n) == ["start", "event", "event"]
        assert quiet(m)
        assert quiet(n)


async def test_a_lease_that_ran_out_is_taken_again_by_its_own_manager(store, clock):
    """A Manager whose renewals failed takes the work again: the first call of the hook is cancelled, not doubled."""
    gate, tap, running = Gate(), Tap(store), []

    async def enter(m):
        running.append(m.attempt)
        try:
            if m.attempt == 1:
                await gate.hook(m)
            assert running == [2]
        finally:
            running.remove(m.attempt)

    spec = flow(on_enter={S.B: enter})
    async with Manager(spec, tap, clock=clock, lease=LEASE, drain=SECOND) as m:
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        tap.before["renew"] = away
        await clock.advance(LEASE)
        with pytest.raises(LeaseLost):
            await sent
        assert gate.cancelled == 1
        assert (await m.settled("i")).seq == 2
        assert quiet(m)


async def test_a_late_settle_is_refused(store, clock):
    """A hook that ended after its lease was taken: the settle is refused, nothing is done twice in the record."""
    one, two, tap = Gate(E.GO), Gate(E.GO), Tap(store)
    mine, other = flow(on_enter={S.B: one.hook}), flow(on_enter={S.B: two.hook})
    async with (
        Manager(mine, tap, clock=clock, lease=LEASE, drain=SECOND, work=False) as m,
        Manager(other, store, clock=clock, lease=LEASE, drain=SECOND) as n,
    ):
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.GO))
        await one.entered.wait()
        tap.before["renew"] = away
        walk = asyncio.create_task(clock.advance(LEASE))
        await two.entered.wait()
        one.open.set()
        with pytest.raises(LeaseLost):
            await sent
        two.open.set()
        await walk
        await n.settled("i")
        assert await story(n) == ["start", "event", "event"]


async def test_a_dead_owner_is_taken_over_at_once(store, clock):
    """The effects of a process that is known to be dead are run without waiting for its lease to end."""
    gate, log = Gate(), Log()
    async with store:
        async with crashing(Manager(flow(on_enter={S.B: gate.hook}), store, clock=clock)) as m:
            await m.start("i")
            sent = asyncio.create_task(m.send("i", E.GO))
            await gate.entered.wait()
        await asyncio.gather(sent, return_exceptions=True)
        async with Manager(flow(on_enter={S.B: log.hook("b")}), store, clock=clock) as n:
            await until(lambda: log)
            assert (await n.settled("i")).seq == 2
            assert log == ["b"]


async def test_a_strange_owner_is_waited_for(store, clock):
    """Of a process on another host only the end of its lease counts."""
    gate, log = Gate(), Log()
    async with store:
        m = Manager(flow(on_enter={S.B: gate.hook}), store, clock=clock, lease=LEASE, drain=SECOND)
        async with crashing(m):
            inner(m).incarnation.token = "other-boot/pid:[1]/7/9/abc"
            await m.start("i")
            sent = asyncio.create_task(m.send("i", E.GO))
            await gate.entered.wait()
        await asyncio.gather(sent, return_exceptions=True)
        async with Manager(flow(on_enter={S.B: log.hook("b")}), store, clock=clock, lease=LEASE, drain=SECOND) as n:
            await turns()
            assert (await n.resume()).effects == 0
            with pytest.raises(Busy):
                await n.send("i", E.NOTE, timeout=0)
            await clock.advance(LEASE - SECOND)
            assert not log
            await clock.advance(SECOND)
            assert log == ["b"]


async def test_a_send_does_not_wait_for_the_dead(store, clock):
    """A lease of a dead owner is no running effect: the event is judged, its effects queue behind."""
    gate, log = Gate(), Log()
    async with store:
        async with crashing(Manager(flow(on_enter={S.B: gate.hook}), store, clock=clock)) as m:
            await m.start("i")
            sent = asyncio.create_task(m.send("i", E.GO))
            await gate.entered.wait()
        await asyncio.gather(sent, return_exceptions=True)
        spec = flow(on_enter={S.B: log.hook("b"), S.C: log.hook("c")})
        async with Manager(spec, store, clock=clock, work=False) as n:
            done = await n.send("i", E.GO)
            assert (done.state, done.settled) == (S.C, False)
            assert (await n.resume()).effects == 2
            assert log == ["b", "c"]


async def test_attempts_count_when_the_lease_is_taken(store, clock):
    """A crash counts as an attempt; exhausted by crashes, the instance fails and says so."""
    gates: list[Any] = []

    def spec():
        gates.append(Gate())
        retry = EVERY_SECOND.__class__(attempts=2, first=SECOND, jitter=0.0)
        return flow(on_enter={S.B: gates[-1].hook}, retry=retry)

    async with store:
        async with crashing(Manager(spec(), store, clock=clock)) as m:
            await m.start("i")
            sent = asyncio.create_task(m.send("i", E.GO))
            await gates[0].entered.wait()
        await asyncio.gather(sent, return_exceptions=True)
        async with crashing(Manager(spec(), store, clock=clock)):
            await gates[1].entered.wait()
        assert gates[1].moves[0].attempt == 2
        async with Manager(spec(), store, clock=clock, work=False) as n:
            resumed = await n.resume()
            assert resumed.failed == ("i",)
            assert gates[2].calls == 0
            assert "attempt" in ((await n.get("i")).reason or "")
            assert await story(n) == ["start", "event", "fail"]


async def test_two_managers_resume_at_once(store, clock):
    """What is due is run by one of them, once."""
    log = Log()
    dying = flow(on_enter={S.B: log.failing("b")}, retry=EVERY_SECOND)
    spec = flow(on_enter={S.B: log.hook("b")})
    async with store:
        async with Manager(dying, store, clock=clock, work=False) as m:
            for n in range(10):
                await m.start(f"i{n}")
                with pytest.raises(HookFailed):
                    await m.send(f"i{n}", E.GO)
        del log[:]
        await clock.advance(MINUTE)
        async with (
            Manager(spec, store, clock=clock, work=False) as a,
            Manager(spec, store, clock=clock, work=False) as b,
        ):
            both = await asyncio.gather(a.resume(), b.resume())
            assert sum(r.effects for r in both) == 10
            assert log == ["b"] * 10
