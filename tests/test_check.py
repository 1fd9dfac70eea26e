"""The problems of a drawing: each is found, said in a sentence, and only where it is one."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, StrEnum
from typing import Any

import pytest
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from workflow.errors import InvalidSpec
from workflow.spec import Spec
from workflow.word import ANY, STAY, Edge


class Door(StrEnum):
    SHUT = "shut"
    OPEN = "open"
    GONE = "gone"


class Act(StrEnum):
    PUSH = "push"
    PULL = "pull"
    BREAK = "break"


class Foreign(StrEnum):
    SHUT = "shut"
    PUSH = "push"


PUSH = Edge[Door, Act](Door.SHUT, Act.PUSH, Door.OPEN)
PULL = Edge[Door, Act](Door.OPEN, Act.PULL, Door.SHUT)
BREAK = Edge[Door, Act](ANY, Act.BREAK, Door.GONE)


def hook(move: Any) -> None: ...


def yes(move: Any) -> bool:
    return True


def no(move: Any) -> bool:
    return False


def draw(*edges: Any, **changes: Any) -> Spec[Any, Any, Any]:
    """The door, changed."""
    sound: dict[str, Any] = {"initial": Door.SHUT, "final": {Door.GONE}, "edges": edges or (PUSH, PULL, BREAK)}
    return Spec("door", **sound | changes)


def problems(*edges: Any, **changes: Any) -> tuple[str, ...]:
    """What is said against the door so changed."""
    with pytest.raises(InvalidSpec) as caught:
        draw(*edges, **changes)
    return caught.value.problems


def test_a_sound_drawing_has_no_problems():
    """What the other tests change is itself in order."""
    assert draw().name == "door"


# --- the shape ------------------------------------------------------------------------------------


def test_unreachable_state():
    """A state that no way from the initial one enters is a problem."""
    assert problems(PUSH, PULL, final=()) == (
        "state 'gone' cannot be reached from 'shut'; draw an edge to it or remove it",
    )


def test_unreachable_although_an_edge_from_nowhere_enters_it():
    """An edge counts only if its own source can be reached."""

    class Room(Enum):
        IN = "in"
        OUT = "out"
        ATTIC = "attic"
        CELLAR = "cellar"

    edges = [
        Edge(Room.IN, Act.PUSH, Room.OUT),
        Edge(Room.OUT, Act.PUSH, Room.IN),
        Edge(Room.ATTIC, Act.PUSH, Room.CELLAR),
        Edge(Room.CELLAR, Act.PUSH, Room.ATTIC),
    ]
    found = problems(*edges, initial=Room.IN, final=())
    assert [text.split(" cannot")[0] for text in found] == ["state 'attic'", "state 'cellar'"]


@pytest.mark.parametrize("target", [STAY, Door.OPEN], ids=["STAY", "itself"])
def test_trap_state(target: Any):
    """A state that is not final and that no edge leaves is a problem; staying is not leaving."""
    found = problems(PUSH, Edge(Door.SHUT, Act.BREAK, Door.GONE), Edge(Door.OPEN, Act.PULL, target))
    assert found == ("state 'open' is a trap, no edge leads out of it; draw one or declare it final",)


def test_no_path_to_a_final_state():
    """Where finals are declared, each state that can be left must have a way to one of them."""

    class Round(Enum):
        START = "start"
        A = "a"
        B = "b"
        END = "end"

    edges = [
        Edge(Round.START, Act.BREAK, Round.END),
        Edge(Round.START, Act.PUSH, Round.A),
        Edge(Round.A, Act.PUSH, Round.B),
        Edge(Round.B, Act.PUSH, Round.A),
    ]
    found = problems(*edges, initial=Round.START, final={Round.END})
    assert found == (
        "from state 'a' no path leads to a final state; draw one or declare no final states",
        "from state 'b' no path leads to a final state; draw one or declare no final states",
    )


def test_without_finals_a_circle_is_sound():
    """A machine that never ends declares no final states."""
    assert draw(PUSH, PULL, BREAK, Edge(Door.GONE, Act.PUSH, Door.SHUT), final=()).final == frozenset()


def test_edge_out_of_a_final_state():
    """Final states are not left, not even by STAY."""
    assert problems(PUSH, PULL, BREAK, Edge([Door.SHUT, Door.GONE], Act.PULL, STAY)) == (
        "edge 'shut' | 'gone' --'pull'--> STAY leaves the final state 'gone'; remove the edge or do not declare it final",
    )


def test_initial_declared_final():
    """An instance that ends as it starts is a problem."""
    (first, *_) = problems(final={Door.SHUT, Door.GONE})
    assert first == "initial 'shut' is declared final; start in a state that can be left"


# --- twins ----------------------------------------------------------------------------------------


def test_edge_behind_an_unguarded_twin():
    """An edge that an earlier one always forestalls is never taken."""
    (found,) = problems(PUSH, Edge(Door.SHUT, Act.PUSH, Door.GONE, guard=yes), PULL, BREAK)
    assert found == (
        "edge 'shut' --'push'--> 'gone' is never taken, the unguarded edge 'shut' --'push'--> 'open' comes before it; "
        "guard that one or swap them"
    )


def test_edge_behind_several_twins():
    """An edge of several sources is never taken once each of them is forestalled."""
    stay = [Edge(Door.SHUT, Act.BREAK, STAY), Edge(Door.OPEN, Act.BREAK, STAY)]
    end = Edge(ANY, Act.PULL, Door.GONE)
    (found,) = problems(PUSH, *stay, Edge([Door.SHUT, Door.OPEN], Act.BREAK, Door.GONE), end)
    assert "edge 'shut' | 'open' --'break'--> 'gone' is never taken" in found


def test_edge_behind_any():
    """After an unguarded ANY no edge for a single state has a chance."""
    (found,) = problems(PUSH, PULL, BREAK, Edge(Door.OPEN, Act.BREAK, Door.SHUT))
    assert "edge 'open' --'break'--> 'shut' is never taken, the unguarded edge ANY --'break'--> 'gone'" in found


def test_overriding_any_by_an_earlier_edge_is_fine():
    """ANY is the rule, an edge before it the exception."""
    assert draw(PUSH, PULL, Edge(Door.OPEN, Act.BREAK, STAY), BREAK).accepted(Door.OPEN) == (Act.PULL, Act.BREAK)


def test_guarded_twins_are_fine():
    """Edges that differ in their guards are a choice, the last may be unguarded."""
    first, second = (Edge(Door.SHUT, Act.PUSH, Door.OPEN, guard=guard) for guard in (yes, no))
    assert draw(first, second, PUSH, PULL, BREAK).accepted(Door.SHUT) == (Act.PUSH, Act.BREAK)


@pytest.mark.parametrize("guard", [None, yes], ids=["unguarded", "guarded"])
def test_identical_twin(guard: Any):
    """An edge drawn twice is a problem, guarded or not, whatever it is called."""
    one, two = (Edge(Door.SHUT, Act.PUSH, Door.OPEN, guard=guard, name=name) for name in ("one", "two"))
    assert problems(one, two, PULL, BREAK) == ("edge 'shut' --'push'--> 'open' is drawn twice; remove one",)


def test_identical_twin_of_a_set():
    """The order in which a set tells its members makes no difference."""
    one = Edge({Door.SHUT, Door.OPEN}, Act.PULL, STAY, guard=yes)
    two = Edge([Door.SHUT, Door.OPEN], Act.PULL, STAY, guard=yes)
    assert problems(PUSH, BREAK, one, two) == ("edge 'shut' | 'open' --'pull'--> STAY is drawn twice; remove one",)


# --- hooks ----------------------------------------------------------------------------------------

LONE = [Edge(Door.SHUT, Act.PUSH, STAY), Edge(Door.SHUT, Act.BREAK, Door.GONE)]
"""A door that never opens."""


@pytest.mark.parametrize(
    ("point", "said"), [("on_enter", "on_enter"), ("on_exit", "on_exit"), ("compensators", "the compensator")]
)
def test_hook_on_a_state_that_cannot_be_entered(point: str, said: str):
    """Who hooks a state expects it to be entered."""
    found = problems(*LONE, **{point: {Door.OPEN: hook}})
    assert f"{said} of 'open' never runs, the state cannot be entered; draw an edge to it or remove it" in found


def test_on_exit_of_a_final_state():
    """Final states are entered and never left."""
    assert problems(on_exit={Door.GONE: hook}) == (
        "on_exit of 'gone' never runs, final states are not left; use on_enter",
    )


def test_compensator_of_an_initial_state_never_entered_again():
    """The start is not undone."""
    edges = [Edge(Door.SHUT, Act.PUSH, Door.OPEN), BREAK]
    assert problems(*edges, compensators={Door.SHUT: hook}) == (
        "the compensator of 'shut' never runs, the start is not undone; remove it or draw an edge that enters the state again",
    )


def test_compensator_of_an_initial_state_entered_again_is_fine():
    """A later entry of the initial state can be undone."""
    assert draw(compensators={Door.SHUT: hook}).tables.undo.keys() == {"shut"}


def test_hooks_on_entering_the_initial_and_a_final_state_are_fine():
    """The start enters the initial state, the last move the final one."""
    assert draw(on_enter={Door.SHUT: hook, Door.GONE: hook}).tables.enter.keys() == {"shut", "gone"}


Strange: Any = Edge
"""For edges that no type checker would let through."""

# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"final": [Door.GONE, Foreign.SHUT]}, "final names 'shut', which is no Door; use a member of that enum"),
        ({"final": ["gone"]}, "final names 'gone', which is no Door; use a member of that enum"),
        ({"payloads": {Foreign.PUSH: int}}, "payloads names 'push', which is no Act; use a member of that enum"),
        ({"renames": {"ajar": Act.PUSH}}, "renames maps 'ajar' to 'push', which is no Door; use a member of that enum"),
        ({"on_enter": {Foreign.SHUT: hook}}, "on_enter names 'shut', which is no Door; use a member of that enum"),
        ({"on_exit": {"shut": hook}}, "on_exit names 'shut', which is no Door; use a member of that enum"),
        ({"compensators": {ANY: hook}}, "the compensator names '*', which is no Door; use a member of that enum"),
        ({"initial": "shut"}, "initial 'shut' is no enum member; draw states as an Enum class"),
        ({"initial": ANY}, "initial <Wild.ANY: '*'> is no enum member; draw states as an Enum class"),
        ({"edges": []}, "there are no edges; draw at least one"),
    ],
)
def test_strangers_in_the_drawing(changes: dict[str, Any], said: str):
    """States are members of the initial state's enum, events of the first edge's."""
    assert said in problems(**changes)


@pytest.mark.parametrize(
    ("edge", "said"),
    [
        (Edge(Foreign.SHUT, Act.PULL, Door.SHUT), "source 'shut' is no Door; use a member of that enum"),
        (Strange("shut", Act.PULL, Door.SHUT), "source 'shut' is no Door; use a member of that enum"),
        (Edge([Door.SHUT, ANY], Act.PULL, Door.SHUT), "source '*' is no Door; use a member of that enum"),
        (Edge(Door.SHUT, Act.PULL, Foreign.SHUT), "target 'shut' is no Door; use a member of that enum or STAY"),
        (Edge(Door.SHUT, Act.PULL, ANY), "target '*' is no Door; use a member of that enum or STAY"),
        (Edge(Door.SHUT, Foreign.PUSH, Door.SHUT), "event 'push' is no Act; use a member of the first edge's enum"),
        (Edge([], Act.PULL, Door.SHUT), "has no source; name at least one state"),
    ],
)
def test_strangers_in_an_edge(edge: Any, said: str):
    """The sentence shows the edge and says what is wrong with it."""
    (found,) = problems(PUSH, PULL, BREAK, edge)
    assert found.startswith("edge ")
    assert found.endswith(said)


@pytest.mark.parametrize("event", ["push", STAY], ids=["text", "STAY"])
def test_first_event_is_no_enum_member(event: Any):
    """The first edge decides what events are, so its own must be one."""
    (found,) = problems(Edge(Door.SHUT, event, Door.OPEN))
    assert found.endswith("the event is no enum member; draw events as an Enum class")


# --- words ----------------------------------------------------------------------------------------


def test_clashing_words_of_states():
    """A member without a text as value is stored by its name, which another's value may be."""

    class Odd(Enum):
        A = "B"
        B = 2

    found = problems(Edge(Odd.A, Act.PUSH, Odd.B), Edge(Odd.B, Act.PUSH, Odd.A), initial=Odd.A, final=())
    assert found == ("Odd members A, B are all stored as 'B'; give each a word of its own",)


