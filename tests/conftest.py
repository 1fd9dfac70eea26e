"""Fixtures: every store there is, a clock that stands still, nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from stores import MemoryStore, PostgresStore, SQLiteStore
from tests.flows import NOON
from tests.server import shared_url
from workflow import circle
from workflow.testing import FakeClock


@pytest.fixture(params=["memory", "sqlite", "sqlite-file", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A new store of each kind, not opened."""
    match request.param:
        case "memory":
            return MemoryStore()
        case "sqlite":
            return SQLiteStore(":memory:")
        case "postgres":
            return PostgresStore(request.getfixturevalue("postgres"), schema=request.getfixturevalue("schema"))
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


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The url of a role, no superuser, on a PostgreSQL that is started once."""
    with shared_url() as url:
        yield url


@pytest.fixture
def schema(postgres: str) -> Iterator[str]:
    """The name of a schema that is not there yet; gone after the test."""
    name = f"test {uuid4().hex}"
    yield name
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))


@pytest.fixture(autouse=True)
def _nobody_waits() -> Iterator[None]:
    """No hook is remembered after a test."""
    yield
    assert not circle._frames
