"""Box plots of one metric, before and after, over all pairs and over each group.

Drawn with matplotlib, without pyplot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffreg.report.charts import SERIES
from diffreg.report.figures import empty_figure, png_file, usual_look

BEFORE = "#8b93a1"
# Boxes are drawn for at most so many groups; of more, for all pairs together only.
MOST_GROUPS = 12


@usual_look()
def boxes_figure(
    groups: Mapping[str, Mapping[str, Sequence[float]]], unit: str = "", width: float = 5.6
) -> bytes:
    """Boxes from quartile to quartile, a line at the median, whiskers to 1.5 boxes, values as dots.

    Args:
        groups: what stands on the axis -> series ("before", "after") -> values; those that are not
            finite are left out.
        unit: of the values.
        width: inches, at 160 pixels an inch.

    Returns:
        A PNG file.

    Example:
        >>> from diffreg.report.boxes import boxes_figure
        >>> boxes_figure({"all": {"after": [0.9, 0.95, 0.97]}})[1:4]
        b'PNG'
    """
    figure = empty_figure(width, 0.56 * width)
    crowded = sum(len(name) + 1 for name in groups) > 48
    axes = figure.add_axes((0.12, 0.22 if crowded else 0.14, 0.865, 0.66 if crowded else 0.74))
    names = list(dict.fromkeys(name for series in groups.values() for name in series))
    for k, name in enumerate(names):
        colour = BEFORE if name == "before" else SERIES[0]
        offset = (k - (len(names) - 1) / 2) * 0.36
        for place, series in enumerate(groups.values()):
            values = np.asarray(series.get(name, ()), dtype=np.float64)
            _draw_box(axes, place + offset, values[np.isfinite(values)], colour)
        axes.plot([], [], "s", color=colour, label=name)
    turned = {"rotation": 20, "ha": "right"} if crowded else {}
    axes.set_xticks(range(len(groups)), [_short(name) for name in groups], **turned)
    axes.tick_params(labelsize=9, colors="#4a5260", length=0)
    axes.set_ylabel(unit, fontsize=10, color="#4a5260")
    axes.grid(axis="y", color="#e3e6ea", linewidth=0.8)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if len(names) > 1:
        above: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1, 1)}
        look = {"fontsize": 9, "frameon": False, "labelcolor": "#14181f", "ncols": len(names)}
        axes.legend(**above, **look)
    return png_file(figure, 160)


def _draw_box(axes: Any, place: float, values: np.ndarray, colour: str) -> None:
    """One box; the dots are spread evenly, so that the same values give the same picture."""
    if values.size == 0:
        return
    parts = axes.boxplot(
        values,
        positions=[place],
        widths=0.28,
        showfliers=False,
        patch_artist=True,
        manage_ticks=False,
    )
    for line in (*parts["whiskers"], *parts["caps"], *parts["medians"]):
        line.set(color=colour, linewidth=1.4)
    for box in parts["boxes"]:
        box.set(facecolor=colour, alpha=0.25, edgecolor=colour)
    spread = 0.2 * (np.arange(len(values)) * 0.618 % 1 - 0.5)
    axes.plot(place + spread, values, ".", color=colour, markersize=3.5, alpha=0.7)


def _short(name: str) -> str:
    return name if len(name) <= 12 else f"{name[:11]}\N{HORIZONTAL ELLIPSIS}"
