"""An effect that is given up, and the event that the spec sends for it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from tests.flows import EVERY_SECOND, MINUTE, ONCE, TWICE, E, Gate, Log, S, crashing, edged, flow, quiet, story
from tests.steer import kept as kept
from tests.steer import rows
from workflow import After, Edge, HookFailed, Manager, NotRunning, Permanent, Retry, StoreUnavailable
from workflow.testing import Faults

WAY = Edge(S.B, E.BACK, S.D)
"""BACK leads from B to D: where a failure goes."""


def failing(log, *hooks, **more):
    """B has these hooks; when one is given up BACK is sent."""
    given: dict[str, Any] = {"on_failure": E.BACK, "edges": edged(WAY), "retry": ONCE} | more
    enter = {S.B: list(hooks), S.D: log.hook("d")} | given.pop("on_enter", {})
    return flow(on_enter=enter, **given)


async def test_giving_up_and_its_event_are_one_commit(store, clock):
    """A `fail` line that leaves the status, and the event; the queue goes on, the sender hears HookFailed."""
    log = Log()
    async with Manager(failing(log, log.failing("b"), log.hook("next")), store, clock=clock, work=False) as m:
        await m.start("i")
        with pytest.raises(HookFailed, match=r"it is given up, the instance is running") as e:
            await m.send("i", E.GO, key="k")
        assert (e.value.retry_at, e.value.hook, e.value.attempt) == (None, "b", 1)
        assert isinstance(e.value.__cause__, ValueError)
        assert (e.value.outcome.state, e.value.outcome.settled) == (S.D, True)
        assert log == ["b", "next", "d"]
        head = await m.get("i")
        assert (head.state, head.status, head.reason) == (S.D, "running", None)
        lines = await m.history("i")
        assert [(t.kind, t.status, t.event) for t in lines[2:]] == [
            ("fail", "running", None),
            ("event", "running", E.BACK),
        ]
        assert (lines[2].reason or "").startswith("b: ValueError")
        assert lines[2].at == lines[3].at
        stored = await store.history("flow", "i", 2)
        assert stored[0].commit_id == stored[1].commit_id
        assert (await m.send("i", E.GO, key="k")).settled
        await story(m)
        assert quiet(m)


async def test_the_loop_gives_up_too(store, clock):
    """After its last attempt in the background; timeouts of the state left are void, those of the next begin."""
    log = Log()
    timeouts: Any = {S.B: After(timedelta(hours=1), E.STOP), S.D: After(timedelta(hours=2), E.STOP)}
    async with Manager(failing(log, log.failing("b"), retry=TWICE, timeouts=timeouts), store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed, match="tried again"):
            await m.send("i", E.GO)
        await clock.advance(MINUTE)
        assert (log, (await m.get("i")).state) == (["b", "b", "d"], S.D)
        assert {name: row.seq for name, row in (await rows(store)).items()} == {"timeout/stop": 4}
        await clock.advance(timedelta(hours=1.5))
        assert (await m.get("i")).state is S.D
        await clock.advance(timedelta(hours=1))
        assert await story(m) == ["start", "event", "fail", "event", "timeout"]


async def test_a_permanent_error_gives_up_at_once(store, clock):
    """No attempt is left to wait for."""
    log = Log()
    spec = failing(log, log.failing("b", error=Permanent("no use")), retry=EVERY_SECOND)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed, match="no use"):
            await m.send("i", E.GO)
        assert log == ["b", "d"]
        assert await story(m) == ["start", "event", "fail", "event"]


@pytest.mark.parametrize("guard", ["refuses", "raises"])
async def test_an_event_that_is_not_taken(store, clock, guard):
    """Then the instance has failed as without; retry runs the effect again."""
    log = Log()

    def answer(m):
        if guard == "raises":
            raise ValueError("cannot tell")
        return False

    spec = failing(log, log.failing("b", 1), edges=edged(Edge(S.B, E.BACK, S.D, guard=answer)))
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed, match="the instance is failed"):
            await m.send("i", E.GO)
        head = await m.get("i")
        assert (head.status, head.state) == ("failed", S.B)
        assert (head.reason or "").startswith("b: ValueError: b fails; nor was on_failure='back' taken: ")
        await m.retry("i")
        assert (await m.settled("i")).status == "running"
        assert log == ["b", "b"]
        assert await story(m) == ["start", "event", "fail", "retry"]


async def test_a_final_state_takes_no_event(store, clock):
    """What a final state owes and cannot do leaves it failed; retry makes it finished again."""
    log = Log()
    spec = failing(log, on_enter={S.END: log.failing("end", 1)})
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.STOP)
        assert (await m.get("i")).status == "failed"
        await m.retry("i")
        assert (await m.settled("i")).status == "finished"
        await story(m)


async def test_a_compensator_that_gives_up_sends_nothing(store, clock):
    """Failed, whatever on_failure says, and the plan is kept."""
    log = Log()
    spec = failing(log, compensators={S.B: log.failing("undo b", 1)})
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        await m.send("i", E.GO)
        with pytest.raises(HookFailed):
            await m.compensate("i", S.A)
        assert (await m.get("i")).status == "failed"
        await m.retry("i")
        assert (await m.settled("i")).status == "running"
        assert await story(m) == ["start", "event", "compensate", "fail", "retry"]


async def test_an_effect_before_an_undoing_sends_nothing(store, clock):
    """While entries are to be undone no event moves it: an effect of an entry that stays fails it."""
    log = Log()
    spec = failing(log, log.failing("b"), compensators={S.C: log.hook("undo c")}, retry=TWICE)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await m.send("i", E.GO)
        await m.compensate("i", S.B)
        await clock.advance(MINUTE)
        head = await m.get("i")
        assert (head.status, head.state, log) == ("failed", S.B, ["b", "b"])
        await story(m)


async def test_returned_events_wait_for_what_the_failure_caused(store, clock):
    """An event returned before the failure is judged after the effects of the failure's own."""
    log = Log()
    spec = failing(log, log.hook("first", E.GO), log.failing("b"), edges=edged(WAY, Edge(S.D, E.GO, S.A)))
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        assert (await m.get("i")).state is S.A
        assert log == ["first", "b", "d"]
        assert [t.event for t in await m.history("i")] == [None, E.GO, None, E.BACK, E.GO]
        await story(m)


