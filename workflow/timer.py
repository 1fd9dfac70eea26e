"""Timeouts over the lines of one commit: which due rows it writes, which it removes.

A timeout is bound to the entry of its state: it goes in the commit that leaves the state, and
begins in the one that enters it, be it by a move or because what lay above was undone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator, Sequence
from datetime import datetime
from typing import Any

from .errors import GuardError
from .kernel import Accepted, AnySpec, timed
from .record import QUEUE, Head, Line, Put
from .stack import Peek, today
from .word import Move


class Turn:
    """The rows of timeouts that a commit touches, the later word of each counting."""

    __slots__ = ("_rows",)

    def __init__(self) -> None:
        self._rows: dict[str, Put | None] = {}

    @property
    def puts(self) -> tuple[Put, ...]:
        """Timeouts that begin."""
        return tuple(put for put in self._rows.values() if put is not None)

    @property
    def drops(self) -> tuple[str, ...]:
        """Names of those that are void."""
        return tuple(name for name, put in self._rows.items() if put is None)

    def moved(self, verdict: Accepted) -> None:
        """An event was accepted."""
        self._rows.update(dict.fromkeys(verdict.arc.drops))
        self._rows.update((put.name, put) for put in verdict.timers)

    def end(self, names: Sequence[str]) -> None:
        """Nothing is due any more; `names` are all rows there were."""
        self._rows = dict.fromkeys((*self._rows, *(name for name in names if name != QUEUE)))

    def undone(
        self, spec: AnySpec, lines: Sequence[Line], head: Head, peek: Peek, now: datetime, *, ends: bool = False
    ) -> Generator[Awaitable[Any], Any, GuardError | None]:
        """Entries were popped; the timeouts of the one that is the top for good start anew, unless all `ends`."""
        tables = spec.tables.timers
        left = [timer.row for line in lines for timer in tables.get(today(spec, line.source or ""), ())]
        timers = () if head.goal or ends else spec.tables.timers.get(today(spec, head.state), ())
        if not timers:
            self._rows.update(dict.fromkeys(left))
            return None
        entry: Line = yield peek(head.top)
        told: Move[Any, Any, Any] = Move(
            workflow=head.workflow,
            id=head.id,
            seq=entry.seq,
            source=None if entry.source is None else spec.state_of(entry.source),
            event=None if entry.event is None else spec.event_of(entry.event),
            target=spec.state_of(entry.target),
            context=spec.context_codec.decode(head.context),
            at=now,
            payload=None if entry.payload is None else spec.payload_codec(entry.event).decode(entry.payload),
            changes=None,
        )
        puts = timed(spec, timers, told)
        if isinstance(puts, GuardError):
            return puts
        self._rows.update(dict.fromkeys(left))
        self._rows.update((put.name, put) for put in puts)
        return None
