"""Both fleets, one after the other: four workers on PostgreSQL, two on SQLite.

`python -m tests.fleet --long`: 2,000 orders and 60 kills or stops on each, some 8 minutes; without `--long` as in
the tests.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.crash import place
from tests.fleet.play import LONG, SHORT, WORKERS, play
from tests.server import shared_url


def main() -> None:
    """Run, and tell what it came to; what is wrong is an AssertionError."""
    given = argparse.ArgumentParser("python -m tests.fleet", description=__doc__)
    given.add_argument("--long", action="store_true", help="2,000 orders, 60 kills or stops")
    given.add_argument("--only", choices=WORKERS)
    options = given.parse_args()
    sizes = LONG if options.long else SHORT
    for store, workers in WORKERS.items():
        if options.only in (None, store):
            with ExitStack() as stack:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleet-")))
                if store == "postgres":
                    place.note(folder, stack.enter_context(shared_url()))
                verdict = asyncio.run(play(folder, workers, sizes[store]))
            print(f"{store}, {workers} workers: {verdict}", flush=True)  # noqa: T201  # the command's answer


if __name__ == "__main__":
    main()
