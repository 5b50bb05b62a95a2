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
_AT_ONCE = 2**14  # points: what is computed with them stays far below a field
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
            words += f"; {100 * self.outside:.3g} % of them come from beyond the grid"
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
    squares = error[:, 0].square()
    for component in error.unbind(1)[1:]:
        squares.addcmul_(component, component)
    return squares > _TOLERANCE[error.dtype] ** 2


def _finish(u: Tensor, back: Tensor) -> None:
    """Goes on with the points that are not there yet, and with those that left the grid, in place.

    Beyond the grid, where the border is repeated, there may be an answer too, which is none.
    """
    flat, field, size = back[0].flatten(1), u[0], u.shape[2:]
    still = _open(warp(u, back).add_(back)).flatten().nonzero()[:, 0]
    for places in still.split(_AT_ONCE):
        flat[:, places] = _by_newton(field, _voxels(places, u), flat[:, places])[0]
    beyond = torch.zeros(size, dtype=torch.bool, device=u.device)
    for axis, ended in enumerate(back[0]):
        along = torch.arange(size[axis], dtype=u.dtype, device=u.device)
        ended = ended + along.reshape(-1, *[1] * (len(size) - 1 - axis))
        beyond |= (ended < -_REACH) | (ended > size[axis] - 1 + _REACH)
    ends = torch.tensor(size, dtype=u.dtype, device=u.device)[:, None] - 1
    for places in beyond.flatten().nonzero()[:, 0].split(_AT_ONCE):
        voxels = _voxels(places, u)
        ended = voxels + flat[:, places]
        # Again from where the grid ends, then from its middle.
        for start in (torch.minimum(ended.clamp(min=0), ends), (ends / 2).expand_as(ended)):
            v, error = _by_newton(field, voxels, start - voxels)
            at = voxels + v
            found = ~_open(error[None])[0] & ((at >= -_REACH) & (at <= ends + _REACH)).all(0)
            flat[:, places[found]] = v[:, found]


def _voxels(places: Tensor, u: Tensor) -> Tensor:
    """Positions (D, K) of voxels by their numbers, without half a second of torch to load."""
    found = []
    for length in reversed(u.shape[2:]):
        found.append(places % length)
        places = places.div(length, rounding_mode="floor")
    return torch.stack(found[::-1]).to(u.dtype)


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
    """Measured some planes at a time: that takes no memory of the fields' size."""
    lengths = torch.as_tensor(axes, dtype=u.dtype, device=u.device)
    dimensions, size = u.shape[1], u.shape[2:]
    pooled = torch.nn.functional.avg_pool2d if dimensions == 2 else torch.nn.functional.avg_pool3d
    has_cells = min(size) > 1
    planes = max(1, _AT_ONCE // max(1, size[1:].numel()))
    at_voxels = between = 0.0
    outside = 0
    for first in range(0, size[0], planes):
        v = back[:, :, first : first + planes]
        largest, missed = _largest(u, v, lengths, first, 0.0)
        at_voxels, outside = max(at_voxels, largest), outside + missed
        cells = back[:, :, first : first + planes + 1]
        if has_cells and cells.shape[2] > 1:
            largest, _ = _largest(u, pooled(cells, 2, 1), lengths, first, 0.5)
            between = max(between, largest)
    return Residual(at_voxels, between if has_cells else at_voxels, outside / size.numel())


def _largest(u: Tensor, v: Tensor, lengths: Tensor, first: int, shift: float) -> tuple[float, int]:
    """Of positions p + shift, from plane `first` on: the largest error, mm, and how many are not
    counted since they come from beyond the grid."""
    dimensions, tolerance = u.shape[1], _TOLERANCE[u.dtype]
    matrix = torch.eye(dimensions, dimensions + 1, dtype=torch.float64, device=u.device)
    matrix[:, -1] = shift
    matrix[0, -1] += first
    error = affine_warp(u, matrix[None], v).add_(v)
    inside = torch.ones_like(v[:, 0], dtype=torch.bool)
    for k, n in enumerate(u.shape[2:]):
        along = torch.arange(v.shape[2 + k], dtype=u.dtype, device=u.device) + matrix[k, -1].item()
        along = along.reshape(-1, *[1] * (dimensions - 1 - k)) + v[:, k]
        inside &= (along >= -tolerance) & (along <= n - 1 + tolerance)
    apart = torch.einsum("wk,nk...->nw...", lengths, error).square_().sum(1)
    missed = inside.numel() - int(inside.count_nonzero())
    return float(apart.mul_(inside).max().sqrt()), missed
