"""Charts of the report: training curves and pictures that were drawn elsewhere, as HTML."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from diffreg.report.figures import empty_figure, png_file, usual_look

SERIES = ("#0b6e63", "#c2571a", "#5a4fa2", "#8a6d00", "#a3195b", "#3b6fb6")
Curves = Mapping[str, tuple[Sequence[float], Sequence[float]]]


def curves_html(curves: Curves) -> str:
    """One picture for each first half of the names "picture/line"."""
    pictures: dict[str, dict[str, Any]] = {}
    for name, series in curves.items():
        picture, _, line = name.rpartition("/")
        pictures.setdefault(picture, {})[line] = series
    drawn = {
        picture: (curves_figure(lines), f"Training curves: {', '.join(lines)}")
        for picture, lines in pictures.items()
    }
    return _section("training", "Training", drawn)


def charts_html(charts: Mapping[str, bytes]) -> str:
    """PNG files under their titles."""
    return _section(
        "charts", "Charts", {title: (picture, title) for title, picture in charts.items()}
    )


def data_url(picture: bytes) -> str:
    """A PNG or JPEG file as the page has it inside."""
    kind = "jpeg" if picture.startswith(b"\xff\xd8") else "png"
    return f"data:image/{kind};base64," + base64.b64encode(picture).decode("ascii")


def _section(anchor: str, heading: str, pictures: Mapping[str, tuple[bytes, str]]) -> str:
    """A heading, and title -> (picture, alternative text) side by side; nothing for none."""
    if not pictures:
        return ""
    figures = "".join(
        f'<figure><figcaption><b>{escape(title)}</b></figcaption><img alt="{escape(text)}" '
        f'src="{data_url(picture)}"></figure>'
        for title, (picture, text) in pictures.items()
    )
    one = " one" if len(pictures) == 1 else ""
    return f'<h2 id="{anchor}">{heading}</h2><div class="curves{one}">{figures}</div>'


@usual_look()
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
