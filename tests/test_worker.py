"""One process's work for many Managers."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from stores import MemoryStore, SQLiteStore
from tests.flows import MINUTE, NOON, SECOND, E, Gate, Log, S, Tap, flow, turns, until
from workflow import Manager, Observer, StoreError, StoreUnavailable, Worker
from workflow.observer import Trouble
from workflow.testing import FakeClock


def posting(spec: Any, store: Any, **more: Any) -> Manager[Any, Any, Any]:
    """A Manager that leaves all work to others."""
    return Manager(spec, store, work=False, inline=False, **more)


async def test_it_opens_and_closes_all_its_managers(store, clock):
    """Inside the block they are open and work, though one was made with work=False; afterwards they are closed."""
    log = Log()
    one = Manager(flow("one", on_enter={S.B: log.hook("one")}), store, clock=clock, work=False, inline=False)
    two = Manager(flow("two", on_enter={S.B: log.hook("two")}), store, clock=clock, inline=False)
    worker = Worker(one, two)
    async with worker as same:
        assert same is worker
        for m in (one, two):
            await m.send("i", E.GO, start=True)
            await m.settled("i", timeout=5)
        assert log == ["one", "two"]
        with pytest.raises(RuntimeError, match="open already"):
            await worker.__aenter__()
    for m in (one, two):
        with pytest.raises(RuntimeError, match="not open"):
            await m.state("i")
    async with one:  # on its own again, as it was made
        await one.send("j", E.GO, start=True)
        await clock.advance(MINUTE)
        assert log == ["one", "two"]


async def test_it_can_be_opened_again(memory, clock):
    """As often as one likes, one after the other."""
    m = Manager(flow(), memory, clock=clock)
    worker = Worker(m)
    for n in range(3):
        async with worker:
            await m.start(f"{n}")


async def test_a_manager_that_is_open_already(memory, clock):
    """Its opening is the Worker's; a clear error, and the others are not left open."""
    one, two = Manager(flow("one"), memory, clock=clock), Manager(flow("two"), memory, clock=clock)
    async with two:
        with pytest.raises(RuntimeError, match="'two' is open already"):
            await Worker(one, two).__aenter__()
        await two.start("i")
        async with one:
            await one.start("i")


def test_what_a_worker_takes():
    """Managers, each once; at least one place; a drain that is not negative."""
    m = Manager(flow(), MemoryStore())
    wrong: Any = 3
    for takes in (Worker, lambda: Worker(wrong)):
        with pytest.raises(TypeError, match="one Manager or more"):
            takes()
    for takes in (lambda: Worker(m, m), lambda: Worker(m, concurrency=0), lambda: Worker(m, drain=-SECOND)):
        with pytest.raises(ValueError, match=r"once|concurrency|drain"):
            takes()


# --- fairness ---------------------------------------------------------------------------------------


class Meter:
    """Counts hooks that run at once, and in which order they ended."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.ended: list[str] = []

    def hook(self, name: str) -> Callable[[Any], Any]:
        async def metered(m: Any) -> None:
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.001)
            self.now -= 1
            self.ended.append(name)

        metered.__qualname__ = name
        return metered


async def seeded(m: Manager[Any, Any, Any], count: int) -> None:
    """So many instances with a hook that is due."""
    async with m:
        for n in range(count):
            await m.send(f"i-{n:03}", E.GO, start=True)


async def test_concurrency_bounds_all_of_them_together(memory):
    """However many workflows there are, no more hooks than that run at once; and all are run."""
    meter = Meter()
    managers = [posting(flow(name, on_enter={S.B: meter.hook(name)}), memory) for name in ("one", "two", "three")]
    for m in managers:
        await seeded(m, 20)
    async with Worker(*managers, concurrency=4):
        await until(lambda: len(meter.ended) == 60)
    assert meter.most == 4


async def test_a_flood_of_hooks_that_never_end_starves_nobody(memory):
    """All that one workflow may take is taken, by hooks that go on and on: the other's work is done all the same."""
    gate, log = Gate(), Log()
    flood = posting(flow("flood", on_enter={S.B: gate.hook}), memory)
    other = posting(flow("other", on_enter={S.B: log.hook("b")}), memory)
    await seeded(flood, 50)
    async with Worker(flood, other, concurrency=8, drain=SECOND * 0):
        await until(lambda: gate.calls == 7)
        for n in range(20):
            await other.send(f"{n}", E.GO, start=True)
        await until(lambda: len(log) == 20)
        assert gate.calls == 7


async def test_of_a_single_place_both_have_their_share(memory):
    """With one place for two workflows, a flood of one does not come first as a whole."""
    meter = Meter()
    flood = posting(flow("flood", on_enter={S.B: meter.hook("flood")}), memory)
    other = posting(flow("other", on_enter={S.B: meter.hook("other")}), memory)
    await seeded(flood, 100)
    await seeded(other, 10)
    async with Worker(flood, other, concurrency=1):
        await until(lambda: meter.ended.count("other") == 10)
        assert meter.ended.count("flood") < 40
        assert meter.most == 1


