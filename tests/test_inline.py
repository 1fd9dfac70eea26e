"""Effects left to workers: `inline=False`."""

from __future__ import annotations

import asyncio

import pytest

from tests.flows import MINUTE, SECOND, E, Gate, Log, S, Tap, edged, flow, quiet, story, turns, until
from workflow import After, Edge, Manager
from workflow.record import QUEUE


async def test_a_call_answers_right_after_its_commit(store, clock):
    """The hook has not even begun; its row is due now and nobody's."""
    log = Log()
    spec = flow(on_enter={S.A: log.hook("a"), S.B: log.hook("b")})
    async with Manager(spec, store, clock=clock, work=False, inline=False) as m:
        started = await m.start("i")
        sent = await m.send("i", E.GO)
        assert (started.settled, sent.settled, sent.state, log) == (False, False, S.B, [])
        (loaded,) = await store.load("flow", ("i",))
        assert loaded is not None
        due = loaded.effects
        assert (due.name, due.seq, due.token, due.attempt, due.at) == (QUEUE, 1, None, 0, clock.now())
        assert quiet(m)


async def test_what_owes_nothing_is_settled(store, clock):
    """A move without hooks is done when it is committed."""
    async with Manager(flow(), store, clock=clock, work=False, inline=False) as m:
        await m.start("i")
        assert (await m.send("i", E.GO)).settled


async def test_another_process_runs_them(store, clock):
    """A service that only sends, and one that works: the hooks run in order, there and only there."""
    here, there = Log(), Log()

    def hooks(log: Log):
        return {S.B: [log.hook("b1"), log.hook("b2")], S.C: log.hook("c")}

    async with (
        Manager(flow(on_enter=hooks(here)), store, clock=clock, work=False, inline=False) as service,
        Manager(flow(on_enter=hooks(there)), store, clock=clock) as worker,
    ):
        await service.start("i")
        await service.send("i", E.GO)
        await service.send("i", E.GO)
        await service.settled("i", timeout=5)
        assert (here, there) == ([], ["b1", "b2", "c"])
        assert await story(worker) == ["start", "event", "event"]


async def test_its_own_loop_runs_them_at_once(store, clock):
    """With a loop of its own nobody waits for the next look."""
    log = Log()
    async with Manager(flow(on_enter={S.B: log.hook("b")}), store, clock=clock, inline=False) as m:
        await m.start("i")
        await m.send("i", E.GO)
        await until(lambda: log == ["b"])
        assert (await m.settled("i", timeout=5)).state is S.B


async def test_a_send_waits_for_effects_that_run(store, clock):
    """Run to completion holds: what a worker is at is waited for."""
    gate = Gate()
    async with Manager(flow(on_enter={S.B: gate.hook}), store, clock=clock, inline=False, drain=SECOND) as m:
        await m.start("i")
        await m.send("i", E.GO)
        await gate.entered.wait()
        second = asyncio.create_task(m.send("i", E.GO))
        await turns()
        assert not second.done()
        gate.open.set()
        assert (await second).state is S.C


async def test_a_repeat_tells_whether_its_effects_are_done(store, clock):
    """The same key later hears that they are settled."""
    log = Log()
    async with Manager(flow(on_enter={S.B: log.hook("b")}), store, clock=clock, work=False, inline=False) as m:
        await m.start("i")
        assert not (await m.send("i", E.GO, key="k")).settled
        again = await m.send("i", E.GO, key="k")
        assert (again.duplicate, again.settled) == (True, False)
        assert (await m.resume()).effects == 1
        again = await m.send("i", E.GO, key="k")
        assert (again.duplicate, again.settled, log) == (True, True, ["b"])


async def test_compensators_are_left_to_workers_as_well(store, clock):
    """The first step back is committed and answered; its compensator and the rest follow."""
    log = Log()
    spec = flow(compensators={S.B: log.hook("undo b"), S.C: log.hook("undo c")})
    async with Manager(spec, store, clock=clock, work=False, inline=False) as m:
        await m.start("i")
        await m.send("i", E.GO)
        await m.send("i", E.GO)
        assert not (await m.compensate("i", S.A)).settled
        assert log == []
        await m.resume()
        assert log == ["undo c", "undo b"]
        assert (await m.state("i")) is S.A


async def test_events_that_hooks_return_are_judged_where_the_hook_ran(store, clock):
    """A chain of returned events goes on without anybody's call."""
    log = Log()
    spec = flow(on_enter={S.B: log.hook("b", E.GO), S.C: log.hook("c", E.GO), S.D: log.hook("d")})
    async with Manager(spec, store, clock=clock, inline=False) as m:
        await m.start("i")
        await m.send("i", E.GO)
        await until(lambda: log == ["b", "c", "d"])
        assert (await m.settled("i", timeout=5)).state is S.D


async def test_who_fires_a_timeout_runs_its_effects(memory, clock):
    """The commit that fires it leases them, as in a Manager that runs its own: no second claim."""
    log, tap = Log(), Tap(memory)
    spec = flow(
        edges=edged(Edge(S.B, E.BACK, S.C)), on_enter={S.C: log.hook("c")}, timeouts={S.B: After(MINUTE, E.BACK)}
    )
    async with Manager(spec, tap, clock=clock, inline=False) as m:
        await m.start("i")
        await m.send("i", E.GO)
        await clock.advance(SECOND)
        claims = tap.calls["claim"]
        await clock.advance(MINUTE)
        assert log == ["c"]
        assert tap.commits[-2].changes[0].puts[0].token is not None
        assert tap.calls["claim"] - claims <= 2


@pytest.mark.parametrize("work", [True, False])
async def test_a_hook_that_fails_is_not_the_callers(store, clock, work):
    """The answer came before; the failure is found by `get` and the log, and tried again as ever."""
    log = Log()
    spec = flow(on_enter={S.B: log.failing("b", 1)})
    async with Manager(spec, store, clock=clock, work=work, inline=False) as m:
        await m.start("i")
        assert not (await m.send("i", E.GO)).settled
        if not work:
            await m.resume()
        await clock.advance(MINUTE)
        if not work:
            await m.resume()
        assert log == ["b", "b"]
        assert (await m.settled("i", timeout=5)).state is S.B
