"""Statements of PostgreSQL.

Columns are the fields of the records. Each statement keeps its plan when tables grow from nothing to
millions of rows without ANALYZE: joins to tables are written as `col = ANY (ARRAY[x])` or as lateral
subqueries that cannot be flattened, so that only an index can serve them; `pg_tables.SETTINGS` rules
out the rest. `{S}` stands for the quoted schema.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .sql import DUE, HEAD, LINE

_JSON = frozenset({"payload", "context", "labels", "owes", "body"})


def _columns(fields: Sequence[str], table: str = "") -> str:
    return ", ".join(_each(fields, table))


def _each(fields: Sequence[str], table: str) -> list[str]:
    """The fields as they are read: JSON as text and ids of commits as hex digits, as they were given."""
    before = f"{table}." if table else ""
    forms = {"commit_id": "replace({}::text, '-', '')"} | dict.fromkeys(_JSON, "{}::text")
    return [forms.get(field, "{}").format(f'{before}"{field}"') for field in fields]


# --- commits ----------------------------------------------------------------------------------------

_POS = "(SELECT shift FROM {S}.meta) + pg_current_xact_id()::text::bigint"
"""A place in the feed. Below the oldest running transaction nothing can appear any more; the later of
this and the head's own place keeps an instance's order even if a transaction began early and sent late."""

_ROW = """n integer, w text, i text, x bigint, z bigint, now timestamptz, k text, s text, e text, t text, c uuid, y text,
    p text, q bigint, d text, b bigint, o text, v integer, h text, a float8, ls bigint, ln integer, la integer, r json, m json, u json, f text[]"""
"""A change as it travels: see `pg_sent.Sent`. What is rarely there, or rarely other than usual, is in `r`; names are
short because each is read again for each row."""
_NOW = "coalesce(r.now, statement_timestamp())"
_SET_HEAD = """seq = r.z, pos = {pos}, changed_at = {stamp}, version = coalesce((r.r->>'h_version')::integer, r.v),
    state = coalesce(r.r->>'h_state', r.t), status = coalesce(r.r->>'h_status', r.r->>'status', 'running'),
    context = r.h::json, context_seq = coalesce((r.r->>'h_context_seq')::bigint, r.q),
    top = coalesce((r.r->>'h_top')::bigint, r.z), goal = coalesce((r.r->>'h_goal')::bigint, 0),
    labels = coalesce(r.r->>'h_labels', '{{}}')::json, reason = r.r->>'h_reason'"""
_NEW_HEAD = f"""r.w, r.i, r.z, {_POS}, r.time, r.time, coalesce((r.r->>'h_version')::integer, r.v),
         coalesce(r.r->>'h_state', r.t), coalesce(r.r->>'h_status', r.r->>'status', 'running'), r.h::json,
         coalesce((r.r->>'h_context_seq')::bigint, r.q), coalesce((r.r->>'h_top')::bigint, r.z),
         coalesce((r.r->>'h_goal')::bigint, 0), coalesce(r.r->>'h_labels', '{{}}')::json, r.r->>'h_reason'"""
_LINE_COLUMNS = (
    'workflow, id, seq, pos, at, "by", commit_id, kind, source, event, target, status, "key", payload, context_seq, '
    "context, labels, goal, below, undoes, owes, chain, version, reason"
)
_LAST_LINE = """g.w, g.i, g.z, g.pos, g.stamp, coalesce(g.r->>'by', $2), g.c, coalesce(g.k, 'event'), g.s, g.e, g.t,
         coalesce(g.r->>'status', 'running'), g.y, g.p::json, g.q, g.d::json, (g.r->>'labels')::json,
         (g.r->>'goal')::bigint, g.b, (g.r->>'undoes')::bigint, g.o::json, coalesce((g.r->>'chain')::integer, 0), g.v,
         g.r->>'reason'"""
_EARLIER = """seq bigint, "by" text, commit_id uuid, kind text, source text, event text, target text, status text,
    "key" text, payload text, context_seq bigint, context text, labels text, goal bigint, below bigint, undoes bigint,
    owes text, chain integer, version integer, reason text"""
_EARLIER_LINE = """g.w, g.i, e.seq, g.pos, g.stamp, e."by", e.commit_id, e.kind, e.source, e.event, e.target, e.status,
         e."key", e.payload::json, e.context_seq, e.context::json, e.labels::json, e.goal, e.below, e.undoes,
         e.owes::json, e.chain, e.version, e.reason"""
_PUT = """name text, at timestamptz, wait float8, seq bigint, number integer, attempt integer, version integer,
    token text, held boolean, body text, absent boolean"""
_INSERT_DUE = "INSERT INTO {S}.due (workflow, id, name, at, seq, number, attempt, version, token, held, body)"
_LEASE = """g.w, g.i, 'effects', g.time + make_interval(secs => g.a), g.z, 0, 1, g.v, $2,
         false, NULL::json"""
"""The usual row of effects, put where there is none: the line's first, leased by the writer for `a` seconds."""
_OWNER = "CASE WHEN r.r->>'owner' IS NULL THEN $2 ELSE nullif(r.r->>'owner', '') END"
"""Whose lease is expected: the writer's, unless the row says otherwise ('': nobody's)."""
_LEASED = "coalesce(r.r->>'leased', 'effects')"
"""Which due row is compared."""
_PUT_VALUES = "w, i, name, at, seq, number, attempt, version, token, coalesce(hold, held, false), body::json"

