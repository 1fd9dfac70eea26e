"""One instance is a lock: who holds it and who waits are its context, a lease that runs out is a timeout."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from enum import StrEnum, auto
from typing import Any

import pytest
from attrs import evolve, frozen

from tests.flows import SECOND, crashing, story
from workflow import STAY, After, Deny, Edge, GuardRejected, Manager, Move, Spec

LEASE = timedelta(seconds=10)


class State(StrEnum):
    FREE = auto()
    HELD = auto()


class Event(StrEnum):
    ACQUIRE = auto()
    RENEW = auto()
    RELEASE = auto()
    EXPIRE = auto()


@frozen
class Lock:
    holder: str = ""
    waiting: tuple[str, ...] = ()
    fence: int = 0


LockMove = Move[State, Event, Lock]


def holds(m: LockMove) -> bool | Deny:
    return m.payload == m.context.holder or Deny(f"{m.payload} does not hold it")


def is_new(m: LockMove) -> bool | Deny:
    known = m.payload == m.context.holder or m.payload in m.context.waiting
    return not known or Deny(f"{m.payload} holds it or waits for it already")


def awaited(m: LockMove) -> bool:
    return bool(m.context.waiting)


def take(m: LockMove) -> Lock:
    return Lock(m.payload, (), m.context.fence + 1)


def wait(m: LockMove) -> Lock:
    return evolve(m.context, waiting=(*m.context.waiting, m.payload))


def hand_on(m: LockMove) -> Lock:
    first, *others = m.context.waiting
    return Lock(first, tuple(others), m.context.fence + 1)


def give_up(m: LockMove) -> Lock:
    return Lock(fence=m.context.fence)


class Grants:
    """Who is told that the lock is theirs, each with a number that grows: later writes elsewhere carry it."""

    def __init__(self) -> None:
        self.told: list[tuple[int, str]] = []
        self.turn: dict[str, asyncio.Event] = {}

    async def tell(self, m: LockMove) -> None:
        grant = (m.context.fence, m.context.holder)
        if grant not in self.told:  # a renewal, or told again after a crash
            self.told.append(grant)
        self.turn.setdefault(m.context.holder, asyncio.Event()).set()

    def spec(self) -> Spec[State, Event, Lock]:
        edges: list[Any] = [
            Edge(State.FREE, Event.ACQUIRE, State.HELD, assign=take),
            Edge(State.HELD, Event.ACQUIRE, STAY, guard=is_new, assign=wait),
            Edge(State.HELD, Event.RENEW, State.HELD, guard=holds),
            Edge(State.HELD, Event.RELEASE, State.HELD, guard=lambda m: holds(m) and awaited(m), assign=hand_on),
            Edge(State.HELD, Event.RELEASE, State.FREE, guard=holds, assign=give_up),
            Edge(State.HELD, Event.EXPIRE, State.HELD, guard=awaited, assign=hand_on),
            Edge(State.HELD, Event.EXPIRE, State.FREE, assign=give_up),
        ]
        return Spec[State, Event, Lock](
            "lock",
            initial=State.FREE,
            context=Lock,
            payloads=dict.fromkeys((Event.ACQUIRE, Event.RENEW, Event.RELEASE), str),
            edges=edges,
            timeouts={State.HELD: After(LEASE, Event.EXPIRE)},
            on_enter={State.HELD: self.tell},
        )


async def test_one_at_a_time(store, clock):
    """Twenty workers in two services: never two in the room, all get in, in the order in which they asked."""
    grants = Grants()
    inside, most = 0, 0
    spec, order = grants.spec(), list[str]()
    async with Manager(spec, store, clock=clock) as one, Manager(spec, store, clock=clock) as two:
        await one.start("door")

        async def worker(service: Any, name: str) -> None:
            nonlocal inside, most
            turn = grants.turn.setdefault(name, asyncio.Event())
            await service.send("door", Event.ACQUIRE, name)
            await turn.wait()
            order.append(name)
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1
            await service.send("door", Event.RELEASE, name)

        await asyncio.gather(*(worker((one, two)[n % 2], f"w{n}") for n in range(20)))
        head = await one.get("door")
        assert (most, len(order), head.state, head.context) == (1, 20, State.FREE, Lock(fence=20))
        asked = [x.payload for x in await one.history("door") if x.event is Event.ACQUIRE]
        assert order == asked == [name for _, name in grants.told]
        await story(two, "door")
        await clock.advance(LEASE)
        assert (await one.get("door")).seq == head.seq


async def test_a_holder_that_dies(store, clock):
    """The lease ends and the next one has it; the dead one comes back late, and is told that it lost it."""
    grants = Grants()
    async with Manager(grants.spec(), store, clock=clock) as locks:
        for name in ("ann", "bob", "cid"):
            await locks.send("door", Event.ACQUIRE, name, start=True)
        await clock.advance(LEASE - SECOND)
        assert (await locks.get("door")).context.holder == "ann"
        await clock.advance(SECOND)
        assert (await locks.get("door")).context == Lock("bob", ("cid",), 2)
        with pytest.raises(GuardRejected, match="ann does not hold it"):
            await locks.send("door", Event.RELEASE, "ann")
        with pytest.raises(GuardRejected, match="already"):
            await locks.send("door", Event.ACQUIRE, "cid")
        await clock.advance(10 * LEASE)
        assert (await locks.get("door")).state is State.FREE
        assert grants.told == [(1, "ann"), (2, "bob"), (3, "cid")]
        assert (await story(locks, "door")).count("timeout") == 3


async def test_renewing(store, clock):
    """Each renewal is a new entry: its lease starts anew, and the former one's timeout is gone."""
    grants = Grants()
    async with Manager(grants.spec(), store, clock=clock) as locks:
        await locks.send("door", Event.ACQUIRE, "ann", start=True)
        await locks.send("door", Event.ACQUIRE, "bob")
        for _ in range(100):
            await clock.advance(LEASE - SECOND)
            await locks.send("door", Event.RENEW, "ann")
        (loaded,) = await store.load("lock", ("door",), rows=True)
        assert [row.name for row in loaded.rows] == ["timeout/expire"]
        with pytest.raises(GuardRejected):
            await locks.send("door", Event.RENEW, "bob")
        await clock.advance(LEASE)
        assert grants.told == [(1, "ann"), (2, "bob")]


async def test_the_service_dies(store, clock):
    """A lock lives in the store: whoever runs next ends the lease of whoever held it."""
    grants = Grants()
    async with store:
        async with crashing(Manager(grants.spec(), store, clock=clock)) as dying:
            await dying.send("door", Event.ACQUIRE, "ann", start=True)
            await dying.send("door", Event.ACQUIRE, "bob")
        await clock.advance(LEASE)
        async with Manager(grants.spec(), store, clock=clock) as living:
            await clock.advance(timedelta(0))
            assert (await living.get("door")).context == Lock("bob", (), 2)
            assert grants.told[-1] == (2, "bob")
