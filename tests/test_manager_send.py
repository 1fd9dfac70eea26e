"""Starting, sending, keys: one line for each accepted event, one answer for each call."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from attrs import frozen

from tests.flows import ROW, Ctx, E, Gate, Log, S, Tap, edged, flow, quiet, story
from workflow import (
    STAY,
    AlreadyStarted,
    Deny,
    Edge,
    Finished,
    GuardRejected,
    IllegalTransition,
    InvalidContext,
    InvalidName,
    InvalidPayload,
    KeyConflict,
    Manager,
    Status,
    UnknownInstance,
)


async def test_start_and_send_write_one_line_each(store):
    """Every accepted event is exactly one line."""
    async with Manager(flow(), store) as m:
        begun = await m.start("i", Ctx(3))
        assert (begun.state, begun.transition.seq, begun.duplicate, begun.settled) == (S.A, 1, False, True)
        moved = await m.send("i", E.GO)
        assert (moved.state, moved.transition.seq, moved.transition.source) == (S.B, 2, S.A)
        assert (await m.send("i", E.ADD, 4)).transition.context == Ctx(7)
        assert await story(m) == ["start", "event", "event"]
        head = await m.get("i")
        assert (head.state, head.seq, head.context, head.status) == (S.B, 3, Ctx(7), Status.RUNNING)
        assert quiet(m)


async def test_start_without_a_context_makes_one(store):
    """`start` without a context means `context()`."""
    async with Manager(flow(), store) as m:
        await m.start("i")
        assert (await m.get("i")).context == Ctx()


async def test_start_needs_a_context_that_has_no_defaults(memory):
    """`start` without a context is refused where `context()` cannot be had."""

    @frozen
    class Needs:
        n: int

    spec = flow(context=Needs, edges=[*ROW[:4], Edge(S.D, E.STOP, S.END)], payloads={})
    async with Manager(spec, memory) as m:
        with pytest.raises(InvalidContext):
            await m.start("i")
        with pytest.raises(UnknownInstance):
            await m.get("i")


async def test_start_of_an_existing_id(store):
    """`start` of an existing id is `AlreadyStarted`; with the same key it is a duplicate."""
    async with Manager(flow(), store) as m:
        await m.start("i", Ctx(1), key="k")
        with pytest.raises(AlreadyStarted) as e:
            await m.start("i", Ctx(1))
        assert (e.value.id, e.value.committed) == ("i", False)
        with pytest.raises(AlreadyStarted):
            await m.start("i", Ctx(1), key="other")
        again = await m.start("i", Ctx(1), key="k")
        assert (again.duplicate, again.transition.seq) == (True, 1)
        with pytest.raises(KeyConflict):
            await m.start("i", Ctx(2), key="k")
        assert await story(m) == ["start"]


async def test_start_of_an_existing_id_answers_at_once_while_its_effects_run(store):
    """A `start` can never be accepted once the id is there, so it waits for no effect."""
    gate = Gate()
    async with Manager(flow(on_enter={S.A: gate.hook}), store) as m:
        first = asyncio.create_task(m.start("i", key="k"))
        await gate.entered.wait()
        with pytest.raises(AlreadyStarted):
            await m.start("i", timeout=5)
        again = await m.start("i", key="k")
        assert (again.duplicate, again.settled) == (True, False)
        gate.open.set()
        assert (await first).settled


async def test_eight_concurrent_starts_make_one_instance(store):
    """Of concurrent starts of one id exactly one wins, the others hear it."""
    log = Log()
    spec = flow(on_enter={S.A: log.hook("enter")})
    async with Manager(spec, store) as m, Manager(spec, store) as n:
        starts = [(m, n)[i % 2].start("i", Ctx(i)) for i in range(8)]
        answers = await asyncio.gather(*starts, return_exceptions=True)
        won = [a for a in answers if not isinstance(a, BaseException)]
        assert len(won) == 1
        assert all(isinstance(a, AlreadyStarted) for a in answers if a is not won[0])
        await m.settled("i")
        assert log == ["enter"]
        assert await story(m) == ["start"]


async def test_eight_concurrent_starts_with_one_key_get_the_same_answer(store):
    """Of concurrent starts with one key one starts, the others are its duplicates."""
    log = Log()
    spec = flow(on_enter={S.A: log.hook("enter")})
    async with Manager(spec, store) as m, Manager(spec, store) as n:
        answers = await asyncio.gather(*((m, n)[i % 2].start("i", key="k") for i in range(8)))
        assert sorted(a.duplicate for a in answers) == [False] + [True] * 7
        await m.settled("i")
        assert log == ["enter"]


async def test_send_to_an_id_that_was_never_started(store):
    """An event before its instance exists is answered loudly."""
    async with Manager(flow(), store) as m:
        with pytest.raises(UnknownInstance) as e:
            await m.send("i", E.GO)
        assert (e.value.workflow, e.value.id, e.value.committed) == ("flow", "i", False)
        assert isinstance(e.value, LookupError)


async def test_send_or_start_is_one_commit_of_two_lines(store):
    """`send(start=…)` starts an unknown id first: one commit, two lines, the effects of both in order."""
    log, tap = Log(), Tap(store)
    spec = flow(on_enter={S.A: log.hook("enter a"), S.B: log.hook("enter b")}, on_exit={S.A: log.hook("exit a")})
    async with Manager(spec, tap) as m:
        done = await m.send("i", E.GO, start=Ctx(5), key="k")
        assert (done.transition.seq, done.state, done.settled) == (2, S.B, True)
        assert log == ["enter a", "exit a", "enter b"]
        assert tap.calls["append"] == 1 + 3
        assert len(tap.commits[0].changes[0].lines) == 2
        again = await m.send("i", E.GO, start=Ctx(5), key="k")
        assert (again.duplicate, again.transition.seq) == (True, 2)
        assert (await m.send("i", E.GO, start=True)).transition.seq == 3
        assert await story(m) == ["start", "event", "event"]
        assert (await m.get("i")).context == Ctx(5)


async def test_send_or_start_true_takes_the_default_context(store):
    """`start=True` means `context()`."""
    async with Manager(flow(), store) as m:
        await m.send("i", E.ADD, 2, start=True)
        assert (await m.get("i")).context == Ctx(2)


async def test_send_or_start_of_a_refused_event_starts_nothing(store):
    """Refused, `send(start=…)` leaves no instance behind."""
    async with Manager(flow(), store) as m:
        with pytest.raises(IllegalTransition):
            await m.send("i", E.BACK, start=True, key="k")
        with pytest.raises(UnknownInstance):
            await m.get("i")
        assert (await m.send("i", E.GO, start=True, key="k")).transition.seq == 2


async def test_eight_concurrent_sends_or_starts_all_land(store):
    """Concurrent `send(start=…)` of one unknown id start it once and lose no event."""
    spec = flow()
    async with Manager(spec, store) as m, Manager(spec, store) as n:
        await asyncio.gather(*((m, n)[i % 2].send("i", E.ADD, 1, start=True) for i in range(8)))
        assert (await m.get("i")).context == Ctx(8)
        assert await story(m) == ["start"] + ["event"] * 8


# --- refusals -------------------------------------------------------------------------------------


async def test_no_edge(store):
    """An event that no edge takes is refused with what would be accepted; nothing is written."""
    async with Manager(flow(), store) as m:
        await m.start("i")
        with pytest.raises(IllegalTransition) as e:
            await m.send("i", E.BACK)
        assert (e.value.id, e.value.state, e.value.event) == ("i", S.A, E.BACK)
        assert set(e.value.available) == {E.GO, E.ADD, E.NOTE, E.STOP}
        assert e.value.committed is False
        assert await story(m) == ["start"]
        assert quiet(m)


async def test_final(store):
    """A final state takes no event."""
    async with Manager(flow(), store) as m:
        await m.start("i")
        await m.send("i", E.STOP)
        assert (await m.get("i")).status is Status.FINISHED
        with pytest.raises(Finished):
            await m.send("i", E.NOTE)
        assert await story(m) == ["start", "event"]


async def test_guards_that_refuse(store):
    """All guards refusing is told with every reason; nothing is written."""

    async def closed(m):
        return Deny("it is closed")

    def never(m):
        return False

    spec = flow(edges=edged(Edge(S.A, E.BACK, S.B, guard=closed), Edge(S.A, E.BACK, S.C, guard=never)))
    async with Manager(spec, store) as m:
        await m.start("i")
        with pytest.raises(GuardRejected) as e:
            await m.send("i", E.BACK)
        assert e.value.reasons[0] == "it is closed"
        assert len(e.value.reasons) == 2
        assert isinstance(e.value, IllegalTransition)
        assert await story(m) == ["start"]


async def test_first_passing_edge_wins(store):
    """Edges are tried in declared order, the first whose guard passes wins."""
    asked: list[Any] = []

    def says(name, answer):
        def guard(m):
            asked.append(name)
            return answer

        return guard

    edges = edged(
        Edge(S.A, E.BACK, S.B, guard=says("one", False)),
        Edge(S.A, E.BACK, S.C, guard=says("two", True)),
        Edge(S.A, E.BACK, S.D, guard=says("three", True)),
    )
    async with Manager(flow(edges=edges), store) as m:
        await m.start("i")
        assert (await m.send("i", E.BACK)).state is S.C
        assert asked == ["one", "two"]


async def test_what_is_no_event(memory):
    """Anything but a member of the events is a TypeError; nothing is read."""
    tap = Tap(memory)
    async with Manager(flow(), tap, work=False) as m:
        await m.start("i")
        before = tap.calls.copy()
        for event in ("go", S.A, None, 1):
            with pytest.raises(TypeError):
                await m.send("i", event)
        for state in ("a", E.GO, None):
            with pytest.raises(TypeError):
                await m.compensate("i", state)
        assert tap.calls == before


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        (E.ADD, None),
        (E.ADD, "3"),
        (E.ADD, 1.5),
        (E.NOTE, float("nan")),
        (E.NOTE, "a\0b"),
        (E.NOTE, (1, 2)),
        (E.NOTE, {1: 2}),
        (E.NOTE, "x" * (1 << 20)),
        (E.NOTE, object()),
    ],
)
async def test_payloads_that_cannot_be_stored(memory, event, payload):
    """What does not come back equal, or is missing though declared, is refused before anything is written."""
    async with Manager(flow(), memory) as m:
        await m.start("i")
        with pytest.raises(InvalidPayload) as e:
            await m.send("i", event, payload, key="k")
        assert e.value.committed is False
        assert await story(m) == ["start"]
        await m.send("i", E.NOTE, {"fine": [1, None]}, key="k")


@pytest.mark.parametrize("name", ["", "x" * 513, "a\0b", "\ud800", 7, None])
async def test_names_that_no_store_can_hold(memory, name):
    """An id or key that is empty, too long or no text is refused."""
    async with Manager(flow(), memory) as m:
        with pytest.raises(InvalidName):
            await m.start(name)
        with pytest.raises(InvalidName):
            await m.send(name, E.GO)
        with pytest.raises(InvalidName):
            await m.compensate(name, S.A)
        if name is not None:
            with pytest.raises(InvalidName):
                await m.start("i", key=name)
        await m.start("i" * 512, key="ä" * 256)


async def test_contexts_that_cannot_be_stored(memory):
    """A context that does not come back equal starts nothing."""
    async with Manager(flow(), memory) as m:
        nan: Any = float("nan")
        word: Any = "x"
        wrong: list[Any] = [Ctx(nan), Ctx(word), 3, {"n": 1}]
        for context in wrong:
            with pytest.raises(InvalidContext):
                await m.start("i", context)
        with pytest.raises(UnknownInstance):
            await m.get("i")


async def test_callbacks_see_the_decoded_payload(store):
    """Guard, assign and hook see the copy that storing made, never the caller's object."""

    @frozen
    class Note:
        words: list[str]

    seen: list[Any] = []

    def guard(m):
        seen.append(m.payload)
        return True

    def assign(m):
        seen.append(m.payload)
        return m.context

    async def action(m):
        seen.append(m.payload)

    edges = edged(Edge(S.A, E.BACK, STAY, guard=guard, assign=assign, action=action))
    mine = Note(["x"])
    async with Manager(flow(edges=edges, payloads={E.BACK: Note, E.ADD: int}), store) as m:
        await m.start("i")
        await m.send("i", E.BACK, mine)
    assert seen == [mine] * 3
    assert all(note is not mine for note in seen)


