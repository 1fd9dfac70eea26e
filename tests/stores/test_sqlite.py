"""SQLiteStore keeps every promise of a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from stores import SQLiteStore
from workflow.store import Store
from workflow.testing.conformance import StoreConformance


class TestSQLiteFile(StoreConformance):
    @pytest.fixture(autouse=True)
    def folder(self, tmp_path: Path) -> None:
        self._folder = tmp_path
        self._made = 0

    async def make(self) -> Store:
        self._made += 1
        return SQLiteStore(self._folder / f"{self._made}.db")

    async def reopen(self, store: Store) -> Store:
        assert isinstance(store, SQLiteStore)
        return SQLiteStore(store._path)


class TestSQLiteMemory(StoreConformance):
    lacks = frozenset({"reopen", "processes"})

    async def make(self) -> Store:
        return SQLiteStore(":memory:")
