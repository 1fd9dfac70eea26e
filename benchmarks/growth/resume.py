"""A hundred thousand instances that wait for a retry tomorrow, a thousand whose retry is due: one resume()."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from time import perf_counter

from workflow import HookFailed, Manager
from workflow.clock import utcnow

from .. import whole
from ..book import Book
from ..case import Missing, Stage
from ..flow import light
from ..ours import LEASE
from . import Size
from .ground import Ground, grounds, multiply


async def measure(stage: Stage, size: Size, book: Book) -> None:
    """Figures `s: resume, STORE`."""
    for name, entering in grounds(stage):
        try:
            async with entering as ground:
                await _fill(ground, size)
                async with Manager(light(hooked=True), ground.store, lease=LEASE, work=False) as lights:
                    began = perf_counter()
                    resumed = await lights.resume()
                    seconds = perf_counter() - began
                whole.same("resumed", [resumed.effects, resumed.failed], [size.due, ()])
                ((left,),) = await ground.query("SELECT count(*) FROM due")
                whole.same("due rows left", [left], [size.waiting])
        except Missing as e:
            book.missing[f"resume, {name}"] = str(e)
        else:
            book.note({f"s: resume, {name}": seconds})


async def _fill(ground: Ground, size: Size) -> None:
    """One whose hook failed and is tried again in a day, many times; then some of them brought forward."""
    async with Manager(light(hooked=True, broken=True), ground.store, lease=LEASE, work=False) as lights:
        with suppress(HookFailed):
            await lights.start("seed")
    total = size.waiting + size.due
    await multiply(ground, "seed", (1, total - 1))
    step = total // size.due
    due = ground.moment(utcnow() - timedelta(minutes=1))
    ids = f"SELECT id FROM due WHERE id <> 'seed' ORDER BY id LIMIT {size.due} OFFSET {step}"  # noqa: S608  # ours
    await ground.query(f"UPDATE due SET at = {due} WHERE id IN ({ids})")  # noqa: S608  # ours
