"""A displacement to begin with, without its folds: smoothed where it folds until it does not.

The nearest displacement that does not fold (`diffreg.fields.make_diffeomorphic`) is no better to
begin with, and takes a hundred times as long where percents of the cells fold.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from diffreg.registration.unfolded import START_DETERMINANT, bounds_of, is_unfolded

ATTEMPTS = 8  # at each radius, from 1 voxel on, twice as many each time


def smoothed(displacement: Tensor) -> Tensor:
    """The displacement itself, or smoothed about the cells that fold or nearly do.

    Args:
        displacement: (1, D, *S), voxels, of one floating dtype.

    Returns:
        Of the same shape, without a fold: what is torn, or mirrored as a whole, comes ever nearer
        to a shift.

    Example:
        >>> import torch
        >>> from diffreg.registration.smoothing import smoothed
        >>> from diffreg.registration.unfolded import is_unfolded
        >>> u = torch.zeros(1, 2, 8, 8)
        >>> u[0, 0, 4, 4] = 1.5  # beyond its neighbour
        >>> is_unfolded(u), is_unfolded(smoothed(u))
        (False, True)
    """
    if is_unfolded(displacement):
        return displacement
    for attempt in range(ATTEMPTS * max(displacement.shape).bit_length()):
        failing = (bounds_of(displacement) >= START_DETERMINANT).logical_not_()
        if not bool(failing.any()):
            break
        radius = 2 ** (attempt // ATTEMPTS)
        share = _about(failing, displacement, radius)
        displacement = displacement.lerp(_mean(displacement, radius), share)
    return displacement


def _about(failing: Tensor, like: Tensor, radius: int) -> Tensor:
    """How much voxels (1, 1, *S) are smoothed: 1 about failing cells (1, *cells), 0 far away."""
    near = failing[:, None].to(like.dtype)
    for axis, size in enumerate(like.shape[2:], start=2):
        # An axis has a cell less than voxels, unless that is one.
        border = 2 + radius
        width = near.shape[axis] + 2 * border + 1 - size
        near = _along(axis, F.max_pool1d, near, border, width, "constant")
    return _mean(near, radius)


def _mean(values: Tensor, radius: int) -> Tensor:
    """Of the voxels (1, C, *S) within a radius along each axis, the border repeated."""
    for axis in range(2, values.ndim):
        values = _along(axis, F.avg_pool1d, values, radius, 1 + 2 * radius, "replicate")
    return values


def _along(
    axis: int, pool: Callable[..., Tensor], values: Tensor, border: int, width: int, mode: str
) -> Tensor:
    rows = values.movedim(axis, -1)
    pooled = pool(F.pad(rows.flatten(0, -2)[None], (border, border), mode), width, 1)
    return pooled.reshape(*rows.shape[:-1], -1).movedim(-1, axis)
