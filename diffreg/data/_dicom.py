"""A folder of DICOM files as a volume, by SimpleITK: slices in the order in which they lie.

Their places are those of the files (Image Position Patient), not the order of names or numbers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from diffreg.data._dicom_elements import is_dicom, walk
from diffreg.data._itk import affine_of, open_itk, read_itk, read_voxels
from diffreg.data._itk import shape_of as shape_of_file
from diffreg.data._nifti import part_of
from diffreg.system.extras import require

ENDING = ".dcm"  # of a file with one slice, or with all
_SAME_PLACE = 1e-3  # mm
# How far a slice may lie from its place in an even stack, in steps from slice to slice.
_UNEVEN = 0.05


def split_series(path: str | Path) -> tuple[Path, str | None]:
    """A path without the series that follows the name of a folder, and that series.

    Args:
        path: such as "folder:1.2.840.1", or any other path.

    Returns:
        The file or folder, and the series' UID, None where there is none.

    Example:
        >>> from diffreg.data._dicom import split_series
        >>> split_series("/:1.2.840")[1]
        '1.2.840'
    """
    folder, colon, series = str(path).rpartition(":")
    named = colon and re.fullmatch(r"[0-9.]+", series) and Path(folder).is_dir()
    return (Path(folder), series) if named and not Path(path).exists() else (Path(path), None)


def holds_dicom(folder: Path) -> bool:
    """Whether a file in a folder says that it is DICOM; folders below are not looked into."""
    return any(file.is_file() and is_dicom(file) for file in folder.iterdir())


def shape_of(path: str | Path) -> tuple[int, ...]:
    """The voxels along the axes of a series, (x, y, z), from the header of its first file."""
    files = _files(path)
    first = shape_of_file(files[0])
    return first if len(files) == 1 else (*first[:2], len(files))


def read_series(
    path: str | Path, slice_index: int | None, time: int | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """The volume of a series, or one slice of it.

    Returns:
        Its numbers (X, Y, Z) or (X, Y), rescaled as the files say, and the other fields of Image.

    Raises:
        ValueError: there is no such series or more than one, its slices are no even stack, or a
            file is damaged.
    """
    path, files = Path(path), _files(path)
    if len(files) == 1:
        values, fields = read_itk(files[0], slice_index, time)
        return values, {**fields, "path": path}
    readers = [open_itk(file) for file in files]
    affines = [affine_of(reader, file) for reader, file in zip(readers, files, strict=True)]
    _check_alike(path, files, [reader.GetSize() for reader in readers], affines)
    normal = np.cross(affines[0][:3, 0], affines[0][:3, 1])
    order = np.argsort([normal @ affine[:3, 3] for affine in affines])
    affine = affines[order[0]].copy()
    affine[:3, 2] = _step(path, np.array([affines[k][:3, 3] for k in order]), normal)
    shape = (*readers[0].GetSize()[:2], len(files))
    part, index = part_of(path, shape, slice_index, time)
    chosen = order if index is None else order[[index]]
    if index is not None:
        affine[:3, 3] += index * affine[:3, 2]
    slices = [read_voxels(readers[k], files[k], (*part[:2], 0)) for k in chosen]
    values = np.stack(slices, -1) if index is None else slices[0]
    fields = {"affine": affine, "path": path, "slice_index": index, "dtype": values.dtype}
    return values, fields


def _files(path: str | Path) -> list[Path]:
    """The files of the series that a path names, or of the only one of a folder."""
    folder, series = split_series(path)
    require("SimpleITK", f"DICOM files as in {folder}", "itk")
    found: dict[str, list[Path]] = {}
    for file in sorted(file for file in folder.iterdir() if file.is_file() and is_dicom(file)):
        elements = walk(file)
        if elements.has_pixels:
            found.setdefault(elements.series, []).append(file)
    if not found:
        raise ValueError(f"{folder} holds no DICOM series that can be read")
    if series is None and len(found) == 1:
        return next(iter(found.values()))
    if series not in found:
        asked = f"has no series {series}" if series else f"holds {len(found)} DICOM series"
        listed = ", ".join(f"{uid} ({len(files)} slices)" for uid, files in found.items())
        raise ValueError(f"{folder} {asked}; name one as {folder.name}:UID, of {listed}")
    return found[series]


def _check_alike(
    path: Path, files: list[Path], sizes: list[tuple[int, ...]], affines: list[np.ndarray]
) -> None:
    """Refuse a series whose files are not slices of one size, parallel to each other."""
    for file, size, affine in zip(files, sizes, affines, strict=True):
        if size != (*sizes[0][:2], 1):
            raise ValueError(f"{path}: {file.name} is {size}, {files[0].name} {sizes[0]} voxels")
        if not np.allclose(affine[:3, :2], affines[0][:3, :2], atol=1e-3):
            raise ValueError(f"{path}: {file.name} and {files[0].name} are not parallel slices")


def _step(path: Path, places: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """The way from slice to slice, (3,) mm, of the places (N, 3) of their first voxels."""
    heights = places @ (normal / np.linalg.norm(normal))
    gaps = np.diff(heights)
    if gaps.min() < _SAME_PLACE:
        raise ValueError(
            f"{path} holds {len(places)} slices at {1 + np.sum(gaps >= _SAME_PLACE)} places: more "
            "than one volume, such as a series in time; keep the files of one in a folder"
        )
    step = (places[-1] - places[0]) / (len(places) - 1)
    even = places[0] + np.arange(len(places))[:, None] * step
    if np.linalg.norm(places - even, axis=1).max() > _UNEVEN * np.linalg.norm(step):
        raise ValueError(
            f"{path} is no even stack: from slice to slice it is {gaps.min():.4g} to "
            f"{gaps.max():.4g} mm; slices may be missing"
        )
    return step
