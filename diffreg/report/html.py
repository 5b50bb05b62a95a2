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
from diffreg.report.elements import (
    GREEN,
    MAGENTA,
    alternative,
    key_html,
    overlays,
    value_html,
)
from diffreg.report.figures import (
    DETERMINANTS,
    FOLDED,
    determinant_limit,
    draw_determinant,
    draw_mesh,
    panel,
)
from diffreg.report.first_screen import Said, first_screen, folding_sentence
from diffreg.report.panels import PairView, checkerboard, grey, outlined, png, window
from diffreg.report.table import Column, Row, Table

__all__ = ["Column", "PairView", "Row", "Table", "write_report"]


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
    fit: Said | None = None,
    warnings: Sequence[str] = (),
    origin: Mapping[str, str] | None = None,
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
        fit: whether the images agree better than before, and the words (`fit_sentence`); it stands
            before that about folding.
        warnings: one sentence each, in a box at the top; nothing is ticked off beside them.
        origin: name -> words: date, command, versions and the like.

    Source: the sentence about folding comes from the displacements, all corners of all cells.

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
    folds = [sentence or folding_sentence(cells)] if pairs else []
    body = [
        first_screen(title, verdict, pairs, [*([fit] if fit else []), *folds], warnings),
        charts_html(charts or {}),
        _pairs(pairs, cells, in_full, verdict),
        curves_html(curves or {}),
        _tables(table),
    ]
    if notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        body.append(f'<h2 id="notes">Notes</h2><ul class="notes">{items}</ul>')
    body.append(_origin(origin or {}))
    page = report_page.PAGE.substitute(
        title=escape(title),
        links=_links(
            *(("charts", charts), ("pairs", pairs), ("training", curves), ("results", table)),
            *(("notes", notes), ("origin", origin)),
        ),
        style=report_page.STYLE,
        script=report_page.SCRIPT,
        body="\n".join(body),
        credits="\n".join(f"<p>{escape(line)}</p>" for line in credits),
        version=__version__,
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


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


def _origin(origin: Mapping[str, str]) -> str:
    """How the results were made: a name and its words each."""
    if not origin:
        return ""
    items = "".join(
        f'<div><dt>{escape(name)}</dt><dd class="{escape(name)}">{escape(words)}</dd></div>'
        for name, words in origin.items()
    )
    return f'<h2 id="origin">How it was made</h2><dl class="origin">{items}</dl>'


def _links(*sections: tuple[str, Any]) -> str:
    """Links to the sections that the page has; none to an only one."""
    present = [name for name, content in sections if content]
    if len(present) < 2:
        return ""
    return "".join(f'<a href="#{name}">{name.capitalize()}</a>' for name in present)


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
            f"<div><dt>{escape(str(name))}</dt><dd>{value_html(value)}</dd></div>"
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
