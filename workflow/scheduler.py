"""Schedules: how they are seen and steered."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Generic

import msgspec

from . import schedule
from .codec import clean
from .commit import TRIES
from .cron import Schedule
from .errors import Conflict, Reentrant, UnknownSchedule
from .front import Front
from .kernel import Author
from .record import Change, Loaded, Query, Status
from .schedule import AnySchedule, ScheduleState
from .spec import C, E, S
from .store import inside
from .ticker import Ticker

_PAGE = 500


class Scheduler(Front[S, E, C], Generic[S, E, C]):
    """The verbs for what ticks."""

    _ticker: Ticker

    async def schedules(self) -> list[ScheduleState]:
        """All schedules of the spec that the store has, by name, also those that this Manager does not
        name. Raises StoreError, StoreUnavailable."""
        self._open()
        found: list[ScheduleState] = []
        query = Query(workflow=self._ticker.list, limit=_PAGE)
        while heads := await self.store.find(query):
            states = await self._ticker.load([head.id for head in heads])
            found += [self._state(loaded) for loaded in states if loaded is not None]
            query = msgspec.structs.replace(query, after=heads[-1].id)
        return found

    async def pause_schedule(self, name: str, reason: str = "") -> ScheduleState:
        """No tick is fired until `unpause_schedule`; those missed meanwhile are not made up for.

        A schedule that is paused already stays as it is. Raises UnknownSchedule, Conflict, Busy,
        Reentrant, StoreError, StoreUnavailable.
        """

        def pause(loaded: Loaded, author: Author, _: datetime) -> Change | None:
            return None if loaded.head.status == Status.PAUSED else schedule.paused(loaded, author, clean(reason))

        return await self._steered(name, pause)

    async def unpause_schedule(self, name: str) -> ScheduleState:
        """It goes on with the first tick from now on. Raises as `pause_schedule`."""

        def unpause(loaded: Loaded, author: Author, now: datetime) -> Change | None:
            return None if loaded.head.status != Status.PAUSED else schedule.unpaused(loaded, author, now)

        return await self._steered(name, unpause)

    async def trigger(self, name: str) -> datetime:
        """Fire a schedule of this Manager's now, paused or not, as if this were a tick; it goes on as before.

        Answers the time that stands for the tick (UTC); the key of what is started or sent is made of it.
        Raises UnknownSchedule, AlreadyStarted, what `start` and `send_later` raise, and what the
        schedule's own function does.
        """
        writer = self._open()
        named = self._ticker.schedules.get(name)
        if named is None:
            raise UnknownSchedule(self.spec.name, name, tuple(self._ticker.schedules))
        if inside(self.store):
            raise Reentrant(name, inside=True)
        now = writer.now().astimezone(UTC)
        deliver = self._ticker.asked(named, now, schedule.key_of(name, now, triggered=True))
        held = await deliver()
        if held is not None:
            self._runner.start(held)
        return now

    async def _register(self) -> None:
        """See to the schedules as the Manager opens, before anything runs; what was opened is closed if that fails."""
        try:
            await self._ticker.register()
        except BaseException:
            self._ticker.writer.incarnation.close()
            await self.store.__aexit__(None, None, None)
            raise

    async def _steered(
        self, name: str, change_of: Callable[[Loaded, Author, datetime], Change | None]
    ) -> ScheduleState:
        writer = self._open()
        if inside(self.store):
            raise Reentrant(name, inside=True)
        now = await self._ticker.now()
        for _ in range(TRIES):
            (loaded,) = await self._ticker.load((name,))
            if loaded is None:
                raise UnknownSchedule(self.spec.name, name, [state.name for state in await self.schedules()])
            author = writer.author()
            change = change_of(loaded, author, now)
            if change is None:
                return self._state(loaded)
            await self._ticker.write(change, author.commit_id)
        raise Conflict(name, TRIES)

    def _state(self, loaded: Loaded) -> ScheduleState:
        return schedule.state_of(loaded, loaded.head.id in self._ticker.schedules)


def by_name(schedules: Iterable[AnySchedule]) -> Mapping[str, AnySchedule]:
    """Schedules as a Manager takes them. Raises TypeError, ValueError."""
    found: dict[str, AnySchedule] = {}
    for each in schedules:
        if not isinstance(each, Schedule):  # pyright: ignore[reportUnnecessaryIsInstance]  # callers may be untyped
            raise TypeError(f"schedules holds {each!r}, which is no Schedule")
        if each.name in found:
            raise ValueError(f"two schedules are named {each.name!r}; a name stands for one")
        found[each.name] = each
    return found
