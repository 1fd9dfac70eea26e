from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime
from enum import Enum, StrEnum
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.drawings import live, specs
from workflow.diagram import mermaid
from workflow.record import Status, Transition
from workflow.spec import Spec
from workflow.word import ANY, STAY, Edge, word


class S(StrEnum):
    CREATED = "created"
    PAID = "paid"
    SHIPPED = "shipped"
    CANCELLED = "cancelled"


class E(StrEnum):
    PAY = "pay"
    SHIP = "ship"
    CANCEL = "cancel"
    NOTE = "note"


def covers_total(m: object) -> bool:
    return True


def notify(m: object) -> None: ...


order = Spec[S, E, None](
    "order",
    initial=S.CREATED,
    final={S.SHIPPED, S.CANCELLED},
    edges=[
        Edge(S.CREATED, E.PAY, S.PAID, guard=covers_total, action=[notify, partial(notify)]),
        Edge(S.CREATED, E.PAY, STAY),
        Edge(S.PAID, E.SHIP, S.SHIPPED),
        Edge(ANY, E.CANCEL, S.CANCELLED),
    ],
    compensators={S.PAID: notify},
)
DRAWN = """\
stateDiagram-v2
    state "paid ↩" as paid
    [*] --> created
    created --> paid : pay [covers_total] / notify, notify
    created --> created : pay [else] (stays)
    paid --> shipped : ship
    created --> cancelled : cancel
    paid --> cancelled : cancel
    shipped --> [*]
    cancelled --> [*]
"""


def line(seq: int, kind: str, source: Any, event: Any, target: Any, below: int | None = None) -> Any:
    return Transition[Any, Any, None](
        workflow="order",
        id="o-1",
        seq=seq,
        kind=kind,
        source=source,
        event=event,
        target=target,
        status=Status.RUNNING,
        key=None,
        payload=None,
        context=None,
        labels=None,
        at=datetime(2026, 1, 1, tzinfo=UTC),
        by="token",
        undoes=None,
        reason=None,
        below=below,
    )


LINES = [
    line(1, "start", None, None, S.CREATED, 0),
    line(2, "event", S.CREATED, E.PAY, S.CREATED),
    line(3, "event", S.CREATED, E.PAY, S.PAID, 1),
    line(4, "refused", S.PAID, E.SHIP, S.PAID),
    line(5, "update", S.PAID, None, S.PAID),
    line(6, "compensate", S.PAID, None, S.CREATED),
    line(7, "timeout", S.CREATED, E.PAY, S.PAID, 1),
]


def machine(*edges: Edge[Any, Any, None], final: Any = ()) -> Spec[Any, Any, None]:
    return Spec("machine", initial=edges[0].source, final=final, edges=edges)


def enum(words: list[str]) -> list[Any]:
    made: Any = Enum("Words", {f"N{n}": text for n, text in enumerate(words)})  # type: ignore[misc]  # functional
    return list(made)


def rows(spec: Spec[Any, Any, None], **more: Any) -> list[str]:
    return [row.strip() for row in mermaid(spec, **more).splitlines()]


def shown(text: str) -> str:
    """What a reader sees: entity codes as their characters."""
    return re.sub(r"#(\d+);", lambda m: chr(int(m[1])), text)


def test_the_drawing() -> None:
    """Guards, actions, stays, compensators, the initial and the final states are all to be seen."""
    assert mermaid(order) == DRAWN


def test_the_way_taken() -> None:
    """The arrows name the lines that took them, visited states and the present one have a class; refused is not taken."""
    assert mermaid(order, history=LINES) == """\
stateDiagram-v2
    state "paid ↩" as paid
    [*] --> created : ✓ 1
    created --> paid : pay [covers_total] / notify, notify ✓ 3, 7
    created --> created : pay [else] (stays) ✓ 2
    paid --> shipped : ship
    created --> cancelled : cancel
    paid --> cancelled : cancel
    paid --> created : undo ✓ 6
    shipped --> [*]
    cancelled --> [*]
    classDef taken fill:#d7f0dd,stroke:#2e7d46,color:#123
    classDef present fill:#2e7d46,stroke:#123,color:#fff,stroke-width:3px
    class created taken
    class paid present
"""  # fmt: skip


def test_an_instance_that_was_only_started_is_where_it_began() -> None:
    """Without a past there is a present and nothing else."""
    assert rows(order, history=LINES[:1])[-1] == "class created present"
    assert "taken" not in mermaid(order, history=LINES[:1]).replace("classDef taken", "")


def test_no_history_is_a_drawing() -> None:
    """Empty history and empty counts mark nothing."""
    assert mermaid(order, history=[], counts={}) == DRAWN


def test_frequencies() -> None:
    """Counts stand on the arrow of their pair; where arrows share a pair it says so, and what no edge takes is a note."""
    found = rows(order, counts={(S.PAID, E.SHIP): 12345, (S.CREATED, E.PAY): 7, (S.SHIPPED, E.PAY): 2})
    assert "paid --> shipped : ship ×12,345" in found
    assert "created --> paid : pay [covers_total] / notify, notify ×7 in all" in found
    assert "created --> created : pay [else] (stays) ×7 in all" in found
    assert "note right of shipped : no edge takes pay ×2" in found


