"""Lanes: order of arrival, nothing kept for who is not there."""

from __future__ import annotations

import pytest

from workflow.lane import CAPACITY, Full, Lanes


def test_a_free_lane_makes_no_object():
    """Who finds the lane free takes it; it is gone when he leaves."""
    lanes = Lanes()
    assert lanes.enter("i")
    assert not lanes.enter("i")
    assert lanes.enter("j")
    assert len(lanes) == 2
    lanes.leave("i")
    lanes.leave("j")
    assert len(lanes) == 0


async def test_in_order():
    """Leaving hands the lane to the next in line."""
    lanes = Lanes()
    assert lanes.enter("i")
    tickets = [lanes.queue("i") for _ in range(3)]
    for ticket in tickets:
        assert not ticket.done()
        lanes.leave("i")
        assert ticket.done()
        assert not lanes.enter("i")
    lanes.leave("i")
    assert len(lanes) == 0


async def test_giving_up():
    """Who gives up is skipped; who gives up after his turn came hands the lane on."""
    lanes = Lanes()
    lanes.enter("i")
    one, two, three = (lanes.queue("i") for _ in range(3))
    lanes.give_up("i", two)
    lanes.leave("i")
    assert one.done()
    lanes.give_up("i", one)
    assert three.done()
    assert not three.cancelled()
    lanes.give_up("i", three)
    assert len(lanes) == 0


async def test_a_cancelled_ticket_is_skipped():
    """A ticket that was cancelled by its waiter does not get the lane."""
    lanes = Lanes()
    lanes.enter("i")
    one, two = lanes.queue("i"), lanes.queue("i")
    one.cancel()
    lanes.leave("i")
    assert two.done()
    lanes.give_up("i", one)
    assert not lanes.enter("i")
    lanes.leave("i")
    assert len(lanes) == 0


async def test_full():
    """A lane has a limited number of places; one that gave up makes room."""
    lanes = Lanes()
    lanes.enter("i")
    tickets = [lanes.queue("i") for _ in range(CAPACITY)]
    with pytest.raises(Full):
        lanes.queue("i")
    lanes.give_up("i", tickets[5])
    lanes.queue("i")