GROUP: Final = f"""
WITH judged AS MATERIALIZED (
  SELECT r.*, h.at AS head_at, h.seq AS present, {_NOW} AS time, greatest({_NOW}, h.changed_at) AS late,
         k.seen IS NULL AND (r.ls IS NULL OR (d.seq = r.ls AND d.number = r.ln AND d.attempt = r.la
           AND d.token IS NOT DISTINCT FROM {_OWNER}) IS TRUE) AS fit
    FROM json_to_recordset($1::json) AS r({_ROW})
    LEFT JOIN LATERAL (SELECT h.ctid AS at, h.seq, h.changed_at FROM {{S}}.head h
                        WHERE h.workflow = r.w AND h.id = r.i FOR NO KEY UPDATE SKIP LOCKED) h ON true
    LEFT JOIN LATERAL (SELECT d.seq, d.number, d.attempt, d.token FROM {{S}}.due d
                        WHERE r.ls IS NOT NULL AND d.workflow = r.w AND d.id = r.i AND d.name = {_LEASED}
                          FOR UPDATE SKIP LOCKED) d ON true
    LEFT JOIN LATERAL (SELECT true AS seen FROM {{S}}.line k
                        WHERE r.y IS NOT NULL AND k.workflow = r.w AND k.id = r.i AND k."key" = r.y
                       OFFSET 0) k ON true),
moved AS (
  UPDATE {{S}}.head h SET {_SET_HEAD.format(pos=f"greatest({_POS}, h.pos)", stamp="r.late")}
    FROM judged r
   WHERE r.z IS NOT NULL AND r.present = r.x AND r.fit AND h.ctid = r.head_at
  RETURNING r.*, h.pos, h.changed_at AS stamp),
born AS (
  INSERT INTO {{S}}.head (workflow, id, seq, pos, started_at, changed_at, version, state, status, context, context_seq,
                        top, goal, labels, reason)
  SELECT {_NEW_HEAD}
    FROM judged r
   WHERE r.z IS NOT NULL AND r.x = 0 AND r.present IS NULL AND r.fit
     AND NOT EXISTS (SELECT FROM {{S}}.head e WHERE e.workflow = ANY (ARRAY[r.w]) AND e.id = ANY (ARRAY[r.i]))
  ON CONFLICT DO NOTHING
  RETURNING workflow, id),
good AS MATERIALIZED (
  SELECT * FROM moved
  UNION ALL
  SELECT r.*, NULL, r.late FROM judged r
   WHERE r.z IS NULL AND r.present = r.x AND r.fit
  UNION ALL
  SELECT r.*, NULL, r.time FROM judged r
   WHERE r.z IS NULL AND r.x = 0 AND r.present IS NULL AND r.fit
     AND NOT EXISTS (SELECT FROM {{S}}.head e WHERE e.workflow = ANY (ARRAY[r.w]) AND e.id = ANY (ARRAY[r.i]))
  UNION ALL
  SELECT r.*, {_POS}, r.time FROM judged r
   WHERE r.z IS NOT NULL AND r.x = 0 AND r.present IS NULL
     AND CASE WHEN true THEN (r.w, r.i) IN (SELECT workflow, id FROM born) END),
lines AS (
  INSERT INTO {{S}}.line ({_LINE_COLUMNS})
  SELECT {_LAST_LINE} FROM good g WHERE g.z IS NOT NULL
  UNION ALL
  SELECT {_EARLIER_LINE}
    FROM good g CROSS JOIN LATERAL json_to_recordset(g.m) AS e({_EARLIER}) WHERE g.m IS NOT NULL),
put AS MATERIALIZED (
  SELECT g.w, g.i, (g.r->>'held')::boolean AS hold, p.name, coalesce(p.at, g.time + make_interval(secs => p.wait)) AS at,
         p.seq, p.number, p.attempt, p.version, p.token, p.held, p.body, p.absent
    FROM good g CROSS JOIN LATERAL json_to_recordset(g.u) AS p({_PUT}) WHERE g.u IS NOT NULL),
put_new AS (
  {_INSERT_DUE} SELECT {_PUT_VALUES} FROM put WHERE absent
  ON CONFLICT DO NOTHING
  RETURNING workflow, id, name),
leased AS (
  {_INSERT_DUE} SELECT {_LEASE} FROM good g WHERE g.a IS NOT NULL
  ON CONFLICT DO NOTHING
  RETURNING workflow, id),
put_set AS (
  {_INSERT_DUE} SELECT {_PUT_VALUES} FROM put WHERE absent IS NOT TRUE
  ON CONFLICT (workflow, id, name) DO UPDATE SET at = excluded.at, seq = excluded.seq, number = excluded.number,
    attempt = excluded.attempt, version = excluded.version, token = excluded.token, held = excluded.held,
    body = excluded.body),
dropped AS (
  -- Not by ctid: a row that was renewed since this statement began could be locked by it, and would not be found.
  DELETE FROM {{S}}.due u USING good g
   WHERE g.f IS NOT NULL AND u.workflow = ANY (ARRAY[g.w]) AND u.id = ANY (ARRAY[g.i]) AND u.name = ANY (g.f)),
holding AS (
  UPDATE {{S}}.due u SET held = (g.r->>'held')::boolean FROM good g
   WHERE g.r->>'held' IS NOT NULL AND u.workflow = ANY (ARRAY[g.w]) AND u.id = ANY (ARRAY[g.i])
     AND u.name NOT IN (SELECT json_array_elements_text(g.r->'fixed')))
SELECT g.n, g.stamp, nullif(g.time, g.stamp),
       CASE WHEN g.a IS NOT NULL THEN (g.w, g.i) IN (SELECT workflow, id FROM leased)
            WHEN g.r->>'absent' IS NOT NULL THEN (g.w, g.i) IN (SELECT workflow, id FROM put_new WHERE name = 'effects') END
  FROM good g"""
