"""What the tables have in common: which rows, and how they are written."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]
BOTH, COMPILED = "forward + backward", "torch.compile"


def usual_rows(result: Row, dimensions: int = 2) -> list[Row]:
    """Forward and backward, smooth fields in float32; of volumes those with memory kept."""
    return [
        row
        for row in result["operators"]
        if row["direction"] == BOTH
        and row["dtype"] == "float32"
        and row["field"] in (None, "smooth")
        and len(row["shape"]) == 2 + dimensions
        and row["memory"] == ("given back" if dimensions == 2 else "kept")
    ]


def times(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}x"


def number(value: float) -> str:
    """Three digits, and those before the point."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def shape_of(row: Row) -> str:
    return " x ".join(map(str, row["shape"]))


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def words(text: str) -> str:
    """A paragraph, in lines as the pages have them."""
    return f"{textwrap.fill(text, 120, break_on_hyphens=False)}\n"