def test_clashing_words_of_events():
    """Events are stored by their words too."""

    class Odd(Enum):
        GO = 1
        RUN = "GO"

    found = problems(*(Edge(a, e, b) for a, e, b in [(Door.SHUT, Odd.GO, Door.GONE), (Door.SHUT, Odd.RUN, Door.OPEN)]))
    assert "Odd members GO, RUN are all stored as 'GO'; give each a word of its own" in found


@pytest.mark.parametrize("text", ["", "a\0b", "\ud800"], ids=["empty", "NUL", "surrogate"])
def test_words_that_no_store_can_hold(text: str):
    """A word is a text that every database stores."""
    odd: Any = Enum("odd", {"X": text, "Y": "y"})
    found = problems(Edge(odd.X, Act.PUSH, odd.Y), Edge(odd.Y, Act.PUSH, odd.X), initial=odd.X, final=())
    assert found == ("odd.X has no storable word; give it a value that is text",)


def test_plain_and_mixed_enums_are_fine():
    """A text value is the word, anything else is stored by its name."""

    class Mixed(Enum):
        A = "first"
        B = 2
        C = ("third", 3)

    edges = [Edge(Mixed.A, Act.PUSH, Mixed.B), Edge(Mixed.B, Act.PUSH, Mixed.C)]
    spec = draw(*edges, initial=Mixed.A, final={Mixed.C})
    assert [spec.state_of(text) for text in ("first", "B", "C")] == list(Mixed)


