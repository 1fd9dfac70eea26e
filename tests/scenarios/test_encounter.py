"""Games against the clock: each move ends the turn timers of one side and starts those of the other."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from enum import StrEnum, auto
from typing import Any

import pytest
from attrs import frozen

from tests.flows import NOON, SECOND, story
from workflow import STAY, After, Edge, Finished, Manager, Move, Outcome, Spec

BUDGET = timedelta(minutes=3)
NUDGE = timedelta(seconds=20)


class State(StrEnum):
    WHITE = auto()
    BLACK = auto()
    WHITE_WON = auto()
    BLACK_WON = auto()


class Event(StrEnum):
    PLAY = auto()
    NUDGE = auto()
    FLAG = auto()
    RESIGN = auto()


@frozen
class Clocks:
    """What each side has left, as of the beginning of the present turn."""

    white: timedelta = BUDGET
    black: timedelta = BUDGET
    since: datetime = NOON


GameMove = Move[State, Event, Clocks]


def played(m: GameMove) -> Clocks:
    """Whose turn it was has used up time."""
    spent = m.at - m.context.since
    if m.source is State.WHITE:
        return Clocks(m.context.white - spent, m.context.black, m.at)
    return Clocks(m.context.white, m.context.black - spent, m.at)


def begun(m: GameMove) -> timedelta:
    """How long the side whose turn it is may think."""
    return m.context.white if m.target is State.WHITE else m.context.black


class Table:
    """Who was asked whether they are still there."""

    def __init__(self) -> None:
        self.nudged: list[tuple[str, State]] = []

    async def nudge(self, m: GameMove) -> None:
        self.nudged.append((m.id, m.target))

    def spec(self) -> Spec[State, Event, Clocks]:
        edges: list[Any] = [
            Edge(State.WHITE, Event.PLAY, State.BLACK, assign=played),
            Edge(State.BLACK, Event.PLAY, State.WHITE, assign=played),
            Edge({State.WHITE, State.BLACK}, Event.NUDGE, STAY, action=self.nudge),
            Edge(State.WHITE, Event.FLAG, State.BLACK_WON),
            Edge(State.WHITE, Event.RESIGN, State.BLACK_WON),
            Edge(State.BLACK, Event.FLAG, State.WHITE_WON),
            Edge(State.BLACK, Event.RESIGN, State.WHITE_WON),
        ]
        timers: Any = [After(begun, Event.FLAG), After(NUDGE, Event.NUDGE)]
        return Spec[State, Event, Clocks](
            "game",
            initial=State.WHITE,
            final={State.WHITE_WON, State.BLACK_WON},
            context=Clocks,
            edges=edges,
            timeouts={State.WHITE: timers, State.BLACK: timers},
        )


async def rows(store: Any, id: str) -> list[str]:
    """The names of what is due of a game."""
    (loaded,) = await store.load("game", (id,), rows=True)
    return [row.name for row in loaded.rows]


async def test_nearly_every_timer_is_superseded(store, clock):
    """Forty games of sixty moves: 4,800 timers were begun, none fires, and two rows a game are all that is there."""
    table, ids = Table(), [f"g-{n}" for n in range(40)]
    async with Manager(table.spec(), store, clock=clock) as games:
        await asyncio.gather(*(games.start(id) for id in ids))
        for _ in range(60):
            await clock.advance(5 * SECOND)
            await asyncio.gather(*(games.send(id, Event.PLAY) for id in ids))
        assert {tuple(await rows(store, id)) for id in ids} == {("timeout/flag", "timeout/nudge")}
        head = await games.get("g-0")
        assert (head.state, head.seq) == (State.WHITE, 61)
        assert head.context == Clocks(BUDGET - 150 * SECOND, BUDGET - 150 * SECOND, NOON + 300 * SECOND)
        for n, id in enumerate(ids):
            await games.send(id, (Event.RESIGN, Event.PLAY)[n % 2])
        assert {tuple(await rows(store, id)) for id in ids[::2]} == {()}
        # Half of the games are over; in the others Black falls asleep: one nudge, then the flag.
        await clock.advance(timedelta(days=1))
        assert {tuple(await rows(store, id)) for id in ids} == {()}
        assert sorted(table.nudged) == sorted((id, State.BLACK) for id in ids[1::2])
        for n, id in enumerate(ids):
            ends = ["event"] if n % 2 == 0 else ["event", "timeout", "timeout"]
            assert await story(games, id) == ["start"] + ["event"] * 60 + ends
        falls = {(await games.history(id))[-1].at for id in ids[1::2]}
        assert falls == {NOON + 300 * SECOND + (BUDGET - 150 * SECOND)}


async def test_the_flag_falls_at_its_instant(store, clock):
    """What one thought about for long is gone for good; a nudge does not start the turn anew."""
    table = Table()
    async with Manager(table.spec(), store, clock=clock) as games:
        await games.start("g")
        await clock.advance(BUDGET - SECOND)
        await games.send("g", Event.PLAY)
        await clock.advance(10 * SECOND)
        await games.send("g", Event.PLAY)
        assert (await games.get("g")).context.white == SECOND
        await clock.advance(SECOND)
        assert await games.state("g") is State.BLACK_WON
        with pytest.raises(Finished):
            await games.send("g", Event.PLAY)
        assert table.nudged == [("g", State.WHITE)]
        assert await rows(store, "g") == []


async def test_a_move_in_the_last_instant(store, clock):
    """Move and flag come due together: one of them counts, and what follows fits it."""
    async with Manager(Table().spec(), store, clock=clock) as games:
        for n in range(30):
            await games.start(f"g-{n}")
        await clock.advance(BUDGET - SECOND)
        moves = (games.send(f"g-{n}", Event.PLAY) for n in range(30))
        _, *answers = await asyncio.gather(clock.advance(SECOND), *moves, return_exceptions=True)
        for n, answer in enumerate(answers):
            state = await games.state(f"g-{n}")
            if isinstance(answer, Finished):
                assert (state, await rows(store, f"g-{n}")) == (State.BLACK_WON, [])
            else:  # a move at the very instant leaves nothing to spare
                assert isinstance(answer, Outcome)
                assert (answer.transition.target, state) == (State.BLACK, State.BLACK)
