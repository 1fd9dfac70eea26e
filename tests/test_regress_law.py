"""What an acceptance test against the design found."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Any

import pytest

from tests.flows import Ctx, E, Log, S, flow
from workflow import (
    Edge,
    HookFailed,
    InvalidContext,
    Manager,
    NotRunning,
    Outcome,
    Permanent,
    Resumed,
    Retry,
    Spec,
    Status,
    UnknownState,
)


class Old(StrEnum):
    """The states before the deploy: B was called PAID."""

    A = "a"
    PAID = "paid"
    C = "c"


class New(StrEnum):
    """And after it."""

    A = "a"
    B = "b"
    C = "c"


async def test_managers_that_race_starve_nobody(store):
    """Forty sends through two Managers on one store all find their turn, without a Conflict."""
    async with Manager(flow(), store) as one, Manager(flow(), store) as two:
        await one.start("i")
        done = await asyncio.gather(*((one, two)[n % 2].send("i", E.ADD, 1) for n in range(40)), return_exceptions=True)
        assert [answer for answer in done if not isinstance(answer, Outcome)] == []
        assert (await one.get("i")).context.n == 40


def _spec(states: Any, middle: Any, hook: Any, **more: Any) -> Spec[Any, Any, Any]:
    edges = [Edge(states.A, E.GO, middle), Edge(middle, E.GO, states.C), Edge(states.C, E.BACK, states.A)]
    return Spec("flow", initial=states.A, edges=edges, on_enter={middle: hook}, **more)


async def test_a_rename_takes_along_what_is_owed(store, clock):
    """A hook owed under the state's former word runs once `renames` maps the word."""
    log = Log()
    async with store:
        async with Manager(_spec(Old, Old.PAID, log.failing("h", 1)), store, clock=clock, work=False) as m:
            await m.start("i")
            with pytest.raises(HookFailed):
                await m.send("i", E.GO)
        renamed = _spec(New, New.B, log.hook("h"), renames={"paid": New.B})
        assert await renamed.drifted(store) == []
        async with Manager(renamed, store, clock=clock) as m:
            await clock.advance(Retry().max)
            assert (await m.settled("i")).state is New.B
            assert log == ["h", "h"]


async def test_an_unknown_present_state_is_not_undone(store):
    """No compensator may be left out because the state that owes it is not drawn any more."""
    log = Log()
    async with store:
        async with Manager(_spec(Old, Old.PAID, log.hook("h"), compensators={Old.PAID: log.hook("u")}), store) as m:
            await m.start("i")
            await m.send("i", E.GO)
        async with Manager(_spec(New, New.B, log.hook("h")), store) as m:
            with pytest.raises(UnknownState):
                await m.compensate("i", New.A)
            assert len(await m.history("i")) == 2


async def test_an_update_that_cannot_be_kept(store):
    """The sender hears which rule the new context broke, in a public error."""

    async def hook(m: Any) -> None:
        m.update(lambda c: Ctx(n=float("nan")))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    async with Manager(flow(on_enter={S.B: hook}), store) as m:
        await m.start("i")
        with pytest.raises(HookFailed) as failed:
            await m.send("i", E.GO)
        assert isinstance(failed.value.__cause__, InvalidContext)


async def test_the_status_of_a_refusal_is_a_status(store):
    """`NotRunning.status` is a member, as in `Instance` and `Transition`."""

    async def hook(m: Any) -> None:
        raise Permanent("no")

    async with Manager(flow(on_enter={S.B: hook}), store) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        with pytest.raises(NotRunning) as refused:
            await m.send("i", E.GO)
        assert refused.value.status is Status.FAILED


def test_positions_count_as_drawn():
    """What the design writes without a star may be given by position."""
    assert Retry(3).attempts == 3
    assert Resumed(1, 0, ()) == Resumed(effects=1, timers=0, failed=())
    with pytest.raises(TypeError, match="exception class"):
        Retry(on=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
