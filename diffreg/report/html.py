"""One self-contained HTML file that says how a registration went, and shows it.

Images are inlined, nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from diffreg import __version__
from diffreg.report import page as report_page
from diffreg.report.charts import Curves, charts_html, curves_html
from diffreg.report.first_screen import Said, first_screen, folding_sentence
from diffreg.report.panels import PairView
from diffreg.report.rows import PairRow
from diffreg.report.sections import drawings, pairs_html
from diffreg.report.table import Column, Row, Table
from diffreg.report.viewer import viewer_script, viewer_style
from diffreg.system.atomic import replacing

__all__ = ["Column", "PairView", "Row", "Table", "write_report"]


def write_report(
    path: str | Path,
    title: str,
    verdict: Sequence[tuple[str, Any]],
    pairs: Sequence[PairView | PairRow],
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
        pairs: what was registered; the first one is the picture of the first screen. A volume
            alone has a viewer of three planes; of several each has a row of small pictures, which
            `diffreg.report.rows.pair_row` makes of one volume at a time.
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
        >>> import numpy as np
        >>> image = np.eye(8)
        >>> pair = PairView("eye", image, image, image, np.zeros((2, 8, 8)))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(Path(folder) / "report.html", "Eye", [("NCC", (0.9, 1.0))], [pair])
        ...     "No cell folds" in (Path(folder) / "report.html").read_text()
        True
    """
    drawn = drawings(pairs)
    folds = [sentence or folding_sentence([one.folds for one in drawn])] if drawn else []
    sentences = [*([fit] if fit else []), *folds]
    body = [
        first_screen(title, verdict, [one.pair for one in drawn], sentences, warnings),
        charts_html(charts or {}),
        pairs_html(drawn, in_full, verdict),
        curves_html(curves or {}),
        _tables(table),
    ]
    if notes:
        items = "".join(f"<li>{escape(note)}</li>" for note in notes)
        body.append(f'<h2 id="notes">Notes</h2><ul class="notes">{items}</ul>')
    body.append(_origin(origin or {}))
    has_viewer = any(one.volume for one in drawn)
    page = report_page.PAGE.substitute(
        title=escape(title),
        links=_links(
            *(("charts", charts), ("pairs", pairs), ("deformation", has_viewer)),
            *(("training", curves), ("results", table), ("notes", notes), ("origin", origin)),
        ),
        style=report_page.STYLE + (viewer_style() if has_viewer else ""),
        script=report_page.SCRIPT + (viewer_script() if has_viewer else ""),
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
