"""FSL: flirt's matrices and dense warps, in "FSL mm" of both images.

D = scale [flip]     FSL mm of voxels: x from the right where the header's determinant is positive
M = D_f A_f^-1 T^-1 A_m D_m^-1            flirt's, from the moving image to the fixed one
w(p) = D_m A_m^-1 T A_f p  [- D_f p]      a warp, absolute [relative], on the fixed grid
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from diffreg.data._forms import codes_of
from diffreg.data.geometry import Image
from diffreg.transforms.formats import nifti
from diffreg.transforms.formats.adapter import (
    Adapter,
    Places,
    affine_of,
    check_grid,
    dense,
    in_text,
    matrix_of,
    one_affine,
    text_of,
    write_text,
)
from diffreg.transforms.values import Affine, Field, Transform

_FIELD = 2006
_WHY = "FSL's millimetres are of its voxels, and of their handedness"


def _to_fsl(image: Image) -> np.ndarray:
    """(4, 4), from RAS mm to FSL's mm of an image; one whose header has no form is not flipped.

    FSL's lengths are pixdim's, whatever the forms say, and the number itself, whatever its unit.
    """
    grid, affine = image.grid, image.grid.in_space
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if image.header is not None:
        pixdim = np.abs(image.header["pixdim"][1:4].astype(np.float64))
        spacing = np.where(pixdim > 0, pixdim, 1.0)
    scale = np.diag([*spacing, 1.0])
    formless = image.header is not None and not any(codes_of(image.header))
    if np.linalg.det(affine[:3, :3]) > 0 and not formless:
        scale[0] = -spacing[0], 0, 0, (grid.size[0] - 1) * spacing[0]
    return scale @ np.linalg.inv(affine)


def _both(path: Path, places: Places) -> tuple[np.ndarray, np.ndarray]:
    fixed, moving = places.of_fixed(path, _WHY), places.of_moving(path, _WHY)
    return _to_fsl(fixed), _to_fsl(moving)


def _read_flirt(path: Path, places: Places) -> Affine:
    matrix = affine_of(path, matrix_of(path, text_of(path))).matrix
    fixed, moving = _both(path, places)
    return affine_of(path, np.linalg.solve(moving, np.linalg.solve(matrix, fixed)))


def _write_flirt(path: Path, transform: Transform, places: Places) -> None:
    world = one_affine(path, transform, "a matrix of FSL").matrix
    fixed, moving = _both(path, places)
    write_text(path, in_text(fixed @ np.linalg.solve(world, np.linalg.inv(moving))))


def _applied(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def _reader(relative: bool) -> Callable[[Path, Places], Field]:
    def read(path: Path, places: Places) -> Field:
        to_fixed, to_moving = _both(path, places)
        fixed = places.of_fixed(path, _WHY).grid
        values, there = nifti.vectors_of(path, nifti.opened(path))
        check_grid(path, there, fixed)
        grid = replace(fixed, name=str(path))
        here = nifti.positions(grid)
        if relative:
            values = values + _applied(to_fixed, here)
        return nifti.field_from(_applied(np.linalg.inv(to_moving), values) - here, grid)

    return read


def _writer(relative: bool) -> Callable[[Path, Transform, Places], None]:
    def write(path: Path, transform: Transform, places: Places) -> None:
        to_fixed, to_moving = _both(path, places)
        field = dense(path, transform, places)
        here = nifti.positions(field.grid)
        values = _applied(to_moving, here + nifti.vectors_from(field))
        if relative:
            values -= _applied(to_fixed, here)
        nifti.save(path, values, field.grid, _FIELD)

    return write


FLIRT = Adapter(
    "FSL: flirt's 4 x 4 matrix in text (-omat); needs both images",
    "moving to fixed, FSL mm",
    _read_flirt,
    _write_flirt,
)
ABSOLUTE = Adapter(
    "FSL: a warp of positions (convertwarp --absout), affine included; needs both images",
    "fixed to moving, positions in FSL mm of the moving image",
    _reader(relative=False),
    _writer(relative=False),
    nifti.ENDINGS,
)
RELATIVE = Adapter(
    "FSL: a warp of displacements (convertwarp --relout), affine included; needs both images",
    "fixed to moving, displacements in FSL mm",
    _reader(relative=True),
    _writer(relative=True),
    nifti.ENDINGS,
)
