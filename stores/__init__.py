"""Where instances live.

Each store is imported when it is first asked for, so that `import stores` needs no driver.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .memory import MemoryStore
    from .postgres import PostgresStore
    from .sqlite import SQLiteStore

__all__ = ["MemoryStore", "SQLiteStore", "PostgresStore"]

_ROOMS = {"MemoryStore": "memory", "SQLiteStore": "sqlite", "PostgresStore": "postgres"}


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    try:
        room = import_module(f"{__name__}.{_ROOMS[name]}")
    except ImportError as error:
        if not (error.name or "psycopg").startswith("psycopg"):  # it names nothing where libpq is missing
            raise
        raise ImportError(f"{name} needs its driver ({error}): pip install 'enumflow[postgres]'") from error
    return getattr(room, name)


def __dir__() -> list[str]:
    return sorted(__all__)
