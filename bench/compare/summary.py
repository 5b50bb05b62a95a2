"""What was measured, put together: means over people, intervals, differences, ties called ties."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from labelled import label_group

FEWEST = 5  # people: of fewer an interval says nothing
PARTS = ("deep", "cortex", "rest")
MEASURES = (
    *("dice", "tre", "end_point_error", *PARTS, "hd95", "sd_log_j", "sd_log_j_learn2reg"),
    *(f"folded_{how}_percent" for how in ("central", "corners", "certificate")),
)
COUNTS = ("folded_central", "folded_corners", "folded_inside", "undecided_cells", "folded_cells")
COSTS = ("cpu_s", "search_s", "peak_mb", "load")
People = dict[str, float]  # person -> value
Row = dict[str, Any]


def interval(values: Iterable[float]) -> list[float] | None:
    """95 % bootstrap interval of the mean, over people; None where they are too few, or one's value
    is no number."""
    from scipy.stats import bootstrap

    each = np.array(list(values))
    if len(each) < FEWEST or not np.isfinite(each).all():
        return None
    draw = bootstrap((each,), np.mean, method="percentile", n_resamples=9999, rng=0)
    return [float(limit) for limit in draw.confidence_interval]


def by_part(run: Row) -> dict[str, float]:
    """Mean Dice of the labels of each part of the head; elsewhere nothing."""
    parts = defaultdict(list)
    if run["group"].startswith("brain"):
        for label, value in run["dice_labels"].items():
            parts[label_group(int(label))].append(value)
    return {part: float(np.mean(values)) for part, values in parts.items()}


def row_of(method: str, runs: list[Row]) -> Row:
    """A method on a group: means over people with intervals, medians of what it costs."""
    whole = [run | by_part(run) for run in runs if "error" not in run]
    pairs = {
        measure: {(run["person"], run["pair"]): run[measure] for run in whole if measure in run}
        for measure in MEASURES
    }
    pairs = {measure: values for measure, values in pairs.items() if values}
    people = {measure: by_person(values) for measure, values in pairs.items()}
    return {
        "method": method,
        "label": runs[-1].get("label", method),
        "setting": runs[0]["setting"],
        "version": next((run["version"] for run in whole if "version" in run), ""),
        "commits": sorted({run["commit"] for run in runs if "commit" in run}),
        "pairs": len(whole),
        "errors": Counter(_kind(run["error"]) for run in runs if "error" in run),
        "by_pair": pairs,
        "people": people,
        "worst": min(pairs.get("dice", {}).values(), default=None),
        "mean": {name: float(np.mean(list(each.values()))) for name, each in people.items()},
        "interval": {name: interval(values.values()) for name, values in people.items()},
        "folded_pairs": {
            name: sum(value > 0 for value in values.values())
            for name, values in pairs.items()
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


def _kind(error: str) -> str:
    """Without addresses and sizes, so that one error of many pairs is told once."""
    return re.sub(r" *\(0x[0-9a-f]+\)", "", re.sub(r"\[\d[\d, ]*\]", "[...]", error))


def by_person(values: Mapping[tuple[str, str], float]) -> People:
    """The mean over a person's pairs, from (person, pair) -> value."""
    found = defaultdict(list)
    for (person, _), value in values.items():
        found[person].append(value)
    return {person: float(np.mean(few)) for person, few in found.items()}


def versus(a: Row, b: Row, measure: str) -> Row | None:
    """a minus b over the pairs, and so the people, that both have; None where there is nobody.

    Of a row that was kept from an earlier page only the people's means are known.
    """
    by = "by_pair" if "by_pair" in a and "by_pair" in b else "people"
    ours, theirs = (row[by].get(measure, {}) for row in (a, b))
    both = {one: ours[one] - theirs[one] for one in ours if one in theirs}
    each = list((by_person(both) if by == "by_pair" else both).values())
    if not each:
        return None
    return {"people": len(each), "mean": float(np.mean(each)), "interval": interval(each)}


def summaries(runs: Iterable[Row], settings: Mapping[str, str]) -> dict[str, list[Row]]:
    """group -> rows, in the order of settings.

    Runs of other settings than these are left out, and those of another processor than the last
    run's; of a network those of the last checkpoint stay.
    """
    runs = list(runs)
    found: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        known = run["setting"].startswith(settings.get(run["method"], "?"))
        if known and run.get("processor") == runs[-1].get("processor"):
            found[run["group"]][run["method"]].append(run)
    return {
        group: [
            row_of(method, _newest(methods[method])) for method in settings if method in methods
        ]
        for group, methods in found.items()
    }


def with_kept(
    groups: dict[str, list[Row]], before: dict[str, list[Row]], settings: Mapping[str, str]
) -> dict[str, list[Row]]:
    """The rows, and those of an earlier page that have not been run again, or not on all pairs.

    Args:
        groups: of `summaries`.
        before: the same, as they were written.
        settings: method -> what it is run with; rows of another setting are dropped.
    """
    found = {}
    for group in {**before, **groups}:
        rows = {row["method"]: _read(row) for row in before.get(group, [])}
        for row in groups.get(group, []):
            old = rows.get(row["method"])
            if old is None or _count(row) >= _count(old) or row["setting"] != old["setting"]:
                rows[row["method"]] = row
        found[group] = [
            rows[method]
            for method, setting in settings.items()
            if method in rows and rows[method]["setting"].startswith(setting)
        ]
    return found


def _read(row: Row) -> Row:
    """As it was before it was written, where null stands for what is no number."""
    people = {
        measure: {person: np.nan if value is None else value for person, value in values.items()}
        for measure, values in row["people"].items()
    }
    mean = {measure: np.nan if value is None else value for measure, value in row["mean"].items()}
    return row | {"people": people, "mean": mean}


def _count(row: Row) -> int:
    return row["pairs"] + sum(row["errors"].values())


def _newest(runs: list[Row]) -> list[Row]:
    return [run for run in runs if run["setting"] == runs[-1]["setting"]]


def compared(rows: list[Row], ours: Iterable[str]) -> None:
    """Every row gets what each of ours has more, in place of its single pairs."""
    named = {row["method"]: row for row in rows}
    for row in rows:
        row["minus_this"] = {
            name: {measure: versus(named[name], row, measure) for measure in MEASURES}
            for name in ours
            if name in named and name != row["method"]
        }
    for row in rows:
        row.pop("by_pair", None)


def told(difference: Row | None, more_is_better: bool = True) -> str:
    """ "above", "below" or "tie": what a difference (ours minus another's) bears out, or ""."""
    if difference is None or difference["interval"] is None:
        return ""
    low, high = difference["interval"]
    if low <= 0 <= high:
        return "tie"
    return "above" if (low > 0) == more_is_better else "below"
