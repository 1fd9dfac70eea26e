"""At which instants a schedule ticks, and what a schedule may not be."""

from __future__ import annotations

import zoneinfo
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow.cron import Schedule, due, following, latest

HOUR = timedelta(hours=1)
BERLIN = "Europe/Berlin"
ZONES = [
    "UTC",
    BERLIN,
    "America/New_York",
    "Africa/Cairo",
    "Asia/Kolkata",
    "America/Havana",
    "Pacific/Apia",
    "Asia/Gaza",
]
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def ticks(cron: str, tz: str, after: datetime, count: int) -> list[str]:
    """So many ticks, in local time with its offset."""
    found = []
    for _ in range(count):
        after = following(cron, tz, after)
        found.append(after.astimezone(zoneinfo.ZoneInfo(tz)).strftime("%Y-%m-%d %H:%M %z"))
    return found


def started(tick: datetime) -> tuple[str, None]:
    return f"n-{tick:%F}", None


# --- ticks ----------------------------------------------------------------------------------------


def test_a_tick_is_in_utc_and_never_the_instant_asked_after():
    """Else a schedule would fire its tick for ever."""
    tick = following("0 2 * * *", BERLIN, NOON)
    assert (tick, tick.tzinfo) == (datetime(2030, 1, 2, 1, tzinfo=UTC), UTC)
    assert following("0 2 * * *", BERLIN, tick) == tick + timedelta(days=1)
    assert following("0 2 * * *", BERLIN, tick - timedelta(microseconds=1)) == tick
    assert following("0 2 * * *", BERLIN, tick + timedelta(microseconds=1)) == tick + timedelta(days=1)
    assert following("0 2 * * *", BERLIN, tick.astimezone(timezone(HOUR))) == tick + timedelta(days=1)


def test_a_tick_that_the_clocks_skip_comes_when_they_go_on():
    """In Berlin 02:30 of 31 March 2030 does not exist."""
    before = datetime(2030, 3, 29, 12, tzinfo=UTC)
    assert ticks("30 2 * * *", BERLIN, before, 3) == [
        "2030-03-30 02:30 +0100",
        "2030-03-31 03:00 +0200",
        "2030-04-01 02:30 +0200",
    ]


def test_several_that_are_skipped_come_as_one():
    """02:15, 02:30 and 03:00 are one instant then."""
    before = datetime(2030, 3, 31, 0, 30, tzinfo=UTC)
    assert ticks("15,30 2 * * *", BERLIN, before, 2) == ["2030-03-31 03:00 +0200", "2030-04-01 02:15 +0200"]
    assert ticks("0,30 2,3 * * *", BERLIN, before, 3) == [
        "2030-03-31 03:00 +0200",
        "2030-03-31 03:30 +0200",
        "2030-04-01 02:00 +0200",
    ]


def test_a_time_that_the_clocks_show_twice_ticks_once():
    """In Berlin 27 October 2030 has 02:30 twice; asked between the two as well."""
    before = datetime(2030, 10, 26, 12, tzinfo=UTC)
    assert ticks("30 2 * * *", BERLIN, before, 2) == ["2030-10-27 02:30 +0200", "2030-10-28 02:30 +0100"]
    for minutes in (0, 1, 29, 30, 45, 60, 89, 90):
        between = datetime(2030, 10, 27, 0, 30, tzinfo=UTC) + timedelta(minutes=minutes)
        assert ticks("30 2 * * *", BERLIN, between, 1) == ["2030-10-28 02:30 +0100"]


def test_every_hour_is_every_hour():
    """With a star elapsed time counts: no hour too long, none too short."""
    for change in (datetime(2030, 3, 31, tzinfo=UTC), datetime(2030, 10, 27, tzinfo=UTC)):
        tick = change - 3 * HOUR
        for _ in range(8):
            later = following("0 * * * *", BERLIN, tick)
            assert later - tick == HOUR
            tick = later
    assert following("*/20 * * * *", BERLIN, datetime(2030, 10, 27, 0, 50, tzinfo=UTC)).minute == 0


def test_a_day_that_never_was():
    """Samoa went from 29 to 31 December 2011; what was due on the 30th comes as the 31st begins."""
    before = datetime(2011, 12, 29, 12, tzinfo=UTC)
    assert ticks("0 12 * * *", "Pacific/Apia", before, 3) == [
        "2011-12-29 12:00 -1000",
        "2011-12-31 00:00 +1400",
        "2011-12-31 12:00 +1400",
    ]


