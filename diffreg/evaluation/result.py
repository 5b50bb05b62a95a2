"""What comes of measuring all pairs of a manifest."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from diffreg.data.manifest import Pair
from diffreg.evaluation.measures import Measure, measures_of
from diffreg.evaluation.summary import Summary, summarize
from diffreg.report.panels import PairView
from diffreg.report.rows import PairRow


@dataclass(frozen=True)
class Measured:
    """One pair.

    Args:
        values: its metrics.
        warnings: what speaks against its registration, in sentences.
        failed: why it could not be measured, or nothing.
        view: to draw it, where that was asked for.
    """

    values: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    failed: str = ""
    view: PairView | None = None


@dataclass
class Evaluation:
    """What came of measuring all pairs; complete before `summaries` is asked for.

    Args:
        method: where the displacements are from, in words.
        records: one a pair: pair, group, row and the metrics.
        views: of the first pairs, to draw; of volumes, where there are several, the rows alone.
        failed: the pairs that could not be measured, and why.
        grouped: whether the manifest names groups; else every pair is its own.
        seed: of the bootstrap.
        warnings: of the registrations: the pair, and one sentence each.
    """

    method: str
    records: list[dict[str, Any]] = field(default_factory=list)
    views: list[PairView | PairRow] = field(default_factory=list)
    failed: list[tuple[Pair, str]] = field(default_factory=list)
    grouped: bool = False
    seed: int = 0
    warnings: list[tuple[str, list[str]]] = field(default_factory=list)

    @cached_property
    def measures(self) -> list[Measure]:
        """The metrics that any pair has."""
        return measures_of(self.records)

    @cached_property
    def summaries(self) -> list[Summary]:
        """One for each metric that any pair has a number of."""
        found = (summarize(measure, self.records, self.seed) for measure in self.measures)
        return [summary for summary in found if summary is not None]
