"""Timeouts of states: bound to the entry, fired once, on the record."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, cast

import pytest

from tests.flows import MINUTE, NOON, SECOND, Ctx, E, Log, M, S, edged, flow
from workflow import STAY, After, Deny, Edge, GuardError, InvalidSpec, Manager, Retry, Status
from workflow.testing import replay

HOUR = timedelta(hours=1)


def kinds(history: Any) -> list[str]:
    return [line.kind for line in history]


async def rows(store: Any, id: str = "i") -> list[str]:
    """The names of what is due of the instance."""
    (loaded,) = await store.load("flow", (id,), rows=True)
    return [row.name for row in loaded.rows]


async def test_a_timeout_fires_when_the_state_has_lasted_for_so_long(store, clock):
    """As a line of its own kind, with the hooks of the move it makes; and replay agrees."""
    log = Log()
    spec = flow(timeouts={S.A: After(HOUR, E.GO)}, on_enter={S.B: log.hook("entered")})
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        assert await rows(store) == ["timeout/go"]
        await clock.advance(HOUR - SECOND)
        assert await m.state("i") == S.A
        await clock.advance(SECOND)
        assert await m.state("i") == S.B
        history = await m.history("i")
        assert [(line.kind, line.event, line.key) for line in history] == [
            ("start", None, None),
            ("timeout", E.GO, None),
        ]
        assert history[1].at == NOON + HOUR
        assert log == ["entered"]
        assert await rows(store) == []
        assert replay(spec, history) == await m.get("i")


async def test_it_is_void_in_the_commit_that_leaves_the_state(store, clock):
    """Nothing is left of it, and nothing fires."""
    async with Manager(flow(timeouts={S.A: After(HOUR, E.STOP)}), store, clock=clock) as m:
        await m.start("i")
        await m.send("i", E.GO)
        assert await rows(store) == []
        await clock.advance(2 * HOUR)
        assert await m.state("i") == S.B


async def test_re_entry_starts_anew_and_staying_does_not(store, clock):
    """A loop to the same state is an entry; `STAY` is none."""
    spec = flow(edges=edged(Edge(S.A, E.BACK, S.A)), timeouts={S.A: After(HOUR, E.STOP)})
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        await m.start("j")
        await clock.advance(HOUR / 2)
        await m.send("i", E.BACK)
        await m.send("j", E.NOTE)
        await clock.advance(HOUR / 2)
        assert (await m.state("i"), await m.state("j")) == (S.A, S.END)
        await clock.advance(HOUR / 2)
        assert await m.state("i") == S.END


async def test_several_timeouts_of_one_state(store, clock):
    """Each has its row, by its name or its event's word, and each fires."""
    several: list[After[S, E, Ctx]] = [
        After(MINUTE, E.NOTE),
        After(2 * MINUTE, E.NOTE, name="again"),
        After(HOUR, E.STOP),
    ]
    async with Manager(flow(timeouts={S.A: several}), store, clock=clock) as m:
        await m.start("i")
        assert await rows(store) == ["timeout/again", "timeout/note", "timeout/stop"]
        await clock.advance(3 * MINUTE)
        assert kinds(await m.history("i")) == ["start", "timeout", "timeout"]
        assert await rows(store) == ["timeout/stop"]
        await clock.advance(HOUR)
        assert await m.state("i") == S.END


async def test_a_function_tells_how_long_or_when_or_never(store, clock):
    """It sees the move that enters, with the context after it."""
    seen: list[Any] = []

    def told(m: M) -> Any:
        seen.append((m.source, m.event, m.target, m.context.n, m.seq, m.key, m.attempt))
        return {1: 5 * MINUTE, 2: NOON + HOUR, 3: None}[m.context.n]

    add = Edge(S.A, E.BACK, S.B, assign=lambda m: Ctx(m.payload))
    async with Manager(flow(edges=edged(add), timeouts={S.B: After(told, E.STOP)}), store, clock=clock) as m:
        for n in (1, 2, 3):
            await m.start(f"i{n}")
            await m.send(f"i{n}", E.BACK, n)
        assert seen == [(S.A, E.BACK, S.B, n, 2, "", 0) for n in (1, 2, 3)]
        await clock.advance(5 * MINUTE)
        assert [await m.state(f"i{n}") for n in (1, 2, 3)] == [S.END, S.B, S.B]
        await clock.advance(HOUR)
        assert [await m.state(f"i{n}") for n in (1, 2, 3)] == [S.END, S.END, S.B]


