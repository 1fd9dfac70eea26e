"""64 tasks over two processes on one PostgreSQL, each with a store and a Manager of its own.

Run as a module it is such a process: it gets ready, says so, waits for the word and then drives.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from stores import PostgresStore
from workflow import Manager

from .case import APART, MANY, OURS, POSTGRES, Case, Stage
from .database import schema
from .flow import light
from .ours import LEASE, presser, verified
from .pace import Pace, Ran, Sample, drive, share

PROCESSES: Final = 2
ROOT: Final = Path(__file__).parents[1]


def cases() -> list[Case]:
    """The one case."""
    return [Case(POSTGRES, OURS, MANY, APART, _apart)]


async def _apart(stage: Stage, pace: Pace) -> Sample:
    url = stage.url()
    async with schema(url) as name:
        store = PostgresStore(url, schema=name)
        each = MANY // PROCESSES
        hands = [await _hand(url, name, n * each, each, pace) for n in range(PROCESSES)]
        try:
            rans = await _driven(hands)
        except BaseException:
            for hand in hands:
                with suppress(ProcessLookupError):
                    hand.kill()
            raise
        finally:
            for hand in hands:
                await hand.wait()
        took = sorted(seconds for ran in rans for seconds in ran.took)
        counts = {f"light {n}": count for n, count in enumerate(count for ran in rans for count in ran.counts)}
        async with store:
            await verified(store, counts)
    return Sample(rate=sum(ran.sample.rate for ran in rans), p50=share(took, 0.50), p99=share(took, 0.99))


async def _driven(hands: Sequence[Process]) -> list[Ran]:
    """All get ready, then all begin."""
    for hand in hands:
        await _said(hand)
    for hand in hands:
        assert hand.stdin is not None
        hand.stdin.write(b"go\n")
    return [msgspec.json.decode(await _said(hand), type=Ran) for hand in hands]


async def _hand(url: str, name: str, first: int, tasks: int, pace: Pace) -> Process:
    words = (url, name, str(first), str(tasks), str(pace.seconds), str(pace.warm))
    command = (sys.executable, "-m", __name__, *words)
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, cwd=ROOT, limit=1 << 26)


async def _said(hand: Process) -> bytes:
    assert hand.stdout is not None
    line = await hand.stdout.readline()
    if not line:
        raise RuntimeError("a process of the case ended early; its error stands above")
    return line


async def _drive(url: str, name: str, first: int, tasks: int, pace: Pace) -> None:
    async with Manager(light(), PostgresStore(url, schema=name), lease=LEASE) as lights:
        ids = [f"light {n}" for n in range(first, first + tasks)]
        await asyncio.gather(*(lights.start(id) for id in ids))
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        ran = await drive([presser(lights, id) for id in ids], pace)
        print(msgspec.json.encode(ran).decode(), flush=True)


if __name__ == "__main__":
    given = sys.argv[1:]
    asyncio.run(_drive(given[0], given[1], int(given[2]), int(given[3]), Pace(float(given[4]), float(given[5]))))
