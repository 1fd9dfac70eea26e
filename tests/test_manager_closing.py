"""Closing that is itself cut short, event loops that end without it, hooks that do not want to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from datetime import timedelta
from typing import Any

import anyio
import pytest

from stores import MemoryStore
from tests.flows import MINUTE, ONCE, E, Gate, S, flow, story, until
from workflow import HookFailed, Manager, Status

NOW = timedelta(0)


class Cleaner:
    """A hook that cleans up when it is cancelled, which takes a while; notes how many ran at once."""

    def __init__(self, seconds: float) -> None:
        self.entered, self.go_on = asyncio.Event(), asyncio.Event()
        self.cleaned = self.running = self.most = 0

        async def b(move: Any) -> None:
            self.running += 1
            self.most = max(self.most, self.running)
            self.entered.set()
            try:
                await self.go_on.wait()
            finally:
                try:
                    await asyncio.sleep(seconds)
                    self.cleaned += 1
                finally:
                    self.running -= 1

        self.hook = b


async def _row(store: Any) -> Any:
    return (await store.load("flow", ["i"]))[0].effects


async def _sent(m: Any, entered: asyncio.Event) -> asyncio.Task[Any]:
    """A send whose hook has begun."""
    await m.start("i")
    sent = asyncio.create_task(m.send("i", E.GO))
    await entered.wait()
    return sent


@pytest.mark.parametrize("asynchronous", [True, False])
async def test_a_closing_that_is_cancelled_fails_no_hook(store, asynchronous):
    """Who cancels the drain cancels no hook's good name: its lease is handed back, nothing counts as failed."""
    gate = Gate()
    entered, go_on = threading.Event(), threading.Event()

    def plain(move):
        entered.set()
        go_on.wait(10)

    spec = flow(on_enter={S.B: gate.hook if asynchronous else plain}, retry=ONCE)
    async with store:
        m = Manager(spec, store, drain=MINUTE)
        await m.__aenter__()
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.GO))
        await until(gate.entered.is_set if asynchronous else entered.is_set)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await m.__aexit__(None, None, None)
        assert not (await sent).settled
        row = await _row(store)
        assert (row.token is None, row.attempt) == ((True, 0) if asynchronous else (False, 1))
        gate.open.set()
        go_on.set()
        async with Manager(spec, store, work=False) as n:
            assert (await n.get("i")).status == Status.RUNNING
            assert (await n.resume()).effects == asynchronous
            assert await story(n) == ["start", "event"]


async def test_a_closing_in_a_scope_that_is_cancelled(store):
    """A scope that cancels every wait inside it does no more harm than one cancellation."""
    cleaner = Cleaner(0.2)
    spec = flow(on_enter={S.B: cleaner.hook}, retry=ONCE)
    async with store:
        m = Manager(spec, store, drain=MINUTE)
        await m.__aenter__()
        sent = await _sent(m, cleaner.entered)
        with anyio.move_on_after(0.05) as scope:
            await m.__aexit__(None, None, None)
        assert scope.cancelled_caught
        assert (cleaner.running, cleaner.cleaned) == (0, 1)
        assert not (await sent).settled
        assert ((await _row(store)).token, (await _row(store)).attempt) == (None, 0)


def test_a_loop_that_ends_without_closing_fails_no_hook():
    """`asyncio.run` cancels all tasks at its end: no failure of the hook, but a lease that runs out."""
    store, errors = MemoryStore(), []

    async def ends():
        gate = Gate()
        m = Manager(flow(on_enter={S.B: gate.hook}, retry=ONCE), store)
        await m.__aenter__()
        errors.append(await _sent(m, gate.entered))

    async def sees():
        async with store:
            (loaded,) = await store.load("flow", ["i"])
            assert loaded is not None
            assert (loaded.head.status, (await _row(store)).attempt) == (Status.RUNNING, 1)
            assert [line.kind for line in await store.history("flow", "i")] == ["start", "event"]

    asyncio.run(ends())
    assert errors[0].cancelled()
    asyncio.run(sees())


