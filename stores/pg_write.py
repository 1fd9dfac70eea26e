"""Commits in PostgreSQL: which statement writes them, and what those hear that were not written."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any, TypeAlias

from psycopg.types.numeric import Int8

from workflow.errors import StoreError
from workflow.record import QUEUE, Answer, Change, Commit, Committed, Conflicted, Due, Duplicate, Line, Loaded

from . import pg_rows, pg_sent, pg_sql, pg_tables
from .pg_link import LOCKED, RACED, REPEATED, Rows, Wire, sqlstate
from .rule import compared, placed

Run: TypeAlias = Callable[[bytes, Sequence[Any]], Awaitable[Rows]]
"""Runs one statement and gives its rows."""


Wary: TypeAlias = Callable[[Change], bool]
"""May somebody hold the instance of this change, or its key be known?"""

WARY = 1.0
"""Seconds for which an instance that somebody held (all, if a key was repeated) is looked at before it is written."""
RETRY_STARTS = 0.1
"""Seconds between two tries of starts that somebody else's open start blocks."""


class Writer:
    """Writes groups of commits over some connections. See `batch.Write`.

    Boldly: who is held by another transaction makes a whole group wait a moment and fail, and so does a
    key that is known. The group is then done again, warily; so are those held for some time after.
    """

    def __init__(self, schema: pg_tables.Schema, wires: Sequence[Wire]) -> None:
        self._schema = schema
        self._wires = wires
        self._held: dict[tuple[str, str], float] = {}
        self._repeated = -WARY
        self._tried = -RETRY_STARTS

    async def __call__(self, writer: int, commits: Sequence[Commit], timeout: float | None) -> Sequence[Answer | None]:
        """Nothing here waits for another transaction longer than a moment."""
        wary, wire = self._wary(), self._wires[writer]
        if self._held and any(map(self._blocked, commits)):
            answers = await self._without_blocked(wire, commits, wary)
        else:
            answers = await self._write(wire, commits, wary)
        for commit, answer in zip(commits, answers, strict=True):
            if answer is None:
                self._held.update(dict.fromkeys(map(placed, commit.changes), monotonic()))
        return answers

    def _wary(self) -> Wary:
        now = monotonic()
        if now - self._repeated < WARY:
            return _always
        if not self._held:
            return _never
        self._held = {place: at for place, at in self._held.items() if now - at < WARY}
        return lambda change: placed(change) in self._held

    async def _write(self, wire: Wire, commits: Sequence[Commit], wary: Wary) -> list[Answer | None]:
        if len(commits) > 1 and any(map(_holds, commits)):
            return await self._holding(wire, commits, wary)
        try:
            if len(commits[0].changes) > 1 or _holds(commits[0]):
                return [await self._whole(wire, commits[0])]
            return await each(self._schema, wire.run, commits, wary)
        except StoreError as error:
            state = sqlstate(error)
            if state == REPEATED:
                self._repeated = monotonic()
            if len(commits) == 1:
                return [await self._alone(wire, commits[0], error, state)]
            if state in (LOCKED, REPEATED) and wary is not _always:
                return await self._write(wire, commits, _always)
            if state == LOCKED:
                return await self._apart(wire, commits)
            if state in RACED:
                return [(await self._write(wire, [commit], wary))[0] for commit in commits]
            raise

    async def _holding(self, wire: Wire, commits: Sequence[Commit], wary: Wary) -> list[Answer | None]:
        """Those that hold or free all that is due of an instance each take a transaction, the others one statement."""
        plain = [commit for commit in commits if not _holds(commit)]
        answers = (
            dict(zip((commit.id for commit in plain), await self._write(wire, plain, wary), strict=True))
            if plain
            else {}
        )
        for commit in commits:
            if commit.id not in answers:
                answers[commit.id] = (await self._write(wire, [commit], wary))[0]
        return [answers[commit.id] for commit in commits]

    async def _whole(self, wire: Wire, commit: Commit) -> Answer | None:
        """A commit of several statements: all of it or nothing."""
        async with wire.transaction() as transaction:
            answer = await whole(self._schema, transaction.run, commit)
            if answer is None:
                transaction.undo()
        return answer if answer is not None else (await refused(self._schema, wire.run, [commit]))[0]

    async def _alone(self, wire: Wire, commit: Commit, error: StoreError, state: str | None) -> Answer | None:
        """What an error means to the one commit that met it."""
        if state == LOCKED:
            return None
        if state != REPEATED and state not in RACED:
            raise error
        answer = (await refused(self._schema, wire.run, [commit]))[0]
        if answer is None and state == REPEATED:
            raise error
        return answer or Conflicted()

    async def _apart(self, wire: Wire, commits: Sequence[Commit]) -> list[Answer | None]:
        """Somebody else is starting one of these: the others together, then the starts one by one."""
        answers: dict[str, Answer | None] = {}
        others = [commit for commit in commits if commit.changes[0].seq]
        for part in [others] if 0 < len(others) < len(commits) else [[commit] for commit in others]:
            answers.update(zip((commit.id for commit in part), await self._write(wire, part, _always), strict=True))
        for commit in commits:
            if commit.id not in answers:
                answers[commit.id] = (await self._write(wire, [commit], _always))[0]
        return [answers[commit.id] for commit in commits]

    async def _without_blocked(self, wire: Wire, commits: Sequence[Commit], wary: Wary) -> list[Answer | None]:
        """A start that had to wait for another's open start is tried now and then, one at a time: whoever flies with
        it waits as well."""
        blocked = [each for each in commits if self._blocked(each)]
        flying = [each for each in commits if not self._blocked(each)]
        answers: dict[str, Answer | None] = {each.id: None for each in blocked}
        if flying:
            answers.update(zip((each.id for each in flying), await self._write(wire, flying, wary), strict=True))
        if monotonic() - self._tried >= RETRY_STARTS:
            commit = random.choice(blocked)
            answers[commit.id] = (await self._write(wire, [commit], wary))[0]
            self._tried = monotonic()
        return [answers[each.id] for each in commits]

    def _blocked(self, commit: Commit) -> bool:
        change = commit.changes[0]
        return change.seq == 0 and change.head is not None and placed(change) in self._held