"""Many changes of different instances, and who writes most of them. Heads, leases and keys are looked at before anything is
written, so that nothing waits for whoever holds one or fails for whose key is known: for each that was done n, its stamp, the time of the
commit if that is another, and whether the absent effects row was written. The others were refused, or another
transaction holds them: a later statement tells."""

GROUP_ERASING: Final = GROUP.replace(
    "\nholding AS (",
    """
erased AS (
  UPDATE {S}.line l SET payload = NULL, context = NULL, reason = NULL FROM good g
   WHERE g.r->>'erase' IS NOT NULL AND l.workflow = ANY (ARRAY[g.w]) AND l.id = ANY (ARRAY[g.i]) AND l.seq <= g.x),
holding AS (""",
    1,
)
"""The same where changes erase earlier lines."""

_UNLESS_HELD = """
     AND EXISTS (SELECT FROM {S}.head l WHERE l.workflow = r.w AND l.id = r.i FOR NO KEY UPDATE SKIP LOCKED)
     AND NOT EXISTS (SELECT FROM {S}.line k WHERE k.workflow = r.w AND k.id = r.i AND k."key" = r.y OFFSET 0)"""
MOVE: Final = f"""
WITH r AS MATERIALIZED (SELECT * FROM json_to_record($1::json) AS r({_ROW})),
moved AS (
  UPDATE {{S}}.head h SET {_SET_HEAD.format(pos=f"greatest({_POS}, h.pos)", stamp=f"greatest({_NOW}, h.changed_at)")}
    FROM r
   WHERE h.workflow = ANY (ARRAY[r.w]) AND h.id = ANY (ARRAY[r.i]) AND h.seq = r.x
  RETURNING r.*, h.pos, h.changed_at AS stamp, {_NOW} AS time),
line AS (
  INSERT INTO {{S}}.line ({_LINE_COLUMNS}) SELECT {_LAST_LINE} FROM moved g)
SELECT 0, stamp, nullif(time, stamp), NULL FROM moved"""
"""The plain case alone, boldly: one line on a head that is there, no due rows."""
MOVE_OWING: Final = MOVE.replace(
    "\nSELECT 0, stamp, nullif(time, stamp), NULL",
    f""",
leased AS (
  {_INSERT_DUE} SELECT {_LEASE} FROM moved g
  ON CONFLICT DO NOTHING
  RETURNING id)
SELECT 0, stamp, nullif(time, stamp), EXISTS (SELECT FROM leased)""",
)
"""The same with the usual lease on its first effect."""
WARILY: Final = {text: text.replace("h.seq = r.x", "h.seq = r.x" + _UNLESS_HELD, 1) for text in (MOVE, MOVE_OWING)}
"""The same two for an instance that somebody may hold: they look first."""

