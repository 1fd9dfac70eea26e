"""On what, with what and under which promises a run was made."""

from __future__ import annotations

import os
import platform
import sqlite3
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

from .case import Missing, Stage
from .database import told
from .peer import PACKAGES

OWN: Final = ("enumflow", "msgspec", "anyio", "aiosqlite", "psycopg", "psycopg-pool")
PROMISES: Final = {
    "SQLite": "write-ahead log, synchronous=FULL: every commit is flushed, on both sides of every ratio",
    "PostgreSQL": "every commit is flushed, on both sides of every ratio; the server's own settings stand above",
    "tables": "the bare limits write the same columns of the same tables under the same indexes as the store",
    "keys": "each move carries one, unique for its instance, on both sides",
    "heads": "the expected seq is in memory on both sides, but for 'no head in memory'",
    "codec": "JSON by msgspec; moves carry neither payload nor context, orders an amount and a total",
    "peers": "durable as they are set up by default; those in memory are not durable and keep no history or keys",
}
"""What is the same on both sides."""


def facts(stage: Stage) -> dict[str, str]:
    """What a reader needs to make sense of the figures."""
    found = {
        "machine": f"{_processor()}, {os.cpu_count()} cores, {_memory()}",
        "system": f"{platform.system()} {platform.release()}",
        "flush": f"{_flush(stage.folder) * 1e6:.0f} µs to write 4 KiB and fdatasync, in the median",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": _versions(OWN),
        "peers": _versions(PACKAGES),
        "SQLite": sqlite3.sqlite_version,
    }
    try:
        server = told(stage.url())
    except Missing as e:
        found["PostgreSQL"] = str(e)
    else:
        found["PostgreSQL"] = ", ".join(f"{name} {value}" for name, value in server.items())
    return found


def _versions(packages: Sequence[str]) -> str:
    return ", ".join(f"{package} {_version(package)}" for package in packages)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "of the source tree" if package == "enumflow" else "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (ValueError, OSError):
        return "memory unknown"


def _flush(folder: Path) -> float:
    took: list[float] = []
    flush = getattr(os, "fdatasync", os.fsync)
    with (folder / "flush").open("wb", buffering=0) as file:
        for _ in range(100):
            began = perf_counter()
            file.write(bytes(4096))
            flush(file.fileno())
            took.append(perf_counter() - began)
    return median(took)
