"""What went wrong elsewhere with time; each test says the lesson."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest

from stores import MemoryStore
from stores.agenda import SLACK
from tests.flows import MINUTE, NOON, SECOND, TWICE, E, S, Tap, edged, flow, story
from workflow import After, Deny, Edge, Manager, Status

HOUR = timedelta(hours=1)


async def rows(store: Any, id: str) -> list[str]:
    """The names of what is due of the instance."""
    (loaded,) = await store.load("flow", (id,), rows=True)
    return [row.name for row in loaded.rows]


# --- many -----------------------------------------------------------------------------------------


async def test_501_timers_due_at_one_instant_all_fire_once(store, clock):
    """A system that looked at pages of 500 looped for ever at 501."""
    ids = [f"i{n}" for n in range(501)]
    async with Manager(flow(timeouts={S.A: After(HOUR, E.GO)}), store, clock=clock) as m:
        await asyncio.gather(*(m.start(id) for id in ids))
        await clock.advance(HOUR)
        assert {(await m.get(id)).seq for id in ids} == {2}
        await clock.advance(HOUR)
        assert {(await m.get(id)).seq for id in ids} == {2}


async def test_more_timers_of_one_instance_than_one_look_takes_all_fire_once(store, clock):
    """As many events sent with a delay to one and the same, which takes them one by one."""
    async with Manager(flow(), store, clock=clock) as m:
        await m.start("i")
        await asyncio.gather(*(m.send_later("i", E.ADD, 1, after=HOUR, key=f"k{n}") for n in range(101)))
        assert len(await rows(store, "i")) == 101
        await clock.advance(HOUR)
        assert (await m.get("i")).context.n == 101
        assert await rows(store, "i") == []


@pytest.mark.parametrize("plain", [False, True], ids=["async def", "def"])
async def test_many_timers_at_one_instant_run_no_more_hooks_than_the_manager_may(memory, clock, plain):
    """Hooks that timers cause have a place each; and who advances a clock waits for them as for the timers."""
    lock, running, seen = threading.Lock(), set[str](), list[int]()

    def counted(m: Any, *, ends: bool) -> None:
        with lock:
            (running.remove if ends else running.add)(m.id)
            seen.append(len(running))

    async def slow(m: Any) -> None:
        counted(m, ends=False)
        await asyncio.sleep(0.005)
        counted(m, ends=True)

    def blocking(m: Any) -> None:
        counted(m, ends=False)
        threading.Event().wait(0.005)
        counted(m, ends=True)

    spec = flow(timeouts={S.A: After(HOUR, E.GO)}, on_enter={S.B: blocking if plain else slow})
    async with Manager(spec, memory, clock=clock, concurrency=3) as m:
        for n in range(20):
            await m.start(f"i{n}")
        await clock.advance(HOUR)
        assert (len(seen), seen[-1], max(seen)) == (40, 0, 3)


async def test_timers_that_are_superseded_leave_no_rows(store, clock):
    """10,000 entries of one state: there are as many rows as instances, before and after, and the last ones fire."""
    ids = [f"i{n}" for n in range(100)]
    spec = flow(edges=edged(Edge(S.A, E.BACK, S.A)), timeouts={S.A: [After(HOUR, E.GO), After(2 * HOUR, E.STOP)]})
    async with Manager(spec, store, clock=clock) as m:
        await asyncio.gather(*(m.start(id) for id in ids))
        for _ in range(100):
            await clock.advance(SECOND)
            await asyncio.gather(*(m.send(id, E.BACK) for id in ids))
        assert {tuple(await rows(store, id)) for id in ids} == {("timeout/go", "timeout/stop")}
        assert (await m.get("i0")).seq == 101
        if isinstance(store, MemoryStore):  # its heap drops old entries lazily, but it drops them
            assert store._agendas["flow"][1].entries <= 2 * 200 + SLACK
        await clock.advance(HOUR)
        assert {await m.state(id) for id in ids} == {S.B}
        assert {tuple(await rows(store, id)) for id in ids} == {()}


async def test_waiting_instances_are_rows_and_a_restart_costs_the_same_for_3000(store, clock):
    """No task, no query and no memory for each of them: elsewhere 3,000 sleepers took 22 seconds to restart."""
    spec, ids = flow(timeouts={S.A: After(timedelta(days=1), E.GO)}), [f"i{n}" for n in range(3000)]
    async with store:
        async with Manager(spec, store, clock=clock) as m:
            for n in range(0, 3000, 500):
                await asyncio.gather(*(m.start(id) for id in ids[n : n + 500]))
        tap, tasks = Tap(store), len(asyncio.all_tasks())
        async with Manager(spec, tap, clock=clock) as m:
            await clock.advance(HOUR)
            assert sum(tap.calls.values()) < 10
            assert len(asyncio.all_tasks()) - tasks < 10
            assert (await m.send("i7", E.GO)).transition.seq == 2


# --- bound to the entry ---------------------------------------------------------------------------


async def test_a_timer_of_an_old_entry_does_not_hit_a_new_entry_of_the_same_state(store, clock):
    """Each entry has its own hour, also where the old one's was shorter or longer."""
    spec = flow(
        edges=edged(Edge(S.B, E.BACK, S.A)),
        timeouts={S.A: After(lambda m: HOUR if m.seq == 1 else 3 * HOUR if m.seq == 3 else MINUTE, E.STOP)},
    )
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        for _ in range(2):
            await clock.advance(HOUR / 2)
            await m.send("i", E.GO)
            await m.send("i", E.BACK)
        await clock.advance(MINUTE - SECOND)
        assert (await m.state("i"), (await m.get("i")).seq) == (S.A, 5)
        await clock.advance(SECOND)
        assert (await m.history("i"))[-1].at == NOON + HOUR + MINUTE
        await clock.advance(9 * HOUR)
        assert (await story(m)).count("timeout") == 1