PLAIN: Final = f"""
WITH r AS MATERIALIZED (SELECT * FROM json_to_recordset($1::json) AS r({_ROW})),
moved AS (
  UPDATE {{S}}.head h SET {_SET_HEAD.format(pos=f"greatest({_POS}, h.pos)", stamp=f"greatest({_NOW}, h.changed_at)")}
    FROM r
   WHERE r.z IS NOT NULL AND h.workflow = ANY (ARRAY[r.w]) AND h.id = ANY (ARRAY[r.i]) AND h.seq = r.x
  RETURNING r.*, h.pos, h.changed_at AS stamp, {_NOW} AS time),
line AS (
  INSERT INTO {{S}}.line ({_LINE_COLUMNS}) SELECT {_LAST_LINE} FROM moved g),
leased AS (
  {_INSERT_DUE} SELECT {_LEASE} FROM moved g WHERE g.a IS NOT NULL
  ON CONFLICT DO NOTHING
  RETURNING workflow, id),
held AS MATERIALIZED (
  SELECT r.*, greatest({_NOW}, h.changed_at) AS late
    FROM r CROSS JOIN LATERAL (SELECT h.seq, h.changed_at FROM {{S}}.head h
                                WHERE r.z IS NULL AND h.workflow = r.w AND h.id = r.i FOR NO KEY UPDATE SKIP LOCKED) h
   WHERE h.seq = r.x),
settled AS (
  DELETE FROM {{S}}.due u USING held r
   WHERE u.workflow = ANY (ARRAY[r.w]) AND u.id = ANY (ARRAY[r.i]) AND u.name = ANY (ARRAY['effects'])
     AND u.seq = r.ls AND u.number = r.ln AND u.attempt = r.la AND u.token IS NOT DISTINCT FROM {_OWNER}
  RETURNING r.n, r.late)
SELECT n, stamp, nullif(time, stamp), CASE WHEN a IS NOT NULL THEN (w, i) IN (SELECT workflow, id FROM leased) END
  FROM moved
 UNION ALL
SELECT n, late, NULL, NULL FROM settled"""
"""Plain moves (one line each, no due rows but the usual lease) and ends of queues, as GROUP would do them, but boldly: at
two thirds of the cost, since nothing is looked at twice. Another's lock is waited for, a known key is an error."""

