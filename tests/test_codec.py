"""Values to JSON and back: what is accepted comes back equal, all else is refused before anything is written."""

from __future__ import annotations

import dataclasses
import math
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, NotRequired, TypedDict
from uuid import UUID

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow.codec import LIMIT, NAME_LIMIT, Codec, Unstorable, checked, pack
from workflow.errors import InvalidContext, InvalidName, InvalidPayload


@attrs.frozen
class Order:
    total: int
    note: str | None = None
    tags: tuple[str, ...] = ()


@attrs.frozen
class Special(Order):
    extra: int = 0


@attrs.define
class Mutable:
    items: list[int]


@dataclasses.dataclass
class Plain:
    price: Decimal


@dataclasses.dataclass
class Dearer(Plain):
    tax: int = 0


class Fast(msgspec.Struct):
    at: datetime


class Loose(TypedDict):
    name: str
    age: NotRequired[int]


class Colour(Enum):
    RED = "red"


@attrs.frozen
class Tree:
    below: list[Tree]


@attrs.frozen(eq=False)
class ByIdentity:
    n: int


class Text(str):
    __slots__ = ()


SOUND: list[tuple[Any, Any]] = [
    (None, None),
    (int, 3),
    (float, 2),
    (float, -0.0),
    (str, "Grüße 🚀 \u2028 \\u0000"),
    (bool, True),
    (Any, {"a": [1, 2.5, None, "x", {"b": []}]}),
    (Any, ""),
    (dict[str, int], {"a": 1}),
    (dict[int, str], {1: "a"}),
    (dict[Colour, set[int]], {Colour.RED: {1, 2}}),
    (set[int], {3, 1, 2}),
    (frozenset[str], frozenset({"a"})),
    (tuple[int, str], (1, "a")),
    (int | None, None),
    (bytes, b"\0\xff"),
    (date, date(2024, 2, 29)),
    (datetime, datetime(2024, 2, 29, 12, 30, 1, 5, tzinfo=UTC)),
    (timedelta, timedelta(days=3, microseconds=1)),
    (Decimal, Decimal("10.10")),
    (UUID, UUID(int=7)),
    (Colour, Colour.RED),
    (Order, Order(3, "x", ("a", "b"))),
    (Mutable, Mutable([1])),
    (Plain, Plain(Decimal("0.1"))),
    (Fast, Fast(datetime(2030, 1, 1, tzinfo=UTC))),
    (Loose, {"name": "a"}),
    (Tree, Tree([Tree([]), Tree([Tree([])])])),
    (list[Order], [Order(1)]),
]


@pytest.mark.parametrize(("type", "value"), SOUND, ids=[str(getattr(t, "__name__", t)) for t, _ in SOUND])
def test_sound_values_come_back_equal(type: Any, value: Any):
    """The copy handed back is what a later reading of the text gives, and it equals the value."""
    codec = Codec[Any](type)
    text, copy = codec.encode(value)
    assert copy == value == codec.decode(text)
    assert "\0" not in text


def test_the_copy_shares_nothing_with_the_value():
    """A hook never sees what the sender does to his object afterwards."""
    value = Mutable([1])
    _, copy = Codec[Mutable](Mutable).encode(value)
    value.items.append(2)
    assert copy == Mutable([1])


REFUSED: list[tuple[Any, Any]] = [
    (Any, math.nan),
    (float, math.nan),
    (float, math.inf),
    (list[float], [1.0, -math.inf]),
    (Any, {"a": math.nan}),
    (Any, (1, 2)),
    (Any, {1: "a"}),
    (Any, {1, 2}),
    (Any, b"bytes"),
    (Any, Order(1)),
    (Any, Decimal("1.5")),
    (Any, datetime(2030, 1, 1, tzinfo=UTC)),
    (Any, object()),
    (Any, lambda: None),
    (None, 0),
    (None, Order(1)),
    (int, "3"),
    (int, True),
    (int, 1.5),
    (str, 3),
    (Order, {"total": 1}),
    (Order, Order("three")),  # type: ignore[arg-type]  # that is what is refused
    (Order, Order(1, tags=["a"])),  # type: ignore[arg-type]  # that is what is refused
    (Loose, {"name": "a", "shoe": 43}),
    (Loose, {"age": 3}),
    (list[int], [1, "2"]),
    (ByIdentity, ByIdentity(1)),
]


@pytest.mark.parametrize(("type", "value"), REFUSED)
def test_what_would_not_come_back_equal_is_refused(type: Any, value: Any):
    """Refusing is loud and early; a reader of history never meets another value than the sender meant."""
    with pytest.raises(Unstorable):
        Codec[Any](type).encode(value)


@pytest.mark.parametrize(
    ("type", "value"),
    [(Order, Special(1, extra=3)), (Plain, Dearer(Decimal(1), tax=3)), (list[Order], [Special(1)])],
)
def test_a_sliced_subclass_is_refused(type: Any, value: Any):
    """A subclass would come back as its base, its own fields cut off."""
    with pytest.raises(Unstorable):
        Codec[Any](type).encode(value)


@pytest.mark.parametrize("text", ["\0", "a\0b", "\\\0", "\\\\\0"])
@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"k": t}, lambda t: {t: 1}, lambda t: [[t]]])
def test_nul_characters_are_refused(text: str, wrap: Any):
    """PostgreSQL stores no NUL, so no store takes one, be it in a value or in a name."""
    with pytest.raises(Unstorable, match="NUL"):
        Codec[Any](Any).encode(wrap(text))


