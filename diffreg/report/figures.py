"""Mesh, determinant map, training curves and the picture of a pair, drawn with matplotlib.

Determinants and mesh are computed in array axes and turned upright afterwards. No pyplot, so no
global state: the same arrays give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffreg._extras import require
from diffreg._files import replacing
from diffreg.metrics import smallest_determinant
from diffreg.report.panels import (
    PairView,
    grey,
    level,
    overlay,
    png,
    upright,
    upright_points,
    window,
)

FOLDED = "#ff1f8f"  # on no colour map used here
DETERMINANTS = ("#14507a", "#6ea6c4", "#f4f2ec", "#e3ab5c", "#a3560b")  # shrinks, keeps, grows
LINE = "#8ff0e0"
SERIES = ("#0b6e63", "#c2571a", "#5a4fa2", "#8a6d00", "#a3195b", "#3b6fb6")
Draw = Callable[[Any, PairView], None]  # (matplotlib Axes, pair)


def determinant_limit(determinants: np.ndarray) -> float:
    """The power of two, 2 to 8, whose [1 / limit, limit] holds 99 % of the positive ones."""
    positive = determinants[np.isfinite(determinants) & (determinants > 0)]
    furthest = np.percentile(np.abs(np.log2(positive)), 99) if positive.size else 0.0
    return float(2.0 ** np.clip(np.ceil(furthest), 1, 3))


def determinant_colours() -> Any:
    """The diverging colour map of the determinant, centred at 1; folded cells stand out of it."""
    colors = require("matplotlib.colors", "the figures")
    colour_map = colors.LinearSegmentedColormap.from_list("determinant", DETERMINANTS)
    return colour_map.with_extremes(bad=FOLDED)


def draw_determinant(axes: Any, view: PairView) -> None:
    """Draws the smallest corner determinant of every cell, folded cells in FOLDED and circled.

    Args:
        axes: matplotlib Axes.
        view: the pair.
    """
    colors = require("matplotlib.colors", "the figures")
    cells = smallest_determinant(view.displacement)
    limit = determinant_limit(cells)
    _frame(axes, view)
    axes.set_facecolor("#d9dadd")
    if cells.size == 0:
        return
    folded = ~(cells > 0)
    drawn = upright(np.ma.masked_where(folded, cells), view.display)
    rows, columns = drawn.shape
    axes.imshow(
        drawn,
        cmap=determinant_colours(),
        norm=colors.LogNorm(1 / limit, limit),
        extent=(0, columns, rows, 0),  # a cell lies between voxel centres
        aspect="auto",
        interpolation="nearest",
    )
    _frame(axes, view)
    centres = np.indices(view.fixed.shape).astype(np.float64)
    _mark_folds(axes, view, folded, centres, dots=False)


def draw_mesh(axes: Any, view: PairView, lines: int = 24) -> None:
    """Draws the fixed grid where phi takes it, over the moving image that it samples.

    Args:
        axes: matplotlib Axes.
        view: the pair.
        lines: about how many along the longer side.
    """
    phi = _vertices(view)
    moving = level(view.moving, window(view.moving)) * 0.5
    axes.imshow(grey(moving, (0.0, 1.0), view.display), aspect="auto", interpolation="bicubic")
    _draw_strands(axes, view, lines, LINE, 1.1)
    _frame(axes, view)
    folded = ~(smallest_determinant(view.displacement) > 0)
    _mark_folds(axes, view, folded, phi, dots=True)


def _mark_folds(
    axes: Any, view: PairView, folded: np.ndarray, points: np.ndarray, dots: bool
) -> None:
    """Dots on folded cells of the grid points (2, H, W); circles where they are few."""
    i, j = np.nonzero(folded)
    corners = points[:, i, j], points[:, i + 1, j], points[:, i, j + 1], points[:, i + 1, j + 1]
    rows, columns = upright_points(np.mean(corners, axis=0), view.fixed.shape, view.display)
    if dots:
        axes.plot(columns, rows, "o", color=FOLDED, markersize=2.5)
    if len(i) <= 12:
        axes.plot(columns, rows, "o", mfc="none", mec=FOLDED, markersize=12, mew=1.6)


def _ticks(size: int, step: int) -> list[int]:
    """Every step-th index, the last one always among them."""
    return sorted({*range(0, size, step), size - 1})


def _frame(axes: Any, view: PairView) -> None:
    """The whole picture from edge to edge, without ticks."""
    rows, columns = upright(view.fixed, view.display).shape
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def panel(draw: Draw, view: PairView, width: int = 480) -> bytes:
    """One drawing from edge to edge, in the proportions of the picture.

    Args:
        draw: draw_mesh, draw_determinant or another function of (axes, view).
        view: the pair.
        width: pixels.

    Returns:
        A PNG file.
    """
    inches = width / 100
    figure = empty_figure(inches, inches * min(max(view.aspect, 0.1), 10.0))
    draw(figure.add_axes((0, 0, 1, 1)), view)
    figure.set_dpi(100)
    figure.canvas.draw()
    return png(np.asarray(figure.canvas.buffer_rgba())[..., :3])


def pair_figure(view: PairView, height: float = 2.6) -> bytes:
    """Moving | fixed | warped | overlay before | overlay after | mesh and determinant, in one row.

    Args:
        view: the pair.
        height: inches of the pictures, at 150 pixels an inch.

    Returns:
        A PNG file.
    """
    limits, fixed_limits = window(view.moving), window(view.fixed)
    display = view.display
    both = (limits, fixed_limits)
    pictures = {
        "moving": grey(view.moving, limits, display),
        "fixed": grey(view.fixed, fixed_limits, display),
        "warped": grey(view.warped, limits, display),
        "before": overlay(view.moving, view.fixed, both, display),
        "after": overlay(view.warped, view.fixed, both, display),
    }
    draws = {name: _draw_picture(picture) for name, picture in pictures.items()}
    draws["mesh"] = draw_cells
    width = min(max(height / view.aspect, height / 4), height * 4)
    gap, title = 0.06, 0.26
    total = len(draws) * (width + gap) - gap
    figure = empty_figure(total, height + title)
    for k, (name, draw) in enumerate(draws.items()):
        left = k * (width + gap) / total
        axes = figure.add_axes((left, 0, width / total, height / (height + title)))
        draw(axes, view)
        axes.set_title(name, fontsize=9, color="#14181f", pad=4)
    return png_file(figure, 150)


def readme_picture(path: str | Path, pair: PairView) -> None:
    """Writes `pair_figure` to a PNG file, whole or not at all.

    Args:
        path: the file; its folder must exist.
        pair: what to draw.
    """
    picture = pair_figure(pair)
    with replacing(path) as temporary:
        temporary.write_bytes(picture)


def draw_cells(axes: Any, view: PairView, lines: int = 28) -> None:
    """Draws the deformed cells, each in the colour of its determinant, and the mesh over them.

    Args:
        axes: matplotlib Axes.
        view: the pair.
        lines: about how many along the longer side.
    """
    colors = require("matplotlib.colors", "the figures")
    cells = smallest_determinant(view.displacement)
    limit = determinant_limit(cells)
    phi = _vertices(view)
    rows, columns = _upright_vertices(view, phi)
    if min(view.fixed.shape) > 1:  # the cells of a line have no area
        axes.pcolormesh(
            columns,
            rows,
            upright(np.ma.masked_where(~(cells > 0), cells), view.display),
            cmap=determinant_colours(),
            norm=colors.LogNorm(1 / limit, limit),
            shading="flat",
            antialiased=False,
        )
    _draw_strands(axes, view, lines, "#14181f", 0.4)
    axes.set_facecolor("white")
    _frame(axes, view)
    _mark_folds(axes, view, ~(cells > 0), phi, dots=True)


def curves_figure(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], width: float = 5.6
) -> bytes:
    """Curves in one pair of axes; a long, noisy one is drawn pale, with its running mean.

    Args:
        series: name -> (steps, values).
        width: inches, at 160 pixels an inch.

    Returns:
        A PNG file.
    """
    figure = empty_figure(width, 0.56 * width)
    axes = figure.add_axes((0.11, 0.15, 0.865, 0.8))
    lowest, highest = np.inf, -np.inf
    for k, (name, (steps, values)) in enumerate(series.items()):
        colour = SERIES[k % len(SERIES)]
        x, y = np.asarray(steps, np.float64), np.asarray(values, np.float64)
        if len(y) > 200:
            axes.plot(x, y, color=colour, linewidth=0.6, alpha=0.25)
            x, y = _running_mean(x, y, len(y) // 50)
        axes.plot(x, y, color=colour, linewidth=1.8, label=name, marker="o" * (len(y) < 2))
        finite = y[np.isfinite(y)]
        lowest = min(lowest, finite.min(initial=np.inf))
        highest = max(highest, finite.max(initial=-np.inf))
    if lowest > 0 and highest > 50 * lowest:
        axes.set_yscale("log")
    axes.set_xlabel("step", fontsize=10, color="#4a5260")
    axes.tick_params(labelsize=10, colors="#4a5260", length=0)
    axes.grid(color="#e3e6ea", linewidth=0.8)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.legend(fontsize=10, frameon=False, labelcolor="#14181f")
    return png_file(figure, 160)


def _running_mean(x: np.ndarray, y: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Means over windows of `length`, at the windows' middles."""
    kernel = np.full(length, 1.0 / length)
    return np.convolve(x, kernel, "valid"), np.convolve(y, kernel, "valid")


