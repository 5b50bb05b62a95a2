"""The first screen of a report: warnings, how well the images fit, whether cells fold, the numbers.

Warnings come before all praise: where there is one, nothing is ticked off in green.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from diffreg.report import page as report_page
from diffreg.report.charts import data_url
from diffreg.report.determinants import Folds, folds_of
from diffreg.report.elements import GREEN, MAGENTA, key_html, value_html
from diffreg.report.panels import PairView, overlays, png
from diffreg.report.rows import PairRow
from diffreg.report.table import shown

# Plain words before the term; of an area in 2-D, of a volume in 3-D.
SMALLEST = "smallest local change of size (Jacobian determinant)"
LARGEST = "largest local change of size (Jacobian determinant)"
_TO = "\N{NO-BREAK SPACE}\N{RIGHTWARDS ARROW}\N{NO-BREAK SPACE}"


Said = tuple[bool | None, str]  # whether it is well, and the words for it


def first_screen(
    title: str,
    verdict: Sequence[tuple[str, Any]],
    pairs: Sequence[PairView | PairRow],
    sentences: Sequence[Said],
    warnings: Sequence[str] = (),
) -> str:
    """Warnings, then title, sentences and numbers beside the slider from before to after.

    Args:
        title: the heading.
        verdict: (label, value), a value a number, text or (before, after).
        pairs: the first one is the picture; none: there is no picture. A volume has its viewer
            instead.
        sentences: whether it is well, None where it is neither well nor bad, and the words; the
            first one is the largest.
        warnings: one sentence each.

    Returns:
        HTML.
    """
    size = ' class="long"' if len(title) > 70 else ""
    left = [f"<h1{size}>{escape(title)}</h1>"]
    for good, words in sentences:
        left.append(_sentence(good, words, bool(warnings)))
    items = []
    for label, value in verdict:
        size = ' class="long"' if isinstance(value, str) and len(value) > 14 else ""
        items.append(f"<div><dt>{escape(str(label))}</dt><dd{size}>{value_html(value)}</dd></div>")
    if items:
        left.append(f'<dl class="verdict">{"".join(items)}</dl>')
    right = _slider_of(pairs[0]) if pairs else ""
    alone = "" if right else " alone"
    hero = f'<section class="hero{alone}"><div>{"".join(left)}</div>{right}</section>'
    return _warnings(warnings) + hero


def folding_sentence(cells: Sequence[np.ndarray | Folds]) -> tuple[bool, str]:
    """Whether nothing folds, and the sentence that says so.

    Args:
        cells: the smallest corner determinants of each pair, as `smallest_determinant` gives them,
            or what was counted of them. Of volumes, whose cells may fold between corners that do
            not, it speaks of the corners.

    Example:
        >>> folding_sentence([np.array([[0.41, 1.0]])])[1]
        'No cell folds: smallest local change of size (Jacobian determinant) 0.410'
    """
    counted = [found if isinstance(found, Folds) else folds_of(found) for found in cells]
    count, total = sum(pair.folded for pair in counted), sum(pair.total for pair in counted)
    pairs = len(counted)
    if not total:
        return True, "There are no cells that could fold"
    values = [pair.smallest for pair in counted if pair.total]
    if not np.isfinite(values).all():
        smallest = "the displacement is not finite everywhere"
    else:
        smallest = f"{SMALLEST} {shown(min(values))}"
    if not count:
        corners = " at any corner" if any(pair.dimensions == 3 for pair in counted) else ""
        where = f" in any of the {pairs} pairs" if pairs > 1 else ""
        return True, f"No cell folds{corners}{where}: {smallest}"
    among = sum(pair.folded > 0 for pair in counted)
    where = f", in {among} of {pairs} pairs" if pairs > 1 else ""
    verb = "folds" if count == 1 else "fold"
    return False, f"{count:,} of {total:,} cells {verb}{where}: {smallest}"


def fit_sentence(
    name: str, before: float | None, after: float | None, agree: str = "The images agree"
) -> Said:
    """Whether the images agree better than before, and the sentence that says so.

    Args:
        name: of the measure, which is larger the better the images agree.
        before, after: its values; None and nan are not known.
        agree: what is better, worse or the same.

    Returns:
        True, False, or None where they agree as before to three decimals, or nothing is known.

    Example:
        >>> from diffreg.report.first_screen import fit_sentence
        >>> fit_sentence("NCC", 0.9, 0.95)[1][:35]
        'The images agree better than before'
    """
    if before is None or after is None or not np.isfinite([before, after]).all():
        return None, f"How well the registration fits is not known: {name} has no value"
    ends = shown(before, ".3f"), shown(after, ".3f")
    if ends[0] == ends[1]:
        good, words = None, "as before, no better"
    else:
        good, words = after > before, f"{'better' if after > before else 'worse'} than before"
    return good, f"{agree} {words}: {name} {_TO.join(ends)}"


def _sentence(good: bool | None, words: str, warned: bool) -> str:
    """A tick where all is well, a triangle where it is not, or where there are warnings."""
    icon = report_page.TICK if good and not warned else report_page.WARNING
    tone = " bad" if good is False else " warned" if warned or good is None else ""
    return f'<p class="sentence{tone}">{icon}<span>{escape(words)}.</span></p>'


def _warnings(warnings: Sequence[str]) -> str:
    """The amber box; nothing where there is nothing to warn of."""
    if not warnings:
        return ""
    title = "Warning" if len(warnings) == 1 else f"{len(warnings)} warnings"
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return (
        f'<section class="warnings" aria-label="Warnings">{report_page.WARNING}'
        f"<div><b>{title}</b><ul>{items}</ul></div></section>"
    )


def _slider_of(pair: PairView | PairRow) -> str:
    """Overlay before and after of a pair; nothing for a volume, which has a viewer."""
    if isinstance(pair, PairRow):
        plane = pair.planes[0]
        return _slider(pair.title, plane.before, plane.after, plane.aspect)
    if pair.is_volume:
        return ""
    before, after = (png(picture) for picture in overlays(pair))
    return _slider(pair.title, before, after, pair.aspect)


def _slider(title: str, before: bytes, after: bytes, aspect: float) -> str:
    """Two pictures, one over the other, with an edge that can be moved."""
    shape = f"aspect-ratio: 1 / {aspect:.4f}; width: min(100%, {540 / aspect:.0f}px)"
    return (
        f'<figure><div class="compare" style="{shape}">'
        f'<img src="{data_url(after)}" '
        f'alt="{escape(f"Overlay after registration: {title}")}">'
        f'<img class="over" src="{data_url(before)}" '
        f'alt="{escape(f"Overlay before registration: {title}")}">'
        "<span>Before</span><span>After</span>"
        '<input type="range" min="0" max="100" value="50" '
        'aria-label="Move the edge between before and after">'
        f'<i class="edge"></i></div><figcaption>{escape(title)}: {key_html(GREEN, "fixed")}, '
        f"{key_html(MAGENTA, 'moving')}; grey where they agree</figcaption></figure>"
    )
