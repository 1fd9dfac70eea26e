"""Tables, statements by name, and the way between rows and records.

Columns are the fields of the records, so a record's field is never forgotten by a statement. Times
are whole microseconds since 1970 UTC. Texts are SQLite's; PostgreSQL shares columns and mapping.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from json import dumps, loads
from operator import attrgetter
from typing import Any, Final, TypeAlias

from msgspec.structs import astuple

from workflow.record import Due, Head, Line

Row: TypeAlias = tuple[Any, ...]

LINE: Final = Line.__struct_fields__
HEAD: Final = Head.__struct_fields__
DUE: Final = Due.__struct_fields__
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_KEPT = ("workflow", "id", "started_at")
"""Fields of a head that a move leaves as they are."""
_OWES = LINE.index("owes")
_before_owes, _after_owes = attrgetter(*LINE[:_OWES]), attrgetter(*LINE[_OWES + 1 : -1])
_begun, _moved = attrgetter(*HEAD[:-2]), attrgetter(*(f for f in HEAD[:-1] if f not in _KEPT))


def _names(fields: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in fields)


def _marks(fields: Sequence[str]) -> str:
    return ", ".join("?" * len(fields))


# --- schema -----------------------------------------------------------------------------------------

STEPS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE line (
            pos INTEGER PRIMARY KEY AUTOINCREMENT,
            workflow TEXT NOT NULL, id TEXT NOT NULL, seq INTEGER NOT NULL,
            kind TEXT NOT NULL, source TEXT, event TEXT, target TEXT NOT NULL, status TEXT NOT NULL,
            commit_id TEXT NOT NULL, "by" TEXT NOT NULL, "key" TEXT, payload TEXT,
            context_seq INTEGER NOT NULL, context TEXT, labels TEXT, goal INTEGER, below INTEGER, undoes INTEGER,
            owes TEXT, chain INTEGER NOT NULL, version INTEGER NOT NULL, reason TEXT, at INTEGER NOT NULL)""",
        "CREATE UNIQUE INDEX line_seq ON line (workflow, id, seq)",
        'CREATE UNIQUE INDEX line_key ON line (workflow, id, "key") WHERE "key" IS NOT NULL',
        "CREATE INDEX line_owing ON line (workflow, id, seq) WHERE owes IS NOT NULL",
        """CREATE TABLE head (
            workflow TEXT NOT NULL, id TEXT NOT NULL, seq INTEGER NOT NULL, state TEXT NOT NULL, status TEXT NOT NULL,
            context TEXT NOT NULL, context_seq INTEGER NOT NULL, top INTEGER NOT NULL, goal INTEGER NOT NULL,
            labels TEXT NOT NULL, reason TEXT, version INTEGER NOT NULL,
            started_at INTEGER NOT NULL, changed_at INTEGER NOT NULL,
            PRIMARY KEY (workflow, id)) WITHOUT ROWID""",
        "CREATE INDEX head_status ON head (workflow, status, id)",
        """CREATE TABLE due (
            workflow TEXT NOT NULL, id TEXT NOT NULL, name TEXT NOT NULL, at INTEGER NOT NULL,
            seq INTEGER NOT NULL, number INTEGER NOT NULL, attempt INTEGER NOT NULL, version INTEGER NOT NULL,
            token TEXT, held INTEGER NOT NULL, body TEXT,
            PRIMARY KEY (workflow, id, name)) WITHOUT ROWID""",
        "CREATE INDEX due_at ON due (workflow, at) WHERE NOT held",
        "CREATE INDEX due_token ON due (workflow, token) WHERE token IS NOT NULL",
    ),
)
"""Step n leads from schema version n to n + 1. A step that was released is never edited."""

MAKE_META: Final = "CREATE TABLE IF NOT EXISTS meta (one INTEGER PRIMARY KEY CHECK (one = 1), version INTEGER NOT NULL)"
"""Where the schema's version stands."""
GET_VERSION: Final = "SELECT version FROM meta WHERE one = 1"
"""The schema's version; no row in a new file."""
SET_VERSION: Final = "INSERT OR REPLACE INTO meta (one, version) VALUES (1, ?)"
"""After the last step."""

