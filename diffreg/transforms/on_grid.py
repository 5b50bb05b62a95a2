"""A whole transform on one grid: where each of its voxels lies in the end, for a single sampling.

x(p) = L (p + u(p))      L (4, 4) from voxels to RAS mm, u in voxels of the grid
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffreg.data.grid import Grid
from diffreg.ops import affine_warp
from diffreg.system.files import FileWarning
from diffreg.transforms.values import EDGE, REACH, Affine, Field, Transform

_TOLD = 0.01  # share of the voxels outside a field's grid from which it is said


class Reached(NamedTuple):
    """Where the voxels of a grid lie in the end: x(p) = matrix (p + displacement(p), 1).

    Args:
        matrix: (4, 4), voxels to RAS mm.
        displacement: (1, 3, X, Y, Z), voxels of the grid, of which a slice has one plane; None: 0.
    """

    matrix: np.ndarray
    displacement: Tensor | None


def reached(
    transform: Transform,
    grid: Grid,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Reached:
    """Where a transform leads the voxels of a grid; no array of points is made.

    Args:
        transform: of the grid's space.
        grid: the fixed image's.
        dtype: of the displacement, in voxels: float32 leaves some 1e-5 of one.
        device: where it is computed.

    Raises:
        ValueError: a field's grid and the voxels have nothing in common.

    Warns:
        FileWarning: more than 1 % of the voxels are outside a field's grid, where it moves nothing.
    """
    matrix, u, missed = grid.in_space, None, torch.zeros((), dtype=torch.bool)
    for step in transform.steps:
        if isinstance(step, Affine):
            matrix = step.matrix @ matrix
            continue
        moved, outside = _moved(step, matrix, u, grid, dtype, device)
        if bool(outside.all()):
            raise ValueError(
                f"{step.grid.name} moves nothing here: its grid and {grid.name} have no voxel in "
                "common, by their headers and what comes before it"
            )
        u = moved if u is None else u.add_(moved)
        missed = missed.to(outside.device) | outside
    share = float(missed.to(torch.float64).mean())
    if share > _TOLD:
        warnings.warn(
            f"{100 * share:.3g} % of the voxels of {grid.name} lie outside the grid of a field, "
            "where it moves nothing",
            FileWarning,
            stacklevel=2,
        )
    return Reached(matrix, u)


def flattened(transform: Transform, grid: Grid, dtype: torch.dtype = torch.float32) -> Field:
    """One field that does on a grid what a whole transform does there.

    Args:
        transform: of the grid's space.
        grid: the fixed image's.
        dtype: of the field.

    Returns:
        The field: exact at the voxels, linear between them.

    Raises:
        ValueError: a field of the transform misses the grid, or a slice's voxels leave its plane.

    Warns:
        FileWarning: as `reached`.

    Example:
        >>> import numpy as np
        >>> from diffreg.data.grid import Grid
        >>> from diffreg.transforms import Affine, flattened
        >>> move = np.eye(4)
        >>> move[0, 3] = 3
        >>> flattened(Affine(move), Grid((2, 2, 2), np.eye(4))).displacement[0, 0].unique()
        tensor([3.])
    """
    if not isinstance(grid, Grid):
        raise TypeError(f"grid must be a Grid, got {type(grid).__name__}")
    matrix, u = reached(transform, grid, torch.float64)
    size = grid.volume
    total = np.linalg.solve(grid.in_space, matrix)  # voxels to voxels
    axes = torch.from_numpy(total[:3, :3])
    points = torch.stack(
        torch.meshgrid(*[torch.arange(n, dtype=torch.float64) for n in size], indexing="ij")
    )
    ends = points if u is None else points + u[0]
    found = torch.einsum("ik,k...->i...", axes, ends) - points
    found += torch.from_numpy(total[:3, 3]).reshape(3, 1, 1, 1)
    if grid.dimensions == 2:
        found = _in_plane(found, grid)
    return Field(found[None].to(dtype), grid)


def _in_plane(found: Tensor, grid: Grid) -> Tensor:
    """A slice's displacement (2, X, Y) of (3, X, Y, 1), which may not leave the plane."""
    rise = float(found[2].abs().max())
    if rise > 1e-3 and not grid.is_flat:
        raise ValueError(
            f"{grid.name}: a slice's field leads nothing out of its plane, and here voxels leave it"
            f" by up to {rise:.3g} slices"
        )
    return found[:2, ..., 0]


def _moved(
    step: Field,
    matrix: np.ndarray,
    u: Tensor | None,
    grid: Grid,
    dtype: torch.dtype,
    device: torch.device | str,
) -> tuple[Tensor, Tensor]:
    """What a field adds to the displacement, and which voxels lie outside its grid."""
    to_field = np.linalg.solve(step.grid.in_space, matrix)
    back = np.linalg.solve(matrix[:3, :3], step.grid.in_space[:3, :3])  # the field's voxels to ours
    field = step.displacement.to(device, dtype)
    if step.grid.dimensions == 2:
        field = torch.cat([field, torch.zeros_like(field[:, :1])], 1)[..., None]
    inside = _inside(step.grid, to_field, u, grid, dtype, device)
    if _is_identity(to_field) and u is None and step.grid.size == grid.size:
        found = field
    else:
        found = _read(field, to_field, u, grid, "border")
    if np.allclose(back, np.eye(3), atol=1e-12):
        moved = found.clone()
    else:
        linear = torch.as_tensor(back, dtype=dtype, device=device)
        moved = torch.einsum("ik,nk...->ni...", linear, found)
    return moved.mul_(inside), inside[0, 0] == 0


def _inside(
    field: Grid,
    to_field: np.ndarray,
    u: Tensor | None,
    grid: Grid,
    dtype: torch.dtype,
    device: torch.device | str,
) -> Tensor:
    """1 where voxels lie in a field's grid, else 0: (1, 1, X, Y, Z)."""
    to_field = to_field.copy()
    size = field.volume
    if field.dimensions == 2:  # a flat one holds anywhere
        to_field[2] *= 0.0 if field.is_flat else 0.5 / REACH
    to_field[:3, 3] += EDGE
    ones = torch.ones((1, 1, *size), dtype=dtype, device=device)
    return _read(ones, to_field, u, grid, "zeros", "nearest")


def _read(
    image: Tensor,
    matrix: np.ndarray,
    u: Tensor | None,
    grid: Grid,
    padding: str,
    interpolation: str = "linear",
) -> Tensor:
    """An image (1, C, X, Y, Z) at matrix (p + u(p), 1) on a grid."""
    map_ = torch.from_numpy(matrix[None, :3].copy()).to(image.device)
    size = grid.volume if u is None else None
    return affine_warp(image, map_, u, size, interpolation, padding)


def _is_identity(matrix: np.ndarray) -> bool:
    return bool(np.abs(matrix - np.eye(4)).max() < 1e-9)
