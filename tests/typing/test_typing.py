"""The public types: correct code is never reported, each mistake is reported at its line by both checkers."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RIGHT, WRONG = HERE / "right.py", HERE / "wrong.py"

FOLLOWING = ("reportUnknown", "reportUntyped")
"""Rules that only follow from a mistake and do not name it."""

Report = tuple[str, int, str]
"""File, line, rule."""


def run(*command: str) -> str:
    """The output of a checker. Its exit code says only that something was reported."""
    env = os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1", "MYPY_FORCE_COLOR": "0"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def ask_pyright() -> Iterator[Report]:
    answer = json.loads(run("pyright", "--project", str(HERE), "--pythonpath", sys.executable, "--outputjson"))
    assert answer["summary"]["filesAnalyzed"] == 2
    for found in answer["generalDiagnostics"]:
        rule = found.get("rule", "no rule")
        if found["severity"] in ("error", "warning") and not rule.startswith(FOLLOWING):
            yield Path(found["file"]).name, found["range"]["start"]["line"] + 1, rule


def ask_mypy() -> Iterator[Report]:
    for line in run("mypy", "--output=json", str(RIGHT), str(WRONG)).splitlines():
        found = json.loads(line)
        if found["severity"] == "error":
            yield Path(found["file"]).name, found["line"], found["code"]


@pytest.fixture(scope="module", params=["pyright", "mypy"])
def checker(request: pytest.FixtureRequest) -> tuple[str, set[Report]]:
    """A checker's name and all that it reports, asked once for both files."""
    return request.param, set({"pyright": ask_pyright, "mypy": ask_mypy}[request.param]())


def marked(name: str) -> set[Report]:
    """What wrong.py says that the checker of this name must report."""
    return {
        (WRONG.name, number, rule)
        for number, line in enumerate(WRONG.read_text().splitlines(), 1)
        for said in re.findall(rf"# WRONG .*\b{name}=(\S+)", line)
        for rule in said.split(",")
    }


@pytest.mark.timeout(180)
def test_correct_uses_are_not_reported(checker: tuple[str, set[Report]]):
    """Whoever writes what the design shows never meets a report."""
    _, reports = checker
    assert {report for report in reports if report[0] != WRONG.name} == set()


@pytest.mark.timeout(180)
def test_each_mistake_is_reported_at_its_line(checker: tuple[str, set[Report]]):
    """Exactly the marked lines are reported, by exactly the marked rules."""
    name, reports = checker
    assert {report for report in reports if report[0] == WRONG.name} == marked(name)


def test_both_checkers_are_held_to_the_same_mistakes():
    """No mistake is known to one checker only, and there are enough of them to mean something."""
    lines = {line for _, line, _ in marked("pyright")}
    assert lines == {line for _, line, _ in marked("mypy")}
    assert len(lines) >= 50


async def test_decorated_hooks_are_called_as_they_were_written():
    """A decorator hands the function back unchanged: a unit test awaits it with a move of its own making."""
    await runpy.run_path(str(RIGHT))["unit_test_of_hooks"]()
