"""Maps of the Jacobian determinant as images, on the voxels of the fixed grid.

J(p) = mean over the corners, at p, of the cells around it
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffreg.data.geometry import Image
from diffreg.data.images import is_picture, kind_of, write_image
from diffreg.data.manifest import Pair
from diffreg.ops import jacobian_determinant
from diffreg.registration.folders import JACOBIAN, LOG_JACOBIAN, WITH_AFFINE
from diffreg.transforms.places import place_of


def write_determinants(
    folder: Path, displacement: Tensor, affine: np.ndarray, fixed: Image
) -> None:
    """Write J and log J of the displacement, and J of the displacement and the affine map together.

    log J is NaN where J is not positive.

    Args:
        folder: an existing one.
        displacement: (1, D, *S), voxels.
        affine: (4, 4), world to world, mm.
        fixed: the grid, which has a place in space.

    Raises:
        ValueError: pictures, of which no such image can be written, or a grid without cells.
    """
    check_cells(fixed)
    found = voxel_determinants(displacement)
    growth = _growth(affine, fixed)
    for name, values in (
        (JACOBIAN, found),
        (LOG_JACOBIAN, torch.where(found > 0, found, torch.nan).log()),
        (WITH_AFFINE, found * growth),
    ):
        write_image(folder / name, values, fixed)


def check_cells(fixed: Image, slices: bool = False) -> None:
    """Refuse a grid of which no map of the determinant can be written.

    Args:
        fixed: the grid.
        slices: whether only slices of it are registered.

    Raises:
        ValueError: a picture's, or one without cells.
    """
    if fixed.kind == "png":
        raise ValueError(
            "maps of the determinant are NIfTI files, and a picture has no such grid: "
            f"{fixed.name}; leave out --jacobian, in Python jacobian=True"
        )
    shape = fixed.shape[:2] if slices else fixed.shape
    if min(shape) < 2:
        raise ValueError(
            f"a grid of {list(shape)} voxels has no cell, so no determinant: {fixed.name}; leave "
            "out --jacobian, in Python jacobian=True"
        )


def check_all_cells(pairs: Iterable[Pair], slices: bool) -> None:
    """As `check_cells`, for every pair before the first is registered.

    Of NIfTI files the header is read, of pictures all, of other kinds nothing.

    Args:
        pairs: of a manifest; what cannot be read is told with its own pair.
        slices: whether volumes are taken slice by slice.

    Raises:
        ValueError: with the row.
    """
    firsts = {(pair.fixed, slices or pair.fixed_slice is not None): pair for pair in pairs}
    for (path, by_slice), pair in firsts.items():
        try:
            read = is_picture(path) or kind_of(path) == "nifti"
            grid = place_of("fixed", path) if read else None
        except (ValueError, OSError):
            continue
        if grid is not None:
            try:
                check_cells(grid, by_slice)
            except ValueError as error:
                raise ValueError(f"{pair.row}: {error}") from None


def voxel_determinants(displacement: Tensor) -> Tensor:
    """The mean determinant of the corners that meet at each voxel.

    Args:
        displacement: (1, D, *S), voxels, two voxels an axis at least.

    Returns:
        (1, 1, *S), float32.

    Example:
        >>> import torch
        >>> from diffreg.registration.determinants import voxel_determinants
        >>> voxel_determinants(torch.zeros(1, 2, 3, 3)).unique()
        tensor([1.])
    """
    size = displacement.shape[2:]
    corners = jacobian_determinant(displacement)  # (1, 2^D, *(S - 1)), corner a + 2 b + 4 c
    total = displacement.new_zeros((1, *size))
    count = torch.zeros_like(total)
    for k, values in enumerate(corners[0]):
        pads = [(k >> axis & 1, 1 - (k >> axis & 1)) for axis in range(len(size))]
        padding = [n for before, after in reversed(pads) for n in (before, after)]
        total += F.pad(values[None], padding)
        count += F.pad(torch.ones_like(values)[None], padding)
    return (total / count)[None]


def _growth(affine: np.ndarray, fixed: Image) -> float:
    """The determinant of the affine map, of a slice that of its plane."""
    linear, axes = affine[:3, :3], fixed.grid.direction
    if axes.shape[1] == 3:
        return float(np.linalg.det(linear))
    return float(np.linalg.det(axes.T @ linear @ axes))
