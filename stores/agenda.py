"""Due rows in memory, by time and by owner.

A heap with lazy deletion: changing a row leaves its old entry behind, which is dropped when it
comes up, or all at once when such entries outnumber the rows. So superseded timers never fill the
memory, and a look for due rows costs what is due.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import datetime
from heapq import heapify, heappop, heappush

from workflow.record import Due

SLACK = 64
"""Stale entries that are not worth a rebuild."""


class Agenda:
    """The rows of one workflow and version that are not held."""

    __slots__ = ("_heap", "_owners", "_rows")

    def __init__(self) -> None:
        self._heap: list[tuple[datetime, str, str]] = []
        self._rows: dict[tuple[str, str], Due] = {}
        self._owners: dict[str, set[tuple[str, str]]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def entries(self) -> int:
        """Size of the heap, stale entries included."""
        return len(self._heap)

    def add(self, row: Due) -> None:
        """Enter a row that is not in here."""
        place = row.id, row.name
        self._rows[place] = row
        if row.token is not None:
            self._owners.setdefault(row.token, set()).add(place)
        heappush(self._heap, (row.at, row.id, row.name))
        if len(self._heap) > 2 * len(self._rows) + SLACK:
            self._rebuild()

    def remove(self, row: Due) -> None:
        """Take out a row that was added."""
        place = row.id, row.name
        del self._rows[place]
        if row.token is not None:
            places = self._owners[row.token]
            places.discard(place)
            if not places:
                del self._owners[row.token]

    def earliest(self) -> datetime | None:
        """When the first row comes due."""
        heap = self._heap
        while heap and not self._live(heap[0]):
            heappop(heap)
        return heap[0][0] if heap else None

    def due(self, now: datetime, limit: int) -> list[Due]:
        """The first `limit` rows that are due, in order of time."""
        found: dict[tuple[str, str], Due] = {}
        heap = self._heap
        while heap and len(found) < limit and heap[0][0] <= now:
            entry = heappop(heap)
            if self._live(entry):
                found[entry[1:]] = self._rows[entry[1:]]
        for row in found.values():
            heappush(heap, (row.at, row.id, row.name))
        return list(found.values())

    def owned(self, tokens: Collection[str]) -> Iterator[Due]:
        """The rows whose token is one of these."""
        for token in tokens:
            for place in self._owners.get(token, ()):
                yield self._rows[place]

    def owners(self) -> Iterable[str]:
        """All tokens on rows."""
        return self._owners.keys()

    def _live(self, entry: tuple[datetime, str, str]) -> bool:
        row = self._rows.get(entry[1:])
        return row is not None and row.at == entry[0]

    def _rebuild(self) -> None:
        self._heap = [(row.at, row.id, row.name) for row in self._rows.values()]
        heapify(self._heap)
