"""The short runs; `python -m tests.fleet --long` is the long one."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.crash import place
from tests.fleet.fleet import Fleet, Trouble, fleet
from tests.fleet.journal import Deed
from tests.fleet.play import SHORT, WORKERS, play
from tests.fleet.verdict import Verdict, judge_deeds


@pytest.mark.timeout(150)  # it waits for most of its half minute; the machine may have other things to do
@pytest.mark.parametrize("store", WORKERS)
async def test_a_fleet_loses_nothing_and_doubles_nothing_without_a_reason(
    request: pytest.FixtureRequest, tmp_path: Path, store: str
) -> None:
    """Workers are killed and stopped, one every two seconds: all is finished, each effect was done."""
    if store == "postgres":
        place.note(tmp_path, request.getfixturevalue("postgres"))
    print(await play(tmp_path, WORKERS[store], SHORT[store]))  # noqa: T201  # what it came to


def _told(*deeds: tuple[float, str, str, int]) -> list[Deed]:
    return [Deed(*deed, key="k") for deed in deeds]


STOP, KILL = Trouble("a", "SIGSTOP", 10.0, 15.0), Trouble("a", "SIGKILL", 10.0, 10.0)
ONCE = _told((9.9, "a", "begun", 1), (9.95, "a", "done", 1))
AGAIN = _told((10.1, "b", "begun", 2), (10.2, "b", "done", 2))


@pytest.mark.parametrize(
    ("deeds", "troubles", "doubled"),
    [
        (ONCE, [], 0),
        (ONCE + AGAIN, [KILL], 1),
        (ONCE + AGAIN, [STOP], 1),
        (_told((15.1, "a", "begun", 1)) + AGAIN, [STOP], 1),
        (_told((1.0, "a", "begun", 1), (1.1, "a", "failed", 1)) + AGAIN, [], 0),
        (_told((1.0, "a", "begun", 1), (1.1, "a", "refused", 1)), [], 0),
    ],
)
def test_what_a_kill_a_stop_or_a_failure_explains(deeds: list[Deed], troubles: list[Trouble], doubled: int) -> None:
    """The verdict counts attempts too many, also that of a process which went on and found its lease gone."""
    verdict = Verdict(troubles)
    judge_deeds(deeds, {"k"}, verdict)
    assert verdict.doubled == doubled


@pytest.mark.parametrize(
    ("deeds", "troubles", "owed", "said"),
    [
        (ONCE, [], {"k", "l"}, "never run"),
        (ONCE, [], set[str](), "never owed"),
        (ONCE[:1], [KILL], {"k"}, "never done"),
        (ONCE + AGAIN, [], {"k"}, "nothing happened to a"),
        (ONCE + AGAIN, [Trouble("b", "SIGKILL", 10.0, 10.0)], {"k"}, "nothing happened to a"),
        (ONCE + AGAIN, [Trouble("a", "SIGKILL", 5.0, 5.0)], {"k"}, "nothing happened to a"),
        (ONCE + AGAIN, [Trouble("a", "SIGKILL", 20.0, 20.0)], {"k"}, "nothing happened to a"),
        (ONCE + _told((10.1, "b", "begun", 1)), [KILL], {"k"}, "two owners"),
    ],
)
def test_what_nothing_explains(deeds: list[Deed], troubles: list[Trouble], owed: set[str], said: str) -> None:
    """The verdict fails for an effect lost, done for no reason, or done by two owners of one lease."""
    with pytest.raises(AssertionError, match=said):
        judge_deeds(deeds, owed, Verdict(troubles))


async def test_no_worker_outlives_the_block(tmp_path: Path) -> None:
    """Also when the block fails, and one of them is stopped."""

    async def failing(crew: Fleet) -> None:
        await crew.ready()
        crew.hands[0].process.send_signal(signal.SIGSTOP)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), fleet(tmp_path, 2) as crew:
        await failing(crew)
    assert [hand.process.returncode for hand in crew.hands] == [-signal.SIGKILL] * 2


async def test_a_worker_that_ends_by_itself_is_told(tmp_path: Path) -> None:
    """Nobody mistakes it for one that was killed."""
    with fleet(tmp_path, 1) as crew:
        await crew.ready()
        crew.hands[0].process.terminate()
        with pytest.raises(AssertionError, match="w001 ended with 0"):
            await crew.watch()
