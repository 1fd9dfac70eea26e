"""Schedules: each tick fires once, over all processes, whatever dies or sleeps; and how they are steered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.flows import MINUTE, ONCE, SECOND, TWICE, Ctx, E, Log, S, Tap, crashing, flow, turns, until
from workflow import AlreadyStarted, Manager, Permanent, Reentrant, Schedule, StoreUnavailable, UnknownSchedule, cron
from workflow.kernel import Author, noted
from workflow.record import Change, Commit, Kind, Put, Query
from workflow.testing import FakeClock, Faults

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
BERLIN = "Europe/Berlin"


@pytest.fixture
async def store(store: Any) -> AsyncIterator[Any]:
    """Open before the first Manager and after the last."""
    async with store:
        yield store


@pytest.fixture
async def memory(memory: Any) -> AsyncIterator[Any]:
    """The same."""
    async with memory:
        yield memory


class Ticks(list[datetime]):
    """A schedule's function that notes the ticks it was told of."""

    def __init__(self, id: str = "{:%Y-%m-%d %H:%M}") -> None:
        self.id = id

    def start(self, tick: datetime) -> tuple[str, Ctx]:
        self.append(tick)
        return self.id.format(tick), Ctx(n=len(self))

    def send(self, tick: datetime) -> tuple[str, E, Any]:
        self.append(tick)
        return "i", E.ADD, 1


def hourly(ticks: Ticks, **more: Any) -> Any:
    """At each full hour."""
    given: dict[str, Any] = {"name": "hourly", "cron": "0 * * * *", "start": ticks.start} | more
    return Schedule(**given)


def manager(store: Any, clock: Any, *schedules: Any, spec: Any = None, **more: Any) -> Manager[Any, Any, Any]:
    """One that ticks."""
    return Manager(flow() if spec is None else spec, store, clock=clock, schedules=schedules, **more)


async def ids(store: Any) -> list[str]:
    """What was started."""
    return [head.id for head in await store.find(Query(workflow="flow", limit=5000))]


async def lines(store: Any, name: str = "hourly") -> list[str]:
    """The kinds of the lines of a schedule."""
    return [line.kind for line in await store.history(f"flow.schedules/{name}", name)]


async def only(m: Manager[Any, Any, Any]) -> Any:
    """The one schedule there is."""
    (state,) = await m.schedules()
    return state


# --- ticks ----------------------------------------------------------------------------------------


async def test_a_tick_starts_an_instance(store, clock):
    """With the context that the function gives, under a key made of the tick; its hooks run."""
    log, ticks = Log(), Ticks("nightly")
    spec = flow(on_enter={S.A: log.hook("a")})
    async with manager(store, clock, hourly(ticks, cron="30 2 * * *", tz=BERLIN), spec=spec) as m:
        await clock.advance(13 * HOUR)
        assert ticks == []
        await clock.advance(HOUR)
        (line,) = await m.history("nightly")
        assert (line.kind, line.key) == ("start", "hourly/2030-01-02T01:30:00+00:00")
        assert line.at == datetime(2030, 1, 2, 1, 30, tzinfo=UTC)
        assert line.context == Ctx(n=1)
        assert [f"{tick:%F %H:%M %Z}" for tick in ticks] == ["2030-01-02 02:30 CET"]
        assert log == ["a"]


async def test_months_pass(store, clock):
    """Every tick once, in order, and the schedule's own history does not grow."""
    ticks = Ticks()
    async with manager(store, clock, hourly(ticks, cron="0 2 * * *")) as m:
        await clock.advance(90 * DAY)
        assert [tick - ticks[0] for tick in ticks] == [n * DAY for n in range(90)]
        assert len(await ids(store)) == 90
        state = await only(m)
        assert (state.last_at, state.next_at) == (ticks[-1], ticks[-1] + DAY)
    assert await lines(store) == ["start"]


async def test_the_clocks_change(store):
    """A night of 23 hours and one of 25: one tick each."""
    for day in (datetime(2030, 3, 30, 12, tzinfo=UTC), datetime(2030, 10, 26, 12, tzinfo=UTC)):
        clock, ticks = FakeClock(day), Ticks()
        async with manager(store, clock, hourly(ticks, name=f"{day:%B}", cron="30 2 * * *", tz=BERLIN)):
            await clock.advance(2 * DAY)
        assert len(ticks) == 2
    assert await ids(store) == [
        "2030-03-31 03:00",
        "2030-04-01 02:30",
        "2030-10-27 02:30",
        "2030-10-28 02:30",
    ]


