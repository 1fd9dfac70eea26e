"""One PostgreSQL server for the whole run, and an empty schema on it for each case and round."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from itertools import count
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from stores import PostgresStore
from tests.server import Server
from workflow import Store

from .case import Missing, Stage

ELSEWHERE: Final = "ENUMFLOW_POSTGRES_URL"
"""Names a server to use instead of one of our own."""
SETTINGS: Final = (
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_sync_method",
    "shared_buffers",
    "max_wal_size",
    "autovacuum",
)
"""What is printed of the server."""
_numbers = count(1)


@contextmanager
def server() -> Generator[str]:
    """URL of a server whose commits are durable. Raises Missing."""
    named = os.environ.get(ELSEWHERE)
    if named:
        yield named
        return
    with ExitStack() as stack:
        try:
            url = stack.enter_context(Server()).url
        except RuntimeError as e:
            raise Missing(f"no PostgreSQL server: {e}") from e
        yield url


@asynccontextmanager
async def schema(url: str) -> AsyncGenerator[str]:
    """The name of a schema that is not there yet and is gone afterwards.

    Begins with a checkpoint (where that is allowed), so that none pays for the writes of another.
    """
    name = f"bench_{os.getpid()}_{next(_numbers)}"
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as db:
        with suppress(psycopg.errors.InsufficientPrivilege):
            await db.execute("CHECKPOINT")
        try:
            yield name
        finally:
            await db.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(name)))


@asynccontextmanager
async def postgres(stage: Stage) -> AsyncGenerator[Store]:
    """A store of its own for one case and round."""
    url = stage.url()
    async with schema(url) as name:
        yield PostgresStore(url, schema=name)


def told(url: str) -> dict[str, str]:
    """The server's version and settings."""
    with psycopg.connect(url, autocommit=True) as db:
        version = str(db.info.parameter_status("server_version"))
        found = {name: _setting(db, name) for name in SETTINGS}
    return {"server": version, **found}


def _setting(db: psycopg.Connection, name: str) -> str:
    row = db.execute("SELECT current_setting(%s)", (name,)).fetchone()
    return str(row[0]) if row else "?"


@asynccontextmanager
async def database(url: str) -> AsyncGenerator[str]:
    """The url of an empty database of its own, gone afterwards; for peers that want one."""
    name = f"bench_{os.getpid()}_{next(_numbers)}"
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as db:
        with suppress(psycopg.errors.InsufficientPrivilege):
            await db.execute("CHECKPOINT")
        try:
            await db.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        except psycopg.errors.InsufficientPrivilege as e:
            raise Missing(f"no right to create a database: {e}") from e
        try:
            parts = urlsplit(url)
            yield urlunsplit(parts._replace(path=f"/{name}"))
        finally:
            await db.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