def test_renaming_a_word_that_is_still_in_use():
    """A rename must not hide a state of the spec."""
    assert problems(renames={"open": Door.SHUT}) == (
        "renames maps 'open', which is still a state of the spec; rename only words that are gone",
    )


# --- scalars and types ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["", "a\0b", "\ud800", "x" * 129, 7], ids=["empty", "NUL", "surrogate", "long", "number"]
)
def test_names_that_cannot_be_stored(name: Any):
    """A spec's name stands in every row."""
    with pytest.raises(InvalidSpec) as caught:
        Spec[Door, Act](name, initial=Door.SHUT, final={Door.GONE}, edges=[PUSH, PULL, BREAK])
    assert caught.value.problems == (f"the name {name!r} cannot be stored; use a text of 1 to 128 bytes",)


def test_numbers_below_one():
    """Versions and chains are counted from 1."""
    assert problems(version=0, max_chain=0) == (
        "version 0 is no whole number from 1 on; count versions upwards from 1",
        "max_chain 0 lets no returned event through; use a whole number from 1 on",
    )


def test_options_of_the_wrong_type():
    """What an untyped caller hands in is told of at construction, not met in the middle of a failure."""
    found = problems(version="1", max_chain=None, retry=5, renames={5: Door.OPEN})
    for words in ("version '1'", "max_chain None", "retry 5 is no Retry", "renames names 5"):
        assert any(words in problem for problem in found), words
    with pytest.raises(InvalidSpec, match="edges holds 5, which is no Edge"):
        Spec[Any, Any]("s", initial=Door.SHUT, edges=[5])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("option", "said"),
    [({"name": ""}, "the name ''"), ({"retry": 5}, "retry 5 is no Retry"), ({"timeout": 5}, "timeout 5 is no length")],
)
def test_options_of_a_decorator(option: Any, said: str):
    """A decorator refuses what its hook could not be run with, at once."""
    with pytest.raises(InvalidSpec, match=f"on_enter of 'open': {said}"):
        draw().on_enter(Door.OPEN, **option)(hook)


