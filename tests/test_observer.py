"""Facts for whoever watches."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from stores import MemoryStore
from tests.flows import MINUTE, ONCE, SECOND, TWICE, E, Gate, Log, M, S, Tap, edged, flow, turns, until
from workflow import (
    After,
    Deny,
    Edge,
    GuardRejected,
    HookFailed,
    IllegalTransition,
    LeaseLost,
    LoggingObserver,
    Manager,
    Observer,
    StoreError,
    StoreUnavailable,
)
from workflow.observer import FACTS, Ran, Recorded, Refused, Repeated, Trouble
from workflow.testing import Faults


class Ear(list[Any]):
    """Hears everything: (name, fact)."""

    def __getattr__(self, name: str) -> Any:
        if name not in FACTS:
            raise AttributeError(name)
        return lambda fact: self.append((name, fact))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self]

    def of(self, *names: str) -> list[Any]:
        """These facts alone."""
        return [fact for name, fact in self if name in names]


def ear() -> Any:
    return Ear()


async def test_a_move_and_its_effects(store, clock):
    """Each line once, each effect's beginning and end, in the order in which they became true."""
    heard, log = ear(), Log()
    spec = flow(on_enter={S.B: [log.hook("one"), log.plain("two")]})
    async with Manager(spec, store, clock=clock, observer=heard) as m:
        await m.start("i")
        await m.send("i", E.GO, key="k")
    assert heard.names == ["transition_committed"] * 2 + ["effect_started", "effect_ended"] * 2
    first, moved = heard.of("transition_committed")
    assert first == Recorded("flow", "i", 1, "start", None, None, "a", "running", None, clock.now())
    assert moved == Recorded("flow", "i", 2, "event", "a", "go", "b", "running", "k", clock.now())
    began = heard.of("effect_started")
    assert [(f.workflow, f.id, f.seq, f.hook, f.attempt, f.duration) for f in began] == [
        ("flow", "i", 2, "one", 1, None),
        ("flow", "i", 2, "two", 1, None),
    ]
    assert [fact.effect for fact in began] == [name for name in spec.tables.effects if "enter" in name]
    assert all(fact.duration >= 0 and fact.error is None for fact in heard.of("effect_ended"))


async def test_both_lines_of_a_send_that_starts(memory, clock):
    """A commit of two lines is two facts."""
    heard = ear()
    async with Manager(flow(), memory, clock=clock, observer=heard) as m:
        await m.send("i", E.GO, start=True)
    assert [fact.seq for fact in heard.of("transition_committed")] == [1, 2]


async def test_facts_come_after_the_commit(memory, clock):
    """Nothing is told that could still be untrue."""
    order: list[str] = []
    tap, heard = Tap(memory), ear()

    async def stored(*args: Any) -> None:
        order.append("stored")

    class Mine(Observer):
        def transition_committed(self, fact: Recorded) -> None:
            order.append(f"told {fact.seq}")

    tap.after["append"] = stored
    async with Manager(flow(), tap, clock=clock, observer=Mine()) as m:
        await m.start("i")
        await m.send("i", E.GO)
    assert order == ["stored", "told 1", "stored", "told 2"]
    assert heard == []


async def test_a_line_is_told_once_though_its_acknowledgement_was_lost(memory, clock):
    """The identical commit that is appended again makes no second fact."""
    heard, faults = ear(), Faults(memory)
    async with Manager(flow(), faults, clock=clock, observer=heard) as m:
        await m.start("i")
        faults.fail("append", 1, "after")
        await m.send("i", E.GO)
    assert [fact.seq for fact in heard.of("transition_committed")] == [1, 2]


async def test_a_failing_effect(store, clock):
    """Failed and tried again, then failed and given up; the line that says so is told as well."""
    heard, log = ear(), Log()
    spec = flow(on_enter={S.B: log.failing("b")}, retry=TWICE)
    async with Manager(spec, store, clock=clock, observer=heard) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await clock.advance(MINUTE)
    started = "effect_started"
    assert heard.names[2:] == [
        *(started, "effect_failed", "effect_retried"),
        *(started, "transition_committed", "effect_failed", "effect_gave_up"),
    ]
    (retried,), (given_up,) = heard.of("effect_retried"), heard.of("effect_gave_up")
    assert (retried.attempt, retried.retry_at, type(retried.cause)) == (1, clock.now() - MINUTE + SECOND, ValueError)
    assert "b fails" in retried.error
    assert (given_up.hook, given_up.attempt, given_up.retry_at, given_up.seq) == ("b", 2, None, 2)
    assert given_up.duration is not None
    assert heard.of("transition_committed")[-1].kind == "fail"


async def test_a_returned_event_that_is_not_taken(memory, clock):
    """The hook did its work; its event does not go on by itself."""
    heard, log = ear(), Log()
    spec = flow(on_enter={S.B: log.hook("b", E.BACK)})
    async with Manager(spec, memory, clock=clock, observer=heard) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
    assert heard.names[3:] == ["transition_committed", "refused", "effect_ended", "effect_gave_up"]
    (refused,) = heard.of("refused")
    assert (refused.seq, refused.event) == (3, "back")


