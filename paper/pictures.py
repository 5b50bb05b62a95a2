"""The figures of the studies."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from images import Pairs
from torch import Tensor

from diffreg.metrics import dice, folding
from diffreg.ops import warp
from diffreg.report.drawing import draw_cells
from diffreg.report.panels import PairView

COLOURS = ("#0b6e4f", "#c8553d", "#3d5a98", "#b8860b", "#6b4c9a", "#555555", "#2a9d8f", "#a23b72")
MARKS = "os^Dv<>P"


def _figure(width: float, height: float):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure, dpi: int = 110) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=dpi, metadata={"Software": None})
    return target.getvalue()


def front(panels: Mapping[str, Mapping[str, Sequence[tuple[float, ...]]]]) -> bytes:
    """Accuracy against folded cells: a panel a test, a line a regulariser.

    Args:
        panels: test -> regulariser -> (folded percent, Dice, its lowest, its highest) a weight.
    """
    figure = _figure(4.2 * len(panels), 4.0)
    for axes, (test, lines) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True
    ):
        for (name, points), colour, mark in zip(lines.items(), COLOURS, MARKS, strict=False):
            folded, mean, low, high = (np.array(column) for column in zip(*points, strict=True))
            axes.errorbar(
                folded,
                mean,
                [mean - low, high - mean],
                color=colour,
                marker=mark,
                markersize=5,
                linewidth=1,
                capsize=2,
                label=name,
            )
        axes.set_xscale("symlog", linthresh=0.01)
        axes.set_xlim(left=-0.002)
        axes.set_title(test, fontsize=10)
        axes.set_xlabel("folded cells, % (left is better)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("Dice (up is better)")
    names = figure.axes[0].get_legend_handles_labels()
    figure.legend(*names, fontsize=9, loc="outside upper center", ncols=4, frameon=False)
    return _png(figure)


def compared(pair: Pairs, columns: Sequence[tuple[str, Tensor]]) -> bytes:
    """Moving and fixed image, then of every method the warped image over the mesh.

    Args:
        pair: one.
        columns: title and displacement (1, 2, H, W) of each method.
    """
    count = len(columns) + 1
    figure = _figure(2.3 * count, 5.0)
    grid = figure.subplots(2, count)
    for axes, image, title in zip(
        grid[:, 0], (pair.moving, pair.fixed), ("moving", "fixed"), strict=True
    ):
        _show(axes, image, title)
    for (title, field), column in zip(columns, grid[:, 1:].T, strict=True):
        warped = warp(pair.moving, field)
        _show(column[0], warped, title)
        folded = folding(field)
        words = f"{folded['folded_percent']:.2f} % folded\nsmallest {folded['min_determinant']:.2f}"
        if pair.moving_label is not None and pair.fixed_label is not None:
            label = (warp(pair.moving_label, field) > 0.5).float()
            words = f"Dice {dice(label, pair.fixed_label, [1])[1]:.3f}, {words}"
        draw_cells(column[1], view_of(pair, field))
        column[1].set_title(words, fontsize=8)
    return _png(figure)


def view_of(pair: Pairs, field: Tensor) -> PairView:
    """One pair, ready to be drawn."""
    images = (x[0, 0].numpy() for x in (pair.moving, pair.fixed, warp(pair.moving, field)))
    return PairView(pair.names[0], *images, field[0].numpy())


def _show(axes, image: Tensor, title: str) -> None:
    axes.imshow(image[0, 0].numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def overlays(rows: Sequence[tuple[str, Sequence[tuple[str, Tensor, Tensor]]]]) -> bytes:
    """Fused pictures: one image orange, the other blue, grey where they agree.

    Args:
        rows: name, then (title, image, image) a column; images (1, 1, H, W).
    """
    count = max(len(row) for _, row in rows)
    figure = _figure(2.3 * count, 2.4 * len(rows))
    grid = figure.subplots(len(rows), count, squeeze=False)
    for line, (name, cells) in zip(grid, rows, strict=True):
        for axes, (title, one, other) in zip(line, cells, strict=False):
            a, b = one[0, 0].numpy(), other[0, 0].numpy()
            axes.imshow(np.clip(np.stack([a, (a + b) / 2, b], -1), 0, 1), interpolation="nearest")
            axes.set_title(title, fontsize=8)
            axes.set_axis_off()
        line[0].text(
            -0.04,
            0.5,
            name,
            transform=line[0].transAxes,
            rotation=90,
            fontsize=8,
            ha="right",
            va="center",
        )
    return _png(figure)


def curves(lines: Mapping[str, Sequence[Mapping[str, float]]], title: str) -> bytes:
    """Loss of training and test, and the learning rate, over the steps.

    Args:
        lines: name of a network -> rows of its curve.
        title: above.
    """
    figure = _figure(9.0, 3.4)
    loss, rate = figure.subplots(1, 2, width_ratios=(2.4, 1))
    for (name, rows), colour in zip(lines.items(), COLOURS, strict=False):
        steps = [row["step"] for row in rows]
        loss.plot(
            steps,
            _smooth([row["training"] for row in rows]),
            color=colour,
            label=f"{name}, training",
        )
        if rows and "test" in rows[0]:
            loss.plot(
                steps,
                [row["test"] for row in rows],
                color=colour,
                linestyle="--",
                label=f"{name}, test",
            )
        rate.plot(steps, [row["rate"] for row in rows], color=colour, label=name)
    values = [
        row[k] for rows in lines.values() for row in rows for k in ("training", "test") if k in row
    ]
    if 0 < 5 * min(values) < max(values):
        loss.set_yscale("log")
    for axes, label in ((loss, "loss"), (rate, "learning rate")):
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    loss.legend(fontsize=7)
    loss.set_title(title, fontsize=10)
    return _png(figure)


def _smooth(values: Sequence[float]) -> np.ndarray:
    """A running mean of three."""
    padded = np.pad(np.asarray(values, float), 1, mode="edge")
    return np.convolve(padded, np.ones(3) / 3, mode="valid")


def four_rows(pairs: Pairs, fields: Tensor) -> bytes:
    """Moving, fixed, warped image and mesh of some pairs, one a column."""
    count = len(pairs)
    figure = _figure(2.0 * count, 8.2)
    grid = figure.subplots(4, count, squeeze=False)
    for k in range(count):
        pair, field = pairs.only([k]), fields[k : k + 1]
        images = (pair.moving, pair.fixed, warp(pair.moving, field))
        for axes, image in zip(grid[:3, k], images, strict=True):
            _show(axes, image, "")
        grid[0, k].set_title(pairs.names[k], fontsize=8)
        draw_cells(grid[3, k], view_of(pair, field))
    for axes, title in zip(grid[:, 0], ("moving", "fixed", "warped", "mesh"), strict=True):
        axes.text(
            -0.06,
            0.5,
            title,
            transform=axes.transAxes,
            rotation=90,
            fontsize=9,
            ha="right",
            va="center",
        )
    return _png(figure)
