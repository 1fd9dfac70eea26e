"""Order of arrival: calls on one instance are judged one after the other.

An instance has a lane only while somebody is in it, so nothing is kept for instances at rest. A call
that finds the lane free makes no object at all.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TypeAlias

CAPACITY = 1000
"""Most callers that may wait for one instance."""

Ticket: TypeAlias = "asyncio.Future[None]"


class Full(Exception):
    """The lane has no place left."""


class Lanes:
    """The lanes of one Manager, by instance id."""

    __slots__ = ("_lanes",)

    def __init__(self) -> None:
        self._lanes: dict[str, deque[Ticket] | None] = {}

    def enter(self, id: str) -> bool:
        """Take the lane if it is free; on False, `queue` for it."""
        if id in self._lanes:
            return False
        self._lanes[id] = None
        return True

    def queue(self, id: str) -> Ticket:
        """Stand in line for a taken lane. The ticket is done when the lane is the holder's; it must
        then be left, otherwise given up. Raises Full."""
        waiting = self._lanes[id]
        if waiting is None:
            waiting = self._lanes[id] = deque()
        if len(waiting) >= CAPACITY:
            raise Full
        ticket: Ticket = asyncio.get_running_loop().create_future()
        waiting.append(ticket)
        return ticket

    def give_up(self, id: str, ticket: Ticket) -> None:
        """Step out of the line, whether or not the turn has come meanwhile."""
        if ticket.done() and not ticket.cancelled():
            self.leave(id)
        else:
            ticket.cancel()
            waiting = self._lanes.get(id)
            if waiting is not None and ticket in waiting:
                waiting.remove(ticket)

    def leave(self, id: str) -> None:
        """Hand the lane to the next in line."""
        waiting = self._lanes[id]
        while waiting:
            ticket = waiting.popleft()
            if not ticket.done():
                ticket.set_result(None)
                return
        del self._lanes[id]

    def __len__(self) -> int:
        """How many instances have a lane now."""
        return len(self._lanes)
