"""Cancel: what is dropped, what may settle, and undoing everything first."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from enum import StrEnum
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import evolve

from tests.flows import (
    EVERY_SECOND,
    MINUTE,
    ONCE,
    Ctx,
    E,
    Gate,
    Log,
    S,
    crashing,
    flow,
    quiet,
    story,
)
from tests.steer import call, rows, walked
from tests.steer import kept as kept
from workflow import (
    After,
    Busy,
    Edge,
    HookFailed,
    IllegalTransition,
    KeyConflict,
    Manager,
    NotRunning,
    Spec,
    Status,
    Then,
)

# --- cancel ----------------------------------------------------------------------------------------


async def test_cancel_drops_all_that_has_not_begun(store, clock):
    """Waiting effects, timeouts and delayed events are gone in the same commit; nothing fires later."""
    log = Log()
    spec = flow(on_enter={S.B: log.failing("b")}, timeouts={S.B: After(MINUTE, E.GO)}, retry=EVERY_SECOND)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await m.send_later("i", E.NOTE, after=MINUTE)
        done = await m.cancel("i", "fraud")
        assert (done.state, done.settled, done.transition.status) == (S.B, True, Status.CANCELLED)
        assert await rows(store) == {}
        await clock.advance(timedelta(days=1))
        assert log == ["b"]
        with pytest.raises(NotRunning, match=r"cancelled \(fraud\)"):
            await m.send("i", E.GO)
        with pytest.raises(NotRunning):
            await m.compensate("i", S.A)
        assert await story(m) == ["start", "event", "cancel"]


@pytest.mark.parametrize("paused", [False, True])
async def test_what_a_hook_wants_after_the_cancel_is_dropped_on_the_record(store, clock, paused):
    """It may settle; its update and its event are dropped on one `refused` line, the next effect is void."""
    log, gate = Log(), Gate()
    inner = gate.hook

    async def b(m):
        m.update(lambda c: evolve(c, n=99))
        await inner(m)
        return Then(E.ADD, 7)

    async with Manager(flow(on_enter={S.B: [b, log.hook("second")]}), store, clock=clock) as m:
        await m.start("i")
        sending = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        if paused:
            await m.pause("i")
        assert not (await m.cancel("i")).settled
        waiting = asyncio.create_task(m.settled("i"))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        gate.open.set()
        done = await sending
        assert (done.state, done.settled) == (S.B, True)
        assert (await waiting).status == "cancelled"
        assert (gate.ended, log, await rows(store)) == (1, [], {})
        assert (await story(m))[-2:] == ["cancel", "refused"]
        last = (await m.history("i"))[-1]
        assert (last.event, last.payload, last.status, last.context.n) == (E.ADD, 7, "cancelled", 0)
        assert "its update, event 'add'" in (last.reason or "")


async def test_an_update_alone_is_dropped_on_the_record_too(store, clock):
    """The line then names no event."""
    gate = Gate()
    inner = gate.hook

    async def b(m):
        m.update(lambda c: evolve(c, n=99))
        await inner(m)

    async with Manager(flow(on_enter={S.B: b}), store, clock=clock) as m:
        await m.start("i")
        sending = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        await m.cancel("i")
        gate.open.set()
        await sending
        assert await story(m) == ["start", "event", "cancel", "refused"]


async def test_a_hook_that_wants_nothing_leaves_no_line_after_the_cancel(store, clock):
    """Nothing was dropped, so nothing is recorded."""
    gate = Gate()
    async with Manager(flow(on_enter={S.B: gate.hook}), store, clock=clock) as m:
        await m.start("i")
        sending = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        await m.cancel("i")
        gate.open.set()
        assert (await sending).settled
        assert await story(m) == ["start", "event", "cancel"]
        assert await rows(store) == {}


async def test_a_hook_that_fails_after_the_cancel_is_not_tried_again(store, clock):
    """The sender hears of it; the row is gone."""
    gate = Gate()
    inner = gate.hook

    async def b(m):
        await inner(m)
        raise ValueError("fails")

    async with Manager(flow(on_enter={S.B: b}), store, clock=clock) as m:
        await m.start("i")
        sending = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        await m.cancel("i")
        gate.open.set()
        with pytest.raises(HookFailed, match="the instance is cancelled") as e:
            await sending
        assert e.value.retry_at is None
        assert e.value.outcome.settled
        await clock.advance(timedelta(days=1))
        assert (gate.calls, await rows(store)) == (1, {})
        assert await story(m) == ["start", "event", "cancel"]


async def test_the_owner_dies_after_the_cancel(kept, clock):
    """Whoever takes the row over removes it and runs nothing; then the instance can be erased."""
    gate, log = Gate(), Log()
    async with crashing(Manager(flow(on_enter={S.B: gate.hook}), kept, clock=clock)) as first:
        await first.start("i")
        sending = asyncio.create_task(first.send("i", E.GO))
        await gate.entered.wait()
        await first.cancel("i")
        with pytest.raises(Busy, match="still owed"):
            await first.erase("i")
    sending.cancel()
    async with Manager(flow(on_enter={S.B: log.hook("b")}), kept, clock=clock) as m:
        await m.settled("i")
        assert (log, await rows(kept)) == ([], {})
        await m.erase("i")
        assert await story(m) == ["start", "event", "cancel", "erase"]


async def test_cancel_drops_what_a_dead_process_left(kept, clock):
    """An effect whose owner is gone has not begun for anybody: it is void at once."""
    gate = Gate()
    async with crashing(Manager(flow(on_enter={S.B: gate.hook}), kept, clock=clock)) as first:
        await first.start("i")
        sending = asyncio.create_task(first.send("i", E.GO))
        await gate.entered.wait()
    sending.cancel()
    async with Manager(flow(), kept, clock=clock, work=False) as m:
        assert (await m.cancel("i")).settled
        assert await rows(kept) == {}


async def test_a_delayed_event_added_in_the_race_is_dropped_when_claimed(store, clock):
    """A cancel that did not see it does not make it fire."""
    async with Manager(flow(), store, clock=clock) as m:
        await m.start("i")
        await m.send_later("i", E.NOTE, after=MINUTE)
        load = store.load

        async def blind(workflow, ids, *, rows=False):
            return [
                each and type(each)(each.head, each.effects, each.queue)
                for each in await load(workflow, ids, rows=rows)
            ]

        reader: Any = SimpleNamespace(load=blind, recall=store.recall, history=store.history)
        m._open().reader = reader
        await m.cancel("i")
        assert len(await rows(store)) == 1
        await clock.advance(2 * MINUTE)
        assert await rows(store) == {}
        assert await story(m) == ["start", "cancel"]


async def test_cancel_stops_an_undoing(store, clock):
    """The plan is void: what was not undone stays, and is not resumed."""
    log = Log()
    spec = flow(compensators={S.C: log.failing("undo c"), S.B: log.hook("undo b")}, retry=EVERY_SECOND)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        await m.send("i", E.GO)
        await m.send("i", E.GO)
        with pytest.raises(HookFailed):
            await m.compensate("i", S.A, key="k")
        await m.cancel("i")
        await clock.advance(MINUTE)
        assert (log, (await m.get("i")).state) == (["undo c"], S.B)
        assert (await m.compensate("i", S.A, key="k")).settled
        assert await story(m) == ["start", "event", "event", "compensate", "cancel"]


class Old(StrEnum):
    A = "a"
    END = "end"


async def test_a_drifted_instance_can_be_cancelled(kept, clock):
    """A state that the spec no longer draws keeps nobody from ending it; it is given bare."""
    async with Manager(flow(), kept, clock=clock, work=False) as m:
        await m.start("i")
        await m.send("i", E.GO)
    spec: Any = Spec("flow", initial=Old.A, final={Old.END}, context=Ctx, edges=[Edge(Old.A, E.STOP, Old.END)])
    async with Manager(spec, kept, clock=clock, work=False) as m:
        with pytest.raises(IllegalTransition, match="'i' is in 'b'"):
            await m.unpause("i")
        assert (await m.cancel("i")).state == "b"


# --- cancel, undoing first -------------------------------------------------------------------------


async def test_cancel_may_undo_everything_first(store, clock):
    """From the present entry to the first, then the cancel line; timers end, the key is on the first line."""
    log = Log()
    spec = flow(
        compensators={S.B: log.hook("undo b"), S.C: log.hook("undo c")},
        on_enter={S.A: log.hook("a"), S.C: log.failing("c")},
        timeouts={S.A: After(MINUTE, E.STOP), S.C: After(MINUTE, E.STOP)},
        retry=EVERY_SECOND,
    )
    async with Manager(spec, store, clock=clock) as m:
        await walked(m, 1)
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await m.send_later("i", E.NOTE, after=MINUTE)
        done = await m.cancel("i", "fraud", key="k", compensate=True)
        assert log == ["a", "c", "undo c", "undo b"]
        assert (done.state, done.settled, done.transition.kind, done.transition.key) == (S.A, True, "compensate", "k")
        head = await m.get("i")
        assert (head.status, head.reason, head.state) == ("cancelled", "fraud", S.A)
        assert await rows(store) == {}
        again = await m.cancel("i", key="k", compensate=True)
        assert (again.duplicate, again.transition, again.settled) == (True, done.transition, True)
        for other in (m.cancel("i", key="k"), m.compensate("i", S.A, key="k")):
            with pytest.raises(KeyConflict):
                await other
        await clock.advance(timedelta(days=1))
        assert await story(m) == ["start", "event", "event", "compensate", "compensate", "cancel"]
        assert quiet(m)


@pytest.mark.parametrize("steps", [0, 2])
async def test_cancel_with_nothing_to_compensate_is_one_commit(store, clock, steps):
    """No compensator: entries are popped and the instance cancelled at once, effects of the start included."""
    log = Log()
    spec = flow(on_enter={S.A: log.failing("a")}, timeouts={S.A: After(MINUTE, E.STOP)}, retry=EVERY_SECOND)
    async with Manager(spec, store, clock=clock, work=False) as m:
        with pytest.raises(HookFailed):
            await m.start("i")
        for _ in range(steps):
            await m.send("i", E.GO)
        done = await m.cancel("i", "why", key="k", compensate=True)
        assert (done.state, done.settled) == (S.A, True)
        assert await rows(store) == {}
        assert (await story(m))[-1 - steps :] == ["compensate"] * steps + ["cancel"]
        assert (await m.cancel("i", key="k", compensate=True)).duplicate
        assert (await m.get("i")).reason == "why"


async def test_the_intention_to_cancel_survives_a_crash(kept, clock):
    """A crash in a compensator: whoever resumes undoes the rest and cancels."""
    gate, log = Gate(), Log()
    spec = flow(compensators={S.C: gate.hook, S.B: log.hook("undo b")})
    async with crashing(Manager(spec, kept, clock=clock)) as first:
        await walked(first)
        cancelling = asyncio.create_task(first.cancel("i", "fraud", compensate=True))
        await gate.entered.wait()
    cancelling.cancel()
    spec = flow(compensators={S.C: log.hook("b"), S.B: log.hook("undo b")})  # the first hook's name is "b"
    async with Manager(spec, kept, clock=clock) as m:
        assert (await m.settled("i")).status == "cancelled"
        assert log == ["b", "undo b"]
        assert (await m.get("i")).reason == "fraud"
        assert await story(m) == ["start", "event", "event", "compensate", "compensate", "cancel"]


async def test_a_compensator_that_gives_up_keeps_the_intention(store, clock):
    """Failed, the plan is kept: retry goes on to the cancel; so does another cancel that undoes."""
    for way in ("retry", "cancel(compensate=True)", "skip"):
        log, id = Log(), way
        spec = flow(compensators={S.B: log.failing("undo b", 1)}, retry=ONCE)
        async with Manager(spec, store, clock=clock) as m:
            await m.start(id)
            await m.send(id, E.GO)
            with pytest.raises(HookFailed):
                await m.cancel(id, "fraud", compensate=True)
            assert (await m.get(id)).status == "failed"
            await call(m, way, id, "again", key="k")
            assert (await m.settled(id)).status == "cancelled"
            assert log == ["undo b"] * (1 if way == "skip" else 2)
            last = "skip" if way == "skip" else "retry"
            assert await story(m, id) == ["start", "event", "compensate", "fail", last, "cancel"]
            assert (await call(m, way, id, key="k")).duplicate


async def test_a_paused_cancel_goes_on_when_unpaused(store, clock):
    """The last compensator settles while paused; the cancel follows, and no event comes between."""
    gate = Gate()
    async with Manager(flow(compensators={S.B: gate.hook}), store, clock=clock) as m:
        await walked(m, 1)
        cancelling = asyncio.create_task(m.cancel("i", compensate=True))
        await gate.entered.wait()
        await m.pause("i")
        gate.open.set()
        await cancelling
        assert (await m.get("i")).status == "paused"
        await m.unpause("i")
        with pytest.raises(NotRunning, match="cancelled"):
            await m.send("i", E.GO)
        assert await story(m) == ["start", "event", "compensate", "pause", "unpause", "cancel"]


async def test_a_cancel_that_undoes_waits_for_running_hooks(store, clock):
    """Like a send, at most the timeout; a plain cancel does not wait."""
    gate = Gate()
    async with Manager(flow(on_enter={S.B: gate.hook}), store, clock=clock) as m:
        await m.start("i")
        sending = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        with pytest.raises(Busy):
            await m.cancel("i", compensate=True, timeout=0.02)
        cancelling = asyncio.create_task(m.cancel("i", compensate=True))
        await asyncio.sleep(0.01)
        gate.open.set()
        await sending
        assert (await cancelling).settled
        assert await story(m) == ["start", "event", "compensate", "cancel"]
