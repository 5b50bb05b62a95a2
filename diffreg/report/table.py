"""A table of results: for the report as HTML, for the terminal as text.

Numbers are formatted here for the whole report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

ARROWS = {"higher": "\N{UPWARDS ARROW}", "lower": "\N{DOWNWARDS ARROW}", None: ""}
NOTHING = "\N{EN DASH}"


class Column(NamedTuple):
    """A numeric column: its name, unit, format specification, and which values are better."""

    name: str
    unit: str = ""
    format: str = ".3f"
    better: str | None = None  # "higher", "lower" or None


class Row(NamedTuple):
    """One line: what it is, a value (number, text or None) for each column, and its group."""

    label: str
    values: Sequence[Any]
    group: str = ""


@dataclass
class Table:
    """A table of results; rows of one group follow each other and the best values are bold.

    Args:
        columns: `Column`s, or tuples of their fields.
        rows: `Row`s, or tuples of their fields.
        label: the heading of the first column.

    Raises:
        ValueError: a row's length does not fit, or `better` is no known word.

    Example:
        >>> table = Table([("NCC", "", ".2f", "higher")], [("identity", [0.7]), ("ours", [0.9])])
        >>> table.best()
        [[False], [True]]
    """

    columns: Sequence[Column]
    rows: Sequence[Row] = field(default_factory=list)
    label: str = ""

    def __post_init__(self) -> None:
        self.columns = [Column(*column) for column in self.columns]
        self.rows = [Row(*row) for row in self.rows]
        for column in self.columns:
            if column.better not in ("higher", "lower", None):
                raise ValueError(
                    f"better of column {column.name!r} must be 'higher', 'lower' or None, "
                    f"got {column.better!r}"
                )
        for row in self.rows:
            if len(row.values) != len(self.columns):
                raise ValueError(
                    f"row {row.label!r} must have {len(self.columns)} values, got {len(row.values)}"
                )

    def best(self) -> list[list[bool]]:
        """Whether each value is the best one of its group, as printed, and another one is worse."""
        found = [[False] * len(self.columns) for _ in self.rows]
        for c, column in enumerate(self.columns):
            groups: dict[str, dict[int, Any]] = {}
            for r, row in enumerate(self.rows):
                value = row.values[c]
                if column.better and is_number(value) and not math.isnan(value):
                    groups.setdefault(row.group, {})[r] = value
            for numbers in groups.values():
                wanted = (max if column.better == "higher" else min)(numbers.values())
                printed = {r: shown(value, column.format) for r, value in numbers.items()}
                if len(set(printed.values())) > 1:
                    for r, text in printed.items():
                        found[r][c] = text == shown(wanted, column.format)
        return found

    def cells(self) -> list[list[str]]:
        """Every value as it is printed, row by row."""
        formats = [column.format for column in self.columns]
        return [
            [shown(v, f) for v, f in zip(row.values, formats, strict=True)] for row in self.rows
        ]

    def text(self) -> str:
        """The table for a terminal: columns aligned, a star behind the best values."""
        names = [" ".join(filter(None, (c.name, ARROWS[c.better]))) for c in self.columns]
        units = [c.unit for c in self.columns]
        lines = [[self.label, *names], ["", *units]] if any(units) else [[self.label, *names]]
        heads = len(lines)
        for row, cells, best in zip(self.rows, self.cells(), self.best(), strict=True):
            stars = [" *" if one else "  " for one in best]
            lines.append([row.label, *(v + s for v, s in zip(cells, stars, strict=True))])
        widths = [max(len(line[c]) for line in lines) for c in range(len(self.columns) + 1)]
        padded = [
            "  ".join(
                [line[0].ljust(widths[0])]
                + [v.rjust(w) for v, w in zip(line[1:], widths[1:], strict=True)]
            ).rstrip()
            for line in lines
        ]
        output = [*padded[:heads], "-" * (sum(widths) + 2 * len(self.columns))]
        for group, members in groupby(range(len(self.rows)), lambda r: self.rows[r].group):
            output += [f"[{group}]"] if group else []
            output += [padded[heads + r] for r in members]
        return "\n".join(output)

    def html(self) -> str:
        """The table element, everything in it escaped."""
        heads = "".join(_head(column) for column in self.columns)
        body, group = [], ""
        for row, cells, best in zip(self.rows, self.cells(), self.best(), strict=True):
            if row.group != group:
                group = row.group
                span = len(self.columns) + 1
                body.append(
                    f'<tr class="group"><th scope="rowgroup" colspan="{span}">{escape(group)}</th>'
                )
            values = "".join(
                f'<td class="best">{escape(v)}</td>' if one else f"<td>{escape(v)}</td>"
                for v, one in zip(cells, best, strict=True)
            )
            body.append(f'<tr><th scope="row">{escape(row.label)}</th>{values}</tr>')
        return (
            f'<table><thead><tr><th scope="col">{escape(self.label)}</th>{heads}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table>"
        )


def shown(value: Any, specification: str | None = None) -> str:
    """A value as the report prints it: numbers with a true minus, a dash for None and nan.

    Args:
        value: a number, text or None.
        specification: as for `format`; None: three digits that count.

    Example:
        >>> shown(0.81234), shown(4.2, ".2f"), shown(float("nan")), shown("LU-net"), shown(10545)
        ('0.812', '4.20', '\N{EN DASH}', 'LU-net', '10,545')
    """
    if value is None or (is_number(value) and math.isnan(value)):
        return NOTHING
    if not is_number(value):
        return str(value)
    if math.isinf(value):
        text = "\N{INFINITY}" if value > 0 else "-\N{INFINITY}"
    elif specification is not None:
        text = format(value, specification)
    elif float(value).is_integer() and abs(value) < 1e15:
        text = f"{int(value):,}"
    elif 1e-3 <= abs(value) < 1e3:
        text = f"{value:.{_decimals(value)}f}"
    else:
        text = f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.2g}"
    return text.replace("-", "\N{MINUS SIGN}") if text[:1] == "-" else text


def shown_alike(values: Sequence[Any]) -> list[str]:
    """Values of one kind, before and after: all numbers with the decimals of the largest.

    Example:
        >>> shown_alike((1.0, 0.7912))
        ['1.00', '0.79']
    """
    sizes = [abs(v) for v in values if is_number(v) and math.isfinite(v)]
    if not sizes or all(isinstance(v, int) for v in values) or not 1e-3 <= max(sizes) < 1e3:
        return [shown(v) for v in values]
    return [shown(v, f".{_decimals(max(sizes))}f") for v in values]


def _decimals(value: float) -> int:
    """How many make three digits that count."""
    return max(0, 2 - math.floor(math.log10(abs(value))))


def is_number(value: Any) -> bool:
    """Whether it is formatted as a number: numpy's are, booleans are not."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _head(column: Column) -> str:
    arrow = ARROWS[column.better]
    meaning = ""
    if arrow:
        meaning = f'&nbsp;<span aria-hidden="true">{arrow}</span>'
        meaning += f'<span class="hidden">{column.better} is better</span>'
    unit = f"<small>{escape(column.unit)}</small>" if column.unit else ""
    return f'<th scope="col">{escape(column.name)}{meaning}{unit}</th>'
