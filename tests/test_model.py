"""Random specs, scripts and crash points, judged by the model of `tests/model.py`."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.model import Instance
from tests.stage import SEAT, Loop, Seat, Sketch, Stage, Temper, Way, finish, run
from tests.verdict import at_rest, judged
from workflow import Spec

IDS = ("one", "two")


class Step(NamedTuple):
    """One call of the script."""

    id: str
    verb: str
    what: str
    key: str | None
    crash: int | None
    """The process dies so many steps of the stage after the call began."""


@st.composite
def sketches(draw: st.DrawFn) -> Sketch:
    """Two to four states; ways of all kinds, each event with at most one guarded twin before it."""
    states = tuple(f"s{n}" for n in range(draw(st.integers(2, 4))))
    final = frozenset(draw(st.sets(st.sampled_from(states[1:]), max_size=1)))
    alive = [s for s in states if s not in final]
    ways = [(draw(st.sampled_from([s for s in alive if s in states[:n]])), states[n]) for n in range(1, len(states))]
    ways += [(s, draw(st.sampled_from(sorted(final) or [t for t in states if t != s]))) for s in alive]
    ways += draw(st.lists(st.tuples(st.sampled_from([None, *alive]), st.sampled_from([None, *states])), max_size=3))
    drawn: list[Way] = []
    for n, (source, target) in enumerate(ways):
        adds, actions = draw(st.booleans()), draw(st.integers(0, 2))
        if draw(st.booleans()):
            others = [s for s in (None, *states) if s != target]
            drawn.append(Way(source, f"e{n}", draw(st.sampled_from(others)), draw(st.integers(1, 3)), not adds, 1))
        drawn.append(Way(source, f"e{n}", target, None, adds, actions))
    entered = {way.target for way in drawn} - {None}
    hooks = st.dictionaries(st.sampled_from(states), st.integers(1, 2))
    return Sketch(
        states,
        final,
        tuple(drawn),
        enter=draw(hooks),
        leave={s: n for s, n in draw(hooks).items() if s in alive},
        undo={s: n for s, n in draw(hooks).items() if s in entered and s != states[0]},
        max_chain=draw(st.integers(1, 4)),
    )


def chances(most: float) -> st.SearchStrategy[float]:
    return st.sampled_from([0.0, most / 2, most])


TEMPERS = st.builds(
    Temper,
    fail=chances(0.6),
    permanent=chances(0.3),
    update=chances(0.5),
    answer=chances(0.3),
    before=chances(0.04),
    after=chances(0.06),
    late=chances(0.04),
)


@st.composite
def scripts(draw: st.DrawFn, sketch: Sketch) -> list[Step]:
    """Calls with keys of their own, repeated keys and none, some cut off by a crash."""
    verb = st.sampled_from(["start", "send", "send", "send", "open", "compensate", "resume"])
    steps = [Step(id, "start", "", "start/1", None) for id in IDS]
    for n in range(draw(st.integers(1, 10))):
        verb_, what, key = draw(verb), "", draw(st.sampled_from([f"k/{n}", f"k/{n}", "k/again", None]))
        if verb_ in ("send", "open"):
            what = draw(st.sampled_from(sketch.events))
        elif verb_ == "compensate":
            what = draw(st.sampled_from(sketch.states))
            key = f"to/{what}/{draw(st.integers(1, 2))}"
        crash = draw(st.one_of(st.none(), st.integers(0, 25)))
        steps.append(Step(draw(st.sampled_from(IDS)), verb_, what, key, crash))
    return steps


async def _play(stage: Stage, spec: Spec[Any, Any, int], steps: list[Step]) -> None:
    seats: list[Seat] = []
    for step in steps:
        crash = step.crash
        while True:
            if not seats or seats[-1].dead:
                seats.append(Seat(stage, f"m{len(seats)}", spec, work=False))
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
    await finish(stage, spec, seats, list(IDS))


async def _do(seat: Seat, step: Step) -> None:
    if step.verb == "resume":
        await seat.manager.resume()
    else:
        await seat.call(step.id, step.verb, step.what, step.key)


@settings(
    max_examples=400,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data(), sketch=sketches(), temper=TEMPERS, seed=st.integers(0, 2**16))
def test_random_workflows_obey_the_model_whenever_their_process_dies(
    data: st.DataObject, sketch: Sketch, temper: Temper, seed: int
) -> None:
    """Any spec, any calls, any failures, a crash at any step: what is promised of lines, effects and answers holds."""
    loop = Loop()
    try:
        stage = Stage(loop, sketch, seed, temper)
        run(loop, _play(stage, sketch.build(), data.draw(scripts(sketch), label="script")))
        for instance in judged(stage, fenced=True, model=Instance).values():
            at_rest(instance)
    finally:
        loop.close()
