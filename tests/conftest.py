"""Fixtures: every store there is, a clock that stands still, nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stores import MemoryStore, SQLiteStore
from tests.flows import NOON
from workflow import circle
from workflow.testing import FakeClock


@pytest.fixture(params=["memory", "sqlite", "sqlite-file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A new store of each kind, not opened."""
    match request.param:
        case "memory":
            return MemoryStore()
        case "sqlite":
            return SQLiteStore(":memory:")
        case _:
            return SQLiteStore(tmp_path / "instances.db")


@pytest.fixture
def memory() -> MemoryStore:
    """A new store where what is tested does not depend on the kind."""
    return MemoryStore()


@pytest.fixture
def clock() -> FakeClock:
    """Noon of 1 January 2030, for ever."""
    return FakeClock(NOON)


@pytest.fixture(autouse=True)
def _nobody_waits() -> Iterator[None]:
    """No hook is remembered after a test."""
    yield
    assert not circle._frames
