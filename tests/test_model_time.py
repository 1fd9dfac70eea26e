"""Random specs with timeouts, scripts with pauses and delayed events, crash points: judged by `tests/model_time.py`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.model_time import Timed, Timely, on_time, only_timeouts
from tests.stage import SEAT, Loop, Seat, Sketch, Stage, Temper, Wait, finish, run
from tests.test_model import IDS, Step, chances, sketches
from tests.verdict import STEERS, at_rest, judged
from workflow import Spec

SECONDS = st.sampled_from([1, 2, 5, 10, 40])  # none at once: a circle of such timeouts would have no end


@st.composite
def timed(draw: st.DrawFn) -> Sketch:
    """A sketch of which most states have a timeout, some two or three."""
    sketch = draw(sketches())
    waits: dict[str, tuple[Wait, ...]] = {}
    for state in sketch.states:
        events = [w.event for w in sketch.ways if w.source in (None, state) and state not in sketch.final]
        if events:
            wait = st.builds(Wait, st.sampled_from(events), SECONDS, st.sampled_from("xyz"), st.booleans())
            waits[state] = tuple(draw(st.lists(wait, max_size=3, unique_by=lambda w: w.name)))
    return evolve(sketch, waits=waits)


TEMPERS = st.builds(
    Temper,
    fail=chances(0.4),
    permanent=chances(0.3),
    update=chances(0.4),
    answer=chances(0.3),
    before=chances(0.04),
    after=chances(0.06),
    late=chances(0.04),
    slow=chances(0.4),
    doubt=chances(0.4),
)


VERBS = ("start", "send", "open", "compensate", "resume", "later", "unlater", "sleep", "sleep")


@st.composite
def scripts(draw: st.DrawFn, sketch: Sketch, verbs: tuple[str, ...] = VERBS) -> list[Step]:
    """Calls and pauses; some calls are cut off by a crash."""
    verb = st.sampled_from(verbs)
    steps = [Step(id, "start", "", "start/1", None) for id in IDS]
    for n in range(draw(st.integers(1, 10))):
        verb_, what, key = draw(verb), "", draw(st.sampled_from([f"k/{n}", "k/again", "k/again", None]))
        if verb_ in ("send", "open", "later"):
            what = draw(st.sampled_from(sketch.events))
        if verb_ == "later":
            what = f"{what}/{draw(SECONDS)}"
        elif verb_ == "unlater":
            what, key = draw(st.sampled_from([f"k/{n - 1}", "k/again"])), None
        elif verb_ in STEERS or verb_ == "withdraw":
            key = f"{verb_}/{draw(st.integers(1, 3))}"
        elif verb_ == "sleep":
            what = str(draw(SECONDS))
        elif verb_ == "compensate":
            what = draw(st.sampled_from(sketch.states))
            key = f"to/{what}/{draw(st.integers(1, 2))}"
        crash = draw(st.one_of(st.none(), st.integers(0, 25)))
        steps.append(Step(draw(st.sampled_from(IDS)), verb_, what, key, crash))
    return steps


async def played(
    stage: Stage,
    spec: Spec[Any, Any, int],
    steps: list[Step],
    work: bool,
    place: type[Seat] = Timely,
    before: Callable[[list[Seat]], Awaitable[None]] | None = None,
) -> None:
    """The script from beginning to end, with `before` its end what an operator does."""
    seats: list[Seat] = []
    for step in steps:
        crash = step.crash
        while True:
            if not seats or seats[-1].dead:
                seats.append(place(stage, f"m{len(seats)}", spec, work=work))
                await seats[-1].manager.__aenter__()
            seat = seats[-1]
            SEAT.set(seat)
            if crash is not None:
                stage.planned[stage.steps + 1 + crash] = seat.crash
                crash = None
            doing = asyncio.create_task(_do(seat, step))
            while not (doing.done() or seat.dead):
                await asyncio.wait({doing}, timeout=5)
            stage.planned.clear()
            if not seat.dead:
                break  # else nobody knows what became of it: the same call again
    if before is not None:
        await before(seats)
    await finish(stage, spec, seats, list(IDS), lambda rounds: rounds > 10 and only_timeouts(stage))


async def _do(seat: Seat, step: Step) -> None:
    if step.verb == "resume":
        await seat.manager.resume()
    elif step.verb == "sleep":
        await asyncio.sleep(int(step.what))
    else:
        await seat.call(step.id, step.verb, step.what, step.key)


@settings(
    max_examples=150,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data(), sketch=timed(), temper=TEMPERS, work=st.booleans(), seed=st.integers(0, 2**16))
def test_random_workflows_with_time_obey_the_model(
    data: st.DataObject, sketch: Sketch, temper: Temper, work: bool, seed: int
) -> None:
    """Any timeouts, any delays, a crash at any step: each fires once for its entry, or is void on the record."""
    loop = Loop()
    try:
        stage = Stage(loop, sketch, seed, temper)
        stage.timed = True
        run(loop, played(stage, sketch.build(), data.draw(scripts(sketch), label="script"), work))
        model = partial(Timed, doubts=bool(temper.doubt))
        for instance in judged(stage, fenced=True, model=model).values():
            at_rest(instance)
            on_time(stage, instance)
    finally:
        loop.close()
