"""Tables of PostgreSQL and settings of connections. `{S}` stands for the quoted schema."""

from __future__ import annotations

from typing import Final

SETTINGS: Final = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
    "lock_timeout": "20ms",
    "default_transaction_isolation": "read committed",
    "timezone": "UTC",
    "datestyle": "ISO",
}
"""What every connection of ours is set to. `lock_timeout`: who writes boldly may meet another's lock."""

SESSION: Final = (
    f"SELECT {', '.join(f'set_config({name!r}, {value!r}, false)' for name, value in SETTINGS.items())}, "
    "CASE WHEN current_setting('synchronous_commit') IN ('off', 'local') "
    "THEN set_config('synchronous_commit', 'on', false) END"
)
"""Settings of a connection; where replicas are waited for, that stays."""
BEGIN: Final = b"BEGIN ISOLATION LEVEL READ COMMITTED"
"""Whatever is usual where no setting of ours has been made yet."""
LOCAL: Final = SESSION.replace(", false)", ", true)")
"""The same for one transaction: behind a pooler the next has another connection."""

# --- schema -----------------------------------------------------------------------------------------

PATIENT: Final = "SELECT set_config('lock_timeout', '0', true)"
"""Who opens a store waits for those who make the schema."""
LOCK_SCHEMA: Final = "SELECT pg_advisory_xact_lock(hashtextextended('enumflow ' || $1, 0))"
"""One process at a time makes or migrates a schema."""
HAS_SCHEMA: Final = "SELECT to_regnamespace($1) IS NOT NULL"
"""Whether the schema is there (quoted name): who may not create one can be given one."""
HAS_TABLE: Final = "SELECT to_regclass($1) IS NOT NULL"
"""Whether the table is there (quoted name)."""
MAKE_SCHEMA: Final = "CREATE SCHEMA IF NOT EXISTS {S}"
"""The first thing in a new database."""
MAKE_META: Final = """CREATE TABLE {S}.meta (
    one boolean PRIMARY KEY DEFAULT true CHECK (one), version integer NOT NULL, shift bigint NOT NULL DEFAULT 0,
    name uuid NOT NULL DEFAULT gen_random_uuid())"""
"""The schema's version; what is added to transaction ids; whose cursors are good here."""
FIRST_META: Final = "INSERT INTO {S}.meta (version) VALUES (0)"
"""Before the first step."""
GET_META: Final = "SELECT version, name::text FROM {S}.meta"
"""The schema's version, and its name for cursors."""
SET_VERSION: Final = "UPDATE {S}.meta SET version = $1::integer"
"""After the last step."""

STEPS: Final[tuple[tuple[str, ...], ...]] = (
    (
        """CREATE TABLE {S}.head (
            seq bigint NOT NULL, pos bigint NOT NULL, context_seq bigint NOT NULL, top bigint NOT NULL, goal bigint NOT NULL,
            started_at timestamptz NOT NULL, changed_at timestamptz NOT NULL, version integer NOT NULL,
            workflow text COLLATE "C" NOT NULL, id text COLLATE "C" NOT NULL,
            state text COLLATE "C" NOT NULL, status text COLLATE "C" NOT NULL,
            context json NOT NULL, labels json NOT NULL, reason text,
            PRIMARY KEY (workflow, id)) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05)""",
        # Partial, so that no look-up by id is ever planned on it.
        "CREATE INDEX head_status ON {S}.head (workflow, status, id) WHERE status > ''",
        """CREATE TABLE {S}.line (
            pos bigint NOT NULL, seq bigint NOT NULL, context_seq bigint NOT NULL, goal bigint, below bigint, undoes bigint,
            at timestamptz NOT NULL, commit_id uuid NOT NULL, chain integer NOT NULL, version integer NOT NULL,
            workflow text COLLATE "C" NOT NULL, id text COLLATE "C" NOT NULL, kind text COLLATE "C" NOT NULL,
            source text COLLATE "C", event text COLLATE "C", target text COLLATE "C" NOT NULL,
            status text COLLATE "C" NOT NULL, "by" text COLLATE "C" NOT NULL, "key" text COLLATE "C",
            payload json, context json, labels json, owes json, reason text,
            PRIMARY KEY (workflow, id, seq))""",
        'CREATE UNIQUE INDEX line_key ON {S}.line (workflow, id, "key") WHERE "key" IS NOT NULL',
        # Not on `seq`, so that the queue is never looked for on the primary key, past all that owes nothing.
        "CREATE INDEX line_owing ON {S}.line (workflow, id, (-seq)) WHERE owes IS NOT NULL",
        "CREATE INDEX line_pos ON {S}.line (pos)",
        """CREATE TABLE {S}.due (
            at timestamptz NOT NULL, seq bigint NOT NULL, number integer NOT NULL, attempt integer NOT NULL,
            version integer NOT NULL, held boolean NOT NULL,
            workflow text COLLATE "C" NOT NULL, id text COLLATE "C" NOT NULL, name text COLLATE "C" NOT NULL,
            token text COLLATE "C", body json,
            PRIMARY KEY (workflow, id, name))
            WITH (fillfactor = 90, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000)""",
        "CREATE INDEX due_at ON {S}.due (workflow, at) WHERE NOT held",
        "CREATE INDEX due_token ON {S}.due (workflow, token) WHERE token IS NOT NULL",
    ),
)
"""Step n leads from schema version n to n + 1. A step that was released is never edited."""

RESTORED: Final = """
UPDATE {S}.meta SET shift = m.top + 1 - s.low
  FROM (SELECT max(pos) AS top FROM {S}.line) m,
       (SELECT pg_snapshot_xmin(s)::text::bigint AS low, pg_snapshot_xmax(s)::text::bigint AS high
          FROM pg_current_snapshot() AS s) s
 WHERE m.top - shift >= s.high"""
"""After a dump and restore transaction ids start lower: new lines must still come after the old."""


def quoted(name: str) -> str:
    """A name as SQL writes it."""
    doubled = name.replace('"', '""')
    return f'"{doubled}"'


class Schema(dict[str, bytes]):
    """The statements for one schema: `schema[LOAD]`."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = quoted(name)

    def __missing__(self, text: str) -> bytes:
        self[text] = made = text.replace("{S}", self.name).encode()
        return made