async def test_a_long_queue_of_one_instance_makes_way(memory):
    """An instance with hundreds of effects does not keep the only place until its end; all of them are run."""
    ended: list[str] = []

    async def enter(m: Any) -> None:
        await asyncio.sleep(0)
        ended.append(m.id)

    m = posting(flow(on_enter={S.B: enter, S.C: enter}), memory)
    async with m:
        await m.send("long", E.GO, start=True)
        for _ in range(100):
            await m.send("long", E.GO)
            await m.send("long", E.BACK)
        await m.send("short", E.GO, start=True)
    async with Worker(m, concurrency=1):
        await until(lambda: len(ended) == 202)
    assert ended.index("short") < 50
    assert ended.count("short") == 1


# --- its end ----------------------------------------------------------------------------------------


async def running(worker: Worker) -> asyncio.Task[None]:
    """It runs, and hears signals."""
    run = asyncio.create_task(worker.run())
    await turns()
    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_run_ends_at_a_signal(memory, number):
    """It lets the running hook end within the drain, closes, and gives the signals back."""
    gate, before = Gate(), signal.getsignal(number)
    m = posting(flow(on_enter={S.B: gate.hook}), memory)
    await seeded(m, 1)
    run = await running(Worker(m))
    await gate.entered.wait()
    os.kill(os.getpid(), number)
    await asyncio.sleep(0.05)
    assert not run.done()
    gate.open.set()
    await run
    assert (gate.ended, gate.cancelled) == (1, 0)
    assert signal.getsignal(number) is before
    (loaded,) = await _look(memory, "i-000")
    assert loaded.effects is None


async def _look(store: Any, id: str) -> Any:
    async with store:
        return await store.load("flow", (id,))


async def test_what_does_not_end_within_the_drain_is_handed_back(memory):
    """Its hook is cancelled, its row is due now and nobody's, its attempt not counted."""
    gate = Gate()
    m = posting(flow(on_enter={S.B: gate.hook}), memory)
    await seeded(m, 1)
    run = await running(Worker(m, drain=SECOND / 20))
    await gate.entered.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await run
    assert (gate.ended, gate.cancelled) == (0, 1)
    (loaded,) = await _look(memory, "i-000")
    assert (loaded.effects.token, loaded.effects.attempt) == (None, 0)


async def test_a_second_signal_ends_the_drain(memory):
    """An operator in a hurry need not wait, and still nothing is left leased."""
    gate = Gate()
    m = posting(flow(on_enter={S.B: gate.hook}), memory)
    await seeded(m, 1)
    run = await running(Worker(m, drain=MINUTE))
    await gate.entered.wait()
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(5):
        await run
    (loaded,) = await _look(memory, "i-000")
    assert (gate.cancelled, loaded.effects.token) == (1, None)


async def test_cancelled_it_drains_and_hands_the_cancellation_on(memory):
    """As at a signal, but the caller's cancellation is his own."""
    gate = Gate()
    m = posting(flow(on_enter={S.B: gate.hook}), memory)
    await seeded(m, 1)
    run = await running(Worker(m))
    await gate.entered.wait()
    run.cancel()
    await asyncio.sleep(0.02)
    assert not run.done()
    gate.open.set()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert gate.ended == 1


async def test_run_inside_the_block(memory):
    """An open Worker is closed at the end of run(), and the end of the block finds it so."""
    m = Manager(flow(), memory)
    async with Worker(m) as worker:
        run = await running(worker)
        await m.start("i")
        os.kill(os.getpid(), signal.SIGTERM)
        await run
        with pytest.raises(RuntimeError, match="not open"):
            await m.state("i")


def test_in_another_thread_it_is_ended_by_cancelling(tmp_path):
    """Where signals cannot be heard it runs all the same."""
    log, ended = Log(), threading.Event()

    async def main() -> None:
        m = posting(flow(on_enter={S.B: log.hook("b")}), SQLiteStore(tmp_path / "db"))
        await seeded(m, 1)
        run = await running(Worker(m))
        await until(lambda: log == ["b"])
        run.cancel()
        await asyncio.wait((run,))
        assert run.cancelled()
        ended.set()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    thread.join(20)
    assert ended.is_set()


# --- a store that is away ---------------------------------------------------------------------------


class Away:
    """A store that cannot be opened for a while; counts who tries."""

    def __init__(self, times: int, error: type[StoreError] = StoreUnavailable) -> None:
        self.store, self.left, self.error, self.tries = MemoryStore(), times, error, 0

    async def __aenter__(self) -> Any:
        self.tries += 1
        if self.left > 0:
            self.left -= 1
            raise self.error("no such host", committed=False)
        await self.store.__aenter__()
        return self

    async def __aexit__(self, *args: Any) -> None:
        await self.store.__aexit__(None, None, None)

    def __getattr__(self, verb: str) -> Any:
        return getattr(self.store, verb)


class Ear(Observer):
    def __init__(self) -> None:
        self.heard: list[Trouble] = []

    def store_unavailable(self, fact: Trouble) -> None:
        self.heard.append(fact)