async def test_leap_days(store, clock):
    """Years may lie between two ticks."""
    ticks = Ticks()
    async with manager(store, clock, hourly(ticks, cron="0 0 29 2 *")):
        await clock.advance(7 * 366 * DAY)
    assert await ids(store) == ["2032-02-29 00:00", "2036-02-29 00:00"]


async def test_a_tick_sends_an_event(store, clock):
    """As an ordinary event, with its payload and key."""
    ticks = Ticks()
    async with manager(store, clock, hourly(ticks, start=None, send=ticks.send)) as m:
        await m.start("i")
        await clock.advance(3 * HOUR)
        history = await m.history("i")
        assert [(line.kind, line.event, line.payload) for line in history[1:]] == [("event", E.ADD, 1)] * 3
        assert history[1].key == "hourly/2030-01-01T13:00:00+00:00"
        assert (await m.get("i")).context.n == 3


async def test_an_event_that_is_refused_is_on_record(store, clock):
    """One `refused` line a tick, and the schedule goes on."""
    async with manager(store, clock, hourly(Ticks(), start=None, send=lambda t: ("i", E.BACK, None))) as m:
        await m.start("i")
        await clock.advance(2 * HOUR)
        assert [line.kind for line in await m.history("i")] == ["start", "refused", "refused"]
        assert (await only(m)).error is None


async def test_an_event_for_nobody_is_told(store, clock, caplog):
    """Logged, and seen in the list; not tried again."""
    ticks = Ticks()
    async with manager(store, clock, hourly(ticks, start=None, send=ticks.send)) as m:
        await clock.advance(2 * HOUR)
        assert len(ticks) == 2
        state = await only(m)
        assert "UnknownInstance" in state.error
        assert state.next_at == NOON + 3 * HOUR
        assert sum("UnknownInstance" in record.getMessage() for record in caplog.records) == 2
        await m.start("i")
        await clock.advance(HOUR)
        assert (await only(m)).error is None
        await m.send("i", E.STOP)
        await clock.advance(HOUR)
        assert "Finished" in (await only(m)).error


async def test_an_existing_id_is_no_error(store, clock, caplog):
    """Whoever started it: the tick is done."""
    ticks = Ticks("the one")
    async with manager(store, clock, hourly(ticks)) as m:
        await m.start("the one")
        await clock.advance(3 * HOUR)
        assert len(ticks) == 3
        assert (await only(m)).error is None
        assert len(await m.history("the one")) == 1
    assert not caplog.records


async def test_several_schedules(store, clock):
    """Each by its own time."""
    two = Ticks("two {:%H}")
    one = Ticks("one {:%H:%M}")
    schedules = (hourly(two, cron="0 */2 * * *"), hourly(one, name="quarter", cron="*/15 * * * *"))
    async with manager(store, clock, *schedules) as m:
        await clock.advance(2 * HOUR)
        assert [state.name for state in await m.schedules()] == ["hourly", "quarter"]
    assert await ids(store) == sorted(
        ["two 14", *(f"one {h}:{m:02}" for h in (12, 13) for m in (15, 30, 45)), "one 13:00", "one 14:00"]
    )


async def test_on_the_clock_of_the_store(store):
    """Without a clock of ours."""
    ticks = Ticks("now")
    async with manager(store, None, hourly(ticks)) as m:
        state = await only(m)
        at = await m.trigger("hourly")
        assert at < state.next_at <= at + HOUR + SECOND
        assert await m.state("now") == S.A
        await m.pause_schedule("hourly")
        assert (await m.unpause_schedule("hourly")).next_at >= state.next_at


# --- several processes, crashes -------------------------------------------------------------------


async def test_two_managers_fire_each_tick_once(store, clock):
    """Whoever has the row's lease."""
    one, two = Ticks(), Ticks()
    async with manager(store, clock, hourly(one)), manager(store, clock, hourly(two)):
        await clock.advance(DAY)
    assert sorted(one + two) == [NOON + n * HOUR for n in range(1, 25)]
    assert len(await ids(store)) == 24


