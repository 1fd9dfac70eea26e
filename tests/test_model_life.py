"""Random specs and scripts with an operator in them, judged by `tests/model_life.py`."""

from __future__ import annotations

from functools import partial

from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.model_life import Living, Steered, at_peace, freed
from tests.model_time import on_time
from tests.stage import Loop, Sketch, Stage, Temper, run
from tests.test_model import IDS
from tests.test_model_time import TEMPERS, VERBS, played, scripts, timed
from tests.verdict import STEERS, at_rest, judged


@st.composite
def living(draw: st.DrawFn) -> Sketch:
    """A sketch with timeouts, and perhaps an event for what fails for good."""
    sketch = draw(timed())
    return evolve(sketch, on_failure=draw(st.sampled_from([None, *sketch.events])))


@settings(
    max_examples=150,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(data=st.data(), sketch=living(), temper=TEMPERS, work=st.booleans(), seed=st.integers(0, 2**16))
def test_random_workflows_with_an_operator_obey_the_model(
    data: st.DataObject, sketch: Sketch, temper: Temper, work: bool, seed: int
) -> None:
    """Whatever is paused, cancelled, retried, skipped or erased, a crash at any step: it does what it says."""
    loop = Loop()
    try:
        stage = Stage(loop, sketch, seed, temper)
        stage.timed = True
        spec = sketch.build()
        steps = data.draw(scripts(sketch, (*VERBS, *STEERS, "pause", "unpause", "withdraw")), label="script")
        run(loop, played(stage, spec, steps, work, Steered, lambda seats: freed(stage, spec, seats, list(IDS))))
        model = partial(Living, doubts=bool(temper.doubt))
        for instance in judged(stage, fenced=True, model=model).values():
            at_rest(instance)
            on_time(stage, instance)
            at_peace(instance)
    finally:
        loop.close()
