"""How often an idle Manager asks its store; the verbs are counted at the store's door."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

from workflow import Manager, Store

from ..book import Book
from ..case import Missing, Stage
from ..flow import light
from . import Size
from .ground import grounds

VERBS = frozenset({"append", "load", "history", "recall", "find", "read", "claim", "renew", "next_due"})
"""All but `wait`, which waits without a query."""


class _Counted:
    """A store that counts the calls of its verbs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.calls = 0

    async def __aenter__(self) -> Store:
        return await self._store.__aenter__()

    async def __aexit__(self, *error: Any) -> None:
        await self._store.__aexit__(*error)

    def __getattr__(self, name: str) -> Callable[..., Awaitable[object]]:
        if name in VERBS:
            self.calls += 1
        return cast("Callable[..., Awaitable[object]]", getattr(self._store, name))


async def measure(stage: Stage, size: Size, book: Book) -> None:
    """Figures `queries/s: idle, STORE`."""
    for name, entering in grounds(stage):
        try:
            async with entering as ground:
                counted = _Counted(ground.store)
                async with Manager(light(), cast("Store", counted)) as lights:
                    await lights.start("light")
                    await asyncio.sleep(1)
                    before = counted.calls
                    await asyncio.sleep(size.idle)
                    calls = counted.calls - before
        except Missing as e:
            book.missing[f"idle, {name}"] = str(e)
        else:
            book.note({f"queries/s: idle, {name}": calls / size.idle})
