"""A picture of sets: accuracy with intervals, people and folds, beside what it costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sets import GROUPS

Row = dict[str, Any]
MEASURES = {"dice": "Dice", "tre": "TRE, mm"}
TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500)


def plot(groups: dict[str, list[Row]], wanted: tuple[str, ...], path: Path) -> bool:
    """Whether there was something to draw: a row of panels for each of the sets."""
    from matplotlib.figure import Figure

    shown = {group: drawn(groups[group]) for group in wanted if drawn(groups.get(group, []))}
    if not shown:
        return False
    measures = [m for m in MEASURES if any(m in r["mean"] for rows in shown.values() for r in rows)]
    heights = [len(rows) + 2 for rows in shown.values()]
    figure = Figure(figsize=(11, 0.3 * sum(heights) + 0.5), layout="constrained")
    widths = [*(2 for _ in measures), 1.2]
    panels = figure.subplots(len(shown), len(widths), squeeze=False, sharey="row",
                             height_ratios=heights, width_ratios=widths)  # fmt: skip
    for (group, rows), axes in zip(shown.items(), panels, strict=True):
        for measure, ax in zip(measures, axes, strict=False):
            accuracy(ax, rows, measure)
        axes[0].set_title(GROUPS[group].title, loc="left", fontweight="bold")
        axes[0].set_yticks(range(len(rows)), [label(row, rows) for row in rows], fontsize=9)
        axes[0].set_ylim(len(rows) - 0.4, -0.6)
        seconds(axes[-1], rows)
    figure.savefig(path, dpi=100)
    return True


def drawn(rows: list[Row]) -> list[Row]:
    """Without tools that stopped on most pairs; the most accurate first."""
    most = max((row["pairs"] for row in rows), default=0)
    kept = [row for row in rows if row["pairs"] >= min(most, 5) and row["pairs"]]
    return sorted(kept, key=lambda row: -row["mean"]["dice"])


def label(row: Row, rows: list[Row]) -> str:
    fewer = row["pairs"] < max(each["pairs"] for each in rows)
    name = row["label"].replace(", trained", ",\ntrained")
    return f"{name} ({row['pairs']} pairs)" if fewer else name


def colour(row: Row) -> str:
    """Two that differ in lightness as well, for prints in grey."""
    return "#b2182b" if row["method"].startswith("diffreg") else "#4393c3"


def accuracy(ax: Any, rows: list[Row], measure: str) -> None:
    for y, row in enumerate(rows):
        if measure not in row["mean"]:
            continue
        people, mean = row["people"][measure].values(), row["mean"][measure]
        ax.plot(list(people), [y] * len(people), "|", color="0.6", markersize=5, zorder=1)
        if limits := row["interval"][measure]:
            ax.plot(limits, [y, y], color=colour(row), linewidth=2.5, alpha=0.5, zorder=2)
        inside = "white" if row["mean"].get("folded_certificate_percent") else colour(row)
        ax.plot(mean, y, "o", color=colour(row), markerfacecolor=inside, zorder=3)
    signs = "ticks: people; bar: 95 % interval"
    ax.set_xlabel(f"{MEASURES[measure]}; dot: mean, hollow: folds\n{signs}", fontsize=8)
    ax.grid(axis="x", alpha=0.3)


def seconds(ax: Any, rows: list[Row]) -> None:
    found = {y: row for y, row in enumerate(rows) if "cpu_s" in row["median"]}
    for y, row in found.items():
        ax.plot(row["median"]["cpu_s"], y, "s", color=colour(row), markersize=5)
    ax.set_xscale("log")
    ax.set_xlabel("CPU seconds, one thread", fontsize=8)
    ax.grid(axis="x", alpha=0.3)
    ax.margins(x=0.15)
    ax.minorticks_off()
    low, high = ax.get_xlim()
    ticks = [tick for tick in TICKS if low < tick < high]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
