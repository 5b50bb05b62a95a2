"""A displacement in voxels as vectors of the world, mm, and back; a slice's as ITK holds it.

    d(p) = R u(p)      R the linear part of the grid's affine; ITK's are F d, F = diag(-1, -1, 1)

Arrays of vectors are (X, Y, Z, components): three, or two of a 2-D file.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from diffreg.data._forms import check_right_angles, with_upright_slices
from diffreg.data.grid import Grid

# Between RAS and LPS, of vectors.
LPS = np.array([-1.0, -1.0, 1.0])
# A slice's plane is written so many times: ITK reads a single one as a 2-D image.
PLANES = 3
# How far, in voxels, a field may leave its plane by rounding alone.
_RISE = 1e-3


class Laid(NamedTuple):
    """A displacement as ITK holds it.

    Args:
        vectors: (X, Y, Z, components), LPS, mm.
        affine: (4, 4), voxel -> RAS mm.
    """

    vectors: np.ndarray
    affine: np.ndarray


def laid_out(u: np.ndarray, grid: Grid, dtype: type = np.float32) -> Laid:
    """A displacement as ITK holds it: a slice's plane three times, the second one in its place.

    Args:
        u: (D, *S), voxels.
        grid: where it lives.
        dtype: of the vectors.

    Raises:
        ValueError: the grid's axes are not at right angles, so that ITK has no such grid.

    Example:
        >>> import numpy as np
        >>> from diffreg.data.grid import Grid
        >>> from diffreg.data.vectors import laid_out
        >>> grid = Grid((3, 2), np.diag([2.0, 2.0, 5.0, 1.0]))
        >>> laid = laid_out(np.ones((2, 3, 2)), grid)
        >>> laid.vectors.shape, laid.vectors[0, 0, 0].tolist(), laid.affine[2, 3].item()
        ((3, 2, 3, 3), [-2.0, -2.0, 0.0], -5.0)
    """
    check_right_angles(grid)
    if grid.dimensions == 3:
        return Laid(to_world(u, LPS[:, None] * grid.axes, dtype), grid.affine)
    affine = with_upright_slices(grid.affine)
    vectors = to_world(u, LPS[:, None] * affine[:3, :2], dtype)[:, :, None]
    if grid.is_flat:
        return Laid(vectors[..., :2], affine)
    return Laid(np.repeat(vectors, PLANES, axis=2), moved(affine, -1))


def taken_up(vectors: np.ndarray, affine: np.ndarray, name: str, volume: bool = False) -> Laid:
    """The other way: a displacement (D, *S) in float64 voxels, and its affine.

    Args:
        vectors: (X, Y, Z, components), LPS, mm; of a slice one plane, or one three times.
        affine: (4, 4), voxel -> RAS mm.
        name: the file, for messages.
        volume: whether three planes that are alike are three all the same.

    Raises:
        ValueError: numbers that are not finite, or a slice's that leave its plane.
    """
    planes = vectors.shape[2]
    if planes == PLANES and not volume and _is_slice(vectors, affine):
        vectors, affine, planes = vectors[:, :, :1], moved(affine, 1), 1
    with np.errstate(all="ignore"):  # of numbers that are not finite
        vectors = vectors.astype(np.float64)
        if not np.all(np.isfinite(vectors)):
            raise ValueError(f"{name} holds displacements that are NaN or infinite")
        axes = LPS[:, None] * affine[:3, : 2 if planes == 1 else 3]
        u = to_voxels(vectors[:, :, 0] if planes == 1 else vectors, axes, name)
    if not np.all(np.isfinite(u)):
        raise ValueError(f"{name} holds displacements that are infinite in voxels")
    return Laid(u, affine)


def to_world(u: np.ndarray, axes: np.ndarray, dtype: type = np.float32) -> np.ndarray:
    """A displacement (D, *S) in voxels -> vectors (*S, 3) along axes (3, D), mm."""
    vectors = np.empty((*u.shape[1:], 3), dtype)
    for row in range(u.shape[1]):  # in double, which for all of a volume would be much
        vectors[row] = np.einsum("wk,k...->...w", axes, u[:, row].astype(np.float64))
    return vectors


def to_voxels(vectors: np.ndarray, axes: np.ndarray, name: str) -> np.ndarray:
    """Vectors (*S, components), mm -> the displacement (D, *S) in voxels, along axes (3, D).

    Raises:
        ValueError: a slice's vectors leave its plane.
    """
    components, dimensions = vectors.shape[-1], vectors.ndim - 1
    if np.linalg.matrix_rank(axes[:components]) < dimensions:
        raise ValueError(f"{name}: two components cannot describe a plane that is not x-y")
    if components > dimensions:
        rise = _rise(vectors, axes)
        if rise > _RISE * np.linalg.norm(axes, axis=0).min():
            raise ValueError(f"{name} moves voxels out of their plane, by up to {rise:.3g} mm")
    return np.einsum("kw,...w->k...", np.linalg.pinv(axes[:components]), vectors)


def moved(affine: np.ndarray, slices: int) -> np.ndarray:
    """The affine of the slice that lies so many further on, (4, 4)."""
    shifted = affine.copy()
    shifted[:3, 3] += slices * affine[:3, 2]
    return shifted


def _is_slice(vectors: np.ndarray, affine: np.ndarray) -> bool:
    """Whether planes are alike and lead nothing out of them."""
    alike = np.array_equal(vectors, np.repeat(vectors[:, :, :1], PLANES, 2), equal_nan=True)
    axes = LPS[:, None] * affine[:3, :2]
    return alike and not _rise(vectors[:, :, 0], axes) > _RISE * np.linalg.norm(axes, axis=0).min()


def _rise(vectors: np.ndarray, axes: np.ndarray) -> float:
    """How far vectors (X, Y, 3) lead out of the plane of axes (3, 2), mm."""
    normal = np.cross(axes[:, 0], axes[:, 1])
    with np.errstate(all="ignore"):
        return float(np.abs(vectors @ (normal / np.linalg.norm(normal))).max())