class Opaque:
    pass


@frozen
class Holder:
    thing: Opaque


@pytest.mark.parametrize("type", [Opaque, Holder, list[Opaque], Callable[[], None]])
def test_types_that_no_decoder_can_be_built_for(type: Any):
    """What could be written and never be read again is a problem of the drawing."""
    found = problems(context=type, payloads={Act.PUSH: type})
    assert found[0].startswith("the context cannot be decoded from JSON")
    assert found[1].startswith("the payload of 'push' cannot be decoded from JSON")
    assert all(text.endswith("use attrs, dataclass, Struct, TypedDict or JSON types") for text in found)


# --- callbacks ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hooks", "place", "call"),
    [
        ({"on_enter": {Door.OPEN: 7}}, "on_enter of 'open'", 7),
        ({"on_enter": {Door.OPEN: [hook, None]}}, "on_enter of 'open'", None),
        ({"on_exit": {Door.SHUT: {"book"}}}, "on_exit of 'shut'", {"book"}),
        ({"compensators": {Door.OPEN: (hook, True)}}, "compensators of 'open'", True),
    ],
    ids=["on_enter", "several", "on_exit", "compensators"],
)
def test_hooks_that_cannot_be_called(hooks: dict[str, Any], place: str, call: object):
    """A hook is a function; what is none is told as the spec is drawn, not when the state is entered."""
    assert problems(**hooks) == (f"{place} is {call!r}, which cannot be called; name a function",)