async def test_a_crash_between_start_and_advance(store, clock):
    """The next owner calls the function again, and the second start is a duplicate, also with another context."""
    tap = Tap(store)
    ticks, others = Ticks(), Ticks()
    stuck = asyncio.Event()

    async def stop(commits: Any, **more: Any) -> None:
        if ticks and commits[0].changes[0].workflow == "flow.schedules/hourly":
            stuck.set()
            await asyncio.Event().wait()

    tap.before["append"] = stop
    dying = manager(tap, clock, hourly(ticks))
    async with store:
        async with crashing(dying):
            advance = asyncio.create_task(clock.advance(HOUR))
            await stuck.wait()
            advance.cancel()
        others.append(NOON)  # so that the context differs
        async with manager(store, clock, hourly(others)) as m:
            await clock.advance(HOUR)
            assert ticks == [NOON + HOUR]
            assert others == [NOON, NOON + HOUR, NOON + 2 * HOUR]
            assert len(await m.history(f"{ticks[0]:%F %H:%M}")) == 1
            assert (await only(m)).error is None
        assert len(await ids(store)) == 2


@pytest.mark.parametrize(("attempt", "fired"), [(2, True), (20, True), (21, False)])
async def test_crashes_before_anything_was_done(memory, clock, attempt, fired):
    """They are no failures of the function's: a tick has twenty attempts for them, whatever the spec's retry says."""
    ticks, spec, workflow = Ticks(), flow(retry=ONCE), "flow.schedules/hourly"
    async with manager(memory, clock, hourly(ticks), spec=spec, work=False):
        await clock.advance(HOUR)
    for n in range(attempt - 1):
        assert len(await memory.claim({workflow: 1}, f"dead {n}", timedelta(0), 1, now=clock.now())) == 1
    async with manager(memory, clock, hourly(ticks), spec=spec) as m:
        await clock.advance(timedelta(0))
        assert (len(ticks), (await only(m)).last_at) == ((1, NOON + HOUR) if fired else (0, None))
        await clock.advance(HOUR)
        assert ticks[-1] == NOON + 2 * HOUR
    assert await lines(memory) == (["start"] if fired else ["start", "fail"])


async def test_a_crash_after_a_send(store, clock):
    """The event is not sent twice."""
    tap = Tap(store)
    ticks = Ticks()
    stuck = asyncio.Event()

    async def stop(commits: Any, **more: Any) -> None:
        change = commits[0].changes[0]
        if ticks and change.workflow == "flow.schedules/hourly":
            stuck.set()
            await asyncio.Event().wait()

    async with store:
        async with manager(store, clock, work=False) as m:
            await m.start("i")
        tap.before["append"] = stop
        async with crashing(manager(tap, clock, hourly(ticks, start=None, send=ticks.send))):
            advance = asyncio.create_task(clock.advance(HOUR))
            await stuck.wait()
            async with asyncio.timeout(5):
                while len(await store.history("flow", "i")) < 2:  # noqa: ASYNC110  # the store tells nobody
                    await asyncio.sleep(0.001)
            await turns()
            advance.cancel()
        async with manager(store, clock, hourly(ticks, start=None, send=ticks.send)) as m:
            await clock.advance(SECOND)
            assert ticks == [NOON + HOUR] * 2
            assert (await m.get("i")).context.n == 1


async def test_the_store_fails_now_and_then(store, clock):
    """Before and after: an unknown outcome is settled, no tick is lost or doubled."""
    faults = Faults(store)
    ticks = Ticks()
    async with manager(faults, clock, hourly(ticks)):
        for when in ("before", "after", "before", "after"):
            faults.fail("append", when=when)
            await clock.advance(HOUR)
            faults.fail("append", nth=2, when=when)
            await clock.advance(HOUR)
    assert await ids(store) == [f"{NOON + n * HOUR:%F %H:%M}" for n in range(1, 9)]


async def test_no_process_fires_what_it_does_not_name(store, clock):
    """In an overlapping deployment a tick is never in the way of a process that does not name it, nor the other way round."""
    old, new = Ticks("old {:%d %H}"), Ticks("new {:%d %H}")
    spec = flow(retry=ONCE)
    async with (
        manager(store, clock, hourly(old, name="old"), spec=spec),
        manager(store, clock, hourly(old, name="old"), spec=spec),
        manager(store, clock, hourly(new, name="new", catch_up="none"), spec=spec) as m,
    ):
        await clock.advance(DAY)
        assert [state.next_at for state in await m.schedules()] == [NOON + DAY + HOUR] * 2
    assert new == [NOON + n * HOUR for n in range(1, 25)]
    assert len(await ids(store)) == 48
    assert await lines(store, "new") == ["start"]


