"""The compiled drawing: what an edge owes, and the names under which effects are persisted."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from enum import Enum, StrEnum
from functools import partial
from typing import Any

import pytest

from workflow.retry import Retry
from workflow.spec import Spec
from workflow.word import ANY, STAY, Edge, Move


class Door(StrEnum):
    SHUT = "shut"
    OPEN = "open"
    GONE = "gone"


class Act(StrEnum):
    PUSH = "push"
    PULL = "pull"
    BREAK = "break"


Step = Move[Door, Act]
Way = Edge[Door, Act]


def ring(move: Step) -> None: ...


async def light(move: Step) -> None: ...


def say(move: Step, words: str) -> None: ...


class Bell:
    async def __call__(self, move: Step) -> None: ...

    def silent(self, move: Step) -> None: ...


def draw(*more: Way, action: Any = None, name: str | None = None, **changes: Any) -> Spec[Door, Act]:
    edges = [
        Way(Door.SHUT, Act.PUSH, Door.OPEN, action=action, name=name),
        Way(Door.OPEN, Act.PULL, Door.SHUT),
        *more,
        Way(ANY, Act.BREAK, Door.GONE),
    ]
    return Spec("door", **{"initial": Door.SHUT, "final": {Door.GONE}, "edges": edges} | changes)


def owed(spec: Spec[Any, Any, Any], state: str, event: str) -> list[tuple[str, ...]]:
    """What each edge of this pair owes, in the order drawn."""
    return [arc.owes for arc in spec.tables.arcs[state][event]]


# --- what people ask ------------------------------------------------------------------------------


def test_accepted_names_each_event_once_in_the_order_drawn():
    """Guards aside, ANY spelled out, final states take nothing."""
    spec = draw(Way(Door.SHUT, Act.PULL, STAY), Way(Door.OPEN, Act.PUSH, STAY))
    assert spec.accepted(Door.SHUT) == (Act.PUSH, Act.PULL, Act.BREAK)
    assert spec.accepted(Door.OPEN) == (Act.PULL, Act.PUSH, Act.BREAK)
    assert spec.accepted(Door.GONE) == ()


def test_states_and_events_are_those_of_the_enums():
    """All members in the order of their class, edges or not."""
    spec = draw()
    assert spec.states == tuple(Door)
    assert spec.events == tuple(Act)


def test_a_renamed_word_stands_for_its_state():
    """What was stored under the old word is read as the new state, final or not."""
    spec = draw(renames={"ajar": Door.OPEN, "broken": Door.GONE})
    assert spec.state_of("ajar") is Door.OPEN
    assert spec.state_of("open") is Door.OPEN
    assert spec.is_final("broken")
    assert not spec.is_final("ajar")
    with pytest.raises(KeyError):
        spec.state_of("unheard of")


def test_words_of_a_plain_enum_are_its_names():
    """Values that are no text never reach the store."""

    class Light(Enum):
        RED = 1
        GREEN = 2

    class Tick(Enum):
        TICK = object()

    edges = [Edge(Light.RED, Tick.TICK, Light.GREEN), Edge(Light.GREEN, Tick.TICK, Light.RED)]
    spec = Spec[Light, Tick]("light", initial=Light.RED, edges=edges)
    assert list(spec.tables.arcs) == ["RED", "GREEN"]
    assert spec.event_of("TICK") is Tick.TICK


def test_several_sources_in_any_collection():
    """A list, a tuple, a set, a generator and the enum itself are all fine, and each state counts once."""
    for sources in ([Door.SHUT, Door.OPEN, Door.SHUT], {Door.OPEN, Door.SHUT}, (s for s in (Door.SHUT, Door.OPEN))):
        spec = draw(Way(sources, Act.PULL, STAY, guard=lambda m: True))
        assert spec.drawing.ways[2].sources == (Door.SHUT, Door.OPEN)
    moves = [(Act.PUSH, Door.SHUT), (Act.PULL, Door.OPEN), (Act.BREAK, Door.GONE)]
    whole = Spec[Door, Act]("door", initial=Door.SHUT, edges=[Way(Door, event, state) for event, state in moves])
    assert whole.accepted(Door.GONE) == tuple(Act)


def test_what_was_given_can_be_changed_without_changing_the_spec():
    """A drawing is a copy of what its author handed over."""
    edges, final, enter, renames = [*draw().edges], {Door.GONE}, {Door.OPEN: [ring]}, {"ajar": Door.OPEN}
    spec = Spec[Door, Act]("door", initial=Door.SHUT, edges=edges, final=final, on_enter=enter, renames=renames)
    edges.clear()
    final.clear()
    enter[Door.OPEN].append(ring)
    renames.clear()
    assert len(spec.edges) == 3
    assert spec.final == {Door.GONE}
    assert owed(spec, "shut", "push") == [("enter/open/ring",)]
    assert spec.state_of("ajar") is Door.OPEN


def test_repr_tells_name_and_size():
    """Enough to recognise it in a log."""
    assert repr(draw(version=3)) == "Spec('door', 3 states, 3 edges, version=3)"


# --- what an edge owes ----------------------------------------------------------------------------


def test_order_of_effects():
    """Exit hooks of the source, the edge's action, enter hooks of the target, each in the order given."""
    spec = draw(
        action=[light, ring], on_exit={Door.SHUT: [ring, light]}, on_enter={Door.OPEN: [light, ring], Door.SHUT: ring}
    )
    assert owed(spec, "shut", "push") == [
        (
            "exit/shut/ring",
            "exit/shut/light",
            "action/shut/push/0/light",
            "action/shut/push/0/ring",
            "enter/open/light",
            "enter/open/ring",
        )
    ]
    assert owed(spec, "open", "pull") == [("enter/shut/ring",)]


