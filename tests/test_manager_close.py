"""Opening, draining, closing."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio

from stores import MemoryStore
from tests.flows import EVERY_SECOND, MINUTE, E, Gate, Log, S, flow, story, until
from workflow import Edge, HookFailed, Manager, Spec
from workflow.testing import Faults

NOW = timedelta(0)


async def test_not_opened(memory):
    """A Manager that is not open says `async with`, before and after."""
    m = Manager(flow(), memory)
    calls = [
        lambda: m.start("i"),
        lambda: m.send("i", E.GO),
        lambda: m.compensate("i", S.A),
        lambda: m.settled("i"),
        lambda: m.state("i"),
        lambda: m.get("i"),
        lambda: m.history("i"),
        lambda: m.accepted("i"),
        m.resume,
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="async with"):
            await call()
    async with m:
        await m.start("i")
        with pytest.raises(RuntimeError):
            await m.__aenter__()
    for call in calls:
        with pytest.raises(RuntimeError, match="async with"):
            await call()
    async with m:
        assert (await m.get("i")).seq == 1


async def test_memory_outlives_its_manager(memory):
    """A second Manager on the same MemoryStore resumes from it."""
    log = Log()
    spec = flow(on_enter={S.B: log.failing("b", 1)}, retry=EVERY_SECOND)
    async with Manager(spec, memory, work=False) as m:
        await m.start("i")
        with pytest.raises(HookFailed):
            await m.send("i", E.GO)
    async with Manager(spec, memory, work=False) as n:
        assert (await n.get("i")).seq == 2


async def test_two_managers_share_a_store(store):
    """Two Managers on one store object: the first that closes leaves it open for the other."""
    one, two = Manager(flow("one"), store), Manager(flow("two"), store)
    async with one:
        async with two:
            await one.start("i")
            await two.start("i")
        await one.send("i", E.GO)
        assert (await one.get("i")).workflow == "one"


@pytest_asyncio.fixture
async def fixture_manager(memory):
    """A Manager opened and closed by a fixture."""
    async with Manager(flow(), memory) as m:
        yield m


async def test_as_a_fixture(fixture_manager):
    """A Manager may be opened and closed by a fixture."""
    assert (await fixture_manager.start("i")).settled


async def test_opened_and_closed_by_different_tasks(store):
    """Enter and exit may happen in different tasks, inside anyone's scopes."""
    gate = Gate()
    m = Manager(flow(on_enter={S.B: gate.hook}), store)
    await asyncio.create_task(m.__aenter__())
    async with asyncio.timeout(5):
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.GO))
        await gate.entered.wait()
        gate.open.set()
        assert (await sent).settled
    await asyncio.create_task(m.__aexit__(None, None, None))


async def test_hooks_end_within_the_drain(store):
    """Closing gives running hooks the drain to end; their callers hear so, what they send is done."""
    gate = Gate()

    async def enter(move):
        await gate.hook(move)
        await m.start("j")

    async with store:
        m = Manager(flow(on_enter={S.B: enter}), store)
        async with m:
            await m.start("i")
            sent = asyncio.create_task(m.send("i", E.GO))
            await gate.entered.wait()
            asyncio.get_running_loop().call_soon(gate.open.set)
        assert (await sent).settled
        async with Manager(flow("flow"), store, work=False) as n:
            assert (await n.get("j")).seq == 1
            assert (await n.resume()).effects == 0


async def test_hooks_are_cancelled_after_the_drain_and_handed_back(store):
    """After the drain async hooks are cancelled and their lease handed back: at once due, the attempt restored."""
    gate = Gate()
    async with store:
        m = Manager(flow(on_enter={S.B: gate.hook}), store, drain=NOW)
        async with m:
            await m.start("i")
            sent = asyncio.create_task(m.send("i", E.GO))
            await gate.entered.wait()
        assert not (await sent).settled
        assert gate.cancelled == 1
        row = (await store.load("flow", ["i"]))[0].effects
        assert (row.token, row.attempt) == (None, 0)
        gate.open.set()
        async with Manager(flow(on_enter={S.B: gate.hook}), store, work=False) as n:
            assert (await n.resume()).effects == 1
            assert [move.attempt for move in gate.moves] == [1, 1]
            assert await story(n) == ["start", "event"]