@pytest.mark.parametrize("timeout", [float("inf"), float("nan"), -1, timedelta(seconds=-1)])
async def test_timeouts_are_finite(memory, timeout):
    """A timeout is seconds or a timedelta, never infinite, never negative."""
    async with Manager(flow(), memory) as m:
        await m.start("i")
        for call in (m.send("i", E.GO, timeout=timeout), m.start("j", timeout=timeout)):
            with pytest.raises(ValueError, match="timeout"):
                await call
        with pytest.raises(ValueError, match="timeout"):
            await m.compensate("i", S.A, timeout=timeout)
        with pytest.raises(ValueError, match="timeout"):
            await m.settled("i", timeout=timeout)
        await m.send("i", E.GO, timeout=timedelta(seconds=1))
        await m.settled("i", timeout=timedelta(seconds=1))


# --- keys -----------------------------------------------------------------------------------------


async def test_a_key_is_answered_once(store):
    """The same key, verb and arguments: answered from the record, nothing runs."""
    log = Log()
    async with Manager(flow(on_enter={S.B: log.hook("enter")}), store) as m:
        await m.start("i")
        first = await m.send("i", E.GO, key="k")
        again = await m.send("i", E.GO, key="k")
        assert (first.duplicate, again.duplicate) == (False, True)
        assert again.transition == first.transition
        assert again.settled
        assert log == ["enter"]
        await m.send("i", E.GO)
        later = await m.send("i", E.GO, key="k")
        assert (later.state, later.transition.target) == (S.C, S.B)
        assert await story(m) == ["start", "event", "event"]


