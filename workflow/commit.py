"""The one path of every write: load, judge, append, and what to make of each answer.

Here live the rules that money hangs on: a refusal is given only on a fresh load and after a look for
the key; an unknown outcome is settled by appending the identical commit again before the instance
goes on; a lost race is judged again.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from datetime import datetime, timedelta

import msgspec

from . import circle
from .clock import Clock
from .errors import Busy, Conflict, Reentrant, StoreError, WorkflowError
from .kernel import AnySpec, Author
from .lane import Full, Lanes
from .ledger import FIRST_PAUSE, Ledger, took
from .observer import Watch
from .owed import Desk, Held
from .plan import Around, Decided, Plan
from .record import QUEUE, Answer, Commit, Committed, Duplicate, Loaded, Locked
from .sight import LONGEST_PAUSE, Written, context_after, stamped_line
from .store import Store

TRIES = 20
"""How often a call that waits for its turn judges again after others moved the instance. Who steers it tries
until time is over: the instance that never rests is the one to be stopped."""
_HASTY = 2
"""After so many lost races a call pauses before the next: the winner may have its whole lane to work off."""


def breath(tries: int) -> float:
    """Seconds until the next try after so many lost races: by chance, so that rivals fall out of step."""
    longest: float = min(0.001 * 2 ** min(tries, 6), 0.05)
    return longest * random.random()


class Writer(Ledger):
    """Carries out plans on one store for one spec."""

    def __init__(
        self,
        spec: AnySpec,
        store: Store,
        clock: Clock | None,
        lease: timedelta,
        watch: Watch | None = None,
        *,
        inline: bool = True,
    ) -> None:
        super().__init__(spec, store, clock, lease, watch)
        self._around: Around = self if inline else _Posting(self)
        self.lanes = Lanes()
        self.unsettled = 0
        """Unknown outcomes that are being settled in the background."""
        self.adopt: Callable[[Held], object] = lambda held: None
        """Runs a queue whose sender is gone; set by the Manager."""
        self._handed: set[str] = set()

    # --- writing ----------------------------------------------------------------------------------

    async def run(self, plan: Plan, deadline: float) -> Written:
        """Carry the plan out, in order of arrival. `deadline` (on the loop's clock) bounds the waiting,
        not a commit that is on its way."""
        if not plan.waits:
            return await self._carry_out(plan, deadline)
        id = plan.id
        if not self.lanes.enter(id):
            found = await self._line_up(plan, deadline)
            if found is not None:
                return found
        try:
            return await self._carry_out(plan, deadline)
        finally:
            if id in self._handed:
                self._handed.discard(id)
            else:
                self.lanes.leave(id)

    async def _line_up(self, plan: Plan, deadline: float) -> Written | None:
        """Wait for the lane; an answer if the key turns out to be known."""
        try:
            ticket = self.lanes.queue(plan.id)
        except Full:
            await self.load(plan.id)
            found = await self.recall(plan)
            if found is not None:
                return found
            raise Busy(plan.id, "too many callers wait for it") from None
        try:
            found = await self.recall(plan)
            if found is None:
                self._no_circle(plan.id)
                with circle.waiting(self.node(plan.id)):
                    async with asyncio.timeout_at(deadline):
                        await ticket
                return None
        except TimeoutError:
            self.lanes.give_up(plan.id, ticket)
            await self.load(plan.id)
            found = await self.recall(plan)
            if found is None:
                raise Busy(plan.id, "earlier callers are still waiting") from None
            return found
        except BaseException:
            self.lanes.give_up(plan.id, ticket)
            raise
        self.lanes.give_up(plan.id, ticket)
        return found

    def _no_circle(self, id: str) -> None:
        if circle.closes(self.node(id)):
            raise Reentrant(id)

    async def _carry_out(self, plan: Plan, deadline: float) -> Written:
        head = self.recollect(plan.id)
        fresh, tries, pause, rows = False, 0, FIRST_PAUSE, not plan.waits
        loaded = None if head is None or rows else Loaded(head, None, ())
        if loaded is None and not plan.blind:
            loaded, fresh = await self.load(plan.id, rows=rows), True
        while True:
            seconds = self.occupied(loaded) if loaded is not None and plan.waits and not plan.blind else None
            if seconds is not None:
                found = await self._stand_by(plan, deadline, min(seconds, pause), loaded)
                if found is not None:
                    return found
                pause = min(pause * 2, LONGEST_PAUSE)
                loaded, fresh = await self.load(plan.id), True
                continue
            deciding = plan.decide(self._around, loaded)
            if isinstance(deciding, Decided | WorkflowError):
                decision = deciding
            else:
                decision = await self.consider(plan, deciding, deadline)
            if isinstance(decision, Decided):
                answer = await self._append(plan, decision, loaded, deadline)
                if isinstance(answer, Committed):
                    return self._landed(decision, loaded, answer)
                tries += 1
            else:
                answer = None
            if fresh or answer is not None:
                until = deadline if fresh else math.inf  # a head that was out of date is nobody's time
                found = await self._not_written(plan, decision, answer, tries, until, loaded if fresh else None)
                if found is not None:
                    return found
            if tries > _HASTY:
                await asyncio.sleep(breath(tries))
            loaded, fresh = await self.load(plan.id, rows=rows), True

    async def _not_written(
        self,
        plan: Plan,
        decision: Decided | WorkflowError,
        answer: Answer | None,
        tries: int,
        deadline: float,
        seen: Loaded | None,
    ) -> Written | None:
        """Refused, or another was faster: the answer if the key is known, None to judge again."""
        spent = plan.waits and tries >= TRIES
        if isinstance(answer, Duplicate) and not spent:
            return await self.repeated(plan, answer.line, None)
        if isinstance(decision, WorkflowError):
            refusal = decision
        elif isinstance(answer, Locked):
            refusal = Busy(plan.id, "another transaction holds it")
        elif spent or asyncio.get_running_loop().time() > deadline:
            refusal = Conflict(plan.id, tries)
        else:
            return None
        if answer is not None:
            seen = await self.load(plan.id)
        found = await self.recall(plan, seen)
        if found is None:
            raise refusal
        return found

    async def _stand_by(self, plan: Plan, deadline: float, seconds: float, seen: Loaded | None) -> Written | None:
        """Effects are running: wait a while. Raises Busy when time is over, Reentrant in a circle."""
        found = await self.recall(plan, seen)
        if found is not None:
            return found
        self._no_circle(plan.id)
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise Busy(plan.id, "its effects are still running")
        with circle.waiting(self.node(plan.id)):
            await self.rest.wait(plan.id, left if plan.id in self.rest else min(left, seconds))
        return None

    async def _append(self, plan: Plan, decided: Decided, loaded: Loaded | None, deadline: float) -> Answer:
        commit = self.commit(decided.change, decided.line.commit_id)
        try:
            answer, _ = await self.append(commit, deadline)
        except BaseException as e:
            if isinstance(e, asyncio.CancelledError) or (isinstance(e, StoreError) and e.committed is None):
                self._hand_over(plan, commit, decided, loaded)
            raise
        return answer

    def _hand_over(self, plan: Plan, commit: Commit, decided: Decided, loaded: Loaded | None) -> None:
        """The caller is gone or gives up: settle the unknown outcome in the background, in his lane."""
        if self.house.shut:
            return

        async def settle() -> None:
            try:
                while True:
                    try:
                        answer, _ = await self.append(commit, None)
                        break
                    except StoreError:
                        await asyncio.sleep(LONGEST_PAUSE)
                if isinstance(answer, Committed):
                    written = self._landed(decided, loaded, answer)
                    if written.held is not None:
                        self.adopt(written.held)
            finally:
                self.unsettled -= 1
                if plan.waits:
                    self.lanes.leave(plan.id)

        if plan.waits:
            self._handed.add(plan.id)
        self.unsettled += 1
        self.house.spawn(settle, f"settling {plan.id}")

    def _landed(self, decided: Decided, loaded: Loaded | None, answer: Committed) -> Written:
        """The plan is durable: what is known now."""
        head = decided.head
        line = msgspec.structs.replace(decided.line, at=answer.at)
        seen = None if loaded is None else loaded.effects
        change = decided.change
        puts = tuple(put for put in change.puts if put.name == QUEUE)
        if change.held is False:
            self.made_work(None)
        if len(puts) < len(change.puts):
            self.made_work(min(put.at or answer.at + put.wait for put in change.puts if put.name != QUEUE))
        if not puts and (seen is None or QUEUE in change.drops):
            self.remember(head)
            return Written(line, context_after(decided, line), head)
        leased = took(answer, puts)
        if leased is None or head.id in self.rest:
            self.made_work(None)
            again = next((answer.at + put.wait for put in puts if not put.held), None)
            context, fault = context_after(decided, line), decided.fault
            return Written(line, context, head, False, False, None, fault, decided.culprit, again)
        known = tuple(stamped_line(owing, answer.at) for owing in decided.known)
        held = Held(head, leased, known, decided.whole)
        return Written(line, context_after(decided, line), head, settled=False, held=held)


class _Posting:
    """A Writer as plans see it whose effects are left to others: nothing is leased, all is due at once."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.spec = writer.spec
        self.lease = writer.lease

    def now(self) -> datetime:
        """See `Around`."""
        return self._writer.now()

    def author(self) -> Author:
        """See `Around`."""
        return self._writer.author()

    def lessee(self, author: Author) -> str | None:
        """See `Around`."""
        return None

    def desk(self, id: str, author: Author) -> Desk:
        """See `Around`."""
        return self._writer.desk(id, author, leasing=False)

    def runs(self, loaded: Loaded) -> bool:
        """See `Around`."""
        return self._writer.runs(loaded)
