"""Corresponding points: CSV files with the columns i and j, of volumes i, j and k, or in mm.

i is the voxel along array axis 0, j along axis 1 and k along axis 2, as the image is loaded:
(x, y, z) of a NIfTI file, (y, x) of a PNG file and of an array. Whole numbers are voxel centres.
Row k of the moving image's file belongs to row k of the fixed image's file. Landmarks are in one
file, RAS mm: fixed_x, fixed_y, fixed_z, moving_x, moving_y, moving_z. A column `name` or `label`
beside these is left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffreg.data._csv import number, read_table

_LARGEST = 16 * 2**20  # bytes
_WORDS = ("name", "label")  # columns that say which point it is


def read_points(path: str | Path) -> np.ndarray:
    """Read the points of one image.

    Args:
        path: a CSV file whose first line is i,j or i,j,k; or separated by semicolons or tabs, and
            then with decimal commas if it likes.

    Returns:
        (K, D), float64, voxels in array axes; K >= 1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: other columns, no point, or a field that is no number; the line is named.

    Example:
        >>> import pathlib, tempfile
        >>> from diffreg.data.points import read_points
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "points.csv"
        ...     _ = file.write_text("i,j\\n3,4.5\\n")
        ...     read_points(file).tolist()
        [[3.0, 4.5]]
    """
    return _read(Path(path), (["i", "j"], ["i", "j", "k"]))


def read_landmarks(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read pairs of points that lie at the same place of the body.

    Args:
        path: a CSV file, as of `read_points`, whose first line is
            fixed_x,fixed_y,fixed_z,moving_x,moving_y,moving_z; of images without a third axis
            fixed_x,fixed_y,moving_x,moving_y. All in RAS mm: x to the right, y to anterior.

    Returns:
        The points of the fixed image and of the moving one, (K, 3) or (K, 2) each, float64; K >= 1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: other columns, no point, or a field that is no number; the line is named.

    Example:
        >>> import pathlib, tempfile
        >>> from diffreg.data.points import read_landmarks
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder) / "landmarks.csv"
        ...     _ = file.write_text("fixed_x,fixed_y,moving_x,moving_y\\n3,4.5,2,4\\n")
        ...     [points.tolist() for points in read_landmarks(file)]
        [[[3.0, 4.5]], [[2.0, 4.0]]]
    """
    sides = "fixed", "moving"
    heads = [[f"{side}_{axis}" for side in sides for axis in axes] for axes in ("xyz", "xy")]
    fixed, moving = np.split(_read(Path(path), heads), 2, axis=1)
    return fixed, moving


def _read(path: Path, heads: Sequence[list[str]]) -> np.ndarray:
    """The numbers of a file whose columns are one of these, in that order: (K, columns)."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not path.is_file() or path.stat().st_size > _LARGEST:
        raise ValueError(f"{path} is no file of points: it is no file of at most 16 MiB")
    head, rows, delimiter = read_table(path)
    taken = [column for column, name in enumerate(head) if name.lower() not in _WORDS]
    if rows and [head[column] for column in taken] not in heads:
        columns = " or ".join(",".join(names) for names in heads)
        raise ValueError(f"{path}: the columns must be {columns}, got {head!s:.80}")
    points = [
        _numbers([fields[column] for column in taken], row, delimiter)
        for row, fields in rows.items()
    ]
    if not points:
        raise ValueError(f"{path} holds no point")
    return np.array(points, dtype=np.float64)


def _numbers(fields: list[str], row: str, delimiter: str) -> list[float]:
    try:
        numbers = [number(field, delimiter) for field in fields]
    except ValueError:
        numbers = []
    if len(numbers) != len(fields) or not np.isfinite(numbers).all():
        words = {2: "two", 3: "three", 4: "four", 6: "six"}[len(fields)]
        raise ValueError(f"{row}: {words} numbers are needed, got {fields!s:.80}")
    return numbers
