"""Know your customer: a service scores the document, a human decides where it cannot. `python -m examples.kyc`

A hook hands the service's answer back as an event (`Then`); of several edges the first whose guard passes wins.
"""

import asyncio
from enum import StrEnum

from attrs import evolve, frozen

from stores import MemoryStore
from workflow import Deny, Edge, GuardRejected, Manager, Move, Spec, Then

State = StrEnum("State", ["NEW", "CHECKING", "REVIEW", "APPROVED", "REJECTED"])
Event = StrEnum("Event", ["SUBMIT", "SCORED", "APPROVE", "REJECT"])


@frozen
class Case:
    """Who opened it, and the score once there is one."""

    clerk: str
    score: int = 0


KycMove = Move[State, Event, Case]
KycEdge = Edge[State, Event, Case]


def other_eyes(m: KycMove) -> bool | Deny:
    """Four eyes: whoever opened the case does not approve it."""
    return m.payload != m.context.clerk or Deny(f"{m.payload} opened this case; somebody else must approve it")


def note(m: KycMove) -> Case:
    """The score stays with the case."""
    return evolve(m.context, score=m.payload)


async def ask_service(m: KycMove) -> Then[Event]:
    """Ask the outside, with `m.key` so that it is asked once. This one counts letters."""
    await asyncio.sleep(0)
    return Then(Event.SCORED, min(100, 10 * len(m.payload)))


kyc = Spec[State, Event, Case](
    "kyc",
    initial=State.NEW,
    final={State.APPROVED, State.REJECTED},
    context=Case,
    payloads={Event.SUBMIT: str, Event.SCORED: int, Event.APPROVE: str, Event.REJECT: str},
    edges=[
        KycEdge(State.NEW, Event.SUBMIT, State.CHECKING),
        KycEdge(State.CHECKING, Event.SCORED, State.REJECTED, guard=lambda m: m.payload < 20, assign=note),
        KycEdge(State.CHECKING, Event.SCORED, State.REVIEW, guard=lambda m: m.payload < 90, assign=note),
        KycEdge(State.CHECKING, Event.SCORED, State.APPROVED, assign=note),
        KycEdge(State.REVIEW, Event.APPROVE, State.APPROVED, guard=other_eyes),
        KycEdge(State.REVIEW, Event.REJECT, State.REJECTED),
    ],
    on_enter={State.CHECKING: ask_service},
)


async def main() -> None:
    """Three documents, and a clerk in too much of a hurry."""
    async with Manager(kyc, MemoryStore()) as cases:
        for document in ("x", "passport", "passport of Anna"):
            await cases.start(document, Case(clerk="bob"))
            print(f"{document}: {(await cases.send(document, Event.SUBMIT, document)).state}")
        try:
            await cases.send("passport", Event.APPROVE, "bob")
        except GuardRejected as refusal:
            print(*refusal.reasons)
        print(f"passport: {(await cases.send('passport', Event.APPROVE, 'eve')).state}")


if __name__ == "__main__":
    asyncio.run(main())