def test_leap_days():
    """29 February, over a century that has none, too."""
    assert [t[:16] for t in ticks("0 0 29 2 *", "UTC", NOON, 2)] == ["2032-02-29 00:00", "2036-02-29 00:00"]
    before = datetime(2096, 3, 1, tzinfo=UTC)
    assert [t[:16] for t in ticks("0 0 29 2 *", BERLIN, before, 1)] == ["2104-02-29 00:00"]


def test_ends_of_months_and_weekdays():
    """`L`, `LW`, `#`, names; day and weekday are either-or unless one begins with a star."""
    assert [t[:10] for t in ticks("0 0 L * *", "UTC", NOON, 3)] == ["2030-01-31", "2030-02-28", "2030-03-31"]
    assert [t[:10] for t in ticks("0 0 31 * *", "UTC", NOON, 3)] == ["2030-01-31", "2030-03-31", "2030-05-31"]
    assert [t[:10] for t in ticks("0 0 * * MON#2", "UTC", NOON, 2)] == ["2030-01-14", "2030-02-11"]
    assert [t[:10] for t in ticks("0 0 13 * FRI", "UTC", NOON, 3)] == ["2030-01-04", "2030-01-11", "2030-01-13"]


MINUTES = st.sampled_from(["*", "*/7", "0", "30", "5,35", "15-20"])
HOURS = st.sampled_from(["*", "*/5", "0", "2", "2,3", "0-4", "23", "1"])
DAYS = st.sampled_from(["*", "1", "29", "L", "30,31", "*/2"])
MONTHS = st.sampled_from(["*", "2", "3,10", "*/4", "4-11"])
WEEKDAYS = st.sampled_from(["*", "SUN", "1-5", "MON#1", "7"])
CRONS = st.tuples(MINUTES, HOURS, DAYS, MONTHS, WEEKDAYS).map(" ".join)
INSTANTS = st.integers(0, 32 * 365 * 24 * 60).map(lambda m: datetime(2005, 1, 1, tzinfo=UTC) + timedelta(minutes=m))


def steady(cron: str) -> bool:
    """Can it tick at all?"""
    try:
        following(cron, "UTC", NOON)
    except ValueError:
        return False
    return True


@given(CRONS.filter(steady), st.sampled_from(ZONES), INSTANTS)
def test_the_next_is_after_and_strictly_increasing(cron, tz, after):
    """And nothing lies between: asked anywhere before the next, the answer is the next."""
    first = following(cron, tz, after)
    assert first > after
    second = following(cron, tz, first)
    assert second > first
    for share in (0.0, 0.3, 0.9):
        assert following(cron, tz, first + (second - first) * share) == second
    assert following(cron, tz, second - timedelta(microseconds=1)) == second


CHANGES = [datetime(2030, 3, 30, 22, tzinfo=UTC), datetime(2030, 10, 26, 22, tzinfo=UTC)]


@given(CRONS.filter(steady), st.sampled_from(CHANGES), st.integers(0, 8 * 60))
def test_both_changes_of_the_clocks(cron, night, minutes):
    """The same, in the nights that matter."""
    after = night + timedelta(minutes=minutes)
    first = following(cron, BERLIN, after)
    second = following(cron, BERLIN, first)
    assert after < first < second
    for share in (0.1, 0.5, 0.99):
        assert following(cron, BERLIN, first + (second - first) * share) == second


@given(CRONS.filter(steady), st.sampled_from(ZONES), INSTANTS, st.timedeltas(timedelta(0), timedelta(days=3)))
def test_the_latest_is_what_counting_finds(cron, tz, after, span):
    """However many were missed."""
    first = following(cron, tz, after)
    now = first + span
    last, tick = first, first
    for _ in range(500):
        tick = following(cron, tz, tick)
        if tick > now:
            break
        last = tick
    else:
        return
    assert latest(cron, tz, first, now) == last


def test_the_latest_of_very_many_is_found_in_no_time(monkeypatch):
    """A schedule of every minute that slept for years must not count half a million ticks."""
    import workflow.cron as room

    asked = []

    def counted(*args: Any) -> datetime:
        asked.append(args)
        return following(*args)

    monkeypatch.setattr(room, "following", counted)
    tick = datetime(2020, 1, 1, tzinfo=UTC)
    assert latest("* * * * *", BERLIN, tick, NOON) == NOON
    assert latest("* 9-16 * * 1-5", BERLIN, tick, NOON) == NOON
    assert len(asked) < 300


