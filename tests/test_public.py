"""The public face: exactly these names, and importing them costs no more than it must."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from workflow import errors

ROOT = Path(__file__).parents[1]

ERRORS = {
    "AlreadyStarted",
    "Busy",
    "Conflict",
    "Finished",
    "GuardError",
    "GuardRejected",
    "HookFailed",
    "IllegalTransition",
    "InvalidContext",
    "InvalidName",
    "InvalidPayload",
    "InvalidSpec",
    "KeyConflict",
    "LeaseLost",
    "NotRunning",
    "Reentrant",
    "StoreError",
    "StoreUnavailable",
    "UnknownInstance",
    "UnknownSchedule",
    "UnknownState",
    "WorkflowError",
}
FACE = {
    "workflow": ERRORS
    | {
        "ANY",
        "After",
        "STAY",
        "Deny",
        "Due",
        "Edge",
        "Instance",
        "LoggingObserver",
        "Manager",
        "Move",
        "Observer",
        "Outcome",
        "Permanent",
        "Query",
        "Resumed",
        "Retry",
        "Schedule",
        "ScheduleState",
        "Spec",
        "Status",
        "Store",
        "Stuck",
        "Then",
        "Transaction",
        "Transactional",
        "Transition",
        "Worker",
    },
    "workflow.testing": {"FakeClock", "Faults", "StoreConformance", "paths", "replay"},
    "workflow.diagram": {"mermaid"},
    "stores": {"MemoryStore", "PostgresStore", "SQLiteStore"},
}


@pytest.mark.parametrize("name", FACE)
def test_the_names_are_exactly_these(name: str):
    """A name more is a promise nobody meant, a name less breaks somebody."""
    door = importlib.import_module(name)
    assert sorted(door.__all__) == sorted(FACE[name])
    assert len(door.__all__) == len(set(door.__all__))
    for word in FACE[name]:
        assert getattr(door, word) is not None


@pytest.mark.parametrize("name", ["workflow", "stores"])
def test_an_unknown_name_is_an_attribute_error(name: str):
    """Doors that open late still say at once what they do not have."""
    door = importlib.import_module(name)
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = door.Nonsense


def test_every_error_is_public():
    """Whatever can be raised can be caught by its public name."""
    found = {name for name, thing in vars(errors).items() if isinstance(thing, type) and issubclass(thing, Exception)}
    assert found == ERRORS


@pytest.mark.parametrize("name", FACE)
def test_every_public_name_has_its_sentence(name: str):
    """`help()` tells the promise of each class and function."""
    door = importlib.import_module(name)
    assert door.__doc__
    for word in FACE[name] - {"ANY", "STAY"}:
        assert getattr(door, word).__doc__, word


def imported(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter has loaded after this statement."""
    code = f"{statement}\nimport sys\nprint(*(name.partition('.')[0] for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


DRIVERS = {"aiosqlite", "sqlite3", "_sqlite3", "psycopg", "psycopg_pool"}
TOOLS = {"pytest", "hypothesis", "rich", "starlette", "httpx", "uvicorn"}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import workflow", DRIVERS | TOOLS | {"stores"}),
        ("from workflow.diagram import mermaid", DRIVERS | TOOLS | {"stores"}),
        ("from workflow.testing import FakeClock, Faults, StoreConformance", DRIVERS | TOOLS | {"stores"}),
        ("import stores", DRIVERS | TOOLS),
        ("from stores import MemoryStore", DRIVERS | TOOLS),
        ("from stores import SQLiteStore", {"psycopg", "psycopg_pool"} | TOOLS),
        ("from stores import PostgresStore", DRIVERS - {"psycopg", "psycopg_pool"} | TOOLS),
    ],
)
def test_an_import_loads_only_what_it_needs(statement: str, absent: set[str]):
    """The engine needs no store, a store no other store's driver, and nobody a tool for tests."""
    assert imported(statement) & absent == set()


@pytest.mark.parametrize("package", ["workflow", "stores"])
def test_types_are_shipped(package: str):
    """Checkers read the types of a package only if it says so."""
    door: ModuleType = importlib.import_module(package)
    assert door.__file__ is not None
    assert Path(door.__file__).with_name("py.typed").exists()
