"""Manifests: which images belong together, as a CSV or TOML file, or as a folder.

A row is a pair, with the columns `moving` and `fixed`, or an image, with the column `image`; of
images, every ordered pair of one group is meant. A folder means every ordered pair of its images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from typing import Any

from diffreg.data._dicom import holds_dicom
from diffreg.data._manifest_rows import (
    FILES,
    SLICES,
    TIMES,
    csv_rows,
    number_of,
    path_of,
    text_of,
    toml_rows,
)
from diffreg.data.folders import folder_images, left_out
from diffreg.data.images import ENDINGS

MANIFESTS = (".csv", ".tsv", ".toml")
_LARGEST = 64 * 2**20  # bytes


@dataclass(frozen=True)
class Pair:
    """Two images that belong together, and what an expert drew on them.

    Args:
        moving: image to be warped, as `diffreg.read_image` takes it.
        fixed: the same, whose grid is kept.
        moving_label, fixed_label: label maps on the grids of their images.
        fixed_mask, moving_mask: voxels of the fixed and of the moving image that count.
        moving_points, fixed_points: CSV files of corresponding points (`diffreg.data.points`).
        true_displacement: a displacement file on the fixed grid, where the truth is known.
        group: what splits and intervals keep together, such as a patient.
        moving_slice, fixed_slice: slices of volumes.
        moving_time, fixed_time: time points of series.
        row: where the pair is from, for messages, such as "pairs.csv, line 3".
    """

    moving: Path
    fixed: Path
    moving_label: Path | None = None
    fixed_label: Path | None = None
    fixed_mask: Path | None = None
    moving_points: Path | None = None
    fixed_points: Path | None = None
    true_displacement: Path | None = None
    moving_mask: Path | None = None
    group: str = ""
    moving_slice: int | None = None
    fixed_slice: int | None = None
    moving_time: int | None = None
    fixed_time: int | None = None
    row: str = ""

    @property
    def name(self) -> str:
        """What reports call it: "a.nii.gz to b.nii.gz, slice 3"."""
        moving = said_part(self.moving_slice, self.moving_time)
        fixed = said_part(self.fixed_slice, self.fixed_time)
        if moving == fixed:
            return f"{self.moving.name} to {self.fixed.name}{moving and ','}{moving}"
        return f"{self.moving.name}{moving} to {self.fixed.name}{fixed}"


def said_part(slice_index: int | None, time: int | None) -> str:
    """What follows an image's name where it is a part of its file.

    Example:
        >>> from diffreg.data.manifest import said_part
        >>> said_part(3, None)
        ' slice 3'
    """
    named = (("slice", slice_index), ("time", time))
    return "".join(f" {word} {number}" for word, number in named if number is not None)


@dataclass(frozen=True)
class Manifest:
    """The pairs that a manifest lists, in its order.

    Args:
        path: the file or folder.
        pairs: at least one.
    """

    path: Path
    pairs: tuple[Pair, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    @property
    def groups(self) -> dict[str, tuple[Pair, ...]]:
        """The pairs of each group, groups in the order of their first pair."""
        names = dict.fromkeys(pair.group for pair in self.pairs)
        return {name: tuple(p for p in self.pairs if p.group == name) for name in names}


def read_manifest(path: str | Path) -> Manifest:
    """Read a manifest; the files that it names must be there, but are not opened.

    Args:
        path: a CSV file with one row a pair or image, its fields separated by commas, semicolons
            or tabs; a TOML file with one [[pair]] or [[image]] each, keys as the columns; or a
            folder of images (`diffreg.data.folders`). Its paths are relative to its folder.

    Returns:
        The manifest.

    Raises:
        FileNotFoundError: the manifest, or a file that it names, is missing; the row is named.
        ValueError: an unknown column, an empty or wrong field, a pair that is there twice, no pair.

    Example:
        >>> import pathlib, tempfile
        >>> from diffreg.data.manifest import read_manifest
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("a.png", "b.png"):
        ...         (pathlib.Path(folder) / name).touch()
        ...     [pair.name for pair in read_manifest(folder)]
        ['a.png to b.png', 'b.png to a.png']
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if path.is_dir():
        return Manifest(path, _folder_pairs(path))
    if path.suffix.lower() not in MANIFESTS:
        raise ValueError(f"{path}: a manifest is a folder, or its name ends in .csv, .tsv or .toml")
    if not path.is_file() or path.stat().st_size > _LARGEST:
        raise ValueError(f"{path} is no manifest: it is no file of at most 64 MiB")
    rows = toml_rows(path) if path.suffix.lower() == ".toml" else csv_rows(path)
    pairs = (
        _image_pairs(rows, path)
        if "image" in next(iter(rows.values()), {})
        else [_pair(values, row, path.parent) for row, values in rows.items()]
    )
    if not pairs:
        raise ValueError(f"{path} lists no pair")
    _check_once(pairs)
    return Manifest(path, tuple(pairs))


