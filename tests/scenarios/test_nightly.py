"""A batch at two each night, Berlin time: chunk after chunk, each night once, whoever sleeps, dies or changes the clocks."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from enum import StrEnum, auto
from typing import Any

from attrs import evolve, frozen

from tests.flows import MINUTE, crashing, story
from workflow import STAY, Edge, Manager, Move, Retry, Schedule, Spec, Status
from workflow.testing import FakeClock

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)
CHUNKS = 3


class State(StrEnum):
    LOADING = auto()
    DONE = auto()


class Event(StrEnum):
    NEXT = auto()
    END = auto()


@frozen
class Batch:
    day: str
    done: int = 0


BatchMove = Move[State, Event, Batch]


class Warehouse:
    """The chunks it was given, by day; closed on some days."""

    def __init__(self) -> None:
        self.loaded: list[tuple[str, int]] = []
        self.closed: set[str] = set()

    async def load(self, m: BatchMove) -> Event:
        """Of a batch of thousands of chunks each is a line, so that a crash repeats one of them at most."""
        if m.context.day in self.closed:
            raise ConnectionError("the warehouse is closed")
        chunk = (m.context.day, m.context.done)
        if chunk not in self.loaded:
            self.loaded.append(chunk)
        return Event.NEXT if m.context.done + 1 < CHUNKS else Event.END

    def manager(self, store: Any, clock: FakeClock, **more: Any) -> Manager[State, Event, Batch]:
        def start(tick: datetime) -> tuple[str, Batch]:
            return f"batch-{tick:%Y-%m-%d}", Batch(f"{tick:%Y-%m-%d}")

        edges: list[Any] = [
            Edge(
                State.LOADING,
                Event.NEXT,
                STAY,
                assign=lambda m: evolve(m.context, done=m.context.done + 1),
                action=self.load,
            ),
            Edge(State.LOADING, Event.END, State.DONE),
        ]
        spec = Spec[State, Event, Batch](
            "batch",
            initial=State.LOADING,
            final={State.DONE},
            context=Batch,
            edges=edges,
            on_enter={State.LOADING: self.load},
            retry=Retry(attempts=5, first=10 * MINUTE, jitter=0.0),
        )
        nightly = Schedule("nightly", "0 2 * * *", tz="Europe/Berlin", start=start)
        return Manager(spec, store, clock=clock, schedules=[nightly], **more)

    @property
    def days(self) -> list[str]:
        return [day for day, chunk in self.loaded if chunk == CHUNKS - 1]


def march() -> FakeClock:
    """Noon of 1 March 2030; the clocks in Berlin change on the 31st, when there is no two o'clock."""
    return FakeClock(datetime(2030, 3, 1, 12, tzinfo=UTC))


async def test_each_night_once(store):
    """Over the change to summer time, in three processes of a fleet: fifty nights, fifty batches, each chunk once."""
    warehouse, clock = Warehouse(), march()
    async with (
        warehouse.manager(store, clock) as batches,
        warehouse.manager(store, clock),
        warehouse.manager(store, clock),
    ):
        await clock.advance(50 * DAY)
        nights = [f"{datetime(2030, 3, 2, tzinfo=UTC) + n * DAY:%Y-%m-%d}" for n in range(50)]
        assert warehouse.loaded == [(night, chunk) for night in nights for chunk in range(CHUNKS)]
        began = [(await batches.get(f"batch-{night}")).started_at for night in nights]
        assert {at.hour for at in began[:29]} == {1}
        assert (began[29].day, began[29].hour) == (31, 1)
        assert {at.hour for at in began[30:]} == {0}
        assert await story(batches, "batch-2030-03-31") == ["start", "event", "event", "event"]
        (state,) = await batches.schedules()
        assert (state.name, state.next_at) == ("nightly", datetime(2030, 4, 21, tzinfo=UTC))


async def test_a_service_that_was_down_for_days(store):
    """Of the nights it missed the latest is made up for as soon as it is back; from then on it is as before."""
    warehouse, clock = Warehouse(), march()
    async with store:
        async with crashing(warehouse.manager(store, clock)):
            await clock.advance(2 * DAY)
        await clock.advance(4 * DAY)
        async with warehouse.manager(store, clock) as batches:
            await clock.advance(timedelta(0))
            assert warehouse.days == ["2030-03-02", "2030-03-03", "2030-03-07"]
            await clock.advance(DAY)
            assert warehouse.days[3:] == ["2030-03-08"]
            assert (await batches.get("batch-2030-03-07")).status is Status.FINISHED


async def test_a_bad_night(store):
    """The warehouse is closed: tried five times, failed, and the next night is none the worse; in the morning it is redriven."""
    warehouse, clock = Warehouse(), march()
    warehouse.closed = {"2030-03-02"}
    async with warehouse.manager(store, clock) as batches:
        await clock.advance(2 * DAY)
        assert warehouse.days == ["2030-03-03"]
        (stuck,) = await batches.stuck(older_than=100 * DAY)
        assert (stuck.id, stuck.status) == ("batch-2030-03-02", Status.FAILED)
        assert "closed" in stuck.reason
        warehouse.closed.clear()
        assert await batches.redrive() == 1
        await clock.advance(timedelta(0))
        assert warehouse.days == ["2030-03-03", "2030-03-02"]
        assert await story(batches, "batch-2030-03-02") == ["start", "fail", "retry", "event", "event", "event"]


async def test_no_batches_over_the_holidays(store):
    """Paused for a week: no night of it is made up for; one that is needed after all is triggered by hand."""
    warehouse, clock = Warehouse(), march()
    async with warehouse.manager(store, clock) as batches:
        await clock.advance(DAY)
        await batches.pause_schedule("nightly")
        await clock.advance(7 * DAY)
        assert warehouse.days == ["2030-03-02"]
        await batches.trigger("nightly")
        await batches.settled("batch-2030-03-09")
        assert warehouse.days == ["2030-03-02", "2030-03-09"]
        await batches.unpause_schedule("nightly")
        await clock.advance(DAY)
        assert warehouse.days == ["2030-03-02", "2030-03-09", "2030-03-10"]


async def test_killed_in_the_middle_of_a_batch(store):
    """The next process goes on with the chunk that was under way: none is lost, and the night is not begun anew."""
    warehouse, clock = Warehouse(), march()
    entered, load = asyncio.Event(), warehouse.load

    async def dies(m: BatchMove) -> Event:
        if m.context.done == 1:
            entered.set()
            await asyncio.Event().wait()
        return await load(m)

    dies.__qualname__ = Warehouse.load.__qualname__
    async with store:
        warehouse.load = dies  # type: ignore[method-assign]
        async with crashing(warehouse.manager(store, clock)):
            night = asyncio.ensure_future(clock.advance(DAY))
            await entered.wait()
            night.cancel()
            await asyncio.gather(night, return_exceptions=True)
        assert warehouse.loaded == [("2030-03-02", 0)]
        warehouse.load = load  # type: ignore[method-assign]
        async with warehouse.manager(store, clock) as batches:
            await clock.advance(HOUR)
            assert warehouse.loaded == [("2030-03-02", chunk) for chunk in range(CHUNKS)]
            assert (await batches.get("batch-2030-03-02")).status is Status.FINISHED
