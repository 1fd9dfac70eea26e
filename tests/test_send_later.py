"""Events sent with a delay: rows, idempotent by key, judged when they are due."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from tests.flows import MINUTE, NOON, E, S, flow
from workflow import Due, Finished, InvalidPayload, KeyConflict, Manager, UnknownInstance
from workflow.testing import replay

HOUR = timedelta(hours=1)


async def test_it_is_sent_when_it_is_due(store, clock):
    """As an ordinary event, with its payload and its key."""
    spec = flow()
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        due = await m.send_later("i", E.ADD, 5, after=HOUR, key="k")
        assert (due.workflow, due.id, due.key, due.at) == ("flow", "i", "k", NOON + HOUR)
        await clock.advance(HOUR - MINUTE)
        assert (await m.get("i")).seq == 1
        await clock.advance(MINUTE)
        line = (await m.history("i"))[1]
        assert (line.kind, line.event, line.payload, line.key, line.at) == ("event", E.ADD, 5, "k", NOON + HOUR)
        assert (await m.get("i")).context.n == 5
        assert replay(spec, await m.history("i")) == await m.get("i")


async def test_it_survives_leaving_the_state_and_a_restart(store, clock):
    """It is bound to no entry."""
    async with store:  # in memory the data ends with the last closing
        async with Manager(flow(), store, clock=clock) as m:
            await m.start("i")
            await m.send_later("i", E.STOP, at=NOON + HOUR)
            await m.send("i", E.GO)
        await clock.advance(2 * HOUR)
        async with Manager(flow(), store, clock=clock) as m:
            await clock.advance(timedelta(0))
            assert await m.state("i") == S.END


async def test_the_same_key_is_the_same_event(store, clock):
    """Pending or fired; with another payload it is a conflict."""
    async with Manager(flow(), store, clock=clock) as m:
        await m.start("i")
        first = await m.send_later("i", E.ADD, 1, after=HOUR, key="k")
        again = await m.send_later("i", E.ADD, 1, after=5 * HOUR, key="k")
        assert (again, again.at) == (first, NOON + HOUR)
        with pytest.raises(KeyConflict):
            await m.send_later("i", E.ADD, 2, after=HOUR, key="k")
        await clock.advance(HOUR)
        assert await m.send_later("i", E.ADD, 1, after=HOUR, key="k") == first
        with pytest.raises(KeyConflict):
            await m.send_later("i", E.NOTE, after=HOUR, key="k")
        await clock.advance(9 * HOUR)
        assert (await m.get("i")).context.n == 1


async def test_many_at_once_under_one_key(store, clock):
    """One row, one answer."""
    async with Manager(flow(), store, clock=clock) as m:
        await m.start("i")
        answers = await asyncio.gather(*(m.send_later("i", E.ADD, 1, after=HOUR, key="k") for _ in range(20)))
        assert len(set(answers)) == 1
        await clock.advance(2 * HOUR)
        assert (await m.get("i")).context.n == 1


async def test_without_a_key_each_is_its_own(store, clock):
    """Two calls, two events."""
    async with Manager(flow(), store, clock=clock) as m:
        await m.start("i")
        dues = {await m.send_later("i", E.ADD, 1, after=HOUR) for _ in range(3)}
        assert len(dues) == 3
        await clock.advance(2 * HOUR)
        assert (await m.get("i")).context.n == 3


async def test_it_can_be_taken_back(store, clock):
    """Once; not when it was fired, nor what never was."""
    async with Manager(flow(), store, clock=clock) as m:
        await m.start("i")
        due = await m.send_later("i", E.ADD, 1, after=HOUR, key="k")
        assert await m.cancel_later(due)
        assert not await m.cancel_later(due)
        await clock.advance(2 * HOUR)
        assert (await m.get("i")).context.n == 0
        due = await m.send_later("i", E.ADD, 1, after=HOUR)
        await clock.advance(2 * HOUR)
        assert not await m.cancel_later(due)
        assert not await m.cancel_later(Due("flow", "i", "never", NOON))


async def test_what_is_not_taken_is_on_the_record(store, clock):
    """One `refused` line with key, event and payload: no loop, and the state stands."""
    async with Manager(flow(), store, clock=clock) as m:
        await m.start("i")
        await m.send_later("i", E.BACK, {"why": 1}, after=HOUR, key="k")
        await m.start("j")
        await m.send_later("j", E.GO, after=HOUR, key="k")
        await m.send("j", E.STOP)
        await clock.advance(9 * HOUR)
        for id, event in (("i", E.BACK), ("j", E.GO)):
            line = (await m.history(id))[-1]
            assert (line.kind, line.event, line.key) == ("refused", event, "k")
        assert (await m.history("i"))[-1].payload == {"why": 1}
        assert (await m.state("i"), await m.state("j")) == (S.A, S.END)
        assert await m.send_later("i", E.BACK, {"why": 1}, after=HOUR, key="k") == Due("flow", "i", "k", NOON)


async def test_a_send_that_used_the_key_meanwhile(store, clock):
    """One key space: the event is not sent a second time."""
    async with Manager(flow(), store, clock=clock) as m:
        await m.start("i")
        await m.send_later("i", E.ADD, 1, after=HOUR, key="k")
        await m.send("i", E.ADD, 1, key="k")
        await clock.advance(2 * HOUR)
        assert (await m.get("i")).context.n == 1
        (loaded,) = await store.load("flow", ("i",), rows=True)
        assert loaded.rows == ()


async def test_what_cannot_be_asked(store, clock):
    """Each refusal is told at once, and nothing is written."""
    async with Manager(flow(), store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(ValueError, match="either"):
            await m.send_later("i", E.GO)
        with pytest.raises(ValueError, match="either"):
            await m.send_later("i", E.GO, at=NOON, after=HOUR)
        with pytest.raises(ValueError, match="aware"):
            await m.send_later("i", E.GO, at=NOON.replace(tzinfo=None))
        with pytest.raises(TypeError):
            await m.send_later("i", "go", after=HOUR)
        with pytest.raises(InvalidPayload):
            await m.send_later("i", E.ADD, "x", after=HOUR)
        with pytest.raises(UnknownInstance):
            await m.send_later("nobody", E.GO, after=HOUR)
        await m.send("i", E.STOP)
        with pytest.raises(Finished):
            await m.send_later("i", E.GO, after=HOUR)


async def test_one_past_its_time_is_sent_at_once(store, clock):
    """However late."""
    async with Manager(flow(), store, clock=clock) as m:
        await m.start("i")
        await m.send_later("i", E.GO, at=NOON - HOUR)
        await clock.advance(timedelta(0))
        assert await m.state("i") == S.B
