"""Instances in the memory of this process: every promise of a store but outliving the process."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from types import TracebackType
from typing import Self

from msgspec.structs import replace

from workflow.clock import utcnow
from workflow.record import (
    QUEUE,
    Answer,
    Change,
    Commit,
    Committed,
    Conflicted,
    Due,
    Duplicate,
    Head,
    Line,
    Loaded,
    Page,
    Query,
    Renewed,
    Wake,
)

from .agenda import Agenda
from .hint import Hint
from .rule import (
    compared,
    cursor_position,
    cursor_text,
    due_put,
    fits,
    not_given_out,
    not_open,
    placed,
    try_puts,
    urgency,
)

FEED = "memory"
_CONFLICTED = Conflicted()


class _Instance:
    """What is known under one id: its present, its lines in order, and what finds them."""

    __slots__ = ("due", "head", "keys", "lines", "owing")

    def __init__(self) -> None:
        self.head: Head | None = None
        self.lines: list[Line] = []
        self.keys: dict[str, Line] = {}
        self.owing: list[int] = []
        self.due: dict[str, Due] = {}

    @property
    def seq(self) -> int:
        return self.head.seq if self.head is not None else 0


class MemoryStore:
    """A store without a file. It outlives its Managers and event loops; one thread uses it.

    No verb but `wait` suspends, so each is atomic by itself.
    """

    def __init__(self) -> None:
        self._opened = 0
        self._instances: defaultdict[tuple[str, str], _Instance] = defaultdict(_Instance)
        self._ids: defaultdict[str, list[str]] = defaultdict(list)
        self._feed: list[Line] = []
        self._agendas: defaultdict[str, defaultdict[int, Agenda]] = defaultdict(lambda: defaultdict(Agenda))
        self._hint = Hint()

    async def __aenter__(self) -> Self:
        """See `Store.__aenter__`."""
        self._opened += 1
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """See `Store.__aexit__`."""
        self._check()
        self._opened -= 1
        self._hint.ring()

    def _check(self) -> None:
        if not self._opened:
            raise not_open(self)

    # --- lines ------------------------------------------------------------------------------------

    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        """See `Store.append`. Nobody can hold an instance for long, so `timeout` never passes."""
        self._check()
        for commit in commits:
            try_puts(commit)  # first: only they can fail
        answers = [self._commit(commit) for commit in commits]
        self._hint.ring()
        return answers

    def _commit(self, commit: Commit) -> Answer:
        changes = commit.changes
        for change in changes if len(changes) == 1 else sorted(changes, key=placed):
            refusal = self._refusal(commit.id, change)
            if refusal is not None:
                return self._landed(commit) or refusal
        now = commit.now or utcnow()
        first = changes[0]
        due = self._instances[first.workflow, first.id].due
        told = (first.lease is not None and first.lease.name == QUEUE) or (first.puts and _puts(first, due))
        at = self._apply(first, now) if len(changes) == 1 else self._apply_all(changes, now)
        after = due.get(QUEUE) if told else None
        return Committed(at, after if after is not None and after.token == commit.token else None)

    def _refusal(self, commit_id: str, change: Change) -> Answer | None:
        instance = self._instances.get((change.workflow, change.id))
        if instance is None:
            return _CONFLICTED if change.seq else compared(None, change.lease)
        if instance.keys:
            for line in change.lines:
                known = instance.keys.get(line.key) if line.key is not None else None
                if known is not None and known.commit_id != commit_id:
                    return Duplicate(known)
        if instance.seq != change.seq:
            return _CONFLICTED
        return compared(instance.due.get(change.lease.name), change.lease) if change.lease is not None else None

    def _landed(self, commit: Commit) -> Committed | None:
        """The answer if one of its changes, and so all of them, was written before."""
        for change in commit.changes:
            instance = self._instances.get((change.workflow, change.id))
            written = instance.lines[change.seq : change.seq + 1] if change.lines and instance is not None else ()
            if written and written[0].commit_id == commit.id:
                row = self._queue(commit.changes[0])
                return Committed(written[0].at, row if row is not None and row.token == commit.token else None)
        return None

    def _queue(self, change: Change) -> Due | None:
        instance = self._instances.get((change.workflow, change.id))
        return instance.due.get(QUEUE) if instance is not None else None

    def _apply_all(self, changes: Sequence[Change], now: datetime) -> datetime:
        """Answers the stamp of the first change that has lines, else of the first."""
        stamps = [self._apply(change, now) for change in changes]
        return next((at for change, at in zip(changes, stamps, strict=True) if change.lines), stamps[0])

    def _apply(self, change: Change, now: datetime) -> datetime:
        instance = self._instances[change.workflow, change.id]
        stamp = now if instance.head is None else max(now, instance.head.changed_at)
        if change.erase:
            self._erase(change, instance)
        if change.head is not None:
            self._write(instance, change.head, change.lines, stamp)
        for name in change.drops:
            self._drop(instance, name)
        for put in change.puts:
            if not (put.absent and put.name in instance.due):
                self._put(instance, due_put(change, put, now))
        if change.held is not None:
            for row in tuple(instance.due.values()):
                self._put(instance, replace(row, held=change.held))
        return stamp

    def _write(self, instance: _Instance, head: Head, lines: Iterable[Line], stamp: datetime) -> None:
        for line in lines:
            written = replace(line, at=stamp)
            instance.lines.append(written)
            self._feed.append(written)
            if line.key is not None:
                instance.keys[line.key] = written
            if line.owes:
                instance.owing.append(line.seq)
        if instance.head is None:
            self._ids[head.workflow].append(head.id)
        started = stamp if instance.head is None else instance.head.started_at
        instance.head = replace(head, started_at=started, changed_at=stamp)

    def _erase(self, change: Change, instance: _Instance) -> None:
        instance.lines = [replace(line, payload=None, context=None, reason=None) for line in instance.lines]
        instance.keys = {line.key: line for line in instance.lines if line.key is not None}
        place, feed = placed(change), self._feed
        for n, line in enumerate(feed):
            if (line.workflow, line.id) == place:
                feed[n] = instance.lines[line.seq - 1]

    def _put(self, instance: _Instance, row: Due) -> None:
        self._drop(instance, row.name)
        instance.due[row.name] = row
        if not row.held:
            self._agendas[row.workflow][row.version].add(row)

    def _drop(self, instance: _Instance, name: str) -> None:
        row = instance.due.pop(name, None)
        if row is not None and not row.held:
            self._agendas[row.workflow][row.version].remove(row)

    # --- reading ----------------------------------------------------------------------------------

    async def load(self, workflow: str, ids: Sequence[str], *, rows: bool = False) -> Sequence[Loaded | None]:
        """See `Store.load`."""
        self._check()
        found = [self._loaded(self._instances.get((workflow, id))) for id in ids]
        return found if not rows else [None if each is None else self._with_rows(each) for each in found]

    def _with_rows(self, loaded: Loaded) -> Loaded:
        due = self._instances[loaded.head.workflow, loaded.head.id].due
        return replace(loaded, rows=tuple(due[name] for name in sorted(due)))

    def _loaded(self, instance: _Instance | None) -> Loaded | None:
        if instance is None or instance.head is None:
            return None
        effects = instance.due.get(QUEUE)
        if effects is None:
            return Loaded(instance.head, None, ())
        first = bisect_left(instance.owing, effects.seq)
        queue = tuple(instance.lines[seq - 1] for seq in instance.owing[first : first + 2])
        return Loaded(instance.head, effects, queue)

    async def history(self, workflow: str, id: str, after: int = 0, limit: int | None = None) -> Sequence[Line]:
        """See `Store.history`."""
        self._check()
        instance = self._instances.get((workflow, id))
        if instance is None:
            return []
        return instance.lines[after : None if limit is None else after + limit]

    async def recall(self, workflow: str, id: str, key: str) -> Line | None:
        """See `Store.recall`."""
        self._check()
        instance = self._instances.get((workflow, id))
        return instance.keys.get(key) if instance is not None else None

    async def find(self, query: Query) -> Sequence[Head]:
        """See `Store.find`. A page costs what it passes over."""
        self._check()
        ids = self._ids.get(query.workflow, [])
        ids.sort()  # a sorted run and a few new ids: next to nothing
        first = 0 if query.after is None else bisect_right(ids, query.after)
        heads = (self._instances[query.workflow, ids[n]].head for n in range(first, len(ids)))
        return list(islice((head for head in heads if head is not None and fits(query, head)), query.limit))

    async def read(self, cursor: str | None = None, limit: int = 1000) -> Page:
        """See `Store.read`."""
        self._check()
        position = cursor_position(FEED, cursor)
        if cursor is not None and position > len(self._feed):
            raise not_given_out(cursor)
        lines = tuple(self._feed[position : position + limit])
        return Page(lines, cursor_text(FEED, position + len(lines)))

    async def wait(self, timeout: float) -> bool:
        """See `Store.wait`."""
        self._check()
        return await self._hint.wait(timeout)

    # --- due work ---------------------------------------------------------------------------------

    async def claim(
        self,
        workflows: Mapping[str, int],
        token: str,
        lease: timedelta,
        limit: int,
        dead: Collection[str] = (),
        now: datetime | None = None,
    ) -> Sequence[Due]:
        """See `Store.claim`."""
        self._check()
        now = now or utcnow()
        found: dict[tuple[str, str, str], Due] = {}
        for agenda in self._known(workflows):
            for row in (*agenda.due(now, limit), *agenda.owned(dead)):
                found[row.workflow, row.id, row.name] = row
        first = sorted(found.values(), key=partial(urgency, dead))[:limit]
        return [self._lease(row, token, now + lease) for row in first]

    def _lease(self, row: Due, token: str, until: datetime) -> Due:
        taken = replace(row, token=token, attempt=row.attempt + 1, at=until)
        self._put(self._instances[row.workflow, row.id], taken)
        return taken

    async def renew(
        self, token: str, rows: Collection[tuple[str, str, str]], lease: timedelta, now: datetime | None = None
    ) -> Renewed:
        """See `Store.renew`."""
        self._check()
        now = now or utcnow()
        return Renewed(frozenset(place for place in rows if not self._renewed(place, token, now + lease)), now)

    def _renewed(self, place: tuple[str, str, str], token: str, until: datetime) -> bool:
        workflow, id, name = place
        instance = self._instances.get((workflow, id))
        row = instance.due.get(name) if instance is not None else None
        if instance is None or row is None or row.token != token:
            return False
        self._put(instance, replace(row, at=max(row.at, until)))
        return True

    async def next_due(self, workflows: Mapping[str, int], now: datetime | None = None) -> Wake:
        """See `Store.next_due`."""
        self._check()
        known = self._known(workflows)
        times = (at for agenda in known if (at := agenda.earliest()) is not None)
        tokens = frozenset(token for agenda in known for token in agenda.owners())
        return Wake(min(times, default=None), tokens, now or utcnow())

    def _known(self, workflows: Mapping[str, int]) -> list[Agenda]:
        """The agendas of these workflows at their versions or below."""
        return [
            agenda
            for workflow, highest in workflows.items()
            if workflow in self._agendas
            for version, agenda in self._agendas[workflow].items()
            if version <= highest
        ]


def _puts(change: Change, due: Mapping[str, Due]) -> bool:
    """Will the change put the effects row among these?"""
    there = QUEUE in due and QUEUE not in change.drops
    return any(put.name == QUEUE and not (put.absent and there) for put in change.puts)
