"""FreeSurfer: .lta, from moving to fixed in RAS mm or voxels; warps in NIfTI with both geometries.

A geometry: A = [X diag(s) | c - X diag(s) n / 2]    n voxels of size s along X's columns about c
"""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from diffreg.data.grid import Grid, check_affine
from diffreg.transforms.formats import nifti
from diffreg.transforms.formats.adapter import (
    Adapter,
    Places,
    affine_of,
    dense,
    in_text,
    numbers_of,
    one_affine,
    text_of,
    write_text,
)
from diffreg.transforms.values import Affine, Field, Transform

INTENT, ECODE = 1006, 14
_VOXELS, _RAS = 0, 1
_WHY = "the file holds both images' geometries"
_ABS_CRS, _DISP_CRS, _ABS_RAS, _DISP_RAS = range(4)
# Tags in a warp's extension: both geometries, what its numbers are, the end.
_GEOMETRIES, _META, _END = 10, 13, -1
_GEOMETRY = struct.Struct(">i3i3f9f3fi")  # valid, size, voxel, directions, centre, length of a name
_KEYS = ("volume", "voxelsize", "xras", "yras", "zras", "cras")


def _affine(
    size: np.ndarray, voxel: np.ndarray, axes: np.ndarray, centre: np.ndarray
) -> np.ndarray:
    """(4, 4), voxel -> RAS mm, of a geometry; axes (3, 3), one a column."""
    affine = np.eye(4)
    affine[:3, :3] = axes * voxel
    affine[:3, 3] = centre - affine[:3, :3] @ (size / 2)
    return affine


