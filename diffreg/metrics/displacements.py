"""What a displacement does: folds, determinants, distances from points and from the truth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from diffreg.fields import compose, warp_points
from diffreg.metrics._arrays import Array, check_weights, one_displacement, single
from diffreg.ops import jacobian_determinant
from diffreg.ops._flat_axis import flat_axis, without_axis
from diffreg.ops.deformation_energy import _lengths as voxel_lengths

_CELLS = 2**20  # whose determinants are held at once


def smallest_determinant(displacement: Array) -> np.ndarray:
    """The smallest corner determinant of every cell of phi = id + u, in float64.

    Args:
        displacement: (D, *S) or (1, D, *S), voxels, component k along axis k of S.

    Returns:
        (*(S - 1)), float64; nan where a corner is nan. A cell is folded where this is not > 0. An
        axis of one voxel stays, of size 1: a volume of one plane is treated as an image, an image
        of one row as a line. A grid of one voxel has no cell, and the array no number.

    Raises:
        ValueError: displacement is not one displacement.

    Source: a bilinear cell is unfolded exactly when its four corners are. In 3-D the corners are a
        measure and no proof: a trilinear cell may fold between eight positive ones; the bound of
        `diffreg.ops.jacobian_determinant` screens for that.

    Example:
        >>> float(smallest_determinant(np.zeros((2, 2, 2)))[0, 0])
        1.0
    """
    return np.concatenate([corners.min(0) for corners in _corner_determinants(displacement)])


def folding(displacement: Array) -> dict[str, float]:
    """Smallest and largest Jacobian determinant of all cells and corners, and how many cells fold.

    Args:
        displacement: (D, *S) or (1, D, *S), voxels, component k along axis k of S. A volume with an
            axis of one voxel is treated as an image, such an image as a line.

    Returns:
        min_determinant, max_determinant (nan where any corner is nan) and folded_percent, the
        percentage of cells whose smallest corner determinant is not > 0, nan among them. A grid
        without cells (of one voxel, or of none) has nothing to fold: nan, nan, 0.

    Raises:
        ValueError: displacement is not one displacement.

    Source: all 2^D corners; forward or central differences alone overlook folds, and in 3-D corners
        overlook those inside a cell.

    Example:
        >>> folding(np.zeros((2, 8, 8)))
        {'min_determinant': 1.0, 'max_determinant': 1.0, 'folded_percent': 0.0}
    """
    smallest, largest, folded, cells = np.nan, np.nan, 0, 0
    for corners in _corner_determinants(displacement):
        if corners.size:
            # Where nothing was found yet the other one counts, where a corner is nan that.
            smallest = corners.min() if not cells else np.minimum(smallest, corners.min())
            largest = corners.max() if not cells else np.maximum(largest, corners.max())
            folded += int(np.count_nonzero(~(corners.min(0) > 0)))
            cells += corners[0].size
    return {
        "min_determinant": float(smallest),
        "max_determinant": float(largest),
        "folded_percent": 100 * folded / max(cells, 1),
    }


def sd_log_jacobian(displacement: Array) -> float:
    """Standard deviation of ln J over all corners of all cells: how unevenly phi grows and shrinks.

    Args:
        displacement: (D, *S) or (1, D, *S), voxels, component k along axis k of S.

    Returns:
        >= 0; nan where a determinant is not positive, which has no logarithm, or there is no cell.

    Raises:
        ValueError: displacement is not one displacement.

    Example:
        >>> sd_log_jacobian(np.zeros((2, 8, 8)))
        0.0
    """
    logarithms = []
    for corners in _corner_determinants(displacement):
        if not (corners > 0).all():
            return float("nan")
        logarithms.append(np.log(corners).ravel())
    found = np.concatenate(logarithms)
    return float(np.std(found)) if found.size else float("nan")


def sd_log_jacobian_learn2reg(displacement: Array, mask: Array | None = None) -> float:
    """SDlogJ as the evaluation script of Learn2Reg has it, to compare with published tables.

    Determinants by central differences, two voxels from the border left out, 3 added before the
    logarithm: another number than `sd_log_jacobian`, and blind to small folds.

    Args:
        displacement: (D, *S) or (1, D, *S), voxels, component k along axis k of S. A volume with an
            axis of one voxel is treated as an image.
        mask: of the voxels that count, (*S) or (1, 1, *S), as the script has one for its lungs.

    Returns:
        >= 0; nan where no voxel is left, or a value that counts is not finite.

    Raises:
        ValueError: displacement is not one displacement, or a mask that does not fit.

    Source: Hering et al. 2022, Learn2Reg; jacobian_determinant of its evaluation script.

    Example:
        >>> sd_log_jacobian_learn2reg(np.zeros((2, 8, 8)))
        0.0
    """
    u = one_displacement(displacement)
    inside = np.ones(u.shape[2:]) if mask is None else single("mask", mask)
    if inside.shape != u.shape[2:]:
        raise ValueError(f"mask must be {list(u.shape[2:])}, got {list(inside.shape)}")
    check_weights(inside)
    axis = flat_axis(u)
    u = (u if axis is None else without_axis(u, axis))[0]
    if min(u.shape[1:]) < 5:
        return float("nan")
    inside = inside if axis is None else inside.squeeze(axis)
    inner = (slice(None), *[slice(2, -2)] * len(u))
    columns = [gradient[inner] for gradient in torch.gradient(u, dim=list(range(1, u.ndim)))]
    jacobian = torch.stack(columns, -1).movedim(0, -2) + torch.eye(len(u), dtype=u.dtype)
    counts = inside[inner[1:]] > 0
    if not counts.any():
        return float("nan")
    determinant = torch.linalg.det(jacobian).numpy()[counts]
    return float(np.std(np.log(np.clip(determinant + 3, 1e-9, 1e9))))


def displacement_length(
    displacement: Array, spacing: float | Sequence[float] | None = None, mask: Array | None = None
) -> dict[str, float]:
    """How far a displacement takes the voxels: |u|, its mean inside the mask and its largest.

    Args:
        displacement: (D, *S) or (1, D, *S), voxels.
        spacing: length of a voxel along each axis, mm, or one for all; None: lengths are in voxels.
        mask: weights >= 0 of the mean, (*S) or (1, 1, *S); the largest is that of all voxels.

    Returns:
        mean and max, mm or voxels.

    Raises:
        ValueError: shapes or spacing that do not fit, or no voxel is inside the mask.

    Example:
        >>> displacement_length(np.stack([np.full((4, 4), 3.0)] * 2), (1, 4 / 3))
        {'mean': 5.0, 'max': 5.0}
    """
    u = one_displacement(displacement)
    return {"mean": _mean_length(u, spacing, mask), "max": float(_lengths(u, spacing).max())}


def end_point_error(
    displacement: Array,
    true: Array,
    spacing: float | Sequence[float] | None = None,
    mask: Array | None = None,
) -> float:
    """Mean distance of where a displacement takes the voxels from where the true one takes them.

    Args:
        displacement: (D, *S) or (1, D, *S), voxels.
        true: of the same shape.
        spacing: length of a voxel along each axis, mm, or one for all; None: it is in voxels.
        mask: weights >= 0, (*S) or (1, 1, *S).

    Returns:
        >= 0, mm or voxels.

    Raises:
        ValueError: shapes or spacing that do not fit, or no voxel is inside the mask.

    Example:
        >>> end_point_error(np.zeros((2, 4, 4)), np.stack([np.full((4, 4), 3.0)] * 2), (1, 4 / 3))
        5.0
    """
    u, v = one_displacement(displacement), one_displacement(true)
    if u.shape != v.shape:
        raise ValueError(f"true must be {list(u.shape[1:])}, got {list(v.shape[1:])}")
    return _mean_length(u - v, spacing, mask)


def inverse_consistency(
    displacement: Array,
    inverse: Array,
    spacing: float | Sequence[float] | None = None,
    mask: Array | None = None,
) -> float:
    """Mean distance of a voxel from where the way there and back takes it, |u(p) + v(p + u(p))|.

    Args:
        displacement: u, (D, *S) or (1, D, *S), voxels: the fixed grid into the moving image.
        inverse: v, of the same shape: what registering the other way round gave.
        spacing: length of a voxel along each axis, mm, or one for all; None: it is in voxels.
        mask: weights >= 0, (*S) or (1, 1, *S).

    Returns:
        >= 0, mm or voxels, over the voxels that stay on the grid; nan where none does.

    Raises:
        ValueError: shapes or spacing that do not fit, or no voxel is inside the mask.

    Example:
        >>> inverse_consistency(np.ones((2, 8, 8)), -np.ones((2, 8, 8)))
        0.0
    """
    u, v = one_displacement(displacement), one_displacement(inverse)
    if u.shape != v.shape:
        raise ValueError(f"inverse must be {list(u.shape[1:])}, got {list(v.shape[1:])}")
    there = u[0] + torch.from_numpy(np.indices(u.shape[2:]).astype(np.float64))
    last = torch.tensor([size - 1 for size in u.shape[2:]]).reshape(-1, *[1] * (u.ndim - 2))
    stays = ((there >= 0) & (there <= last)).all(0).numpy().astype(np.float64)
    if mask is not None:
        stays = stays * single("mask", mask)
    return _mean_length(compose(v, u), spacing, stays) if stays.any() else float("nan")


def target_registration_error(
    displacement: Array,
    fixed_points: np.ndarray,
    moving_points: np.ndarray,
    matrix: np.ndarray | None = None,
    axes: np.ndarray | None = None,
) -> np.ndarray:
    """Distance of every fixed point, displaced, from the moving point that belongs to it.

    Args:
        displacement: (D, *S) or (1, D, *S), fixed voxels.
        fixed_points: (K, D), fixed voxels, array axes, within the grid; u is linear between voxels,
            where Learn2Reg's script has cubic splines: the same at voxels.
        moving_points: (K, D), moving voxels, array axes.
        matrix: (D, D + 1), fixed voxel to moving voxel (`diffreg.data.geometry.voxel_map`); None:
            one grid.
        axes: (3, D), the edges of a moving voxel in mm, columns of its affine; None: the distance
            is in voxels.

    Returns:
        (K,), mm or voxels.

    Raises:
        ValueError: the two do not have the same number of points, or one lies outside the grid.

    Example:
        >>> target_registration_error(np.ones((2, 8, 8)), np.array([[2, 2]]), np.array([[3, 5]]))
        array([2.])
    """
    u = one_displacement(displacement)
    dimensions, *shape = u.shape[1:]
    here, there = (np.asarray(points, np.float64) for points in (fixed_points, moving_points))
    if here.shape != there.shape or here.ndim != 2 or here.shape[1] != dimensions:
        raise ValueError(
            f"fixed_points and moving_points must be (K, {dimensions}) each, got "
            f"{list(here.shape)} and {list(there.shape)}"
        )
    outside = ~((here >= 0) & (here <= np.array(shape) - 1)).all(1)
    if outside.any():
        which = int(np.argmax(outside))
        raise ValueError(
            f"fixed point {which + 1}, {here[which].tolist()}, lies outside the grid {shape}"
        )
    reached = warp_points(torch.from_numpy(here)[None], u)[0].numpy()
    if matrix is not None:
        reached = reached @ np.asarray(matrix)[:, :-1].T + np.asarray(matrix)[:, -1]
    apart = reached - there
    return np.linalg.norm(apart if axes is None else apart @ np.asarray(axes).T, axis=1)


def _mean_length(
    vectors: torch.Tensor, spacing: float | Sequence[float] | None, mask: Array | None
) -> float:
    """Weighted mean of |vectors| (1, D, *S)."""
    lengths = _lengths(vectors, spacing)
    weight = np.ones(lengths.shape) if mask is None else single("mask", mask)
    if weight.shape != lengths.shape:
        raise ValueError(f"mask must be {list(lengths.shape)}, got {list(weight.shape)}")
    check_weights(weight)
    inside = weight > 0  # what lies outside, nan included, has no say
    return float(np.average(lengths[inside], weights=weight[inside]))


def _corner_determinants(displacement: Array) -> Iterator[np.ndarray]:
    """(2^D, *(S - 1)) in float64, rows of cells by rows of cells, to hold few at once."""
    u = one_displacement(displacement)
    rows, cells = u.shape[2], max(1, u[0, 0, 0].numel())
    step = max(1, _CELLS // cells)
    for first in range(0, max(1, rows - 1), step):
        yield jacobian_determinant(u[:, :, first : first + step + 1].contiguous())[0].numpy()


def _lengths(vectors: torch.Tensor, spacing: float | Sequence[float] | None) -> np.ndarray:
    """|vectors| (*S) of vectors (1, D, *S)."""
    v = vectors[0].numpy()
    lengths = np.array(voxel_lengths(spacing, len(v))).reshape(-1, *[1] * (v.ndim - 1))
    return np.sqrt(((v * lengths) ** 2).sum(0))
