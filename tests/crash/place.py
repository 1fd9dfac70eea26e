"""The store that the processes of one folder share: a file in it, or a schema on a server that a note in it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import LiteralString
from uuid import uuid4

import psycopg
from psycopg import sql

from stores import PostgresStore, SQLiteStore


def note(folder: Path, url: str) -> None:
    """From now on this folder's store is a schema of its own on the server."""
    (folder / "place").write_text(json.dumps([url, f"crash {uuid4().hex}"]))


def noted(folder: Path) -> tuple[str, str] | None:
    """The server's url and the schema, if it is one."""
    place = folder / "place"
    return tuple(json.loads(place.read_text())) if place.exists() else None


def store(folder: Path) -> SQLiteStore | PostgresStore:
    """Not opened."""
    place = noted(folder)
    return SQLiteStore(folder / "store.db") if place is None else PostgresStore(place[0], schema=place[1])


def execute(folder: Path, statement: LiteralString, *values: str) -> None:
    """Another hand in the schema, `{}` in the statement."""
    place = noted(folder)
    assert place is not None
    with psycopg.connect(place[0], autocommit=True) as connection:
        connection.execute(sql.SQL(statement).format(sql.Identifier(place[1])), values)
