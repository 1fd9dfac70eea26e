"""What an operator may do to an instance and what then holds: paused it does nothing, cancelled it owes nothing."""

from __future__ import annotations

import json
from typing import Any

from attrs import define, field

from tests.model_time import Timed, Timely
from tests.stage import SEAT, Claimed, Effect, Ended, Rows, Seat, Stage
from workflow import Spec
from workflow.record import LATER, TIMEOUT, Line
from workflow.undoing import WITHDRAWN


class Steered(Timely):
    """A place for a Manager whose calls may be an operator's."""

    async def _do(self, id: str, verb: str, what: str, key: str | None) -> Any:
        if verb in ("pause", "unpause", "retry", "skip", "erase", "cancel"):
            return await getattr(self.manager, verb)(id, "because", key=key)
        if verb == "withdraw":
            return await self.manager.cancel(id, "because", key=key, compensate=True)
        return await super()._do(id, verb, what, key)


@define
class Living(Timed):
    """An instance with a whole life."""

    last: tuple[int, int] | None = None
    """The effect of which somebody held the lease when it was stopped: that may still begin."""
    ends: bool = False
    """A cancel has begun that undoes everything first."""
    unwanted: list[str] = field(factory=list)
    """Effects whose update or event came too late, or may have, for a cancel."""

    # --- an operator's lines ----------------------------------------------------------------------

    def _stopped(self, status: str) -> None:
        self.status, self.last = status, self.leased

    def late(self, effect: Effect) -> bool:
        last, self.last = self.last, None
        return last is not None and effect is [e for e in self.owed if e.seq == last[0]][last[1]]

    def pause(self, line: Line) -> None:
        assert self.status == "running"
        self._stopped("paused")

    def unpause(self, line: Line) -> None:
        assert self.status == "paused"
        self.status = self._free()

    def cancel(self, line: Line) -> None:
        assert self.status in ("running", "paused", "failed")
        if line.key is None:
            assert (self.ends, self.pending(), self.goal) == (True, [], 0), "everything is undone first"
        ended = [
            e.name for e in self.owed if e.done and (e.seq in self.updates or e.seq in {s for s, *_ in self.events})
        ]
        self.unwanted = ended[-1:]
        for effect in self.pending():
            effect.void = True
        self.rows = {name: row for name, row in self.rows.items() if name.startswith(LATER)}  # see `due`
        self.events, self.updates, self.goal = [], [], 0
        self._stopped("cancelled")

    def retry(self, line: Line) -> None:
        if line.payload is not None:
            self._taken_up(line)
            return
        assert self.status in ("running", "finished", "failed")
        if self.status != "failed":
            waits = any(e.again for e in self.pending()[:1]) or any(row.claims for row in self.rows.values())
            assert waits or self.events or not self.fenced, "nothing is to be tried again"
        for row in self.rows.values():
            row.claims, row.moved = 0, True
        for effect in self.pending()[:1]:
            effect.again = True
        self.status = self._free()

    def _taken_up(self, line: Line) -> None:
        assert (self.status, self.goal) == ("failed", 0)
        assert self.pending()[0].undoing
        self.ends = self.ends or line.payload == WITHDRAWN
        assert self.ends or str(line.key)[:-2] == f"to/{self.state}"
        self.pending()[0].again, self.status = True, "running"

    def skip(self, line: Line) -> None:
        assert self.status in ("running", "finished", "failed")
        what = None if line.payload is None else json.loads(line.payload)["skipped"]
        if what is None:
            assert self.status == "failed"
        elif what.startswith("event "):
            assert self.events.pop(0)[2] == what.removeprefix("event ")
        elif what.startswith((TIMEOUT, LATER)):
            assert self.rows.pop(what).claims, "it was not tried"
        else:
            effect = self.pending()[0]
            assert effect.name.split("/", 3)[3] == what
            assert effect.again or not self.fenced, "it did not fail"
            effect.void = True
        self.status = self._free()

    def erase(self, line: Line) -> None:
        assert self.status in ("finished", "cancelled")
        assert not self.pending()
        self.unwanted, self.status = [], "erased"
        self.rows = {name: row for name, row in self.rows.items() if name.startswith(LATER)}

    def _free(self) -> str:
        return "finished" if self.state in self.sketch.final else "running"

    def due(self, entry: Rows | Claimed) -> None:
        super().due(entry)
        call = entry.call if isinstance(entry, Rows) else None
        if call is not None and call.verb in ("cancel", "erase") and self.status in ("cancelled", "erased"):
            for name in self.rows:  # only what was sent during the call itself; it is dropped when it comes due
                assert self._span(name).begin >= call.begin, f"{name} outlives it"

    # --- what they change of other lines ----------------------------------------------------------

    def refused(self, line: Line) -> None:
        if self.status != "cancelled":
            assert self.status != "paused", "it is held"
            super().refused(line)
            return
        assert self.unwanted, "nothing came too late"
        self.unwanted = []

    def fail(self, line: Line) -> None:
        if line.status == "failed":
            event = self.sketch.on_failure
            if event is not None and not self.row and self.pending() and self.status == "running":
                given_up = self.pending()[0]
                chained = self.lines[given_up.seq - 1].chain < self.sketch.max_chain
                taken = self.sketch.way(event, self.state, self.n) is not None and chained
                undoing = given_up.undoing or self.goal or any(e.undoing for e in self.pending())
                assert self.doubts or not taken or undoing, f"{event} might have been taken"
            super().fail(line)
            return
        assert self.sketch.on_failure is not None
        assert self.status in ("running", "finished", "paused")
        effect = self.pending()[0]
        assert (effect.again, effect.undoing) == (True, False), "it was not given up"
        effect.void = True
        self.events.insert(0, (effect.seq, 0, self.sketch.on_failure))

    def compensate(self, line: Line) -> None:
        assert self.status != "paused", "it is held"
        super().compensate(line)

    def aim(self, line: Line) -> int:
        self.ends = self.ends or line.payload == WITHDRAWN
        return 1 if line.payload == WITHDRAWN else super().aim(line)

    def lowest(self, line: Line, top: tuple[int, str]) -> int:
        return 1 if line.payload == WITHDRAWN else super().lowest(line, top)

    def _begin(self, line: Line) -> None:
        super()._begin(line)
        if self.ends:
            self.rows = {name: row for name, row in self.rows.items() if name.startswith(LATER)}

    def ended(self, ended: Ended) -> None:
        effect = next(e for e in self.owed if e.name == ended.name)
        mine = ended.seat == effect.seat or not self.fenced
        if self.status == "cancelled" and mine and ended.did and (ended.update or ended.event is not None):
            self.unwanted.append(ended.name)
        super().ended(ended)


# --- the end --------------------------------------------------------------------------------------


async def freed(stage: Stage, spec: Spec[Any, Any, int], seats: list[Seat], ids: list[str]) -> None:
    """Nothing goes wrong any more: what is paused goes on, and what failed is tried once more."""
    stage.curtain = True
    stage.planned.clear()
    seat = Steered(stage, "operator", spec, work=False)
    seats.append(seat)
    await seat.manager.__aenter__()
    SEAT.set(seat)
    for id in ids:
        if id in stage.lines:
            status = (await stage.store.load(spec.name, [id]))[0].head.status  # type: ignore[union-attr]  # it is there
            if status in ("paused", "failed"):
                await seat.call(id, "unpause" if status == "paused" else "retry", "", "the end")


def at_peace(instance: Living) -> None:
    """Nothing is held at the end but what failed, and nothing lives on that was cancelled."""
    assert instance.status != "paused"
    if instance.status in ("cancelled", "erased"):
        assert not instance.rows
