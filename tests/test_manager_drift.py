"""Code and data drift apart: loud, and nobody else's trouble."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Any

import pytest
from attrs import frozen

from tests.flows import EVERY_SECOND, MINUTE, ROW, SECOND, Ctx, E, Gate, Log, S, crashing, flow, inner, story
from workflow import ANY, Edge, HookFailed, InvalidContext, Manager, Spec, Status, UnknownInstance, UnknownState


class Old(StrEnum):
    """The states as they were once: `b` was called `bee`."""

    A = "a"
    B = "bee"
    C = "c"
    D = "d"
    END = "end"


def old(**more):
    """The row of those states."""
    edges: list[Any] = [
        Edge(Old.A, E.GO, Old.B),
        Edge(Old.B, E.GO, Old.C),
        Edge(Old.C, E.GO, Old.D),
        Edge(ANY, E.STOP, Old.END),
    ]
    return Spec("flow", initial=Old.A, final={Old.END}, context=Ctx, edges=edges, **more)


async def test_a_state_nobody_knows(store):
    """A stored state that the spec no longer draws raises UnknownState; `history` gives the bare word."""
    async with Manager(old(), store) as m:
        await m.start("i")
        await m.send("i", E.GO)
    if type(store).__name__ == "SQLiteStore" and store._path == ":memory:":
        return
    async with Manager(flow(), store) as n:
        for call in (n.state("i"), n.get("i"), n.send("i", E.GO), n.accepted("i")):
            with pytest.raises(UnknownState) as e:
                await call
            assert (e.value.workflow, e.value.id, e.value.state, e.value.committed) == ("flow", "i", "bee", False)
            assert "renames" in str(e.value)
        lines = await n.history("i")
        assert [line.target for line in lines] == [S.A, "bee"]
        assert lines[1].source is S.A


async def test_undoing_over_a_state_nobody_knows(store):
    """An undoing that would lead over an unknown state is UnknownState before anything is written."""
    log = Log()
    async with store:
        async with Manager(old(), store) as m:
            await m.start("i")
            await m.send("i", E.GO)
            await m.send("i", E.GO)
        async with Manager(flow(compensators={S.C: log.hook("undo c")}), store) as n:
            with pytest.raises(UnknownState) as e:
                await n.compensate("i", S.A)
            assert (e.value.state, e.value.committed) == ("bee", False)
            assert await n.state("i") is S.C
            assert len(await n.history("i")) == 3
            assert log == []


async def test_renames(store):
    """`renames` maps the old word: judged, entered, compensated as the new state."""
    log = Log()
    async with store:
        async with Manager(old(), store) as m:
            await m.start("i")
            await m.send("i", E.GO, key="k")
            await m.send("i", E.GO)
        spec = flow(renames={"bee": S.B}, compensators={S.C: log.hook("undo c"), S.B: log.hook("undo b")})
        async with Manager(spec, store) as n:
            done = await n.compensate("i", S.B, key="c")
            assert done.state is S.B
            assert await n.state("i") is S.B
            again = await n.compensate("i", S.B, key="c")
            assert (again.duplicate, again.state) == (True, S.B)
            assert (await n.send("i", E.GO, key="k")).duplicate
            assert (await n.send("i", E.GO)).state is S.C
            await n.compensate("i", S.A)
            assert log == ["undo c", "undo c", "undo b"]
            assert [line.target for line in await n.history("i")][1] is S.B
            await story(n)


async def test_edited_callbacks_are_free(store, clock):
    """Only states and edges are contract: hooks, guards and assigns may change under a waiting instance."""
    log = Log()
    async with store:
        spec = flow(on_enter={S.B: [log.failing("b"), log.hook("old")]}, retry=EVERY_SECOND)
        async with Manager(spec, store, clock=clock, work=False) as m:
            await m.start("i")
            with pytest.raises(HookFailed):
                await m.send("i", E.GO)
        await clock.advance(MINUTE)
        new = flow(on_enter={S.B: [log.hook("inserted"), log.hook("b"), log.hook("old")]})
        async with Manager(new, store, clock=clock, work=False) as n:
            assert (await n.resume()).effects == 2
            assert log == ["b", "b", "old"]


async def test_a_hook_nobody_knows_is_held(store, clock):
    """An effect of a name this code does not know is held: it blocks no other instance, and no event of its own."""
    log = Log()
    async with store:
        gone = flow(on_enter={S.B: log.failing("gone")}, retry=EVERY_SECOND)
        async with Manager(gone, store, clock=clock, work=False) as m:
            await m.start("i")
            with pytest.raises(HookFailed):
                await m.send("i", E.GO)
        await clock.advance(MINUTE)
        spec = flow(on_enter={S.C: log.hook("c")})
        async with Manager(spec, store, clock=clock) as n:
            await n.send("j", E.GO, start=True)
            assert (await n.send("j", E.GO)).settled
            held = (await store.load("flow", ["i"]))[0].effects
            await clock.advance(MINUTE)
            held = (await store.load("flow", ["i"]))[0].effects
            assert (held.held, held.token, held.attempt) == (True, None, 1)
            assert (await n.get("i")).status is Status.RUNNING
            assert (await n.send("i", E.NOTE)).transition.seq == 3
            assert (await n.settled("i")).seq == 3
            assert log == ["gone", "c"]


async def test_a_payload_that_no_longer_fits(store, clock):
    """A stored payload or context that the code of today cannot read is set aside, its attempt restored."""

    @frozen
    class Other:
        needed: str

    log = Log()
    async with store:
        spec = flow(on_enter={S.B: log.failing("b")}, retry=EVERY_SECOND)
        async with Manager(spec, store, clock=clock, work=False) as m:
            await m.start("i")
            with pytest.raises(HookFailed):
                await m.send("i", E.GO)
        await clock.advance(MINUTE)
        changed = flow(
            edges=[edge for edge in ROW if edge.event is not E.ADD],
            context=Other,
            payloads={},
            on_enter={S.B: log.hook("b")},
        )
        async with Manager(changed, store, clock=clock, work=False) as n:
            assert (await n.resume()).failed == ("i",)
            assert log == ["b"]
            row = (await store.load("flow", ["i"]))[0].effects
            assert (row.held, row.attempt) == (True, 1)
            with pytest.raises(InvalidContext):
                await n.get("i")
            assert (await n.history("i"))[0].context == {"n": 0, "words": []}


async def test_work_of_a_higher_version_is_left_alone(store, clock):
    """A process leaves work of a version above its own alone; its events are judged all the same."""
    log, gate = Log(), Gate()
    async with store:
        newer = flow(on_enter={S.B: gate.hook}, version=2)
        async with crashing(Manager(newer, store, clock=clock)) as m:
            await m.start("i")
            sent = asyncio.create_task(m.send("i", E.GO))
            await gate.entered.wait()
        await asyncio.gather(sent, return_exceptions=True)
        older = flow(on_enter={S.B: log.hook("b"), S.C: log.hook("c")}, version=1)
        async with Manager(older, store, clock=clock) as n:
            await clock.advance(MINUTE)
            assert (await n.resume()).effects == 0
            done = await n.send("i", E.GO)
            assert (done.state, done.settled) == (S.C, False)
            await clock.advance(MINUTE)
            assert log == []
        same = flow(on_enter={S.B: log.hook("b"), S.C: log.hook("c")}, version=2)
        async with Manager(same, store, clock=clock, work=False) as n:
            assert (await n.resume()).effects == 2
            assert log == ["b", "c"]


async def test_an_instance_of_another_workflow(store):
    """Ids belong to their workflow."""
    async with Manager(flow("one"), store) as m, Manager(flow("two"), store) as n:
        await m.start("i", Ctx(1))
        with pytest.raises(UnknownInstance):
            await n.get("i")
        await n.start("i", Ctx(2))
        assert (await m.get("i")).context == Ctx(1)


# --- reading --------------------------------------------------------------------------------------


async def test_accepted(store):
    """Events whose guards pass now; a guard that raises counts as perhaps; none when finished."""

    async def waits(m):
        await asyncio.sleep(0)
        return m.context.n > 0

    def raises(m):
        return m.payload.amount > 3

    edges = [
        Edge(S.A, E.GO, S.B, guard=waits),
        Edge(S.A, E.BACK, S.C, guard=raises),
        Edge(S.A, E.NOTE, S.D, guard=lambda m: False),
        *ROW[1:4],
        *ROW[6:],
    ]
    async with Manager(flow(edges=edges, payloads={}), store) as m:
        await m.start("i")
        assert await m.accepted("i") == (E.BACK, E.STOP)
        await m.start("j", Ctx(1))
        assert await m.accepted("j") == (E.GO, E.BACK, E.STOP)
        await m.send("i", E.STOP)
        assert await m.accepted("i") == ()
        with pytest.raises(UnknownInstance):
            await m.accepted("k")
        for call in (m.state, m.get, m.history, m.settled):
            with pytest.raises(UnknownInstance):
                await call("k")


async def test_labels(store):
    """Labels are given at the start, kept, and are strings."""
    async with Manager(flow(), store) as m:
        labels = {"customer": "7", "ünï": "x"}
        await m.start("i", labels=labels)
        labels["customer"] = "8"
        await m.send("i", E.GO)
        assert (await m.get("i")).labels == {"customer": "7", "ünï": "x"}
        lines = await m.history("i")
        assert (lines[0].labels, lines[1].labels) == ({"customer": "7", "ünï": "x"}, None)
        wrong: list[Any] = [{"a": 1}, {1: "a"}, {"a": None}, {"a": "\0"}]
        for bad in wrong:
            with pytest.raises(InvalidContext):
                await m.start("j", labels=bad)
        await m.start("j", labels={})
        assert (await m.get("j")).labels == {}
        await story(m)


async def test_a_transition_tells_everything(store, clock):
    """What is read back of a line is what was written: members, values, times, its author."""
    async with Manager(flow(), store, clock=clock) as m:
        await m.start("i", Ctx(1), key="s")
        await clock.advance(SECOND)
        await m.send("i", E.ADD, 2, key="k")
        one, two = await m.history("i")
        assert (one.workflow, one.id, one.kind, one.source, one.event, one.target) == (
            "flow",
            "i",
            "start",
            None,
            None,
            S.A,
        )
        assert (one.key, one.payload, one.context, one.below, one.reason) == ("s", None, Ctx(1), 0, None)
        assert (two.kind, two.source, two.event, two.target, two.payload) == ("event", S.A, E.ADD, S.A, 2)
        assert (two.context, two.status, two.undoes, two.below) == (Ctx(3), Status.RUNNING, None, None)
        assert two.at - one.at == SECOND
        assert two.by == inner(m).incarnation.token
        head = await m.get("i")
        assert (head.started_at, head.changed_at) == (one.at, two.at)
