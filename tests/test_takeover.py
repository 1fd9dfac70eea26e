"""Several processes on one store: who takes over what from whom."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests import crew
from tests.crash import place
from tests.crew import ATTEMPTS, Event, drawn, journal
from tests.flows import MINUTE, SECOND, E, Gate, S, flow, until
from workflow import Manager, Status
from workflow.peers import BEAT, Peers
from workflow.testing import replay

ROOT = Path(__file__).parents[1]
HOUR = timedelta(hours=1)


@pytest.fixture(params=["sqlite", "postgres"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder whose store processes share."""
    if request.param == "postgres":
        place.note(tmp_path, request.getfixturevalue("postgres"))
    return tmp_path


@contextmanager
def process(folder: Path, *arguments: str, **more: Any) -> Generator[subprocess.Popen[str]]:
    """A process of ours, which does not outlive the block."""
    command = [sys.executable, "-W", "error", "-m", *arguments]
    environment = os.environ | {"CREW": str(folder)}
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **more) as child:
        try:
            yield child
        finally:
            if child.poll() is None:
                child.send_signal(signal.SIGCONT)
                child.kill()


def holder(folder: Path, lease: float) -> Any:
    """A process in whose hook an instance is."""
    return process(folder, "tests.crew", "hold", str(folder), str(lease))


def works(folder: Path, target: str = "tests.crew:worker", **more: Any) -> Any:
    """A process that works."""
    return process(folder, "workflow", "work", target, **more)


async def ended(child: subprocess.Popen[str]) -> int:
    """Its exit code."""
    async with asyncio.timeout(20):
        while child.poll() is None:  # noqa: ASYNC110  # it is another process
            await asyncio.sleep(0.01)
    assert child.returncode is not None
    return child.returncode


async def noted(folder: Path, child: subprocess.Popen[str], text: str) -> None:
    """Wait until the journal has this line of it."""
    async with asyncio.timeout(20):
        while [str(child.pid), text] not in journal(folder):  # noqa: ASYNC110  # the same
            await asyncio.sleep(0.01)


class Heir:
    """This process's Manager at the same workflow, and what its hook did."""

    def __init__(self, folder: Path, lease: timedelta) -> None:
        self.attempts: list[int] = []
        self.ended = asyncio.Event()

        async def hook(m: Any) -> None:
            self.attempts.append(m.attempt)
            m.update(lambda _: os.getpid())
            self.ended.set()

        hook.__qualname__ = "hook"
        self.manager: Any = Manager(drawn(hook), place.store(folder), lease=lease)

    async def stands(self) -> None:
        """What this process did is what counts."""
        head = await self.manager.settled("i", timeout=10)
        assert (head.status, head.context) == (Status.FINISHED, os.getpid())
        history = await self.manager.history("i")
        assert [line.kind for line in history] == ["start", "event", "update"]
        assert replay(self.manager.spec, history) == head


async def test_a_process_that_died_on_this_host_is_noticed_without_its_lease(shared: Path):
    """A peer that works takes over at once, though the lease would last for an hour and nobody calls."""
    heir = Heir(shared, HOUR)
    async with heir.manager:
        with holder(shared, 3600) as child:
            await noted(shared, child, "begins 1")
            await asyncio.sleep(1)  # the heir has slept since: nothing is due for an hour
            assert heir.attempts == []
            child.kill()
            child.wait()
            async with asyncio.timeout(10):
                await heir.ended.wait()
        await heir.stands()
        assert heir.attempts == [2]


@pytest.mark.parametrize("ends", [False, True], ids=["its hook goes on", "its hook ends at once"])
async def test_a_process_that_was_stopped_past_its_lease_cannot_write(shared: Path, ends: bool):
    """It lives, so only its lease counts; when it wakes its hook is cancelled or its result dropped, and the sender
    hears that the lease was lost."""
    heir = Heir(shared, SECOND)
    async with heir.manager:
        with holder(shared, 1) as child:
            await noted(shared, child, "begins 1")
            child.send_signal(signal.SIGSTOP)
            async with asyncio.timeout(15):
                await heir.ended.wait()
            await heir.stands()
            if ends:
                (shared / "go").touch()
            child.send_signal(signal.SIGCONT)
            assert await ended(child) == 0
        told = [text for pid, text in journal(shared) if pid == str(child.pid)]
        assert told[-1] == "lost True"
        assert ends or "cancelled" in told
        assert heir.attempts == [2]
        await heir.stands()


async def test_two_processes_that_work_run_no_hook_twice(shared: Path):
    """Old and new process of one name at once, and one of them ends amid the work: each hook runs once; at SIGTERM
    both end with 0."""
    count, more = 60, 0
    async with Manager(drawn(crew.brief), place.store(shared), work=False, inline=False) as service:
        with works(shared) as old, works(shared) as new:
            for n in range(count):
                await service.send(f"i-{n:02}", Event.SHUT, start=0)
                if n == count // 2:
                    async with asyncio.timeout(20):
                        while len({pid for pid, _ in journal(shared)}) < 2:
                            more += 1
                            await service.send(f"more-{more}", Event.SHUT, start=0)
                            await asyncio.sleep(0.01)
                    old.terminate()
            for n in range(count):
                await service.settled(f"i-{n:02}", timeout=20)
            assert await ended(old) == 0
            new.terminate()
            assert await ended(new) == 0
    ran = Counter(key for _, key in journal(shared))
    assert len(ran) >= count
    assert set(ran.values()) == {1}


