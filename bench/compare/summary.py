"""The results of compare.py: means over people, intervals, differences, ties called ties."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from labelled import label_group

from diffreg.benchmark.run import machine

RESULTS = Path(__file__).parents[1] / "results"
FEWEST = 5  # people: of fewer an interval says nothing
PARTS = ("deep", "cortex", "rest")
MEASURES = (
    *("dice", *PARTS, "hd95", "sd_log_j", "sd_log_j_learn2reg"),
    *(f"folded_{how}_percent" for how in ("central", "corners", "certificate")),
)
COUNTS = ("folded_central", "folded_corners", "folded_inside", "undecided_cells", "folded_cells")
COSTS = ("cpu_s", "search_s", "peak_mb", "load")
People = dict[str, float]  # person -> value
Row = dict[str, Any]


def interval(values: Iterable[float]) -> list[float] | None:
    """95 % bootstrap interval of the mean, over people; None where they are too few."""
    from scipy.stats import bootstrap

    each = np.array(list(values))
    if len(each) < FEWEST:
        return None
    draw = bootstrap((each,), np.mean, method="percentile", n_resamples=9999, rng=0)
    return [float(limit) for limit in draw.confidence_interval]


def by_part(run: Row) -> dict[str, float]:
    """Mean Dice of the labels of each part of the head; of a heart nothing."""
    parts = defaultdict(list)
    if len(run["dice_labels"]) > 1:
        for label, value in run["dice_labels"].items():
            parts[label_group(int(label))].append(value)
    return {part: float(np.mean(values)) for part, values in parts.items()}


def row_of(method: str, runs: list[Row]) -> Row:
    """A method on a group: means over people with intervals, medians of what it costs."""
    whole = [run | by_part(run) for run in runs if "error" not in run]
    people = {
        measure: {run["person"]: run[measure] for run in whole if measure in run}
        for measure in MEASURES
    }
    people = {measure: values for measure, values in people.items() if len(values) == len(whole)}
    return {
        "method": method,
        "setting": runs[0]["setting"],
        "version": next((run["version"] for run in whole if "version" in run), ""),
        "pairs": len(whole),
        "errors": Counter(
            re.sub(r" *\(0x[0-9a-f]+\)", "", run["error"]) for run in runs if "error" in run
        ),
        "people": people if whole else {},
        "mean": {name: float(np.mean(list(p.values()))) for name, p in people.items() if p},
        "interval": {name: interval(values.values()) for name, values in people.items()},
        "folded_pairs": {
            name: sum(value > 0 for value in values.values())
            for name, values in people.items()
            if name.startswith("folded")
        },
        "counts": {
            name: sum(run[name] for run in whole)
            for name in COUNTS
            if whole and all(name in run for run in whole)
        },
        "homeomorphisms": sum(run.get("verdict") == "homeomorphism" for run in whole),
        "smallest_corner": min((run["smallest_corner"] for run in whole), default=None),
        "median": {
            name: float(np.median([run[name] for run in whole if name in run]))
            for name in COSTS
            if any(name in run for run in whole)
        },
    }


def versus(a: Row, b: Row, measure: str) -> Row | None:
    """a minus b over the people that both have; None where there is nobody."""
    ours, theirs = (row["people"].get(measure, {}) for row in (a, b))
    each = [ours[person] - theirs[person] for person in ours if person in theirs]
    if not each:
        return None
    return {"people": len(each), "mean": float(np.mean(each)), "interval": interval(each)}


def summaries(runs: Iterable[Row], settings: Mapping[str, str]) -> dict[str, list[Row]]:
    """group -> rows, in the order of settings; runs of other settings than these are left out."""
    found: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if settings.get(run["method"]) == run["setting"]:
            found[run["group"]][run["method"]].append(run)
    return {
        group: [row_of(method, methods[method]) for method in settings if method in methods]
        for group, methods in found.items()
    }


def compared(rows: list[Row], ours: Iterable[str]) -> None:
    """Every row gets what each of ours has more, in Dice, HD95 and SDlogJ."""
    named = {row["method"]: row for row in rows}
    for row in rows:
        row["minus_this"] = {
            name: {measure: versus(named[name], row, measure) for measure in MEASURES}
            for name in ours
            if name in named and name != row["method"]
        }


def write_results(
    runs: Iterable[Row], settings: Mapping[str, str], ours: tuple[str, ...], to: Path = RESULTS
) -> None:
    """variational_volumes.json, .md and .png in `to`."""
    from compare_page import page, plot

    groups = summaries(runs, settings)
    for rows in groups.values():
        compared(rows, ours)
    to.mkdir(exist_ok=True)
    results = {"machine": machine("cpu"), "groups": groups}
    (to / "variational_volumes.json").write_text(json.dumps(results, indent=1) + "\n")
    (to / "variational_volumes.md").write_text(page(results, ours))
    plot(groups, to / "variational_volumes.png")
