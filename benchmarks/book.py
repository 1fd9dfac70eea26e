"""What a run found: samples of cases, figures of probes, and what could not be measured."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from attrs import define, field

from .pace import Sample


@define
class Book:
    """Filled round by round. Figures are named and in the unit that their name says."""

    samples: defaultdict[str, list[Sample]] = field(factory=lambda: defaultdict[str, list[Sample]](list))
    figures: defaultdict[str, list[float]] = field(factory=lambda: defaultdict[str, list[float]](list))
    missing: dict[str, str] = field(factory=dict[str, str])
    """Why a case or probe did not run."""
    failed: dict[str, str] = field(factory=dict[str, str])
    """What went wrong in one that did. The run has failed then."""
    notes: dict[str, str] = field(factory=dict[str, str])
    """Longer texts, as the plan of a query."""

    def note(self, figures: Mapping[str, float]) -> None:
        """One more value for each."""
        for name, value in figures.items():
            self.figures[name].append(value)

    def rates(self, case: str) -> list[float]:
        """Pieces of work per second, round by round."""
        return [sample.rate for sample in self.samples.get(case, ())]

    def tails(self, case: str) -> list[float]:
        """The p99 of each round."""
        return [sample.p99 for sample in self.samples.get(case, ())]
