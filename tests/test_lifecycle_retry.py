"""Retry, skip and erase."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from tests.flows import (
    EVERY_SECOND,
    MINUTE,
    ONCE,
    SECOND,
    TWICE,
    Ctx,
    E,
    Gate,
    Log,
    S,
    edged,
    flow,
    story,
)
from tests.steer import VERBS, call, rows, walked
from tests.steer import kept as kept
from workflow import (
    After,
    Busy,
    Deny,
    Edge,
    HookFailed,
    IllegalTransition,
    KeyConflict,
    Manager,
    NotRunning,
)
from workflow.diagram import mermaid

# --- retry -----------------------------------------------------------------------------------------


async def test_retry_goes_on_from_the_failed_effect_with_fresh_attempts(store, clock):
    """Attempts count from 1 again; the effects behind follow."""
    attempts: list[int] = []
    log = Log()

    async def b(m):
        attempts.append(m.attempt)
        if len(attempts) < 4:
            raise ValueError("no")

    spec = flow(on_enter={S.B: [log.hook("first"), b, log.hook("third")]}, retry=TWICE)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await clock.advance(MINUTE)
        assert ((await m.get("i")).status, attempts) == ("failed", [1, 2])
        done = await m.retry("i", "mended", key="k")
        assert (done.settled, done.transition.reason) == (False, "mended")
        await clock.advance(MINUTE)
        assert attempts == [1, 2, 1, 2]
        assert log == ["first", "third"]
        assert (await m.get("i")).status == "running"
        assert await story(m) == ["start", "event", "fail", "retry"]
        assert (await m.retry("i", key="k")).settled


async def test_retry_does_not_wait_for_the_time_of_the_next_attempt(store, clock):
    """What failed and waits is due at once, in a final state too; the status stays."""
    log = Log()
    spec = flow(on_enter={S.B: log.failing("b", 1), S.END: log.failing("end", 1)}, retry=EVERY_SECOND)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        for event, status in ((E.GO, "running"), (E.STOP, "finished")):
            with pytest.raises(HookFailed):
                await m.send("i", event)
            await m.retry("i")
            assert (await m.settled("i")).status == status
        assert log == ["b", "b", "end", "end"]
        with pytest.raises(IllegalTransition, match="nothing of it failed"):
            await m.retry("i")
        assert await story(m) == ["start", "event", "retry", "event", "retry"]


async def test_a_retry_of_a_failed_final_state_leaves_it_finished(store, clock):
    """The status is what the state says."""
    log = Log()
    async with Manager(flow(on_enter={S.END: log.failing("end", 1)}, retry=ONCE), store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.STOP)
        assert (await m.get("i")).status == "failed"
        await m.retry("i")
        assert (await m.settled("i")).status == "finished"
        await story(m)


async def test_retry_judges_a_refused_event_again(store, clock):
    """The hook is not run again; what it returned may be taken now."""
    log, open = Log(), list[bool]()

    def guard(m):
        return bool(open) or Deny("shut")

    spec = flow(on_enter={S.B: log.hook("b", E.BACK)}, edges=edged(Edge(S.B, E.BACK, S.C, guard=guard)))
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed, match="shut"):
            await m.send("i", E.GO)
        assert (await m.get("i")).status == "failed"
        await m.retry("i")
        head = await m.settled("i")
        assert (head.status, head.state) == ("failed", S.B)
        open.append(True)
        await m.retry("i")
        head = await m.settled("i")
        assert (head.status, head.state, log) == ("running", S.C, ["b"])
        assert await story(m) == ["start", "event", "refused", "retry", "refused", "retry", "event"]


def strict(open):
    """A guard that cannot tell until `open` has something."""

    def guard(m):
        if not open:
            raise ValueError("cannot tell")
        return True

    return guard


async def test_retry_fires_a_timer_that_gave_up(store, clock):
    """A timeout and a delayed event that could not be judged fire again."""
    open: list[bool] = []
    spec = flow(
        edges=edged(Edge(S.A, E.BACK, S.B, guard=strict(open))),
        timeouts={S.A: After(MINUTE, E.BACK, name="slow")},
        retry=TWICE,
    )
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        await m.send_later("i", E.NOTE, after=timedelta(hours=1))
        await clock.advance(2 * MINUTE)
        head = await m.get("i")
        assert (head.status, (head.reason or "")[:13]) == ("failed", "timeout/slow:")
        await m.retry("i")
        await clock.advance(2 * MINUTE)
        assert (await m.get("i")).status == "failed"
        open.append(True)
        await m.retry("i")
        await clock.advance(timedelta(0))
        assert (await m.get("i")).state is S.B
        assert set(await rows(store)) == {next(iter(await rows(store)))}  # the other waits for its own time
        await clock.advance(timedelta(hours=1))
        assert await story(m) == ["start", "fail", "retry", "fail", "retry", "timeout", "event"]


async def test_an_effect_of_an_unknown_name_is_set_aside_until_retried(kept, clock):
    """Held with its error; code that knows it may retry it, or it is skipped."""
    log = Log()
    async with Manager(flow(on_enter={S.B: log.hook("old")}), kept, clock=clock, work=False, inline=False) as m:
        for id in ("i", "j"):
            await m.start(id)
            await m.send(id, E.GO)
    async with Manager(flow(), kept, clock=clock) as m:
        await clock.advance(SECOND)
        assert (await rows(kept))["effects"].held
        assert (await m.get("i")).status == "running"
        await m.retry("i")
        await clock.advance(SECOND)
        assert (await rows(kept))["effects"].held
        done = await m.skip("j", "gone for good")
        assert done.settled
        assert done.transition.payload == {"skipped": "enter/b/old"}
        assert await rows(kept, "j") == {}
    async with Manager(flow(on_enter={S.B: log.hook("old")}), kept, clock=clock) as m:
        await m.retry("i")
        await m.settled("i")
        assert log == ["old"]
        assert await story(m) == ["start", "event", "retry", "retry"]
        assert await story(m, "j") == ["start", "event", "skip"]


async def test_retry_keeps_in_mind_that_the_effect_had_begun(store, clock):
    """An entry whose effect was attempted is compensated, though its attempts count anew."""
    log = Log()
    spec = flow(on_enter={S.B: log.failing("b")}, compensators={S.B: log.hook("undo b")}, retry=ONCE)
    async with Manager(spec, store, clock=clock, work=False) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await m.retry("i")
        await m.compensate("i", S.A)
        assert log == ["b", "undo b"]


async def test_compensate_frees_what_was_held_with_a_failed_timer(store, clock):
    """Undone back to running, delayed events fire again."""
    spec = flow(
        edges=edged(Edge(S.B, E.BACK, S.C, guard=strict([]))), timeouts={S.B: After(MINUTE, E.BACK)}, retry=ONCE
    )
    async with Manager(spec, store, clock=clock) as m:
        await walked(m, 1)
        await m.send_later("i", E.NOTE, after=timedelta(hours=1))
        await clock.advance(2 * MINUTE)
        assert (await m.get("i")).status == "failed"
        await m.compensate("i", S.A)
        await clock.advance(timedelta(hours=1))
        assert await story(m) == ["start", "event", "fail", "compensate", "event"]


# --- skip ------------------------------------------------------------------------------------------


async def test_skip_drops_the_effect_that_failed(store, clock):
    """On the record; the queue goes on with the next, and what waited behind follows."""
    log = Log()
    spec = flow(on_enter={S.B: [log.failing("b"), log.hook("next", E.GO)]}, retry=ONCE)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        done = await m.skip("i", "not needed", key="k")
        assert not done.settled
        assert done.transition.payload == {"skipped": "enter/b/b"}
        assert (await m.settled("i")).state is S.C
        assert log == ["b", "next"]
        assert (await m.skip("i", key="k")).duplicate
        assert await story(m) == ["start", "event", "fail", "skip", "event"]


async def test_skip_drops_an_effect_that_waits_for_a_retry(store, clock):
    """Also one that would be tried again, with nothing left the queue is empty."""
    log = Log()
    async with Manager(flow(on_enter={S.B: log.failing("b")}, retry=EVERY_SECOND), store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        assert (await m.skip("i")).settled
        await clock.advance(MINUTE)
        assert (log, await rows(store)) == (["b"], {})
        with pytest.raises(IllegalTransition, match="nothing of it failed"):
            await m.skip("i")
        assert (await m.send("i", E.GO)).settled


async def test_a_running_effect_is_not_skipped(store, clock):
    """It may yet succeed: Busy. Nor is there anything to retry."""
    gate = Gate()
    async with Manager(flow(on_enter={S.B: gate.hook}), store, clock=clock) as m:
        await m.start("i")
        sending = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        with pytest.raises(Busy, match="running"):
            await m.skip("i")
        with pytest.raises(IllegalTransition):
            await m.retry("i")
        gate.open.set()
        await sending
        assert await story(m) == ["start", "event"]


async def test_skip_drops_a_refused_event(store, clock):
    """The next returned event is judged, then the queue goes on."""
    log = Log()
    spec = flow(on_enter={S.B: [log.hook("one", E.BACK), log.hook("two", E.GO)]})
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        assert (await m.get("i")).status == "failed"
        done = await m.skip("i")
        assert done.transition.payload == {"skipped": "event back"}
        head = await m.settled("i")
        assert (head.status, head.state, log) == ("running", S.C, ["one", "two"])
        assert await story(m) == ["start", "event", "refused", "skip", "event"]


async def test_skip_drops_a_timer_that_gave_up(store, clock):
    """Its row is gone, the others go on."""
    spec = flow(
        edges=edged(Edge(S.A, E.BACK, S.B, guard=strict([]))),
        timeouts={S.A: [After(MINUTE, E.BACK), After(timedelta(hours=1), E.GO)]},
        retry=ONCE,
    )
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        await clock.advance(2 * MINUTE)
        assert (await m.get("i")).status == "failed"
        done = await m.skip("i")
        assert done.transition.payload == {"skipped": "timeout/back"}
        await clock.advance(timedelta(hours=2))
        assert (await m.get("i")).state is S.B
        assert await story(m) == ["start", "fail", "skip", "timeout"]


async def test_skip_of_a_compensator_goes_on_with_the_plan(store, clock):
    """The entry counts as undone; the next one's compensator runs."""
    log = Log()
    spec = flow(compensators={S.C: log.failing("undo c"), S.B: log.hook("undo b")}, retry=ONCE)
    async with Manager(spec, store, clock=clock) as m:
        await walked(m)
        with pytest.raises(HookFailed):
            await m.compensate("i", S.A)
        await m.skip("i")
        head = await m.settled("i")
        assert (head.status, head.state, log) == ("running", S.A, ["undo c", "undo b"])
        assert await story(m) == ["start", "event", "event", "compensate", "fail", "skip", "compensate"]