def test_staying_owes_only_the_action():
    """STAY neither leaves nor enters; an edge from a state to itself does both."""
    spec = draw(
        Way(Door.OPEN, Act.PUSH, STAY, action=light, guard=lambda m: True),
        Way(Door.OPEN, Act.PUSH, Door.OPEN, action=light),
        on_enter={Door.OPEN: ring},
        on_exit={Door.OPEN: ring},
    )
    assert owed(spec, "open", "push") == [
        ("action/open/push/0/light",),
        ("exit/open/ring", "action/open/push/1/light", "enter/open/ring"),
    ]
    assert [arc.stay for arc in spec.tables.arcs["open"]["push"]] == [True, False]


def test_only_an_edge_without_guard_and_assign_is_plain():
    """A plain edge is judged without calling anybody."""
    spec = draw(
        Way(Door.OPEN, Act.PUSH, STAY, guard=lambda m: True),
        Way(Door.OPEN, Act.PUSH, STAY, assign=lambda m: None, action=ring),
    )
    assert [arc.plain for arc in spec.tables.arcs["open"]["push"]] == [False, False]
    assert spec.tables.arcs["shut"]["push"][0].plain


# --- names of effects -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hook", "name"),
    [
        (ring, "ring"),
        (partial(say, words="hello"), "say"),
        (partial(partial(say), words="hello"), "say"),
        (Bell(), "Bell"),
        (Bell().silent, "Bell.silent"),
    ],
    ids=["function", "partial", "partial of partial", "callable object", "method"],
)
def test_a_hook_is_called_by_its_qualified_name(hook: Any, name: str):
    """A partial goes by its inner function, an object by its class."""
    assert owed(draw(on_enter={Door.OPEN: hook}), "shut", "push") == [(f"enter/open/{name}",)]


def test_the_second_of_one_name_is_numbered():
    """Numbers count within one point of one state, so that other points disturb nothing."""
    hooks = [partial(say, words=words) for words in ("a", "b", "c")]
    spec = draw(on_enter={Door.OPEN: [hooks[0], ring, hooks[1], hooks[2]]}, on_exit={Door.SHUT: hooks[0]})
    assert owed(spec, "shut", "push") == [
        ("exit/shut/say", "enter/open/say", "enter/open/ring", "enter/open/say#2", "enter/open/say#3")
    ]


def test_a_given_name_outlives_a_new_function_name():
    """`name=` is the identity, whatever the function is called."""
    spec = draw(on_enter={Door.OPEN: ring})

    @spec.on_enter(Door.OPEN, name="greet")
    def some_name_that_may_change(move: Step) -> None: ...

    assert owed(spec, "shut", "push") == [("enter/open/ring", "enter/open/greet")]


def test_a_name_that_looks_numbered_takes_no_others_place():
    """Names stay unique whatever authors call their hooks."""
    spec = draw(on_enter={Door.OPEN: [ring, ring]})
    spec.on_enter(Door.OPEN, name="ring#2")(ring)
    (names,) = owed(spec, "shut", "push")
    assert len(set(names)) == 3


