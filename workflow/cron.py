"""Cron: at which instants a schedule ticks. Pure, but for the zones that the system knows.

Daylight saving as in Debian's cron. A tick at a fixed hour and minute that the clocks skip in spring
comes when they go on, one that they show twice in autumn comes once, the first time. Where hour or
minute begin with a star, what counts is elapsed time: every hour is an hour, also the doubled one.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from enum import Enum
from typing import Any, Generic, Literal, Never, TypeAlias, cast, get_args

from attrs import field, frozen
from typing_extensions import TypeVar

# `cronsim` and `zoneinfo` are imported where a schedule is made: who has none does not wait for them.

E_co = TypeVar("E_co", bound=Enum, covariant=True, default=Never)
C_co = TypeVar("C_co", covariant=True, default=Never)

CatchUp: TypeAlias = Literal["one", "all", "none"]
NAME_LIMIT = 400
"""Longest name of a schedule, in bytes of UTF-8: its ticks' keys hold a time besides."""
_FIELDS = 5
_SECOND, _MINUTE, _DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)
_A_DATE = datetime(2000, 1, 1, tzinfo=UTC)


@frozen
class Schedule(Generic[E_co, C_co]):
    """At each tick of `cron` an instance is started, or an event sent.

    `cron` has five fields (minute, hour, day, month, weekday; `L`, `LW` and `MON#2` are understood),
    read in the time zone `tz`. `start` answers the id and the context of the instance to start; an id
    that exists already is no error. `send` answers id, event and payload; what the spec refuses is a
    `refused` line. Both are told the tick's time (aware, in `tz`), are called on the event loop and
    perhaps more than once for a tick: they must be quick and only depend on that time.

    `catch_up` says what becomes of ticks that no process was there for: "one": the latest of them is
    made up for, "all": each, "none": none that is late by more than two leases of the Manager.

    Raises ValueError, TypeError for what cannot be kept.
    """

    name: str
    cron: str
    tz: str = field(default="UTC", kw_only=True)
    start: Callable[[datetime], tuple[str, C_co]] | None = field(default=None, kw_only=True)
    send: Callable[[datetime], tuple[str, E_co, Any]] | None = field(default=None, kw_only=True)
    catch_up: CatchUp = field(default="one", kw_only=True)

    def __attrs_post_init__(self) -> None:
        """Refuse at once what would never tick."""
        _check_name(self.name)
        if (self.start is None) == (self.send is None):
            raise ValueError(f"schedule {self.name!r} needs either start= or send=")
        call = cast("object", self.send if self.start is None else self.start)
        if not callable(call) or inspect.iscoroutinefunction(call):
            raise TypeError(f"schedule {self.name!r}: start and send take plain functions of the tick, not {call!r}")
        if self.catch_up not in get_args(CatchUp):
            raise ValueError(f"schedule {self.name!r}: catch_up is one of {get_args(CatchUp)}, not {self.catch_up!r}")
        try:
            following(self.cron, self.tz, _A_DATE)
        except (ValueError, TypeError) as e:
            raise type(e)(f"schedule {self.name!r}: {e}") from e


