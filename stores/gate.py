"""Who may use a connection now: many together, or one alone, in order of arrival."""

from __future__ import annotations

import asyncio
from collections import deque


class Gate:
    """Lets many in, or one alone. Nobody overtakes: who wants to be alone is not starved by the many."""

    __slots__ = ("_alone", "_inside", "_line")

    def __init__(self) -> None:
        self._inside = 0
        self._alone: asyncio.Task[object] | None = None
        self._line: deque[tuple[asyncio.Future[None], asyncio.Task[object] | None]] = deque()

    @property
    def alone(self) -> asyncio.Task[object] | None:
        """The task that went in alone and is still in."""
        return self._alone

    async def enter(self, seconds: float, *, alone: bool = False) -> bool:
        """Wait at most so many seconds; on True the caller is in, and must `leave`."""
        who = asyncio.current_task() if alone else None
        if not self._line and self._free(who):
            self._admit(who)
            return True
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((turn, who))
        try:
            await asyncio.wait((turn,), timeout=seconds)
        except BaseException:
            self._give_up(turn)
            raise
        if turn.done():
            return True
        self._give_up(turn)
        return False

    def leave(self) -> None:
        """Let in who comes next."""
        self._inside -= 1
        self._alone = None
        self._next()

    def _free(self, who: asyncio.Task[object] | None) -> bool:
        return self._inside == 0 or (self._alone is None and who is None)

    def _admit(self, who: asyncio.Task[object] | None) -> None:
        self._inside += 1
        self._alone = who

    def _give_up(self, turn: asyncio.Future[None]) -> None:
        if turn.done():
            self.leave()
        else:
            turn.cancel()
            self._next()

    def _next(self) -> None:
        line = self._line
        while line:
            turn, who = line[0]
            if not turn.cancelled():
                if not self._free(who):
                    return
                self._admit(who)
                turn.set_result(None)
            line.popleft()
