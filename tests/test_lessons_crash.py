"""What went wrong elsewhere after crashes and beside bad neighbours, where timers can suffer it too; each test says the lesson."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from typing import Any

import msgspec
import pytest

from tests.flows import (
    MINUTE,
    NOON,
    ONCE,
    SECOND,
    Ctx,
    E,
    Gate,
    Log,
    S,
    Tap,
    crashing,
    edged,
    flow,
    inner,
    story,
)
from workflow import After, Edge, GuardError, Manager, Retry, Spec, Status, StoreUnavailable
from workflow.record import Change, Commit, Committed, Put
from workflow.testing import FakeClock, Faults

HOUR = timedelta(hours=1)
LEASE = timedelta(seconds=30)


async def rows(store: Any, id: str, workflow: str = "flow") -> Any:
    """What is due of the instance."""
    (loaded,) = await store.load(workflow, (id,), rows=True)
    return loaded.rows


async def moved(manager: Any, id: str, seconds: float = 5.0) -> None:
    """Return when the instance has a second line."""
    async with asyncio.timeout(seconds):
        while (await manager.get(id)).seq == 1:  # noqa: ASYNC110  # the store is asked, no event tells
            await asyncio.sleep(0.01)


# --- crash and recovery ---------------------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same host", "another host"])
async def test_the_timer_of_a_dead_process_is_fired_without_traffic(store, clock, elsewhere):
    """It had claimed it when it died: at once where the death can be seen, else when the lease ends."""
    tap, claimed = Tap(store), asyncio.Event()
    spec, log = flow(timeouts={S.A: After(HOUR, E.GO)}), Log()

    async def never(*args: Any) -> None:
        claimed.set()
        await asyncio.Event().wait()

    async with store:
        dying = Manager(spec, tap, clock=clock, lease=LEASE)
        async with crashing(dying):
            if elsewhere:
                inner(dying).incarnation.token = "other-boot/pid:[1]/7/9/abc"
            await dying.start("i")
            tap.before["append"] = never
            advancing = asyncio.ensure_future(clock.advance(HOUR))
            await claimed.wait()
            advancing.cancel()
            await asyncio.gather(advancing, return_exceptions=True)
        after = flow(timeouts={S.A: After(HOUR, E.GO)}, on_enter={S.B: log.hook("b")})
        async with Manager(after, store, clock=clock, lease=LEASE) as living:
            if elsewhere:
                await clock.advance(LEASE - SECOND - (clock.now() - NOON - HOUR))
                assert await living.state("i") == S.A
            await clock.advance(SECOND)
            assert (await story(living), log) == (["start", "timeout"], ["b"])


async def test_a_process_that_was_paused_past_its_lease_fires_no_timer(store, clock):
    """It wakes with a commit in hand that another process has made meanwhile: nothing is written twice."""
    tap, claimed, woken = Tap(store), asyncio.Event(), asyncio.Event()
    spec, theirs = flow(timeouts={S.A: After(HOUR, E.NOTE)}), FakeClock(NOON + HOUR)

    async def paused(commits: Any) -> None:
        if not claimed.is_set():
            claimed.set()
            await woken.wait()

    async with store, Manager(spec, tap, clock=clock, lease=LEASE) as slow:
        await slow.start("i")
        tap.before["append"] = paused
        advancing = asyncio.ensure_future(clock.advance(HOUR))
        await claimed.wait()
        async with Manager(spec, store, clock=theirs, lease=LEASE) as quick:
            await theirs.advance(LEASE - SECOND)
            assert (await quick.get("i")).seq == 1
            await theirs.advance(SECOND)
            assert (await quick.get("i")).seq == 2
            woken.set()
            await advancing
            assert await story(quick) == ["start", "timeout"]
            assert await rows(store, "i") == ()


@pytest.mark.parametrize("when", ["before", "after", "late"])
async def test_a_timer_whose_acknowledgement_is_lost_fires_once(store, clock, when):
    """The commit is appended again, and recognised: one line, its hook once."""
    log, faults = Log(), Faults(store, delay=timedelta(milliseconds=50))
    spec = flow(timeouts={S.A: After(HOUR, E.GO)}, on_enter={S.B: log.hook("b")})
    async with Manager(spec, faults, clock=clock) as m:
        await m.start("i")
        await m.start("j")
        await m.send_later("j", E.ADD, 1, after=HOUR, key="k")
        await m.send("j", E.GO)
        del log[:]
        faults.fail("append", 1, when).fail("append", 2, when)
        await clock.advance(2 * HOUR)
        await faults.landed()
        assert (await story(m), log) == (["start", "timeout"], ["b"])
        assert ((await m.get("j")).context.n, await story(m, "j")) == (1, ["start", "event", "event"])


async def test_a_blip_of_the_database_at_the_start_loses_no_timer(store, clock):
    """The scan is a loop: what came due while nobody ran is fired after the third error, without a restart."""
    spec, faults = flow(timeouts={S.A: After(HOUR, E.GO)}), Faults(store)
    async with store:
        async with Manager(spec, store, clock=clock) as m:
            await m.start("i")
        await clock.advance(2 * HOUR)
        for nth in (1, 2):
            faults.fail("next_due", nth)
        faults.fail("claim", 1)
        async with Manager(spec, faults, clock=clock) as m:
            await moved(m, "i")


async def test_a_store_that_is_away_makes_no_loop_spin_and_shutdown_does_not_hang(memory):
    """On the real clock, with a timer due: a handful of calls a second, and closing takes no longer than its drain."""
    tap, away = Tap(memory), [False]
    loop = asyncio.get_running_loop()

    async def down(*args: Any) -> None:
        if away[0]:
            raise StoreUnavailable("down", committed=False)

    spec = flow(timeouts={S.A: After(timedelta(milliseconds=50), E.GO)})
    async with memory:
        async with Manager(spec, tap, drain=timedelta(seconds=0.2)) as m:
            for verb in ("append", "load", "recall", "claim", "next_due", "wait", "renew"):
                tap.before[verb] = down
            await m.start("i")
            away[0] = True
            before = sum(tap.calls.values())
            await asyncio.sleep(0.6)
            assert sum(tap.calls.values()) - before < 30
            began = loop.time()
        assert loop.time() - began < 8
        away[0] = False
        async with Manager(spec, memory) as m:
            await moved(m, "i")


async def test_a_commit_that_never_comes_through_makes_no_loop_spin(memory, clock):
    """The row was claimed, and only writing fails: it is tried with growing pauses, and fires once when it can."""
    tap, away = Tap(memory), [True]

    async def down(commits: Any) -> None:
        if away[0] and commits[0].changes[0].lease is not None:
            raise StoreUnavailable("down", committed=None)

    tap.before["append"] = down
    spec = flow(timeouts={S.A: After(HOUR, E.NOTE)})
    async with Manager(spec, tap, clock=clock) as m:
        await m.start("i")
        advancing = asyncio.ensure_future(clock.advance(HOUR))
        await asyncio.sleep(0.5)
        assert 2 <= tap.calls["append"] < 20
        away[0] = False
        await advancing
        assert await story(m) == ["start", "timeout"]


async def test_attempts_that_are_exhausted_do_not_leave_an_instance_that_looks_finished(store, clock):
    """Nor a running one: failed, with the error, for a hook that a timer caused as for a guard."""
    log = Log()

    def guard(m: Any) -> bool:
        raise ValueError("guard fails")

    spec = flow(
        edges=edged(Edge(S.B, E.BACK, S.A, guard=guard)),
        timeouts={S.A: After(HOUR, E.STOP), S.B: After(HOUR, E.BACK)},
        on_enter={S.END: log.failing("end")},
        retry=ONCE,
    )
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        await m.start("j")
        await m.send("j", E.GO)
        await clock.advance(HOUR)
        for id, why in (("i", "end fails"), ("j", "guard fails")):
            head = await m.get(id)
            assert (head.status, why in (head.reason or "")) == (Status.FAILED, True)


async def test_what_this_process_does_not_know_it_does_not_claim(store, clock):
    """Neither another workflow's timers nor those of a newer version of its own: not one attempt is burnt."""
    timed: Any = {"timeouts": {S.A: After(HOUR, E.GO)}}
    async with (
        Manager(flow("other", **timed), store, clock=clock, work=False) as other,
        Manager(flow(version=2, **timed), store, clock=clock, work=False) as newer,
        Manager(flow(version=1, **timed), store, clock=clock) as m,
    ):
        await other.start("o")
        await newer.start("n")
        await m.start("m")
        await clock.advance(5 * HOUR)
        assert (await m.resume()).failed == ()
        for id, workflow in (("o", "other"), ("n", "flow")):
            (row,) = await rows(store, id, workflow)
            assert (row.attempt, row.token, row.held) == (0, None, False)
        assert await m.state("m") == S.B
        assert ((await newer.resume()).timers, (await other.resume()).timers) == (1, 1)