async def test_what_nobody_names_any_more_is_left_alone(store, clock):
    """It stays in the list as it is, costs nothing, and goes on when it is named again."""
    old, other = Ticks(), Ticks("other {:%F %H}")
    spec = flow(retry=TWICE)
    async with manager(store, clock, hourly(old), spec=spec):
        await clock.advance(HOUR)
    tap = Tap(store)
    async with manager(tap, clock, hourly(other, name="other"), spec=spec) as m:
        await clock.advance(DAY)
        states = {state.name: state for state in await m.schedules()}
        assert (states["hourly"].known, states["hourly"].next_at) == (False, NOON + 2 * HOUR)
        assert (states["other"].known, states["hourly"].paused) == (True, False)
        assert len(other) == 24
        assert tap.calls["append"] == 2 + 2 * 24
    async with manager(store, clock, hourly(old), spec=spec) as m:
        await clock.advance(HOUR)
        assert old == [NOON + HOUR, NOON + 25 * HOUR, NOON + 26 * HOUR]


async def test_a_manager_without_schedules_leaves_them_alone(store, clock):
    """It does not claim what it does not know."""
    ticks = Ticks()
    async with manager(store, clock, hourly(ticks), work=False), manager(store, clock) as m:
        await clock.advance(3 * HOUR)
        assert ticks == []
        assert (await only(m)).next_at == NOON + HOUR


# --- missed ticks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("catch_up", "hours"), [("one", [10, 11]), ("all", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]), ("none", [11])]
)
async def test_after_a_long_sleep(store, clock, catch_up, hours):
    """The latest, each, or none of those that nobody was there for."""
    ticks = Ticks()
    async with manager(store, clock, hourly(ticks, catch_up=catch_up)):
        pass
    await clock.advance(10.5 * HOUR)
    async with manager(store, clock, hourly(ticks, catch_up=catch_up)) as m:
        await clock.advance(timedelta(0))
        assert [tick - NOON for tick in ticks] == [h * HOUR for h in hours[:-1]]
        assert (await only(m)).next_at == NOON + 11 * HOUR
        await clock.advance(HOUR)
        assert [tick - NOON for tick in ticks] == [h * HOUR for h in hours]


async def test_a_little_late_is_in_time(store, clock):
    """`none` means none that is later than two leases."""
    ticks = Ticks()
    async with manager(store, clock, hourly(ticks, catch_up="none")):
        pass
    await clock.advance(HOUR + timedelta(seconds=59))
    async with manager(store, clock, hourly(ticks, catch_up="none")):
        await clock.advance(timedelta(0))
    assert ticks == [NOON + HOUR]


async def test_resume_makes_up_for_all(store, clock):
    """A process without a loop: what is due is fired when it says so."""
    ticks = Ticks()
    async with manager(store, clock, hourly(ticks, catch_up="all"), work=False) as m:
        await clock.advance(5 * HOUR)
        assert (await m.resume()).timers == 5
        assert len(ticks) == 5
        assert (await m.resume()).timers == 0


# --- steering -------------------------------------------------------------------------------------


async def test_the_list(store, clock):
    """Name, cron, zone, when it is due next."""
    async with manager(store, clock, hourly(Ticks(), cron="0 2 * * 1", tz=BERLIN)) as m:
        state = await only(m)
        assert (state.name, state.cron, state.tz) == ("hourly", "0 2 * * 1", BERLIN)
        assert state.next_at == datetime(2030, 1, 7, 1, tzinfo=UTC)
        assert (state.last_at, state.paused, state.reason, state.error, state.known) == (None, False, None, None, True)
    async with manager(store, clock, spec=flow("other")) as m:
        assert await m.schedules() == []


