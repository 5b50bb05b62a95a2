"""All pairs of a manifest measured, put together and written down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffreg import __version__
from diffreg.data.manifest import Pair
from diffreg.data.normalization import Normalization
from diffreg.evaluation.cohort_report import IN_FULL, IN_ROWS, write_csv
from diffreg.evaluation.measures import Measure, measure_pair, measures_of
from diffreg.evaluation.pages import group_table, summary_table, write_page
from diffreg.evaluation.result import Evaluation, Measured
from diffreg.evaluation.summary import by_group, summarize
from diffreg.registration._json import write_json
from diffreg.registration.cohort import PAIR_ERRORS, one_line, read_pair
from diffreg.registration.files import read_registration
from diffreg.registration.judgement import judged
from diffreg.registration.pair_page import view, warnings_in
from diffreg.registration.result import SAME_CONTRAST
from diffreg.report.rows import kept
from diffreg.system.atomic import staged

_UNKNOWN = {"unknown", "as trained"}


def evaluate(
    pairs: Sequence[tuple[Pair, Path]],
    method: str = "given displacements",
    one_contrast: bool = True,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    normalization: Normalization | None = None,
    known: Mapping[Path, Measured] | None = None,
) -> Evaluation:
    """Measure registered pairs.

    Args:
        pairs: each with the folder that `write_registration` wrote, or with its displacement file.
        method: where the displacements are from, in words.
        one_contrast: whether intensities can be compared; where metrics.json names a similarity
            across contrasts, they are not compared in any case.
        seed: of the bootstrap.
        progress: called with (pairs done, pairs).
        normalization: of the images before they are compared; None: the default percentiles.
        known: what was measured before, by folder or file.

    Returns:
        The evaluation; pairs that cannot be measured are in `failed`.

    Example: `evaluate([(job.pair, job.folder) for job in cohort.jobs]).summaries`
    """
    evaluation = Evaluation(method, seed=seed, grouped=any(pair.group for pair, _ in pairs))
    for number, (pair, place) in enumerate(pairs, start=1):
        one = (known or {}).get(place)
        drawn = len(evaluation.views) < IN_FULL + IN_ROWS
        if one is None or (drawn and not one.failed):
            one = measure(pair, place, one_contrast, normalization, drawn, one)
        if one.failed:
            evaluation.failed.append((pair, one.failed))
        else:
            _add(evaluation, pair, number, one, len(pairs))
        if progress is not None:
            progress(number, len(pairs))
    return evaluation


def measure(
    pair: Pair,
    place: Path,
    one_contrast: bool = True,
    normalization: Normalization | None = None,
    drawn: bool = False,
    known: Measured | None = None,
) -> Measured:
    """One registered pair's metrics.

    Args:
        pair, place, one_contrast, normalization: as `evaluate` takes them.
        drawn: with what a report draws.
        known: the metrics, where that alone is missing.

    Example: `measure(pair, Path("out")).values["dice_after"]`
    """
    try:
        result = read_registration(read_pair(pair), place, normalization)
        comparable = one_contrast and set(result.similarity.split("+")) - _UNKNOWN <= SAME_CONTRAST
        values = known.values if known else measure_pair(pair, result, comparable)
        result = judged(result, comparable)
        seen = view(result, pair.name, _beside(values)) if drawn else None
    except PAIR_ERRORS as error:
        return Measured(failed=one_line(error))
    return Measured(values, warnings_in(result.metrics), view=seen)


def _add(evaluation: Evaluation, pair: Pair, number: int, one: Measured, pairs: int) -> None:
    group = pair.group or pair.name if evaluation.grouped else f"{number}"
    about = {"pair": pair.name, "group": group, "row": pair.row}
    evaluation.records.append({**about, **one.values, "warnings": len(one.warnings)})
    evaluation.warnings.append((pair.name, one.warnings))
    if one.view is not None:
        evaluation.views.append(kept(one.view, pairs))


def write_evaluation(evaluation: Evaluation, out: Path) -> None:
    """Write evaluation.csv, evaluation.json and report.html; all of them, each whole, or none.

    Args:
        evaluation: at least one pair is measured.
        out: the folder; it is made where it does not exist.

    Raises:
        OSError: the files could not be written.

    Example: `write_evaluation(evaluate(pairs), Path("out"))`
    """
    summaries = evaluation.summaries
    groups = by_group(evaluation.records) if _grouped(evaluation) else {}
    content = {
        "version": __version__,
        "method": evaluation.method,
        "seed": evaluation.seed,
        "summary": {summary.measure.name: summary.to_dict() for summary in summaries},
        "groups": {
            name: _of_group(evaluation.measures, records, evaluation.seed)
            for name, records in groups.items()
        },
        "pairs": evaluation.records,
        "warnings": [
            {"pair": name, "sentence": sentence}
            for name, warnings in evaluation.warnings
            for sentence in warnings
        ],
        "failed": [{"row": pair.row, "reason": reason} for pair, reason in evaluation.failed],
    }
    with staged(out, last="evaluation.json") as folder:
        write_csv(folder / "evaluation.csv", evaluation.records)
        write_json(folder / "evaluation.json", content)
        tables = {"All pairs": summary_table(summaries)}
        if _grouped(evaluation):
            tables["By group"] = group_table(evaluation.records, evaluation.measures)
        write_page(evaluation, tables, folder / "report.html")


def _grouped(evaluation: Evaluation) -> bool:
    return evaluation.grouped and len({r["group"] for r in evaluation.records}) > 1


def _of_group(
    measures: Sequence[Measure], records: Sequence[dict[str, Any]], seed: int
) -> dict[str, Any]:
    """The means and medians of one group's pairs."""
    found = {}
    for measure in measures:
        summary = summarize(measure, records, seed)
        if summary is not None:
            plain = summary.to_dict()
            found[measure.name] = {k: plain[k] for k in ("pairs", "before", "after") if k in plain}
    return found


def _beside(values: dict[str, Any]) -> dict[str, Any]:
    """What stands beside one pair's pictures."""
    shown: dict[str, Any] = {}
    for measure in measures_of([values]):
        if measure.name.startswith(("max_", "folded", "sd_log", "normalized")):
            continue
        title = f"{measure.title} ({measure.unit})" if measure.unit else measure.title
        if measure.paired:
            shown[title] = (values[f"{measure.name}_before"], values[f"{measure.name}_after"])
        else:
            shown[title] = values[measure.name]
    return shown