async def test_a_lost_lease(store, clock):
    """Whose effect another took over is told so, with the hook and the attempt that were lost."""
    heard, one, two, tap = ear(), Gate(), Gate(), Tap(store)
    two.open.set()

    async def away(*args: Any) -> None:
        raise StoreUnavailable("away")

    async with (
        Manager(flow(on_enter={S.B: one.hook}), tap, clock=clock, work=False, observer=heard) as m,
        Manager(flow(on_enter={S.B: two.hook}), store, clock=clock),
    ):
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.GO))
        await one.entered.wait()
        tap.before["renew"] = away
        await clock.advance(MINUTE)
        assert two.ended == 1
        del tap.before["renew"]
        await clock.advance(MINUTE)
        with pytest.raises(LeaseLost):
            await sent
    (lost,) = heard.of("lease_lost")
    assert (lost.workflow, lost.id, lost.seq, lost.hook, lost.attempt) == ("flow", "i", 2, "b", 1)
    assert {fact.what for fact in heard.of("store_unavailable")} == {"renewing leases"}


async def test_repeats_and_refusals(memory, clock):
    """A repeat is told with the line that it repeats, a refusal with its error."""
    heard = ear()
    spec = flow(edges=edged(Edge(S.A, E.BACK, S.B, guard=lambda m: Deny("no"))))
    async with Manager(spec, memory, clock=clock, observer=heard) as m:
        await m.start("i", key="k")
        await m.start("i", key="k")
        with pytest.raises(IllegalTransition):
            await m.send("i", E.BACK)
    assert heard.of("duplicate") == [Repeated("flow", "i", "k", 1)]
    (refused,) = heard.of("refused")
    assert (refused.id, refused.event, refused.key, refused.seq) == ("i", "back", None, None)
    assert isinstance(refused.cause, GuardRejected)


async def test_a_timeout_whose_event_is_refused(memory, clock):
    """It is on record, and told as refused with its line."""
    heard = ear()
    edges = edged(Edge(S.B, E.BACK, S.A, guard=lambda m: Deny("not now")))
    spec = flow(edges=edges, timeouts={S.B: After(MINUTE, E.BACK)})
    async with Manager(spec, memory, clock=clock, observer=heard) as m:
        await m.start("i")
        await m.send("i", E.GO)
        await clock.advance(MINUTE)
    (refused,) = heard.of("refused")
    assert isinstance(refused, Refused)
    assert (refused.seq, refused.event) == (3, "back")
    assert "not now" in refused.error


async def test_a_timeout_that_nobody_can_judge(memory, clock):
    """Its row is told as an effect that is tried again, then given up."""

    def broken(m: M) -> bool:
        raise ValueError("broken")

    heard = ear()
    spec = flow(
        edges=edged(Edge(S.B, E.BACK, S.A, guard=broken)), timeouts={S.B: After(MINUTE, E.BACK, name="t")}, retry=TWICE
    )
    async with Manager(spec, memory, clock=clock, observer=heard) as m:
        await m.start("i")
        await m.send("i", E.GO)
        await clock.advance(MINUTE * 2)
    (retried,), (given_up,) = heard.of("effect_retried"), heard.of("effect_gave_up")
    assert (retried.hook, retried.attempt, given_up.attempt) == ("timeout/t", 1, 2)
    assert retried.retry_at is not None
    assert given_up.retry_at is None


async def test_trouble_with_the_store(memory, clock):
    """What the background asks again is told with the pause, what a caller hears without."""
    heard, faults = ear(), Faults(memory)
    faults.fail("next_due", 1)
    async with Manager(flow(), faults, clock=clock, observer=heard) as m:
        await until(lambda: heard.of("store_unavailable"))
        faults.fail("load", 1)
        with pytest.raises(StoreUnavailable):
            await m.send("i", E.GO)
    first, second = heard.of("store_unavailable")
    assert (first.workflow, first.what) == ("flow", "looking for due work")
    assert first.pause > 0
    assert (second.what, second.pause, second.abandoned) == ("a call for i", None, False)
    assert isinstance(second.cause, StoreUnavailable)


async def test_a_settle_that_the_store_refuses_for_good(memory, clock):
    """It is told that the lease is left to run out."""
    heard, tap = ear(), Tap(memory)

    async def refused(*args: Any) -> None:
        if tap.calls["append"] > 2:
            raise StoreError("disk full")

    tap.before["append"] = refused
    spec = flow(on_enter={S.B: Log().hook("b")})
    async with Manager(spec, tap, clock=clock, work=False, observer=heard, drain=SECOND * 0) as m:
        await m.start("i")
        assert not (await m.send("i", E.GO, timeout=5)).settled
    (fact,) = heard.of("store_unavailable")
    assert isinstance(fact, Trouble)
    assert (fact.abandoned, fact.what) == (True, "settling effects of i")


