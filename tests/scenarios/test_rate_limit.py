"""A bucket of tokens in front of somebody else's API: each call takes one, and each comes back after a while."""

from __future__ import annotations

import asyncio
import random
from datetime import datetime, timedelta
from enum import StrEnum, auto
from typing import Any

from attrs import frozen

from tests.flows import SECOND, crashing, story
from workflow import STAY, Due, Edge, IllegalTransition, Manager, Move, Spec
from workflow.testing import replay

LIMIT = 5
WINDOW = timedelta(seconds=60)


class State(StrEnum):
    OPEN = auto()
    EMPTY = auto()


class Event(StrEnum):
    TAKE = auto()
    REFILL = auto()


@frozen
class Bucket:
    tokens: int = LIMIT


BucketMove = Move[State, Event, Bucket]


def is_last(m: BucketMove) -> bool:
    return m.context.tokens == 1


def fewer(m: BucketMove) -> Bucket:
    return Bucket(m.context.tokens - 1)


def more(m: BucketMove) -> Bucket:
    return Bucket(m.context.tokens + 1)


class Gateway:
    """Calls are let through as long as a token is left."""

    def __init__(self) -> None:
        self.manager: Manager[State, Event, Bucket] | None = None
        self.through: list[datetime] = []
        self.refill: Due

    async def give_back(self, m: BucketMove) -> None:
        """Its token comes back when the window is over; run again after a crash it is the same one, by its key."""
        assert self.manager is not None
        self.refill = await self.manager.send_later(m.id, Event.REFILL, at=m.at + WINDOW, key=m.key)

    def spec(self) -> Spec[State, Event, Bucket]:
        edges: list[Any] = [
            Edge(State.OPEN, Event.TAKE, State.EMPTY, guard=is_last, assign=fewer, action=self.give_back),
            Edge(State.OPEN, Event.TAKE, STAY, assign=fewer, action=self.give_back),
            Edge(State.EMPTY, Event.REFILL, State.OPEN, assign=more),
            Edge(State.OPEN, Event.REFILL, STAY, assign=more),
        ]
        return Spec[State, Event, Bucket]("bucket", initial=State.OPEN, context=Bucket, edges=edges)

    def open(self, store: Any, clock: Any) -> Manager[State, Event, Bucket]:
        self.manager = Manager(self.spec(), store, clock=clock)
        return self.manager

    async def call(self, key: str) -> bool:
        """Is this call let through?"""
        assert self.manager is not None
        try:
            done = await self.manager.send("api", Event.TAKE, key=key, start=True)
        except IllegalTransition:
            return False
        if not done.duplicate:
            self.through.append(done.transition.at)
        return True


async def tokens(buckets: Manager[State, Event, Bucket]) -> int:
    return (await buckets.get("api")).context.tokens


async def test_a_burst(store, clock):
    """Of twenty calls at once five are let through; a window later it is five again, and never more than five."""
    gateway = Gateway()
    async with gateway.open(store, clock) as buckets:
        for burst in range(3):
            let = await asyncio.gather(*(gateway.call(f"{burst}/{n}") for n in range(20)))
            assert (sum(let), await tokens(buckets)) == (LIMIT, 0)
            await clock.advance(WINDOW - SECOND)
            assert not await gateway.call(f"{burst}/early")
            await clock.advance(SECOND)
            assert await tokens(buckets) == LIMIT
        await clock.advance(100 * WINDOW)
        assert await tokens(buckets) == LIMIT
        assert (await story(buckets, "api")).count("event") == 3 * 2 * LIMIT


async def test_no_window_has_more(store, clock):
    """Five minutes of calls at random times: in no window whatever are more than five of them, and none is starved."""
    gateway, dice = Gateway(), random.Random(11)
    async with gateway.open(store, clock) as buckets:
        for n in range(120):
            await clock.advance(SECOND * dice.choice((0, 0, 1, 3, 8)))
            if len([at for at in gateway.through if clock.now() - at < WINDOW]) < LIMIT:
                assert await gateway.call(f"{n}")
            else:
                assert not await gateway.call(f"{n}")
        times = gateway.through
        assert max(sum(at <= other < at + WINDOW for other in times) for at in times) == LIMIT
        await clock.advance(WINDOW)
        assert await tokens(buckets) == LIMIT
        assert replay(buckets.spec, await buckets.history("api")) == await buckets.get("api")


async def test_a_token_is_not_lost_with_the_process(store, clock):
    """Those that are out when the service dies come back in the next one; a call said again takes no second one."""
    gateway = Gateway()
    async with store:
        async with crashing(gateway.open(store, clock)):
            for n in range(3):
                assert await gateway.call(f"{n}")
        await clock.advance(WINDOW / 2)
        async with gateway.open(store, clock) as buckets:
            for n in range(5):
                assert await gateway.call(f"{n}")
            assert await tokens(buckets) == 0
            await clock.advance(WINDOW / 2)
            assert await tokens(buckets) == 3
            await clock.advance(WINDOW / 2)
            assert await tokens(buckets) == LIMIT


async def test_a_call_that_was_not_made(store, clock):
    """Whoever gives a token back at once takes its refill back too, so that it does not come twice."""
    gateway = Gateway()
    async with gateway.open(store, clock) as buckets:
        assert await gateway.call("a")
        assert gateway.refill.at == clock.now() + WINDOW
        assert await buckets.cancel_later(gateway.refill)
        assert not await buckets.cancel_later(gateway.refill)
        await buckets.send("api", Event.REFILL)
        await clock.advance(10 * WINDOW)
        assert await tokens(buckets) == LIMIT