async def test_a_key_used_for_something_else(store):
    """The same key with another verb or other arguments is a KeyConflict that shows the line."""
    async with Manager(flow(), store) as m:
        await m.start("i", Ctx(1), key="s")
        await m.send("i", E.ADD, 2, key="k")
        for call in (
            m.send("i", E.ADD, 3, key="k"),
            m.send("i", E.NOTE, 2, key="k"),
            m.send("i", E.GO, key="k"),
            m.start("i", Ctx(1), key="k"),
            m.compensate("i", S.A, key="k"),
        ):
            with pytest.raises(KeyConflict) as e:
                await call
            assert (e.value.key, e.value.transition.seq, e.value.committed) == ("k", 2, False)
        with pytest.raises(KeyConflict):
            await m.send("i", E.GO, key="s")
        assert await story(m) == ["start", "event"]


async def test_keys_belong_to_their_instance(store):
    """One key space an instance."""
    async with Manager(flow(), store) as m:
        await m.start("i", key="k")
        await m.start("j", key="k")
        with pytest.raises(KeyConflict):
            await m.send("i", E.GO, key="k")
        assert await story(m, "j") == ["start"]


async def test_a_refusal_does_not_use_the_key_up(store):
    """Refused, the key is free for a later try."""
    allowed = False

    def guard(m):
        return allowed or Deny("not yet")

    async with Manager(flow(edges=edged(Edge(S.A, E.BACK, S.C, guard=guard))), store) as m:
        await m.start("i")
        with pytest.raises(GuardRejected):
            await m.send("i", E.BACK, key="k")
        allowed = True
        assert not (await m.send("i", E.BACK, key="k")).duplicate


