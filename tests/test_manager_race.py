"""Others move the same instance: judged again, refused only on a fresh look, never done twice."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stores import MemoryStore
from tests.flows import Ctx, E, Gate, Log, S, Tap, edged, flow, inner, quiet, story, turns, until, waiting
from workflow import Busy, Conflict, Deny, Edge, Finished, IllegalTransition, KeyConflict, Manager
from workflow.ledger import HEADS


async def test_a_stale_head_is_judged_again(store):
    """Another Manager moved the instance: the compare-and-set tells, the event is judged on the new head."""
    spec = flow()
    async with Manager(spec, store) as m, Manager(spec, store) as n:
        await m.start("i")
        await n.send("i", E.GO)
        assert (await m.send("i", E.GO)).transition.source is S.B
        await n.send("i", E.ADD, 1)
        await m.send("i", E.ADD, 2)
        assert (await n.get("i")).context == Ctx(3)
        assert await story(m) == ["start"] + ["event"] * 4


async def test_a_stale_head_refuses_nothing(store):
    """What the head in memory would refuse is judged on a fresh one, also with no time to wait."""
    spec = flow()
    async with Manager(spec, store) as m, Manager(spec, store) as n:
        await m.start("i")
        await n.send("i", E.GO)
        await n.send("i", E.GO)
        assert (await m.send("i", E.BACK, timeout=0)).state is S.B
        await n.send("i", E.STOP)
        with pytest.raises(Finished):
            await m.send("i", E.GO)
        await n.compensate("i", S.B)
        assert (await m.send("i", E.GO, timeout=0)).state is S.C


async def test_a_stale_head_and_a_key(store):
    """A key that another Manager saw is known here, whatever the head in memory says."""
    spec = flow()
    async with Manager(spec, store) as m, Manager(spec, store) as n:
        await m.start("i")
        await n.send("i", E.GO, key="k")
        assert (await m.send("i", E.GO, key="k")).duplicate
        await n.send("i", E.STOP, key="end")
        assert (await m.send("i", E.STOP, key="end")).duplicate
        with pytest.raises(KeyConflict):
            await m.send("i", E.GO, key="end")


async def test_a_no_time_send_on_a_stale_head(store):
    """A head in memory that is out of date costs no time: with timeout=0 the event is judged once, on a fresh one."""
    spec = flow()
    async with Manager(spec, store) as m, Manager(spec, store) as n:
        await m.start("i")
        await n.send("i", E.NOTE)
        assert (await m.send("i", E.GO, timeout=0)).state is S.B


async def test_conflict_after_twenty_tries(memory):
    """Moved by others each time: judged again 20 times, then Conflict, nothing written."""
    tap, spec = Tap(memory), flow()
    async with Manager(spec, memory) as other, Manager(spec, tap) as m:
        await m.start("i")
        tap.calls.clear()

        async def faster(commits):
            await other.send("i", E.NOTE)

        tap.before["append"] = faster
        with pytest.raises(Conflict) as e:
            await m.send("i", E.GO, key="k")
        assert (e.value.tries, e.value.committed) == (20, False)
        assert tap.calls["append"] == 20
        del tap.before["append"]
        assert not (await m.send("i", E.GO, key="k")).duplicate
        assert await story(m) == ["start"] + ["event"] * 21
        assert quiet(m)


async def test_lost_races_stop_at_the_timeout(memory):
    """Judged again only until the timeout."""
    tap, spec = Tap(memory), flow()
    async with Manager(spec, memory) as other, Manager(spec, tap) as m:
        await m.start("i")

        async def faster(commits):
            await other.send("i", E.NOTE)

        tap.before["append"] = faster
        with pytest.raises(Conflict) as e:
            await m.send("i", E.GO, timeout=0)
        assert e.value.tries < 20


async def test_a_refusal_sees_a_key_that_came_meanwhile(memory):
    """After the fresh load that refuses comes a look for the key."""
    tap, spec = Tap(memory), flow()
    async with Manager(spec, memory) as other, Manager(spec, tap) as m:
        await other.start("i")
        done: list[Any] = []

        async def meanwhile(*args):
            if not done:
                done.append(await other.send("i", E.STOP, key="k"))

        tap.after["load"] = meanwhile

        async def faster(commits):
            await other.send("j", E.NOTE, start=True)

        tap.before["append"] = faster
        assert (await m.send("i", E.STOP, key="k")).duplicate
        assert await story(m) == ["start", "event"]


async def test_busy_sees_a_key_that_came_meanwhile(store):
    """Also Busy is a refusal: before it comes a look for the key."""
    gate = Gate()
    spec = flow(on_enter={S.B: gate.hook})
    async with Manager(spec, store) as m, Manager(spec, store) as n:
        await m.start("i")
        first = asyncio.create_task(m.send("i", E.GO, key="k"))
        await gate.entered.wait()
        assert (await n.send("i", E.GO, key="k", timeout=0)).duplicate
        gate.open.set()
        await first


async def test_guards_are_asked_again_on_the_new_head(store):
    """A guard decides on the head that the commit was compared with, whatever it saw before."""
    seen, spec_gate = [], asyncio.Event()
    entered = asyncio.Event()

    async def guard(m):
        seen.append(m.context.n)
        if m.context.n == 0:
            entered.set()
            await spec_gate.wait()
            return True
        return Deny("too late")

    spec = flow(edges=edged(Edge(S.A, E.BACK, S.B, guard=guard)))
    async with Manager(spec, store) as m, Manager(spec, store) as n:
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.BACK))
        await entered.wait()
        await n.send("i", E.ADD, 1)
        spec_gate.set()
        with pytest.raises(IllegalTransition, match="too late"):
            await sent
        assert seen == [0, 1]


async def test_no_update_is_lost_between_managers(store):
    """Many concurrent moves by several Managers: each accepted one is in the context, once."""
    spec = flow()
    async with Manager(spec, store) as a, Manager(spec, store) as b, Manager(spec, store) as c:
        await a.start("i")
        calls = [(a, b, c)[k % 3].send("i", E.ADD, 1) for k in range(30)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        landed = [x for x in answers if not isinstance(x, BaseException)]
        assert all(isinstance(x, Conflict) for x in answers if isinstance(x, BaseException))
        assert (await a.get("i")).context == Ctx(len(landed))
        assert len({x.transition.seq for x in landed}) == len(landed)
        await story(b)


async def test_one_effect_has_one_owner(store):
    """Moves with effects by several Managers at once: every hook runs once, in order."""
    log = Log()

    async def action(m):
        log.append(m.seq)

    spec = flow(edges=edged(Edge(S.A, E.BACK, S.A, action=action)))
    async with Manager(spec, store) as a, Manager(spec, store) as b:
        await a.start("i")
        await asyncio.gather(*((a, b)[k % 2].send("i", E.BACK) for k in range(10)))
        await a.settled("i")
        assert log == list(range(2, 12))


# --- lanes ----------------------------------------------------------------------------------------


async def test_order_of_arrival(store):
    """In one Manager sends to one instance are judged in the order in which they came."""
    async with Manager(flow(), store) as m:
        await m.start("i")
        sends = [m.send("i", E.NOTE, n) for n in range(200)]
        answers = await asyncio.gather(*sends)
        assert [a.transition.seq for a in answers] == list(range(2, 202))
        assert [t.payload for t in await m.history("i")][1:] == list(range(200))
        assert quiet(m)


async def test_order_of_arrival_behind_a_hook(store):
    """Also those that waited for a hook go in the order in which they came."""
    gate = Gate()
    async with Manager(flow(on_enter={S.B: gate.hook}), store) as m:
        await m.start("i")
        first = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        tasks: list[Any] = []
        for n in range(50):
            tasks.append(asyncio.create_task(m.send("i", E.NOTE, n)))
            await turns(1)
        await until(lambda: waiting(m, "i") == 49)
        gate.open.set()
        await first
        await asyncio.gather(*tasks)
        assert [t.payload for t in await m.history("i")][2:] == list(range(50))
        assert quiet(m)


async def test_waiters_that_were_cancelled_are_skipped(store):
    """A cancelled waiter neither moves nor holds up those behind it."""
    gate = Gate()
    async with Manager(flow(on_enter={S.B: gate.hook}), store) as m:
        await m.start("i")
        first = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        tasks = [asyncio.create_task(m.send("i", E.NOTE, n)) for n in range(20)]
        await until(lambda: waiting(m, "i") == 19)
        for task in tasks[::2]:
            task.cancel()
        gate.open.set()
        await first
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(a, asyncio.CancelledError) for a in answers] == [True, False] * 10
        assert [t.payload for t in await m.history("i")][2:] == list(range(1, 20, 2))
        assert quiet(m)


async def test_more_than_a_thousand_waiters(memory):
    """At most 1,000 callers wait for one instance; the next is Busy at once, after a look for its key."""
    gate = Gate()
    async with Manager(flow(on_enter={S.B: gate.hook}), memory) as m:
        await m.start("i")
        first = asyncio.create_task(m.send("i", E.GO, key="k"))
        await gate.entered.wait()
        tasks = [asyncio.create_task(m.send("i", E.NOTE)) for _ in range(1001)]
        await until(lambda: waiting(m, "i") == 1000)
        with pytest.raises(Busy):
            await m.send("i", E.NOTE)
        assert (await m.send("i", E.GO, key="k")).duplicate
        await m.send("j", E.NOTE, start=True)
        gate.open.set()
        await first
        await asyncio.gather(*tasks)
        assert (await m.get("i")).seq == 2 + 1001
        assert quiet(m)


async def test_nothing_grows_with_instances_at_rest():
    """No lane, no waiter, no run is kept for an instance at rest; heads in memory are bounded."""
    log = Log()
    async with Manager(flow(on_enter={S.B: log.hook("b")}), MemoryStore(), work=False) as m:
        for n in range(9000):
            await m.start(f"i{n}")
        await asyncio.gather(*(m.send(f"i{n}", E.GO) for n in range(300)))
        assert quiet(m)
        assert len(inner(m)._heads) <= HEADS
        assert len(log) == 300


@pytest.mark.parametrize("length", [10, 100_000])
async def test_a_send_costs_the_same_at_any_length(length):
    """A send, with and without effects, and a compensate ask the same verbs at history length 100,000 as at 10."""
    log, tap = Log(), Tap(MemoryStore())
    spec = flow(on_enter={S.C: log.hook("c")}, compensators={S.C: log.hook("undo")})
    async with Manager(spec, tap, work=False) as m:
        await m.start("i")
        await m.send("i", E.GO)
        for _ in range(length):
            await m.send("i", E.NOTE)
        tap.calls.clear()
        await m.send("i", E.NOTE, key="k")
        assert tap.calls == {"append": 1}
        await m.send("i", E.GO)
        assert tap.calls == {"append": 3}
        tap.calls.clear()
        async with Manager(spec, tap, work=False) as n:
            await n.send("i", E.NOTE)
            assert tap.calls == {"load": 1, "append": 1}
            tap.calls.clear()
            await n.compensate("i", S.B)
            assert tap.calls["append"] == 2
            assert tap.calls["history"] <= 5