def test_a_long_way_is_abridged() -> None:
    """After a few lines an arrow says the last one and how many there were."""
    history = [LINES[0], *(line(n, "event", S.CREATED, E.PAY, S.CREATED) for n in range(2, 2002))]
    assert "created --> created : pay [else] (stays) ✓ 2, 3, 4, 5, 6 … 2001 (2,000 times)" in rows(
        order, history=history
    )


def test_guards_of_one_arrow_stand_together() -> None:
    """Edges that differ only in their guard are one arrow, as history cannot tell which of them was taken."""
    spec = machine(
        Edge(S.CREATED, E.PAY, S.PAID, guard=covers_total),
        Edge(S.CREATED, E.PAY, S.PAID, guard=lambda m: True, action=lambda m: None),
        Edge(S.CREATED, E.PAY, S.PAID, action=notify),
        Edge(S.PAID, E.SHIP, (S.SHIPPED)),
        Edge(S.SHIPPED, E.SHIP, (S.CANCELLED)),
        Edge(S.CANCELLED, E.SHIP, (S.CREATED)),
    )
    assert "created --> paid : pay [covers_total] or [guarded] / action or [else] / notify" in rows(spec)


def test_a_move_to_the_same_state_is_told_from_a_stay() -> None:
    """Both are loops; the one that stays says so, and history marks the right one."""
    spec = machine(
        Edge(S.CREATED, E.NOTE, STAY, guard=covers_total),
        Edge(S.CREATED, E.NOTE, S.CREATED),
        Edge(S.CREATED, E.PAY, (S.PAID)),
        Edge(S.PAID, E.PAY, (S.SHIPPED)),
        Edge(S.SHIPPED, E.PAY, (S.CANCELLED)),
        final={S.CANCELLED},
    )
    stays, moves = line(2, "event", S.CREATED, E.NOTE, S.CREATED), line(3, "event", S.CREATED, E.NOTE, S.CREATED, 1)
    found = rows(spec, history=[LINES[0], stays, moves])
    assert "created --> created : note [covers_total] (stays) ✓ 2" in found
    assert "created --> created : note [else] ✓ 3" in found


def test_steps_that_are_drawn_no_more_are_shown() -> None:
    """A state or an edge that only history knows gets a node or an arrow of its own."""
    old: Any = "packed at dock"
    history = [LINES[0], line(2, "event", S.CREATED, E.SHIP, old, 1), line(3, "event", old, E.SHIP, S.SHIPPED, 2)]
    found = rows(order, history=history)
    assert 'state "packed at dock" as s4' in found
    assert "created --> s4 : ship (not drawn) ✓ 2" in found
    assert "s4 --> shipped : ship (not drawn) ✓ 3" in found
    assert "class created,s4 taken" in found


def chain(*words: str, wild: Any, override: bool = False) -> Spec[Any, Any, None]:
    states = enum(list(words))
    edges = [Edge(a, E.SHIP, b) for a, b in itertools.pairwise(states)]
    first = [Edge(states[1], E.CANCEL, states[0])] if override else []
    return machine(*edges[:1], *first, *edges[1:], Edge(ANY, E.CANCEL, wild or states[-1]), final={states[-1]})


def test_any_is_one_arrow_where_it_stands_for_many() -> None:
    """An ANY edge with many sources is drawn from one node, a STAY as a loop on it."""
    found = rows(chain("a", "b", "c", "d", "e", wild=None))
    assert 'state "any state" as any' in found
    assert [row for row in found if "cancel" in row] == ["any --> e : cancel"]
    assert "any --> any : cancel (stays)" in rows(chain("a", "b", "c", "d", "e", wild=STAY))
    assert "any" not in mermaid(chain("a", "b", "c", "d", wild=None))


def test_any_says_where_it_does_not_hold() -> None:
    """A state with an edge of its own for the event is excepted."""
    found = rows(chain("a", "b", "c", "d", "e", "f", wild=None, override=True))
    assert [row for row in found if "cancel" in row] == ["b --> a : cancel", "any --> f : cancel (not from b)"]


def test_any_leaves_its_node_where_something_is_to_be_said() -> None:
    """The way taken and the counts are seen at the state itself."""
    spec = chain("a", "b", "c", "d", "e", "f", wild=None)
    a, b, _, _, _, f = spec.states
    history = [line(1, "start", None, None, a, 0), line(2, "event", a, E.CANCEL, f, 1)]
    found = rows(spec, history=history)
    assert [row for row in found if "cancel" in row] == ["a --> f : cancel ✓ 2", "any --> f : cancel"]
    counted = rows(spec, history=history, counts={(b, E.CANCEL): 3})
    assert [row for row in counted if "cancel" in row] == [
        "a --> f : cancel ✓ 2",
        "b --> f : cancel ×3",
        *["c --> f : cancel", "d --> f : cancel", "e --> f : cancel"],
    ]


