"""Tables of the page, and rows of a run: what its parts have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def size_of(shape: Sequence[int]) -> str:
    """16 x 2048² of (16, 1, 2048, 2048)."""
    samples, channels, *size = shape
    square = len(size) == 2 and size[0] == size[1]
    words = f"{size[0]}²" if square else " x ".join(map(str, size))
    several = f"{samples} x {words}" if len(size) == 2 else words
    return several if channels == 1 else f"{several}, {channels} channels"


def rows_of(measured: Row | None, part: str) -> list[Row]:
    return measured["parts"].get(part, {}).get("rows", []) if measured else []
