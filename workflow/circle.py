"""Who waits for whom: a hook that waits for an instance whose hook waits for it would wait for ever.

Known within one process, over all its Managers; between processes timeouts break a circle.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TypeAlias

Node: TypeAlias = tuple[int, str, str]
"""An instance: identity of its store object, workflow, id."""


class _Frame:
    """One hook that is running, and for whom it waits."""

    __slots__ = ("node", "running", "waits")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.running = True
        self.waits: dict[Node, int] = {}


_present: ContextVar[_Frame | None] = ContextVar("enumflow_hook", default=None)
_frames: dict[Node, set[_Frame]] = {}


class hook:  # noqa: N801  # a context manager, by hand: one is entered for each hook
    """Entered while a hook of this instance runs; whatever it calls, also in threads and tasks of
    its own, is known to come from it. A task that outlives the hook is its own master."""

    __slots__ = ("_frame", "_token")

    def __init__(self, node: Node) -> None:
        self._frame = _Frame(node)

    def __enter__(self) -> None:
        self._token = _present.set(self._frame)
        _frames.setdefault(self._frame.node, set()).add(self._frame)

    def __exit__(self, *raised: object) -> None:
        frame, node = self._frame, self._frame.node
        frame.running = False
        _frames[node].discard(frame)
        if not _frames[node]:
            del _frames[node]
        _present.reset(self._token)


def closes(target: Node) -> bool:
    """Would waiting for `target` close a circle?"""
    frame = _present.get()
    return frame is not None and frame.running and _reaches(target, frame.node)


class waiting:  # noqa: N801  # by hand as well: every send with effects enters one
    """Entered while the present hook, if this is one, waits for the effects of `target`."""

    __slots__ = ("_frame", "_target")

    def __init__(self, target: Node) -> None:
        self._target = target

    def __enter__(self) -> None:
        frame = _present.get()
        self._frame = frame if frame is not None and frame.running else None
        if self._frame is not None:
            waits = self._frame.waits
            waits[self._target] = waits.get(self._target, 0) + 1

    def __exit__(self, *raised: object) -> None:
        if self._frame is not None:
            waits = self._frame.waits
            waits[self._target] -= 1
            if not waits[self._target]:
                del waits[self._target]


def _reaches(start: Node, end: Node) -> bool:
    seen: set[Node] = set()
    todo = [start]
    while todo:
        node = todo.pop()
        if node == end:
            return True
        if node not in seen:
            seen.add(node)
            for frame in _frames.get(node, ()):
                todo.extend(frame.waits)
    return False