async def test_failures_in_a_row_are_bounded(store, clock):
    """A failure whose event leads to the same failure ends at max_chain, failed."""
    log = Log()
    spec = failing(log, log.failing("b"), edges=edged(Edge(S.B, E.BACK, S.B)), max_chain=3)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed, match="max_chain=3"):
            await m.send("i", E.GO)
        assert log == ["b"] * 4
        assert (await m.get("i")).status == "failed"
        assert await story(m) == ["start", "event"] + ["fail", "event"] * 3 + ["fail"]


async def test_given_up_while_paused(store, clock):
    """The give-up is recorded, the event waits until it goes on; refused then, it has failed."""
    for word, state in (("go on", S.D), ("refuse", S.B)):
        log, gate = Log(), Gate()
        inner = gate.hook

        async def b(m, inner=inner):
            await inner(m)
            raise ValueError("fails")

        spec = failing(
            log, b, edges=edged(Edge(S.B, E.BACK, S.D, guard=(lambda m: True) if state is S.D else (lambda m: False)))
        )
        async with Manager(spec, store, clock=clock) as m:
            await m.start(word)
            sending = asyncio.create_task(m.send(word, E.GO))
            await gate.entered.wait()
            await m.pause(word)
            gate.open.set()
            with pytest.raises(HookFailed, match="the instance is paused"):
                await sending
            assert (await m.get(word)).status == "paused"
            await m.unpause(word)
            head = await m.settled(word)
            assert (head.state, head.status) == (state, "running" if state is S.D else "failed")
            last = "event" if state is S.D else "refused"
            assert await story(m, word) == ["start", "event", "pause", "fail", "unpause", last]


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("when", ["before", "after", "late"])
async def test_a_lost_acknowledgement_of_giving_up(store, clock, nth, when):
    """Whichever commit's answer is lost, each hook runs once and the sender hears the failure."""
    log, faulty = Log(), Faults(store)
    async with Manager(failing(log, log.failing("b"), log.hook("next")), faulty, clock=clock) as m:
        await m.start("i")
        faulty.fail("append", nth=nth, when=when, error=StoreUnavailable)
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await m.settled("i")
        assert log == ["b", "next", "d"]
        assert await story(m) == ["start", "event", "fail", "event"]
        assert quiet(m)


async def test_a_hook_that_kills_its_process_is_given_up(kept, clock):
    """Attempts count when the lease is taken: without any left the event is sent, nothing runs."""
    gate, log, sends = Gate(), Log(), list[Any]()
    spec = failing(log, gate.hook, retry=Retry(attempts=2))
    for _ in range(2):
        async with crashing(Manager(spec, kept, clock=clock)) as m:
            if not gate.calls:
                await m.start("i")
                sends.append(asyncio.create_task(m.send("i", E.GO)))
            await gate.entered.wait()
            gate.entered.clear()
        sends[0].cancel()
    async with Manager(spec, kept, clock=clock) as m:
        head = await m.settled("i")
        assert (head.state, gate.calls, log) == (S.D, 2, ["d"])
        assert await story(m) == ["start", "event", "fail", "event"]


async def test_without_on_failure_it_has_failed(store, clock):
    """Then only an operator leads on."""
    log = Log()
    async with Manager(failing(log, log.failing("b"), on_failure=None), store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed, match="the instance is failed"):
            await m.send("i", E.GO)
        with pytest.raises(NotRunning):
            await m.send("i", E.BACK)
        assert await story(m) == ["start", "event", "fail"]