# --- isolation ------------------------------------------------------------------------------------


async def planted(store: Any, clock: Any, id: str, name: str, body: str | None) -> None:
    """Write a due row that no engine would."""
    (loaded,) = await store.load("flow", (id,))
    put = Put(name, loaded.head.top, body=body, at=clock.now() + MINUTE)
    commit = Commit(
        f"{hash((id, name, body)) & (2**128 - 1):032x}", "nobody", (Change("flow", id, loaded.head.seq, puts=(put,)),)
    )
    (answer,) = await store.append([msgspec.structs.replace(commit, now=clock.now())])
    assert isinstance(answer, Committed)


STRANGE = {
    "a number": ("later/k", "7"),
    "no body": ("later/k", None),
    "another shape": ("later/k", '["go"]'),
    "unknown event": ("later/k", '{"event":"fly","payload":null,"at":"2030-01-01T13:00:00Z"}'),
    "undecodable payload": ("later/k", '{"event":"add","payload":"\\"x\\"","at":"2030-01-01T13:00:00Z"}'),
    "unknown timeout": ("timeout/gone", None),
    "unknown name": ("strange", "{}"),
}


class Fewer(StrEnum):
    """The states after an edit that dropped some."""

    A = "a"
    C = "c"


@pytest.mark.parametrize("case", [*STRANGE, "undeclared state", "undecodable context"])
async def test_one_bad_row_blocks_nobody(store, clock, caplog, case):
    """It is set aside at once, without an attempt; whatever is due beside it fires, and its instance goes on."""
    tap = Tap(store)
    spec: Spec[Any, E, Any] = flow(timeouts={S.A: After(HOUR, E.GO)})
    async with store:
        if case == "undeclared state":
            async with Manager(flow(timeouts={S.B: After(HOUR, E.STOP)}), store, clock=clock, work=False) as m:
                await m.send("bad", E.GO, start=True)
            edges = [Edge(Fewer.A, E.GO, Fewer.C), Edge(Fewer.C, E.BACK, Fewer.A)]
            spec = Spec("flow", initial=Fewer.A, context=Ctx, edges=edges, timeouts={Fewer.A: After(HOUR, E.GO)})
        elif case == "undecodable context":
            another: Any = {"context": list, "timeouts": {S.A: After(HOUR, E.GO)}}
            async with Manager(flow(**another), store, clock=clock, work=False) as m:
                await m.start("bad")
        async with Manager(spec, tap, clock=clock, concurrency=2) as m:
            if case in STRANGE:
                await m.start("bad")
                await planted(store, clock, "bad", *STRANGE[case])
            for n in range(10):
                await m.start(f"i{n}")
            await clock.advance(HOUR)
            assert {(await m.get(f"i{n}")).seq for n in range(10)} == {2}
            held = [(row.held, row.attempt, row.token) for row in await rows(store, "bad") if row.held]
            assert held == [(True, 0, None)]
            before = sum(tap.calls.values())
            await clock.advance(HOUR)
            assert sum(tap.calls.values()) - before < 10
            if case in STRANGE:
                assert (await m.send("bad", E.NOTE)).state == S.B
    assert any("bad" in record.getMessage() for record in caplog.records)


