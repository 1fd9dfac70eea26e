"""The rounds, in each of which all cases take turns; then the probes."""

from __future__ import annotations

import asyncio
import gc
import traceback
from collections.abc import Coroutine, Sequence
from time import perf_counter
from typing import Any

from .book import Book
from .case import Case, Missing, Stage
from .growth import Probe, Size
from .pace import Pace


def rounds(cases: Sequence[Case], stage: Stage, pace: Pace, number: int, book: Book) -> None:
    """Every case once a round, forwards and backwards by turns: a noisy minute is noisy for all."""
    for n in range(number):
        began = perf_counter()
        for case in cases if n % 2 == 0 else reversed(cases):
            if case.name not in book.missing and case.name not in book.failed:
                _guarded(case.name, _sampled(case, stage, pace, book), book)
        print(f"round {n + 1} of {number}: {perf_counter() - began:.0f} s", flush=True)


async def _sampled(case: Case, stage: Stage, pace: Pace, book: Book) -> None:
    book.samples[case.name].append(await case.run(stage, pace))


def probe(probes: Sequence[Probe], stage: Stage, size: Size, book: Book) -> None:
    """Each probe once."""
    for each in probes:
        began = perf_counter()
        _guarded(each.name, each.run(stage, size, book), book)
        print(f"{each.name}: {perf_counter() - began:.0f} s", flush=True)


def _guarded(name: str, work: Coroutine[Any, Any, None], book: Book) -> None:
    """One that fails fails the run, but only at its end."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()  # what the harness and all the libraries beside us have loaded is no part of a case
    try:
        asyncio.run(work)
    except Missing as e:
        book.missing[name] = str(e)
    except Exception as e:  # noqa: BLE001  # whatever it was, the others are still worth their figures
        traceback.print_exc()
        book.failed[name] = f"{type(e).__name__}: {e}"
        book.samples.pop(name, None)
