"""Changes as they travel to PostgreSQL: JSON that `pg_sql.GROUP` takes apart."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
from msgspec import Struct

from workflow.errors import StoreError
from workflow.record import QUEUE, Change, Commit, Head, Kind, Lease, Line, Put, Status

_ENDS = [QUEUE]
_NOBODY = Lease(None, 0, 0, 0)
_encode = msgspec.json.Encoder().encode


class _Earlier(Struct, omit_defaults=True, gc=False):
    """A line before the last of its change."""

    seq: int
    kind: str
    source: str | None
    event: str | None
    target: str
    status: str
    commit_id: str
    by: str
    context_seq: int
    chain: int
    version: int
    key: str | None = None
    payload: str | None = None
    context: str | None = None
    labels: str | None = None
    goal: int | None = None
    below: int | None = None
    undoes: int | None = None
    owes: str | None = None
    reason: str | None = None


class _Put(Struct, omit_defaults=True, gc=False):
    """A due row to write."""

    name: str
    seq: int
    number: int
    attempt: int
    version: int
    at: datetime | None = None
    wait: float | None = None
    token: str | None = None
    held: bool | None = None
    body: str | None = None
    absent: bool | None = None


class _Rare(Struct, omit_defaults=True, gc=False):
    """What most changes do not have, or have as expected."""

    by: str | None = None
    status: str | None = None
    labels: str | None = None
    goal: int | None = None
    undoes: int | None = None
    chain: int | None = None
    reason: str | None = None
    h_state: str | None = None
    h_status: str | None = None
    h_version: int | None = None
    h_context_seq: int | None = None
    h_top: int | None = None
    h_goal: int | None = None
    h_labels: str | None = None
    h_reason: str | None = None
    held: bool | None = None
    fixed: list[str] | None = None
    """Names of due rows that `held` need not reach: they are written or removed anyhow."""
    absent: bool | None = None
    """Is the effects row put only if it is absent?"""
    owner: str | None = None
    """Whose lease is expected, if not the writer's; empty: nobody's."""
    leased: str | None = None
    """Which due row is compared, if not the effects row."""
    erase: bool | None = None


class Sent(
    Struct,
    gc=False,
    omit_defaults=True,
    rename={
        "workflow": "w",
        "id": "i",
        "seq": "x",
        "last": "z",
        "kind": "k",
        "source": "s",
        "event": "e",
        "target": "t",
        "commit_id": "c",
        "key": "y",
        "payload": "p",
        "context_seq": "q",
        "context": "d",
        "below": "b",
        "owes": "o",
        "version": "v",
        "h_context": "h",
        "rare": "r",
        "wait": "a",
        "l_seq": "ls",
        "l_number": "ln",
        "l_attempt": "la",
        "more": "m",
        "puts": "u",
        "drops": "f",
    },
):
    """A change as it travels to the server."""

    n: int
    workflow: str
    id: str
    seq: int
    """The head's `seq` that must be found."""
    now: datetime | None = None
    last: int | None = None
    """The head's `seq` afterwards; none without a line."""
    kind: str | None = None
    source: str | None = None
    event: str | None = None
    target: str | None = None
    commit_id: str | None = None
    key: str | None = None
    payload: str | None = None
    context_seq: int | None = None
    context: str | None = None
    below: int | None = None
    owes: str | None = None
    version: int | None = None
    h_context: str | None = None
    rare: _Rare | None = None
    wait: float | None = None
    """Seconds of the usual lease on the first effect of the last line."""
    l_seq: int | None = None
    l_number: int | None = None
    l_attempt: int | None = None
    more: list[_Earlier] | None = None
    puts: list[_Put] | None = None
    drops: list[str] | None = None


_USUAL = _Rare()


def group(rows: Sequence[tuple[Commit, Change]]) -> tuple[str, str]:
    """The parameters of GROUP and PLAIN: these changes, numbered."""
    by = rows[0][0].token
    return _json([_sent(n, commit, change, by) for n, (commit, change) in enumerate(rows)]), by


def alone(commit: Commit, change: Change) -> tuple[str, str]:
    """The parameters of MOVE and MOVE_OWING."""
    return _json(_sent(0, commit, change, commit.token)), commit.token


def _json(sent: Sent | list[Sent]) -> str:
    try:
        return _encode(sent).decode()
    except UnicodeError as error:
        raise StoreError(f"a text that no database can hold: {error}", committed=False) from error


def settle(commit: Commit, change: Change) -> tuple[str | datetime | None, ...]:
    """The parameters of SETTLE."""
    lease = change.lease or _NOBODY
    return (
        change.workflow,
        change.id,
        str(change.seq),
        str(lease.seq),
        str(lease.number),
        str(lease.attempt),
        lease.token,
        commit.now,
    )