def test_an_action_is_named_by_its_edge_or_by_the_edges_number():
    """The number counts the edges of one pair of source and event; a name makes it independent of its neighbours."""
    guarded = [
        Way(Door.OPEN, Act.PUSH, STAY, guard=lambda m: False, action=ring),
        Way(Door.OPEN, Act.PUSH, Door.SHUT, guard=lambda m: False, action=[ring, light], name="back"),
        Way(Door.OPEN, Act.PUSH, Door.GONE, action=ring),
    ]
    assert owed(draw(*guarded), "open", "push") == [
        ("action/open/push/0/ring",),
        ("action/open/push/back/ring", "action/open/push/back/light"),
        ("action/open/push/2/ring",),
    ]


def test_an_action_of_several_sources_is_named_per_source():
    """Each source has its own action, so that its number does not depend on others."""
    spec = draw(Way([Door.OPEN, Door.SHUT], Act.BREAK, STAY, action=ring, guard=lambda m: False))
    assert owed(spec, "open", "break")[0] == ("action/open/break/0/ring",)
    assert owed(spec, "shut", "break")[0] == ("action/shut/break/0/ring",)


def test_compensators_are_named_by_their_state():
    """They are looked up when a state is left backwards, no edge owes them."""
    spec = draw(compensators={Door.OPEN: [ring, ring]})
    assert spec.tables.undo["open"] == ("undo/open/ring", "undo/open/ring#2")
    assert owed(spec, "shut", "push") == [()]


def test_names_are_the_same_in_every_process():
    """Nothing of a name depends on the order in which a set tells its members."""
    code = """
from enum import StrEnum
from workflow.spec import Spec
from workflow.word import Edge, STAY
S = StrEnum("S", [f"s{i}" for i in range(9)])
E = StrEnum("E", ["e", "f"])
def hook(move): ...
edges = [Edge({*S}, E.e, STAY, guard=hook, action=hook), *(Edge(S, E.f, s, guard=lambda m: True) for s in S)]
spec = Spec("x", initial=S.s0, edges=edges)
print(spec.drawing.ways[0], list(spec.tables.effects))
"""
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(said) == 1


# --- decorators -----------------------------------------------------------------------------------


def test_decorators_and_maps_are_the_same_thing():
    """A hook of a map comes first, decorated ones follow in the order written."""
    by_map = draw(on_enter={Door.OPEN: [ring, light]}, on_exit={Door.OPEN: ring}, compensators={Door.OPEN: light})
    decorated = draw()
    assert decorated.on_enter(Door.OPEN)(ring) is ring
    assert decorated.on_enter(Door.OPEN)(light) is light
    assert decorated.on_exit(Door.OPEN)(ring) is ring
    assert decorated.compensator(Door.OPEN)(light) is light
    assert decorated.tables == by_map.tables


def test_a_decorator_after_a_look_at_the_tables_still_counts():
    """Asking what is accepted does not freeze the spec."""
    spec = draw()
    assert spec.accepted(Door.SHUT)
    spec.on_enter(Door.OPEN)(ring)
    assert owed(spec, "shut", "push") == [("enter/open/ring",)]


def test_a_decorators_options_belong_to_its_hook():
    """Retry and timeout of one hook leave the others with the spec's."""
    spec = draw(on_enter={Door.OPEN: ring})
    spec.on_enter(Door.OPEN, retry=Retry(attempts=2), timeout=timedelta(seconds=3))(light)
    plain, own = spec.tables.effects["enter/open/ring"], spec.tables.effects["enter/open/light"]
    assert (plain.retry, plain.timeout) == (None, None)
    assert (own.retry, own.timeout) == (Retry(attempts=2), timedelta(seconds=3))


@pytest.mark.parametrize(
    ("hook", "waits"),
    [
        (ring, False),
        (light, True),
        (partial(light), True),
        (partial(say, words=""), False),
        (Bell(), True),
        (Bell().silent, False),
    ],
    ids=["def", "async def", "partial of async", "partial of def", "async object", "method"],
)
def test_only_coroutine_functions_run_on_the_loop(hook: Any, waits: bool):
    """Everything else goes to a thread, where it may block."""
    spec = draw(on_enter={Door.OPEN: hook})
    assert [callback.waits for callback in spec.tables.effects.values()] == [waits]
