"""Pictures of a pair as PNG files, drawn with matplotlib.

No pyplot, and matplotlib's own settings, so no global state: the same arrays give the same bytes.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from diffreg.report.drawing import draw_cells, frame
from diffreg.report.panels import PairView, grey, overlays, png
from diffreg.report.volumes import Plane, Upright, slices_of, upright_volume
from diffreg.system.atomic import replacing
from diffreg.system.extras import require

INK = "#14181f"
_SETTINGS = threading.RLock()  # matplotlib's are the process's
Draw = Callable[[Any, PairView], None]  # (matplotlib Axes, pair)


@contextmanager
def usual_look() -> Iterator[None]:
    """Inside, matplotlib's own settings, whatever style the caller has, or his matplotlibrc.

    A style's `text.usetex` needs a LaTeX that may not be there; others change colours and sizes.
    """
    matplotlib = require("matplotlib", "the figures")
    with _SETTINGS, matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


@usual_look()
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


@usual_look()
def pair_figure(view: PairView, height: float | None = None) -> bytes:
    """Moving | fixed | warped | overlay before | overlay after | mesh and determinant, in one row.

    A volume has such a row for each of its planes, all in one scale.

    Args:
        view: the pair.
        height: inches of the (tallest) pictures, at 150 pixels an inch; None: low enough for the
            names above to be read where the figure is as wide as a page.

    Returns:
        A PNG file.
    """
    height = height or (1.3 if view.is_volume else 1.6)
    if view.is_volume:
        return png_file(volume_figure(upright_volume(view), height), 150)
    width = min(max(height / view.aspect, height / 4), height * 4)
    return png_file(_rows_figure([view], [(width, height)]), 150)


def volume_figure(volume: Upright, height: float) -> Any:
    """The rows of `pair_figure`, through `point_of_view`.

    Args:
        volume: the pair.
        height: inches of the tallest plane.

    Returns:
        A matplotlib Figure.
    """
    planes, slices = zip(*slices_of(volume), strict=True)
    pair = volume.pair
    lengths = [n * h for n, h in zip(pair.fixed.shape, pair.spacing, strict=True)]
    scale = height / max(lengths[plane.up] for plane in planes)
    sizes = [(lengths[plane.across] * scale, lengths[plane.up] * scale) for plane in planes]
    return _rows_figure(slices, sizes, planes)


def _rows_figure(
    views: Sequence[PairView],
    sizes: Sequence[tuple[float, float]],
    planes: Sequence[Plane] = (),
) -> Any:
    """A row of pictures for each view, of the size asked, inches, centred in their columns."""
    gap, title, side = 0.06, 0.26, 0.26 if planes else 0.0
    column = max(width for width, _ in sizes)
    total = side + len(PICTURES) * (column + gap) - gap
    whole = title + sum(height + gap for _, height in sizes) - gap
    figure = empty_figure(total, whole)
    top = whole - title
    for row, (view, (width, height)) in enumerate(zip(views, sizes, strict=True)):
        for k, (name, draw) in enumerate(PICTURES.items()):
            left = side + k * (column + gap) + (column - width) / 2
            axes = figure.add_axes(
                (left / total, (top - height) / whole, width / total, height / whole)
            )
            draw(axes, view)
            if row == 0:
                axes.set_title(name, fontsize=9, color=INK, pad=4)
            if planes and k == 0:
                _name_plane(axes, planes[row], 0.5 * side / total)
        top -= height + gap
    return figure


def _name_plane(axes: Any, plane: Plane, left: float) -> None:
    """The plane's name at its left, and at its edges what lies there."""
    box = axes.get_position()
    middle = {"ha": "center", "va": "center", "rotation": 90, "fontsize": 9, "color": INK}
    axes.figure.text(left, (box.y0 + box.y1) / 2, plane.name.lower(), **middle)
    edges = (
        *((0.03, 0.5, "left", "center"), (0.97, 0.5, "right", "center")),
        *((0.5, 0.97, "center", "top"), (0.5, 0.03, "center", "bottom")),
    )
    effects = require("matplotlib.patheffects", "the figures")
    halo = [effects.withStroke(linewidth=2, foreground="black")]  # where tissue is white
    for letter, (x, y, ha, va) in zip(plane.letters, edges, strict=False):
        look = {"ha": ha, "va": va, "fontsize": 8, "color": "white", "path_effects": halo}
        axes.text(x, y, letter, transform=axes.transAxes, **look)


def readme_picture(path: str | Path, pair: PairView) -> None:
    """Writes `pair_figure` to a PNG file, whole or not at all.

    Args:
        path: the file; its folder must exist.
        pair: what to draw.
    """
    picture = pair_figure(pair)
    with replacing(path) as temporary:
        temporary.write_bytes(picture)


def _picture(picture: Callable[[PairView], np.ndarray]) -> Draw:
    """How one of the RGB panels is drawn."""

    def draw(axes: Any, view: PairView) -> None:
        axes.imshow(picture(view), aspect="auto", interpolation="bicubic")
        frame(axes, view)

    return draw


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


# The pictures of a pair's row, from left to right.
PICTURES: dict[str, Draw] = {
    "moving": _picture(lambda view: grey(view.moving, view.windows[0], view.display)),
    "fixed": _picture(lambda view: grey(view.fixed, view.windows[1], view.display)),
    "warped": _picture(lambda view: grey(view.warped, view.windows[0], view.display)),
    "before": _picture(lambda view: overlays(view)[0]),
    "after": _picture(lambda view: overlays(view)[1]),
    "mesh": draw_cells,
}
