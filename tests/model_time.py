"""What is due of an instance and when, in words of its own: timeouts of its entry, events sent with a delay.

Told of every commit what is due after it, the model objects to a row that is lost, stale, early or
held for no reason; at the end it objects to calls that were answered wrongly.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from attrs import define, field

from tests.model import Instance
from tests.stage import RETRY, Began, Call, Claimed, Rows, Seat, Stage
from workflow import Busy, Conflict, Due, Finished, KeyConflict, NotRunning, StoreError, UnknownInstance
from workflow.firing import later_of
from workflow.record import LATER, QUEUE, TIMEOUT, Line

VERBS = ("later", "unlater")
"""Calls on events sent with a delay: `send_later` and `cancel_later`."""


class Timely(Seat):
    """A place for a Manager whose calls may have a time; `what` of a `later` is the event and the seconds."""

    async def _do(self, id: str, verb: str, what: str, key: str | None) -> Any:
        if verb == "later":
            event, seconds = what.split("/")
            return await self.manager.send_later(
                id, self._events[event], after=timedelta(seconds=int(seconds)), key=key
            )
        if verb == "unlater":
            return await self.manager.cancel_later(Due("play", id, what, self.stage.clock.now()))
        return await super()._do(id, verb, what, key)


@define
class Pending:
    """A due row that must be there."""

    event: str
    seq: int
    at: datetime
    claims: int = 0
    moved: bool = False
    """Its row need not have the time any more that it began with."""
    claimed: int = 0
    """How many hooks had begun when it was claimed last."""


@define
class Span:
    """From when to when (in numbers of the record) a delayed event was pending."""

    name: str
    begin: int
    by: Call
    end: int = 10**9
    taken: Call | None = None
    """The call that took it back."""


@define
class Timed(Instance):
    """An instance with timeouts, and events sent with a delay."""

    doubts: bool = False
    """Guards raise now and then."""
    rows: dict[str, Pending] = field(factory=dict)
    spans: list[Span] = field(factory=list)
    begun: int = 0
    """How many hooks have begun."""
    leased: tuple[int, int] | None = None
    """The effect (line, number) of which somebody holds the lease."""

    # --- lines ------------------------------------------------------------------------------------

    def enter(self, line: Line, state: str, *before: tuple[str, int]) -> None:
        super().enter(line, state, *before)
        self._begin(line)

    def compensate(self, line: Line) -> None:
        super().compensate(line)
        self._begin(line)

    def _begin(self, line: Line) -> None:
        """The timeouts of what was left are void; those of what is the state now begin."""
        self.rows = {name: row for name, row in self.rows.items() if name.startswith(LATER)}
        for wait in () if self.goal else self.sketch.waits.get(self.state, ()):
            lasts = wait.lasts(self.n)
            if lasts is not None:
                self.rows[wait.row] = Pending(wait.event, self.stack[-1][0], line.at + lasts)

    def event(self, line: Line) -> None:
        if self.row:
            assert (line.kind == "timeout") == self.row.startswith(TIMEOUT)
            self._fire(line)
        super().event(line)

    def timeout(self, line: Line) -> None:
        assert self.row.startswith(TIMEOUT), "of no row"
        self.event(line)

    def refused(self, line: Line) -> None:
        if not self.row:
            super().refused(line)
            return
        self._fire(line)
        if self.row.startswith(LATER) and line.key is None:
            return
        assert self.status in ("running", "finished"), "it is held"
        taken = self.sketch.way(line.event, self.state, self.n)
        assert self.status == "finished" or taken is None, "it might have been taken"

    def fail(self, line: Line) -> None:
        if not self.row and not (self.doubts and (self.events or self.goal)):
            super().fail(line)
            return
        needed = RETRY.attempts + (not self.doubts)  # with doubts the last may fail, else it was never made
        assert not self.row or self.rows[self.row].claims >= needed, "not every attempt was made"
        used = {line.key for line in self.lines}
        assert self.row.removeprefix(LATER) not in used, "its key was used, it is not to be sent"
        self.status = "failed"

    def _fire(self, line: Line) -> None:
        assert self.row in self.rows, "that row is void"
        row = self.rows.pop(self.row)
        assert line.at >= row.at, "too early"
        assert (line.event, line.chain) == (row.event, 0)
        key = self.row.removeprefix(LATER) if self.row.startswith(LATER) else None
        if line.kind == "refused" and line.key is None and key is not None:
            taken = next((other for other in self.lines if other.key == key), None)
            assert taken is not None, "its key was free"
            assert (taken.event, taken.payload) != (line.event, line.payload), "it had been sent already"
            self.fired.add(line.seq)
            return
        assert line.key == key
        if self.fenced and self.running is not None:  # one that was claimed meanwhile may not have been seen
            assert self.begun > row.claimed, f"{self.running} is still running"
        assert not self.goal, "an undoing is under way"
        self.fired.add(line.seq)

    def began(self, began: Began) -> None:
        super().began(began)
        self.begun += 1

    # --- rows -------------------------------------------------------------------------------------

    def due(self, entry: Rows | Claimed) -> None:
        if isinstance(entry, Claimed):
            self._claimed(entry)
            return
        queue = entry.queue
        self.leased = None if queue is None or queue.token is None else (queue.seq, queue.number)
        found = {name: (row.seq, row.held) for name, row in entry.rows.items() if name.startswith(TIMEOUT)}
        held = self.status in ("failed", "paused")
        wanted = {name: (row.seq, held) for name, row in self.rows.items() if name.startswith(TIMEOUT)}
        assert found == wanted, "timeouts"
        self._delayed(entry)
        assert queue is None or queue.held == held, f"effects are held={not held} while {self.status}"
        for name, row in entry.rows.items():
            assert row.held == held, f"{name}: held={row.held} while {self.status}"
            pending = self.rows[name]
            assert row.at >= pending.at, f"{name} is early"
            assert pending.moved or row.at == pending.at, f"{name} is late"

    def _claimed(self, entry: Claimed) -> None:
        if entry.row.name == QUEUE:
            assert self.status not in ("paused", "failed"), f"effects are claimed while {self.status}"
            self.leased = (entry.row.seq, entry.row.number)
            return
        pending = self.rows[entry.row.name]
        assert entry.now >= pending.at, "claimed too early"
        pending.claims, pending.claimed, pending.moved = pending.claims + 1, self.begun, True

    def _delayed(self, entry: Rows) -> None:
        """Events sent with a delay come with their call, and go when they are fired or taken back."""
        found = {name: row for name, row in entry.rows.items() if name.startswith(LATER)}
        keys = {line.key for line in self.lines}
        for name in [name for name in self.rows if name.startswith(LATER) and name not in found]:
            del self.rows[name]
            back = entry.call is not None and entry.call.verb == "unlater" and f"{LATER}{entry.call.what}" == name
            over = self.status in ("cancelled", "erased")
            assert back or over or name.removeprefix(LATER) in keys, f"{name} is lost"
            span = self._span(name)
            span.taken = entry.call if back else None
        for name, row in found.items():
            if name not in self.rows:
                call = entry.call
                assert call is not None, f"nobody asked for {name}"
                assert call.verb == "later", f"{call} made {name}"
                assert call.key is None or f"{LATER}{call.key}" == name
                body = later_of(row)
                assert call.what.split("/")[0] == body.event
                assert entry.number < call.end or call.answer is None or isinstance(call.answer, Exception), (
                    f"{name} comes again after {call} was answered"
                )
                self.rows[name] = Pending(body.event, row.seq, body.at)
                self.spans.append(Span(name, entry.number, call))
        for span in self.spans:
            if span.end > entry.number and span.name not in self.rows:
                span.end = entry.number

    def _span(self, name: str) -> Span:
        return next(span for span in reversed(self.spans) if span.name == name)


# --- verdict --------------------------------------------------------------------------------------


def on_time(stage: Stage, instance: Timed) -> None:
    """Nothing due is left at the end, and calls with a time were answered rightly."""
    now = stage.clock.now()
    if instance.status in ("running", "finished"):
        overdue = {name: row for name, row in instance.rows.items() if row.at <= now or name.startswith(LATER)}
        assert not overdue, f"never fired: {overdue}"
    id = instance.lines[0].id if instance.lines else ""
    for call in stage.calls:
        if call.id == id and call.verb in VERBS:
            (_sent_later if call.verb == "later" else _taken_back)(call, instance)


def _sent_later(call: Call, instance: Timed) -> None:
    answer, during = call.answer, instance.past[call.before : call.after + 1]
    lines = [line for line in instance.lines[: call.after] if line.key is not None and line.key == call.key]
    if isinstance(answer, Due):
        name = f"{LATER}{answer.key}"
        assert call.key is None or call.key == answer.key
        there = any(s.begin < call.end and s.end >= call.begin for s in instance.spans if s.name == name)
        assert there or lines, f"{call} was answered, and nothing is due"
    elif isinstance(answer, Finished):
        assert any(past.status == "finished" for past in during)
    elif isinstance(answer, NotRunning):
        assert any(past.status == answer.status for past in during)
    elif isinstance(answer, KeyConflict):
        event = call.what.split("/")[0]
        others = [s.by for s in instance.spans if s.begin < call.end and s.end >= call.begin]
        other = any(by.key == call.key and by.what.split("/")[0] != event for by in others)
        assert other or any(line.event != event or line.kind not in ("event", "refused") for line in lines)
    elif isinstance(answer, UnknownInstance):
        assert not call.before
    else:
        assert answer is None or isinstance(answer, (Busy, Conflict, StoreError)), f"{call}: {answer!r}"


def _taken_back(call: Call, instance: Timed) -> None:
    name = f"{LATER}{call.what}"
    mine = [span for span in instance.spans if span.taken is call]
    if call.answer is True:
        assert len(mine) == 1, f"{call}: it was not taken back"
    elif call.answer is False:
        assert not mine, f"{call}: it was taken back"
        whole = [s for s in instance.spans if s.name == name and s.begin < call.begin and s.end >= call.end]
        assert not whole, f"{call}: it was there all the time"
    elif isinstance(call.answer, UnknownInstance):
        assert not call.before
    else:
        assert call.answer is None or isinstance(call.answer, (Busy, Conflict, StoreError)), f"{call}: {call.answer!r}"


def only_timeouts(stage: Stage) -> bool:
    """Is nothing owed but timeouts, which may begin again and again?"""
    rows = [row for instance in stage.store._instances.values() for row in instance.due.values()]
    return all(row.name.startswith(TIMEOUT) for row in rows if not row.held)
