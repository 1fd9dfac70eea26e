"""Rows for the conformance tests: small, complete, and each different from its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from msgspec.structs import replace

from workflow.record import QUEUE, Change, Commit, Due, Head, Lease, Line, Put

FLOW = "order"
ME, OTHER = "token-me", "token-other"
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)


def line(id: str, seq: int, key: str | None = None, *, workflow: str = FLOW, owes: Sequence[str] = ()) -> Line:
    """One line; `commit` fills in by whom it was written."""
    return Line(
        workflow=workflow,
        id=id,
        seq=seq,
        kind="event" if seq > 1 else "start",
        source=f"s{seq - 1}" if seq > 1 else None,
        event="go" if seq > 1 else None,
        target=f"s{seq}",
        status="running",
        commit_id="",
        by="",
        context_seq=seq,
        key=key,
        payload=f'{{"n":{seq}}}',
        context=f'{{"total":{seq}}}',
        owes=tuple(owes),
    )


def head(id: str, seq: int, *, workflow: str = FLOW, status: str = "running", labels: str = "{}") -> Head:
    """The head that stands after line `seq`."""
    return Head(
        workflow=workflow,
        id=id,
        seq=seq,
        state=f"s{seq}",
        status=status,
        context=f'{{"total":{seq}}}',
        context_seq=seq,
        top=seq,
        labels=labels,
    )


def move(
    id: str,
    seq: int = 0,
    *keys: str | None,
    workflow: str = FLOW,
    owes: Sequence[str] = (),
    status: str = "running",
    labels: str = "{}",
    lease: Lease | None = None,
    puts: Sequence[Put] = (),
    drops: Sequence[str] = (),
    held: bool | None = None,
) -> Change:
    """A change that adds one line for each of `keys` (None: a line without key), at least one."""
    numbers = range(seq + 1, seq + 1 + max(1, len(keys)))
    lines = tuple(line(id, n, k, workflow=workflow, owes=owes) for n, k in zip(numbers, keys or (None,), strict=True))
    last = head(id, numbers[-1], workflow=workflow, status=status, labels=labels)
    return Change(
        workflow=workflow,
        id=id,
        seq=seq,
        lines=lines,
        head=last,
        lease=lease,
        puts=tuple(puts),
        drops=tuple(drops),
        held=held,
    )


def touch(
    id: str,
    seq: int,
    *,
    workflow: str = FLOW,
    lease: Lease | None = None,
    puts: Sequence[Put] = (),
    drops: Sequence[str] = (),
    held: bool | None = None,
) -> Change:
    """A change without a line: only due rows."""
    return Change(workflow=workflow, id=id, seq=seq, lease=lease, puts=tuple(puts), drops=tuple(drops), held=held)


def commit(*changes: Change, token: str = ME, now: datetime | None = NOON) -> Commit:
    """One commit with an id of its own, which its lines bear."""
    id = uuid4().hex  # as the engine writes them
    signed = tuple(
        replace(change, lines=tuple(replace(each, commit_id=id, by=token) for each in change.lines))
        for change in changes
    )
    return Commit(id=id, token=token, changes=signed, now=now)


def queue(seq: int, *, number: int = 0, attempt: int = 1, token: str | None = ME, absent: bool = False) -> Put:
    """The `effects` row at that place, leased for a minute if it has a token, else due at once."""
    wait = MINUTE if token is not None else timedelta(0)
    return Put(name=QUEUE, seq=seq, number=number, attempt=attempt, token=token, wait=wait, absent=absent)


def timer(name: str, at: datetime, *, seq: int = 1, version: int = 1, held: bool = False) -> Put:
    """A due row with a time."""
    return Put(name=name, seq=seq, at=at, version=version, held=held)


def lease_of(row: Due) -> Lease:
    """What a commit that settles this row expects."""
    return Lease(token=row.token, seq=row.seq, number=row.number, attempt=row.attempt, name=row.name)


def place(row: Due) -> tuple[str, str, str]:
    """How `renew` names a row."""
    return row.workflow, row.id, row.name
