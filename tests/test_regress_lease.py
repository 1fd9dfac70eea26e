"""Leases once were wrong here: clocks that jump, a hook that resumes, a run that begins while all is closing."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta

import pytest

from tests.flows import EVERY_SECOND, MINUTE, SECOND, E, Gate, Log, S, Tap, flow, inner, turns, until
from workflow import HookFailed, Manager
from workflow.clock import utcnow
from workflow.owed import body_of


class Slow:
    """A hook, async or in a thread, that notes its calls and ends when told to."""

    def __init__(self, kind):
        self.attempts = []
        self.open = threading.Event()
        self.hook = self._waits if kind == "async" else self._blocks

    async def _waits(self, m):
        self.attempts.append(m.attempt)
        await until(self.open.is_set)

    def _blocks(self, m):
        self.attempts.append(m.attempt)
        assert self.open.wait(10)


@pytest.fixture(params=["async", "thread"])
def slow(request):
    """Such a hook; its threads end with the test."""
    hook = Slow(request.param)
    yield hook
    hook.open.set()


async def jumped(slow, tap, m, jump):
    """A hook is running as the clock jumps, and then the loop or `resume()` looks for work."""
    claimed = asyncio.Event()

    async def after(*args):
        claimed.set()

    await m.start("i")
    sent = asyncio.create_task(m.send("i", E.GO))
    await until(lambda: slow.attempts)
    tap.after["claim"] = after
    jump()
    try:
        if m._works:
            m._background._work.ring()  # as whoever leaves work does; the keeper of leases sleeps on
            async with asyncio.timeout(5):
                await claimed.wait()
            await turns()
        else:
            assert (await m.resume()).effects == 0
        assert slow.attempts == [1]
    finally:
        slow.open.set()
        await asyncio.gather(sent, return_exceptions=True)
    assert (await sent).settled
    await m.settled("i")
    assert slow.attempts == [1]


@pytest.mark.parametrize("work", [True, False], ids=["loop", "resume"])
async def test_a_clock_that_jumps_takes_no_hook_from_its_own_manager(store, clock, slow, work):
    """A Manager does not take over what it runs itself because the clock went on by more than a lease at once."""
    tap = Tap(store)

    def jump():
        clock._now += MINUTE

    async with Manager(flow(on_enter={S.B: slow.hook}), tap, clock=clock, work=work, drain=SECOND) as m:
        await jumped(slow, tap, m, jump)


@pytest.mark.parametrize("work", [True, False], ids=["loop", "resume"])
async def test_a_wall_clock_that_jumps_takes_no_hook_either(memory, monkeypatch, slow, work):
    """The same on the wall clock, the process's and the store's being one."""
    tap, ahead = Tap(memory), [timedelta(0)]
    for room in ("workflow.clock", "stores.memory"):
        monkeypatch.setattr(f"{room}.utcnow", lambda: utcnow() + ahead[0])

    def jump():
        ahead[0] = MINUTE

    async with Manager(flow(on_enter={S.B: slow.hook}), tap, work=work, drain=SECOND) as m:
        await jumped(slow, tap, m, jump)


@pytest.mark.parametrize("work", [True, False], ids=["loop", "resume"])
async def test_a_hook_that_calls_resume(store, clock, work):
    """`resume()` in a hook does not wait for that hook's own run, whoever began it."""
    log = Log()
    fails = log.failing("b", 1)

    async def enter(move):
        await fails(move)
        resumed = await m.resume()
        log.append((resumed.effects, resumed.failed))

    async with Manager(flow(on_enter={S.B: enter}, retry=EVERY_SECOND), store, clock=clock, work=work) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await clock.advance(SECOND)
        if not work:
            async with asyncio.timeout(5):
                assert (await m.resume()).effects == 1
        assert log == ["b", "b", (0, ())]
        assert (await m.settled("i")).seq == 2


async def test_a_run_that_begins_while_all_is_closing(store, clock):
    """What a commit that lands during the closing owes is not begun: it is handed back as if never taken."""
    log, tap, let, tries = Log(), Tap(store), asyncio.Event(), []
    gate = Gate()

    async def enter(m):
        log.append("b")
        await gate.hook(m)

    async def before(commits):
        if commits[0].changes[0].seq == 1:
            tries.append(commits[0].id)
            await let.wait()

    tap.before["append"] = before
    async with store:
        m = Manager(flow(on_enter={S.B: enter}), tap, clock=clock, drain=timedelta(0))
        await m.__aenter__()
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.GO))
        await until(lambda: tries)
        sent.cancel()
        await until(lambda: len(tries) == 2)
        assert inner(m).unsettled == 1
        closing = asyncio.create_task(m.__aexit__(None, None, None))
        await until(lambda: m._runner.caller.closing)
        let.set()
        await closing
        assert log == []
        assert sent.cancelled()
        (loaded,) = await store.load("flow", ["i"])
        assert (loaded.head.state, loaded.effects.token, loaded.effects.attempt) == ("b", None, 0)
        assert not body_of(loaded.effects).begun
        gate.open.set()
        async with Manager(flow(on_enter={S.B: enter}), store, clock=clock, work=False) as n:
            assert (await n.resume()).effects == 1
            assert (log, gate.moves[0].attempt) == (["b"], 1)
