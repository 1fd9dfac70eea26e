"""What workers do outside of any store: one file each, one line a deed, appended whole.

A line that was written stays when its process is killed; nothing is flushed to disk, since no host goes down.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from workflow.clock import utcnow

BEGUN, FAILED, REFUSED, DONE, UP = "begun", "failed", "refused", "done", "up"
"""A hook begins, fails to be tried again, fails for good, has done its work; a worker is ready."""


class Deed(NamedTuple):
    """What a worker did, and when (seconds since the epoch)."""

    at: float
    worker: str
    what: str
    attempt: int = 0
    key: str = ""


class Journal:
    """One worker's file."""

    def __init__(self, folder: Path, worker: str) -> None:
        self._worker = worker
        self._file = os.open(_path(folder, worker), os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, what: str, attempt: int = 0, key: str = "") -> None:
        """One line, whole."""
        line = f"{utcnow().timestamp():.6f} {self._worker} {what} {attempt} {key}\n"
        os.write(self._file, line.encode())


def read(folder: Path) -> list[Deed]:
    """All deeds of all workers, in order of time."""
    lines = [line for path in folder.glob("deeds-*") for line in path.read_text().splitlines()]
    return sorted(_deed(*line.split(" ", 4)) for line in lines)


def ready(folder: Path, worker: str) -> bool:
    """Has it opened its store?"""
    path = _path(folder, worker)
    return path.exists() and path.stat().st_size > 0


def _path(folder: Path, worker: str) -> Path:
    return folder / f"deeds-{worker}"


def _deed(at: str, worker: str, what: str, attempt: str, key: str) -> Deed:
    return Deed(float(at), worker, what, int(attempt), key)