async def test_pause_and_unpause(store, clock):
    """No tick meanwhile, none is made up for, both are on record; saying it twice changes nothing."""
    ticks = Ticks()
    async with manager(store, clock, hourly(ticks, catch_up="all")) as m:
        await clock.advance(HOUR)
        state = await m.pause_schedule("hourly", "holidays")
        assert (state.paused, state.reason, state.next_at) == (True, "holidays", None)
        assert await m.pause_schedule("hourly", "again") == state
        await clock.advance(5.5 * HOUR)
        assert len(ticks) == 1
        state = await m.unpause_schedule("hourly")
        assert (state.paused, state.reason, state.next_at) == (False, None, NOON + 7 * HOUR)
        assert state.last_at == NOON + HOUR
        assert await m.unpause_schedule("hourly") == state
        await clock.advance(HOUR)
        assert [tick - NOON for tick in ticks] == [HOUR, 7 * HOUR]
    assert await lines(store) == ["start", "pause", "unpause"]


async def test_a_pause_outlives_the_process_and_a_new_cron(store, clock):
    """Nobody but an operator ends it."""
    ticks = Ticks()
    async with manager(store, clock, hourly(ticks)) as m:
        await m.pause_schedule("hourly")
    async with manager(store, clock, hourly(ticks, cron="30 * * * *")) as m:
        await clock.advance(3 * HOUR)
        state = await only(m)
        assert (state.paused, state.cron, state.next_at, ticks) == (True, "30 * * * *", None, [])
        await m.unpause_schedule("hourly")
        await clock.advance(HOUR)
        assert [tick - NOON for tick in ticks] == [3.5 * HOUR]


async def test_a_pause_while_a_tick_is_fired(store, clock):
    """The tick that had begun is done, the next is held."""
    tap, ticks = Tap(store), Ticks()

    async def pausing(commits: Any, **more: Any) -> None:
        if commits[0].changes[0].workflow == "flow":
            del tap.after["append"]
            await m.pause_schedule("hourly")

    async with manager(tap, clock, hourly(ticks)) as m:
        tap.after["append"] = pausing
        await clock.advance(3 * HOUR)
        assert len(ticks) == 1
        state = await only(m)
        assert (state.paused, state.last_at) == (True, NOON + HOUR)
        await m.unpause_schedule("hourly")
        await clock.advance(HOUR)
        assert len(ticks) == 2


async def test_trigger(store, clock):
    """Now, under a key of its own; the schedule goes on as before, and need not be running."""
    ticks = Ticks("{:%H:%M:%S}")
    async with manager(store, clock, hourly(ticks, tz=BERLIN)) as m:
        await clock.advance(61 * SECOND)
        assert await m.trigger("hourly") == NOON + 61 * SECOND
        (line,) = await m.history("13:01:01")
        assert line.key == "hourly/triggered/2030-01-01T12:01:01+00:00"
        assert (await only(m)).next_at == NOON + HOUR
        with pytest.raises(AlreadyStarted):
            await m.start("13:01:01")
        await clock.advance(HOUR)
        assert len(ticks) == 2
        await m.pause_schedule("hourly")
        await m.trigger("hourly")
        assert len(await ids(store)) == 3


async def test_trigger_sends(store, clock):
    """What a tick would send, at once."""
    ticks = Ticks()
    async with manager(store, clock, hourly(ticks, start=None, send=ticks.send)) as m:
        await m.start("i")
        await m.trigger("hourly")
        await clock.advance(timedelta(0))
        assert (await m.get("i")).context.n == 1


async def test_trigger_tells_what_goes_wrong(store, clock):
    """The caller gets the error, the schedule is not touched."""

    def broken(tick: datetime) -> tuple[str, Ctx]:
        raise ZeroDivisionError

    async with manager(store, clock, hourly(Ticks(), start=broken)) as m:
        with pytest.raises(ZeroDivisionError):
            await m.trigger("hourly")
        state = await only(m)
        assert (state.error, state.next_at) == (None, NOON + HOUR)


async def test_a_name_that_is_none(store, clock):
    """The error names those there are."""
    async with manager(store, clock, hourly(Ticks())) as m:
        for verb in (m.pause_schedule, m.unpause_schedule, m.trigger):
            with pytest.raises(UnknownSchedule, match="'hourly'"):
                await verb("nightly")