# --- statements -------------------------------------------------------------------------------------

BEGIN: Final = "BEGIN IMMEDIATE"
"""Take the write lock first: what is compared cannot change before it is written."""
PRESENT: Final = "SELECT seq, changed_at FROM head WHERE workflow = ? AND id = ?"
"""What a change without lines compares."""
INSERT_HEAD: Final = f"INSERT INTO head ({_names(HEAD)}) VALUES ({_marks(HEAD)}) ON CONFLICT DO NOTHING"
"""The start of an instance; changes nothing where one is."""
REPLACE_HEAD: Final = (
    f"UPDATE head SET {', '.join(f'{f} = ?' for f in HEAD if f not in _KEPT)} "
    "WHERE workflow = ? AND id = ? AND seq = ? AND changed_at <= ?"
)
"""Compare-and-set of a head; changes no row where `seq` is another or the stamp is earlier. RETURNING the
stamp would cost a fifth of the move."""
INSERT_LINE: Final = f"INSERT INTO line ({_names(LINE)}) VALUES ({_marks(LINE)})"
"""One line; the unique index on keys refuses a key that was seen."""
GET_LINE: Final = f"SELECT {_names(LINE)} FROM line WHERE workflow = ? AND id = ? AND seq = ?"
"""One line by its number."""
ERASE_LINES: Final = (
    "UPDATE line SET payload = NULL, context = NULL, reason = NULL WHERE workflow = ? AND id = ? AND seq <= ?"
)
"""What an instance's lines up to a number said is gone; that they were stays."""
KEYED_LINE: Final = f'SELECT {_names(LINE)} FROM line WHERE workflow = ? AND id = ? AND "key" = ?'
"""One line by its key."""
PUT_ABSENT: Final = f"INSERT INTO due ({_names(DUE)}) VALUES ({_marks(DUE)}) ON CONFLICT DO NOTHING"
"""A due row, only if none of that name is there."""
PUT_DUE: Final = (
    f"INSERT INTO due ({_names(DUE)}) VALUES ({_marks(DUE)}) ON CONFLICT (workflow, id, name) DO UPDATE SET "
    + ", ".join(f"{f} = excluded.{f}" for f in DUE[3:])
)
"""A due row in place of the one of that name."""
GET_DUE: Final = f"SELECT {_names(DUE)} FROM due WHERE workflow = ? AND id = ? AND name = ?"
"""One due row."""
DUE_ROWS: Final = f"SELECT {_names(DUE)} FROM due WHERE workflow = ? AND id = ? ORDER BY name"
"""All due rows of an instance."""
DROP_DUE: Final = "DELETE FROM due WHERE workflow = ? AND id = ? AND name = ?"
"""One due row goes."""
HOLD_DUE: Final = "UPDATE due SET held = ? WHERE workflow = ? AND id = ?"
"""All due rows of an instance become held or free."""

RIPE_DUE: Final = (
    f"SELECT {_names(DUE)} FROM due INDEXED BY due_at "
    "WHERE workflow = ? AND NOT held AND at <= ? AND version <= ? ORDER BY at LIMIT ?"
)
"""What came due in one workflow, earliest first."""
ORPHAN_DUE: Final = (
    f"SELECT {_names(DUE)} FROM due INDEXED BY due_token "
    "WHERE workflow = ? AND token = ? AND NOT held AND version <= ? ORDER BY at LIMIT ?"
)
"""What a dead token leaves behind in one workflow."""
LEASE_DUE: Final = "UPDATE due SET token = ?, at = ?, attempt = attempt + 1 WHERE workflow = ? AND id = ? AND name = ?"
"""One row gets its owner."""
RENEW_DUE: Final = "UPDATE due SET at = max(at, ?) WHERE workflow = ? AND id = ? AND name = ? AND token = ?"
"""One lease gets a later end, if it is still the owner's."""
NEXT_DUE: Final = (
    "SELECT at FROM due INDEXED BY due_at WHERE workflow = ? AND NOT held AND version <= ? ORDER BY at LIMIT 1"
)
"""When the first row of one workflow comes due."""
OWNERS: Final = """
WITH RECURSIVE owner(token) AS (
  SELECT min(token) FROM due INDEXED BY due_token WHERE workflow = ?1 AND token IS NOT NULL
  UNION ALL
  SELECT (SELECT min(d.token) FROM due d INDEXED BY due_token WHERE d.workflow = ?1 AND d.token > owner.token)
    FROM owner WHERE owner.token IS NOT NULL)
SELECT token FROM owner
 WHERE token IS NOT NULL AND EXISTS (SELECT 1 FROM due d INDEXED BY due_token
   WHERE d.workflow = ?1 AND d.token = owner.token AND NOT d.held AND d.version <= ?2)"""