@pytest.mark.parametrize(
    ("part", "value", "call"),
    [
        ("guard", True, True),
        ("assign", {"n": 1}, {"n": 1}),
        ("action", 7, 7),
        ("action", [hook, 8], 8),
    ],
    ids=["guard", "assign", "action", "several"],
)
def test_callbacks_of_edges_that_cannot_be_called(part: str, value: Any, call: object):
    """So are guards, assigns and actions."""
    parts: dict[str, Any] = {part: value}
    assert problems(Edge(Door.SHUT, Act.PUSH, Door.OPEN, **parts), PULL, BREAK) == (
        f"edge 'shut' --'push'--> 'open': {part} is {call!r}, which cannot be called; name a function",
    )


def test_every_callback_that_cannot_be_called_is_told():
    """Each with its place, so that all are mended in one go."""
    edges: Any = (Edge(Door.SHUT, Act.PUSH, Door.OPEN, guard=1, assign=2, action=3), PULL, BREAK)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    found = problems(*edges, on_enter={Door.OPEN: 4}, on_exit={Door.OPEN: 5}, compensators={Door.OPEN: 6})
    assert sorted(text.split(" is ")[1][0] for text in found) == ["1", "2", "3", "4", "5", "6"]


def test_whatever_can_be_called_is_a_callback():
    """Classes, bound methods and objects with `__call__` are as good as functions."""

    class Calls:
        def __call__(self, move: Any) -> None: ...

        def method(self, move: Any) -> bool:
            return True

    edges = (Edge(Door.SHUT, Act.PUSH, Door.OPEN, guard=Calls().method, action=[Calls(), print]), PULL, BREAK)
    assert len(draw(*edges, on_enter={Door.OPEN: [Calls(), hook]}).tables.effects) == 4


# --- all at once ----------------------------------------------------------------------------------


def test_all_problems_are_raised_together():
    """The author mends everything in one go."""
    found = problems(
        Edge(Door.SHUT, Act.PUSH, Door.OPEN),
        Edge(Door.SHUT, Act.PUSH, Door.OPEN),
        on_enter={Door.GONE: hook},
        context=Opaque,
        version=0,
        renames={"shut": Door.OPEN},
    )
    for words in (
        "version 0",
        "the context cannot be decoded",
        "renames maps 'shut'",
        "state 'gone' cannot be reached",
        "state 'open' is a trap",
        "state 'shut' no path leads to a final state",
        "on_enter of 'gone' never runs",
        "is drawn twice",
    ):
        assert sum(words in text for text in found) == 1, words
    assert len(found) == 8


def test_strangers_are_told_together_with_what_does_not_depend_on_them():
    """While names are foreign the shape cannot be judged; everything else is."""
    found = problems(final=[Foreign.SHUT], on_exit={Foreign.SHUT: hook}, payloads={Act.PUSH: Opaque}, version=0)
    assert [text.split(" ")[0] for text in found] == ["version", "the", "final", "on_exit"]