# --- missed ticks ---------------------------------------------------------------------------------

HOURLY = ("0 * * * *", "UTC")
LATE = NOON + 5 * HOUR + timedelta(minutes=10)


@pytest.mark.parametrize(
    ("catch_up", "now", "expected"),
    [
        ("one", NOON - HOUR, None),
        ("one", NOON, NOON),
        ("one", LATE, NOON + 5 * HOUR),
        ("all", NOON - HOUR, None),
        ("all", LATE, NOON),
        ("none", NOON, NOON),
        ("none", NOON + timedelta(minutes=1), NOON),
        ("none", NOON + timedelta(minutes=1, microseconds=1), None),
        ("none", LATE, None),
        ("none", NOON + 5 * HOUR + timedelta(seconds=59), NOON + 5 * HOUR),
    ],
)
def test_what_becomes_of_missed_ticks(catch_up, now, expected):
    """The latest, each, or none but those just due."""
    assert due(*HOURLY, NOON, now, catch_up, timedelta(minutes=1)) == expected


# --- what a schedule may not be -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "match", "arguments"),
    [
        (ValueError, "5 fields", {"cron": "* * * *"}),
        (ValueError, "5 fields", {"cron": "@daily"}),
        (ValueError, "5 fields", {"cron": "0 * * * * *"}),
        (ValueError, "5 fields", {"cron": ""}),
        (ValueError, "minute", {"cron": "60 * * * *"}),
        (ValueError, "day-of-month", {"cron": "0 0 30 2 *"}),
        (ValueError, "cannot be read", {"cron": "0 L/2 * * *"}),
        (TypeError, "cron must be", {"cron": None}),
        (ValueError, "Mars/Base.*tzdata", {"tz": "Mars/Base"}),
        (ValueError, "no time zone", {"tz": ""}),
        (ValueError, "no time zone", {"tz": "../etc/passwd"}),
        (ValueError, "no time zone", {"tz": "Europe"}),
        (TypeError, "tz must be", {"tz": UTC}),
        (ValueError, "either start= or send=", {"start": None}),
        (ValueError, "either start= or send=", {"send": started}),
        (TypeError, "plain functions", {"start": "n-1"}),
        (ValueError, "catch_up", {"catch_up": "two"}),
        (ValueError, "1 to 400", {"name": ""}),
        (ValueError, "1 to 400", {"name": "ä" * 201}),
        (ValueError, "printable", {"name": "a\nb"}),
        (TypeError, "name must be a str", {"name": 7}),
    ],
)
def test_what_would_never_tick_is_refused_at_once(error, match, arguments):
    """With a sentence that names the schedule and what is wrong."""
    given: dict[str, Any] = {"name": "nightly", "cron": "0 2 * * *", "start": started} | arguments
    with pytest.raises(error, match=match):
        Schedule(**given)


def test_no_async_functions():
    """They are called on the loop between two commits; whoever must wait does it in a hook."""

    async def later(tick: datetime) -> tuple[str, None]:
        return "x", None

    with pytest.raises(TypeError, match="plain functions"):
        Schedule("nightly", "0 2 * * *", start=later)  # type: ignore[arg-type]


@given(st.text("0123456789*/,-L#W MONFR?", max_size=24))
def test_any_text_is_read_or_refused(cron):
    """Whatever is written there, nothing but a ValueError."""
    try:
        schedule = Schedule("n", cron, start=started)
    except ValueError:
        return
    assert following(schedule.cron, schedule.tz, NOON) > NOON


def test_utc_needs_no_zones(monkeypatch):
    """Slim images and Windows have none; a schedule in UTC is the same everywhere."""
    monkeypatch.setattr(zoneinfo, "ZoneInfo", None)
    assert following("0 2 * * *", "UTC", NOON) == datetime(2030, 1, 2, 2, tzinfo=UTC)


def test_a_schedule_is_frozen_and_equal_by_its_fields():
    """It may be shared by Managers."""
    one, two = (Schedule("n", "0 2 * * *", tz=BERLIN, start=started) for _ in range(2))
    assert one == two
    with pytest.raises(AttributeError):
        one.cron = "* * * * *"  # type: ignore[misc]
