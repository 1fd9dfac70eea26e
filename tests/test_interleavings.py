"""Ten thousand plays of 2-4 actors on 1-2 instances, stepped one store verb at a time, against the model.

A failing play prints its seed; `INTERLEAVING=<seed> pytest tests/test_interleavings.py` gives it alone.
"""

from __future__ import annotations

import asyncio
import os
import random
from functools import cache
from typing import Any

import pytest

from tests.model import Instance
from tests.stage import LEASE, SEAT, Loop, Seat, Sketch, Stage, Temper, Way, finish, run
from tests.verdict import at_rest, judged
from workflow import Spec

PLAYS, PARTS = 10_000, 20

SKETCHES = (
    Sketch(
        ("a", "b", "c", "z"),
        frozenset({"z"}),
        (
            Way("a", "go", "b", adds=True),
            Way("b", "go", "c", limit=3),
            Way("b", "go", "a"),
            Way("c", "go", "a", actions=1),
            Way(None, "touch", None, adds=True, actions=1),
            Way("c", "end", "z"),
            Way("b", "end", "z", limit=2),
        ),
        enter={"a": 1, "b": 2, "c": 1, "z": 1},
        leave={"b": 1},
        undo={"b": 2, "c": 1},
    ),
    Sketch(
        ("a", "b"),
        frozenset(),
        (Way("a", "go", "b"), Way("b", "go", "a"), Way(None, "touch", None)),
        enter={"b": 1},
        undo={"b": 1},
        max_chain=3,
    ),
    Sketch(
        ("a", "b", "c"),
        frozenset({"c"}),
        (Way("a", "go", "b"), Way("b", "go", "a"), Way("b", "end", "c", limit=2), Way(None, "touch", None, adds=True)),
        undo={"b": 1, "a": 1},
    ),
    Sketch(
        ("a", "b", "c"),
        frozenset(),
        (Way("a", "go", "b", actions=2), Way("b", "go", "c"), Way("c", "go", "a"), Way(None, "touch", None, actions=2)),
        enter={"c": 3},
        leave={"a": 1, "c": 1},
        undo={"b": 1, "c": 2},
    ),
)
CALM = Temper(fail=0.2, permanent=0.1, update=0.3, answer=0.2)
TEMPERS = (
    Temper(),
    Temper(update=0.3, answer=0.2),
    CALM,
    Temper(answer=0.7),
    Temper(fail=0.5, permanent=0.1, update=0.2, answer=0.1),
    Temper(fail=0.1, update=0.3, answer=0.2, before=0.03, after=0.05, late=0.03),
    Temper(fail=0.1, update=0.3, answer=0.2, after=0.02, stall=0.1),
    Temper(fail=0.1, update=0.3, answer=0.2, freeze=0.15),
)


@cache
def drawn(number: int) -> Spec[Any, Any, int]:
    return SKETCHES[number].build()


def play(loop: Loop, seed: int) -> Stage:
    """One play from beginning to end, judged."""
    dice = random.Random(seed)
    number = dice.randrange(len(SKETCHES))
    temper = TEMPERS[dice.randrange(len(TEMPERS))]
    stage = Stage(loop, SKETCHES[number], seed, temper)
    try:
        run(loop, _play(stage, drawn(number), dice))
        for instance in judged(stage, fenced=not temper.stall, model=Instance).values():
            at_rest(instance)
    except BaseException as e:
        e.add_note(f"INTERLEAVING={seed}")
        raise
    return stage


async def _play(stage: Stage, spec: Spec[Any, Any, int], dice: random.Random) -> None:
    ids = ["one", "two"][: 1 if stage.temper.freeze else dice.randint(1, 2)]
    seats = [
        Seat(stage, f"m{n}", spec, work=bool(stage.temper.freeze) or dice.random() < 0.3 + 0.5 * n)
        for n in range(2 if stage.temper.freeze else dice.randint(1, 2))
    ]
    for seat in seats:
        SEAT.set(seat)
        await seat.manager.__aenter__()
    for id in ids:
        if dice.random() < 0.7:
            await seats[0].call(id, "start", "", "start/1")
    actors: dict[asyncio.Task[None], Seat] = {}
    for _ in range(dice.randint(2, 4)):
        seat = dice.choice(seats)
        SEAT.set(seat)
        actors[asyncio.create_task(_act(stage, seat, dice.choice(ids), random.Random(dice.random())))] = seat
    if dice.random() < 0.3:
        stage.planned[dice.randint(1, 60)] = dice.choice(list(actors)).cancel
    if dice.random() < 0.1 and len(seats) == 2:
        stage.planned[dice.randint(1, 80)] = seats[0].crash
    waiting = set(actors)
    while not all(actors[actor].dead for actor in waiting):
        _, waiting = await asyncio.wait(waiting, timeout=60)
    if any(seat.frozen for seat in seats):
        await asyncio.sleep(2 * LEASE.total_seconds())
    await finish(stage, spec, seats, ids)


async def _act(stage: Stage, seat: Seat, id: str, dice: random.Random) -> None:
    """A few calls, one after the other."""
    for _ in range(dice.randint(1, 4)):
        verb = dice.choice(("start", "send", "send", "send", "open", "open", "compensate", "resume"))
        if verb == "resume":
            await seat.manager.resume()
        elif verb == "start":
            await seat.call(id, verb, "", dice.choice((None, "start/1")))
        elif verb == "compensate":
            to = dice.choice(stage.sketch.states)
            await seat.call(id, verb, to, f"to/{to}/{dice.randint(1, 3)}")
        else:
            key = dice.choice((None, None, "k/1", "k/2", "k/3"))
            await seat.call(id, verb, dice.choice(stage.sketch.events), key)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_order_of_steps_obeys_the_model(part: int) -> None:
    """Whatever the order of store verbs, whatever fails or is repeated: lines, effects and answers are the model's."""
    given = os.environ.get("INTERLEAVING")
    loop = Loop()
    try:
        for seed in range(part, PLAYS, PARTS) if given is None else [int(given)]:
            play(loop, seed)
    finally:
        loop.close()
