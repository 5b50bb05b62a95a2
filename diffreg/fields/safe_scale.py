"""How far a displacement may be scaled before anything folds."""

from __future__ import annotations

import math

import torch

from diffreg.fields.certificate import _ROUNDING, _one_field
from diffreg.ops._checks import check_displacement, check_flat


def largest_safe_scale(
    displacement: torch.Tensor, threshold: float = 0.0, limit: float = math.inf
) -> float:
    """Supremum of the t up to `limit` such that no s u, s < t, has a determinant of `threshold`.

    Connected to 0: u = -2 x folds as it grows and unfolds again beyond, which does not count.

    Args:
        displacement: (1, D, *S), voxels, any floating dtype. D = 2, two voxels an axis at least.
        threshold: in [0, 1).
        limit: largest scale of interest.

    Returns:
        The scale, in double; at least 0, infinite where nothing ever folds and no limit is given.

    Raises:
        TypeError, ValueError: as `fold_certificate`, or a threshold or limit out of range.

    Example:
        >>> import torch
        >>> from diffreg.fields import identity_grid, largest_safe_scale
        >>> largest_safe_scale(-2 * identity_grid((8, 8)))
        0.5
    """
    check_displacement(displacement)
    check_flat("displacement", displacement, "the safe scale")
    u = _one_field(displacement).double()
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in [0, 1), got {threshold}")
    if not limit > 0:
        raise ValueError(f"limit must be positive, got {limit}")
    # J(t) = 1 + B t + C t^2 at each corner, C the determinant of the differences alone.
    along_0, along_1 = torch.diff(u[0], dim=1), torch.diff(u[0], dim=2)
    scale = limit
    for a in (0, 1):
        for b in (0, 1):
            e = along_0[:, :, b : b + along_1.shape[2]]
            f = along_1[:, a : a + along_0.shape[1], :]
            first, second = e[0] + f[1], e[0] * f[1] - e[1] * f[0]
            product = 4 * second * (1 - threshold)
            inside = first**2 - product
            # A double root, which touches and does not cross, counts, and rounding may hide it.
            real = inside >= -_ROUNDING * (first**2 + product.abs())
            root = inside.clamp(min=0).sqrt()
            # Of the two forms of the smallest positive root the one without cancellation.
            falls, bends = (
                real & (first <= 0) & (root - first > 0),
                real & (first > 0) & (second < 0),
            )
            for crosses, at in (
                (falls, 2 * (1 - threshold) / (root - first)),
                (bends, (first + root) / (-2 * second)),
            ):
                if bool(crosses.any()):
                    scale = min(scale, float(at[crosses].min()))
    return scale