async def test_not_inside_a_transaction(clock):
    """Waiting for the store would be for ever."""
    from stores import SQLiteStore

    store = SQLiteStore(":memory:")
    async with manager(store, clock, hourly(Ticks())) as m, store.transaction():
        for verb in (m.pause_schedule, m.unpause_schedule, m.trigger):
            with pytest.raises(Reentrant):
                await verb("hourly")


# --- opening --------------------------------------------------------------------------------------


async def test_another_cron_counts_from_now(store, clock):
    """On record; ticks of the old one that were missed are not made up for."""
    ticks = Ticks()
    async with manager(store, clock, hourly(ticks)):
        await clock.advance(HOUR)
    await clock.advance(5 * HOUR)
    async with manager(store, clock, hourly(ticks, cron="45 6 * * *", tz=BERLIN)) as m:
        state = await only(m)
        assert (state.cron, state.tz, state.next_at) == ("45 6 * * *", BERLIN, datetime(2030, 1, 2, 5, 45, tzinfo=UTC))
        assert state.last_at == NOON + HOUR
        await clock.advance(DAY)
    assert ticks == [NOON + HOUR, datetime(2030, 1, 2, 5, 45, tzinfo=UTC)]
    assert await lines(store) == ["start", "update"]


async def test_an_older_version_does_not_take_a_cron_back(store, clock):
    """In an overlapping deployment all processes go by the newest."""
    old, new = Ticks(), Ticks()
    newer = manager(store, clock, hourly(new, cron="30 * * * *"), spec=flow(version=2), work=False)
    async with newer, manager(store, clock, hourly(old), spec=flow(version=1)) as m:
        assert (await only(m)).cron == "30 * * * *"
        await clock.advance(2 * HOUR)
        assert old == []
    async with manager(store, clock, hourly(new, cron="30 * * * *"), spec=flow(version=2)):
        await clock.advance(HOUR)
    assert [tick - NOON for tick in new] == [1.5 * HOUR, 2.5 * HOUR]


async def test_all_go_by_what_the_store_says(store, clock):
    """Two processes of one version whose code differs: the one opened last counts, for both."""
    one, two = Ticks(), Ticks()
    async with manager(store, clock, hourly(one)), manager(store, clock, hourly(two, cron="30 * * * *")):
        await clock.advance(4 * HOUR)
    assert sorted(tick - NOON for tick in one + two) == [n * HOUR for n in (0.5, 1.5, 2.5, 3.5)]


async def test_many_open_at_once(store, clock):
    """One head, one row."""
    ticks = Ticks()
    managers = [manager(store, clock, hourly(ticks)) for _ in range(5)]
    await asyncio.gather(*(m.__aenter__() for m in managers))
    await clock.advance(HOUR)
    await asyncio.gather(*(m.__aexit__(None, None, None) for m in managers))
    assert len(ticks) == 1
    assert await lines(store) == ["start"]


async def test_opening_again_after_the_store_was_away(memory, clock):
    """A Manager whose opening failed can be opened."""
    faults = Faults(memory)
    ticks = Ticks()
    m = manager(faults, clock, hourly(ticks))
    faults.fail("load")
    with pytest.raises(StoreUnavailable):
        await m.__aenter__()
    async with m:
        await clock.advance(HOUR)
    assert len(ticks) == 1


async def test_what_a_manager_does_not_take(memory):
    """Said when it is made."""
    with pytest.raises(ValueError, match="two schedules"):
        manager(memory, None, hourly(Ticks()), hourly(Ticks()))
    with pytest.raises(TypeError, match="no Schedule"):
        manager(memory, None, "hourly")


async def test_what_cannot_be_read_here(memory, clock):
    """A zone that this host does not have, a row of nobody's making: put off or set aside, and told in the list."""
    ticks = Ticks()
    async with manager(
        memory, clock, hourly(ticks, name="zone"), hourly(ticks, name="body"), spec=flow(retry=TWICE)
    ) as m:
        for name in ("zone", "body"):
            workflow = f"flow.schedules/{name}"
            (loaded,) = await memory.load(workflow, (name,), rows=True)
            author = Author(f"{name:0>32}", "somebody", 1)
            line, after = noted(loaded.head, Kind.UPDATE, author, context='{"cron":"0 * * * *","tz":"Mars/Base"}')
            put = Put("tick", 2, at=NOON + HOUR, body=loaded.rows[0].body if name == "zone" else "[]")
            change = Change(workflow, name, 1, (line,), after, puts=(put,))
            await memory.append((Commit(author.commit_id, "somebody", (change,), clock.now()),))
        await clock.advance(3 * HOUR)
        states = {state.name: state for state in await m.schedules()}
        assert (states["zone"].tz, states["zone"].next_at is None) == ("Mars/Base", False)
        assert "cannot be read" in str(states["body"].error)
        await clock.advance(8 * HOUR)
        assert {state.next_at for state in await m.schedules()} == {None}
        assert ticks == []
    async with manager(memory, clock, hourly(ticks, name="zone"), hourly(ticks, name="body")):
        await clock.advance(HOUR)
        assert len(ticks) == 2


