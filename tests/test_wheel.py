"""The wheel works alone: built from this tree, installed into a new venv, run outside of it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

STORY = """
import asyncio
import sys
from enum import StrEnum
from pathlib import Path

import stores
import workflow
from stores import MemoryStore, SQLiteStore
from workflow import Edge, Manager, Move, Spec
from workflow.testing import replay


class Door(StrEnum):
    SHUT = "shut"
    OPEN = "open"


class Act(StrEnum):
    PUSH = "push"


spec = Spec[Door, Act]("door", initial=Door.SHUT, final={Door.OPEN}, edges=[Edge(Door.SHUT, Act.PUSH, Door.OPEN)])
opened = []


@spec.on_enter(Door.OPEN)
async def ring(m: Move[Door, Act]) -> None:
    opened.append(m.id)


def drawers():
    yield MemoryStore()
    yield SQLiteStore("doors.db")
    for url, schema in [sys.argv[1:]] if sys.argv[1:] else ():
        yield stores.PostgresStore(url, schema=schema)


async def main():
    for store in drawers():
        async with Manager(spec, store) as doors:
            await doors.start("d-1")
            done = await doors.send("d-1", Act.PUSH, key="once")
            again = await doors.send("d-1", Act.PUSH, key="once")
            assert (done.state, done.duplicate, again.duplicate) == (Door.OPEN, False, True)
            assert replay(spec, await doors.history("d-1")).state is Door.OPEN
    assert opened == ["d-1"] * len(list(drawers()))


asyncio.run(main())
print(Path(workflow.__file__).parent.parent == Path(stores.__file__).parent.parent)
print(workflow.__file__)
"""


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    """What the command prints, without this process's Python settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=clean | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", out, cwd=ROOT)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_holds_both_packages_and_nothing_else(wheel: Path):
    """Engine, stores, their types and the licence; no tests, no examples."""
    names = zipfile.ZipFile(wheel).namelist()
    assert wheel.name.startswith("enumflow-")
    assert wheel.name.endswith("-py3-none-any.whl")
    for package in ("workflow", "stores"):
        sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / package).rglob("*.py")}
        assert sources | {f"{package}/py.typed"} == {name for name in names if name.startswith(f"{package}/")}
    assert {name.partition("/")[0] for name in names} == {
        "workflow",
        "stores",
        wheel.name.rsplit("-", 3)[0] + ".dist-info",
    }
    assert any(name.endswith("/licenses/LICENSE") for name in names)


@pytest.mark.timeout(180)
def test_the_wheel_works_alone(wheel: Path, tmp_path: Path, postgres: str, schema: str):
    """A new venv, the wheel with what it asks for, and a small workflow far from this tree; then PostgreSQL, too."""
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    (tmp_path / "story.py").write_text(STORY)
    for extra, where in (("", ()), ("[postgres]", (postgres, schema))):
        run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{wheel}{extra}", cwd=tmp_path)
        together, place = run(python, "-W", "error", "story.py", *where, cwd=tmp_path).splitlines()
        assert together == "True"
        assert place.startswith(str(tmp_path))
        (tmp_path / "doors.db").unlink()
