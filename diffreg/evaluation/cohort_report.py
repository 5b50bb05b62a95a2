"""One table and one report for all pairs of a manifest."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from diffreg.registration._json import read_json
from diffreg.registration.cohort import PAIR_ERRORS, Cohort, Method, one_line, read_pair
from diffreg.registration.files import read_registration
from diffreg.registration.folders import METRICS, REPORT
from diffreg.registration.pair_page import IN_WORDS, TITLES, duration, view, warnings_in
from diffreg.registration.provenance import KEYS, in_words, provenance
from diffreg.report.first_screen import SMALLEST, Said, fit_sentence
from diffreg.report.panels import PairView
from diffreg.report.rows import PairRow, kept
from diffreg.report.table import Column, Row, Table, shown
from diffreg.system.atomic import replacing

IN_FULL, IN_ROWS = 4, 20  # pairs that the report draws; of the others it has the numbers
TABLE = "metrics.csv"
MOST_WARNINGS = 10  # that the first screen has room for


def write_cohort_report(cohort: Cohort, method: Method, out: Path, page: bool = True) -> str:
    """Write metrics.csv and report.html for the pairs that are done.

    Args:
        cohort: at least one pair is done.
        method: how they were registered.
        out: the folder.
        page: whether to write report.html; else one that is there goes.

    Returns:
        The result in one line, after the file to look at.

    Raises:
        OSError: the files could not be written.
        ValueError: not one of the pairs can be read again.

    Example: `write_cohort_report(register_all(manifest, out, method), method, out)`
    """
    found, views = _read(cohort, IN_FULL + IN_ROWS if page else 0)
    write_csv(out / TABLE, [_record(values) for values in found])
    if page:
        _write_page(cohort, method, out / REPORT, found, views)
    else:
        (out / REPORT).unlink(missing_ok=True)
    numbers = [f"{name} {a:.3f} -> {b:.3f}" for name, (a, b) in _means(found).items()]
    sentence = folds(found)[1]
    folded = f"{sentence[0].lower()}{sentence[1:]}"
    where = out / (REPORT if page else TABLE)
    return f"{where}: {counted(len(found))}: {', '.join(numbers)}, {folded}"


def _write_page(
    cohort: Cohort,
    method: Method,
    page: Path,
    found: Sequence[dict[str, Any]],
    views: Sequence[PairView | PairRow],
) -> None:
    from diffreg.report.html import write_report  # needs matplotlib

    notes = [f"Method: {method.name}.", *shown_note(len(views), len(found))]
    notes += [f"Failed: {pair.row}: {message}" for pair, message in cohort.failed]
    title = counted(len(found)) if len(found) > 1 else cohort.jobs[0].pair.name
    write_report(
        *(page, title, _verdict(found), views, _table(cohort, found)),
        notes=notes,
        in_full=IN_FULL,
        sentence=folds(found),
        fit=_fit(found),
        warnings=_warnings(cohort, found),
        origin=in_words(_origin(found)),
    )


def counted(pairs: int) -> str:
    """How many, in words.

    Example:
        >>> from diffreg.evaluation.cohort_report import counted
        >>> counted(1), counted(2000)
        ('1 pair', '2,000 pairs')
    """
    return f"{pairs:,} pair{'' if pairs == 1 else 's'}"


def _read(cohort: Cohort, drawn: int) -> tuple[list[dict[str, Any]], list[PairView | PairRow]]:
    """The metrics of every pair and pictures of the first; what has been damaged has failed."""
    found: list[dict[str, Any]] = []
    views: list[PairView | PairRow] = []
    pairs = len(cohort.jobs)
    for job in list(cohort.jobs):
        try:
            values = read_json(job.folder / METRICS)
            if len(views) < drawn:
                result = read_registration(read_pair(job.pair), job.folder)
                views.append(kept(view(result, job.pair.name, _numbers(values)), pairs))
        except PAIR_ERRORS as error:
            cohort.jobs.remove(job)
            cohort.failed.append((job.pair, one_line(error)))
        else:
            found.append(values)
    if not found:
        raise ValueError(cohort.failed[-1][1])
    return found, views


def folds(found: Sequence[dict[str, Any]]) -> tuple[bool, str]:
    """Whether nothing folds in any pair, and the sentence that says so.

    Args:
        found: min_determinant and folded_percent of each pair.

    Example:
        >>> from diffreg.evaluation.cohort_report import folds
        >>> folds([{"min_determinant": 0.5, "folded_percent": 0.0}])
        (True, 'No cell folds: smallest local change of size (Jacobian determinant) 0.500')
    """
    folded = sum(values["folded_percent"] > 0 for values in found)
    smallest = [v["min_determinant"] for v in found if v["min_determinant"] is not None]
    least = f": {SMALLEST} {shown(min(smallest))}" if smallest else ""
    if not folded:
        where = f" in any of the {counted(len(found))}" if len(found) > 1 else ""
        return True, f"No cell folds{where}{least}"
    return False, f"Cells fold in {folded:,} of {counted(len(found))}{least}"


def warnings_of(failed: int, total: int, said: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """What a report of several pairs warns of: pairs that failed, and what their pairs warn of.

    Args:
        failed, total: pairs.
        said: name of a pair, its warnings.

    Example:
        >>> from diffreg.evaluation.cohort_report import warnings_of
        >>> warnings_of(1, 3, [("a to b", ["The images share 4 % of their voxels."])])
        ['1 of 3 pairs failed (see Notes)', 'a to b: The images share 4 % of their voxels.']
    """
    found = [f"{failed:,} of {counted(total)} failed (see Notes)"] if failed else []
    lines = [f"{name}: {words}" for name, warnings in said for words in warnings]
    found += lines[:MOST_WARNINGS]
    left = len(lines) - MOST_WARNINGS
    return found + ([f"and {left:,} more, in the pairs' metrics.json"] if left > 0 else [])


def shown_note(drawn: int, pairs: int) -> list[str]:
    """What the report says where it draws a part of the pairs only."""
    if drawn == pairs:
        return []
    return [f"The first {drawn} of {counted(pairs)} are drawn; the numbers are those of all."]


def write_csv(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write one line a record, an empty field where it lacks a value; whole or not at all."""
    columns = list(dict.fromkeys(name for record in records for name in record))
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
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
        if name in KEYS:  # the same in all lines, or nearly
            continue
        if isinstance(value, dict):
            flat |= {f"{entry}_{name}": number for entry, number in value.items()}
        elif name == "warnings":
            flat[name] = len(value)
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
    means = _means(found)
    verdict: list[tuple[str, Any]] = [
        (f"{IN_WORDS[name]}, mean", means[title])
        for name, title in TITLES.items()
        if title in means
    ]
    lengths = [v["displacement_mm"] for v in found if "displacement_mm" in v]
    if len(lengths) == len(found):
        mean, largest = fmean(v["mean"] for v in lengths), max(v["max"] for v in lengths)
        words = "how far voxels move, mean and largest (|u|, mm)"
        verdict.append((words, f"{shown(mean)}, {shown(largest)}"))
    times = [v["seconds"] for v in found if v["seconds"] is not None]
    return verdict + ([("median time a pair", duration(median(times)))] if times else [])


def _fit(found: Sequence[dict[str, Any]]) -> Said:
    """By the mean NCC where all pairs are of one contrast, else by the mean mutual information."""
    name = "ncc" if all("relative_ssd" in v["before"] for v in found) else "mutual_information"
    pairs = [(v["before"].get(name), v["after"].get(name)) for v in found]
    known = [(before, after) for before, after in pairs if None not in (before, after)]
    ends = [fmean(values) for values in zip(*known, strict=True)] if known else [None, None]
    good, sentence = fit_sentence(f"mean {TITLES[name]}", *ends)
    if len(found) == 1:
        return good, sentence
    better = sum(after > before for before, after in known)
    return good, f"{sentence}, better in {better:,} of {counted(len(found))}"


def _warnings(cohort: Cohort, found: Sequence[dict[str, Any]]) -> list[str]:
    said = [
        (job.pair.name, warnings_in(values)) for job, values in zip(cohort.jobs, found, strict=True)
    ]
    return warnings_of(len(cohort.failed), cohort.total, said)


def _origin(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of this run; of the pairs what they have in common."""
    first = found[0]
    alike = [k for k in ("device", "objective") if all(v.get(k) == first.get(k) for v in found)]
    return provenance() | {name: first[name] for name in alike if name in first}


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