async def test_a_zone_that_only_another_host_has(memory, clock, monkeypatch):
    """Whoever cannot read it takes nothing away: no attempt, and none of the grace of `none`."""
    ticks, due = Ticks(), cron.due

    def here(rule: str, tz: str, at: datetime, now: datetime, catch_up: Any, grace: timedelta) -> datetime | None:
        if catch_up == "all":
            raise ValueError("no such zone")
        return due(rule, tz, at, now, catch_up, grace)

    monkeypatch.setattr(cron, "due", here)
    async with manager(memory, clock, hourly(ticks, catch_up="all"), spec=flow(retry=ONCE)):
        await clock.advance(HOUR + 5 * MINUTE)
        assert ticks == []
    async with manager(memory, clock, hourly(ticks, catch_up="none"), spec=flow(retry=ONCE)):
        await clock.advance(MINUTE)
        assert ticks == [NOON + HOUR]


# --- failing functions ----------------------------------------------------------------------------


class Failing(Ticks):
    """Fails so many times."""

    def __init__(self, times: int, error: Exception | None = None) -> None:
        super().__init__()
        self.times = times
        self.error = error or ZeroDivisionError("no")
        self.called: list[datetime] = []
        self.clock: Any = None

    def start(self, tick: datetime) -> tuple[str, Ctx]:
        self._fail()
        return super().start(tick)

    def send(self, tick: datetime) -> tuple[str, E, Any]:
        self._fail()
        return super().send(tick)

    def _fail(self) -> None:
        self.called.append(self.clock.now())
        if len(self.called) <= self.times:
            raise self.error


async def test_a_failing_function_is_tried_again(store, clock, caplog):
    """With the pauses of the spec's retry; the tick is the same, so is its key."""
    ticks = Failing(2)
    ticks.clock = clock
    caplog.set_level("INFO", "enumflow")
    async with manager(store, clock, hourly(ticks), spec=flow(retry=TWICE.__class__(first=SECOND, jitter=0.0))) as m:
        await clock.advance(HOUR)
        assert len(ticks.called) == 1
        state = await only(m)
        assert (state.error, state.next_at) == ("ZeroDivisionError: no", NOON + HOUR + SECOND)
        await clock.advance(10 * SECOND)
        assert [at - NOON - HOUR for at in ticks.called] == [0 * SECOND, SECOND, 3 * SECOND]
        assert ticks == [NOON + HOUR]
        state = await only(m)
        assert (state.error, state.next_at, state.last_at) == (None, NOON + 2 * HOUR, NOON + HOUR)
    assert sum("ZeroDivisionError" in record.getMessage() for record in caplog.records) == 2
    assert await lines(store) == ["start"]


async def test_a_function_that_always_fails(store, clock, caplog):
    """Each tick is given up after its attempts, on record; never a hot loop, and the schedule goes on."""
    ticks = Failing(10**6)
    ticks.clock = clock
    tap = Tap(store)
    async with manager(tap, clock, hourly(ticks), spec=flow(retry=TWICE)) as m:
        await clock.advance(5 * HOUR)
        assert len(ticks.called) == 9  # the second try of the last is still to come
        await clock.advance(SECOND)
        assert len(ticks.called) == 10
        assert tap.calls["append"] <= 12
        state = await only(m)
        assert (state.error, state.next_at, state.last_at) == ("ZeroDivisionError: no", NOON + 6 * HOUR, None)
    history = await store.history("flow.schedules/hourly", "hourly")
    assert [line.kind for line in history] == ["start"] + ["fail"] * 5
    assert history[1].reason == "tick 2030-01-01T13:00:00+00:00: ZeroDivisionError: no"
    assert (history[1].status, await ids(store)) == ("running", [])
    assert sum(record.levelname == "ERROR" for record in caplog.records) == 5


