"""What steers a busy instance once gave up after a moment; hooks timed out before they began, timers were late."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.flows import MINUTE, NOON, ONCE, SECOND, E, Gate, S, Tap, edged, flow, inner, story, until
from tests.steer import VERBS, call, rows
from workflow import Conflict, Edge, HookFailed, Manager, Status, StoreUnavailable, commit
from workflow.clock import SystemClock

SOON = timedelta(milliseconds=50)
OFTEN = 25
"""More races than a call that waits for its turn may lose."""


def racing(store, rival, times=OFTEN) -> Any:
    """The store as one sees it whose appends come too late: before each of so many another moves the instance."""
    tap = Tap(store)

    async def move(commits):
        if tap.calls["append"] <= times:
            await rival.send("i", E.NOTE)

    tap.before["append"] = move
    return tap


# --- steering a busy instance ------------------------------------------------------------------------


@pytest.mark.parametrize("key", [None, "k"])
async def test_send_later_to_a_busy_instance(memory, clock, key):
    """A timer can be set however often others move the instance."""
    async with memory, Manager(flow(), memory, clock=clock, work=False) as rival:
        await rival.start("i")
        async with Manager(flow(), racing(memory, rival), clock=clock, work=False) as m:
            due = await m.send_later("i", E.STOP, after=MINUTE, key=key)
            assert due.at == NOON + MINUTE
            assert list(await rows(memory)) == [f"later/{due.key}"]
            assert (await m.get("i")).seq == 1 + OFTEN


async def test_cancel_later_at_a_busy_instance(memory, clock):
    """And taken back."""
    async with memory, Manager(flow(), memory, clock=clock, work=False) as rival:
        await rival.start("i")
        due = await rival.send_later("i", E.STOP, after=MINUTE)
        async with Manager(flow(), racing(memory, rival), clock=clock, work=False) as m:
            assert await m.cancel_later(due)
            assert not await rows(memory)


@pytest.mark.parametrize("verb", ["pause", "cancel"])
async def test_a_busy_instance_can_be_stopped(memory, clock, verb):
    """The one that never rests is the one to be stopped: the timeout counts, not the tries."""
    assert verb in VERBS
    async with memory, Manager(flow(), memory, clock=clock, work=False) as rival:
        await rival.start("i")
        async with Manager(flow(), racing(memory, rival), clock=clock, work=False) as m:
            await call(m, verb)
            assert (await m.get("i")).status in (Status.PAUSED, Status.CANCELLED)
            assert await story(m) == ["start", *["event"] * OFTEN, verb]


async def test_what_waits_for_its_turn_is_not_tried_for_ever(memory, clock):
    """An event is judged anew only so often: its sender should look again."""
    async with memory, Manager(flow(), memory, clock=clock, work=False) as rival:
        await rival.start("i")
        async with Manager(flow(), racing(memory, rival), clock=clock, work=False) as m:
            with pytest.raises(Conflict) as raised:
                await m.send("i", E.GO)
            assert raised.value.tries == commit.TRIES


async def test_the_time_to_steer_ends(memory, clock, monkeypatch):
    """Who never gets through hears of it in the end."""
    async with memory, Manager(flow(), memory, clock=clock, work=False) as rival:
        await rival.start("i")
        due = await rival.send_later("i", E.STOP, after=MINUTE)
        async with Manager(flow(), racing(memory, rival, 10**6), clock=clock, work=False) as m:
            with pytest.raises(Conflict):
                await m.pause("i", timeout=SOON)
            monkeypatch.setattr("workflow.timekeeper._PATIENCE", SOON.total_seconds())
            with pytest.raises(Conflict):
                await m.send_later("i", E.STOP, after=MINUTE)
            with pytest.raises(Conflict):
                await m.cancel_later(due)
            assert list(await rows(memory)) == [f"later/{due.key}"]


def test_the_pause_between_tries_stays_short():
    """After thousands of tries as well."""
    assert all(0.0 <= commit.breath(tries) <= 0.05 for tries in (1, 7, 5000))


# --- an answer that was lost ---------------------------------------------------------------------------


@pytest.mark.parametrize("event", [E.STOP, E.NOTE])
async def test_an_event_that_was_sent_before_the_answer_came(memory, clock, event):
    """It is on the record under the key that was made up for it: not refused, and not put there again."""
    tap = Tap(memory)
    lost: list[Any] = []

    async def lose(commits):
        if not lost and any(change.puts for change in commits[0].changes):
            lost.append(commits[0])
            await rival.resume()
            raise StoreUnavailable("the answer is lost", None)

    async with memory, Manager(flow(), memory, clock=clock, work=False) as rival:
        await rival.start("i")
        tap.after["append"] = lose
        async with Manager(flow(), tap, clock=clock, work=False) as m:
            due = await m.send_later("i", event, after=timedelta(0))
            assert lost
            line = (await m.history("i"))[-1]
            assert (line.event, line.key, line.at) == (event, due.key, due.at)
            assert not await rows(memory)
            assert await story(m) == ["start", "event"]


# --- a hook's time ---------------------------------------------------------------------------------------


async def test_a_hook_that_waits_for_a_thread_has_not_begun(memory):
    """Its time runs from when it does: what never ran has not failed."""
    ran: list[str] = []
    blocked, free = threading.Event(), threading.Event()

    def slow(m):
        blocked.set()
        assert free.wait(30)

    spec = flow(edges=edged(Edge(S.A, E.BACK, S.C)), on_enter={S.B: slow}, retry=ONCE)
    spec.on_enter(S.C, timeout=SOON)(lambda m: ran.append(m.id))
    async with Manager(spec, memory, concurrency=1) as m:
        await m.start("i")
        await m.start("j")
        first = asyncio.create_task(m.send("i", E.GO))
        await until(blocked.is_set)
        asyncio.get_running_loop().call_later(6 * SOON.total_seconds(), free.set)
        outcome = await m.send("j", E.BACK)
        assert (outcome.settled, ran) == (True, ["j"])
        assert (await first).settled
        assert (await m.get("j")).status == Status.RUNNING


@pytest.mark.parametrize("kind", ["coroutine", "function", "awaitable"])
async def test_a_hook_that_takes_too_long_has_failed(memory, kind):
    """Whatever it is: in its thread too, and in what a plain function gives to await."""
    free = threading.Event()

    async def coroutine(m):
        await asyncio.sleep(60)

    hooks: Any = {
        "coroutine": coroutine,
        "function": lambda m: not free.wait(30) or None,
        "awaitable": lambda m: coroutine(m),  # noqa: PLW0108  # no coroutine function itself
    }
    spec = flow(retry=ONCE)
    spec.on_enter(S.B, timeout=SOON)(hooks[kind])
    async with Manager(spec, memory) as m:
        await m.start("i")
        with pytest.raises(HookFailed, match="TimeoutError"):
            await m.send("i", E.GO)
        free.set()


# --- the store's clock -------------------------------------------------------------------------------------


@pytest.mark.parametrize("asker", ["the loop", "the keeper", "the schedules"])
async def test_a_slow_answer_does_not_set_the_clock_back(memory, asker):
    """It tells what the time was, not what it is: no timer is late because an answer was."""
    tap, gate = Tap(memory), Gate()

    async def late(*_):
        await asyncio.sleep(0.3)

    async with Manager(flow(on_enter={S.B: gate.hook}), tap, work=asker == "the loop") as m:
        clock: Any = inner(m).clock
        assert isinstance(clock, SystemClock)
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        tap.after |= {"next_due": late, "renew": late}
        match asker:
            case "the loop":
                await m._background._look()
            case "the keeper":
                assert await m._background.keeper.renew()
                assert tap.calls["renew"]
            case _:
                await m._ticker.now()
        assert abs(clock.offset) < timedelta(seconds=0.15)
        gate.open.set()
        await sent


def test_the_clock_moves_where_it_was_certainly_wrong():
    """Just so far; a quick answer sets it right."""
    clock, here = SystemClock(), datetime(2030, 1, 1, tzinfo=UTC)
    there = here + 10 * SECOND
    clock.follow(there, here, here + 4 * SECOND)
    assert clock.offset == 6 * SECOND
    clock.follow(there, here, here)
    assert clock.offset == 10 * SECOND
    clock.follow(there, here + 3 * SECOND, here + 5 * SECOND)
    assert clock.offset == 7 * SECOND
    clock.follow(there, here + SECOND, here + 9 * SECOND)
    assert clock.offset == 7 * SECOND
    clock.follow(there, here + SECOND, here - SECOND)  # the machine's clock was set back meanwhile
    assert clock.offset == 11 * SECOND
