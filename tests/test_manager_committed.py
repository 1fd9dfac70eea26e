"""Every error says whether the move was committed."""

from __future__ import annotations

import pytest

from tests.flows import ONCE, ROW, E, Log, S, flow
from workflow import Deny, Edge, HookFailed, Manager, StoreUnavailable, WorkflowError, errors
from workflow.testing import Faults


def boom(m):
    raise ValueError("boom")


CASES = {
    "AlreadyStarted": lambda m: m.start("i"),
    "KeyConflict": lambda m: m.send("i", E.NOTE, key="s"),
    "UnknownInstance": lambda m: m.send("nobody", E.NOTE),
    "IllegalTransition": lambda m: m.send("i", E.BACK),
    "GuardRejected": lambda m: m.send("i", E.STOP, "closed"),
    "GuardError": lambda m: m.send("i", E.NOTE, "boom"),
    "InvalidPayload": lambda m: m.send("i", E.ADD, "x"),
    "InvalidContext": lambda m: m.start("j", 7),
    "InvalidName": lambda m: m.send("", E.GO),
    "Finished": lambda m: m.send("ended", E.GO),
    "NotRunning": lambda m: m.send("broken", E.GO),
}


@pytest.mark.parametrize("name", sorted(CASES))
async def test_refusals(store, name):
    """A refusal wrote nothing, says so, and its message says what to do next."""
    edges = (
        Edge(S.A, E.STOP, S.END, guard=lambda m: Deny("closed")),
        Edge(S.A, E.NOTE, S.C, guard=lambda m: m.payload == "boom" and boom(m)),
    )
    log = Log()
    rest = [edge for edge in ROW if edge.event is not E.STOP]
    spec = flow(
        edges=(*edges, *rest, Edge((S.B, S.C, S.D), E.STOP, S.END)), on_enter={S.D: log.failing("d")}, retry=ONCE
    )
    async with Manager(spec, store) as m:
        await m.start("i", key="s")
        await m.send("ended", E.GO, start=True)
        await m.send("ended", E.STOP)
        await m.send("broken", E.GO, start=True)
        await m.send("broken", E.GO)
        with pytest.raises(HookFailed):
            await m.send("broken", E.GO)
        before = [len(await m.history(id)) for id in ("i", "ended", "broken")]
        with pytest.raises(WorkflowError) as e:
            await CASES[name](m)
        assert type(e.value) is getattr(errors, name)
        assert e.value.committed is False
        assert [len(await m.history(id)) for id in ("i", "ended", "broken")] == before


async def test_the_move_stands(store, clock):
    """HookFailed: committed."""
    log = Log()
    async with Manager(flow(on_enter={S.B: log.failing("b")}, retry=ONCE), store, clock=clock) as m:
        await m.start("i")
        with pytest.raises(HookFailed) as e:
            await m.send("i", E.GO)
        assert e.value.committed is True
        with pytest.raises(errors.NotRunning) as after:
            await m.send("i", E.GO)
        assert after.value.committed is False


async def test_nobody_knows(store):
    """StoreUnavailable of a commit that was on its way: None."""
    faults = Faults(store)
    async with Manager(flow(), faults) as m:
        await m.start("i")
        faults.fail("append", 1, "before")
        with pytest.raises(StoreUnavailable) as e:
            await m.send("i", E.GO, timeout=0)
        assert e.value.committed is None