async def test_a_key_is_looked_for_before_a_refusal(store):
    """What would be refused now is a duplicate if its key was seen."""
    async with Manager(flow(), store) as m:
        await m.start("i")
        await m.send("i", E.STOP, key="k")
        again = await m.send("i", E.STOP, key="k")
        assert (again.duplicate, again.state) == (True, S.END)


async def test_a_key_seen_answers_at_once_while_effects_run(store):
    """A key is looked for before any wait: the repeat hears `settled=False` while the hook runs."""
    gate = Gate()
    async with Manager(flow(on_enter={S.B: gate.hook}), store) as m:
        await m.start("i")
        first = asyncio.create_task(m.send("i", E.GO, key="k"))
        await gate.entered.wait()
        again = await m.send("i", E.GO, key="k")
        assert (again.duplicate, again.settled, again.state) == (True, False, S.B)
        with pytest.raises(KeyConflict):
            await m.send("i", E.NOTE, key="k")
        # and behind a queue of callers as well
        waiter = asyncio.create_task(m.send("i", E.NOTE))
        second = asyncio.create_task(m.send("i", E.NOTE))
        again = await m.send("i", E.GO, key="k", timeout=0)
        assert again.duplicate
        gate.open.set()
        assert (await first).settled
        await asyncio.gather(waiter, second)
        assert gate.calls == 1


async def test_concurrent_sends_with_one_key_make_one_line(store):
    """Many deliveries of one event at once are one move; every caller hears of that line."""
    spec = flow()
    async with Manager(spec, store) as m, Manager(spec, store) as n:
        await m.start("i")
        answers = await asyncio.gather(*((m, n)[i % 2].send("i", E.GO, key="k") for i in range(10)))
        assert {a.transition.seq for a in answers} == {2}
        assert sorted(a.duplicate for a in answers) == [False] + [True] * 9
        assert await story(m) == ["start", "event"]


async def test_the_row_is_whole():
    """The workflow of these tests draws every event."""
    assert {edge.event for edge in ROW} == set(E)