async def test_a_failed_instance_whose_trouble_is_gone_is_freed(store, clock):
    """A delayed event that gave up was taken back: retry and skip both lead on."""
    for verb in ("retry", "skip"):
        spec = flow(edges=edged(Edge(S.A, E.BACK, S.B, guard=strict([]))), retry=ONCE)
        async with Manager(spec, store, clock=clock) as m:
            await m.start(verb)
            due = await m.send_later(verb, E.BACK, after=MINUTE)
            await clock.advance(2 * MINUTE)
            assert (await m.get(verb)).status == "failed"
            assert await m.cancel_later(due)
            await call(m, verb, verb)
            assert (await m.send(verb, E.GO)).settled


# --- erase -----------------------------------------------------------------------------------------


async def test_erase_keeps_the_skeleton(store, clock):
    """Context, payloads, errors and reasons are gone from head, lines and feed; states, events and keys stay."""
    log = Log()
    spec = flow(on_enter={S.B: log.failing("b", error=ValueError("SECRET"))}, retry=ONCE)
    async with Manager(spec, store, clock=clock, work=False) as m:
        await m.start("i", Ctx(7, ("SECRET",)), key="s", labels={"shop": "north"})
        await m.send("i", E.ADD, 41, key="a")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO, {"name": "SECRET"}, key="g")
        await m.cancel("i", "SECRET", key="c")
        done = await m.erase("i", "law", key="e")
        assert (done.state, done.settled) == (S.B, True)
        head = await m.get("i")
        assert (head.status, head.context, head.state, head.reason) == ("erased", None, S.B, "law")
        assert head.labels == {"shop": "north"}
        lines = await m.history("i")
        assert [(t.kind, t.event, t.key) for t in lines] == [
            ("start", None, "s"), ("event", E.ADD, "a"), ("event", E.GO, "g"), ("fail", None, None),
            ("cancel", None, "c"), ("erase", None, "e"),
        ]  # fmt: skip
        assert all(t.payload is None and t.context is None and t.reason is None for t in lines[:-1])
        assert "SECRET" not in repr(await store.read()) + repr(await store.history("flow", "i"))
        assert '"41"' not in repr(await store.history("flow", "i"))
        await story(m)
        assert "stateDiagram" in mermaid(spec, history=lines)
        for verb in VERBS:
            with pytest.raises(NotRunning, match="erased"):
                await call(m, verb)
        with pytest.raises(NotRunning):
            await m.send("i", E.NOTE)