def following(cron: str, tz: str, after: datetime) -> datetime:
    """The first tick after an instant, in UTC. Raises ValueError for a cron or a zone that is none."""
    if not isinstance(cron, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
        raise TypeError(f"cron must be a str, not {cron!r}")
    fields = cron.split()
    if len(fields) != _FIELDS:
        raise ValueError(f"cron {cron!r} must have {_FIELDS} fields: minute, hour, day, month, weekday")
    from cronsim import CronSimError

    there, after = zone(tz), after.astimezone(UTC)
    fixed = not (fields[0].startswith("*") or fields[1].startswith("*"))
    try:
        return _fixed(cron, there, after) if fixed else _elapsed(cron, there, after)
    except (CronSimError, AssertionError) as e:
        raise ValueError(f"cron {cron!r} cannot be read: {e or 'a step of what has none'}") from e
    except StopIteration:
        raise ValueError(f"cron {cron!r} never ticks") from None


def latest(cron: str, tz: str, tick: datetime, now: datetime) -> datetime:
    """The last tick up to now, given an earlier one. Its cost hardly grows with what lies between."""
    low, high = tick, now
    while following(cron, tz, low) <= now:
        middle = low + (high - low) / 2
        later = following(cron, tz, middle)
        if later <= now:
            low = later
        else:
            high = middle
    return low


def due(cron: str, tz: str, tick: datetime, now: datetime, catch_up: CatchUp, grace: timedelta) -> datetime | None:
    """Which tick is to be fired now, where `tick` is the first that was not; None: none of those missed."""
    if tick > now:
        return None
    match catch_up:
        case "all":
            return tick
        case "one":
            return latest(cron, tz, tick, now)
        case "none":
            early = now - grace
            if tick < early:
                tick = following(cron, tz, early - timedelta(microseconds=1))
            return tick if tick <= now else None


def zone(tz: str) -> tzinfo:
    """The time zone of this name. Raises ValueError."""
    if tz == "UTC":  # needs no database of zones
        return UTC
    from zoneinfo import ZoneInfo

    if not isinstance(tz, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
        raise TypeError(f"tz must be the name of a zone, not {tz!r}")
    try:
        return ZoneInfo(tz)
    except (LookupError, ValueError, OSError) as e:
        raise ValueError(
            f"no time zone {tz!r} is known here; if that is its name, the system has no zones: pip install tzdata"
        ) from e


# `cronsim` is asked about times without a zone only: with one it can go round for ever (where clocks are
# set at 00:01), and steps over half an hour's change.


def _fixed(cron: str, there: tzinfo, after: datetime) -> datetime:
    """The first tick of a cron that names hours and minutes: what clocks show counts."""
    from cronsim import CronSim

    walls = CronSim(cron, after.astimezone(there).replace(tzinfo=None))
    while True:
        tick = _instant(next(walls), there)
        if tick > after:  # not so where the clocks show a time twice and this is the second
            return tick


def _instant(wall: datetime, there: tzinfo) -> datetime:
    """When clocks there show this time: the first of two times, or the end of the gap that leaves it out."""
    while True:
        instant = wall.replace(tzinfo=there).astimezone(UTC)
        if instant.astimezone(there).replace(tzinfo=None, fold=0) == wall:
            return instant
        wall += _MINUTE


def _elapsed(cron: str, there: tzinfo, after: datetime) -> datetime:
    """The first tick of a cron with a star: each instant at which clocks there show a time that fits."""
    from cronsim import CronSim

    since = after
    while True:
        offset = since.astimezone(there).utcoffset() or timedelta(0)
        tick = next(CronSim(cron, (after + offset).replace(tzinfo=None))).replace(tzinfo=UTC) - offset
        change = _change(there, since, tick)
        if change is None:
            return tick
        since, after = change, change - _SECOND


def _change(there: tzinfo, since: datetime, until: datetime) -> datetime | None:
    """The first instant after `since`, up to `until`, at which clocks there are set."""
    if there is UTC:
        return None
    low = since.replace(microsecond=0)
    offset = low.astimezone(there).utcoffset()
    while low < until:
        high = min(low + _DAY, until)
        if high.astimezone(there).utcoffset() != offset:
            break
        low = high
    else:
        return None
    while high - low > _SECOND:
        middle = low + (high - low) // (2 * _SECOND) * _SECOND
        if middle.astimezone(there).utcoffset() == offset:
            low = middle
        else:
            high = middle
    return high


def _check_name(name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"a schedule's name must be a str, not {name!r}")
    size = len(name.encode(errors="replace"))
    if not 0 < size <= NAME_LIMIT or "\0" in name or not name.isprintable():
        raise ValueError(f"a schedule's name must have 1 to {NAME_LIMIT} bytes of printable text, not {name!r}")
