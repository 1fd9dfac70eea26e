"""A build: steps that fail and are tried again, an hour after which nobody waits, and a cancel in the middle of a step."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from enum import StrEnum, auto
from typing import Any

import pytest

from tests.flows import MINUTE, NOON, SECOND, story
from workflow import ANY, After, Edge, HookFailed, Manager, Move, NotRunning, Permanent, Retry, Spec, Status

HOUR = timedelta(hours=1)


class State(StrEnum):
    QUEUED = auto()
    CLONING = auto()
    TESTING = auto()
    PASSED = auto()
    BROKEN = auto()


class Event(StrEnum):
    PICK = auto()
    TEST = auto()
    PASS = auto()
    BREAK = auto()


BuildMove = Move[State, Event, None]


class Farm:
    """Machines that are taken for a build and must be given back; how often cloning fails; how tests go."""

    def __init__(self, clock: Any, flaky: int = 0) -> None:
        self.clock = clock
        self.flaky = flaky
        self.taken: set[str] = set()
        self.cloned: list[timedelta] = []
        self.testing, self.tested = asyncio.Event(), asyncio.Event()
        self.tested.set()
        self.ran = 0
        self.result: Event | Exception = Event.PASS

    async def clone(self, m: BuildMove) -> Event:
        self.taken.add(m.id)
        self.cloned.append(self.clock.now() - NOON)
        if m.attempt <= self.flaky:
            raise ConnectionError("the git server hung up")
        return Event.TEST

    async def test(self, m: BuildMove) -> Event:
        self.testing.set()
        await self.tested.wait()
        self.ran += 1
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    async def free(self, m: BuildMove) -> None:
        self.taken.discard(m.id)

    def spec(self) -> Spec[State, Event, None]:
        edges: list[Any] = [
            Edge(State.QUEUED, Event.PICK, State.CLONING),
            Edge(State.CLONING, Event.TEST, State.TESTING),
            Edge(State.TESTING, Event.PASS, State.PASSED),
            Edge(ANY, Event.BREAK, State.BROKEN),
        ]
        return Spec[State, Event, None](
            "ci",
            initial=State.QUEUED,
            final={State.PASSED, State.BROKEN},
            edges=edges,
            timeouts={state: After(HOUR, Event.BREAK) for state in (State.CLONING, State.TESTING)},
            on_enter={
                State.CLONING: self.clone,
                State.TESTING: self.test,
                State.PASSED: self.free,
                State.BROKEN: self.free,
            },
            compensators={State.CLONING: self.free},
            retry=Retry(attempts=16, first=SECOND, max=30 * MINUTE, jitter=0.0),
        )


async def test_flaky(store, clock):
    """Each attempt is later than the one before; the sender hears the first failure, the build passes all the same."""
    farm = Farm(clock, flaky=4)
    async with Manager(farm.spec(), store, clock=clock) as builds:
        await builds.start("b")
        with pytest.raises(HookFailed, match="hung up") as caught:
            await builds.send("b", Event.PICK)
        assert (caught.value.attempt, caught.value.retry_at) == (1, NOON + SECOND)
        await clock.advance(MINUTE)
        assert [at / SECOND for at in farm.cloned] == [0, 1, 3, 7, 15]
        assert (await builds.state("b"), farm.taken) == (State.PASSED, set())
        assert await story(builds, "b") == ["start", "event", "event", "event"]


async def test_hopeless(store, clock):
    """The hour is over while cloning waits for its next attempt: it is not waited for, the build is broken."""
    farm = Farm(clock, flaky=100)
    async with Manager(farm.spec(), store, clock=clock) as builds:
        await builds.start("b")
        with pytest.raises(HookFailed):
            await builds.send("b", Event.PICK)
        await clock.advance(HOUR)
        assert await builds.state("b") is State.BROKEN
        await clock.advance(10 * HOUR)
        # Freeing the machine queued behind the clone, whose attempts end in the third hour: failed, and no silence.
        head = await builds.get("b")
        assert (head.status, len(farm.cloned)) == (Status.FAILED, 16)
        assert "the git server hung up" in (head.reason or "")
        await builds.skip("b", "the git server is gone")
        await clock.advance(timedelta(0))
        assert ((await builds.get("b")).status, farm.taken) == (Status.FINISHED, set())
        assert await story(builds, "b") == ["start", "event", "timeout", "fail", "skip"]


async def test_a_permanent_error_is_not_tried_again(store, clock):
    """Failed at once; an operator who mended it says retry, and the attempts are counted anew."""
    farm = Farm(clock)
    farm.result = Permanent("no such runner")
    async with Manager(farm.spec(), store, clock=clock) as builds:
        await builds.start("b")
        with pytest.raises(HookFailed, match="no such runner"):
            await builds.send("b", Event.PICK)
        await clock.advance(10 * HOUR)
        assert ((await builds.get("b")).status, farm.ran) == (Status.FAILED, 1)
        farm.result = Event.PASS
        await builds.retry("b", "runner added", key="fix")
        await builds.retry("b", "runner added", key="fix")
        await clock.advance(timedelta(0))
        assert ((await builds.get("b")).state, farm.ran, farm.taken) == (State.PASSED, 2, set())


async def test_cancelled_in_the_middle(store, clock):
    """The cancel waits for no test run: its verdict is dropped on the record, nothing is due any more."""
    farm = Farm(clock)
    farm.tested.clear()
    async with Manager(farm.spec(), store, clock=clock) as builds:
        await builds.start("b")
        sending = asyncio.ensure_future(builds.send("b", Event.PICK))
        await farm.testing.wait()
        done = await builds.cancel("b", "a newer commit", key="push-2")
        assert (done.state, done.transition.kind) == (State.TESTING, "cancel")
        assert (await builds.cancel("b", "a newer commit", key="push-2")).duplicate
        farm.tested.set()
        await asyncio.gather(sending, return_exceptions=True)
        await clock.advance(10 * HOUR)
        head = await builds.get("b")
        assert (head.state, head.status, farm.ran) == (State.TESTING, Status.CANCELLED, 1)
        (loaded,) = await store.load("ci", ("b",), rows=True)
        assert loaded.rows == ()
        assert await story(builds, "b") == ["start", "event", "event", "cancel", "refused"]
        with pytest.raises(NotRunning, match="a newer commit"):
            await builds.send("b", Event.BREAK)


async def test_cancelled_while_it_waits_for_a_retry(store, clock):
    """The attempt that was to come does not come."""
    farm = Farm(clock, flaky=100)
    async with Manager(farm.spec(), store, clock=clock) as builds:
        await builds.start("b")
        with pytest.raises(HookFailed):
            await builds.send("b", Event.PICK)
        await clock.advance(5 * SECOND)
        tried = len(farm.cloned)
        await builds.cancel("b")
        await clock.advance(10 * HOUR)
        assert ((await builds.get("b")).status, len(farm.cloned)) == (Status.CANCELLED, tried)
        assert await story(builds, "b") == ["start", "event", "cancel"]


async def test_cancelled_and_cleaned_up(store, clock):
    """With `compensate` its machine is given back before it is cancelled."""
    farm = Farm(clock)
    farm.result = Permanent("no such runner")
    async with Manager(farm.spec(), store, clock=clock) as builds:
        await builds.start("b")
        with pytest.raises(HookFailed):
            await builds.send("b", Event.PICK)
        assert farm.taken == {"b"}
        await builds.cancel("b", "nobody wants it", compensate=True)
        await clock.advance(timedelta(0))
        head = await builds.get("b")
        assert (head.state, head.status, farm.taken) == (State.QUEUED, Status.CANCELLED, set())
        kinds = await story(builds, "b")
        assert kinds[-1] == "cancel"
        assert kinds.count("compensate") == 2
