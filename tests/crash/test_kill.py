from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from tests.crash import place
from tests.crash.play import EPOCH, LEASE, Cast, Scene, set_scene, spec
from workflow import Manager
from workflow.testing import replay

ROOT = Path(__file__).parents[2]
DISTINCT = 40
IDS = ("o-1", "o-2", "o-3")
Trace = list[tuple[str, str, str]]


class Zygote:
    """Children on order."""

    def __init__(self, process: subprocess.Popen[str], server: str | None) -> None:
        self._in, self._out, self._server = process.stdin, process.stdout, server
        self.every = 1 if server is None else 4  # a connection is dear: a server's kills are sampled

    def order(self, folder: Path, kill: int | None) -> None:
        """Have a child play in this folder."""
        folder.mkdir()
        if self._server is not None:
            place.note(folder, self._server)
        assert self._in is not None
        self._in.write(json.dumps({"folder": str(folder), "kill": kill}) + "\n")
        self._in.flush()

    def ended(self) -> int:
        """How the child of the oldest order ended."""
        assert self._out is not None
        return int(self._out.readline())


@pytest.fixture(params=["sqlite", "postgres"])
def zygote(request: pytest.FixtureRequest) -> Iterator[Zygote]:
    server = request.getfixturevalue("postgres") if request.param == "postgres" else None
    command = [sys.executable, "-W", "error", "-m", "tests.crash.zygote"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Zygote(process, server)
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.timeout(400)
def test_a_kill_at_any_boundary_loses_nothing_and_doubles_nothing(tmp_path: Path, zygote: Zygote) -> None:
    """Whatever boundary a process is killed at, the next one on the store finishes the work as if nothing had happened."""
    zygote.order(tmp_path / "whole", None)
    assert zygote.ended() == 0
    trace: Trace = [tuple(mark) for mark in json.loads((tmp_path / "whole" / "trace").read_text())]
    distinct = Counter((what, when) for what, when, _ in trace)
    assert len(distinct) >= DISTINCT, distinct
    kills = _chosen(trace, every=zygote.every)
    with asyncio.Runner() as runner:
        whole, owed = runner.run(_whole(tmp_path / "whole"))
        zygote.order(tmp_path / "0", 0)
        for kill, following in zip(kills, [*kills[1:], None], strict=True):
            assert zygote.ended() == -signal.SIGKILL, f"boundary {kill}, {trace[kill]}"
            if following is not None:
                zygote.order(tmp_path / str(following), following)  # it plays while this one is looked at
            try:
                runner.run(_recovered(tmp_path / str(kill), trace[: kill + 1], whole, owed))
            except BaseException as e:
                e.add_note(f"killed at boundary {kill}: {' '.join(trace[kill])}")
                raise
    print(f"{len(kills)} kills at {len(distinct)} distinct boundaries")  # noqa: T201


def _chosen(trace: Trace, every: int) -> list[int]:
    """The boundaries at which to kill: each kind where it comes first, and of all the others one in `every`."""
    firsts = {(what, when): n for n, (what, when, _) in reversed([*enumerate(trace)])}
    return sorted({*firsts.values(), *range(0, len(trace), every)})


async def _whole(folder: Path) -> tuple[dict[str, list[Any]], set[str]]:
    """The histories when nobody is killed, and the keys of all hooks that their lines owe."""
    store = place.store(folder)
    async with Manager(spec, store, work=False) as manager:
        lines = [line for id in IDS for line in await store.history(spec.name, id)]
        owed = {f"{line.workflow}/{line.id}/{line.seq}/{name}" for line in lines for name in line.owes}
        return {id: [_bare(line) for line in await manager.history(id)] for id in IDS}, owed


def _bare(line: Any) -> Any:
    """A line without the time and the hand that wrote it."""
    return replace(line, at=EPOCH, by="")


async def _recovered(folder: Path, passed: Trace, whole: dict[str, list[Any]], owed: set[str]) -> None:
    """Go on from where the child died, and check that the end is the same."""
    scene = Scene(folder, seconds=10)  # well before any lease of the child's ends
    assert scene.read("killed") == [" ".join(passed[-1])]
    before = scene.read("hooks")
    set_scene(scene)
    store = place.store(folder)
    async with Manager(spec, store, clock=scene.clock, work=False, lease=LEASE) as manager:
        await manager.resume()
        scene.clock.advance(2)  # what failed now, for the first time
        await manager.resume()
        cast = Cast(manager, scene)
        await cast.play()
        assert {name: cast.answers[name] for name in cast.known} == cast.known, "an answered line is another one now"
        for id in IDS:
            history = await manager.history(id)
            assert [line.seq for line in history] == list(range(1, len(history) + 1))
            assert replay(spec, history) == await manager.get(id)
            assert [_bare(line) for line in history] == whole[id]
        wake = await store.next_due({spec.name: spec.version})
        assert (wake.at, wake.tokens) == (None, frozenset()), "something is left due"
    _ran_as_owed(before, scene.read("hooks"), _interrupted(passed), owed, amid=passed[-1][1] == "amid")


def _interrupted(passed: Trace) -> str | None:
    """The hook between whose start and settlement the kill fell."""
    key = None
    for what, when, hook in passed:
        if what.startswith("append") and when == "after":
            key = None
        elif when == "inside":
            key = hook
    return key


def _ran_as_owed(before: list[str], journal: list[str], interrupted: str | None, owed: set[str], *, amid: bool) -> None:
    """Each hook once, once more for each recorded failure, and once more where its settlement was cut off: amid its
    commit, perhaps."""
    counts = Counter(tuple(entry.split(" ", 1)) for entry in journal)
    assert {key for _, key in counts} == owed
    for key in owed:
        cut = interrupted == key
        failed_then = cut and before[-1] == f"fail {key}"
        ended_then = cut and before[-1] == f"end {key}"
        starts, ends = counts["start", key] - 1 - counts["fail", key], counts["end", key] - 1
        expected = cut and not failed_then, ended_then
        assert (starts, ends) == expected or (amid and (starts, ends) == (0, 0)), key