@pytest.mark.parametrize("error", [ValueError("boo"), asyncio.CancelledError()])
async def test_an_observer_that_raises_is_harmless(memory, clock, caplog, error):
    """It is logged once for each kind of fact; what was watched goes its way."""

    class Rude(Observer):
        def transition_committed(self, fact: Recorded) -> None:
            raise error

        def effect_ended(self, fact: Ran) -> None:
            raise error

    async with Manager(flow(on_enter={S.B: Log().hook("b")}), memory, clock=clock, observer=Rude()) as m:
        await m.start("i")
        assert (await m.send("i", E.GO)).settled
        assert (await m.send("i", E.NOTE)).settled
    assert [record.args[0] for record in caplog.records] == ["transition_committed", "effect_ended"]


async def test_nothing_is_made_that_nobody_hears(memory, clock, monkeypatch):
    """Where the logger is not at DEBUG and all goes well, no fact comes into being; nor for an observer of little."""

    def made(*args: Any, **more: Any) -> Any:
        raise AssertionError("a fact was made")

    class Little(Observer):
        def lease_lost(self, fact: Ran) -> None:
            """Only this."""

    for place in ("observer.Recorded", "call.Ran", "told.Ran"):
        monkeypatch.setattr(f"workflow.{place}", made)
    spec = flow(on_enter={S.B: Log().hook("b")})
    for number, observer in enumerate((None, Little())):
        async with Manager(spec, memory, clock=clock, observer=observer) as m:
            await m.start(f"{number}")
            assert (await m.send(f"{number}", E.GO)).settled


async def test_the_log_at_debug(memory, clock, caplog):
    """Records of the logger "enumflow" with the fields of the fact as attributes."""
    caplog.set_level(logging.DEBUG, "enumflow")
    async with Manager(flow(on_enter={S.B: Log().hook("b")}), memory, clock=clock) as m:
        await m.start("i")
        await m.send("i", E.GO, key="k")
        await m.send("i", E.GO, key="k")
        with pytest.raises(IllegalTransition):
            await m.send("i", E.BACK)
    records: Any = [record for record in caplog.records if record.name == "enumflow"]
    assert [record.fact for record in records] == [
        *("transition_committed", "transition_committed", "effect_started", "effect_ended", "duplicate", "refused"),
    ]
    assert {record.levelname for record in records} == {"DEBUG"}
    moved, ended = records[1], records[3]
    assert (moved.workflow, moved.id, moved.seq, moved.event, moved.key) == ("flow", "i", 2, "go", "k")
    assert moved.getMessage() == "line 2 of flow i: event"
    assert (ended.hook, ended.attempt, ended.error) == ("b", 1, None)
    assert ended.duration >= 0


async def test_the_log_of_failures(memory, clock, caplog):
    """A retry is INFO, giving up is ERROR with the traceback, a store that is away a WARNING."""
    caplog.set_level(logging.INFO, "enumflow")
    faults = Faults(memory)
    faults.fail("next_due", 1)
    spec = flow(on_enter={S.B: Log().failing("b")}, retry=TWICE)
    async with Manager(spec, faults, clock=clock) as m:
        await until(lambda: faults.calls["next_due"] > 1)
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        await clock.advance(MINUTE)
    told: Any = [(r.levelname, r.fact) for r in caplog.records]
    assert told == [
        ("WARNING", "store_unavailable"),
        ("INFO", "effect_retried"),
        ("ERROR", "effect_gave_up"),
    ]
    last = caplog.records[-1]
    assert last.getMessage() == "b of flow i is given up: ValueError: b fails"
    assert last.exc_info is not None


async def test_a_heir_of_the_log_hears_what_it_overrides(memory, clock):
    """Whatever the level of the logger is."""
    seen: list[int] = []

    class Counting(LoggingObserver):
        def effect_ended(self, fact: Ran) -> None:
            seen.append(fact.seq)
            super().effect_ended(fact)

    spec = flow(on_enter={S.B: Log().hook("b")})
    async with Manager(spec, memory, clock=clock, observer=Counting(logging.getLogger("mine"))) as m:
        await m.send("i", E.GO, start=True)
    assert seen == [2]


def test_what_is_no_observer():
    """Waiting methods would never run, and an object without any of the methods hears nothing: both are refused."""

    class Waiting(Observer):
        async def lease_lost(self, fact: Ran) -> None:  # type: ignore[override]  # on purpose
            """Never awaited."""

    for wrong in (Waiting(), print, 3):
        bad: Any = wrong
        with pytest.raises(TypeError, match=r"plain method|no observer"):
            Manager(flow(), MemoryStore(), observer=bad)


async def test_one_attempt_given_up_at_once(memory, clock):
    """No word of a retry."""
    heard = ear()
    spec = flow(on_enter={S.B: Log().failing("b")}, retry=ONCE)
    async with Manager(spec, memory, clock=clock, observer=heard) as m:
        with pytest.raises(HookFailed):
            await m.send("i", E.GO, start=True)
        await turns()
    assert heard.names[-2:] == ["effect_failed", "effect_gave_up"]