def test_the_error_lists_its_problems():
    """Message and attribute say the same, and nothing was written."""
    with pytest.raises(InvalidSpec, match="spec 'door' has 1 problem") as caught:
        draw(on_exit={Door.GONE: hook})
    assert f"- {caught.value.problems[0]}" in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert caught.value.committed is False


# --- decorators -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("verb", "state", "said"),
    [
        ("on_enter", Foreign.SHUT, "on_enter names 'shut', which is no Door"),
        ("on_exit", Door.GONE, "on_exit of 'gone' never runs"),
        ("compensator", "shut", "the compensator names 'shut', which is no Door"),
    ],
)
def test_a_decorator_raises_at_once(verb: str, state: Any, said: str):
    """The report stands at the hook, and the hook is not registered."""
    spec = draw()
    with pytest.raises(InvalidSpec) as caught:
        getattr(spec, verb)(state)(hook)
    (found,) = caught.value.problems
    assert found.startswith(said)
    assert not spec.tables.effects


def test_a_decorator_on_the_start_raises():
    """The compensator of a state only ever started in is a problem here too."""
    spec = draw(Edge(Door.SHUT, Act.PUSH, Door.OPEN), BREAK)
    with pytest.raises(InvalidSpec, match="the start is not undone"):
        spec.compensator(Door.SHUT)(hook)


@pytest.mark.parametrize("verb", ["on_enter", "on_exit", "compensator"])
def test_a_decorator_after_a_manager_took_the_spec(verb: str):
    """A running machine does not change."""
    spec = draw()
    spec.hold()
    with pytest.raises(RuntimeError, match="a Manager holds spec 'door'; register hooks before"):
        getattr(spec, verb)(Door.OPEN)(hook)


# --- a sound drawing can be played ----------------------------------------------------------------


class Place(Enum):
    A = "a"
    B = "b"
    C = "c"


SOURCES = st.just(ANY) | st.sampled_from(Place) | st.lists(st.sampled_from(Place), min_size=1, max_size=2)
EDGES = st.builds(
    Edge[Any, Any, Any],
    SOURCES,
    st.sampled_from(Act),
    st.just(STAY) | st.sampled_from(Place),
    guard=st.sampled_from([None, yes, no]),
)


LINE = [Edge(Place.A, Act.PUSH, Place.B, guard=yes), Edge(Place.B, Act.PUSH, Place.C, guard=yes)]
BACK = Edge(Place.C, Act.BREAK, Place.A, guard=yes)


def reachable(arcs: set[tuple[str, str]], start: str) -> set[str]:
    """All that can be had from `start`, by a plainer way than the one under test."""
    found = {start}
    for _ in Place:
        found |= {target for source, target in arcs if source in found}
    return found


@given(st.sampled_from([[], LINE, [*LINE, BACK]]), st.lists(EDGES, min_size=1, max_size=4), st.booleans())
@settings(max_examples=500, deadline=None)
def test_property_a_drawing_without_problems_can_be_played(some: list[Any], more: list[Any], ends: bool):
    """Every state can be entered, left unless final, and brought to an end; every edge can be the first to be tried."""
    final = {Place.C} if ends else ()
    try:
        spec = Spec[Place, Act, None]("play", initial=Place.A, final=final, edges=some + more)
    except InvalidSpec:
        return
    arcs = {(a.source, a.target) for events in spec.tables.arcs.values() for found in events.values() for a in found}
    assert reachable(arcs, "a") == {"a", "b", "c"}
    for place in ("a", "b", "c"):
        assert (ends and place == "c") != any(source == place != target for source, target in arcs)
        assert not ends or "c" in reachable(arcs, place)
    for number, way in enumerate(spec.drawing.ways):
        before = [
            {s for s in w.sources if w.guard is None and w.event == way.event} for w in spec.drawing.ways[:number]
        ]
        assert set(way.sources) - set().union(*before)
        assert way not in spec.drawing.ways[:number]