SETTLE: Final = """
WITH h AS MATERIALIZED (
  SELECT seq FROM {S}.head WHERE workflow = $1 AND id = $2 FOR NO KEY UPDATE SKIP LOCKED)
DELETE FROM {S}.due u
 WHERE u.workflow = $1 AND u.id = $2 AND u.name = 'effects' AND (SELECT seq FROM h) = $3::bigint
   AND u.seq = $4::bigint AND u.number = $5::integer AND u.attempt = $6::integer AND u.token IS NOT DISTINCT FROM $7
RETURNING 0, coalesce($8::timestamptz, statement_timestamp()), NULL, NULL"""
"""The last effect of a queue done, alone: its row goes if it is still that effect's, that attempt's, that owner's."""

HOLD: Final = "UPDATE {S}.due SET held = $3 WHERE workflow = $1 AND id = $2 AND held <> $3"
"""Hold or free what was put before the head was locked; in a statement of its own, as it must see that."""

NEXT_LINES: Final = f"""
SELECT {_columns(LINE, "l")} FROM unnest($1::text[], $2::text[], $3::bigint[]) AS q(workflow, id, seq)
 CROSS JOIN LATERAL (SELECT * FROM {{S}}.line l WHERE l.workflow = q.workflow AND l.id = q.id AND l.seq = q.seq OFFSET 0) l"""
"""The lines at these places."""
KEYED_LINES: Final = f"""
SELECT {_columns(LINE, "l")} FROM unnest($1::text[], $2::text[], $3::text[]) AS q(workflow, id, "key")
 CROSS JOIN LATERAL (SELECT * FROM {{S}}.line l WHERE l.workflow = q.workflow AND l.id = q.id AND l."key" = q."key" OFFSET 0) l"""
"""The lines that bear these keys."""

DUE_ROWS: Final = f"""
SELECT {_columns(DUE, "d")} FROM unnest($1::text[], $2::text[], $3::text[]) AS q(workflow, id, name)
 CROSS JOIN LATERAL (SELECT * FROM {{S}}.due d WHERE d.workflow = q.workflow AND d.id = q.id AND d.name = q.name OFFSET 0) d"""
"""The due rows of these names."""

LOCK_HEAD: Final = "SELECT seq FROM {S}.head WHERE workflow = $1 AND id = $2 FOR NO KEY UPDATE SKIP LOCKED"
"""Hold an instance until the transaction ends, without waiting for another."""
HAS_HEAD: Final = "SELECT EXISTS (SELECT FROM {S}.head WHERE workflow = $1 AND id = $2)"
"""Whether there is something to hold."""

# --- due work ---------------------------------------------------------------------------------------

_DUE_PLACE = "SELECT d.workflow, d.id, d.name, d.at, d.token FROM {S}.due d WHERE d.workflow = w.workflow AND d.version <= w.version"
_KNOWN = "unnest($1::text[], $2::integer[]) AS w(workflow, version)"

CLAIM: Final = f"""
WITH clock AS MATERIALIZED (SELECT coalesce($3::timestamptz, statement_timestamp()) AS now),
ripe AS MATERIALIZED (
  SELECT d.* FROM clock CROSS JOIN {_KNOWN}
   CROSS JOIN LATERAL ({_DUE_PLACE} AND NOT d.held AND d.at <= clock.now
                        ORDER BY d.at LIMIT $4::integer FOR UPDATE SKIP LOCKED) d),
orphaned AS MATERIALIZED (
  SELECT d.* FROM clock CROSS JOIN {_KNOWN} CROSS JOIN unnest($7::text[]) AS gone(token)
   CROSS JOIN LATERAL ({_DUE_PLACE} AND d.held::integer = 0 AND d.token = gone.token AND d.at > clock.now
                        ORDER BY d.at + interval '0' LIMIT $4::integer FOR UPDATE SKIP LOCKED) d),
pick AS MATERIALIZED (
  SELECT * FROM (SELECT * FROM ripe UNION ALL SELECT * FROM orphaned) d
   ORDER BY (token = ANY ($7::text[])) IS NOT TRUE, at, workflow, id, name LIMIT $4::integer)
UPDATE {{S}}.due u SET at = clock.now + make_interval(secs => $5::float8), token = $6, attempt = u.attempt + 1
  FROM pick p CROSS JOIN clock
 WHERE u.workflow = ANY (ARRAY[p.workflow]) AND u.id = ANY (ARRAY[p.id]) AND u.name = ANY (ARRAY[p.name])
RETURNING {_columns(DUE, "u")}, (p.token = ANY ($7::text[])) IS NOT TRUE, p.at"""
"""Due rows get an owner; each comes with what says its place in the order: was its owner alive, when was it due. The rows of the dead are so asked for that
the index on times cannot be used: it would pass over all timers."""

