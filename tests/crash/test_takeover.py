from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from tests.crash import crew, place
from tests.crash.crew import COUNT, Crew, manager, spec
from workflow.clock import utcnow
from workflow.testing import FakeClock

ROOT = Path(__file__).parents[2]
HOOKS = 2


def _process(role: str, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-m", "tests.crash.crew", role, str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.fixture(params=["sqlite", "postgres"])
def left(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder in whose store a killed process left the hooks of many instances half done."""
    if request.param == "postgres":
        place.note(tmp_path, request.getfixturevalue("postgres"))
    with _process("leave", tmp_path) as process:
        process.communicate(timeout=40)
        assert process.returncode == -signal.SIGKILL
    return tmp_path


def _hear(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def _journal(folder: Path) -> list[list[str]]:
    return [line.split(" ", 1) for line in (folder / "hooks").read_text().splitlines()]


async def test_two_processes_that_resume_at_once_run_no_hook_twice(left: Path) -> None:
    """What one process takes over, another that looks at the same time leaves alone, however many both find."""
    with _process("take", left) as one, _process("take", left) as two:
        for step in ("open", "begun"):
            assert [_hear(process) for process in (one, two)] == [step, step]
            for process in (one, two):
                _tell(process)
            if step == "open":
                continue
        assert (one.wait(40), two.wait(40)) == (0, 0)
    ran = _journal(left)
    times = Counter(key for _, key in ran)
    assert len(times) == COUNT * HOOKS
    assert set(times.values()) == {1}
    assert len({pid for pid, _ in ran}) == 2
    async with manager(left) as last:
        assert (await last.resume()).effects == 0
        assert [(await last.get(f"i-{n:02}")).seq for n in range(COUNT)] == [1] * COUNT


@pytest.fixture
def here(left: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process is the one that goes on."""
    import asyncio

    go = asyncio.Event()
    go.set()
    monkeypatch.setattr(Crew, "folder", left, raising=False)
    monkeypatch.setattr(Crew, "go", go, raising=False)
    monkeypatch.setattr(Crew, "role", "take")
    monkeypatch.setattr(crew, "say", lambda word: None)
    return left


async def test_after_a_kill_on_this_host_nobody_waits_for_the_old_lease(here: Path) -> None:
    """The token of a dead process of this boot and namespace is known to be dead: its work is taken at once."""
    async with manager(here) as restarted:
        assert (await restarted.resume()).effects == COUNT * HOOKS


@pytest.mark.parametrize(
    ("known", "told"),
    [("pid:[", "pid:[9"), ("", "another-boot-"), ("", "?")],
    ids=["another pid namespace", "another boot", "a system that does not tell"],
)
async def test_of_a_process_elsewhere_only_the_end_of_its_lease_counts(here: Path, known: str, told: str) -> None:
    """A token from another boot or pid namespace is not called dead, though no such process is here."""
    if place.noted(here):
        changed = "replace(token, %s, %s)" if known else "%s::text || %s || token"
        place.execute(here, f"UPDATE {{}}.due SET token = {changed}", known, told)
    else:
        with sqlite3.connect(here / "store.db") as db:
            changed = "replace(token, ?1, ?2)" if known else "?1 || ?2 || token"
            db.execute(f"UPDATE due SET token = {changed}", (known, told))
        db.close()
    clock = FakeClock(utcnow())
    async with manager(here, clock=clock) as elsewhere:
        assert (await elsewhere.resume()).effects == 0
        await clock.advance(timedelta(minutes=59))
        assert (await elsewhere.resume()).effects == 0
        await clock.advance(timedelta(minutes=2))
        assert (await elsewhere.resume()).effects == COUNT * HOOKS
        assert (await elsewhere.store.next_due({spec.name: 1})).at is None
