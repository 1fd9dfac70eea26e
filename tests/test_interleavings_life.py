"""Plays with an operator: pause, unpause, cancel, retry, skip and erase at any time, also while hooks run.

A failing play prints its seed; `INTERLEAVING=<seed> pytest tests/test_interleavings_life.py` gives it alone.
"""

from __future__ import annotations

import asyncio
import os
import random
from functools import cache, partial
from typing import Any

import pytest
from attrs import evolve

from tests.model_life import Living, Steered, at_peace, freed
from tests.model_time import on_time, only_timeouts
from tests.stage import LEASE, SEAT, Loop, Seat, Stage, Temper, finish, run
from tests.test_interleavings_time import DELAYS, SKETCHES
from tests.verdict import STEERS, at_rest, judged
from workflow import Spec

PLAYS, PARTS = 800, 10
ONCE = evolve(SKETCHES[0], on_failure="touch")
BACK = evolve(SKETCHES[2], on_failure="go")
VERBS = (
    *("start", "send", "send", "open", "open", "compensate", "later", "resume"),
    *("pause", "pause", "unpause", "unpause", "retry", "retry", "skip", "cancel", "withdraw", "erase"),
)
DRAWN = (*SKETCHES, ONCE, BACK)
TEMPERS = (
    Temper(slow=0.3, update=0.3, answer=0.2),
    Temper(fail=0.5, permanent=0.4, slow=0.1, answer=0.2),
    Temper(fail=0.3, permanent=0.2, slow=0.2, update=0.2, answer=0.2, before=0.03, after=0.05, late=0.03),
    Temper(fail=0.2, permanent=0.2, update=0.2, answer=0.2, freeze=0.1),
    Temper(fail=0.1, permanent=0.2, slow=0.2, answer=0.2, doubt=0.7),
)


@cache
def drawn(number: int) -> Spec[Any, Any, int]:
    return DRAWN[number].build()


def play(loop: Loop, seed: int) -> Stage:
    """One play from beginning to end, judged."""
    dice = random.Random(seed)
    number = dice.randrange(len(DRAWN))
    temper = TEMPERS[dice.randrange(len(TEMPERS))]
    stage = Stage(loop, DRAWN[number], seed, temper)
    stage.timed = True
    try:
        run(loop, _play(stage, drawn(number), dice))
        for instance in judged(
            stage, fenced=not temper.stall, model=partial(Living, doubts=bool(temper.doubt))
        ).values():
            at_rest(instance)
            on_time(stage, instance)
            at_peace(instance)
    except BaseException as e:
        e.add_note(f"INTERLEAVING={seed}")
        raise
    return stage


async def _play(stage: Stage, spec: Spec[Any, Any, int], dice: random.Random) -> None:
    ids = ["one", "two"][: 1 if stage.temper.freeze else dice.randint(1, 2)]
    seats: list[Seat] = [
        Steered(stage, f"m{n}", spec, work=bool(stage.temper.freeze) or dice.random() < 0.7)
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
    await freed(stage, spec, seats, ids)
    await finish(stage, spec, seats, ids, lambda rounds: rounds > 10 and only_timeouts(stage))


async def _act(stage: Stage, seat: Seat, id: str, dice: random.Random) -> None:
    """A few calls, one after the other, with pauses after which timers come due."""
    for _ in range(dice.randint(1, 6)):
        if dice.random() < 0.5:
            await asyncio.sleep(dice.choice(DELAYS))
        verb = dice.choice(VERBS)
        if verb == "resume":
            await seat.manager.resume()
        elif verb == "start":
            await seat.call(id, verb, "", dice.choice((None, "start/1")))
        elif verb in STEERS or verb == "withdraw":
            await seat.call(id, verb, "", f"{verb}/{dice.randint(1, 4)}")
        elif verb == "compensate":
            to = dice.choice(stage.sketch.states)
            await seat.call(id, verb, to, f"to/{to}/{dice.randint(1, 3)}")
        else:
            key = dice.choice((None, None, "k/1", "k/2", "k/3"))
            event = dice.choice(stage.sketch.events)
            await seat.call(id, verb, f"{event}/{dice.choice(DELAYS)}" if verb == "later" else event, key)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_order_of_steps_obeys_the_model(part: int) -> None:
    """Whenever whoever stops what: it does nothing, goes on as it was, and nothing is stranded."""
    given = os.environ.get("INTERLEAVING")
    loop = Loop()
    try:
        for seed in range(part, PLAYS, PARTS) if given is None else [int(given)]:
            play(loop, seed)
    finally:
        loop.close()
