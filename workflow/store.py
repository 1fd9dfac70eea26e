"""The contract with the world: the ten verbs that a store keeps.

A new feature of the engine adds a record, never a verb. Times are arguments; where none is given,
the store's own clock counts. All stores pass `workflow.testing.StoreConformance`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Protocol, Self, runtime_checkable

from .record import Answer, Commit, Due, Head, Line, Loaded, Page, Query, Renewed, Wake


@runtime_checkable
class Store(Protocol):
    """Where instances live.

    Every verb may raise `StoreUnavailable` (try again later) or `StoreError` (trying again does not
    help), each from the driver's error. `committed` on these errors is False when the store knows
    that nothing was written, None when it does not know.
    """

    async def __aenter__(self) -> Self:
        """Open: create or migrate the schema under a lock. Counted: the second opening of one
        object shares the first. Raises `StoreError` if the schema is newer than this code."""
        ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Close when the last opening is closed."""
        ...

    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        """Do each commit wholly or not at all, and answer each in order; durable when it returns.

        Conditions of a change, looked at in this order, all in the commit's own transaction:

        1. The head's `seq` is `change.seq` (0: no head). Else, if the line after `change.seq` bears
           this commit's id, the commit landed before: `Committed`. Else, if a line of another
           commit bears the key of one of the change's lines: `Duplicate`. Else `Conflicted`.
        2. No line of the instance bears a key of the change's lines. Else `Duplicate`.
        3. If `change.lease` is given: the `effects` row is there and not yet past
           (lease.seq, lease.number), else `Gone`; its token, place and attempt are the lease's,
           else `Lost`. Whether the lease has run out does not matter: the token counts.

        Then: lines are appended, the head is replaced (never merged), `drops` are removed, `puts`
        written, and last `held` applied. Lines and head are stamped with the later of the time of
        the commit and the old head's `changed_at`; a new head's `started_at` is its stamp, an old
        one's stays. A put's `wait` counts from the time of the commit.

        A commit over several changes (of different instances) answers for all of them with the first
        answer, in order of (workflow, id), that is not `Committed`, and then leaves no trace; if one
        of them landed before, all did. Of two commits in one call that touch one instance the
        earlier goes first. `timeout` (seconds) bounds the wait for other transactions: `Locked`.

        `Committed.leased` is the row that this commit put or compared, if its token is the commit's;
        for a commit that landed before, the present row, if its token is the commit's.
        """
        ...

    async def load(self, workflow: str, ids: Sequence[str]) -> Sequence[Loaded | None]:
        """The heads of these ids in this order, None where there is none; each with its effects row
        and the first two owing lines from that row's line on, all of one instant."""
        ...

    async def history(self, workflow: str, id: str, after: int = 0, limit: int | None = None) -> Sequence[Line]:
        """Its lines with `seq` > `after` in order, at most `limit`."""
        ...

    async def recall(self, workflow: str, id: str, key: str) -> Line | None:
        """The line that this key caused."""
        ...

    async def find(self, query: Query) -> Sequence[Head]:
        """Heads that match, in order of id."""
        ...

    async def read(self, cursor: str | None = None, limit: int = 1000) -> Page:
        """The feed of all lines of all workflows from `cursor` on (None: the beginning), in one
        total order that keeps each instance's order and in which no line ever appears before the
        end of what was already read. Raises `StoreError` for a cursor it did not give out."""
        ...

    async def wait(self, timeout: float) -> bool:
        """Return True when something was committed since the call (early or needlessly is allowed),
        False after `timeout` seconds at the latest."""
        ...

    async def claim(
        self,
        workflows: Mapping[str, int],
        token: str,
        lease: timedelta,
        limit: int,
        dead: Collection[str] = (),
        now: datetime | None = None,
    ) -> Sequence[Due]:
        """Take up to `limit` rows that are due, or whose token is one of `dead`, earliest first.

        Only rows of the named workflows with a version at most the one given; never a held row. Each
        row goes to one owner: its token becomes `token`, its attempt grows by one, its time becomes
        `now + lease`. The rows are answered as they are afterwards.
        """
        ...

    async def renew(
        self, token: str, rows: Collection[tuple[str, str, str]], lease: timedelta, now: datetime | None = None
    ) -> Renewed:
        """Push the end of the lease of these (workflow, id, name) to `now + lease` where the token
        is still the owner; answers which are not. A row locked by somebody is not lost, and a renewal
        that comes late never brings a lease's end nearer."""
        ...

    async def next_due(self, workflows: Mapping[str, int], now: datetime | None = None) -> Wake:
        """When to look again, who holds leases, and what the time is. Held rows, and rows of a
        version above the one given, do not count."""
        ...
