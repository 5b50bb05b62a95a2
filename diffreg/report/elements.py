"""Pieces of HTML that several parts of a report need, everything in them escaped."""

from __future__ import annotations

from html import escape
from typing import Any

from diffreg.report.panels import PairView
from diffreg.report.table import shown, shown_alike

GREEN, MAGENTA = "#00d000", "#e000e0"  # of the fixed image and of the other one, in overlays


def value_html(value: Any) -> str:
    """A number, text, or before and after with an arrow between."""
    if isinstance(value, tuple | list) and len(value) == 2:
        before, after = (escape(v) for v in shown_alike(value))
        arrow = '<span class="arrow" aria-label="to">&rarr;</span><wbr>'
        return f'<span class="before">{before}</span>{arrow}{after}'
    return escape(shown(value))


def key_html(colour: str, text: str) -> str:
    """A legend's entry: a small square of the colour, and what it stands for."""
    return f'<span class="key" style="--c: {colour}">{escape(text)}</span>'


def alternative(what: str, pair: PairView) -> str:
    """The alternative text of a pair's picture."""
    return escape(f"{what}: {pair.title}")
