"""The page and the plot of summary.py's results."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from summary import FEWEST, PARTS

Row = dict[str, Any]
TITLES = {
    "brain2mm": "Heads, 2 mm, 80 x 96 x 80",
    "brain1mm": "Heads, 1 mm, 160 x 192 x 160",
    "cardiac3d": "Hearts, end-systole to end-diastole, 96 x 96 x 10 to 13, planes 8 to 10 mm apart",
}
ABOUT = f"""\
# Volumes: variational registration and what a user could run instead

Written by bench/compare/compare.py. A pair is two people (of hearts two phases of one) on one
grid; every method starts from the identity there, and runs in a fresh process on one thread. Means
over people (the one whose image is fixed), 95 % bootstrap intervals over them; of fewer than
{FEWEST} people there is no interval. Labels are read at the nearest voxel of every method's
displacement by one code.

- **Dice**, of the labels that both people have (heads: 130, drawn by hand), and of parts of the
  head: deep grey matter, ventricles and brain stem (deep), cortex, and what is left (rest).
- **HD95**: mean over labels of the larger of the two directed 95th percentiles, mm.
- **SDlogJ**: standard deviation of the logarithm of the determinants by central differences, two
  voxels at the border left out, those below 1e-9 taken as that. (Learn2Reg's script adds 3 to each
  determinant first; the JSON has that figure as sd_log_j_learn2reg.)
- **Folded**: voxels by these central differences (without that border), cells by their eight
  corners, cells by the certificate of the whole trilinear cell, percent; in brackets the pairs with
  one at least.
- **CPU s** of the process from files to file, user and system, and of the search alone (diffreg:
  all of the process beyond `import torch`, files included); largest resident size, MB. Medians.
