"""Points as tools write them, in and out: ANTs' CSV, 3D Slicer's .fcsv and .mrk.json.

ANTs' CSV is LPS mm whatever its images are; Slicer's headers say which of both they are.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffreg.data._csv import number, read_table
from diffreg.data.grid import LPS
from diffreg.system.atomic import replacing
from diffreg.system.files import read_text

_SIGNS = {"RAS": np.ones(3), "LPS": np.diag(LPS)[:3]}
_AXES = {"0": "RAS", "1": "LPS"}  # of .fcsv files before Slicer 4.11
_LARGEST = 64 * 2**20  # bytes
_FCSV = "id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID"
ENDINGS = (".csv", ".fcsv", ".mrk.json")


class PointFile(NamedTuple):
    """The points of a file.

    Args:
        points: (K, 3), RAS mm; (K, 2) of a CSV without z, between 2-D files.
        format: what the file is, in words.
        text: the same file with other points (K, 3), RAS mm, in their place.
    """

    points: np.ndarray
    format: str
    text: Callable[[np.ndarray], str]

    def write(self, path: str | Path, points: np.ndarray) -> None:
        """Write other points as a file of this kind; it appears whole or not at all.

        Args:
            path: its name ends as that of the file that was read.
            points: (K, 3), RAS mm.
        """
        with replacing(path) as temporary:
            temporary.write_text(self.text(points), encoding="utf-8")


def read_point_file(path: str | Path) -> PointFile:
    """Read points.

    Args:
        path: .csv with the columns x, y, z, or of 2-D files x and y, as ANTs'
            antsApplyTransformsToPoints takes them, LPS mm; or 3D Slicer's .fcsv or .mrk.json, LPS
            or RAS as their headers say.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such file, or does not say which way its axes run.

    Example:
        >>> import pathlib, tempfile
        >>> from diffreg.transforms.points import read_point_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "points.csv"
        ...     _ = file.write_text("x,y,z,t\\n1,2,3,0\\n")
        ...     read_point_file(file).points.tolist()
        [[-1.0, -2.0, 3.0]]
    """
    path = Path(path)
    ending = ending_of(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not path.is_file() or path.stat().st_size > _LARGEST:
        raise ValueError(f"{path} is no file of points: it is no file of at most 64 MiB")
    if ending == ".csv":
        return _read_csv(path)
    try:
        text = read_text(path)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no file of points: it is not text") from None
    return _read_fcsv(path, text) if ending == ".fcsv" else _read_json(path, text)


def ending_of(path: str | Path) -> str:
    """The ending that says what a file of points is.

    Raises:
        ValueError: another one.
    """
    for ending in ENDINGS:
        if Path(path).name.lower().endswith(ending):
            return ending
    raise ValueError(f"{path}: the name of a file of points must end in {', '.join(ENDINGS)}")


def _read_csv(path: Path) -> PointFile:
    head, rows, delimiter = read_table(path)
    names = [name.lower() for name in head]
    axes = 3 if names[:3] == ["x", "y", "z"] else 2
    if names[:axes] != ["x", "y", "z"][:axes]:
        raise ValueError(f"{path}: the first columns must be x,y,z, LPS mm, got {head!s:.80}")
    lps = [_numbers(fields[:axes], axes, row, delimiter) for row, fields in rows.items()]
    signs = _SIGNS["LPS"][:axes]

    def text(points: np.ndarray) -> str:
        lines = (
            [*_shown(point), *fields[axes:]]
            for point, fields in zip(points * signs, rows.values(), strict=True)
        )
        return _in_csv([head, *lines], ",")

    points = _finite(lps, path) * signs
    return PointFile(points, "CSV of ANTs, LPS mm", text)


def _read_fcsv(path: Path, whole: str) -> PointFile:
    lines = whole.splitlines()
    said = {
        key.strip().lower(): value.strip()
        for key, value in re.findall(r"(?m)^#([^=\n]+)=([^\n]*)$", "\n".join(lines))
    }
    axes = said.get("coordinatesystem", "")
    axes = _AXES.get(axes, axes.upper())
    signs = _signs(path, axes)
    columns = [name.strip() for name in said.get("columns", _FCSV).split(",")]
    if not {"x", "y", "z"} <= set(columns):
        raise ValueError(f"{path}: x, y and z must be among its columns, got {columns!s:.80}")
    at = [columns.index(name) for name in "xyz"]
    try:
        rows = {k: next(csv.reader([line])) for k, line in enumerate(lines) if _is_row(line)}
    except csv.Error as error:
        raise ValueError(f"{path} is no .fcsv file: {error}") from None
    found = []
    for k, fields in rows.items():
        if len(fields) <= max(at):
            raise ValueError(f"{path}, line {k + 1}: it has no x, y and z: {len(fields)} fields")
        found.append(_three([fields[i] for i in at], f"{path}, line {k + 1}", ","))

    def text(points: np.ndarray) -> str:
        new = list(lines)
        for (k, fields), point in zip(rows.items(), points * signs, strict=True):
            moved = list(fields)
            for i, value in zip(at, _shown(point), strict=True):
                moved[i] = value
            new[k] = _in_csv([moved], ",").rstrip("\n")
        return "\n".join(new) + "\n"

    return PointFile(_finite(found, path) * signs, f".fcsv of 3D Slicer, {axes} mm", text)


def _read_json(path: Path, whole: str) -> PointFile:
    try:
        content = json.loads(whole)
        lists = [(markup, markup["controlPoints"]) for markup in content["markups"]]
        placed = [
            (point, markup) for markup, points in lists for point in points if _is_placed(point)
        ]
        units = {str(markup.get("coordinateUnits", "mm")) for _, markup in placed} - {"mm"}
        if units:
            raise ValueError(f"{path} is in {units.pop()[:20]}: points in mm are needed")
        axes = [str(markup.get("coordinateSystem", "")).upper() for _, markup in placed]
        signs = [_signs(path, name) for name in axes]
        found = [_three(point["position"], str(path), ",") for point, _ in placed]
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no markups file of 3D Slicer: {error!s:.80}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    except ValueError as error:  # a row of ours, or a number of thousands of digits
        ours = str(error).startswith(str(path))
        raise ValueError(str(error) if ours else f"{path}: {error!s:.80}") from None

    def text(points: np.ndarray) -> str:
        new = json.loads(whole)
        new_points = (p for m in new["markups"] for p in m["controlPoints"])
        new_placed = [p for p in new_points if _is_placed(p)]
        for target, point, sign in zip(new_placed, points, signs, strict=True):
            target["position"] = (point * sign).tolist()
        return json.dumps(new, indent=2) + "\n"

    said = " and ".join(sorted(set(axes)))
    points = _finite(found, path) * np.array(signs)
    return PointFile(points, f".mrk.json of 3D Slicer, {said} mm", text)


def _is_placed(point: dict[str, Any]) -> bool:
    """Whether a control point lies anywhere: Slicer keeps those that were never put down."""
    return point.get("position") is not None and point.get("positionStatus", "") in ("", "defined")


def _signs(path: Path, axes: str) -> np.ndarray:
    if axes not in _SIGNS:
        raise ValueError(
            f"{path} does not say which way its axes run: CoordinateSystem must be LPS or RAS, got "
            f"{axes!r:.40}"
        )
    return _SIGNS[axes]


def _is_row(line: str) -> bool:
    return bool(line.strip()) and not line.startswith("#")


def _three(fields: Any, row: str, delimiter: str) -> list[float]:
    return _numbers(fields, 3, row, delimiter)


def _numbers(fields: Any, count: int, row: str, delimiter: str) -> list[float]:
    try:
        numbers = [number(str(field).strip(), delimiter) for field in fields]
    except ValueError:
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ValueError(f"{row}: x, y and z must be numbers, got {fields!s:.80}")
    return numbers


def _finite(found: list[list[float]], path: Path) -> np.ndarray:
    if not found:
        raise ValueError(f"{path} holds no point")
    return np.array(found, dtype=np.float64)


def _shown(point: np.ndarray) -> list[str]:
    return [repr(float(value)) for value in point + 0.0]


def _in_csv(lines: Any, delimiter: str) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=delimiter, lineterminator="\n").writerows(lines)
    return buffer.getvalue()
