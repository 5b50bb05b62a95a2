"""Manifests: which images belong together, as a CSV, TOML or JSON file, or as a folder.

A row is a pair, with the columns `moving` and `fixed`, or an image, with the column `image`; of
images, every ordered pair of one group is meant. A folder means every ordered pair of its images.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diffreg.data._datalist import datalist_rows
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
from diffreg.data.bids import bids_pairs, is_bids
from diffreg.data.folders import folder_images, left_out
from diffreg.data.images import ENDINGS
from diffreg.data.pairing import Crossed, Member, Pair, Pairs

MANIFESTS = (".csv", ".tsv", ".toml", ".json")
_LARGEST = 64 * 2**20  # bytes


@dataclass(frozen=True)
class Manifest:
    """The pairs that a manifest lists, in its order.

    Args:
        path: the file or folder, and which part of it.
        pairs: at least one, each made when it is asked for.
    """

    path: Path
    pairs: Pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    @property
    def of_folder(self) -> bool:
        """Whether the pairs are those that a folder's images make, and nobody listed."""
        return _split(self.path)[0].is_dir()

    @property
    def groups(self) -> dict[str, Pairs]:
        """The pairs of each group, groups in the order of their first pair."""
        return {name: self.pairs.of_groups(name.__eq__) for name in self.pairs.groups}


def read_manifest(path: str | Path) -> Manifest:
    """Read a manifest; the files that it names must be there, but are not opened.

    Args:
        path: a CSV file with one row a pair or image, its fields separated by commas, semicolons
            or tabs; a TOML file with one [[pair]] or [[image]] each, keys as the columns; a MONAI
            datalist, `list.json:validation`, "training" where no list is named; a folder of images
            (`diffreg.data.folders`); or a BIDS folder, `bids:T1w` or `bids:T2w,T1w`
            (`diffreg.data.bids`). Its paths are relative to its folder.

    Returns:
        The manifest.

    Warns:
        FileWarning: it has other columns, which are left alone.

    Raises:
        FileNotFoundError: the manifest, or a file that it names, is missing; the row is named.
        ValueError: a misspelt column, an empty or wrong field, a pair that is there twice, no pair.

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
    file, part = _split(path)
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist")
    if file.is_dir():
        return Manifest(path, bids_pairs(file, part) if is_bids(file) else _folder_pairs(file))
    rows = _rows(file, part)
    of_images = "image" in next(iter(rows.values()), {})
    pairs = (_image_pairs if of_images else _listed_pairs)(rows, file)
    if not pairs:
        raise ValueError(f"{path} lists no pair")
    return Manifest(path, pairs)


def is_manifest(path: str | Path) -> bool:
    """Whether a name is a manifest's, or a part of one; a plain folder of images is none.

    Example:
        >>> from diffreg.data.manifest import is_manifest
        >>> is_manifest("list.json:validation"), is_manifest("a.nii.gz")
        (True, False)
    """
    file, _ = _split(Path(path))
    return file.suffix.lower() in MANIFESTS or is_bids(file)


def _split(path: Path) -> tuple[Path, str]:
    """A manifest, and which part of it is meant: list.json:validation, bids:T1w."""
    before, colon, part = str(path).rpartition(":")
    if colon and not path.exists() and (before.lower().endswith(".json") or is_bids(before)):
        return Path(before), part
    return path, ""


def _rows(path: Path, part: str) -> dict[str, dict[str, Any]]:
    """Row name -> {column: value}."""
    suffix = path.suffix.lower()
    if suffix not in MANIFESTS:
        raise ValueError(
            f"{path}: a manifest is a folder, or its name ends in .csv, .tsv, .toml or .json"
        )
    if not path.is_file() or path.stat().st_size > _LARGEST:
        raise ValueError(f"{path} is no manifest: it is no file of at most 64 MiB")
    if suffix == ".json":
        return datalist_rows(path, part)
    return toml_rows(path) if suffix == ".toml" else csv_rows(path)


def _folder_pairs(path: Path) -> Pairs:
    images = folder_images(path)
    if len(images) < 2 and holds_dicom(path):
        raise ValueError(f"{path} holds DICOM files, which are one image: give MOVING and FIXED")
    if len(images) < 2:
        raise ValueError(
            f"the folder {path} must hold at least two images ({', '.join(ENDINGS)}) to make a "
            f"pair, got {len(images)}{left_out(path)}"
        )
    return Pairs([Crossed(tuple(Member(image, row=str(path)) for image in images))])


def _listed_pairs(rows: Mapping[str, Mapping[str, Any]], path: Path) -> Pairs:
    pairs = [_pair(values, row, path.parent) for row, values in rows.items()]
    _check_once(pairs)
    return Pairs.of(pairs)


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


def _image_pairs(rows: Mapping[str, Mapping[str, Any]], path: Path) -> Pairs:
    """Every ordered pair of the images of one group and slice."""
    together: dict[Any, list[Member]] = {}
    for row, values in rows.items():
        found = {
            name: path_of(values[name], name, row, path.parent)
            for name in ("image", "label", "mask", "points")
            if name in values
        }
        if "image" not in found:
            raise ValueError(f"{row}: image must be a file")
        member = Member(**found, time=number_of(values, "time", row), row=row)
        key = text_of(values, "group", row), number_of(values, "slice", row)
        together.setdefault(key, []).append(member)
    blocks = [Crossed(tuple(members), *key) for key, members in together.items()]
    _check_members_once(blocks)
    return Pairs(blocks)


def _check_members_once(blocks: Sequence[Crossed]) -> None:
    """Refuse an image that is there twice, and two that are a pair of two groups."""
    seen: dict[Any, list[tuple[int, Member]]] = {}
    shared: dict[tuple[int, int], str] = {}
    for number, block in enumerate(blocks):
        for member in block.members:
            places = seen.setdefault((os.path.normpath(member.image), member.time), [])
            for other, first in places:
                if other == number:
                    raise ValueError(
                        f"{member.row}: this image is there twice, first in {first.row}"
                    )
                slices = {blocks[other].index, block.index}
                if len(slices) > 1 and None not in slices:
                    continue
                if (other, number) in shared:
                    raise ValueError(
                        f"{member.row}: this image and that of {shared[other, number]} are pairs "
                        f"twice, first in the group of {first.row}"
                    )
                shared[other, number] = member.row
            places.append((number, member))


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