async def test_a_hook_that_kills_its_process_is_failed_after_its_attempts(tmp_path: Path):
    """An attempt counts when its lease is taken, so that no process after the last one dies of it; others' work is
    done meanwhile."""
    deaths = 0
    async with (
        Manager(drawn(crew.deadly, "deadly", retry=crew.RETRY), place.store(tmp_path), work=False, inline=False) as bad,
        Manager(drawn(crew.brief), place.store(tmp_path), work=False, inline=False) as good,
    ):
        await bad.send("bad", Event.SHUT, start=0)
        for _ in range(ATTEMPTS):
            with works(tmp_path, stderr=subprocess.DEVNULL) as child:
                assert await ended(child) == 9
                deaths += 1
        await good.send("good", Event.SHUT, start=0)
        with works(tmp_path, stderr=subprocess.DEVNULL) as child:
            assert (await good.settled("good", timeout=10)).status == Status.FINISHED
            head = await bad.settled("bad", timeout=10)
            assert (head.status, child.poll()) == (Status.FAILED, None)
            assert "none of 3 attempts is left" in (head.reason or "")
            child.terminate()
            assert await ended(child) == 0
    assert deaths == ATTEMPTS
    tried = [text for _, text in journal(tmp_path) if text.startswith("attempt")]
    assert tried == [f"attempt {n}" for n in range(1, ATTEMPTS + 1)]


async def test_a_hook_of_a_quarter_of_an_hour_runs_once(store, clock):
    """On a lease of 30 s, with another process that would take it over."""
    gate = Gate()
    spec = flow(on_enter={S.B: gate.hook})
    async with Manager(spec, store, clock=clock) as m, Manager(spec, store, clock=clock) as n:
        await m.start("i")
        sent = asyncio.create_task(m.send("i", E.GO, timeout=1000))
        await gate.entered.wait()
        await clock.advance(MINUTE * 15)
        assert (await n.resume()).effects == 0
        gate.open.set()
        assert (await sent).settled
        assert (gate.calls, gate.ended, gate.moves[0].attempt) == (1, 1, 1)


async def test_a_peer_is_watched_though_it_holds_nothing_now():
    """It may take a lease and die before anybody hears of it: each death of a process known from before is told once."""
    code = "from workflow.incarnation import Incarnation; print(Incarnation().token, flush=True); input()"
    deaths: list[int] = []
    peers = Peers(lambda: deaths.append(1))
    watching = asyncio.create_task(peers.watch())
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, **pipes) as child:  # noqa: ASYNC220  # it is killed here
        assert child.stdout is not None
        peers.seen({child.stdout.readline().strip()})
        peers.seen(())
        await asyncio.sleep(2 * BEAT)
        assert deaths == []
        child.kill()
        await until(lambda: deaths)
        await asyncio.sleep(2 * BEAT)
        assert deaths == [1]
    watching.cancel()


# --- the command ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("tests.crew", "is no MODULE:NAME"),
        ("tests.crew:", "is no MODULE:NAME"),
        ("tests.no_such_room:worker", "there is no module 'tests.no_such_room'"),
        ("no_such_package.room:worker", "there is no module 'no_such_package'"),
        ("tests.crew:nobody", "'tests.crew' has no 'nobody'"),
        ("tests.crew:nothing", "is no Worker and makes none, but 3"),
        ("tests.crew:folder", "is no Worker and makes none"),
    ],
)
def test_a_target_that_is_none(tmp_path: Path, target: str, said: str):
    """The command says what is wrong with it, and ends with 2."""
    with works(tmp_path, target, stderr=subprocess.PIPE) as child:
        _, errors = child.communicate(timeout=20)
    assert child.returncode == 2
    assert said in errors
    assert "Traceback" not in errors


def test_a_store_that_cannot_be_used(tmp_path: Path):
    """The command says so, and ends with 1."""
    with works(tmp_path, "tests.crew:broken", stderr=subprocess.PIPE) as child:
        _, errors = child.communicate(timeout=20)
    assert child.returncode == 1
    assert "nowhere" in errors
    assert "Traceback" not in errors


async def test_the_command_is_stopped_by_ctrl_c_as_well(tmp_path: Path):
    """And with the same code."""
    with works(tmp_path, stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        async with asyncio.timeout(20):
            while "working on crew, deadly" not in await asyncio.to_thread(child.stderr.readline):
                pass
        child.send_signal(signal.SIGINT)
        assert await ended(child) == 0


async def test_a_process_of_this_one_is_no_peer(memory, clock):
    """Managers of one process do not watch each other: a closed one has handed back what it held."""
    gate = Gate()
    async with Manager(flow(on_enter={S.B: gate.hook}), memory, clock=clock, drain=SECOND * 0) as m:
        async with Manager(flow(on_enter={S.B: gate.hook}), memory, clock=clock, drain=SECOND * 0) as n:
            await m.start("i")
            sent = asyncio.create_task(m.send("i", E.GO))
            await gate.entered.wait()
            await clock.advance(MINUTE)
            peers: Any = n._background._peers
            assert peers._tokens == frozenset()
        gate.open.set()
        await sent
        await until(lambda: gate.ended == 1)