def _geometry(grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The other way: size, voxel, axes and centre."""
    affine, size = grid.in_space, np.array((*grid.size, 1)[:3])
    voxel = np.linalg.norm(affine[:3, :3], axis=0)
    return size, voxel, affine[:3, :3] / voxel, affine[:3, 3] + affine[:3, :3] @ (size / 2)


def _read_lta(path: Path, places: Places) -> Affine:
    text = "".join(line.split("#")[0] + "\n" for line in text_of(path).splitlines())
    kind = re.search(r"^\s*type\s*=\s*(\d+)\s*$", text, re.MULTILINE)
    body = re.search(r"^\s*1\s+4\s+4\s*\n((?:.*\n){4})", text, re.MULTILINE)
    count = re.search(r"^\s*nxforms\s*=\s*(\d+)\s*$", text, re.MULTILINE)
    if kind is None or body is None:
        raise ValueError(f"{path} is no .lta file: it lacks its type, or 1 4 4 and a matrix")
    if count is not None and int(count[1]) != 1:
        raise ValueError(f"{path} holds {count[1]} maps, where one is needed")
    if int(kind[1]) not in (_VOXELS, _RAS):
        raise ValueError(
            f"{path} is of type {kind[1]}, which is not read; lta_convert writes type {_RAS} (RAS "
            f"to RAS) or {_VOXELS} (voxels to voxels)"
        )
    numbers = numbers_of(path, body[1], "matrix")
    if numbers.size != 16:
        raise ValueError(f"{path}: its matrix has {numbers.size} numbers, not 16")
    matrix = affine_of(path, numbers.reshape(4, 4)).matrix
    if int(kind[1]) == _VOXELS:
        moving, fixed = (_section(path, text, side) for side in ("src", "dst"))
        matrix = fixed @ matrix @ np.linalg.inv(moving)
    return affine_of(path, matrix).inverse()


def _section(path: Path, text: str, side: str) -> np.ndarray:
    """The affine of one of the two geometries of an .lta file."""
    _, found, rest = text.partition(f"{side} volume info")
    rest = re.split(r"(?:src|dst) volume info", rest)[0]
    values = dict(re.findall(r"^\s*(\w+)\s*=(.*)$", rest, re.MULTILINE))
    if not found or values.get("valid", "0").strip() != "1" or not set(_KEYS) <= set(values):
        raise ValueError(f"{path} is in voxels, and its {side} volume has no valid geometry")
    numbers = [numbers_of(path, values[key], key) for key in _KEYS]
    if any(part.size != 3 for part in numbers):
        raise ValueError(f"{path}: each line of a geometry must have three numbers")
    size, voxel, x, y, z, centre = numbers
    affine = _affine(size, voxel, np.stack([x, y, z], axis=1), centre)
    check_affine(affine, str(path))
    return affine


def _write_lta(path: Path, transform: Transform, places: Places) -> None:
    matrix = one_affine(path, transform, "an .lta file").inverse().matrix
    moving, fixed = places.of_moving(path, _WHY).grid, places.of_fixed(path, _WHY).grid
    lines = [f"type      = {_RAS} # LINEAR_RAS_TO_RAS", "nxforms   = 1"]
    lines += ["mean      = 0.0000 0.0000 0.0000", "sigma     = 1.0000", "1 4 4"]
    lines += in_text(matrix).splitlines()
    for side, grid in (("src", moving), ("dst", fixed)):
        size, voxel, axes, centre = _geometry(grid)
        values = [voxel, *axes.T, centre]
        lines += [f"{side} volume info", "valid = 1  # volume info valid"]
        lines += [f"filename = {' '.join(Path(grid.name).name.split()) or 'none'}"]
        lines += [f"volume = {' '.join(map(str, size.tolist()))}"]
        lines += [
            f"{key:9} = {' '.join(f'{value:.15e}' for value in part)}"
            for key, part in zip(_KEYS[1:], values, strict=True)
        ]
    write_text(path, "\n".join([*lines, ""]))


def _read_warp(path: Path, places: Places) -> Field:
    file = nifti.opened(path)
    kind, moving = _extension(path, file)
    values, grid = nifti.vectors_of(path, file)
    here = nifti.positions(grid)
    if kind == _DISP_CRS:
        values = values + nifti.voxels(grid)
    if kind in (_ABS_CRS, _DISP_CRS):
        values = values @ moving[:3, :3].T + moving[:3, 3]
    return nifti.field_from(values if kind == _DISP_RAS else values - here, grid)


def _extension(path: Path, file: Any) -> tuple[int, np.ndarray]:
    """What a warp's numbers are, and the moving image's affine."""
    content = extension(file)
    if content is None:
        return _DISP_RAS, np.eye(4)  # as FreeSurfer takes a file without one
    kind, moving, at = -1, None, 4
    try:
        while at + 12 <= len(content):
            tag, length = struct.unpack_from(">iq", content, at)
            at += 12
            if tag == _GEOMETRIES:
                _, *numbers = _GEOMETRY.unpack_from(content, at)
                values = np.array(numbers[:-1], dtype=np.float64)
                axes = values[6:15].reshape(3, 3).T
                moving = _affine(values[:3], values[3:6], axes, values[15:])
            elif tag == _META:
                kind, spacing, _ = struct.unpack_from(">iif", content, at)
                if spacing != 1:
                    raise ValueError(f"{path} has a node every {spacing} voxels, not every one")
            if tag == _END or length < 0:
                break
            at += length
    except struct.error:
        raise ValueError(f"{path}: its FreeSurfer extension is damaged") from None
    if kind not in range(4) or moving is None:
        raise ValueError(f"{path} is no warp of FreeSurfer: its extension says no kind or geometry")
    if kind in (_ABS_CRS, _DISP_CRS):
        check_affine(moving, str(path))
    return kind, moving


def extension(file: Any) -> bytes | None:
    """FreeSurfer's extension of a NIfTI header, None where there is none."""
    found = [part for part in file.header.extensions if part.get_code() == ECODE]
    return bytes(found[0].get_content()) if found else None


def _write_warp(path: Path, transform: Transform, places: Places) -> None:
    moving = places.of_moving(path, _WHY).grid
    field = dense(path, transform, places)
    both = b"".join(_packed(grid) for grid in (moving, field.grid))
    tags = [(_GEOMETRIES, both), (_META, struct.pack(">iif", _DISP_RAS, 1, 0.0)), (_END, b"*")]
    content = b">\x00\x03\x01"  # big-endian, intent 3: a warp, version 1
    content += b"".join(struct.pack(">iq", tag, len(data)) + data for tag, data in tags)
    vectors = nifti.vectors_from(field)[:, :, :, None]
    nifti.save(path, vectors, field.grid, INTENT, extension=content)


def _packed(grid: Grid) -> bytes:
    size, voxel, axes, centre = _geometry(grid)
    return _GEOMETRY.pack(1, *size.tolist(), *voxel, *axes.T.ravel(), *centre, 0)


LTA = Adapter(
    "FreeSurfer: .lta, RAS to RAS or voxels to voxels; both images to write it",
    "moving to fixed, RAS mm or voxels",
    _read_lta,
    _write_lta,
    (".lta",),
)
WARP = Adapter(
    "FreeSurfer: a warp in NIfTI (mri_warp_convert); the moving image to write it",
    "fixed to moving, positions or displacements in RAS mm or voxels",
    _read_warp,
    _write_warp,
    nifti.ENDINGS,
)
