"""The least that a machine in memory must do: a lock, a look for the key, a look-up, a line in a log."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import datetime
from functools import partial
from typing import NamedTuple

from workflow.clock import utcnow

from .. import whole
from ..case import CURVE, DICT, MEMORY, MOVES, Case, Stage
from ..flow import PRESSES, Light, Press, key
from ..pace import Lane, Pace, Sample, drive

TABLE = {(Light.RED, Press.GO): Light.GREEN, (Light.GREEN, Press.HALT): Light.RED}


class _Line(NamedTuple):
    id: str
    seq: int
    source: Light | None
    event: Press | None
    target: Light
    key: str | None
    at: datetime


class Lights:
    """State, seq and keys of each light, and one log of all lines."""

    def __init__(self) -> None:
        self.states: dict[str, tuple[int, Light]] = {}
        self.locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self.keys: defaultdict[str, dict[str, _Line]] = defaultdict(dict)
        self.log: list[_Line] = []

    def start(self, id: str) -> None:
        """The first line."""
        self.states[id] = (1, Light.RED)
        self.log.append(_Line(id, 1, None, None, Light.RED, None, utcnow()))

    async def send(self, id: str, event: Press, *, key: str) -> _Line:
        """One move."""
        async with self.locks[id]:
            known = self.keys[id].get(key)
            if known is not None:
                return known
            seq, source = self.states[id]
            target = TABLE[source, event]
            line = _Line(id, seq + 1, source, event, target, key, utcnow())
            self.log.append(line)
            self.keys[id][key] = line
            self.states[id] = (seq + 1, target)
            return line


def cases() -> list[Case]:
    """The bare limit in memory."""
    return [Case(MEMORY, DICT, tasks, MOVES, partial(_moves, tasks)) for tasks in CURVE]


async def _moves(tasks: int, _: Stage, pace: Pace) -> Sample:
    lights = Lights()
    ids = [f"light {n}" for n in range(tasks)]
    for id in ids:
        lights.start(id)

    def presser(id: str) -> Lane:
        return lambda n: lights.send(id, PRESSES[n % 2], key=key(n))

    ran = await drive([presser(id) for id in ids], pace, chunk=32)
    found = sorted((line.id, line.seq, line.key) for line in lights.log)
    heads = {id: seq for id, (seq, _) in lights.states.items()}
    whole.presses(found, heads, dict(zip(ids, ran.counts, strict=True)))
    return ran.sample
