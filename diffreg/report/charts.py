"""Charts of the report: training curves and pictures that were drawn elsewhere, as HTML."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from diffreg.report.figures import curves_figure

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
    """A PNG file as the page has it inside."""
    return "data:image/png;base64," + base64.b64encode(picture).decode("ascii")


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