def _holds(commit: Commit) -> bool:
    """Does it hold or free all due rows? Then one of these may have been written just before, too late for the
    sight of the statement that has to touch it."""
    return any(change.held is not None for change in commit.changes)


def _always(_: Change) -> bool:
    return True


def _never(_: Change) -> bool:
    return False


async def each(
    schema: pg_tables.Schema, run: Run, commits: Sequence[Commit], wary: Wary = _never
) -> list[Answer | None]:
    """Commits of one change each, each done or not; None: another transaction holds its instance."""
    rows = [(commit, commit.changes[0]) for commit in commits]
    done: dict[int, Answer] = {}
    for row in await _written(schema, run, rows, wary):
        n = int(row[0])
        commit, change = rows[n]
        done[n] = await _answered(schema, run, commit, change, row)
    left = [commit for n, commit in enumerate(commits) if n not in done]
    others = iter(await refused(schema, run, left) if left else ())
    return [done[n] if n in done else next(others) for n in range(len(commits))]


async def whole(schema: pg_tables.Schema, run: Run, commit: Commit) -> Committed | None:
    """A commit inside a transaction; None if part of it was not done: the transaction must be undone."""
    rows = [(commit, change) for change in sorted(commit.changes, key=placed)]
    written = {placed(rows[int(row[0])][1]): row for row in await _written(schema, run, rows, _always)}
    if len(written) < len(rows):
        return None
    for _, change in rows:
        if change.held is not None:
            await run(schema[pg_sql.HOLD], (change.workflow, change.id, change.held))
    first = commit.changes[0]
    stamped = next((change for change in commit.changes if change.lines), first)
    answer = await _answered(schema, run, commit, first, written[placed(first)])
    return Committed(pg_rows.moment(written[placed(stamped)][1]), answer.leased)


async def _written(schema: pg_tables.Schema, run: Run, rows: Sequence[tuple[Commit, Change]], wary: Wary) -> Rows:
    commit, change = rows[0]
    by = commit.token
    bold = wary is _never or not any(wary(each) for _, each in rows)
    if len(rows) == 1 and pg_sent.plain(change, by):
        if change.head is None:
            return await run(schema[pg_sql.SETTLE], pg_sent.settle(commit, change))
        text = pg_sql.MOVE_OWING if change.puts else pg_sql.MOVE
        return await run(schema[text if bold else pg_sql.WARILY[text]], pg_sent.alone(commit, change))
    if bold and all(pg_sent.plain(each, by) for _, each in rows):
        return await run(schema[pg_sql.PLAIN], pg_sent.group(rows))
    erases = any(each.erase for _, each in rows)
    return await run(schema[pg_sql.GROUP_ERASING if erases else pg_sql.GROUP], pg_sent.group(rows))


