"""What the desks of a Manager share: the open writer, plans carried out, and outcomes."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, Generic

from . import circle, view
from .background import Background
from .codec import said
from .commit import Writer
from .effect import Result, Run, Runner
from .errors import HookFailed, LeaseLost, Reentrant, StoreError, UnknownInstance, UnknownState, WorkflowError
from .observer import Refused, Repeated, Trouble, Watch
from .plan import Plan
from .record import Head, Outcome
from .sight import Written
from .spec import C, E, S, Spec
from .store import Store, inside
from .within import Within, joined


class Front(Generic[S, E, C]):
    """One spec on one store, once it is open."""

    spec: Spec[S, E, C]
    store: Store
    watch: Watch
    """Whoever observes."""
    _writer: Writer | None = None
    _runner: Runner
    _background: Background

    def _open(self) -> Writer:
        if self._writer is None:
            raise RuntimeError("the Manager is not open; use `async with manager`")
        return self._writer

    async def _carry_out(
        self, plan: Plan, timeout: float | timedelta, within: object | None = None
    ) -> Outcome[S, E, C]:
        writer = self._open()
        deadline = asyncio.get_running_loop().time() + seconds(timeout)
        try:
            if within is not None:
                written = await Within(writer, joined(self.store, within)).run(plan, deadline)
            elif inside(self.store):
                raise Reentrant(plan.id, inside=True)
            else:
                written = await writer.run(plan, deadline)
        except WorkflowError as e:
            self._told(plan, e)
            raise
        if written.duplicate:
            self.watch.tell("duplicate", Repeated(self.spec.name, plan.id, plan.key, written.line.seq))
        if within is not None:
            return self._outcome(written, written.settled)
        if written.held is None:
            outcome = self._outcome(written, written.settled)
            if written.fault is not None:
                raise HookFailed(outcome, written.culprit, 1, written.retry_at, str(written.fault))
            return outcome
        run = self._runner.start(written.held)
        with circle.waiting(writer.node(run.id)):
            await run.over(deadline)
        return self._attended(written, run)

    def _told(self, plan: Plan, error: WorkflowError) -> None:
        """Tell the observer what the caller hears as an error."""
        name = self.spec.name
        if isinstance(error, StoreError):
            self.watch.tell("store_unavailable", Trouble(name, f"a call for {plan.id}", said(error), error))
        elif error.committed is False:
            event = getattr(plan, "event", None)
            self.watch.tell("refused", Refused(name, plan.id, event, plan.key, said(error), error))

    def _attended(self, written: Written, run: Run) -> Outcome[S, E, C]:
        """What the sender hears of the effects of his own move."""
        if not run.result.done():
            return self._outcome(written, False, run.head.state)
        result = run.result.result()
        outcome = self._outcome(written, result.settled, result.head.state)
        _raise(outcome, result)
        return outcome

    def _outcome(self, written: Written, settled: bool, state: str | None = None) -> Outcome[S, E, C]:
        line = view.transition(self.spec, written.line, written.context)
        try:
            now = self.spec.state_of(written.head.state if state is None else state)
        except KeyError:  # a newer version of the spec has moved it on
            unknown = UnknownState(line.workflow, line.id, written.head.state if state is None else state)
            unknown.committed = True
            raise unknown from None
        return Outcome(line, now, written.duplicate, settled)

    async def _load(self, id: str) -> Head:
        loaded = await self._open().load(id)
        if loaded is None:
            raise UnknownInstance(self.spec.name, id)
        return loaded.head


def seconds(timeout: float | timedelta) -> float:
    """A caller's timeout in seconds. Raises ValueError."""
    if type(timeout) is float and 0.0 <= timeout <= 1e9:
        return timeout
    length = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if not 0 <= length < float("inf"):
        raise ValueError(f"timeout must be a finite number of seconds, not {timeout}")
    return length


def _raise(outcome: Outcome[Any, Any, Any], result: Result) -> None:
    """What the caller must hear of effects that did not end well."""
    if result.lost:
        raise LeaseLost(outcome.transition.id, result.culprit)
    if result.fault is not None:
        status = result.head.status
        error = HookFailed(outcome, result.culprit, result.attempt, result.retry_at, str(result.fault), status)
        raise error from result.error