async def test_a_store_that_is_away_at_first_is_waited_for():
    """A worker that is started before its database; each try is told, each pause longer than before."""
    store: Any = Away(3)
    ear, log = Ear(), Log()
    m = Manager(flow(on_enter={S.B: log.hook("b")}), store, observer=ear)
    async with Worker(m):
        await m.send("i", E.GO, start=True)
    assert (store.tries, log) == (4, ["b"])
    assert [fact.what for fact in ear.heard] == ["opening the store"] * 3
    pauses = [fact.pause or 0 for fact in ear.heard]
    for number, pause in enumerate(pauses):
        assert 0.05 <= pause / 2**number <= 0.15


async def test_stopped_while_it_waits_for_its_store(memory):
    """A signal is heard then, too, and what was open is closed."""
    away: Any = Away(10**6)
    one, two = Manager(flow("one"), memory), Manager(flow("two"), away)
    run = await running(Worker(one, two))
    await until(lambda: away.tries > 1)
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(5):
        await run
    async with one:
        await one.start("i")


async def test_a_store_that_cannot_be_used_is_an_error(memory):
    """Trying again would not help: told at once, with nothing left open."""
    broken: Any = Away(1, StoreError)
    one = Manager(flow("one"), memory)
    with pytest.raises(StoreError, match="no such host"):
        await Worker(one, Manager(flow("two"), broken)).run()
    assert broken.tries == 1
    async with one:
        await one.start("i")


async def test_a_store_that_always_fails_is_not_asked_in_a_hot_loop():
    """Neither the loop nor the listener ask more than a few times, whatever time is allowed to pass by itself."""
    tap = Tap(MemoryStore())
    ear = Ear()

    async def away(*args: Any) -> None:
        raise StoreUnavailable("away", committed=False)

    for verb in ("next_due", "claim", "load", "renew", "append", "wait"):
        tap.before[verb] = away
    async with Worker(Manager(flow("one"), tap, observer=ear), Manager(flow("two"), tap)):
        await asyncio.sleep(1)
    assert sum(tap.calls.values()) <= 2 * 7
    pauses = [fact.pause or 0 for fact in ear.heard if fact.what == "looking for due work"]
    assert 2 <= len(pauses) <= 6
    assert Counter(type(fact.cause) for fact in ear.heard) == {StoreUnavailable: len(ear.heard)}


async def test_claims_that_fail_give_their_places_back(memory):
    """After a store that failed to claim again and again all places are there."""
    gate, tap = Gate(), Tap(memory)
    m = posting(flow(on_enter={S.B: gate.hook}), memory)
    await seeded(m, 3)
    failing = [3]

    async def away(*args: Any) -> None:
        failing[0] -= 1
        if failing[0] >= 0:
            raise StoreUnavailable("away", committed=False)

    tap.before["claim"] = away
    async with Worker(posting(flow(on_enter={S.B: gate.hook}), tap), concurrency=3, drain=SECOND * 0):
        await until(lambda: gate.calls == 3)


# --- inside a service -------------------------------------------------------------------------------


async def test_the_lifespan_of_an_asgi_application(clock):
    """Opened at startup, closed at shutdown, requests between use the Manager."""
    log = Log()
    m = Manager(flow(on_enter={S.B: log.hook("b")}), MemoryStore(), clock=clock)
    worker = Worker(m)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            assert (await receive())["type"] == "lifespan.startup"
            async with worker:
                await send({"type": "lifespan.startup.complete"})
                assert (await receive())["type"] == "lifespan.shutdown"
            await send({"type": "lifespan.shutdown.complete"})
        else:
            done = await m.send(scope["path"], E.GO, start=True)
            await send({"type": "http.response.start", "status": 200 if done.settled else 500, "headers": []})

    inbox: asyncio.Queue[Any] = asyncio.Queue()
    outbox: asyncio.Queue[Any] = asyncio.Queue()
    lifespan = asyncio.create_task(app({"type": "lifespan"}, inbox.get, outbox.put))
    await inbox.put({"type": "lifespan.startup"})
    assert (await outbox.get())["type"] == "lifespan.startup.complete"
    await asyncio.create_task(app({"type": "http", "path": "i"}, None, outbox.put))
    assert (await outbox.get())["status"] == 200
    await inbox.put({"type": "lifespan.shutdown"})
    assert (await outbox.get())["type"] == "lifespan.shutdown.complete"
    await lifespan
    assert log == ["b"]


async def test_opened_by_one_task_and_closed_by_another(clock):
    """As fixtures and lifespan handlers do."""
    m = Manager(flow(), MemoryStore(), clock=clock)
    worker = Worker(m)
    await asyncio.create_task(worker.__aenter__())
    await m.start("i")
    await asyncio.create_task(worker.__aexit__(None, None, None))


async def test_its_managers_keep_their_own_clocks(memory):
    """What is due by a Manager's clock is done when that clock says so."""
    log, clock = Log(), FakeClock(NOON)
    m = Manager(flow(on_enter={S.B: log.failing("b", 1)}), memory, clock=clock, inline=False)
    async with Worker(m):
        await m.send("i", E.GO, start=True)
        await until(lambda: log == ["b"])
        await clock.advance(MINUTE)
        assert log == ["b", "b"]