@pytest.mark.parametrize("error", [Permanent("never"), KeyError("not mine")])
async def test_what_is_permanent_is_given_up_at_once(memory, clock, error):
    """By `Permanent`, or an exception that the spec's retry is not for."""
    ticks = Failing(1, error)
    ticks.clock = clock
    async with manager(memory, clock, hourly(ticks), spec=flow(retry=ONCE.__class__(on=ZeroDivisionError))):
        await clock.advance(2 * HOUR)
    assert len(ticks.called) == 2
    assert await lines(memory) == ["start", "fail"]


@pytest.mark.parametrize("error", [TimeoutError("a socket"), StoreUnavailable("mine"), AlreadyStarted("flow", "x")])
@pytest.mark.parametrize("verb", ["start", "send"])
async def test_a_function_that_fails_as_a_store_would(memory, clock, error, verb):
    """It is the function that failed: tried as often as the retry says, given up on the record."""
    ticks = Failing(4, error)
    ticks.clock = clock
    functions: dict[str, Any] = {"start": None, verb: getattr(ticks, verb)}
    async with manager(memory, clock, hourly(ticks, **functions), spec=flow(retry=TWICE)) as m:
        await m.start("i")
        await clock.advance(2 * HOUR + 2 * SECOND)
        assert [at - NOON for at in ticks.called] == [HOUR, HOUR + SECOND, 2 * HOUR, 2 * HOUR + SECOND]
        assert type(error).__name__ in (await only(m)).error
        await clock.advance(HOUR)
        assert ticks == [NOON + 3 * HOUR]
    assert await lines(memory) == ["start", "fail", "fail"]


async def test_a_newer_tick_takes_the_place_of_one_that_fails(memory, clock):
    """With `one`: what failed counts as missed."""
    ticks = Failing(7)
    ticks.clock = clock
    async with manager(
        memory, clock, hourly(ticks, cron="* * * * *"), spec=flow(retry=TWICE.__class__(first=SECOND, jitter=0.0))
    ):
        await clock.advance(timedelta(minutes=5))
    assert ticks == [NOON + timedelta(minutes=n) for n in (3, 4, 5)]


@pytest.mark.parametrize(
    "answer",
    ["x", ("x",), ("x", Ctx(), 1), (7, Ctx()), ("", Ctx()), ("x", object())],
)
async def test_an_answer_that_is_none(memory, clock, answer):
    """The function's fault, told as such."""
    async with manager(memory, clock, hourly(Ticks(), start=lambda t: answer), spec=flow(retry=ONCE)) as m:
        await clock.advance(HOUR)
        state = await only(m)
        assert state.error is not None
        assert state.next_at == NOON + 2 * HOUR
    assert await lines(memory) == ["start", "fail"]
    assert await ids(memory) == []


async def test_an_event_that_is_none(memory, clock):
    """As `send_later` says."""
    async with manager(
        memory, clock, hourly(Ticks(), start=None, send=lambda t: ("i", "add", 1)), spec=flow(retry=ONCE)
    ) as m:
        await m.start("i")
        await clock.advance(HOUR)
        assert "TypeError" in (await only(m)).error


async def test_closing_while_a_start_does_not_come_through(memory, clock):
    """The row is handed back as if it had never been taken, and the next process fires it."""
    tap, ticks = Tap(memory), Ticks()

    async def away(commits: Any, **more: Any) -> None:
        if commits[0].changes[0].workflow == "flow":
            raise StoreUnavailable("away")

    tap.before["append"] = away
    async with manager(tap, clock, hourly(ticks), drain=timedelta(0)):
        advance = asyncio.create_task(clock.advance(HOUR))
        await until(lambda: ticks)
        advance.cancel()
    (loaded,) = await memory.load("flow.schedules/hourly", ("hourly",), rows=True)
    assert [(row.token, row.attempt, row.held) for row in loaded.rows] == [(None, 0, False)]
    ticks.clear()
    async with manager(memory, clock, hourly(ticks)) as m:
        await clock.advance(timedelta(0))
        assert (await only(m)).last_at == NOON + HOUR
    assert len(await ids(memory)) == 1