async def test_a_timer_that_was_claimed_before_its_state_was_entered_again_is_dropped(store, clock):
    """The commit that fires it compares the entry: between claim and commit another process has moved twice."""
    tap, moved = Tap(store), asyncio.Event()
    spec = flow(edges=edged(Edge(S.B, E.BACK, S.A)), timeouts={S.A: After(HOUR, E.STOP)})
    async with Manager(spec, store, clock=clock, work=False) as other, Manager(spec, tap, clock=clock) as m:
        await m.start("i")

        async def claimed(*args: Any) -> None:
            if clock.now() >= NOON + HOUR and not moved.is_set():
                moved.set()
                await other.send("i", E.GO)
                await other.send("i", E.BACK)

        tap.after["claim"] = claimed
        await clock.advance(HOUR)
        assert moved.is_set()
        assert (await m.state("i"), await rows(store, "i")) == (S.A, ["timeout/stop"])
        await clock.advance(HOUR - SECOND)
        assert await m.state("i") == S.A
        await clock.advance(SECOND)
        assert await story(m) == ["start", "event", "event", "timeout"]


async def test_a_timer_whose_state_is_left_between_judging_and_commit_is_dropped(store, clock):
    """The move that was faster wins; the late commit of the timer writes nothing."""
    tap, moved = Tap(store), asyncio.Event()
    spec = flow(timeouts={S.A: After(HOUR, E.STOP)})
    async with Manager(spec, store, clock=clock, work=False) as other, Manager(spec, tap, clock=clock) as m:
        await m.start("i")

        async def append(commits: Any) -> None:
            if commits[0].changes[0].drops == ("timeout/stop",) and not moved.is_set():
                moved.set()
                await other.send("i", E.GO)

        tap.before["append"] = append
        await clock.advance(2 * HOUR)
        assert moved.is_set()
        assert await story(m) == ["start", "event"]
        assert await rows(store, "i") == []


# --- told apart -----------------------------------------------------------------------------------


async def test_two_timeouts_of_one_state_are_told_apart_and_a_declined_one_fires_once(store, clock):
    """Each has a name and a row of its own: the refusal of one is one line, and the other still comes."""
    asked: list[Any] = []

    def never(m: Any) -> Deny:
        asked.append(m.at)
        return Deny("not yet")

    spec = flow(
        edges=edged(Edge(S.A, E.BACK, S.B, guard=never)),
        timeouts={S.A: [After(MINUTE, E.BACK), After(HOUR, E.NOTE), After(2 * HOUR, E.STOP, name="end")]},
    )
    tap = Tap(store)
    async with Manager(spec, tap, clock=clock) as m:
        await m.start("i")
        await clock.advance(MINUTE)
        assert (len(asked), await rows(store, "i")) == (1, ["timeout/end", "timeout/note"])
        before = sum(tap.calls.values())
        await clock.advance(HOUR / 2)
        assert sum(tap.calls.values()) - before < 20
        await clock.advance(2 * HOUR)
        assert [(line.kind, line.event) for line in (await m.history("i"))[1:]] == [
            ("refused", E.BACK),
            ("timeout", E.NOTE),
            ("timeout", E.STOP),
        ]
        assert (len(asked), await rows(store, "i")) == (1, [])


