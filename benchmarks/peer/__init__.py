"""Peers on the same order: start, PAY (with an amount), PACK, SHIP, and one hook that does nothing. Those that
live in memory press lights as well: one move, nothing else.

Each as its documentation recommends; what it does not do (durability, history, keys) it does not
pay for either. One that is not installed is reported as such.
"""

from __future__ import annotations

from typing import Final

from ..case import MANY, MEMORY, MOVES, ORDERS, POSTGRES, SQLITE, Case
from . import dbos, eventsourcing, statemachine, transitions

PACKAGES: Final = ("dbos", "eventsourcing", "python-statemachine", "transitions")
"""Whose versions are printed."""
TRANSITIONS: Final = "transitions AsyncMachine"
STATEMACHINE: Final = "python-statemachine async"
DBOS: Final = "DBOS"
EVENTSOURCING: Final = "eventsourcing"


def cases() -> list[Case]:
    """Every peer on each of its stores."""
    return [
        Case(MEMORY, TRANSITIONS, MANY, MOVES, transitions.moves),
        Case(MEMORY, TRANSITIONS, MANY, ORDERS, transitions.orders),
        Case(MEMORY, STATEMACHINE, MANY, MOVES, statemachine.moves),
        Case(MEMORY, STATEMACHINE, MANY, ORDERS, statemachine.orders),
        Case(SQLITE, DBOS, MANY, ORDERS, dbos.on_sqlite),
        Case(POSTGRES, DBOS, MANY, ORDERS, dbos.on_postgres),
        Case(SQLITE, EVENTSOURCING, MANY, ORDERS, eventsourcing.orders),
    ]
