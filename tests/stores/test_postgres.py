"""PostgresStore keeps every promise of a store."""

from __future__ import annotations

from uuid import uuid4

import pytest

from stores import PostgresStore
from workflow.store import Store
from workflow.testing.conformance import StoreConformance


class TestPostgres(StoreConformance):
    @pytest.fixture(autouse=True)
    def server(self, postgres: str) -> None:
        self._url = postgres

    async def make(self) -> Store:
        return PostgresStore(self._url, schema=uuid4().hex)

    async def reopen(self, store: Store) -> Store:
        assert isinstance(store, PostgresStore)
        return PostgresStore(store._url, schema=store._schema.name.strip('"'))