"""Who holds leases in one workflow. Steps from owner to owner, past all but one of their rows."""

GET_HEAD: Final = f"SELECT {_names(HEAD)} FROM head WHERE workflow = ? AND id = ?"
"""One head."""
OWING: Final = (
    f"SELECT {_names(LINE)} FROM line INDEXED BY line_owing "
    "WHERE workflow = ? AND id = ? AND seq >= ? AND owes IS NOT NULL ORDER BY seq LIMIT 2"
)
"""The first two lines that owe effects; passes over those that owe none without reading them."""
HISTORY: Final = f"SELECT {_names(LINE)} FROM line WHERE workflow = ? AND id = ? AND seq > ? ORDER BY seq LIMIT ?"
"""An instance's lines in order."""
_FILTERS = (
    "AND id > :after AND (:states IS NULL OR state IN (SELECT value FROM json_each(:states))) "
    "AND (:before IS NULL OR changed_at < :before) ORDER BY id"
)
FIND: Final = f"SELECT {_names(HEAD)} FROM head WHERE workflow = :workflow {_FILTERS}"
"""Heads of one workflow in order of id; read only as far as the page needs."""
FIND_STATUS: Final = (
    f"SELECT {_names(HEAD)} FROM head INDEXED BY head_status WHERE workflow = :workflow AND status = :status {_FILTERS}"
)
"""The same of one status."""
READ: Final = f"SELECT {_names(LINE)}, pos FROM line WHERE pos > ? ORDER BY pos LIMIT ?"
"""The feed. One writer at a time: positions are given in the order of commits."""
LAST: Final = "SELECT max(pos) FROM line"
"""The end of the feed."""


# --- rows and records -------------------------------------------------------------------------------


def micros(at: datetime) -> int:
    """A time as it is stored."""
    return (at - _EPOCH) // _MICROSECOND


def moment(stored: int) -> datetime:
    """The time that was stored."""
    return _EPOCH + timedelta(microseconds=stored)


def line_row(line: Line, at: int) -> Row:
    """The values of INSERT_LINE."""
    owes = dumps(line.owes, ensure_ascii=False) if line.owes else None
    return (*_before_owes(line), owes, *_after_owes(line), at)


def line_of(row: Row) -> Line:
    """The line in a row of LINE columns."""
    values = list(row)  # the columns are the fields of the record, in their order
    values[_OWES] = tuple(loads(values[_OWES])) if values[_OWES] is not None else ()
    values[-1] = moment(values[-1])
    return Line(*values)


def head_row(head: Head, at: int) -> Row:
    """The values of INSERT_HEAD for a head that begins now."""
    return (*_begun(head), at, at)


def head_change(head: Head, at: int, seq: int) -> Row:
    """The values of REPLACE_HEAD for a head that was at `seq`."""
    return (*_moved(head), at, head.workflow, head.id, seq, at)


def head_of(row: Row) -> Head:
    """The head in a row of HEAD columns."""
    values = list(row)
    values[-2:] = moment(values[-2]), moment(values[-1])
    return Head(*values)


def due_of(row: Row) -> Due:
    """The due row in a row of DUE columns."""
    fields = dict(zip(DUE, row, strict=True))
    fields["at"] = moment(fields["at"])
    fields["held"] = bool(fields["held"])
    return Due(**fields)


def due_row(due: Due) -> Row:
    """The values of PUT_DUE."""
    workflow, id, name, at, *rest = astuple(due)
    return (workflow, id, name, micros(at), *rest)