async def test_a_repeated_call_is_still_known_after_erasing(store, clock):
    """Told duplicate from KeyConflict by a digest, for every verb that has arguments."""
    async with Manager(flow(compensators={}), store, clock=clock) as m:
        await m.start("i", Ctx(1), key="s")
        await m.send("i", E.ADD, 41, key="a")
        await m.send("i", E.GO, key="g")
        await m.compensate("i", S.A, key="c")
        due = await m.send_later("i", E.ADD, 5, after=SECOND, key="l")
        late = await m.send_later("i", E.BACK, "x", after=SECOND, key="r")
        await clock.advance(MINUTE)
        await m.send("i", E.GO)
        await m.cancel("i", key="x", compensate=True)
        await m.erase("i", key="e")
        before = await story(m)
        for repeat in (
            m.start("i", Ctx(1), key="s"),
            m.send("i", E.ADD, 41, key="a"),
            m.send("i", E.GO, key="g"),
            m.compensate("i", S.A, key="c"),
            m.cancel("i", key="x", compensate=True),
            m.erase("i", key="e"),
        ):
            assert (await repeat).duplicate
        assert await m.send_later("i", E.ADD, 5, after=SECOND, key="l") == due
        assert await m.send_later("i", E.BACK, "x", after=SECOND, key="r") == late
        for other in (
            m.start("i", Ctx(2), key="s"),
            m.send("i", E.ADD, 42, key="a"),
            m.send("i", E.GO, 1, key="g"),
            m.send("i", E.NOTE, key="g"),
            m.compensate("i", S.A, key="x"),
            m.cancel("i", key="x"),
            m.send_later("i", E.ADD, 6, after=SECOND, key="l"),
        ):
            with pytest.raises(KeyConflict):
                await other
        with pytest.raises(NotRunning):
            await m.erase("i", key="new")
        assert await story(m) == before


async def test_a_finished_instance_with_effects_is_not_erased(store, clock):
    """Busy until they are done or skipped."""
    log = Log()
    async with Manager(flow(on_enter={S.END: log.failing("end")}, retry=EVERY_SECOND), store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.STOP)
        assert (await m.get("i")).status == "finished"
        with pytest.raises(Busy, match="still owed"):
            await m.erase("i")
        await m.skip("i")
        await m.erase("i")
        assert await story(m) == ["start", "event", "skip", "erase"]
