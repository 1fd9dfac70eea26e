"""What is to happen later: events sent with a delay."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any, Generic

import msgspec
from attrs import field, frozen

from . import intake
from .codec import alike, checked
from .commit import Writer, breath
from .errors import Busy, Conflict, Finished, KeyConflict, NotRunning, Reentrant, UnknownInstance
from .firing import Later, later_of, lease_of
from .front import Front
from .record import LATER, Change, Committed, Head, Kind, Line, Loaded, Locked, Put, Status
from .record import Due as Row
from .spec import C, E, S
from .store import inside
from .view import state, transition
from .word import word

_PATIENCE = 30.0
"""Seconds for which these verbs wait for the store, and try again while others move the instance."""


@frozen
class Due:
    """An event that is to be sent later. `at` (aware UTC) is when, or when it was put on record."""

    workflow: str
    id: str
    key: str
    at: datetime = field(eq=False)


class Timekeeper(Front[S, E, C], Generic[S, E, C]):
    """The verbs for what has a time."""

    async def send_later(
        self,
        id: str,
        event: E,
        payload: Any = None,
        *,
        at: datetime | None = None,
        after: timedelta | None = None,
        key: str | None = None,
    ) -> Due:
        """Send the event `at` an aware time or `after` a while; it survives restarts, and is then
        judged like any other. What is not taken then is a `refused` line.

        With `key` a repeat with the same event and payload answers the first one's, pending or
        fired; the line it causes bears the key. Held while the instance is paused or has failed.
        Raises TypeError, ValueError, InvalidPayload, UnknownInstance, Finished, NotRunning,
        KeyConflict, Conflict, Busy, Reentrant, StoreError, StoreUnavailable.
        """
        writer = self._open()
        if type(event) is not type(self.spec.events[0]):
            raise TypeError(f"{event!r} is no {type(self.spec.events[0]).__name__}; send a member of that enum")
        if (at is None) == (after is None):
            raise ValueError("say either when (at) or how long from now (after)")
        if at is not None and at.tzinfo is None:
            raise ValueError(f"at must be an aware time, not {at!r}; give it a tzinfo such as UTC")
        checked("an id", id)
        if key is not None:
            checked("a key", key)
        if inside(self.store):
            raise Reentrant(id, inside=True)
        text = word(event)
        encoded = None
        if payload is not None or text in self.spec.declared:
            encoded, _ = intake.payload(self.spec, text, payload)
        try:
            when = writer.now() + after if after is not None else (at or writer.now()).astimezone(UTC)
        except OverflowError as e:
            raise ValueError(f"no calendar has {at or after!r} in UTC: {e}") from e
        body = Later(text, encoded, when)
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        return await self._sent_later(writer, id, event, key, body, deadline)

    async def _sent_later(
        self, writer: Writer, id: str, event: E, key: str | None, body: Later, deadline: float
    ) -> Due:
        name = f"{LATER}{writer.author().commit_id if key is None else key}"
        due = Due(self.spec.name, id, name.removeprefix(LATER), body.at)
        tries = 0
        while True:
            # A key of ours is on no line before the first try, which may have been written all the same.
            found = None if key is None and not tries else await self._found(id, due, body)
            if found is not None:
                return found
            loaded = await self._rows(id)
            row = _row(loaded, name)
            if row is not None:
                return self._same(due, row, body)
            held = _open_for_more(self.spec, loaded.head, event)
            put = Put(name, loaded.head.seq, version=self.spec.version, held=held, at=body.at, absent=True)
            put = msgspec.structs.replace(put, body=msgspec.json.encode(body).decode())
            change = Change(self.spec.name, id, loaded.head.seq, puts=(put,))
            answer, _ = await writer.append(writer.commit(change, writer.author().commit_id), deadline)
            if isinstance(answer, Locked):
                raise Busy(id, "another transaction holds it")
            if isinstance(answer, Committed):
                writer.made_work(body.at)
                written = None if key is None else _row(await self._rows(id), name)
                # Another call may have been faster with the same key; and a row that is gone was fired since.
                return due if written is None else self._same(due, written, body)
            tries += 1
            await _pause(id, tries, deadline)

    async def cancel_later(self, due: Due) -> bool:
        """Take it back. False if it was put on record meanwhile, or was taken back before.

        Raises UnknownInstance, Conflict, Busy, Reentrant, StoreError, StoreUnavailable.
        """
        writer = self._open()
        if inside(self.store):
            raise Reentrant(due.id, inside=True)
        deadline = asyncio.get_running_loop().time() + _PATIENCE
        tries, tried = 0, False
        while True:
            loaded = await self._rows(due.id)
            row = _row(loaded, f"{LATER}{due.key}")
            if row is None:  # perhaps by a try of ours that was never answered
                return tried and await self.store.recall(self.spec.name, due.id, due.key) is None
            change = Change(self.spec.name, due.id, loaded.head.seq, lease=lease_of(row), drops=(row.name,))
            answer, again = await writer.append(writer.commit(change, writer.author().commit_id), deadline)
            if isinstance(answer, Committed):
                return True
            if isinstance(answer, Locked):
                raise Busy(due.id, "another transaction holds it")
            tried = tried or again
            tries += 1
            await _pause(due.id, tries, deadline)

    async def _rows(self, id: str) -> Loaded:
        (loaded,) = await self.store.load(self.spec.name, (id,), rows=True)
        if loaded is None:
            raise UnknownInstance(self.spec.name, id)
        return loaded

    async def _found(self, id: str, due: Due, body: Later) -> Due | None:
        """What the key stands for if it was fired, or used by another call."""
        line: Line | None = await self.store.recall(self.spec.name, id, due.key)
        if line is None:
            return None
        kept = line.payload
        if kept is None and body.payload is not None:  # perhaps it was erased
            kept = (await self._open().in_full(line, (await self._rows(id)).head)).payload
        same = line.event == body.event and alike(kept, body.payload, line.commit_id)
        if line.kind not in (Kind.EVENT, Kind.REFUSED) or not same:
            raise KeyConflict(id, due.key, transition(self.spec, line, line.context or "null"))
        return Due(due.workflow, due.id, due.key, line.at)

    def _same(self, due: Due, row: Row, body: Later) -> Due:
        pending = later_of(row)
        if (pending.event, pending.payload) != (body.event, body.payload):
            raise KeyConflict(due.id, due.key, None)
        return Due(due.workflow, due.id, due.key, pending.at)


async def _pause(id: str, tries: int, deadline: float) -> None:
    """Until the next try. Raises Conflict when time is over."""
    if asyncio.get_running_loop().time() > deadline:
        raise Conflict(id, tries)
    await asyncio.sleep(breath(tries))


def _row(loaded: Loaded, name: str) -> Row | None:
    return next((row for row in loaded.rows if row.name == name), None)


def _open_for_more(spec: Any, head: Head, event: object) -> bool:
    """May an event be sent later, and is it held for now? Raises Finished, NotRunning."""
    if head.status == Status.FINISHED:
        raise Finished(head.id, state(spec, head), event)
    if head.status in (Status.CANCELLED, Status.ERASED):
        raise NotRunning(head.id, Status(head.status), head.reason)
    return head.status in (Status.PAUSED, Status.FAILED)
