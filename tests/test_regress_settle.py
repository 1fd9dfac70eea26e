"""Settling once was wrong here: what stands when an acknowledgement is lost, and what a dropped line hides."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Any

import pytest
from attrs import evolve
from msgspec.structs import replace

from tests.flows import (
    EVERY_SECOND,
    MINUTE,
    ROW,
    SECOND,
    TWICE,
    Ctx,
    E,
    Gate,
    Log,
    S,
    Tap,
    flow,
    inner,
    quiet,
    story,
    until,
)
from workflow import (
    STAY,
    Edge,
    HookFailed,
    Manager,
    Spec,
    Status,
    StoreError,
    StoreUnavailable,
    Then,
    effect,
)
from workflow.record import QUEUE, Change, Commit, Committed, Put


def settles(commits):
    """Is this the commit of an owner, not of a sender?"""
    return commits[0].changes[0].lease is not None


def noted(log, name):
    """A hook that notes its attempt too."""

    async def hook(m):
        log.append(f"{name}#{m.attempt}")

    return hook


async def row(store):
    """The effects row of the instance."""
    (loaded,) = await store.load("flow", ["i"])
    return loaded.effects


# --- events behind a dropped line -----------------------------------------------------------------


async def test_an_event_behind_a_dropped_line_is_judged(store, clock):
    """An event returned by an entry that stays is judged when the line it waited for is dropped by an undoing."""
    log = Log()

    async def add(m):
        log.append("add")
        return Then(E.ADD, 1)

    async def note(m):
        log.append(f"note#{m.attempt}")
        if m.attempt == 1:
            raise ValueError

    fails = log.failing("go", 1)

    async def go(m):
        await fails(m)
        return E.GO

    go.__qualname__ = "go"
    spec = flow(
        edges=(Edge(S.B, E.NOTE, STAY, action=note), *ROW),
        on_enter={S.B: [go, add], S.C: log.hook("enter c")},
        compensators={S.C: log.hook("undo c")},
        retry=EVERY_SECOND,
    )
    async with Manager(spec, store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        assert not (await m.send("i", E.NOTE)).settled
        await clock.advance(SECOND)
        # GO made line 4, behind the note, which failed; ADD waits for the effects of line 4.
        assert log == ["go", "go", "add", "note#1"]
        await m.compensate("i", S.B)
        await clock.advance(5 * SECOND)
        assert log == ["go", "go", "add", "note#1", "note#2"]
        head = await m.settled("i")
        assert (head.state, head.context.n) == (S.B, 1)
        assert await row(store) is None
        assert await story(m) == ["start", "event", "event", "event", "compensate", "event"]
        assert quiet(m)


# --- acknowledgements that were lost --------------------------------------------------------------


@pytest.mark.parametrize("changes", [False, True], ids=["no line", "update line"])
async def test_an_effect_leased_to_us_behind_our_back_is_run(store, clock, changes):
    """When the last settle landed unheard and a sender slips in, the run goes on with what the sender left to it."""
    log = Log()
    slipped: list[Any] = []

    async def enter(m):
        log.append("b")
        if changes:
            m.update(lambda context: evolve(context, n=7))

    async def after(commits):
        if settles(commits) and not slipped:
            slipped.append(await m.send("i", E.NOTE, timeout=0))
            raise StoreUnavailable("the answer is lost", committed=None)

    spec = flow(edges=(Edge(S.B, E.NOTE, STAY, action=noted(log, "note")), *ROW), on_enter={S.B: enter})
    tap = Tap(store)
    tap.after["append"] = after
    async with Manager(spec, tap, clock=clock, work=False, drain=SECOND) as m:
        await m.start("i")
        assert (await m.send("i", E.GO)).settled
        assert not slipped[0].settled
        await until(lambda: quiet(m))
        assert log == ["b", "note#1"]
        assert await row(store) is None


@pytest.mark.parametrize("changes", [False, True], ids=["no line", "update line"])
async def test_a_beat_that_found_no_row_does_not_cost_the_next(store, clock, changes):
    """A run whose row was gone for a moment has not lost the lease it was given afterwards."""
    log = Log()
    slipped: list[Any] = []

    async def enter(m):
        log.append("b")
        if changes:
            m.update(lambda context: evolve(context, n=7))

    async def after(commits):
        if settles(commits) and not slipped:
            slipped.append(await m._background.keeper.renew())
            await m.send("i", E.NOTE, timeout=0)
            raise StoreUnavailable("the answer is lost", committed=None)

    spec = flow(edges=(Edge(S.B, E.NOTE, STAY, action=noted(log, "note")), *ROW), on_enter={S.B: enter})
    tap = Tap(store)
    tap.after["append"] = after
    async with Manager(spec, tap, clock=clock, drain=SECOND) as m:
        await m.start("i")
        assert (await m.send("i", E.GO)).settled
        await clock.advance(MINUTE)
        assert log == ["b", "note#1"]
        assert await row(store) is None


async def test_a_queue_has_one_run(store, clock):
    """A run whose settle comes through only after its Manager took the work again leaves the queue to the new run."""
    log, gate, tap = Log(), Gate(name="two"), Tap(store)
    away = [True]
    first: list[str] = []

    async def appends(commits):
        if settles(commits):
            first[:] = first or [commits[0].id]
            if away and commits[0].id == first[0]:
                raise StoreUnavailable("away", committed=None)

    async def renews(*args):
        if away:
            raise StoreUnavailable("away", committed=False)

    tap.before |= {"append": appends, "renew": renews}
    spec = flow(on_enter={S.B: [noted(log, "one"), gate.hook]})
    async with Manager(spec, tap, clock=clock, lease=3 * SECOND, drain=SECOND) as m:
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.GO))
        await until(lambda: first)
        walk = asyncio.create_task(clock.advance(3 * SECOND))
        await gate.entered.wait()
        away.clear()
        await until(lambda: sent.done() or gate.calls > 1)
        assert gate.calls == 1
        assert not (await sent).settled
        gate.open.set()
        await walk
        await m.settled("i")
        assert log == ["one#1", "one#2"]
        assert gate.ended == 1
        assert quiet(m)


async def test_a_failure_that_was_mended_is_not_told(store, clock):
    """HookFailed is not raised for a failure that a later attempt, done before its answer was known, has mended."""
    log = Log()
    lost: list[str] = []

    async def after(commits):
        if settles(commits) and not lost:
            lost.append(commits[0].id)
            await clock.advance(SECOND)
            raise StoreUnavailable("the answer is lost", committed=None)

    tap = Tap(store)
    tap.after["append"] = after
    spec = flow(on_enter={S.B: log.failing("b", 1)}, retry=TWICE)
    async with Manager(spec, tap, clock=clock) as m:
        await m.start("i")
        done = await m.send("i", E.GO)
        assert (done.settled, log) == (True, ["b", "b"])
        assert (await m.get("i")).status == Status.RUNNING
        assert await story(m) == ["start", "event"]


# --- what is refused for good ---------------------------------------------------------------------


async def test_a_settle_that_is_refused_for_good_ends_its_run(store, clock, monkeypatch):
    """The run of a settle that the store refuses again and again ends, and its lease runs out."""
    monkeypatch.setattr(effect, "_SETTLING", 2)
    log = Log()
    refused: list[str] = []

    async def before(commits):
        if settles(commits) and len(refused) < 2:
            refused.append(commits[0].id)
            raise StoreError("refused", committed=False)

    tap = Tap(store)
    tap.before["append"] = before
    lease = 3 * SECOND
    async with Manager(flow(on_enter={S.B: noted(log, "b")}), tap, clock=clock, lease=lease, drain=SECOND) as m:
        await m.start("i")
        assert not (await m.send("i", E.GO)).settled
        assert quiet(m)
        assert len(set(refused)) == 1
        left = await row(store)
        await clock.advance(lease - SECOND)
        assert await row(store) == left
        assert log == ["b#1"]
        await clock.advance(SECOND)
        assert log == ["b#1", "b#2"]
        assert await row(store) is None


# --- what this code does not know -----------------------------------------------------------------


class More(StrEnum):
    """The events of a newer process."""

    GO = "go"
    NOTE = "note"
    ADD = "add"
    STOP = "stop"
    LEAP = "leap"


def newer(**more: Any) -> Spec[Any, Any, Any]:
    """The row as a newer process draws it: LEAP is new, and ADD carries a text."""
    edges: Any = [
        Edge(S.A, More.GO, S.B),
        Edge(S.B, More.LEAP, S.D),
        Edge(S.B, More.GO, S.C),
        Edge(S.C, More.GO, S.D),
        Edge(S.B, More.NOTE, STAY),
        Edge(S.B, More.ADD, STAY),
        Edge([S.A, S.B, S.C, S.D], More.STOP, S.END),
    ]
    drawn: dict[str, Any] = {"initial": S.A, "final": {S.END}, "context": Ctx, "payloads": {More.ADD: str}}
    return Spec("flow", edges=edges, retry=TWICE, **drawn, **more)


@pytest.mark.parametrize("returned", [More.LEAP, Then(More.ADD, "much")], ids=["word", "payload"])
async def test_a_returned_event_that_this_code_does_not_know(store, clock, returned):
    """A returned event whose word or payload this code does not know is set aside: held, no failure, sends go on."""
    log = Log()
    async with store:
        spec = newer(on_enter={S.B: [log.hook("one", returned), log.failing("two")]})
        async with Manager(spec, store, clock=clock, work=False) as n:
            await n.start("i")
            with pytest.raises(HookFailed):
                await n.send("i", More.GO)
        await clock.advance(SECOND)
        old = flow(on_enter={S.B: [log.hook("one"), log.hook("two")], S.C: log.hook("c")})
        async with Manager(old, store, clock=clock, work=False) as m:
            assert (await m.resume()).failed == ("i",)
            assert log == ["one", "two", "two"]
            held = await row(store)
            assert (held.held, held.token) == (True, None)
            head = await m.settled("i")
            assert (head.state, head.status) == (S.B, Status.RUNNING)
            await clock.advance(MINUTE)
            assert (await m.resume()).effects == 0
            assert (await m.send("i", E.NOTE)).state is S.B
            moved = await m.send("i", E.GO)
            assert (moved.state, moved.settled) == (S.C, False)
            assert await row(store) == held
            assert await story(m) == ["start", "event", "event", "event"]
        assert log == ["one", "two", "two"]


@pytest.mark.parametrize("number", [0, 1], ids=["effect due", "only events left"])
async def test_a_body_that_this_code_cannot_read(store, clock, number):
    """An effects row whose body does not decode is set aside and is in no send's way."""
    log = Log()
    spec = flow(on_enter={S.B: log.failing("b")}, retry=EVERY_SECOND)
    async with store, Manager(spec, store, clock=clock, work=False) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        strange = Put(name=QUEUE, seq=2, number=number, attempt=1, body='{"plan":"b","events":7}')
        change = Change(workflow="flow", id="i", seq=2, puts=(strange,))
        (answer,) = await store.append([Commit(id="0" * 32, token="t", changes=(change,), now=clock.now())])
        assert isinstance(answer, Committed)
        assert (await m.send("i", E.NOTE)).state is S.B
        assert (await m.resume()).failed == ("i",)
        held = await row(store)
        assert held == replace(held, held=True, token=None, body=strange.body)
        assert (await m.send("i", E.NOTE)).state is S.B
        assert (await m.settled("i")).status == Status.RUNNING
        with pytest.raises(StoreError, match="nothing can be undone safely") as unread:
            await m.compensate("i", S.A)
        assert unread.value.committed is False
        assert log == ["b"]
        assert inner(m).rest._running == {}
