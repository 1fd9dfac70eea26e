"""All benchmarks in one run: ours, the bare limits and the peers take turns in each round.

Then what grows is measured once a size. Prints and writes a table of targets, all cases and figures
(latest.md, latest.json) and a plot (throughput.png). Fails if anything acknowledged was not in its
store, in order, once; a missed target is told, not failed.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter

from workflow.clock import utcnow

from . import database, engine, ours, peer, plot, processes, report, run
from .bare import memory, postgres, sqlite
from .book import Book
from .case import MEMORY, POSTGRES, SQLITE, Case, Missing, Stage
from .growth import QUICK, Probe, Size, history, idle, instances, lateness, parked, resume, timers
from .machine import PROMISES, facts
from .pace import Pace
from .target import verdicts

RESULTS = Path("benchmarks/results")
PARTS = Path("build/benchmarks")
PROBES = (
    Probe("engine: processor time a send", engine.cost),
    Probe("engine: import", engine.imported),
    Probe("growth: history", history.measure),
    Probe("growth: instances", instances.measure),
    Probe("growth: resume", resume.measure),
    Probe("growth: timers", timers.measure),
    Probe("growth: parked instances", parked.measure),
    Probe("idle manager", idle.measure),
    Probe("timer lateness", lateness.measure),
)


def cases() -> list[Case]:
    """All cases, neighbours of one ratio close together."""
    found = [*memory.cases(), *sqlite.cases(), *postgres.cases(), *ours.cases(), *processes.cases(), *peer.cases()]
    order = (MEMORY, SQLITE, POSTGRES)
    return sorted(found, key=lambda case: (order.index(case.store), case.what, case.tasks))


def options() -> argparse.Namespace:
    """What the command line says."""
    given = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    given.add_argument(
        "--quick", action="store_true", help="a look within 3 minutes: fewer, shorter rounds, less growth"
    )
    given.add_argument(
        "--only", metavar="PATTERN", help="only cases and probes whose name matches this regular expression"
    )
    given.add_argument("--rounds", type=int, help="how many (5, with --quick 2)")
    given.add_argument("--out", type=Path, help=f"folder of the results ({RESULTS}; of a part of a run {PARTS})")
    given.add_argument("--list", action="store_true", help="list cases and probes, run none")
    return given.parse_args()


@contextmanager
def staged(*, serving: bool) -> Generator[Stage]:
    """A folder, and a server if one is needed and to be had."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, ExitStack() as stack:
        try:
            url, why = (stack.enter_context(database.server()), "") if serving else (None, "no case needs a server")
        except Missing as e:
            url, why = None, str(e)
        yield Stage(Path(folder), url, why)


def main() -> int:
    """Run, print, write; 1 if something failed."""
    given = options()
    wanted = re.compile(given.only or "", re.IGNORECASE)
    chosen = [case for case in cases() if wanted.search(case.name)]
    probes = [probe for probe in PROBES if wanted.search(probe.name)]
    if given.list:
        print(*(case.name for case in chosen), *(probe.name for probe in probes), sep="\n")
        return 0
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    return measured(given, chosen, probes)


def measured(given: argparse.Namespace, chosen: Sequence[Case], probes: Sequence[Probe]) -> int:
    """The run itself."""
    began, book = perf_counter(), Book()
    size, pace = (QUICK, Pace(0.25, 0.1)) if given.quick else (Size(), Pace(1.0, 0.3))
    number = given.rounds or (2 if given.quick else 5)
    out = given.out or (PARTS if given.quick or given.only else RESULTS)
    with staged(serving=bool(probes) or any(case.store == POSTGRES for case in chosen)) as stage:
        told = facts(stage)
        print(*(f"{name}: {value}" for name, value in (*told.items(), *PROMISES.items())), sep="\n", flush=True)
        if chosen:
            run.rounds(chosen, stage, pace, number, book)
        run.probe(probes, stage, size, book)
    how = f"{number} rounds of {pace.seconds:g} s a case, {(perf_counter() - began) / 60:.1f} minutes in all"
    found = [verdict for verdict in verdicts(book, size) if verdict.values or not given.only]
    result = report.Result(f"{utcnow():%Y-%m-%d}", how, told, found, chosen, book)
    report.write(result, out)
    why = plot.draw(book, out / "throughput.png")
    print("", *report.page(result), "", why or f"written to {out}; {how}", sep="\n")
    for name, error in book.failed.items():
        print(f"FAILED {name}: {error}", file=sys.stderr)
    return 1 if book.failed else 0


if __name__ == "__main__":
    sys.exit(main())
