"""What undoing means.

Entries form a stack that is a linked list through the lines: a line that pushes names the entry
below it, the head names the top. Undoing pops one entry a line; entries whose state has nothing to
undo share the commit of the next that has.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeAlias

import msgspec

from .errors import UnknownState
from .kernel import AnySpec, Author
from .record import Head, Kind, Line, Status
from .word import word

Spans: TypeAlias = tuple[tuple[int, int], ...]
Peek: TypeAlias = Callable[[int], Awaitable[Line]]
"""Reads the line with this number."""


def within(spans: Spans, seq: int) -> bool:
    """Does `seq` fall into one of these half-open spans?"""
    return any(low <= seq < high for low, high in spans)


def base(
    spec: AnySpec, head: Head, to: str, peek: Peek
) -> Generator[Awaitable[Any], Any, tuple[Line, Line] | UnknownState | None]:
    """The topmost entry below the present one with state `to`, and the entry just above it.

    UnknownState if the way there leads over a state that no compensator could be told of.
    """
    above: Line = yield peek(head.top)
    if not spec.knows(above.target):
        return UnknownState(head.workflow, head.id, above.target)
    while above.below:
        entry: Line = yield peek(above.below)
        if today(spec, entry.target) == to:
            return entry, above
        if not spec.knows(entry.target):
            return UnknownState(head.workflow, head.id, entry.target)
        above = entry
    return None


def bottom(
    spec: AnySpec, head: Head, peek: Peek
) -> Generator[Awaitable[Any], Any, tuple[Line, Line] | UnknownState | None]:
    """The first entry and the one just above it; otherwise as `base`."""
    above: Line = yield peek(head.top)
    entry = above
    while entry.below:
        above = entry
        if not spec.knows(above.target):
            return UnknownState(head.workflow, head.id, above.target)
        entry = yield peek(entry.below)
    return None if entry is above else (entry, above)


def undo(
    spec: AnySpec, head: Head, goal: int, void: Spans, author: Author, peek: Peek, key: str | None = None
) -> Generator[Awaitable[Any], Any, tuple[list[Line], Head]]:
    """Pop entries until one owes a compensator or `goal` is the top.

    An entry in `void` was never worked on: its effects were dropped before any was attempted, so
    there is nothing to compensate.
    """
    lines: list[Line] = []
    entry: Line = yield peek(head.top)
    while head.top != goal:
        below: Line = yield peek(entry.below or 0)
        untouched = bool(entry.owes) and within(void, entry.seq)
        owes = () if untouched else spec.tables.undo.get(today(spec, entry.target), ())
        line, head = _pop(head, entry, below, 0 if below.seq == goal else goal, owes, author, None if lines else key)
        lines.append(line)
        entry = below
        if owes:
            break
    return lines, head


def _pop(
    head: Head, entry: Line, below: Line, goal: int, owes: tuple[str, ...], author: Author, key: str | None
) -> tuple[Line, Head]:
    seq = head.seq + 1
    line = Line(
        workflow=head.workflow,
        id=head.id,
        seq=seq,
        kind=Kind.COMPENSATE.value,
        source=entry.target,
        event=None,
        target=below.target,
        status=Status.RUNNING.value,
        commit_id=author.commit_id,
        by=author.token,
        context_seq=seq if owes else head.context_seq,
        key=key,
        context=head.context if owes else None,
        goal=None if goal == head.goal and key is None else goal,  # the key's line tells where it led
        undoes=entry.seq,
        owes=owes,
        version=author.version,
    )
    return line, msgspec.structs.replace(
        head,
        seq=seq,
        state=below.target,
        status=Status.RUNNING.value,
        reason=None,
        context_seq=line.context_seq,
        top=below.seq,
        goal=goal,
        version=author.version,
    )


def today(spec: AnySpec, text: str) -> str:
    """The state's word of today: renames applied, a word nobody knows as it is."""
    try:
        return word(spec.state_of(text))
    except KeyError:
        return text
