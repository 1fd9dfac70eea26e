"""Undoing once was wrong here: a hook that had begun, a repeat that came early, an event refused on the way."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from tests.flows import TWICE, E, Gate, Log, S, flow, quiet, story
from workflow import HookFailed, Manager, Status


async def test_a_hook_that_was_handed_back_had_begun(store, clock):
    """An entry whose hook began and was handed back is compensated, also if another undoing let it stand before."""
    log, gate = Log(), Gate()
    spec = flow(on_enter={S.B: gate.hook, S.C: log.hook("c")}, compensators={S.B: log.hook("undo b")})
    async with store:
        async with Manager(spec, store, clock=clock, drain=timedelta(0)) as m:
            await m.start("i")
            sent = asyncio.create_task(m.send("i", E.GO))
            await gate.entered.wait()
        assert not (await sent).settled
        assert gate.cancelled == 1
        async with Manager(spec, store, clock=clock, work=False) as n:
            assert not (await n.send("i", E.GO)).settled
            assert (await n.compensate("i", S.B)).state is S.B
            assert log == []
            done = await n.compensate("i", S.A)
            assert (done.state, done.settled) == (S.A, True)
            assert log == ["undo b"]
            assert gate.calls == 1
            assert await story(n) == ["start", "event", "event", "compensate", "compensate"]


async def test_a_repeat_of_compensate_while_its_plan_is_carried_out(store, clock):
    """The repeat of a compensate is settled when all that it undoes is, not when its first line is."""
    log, gate = Log(), Gate()
    spec = flow(compensators={S.D: log.hook("undo d"), S.C: gate.hook, S.B: log.hook("undo b")})
    async with Manager(spec, store, clock=clock, drain=timedelta(0)) as m:
        await m.start("i")
        for _ in range(3):
            await m.send("i", E.GO)
        first = asyncio.create_task(m.compensate("i", S.A, key="k"))
        await gate.entered.wait()
        assert log == ["undo d"]
        early = await m.compensate("i", S.A, key="k")
        assert (early.duplicate, early.settled) == (True, False)
        gate.open.set()
        done = await first
        assert (done.state, done.settled) == (S.A, True)
        assert log == ["undo d", "undo b"]
        late = await m.compensate("i", S.A, key="k")
        assert (late.duplicate, late.settled, late.state) == (True, True, S.A)
        assert late.transition == early.transition == done.transition
        assert quiet(m)


async def test_an_event_that_is_refused_in_the_commit_of_compensate(store, clock):
    """Who compensates hears HookFailed if an event that a hook returned is judged on the way and refused."""
    log = Log()
    back = log.hook("two", E.BACK)
    spec = flow(on_enter={S.B: [log.hook("one", E.GO), back], S.C: log.failing("c")}, retry=TWICE)
    async with Manager(spec, store, clock=clock, work=False) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        # GO led to C, whose hook failed; BACK waits for it and would be taken in C, but not in B.
        with pytest.raises(HookFailed) as e:
            await m.compensate("i", S.B)
        assert (e.value.hook, e.value.retry_at, e.value.committed) == ("two", None, True)
        assert "'back'" in e.value.error
        assert (e.value.outcome.state, e.value.outcome.settled) == (S.B, False)
        head = await m.get("i")
        assert (head.state, head.status) == (S.B, Status.FAILED)
        assert "'back'" in (head.reason or "")
        assert log == ["one", "two", "c"]
        assert await story(m) == ["start", "event", "event", "compensate", "refused"]
        assert quiet(m)