BEYOND = (
    datetime.max.replace(tzinfo=timezone(-timedelta(hours=12))),
    datetime.min.replace(tzinfo=timezone(timedelta(hours=12))),
)


@pytest.mark.parametrize("when", BEYOND, ids=["after 9999", "before 1"])
async def test_a_time_that_no_calendar_has_in_utc_is_refused_before_it_is_written(store, clock, when):
    """One such row could not be read again, and would stop the timers of all instances."""
    spec = flow(timeouts={S.A: After(HOUR, E.GO), S.B: After(lambda m: when if m.id == "bad" else HOUR, E.STOP)})
    async with Manager(spec, store, clock=clock) as m:
        for id in ("bad", "good"):
            await m.start(id)
        with pytest.raises(GuardError, match="no calendar"):
            await m.send("bad", E.GO)
        with pytest.raises(ValueError, match="no calendar"):
            await m.send_later("bad", E.NOTE, at=when)
        with pytest.raises(ValueError, match="no calendar"):
            await m.send_later("bad", E.NOTE, after=timedelta.max)
        await m.send_later("bad", E.NOTE, at=datetime.max.replace(tzinfo=UTC), key="never")
        await m.send_later("bad", E.NOTE, at=datetime.min.replace(tzinfo=UTC), key="at once")
        await clock.advance(3 * HOUR)
        assert (await m.state("good"), (await m.get("bad")).seq) == (S.END, 2)


