"""Know your customer: a service scores a document, humans decide, and an officer puts a case on hold."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from enum import StrEnum, auto
from typing import Any

import pytest
from attrs import evolve, frozen

from tests.flows import MINUTE, NOON, crashing, story
from workflow import (
    ANY,
    After,
    Deny,
    Edge,
    GuardRejected,
    HookFailed,
    Manager,
    Move,
    NotRunning,
    Retry,
    Spec,
    Status,
    Then,
)

DAY = timedelta(days=1)


class State(StrEnum):
    NEW = auto()
    CHECKING = auto()
    REVIEW = auto()
    ESCALATED = auto()
    APPROVED = auto()
    REJECTED = auto()


class Event(StrEnum):
    SUBMIT = auto()
    SCORED = auto()
    ESCALATE = auto()
    APPROVE = auto()
    REJECT = auto()


@frozen
class Case:
    clerk: str = "ann"
    score: int = 0


KycMove = Move[State, Event, Case]


def other_eyes(m: KycMove) -> bool | Deny:
    return m.payload != m.context.clerk or Deny(f"{m.payload} opened this case")


def note(m: KycMove) -> Case:
    return evolve(m.context, score=m.payload)


class Service:
    """Scores documents, once it is let; may fail first. Mails go to whoever must decide."""

    def __init__(self, errors: int = 0) -> None:
        self.asked: list[str] = []
        self.mails: list[tuple[str, State]] = []
        self.asking, self.answer = asyncio.Event(), asyncio.Event()
        self.answer.set()
        self.errors = errors

    async def score(self, m: KycMove) -> Then[Event]:
        self.asked.append(m.key)
        self.asking.set()
        await self.answer.wait()
        if len(self.asked) <= self.errors:
            raise ConnectionError("the service is down")
        return Then(Event.SCORED, 50)

    def mail(self, m: KycMove) -> None:
        self.mails.append((m.id, m.target))

    def spec(self) -> Spec[State, Event, Case]:
        review = {State.REVIEW, State.ESCALATED}
        edges: list[Any] = [
            Edge(State.NEW, Event.SUBMIT, State.CHECKING),
            Edge(State.CHECKING, Event.SCORED, State.REJECTED, guard=lambda m: m.payload < 20, assign=note),
            Edge(State.CHECKING, Event.SCORED, State.REVIEW, assign=note),
            Edge(State.REVIEW, Event.ESCALATE, State.ESCALATED),
            Edge(review, Event.APPROVE, State.APPROVED, guard=other_eyes),
            Edge(ANY, Event.REJECT, State.REJECTED),
        ]
        return Spec[State, Event, Case](
            "kyc",
            initial=State.NEW,
            final={State.APPROVED, State.REJECTED},
            context=Case,
            payloads={Event.SUBMIT: str, Event.SCORED: int, Event.APPROVE: str},
            edges=edges,
            timeouts={
                State.REVIEW: After(3 * DAY, Event.ESCALATE),
                State.ESCALATED: After(14 * DAY, Event.REJECT),
            },
            on_enter={State.CHECKING: self.score, State.REVIEW: self.mail, State.ESCALATED: self.mail},
            retry=Retry(first=MINUTE, jitter=0.0),
        )


async def test_nobody_decides(store, clock):
    """The service is down twice; then a human is asked, after three days another, after a fortnight the case is closed."""
    service = Service(errors=2)
    async with Manager(service.spec(), store, clock=clock) as cases:
        await cases.start("c")
        with pytest.raises(HookFailed, match="the service is down"):
            await cases.send("c", Event.SUBMIT, "passport")
        await clock.advance(30 * DAY)
        assert len(set(service.asked)) == 1
        assert service.mails == [("c", State.REVIEW), ("c", State.ESCALATED)]
        assert [(x.target, x.at - NOON) for x in (await cases.history("c"))[2:]] == [
            (State.REVIEW, 3 * MINUTE),
            (State.ESCALATED, 3 * MINUTE + 3 * DAY),
            (State.REJECTED, 3 * MINUTE + 17 * DAY),
        ]
        await story(cases, "c")


async def test_a_hold_while_the_service_is_asked(store, clock):
    """It waits for nobody: what the service answers is kept, and judged once the hold is over."""
    service = Service()
    service.answer.clear()
    async with Manager(service.spec(), store, clock=clock) as cases:
        await cases.start("c")
        sending = asyncio.ensure_future(cases.send("c", Event.SUBMIT, "passport"))
        await service.asking.wait()
        held = await cases.pause("c", "the police asked", key="hold")
        assert (held.state, held.transition.kind) == (State.CHECKING, "pause")
        service.answer.set()
        await asyncio.gather(sending, return_exceptions=True)
        await clock.advance(5 * DAY)
        head = await cases.get("c")
        assert (head.state, head.status, head.reason) == (State.CHECKING, Status.PAUSED, "the police asked")
        assert service.mails == []
        await cases.unpause("c", "nothing found")
        await clock.advance(timedelta(0))
        assert (await cases.state("c"), len(service.asked)) == (State.REVIEW, 1)
        assert service.mails == [("c", State.REVIEW)]
        assert await story(cases, "c") == ["start", "event", "pause", "unpause", "event"]


async def test_a_hold_over_a_deadline(store, clock):
    """Timers rest while the case is on hold, in whatever process; what is overdue when it ends comes at once."""
    service = Service()
    async with store:
        async with crashing(Manager(service.spec(), store, clock=clock)) as dying:
            await dying.start("c")
            await dying.send("c", Event.SUBMIT, "passport")
            await clock.advance(DAY)
            await dying.pause("c", "the police asked")
        await clock.advance(30 * DAY)
        async with Manager(service.spec(), store, clock=clock) as cases:
            await clock.advance(30 * DAY)
            assert (await cases.resume()).timers == 0
            with pytest.raises(NotRunning, match="the police asked"):
                await cases.send("c", Event.APPROVE, "bob")
            assert await cases.accepted("c") == ()
            await cases.unpause("c")
            await clock.advance(timedelta(0))
            assert await cases.state("c") is State.ESCALATED
            await clock.advance(14 * DAY)
            assert await cases.state("c") is State.REJECTED


async def test_a_decision_after_the_hold(store, clock):
    """Four eyes count after it as before; the hold stands in the history with its reason."""
    service = Service()
    async with Manager(service.spec(), store, clock=clock) as cases:
        await cases.start("c")
        await cases.send("c", Event.SUBMIT, "passport")
        await cases.pause("c", "the police asked", key="hold")
        await cases.unpause("c", "nothing found", key="release")
        again = await cases.pause("c", "the police asked", key="hold")
        assert (again.duplicate, (await cases.get("c")).status) == (True, Status.RUNNING)
        with pytest.raises(GuardRejected, match="ann opened this case"):
            await cases.send("c", Event.APPROVE, "ann")
        assert (await cases.send("c", Event.APPROVE, "bob")).state is State.APPROVED
        await clock.advance(60 * DAY)
        lines = await cases.history("c")
        assert [(x.kind, x.reason) for x in lines if x.reason] == [
            ("pause", "the police asked"),
            ("unpause", "nothing found"),
        ]
        assert len(lines) == 6
