"""Throughput and latency against tasks at once, ours and bare, one column a store."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from .book import Book
from .case import CURVE, DICT, GROUP, MEMORY, OURS, POSTGRES, SQLITE, named
from .pace import Sample

COLUMNS = ((MEMORY, DICT), (SQLITE, GROUP), (POSTGRES, GROUP))
COLOURS = {True: "tab:blue", False: "tab:grey"}


def draw(book: Book, path: Path) -> str | None:
    """Write the PNG; why not, if it cannot be drawn."""
    try:
        import_module("matplotlib").use("Agg")
        plots: Any = import_module("matplotlib.pyplot")
    except ImportError as e:
        return f"no plot: {e}"
    figure, axes = plots.subplots(2, len(COLUMNS), figsize=(13, 8), sharex=True, layout="constrained")
    for column, (store, bare) in enumerate(COLUMNS):
        rate, delay = axes[0][column], axes[1][column]
        for side in (OURS, bare):
            _curves(book, store, side, rate, delay)
        for axis in (rate, delay):
            axis.set(xscale="log", yscale="log")
            axis.set_xticks(CURVE, labels=[str(tasks) for tasks in CURVE])
            axis.grid(visible=True, which="both", alpha=0.2)
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize=8)
        rate.set(title=store, ylabel="moves per second")
        delay.set(xlabel="tasks at once", ylabel="ms" if store != MEMORY else "ms (means of 32)")
    figure.savefig(path, dpi=110)
    plots.close(figure)
    return None


def _curves(book: Book, store: str, side: str, rate: Any, delay: Any) -> None:
    found = {tasks: book.samples.get(named(store, side, tasks), []) for tasks in CURVE}
    points = {tasks: samples for tasks, samples in found.items() if samples}
    if not points:
        return
    colour = COLOURS[side == OURS]
    rates = [[sample.rate for sample in samples] for samples in points.values()]
    rate.plot(list(points), [median(each) for each in rates], "o-", color=colour, label=side)
    rate.fill_between(
        list(points), [min(each) for each in rates], [max(each) for each in rates], color=colour, alpha=0.2
    )
    for word, style in (("p50", "o-"), ("p99", "^--")):
        values = [_middle(samples, word) for samples in points.values()]
        delay.plot(list(points), values, style, color=colour, label=f"{side}, {word}")


def _middle(samples: list[Sample], word: str) -> float:
    return median(float(getattr(sample, word)) for sample in samples) * 1000
