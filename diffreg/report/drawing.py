"""Mesh and determinant map of an image or a slice, drawn into matplotlib axes.

Both are computed in array axes and turned upright afterwards.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffreg.report.determinants import (
    FOLDED,
    determinant_colours,
    determinant_limit,
    determinants_of,
)
from diffreg.report.panels import PairView, grey, level, upright, upright_points
from diffreg.system.extras import require

LINE = "#8ff0e0"


def draw_determinant(axes: Any, view: PairView) -> None:
    """Draws the smallest corner determinant of every cell, folded cells in FOLDED and circled.

    Args:
        axes: matplotlib Axes.
        view: the pair.
    """
    colors = require("matplotlib.colors", "the figures")
    cells = determinants_of(view)
    limit = view.determinant_limit or determinant_limit(cells)
    frame(axes, view)
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
    frame(axes, view)
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
    moving = level(view.moving, view.windows[0]) * 0.5
    axes.imshow(grey(moving, (0.0, 1.0), view.display), aspect="auto", interpolation="bicubic")
    _draw_strands(axes, view, lines, LINE, 1.1)
    frame(axes, view)
    folded = ~(determinants_of(view) > 0)
    _mark_folds(axes, view, folded, phi, dots=True)


def draw_cells(axes: Any, view: PairView, lines: int = 28) -> None:
    """Draws the deformed cells, each in the colour of its determinant, and the mesh over them.

    Args:
        axes: matplotlib Axes.
        view: the pair.
        lines: about how many along the longer side.
    """
    colors = require("matplotlib.colors", "the figures")
    cells = determinants_of(view)
    limit = view.determinant_limit or determinant_limit(cells)
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
    frame(axes, view)
    _mark_folds(axes, view, ~(cells > 0), phi, dots=True)


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


def frame(axes: Any, view: PairView) -> None:
    """The whole picture from edge to edge, without ticks."""
    rows, columns = upright(view.fixed, view.display).shape
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


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
