"""Correctness is never traded: what was acknowledged is in the store, in order, once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from .case import NotWhole
from .flow import key


def presses(found: Iterable[tuple[str, int, str | None]], heads: Mapping[str, int], counts: Mapping[str, int]) -> None:
    """Every light has line 1 and then the lines of its presses, each once, and its head says so.

    `found` are (id, seq, key) in order of id and seq. Raises NotWhole.
    """
    lines: dict[str, list[tuple[int, str | None]]] = {id: [] for id in counts}
    for id, seq, seen in found:
        lines[id].append((seq, seen))
    for id, count in counts.items():
        if lines[id] != [(1, None), *((n + 2, key(n)) for n in range(count))]:
            raise NotWhole(f"{id} was pressed {count} times, its {len(lines[id])} lines are not these presses in order")
        if heads[id] != count + 1:
            raise NotWhole(f"the head of {id} is at {heads[id]}, not {count + 1}")


def same(what: str, found: Sequence[object], wanted: Sequence[object]) -> None:
    """Raises NotWhole unless both are equal."""
    if list(found) != list(wanted):
        raise NotWhole(f"{what}: {list(found)[:5]}… instead of {list(wanted)[:5]}…")