def test_a_state_called_any_is_not_the_node_for_all() -> None:
    """The node for any state keeps out of the way of the drawer's words."""
    found = rows(chain("any", "any state", "c", "d", "e", wild=None))
    assert 'state "any state" as s1' in found
    assert 'state "any state" as any_' in found
    assert "any_ --> e : cancel" in found


AWKWARD = [
    "end", "State", "note", "default", "constructor", "s1", "two words", "état", "支払い", 'say "hi"', "a;b:c", "#35;", "%%{init}%%", "<b>&amp;</b>", "--> x",
    "[[fork]]", "1. first", "- dash", "__init__", "*bold* `code` ~gone~", "[a](b)", "two\nlines", "tab\there", "\u202eright", "\\", "  spaces  ", "www.a.b", "🎉",
]  # fmt: skip


def ring(words: list[str]) -> Spec[Any, Any, None]:
    states, events = enum(words), enum(words)
    return machine(*(Edge(s, e, t) for s, e, t in zip(states, events, states[1:] + states[:1], strict=True)))


def said(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


ROW = re.compile(r'state "([^"]*)" as (\w+)|(\[\*\]|[A-Za-z]\w*) --> (\[\*\]|[A-Za-z]\w*)(?: : (.*))?', re.ASCII)
RAW = re.compile(r"[\w .,()/'+=×✓↩…-]|#\d+;|[^\x00-\x7f]", re.ASCII)


def read(text: str) -> tuple[dict[str, str], list[tuple[str, str, str]]]:
    """Names by id, and arrows, as a strict reader of the rows that `mermaid` may write."""
    head, *rest = text.split("\n")
    assert head == "stateDiagram-v2"
    assert rest.pop() == ""
    names: dict[str, str] = {}
    arrows: list[tuple[str, str, str]] = []
    for row in rest:
        found = ROW.fullmatch(row.strip())
        assert found, row
        name, id, source, target, label = found.groups()
        assert RAW.sub("", (name or label or "").replace("[", "").replace("]", "")) == ""
        if id:
            names[id] = shown(name)
        else:
            arrows.append((source, target, shown(label or "")))
    return names, arrows


def test_awkward_words() -> None:
    """Words that Mermaid would read as syntax stand behind an alias and as entity codes, and read the same."""
    names, arrows = read(mermaid(ring(AWKWARD)))
    assert [names.get(source, source) for source, _, _ in arrows[1:]] == [said(w) for w in AWKWARD]
    assert [label for _, _, label in arrows[1:]] == [said(w) for w in AWKWARD]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('say "hi"', "say #34;hi#34;"),
        ("a;b:c", "a#59;b#58;c"),
        ("1. first", "1#46; first"),
        ("__init__", "#95;#95;init#95;#95;"),
        ("snake_case 2.5 (really)", "snake_case 2.5 (really#41;"),
        ("two\nlines", "two#92;nlines"),
    ],
)
def test_how_a_word_is_written(text: str, code: str) -> None:
    """Only what would be syntax, markup or lost is written as a code; the rest stays readable."""
    assert f'state "{code}" as s0' in rows(ring([text, "b"]))


@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1), min_size=2, max_size=5, unique=True
    )
)
def test_any_words(words: list[str]) -> None:
    """Whatever a persisted word may be, every row can be read and every arrow leads where it should."""
    names, arrows = read(mermaid(ring(words)))
    assert [names.get(source, source) for source, _, _ in arrows[1:]] == [said(w) for w in words]
    assert [names.get(target, target) for _, target, _ in arrows] == [said(w) for w in [*words, words[0]]]


@given(specs())
def test_every_edge_that_can_be_taken_is_drawn(spec: Spec[Any, Any, None]) -> None:
    """One arrow for each (source, event, target, stays), the node for any state standing for all that share it."""
    _, arrows = read(mermaid(spec))
    found: set[tuple[str, str, str, bool]] = set()
    for source, target, label in arrows:
        if label:
            stays = "(stays)" in label
            hidden = re.findall(r"\w+", label.partition("(not from ")[2])
            sources = [word(s) for s in spec.states if s not in spec.final] if source == "any" else [source]
            found |= {(s, label.split()[0], s if stays else target, stays) for s in sources if s not in hidden}
    assert found == {(s, e, *end) for (s, e), ends in live(spec).items() for end in ends}


def test_lines_made_by_hand_need_no_below() -> None:
    """A move to the same state is marked even if the line does not say that it entered it."""
    spec = machine(Edge(S.CREATED, E.NOTE, S.CREATED), Edge(S.CREATED, E.PAY, S.PAID), Edge(S.PAID, E.PAY, S.SHIPPED), Edge(S.SHIPPED, E.PAY, S.CANCELLED), final={S.CANCELLED})  # fmt: skip
    step = replace(LINES[1], event=E.NOTE)
    assert "created --> created : note ✓ 2" in rows(spec, history=[LINES[0], step])