RENEW: Final = """
WITH clock AS MATERIALIZED (SELECT coalesce($5::timestamptz, statement_timestamp()) AS now),
mine AS MATERIALIZED (
  SELECT d.* FROM unnest($1::text[], $2::text[], $3::text[]) AS q(workflow, id, name)
   CROSS JOIN LATERAL (SELECT d.workflow, d.id, d.name FROM {S}.due d
      WHERE d.workflow = q.workflow AND d.id = q.id AND d.name = q.name AND d.token IS NOT DISTINCT FROM $4
        FOR UPDATE SKIP LOCKED) d),
renewed AS (
  UPDATE {S}.due u SET at = greatest(u.at, clock.now + make_interval(secs => $6::float8)) FROM mine m CROSS JOIN clock
   WHERE u.workflow = ANY (ARRAY[m.workflow]) AND u.id = ANY (ARRAY[m.id]) AND u.name = ANY (ARRAY[m.name])
  RETURNING u.workflow, u.id, u.name)
SELECT workflow, id, name, NULL FROM renewed UNION ALL SELECT NULL, NULL, NULL, now FROM clock"""
"""Leases get a later end: the rows that were renewed, and last the time."""
OWNED: Final = """
SELECT d.workflow, d.id, d.name FROM unnest($1::text[], $2::text[], $3::text[]) AS q(workflow, id, name)
 CROSS JOIN LATERAL (SELECT d.* FROM {S}.due d
    WHERE d.workflow = q.workflow AND d.id = q.id AND d.name = q.name AND d.token IS NOT DISTINCT FROM $4
    OFFSET 0) d"""
"""Rows that are still an owner's, though somebody else holds a lock on them."""

NEXT_DUE: Final = f"""
SELECT (SELECT min(n.at) FROM {_KNOWN}
         CROSS JOIN LATERAL (SELECT d.at FROM {{S}}.due d WHERE d.workflow = w.workflow AND NOT d.held AND d.version <= w.version
                              ORDER BY d.at LIMIT 1) n),
       ARRAY (WITH RECURSIVE owner AS (
                SELECT w.workflow, w.version, (SELECT d.token FROM {{S}}.due d
                         WHERE d.workflow = w.workflow AND d.token IS NOT NULL ORDER BY d.token LIMIT 1) AS token
                  FROM {_KNOWN}
                UNION ALL
                SELECT o.workflow, o.version, (SELECT d.token FROM {{S}}.due d WHERE d.workflow = o.workflow
                         AND d.token IS NOT NULL AND d.token > o.token ORDER BY d.token LIMIT 1)
                  FROM owner o WHERE o.token IS NOT NULL)
              SELECT DISTINCT o.token FROM owner o
               CROSS JOIN LATERAL (SELECT FROM {{S}}.due d WHERE d.workflow = o.workflow AND d.token = o.token
                                      AND d.held::integer = 0 AND d.version <= o.version LIMIT 1) d),
       statement_timestamp()"""
"""When the first row comes due; who holds leases, found by steps from owner to owner, past all but one of their rows;
what the time is."""

# --- reading ----------------------------------------------------------------------------------------