def _draw_picture(picture: np.ndarray) -> Draw:
    def draw(axes: Any, view: PairView) -> None:
        axes.imshow(picture, aspect="auto", interpolation="bicubic")
        _frame(axes, view)

    return draw


def _vertices(view: PairView) -> np.ndarray:
    """phi of every voxel, (2, H, W); where it is not finite, the voxel itself."""
    displacement = view.displacement.astype(np.float64)
    displacement = np.where(np.isfinite(displacement), displacement, 0.0)
    return np.indices(view.fixed.shape) + np.clip(displacement, -1e6, 1e6)


def _upright_vertices(view: PairView, phi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the grid points phi (2, H, W), in arrays that are upright themselves."""
    rows, columns = upright_points(phi, view.fixed.shape, view.display)
    return upright(rows, view.display), upright(columns, view.display)


def _draw_strands(axes: Any, view: PairView, lines: int, colour: str, width: float) -> None:
    """The deformed grid lines, about as far apart along both axes, `lines` to the longer side."""
    collections = require("matplotlib.collections", "the figures")
    rows, columns = _upright_vertices(view, _vertices(view))
    points = np.stack([columns, rows], axis=-1)
    spacing = view.spacing[::-1] if view.display[0] else view.spacing
    lengths = [n * float(h) for n, h in zip(rows.shape, spacing, strict=True)]
    down, across = (max(1, round(max(lengths) / lines / float(h))) for h in spacing)
    strands = [points[i] for i in _ticks(rows.shape[0], down)]
    strands += [points[:, j] for j in _ticks(rows.shape[1], across)]
    axes.add_collection(
        collections.LineCollection(strands, colors=colour, linewidths=width), autolim=False
    )


def empty_figure(width: float, height: float) -> Any:
    """An empty figure, inches."""
    figure = require("matplotlib.figure", "the figures").Figure(
        figsize=(width, height), facecolor="white"
    )
    require("matplotlib.backends.backend_agg", "the figures").FigureCanvasAgg(figure)
    return figure


def png_file(figure: Any, dpi: int) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