async def test_a_hook_that_cancels_itself_has_failed_also_while_the_manager_drains(memory):
    """During the drain a CancelledError is still of the hook's own making."""
    go_on, entered = asyncio.Event(), asyncio.Event()

    async def raises(move):
        entered.set()
        await go_on.wait()
        raise asyncio.CancelledError

    async with Manager(flow(on_enter={S.B: raises}, retry=ONCE), memory, drain=MINUTE) as m:
        sent = await _sent(m, entered)
        asyncio.get_running_loop().call_later(0.02, go_on.set)
    with pytest.raises(HookFailed):
        await sent


async def test_no_second_hook_beside_one_that_cleans_up(store):
    """Closing, cancelled again and again, waits for what it cancelled: nobody runs the hook beside it."""
    cleaner = Cleaner(0.3)
    spec = flow(on_enter={S.B: cleaner.hook})
    async with store:
        m = Manager(spec, store, drain=MINUTE)
        await m.__aenter__()
        sent = await _sent(m, cleaner.entered)
        closing = asyncio.create_task(m.__aexit__(None, None, None))
        while not closing.done():
            await asyncio.sleep(0.02)
            closing.cancel()
        assert closing.cancelled()
        assert (cleaner.running, cleaner.cleaned) == (0, 1)
        assert not (await sent).settled
        cleaner.go_on.set()
        async with Manager(spec, store, work=False) as n:
            assert (await n.resume()).effects == 1
        assert (cleaner.most, cleaner.cleaned) == (1, 2)


async def test_a_hook_has_time_to_clean_up(store):
    """What a cancelled hook still awaits is not cut off at once; only then its lease is handed back."""
    cleaner = Cleaner(0.3)
    async with store:
        async with Manager(flow(on_enter={S.B: cleaner.hook}), store, drain=NOW) as m:
            sent = await _sent(m, cleaner.entered)
        assert not (await sent).settled
        assert cleaner.cleaned == 1
        assert ((await _row(store)).token, (await _row(store)).attempt) == (None, 0)


async def test_a_hook_that_ends_only_when_pressed_again(memory, monkeypatch):
    """One cancellation swallowed is followed by others."""
    monkeypatch.setattr("workflow.call._PRESSING", 0.02)
    entered, swallowed = asyncio.Event(), 0

    async def stubborn(move):
        nonlocal swallowed
        entered.set()
        while swallowed < 3:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
        await asyncio.Event().wait()

    async with asyncio.timeout(2):
        async with Manager(flow(on_enter={S.B: stubborn}), memory, drain=NOW) as m:
            sent = await _sent(m, entered)
        assert not (await sent).settled


async def test_a_hook_that_never_ends_is_left_behind(store, monkeypatch, caplog):
    """A hook that swallows every cancellation holds up no closing; as of a thread, its lease runs out by itself."""
    monkeypatch.setattr("workflow.background._HANDING_BACK", 0.05)
    monkeypatch.setattr("workflow.house._PATIENCE", 0.1)
    go_on, entered, calls = asyncio.Event(), asyncio.Event(), []

    async def deaf(move):
        calls.append(move.attempt)
        entered.set()
        while not go_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go_on.wait()

    spec = flow(on_enter={S.B: deaf})
    async with store:
        async with asyncio.timeout(5):
            async with Manager(spec, store, drain=NOW) as m:
                sent = await _sent(m, entered)
                waiting = asyncio.create_task(m.settled("i"))
                await asyncio.sleep(0.01)
            assert not (await sent).settled
            with pytest.raises(RuntimeError, match="not open"):
                await waiting
        left = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert len(left) == 1
        assert "effects of i" in left[0]
        before = await _row(store)
        assert (before.token is None, before.attempt) == (False, 1)
        async with Manager(spec, store, work=False) as n:
            assert (await n.resume()).effects == 0
        hook = next(task for task in asyncio.all_tasks() if task.get_name() == "effects of i")
        go_on.set()
        await hook
        assert (await _row(store), calls) == (before, [1])  # what it did is not heard
