"""The rows of a CSV or TOML manifest and their fields, checked."""

from __future__ import annotations

import difflib
import os
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffreg.data._csv import read_table, whole_number
from diffreg.data._dicom import holds_dicom
from diffreg.data._kinds import file_of, kind_of
from diffreg.system.extras import toml_reader
from diffreg.system.files import FileWarning, read_text

# The columns that hold files; group, slices and time points belong to no file.
IMAGES = ("moving", "fixed", "moving_label", "fixed_label", "fixed_mask", "moving_mask")
FILES = (*IMAGES, "moving_points", "fixed_points", "true_displacement")
SLICES = ("slice", "moving_slice", "fixed_slice")
TIMES = ("time", "moving_time", "fixed_time")
PAIR_COLUMNS = (*FILES, "group", *SLICES, *TIMES)
# Of a manifest of images: what each image brings as the moving and as the fixed one of a pair.
IMAGE_COLUMNS = ("image", "label", "mask", "points", "group", "slice", "time")
# What a side of a pair may have, in the words of others too.
_BESIDE = {"mask", "label", "labels", "points", "landmarks", "segmentation", "roi"}
NEAR = 0.8  # a column as near as this to a known one is a slip of the pen
_NO_TEXT = ("Cc", "Cs", "Zl", "Zp")  # controls, halves of characters, ends of lines


def csv_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Row name -> {column: text}, empty fields left out."""
    head, rows, _ = read_table(path)
    if not head:
        raise ValueError(f"{path} is empty: its first line must name the columns, moving,fixed")
    _say_left_alone(path, check_columns(head, str(path)))
    return {
        row: {name: field for name, field in zip(head, fields, strict=True) if field}
        for row, fields in rows.items()
    }


def toml_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Row name -> {key: value}."""
    try:
        content = toml_reader().loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from None
    if not content:
        raise ValueError(f"{path} is empty: it must list its pairs, each as [[pair]]")
    for key in content:
        if key not in ("pair", "image") or len(content) > 1:
            raise ValueError(
                f"{path}: a manifest is [[pair]] tables or [[image]] tables, got {list(content)}"
            )
    ((kind, tables),) = content.items()
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
        raise ValueError(f"{path}: {kind} must be tables, each written [[{kind}]]")
    rows, others = {}, []
    for number, table in enumerate(tables, start=1):
        row = f"{path}, {kind} {number}"
        others += check_columns(list(table), row, images=kind == "image")
        rows[row] = dict(table)
    _say_left_alone(path, others)
    return rows


def check_columns(names: Sequence[str], where: str, images: bool | None = None) -> list[str]:
    """Refuse columns that are misspelt, of the other kind, there twice or missing.

    Returns:
        Those that are no manifest's, such as a patient's age.
    """
    images = "image" in names if images is None else images
    known = IMAGE_COLUMNS if images else PAIR_COLUMNS
    others = [name for name in names if name not in known]
    for name in others:
        if not name or _near_known(name):
            close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
            meant = f"the nearest is {close[0]}" if close else f"known are {', '.join(known)}"
            raise ValueError(f"{where}: there is no column {name!r}; {meant}")
    for name in known:
        if names.count(name) > 1:
            raise ValueError(f"{where}: the column {name} is there twice")
    missing = [
        name for name in (("image",) if images else ("moving", "fixed")) if name not in names
    ]
    if missing:
        raise ValueError(
            f"{where}: the column {' and '.join(missing)} is missing; it has {[*names]!s:.80}"
        )
    for both, moving, fixed in (SLICES, TIMES):
        if both in names and {moving, fixed} & set(names):
            raise ValueError(f"{where}: {both} stands for {moving} and {fixed}; leave it out")
    return others


def _near_known(name: str) -> bool:
    """Whether a column was perhaps meant to be one of ours: without it the pairs lose a mask."""
    words = set(name.lower().split("_"))
    if words & {"moving", "fixed"} and words & _BESIDE:
        return True
    if name.lower() in ("moving_id", "fixed_id"):
        return False
    every = (*PAIR_COLUMNS, *IMAGE_COLUMNS)
    return bool(difflib.get_close_matches(name.lower(), every, n=1, cutoff=NEAR))


def _say_left_alone(path: Path, names: Sequence[str]) -> None:
    if names:
        which = ", ".join(map(repr, dict.fromkeys(names)))
        warnings.warn(f"{path}: left alone: {which:.200}", FileWarning, stacklevel=2)


def path_of(value: Any, name: str, row: str, folder: Path) -> Path:
    """A path that is there, relative to the manifest's folder."""
    text = _one_line(value, name, row)
    path = folder / os.path.expanduser(text)  # of nobody known it stays as it is
    try:
        file = file_of(path)
        there, is_file = file.exists(), file.is_file()
        if name in (*IMAGES, "image", "label", "mask"):
            kind_of(path)
            is_file = is_file or (there and holds_dicom(file))  # a series is an image
    except (OSError, RuntimeError, ValueError) as error:
        raise ValueError(f"{row}: {name}: {error}") from None
    if not there:
        raise FileNotFoundError(f"{row}: {name} {file} does not exist")
    if not is_file:
        raise ValueError(f"{row}: {name} {file} is a folder, not a file")
    return path


def number_of(values: Mapping[str, Any], name: str, row: str) -> int | None:
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, str):
        known = whole_number(value)
        value = value if known is None else known
    if isinstance(value, float) and value.is_integer():  # TOML: 2.0
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{row}: {name} must be a whole number >= 0, got {value!r}")
    return value


def text_of(values: Mapping[str, Any], name: str, row: str) -> str:
    value = values.get(name, "")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)  # TOML: a patient's number
    return _one_line(value, name, row) if value != "" else ""


def _one_line(value: Any, name: str, row: str) -> str:
    """A text without control characters; names of files have odd spaces at times, and may."""
    wrong = not isinstance(value, str) or not value or len(value) > 4096
    if wrong or any(unicodedata.category(c) in _NO_TEXT for c in value):
        shown = repr(value)
        shown = shown if len(shown) < 80 else f"{shown[:76]}..."
        raise ValueError(f"{row}: {name} must be a text on one line, got {shown}")
    return value
