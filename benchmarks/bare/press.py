"""One move of a light as plain values: what all bare limits on a database write."""

from __future__ import annotations

from secrets import token_hex

from msgspec import Struct

from workflow.clock import utcnow

from ..flow import PRESSES, Light, key

_PREFIX = token_hex(8)
_STATES = (Light.RED.value, Light.GREEN.value)
_EVENTS = tuple(press.value for press in PRESSES)


class Row(Struct, frozen=True):
    """Compare-and-set the head from `seq`, append line `seq` + 1 with a key."""

    workflow: str
    id: str
    seq: int
    source: str
    event: str
    target: str
    commit_id: str
    key: str
    at: int
    """Microseconds since 1970."""


def row(id: str, n: int, number: int) -> Row:
    """The n-th press of a light; `number` tells it from all others."""
    at = round(utcnow().timestamp() * 1_000_000)
    return Row(
        "light", id, n + 1, _STATES[n % 2], _EVENTS[n % 2], _STATES[(n + 1) % 2], f"{_PREFIX}{number:016x}", key(n), at
    )