@pytest.mark.parametrize("answer", [7, NOON.replace(tzinfo=None), ValueError("no")])
async def test_a_function_that_does_not_answer_well(store, clock, answer):
    """A GuardError from its cause: nothing is written, for a move and for a start."""

    def told(m: M) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with Manager(flow(timeouts={S.B: After(told, E.STOP)}), store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(GuardError) as caught:
            await m.send("i", E.GO)
        assert caught.value.__cause__ is (answer if isinstance(answer, Exception) else None)
        assert kinds(await m.history("i")) == ["start"]
    async with Manager(flow("first", timeouts={S.A: After(told, E.STOP)}), store, clock=clock) as m:
        with pytest.raises(GuardError):
            await m.start("i")
        assert await store.load("first", ["i"]) == [None]


async def test_a_refused_timeout_is_recorded_once(store, clock):
    """The guard says no: one `refused` line with the reason, the row is gone."""
    never = Edge(S.A, E.BACK, S.B, guard=lambda m: Deny("not today"))
    async with Manager(flow(edges=edged(never), timeouts={S.A: After(HOUR, E.BACK)}), store, clock=clock) as m:
        await m.start("i")
        await clock.advance(5 * HOUR)
        history = await m.history("i")
        assert [(line.kind, line.event) for line in history] == [("start", None), ("refused", E.BACK)]
        assert "not today" in (history[1].reason or "")
        assert (await m.get("i")).status == Status.RUNNING
        assert await rows(store) == []


async def test_a_guard_that_fails_is_asked_again(store, clock):
    """By the spec's retry; when no attempt is left the instance has failed, with the error."""
    asked: list[int] = []

    def guard(m: M) -> bool:
        asked.append(1)
        raise ConnectionError("rates are down")

    edge = Edge[S, E, Ctx](S.A, E.BACK, S.B, guard=guard)
    retry = Retry(attempts=3, first=MINUTE, jitter=0)
    spec = flow(edges=edged(edge), timeouts={S.A: After(HOUR, E.BACK)}, retry=retry)
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        await clock.advance(HOUR)
        assert len(asked) == 1
        await clock.advance(HOUR)
        assert len(asked) == 3
        found = await m.get("i")
        assert found.status == Status.FAILED
        assert "rates are down" in (found.reason or "")
        assert kinds(await m.history("i")) == ["start", "fail"]


async def test_timeouts_of_what_is_undone(store, clock):
    """Those of the undone entries are void, those of the state that is there again start anew."""
    spec = flow(timeouts={S.B: After(HOUR, E.STOP), S.C: After(MINUTE, E.GO)})
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        await m.send("i", E.GO)
        await clock.advance(HOUR / 2)
        await m.send("i", E.GO)
        await m.compensate("i", S.B)
        assert await rows(store) == ["timeout/stop"]
        await clock.advance(HOUR - SECOND)
        assert await m.state("i") == S.B
        await clock.advance(SECOND)
        assert await m.state("i") == S.END
        assert kinds(await m.history("i")) == ["start", "event", "event", "compensate", "timeout"]


async def test_events_that_hooks_return_move_timeouts_too(store, clock):
    """The state they leave loses its timeout, the one they enter gets one, in their commit."""
    log = Log()
    spec = flow(on_enter={S.B: log.hook("b", E.GO)}, timeouts={S.B: After(MINUTE, E.STOP), S.C: After(HOUR, E.STOP)})
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        await m.send("i", E.GO)
        assert await m.state("i") == S.C
        await clock.advance(2 * MINUTE)
        assert await m.state("i") == S.C
        await clock.advance(HOUR)
        assert await m.state("i") == S.END


async def test_start_and_send_in_one(store, clock):
    """Only the state that is the last of that commit has a timeout."""
    async with Manager(flow(timeouts={S.A: After(MINUTE, E.STOP), S.B: After(HOUR, E.STOP)}), store, clock=clock) as m:
        await m.send("i", E.GO, start=True)
        await m.send("j", E.NOTE, start=True)
        await clock.advance(MINUTE)
        assert (await m.state("i"), await m.state("j")) == (S.B, S.END)
        await clock.advance(HOUR)
        assert await m.state("i") == S.END


async def test_a_timeout_survives_a_restart(store, clock):
    """What came due while nobody ran fires when somebody does, and `resume` counts it."""
    spec = flow(timeouts={S.A: After(HOUR, E.GO)})
    async with store:  # in memory the data ends with the last closing
        async with Manager(spec, store, clock=clock) as m:
            await m.start("i")
            await m.start("j")
        await clock.advance(2 * HOUR)
        async with Manager(spec, store, clock=clock, work=False) as m:
            resumed = await m.resume()
            assert (resumed.timers, resumed.failed) == (2, ())
            assert (await m.state("i"), await m.state("j")) == (S.B, S.B)
            assert (await m.resume()).timers == 0


async def test_two_managers_fire_it_once(store, clock):
    """Whoever claims it first."""
    spec = flow(timeouts={S.A: After(HOUR, E.NOTE)})
    async with Manager(spec, store, clock=clock) as m, Manager(spec, store, clock=clock):
        for n in range(20):
            await m.start(f"i{n}")
        await clock.advance(2 * HOUR)
        assert {tuple(kinds(await m.history(f"i{n}"))) for n in range(20)} == {("start", "timeout")}


async def test_it_waits_for_a_running_hook(store, clock):
    """But not for one that failed and awaits its retry."""
    began, go_on = asyncio.Event(), asyncio.Event()

    async def slow(m: M) -> None:
        began.set()
        await go_on.wait()

    spec = flow(on_enter={S.B: slow}, timeouts={S.B: After(MINUTE, E.STOP)})
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        sending = asyncio.ensure_future(m.send("i", E.GO))
        await began.wait()
        advancing = asyncio.ensure_future(clock.advance(2 * MINUTE))
        await asyncio.sleep(0.1)
        assert await m.state("i") == S.B
        go_on.set()
        await sending
        await advancing
        assert await m.state("i") == S.END


async def test_a_failing_hook_does_not_hold_it_up(store, clock):
    """The timeout is judged at once, its effects queue behind the one that is retried."""
    log = Log()
    spec = flow(
        on_enter={S.B: log.failing("b"), S.END: log.hook("end")},
        timeouts={S.B: After(MINUTE, E.STOP)},
        retry=Retry(attempts=3, first=HOUR, jitter=0),
    )
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(Exception, match="b"):
            await m.send("i", E.GO)
        await clock.advance(MINUTE)
        assert await m.state("i") == S.END
        assert log == ["b"]


async def test_a_timeout_that_the_code_no_longer_draws(store, clock, caplog):
    """It is set aside, held, and in nobody's way."""
    async with store:  # in memory the data ends with the last closing
        async with Manager(flow(timeouts={S.A: After(HOUR, E.STOP, name="old")}), store, clock=clock) as m:
            await m.start("i")
        async with Manager(flow(timeouts={S.A: After(2 * HOUR, E.GO)}), store, clock=clock) as m:
            await clock.advance(3 * HOUR)
            (loaded,) = await store.load("flow", ("i",), rows=True)
            assert [(row.name, row.held) for row in loaded.rows] == [("timeout/old", True)]
            await m.send("i", E.GO)
            assert await m.state("i") == S.B


def test_what_may_not_be_drawn():
    """All problems of timeouts are told together."""
    with pytest.raises(InvalidSpec) as caught:
        flow(
            timeouts={
                S.A: [After(HOUR, E.GO), After(MINUTE, E.GO)],
                S.B: After(-HOUR, E.STOP),
                S.C: [After(HOUR, E.GO, name=""), "soon"],
                S.D: After(HOUR, cast("Any", "go")),
                S.END: After(HOUR, E.STOP),
            },
            on_failure="fail",
        )
    told = "\n".join(caught.value.problems)
    for part in ("from 0 to 1,000 years", "no After", "which is no E", "cannot be stored", "on_failure is 'fail'"):
        assert part in told, told
    with pytest.raises(InvalidSpec) as caught:
        flow(
            timeouts={
                S.A: [After(HOUR, E.GO), After(MINUTE, E.GO)],
                S.END: After(HOUR, E.STOP),
                S.D: After(HOUR, E.BACK),
            }
        )
    told = "\n".join(caught.value.problems)
    for part in ("2 timeouts of 'a' are named 'go'", "final states are not left", "no edge of that state takes"):
        assert part in told, told


async def test_staying_keeps_what_fired_from_firing_again(store, clock):
    """A timeout whose event stays is done for this entry."""
    spec = flow(edges=edged(Edge(S.A, E.BACK, STAY)), timeouts={S.A: After(HOUR, E.BACK)})
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        await clock.advance(9 * HOUR)
        assert kinds(await m.history("i")) == ["start", "timeout"]


async def test_undoing_leads_out_of_a_timeout_that_gave_up(store, clock):
    """What was held with it is free again."""

    def broken(m: M) -> bool:
        raise ConnectionError

    edge = Edge[S, E, Ctx](S.B, E.BACK, S.C, guard=broken)
    spec = flow(edges=edged(edge), timeouts={S.B: After(MINUTE, E.BACK)}, retry=Retry(attempts=1))
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        await m.send("i", E.GO)
        await m.send_later("i", E.NOTE, after=HOUR)
        await clock.advance(MINUTE)
        assert (await m.get("i")).status == Status.FAILED
        await clock.advance(2 * HOUR)
        assert (await m.compensate("i", S.A)).state == S.A
        await clock.advance(MINUTE)
        assert [line.event for line in await m.history("i")][-1] == E.NOTE
        assert await rows(store) == []
