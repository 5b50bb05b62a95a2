"""The inverse of a displacement: v(p) = -u(p + v(p)), by fixed points, then Newton's method.

The fixed point converges where u changes by less than a voxel a voxel; Newton's method, damped,
goes on with the points where it does not.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffreg.ops import affine_warp, warp

_FIXED_POINTS, _NEWTON_STEPS, _HALVINGS = 30, 60, 12
_TOLERANCE = 1e-5  # voxels; float32 tells no less apart at coordinate 100
_CONTRACTION = 0.9  # of the largest error in a step: a slower fixed point is left to Newton


class Residual(NamedTuple):
    """How far the way there and back leads from where it began, mm.

    Args:
        at_voxels: the largest, at the voxels of the inverse.
        between_voxels: the largest in the middle of its cells, where it is interpolated.
        outside: share of the voxels to which the grid's border leads or nothing does; they are not
            counted in the others.
    """

    at_voxels: float
    between_voxels: float
    outside: float

    def __str__(self) -> str:
        words = f"{self.at_voxels:.2g} mm at its voxels, {self.between_voxels:.2g} mm between them"
        if self.outside:
            words += f"; {100 * self.outside:.2g} % of them come from beyond the grid"
        return words


def inverted(displacement: Tensor, axes: np.ndarray) -> tuple[Tensor, Residual]:
    """The inverse on the grid of a displacement that does not fold, and its residual.

    Beyond the grid the displacement of its border holds.

    Args:
        displacement: (1, D, *S), voxels.
        axes: (3, D), what leads from one voxel to the next along each axis, mm.

    Returns:
        (1, D, *S), voxels, and the residual, mm.

    Source:
        Chen et al. 2008 for the fixed point.
    """
    back = -displacement
    before = torch.inf
    for _ in range(_FIXED_POINTS):
        error = warp(displacement, back) + back
        largest = float(error.abs().max())
        if largest < _TOLERANCE or largest > _CONTRACTION * before:
            break
        back, before = back - error, largest
    back = _by_newton(displacement, back)
    return back, _residual(displacement, back, axes)


def _by_newton(u: Tensor, back: Tensor) -> Tensor:
    """Goes on with the points that are not there yet."""
    error = warp(u, back) + back
    open_ = (error.norm(dim=1) > _TOLERANCE).flatten()
    if not open_.any():
        return back
    places = open_.nonzero()[:, 0]
    voxels = torch.stack(torch.unravel_index(places, u.shape[2:])).to(u.dtype)  # (D, K)
    field = u[0]
    v = back[0].flatten(1)[:, places]
    value, jacobian = _sampled(field, voxels + v)
    error = value + v
    for _ in range(_NEWTON_STEPS):
        length = error.norm(dim=0)
        if not (length > _TOLERANCE).any():
            break
        step = -torch.linalg.solve(jacobian, error.T.unsqueeze(2))[..., 0].T
        v, error, jacobian = _shortened(field, voxels, v, step, error, jacobian)
    found = back.clone()
    found[0].flatten(1)[:, places] = v
    return found


def _shortened(field, voxels, v, step, error, jacobian):
    """Each point's step, halved until its error falls; where it never does the point stays."""
    length = error.norm(dim=0)
    share = torch.ones_like(length)
    for _ in range(_HALVINGS):
        trial = v + share * step
        value, bend = _sampled(field, voxels + trial)
        found = value + trial
        worse = ~(found.norm(dim=0) < length)
        if not worse.any():
            break
        share = torch.where(worse, share / 2, share)
    kept = worse.expand_as(v)
    return (
        torch.where(kept, v, trial),
        torch.where(kept, error, found),
        torch.where(worse[:, None, None], jacobian, bend),
    )


def _sampled(field: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """u(q), (D, K), and the Jacobian matrix of q + u(q), (K, D, D), of points (D, K) in voxels.

    Linear between voxels, the border's value beyond them, where it does not change.
    """
    size = torch.tensor(field.shape[1:], device=field.device)[:, None]
    ends = (size - 1).to(points.dtype)
    clamped = torch.minimum(points.clamp(min=0), ends)
    inside = (clamped == points).to(points.dtype)
    low = torch.minimum(clamped.floor(), (ends - 1).clamp(min=0))
    share = clamped - low
    low = low.long()
    dimensions = len(field)
    value = torch.zeros_like(points)
    slopes = points.new_zeros(points.shape[1], dimensions, dimensions)
    for corner in product((0, 1), repeat=dimensions):
        up = torch.tensor(corner, device=field.device)[:, None]
        at = torch.minimum(low + up, size - 1)
        weights = torch.where(up > 0, share, 1 - share)
        values = field[(slice(None), *at)]
        value += weights.prod(0) * values
        for k in range(dimensions):
            others = torch.cat([weights[:k], weights[k + 1 :]]).prod(0)
            sign = 1 if corner[k] else -1
            slopes[:, :, k] += (sign * others * inside[k] * values).T
    return value, slopes + torch.eye(dimensions, dtype=points.dtype, device=field.device)


def _residual(u: Tensor, back: Tensor, axes: np.ndarray) -> Residual:
    lengths = torch.as_tensor(axes, dtype=u.dtype, device=u.device)
    dimensions = u.shape[1]

    def largest(v: Tensor, shift: float) -> tuple[float, float]:
        """Of positions p + shift: the largest error, mm, and the share that is not counted."""
        matrix = torch.eye(dimensions, dimensions + 1, dtype=torch.float64, device=u.device)
        matrix[:, -1] = shift
        error = affine_warp(u, matrix[None], v) + v
        inside = torch.ones_like(v[:, 0], dtype=torch.bool)
        for k, n in enumerate(u.shape[2:]):
            along = torch.arange(v.shape[2 + k], dtype=u.dtype, device=u.device)
            along = along.reshape(-1, *[1] * (dimensions - 1 - k)) + shift + v[:, k]
            inside &= (along >= -_TOLERANCE) & (along <= n - 1 + _TOLERANCE)
        apart = torch.einsum("wk,nk...->nw...", lengths, error).norm(dim=1)[inside]
        share = 1 - inside.to(torch.float64).mean()
        return float(apart.max()) if apart.numel() else 0.0, float(share)

    at_voxels, outside = largest(back, 0.0)
    if min(back.shape[2:]) < 2:  # no cell
        return Residual(at_voxels, at_voxels, outside)
    pooled = torch.nn.functional.avg_pool2d if dimensions == 2 else torch.nn.functional.avg_pool3d
    return Residual(at_voxels, largest(pooled(back, 2, 1), 0.5)[0], outside)
