"""One Manager's store as every room uses it: read, sign, append until the outcome is known.

An acknowledgement that never came is an unknown outcome. A read that finds nothing proves nothing,
so the identical commit is appended again until the store answers.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from . import circle
from .clock import Clock
from .errors import StoreError, StoreUnavailable
from .house import House
from .incarnation import Incarnation
from .kernel import AnySpec
from .observer import Watch
from .record import Answer, Commit, Committed, Due, Head, Locked, Put
from .rest import Rest
from .sight import LONGEST_PAUSE, Sight
from .store import Store

HEADS = 5000
"""Heads of instances at rest that are kept in memory: the most that leave their table one size, however many pass."""
FIRST_PAUSE = 0.01
"""Seconds between the first two tries; later ones are further apart, up to `LONGEST_PAUSE`."""


class Ledger(Sight):
    """Reads and writes for one spec, signed by one incarnation."""

    def __init__(
        self, spec: AnySpec, store: Store, clock: Clock | None, lease: timedelta, watch: Watch | None = None
    ) -> None:
        super().__init__(spec, store, clock, lease, Incarnation(), Rest())
        self.store = store
        self.watch = Watch() if watch is None else watch
        self.house = House()
        self.made_work: Callable[[datetime | None], None] = lambda at: None
        """Told when a commit left work that nobody does yet, and when it is due (None: now); set by `background`."""
        self._place = id(store)
        self._heads: OrderedDict[str, Head] = OrderedDict()

    def node(self, id: str) -> circle.Node:
        """The instance as the circle knows it."""
        return (self._place, self.spec.name, id)

    # --- writing ----------------------------------------------------------------------------------

    async def append(self, commit: Commit, deadline: float | None) -> tuple[Answer, bool]:
        """Append until the outcome is known; the answer, and whether an earlier try may have landed.

        Raises StoreUnavailable(committed=None) at the `deadline` (on the loop's clock; None: never),
        and at once what the store says of a commit that certainly was not written.
        """
        loop = asyncio.get_running_loop()
        pause, repeated = FIRST_PAUSE, False
        while True:
            try:
                timeout = None if deadline is None else max(0.0, deadline - loop.time())
                answers = await self.store.append((commit,), timeout=timeout)
            except StoreError as e:
                if e.committed is False and not repeated:
                    raise
                unknown: Exception = e
            else:
                answer = answers[0]
                if type(answer) is Committed and commit.changes[0].lines and self.watch.hears_lines():
                    self.watch.committed(commit, answer.at)
                if not (repeated and isinstance(answer, Locked)):
                    return answer, repeated
                unknown = TimeoutError("the instance is locked, perhaps by the first try")
            if deadline is not None and loop.time() + pause > deadline:
                raise StoreUnavailable(
                    f"the store never said whether it wrote the commit: {unknown}", None
                ) from unknown
            repeated = True
            await asyncio.sleep(pause * (0.5 + random.random()))
            pause = min(pause * 2, LONGEST_PAUSE)

    # --- heads in memory --------------------------------------------------------------------------

    def recollect(self, id: str) -> Head | None:
        """Take out the head that was kept, if any: it may be out of date, the compare-and-set tells."""
        return self._heads.pop(id, None)

    def remember(self, head: Head) -> None:
        """Keep the head of an instance at rest."""
        heads = self._heads
        heads[head.id] = head
        if len(heads) > HEADS:
            heads.popitem(last=False)

    def forget(self, id: str) -> None:
        """The head in memory, if any, is out of date."""
        self._heads.pop(id, None)


def took(answer: Committed, puts: Sequence[Put]) -> Due | None:
    """The effects row if it is leased to us just as one of `puts` left it.

    After an unknown outcome the row may have gone on: then its present lease, though ours, is
    another run's.
    """
    row = answer.leased
    if row is not None and any((p.seq, p.number, p.attempt) == (row.seq, row.number, row.attempt) for p in puts):
        return row
    return None