async def test_errors_are_counted_by_attempt_not_by_their_text(store, clock):
    """A text that is another each time does not keep a guard or a hook from being given up."""
    asked: list[str] = []

    def varying(m: Any) -> bool:
        asked.append(m.id)
        raise ValueError(f"error {len(asked)} at {clock.now()}")

    spec = flow(
        edges=edged(Edge(S.A, E.BACK, S.B, guard=varying)),
        timeouts={S.A: After(HOUR, E.BACK)},
        on_enter={S.C: varying},
        retry=Retry(attempts=3, first=SECOND, jitter=0.0),
    )
    async with Manager(spec, store, clock=clock) as m:
        await m.start("guard")
        await m.start("hook")
        await m.send("hook", E.GO)
        await m.send_later("hook", E.GO, after=HOUR)
        await clock.advance(2 * HOUR)
        assert sorted(asked) == ["guard"] * 3 + ["hook"] * 3
        assert {(await m.get(id)).status for id in ("guard", "hook")} == {Status.FAILED}


def test_setting_one_option_leaves_the_others_as_they_are():
    """Options have defaults field by field, and are validated when they are made."""
    names = ("first", "factor", "max", "jitter", "on")
    assert all(getattr(Retry(attempts=3), name) == getattr(Retry(), name) for name in names)
    assert (Retry(first=MINUTE).attempts, After(HOUR, E.GO).name) == (Retry().attempts, None)
    wrongs: list[dict[str, Any]] = [{"attempts": 0}, {"factor": 0.0}, {"jitter": -1.0}, {"first": -SECOND}]
    for wrong in wrongs:
        with pytest.raises((ValueError, TypeError)):
            Retry(**wrong)


async def test_timers_that_wait_for_one_busy_instance_take_no_place_from_others(memory, clock):
    """More of them than the Manager may work at: a hook that runs for long delays its own instance only."""
    gate = Gate()
    async with Manager(flow(on_enter={S.B: gate.hook}), memory, clock=clock, concurrency=4, drain=SECOND) as m:
        for id in ("busy", "other"):
            await m.start(id)
        for n in range(20):
            await m.send_later("busy", E.ADD, 1, after=MINUTE, key=f"k{n}")
        sending = asyncio.ensure_future(m.send("busy", E.GO))
        await gate.entered.wait()
        advancing = asyncio.ensure_future(clock.advance(2 * MINUTE))
        try:
            await asyncio.sleep(0.05)
            await m.send_later("other", E.NOTE, at=NOON)
            await moved(m, "other", 2.0)
        finally:
            gate.open.set()
            await asyncio.gather(sending, advancing)
        assert (await m.get("busy")).context.n == 20
