"""CSV files as spreadsheets, pandas and numpy write them."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

from diffreg.system.files import read_text

_DELIMITERS = ",;\t"
# Where a delimiter other than the comma is used, the comma may be the decimal point.
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")


class Table(NamedTuple):
    """The columns' names, and each line that is not blank: what messages call it -> its fields."""

    head: list[str]
    rows: dict[str, list[str]]
    delimiter: str


def read_table(path: Path) -> Table:
    """Read a CSV file.

    The delimiter is the one of comma, semicolon and tab that its first line has most of. Left out
    are a first line "sep=;", the "#" before the names, a first column without a name (pandas' row
    numbers) and empty fields after the last name.

    Args:
        path: a file in UTF-8 or UTF-16.

    Returns:
        Its head, empty where the file is, and its rows, as long as the head.

    Raises:
        ValueError: it is not a CSV file, or a line has more or fewer fields than there are names.

    Example: `read_table(Path("points.csv")).head`
    """
    head: list[str] = []
    rows: dict[str, list[str]] = {}
    numbered = False
    try:
        text = read_text(path)
        delimiter = _delimiter(text)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        for line in reader:
            fields = [field.strip() for field in line]
            if not any(fields) or (not head and fields[0].lower().startswith("sep=")):
                continue
            if head:
                row = f"{path}, line {reader.line_num}"
                rows[row] = _fitting(fields, head, numbered, row)
                continue
            fields[0] = fields[0].lstrip("# ")
            numbered = not fields[0]
            head = fields[numbered:]
            while head and not head[-1]:
                head.pop()
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a CSV file in UTF-8 or UTF-16: {error}") from None
    return Table(head, rows, delimiter)


def whole_number(text: str) -> int | None:
    """The number >= 0 that a field holds, None where it is none: 2, or 2.0 as pandas writes it.

    Example:
        >>> from diffreg.data._csv import whole_number
        >>> whole_number("2.0"), whole_number("2.5")
        (2, None)
    """
    found = re.fullmatch(r"([0-9]{1,9})([.,]0*)?", text)
    return int(found[1]) if found else None


def number(text: str, delimiter: str) -> float:
    """The number that a field holds, with a decimal comma where that is no delimiter.

    Raises:
        ValueError: it is none.
    """
    if delimiter != "," and _DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    return float(text)


def _delimiter(text: str) -> str:
    first = next((line for line in text.splitlines() if line.strip(" ,;\t")), "")
    named = re.fullmatch(r"sep=([,;\t|])\s*", first, re.IGNORECASE)
    return named[1] if named else max(_DELIMITERS, key=first.count)


def _fitting(fields: list[str], head: list[str], numbered: bool, row: str) -> list[str]:
    """The fields under the names."""
    if numbered:
        if fields[0] and whole_number(fields[0]) is None:
            raise ValueError(f"{row}: {fields[0]!r:.80} stands under no column's name")
        fields = fields[1:]
    count = len(fields)
    while count > len(head) and not fields[count - 1]:
        count -= 1
    if count != len(head):
        raise ValueError(f"{row}: there are {len(head)} columns, but {count} fields")
    return fields[:count]
