"""Calls once were answered wrongly here: with the wrong error, the wrong `committed`, or not at all."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Any

import pytest

from tests.flows import SECOND, E, Gate, Log, S, Tap, edged, flow, inner, quiet, standing_by, story, until
from workflow import (
    Busy,
    Edge,
    GuardError,
    HookFailed,
    Manager,
    Spec,
    StoreError,
    StoreUnavailable,
    UnknownState,
    effect,
    sight,
)
from workflow.record import Locked


class OldState(StrEnum):
    """What an old process draws."""

    A = "a"
    B = "b"


class NewState(StrEnum):
    """What a new one draws beyond it."""

    A = "a"
    B = "b"
    X = "x"


class OldEvent(StrEnum):
    """What moves the old one."""

    GO = "go"
    BACK = "back"


class NewEvent(StrEnum):
    """What moves the new one."""

    GO = "go"
    NEXT = "next"


def old(hook) -> Any:
    """The old process's drawing."""
    edges: Any = [Edge(OldState.A, OldEvent.GO, OldState.B), Edge(OldState.B, OldEvent.BACK, OldState.A)]
    return Spec("w", initial=OldState.A, edges=edges, on_enter={OldState.B: hook})


def new(hook) -> Any:
    """The new process's drawing: its hook leads on to a state that the old one does not know."""
    edges: Any = [Edge(NewState.A, NewEvent.GO, NewState.B), Edge(NewState.B, NewEvent.NEXT, NewState.X)]
    return Spec("w", initial=NewState.A, edges=edges, final={NewState.X}, on_enter={NewState.B: hook}, version=2)


async def away(*args):
    """No renewal comes through."""
    raise StoreUnavailable("away", committed=False)


async def test_a_move_that_a_newer_process_led_on_to_a_state_unknown_here(store, clock):
    """Who hears UnknownState of his own durable move, at once or as he repeats it, hears that it is committed."""
    gate, log, tap = Gate(name="b"), Log(), Tap(store)
    lease = 3 * SECOND
    async with (
        Manager(old(gate.hook), tap, clock=clock, work=False, lease=lease, drain=SECOND) as m,
        Manager(new(log.hook("b", NewEvent.NEXT)), store, clock=clock, work=False) as n,
    ):
        await m.start("i")
        sent = asyncio.create_task(m.send("i", OldEvent.GO, key="k"))
        await gate.entered.wait()
        tap.before["renew"] = away
        await clock.advance(lease)
        assert (await n.resume()).effects == 1
        assert await n.state("i") is NewState.X
        gate.open.set()
        for call in (sent, m.send("i", OldEvent.GO, key="k")):
            with pytest.raises(UnknownState) as e:
                await call
            assert (e.value.state, e.value.committed) == ("x", True)
        with pytest.raises(UnknownState) as e:
            await m.send("i", OldEvent.GO)
        assert e.value.committed is False
        assert log == ["b"]


# --- guards that hang -----------------------------------------------------------------------------


async def hangs(m) -> bool:
    """No answer, ever."""
    return await asyncio.Event().wait()


async def test_a_guard_that_hangs(store, clock, monkeypatch):
    """The caller's timeout bounds his guards too, and nothing is written; others are not kept waiting."""
    monkeypatch.setattr(sight, "_MOMENT", 0.01)
    async with Manager(flow(edges=edged(Edge(S.A, E.GO, S.C, guard=hangs))), store, clock=clock) as m:
        await m.start("i")
        behind = None
        async with asyncio.timeout(10):
            with pytest.raises((Busy, GuardError)) as e:
                await m.send("i", E.GO, timeout=0)
            assert getattr(e.value, "committed", False) is False
            hanging = asyncio.create_task(m.send("i", E.GO, timeout=0.02))
            behind = asyncio.create_task(m.send("i", E.NOTE))
            assert (await behind).settled
            assert hanging.done()
            assert isinstance(hanging.exception(), (Busy, GuardError))
        assert await story(m) == ["start", "event"]
        assert quiet(m)


