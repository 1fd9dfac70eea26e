"""MemoryStore keeps every promise of a store."""

from __future__ import annotations

from stores import MemoryStore
from workflow.store import Store
from workflow.testing.conformance import StoreConformance


class TestMemoryStore(StoreConformance):
    lacks = frozenset({"processes", "transaction"})

    async def make(self) -> Store:
        return MemoryStore()

    async def reopen(self, store: Store) -> Store:
        """A MemoryStore outlives its closing: the same object is opened again."""
        return store
