"""Places that several workflows share."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workflow.places import Guest, Places


def guests(places: Places, count: int) -> tuple[list[Guest], list[int]]:
    """So many guests, and whom a ring woke."""
    rung: list[int] = []
    return [places.join(lambda n=n: rung.append(n)) for n in range(count)], rung  # type: ignore[misc]


def test_one_guest_has_them_all():
    """Without others nothing is kept back."""
    places = Places(5)
    (one,), _ = guests(places, 1)
    assert (one.take(), one.take()) == (5, 0)
    one.give_back(2)
    assert one.take() == 2


def test_some_are_kept_for_who_has_nothing_to_do_yet():
    """A flood leaves others a place each to begin with."""
    places = Places(16)
    (one, two), _ = guests(places, 2)
    assert one.take() == 14
    assert two.take() == 2


def test_when_all_want_more_the_one_with_the_fewest_comes_first():
    """Places that a flood gives back go to the others, until all have the same."""
    places = Places(8)
    (one, two), rung = guests(places, 2)
    assert (one.take(), two.take()) == (7, 1)
    for _ in range(3):
        one.give_back()
        assert one.take() == 0
        assert rung[-1] == 1
        assert two.take() == 1
    assert (one.used, two.used) == (4, 4)


def test_of_one_place_each_has_its_turn():
    """Fewer places than workflows: who waited longest comes first."""
    places = Places(1)
    three, _ = guests(places, 3)
    order: list[int] = []
    for guest in three:
        guest.take()
    for _ in range(6):
        (busy,) = [n for n, guest in enumerate(three) if guest.used]
        order.append(busy)
        three[busy].give_back()
        for guest in three:
            guest.take()
    assert order == [0, 1, 2, 0, 1, 2]


def test_who_needs_no_more_makes_room():
    """What one was offered and did not need wakes the others."""
    places = Places(8)
    (one, two), rung = guests(places, 2)
    assert (one.take(), two.take()) == (7, 1)
    one.give_back(3)
    assert two.take() == 3
    one.give_back(4)
    one.sate()
    assert 1 in rung
    two.give_back(4)
    two.sate()
    assert one.take() == 7


def test_who_leaves_keeps_nothing():
    """Its places are free for the others."""
    places = Places(4)
    (one, two), rung = guests(places, 2)
    assert (two.take(), one.take()) == (3, 1)
    two.leave()
    assert rung[-1] == 0
    assert one.take() == 3
    two.give_back(3)
    assert one.take() == 0


@given(st.integers(1, 12), st.integers(1, 5), st.lists(st.tuples(st.integers(0, 4), st.integers(0, 12)), max_size=60))
def test_never_more_than_there_are(size: int, count: int, steps: list[tuple[int, int]]):
    """However they come and go: no place is given twice, and where there is one for each, each gets one."""
    places = Places(size)
    them, _ = guests(places, count)
    for who, number in steps:
        guest = them[who % count]
        if number:
            guest.give_back(min(number, guest.used))
        else:
            guest.take()
        assert 0 <= sum(each.used for each in them) <= size
    for guest in them:
        guest.give_back(guest.used)
        guest.sate()
    if count <= size:
        assert all(guest.take() > 0 for guest in them)
