"""A move inside a transaction of the user's: judged and written there, durable when that is.

Nothing here waits but for another transaction's end: a lane or a running hook could wait for this
very transaction. Effects are left to whoever finds them due after the commit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator

import msgspec

from .errors import Busy, Conflict, StoreError, WorkflowError
from .kernel import Author
from .ledger import Ledger
from .owed import Desk
from .plan import Decided, Plan
from .record import QUEUE, Committed, Duplicate, Loaded, Locked
from .sight import Sight, Written, context_after
from .store import Store, Transaction, Transactional

_TRIES = 2
"""Only a start that was open elsewhere can overtake who holds the lock, and only once: what a second
look does not show, the transaction cannot see."""


def joined(store: Store, given: object) -> Transaction:
    """The transaction that a caller hands over: one of the store's, or what is open on his connection.

    Raises TypeError for what is neither and for a store that has no transactions, ValueError for
    one of another store, StoreError for one that has ended.
    """
    if not isinstance(store, Transactional):
        raise TypeError(f"{type(store).__name__} has no transactions to make a move within")
    if not isinstance(given, Transaction):
        return store.joined(given)
    if given.store is not store:
        raise ValueError("the transaction is one of another store object than this Manager's")
    if not given.open:
        raise StoreError("the transaction has ended; make the move within one that is open")
    return given


class Within(Sight):
    """One transaction as plans see it, and the one way to write in it."""

    def __init__(self, ledger: Ledger, transaction: Transaction) -> None:
        super().__init__(ledger.spec, transaction, ledger.clock, ledger.lease, ledger.incarnation, ledger.rest)
        self.own_clock = ledger.own_clock
        self._ledger = ledger
        self._transaction = transaction

    def lessee(self, author: Author) -> str | None:
        """Nothing is leased that nobody may run yet."""
        return None

    def desk(self, id: str, author: Author, *, leasing: bool = False) -> Desk:
        """See `Sight.desk`. Nothing is leased that nobody may run yet."""
        return super().desk(id, author, leasing=leasing)

    async def run(self, plan: Plan, deadline: float) -> Written:
        """Carry the plan out. `deadline` (on the loop's clock) bounds the wait for another transaction."""
        found = await self._lock(plan, deadline)
        if found is not None:
            return found
        self._ledger.forget(plan.id)
        refusal: WorkflowError = Conflict(plan.id, _TRIES, inside=True)
        loaded: Loaded | None = None
        for _ in range(_TRIES):
            loaded = await self.load(plan.id)
            written = await self._attempt(plan, loaded, deadline)
            if isinstance(written, Written):
                return written
            if written is not None:
                refusal = written
                break
        found = await self.recall(plan, loaded)
        if found is None:
            raise refusal
        return found

    async def _lock(self, plan: Plan, deadline: float) -> Written | None:
        """Keep others away; an answer if it takes long and the key turns out to be known. Raises Busy."""
        lock, place = self._transaction.lock, (self.spec.name, plan.id)
        if await lock(*place, 0.0):
            return None
        found = await self.recall(plan)
        if found is None and not await lock(*place, _left(deadline)):
            found = await self.recall(plan)
            if found is None:
                raise Busy(plan.id, "another transaction holds it")
        return found

    async def _attempt(self, plan: Plan, loaded: Loaded | None, deadline: float) -> Written | WorkflowError | None:
        """Judge and write: what came of it, why not, or None where another was faster."""
        if loaded is not None and not plan.blind and self.occupied(loaded) is not None:
            return Busy(plan.id, "its effects are running, and a transaction does not wait for them")
        deciding = plan.decide(self, loaded)
        decision = await self.consider(plan, deciding, deadline) if isinstance(deciding, Generator) else deciding
        if not isinstance(decision, Decided):
            return decision
        commit = self.commit(decision.change, decision.line.commit_id)
        (answer,) = await self._transaction.append((commit,), timeout=_left(deadline))
        if isinstance(answer, Committed):
            return _landed(decision, loaded, answer)
        if isinstance(answer, Duplicate):
            return await self.repeated(plan, answer.line, None)
        if isinstance(answer, Locked):
            return Busy(plan.id, "another transaction holds it")
        return None


def _landed(decided: Decided, loaded: Loaded | None, answer: Committed) -> Written:
    """The plan stands, if the transaction will."""
    line = msgspec.structs.replace(decided.line, at=answer.at)
    owed = any(put.name == QUEUE for put in decided.change.puts) or (loaded is not None and loaded.effects is not None)
    return Written(line, context_after(decided, line), decided.head, settled=not owed)


def _left(deadline: float) -> float:
    return max(0.0, deadline - asyncio.get_running_loop().time())