async def _answered(schema: pg_tables.Schema, run: Run, commit: Commit, change: Change, row: Any) -> Committed:
    """The answer to a change that was done."""
    answer = pg_rows.answered(commit, change, row)
    if answer.leased is None and pg_rows.due_unknown(commit, change, wrote=row[3]):
        (loaded,) = await load(schema, run, [placed(change)])
        return Committed(answer.at, _owned(commit, loaded))
    return answer


def _owned(commit: Commit, loaded: Loaded | None) -> Due | None:
    effects = None if loaded is None else loaded.effects
    return effects if effects is not None and effects.token == commit.token else None


# --- what was not written ---------------------------------------------------------------------------


async def refused(schema: pg_tables.Schema, run: Run, commits: Sequence[Commit]) -> list[Answer | None]:
    """Why commits were not done: looked for in later statements, since what was compared had been
    locked and read at a later moment than the rest was seen."""
    changes = [change for commit in commits for change in commit.changes]
    places = [placed(change) for change in changes]
    named = await _named(schema, run, changes)  # before the heads: where these have not moved, they had not then
    heads = dict(zip(places, await load(schema, run, places), strict=True))
    moved = [change for change in changes if change.lines]
    ids = [change.workflow for change in moved], [change.id for change in moved]
    next_lines = await _lines(schema, run, pg_sql.NEXT_LINES, (*ids, [Int8(change.seq + 1) for change in moved]))
    keyed = [(change, line.key) for change in moved for line in change.lines if line.key is not None]
    of_keys = [change.workflow for change, _ in keyed], [change.id for change, _ in keyed], [key for _, key in keyed]
    keyed_lines = await _lines(schema, run, pg_sql.KEYED_LINES, of_keys)
    return [_refusal(commit, heads, named, next_lines, keyed_lines) for commit in commits]


async def _named(schema: pg_tables.Schema, run: Run, changes: Sequence[Change]) -> dict[tuple[str, str, str], Due]:
    """The rows that leases name, but for effects rows, which come with the heads."""
    asked = [(change, change.lease.name) for change in changes if change.lease is not None]
    asked = [(change, name) for change, name in asked if name != QUEUE]
    if not asked:
        return {}
    places = [change.workflow for change, _ in asked], [change.id for change, _ in asked], [name for _, name in asked]
    rows = [pg_rows.due_of(row) for row in await run(schema[pg_sql.DUE_ROWS], places)]
    return {(row.workflow, row.id, row.name): row for row in rows}


async def _lines(schema: pg_tables.Schema, run: Run, statement: str, values: tuple[list[Any], ...]) -> list[Line]:
    if not values[0]:
        return []
    return [pg_rows.line_of(row) for row in await run(schema[statement], values)]


def _refusal(
    commit: Commit,
    heads: dict[tuple[str, str], Loaded | None],
    named: dict[tuple[str, str, str], Due],
    next_lines: Sequence[Line],
    keyed_lines: Sequence[Line],
) -> Answer | None:
    """What the commit hears; None: nothing is against it but that another transaction held the instance."""
    for line in next_lines:
        if line.commit_id == commit.id:
            return Committed(line.at, _owned(commit, heads[placed(commit.changes[0])]))
    for change in sorted(commit.changes, key=placed):
        loaded = heads[placed(change)]
        keys = {line.key for line in change.lines}
        seen = next(
            (line for line in keyed_lines if _at(line, change) and line.key in keys and line.commit_id != commit.id),
            None,
        )
        if seen is not None:
            return Duplicate(seen)
        if (0 if loaded is None else loaded.head.seq) != change.seq:
            return Conflicted()
        row = None if loaded is None else loaded.effects
        if change.lease is not None and change.lease.name != QUEUE:
            row = named.get((*placed(change), change.lease.name))
        refusal = compared(row, change.lease)
        if refusal is not None:
            return refusal
    return None


def _at(line: Line, change: Change) -> bool:
    return (line.workflow, line.id) == placed(change)


async def load(
    schema: pg_tables.Schema, run: Run, places: Sequence[tuple[str, str]], *, rows: bool = False
) -> list[Loaded | None]:
    """The instances at these places, in this order, all of one instant; with all their due rows if `rows`."""
    values = [workflow for workflow, _ in places], [id for _, id in places]
    if rows:
        return pg_rows.loaded_rows_of(await run(schema[pg_sql.LOAD_ROWS], values), len(places))
    return pg_rows.loaded_of(await run(schema[pg_sql.LOAD], values), len(places))
