"""Tokens: who owns a lease, and which owners are known to be dead.

A token names one opening of one Manager: boot id, pid namespace, pid, the process's start time and
random bits. Only where boot id and namespace are mine can I tell that another is dead; of all others
only the end of their lease counts.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from pathlib import Path

_open: set[str] = set()


class Incarnation:
    """One opening of a Manager: its token, and ids for its commits."""

    __slots__ = ("_count", "_prefix", "token")

    def __init__(self) -> None:
        bits = secrets.token_hex(8)
        self.token = f"{_here()}/{os.getpid()}/{_started(os.getpid()) or '-'}/{bits}"
        self._prefix = bits
        self._count = 0
        _open.add(self.token)

    def commit_id(self) -> str:
        """A new UUID (32 hex digits): the random bits of this incarnation and a counter."""
        self._count += 1
        return f"{self._prefix}{self._count:016x}"

    def close(self) -> None:
        """From now on this process calls the token dead."""
        _open.discard(self.token)


def dead(tokens: Iterable[str]) -> frozenset[str]:
    """Those of `tokens` whose owner certainly runs no more."""
    return frozenset(token for token in tokens if token not in _open and _is_dead(token))


def nearby(tokens: Iterable[str]) -> frozenset[str]:
    """Those of `tokens` whose owner is another process of this host, of which `dead` can tell."""
    others = [token for token in tokens if token not in _open]
    if not others:
        return frozenset()
    here, mine = _here(), str(os.getpid())
    return frozenset(
        token
        for token in others
        if not here.startswith("?") and token.count("/") >= 3 and _place(token) == here and token.split("/")[-3] != mine
    )


def _place(token: str) -> str:
    return token.rsplit("/", 3)[0]


def _is_dead(token: str) -> bool:
    parts = token.rsplit("/", 3)
    here = _here()
    if len(parts) != 4 or parts[0] != here or here.startswith("?") or not parts[1].isdigit():
        return False
    pid, started = int(parts[1]), parts[2]
    if pid == os.getpid() and started == (_started(pid) or "-"):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    now = _started(pid)
    return now is not None and now != started


def _here() -> str:
    """Boot id and pid namespace; "?" where the system does not tell, and then nobody is called dead."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return "?"


def _started(pid: int) -> str | None:
    """Start time of a living process in clock ticks since boot, "gone" for a zombie, None if hidden."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return "gone" if fields[0] in "ZX" else fields[19]
