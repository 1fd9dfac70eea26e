"""What an operator does to instances."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from enum import Enum
from typing import Generic

import msgspec

from . import view
from .codec import LIMIT, checked, clean
from .errors import Busy, Conflict, IllegalTransition, NotRunning, Reentrant
from .front import Front, seconds
from .lifecycle import Cancel, Erase, Pause, Retry, Skip, Unpause, Verb, Withdraw
from .record import Outcome, Query, Status, Stuck
from .spec import C, E, S
from .store import inside
from .stuck import ailing
from .word import word

_PAGE = 200
_LIVE = frozenset({Status.RUNNING.value, Status.PAUSED.value, Status.FAILED.value, Status.FINISHED.value})


class Operator(Front[S, E, C], Generic[S, E, C]):
    """The verbs of whoever steers.

    Each writes one line with its reason, and a repeat with the same key answers the first one's.
    What may follow what:

    ======================= ========= ========= ========= ========= ======== ======
    verb, after a status    running   paused    failed    cancelled finished erased
    ======================= ========= ========= ========= ========= ======== ======
    pause                   paused    -         -         -         -        -
    unpause                 -         running   -         -         -        -
    cancel                  cancelled cancelled cancelled -         -        -
    cancel(compensate=True) (1)       -         (1)       -         -        -
    retry                   (2)       -         running   -         (2)      -
    skip                    (2)       -         running   -         (2)      -
    erase                   -         -         -         erased    erased   -
    ======================= ========= ========= ========= ========= ======== ======

    (1) running while compensators run, then cancelled. (2) the status stays; only where something
    waits to be tried again or is set aside. "running" is "finished" where the state is a final one.
    `-` is refused: Finished where finished, IllegalTransition where running, else NotRunning.
    """

    async def pause(
        self, id: str, reason: str = "", *, key: str | None = None, timeout: float | timedelta = 30.0
    ) -> Outcome[S, E, C]:
        """Hold everything: no event is taken, no effect and no timer begins, until `unpause`.

        A hook that runs may settle: its `m.update` counts, what it returns, its retry and the next
        effect are held. One that fails for good meanwhile leaves the instance failed.
        Raises NotRunning, Finished, UnknownInstance, KeyConflict, Conflict, Busy, Reentrant, StoreError,
        StoreUnavailable; so do the others.
        """
        return await self._steer(Pause(*_call(id, key, reason)), timeout)

    async def unpause(
        self, id: str, reason: str = "", *, key: str | None = None, timeout: float | timedelta = 30.0
    ) -> Outcome[S, E, C]:
        """Let it go on; what came due meanwhile is due now. Raises IllegalTransition where it runs, else as `pause`."""
        return await self._steer(Unpause(*_call(id, key, reason)), timeout)

    async def cancel(
        self,
        id: str,
        reason: str = "",
        *,
        key: str | None = None,
        compensate: bool = False,
        timeout: float | timedelta = 30.0,
    ) -> Outcome[S, E, C]:
        """End it wherever it stands: effects not begun and all timers are dropped.

        A hook that runs may settle, but its update and the events it returns are dropped, on one
        `refused` line. With `compensate` all entries are undone first, back to the start; that waits
        for running effects and runs compensators as `compensate()` does, and raises HookFailed as it does: the
        cancel follows once they are done, whoever does them. Otherwise raises as `pause`.
        """
        if compensate:
            return await self._carry_out(Withdraw(*_call(id, key, reason)), timeout)
        return await self._steer(Cancel(*_call(id, key, reason)), timeout)

    async def retry(
        self, id: str, reason: str = "", *, key: str | None = None, timeout: float | timedelta = 30.0
    ) -> Outcome[S, E, C]:
        """Go on from what failed: it is due at once, for any worker, with all its attempts before it.

        Also what only waits to be tried again, and what was set aside. A returned event that was
        refused is judged again, a timeout that could not be judged fires again. Raises
        IllegalTransition if there is nothing of the kind, else as `pause`.
        """
        return await self._steer(Retry(*_call(id, key, reason)), timeout)

    async def skip(
        self, id: str, reason: str = "", *, key: str | None = None, timeout: float | timedelta = 30.0
    ) -> Outcome[S, E, C]:
        """Drop what failed, waits to be tried again or is set aside, on the record; what follows it is due.

        That is one effect or compensator, one returned event that was refused, or one timer; the
        line's payload names it. Raises Busy where it is running, IllegalTransition if there is
        nothing of the kind, else as `pause`.
        """
        return await self._steer(Skip(*_call(id, key, reason)), timeout)

    async def erase(
        self, id: str, reason: str = "", *, key: str | None = None, timeout: float | timedelta = 30.0
    ) -> Outcome[S, E, C]:
        """Remove its context and, from all its lines, payloads, contexts, errors and reasons.

        The skeleton of the history stays, and so do keys: a repeated call is still told from another
        with the same key, by a digest. Labels stay. Only of what is finished or cancelled and owes
        nothing (else Busy). Raises as `pause`.
        """
        return await self._steer(Erase(*_call(id, key, reason)), timeout)

    async def redrive(self, query: Query | None = None, reason: str = "") -> int:
        """`retry` all failed instances, or those of them that `query` finds, page by page; how many those were.

        What moves meanwhile is passed over. Of the query `workflow` must be this spec's, `limit` is
        the length of a page. Raises ValueError for another workflow, Reentrant, StoreError, StoreUnavailable.
        """
        self._open()
        if inside(self.store):
            raise Reentrant("redrive()", inside=True)
        if query is None:
            query = Query(workflow=self.spec.name, limit=_PAGE)
        if query.workflow != self.spec.name:
            raise ValueError(f"the query is for {query.workflow!r}, this Manager has {self.spec.name!r}")
        if query.status is not None and Status.FAILED not in query.status:
            return 0
        states = query.state
        if states is not None:
            states = frozenset(word(state) if isinstance(state, Enum) else state for state in states)
        query, count = msgspec.structs.replace(query, status=frozenset({Status.FAILED.value}), state=states), 0
        while heads := await self.store.find(query):
            for head in heads:
                with suppress(NotRunning, IllegalTransition, Conflict, Busy):
                    await self.retry(head.id, reason)
                    count += 1
            query = msgspec.structs.replace(query, after=heads[-1].id)
        return count

    async def stuck(self, older_than: timedelta | None = None) -> list[Stuck]:
        """What does not go on by itself, and why: instances that failed, effects and timers that are set
        aside or overdue (by more than a lease), states that the spec does not know.

        With `older_than` also those that have been in one state, no final one, for longer. Its cost
        follows the instances that are not cancelled or erased. Raises StoreError, StoreUnavailable.
        """
        writer = self._open()
        found: list[Stuck] = []
        query = Query(workflow=self.spec.name, status=_LIVE, limit=_PAGE)
        while heads := await self.store.find(query):
            now = writer.now()
            for loaded in await self.store.load(self.spec.name, [head.id for head in heads], rows=True):
                if loaded is None or loaded.head.status not in _LIVE:
                    continue
                since = None
                if older_than is not None and loaded.head.started_at < now - older_than:
                    since = now - older_than
                case = await ailing(self.spec, self.store, loaded, now - writer.lease, since)
                if case is not None:
                    found.append(case)
            query = msgspec.structs.replace(query, after=heads[-1].id)
        return found

    async def _steer(self, verb: Verb, timeout: float | timedelta) -> Outcome[S, E, C]:
        """Carry out what waits for no hook."""
        writer = self._open()
        deadline = asyncio.get_running_loop().time() + seconds(timeout)
        if inside(self.store):
            raise Reentrant(verb.id, inside=True)
        written = await writer.run(verb, deadline)
        line = view.transition(self.spec, written.line, written.context)
        return Outcome(line, view.here(self.spec, written.head), written.duplicate, written.settled)


def _call(id: str, key: str | None, reason: object) -> tuple[str, str | None, str | None]:
    """What a caller says, if every store can hold it. Raises InvalidName, TypeError, ValueError."""
    checked("an id", id)
    if key is not None:
        checked("a key", key)
    if not isinstance(reason, str):
        raise TypeError(f"a reason is a text, not {reason!r}")
    if len(reason) > LIMIT:
        raise ValueError(f"a reason has at most {LIMIT:,} characters, not {len(reason):,}")
    return id, key, clean(reason) or None
