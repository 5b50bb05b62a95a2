"""The results as a plot, made from the JSON alone."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from diffreg.benchmark.rows import BOTH, Row, shape_of, times
from diffreg.benchmark.tables import headline_rows
from diffreg.report.figures import usual_look
from diffreg.system.extras import require

# Okabe and Ito's, told apart by colour-blind people too; a candidate has its own in every picture.
COLORS = {
    "best eager": "#0072b2",
    "MONAI": "#e69f00",
    "VoxelMorph": "#009e73",
    "kornia": "#d55e00",
    "torch.compile": "#56b4e9",
}


@usual_look()
def plot(result: Row) -> bytes:
    """How many times as fast as each candidate, forward and backward, as a PNG file.

    Of images and of volumes: one bar a candidate and operator, on a logarithmic axis; of several
    shapes the second.
    """
    require("matplotlib", "plots")
    from matplotlib.figure import Figure

    shown = [rows for d in (2, 3) if (rows := _plotted(headline_rows(result, d)))]
    heights = [sum(len(_bars(row)) + 0.6 for row in rows) for rows in shown]
    figure = Figure(figsize=(7.5, 0.22 * sum(heights) + len(shown)), layout="constrained")
    panels = figure.subplots(len(shown), squeeze=False, sharex=True, height_ratios=heights)
    where = result["machine"]["gpu"] or "one CPU thread"
    values = [value for rows in shown for row in rows for value in _bars(row).values()]
    names = dict.fromkeys(name for rows in shown for row in rows for name in row["speedup"])
    colors = {name: COLORS.get(name, f"C{number}") for number, name in enumerate(names)}
    for axes, rows in zip(panels[:, 0], shown, strict=True):
        _draw(axes, rows, colors)
        axes.set_title(f"{BOTH}, {shape_of(rows[0])}, {where}", fontsize=10)
        axes.set_xlabel("diffreg is so many times as fast", fontsize=9)
        axes.set_xlim(min(0.5, 0.8 * min(values)), 2 * max(values))
        marks = [mark for mark in (1, 3, 10, 30, 100, 300) if mark < 2 * max(values)]
        axes.set_xticks(marks, [f"{mark}x" for mark in marks])
        axes.minorticks_off()
        axes.tick_params(labelbottom=True)
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=140)
    return target.getvalue()


def _plotted(rows: Sequence[Row]) -> list[Row]:
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in rows))
    return [row for row in rows if tuple(row["shape"]) == shapes[min(1, len(shapes) - 1)]]


def _bars(row: Row) -> dict[str, float]:
    return {name: value for name, value in row["speedup"].items() if value}


def _draw(axes: Any, rows: Sequence[Row], colors: dict[str, str]) -> None:
    """Operators from top to bottom, a bar a candidate."""
    names = {name for row in rows for name in row["speedup"]}
    bars: dict[str, list[tuple[float, float]]] = {name: [] for name in colors if name in names}
    ticks, place = [], 0.0
    for row in rows:
        found = _bars(row)
        ticks.append(place - (len(found) - 1) / 2)
        for name, value in found.items():
            bars[name].append((place, value))
            place -= 1
        place -= 0.6
    for name, found_bars in bars.items():
        places, values = zip(*found_bars, strict=True) if found_bars else ((), ())
        lengths = [value - 1 for value in values]
        drawn = axes.barh(places, lengths, 0.85, left=1, label=name, color=colors[name])
        axes.bar_label(drawn, [times(value) for value in values], padding=3, fontsize=8)
    axes.set_yticks(ticks, [row["operator"] for row in rows])
    axes.set_xscale("log")
    axes.axvline(1, color="0.3", linewidth=1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", fontsize=8, frameon=False)
