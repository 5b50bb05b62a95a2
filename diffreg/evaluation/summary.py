"""What the records of all pairs say together: means, medians, and intervals over groups.

The unit is the group, such as a patient: pairs of one patient are no independent samples. A group's
value is the mean of its pairs; the interval is that of the mean over groups, by the bootstrap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffreg.evaluation.measures import Measure

DRAWS = 10_000
_AT_ONCE = 2**21  # numbers drawn: ten thousand pairs without groups would be a gigabyte and a half


def by_group(records: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The records of each group, groups in the order of their first one.

    Example:
        >>> by_group([{"group": "b", "x": 1}, {"group": "a"}, {"group": "b"}])
        {'b': [{'group': 'b', 'x': 1}, {'group': 'b'}], 'a': [{'group': 'a'}]}
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        groups.setdefault(record["group"], []).append(record)
    return groups


@dataclass(frozen=True)
class Summary:
    """One metric over pairs.

    Args:
        measure: which.
        pairs: with a value.
        groups: with a value.
        before, after: mean and median over the pairs; before is None where it is not known.
        change: mean over groups of after - before, or of the value itself where before is None.
        interval: 95 % of the bootstrap means of that; None with fewer than two groups.
    """

    measure: Measure
    pairs: int
    groups: int
    before: tuple[float, float] | None
    after: tuple[float, float]
    change: float
    interval: tuple[float, float] | None

    @property
    def verdict(self) -> str:
        """Better, worse, or a tie, which is what an interval with 0 in it says."""
        if self.before is None or self.measure.better is None:
            return ""
        if self.interval is None:
            return "one group: no interval"
        low, high = self.interval
        if low <= 0 <= high:
            return "tie"
        return "better" if (low > 0) == (self.measure.better == "higher") else "worse"

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, for a file."""
        named = ("mean", "median")
        plain: dict[str, Any] = {"pairs": self.pairs, "groups": self.groups}
        if self.before is not None:
            plain["before"] = dict(zip(named, self.before, strict=True))
        plain["after"] = dict(zip(named, self.after, strict=True))
        plain["difference" if self.before is not None else "mean_over_groups"] = self.change
        plain["interval_95"] = None if self.interval is None else list(self.interval)
        if self.verdict:
            plain["verdict"] = self.verdict
        return plain


def summarize(measure: Measure, records: Sequence[dict[str, Any]], seed: int = 0) -> Summary | None:
    """One metric over the records that have it; None where none has.

    Args:
        measure: which metric.
        records: one a pair, with its `group`.
        seed: of the bootstrap.

    Example:
        >>> from diffreg.evaluation.measures import Measure
        >>> values = {"x": 2.0, "y": 3.0}
        >>> pairs = [{"group": g, "a_before": 1.0, "a_after": v} for g, v in values.items()]
        >>> summarize(Measure("a", "A"), pairs).change
        1.5
    """
    ends = ("_before", "_after") if measure.paired else ("",)
    rows = []
    for record in records:
        values = [record.get(measure.name + end) for end in ends]
        if all(isinstance(value, int | float) and np.isfinite(value) for value in values):
            rows.append((record["group"], *values))
    if not rows:
        return None
    after = np.array([row[-1] for row in rows], dtype=np.float64)
    before = np.array([row[1] for row in rows], dtype=np.float64) if measure.paired else None
    changes = after if before is None else after - before
    groups: dict[str, list[int]] = {}
    for k, (name, *_) in enumerate(rows):
        groups.setdefault(name, []).append(k)
    means = np.array([changes[members].mean() for members in groups.values()])
    return Summary(
        measure,
        len(rows),
        len(means),
        None if before is None else _mean_median(before),
        _mean_median(after),
        float(means.mean()),
        bootstrap(means, seed),
    )


def bootstrap(values: np.ndarray, seed: int = 0, draws: int = DRAWS) -> tuple[float, float] | None:
    """The interval that holds 95 % of the means of values drawn again with replacement.

    Args:
        values: (G,), one a group.
        seed: the same one gives the same interval.
        draws: how many means.

    Returns:
        The 2.5th and the 97.5th percentile; None for fewer than two values.

    Source: Efron and Tibshirani 1993, the percentile interval; with few groups it is too narrow.

    Example:
        >>> bootstrap(np.array([2.0, 2.0, 2.0]))
        (2.0, 2.0)
    """
    if len(values) < 2:
        return None
    random = np.random.default_rng(seed)
    means = np.empty(draws)
    for part in np.array_split(means, -(-draws * len(values) // _AT_ONCE)):
        part[:] = values[random.integers(0, len(values), (len(part), len(values)))].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(low), float(high)


def _mean_median(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(np.median(values))
