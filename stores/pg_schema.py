"""The schema in PostgreSQL: made and migrated by whoever comes first."""

from __future__ import annotations

from psycopg.types.numeric import Int4

from workflow.errors import StoreError

from . import pg_tables
from .pg_write import Run


async def prepare(schema: pg_tables.Schema, statement: Run) -> str:
    """Bring the schema to this code's version, under a lock; others wait and find it done. Its name for cursors."""
    name = schema.name
    await statement(pg_tables.PATIENT.encode(), ())
    await statement(pg_tables.LOCK_SCHEMA.encode(), (name,))
    if not (await statement(pg_tables.HAS_SCHEMA.encode(), (name,)))[0][0]:
        await statement(schema[pg_tables.MAKE_SCHEMA], ())
    if not (await statement(pg_tables.HAS_TABLE.encode(), (f"{name}.meta",)))[0][0]:
        await statement(schema[pg_tables.MAKE_META], ())
        await statement(schema[pg_tables.FIRST_META], ())
    ((version, known_as),) = await statement(schema[pg_tables.GET_META], ())
    if version > len(pg_tables.STEPS):
        raise StoreError(
            f"schema {name} has version {version}, this code knows {len(pg_tables.STEPS)}; upgrade enumflow"
        )
    if version < len(pg_tables.STEPS):
        for step in pg_tables.STEPS[version:]:
            for each in step:
                await statement(schema[each], ())
        await statement(schema[pg_tables.SET_VERSION], (Int4(len(pg_tables.STEPS)),))
    await statement(schema[pg_tables.RESTORED], ())
    return str(known_as)
