"""One self-contained HTML file that says how a registration went, and shows it.

Images are inlined, nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from diffreg import __version__
from diffreg._files import replacing
from diffreg.metrics import smallest_determinant
from diffreg.report import page as report_page
from diffreg.report.charts import Curves, charts_html, curves_html, data_url
from diffreg.report.figures import (
    DETERMINANTS,
    FOLDED,
    determinant_limit,
    draw_determinant,
    draw_mesh,
    panel,
)
from diffreg.report.panels import PairView, checkerboard, grey, outlined, overlay, png, window
from diffreg.report.table import Column, Row, Table, shown, shown_alike

__all__ = ["Column", "PairView", "Row", "Table", "write_report"]

GREEN, MAGENTA = "#00d000", "#e000e0"


def write_report(
    path: str | Path,
    title: str,
    verdict: Sequence[tuple[str, Any]],
    pairs: Sequence[PairView],
    table: Table | Mapping[str, Table] | None = None,
    curves: Curves | None = None,
    notes: Sequence[str] = (),
    *,
    credits: Sequence[str] = (),
    in_full: int = 4,
    charts: Mapping[str, bytes] | None = None,
    sentence: tuple[bool, str] | None = None,
) -> None:
    """Writes the report, whole or not at all.

    Args:
        path: the HTML file; its folder must exist.
        title: the heading, plain text as everything else here.
        verdict: (label, value) for the first screen; a value is a number, text or (before, after).
        pairs: what was registered; the first one is the picture of the first screen.
        table: the numbers; several tables under their titles.
        curves: name -> (steps, values); names "a/b" and "a/c" share a picture called a.
        notes: one paragraph each.
        credits: one line each, at the foot.
        in_full: how many pairs get all their panels; the others get one row.
        charts: title -> PNG file, such as box plots.
        sentence: whether nothing folds, and the words for it, where more was registered than the
            pairs shown; None: the pairs' own (`folding_sentence`).

    Source: the first sentence comes from the pairs' displacements, all corners of all cells.

    Example:
        >>> import tempfile
        >>> image = np.eye(8)
        >>> pair = PairView("eye", image, image, image, np.zeros((2, 8, 8)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(Path(folder) / "report.html", "Eye", [("NCC", (0.9, 1.0))], [pair])
        ...     "No cell folds" in (Path(folder) / "report.html").read_text()
        True
    """
    cells = [smallest_determinant(pair.displacement) for pair in pairs]
    said = sentence or folding_sentence(cells)
    body = [
        _hero(title, verdict, pairs, said),
        charts_html(charts or {}),
        _pairs(pairs, cells, in_full, verdict),
        curves_html(curves or {}),
        _tables(table),
    ]
    if notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        body.append(f'<h2 id="notes">Notes</h2><ul class="notes">{items}</ul>')
    page = report_page.PAGE.substitute(
        title=escape(title),
        links=_links(charts=charts, pairs=pairs, training=curves, results=table, notes=notes),
        style=report_page.STYLE,
        script=report_page.SCRIPT,
        body="\n".join(body),
        credits="\n".join(f"<p>{escape(line)}</p>" for line in credits),
        version=__version__,
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def folding_sentence(cells: Sequence[np.ndarray]) -> tuple[bool, str]:
    """Whether nothing folds, and the sentence that says so.

    Args:
        cells: the smallest corner determinants of each pair, as `smallest_determinant` gives them.

    Example:
        >>> folding_sentence([np.array([[0.41, 1.0]])])
        (True, 'No cell folds: smallest determinant 0.410')
    """
    folded = [int((~(pair > 0)).sum()) for pair in cells]
    count, total = sum(folded), sum(pair.size for pair in cells)
    values = np.concatenate([pair.ravel() for pair in cells]) if cells else np.zeros(0)
    if not total:
        return True, "There are no cells that could fold"
    if not np.isfinite(values).all():
        smallest = "the displacement is not finite everywhere"
    else:
        smallest = f"smallest determinant {shown(float(values.min()))}"
    if not count:
        where = f" in any of the {len(cells)} pairs" if len(cells) > 1 else ""
        return True, f"No cell folds{where}: {smallest}"
    where = f", in {sum(n > 0 for n in folded)} of {len(cells)} pairs" if len(cells) > 1 else ""
    verb = "folds" if count == 1 else "fold"
    return False, f"{count:,} of {total:,} cells {verb}{where}: {smallest}"


def _hero(
    title: str,
    verdict: Sequence[tuple[str, Any]],
    pairs: Sequence[PairView],
    said: tuple[bool, str],
) -> str:
    """The first screen: title, sentence and numbers beside the slider from before to after."""
    size = ' class="long"' if len(title) > 70 else ""
    left = [f"<h1{size}>{escape(title)}</h1>"]
    if pairs:
        good, sentence = said
        icon = report_page.TICK if good else report_page.WARNING
        tone = "" if good else " bad"
        left.append(f'<p class="sentence{tone}">{icon}<span>{escape(sentence)}.</span></p>')
    items = []
    for label, value in verdict:
        text = _value(value)
        size = ' class="long"' if isinstance(value, str) and len(value) > 14 else ""
        items.append(f"<div><dt>{escape(str(label))}</dt><dd{size}>{text}</dd></div>")
    if items:
        left.append(f'<dl class="verdict">{"".join(items)}</dl>')
    alone = "" if pairs else " alone"
    right = _slider(pairs[0]) if pairs else ""
    return f'<section class="hero{alone}"><div>{"".join(left)}</div>{right}</section>'


def _tables(table: Table | Mapping[str, Table] | None) -> str:
    """The heading and the tables, each under its title."""
    if not table:
        return ""
    tables = {"": table} if isinstance(table, Table) else table
    parts = ['<h2 id="results">Results</h2>']
    for title, one in tables.items():
        parts.append(f"<h3>{escape(title)}</h3>" if title else "")
        parts.append(f'<div class="scroll">{one.html()}</div>')
    return "".join(parts)


def _links(**sections: Any) -> str:
    """Links to the sections that the page has; none to an only one."""
    present = [name for name, content in sections.items() if content]
    if len(present) < 2:
        return ""
    return "".join(f'<a href="#{name}">{name.capitalize()}</a>' for name in present)


def _slider(pair: PairView) -> str:
    """Overlay before and after, one over the other, with an edge that can be moved."""
    before, after = _overlays(pair)
    shape = f"aspect-ratio: 1 / {pair.aspect:.4f}; width: min(100%, {540 / pair.aspect:.0f}px)"
    return (
        f'<figure><div class="compare" style="{shape}">'
        f'<img src="{data_url(png(after))}" alt="{_alt("Overlay after registration", pair)}">'
        f'<img class="over" src="{data_url(png(before))}" '
        f'alt="{_alt("Overlay before registration", pair)}">'
        "<span>Before</span><span>After</span>"
        '<input type="range" min="0" max="100" value="50" '
        'aria-label="Move the edge between before and after">'
        f'<i class="edge"></i></div><figcaption>{escape(pair.title)}: {_key(GREEN, "fixed")}, '
        f"{_key(MAGENTA, 'moving')}; grey where they agree</figcaption></figure>"
    )


def _pairs(
    pairs: Sequence[PairView],
    cells: Sequence[np.ndarray],
    in_full: int,
    verdict: Sequence[tuple[str, Any]],
) -> str:
    """All panels of the first pairs, one row for each of the others."""
    if not pairs:
        return ""
    heading = "Pair by pair" if len(pairs) > 1 else "The pair"
    parts = [f'<h2 id="pairs">{heading}</h2><p class="hint">{report_page.HINT}</p>']
    for k, (pair, determinants) in enumerate(zip(pairs, cells, strict=True)):
        top = _top(pair, determinants) if len(pairs) > 1 else ""  # else it is on the first screen
        said = list(verdict) if len(pairs) == 1 else []
        items = "".join(
            f"<div><dt>{escape(str(name))}</dt><dd>{_value(value)}</dd></div>"
            for name, value in pair.metrics.items()
            if (name, value) not in said
        )
        numbers = f'<dl class="numbers">{items}</dl>' if items else ""
        panels = "".join(_panels(pair, determinants, k < in_full))
        parts.append(
            f'<section class="{"pair" if k < in_full else "pair row"}">{top}{numbers}'
            f'<div class="panels">{panels}</div></section>'
        )
    return "".join(parts)


def _top(pair: PairView, cells: np.ndarray) -> str:
    """The heading of a pair, and whether it folds."""
    good, sentence = folding_sentence([cells])
    return (
        f'<div class="top"><h3>{escape(pair.title)}</h3>'
        f'<span class="badge{"" if good else " bad"}">{escape(sentence)}</span></div>'
    )


def _panels(pair: PairView, cells: np.ndarray, full: bool) -> list[str]:
    """The figures of one pair; six of the eight in a row."""
    limits, display = window(pair.moving), pair.display
    before, after = _overlays(pair)
    outline = ", mask outlined" if pair.mask is not None else ""
    colours = f"{_key(GREEN, 'fixed')} {_key(MAGENTA, 'moving')}" if full else ""
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
        f'<figure><img src="{data_url(picture)}" style="{shape}" alt="{_alt(name, pair)}">'
        f"<figcaption><b>{name}</b>{caption}</figcaption></figure>"
        for name, (picture, caption) in files.items()
    ]


def _legend(cells: np.ndarray) -> str:
    """The colour bar of the determinant map, and what the colour of a fold means."""
    limit = f"{determinant_limit(cells):.0f}"
    bar = f"background: linear-gradient(90deg, {', '.join(DETERMINANTS)})"
    count = int((~(cells > 0)).sum())
    text = f"folded: {count:,} of {cells.size:,} cells"
    folded = f'<span class="fold">{_key(FOLDED, text)}</span>' if count else ""
    return (
        f' by cell<span class="scale" style="{bar}"></span>'
        f'<span class="ends"><span>&le; 1/{limit} shrinks</span><span>1</span>'
        f"<span>grows &ge; {limit}</span></span>{folded}"
    )


def _overlays(pair: PairView) -> tuple[np.ndarray, np.ndarray]:
    """Before and after, in the same windows."""
    limits = (window(pair.moving), window(pair.fixed))
    return (
        overlay(pair.moving, pair.fixed, limits, pair.display),
        overlay(pair.warped, pair.fixed, limits, pair.display),
    )


def _value(value: Any) -> str:
    """A number, text, or before and after with an arrow between."""
    if isinstance(value, tuple | list) and len(value) == 2:
        before, after = (escape(v) for v in shown_alike(value))
        arrow = '<span class="arrow" aria-label="to">&rarr;</span><wbr>'
        return f'<span class="before">{before}</span>{arrow}{after}'
    return escape(shown(value))


def _key(colour: str, text: str) -> str:
    return f'<span class="key" style="--c: {colour}">{escape(text)}</span>'


def _alt(what: str, pair: PairView) -> str:
    return escape(f"{what}: {pair.title}")
