"""A store that fails when told to: before, after or long before the work is done."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from types import TracebackType
from typing import Literal, NamedTuple, Self, TypeAlias, TypeVar, get_args

from workflow.errors import StoreError, StoreUnavailable
from workflow.record import Answer, Commit, Due, Head, Line, Loaded, Page, Query, Renewed, Wake
from workflow.store import Store

T = TypeVar("T")
When: TypeAlias = Literal["before", "after", "late"]
Error: TypeAlias = type[BaseException] | BaseException

VERBS = frozenset({"append", "load", "history", "recall", "find", "read", "wait", "claim", "renew", "next_due"})


class _Plan(NamedTuple):
    when: When
    error: Error


class Faults:
    """Wraps a store, is one, and fails as planned with `fail`.

    `calls` counts the calls of each verb, those that failed included.
    """

    def __init__(self, store: Store, *, delay: timedelta = timedelta(milliseconds=300)) -> None:
        self.store = store
        self.calls: Counter[str] = Counter()
        self._delay = delay.total_seconds()
        self._plans: dict[tuple[str, int], _Plan] = {}
        self._late: set[asyncio.Task[object]] = set()
        self._opened = 0

    def fail(self, verb: str, nth: int = 1, when: When = "before", error: Error = StoreUnavailable) -> Self:
        """Let the `nth` call of `verb` from now on raise `error`; answers itself, to plan the next.

        "before": nothing is done. "after": it is done, the answer is lost. "late": the error comes
        at once, and the work is done all the same `delay` later. A class of `StoreError` is raised
        with `committed` None for `append`, which is all that a caller can know, else with False.
        Raises `ValueError` for a verb or time that there is not.
        """
        if verb not in VERBS or when not in get_args(When) or nth < 1:
            raise ValueError(f"fail({verb!r}, nth={nth}, when={when!r}): no such call to fail")
        self._plans[verb, self.calls[verb] + nth] = _Plan(when, error)
        return self

    async def landed(self) -> None:
        """Return when all late work is done."""
        while self._late:
            await asyncio.gather(*self._late, return_exceptions=True)

    async def _call(self, verb: str, work: Callable[[], Awaitable[T]]) -> T:
        self.calls[verb] += 1
        plan = self._plans.pop((verb, self.calls[verb]), None)
        if plan is None:
            return await work()
        if plan.when == "after":
            await work()
        elif plan.when == "late":
            self._later(work)
        raise _made(plan.error, verb)

    def _later(self, work: Callable[[], Awaitable[object]]) -> None:
        async def late() -> object:
            await asyncio.sleep(self._delay)
            return await work()

        task = asyncio.create_task(late())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    async def __aenter__(self) -> Self:
        """See `Store.__aenter__`."""
        await self.store.__aenter__()
        self._opened += 1
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        """See `Store.__aexit__`. The last closing waits for late work."""
        self._opened -= 1
        try:
            if self._opened == 0:
                await self.landed()
        finally:
            await self.store.__aexit__(exc_type, exc, tb)

    async def append(self, commits: Sequence[Commit], *, timeout: float | None = None) -> Sequence[Answer]:
        """See `Store.append`."""
        return await self._call("append", lambda: self.store.append(commits, timeout=timeout))

    async def load(self, workflow: str, ids: Sequence[str], *, rows: bool = False) -> Sequence[Loaded | None]:
        """See `Store.load`."""
        return await self._call("load", lambda: self.store.load(workflow, ids, rows=rows))

    async def history(self, workflow: str, id: str, after: int = 0, limit: int | None = None) -> Sequence[Line]:
        """See `Store.history`."""
        return await self._call("history", lambda: self.store.history(workflow, id, after, limit))

    async def recall(self, workflow: str, id: str, key: str) -> Line | None:
        """See `Store.recall`."""
        return await self._call("recall", lambda: self.store.recall(workflow, id, key))

    async def find(self, query: Query) -> Sequence[Head]:
        """See `Store.find`."""
        return await self._call("find", lambda: self.store.find(query))

    async def read(self, cursor: str | None = None, limit: int = 1000) -> Page:
        """See `Store.read`."""
        return await self._call("read", lambda: self.store.read(cursor, limit))

    async def wait(self, timeout: float) -> bool:
        """See `Store.wait`."""
        return await self._call("wait", lambda: self.store.wait(timeout))

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
        return await self._call("claim", lambda: self.store.claim(workflows, token, lease, limit, dead, now))

    async def renew(
        self, token: str, rows: Collection[tuple[str, str, str]], lease: timedelta, now: datetime | None = None
    ) -> Renewed:
        """See `Store.renew`."""
        return await self._call("renew", lambda: self.store.renew(token, rows, lease, now))

    async def next_due(self, workflows: Mapping[str, int], now: datetime | None = None) -> Wake:
        """See `Store.next_due`."""
        return await self._call("next_due", lambda: self.store.next_due(workflows, now))


def _made(error: Error, verb: str) -> BaseException:
    if isinstance(error, BaseException):
        return error
    if issubclass(error, StoreError):  # its builders all take `committed`
        return error(f"{verb} failed as planned", committed=None if verb == "append" else False)
    return error(f"{verb} failed as planned")