def _sent(n: int, commit: Commit, change: Change, by: str) -> Sent:
    head, lease = change.head, change.lease
    if head is None:
        sent = Sent(n, change.workflow, change.id, change.seq, commit.now)
    else:
        sent = _moved(n, commit, change, head, by)
    if lease is not None:
        sent.l_seq, sent.l_number, sent.l_attempt = lease.seq, lease.number, lease.attempt
        if lease.token != by:
            rare = sent.rare = sent.rare or _Rare()
            rare.owner = lease.token or ""
        if lease.name != QUEUE:
            rare = sent.rare = sent.rare or _Rare()
            rare.leased = lease.name
    if change.erase:
        rare = sent.rare = sent.rare or _Rare()
        rare.erase = True
    if settles(change):
        sent.drops = _ENDS
    elif leases(change, by):
        sent.wait = change.puts[0].wait.total_seconds()
    elif change.puts or change.drops or change.held is not None:
        _schedule(sent, change)
    return sent


def plain(change: Change, by: str) -> bool:
    """Is it what PLAIN writes?"""
    if change.head is None:
        return settles(change)
    if not change.seq or len(change.lines) > 1 or change.lease is not None or change.erase:
        return False
    return leases(change, by) or not (change.puts or change.drops or change.held is not None)


def settles(change: Change) -> bool:
    """Is it no more than the end of a queue?"""
    lease = change.lease
    ends = change.head is None and lease is not None and lease.name == QUEUE and change.drops == (QUEUE,)
    return ends and not (change.puts or change.erase) and change.held is None


def leases(change: Change, by: str) -> bool:
    """Are its due rows just the usual lease: on the first effect of its last line, by whom the group is from?"""
    if len(change.puts) != 1 or change.drops or change.held is not None or change.head is None:
        return False
    put, line = change.puts[0], change.lines[-1]
    first = put.name == QUEUE and put.absent and (put.seq, put.number, put.attempt) == (line.seq, 0, 1)
    return first and put.token == by and put.version == line.version and not (put.held or put.body or put.at)


def _moved(n: int, commit: Commit, change: Change, head: Head, by: str) -> Sent:
    lines = change.lines
    line = lines[-1]
    return Sent(
        n,
        change.workflow,
        change.id,
        change.seq,
        commit.now,
        head.seq,
        line.kind if line.kind != Kind.EVENT else None,
        line.source,
        line.event,
        line.target,
        line.commit_id,
        line.key,
        line.payload,
        line.context_seq,
        line.context,
        line.below,
        _text(line.owes) if line.owes else None,
        line.version,
        head.context,
        _rare(head, line, by),
        more=None if len(lines) == 1 else [_earlier(line) for line in lines[:-1]],
    )


def _rare(head: Head, line: Line, by: str) -> _Rare | None:
    rare = _Rare(
        None if line.by == by else line.by,
        None if line.status == Status.RUNNING else line.status,
        line.labels,
        line.goal,
        line.undoes,
        line.chain or None,
        line.reason,
        None if head.state == line.target else head.state,
        None if head.status == line.status else head.status,
        None if head.version == line.version else head.version,
        None if head.context_seq == line.context_seq else head.context_seq,
        None if head.top == head.seq else head.top,
        head.goal or None,
        None if head.labels == "{}" else head.labels,
        head.reason,
    )
    return None if rare == _USUAL else rare


def _earlier(line: Line) -> _Earlier:
    return _Earlier(
        seq=line.seq,
        kind=line.kind,
        source=line.source,
        event=line.event,
        target=line.target,
        status=line.status,
        commit_id=line.commit_id,
        by=line.by,
        key=line.key,
        payload=line.payload,
        context_seq=line.context_seq,
        context=line.context,
        labels=line.labels,
        goal=line.goal,
        below=line.below,
        undoes=line.undoes,
        owes=_text(line.owes) if line.owes else None,
        chain=line.chain,
        version=line.version,
        reason=line.reason,
    )


def _schedule(sent: Sent, change: Change) -> None:
    """Each due row is touched once: what is dropped and put again is put in its place."""
    drops, puts = dict.fromkeys(change.drops), dict[str, Put]()
    for put in change.puts:
        if put.absent and put.name in puts:
            continue
        puts[put.name] = put if not put.absent or put.name not in drops else msgspec.structs.replace(put, absent=False)
    sent.puts = [_put(put) for put in puts.values()] or None
    sent.drops = [name for name in drops if name not in puts] or None
    queue = puts.get(QUEUE)
    absent = queue is not None and queue.absent
    if absent or change.held is not None:
        rare = sent.rare = sent.rare or _Rare()
        rare.absent = absent or None
        rare.held = change.held
        rare.fixed = [*drops, *(put.name for put in puts.values() if not put.absent)]


def _put(put: Put) -> _Put:
    return _Put(
        name=put.name,
        seq=put.seq,
        number=put.number,
        attempt=put.attempt,
        version=put.version,
        at=put.at,
        wait=put.wait.total_seconds() if put.at is None else None,
        token=put.token,
        held=put.held or None,
        body=put.body,
        absent=put.absent or None,
    )


def _text(owes: tuple[str, ...]) -> str:
    return _encode(owes).decode()