# --- in time --------------------------------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "by another Manager"])
async def test_a_delay_of_200_ms_does_not_wait_for_a_polling_tick(store, elsewhere):
    """On the real clock, beside an hour that is due as well; elsewhere it came seconds late."""
    delay, tap, loop = timedelta(milliseconds=200), Tap(store), asyncio.get_running_loop()
    spec = flow(timeouts={S.A: After(HOUR, E.STOP), S.B: After(delay, E.STOP)})
    async with store, Manager(spec, tap) as working, Manager(spec, store, work=False) as idle:
        m = idle if elsewhere else working
        await m.start("i")
        await asyncio.sleep(0.3)
        began, before = loop.time(), tap.calls["next_due"]
        await m.send("i", E.GO)
        await m.start("j")
        await m.send_later("j", E.STOP, after=delay)
        async with asyncio.timeout(5):
            for id in ("i", "j"):
                while await m.state(id) != S.END:  # noqa: ASYNC110  # the store is asked, no event tells
                    await asyncio.sleep(0.01)
        assert 0.15 < loop.time() - began < 2.0
        assert tap.calls["next_due"] - before < 30


# --- errors of users' own -------------------------------------------------------------------------


@pytest.mark.parametrize("error", [TimeoutError, asyncio.CancelledError, RecursionError, StopIteration])
@pytest.mark.parametrize("place", ["hook", "plain hook", "guard", "async guard", "assign", "After"])
async def test_a_deadline_error_raised_inside_user_code_stops_no_loop(memory, clock, error, place):
    """Only our own cancellation stops our loops: it counts as a failure of that hook or guard, others go on."""

    def raising(m: Any) -> Any:
        if m.id == "bad":
            raise error
        return {"guard": True, "assign": m.context, "After": HOUR}.get(place)

    async def later(m: Any) -> Any:
        if m.id == "bad":
            raise error
        return True if place == "async guard" else None

    where: dict[str, Any] = {
        "hook": {"on_enter": {S.B: later}},
        "plain hook": {"on_enter": {S.B: raising}},
        "guard": {"guard": raising},
        "async guard": {"guard": later},
        "assign": {"assign": raising},
        "After": {"timeouts": {S.A: After(MINUTE, E.BACK), S.B: After(raising, E.STOP)}},
    }
    more = {"timeouts": {S.A: After(MINUTE, E.BACK)}} | where[place]
    asked = {name: more.pop(name) for name in ("guard", "assign") if name in more}
    spec = flow(edges=edged(Edge(S.A, E.BACK, S.B, **asked)), retry=TWICE, **more)
    async with Manager(spec, memory, clock=clock) as m:
        for id in ("bad", "good"):
            await m.start(id)
        await clock.advance(2 * MINUTE)
        bad = await m.get("bad")
        assert (bad.status, await m.state("good")) == (Status.FAILED, S.B)
        assert error.__name__ in (bad.reason or "")
        await m.start("next")
        await clock.advance(2 * MINUTE)
        assert await m.state("next") == S.B


async def test_a_guard_that_cancels_its_own_task_stops_no_loop(memory, clock):
    """Whatever it hits, other timers go on, and it ends as failed after its attempts."""

    def guard(m: Any) -> bool:
        if m.id == "bad":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        return True

    spec = flow(edges=edged(Edge(S.A, E.GO, S.B, guard=guard)), timeouts={S.A: After(MINUTE, E.GO)}, retry=TWICE)
    async with Manager(spec, memory, clock=clock) as m:
        for id in ("bad", "good"):
            await m.start(id)
        await clock.advance(HOUR)
        assert await m.state("good") == S.B
        bad = await m.get("bad")
        assert bad.state == S.B or bad.status is Status.FAILED
        await m.start("next")
        await clock.advance(HOUR)
        assert await m.state("next") == S.B
