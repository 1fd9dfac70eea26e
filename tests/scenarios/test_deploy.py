"""A service is killed in the middle of its work and started again with newer code."""

from __future__ import annotations

import asyncio

import pytest

from tests.flows import E, Gate, Log, S, crashing, flow, story, until
from workflow import HookFailed, Manager


async def test_killed_and_started_again(store, clock):
    """What ten dead callers had set off is done by the next process: each hook begun is run again, each once more."""
    gate, log = Gate(), Log()
    async with store:
        async with crashing(Manager(flow(on_enter={S.B: gate.hook}), store, clock=clock)) as dying:
            calls = [asyncio.create_task(dying.send(f"i{n}", E.GO, start=True, key="k")) for n in range(10)]
            await until(lambda: gate.calls == 10)
        await asyncio.gather(*calls, return_exceptions=True)
        new = flow(on_enter={S.B: [log.hook("b"), log.hook("added later")], S.C: log.hook("c")})
        async with Manager(new, store, clock=clock) as living:
            for n in range(10):
                await living.settled(f"i{n}")
                again = await living.send(f"i{n}", E.GO, start=True, key="k")
                assert (again.duplicate, again.settled) == (True, True)
                assert await story(living, f"i{n}") == ["start", "event"]
            assert log == ["b"] * 10
            assert (await living.resume()).effects == 0


async def test_rolling_deploy(store, clock):
    """Old and new code work side by side: the old one leaves the new one's work alone, events reach both."""
    log = Log()
    old = flow(on_enter={S.B: log.failing("old")}, version=1)
    new = flow(on_enter={S.B: log.hook("new")}, version=2)
    async with Manager(new, store, clock=clock) as n, Manager(old, store, clock=clock) as o:
        await n.start("i")
        await n.send("i", E.GO)
        await o.send("i", E.NOTE)
        await o.start("j")
        with pytest.raises(HookFailed):
            await o.send("j", E.GO)
        await n.send("j", E.NOTE)
        assert log == ["new", "old"]
        assert await story(o, "i") == ["start", "event", "event"]
