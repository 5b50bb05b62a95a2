"""What a displacement does: folds, determinants, distances from points and from the truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from diffreg.fields import compose
from diffreg.metrics._arrays import Array, check_weights, one_displacement, single
from diffreg.ops import jacobian_determinant


def smallest_determinant(displacement: Array) -> np.ndarray:
    """The smallest corner determinant of every cell of phi = id + u, in float64.

    Args:
        displacement: (D, *S) or (1, D, *S), voxels, component k along axis k of S.

    Returns:
        (*(S - 1)), float64; nan where a corner is nan. A cell is folded where this is not > 0.

    Raises:
        ValueError: displacement is not one displacement.

    Source: a bilinear cell is unfolded exactly when its four corners are.

    Example:
        >>> float(smallest_determinant(np.zeros((2, 2, 2)))[0, 0])
        1.0
    """
    return _corner_determinants(displacement).min(0)


def folding(displacement: Array) -> dict[str, float]:
    """Smallest and largest Jacobian determinant of all cells and corners, and how many cells fold.

    Args:
        displacement: (D, *S) or (1, D, *S), voxels, component k along axis k of S.

    Returns:
        min_determinant, max_determinant (nan where any corner is nan) and folded_percent, the
        percentage of cells whose smallest corner determinant is not > 0, nan among them. A grid
        without cells (an axis of one voxel) has nothing to fold: nan, nan, 0.

    Raises:
        ValueError: displacement is not one displacement.

    Source: all 2^D corners; forward or central differences alone overlook folds.

    Example:
        >>> folding(np.zeros((2, 8, 8)))
        {'min_determinant': 1.0, 'max_determinant': 1.0, 'folded_percent': 0.0}
    """
    corners = _corner_determinants(displacement)
    if corners.size == 0:
        smallest, largest, folded = np.nan, np.nan, 0.0
    else:
        smallest, largest = corners.min(), corners.max()
        folded = 100 * np.mean(~(corners.min(0) > 0))
    return {
        "min_determinant": float(smallest),
        "max_determinant": float(largest),
        "folded_percent": float(folded),
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
    corners = _corner_determinants(displacement)
    if corners.size == 0 or not (corners > 0).all():
        return float("nan")
    return float(np.std(np.log(corners)))


def sd_log_jacobian_learn2reg(displacement: Array) -> float:
    """SDlogJ as the evaluation script of Learn2Reg has it, to compare with published tables.

    Determinants by central differences, two voxels from the border left out, 3 added before the
    logarithm: another number than `sd_log_jacobian`, and blind to small folds.

    Args:
        displacement: (2, *S) or (1, 2, *S), voxels, component k along axis k of S.

    Returns:
        >= 0; nan where no voxel is left, or a value is not finite.

    Raises:
        ValueError: displacement is not one 2-D displacement.

    Source: Hering et al. 2022, Learn2Reg; jacobian_determinant of its evaluation script, in 2-D.

    Example:
        >>> sd_log_jacobian_learn2reg(np.zeros((2, 8, 8)))
        0.0
    """
    u = one_displacement(displacement)[0].numpy()
    if len(u) != 2:
        raise ValueError(f"displacement must be 2-D, got {list(u.shape)}")
    if min(u.shape[1:]) < 5:
        return float("nan")
    down = (u[:, 2:, :] - u[:, :-2, :])[:, 1:-1, 2:-2] / 2
    across = (u[:, :, 2:] - u[:, :, :-2])[:, 2:-2, 1:-1] / 2
    determinant = (1 + down[0]) * (1 + across[1]) - down[1] * across[0]
    return float(np.std(np.log(np.clip(determinant + 3, 1e-9, 1e9))))


def displacement_length(
    displacement: Array, spacing: Sequence[float] | None = None, mask: Array | None = None
) -> dict[str, float]:
    """How far a displacement takes the voxels: |u|, its mean inside the mask and its largest.

    Args:
        displacement: (D, *S) or (1, D, *S), voxels.
        spacing: physical length of a voxel along each axis, mm; None: lengths are in voxels.
        mask: weights >= 0 of the mean, (*S) or (1, 1, *S); the largest is that of all voxels.

    Returns:
        mean and max, mm or voxels.

    Raises:
        ValueError: shapes differ, or no voxel is inside the mask.

    Example:
        >>> displacement_length(np.stack([np.full((4, 4), 3.0)] * 2), (1, 4 / 3))
        {'mean': 5.0, 'max': 5.0}
    """
    u = one_displacement(displacement)
    return {"mean": _mean_length(u, spacing, mask), "max": float(_lengths(u, spacing).max())}


def end_point_error(
    displacement: Array,
    true: Array,
    spacing: Sequence[float] | None = None,
    mask: Array | None = None,
) -> float:
    """Mean distance of where a displacement takes the voxels from where the true one takes them.

    Args:
        displacement: (D, *S) or (1, D, *S), voxels.
        true: of the same shape.
        spacing: physical length of a voxel along each axis, mm; None: the distance is in voxels.
        mask: weights >= 0, (*S) or (1, 1, *S).

    Returns:
        >= 0, mm or voxels.

    Raises:
        ValueError: shapes differ, or no voxel is inside the mask.

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
    spacing: Sequence[float] | None = None,
    mask: Array | None = None,
) -> float:
    """Mean distance of a voxel from where the way there and back takes it, |u(p) + v(p + u(p))|.

    Args:
        displacement: u, (D, *S) or (1, D, *S), voxels: the fixed grid into the moving image.
        inverse: v, of the same shape: what registering the other way round gave.
        spacing: physical length of a voxel along each axis, mm; None: the distance is in voxels.
        mask: weights >= 0, (*S) or (1, 1, *S).

    Returns:
        >= 0, mm or voxels, over the voxels that stay on the grid; nan where none does.

    Raises:
        ValueError: shapes differ, or no voxel is inside the mask.

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
        displacement: (2, *S) or (1, 2, *S), fixed voxels.
        fixed_points: (K, 2), fixed voxels, array axes, within the grid; u is linear between voxels.
        moving_points: (K, 2), moving voxels, array axes.
        matrix: (2, 3), fixed voxel to moving voxel (`diffreg.data.geometry.voxel_map`); None: one
            grid.
        axes: (3, 2), the edges of a moving voxel in mm, columns of its affine; None: the distance
            is in voxels.

    Returns:
        (K,), mm or voxels.

    Raises:
        ValueError: the two do not have the same number of points, or one lies outside the grid.

    Example:
        >>> target_registration_error(np.ones((2, 8, 8)), np.array([[2, 2]]), np.array([[3, 5]]))
        array([2.])
    """
    u = one_displacement(displacement)[0].numpy()
    here, there = (np.asarray(points, np.float64) for points in (fixed_points, moving_points))
    if here.shape != there.shape or here.ndim != 2 or here.shape[1] != 2:
        raise ValueError(
            f"fixed_points and moving_points must be (K, 2) each, got {list(here.shape)} and "
            f"{list(there.shape)}"
        )
    outside = ~((here >= 0) & (here <= np.array(u.shape[1:]) - 1)).all(1)
    if outside.any():
        which = int(np.argmax(outside))
        raise ValueError(
            f"fixed point {which + 1}, {here[which].tolist()}, lies outside the grid "
            f"{list(u.shape[1:])}"
        )
    reached = here + _between_voxels(u, here)
    if matrix is not None:
        reached = reached @ np.asarray(matrix)[:, :2].T + np.asarray(matrix)[:, 2]
    apart = reached - there
    return np.linalg.norm(apart if axes is None else apart @ np.asarray(axes).T, axis=1)


