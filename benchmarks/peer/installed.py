"""A peer is imported when its case runs."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from ..case import Missing


def needed(module: str) -> Any:
    """The peer's module. Raises Missing."""
    try:
        return import_module(module)
    except ImportError as e:
        raise Missing(f"not installed: {e}") from e