async def test_a_thread_is_abandoned_not_cancelled(store):
    """The lease of an abandoned thread is left to run out: nobody runs the hook beside it."""
    entered, go_on, log = threading.Event(), threading.Event(), []

    def enter(m):
        log.append(m.attempt)
        entered.set()
        assert go_on.wait(10)

    lease = timedelta(seconds=30)
    async with store:
        m = Manager(flow(on_enter={S.B: enter}), store, drain=NOW, lease=lease)
        async with m:
            await m.start("i")
            sent = asyncio.create_task(m.send("i", E.GO))
            await until(entered.is_set)
        assert not (await sent).settled
        row = (await store.load("flow", ["i"]))[0].effects
        assert row.token is not None
        async with Manager(flow(on_enter={S.B: enter}), store, work=False) as n:
            assert (await n.resume()).effects == 0
        assert log == [1]
        go_on.set()


async def test_closing_while_the_store_is_away(store, monkeypatch):
    """Stop is always listened to: closing ends although nothing can be written; the work is not lost."""
    monkeypatch.setattr("workflow.background._HANDING_BACK", 0.05)
    gate, faults = Gate(), Faults(store)
    spec = flow(on_enter={S.B: gate.hook})
    async with store:
        m = Manager(spec, faults, drain=timedelta(milliseconds=50), work=False)
        async with m:
            await m.start("i")
            sent = asyncio.create_task(m.send("i", E.GO))
            await gate.entered.wait()
            for nth in range(1, 30):
                faults.fail("append", nth)
            gate.open.set()
        assert not (await sent).settled
        async with Manager(spec, store, work=False) as n:
            assert (await n.resume()).effects == 1
            assert gate.calls == 2


async def test_closing_with_callers_in_line(store):
    """Callers that wait when the Manager closes get an answer or an error; none hangs."""
    gate = Gate()
    async with store:
        async with Manager(flow(on_enter={S.B: gate.hook}), store, drain=NOW) as m:
            await m.start("i")
            tasks: list[Any] = [asyncio.create_task(m.send("i", E.GO)) for _ in range(3)]
            tasks.append(asyncio.create_task(m.settled("i")))
            await gate.entered.wait()
        async with asyncio.timeout(5):
            answers: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
        assert not answers[0].settled
        async with Manager(flow(on_enter={S.B: gate.hook}), store, work=False) as n:
            lines = await n.history("i")
            moved = [a for a in answers[:3] if not isinstance(a, BaseException)]
            assert len(lines) == 1 + len(moved)


async def test_closing_stops_the_loop_at_once(memory):
    """An idle Manager closes without waiting for the drain."""
    async with asyncio.timeout(2):
        async with Manager(flow(), memory, drain=MINUTE):
            pass


async def test_a_store_that_does_not_open():
    """An error of the store at opening is told, and leaves the Manager as it was."""

    class Broken(MemoryStore):
        async def __aenter__(self):
            raise OSError("no such place")

    m = Manager(flow(), Broken())
    with pytest.raises(OSError, match="no such place"):
        await m.__aenter__()
    with pytest.raises(RuntimeError, match="async with"):
        await m.get("i")


async def test_a_spec_that_is_held_is_immutable(memory):
    """A decorator after a Manager holds the spec raises."""
    spec = flow()
    Manager(spec, memory)
    with pytest.raises(RuntimeError):
        spec.on_enter(S.B)(Log().hook("late"))


@pytest.mark.parametrize(
    "options", [{"concurrency": 0}, {"lease": NOW}, {"drain": timedelta(seconds=-1)}], ids=lambda o: next(iter(o))
)
def test_options_are_validated(memory, options):
    """An option that makes no sense is refused when the Manager is made."""
    with pytest.raises(ValueError, match=next(iter(options))):
        Manager(flow(), memory, **options)


async def test_specs_of_one_name_are_kept_apart(memory):
    """Two specs with the same functions and states never get each other's behaviour."""
    log = Log()
    edges: list[Any] = [Edge(S.A, E.GO, S.B), Edge(S.B, E.GO, S.C), Edge(S.C, E.GO, S.D), Edge(S.D, E.STOP, S.END)]
    one = Spec("one", initial=S.A, final={S.END}, edges=edges, on_enter={S.B: log.hook("one")})
    two = Spec("two", initial=S.A, final={S.END}, edges=edges, on_enter={S.B: log.hook("two")})
    async with Manager(one, memory) as m, Manager(two, memory) as n:
        for manager in (m, n):
            await manager.start("i")
            await manager.send("i", E.GO)
    assert log == ["one", "two"]
