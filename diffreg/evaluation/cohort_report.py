"""One table and one report for all pairs of a manifest."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from diffreg._files import replacing
from diffreg.registration.cohort import Cohort, Method, read_pair
from diffreg.registration.files import (
    METRICS,
    REPORT,
    TITLES,
    duration,
    read_json,
    read_registration,
    view,
)
from diffreg.report.table import Column, Row, Table, shown

IN_FULL, IN_ROWS = 4, 20  # pairs that the report draws; of the others it has the numbers


def write_cohort_report(cohort: Cohort, method: Method, out: Path) -> str:
    """Write metrics.csv and report.html for the pairs that are done.

    Args:
        cohort: at least one pair is done.
        method: how they were registered.
        out: the folder.

    Returns:
        The result in one line.

    Raises:
        OSError: the files could not be written.

    Example: `write_cohort_report(register_all(manifest, out, method), method, out)`
    """
    from diffreg.report.html import write_report  # needs matplotlib

    found = [read_json(job.folder / METRICS) for job in cohort.jobs]
    write_csv(out / "metrics.csv", [_record(values) for values in found])
    verdict = _verdict(found)
    views = [
        view(
            read_registration(read_pair(job.pair), job.folder),
            job.pair.name,
            _numbers(values),
        )
        for job, values in zip(cohort.jobs[: IN_FULL + IN_ROWS], found, strict=False)
    ]
    notes = [f"Method: {method.name}.", *shown_note(len(views), len(found))]
    notes += [f"Failed: {pair.row}: {message}" for pair, message in cohort.failed]
    title = f"{len(found)} pairs" if len(found) > 1 else cohort.jobs[0].pair.name
    sentence = folds(found)
    table = _table(cohort, found)
    write_report(
        *(out / REPORT, title, verdict, views, table),
        notes=notes,
        in_full=IN_FULL,
        sentence=sentence,
    )
    numbers = [f"{name} {a:.3f} -> {b:.3f}" for name, (a, b) in _means(found).items()]
    return f"{len(found)} pairs: {', '.join(numbers)}, {sentence[1][0].lower()}{sentence[1][1:]}"


def folds(found: Sequence[dict[str, Any]]) -> tuple[bool, str]:
    """Whether nothing folds in any pair, and the sentence that says so.

    Args:
        found: min_determinant and folded_percent of each pair.

    Example:
        >>> from diffreg.evaluation.cohort_report import folds
        >>> folds([{"min_determinant": 0.5, "folded_percent": 0.0}])
        (True, 'No cell folds in any of the 1 pairs: smallest determinant 0.500')
    """
    folded = sum(values["folded_percent"] > 0 for values in found)
    smallest = [v["min_determinant"] for v in found if v["min_determinant"] is not None]
    least = f": smallest determinant {shown(min(smallest))}" if smallest else ""
    if not folded:
        return True, f"No cell folds in any of the {len(found)} pairs{least}"
    return False, f"Cells fold in {folded} of {len(found)} pairs{least}"


def shown_note(drawn: int, pairs: int) -> list[str]:
    """What the report says where it draws a part of the pairs only."""
    if drawn == pairs:
        return []
    return [f"The first {drawn} of {pairs} pairs are drawn; the numbers are those of all."]


def write_csv(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write one line a record, an empty field where it lacks a value; whole or not at all."""
    columns = list(dict.fromkeys(name for record in records for name in record))
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        lines = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        lines.writeheader()
        lines.writerows({k: _field(v) for k, v in record.items()} for record in records)


def _field(value: Any) -> Any:
    """nan and None are empty fields."""
    return "" if value is None or value != value else value


def _record(values: dict[str, Any]) -> dict[str, Any]:
    """metrics.json as one flat line."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= {f"{entry}_{name}": number for entry, number in value.items()}
        elif not isinstance(value, list) and name not in ("request", "version"):
            flat[name] = value
    return flat


def _means(found: Sequence[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """Of each similarity that all pairs have, the mean before and after."""
    means = {}
    for name, title in TITLES.items():
        pairs = [(v["before"].get(name), v["after"].get(name)) for v in found]
        known = [pair for pair in pairs if None not in pair]
        if known and len(known) == len(found):
            before, after = zip(*known, strict=True)
            means[title] = (fmean(before), fmean(after))
    return means


def _verdict(found: Sequence[dict[str, Any]]) -> list[tuple[str, Any]]:
    verdict: list[tuple[str, Any]] = [
        (f"mean {name}", both) for name, both in _means(found).items()
    ]
    times = [v["seconds"] for v in found if v["seconds"] is not None]
    return verdict + ([("median time a pair", duration(median(times)))] if times else [])


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    """What stands beside one pair's pictures."""
    numbers: dict[str, Any] = {
        title: (values["before"][name], values["after"][name])
        for name, title in TITLES.items()
        if name in values["before"]
    }
    return {**numbers, "time": duration(values["seconds"] or float("nan"))}


def _table(cohort: Cohort, found: Iterable[dict[str, Any]]) -> Table:
    """One row a pair, under its group."""
    columns = [
        Column("NCC", "before"),
        Column("NCC", "after"),
        Column("mutual information", "nats, before"),
        Column("mutual information", "nats, after"),
        Column("smallest determinant"),
        Column("folded cells", "%", ".2g"),
        Column("time", "s", ".3g"),
    ]
    rows = []
    for job, v in zip(cohort.jobs, found, strict=True):
        similarity = [v[when][name] for name in ("ncc", "mutual_information") for when in _WHEN]
        others = [v["min_determinant"], v["folded_percent"], v["seconds"]]
        rows.append(Row(job.pair.name, [*similarity, *others], job.pair.group))
    rows.sort(key=lambda row: row.group)
    return Table(columns, rows, "pair")


_WHEN = ("before", "after")
