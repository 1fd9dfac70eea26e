"""Plays with time: timeouts, events sent with a delay and taken back, slow hooks, two Managers, crashes.

A failing play prints its seed; `INTERLEAVING=<seed> pytest tests/test_interleavings_time.py` gives it alone.
"""

from __future__ import annotations

import asyncio
import os
import random
from functools import cache, partial
from typing import Any

import pytest

from tests.model_time import Timed, Timely, on_time, only_timeouts
from tests.stage import LEASE, SEAT, Loop, Seat, Sketch, Stage, Temper, Wait, Way, finish, run
from tests.verdict import at_rest, judged
from workflow import Spec

PLAYS, PARTS = 1_000, 10
DELAYS = (0, 1, 2, 3, 5, 8, 20)

SKETCHES = (
    Sketch(  # each state has its time; the last way out is refused at first
        ("a", "b", "c", "z"),
        frozenset({"z"}),
        (
            Way("a", "go", "b", adds=True),
            Way("b", "go", "c"),
            Way("c", "go", "b", limit=4, adds=True),
            Way("c", "back", "a"),
            Way(None, "touch", None, adds=True, actions=1),
            Way(None, "end", "z"),
        ),
        enter={"b": 1, "c": 1, "z": 1},
        leave={"a": 1},
        undo={"b": 1, "c": 1},
        waits={
            "a": (Wait("go", 5),),
            "b": (Wait("touch", 2), Wait("go", 3), Wait("end", 20)),
            "c": (Wait("go", 5), Wait("back", 8)),
        },
    ),
    Sketch(  # no hooks: nearly every timer is superseded, and entered again
        ("a", "b", "c"),
        frozenset({"c"}),
        (
            Way("a", "go", "b"),
            Way("b", "go", "a"),
            Way("a", "again", "a", adds=True),
            Way(None, "touch", None, limit=3, adds=True),
            Way("b", "end", "c", limit=2),
        ),
        waits={
            "a": (Wait("again", 3, "x", varies=True), Wait("go", 5, "y")),
            "b": (Wait("go", 3, "x"), Wait("touch", 3, "y"), Wait("end", 1, "z", varies=True)),
        },
    ),
    Sketch(  # timeouts whose hooks are slow and return events
        ("a", "b", "c"),
        frozenset(),
        (
            Way("a", "go", "b", actions=1),
            Way("b", "go", "c", actions=1),
            Way("c", "go", "a", limit=2, adds=True),
            Way(None, "touch", None, actions=1, adds=True),
        ),
        enter={"a": 1, "b": 2},
        leave={"c": 1},
        undo={"b": 1, "c": 2},
        waits={"a": (Wait("touch", 1), Wait("go", 2)), "b": (Wait("go", 0, varies=True),), "c": (Wait("go", 8),)},
    ),
)
TEMPERS = (
    Temper(),
    Temper(slow=0.3, update=0.3, answer=0.2),
    Temper(fail=0.3, permanent=0.2, slow=0.1, answer=0.2),
    Temper(fail=0.1, slow=0.1, update=0.2, answer=0.2, before=0.03, after=0.05, late=0.03),
    Temper(fail=0.1, slow=0.1, update=0.2, answer=0.2, stall=0.1),
    Temper(fail=0.1, update=0.2, answer=0.2, freeze=0.1),
    Temper(fail=0.1, slow=0.1, answer=0.2, doubt=0.7),
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
    stage.timed = True
    try:
        run(loop, _play(stage, drawn(number), dice))
        for instance in judged(
            stage, fenced=not temper.stall, model=partial(Timed, doubts=bool(temper.doubt))
        ).values():
            at_rest(instance)
            on_time(stage, instance)
    except BaseException as e:
        e.add_note(f"INTERLEAVING={seed}")
        raise
    return stage


async def _play(stage: Stage, spec: Spec[Any, Any, int], dice: random.Random) -> None:
    ids = ["one", "two"][: 1 if stage.temper.freeze else dice.randint(1, 2)]
    seats: list[Seat] = [
        Timely(stage, f"m{n}", spec, work=bool(stage.temper.freeze) or dice.random() < 0.7)
        for n in range(2 if stage.temper.freeze else dice.randint(1, 2))
    ]
    for seat in seats:
        SEAT.set(seat)
        await seat.manager.__aenter__()
    for id in ids:
        if dice.random() < 0.8:
            await seats[0].call(id, "start", "", "start/1")
    actors: dict[asyncio.Task[None], Seat] = {}
    for _ in range(dice.randint(2, 4)):
        seat = dice.choice(seats)
        SEAT.set(seat)
        actors[asyncio.create_task(_act(stage, seat, dice.choice(ids), random.Random(dice.random())))] = seat
    if dice.random() < 0.3:
        stage.planned[dice.randint(1, 80)] = dice.choice(list(actors)).cancel
    if dice.random() < 0.3 and len(seats) == 2:
        stage.planned[dice.randint(1, 120)] = seats[0].crash
    waiting = set(actors)
    while not all(actors[actor].dead for actor in waiting):
        _, waiting = await asyncio.wait(waiting, timeout=60)
    if any(seat.frozen for seat in seats):
        await asyncio.sleep(2 * LEASE.total_seconds())
    await finish(stage, spec, seats, ids, lambda rounds: rounds > 10 and only_timeouts(stage))


async def _act(stage: Stage, seat: Seat, id: str, dice: random.Random) -> None:
    """A few calls, one after the other, with pauses after which timers come due."""
    for _ in range(dice.randint(1, 5)):
        if dice.random() < 0.5:
            await asyncio.sleep(dice.choice(DELAYS))
        verb = dice.choice(("start", "send", "send", "open", "compensate", "later", "later", "unlater", "resume"))
        if verb == "resume":
            await seat.manager.resume()
        elif verb == "start":
            await seat.call(id, verb, "", dice.choice((None, "start/1")))
        elif verb == "compensate":
            to = dice.choice(stage.sketch.states)
            await seat.call(id, verb, to, f"to/{to}/{dice.randint(1, 3)}")
        elif verb == "unlater":
            await seat.call(id, verb, dice.choice(("k/1", "k/2", "k/3")), None)
        else:
            key = dice.choice((None, None, "k/1", "k/2", "k/3"))
            event = dice.choice(stage.sketch.events)
            await seat.call(id, verb, f"{event}/{dice.choice(DELAYS)}" if verb == "later" else event, key)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_order_of_steps_obeys_the_model(part: int) -> None:
    """Whatever came due while whatever happened: it fired once, for its entry, or is void on the record."""
    given = os.environ.get("INTERLEAVING")
    loop = Loop()
    try:
        for seed in range(part, PLAYS, PARTS) if given is None else [int(given)]:
            play(loop, seed)
    finally:
        loop.close()
