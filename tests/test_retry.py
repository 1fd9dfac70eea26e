"""When a failed effect comes due again, and when it does not."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflow.retry import Permanent, Retry

SECOND = timedelta(seconds=1)


def test_pauses_grow_by_the_factor_up_to_the_limit():
    """Attempt n is followed by first * factor**(n-1), at most max."""
    retry = Retry(first=SECOND, factor=3, max=timedelta(seconds=20), jitter=0)
    assert [retry.pause(n, 0.5) / SECOND for n in range(1, 6)] == [1, 3, 9, 20, 20]


def test_the_default_lasts_about_eight_hours():
    """An outage over night is survived without anybody's help."""
    retry = Retry()
    whole = sum((retry.pause(n, 0.5) for n in range(1, retry.attempts)), timedelta())
    assert timedelta(hours=7.5) < whole < timedelta(hours=8.5)


@pytest.mark.parametrize(("dice", "share"), [(0.0, 0.8), (0.5, 1.0), (1.0, 1.2)])
def test_jitter_spreads_both_ways(dice: float, share: float):
    """A thousand instances that failed together do not come back together."""
    assert Retry(first=10 * SECOND, jitter=0.2).pause(1, dice) == 10 * share * SECOND


def test_a_pause_is_never_zero():
    """What failed at an instant must not be due at the same instant again, or a test's clock would stand still."""
    assert Retry(first=timedelta(0)).pause(1, 0.5) > timedelta(0)
    assert Retry(first=SECOND, jitter=1).pause(1, 0.0) > timedelta(0)
    assert Retry(max=timedelta(0)).pause(7, 0.5) > timedelta(0)


@given(
    st.builds(
        Retry,
        first=st.timedeltas(timedelta(0), timedelta(days=9)),
        factor=st.floats(1, 1e300),
        max=st.timedeltas(timedelta(0), timedelta(days=9)),
        jitter=st.floats(0, 1),
    ),
    st.integers(1, 1000),
    st.floats(0, 1, exclude_max=True),
)
def test_property_a_pause_stays_within_its_bounds(retry: Retry, attempt: int, dice: float):
    """No setting overflows, none waits longer than max and its jitter."""
    assert timedelta(0) < retry.pause(attempt, dice) <= max(retry.max * 2, timedelta(milliseconds=1))


@pytest.mark.parametrize(
    ("error", "attempt", "again"),
    [
        (OSError(), 1, True),
        (ConnectionError(), 2, True),
        (OSError(), 3, False),
        (KeyError(), 1, False),
        (Permanent("no"), 1, False),
        (KeyboardInterrupt(), 1, False),
    ],
    ids=["first", "subclass", "last attempt", "other error", "permanent", "not an Exception"],
)
def test_who_is_tried_again(error: BaseException, attempt: int, again: bool):
    """Only errors of the named kinds, only while attempts are left, never what calls itself permanent."""
    assert Retry(attempts=3, on=OSError).again(error, attempt) is again


def test_permanent_is_permanent_whatever_is_tried_again():
    """Permanent is an Exception too, and still never retried."""
    assert not Retry(on=(Permanent, Exception)).again(Permanent(), 1)


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0},
        {"attempts": -1},
        {"first": timedelta(seconds=-1)},
        {"factor": 0.5},
        {"factor": float("nan")},
        {"max": timedelta(seconds=-1)},
        {"jitter": -0.1},
        {"jitter": 1.5},
    ],
    ids=str,
)
def test_options_are_checked_when_given(options: dict[str, Any]):
    """A senseless option is told at its line, not at the first failure months later."""
    with pytest.raises(ValueError, match=next(iter(options))):
        Retry(**options)


@pytest.mark.parametrize("option", ["first", "max"])
def test_pauses_are_timedeltas(option: str):
    """A bare number has no unit: it is refused with the option's name."""
    for number in (1, 0.5, None):
        with pytest.raises(TypeError, match=f"'{option}' must be .*timedelta"):
            Retry(**{option: number})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_one_option_leaves_the_others():
    """Defaults stand field by field."""
    assert Retry(attempts=3) == Retry(
        attempts=3, first=SECOND, factor=2.0, max=timedelta(hours=1), jitter=0.1, on=Exception
    )


def test_retry_is_frozen():
    """It is shared by all instances of a spec."""
    with pytest.raises(AttributeError):
        Retry().attempts = 3  # type: ignore[misc]  # that is what is refused
