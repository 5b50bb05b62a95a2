"""The histogram of the determinants of a pair's cells, drawn with matplotlib, without pyplot."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffreg.report.determinants import FOLDED, determinant_colours, determinant_limit
from diffreg.report.figures import empty_figure, png_file, usual_look
from diffreg.system.extras import require

SOFT = "#4a5260"


@usual_look()
def histogram_figure(cells: np.ndarray, width: float = 5.6) -> bytes:
    """How many cells there are of each determinant, in the colours of the map; both axes in powers.

    Args:
        cells: the smallest corner determinants, any shape; those that fold have a bar of their own
            at the left.
        width: inches, at 160 pixels an inch.

    Returns:
        A PNG file.

    Example:
        >>> histogram_figure(np.ones((2, 2)))[1:4]
        b'PNG'
    """
    colors = require("matplotlib.colors", "the figures")
    limit = determinant_limit(cells)
    positive = cells[np.isfinite(cells) & (cells > 0)]
    furthest = np.abs(np.log2(positive)).max(initial=0.0)
    octaves = float(np.clip(np.ceil(4 * furthest) / 4, 0.5, 4))
    edges = np.linspace(-octaves, octaves, 82)  # an odd number of bars: one has 1 in its middle
    within = np.clip(np.log2(positive), -octaves, octaves)
    counts, _ = np.histogram(within, edges)
    middles = (edges[1:] + edges[:-1]) / 2
    step = float(edges[1] - edges[0])
    colours = determinant_colours()(colors.LogNorm(1 / limit, limit)(2.0**middles))
    figure = empty_figure(width, 0.5 * width)
    axes = figure.add_axes((0.11, 0.19, 0.87, 0.76))
    axes.bar(middles, counts, step, color=colours, edgecolor="#14181f", linewidth=0.3)
    folded = cells.size - positive.size
    if folded:
        axes.bar(-octaves - 9 * step, folded, 2 * step, color=FOLDED)
    _label(axes, octaves, step, bool(folded), furthest > octaves)
    return png_file(figure, 160)


def _label(axes: Any, octaves: float, step: float, folded: bool, beyond: bool) -> None:
    """Ticks at powers of two, or of its root where all cells are nearly as they were.

    The bars at the ends hold what lies beyond them as well; where there is such, they say so.
    """
    apart = 1.0 if octaves >= 2 else 0.5
    places = np.arange(-np.floor(octaves / apart), np.floor(octaves / apart) + 1) * apart
    names = [f"1/{2**-p:g}" if p < 0 and p % 1 == 0 else f"{2.0**p:.2g}" for p in places]
    if beyond:
        names[0] = f"\N{LESS-THAN OR EQUAL TO} {names[0]}"
        names[-1] = f"\N{GREATER-THAN OR EQUAL TO} {names[-1]}"
    if folded:
        places, names = np.append(places, -octaves - 9 * step), [*names, "folded"]
    axes.set_xticks(places, names)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(bottom=0)
    axes.axvline(0, color="#14181f", linewidth=0.8, linestyle=":")
    axes.set_xlabel("local change of size (Jacobian determinant)", fontsize=10, color=SOFT)
    axes.set_ylabel("cells", fontsize=10, color=SOFT)
    axes.tick_params(labelsize=9, colors=SOFT, length=0)
    axes.grid(axis="y", color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    for spine in axes.spines.values():
        spine.set_visible(False)
