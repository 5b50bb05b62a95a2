"""The pairs of a report, one section each: images with all their panels, volumes in a viewer.

Of several volumes each has a row of small pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from diffreg.report import page as report_page
from diffreg.report.charts import data_url
from diffreg.report.determinants import (
    DETERMINANTS,
    FOLDED,
    Folds,
    determinant_limit,
    determinants_of,
    folds_of,
)
from diffreg.report.drawing import draw_determinant, draw_mesh
from diffreg.report.elements import GREEN, MAGENTA, alternative, key_html, value_html
from diffreg.report.figures import panel
from diffreg.report.first_screen import folding_sentence
from diffreg.report.histogram import histogram_figure
from diffreg.report.panels import PairView, checkerboard, grey, outlined, overlays, png
from diffreg.report.rows import PairRow, kept
from diffreg.report.viewer import viewer
from diffreg.report.volumes import Upright, upright_volume


class Drawing(NamedTuple):
    """A pair, and what was computed of it once for all that is drawn."""

    pair: PairView | PairRow
    folds: Folds
    cells: np.ndarray | None = None  # of an image
    volume: Upright | None = None


def drawings(pairs: Sequence[PairView | PairRow]) -> list[Drawing]:
    """What has to be known of pairs before they are drawn; several volumes become rows."""
    return [
        _drawing(kept(pair, len(pairs)) if isinstance(pair, PairView) else pair) for pair in pairs
    ]


def _drawing(pair: PairView | PairRow) -> Drawing:
    if isinstance(pair, PairRow):
        return Drawing(pair, pair.folds)
    if pair.is_volume:
        volume = upright_volume(pair)
        return Drawing(pair, folds_of(volume.cells), volume=volume)
    cells = determinants_of(pair)
    return Drawing(pair, folds_of(cells), cells)


def pairs_html(drawn: Sequence[Drawing], in_full: int, verdict: Sequence[tuple[str, Any]]) -> str:
    """Every pair under its heading.

    Args:
        drawn: as `drawings` gives it.
        in_full: how many images get all their panels; the others get one row.
        verdict: what the first screen says already.
    """
    if not drawn:
        return ""
    if drawn[0].volume:
        return _volume(drawn[0], verdict)
    hint = report_page.ROWS_HINT if drawn[0].cells is None else report_page.HINT
    heading = "Pair by pair" if len(drawn) > 1 else "The pair"
    parts = [f'<h2 id="pairs">{heading}</h2><p class="hint">{hint}</p>']
    for k, one in enumerate(drawn):
        full = k < in_full and one.cells is not None
        top = _top(one) if len(drawn) > 1 else ""  # else it is on the first screen
        numbers = _numbers(one.pair, verdict if len(drawn) == 1 else ())
        panels = _small(one.pair) if isinstance(one.pair, PairRow) else _panels(one, full)
        parts.append(
            f'<section class="{"pair" if full else "pair row"}">{top}{numbers}'
            f'<div class="panels">{"".join(panels)}</div></section>'
        )
    return "".join(parts)


def _volume(one: Drawing, verdict: Sequence[tuple[str, Any]]) -> str:
    """The viewer, then what the deformation does to sizes."""
    volume = one.volume
    assert volume is not None
    histogram = data_url(histogram_figure(volume.cells))
    text = alternative("Histogram of the Jacobian determinant", volume.pair)
    return (
        f"{_numbers(one.pair, verdict)}{viewer(volume)}"
        f'<h2 id="deformation">Local change of size</h2><div class="histogram"><p class="hint">'
        f'{report_page.VOLUME_HINT}</p><figure><img src="{histogram}" alt="{text}"></figure></div>'
    )


def _numbers(pair: PairView | PairRow, said: Sequence[tuple[str, Any]]) -> str:
    """The pair's metrics, but for those that were said."""
    items = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd>{value_html(value)}</dd></div>"
        for name, value in pair.metrics.items()
        if (name, value) not in list(said)
    )
    return f'<dl class="numbers">{items}</dl>' if items else ""


def _top(one: Drawing) -> str:
    """The heading of a pair, and whether it folds."""
    good, sentence = folding_sentence([one.folds])
    return (
        f'<div class="top"><h3>{escape(one.pair.title)}</h3>'
        f'<span class="badge{"" if good else " bad"}">{escape(sentence)}</span></div>'
    )


def _small(pair: PairRow) -> list[str]:
    """Overlays before and after, plane by plane."""
    return [
        f'<figure><img src="{data_url(picture)}" style="aspect-ratio: 1 / {plane.aspect:.4f}" '
        f'alt="{escape(f"{plane.name} overlay {when}: {pair.title}")}" loading="lazy">'
        f"<figcaption><b>{escape(plane.name)}</b> {when}</figcaption></figure>"
        for plane in pair.planes
        for when, picture in (("before", plane.before), ("after", plane.after))
    ]


def _panels(one: Drawing, full: bool) -> list[str]:
    """The figures of one image pair; six of the eight in a row."""
    pair, cells = one.pair, one.cells
    assert isinstance(pair, PairView) and cells is not None
    limits, display = pair.windows[0], pair.display
    before, after = overlays(pair)
    outline = ", mask outlined" if pair.mask is not None else ""
    colours = f"{key_html(GREEN, 'fixed')} {key_html(MAGENTA, 'moving')}" if full else ""
    width, longest, tallest = (560, 1000, 460) if full else (300, 360, 320)
    pictures = {
        "Moving": (grey(pair.moving, limits, display), ""),
        "Fixed": (outlined(pair), outline),
        "Warped": (grey(pair.warped, limits, display), ""),
        "Checkerboard": (checkerboard(pair), " of warped and fixed"),
        "Overlay before": (before, f" {colours}"),
        "Overlay after": (after, f" {colours}"),
    }
    files = {name: (png(picture, longest), text) for name, (picture, text) in pictures.items()}
    files["Deformed mesh"] = (panel(draw_mesh, pair, width), "")
    if full:
        files["Jacobian determinant"] = (panel(draw_determinant, pair, width), _legend(cells))
    else:
        del files["Checkerboard"]
    shape = f"aspect-ratio: 1 / {pair.aspect:.4f}; width: min(100%, {tallest / pair.aspect:.0f}px)"
    return [
        f'<figure><img src="{data_url(picture)}" style="{shape}" alt="{alternative(name, pair)}">'
        f"<figcaption><b>{name}</b>{caption}</figcaption></figure>"
        for name, (picture, caption) in files.items()
    ]


def _legend(cells: np.ndarray) -> str:
    """The colour bar of the determinant map, and what the colour of a fold means."""
    limit = f"{determinant_limit(cells):.0f}"
    bar = f"background: linear-gradient(90deg, {', '.join(DETERMINANTS)})"
    count = int((~(cells > 0)).sum())
    text = f"folded: {count:,} of {cells.size:,} cells"
    folded = f'<span class="fold">{key_html(FOLDED, text)}</span>' if count else ""
    return (
        f' by cell<span class="scale" style="{bar}"></span>'
        f'<span class="ends"><span>&le;&nbsp;1/{limit} shrinks</span><span>1</span>'
        f"<span>grows &ge;&nbsp;{limit}</span></span>{folded}"
    )