def _between_voxels(u: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The displacement (2, H, W) at points (K, 2) of the grid, linear between voxels: (K, 2)."""
    last = np.array(u.shape[1:]) - 1
    low = np.minimum(np.floor(points), np.maximum(last - 1, 0)).astype(np.int64)
    (i, j), (a, b) = low.T, (points - low).T
    down, right = np.minimum(i + 1, last[0]), np.minimum(j + 1, last[1])
    upper = (1 - b) * u[:, i, j] + b * u[:, i, right]
    lower = (1 - b) * u[:, down, j] + b * u[:, down, right]
    return ((1 - a) * upper + a * lower).T


def _mean_length(
    vectors: torch.Tensor, spacing: Sequence[float] | None, mask: Array | None
) -> float:
    """Weighted mean of |vectors| (1, D, *S)."""
    lengths = _lengths(vectors, spacing)
    weight = np.ones(lengths.shape) if mask is None else single("mask", mask)
    if weight.shape != lengths.shape:
        raise ValueError(f"mask must be {list(lengths.shape)}, got {list(weight.shape)}")
    check_weights(weight)
    inside = weight > 0  # what lies outside, nan included, has no say
    return float(np.average(lengths[inside], weights=weight[inside]))


def _corner_determinants(displacement: Array) -> np.ndarray:
    """(2^D, *(S - 1)) in float64."""
    return jacobian_determinant(one_displacement(displacement))[0].numpy()


def _lengths(vectors: torch.Tensor, spacing: Sequence[float] | None) -> np.ndarray:
    """|vectors| (*S) of vectors (1, D, *S)."""
    v = vectors[0].numpy()
    if spacing is not None:
        v = v * np.asarray(spacing, np.float64).reshape(-1, *[1] * (v.ndim - 1))
    return np.sqrt((v**2).sum(0))