async def test_a_guard_of_a_returned_event_that_hangs(store, clock, monkeypatch):
    """A run does not wait for ever for the guard of an event that its hook returned: that is a failed attempt."""
    monkeypatch.setattr(effect, "_GUARD", 0.01)
    log = Log()
    edges = edged(Edge(S.B, E.GO, S.C, guard=hangs))
    async with Manager(flow(edges=edges, on_enter={S.B: log.hook("b", E.GO)}), store, clock=clock, work=False) as m:
        await m.start("i")
        async with asyncio.timeout(10):
            with pytest.raises(HookFailed) as e:
                await m.send("i", E.GO)
        assert e.value.retry_at is not None
        assert "TimeoutError" in e.value.error
        assert (await m.state("i"), log) == (S.B, ["b"])
        assert quiet(m)


# --- unknown outcomes -----------------------------------------------------------------------------


def slow_server(base):
    """A store that loses the connection at the first move and does the work later, holding a lock till then."""
    tap = Tap(base)
    tap.tries, tap.late = [], asyncio.Event()
    append = tap.append
    landed: list[Any] = []

    async def locked(commits, **more):
        if commits[0].changes[0].seq != 1:
            return await append(commits, **more)
        tap.tries.append(commits[0].id)
        if len(tap.tries) == 1:
            raise StoreUnavailable("the connection is lost, the server still at it", committed=None)
        if not tap.late.is_set():
            return [Locked()]
        if not landed:
            landed.append(await base.append(commits))
        return await append(commits, **more)

    tap.append = locked
    return tap


async def test_locked_after_an_unknown_outcome(store, clock):
    """An instance that is locked after a lost answer may be locked by that very commit: it is asked again."""
    tap = slow_server(store)
    async with Manager(flow(), tap, clock=clock) as m:
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.GO))
        await until(lambda: sent.done() or len(tap.tries) > 2)
        assert not sent.done()
        tap.late.set()
        assert (await sent).state is S.B
        assert len(set(tap.tries)) == 1
        assert await story(m) == ["start", "event"]


async def test_locked_until_the_end_is_still_unknown(store, clock):
    """Who gives up while it is locked hears that the outcome is unknown, not that nothing was written."""
    tap = slow_server(store)
    async with Manager(flow(), tap, clock=clock) as m:
        await m.start("i")
        with pytest.raises((StoreError, Busy)) as e:
            await m.send("i", E.GO, timeout=0.05)
        assert e.value.committed is None
        assert len(tap.tries) > 1
        tap.late.set()
        await until(lambda: not inner(m).unsettled)
        assert await m.state("i") is S.B
        assert await story(m) == ["start", "event"]


# --- circles that are none ------------------------------------------------------------------------


async def test_a_task_of_an_earlier_hook_closes_no_circle(store, clock):
    """Whom a task waits for that a hook left behind is nothing to the next hook of that instance."""
    tasks, answers, gate, reached = [], [], Gate(), asyncio.Event()

    async def one(move):
        if move.id == "x":
            tasks.append(asyncio.create_task(m.send("y", E.GO)))
            await reached.wait()

    async def two(move):
        if move.id == "x":
            await gate.hook(move)
        else:
            reached.set()
            await gate.entered.wait()
            answers.append(await m.send("x", E.NOTE))

    async with Manager(flow(on_enter={S.B: [one, two]}), store, clock=clock, drain=SECOND) as m:
        for id in "xy":
            await m.start(id)
        sent = asyncio.create_task(m.send("x", E.GO))
        await gate.entered.wait()
        await until(lambda: standing_by(m, "x") or tasks[0].done())
        gate.open.set()
        assert (await sent).settled
        assert (await tasks[0]).settled
        assert answers[0].state is S.B
        assert await story(m, "x") == ["start", "event", "event"]
        assert quiet(m)


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize("swapped", [False, True])
def test_a_manager_says_what_it_takes(memory, swapped):
    """Arguments that are no spec and no store are told at the line that gives them."""
    args: Any = (memory, flow()) if swapped else ("x", memory)
    with pytest.raises(TypeError, match="a Manager takes a Spec and a store, not "):
        Manager(*args)
    with pytest.raises(TypeError, match=r"a Manager takes a Spec and a store, not .* and 'orders.db'"):
        Manager(flow(), "orders.db")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