"""


def page(results: Row, ours: tuple[str, ...]) -> str:
    about = results["machine"]
    told = [f"{key} {about[key]}" for key in ("processor", "torch", "commit") if about.get(key)]
    parts = [ABOUT, ", ".join(told) + "."]
    for group, rows in results["groups"].items():
        parts += ["", f"## {TITLES[group]}", "", *table(rows)]
        measures = ("dice", "sd_log_j") if group == "cardiac3d" else ("dice", "deep", "sd_log_j")
        for measure in measures:
            parts += differences(rows, ours, measure)
        parts += totals(rows) + failures(rows)
    return "\n".join([*parts, "", "## Settings", "", *settings(results["groups"])]) + "\n"


def table(rows: list[Row]) -> list[str]:
    parts = [part for part in PARTS if any(part in row["mean"] for row in rows)]
    head = ["method", "pairs", "Dice", *parts, "HD95", "SDlogJ"]
    head += ["folded: central", "corners", "certificate", "CPU s", "search", "MB"]
    lines = [line_of(head), line_of(["---"] * len(head))]
    for row in (row for row in rows if row["pairs"]):
        median = row["median"]
        cells = [row["method"], str(row["pairs"]), spread(row, "dice")]
        cells += [plain(row, part, 3) for part in parts]
        cells += [plain(row, "hd95", 2), plain(row, "sd_log_j", 3)]
        cells += [folds(row, how) for how in ("central", "corners", "certificate")]
        cells += [f"{median[name]:.1f}" if name in median else "" for name in ("cpu_s", "search_s")]
        cells += [f"{median['peak_mb']:.0f}" if "peak_mb" in median else ""]
        lines.append(line_of(cells))
    return lines


def differences(rows: list[Row], ours: Iterable[str], measure: str) -> list[str]:
    """What each budget of ours has more than every other method, over the people of both."""
    names = [name for name in ours if any(name in row["minus_this"] for row in rows)]
    if not names:
        return []
    title = {"dice": "Dice", "deep": "Dice, deep", "sd_log_j": "SDlogJ"}[measure]
    head = [f"{title}: ours minus it", *names]
    lines = ["", line_of(head), line_of(["---"] * len(head))]
    for row in rows:
        found = [(row["minus_this"].get(name) or {}).get(measure) for name in names]
        if any(found):
            lines.append(line_of([row["method"], *map(difference, found)]))
    return lines


def difference(found: Row | None) -> str:
    if found is None:
        return ""
    if found["interval"] is None:
        return f"{found['mean']:+.4f} (people: {found['people']})"
    low, high = found["interval"]
    tie = " (tie)" if low <= 0 <= high else ""
    return f"{found['mean']:+.4f} [{low:+.4f}, {high:+.4f}]{tie}"


def totals(rows: list[Row]) -> list[str]:
    """What folds, counted over all pairs: how much of it central differences and corners see."""
    head = ["folded, all pairs", "voxels, central differences", "cells, corners"]
    head += ["cells, only inside", "undecided", "homeomorphisms, of pairs"]
    names = ("folded_central", "folded_corners", "folded_inside", "undecided_cells")
    lines = ["", line_of(head), line_of(["---"] * len(head))]
    for row in (row for row in rows if "folded_cells" in row["counts"]):
        cells = [row["method"], *(str(row["counts"][name]) for name in names)]
        lines.append(line_of([*cells, f"{row['homeomorphisms']} of {row['pairs']}"]))
    return lines if len(lines) > 3 else []


def failures(rows: list[Row]) -> list[str]:
    lines = [
        f"- {row['method']} stopped on {count} of {tried(row)} pairs: `{error}`"
        for row in rows
        for error, count in row["errors"].items()
    ]
    return ["", *lines] if lines else []


def tried(row: Row) -> int:
    return row["pairs"] + sum(row["errors"].values())


def settings(groups: dict[str, list[Row]]) -> list[str]:
    found = {}
    for rows in groups.values():
        for row in rows:
            version = row["version"] or found.get(row["method"], ("", ""))[0]
            found[row["method"]] = version, row["setting"]
    return [
        f"- {method} ({version}): `{setting or 'its defaults'}`"
        for method, (version, setting) in found.items()
        if version
    ]


def spread(row: Row, measure: str) -> str:
    limits = row["interval"][measure]
    between = f" [{limits[0]:.4f}, {limits[1]:.4f}]" if limits else ""
    return f"{row['mean'][measure]:.4f}{between}"


def plain(row: Row, measure: str, digits: int) -> str:
    return f"{row['mean'][measure]:.{digits}f}" if measure in row["mean"] else ""


def folds(row: Row, how: str) -> str:
    name = f"folded_{how}_percent"
    if name not in row["mean"]:
        return "not measured"
    return f"{row['mean'][name]:.2g} ({row['folded_pairs'][name]})"


def line_of(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def plot(groups: dict[str, list[Row]], path: Path) -> None:
    """Dice against CPU seconds, and Dice of the parts of the head, at 2 mm."""
    from matplotlib.figure import Figure

    rows = [row for row in groups.get("brain2mm", []) if row["interval"].get("dice")]
    rows.sort(key=lambda row: -row["mean"]["dice"])
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    against, parts = figure.subplots(1, 2)
    plot_costs(against, {n: row for n, row in enumerate(rows, 1) if "cpu_s" in row["median"]})
    for part, marker in zip(PARTS, "os^", strict=True):
        parts.plot([row["mean"][part] for row in rows], range(len(rows)), marker, label=part)
    parts.set_yticks(range(len(rows)), [f"{row['method']}  {n}" for n, row in enumerate(rows, 1)])
    parts.invert_yaxis()
    parts.grid(axis="y", alpha=0.3)
    parts.set(xlabel="Dice", title="By parts of the head")
    parts.legend()
    figure.savefig(path, dpi=110)


def plot_costs(axes: Any, rows: dict[int, Row]) -> None:
    """Each with its number in the other picture."""
    for number, row in rows.items():
        seconds, mean = row["median"]["cpu_s"], row["mean"]["dice"]
        colour = "C3" if row["method"].startswith("diffreg") else "C0"
        inside = "none" if row["mean"]["folded_corners_percent"] else colour
        axes.plot([seconds] * 2, row["interval"]["dice"], color=colour, alpha=0.3, linewidth=1)
        axes.plot(seconds, mean, "o", color=colour, markerfacecolor=inside)
        axes.annotate(str(number), (seconds, mean), (5, 3), textcoords="offset points")
    axes.set(xscale="log", xlabel="CPU seconds of a process, one thread", ylabel="Dice, all labels")
    axes.set_title("Heads, 2 mm (hollow: folded corners)")
    axes.margins(x=0.1)
    axes.minorticks_off()
    ticks = [1, 2, 5, 10, 20, 50, 100, 200]
    low, high = axes.get_xlim()
    shown = [tick for tick in ticks if low < tick < high]
    axes.set_xticks(shown, [str(tick) for tick in shown])
