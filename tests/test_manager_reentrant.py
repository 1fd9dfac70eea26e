"""Circles of hooks that wait for each other raise `Reentrant` instead of waiting."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import anyio.from_thread
import pytest

from tests.flows import E, Gate, S, edged, flow, inner, quiet, story, until
from workflow import Busy, Edge, HookFailed, Manager, Reentrant, Retry

RETRY = Retry(attempts=1)


class Caught(list[Any]):
    """What hooks heard."""

    async def of(self, call):
        """Await the call and keep its error."""
        try:
            return await call
        except Exception as e:
            self.append(type(e))
            raise


async def test_own_instance(store):
    """A hook that waits for its own instance raises Reentrant at once, whichever verb it uses."""
    caught = Caught()

    async def enter(move):
        for call in (m.send("i", E.NOTE), m.compensate("i", S.A), m.settled("i")):
            with pytest.raises(Reentrant) as e:
                await caught.of(call)
            assert (e.value.id, e.value.committed) == ("i", False)

    async with Manager(flow(on_enter={S.B: enter}, retry=RETRY), store) as m:
        await m.start("i")
        assert (await m.send("i", E.GO)).settled
        assert caught == [Reentrant] * 3
        assert await story(m) == ["start", "event"]
        assert quiet(m)


async def test_own_instance_by_another_manager(store):
    """The circle is seen across Managers of one store."""
    caught = Caught()

    async def enter(move):
        await caught.of(n.send("i", E.NOTE))

    spec = flow(on_enter={S.B: enter}, retry=RETRY)
    async with Manager(spec, store) as m, Manager(spec, store) as n:
        await m.start("i")
        with pytest.raises(HookFailed, match="Reentrant"):
            await m.send("i", E.GO)
        assert caught == [Reentrant]


async def test_a_key_that_was_seen_is_no_circle(store):
    """The look for the key comes first: a hook may repeat what was done already."""
    seen: list[Any] = []

    async def enter(move):
        again = await m.send("i", E.GO, key="k")
        seen.append((again.duplicate, again.settled))

    async with Manager(flow(on_enter={S.B: enter}, retry=RETRY), store) as m:
        await m.start("i")
        await m.send("i", E.GO, key="k")
        assert seen == [(True, False)]


async def test_reading_is_no_waiting(store):
    """A hook may read its own instance and send to others."""
    seen: list[Any] = []

    async def enter(move):
        seen.append((await m.get("i")).seq)
        seen.append(len(await m.history("i")))
        seen.append((await m.send("j", E.NOTE, start=True)).settled)
        seen.append((await m.settled("j")).seq)

    async with Manager(flow(on_enter={S.B: enter}, retry=RETRY), store) as m:
        await m.start("i")
        await m.send("i", E.GO)
        assert seen == [2, 2, True, 2]


@pytest.mark.parametrize("members", [2, 3])
async def test_circles_of_several(store, members):
    """Circles of x waits for y waits for x, over several Managers, workflows and instances."""
    caught = Caught()
    managers: list[Any] = []

    def enter(number):
        async def send_on(move):
            following = (number + 1) % members
            await caught.of(managers[following].send(f"i{following}", E.GO, timeout=5))

        return send_on

    specs = [flow(f"flow{n}", on_enter={S.B: enter(n)}, retry=RETRY) for n in range(members)]
    async with store:
        managers += [Manager(spec, store) for spec in specs]
        for n, m in enumerate(managers):
            await m.__aenter__()
            await m.start(f"i{n}")
        with pytest.raises(HookFailed):
            await managers[0].send("i0", E.GO)
        assert caught == [Reentrant] + [HookFailed] * (members - 1)
        for m in managers:
            assert quiet(m)
            await m.__aexit__(None, None, None)


async def test_two_hooks_that_want_each_other(store):
    """Of two running hooks that each send to the other's instance the second is told; neither waits for ever."""
    caught, both = Caught(), [asyncio.Event(), asyncio.Event()]

    async def enter(move):
        mine, other = ("i", "j") if move.id == "i" else ("j", "i")
        both[mine == "j"].set()
        await both[other == "j"].wait()
        with contextlib.suppress(Reentrant):
            await caught.of(m.send(other, E.NOTE, timeout=5))

    async with Manager(flow(on_enter={S.B: enter}, retry=RETRY), store) as m:
        await m.start("i")
        await m.start("j")
        answers = await asyncio.gather(m.send("i", E.GO), m.send("j", E.GO))
        assert caught == [Reentrant]
        assert all(a.settled for a in answers)
        notes = [sum(t.event is E.NOTE for t in await m.history(id)) for id in "ij"]
        assert sorted(notes) == [0, 1]


