"""The contract with the world: the ten verbs that a store keeps.

A new feature of the engine adds a record, never a verb. Times are arguments; where none is given,
the store's own clock counts. All stores pass `workflow.testing.StoreConformance`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Protocol, Self, runtime_checkable

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
        3. If `change.lease` is given: the due row of that name is there and not yet past
           (lease.seq, lease.number), else `Gone`; its token, place and attempt are the lease's,
           else `Lost`. Whether the lease has run out does not matter: the token counts.

        Then: lines are appended, the head is replaced (never merged), `drops` are removed, `puts`
        written, and last `held` applied. Lines and head are stamped with the later of the time of
        the commit and the old head's `changed_at`; a new head's `started_at` is its stamp, an old
        one's stays. A put's `wait` counts from the time of the commit. With `change.erase` the earlier
        lines of the instance lose `payload`, `context` and `reason`.

        A commit over several changes (of different instances) answers for all of them with the first
        answer, in order of (workflow, id), that is not `Committed`, and then leaves no trace; if one
        of them landed before, all did. Of two commits in one call that touch one instance the
        earlier goes first. `timeout` (seconds) bounds the wait for other transactions: `Locked`.

        `Committed.leased` is the `effects` row if this commit put or compared it and its token is the commit's;
        for a commit that landed before, the present row, if its token is the commit's.
        """
        ...

    async def load(self, workflow: str, ids: Sequence[str], *, rows: bool = False) -> Sequence[Loaded | None]:
        """The heads of these ids in this order, None where there is none; each with its effects row
        and the first two owing lines from that row's line on, and if `rows` with all its due rows;
        all of one instant."""
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
        """Take up to `limit` rows: those whose token is one of `dead`, and those that are due, earliest first.

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


@runtime_checkable
class Transaction(Protocol):
    """A transaction of the user's: moves made in it commit together with his own rows.

    The reading verbs see what was written in it before. Nothing here waits for another transaction
    longer than it is told to, and the transaction stays usable after every answer. Where the database
    has ended it (deadlock, serialization failure) the verbs raise `Conflict`: the block is to be
    done again.
    """

    @property
    def connection(self) -> Any:
        """The driver's connection, for the user's own statements."""
        ...

    @property
    def store(self) -> Store:
        """Whose instances are moved."""
        ...

    @property
    def open(self) -> bool:
        """Neither committed nor rolled back yet."""
        ...

    async def lock(self, workflow: str, id: str, timeout: float) -> bool:
        """Keep others from moving the instance until the transaction ends; True also where there is
        no instance. False if another transaction still holds it after `timeout` seconds."""
        ...

    async def load(self, workflow: str, ids: Sequence[str], *, rows: bool = False) -> Sequence[Loaded | None]:
        """See `Store.load`."""
        ...

    async def history(self, workflow: str, id: str, after: int = 0, limit: int | None = None) -> Sequence[Line]:
        """See `Store.history`."""
        ...

    async def recall(self, workflow: str, id: str, key: str) -> Line | None:
        """See `Store.recall`."""
        ...

    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        """See `Store.append`; durable when the user's transaction is."""
        ...


@runtime_checkable
class Transactional(Store, Protocol):
    """A store whose moves can commit together with rows of the user's."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Begin a transaction; committed at the end of the block, rolled back if the block raises.
        The task is inside it (`enter`) until then. When it is committed, `wait` answers."""
        ...

    def joined(self, connection: object) -> Transaction:
        """The transaction that is open on a connection of the user's own; the task is inside it
        (`enter`) from now on. Raises TypeError for what is no such connection, `StoreError` if no
        transaction is open on it."""
        ...


_entered: ContextVar[tuple[Transaction, ...]] = ContextVar("transactions", default=())


def enter(transaction: Transaction) -> None:
    """Remember that this task is inside the transaction."""
    connection = transaction.connection
    others = (each for each in _entered.get() if each.open and each.connection is not connection)
    _entered.set((*others, transaction))


def inside(store: Store) -> bool:
    """Is this task inside an open transaction of the store? Then waiting for the store may be for ever."""
    entered = _entered.get()
    return bool(entered) and any(each.open and each.store is store for each in entered)


def outside() -> None:
    """This task does its own work, whatever its starter was inside of."""
    _entered.set(())
