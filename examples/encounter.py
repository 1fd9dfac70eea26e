"""A fight in turns: dice in hooks, hit points by `m.update`, potions. `python -m examples.encounter`"""

import asyncio
from enum import StrEnum
from random import Random

from attrs import evolve, frozen

from stores import MemoryStore
from workflow import STAY, Deny, Edge, GuardRejected, Manager, Move, Spec, Status

State = StrEnum("State", ["HERO", "MONSTER", "WON", "LOST", "FLED"])
Event = StrEnum("Event", ["STRIKE", "BITE", "DRINK", "FLEE", "FALL"])


@frozen
class Fight:
    """Hit points and potions."""

    hero: int = 20
    monster: int = 60
    potions: int = 1


Turn = Move[State, Event, Fight]
FightEdge = Edge[State, Event, Fight]


def has_potion(m: Turn) -> bool | Deny:
    """Nobody drinks from an empty bag."""
    return m.context.potions > 0 or Deny("the bag is empty")


def strike(m: Turn) -> Event:
    """The action of an edge. Run again after a crash it has the same key, so the dice fall the same."""
    hurt = Random(m.key).randint(3, 8)
    m.update(lambda fight: evolve(fight, monster=fight.monster - hurt))
    return Event.BITE if hurt < m.context.monster else Event.FALL


def bite(m: Turn) -> Event | None:
    """Returns nothing if it is the player's turn."""
    hurt = Random(m.key).randint(2, 6)
    m.update(lambda fight: evolve(fight, hero=fight.hero - hurt))
    return Event.FALL if hurt >= m.context.hero else None


fight = Spec[State, Event, Fight](
    "fight",
    initial=State.HERO,
    final={State.WON, State.LOST, State.FLED},
    context=Fight,
    edges=[
        FightEdge(State.HERO, Event.STRIKE, State.MONSTER, action=strike),
        FightEdge(State.MONSTER, Event.BITE, State.HERO, action=bite),
        FightEdge(State.MONSTER, Event.FALL, State.WON),
        FightEdge(State.HERO, Event.FALL, State.LOST),
        FightEdge(State.HERO, Event.DRINK, STAY, guard=has_potion, assign=lambda m: Fight(20, m.context.monster, 0)),
        FightEdge(State.HERO, Event.FLEE, State.FLED),
    ],
)


async def main(id: str = "cave") -> None:
    """A careful hero drinks when hurt, and runs when the bag is empty."""
    async with Manager(fight, MemoryStore()) as fights:
        await fights.start(id)
        while (now := await fights.get(id)).status is Status.RUNNING:
            try:
                await fights.send(id, Event.STRIKE if now.context.hero > 6 else Event.DRINK)
            except GuardRejected as refusal:
                print(*refusal.reasons)
                await fights.send(id, Event.FLEE)
        for line in await fights.history(id):
            print(line.seq, line.event or line.kind, line.target, line.context)


if __name__ == "__main__":
    asyncio.run(main())
