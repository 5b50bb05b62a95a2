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

_FIXED_POINTS, _AT_LEAST, _NEWTON_STEPS, _HALVINGS = 40, 10, 40, 10
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}  # voxels
_REACH = 0.5  # voxels beyond the outer ones that are of the grid
_GAIN = 0.95  # a fixed point that leaves more points open than that is left to Newton


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
    before = back.numel()
    for iteration in range(_FIXED_POINTS):
        error = warp(displacement, back).add_(back)
        still = int(_open(error).sum())
        if not still or (iteration > _AT_LEAST and still > _GAIN * before):
            break
        back, before = back.sub_(error), still
    _finish(displacement, back)
    return back, _residual(displacement, back, axes)


def _open(error: Tensor) -> Tensor:
    """Where an error (N, D, ...) is more than rounding."""
    return (error * error).sum(1) > _TOLERANCE[error.dtype] ** 2


def _finish(u: Tensor, back: Tensor) -> None:
    """Goes on with the points that are not there yet, and with those that left the grid, in place.

    Beyond the grid, where the border is repeated, there may be an answer too, which is none.
    """
    flat, field, positions = back[0].flatten(1), u[0], _positions(u)
    places = _open(warp(u, back).add_(back)).flatten().nonzero()[:, 0]
    if len(places):
        flat[:, places] = _by_newton(field, positions[:, places], flat[:, places])[0]
    ends = torch.tensor(u.shape[2:], device=u.device)[:, None] - 1
    ended = positions + flat
    left = ((ended < -_REACH) | (ended > ends + _REACH)).any(0).nonzero()[:, 0]
    for start in (torch.minimum(ended.clamp(min=0), ends), (ends / 2).expand_as(ended)):
        if not len(left):
            break
        voxels = positions[:, left]
        v, error = _by_newton(field, voxels, start[:, left].to(u.dtype) - voxels)
        at = voxels + v
        found = ~_open(error[None])[0] & ((at >= -_REACH) & (at <= ends + _REACH)).all(0)
        flat[:, left[found]] = v[:, found]
        left = left[~found]


def _positions(u: Tensor) -> Tensor:
    """Of all voxels, (D, K); torch.unravel_index would load half a second of torch first."""
    along = (torch.arange(n, dtype=u.dtype, device=u.device) for n in u.shape[2:])
    return torch.stack(torch.meshgrid(*along, indexing="ij")).flatten(1)


def _by_newton(field: Tensor, voxels: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Newton's method for points (D, K) from where they are; displacements and errors."""
    v, error = v.clone(), torch.empty_like(v)
    error[:] = _sampled(field, voxels + v, slopes=False)[0] + v
    active = _open(error[None])[0].nonzero()[:, 0]
    for _ in range(_NEWTON_STEPS):
        if not len(active):
            break
        here, at = v[:, active], voxels[:, active]
        value, jacobian = _sampled(field, at + here)
        found = value + here
        step = torch.linalg.solve_ex(jacobian, -found.T)[0].T
        # Beyond the grid, where the border is repeated, the map may flatten all on a plane.
        step = torch.where(step.isfinite().all(0), step, -found)
        here, found = _shortened(field, at, here, step, found)
        v[:, active], error[:, active] = here, found
        active = active[_open(found[None])[0]]
    return v, error


def _shortened(
    field: Tensor, voxels: Tensor, v: Tensor, step: Tensor, error: Tensor
) -> tuple[Tensor, Tensor]:
    """Each point's step, halved until its error falls, and the errors then; or it stays."""
    length = (error * error).sum(0)
    share = torch.ones_like(length)
    for _ in range(_HALVINGS):
        trial = v + share * step
        found = _sampled(field, voxels + trial, slopes=False)[0] + trial
        worse = ~((found * found).sum(0) < length)
        if not worse.any():
            break
        share = torch.where(worse, share / 2, share)
    return torch.where(worse, v, trial), torch.where(worse, error, found)


def _sampled(field: Tensor, points: Tensor, slopes: bool = True) -> tuple[Tensor, Tensor]:
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
    bend = torch.eye(dimensions, dtype=points.dtype, device=field.device)
    bend = bend.repeat(points.shape[1], 1, 1)
    for corner in product((0, 1), repeat=dimensions):
        up = torch.tensor(corner, device=field.device)[:, None]
        at = torch.minimum(low + up, size - 1)
        weights = torch.where(up > 0, share, 1 - share)
        values = field[(slice(None), *at)]
        value += weights.prod(0) * values
        for k in range(dimensions if slopes else 0):
            others = torch.cat([weights[:k], weights[k + 1 :]]).prod(0)
            sign = 1 if corner[k] else -1
            bend[:, :, k] += (sign * others * inside[k] * values).T
    return value, bend


def _residual(u: Tensor, back: Tensor, axes: np.ndarray) -> Residual:
    lengths = torch.as_tensor(axes, dtype=u.dtype, device=u.device)
    dimensions, tolerance = u.shape[1], _TOLERANCE[u.dtype]

    def largest(v: Tensor, shift: float) -> tuple[float, float]:
        """Of positions p + shift: the largest error, mm, and the share that is not counted."""
        matrix = torch.eye(dimensions, dimensions + 1, dtype=torch.float64, device=u.device)
        matrix[:, -1] = shift
        error = affine_warp(u, matrix[None], v) + v
        inside = torch.ones_like(v[:, 0], dtype=torch.bool)
        for k, n in enumerate(u.shape[2:]):
            along = torch.arange(v.shape[2 + k], dtype=u.dtype, device=u.device)
            along = along.reshape(-1, *[1] * (dimensions - 1 - k)) + shift + v[:, k]
            inside &= (along >= -tolerance) & (along <= n - 1 + tolerance)
        apart = torch.einsum("wk,nk...->nw...", lengths, error).square_().sum(1)
        share = 1 - float(inside.to(torch.float64).mean())
        return float(apart.mul_(inside).max().sqrt()), share

    at_voxels, outside = largest(back, 0.0)
    if min(back.shape[2:]) < 2:  # no cell
        return Residual(at_voxels, at_voxels, outside)
    pooled = torch.nn.functional.avg_pool2d if dimensions == 2 else torch.nn.functional.avg_pool3d
    return Residual(at_voxels, largest(pooled(back, 2, 1), 0.5)[0], outside)