async def test_in_line_behind_others(store):
    """Also a hook that would stand behind other callers of its own instance is told."""
    caught, go_on = Caught(), asyncio.Event()

    async def enter(move):
        await go_on.wait()
        with pytest.raises(Reentrant):
            await caught.of(m.send("i", E.NOTE))

    async with Manager(flow(on_enter={S.B: enter}, retry=RETRY), store) as m:
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.GO))
        others = [asyncio.create_task(m.send("i", E.NOTE)) for _ in range(3)]
        await until(lambda: len(inner(m).lanes) and inner(m).lanes._lanes["i"])
        go_on.set()
        assert (await sent).settled
        await asyncio.gather(*others)
        assert caught == [Reentrant]


async def test_from_a_thread(store):
    """A `def` hook that calls back through anyio is known too."""
    caught = Caught()

    def enter(move):
        with pytest.raises(Reentrant):
            anyio.from_thread.run(caught.of, m.send("i", E.NOTE))
        anyio.from_thread.run(m.start, "j")

    async with Manager(flow(on_enter={S.B: enter}, retry=RETRY), store) as m:
        await m.start("i")
        await m.send("i", E.GO)
        assert caught == [Reentrant]
        assert (await m.get("j")).seq == 1


async def test_a_task_that_outlives_its_hook(store):
    """A task that a hook left behind is its own master: it waits like any caller."""
    tasks, gate = [], Gate()

    async def enter(move):
        async def later() -> Any:
            await gate.open.wait()
            return await m.send("i", E.NOTE)

        tasks.append(asyncio.create_task(later()))

    spec = flow(on_enter={S.B: enter, S.C: gate.hook}, retry=RETRY)
    async with Manager(spec, store) as m:
        await m.start("i")
        await m.send("i", E.GO)
        sent = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        gate.open.set()
        await sent
        assert (await tasks[0]).transition.seq == 4


async def test_a_task_of_a_running_hook(store):
    """A task that the hook waits for belongs to it."""
    caught = Caught()

    async def enter(move):
        task = asyncio.create_task(caught.of(m.send("i", E.NOTE)))
        await asyncio.gather(task, return_exceptions=True)

    async with Manager(flow(on_enter={S.B: enter}, retry=RETRY), store) as m:
        await m.start("i")
        await m.send("i", E.GO)
        assert caught == [Reentrant]


async def test_compensators_are_hooks(store):
    """A compensator that waits for its own instance is told."""
    caught = Caught()

    async def undo(move):
        with pytest.raises(Reentrant):
            await caught.of(m.send("i", E.NOTE))

    async with Manager(flow(compensators={S.B: undo}, retry=RETRY), store) as m:
        await m.start("i")
        await m.send("i", E.GO)
        assert (await m.compensate("i", S.A)).settled
        assert caught == [Reentrant]


async def test_waiting_without_a_circle(store):
    """A hook may wait for another instance whose hook runs, if that one does not wait for it."""
    gate = Gate()

    async def enter(move):
        if move.id == "i":
            await m.send("j", E.NOTE)
        else:
            await gate.hook(move)

    async with Manager(flow(on_enter={S.B: enter}, retry=RETRY), store) as m:
        await m.start("i")
        await m.start("j")
        slow = asyncio.create_task(m.send("j", E.GO))
        await gate.entered.wait()
        sent = asyncio.create_task(m.send("i", E.GO))
        await until(lambda: "i" in inner(m).rest)
        gate.open.set()
        assert (await sent).settled
        assert (await slow).settled


async def test_a_circle_through_start(store):
    """Starting an instance whose first hook waits for the starter's is a circle as well."""
    caught = Caught()

    async def first(move):
        if move.id == "j":
            await caught.of(m.send("i", E.NOTE))

    async def enter(move):
        await m.start("j")

    async with Manager(flow(on_enter={S.A: first, S.B: enter}, retry=RETRY), store) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
        assert caught == [Reentrant]


async def test_nothing_is_remembered_of_waits_that_ended(store):
    """After a Busy or a refusal the next wait is judged anew."""
    gate = Gate()
    seen: list[Any] = []

    async def enter(move):
        if move.id == "i":
            for timeout in (0.01, 0.01):
                with pytest.raises(Busy):
                    await m.send("j", E.NOTE, timeout=timeout)
            seen.append("busy")
        else:
            await gate.hook(move)

    edges = edged(Edge(S.A, E.BACK, S.B))
    async with Manager(flow(edges=edges, on_enter={S.B: enter}, retry=RETRY), store) as m:
        await m.start("i")
        await m.start("j")
        slow = asyncio.create_task(m.send("j", E.GO))
        await gate.entered.wait()
        assert (await m.send("i", E.BACK)).settled
        gate.open.set()
        await slow
        assert seen == ["busy"]
