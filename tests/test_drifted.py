"""`Spec.drifted`: whom a new drawing would strand, told before it is deployed."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import pytest
from attrs import frozen

from tests.flows import EVERY_SECOND, Ctx, E, Log, S, flow
from workflow import ANY, Edge, HookFailed, Manager, Spec, Status, spec


@pytest.fixture
async def open_store(store):
    """A store that stays open: what is in it is looked at by several specs."""
    async with store:
        yield store


class Wide(StrEnum):
    """The states as they were: X is not drawn any more."""

    A = "a"
    B = "b"
    C = "c"
    D = "d"
    X = "x"
    END = "end"


def wide(**more: Any) -> Any:
    """The row with X beside B."""
    edges: Any = [
        Edge(Wide.A, E.GO, Wide.B),
        Edge(Wide.A, E.BACK, Wide.X),
        Edge(Wide.B, E.GO, Wide.C),
        Edge(Wide.C, E.GO, Wide.D),
        Edge(ANY, E.STOP, Wide.END),
    ]
    return Spec("flow", initial=Wide.A, final={Wide.END}, context=Ctx, edges=edges, retry=EVERY_SECOND, **more)


async def stuck(drawn, store):
    """Ids and reasons of those that are stranded."""
    return {found.id: found.reason for found in await drawn.drifted(store)}


async def test_nobody_drifts_from_what_runs_him(open_store, clock):
    """Instances that their own drawing runs on, at rest or owing or ended, are not listed."""
    log = Log()
    drawn = flow(on_enter={S.B: log.failing("b")}, retry=EVERY_SECOND)
    async with Manager(drawn, open_store, clock=clock, work=False) as m:
        for id in "ijk":
            await m.start(id)
        with pytest.raises(HookFailed):
            await m.send("j", E.GO)
        await m.send("k", E.STOP)
    assert await drawn.drifted(open_store) == []
    assert await flow("other").drifted(open_store) == []


async def test_a_state_that_is_not_drawn(open_store, clock):
    """An instance in a state that is neither drawn nor renamed is listed with what is known of it."""
    async with Manager(wide(), open_store, clock=clock) as m:
        for id in "ij":
            await m.start(id)
        await m.send("j", E.BACK)
        changed = (await m.get("j")).changed_at
    (found,) = await flow().drifted(open_store)
    assert (found.workflow, found.id, found.state, found.status) == ("flow", "j", "x", Status.RUNNING)
    assert (found.changed_at, found.reason) == (changed, "state 'x' is not drawn")
    assert await flow(renames={"x": S.B}).drifted(open_store) == []


async def test_an_effect_that_is_not_drawn(open_store, clock):
    """An instance that owes an effect of a name that is gone is listed; a hook that was only edited is not missed."""
    log = Log()
    async with Manager(wide(on_enter={Wide.B: log.failing("reserve")}), open_store, clock=clock, work=False) as m:
        for id in "ij":
            await m.start(id)
        with pytest.raises(HookFailed):
            await m.send("j", E.GO)
    assert await stuck(flow(on_enter={S.B: log.hook("book")}), open_store) == {
        "j": "effect 'enter/b/reserve', which is owed, is not drawn"
    }
    assert await stuck(flow(on_enter={S.B: [log.hook("book"), log.hook("reserve")]}), open_store) == {}


async def test_an_effect_that_was_done_is_not_missed(open_store, clock):
    """What a line owed and what was done of it already may go; all that is still owed behind it counts."""
    log = Log()
    hooks = {Wide.B: [log.hook("first"), log.failing("second")], Wide.C: log.hook("c"), Wide.D: log.hook("d")}
    async with Manager(wide(on_enter=hooks), open_store, clock=clock, work=False) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        for _ in range(2):
            assert not (await m.send("i", E.GO)).settled
    kept = {S.B: log.hook("second"), S.C: log.hook("c"), S.D: log.hook("d")}
    assert await stuck(flow(on_enter=kept), open_store) == {}
    for state, name in ((S.B, "b/second"), (S.C, "c/c"), (S.D, "d/d")):
        fewer = {s: h for s, h in kept.items() if s is not state}
        assert await stuck(flow(on_enter=fewer), open_store) == {
            "i": f"effect 'enter/{name}', which is owed, is not drawn"
        }


async def test_a_context_that_does_not_fit(open_store, clock):
    """An instance whose context the new type cannot read is listed, unless it ended and nobody will read it."""

    @frozen
    class Strict:
        n: int
        must: str

    async with Manager(flow(), open_store, clock=clock) as m:
        for id in "ij":
            await m.start(id, Ctx(1))
        await m.send("j", E.STOP)
    strict = flow(context=Strict, edges=[edge for edge in flow().edges if edge.assign is None], payloads={})
    ((id, reason),) = (await stuck(strict, open_store)).items()
    assert id == "i"
    assert reason.startswith("the context does not fit: ")
    assert "must" in reason


async def test_finished_instances_that_owe(open_store, clock):
    """An instance that ended is listed as long as it owes what is not drawn, and never once it owes nothing."""
    log = Log()
    async with Manager(
        wide(on_enter={Wide.END: log.failing("bill"), Wide.X: log.hook("x")}), open_store, clock=clock, work=False
    ) as m:
        for id in "ij":
            await m.start(id)
        await m.send("j", E.BACK)
        with pytest.raises(HookFailed):
            await m.send("i", E.STOP)
    assert await stuck(flow(on_enter={S.END: log.hook("bill")}), open_store) == {"j": "state 'x' is not drawn"}
    (owing, _) = await flow().drifted(open_store)
    assert (owing.id, owing.state, owing.status) == ("i", "end", Status.FINISHED)
    assert owing.reason == "effect 'enter/end/bill', which is owed, is not drawn"
    await clock.advance(EVERY_SECOND.first)
    settles = wide(on_enter={Wide.END: log.hook("bill")})
    async with Manager(settles, open_store, clock=clock, work=False) as m:
        await m.resume()
        assert (await m.settled("i")).status == Status.FINISHED
    assert await stuck(flow(), open_store) == {"j": "state 'x' is not drawn"}


async def test_all_pages_are_looked_at(open_store, clock, monkeypatch):
    """However many instances there are, each is looked at once."""
    monkeypatch.setattr(spec, "_PAGE", 2)
    async with Manager(wide(), open_store, clock=clock) as m:
        for n in range(7):
            await m.start(f"i{n}")
            await m.send(f"i{n}", E.BACK if n % 2 else E.GO)
    found = await flow().drifted(open_store)
    assert [one.id for one in found] == ["i1", "i3", "i5"]
