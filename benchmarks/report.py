"""A run as a Markdown table for people and as JSON for machines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median

import msgspec
from attrs import asdict, frozen

from .book import Book
from .case import Case
from .machine import PROMISES
from .target import Verdict


@frozen
class Result:
    """All that is written down."""

    when: str
    how: str
    facts: Mapping[str, str]
    verdicts: Sequence[Verdict]
    cases: Sequence[Case]
    book: Book


def write(result: Result, folder: Path) -> None:
    """latest.json and latest.md."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {
        "when": result.when,
        "how": result.how,
        "facts": result.facts,
        "promises": PROMISES,
        "targets": [_plain(verdict) for verdict in result.verdicts],
        "samples": {name: [asdict(sample) for sample in samples] for name, samples in result.book.samples.items()},
        "figures": result.book.figures,
        "missing": result.book.missing,
        "failed": result.book.failed,
        "notes": result.book.notes,
    }
    (folder / "latest.json").write_bytes(msgspec.json.format(msgspec.json.encode(plain), indent=1) + b"\n")
    (folder / "latest.md").write_text("\n".join(markdown(result)) + "\n")


def markdown(result: Result) -> Iterator[str]:
    """The whole page."""
    yield f"# Benchmarks\n\n{result.when}, {result.how}. Medians, in brackets the smallest and the largest.\n"
    yield from (f"- {name}: {value}" for name, value in (*result.facts.items(), *PROMISES.items()))
    yield from page(result)


def page(result: Result) -> Iterator[str]:
    """What was found."""
    book = result.book
    yield "\n## Targets\n"
    yield from targets(result.verdicts)
    yield "\n## Cases\n\n![throughput and latency against tasks at once](throughput.png)\n"
    yield from cases(result.cases, book)
    yield "\n## Figures\n"
    figures = ((name, number(median(found)), _spread(found)) for name, found in book.figures.items())
    yield from table(("figure", "median", "spread"), figures)
    for title, told in (("Not there", book.missing), ("Failed", book.failed)):
        if told:
            yield f"\n## {title}\n"
            yield from (f"- {name}: {why}" for name, why in told.items())
    for name, text in book.notes.items():
        yield f"\n## {name[:1].upper()}{name[1:]}\n\n```\n{text}\n```"


def targets(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """The table of targets."""
    yield from table(("what", "figure", "spread", "at least", "aim", ""), map(_row, verdicts))


def _row(verdict: Verdict) -> tuple[str, ...]:
    target, value = verdict.target, verdict.value
    sign, unit = ("≤ " if target.most else ""), (f" {target.unit}" if target.unit else "")
    figure = "" if value is None else number(value) + unit
    bounds = (f"{sign}{bound:g}{unit}" for bound in (target.least, target.aim))
    return (target.what, figure, _spread(verdict.values), *bounds, verdict.word)


def cases(order: Sequence[Case], book: Book) -> Iterator[str]:
    """The table of cases."""
    rows: list[tuple[str, ...]] = []
    for case in order:
        samples = book.samples.get(case.name)
        if samples:
            rates = [sample.rate for sample in samples]
            tails = (median(sample.p50 for sample in samples), median(sample.p99 for sample in samples))
            rows.append((case.name, number(median(rates)), _spread(rates), *(number(tail * 1000) for tail in tails)))
    return table(("case", "per second", "spread", "p50 ms", "p99 ms"), rows)


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A Markdown table that is also readable as it is."""
    all_rows = [names, *rows]
    widths = [max(len(row[n]) for row in all_rows) for n in range(len(names))]
    aligned = [
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in all_rows
    ]
    yield aligned[0]
    yield f"| {' | '.join('-' * width for width in widths)} |"
    yield from aligned[1:]


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _spread(values: Sequence[float]) -> str:
    return f"({number(min(values))} to {number(max(values))})" if len(values) > 1 else ""


def _plain(verdict: Verdict) -> dict[str, object]:
    target = verdict.target
    return {
        "what": target.what,
        "unit": target.unit,
        "most": target.most,
        "least": target.least,
        "aim": target.aim,
        "value": verdict.value,
        "values": verdict.values,
        "word": verdict.word.strip("*"),
    }
