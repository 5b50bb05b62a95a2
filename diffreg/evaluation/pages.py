"""Tables, box plots and the report of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from diffreg.evaluation.cohort_report import IN_FULL, counted, folds, shown_note, warnings_of
from diffreg.evaluation.measures import Measure
from diffreg.evaluation.result import Evaluation
from diffreg.evaluation.summary import DRAWS, Summary, by_group
from diffreg.registration.provenance import in_words, provenance
from diffreg.report.first_screen import Said, fit_sentence
from diffreg.report.table import Column, Row, Table, shown, shown_alike

# What the first screen and the table of groups have room for, in this order.
_FIRST = ("dice", "hd95", "tre", "end_point_error", "ncc", "mutual_information")
MOST_LABELS = 5  # one by one on a terminal
# Plain words before the term.
_IN_WORDS = {
    "dice": "how much the labels overlap (Dice)",
    "hd95": "how far the labels' borders are apart (HD95)",
    "tre": "how far the landmarks are apart (TRE)",
    "end_point_error": "how far from the true displacement (end-point error)",
    "ncc": "how much the images agree (NCC)",
    "mutual_information": "how much one image tells of the other (mutual information)",
}
_ARROW = " \N{RIGHTWARDS ARROW} "


def summary_table(summaries: Sequence[Summary]) -> Table:
    """One row a metric: means and medians before and after, and the change with its interval."""
    heads = ["mean before", "mean after", "median before", "median after", "change"]
    columns = [Column("pairs", "", "d"), *(Column(head) for head in heads)]
    columns += [Column("95 % interval"), Column("verdict")]
    rows = []
    for summary in summaries:
        before, after = summary.before or (None, None), summary.after
        means = shown_alike((before[0], after[0])) if summary.before else ["", shown(after[0])]
        medians = shown_alike((before[1], after[1])) if summary.before else ["", shown(after[1])]
        change = shown(summary.change) if summary.before else ""
        values = [summary.pairs, *means, *medians, change, _interval(summary), summary.verdict]
        unit = f" ({summary.measure.unit})" if summary.measure.unit else ""
        rows.append(Row(summary.measure.title + unit, values))
    return Table(columns, rows, "metric")


def in_short(summaries: Sequence[Summary]) -> tuple[Table, str]:
    """The table that a terminal has room for: no medians, of many labels those that overlap least.

    Returns:
        The table, and what to say of its labels, "" where all are in it.
    """
    overlap = {
        summary.measure.name.rpartition("_")[2]: summary.after[0]
        for summary in summaries
        if summary.measure.name.startswith("dice_label_")
    }
    left = sorted(overlap, key=overlap.__getitem__)[MOST_LABELS:]
    of_left = {f"{name}_label_{label}" for name in ("dice", "hd95", "assd") for label in left}
    table = summary_table([each for each in summaries if each.measure.name not in of_left])
    kept = [k for k, column in enumerate(table.columns) if not column.name.startswith("median")]
    rows = [Row(row.label, [row.values[k] for k in kept]) for row in table.rows]
    labels = (
        f"; above are the {MOST_LABELS} of {len(overlap)} labels that overlap least, all of them "
        "there and in evaluation.csv and evaluation.json"
    )
    return Table([table.columns[k] for k in kept], rows, table.label), labels if left else ""


def group_table(records: Sequence[dict[str, Any]], measures: Sequence[Measure]) -> Table:
    """One row a group: the means of its pairs, before and after."""
    chosen = [m for name in _FIRST for m in measures if m.name == name]
    chosen += [m for m in measures if m.name in ("min_determinant", "folded_percent")]
    columns = [Column("pairs", "", "d"), *(Column(m.title, m.unit) for m in chosen)]
    rows = []
    for name, members in by_group(records).items():
        rows.append(Row(name, [len(members), *(_group_value(m, members) for m in chosen)]))
    return Table(columns, rows, "group")


def write_page(evaluation: Evaluation, tables: Mapping[str, Table], path: Path) -> None:
    """The report: sentence, first numbers, box plots, pairs, tables and what to know about them."""
    from diffreg.report.html import write_report  # needs matplotlib

    records = evaluation.records
    write_report(
        path,
        f"Evaluation of {counted(len(records))}",
        _verdict(evaluation.summaries),
        evaluation.views,
        tables,
        notes=_notes(evaluation),
        in_full=IN_FULL,
        charts=_charts(evaluation),
        sentence=folds(records),
        fit=_fit(evaluation.summaries),
        warnings=_warnings(evaluation),
        origin=in_words(provenance()),
    )


def _interval(summary: Summary) -> str:
    if summary.interval is None:
        return ""
    low, high = shown_alike(summary.interval)
    return f"{low} to {high}"


def _group_value(measure: Measure, members: Sequence[dict[str, Any]]) -> str | float | None:
    """The mean over the pairs that have a number; of two, before and after."""
    means = []
    for end in ("_before", "_after") if measure.paired else ("",):
        values = [record.get(measure.name + end) for record in members]
        numbers = [v for v in values if isinstance(v, int | float) and v == v]
        means.append(fmean(numbers) if numbers else None)
    return _ARROW.join(shown_alike(means)) if measure.paired else means[0]


def _verdict(summaries: Sequence[Summary]) -> list[tuple[str, Any]]:
    """The means of the metrics that say most."""
    by_name = {summary.measure.name: summary for summary in summaries}
    verdict: list[tuple[str, Any]] = []
    for name in _FIRST:
        if name in by_name and len(verdict) < 5:
            summary = by_name[name]
            unit = f", {summary.measure.unit}" if summary.measure.unit else ""
            before = (summary.before or summary.after)[0]
            verdict.append((f"{_IN_WORDS[name]}, mean{unit}", (before, summary.after[0])))
    if "seconds" in by_name:
        verdict.append(("median time a pair, s", by_name["seconds"].after[1]))
    return verdict


def _fit(summaries: Sequence[Summary]) -> Said | None:
    """By the labels where there are any, else by the images."""
    by_name = {summary.measure.name: summary for summary in summaries}
    images = "ncc" if "relative_ssd" in by_name else "mutual_information"
    for name, agree in (("dice", "The labels overlap"), (images, "The images agree")):
        found = by_name.get(name)
        if found is not None and found.before is not None:
            ends = found.before[0], found.after[0]
            return fit_sentence(f"mean {found.measure.title}", *ends, agree)
    return None


def _warnings(evaluation: Evaluation) -> list[str]:
    """What failed, what pairs warn of, and labels that are gone."""
    failed, records = len(evaluation.failed), evaluation.records
    found = warnings_of(failed, len(records) + failed, evaluation.warnings)
    lost = [record for record in records if record.get("missing_labels_after")]
    if lost:
        labels = sum(int(record["missing_labels_after"]) for record in lost)
        found.append(
            f"Labels that both originals have were lost by warping, {labels} in "
            f"{counted(len(lost))}: they count with Dice 0; HD95 and ASSD are means over the rest"
        )
    return found


def _notes(evaluation: Evaluation) -> list[str]:
    """How the numbers came about, and how far they carry."""
    groups = len({record["group"] for record in evaluation.records})
    notes = [f"Method: {evaluation.method}."]
    if evaluation.grouped:
        notes.append(
            f"Intervals: 95 %, {DRAWS:,} bootstrap draws of the {groups} groups, seed "
            f"{evaluation.seed}; a group counts by the mean of its pairs. An interval that holds 0 "
            "is called a tie."
        )
    else:
        notes.append(
            "The manifest names no groups: every pair counts as independent. Where several pairs "
            "are of one patient, the intervals are too narrow; a column group says which are."
        )
    if 1 < groups < 10:
        notes.append(
            f"{groups} groups are few: such an interval is rather too narrow than too wide."
        )
    notes += shown_note(len(evaluation.views), len(evaluation.records))
    return notes + [f"Failed: {pair.row}: {reason}" for pair, reason in evaluation.failed]


def _charts(evaluation: Evaluation) -> dict[str, bytes]:
    """Box plots of the first metrics, over all pairs and, where they are few, over each group."""
    from diffreg.report.boxes import MOST_GROUPS, boxes_figure

    of_groups = by_group(evaluation.records)
    charts = {}
    for measure in evaluation.measures:
        if measure.name not in (*_FIRST, "min_determinant"):
            continue
        members = {"all": evaluation.records}
        if evaluation.grouped and 1 < len(of_groups) <= MOST_GROUPS:
            members |= of_groups
        ends = {"before": "_before", "after": "_after"} if measure.paired else {"after": ""}
        groups = {
            place: {
                series: [r[measure.name + end] for r in records if measure.name + end in r]
                for series, end in ends.items()
            }
            for place, records in members.items()
        }
        charts[measure.title] = boxes_figure(groups, measure.unit)
    return charts