@pytest.mark.parametrize("text", ["\\u0000", "\\\\u0000", "u0000", "\\x00"])
def test_text_that_only_looks_like_an_escaped_nul_is_fine(text: str):
    """A backslash of the user's own is a character like any other."""
    assert Codec[Any](Any).encode(text)[1] == text


def test_surrogates_are_refused():
    """Half a character is no Unicode text."""
    with pytest.raises(Unstorable):
        Codec[Any](str).encode("\ud800")


def test_the_limit_counts_bytes_of_the_encoded_form():
    """Quotes count, and so does what an umlaut takes."""
    codec = Codec[str](str)
    assert len(codec.encode("x" * (LIMIT - 2))[0]) == LIMIT
    with pytest.raises(Unstorable, match="1,048,577 bytes"):
        codec.encode("x" * (LIMIT - 1))
    with pytest.raises(Unstorable, match="more than the 1,048,576"):
        codec.encode("ü" * (LIMIT // 2))


def test_a_value_that_contains_itself_is_refused():
    """A circle has no end in JSON."""
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(Unstorable):
        Codec[Any](Any).encode(circle)


def test_a_comparison_that_raises_is_a_refusal():
    """The value's own code is a stranger's."""

    @attrs.define(eq=False)
    class Touchy:
        n: int

        def __eq__(self, other: object) -> bool:
            raise ZeroDivisionError("never equal")

        __hash__ = None  # type: ignore[assignment]  # as Python does it

    with pytest.raises(Unstorable) as caught:
        Codec[Any](Touchy).encode(Touchy(1))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_refusal_shows_the_value_and_stays_short():
    """A message is read by people, a payload may be a megabyte."""
    with pytest.raises(Unstorable) as caught:
        Codec[Any](int).encode("x" * 10_000)
    assert "cannot be stored as int" in str(caught.value)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("type", [object(), complex, list[complex], Text, type(lambda: None), int | complex])
def test_a_type_without_decoder_raises_at_once(type: Any):
    """What cannot be decoded is found when the spec is drawn."""
    with pytest.raises(TypeError):
        Codec(type)


def test_encoded_forms_are_readable_json():
    """An operator can read a row without this library."""
    text, _ = Codec[Order](Order).encode(Order(3, "Grüße"))
    assert text == '{"note":"Grüße","tags":[],"total":3}'
    assert pack({"a": (1, None)}) == '{"a":[1,null]}'


def test_equal_values_have_one_form():
    """A repeat of a request is known by its encoded form, whatever the order of its keys and members."""
    codec = Codec[Any](dict[str, set[str]])
    words = [f"w{i}" for i in range(50)]
    one, _ = codec.encode({"a": set(words), "b": {"x"}})
    two, _ = codec.encode({"b": {"x"}, "a": {*words[::-1]}})
    assert one == two
    numbered = Codec[Any](dict[int, str])
    assert numbered.encode({1: "a", 2: "b"})[0] == numbered.encode({2: "b", 1: "a"})[0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
    max_leaves=20,
)


@given(JSON)
def test_property_what_encode_accepts_decodes_equal(value: Any):
    """For every value: encode, decode, equal — or it is refused."""
    codec = Codec[Any](Any)
    try:
        text, copy = codec.encode(value)
    except Unstorable:
        return
    assert copy == value
    assert codec.decode(text) == value
    assert codec.encode(copy)[0] == text
    assert "\0" not in text
    assert len(text.encode()) <= LIMIT


@given(st.builds(Order, st.integers(), st.none() | st.text(), st.lists(st.text()).map(tuple)))
def test_property_contexts_survive_any_number_of_writings(order: Order):
    """A context is written and read again at every move."""
    codec = Codec[Order](Order)
    try:
        text, copy = codec.encode(order)
    except Unstorable:
        return
    assert codec.encode(copy) == (text, order)


# --- ids and keys ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "x" * NAME_LIMIT, "ü" * (NAME_LIMIT // 2), "o 1/2\n'%_", " "])
def test_ids_and_keys_that_every_store_holds(name: str):
    """Any text of 1 to 512 bytes is kept as it is."""
    assert checked("id", name) == name


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "1 to 512 bytes of UTF-8, not 0"),
        ("x" * (NAME_LIMIT + 1), "not 513"),
        ("ü" * NAME_LIMIT, "not 1024"),
        ("a\0b", "NUL"),
        ("\ud800", "no valid Unicode"),
        (7, "must be a str, not 7"),
        (None, "must be a str, not None"),
        (b"id", "must be a str"),
    ],
)
def test_ids_and_keys_that_are_refused(name: object, said: str):
    """The refusal can be caught as whichever of the two the caller expects, and nothing was written."""
    with pytest.raises(InvalidName, match=said) as caught:
        checked("id", name)
    assert isinstance(caught.value, InvalidPayload)
    assert isinstance(caught.value, InvalidContext)
    assert caught.value.committed is False


@given(st.text(st.characters(), max_size=600))
def test_property_accepted_names_can_be_indexed(name: str):
    """Whatever is accepted has a size that every store's index takes."""
    try:
        checked("key", name)
    except InvalidName:
        return
    assert 0 < len(name.encode()) <= NAME_LIMIT
    assert "\0" not in name
