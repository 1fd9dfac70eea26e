"""`python -m workflow work app.module:worker`: a process that works."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import logging
import sys
from typing import Any

from .errors import StoreError
from .worker import Worker


class _Bad(Exception):
    """The target is no Worker."""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m workflow", description="Durable workflows drawn as enum classes.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    work = commands.add_parser("work", help="work off what is due until SIGTERM or Ctrl-C")
    work.add_argument("target", metavar="MODULE:NAME", help="a Worker, or a function that makes one")
    target: str = parser.parse_args(arguments).target
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        worker = _found(target)
    except _Bad as e:
        print(f"python -m workflow work: {e}", file=sys.stderr)  # noqa: T201  # whoever typed it reads it
        return 2
    try:
        asyncio.run(worker.run())
    except StoreError as e:
        print(f"python -m workflow work: {e}", file=sys.stderr)  # noqa: T201  # the same
        return 1
    return 0


def _found(target: str) -> Worker:
    """The Worker that the target names. Raises _Bad; an error inside the module is its own."""
    name, _, attribute = target.partition(":")
    if not name or not attribute or not all(part.isidentifier() for part in (*name.split("."), *attribute.split("."))):
        raise _Bad(f"{target!r} is no MODULE:NAME, such as app.module:worker")
    try:
        found: Any = importlib.import_module(name)
    except ModuleNotFoundError as e:
        if e.name is None or not f"{name}.".startswith(f"{e.name}."):
            raise
        raise _Bad(f"there is no module {e.name!r} here; is this the right folder?") from e
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise _Bad(f"{name!r} has no {attribute!r}") from None
    if not isinstance(found, Worker) and callable(found):
        found = found()
    if not isinstance(found, Worker):
        raise _Bad(f"{target!r} is no Worker and makes none, but {found!r}")
    return found


if __name__ == "__main__":
    sys.exit(main())