LOAD: Final = f"""
SELECT q.n, {_columns(HEAD, "h")}, {_columns(DUE, "d")}, {_columns(LINE, "l")}
  FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS q(workflow, id, n)
  CROSS JOIN LATERAL (SELECT * FROM {{S}}.head h WHERE h.workflow = q.workflow AND h.id = q.id OFFSET 0) h
  LEFT JOIN LATERAL (SELECT * FROM {{S}}.due d WHERE d.workflow = q.workflow AND d.id = q.id AND d.name = 'effects' OFFSET 0) d
    ON true
  LEFT JOIN LATERAL (SELECT * FROM {{S}}.line l WHERE l.workflow = q.workflow AND l.id = q.id AND -l.seq <= -d.seq
                        AND l.owes IS NOT NULL AND d.seq IS NOT NULL ORDER BY -l.seq DESC LIMIT 2) l ON true
 ORDER BY q.n, l.seq"""
"""Heads (n: which of those asked for) with their effects row and the first two lines that owe; a row for each such line."""
LOAD_ROWS: Final = LOAD.replace("\n  FROM unnest", ", a.*\n  FROM unnest", 1).replace(
    "\n ORDER BY",
    f"""
 CROSS JOIN LATERAL (SELECT {", ".join(f"array_agg({each} ORDER BY d.name)" for each in _each(DUE, "d"))}
                       FROM {{S}}.due d WHERE d.workflow = q.workflow AND d.id = q.id) a
 ORDER BY""",
    1,
)
"""The same with all due rows of each: their columns as arrays in order of name, null where there are none."""
HISTORY: Final = f"""
SELECT {_columns(LINE)} FROM {{S}}.line
 WHERE workflow = $1 AND id = $2 AND seq > $3::bigint ORDER BY seq LIMIT $4::bigint"""
"""An instance's lines in order."""
_FILTERS = """h.workflow = $1 AND h.id > $2 AND ($3::text[] IS NULL OR h.state = ANY ($3::text[]))
   AND ($4::timestamptz IS NULL OR h.changed_at < $4::timestamptz)
   AND ($5::jsonb IS NULL OR h.labels::jsonb @> $5::jsonb)"""
FIND: Final = f"SELECT {_columns(HEAD, 'h')} FROM {{S}}.head h WHERE {_FILTERS} ORDER BY h.id LIMIT $6::bigint"
"""Heads of one workflow in order of id; read only as far as the page needs."""
FIND_STATUS: Final = f"""
SELECT {_columns(HEAD, "h")} FROM unnest($7::text[]) AS s(status)
 CROSS JOIN LATERAL (SELECT * FROM {{S}}.head h WHERE h.status = s.status AND h.status > '' AND {_FILTERS} ORDER BY h.id LIMIT $6::bigint) h
 ORDER BY h.id LIMIT $6::bigint"""
"""The same of some statuses: from each as many as the page could need."""
READ: Final = f"""
SELECT {_columns(LINE)}, pos FROM {{S}}.line
 WHERE pos >= $1::bigint AND (pos > $1::bigint OR (workflow, id, seq) > ($2, $3, $4::bigint))
   AND pos < $6::bigint
 ORDER BY pos, workflow, id, seq LIMIT $5::bigint"""
"""The feed after a place, below a horizon seen before."""
HORIZON: Final = """
SELECT shift + pg_snapshot_xmin(s)::text::bigint,
       $3 = 0 OR (SELECT replace(commit_id::text, '-', '') FROM {S}.line WHERE workflow = $1 AND id = $2 AND seq = $3) = $4,
       EXISTS (SELECT FROM {S}.line WHERE pos >= shift + pg_snapshot_xmin(s)::text::bigint)
  FROM {S}.meta, pg_current_snapshot() AS s"""
"""Where the feed ends for now: nothing can appear below the oldest transaction that still runs; whether the line is
there after which the reader stands, and not another one in its place; and whether lines wait beyond."""
TIDE: Final = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text"
"""Changes when anybody on the server writes."""
NOTIFY: Final = "SELECT pg_notify($1, $2)"
"""Wake the processes that listen."""
