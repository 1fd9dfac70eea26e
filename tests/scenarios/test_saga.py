"""A trip is booked in three steps; when the last cannot be had, those before are taken back in reverse order."""

from __future__ import annotations

from enum import StrEnum, auto
from typing import Any

import pytest

from tests.flows import SECOND
from workflow import Edge, HookFailed, Manager, Move, Permanent, Retry, Spec, Status
from workflow.testing import replay


class State(StrEnum):
    PLANNED = auto()
    FLIGHT = auto()
    HOTEL = auto()
    CAR = auto()
    BOOKED = auto()


class Event(StrEnum):
    FLIGHT = auto()
    HOTEL = auto()
    CAR = auto()
    DONE = auto()


TripMove = Move[State, Event, None]
STEPS: list[Any] = [
    Edge(State.PLANNED, Event.FLIGHT, State.FLIGHT),
    Edge(State.FLIGHT, Event.HOTEL, State.HOTEL),
    Edge(State.HOTEL, Event.CAR, State.CAR),
    Edge(State.CAR, Event.DONE, State.BOOKED),
]


class Agency:
    """What other systems hold for us, by idempotency key."""

    def __init__(self) -> None:
        self.booked: list[str] = []
        self.trouble = 0
        self.cars = True

    def spec(self) -> Spec[State, Event, None]:
        """Each booking sends for the next one."""
        trip = Spec[State, Event, None](
            "trip", initial=State.PLANNED, final={State.BOOKED}, edges=STEPS, retry=Retry(first=SECOND, jitter=0.0)
        )

        @trip.on_enter(State.FLIGHT)
        async def flight(m: TripMove) -> Event:
            self.booked.append("flight")
            return Event.HOTEL

        @trip.on_enter(State.HOTEL)
        def hotel(m: TripMove) -> Event:
            self.booked.append("hotel")
            return Event.CAR

        @trip.on_enter(State.CAR)
        async def car(m: TripMove) -> Event:
            if not self.cars:
                raise Permanent("no car left")
            self.booked.append("car")
            return Event.DONE

        @trip.compensator(State.FLIGHT)
        async def no_flight(m: TripMove) -> None:
            self.booked.remove("flight")

        @trip.compensator(State.HOTEL)
        async def no_hotel(m: TripMove) -> None:
            if self.trouble:
                self.trouble -= 1
                raise ConnectionError("the hotel does not answer")
            self.booked.remove("hotel")

        return trip


async def test_all_goes_well(store):
    """One event sets off the chain; its sender hears the end."""
    agency = Agency()
    async with Manager(agency.spec(), store) as trips:
        await trips.start("t")
        done = await trips.send("t", Event.FLIGHT)
        assert (done.state, done.settled) == (State.BOOKED, True)
        assert agency.booked == ["flight", "hotel", "car"]


async def test_no_car(store, clock):
    """The last step fails for good: the trip is failed, and everything is taken back, trouble included."""
    agency = Agency()
    agency.cars, agency.trouble = False, 2
    async with Manager(agency.spec(), store, clock=clock) as trips:
        await trips.start("t")
        with pytest.raises(HookFailed, match="no car left"):
            await trips.send("t", Event.FLIGHT)
        assert (await trips.get("t")).status is Status.FAILED
        with pytest.raises(HookFailed, match="does not answer"):
            await trips.compensate("t", State.PLANNED, key="give-up")
        assert agency.booked == ["flight", "hotel"]
        await clock.advance(SECOND * 5)
        assert agency.booked == []
        again = await trips.compensate("t", State.PLANNED, key="give-up")
        assert (again.duplicate, again.settled, again.state) == (True, True, State.PLANNED)
        agency.cars = True
        assert (await trips.send("t", Event.FLIGHT)).state is State.BOOKED
        assert agency.booked == ["flight", "hotel", "car"]
        assert replay(trips.spec, await trips.history("t")) == await trips.get("t")