def _folder_pairs(path: Path) -> tuple[Pair, ...]:
    images = folder_images(path)
    if len(images) < 2 and holds_dicom(path):
        raise ValueError(f"{path} holds DICOM files, which are one image: give MOVING and FIXED")
    if len(images) < 2:
        raise ValueError(
            f"the folder {path} must hold at least two images ({', '.join(ENDINGS)}) to make a "
            f"pair, got {len(images)}{left_out(path)}"
        )
    return tuple(Pair(a, b, row=str(path)) for a, b in permutations(images, 2))


def _pair(values: Mapping[str, Any], row: str, folder: Path) -> Pair:
    """One row as a Pair, its files found."""
    files: dict[str, Any] = {
        name: path_of(values[name], name, row, folder) for name in FILES if name in values
    }
    for name in ("moving", "fixed"):
        if name not in files:
            raise ValueError(f"{row}: {name} must be a file")
    for one, other in (("moving_label", "fixed_label"), ("moving_points", "fixed_points")):
        if (one in files) != (other in files):
            raise ValueError(f"{row}: {one} and {other} belong together; give both or none")
    parts: dict[str, Any] = {}
    for both, *ends in (SLICES, TIMES):
        given = number_of(values, both, row)
        parts |= {end: number_of(values, end, row) if given is None else given for end in ends}
    return replace(
        Pair(**files),
        **parts,
        group=text_of(values, "group", row),
        row=row,
    )


def _image_pairs(rows: Mapping[str, Mapping[str, Any]], path: Path) -> list[Pair]:
    """Every ordered pair of the images of one group and slice."""
    images = []
    for row, values in rows.items():
        found = {
            name: path_of(values[name], name, row, path.parent)
            for name in ("image", "label", "mask", "points")
            if name in values
        }
        if "image" not in found:
            raise ValueError(f"{row}: image must be a file")
        group, index = text_of(values, "group", row), number_of(values, "slice", row)
        images.append((row, found, number_of(values, "time", row), group, index))
    together: dict[Any, list[Any]] = {}
    for image in images:
        together.setdefault(image[3:], []).append(image)
    every = (pair for those in together.values() for pair in permutations(those, 2))
    pairs = []
    for (row, a, time, group, k), (other, b, fixed_time, _, _) in every:
        pairs.append(
            Pair(
                moving=a["image"],
                fixed=b["image"],
                moving_label=a.get("label") if "label" in b else None,
                fixed_label=b.get("label") if "label" in a else None,
                fixed_mask=b.get("mask"),
                moving_points=a.get("points") if "points" in b else None,
                fixed_points=b.get("points") if "points" in a else None,
                group=group,
                moving_slice=k,
                fixed_slice=k,
                moving_time=time,
                fixed_time=fixed_time,
                row=f"{row} with {other.rpartition(', ')[2]}",
            )
        )
    return pairs


def _check_once(pairs: Sequence[Pair]) -> None:
    """Refuse a pair that is there twice: it would count twice; without a slice it is all slices."""
    seen: dict[Any, dict[Any, str]] = {}
    for pair in pairs:
        files = tuple(os.path.normpath(path) for path in (pair.moving, pair.fixed))
        slices = (pair.moving_slice, pair.fixed_slice)
        rows = seen.setdefault((*files, pair.moving_time, pair.fixed_time), {})
        whole = (None, None)
        first = next(iter(rows.values()), None) if slices == whole else rows.get(whole)
        first = rows.get(slices, first)
        if first is not None:
            raise ValueError(f"{pair.row}: this pair is there twice, first in {first}")
        rows[slices] = pair.row
