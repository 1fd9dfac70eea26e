"""Other processes of this host that hold leases: their death is noticed without asking the store.

Whoever was seen once is watched until it dies, also while it holds nothing: what it wrote last may not
have been told to others when it died, so each death is a reason to look. Of a process that dies with
the news of its first lease untold, only the next look around knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from . import incarnation

BEAT = 0.25
"""Seconds between two looks at whether they still live."""


class Peers:
    """Owners of leases, as far as one Manager ever saw them."""

    def __init__(self, died: Callable[[], None]) -> None:
        self._died = died
        self._tokens: frozenset[str] = frozenset()
        self._some = asyncio.Event()

    def seen(self, tokens: Iterable[str]) -> None:
        """These hold leases now, and live."""
        self._tokens |= incarnation.nearby(tokens)
        if self._tokens:
            self._some.set()

    async def watch(self) -> None:
        """Tell of each death, once."""
        while True:
            await self._some.wait()
            await asyncio.sleep(BEAT)
            gone = incarnation.dead(self._tokens)
            if gone:
                self._tokens -= gone
                if not self._tokens:
                    self._some.clear()
                self._died()
