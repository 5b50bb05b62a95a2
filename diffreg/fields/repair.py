"""The nearest displacement that passes its certificate: what folds moves, and what is beside it.

`projection` pushes the cells that fold until they do not. What it cannot reach is made smooth there
first, and what of the border is not mapped one to one smaller.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from diffreg.fields.certificate import (
    FoldCertificate,
    _one_field,
    border,
    failing_cells,
    fold_certificate,
)
from diffreg.fields.lattice import Lattice
from diffreg.fields.polygon import crossing_edges
from diffreg.fields.projection import Projection
from diffreg.fields.safe_scale import largest_safe_scale
from diffreg.fields.trilinear import collar_folds, judged
from diffreg.ops import jacobian_determinant
from diffreg.ops._flat_axis import flat_axis

_ATTEMPTS = 16
_FARTHEST = 4  # 2 to the power of this: cells round one that failed that are made smooth at most
_MARGIN = 1e-3
_FAR = 2.0**40  # voxels: beyond, determinants of differences lose all their digits
# Of a volume's collar, in parts of the border's largest displacement; the certificate tries it.
_WIDTH = 16


class Repair(NamedTuple):
    """A displacement that passes, and what that took."""

    displacement: torch.Tensor  # (1, D, *S), in the dtype and on the device of what was given
    moved_voxels: int
    largest_move: float  # voxels
    mean_move: float  # voxels, of those that moved
    before: FoldCertificate
    certificate: FoldCertificate

    def __str__(self) -> str:
        if not self.moved_voxels:
            return f"nothing was repaired; {self.certificate}"
        return (
            f"{self.moved_voxels} voxels moved by at most {self.largest_move:.3g} voxels, "
            f"{self.mean_move:.3g} on average; {self.certificate}"
        )


def make_diffeomorphic(displacement: torch.Tensor, threshold: float = 0.0) -> Repair:
    """Repairs a displacement where it folds.

    The result always passes its certificate. A field that passes comes back to the bit. Where the
    image of an image's border crosses itself, the field is made smaller about there; the border of
    a volume is repaired with a collar around it, which must not fold either. Where the local repair
    does not get there in some attempts, the whole field is scaled towards its mean until it passes,
    which moves every voxel; `moved_voxels` tells. A cell that passes is not moved for itself.

    It works on the CPU, in double, and is not differentiable.

    Args:
        displacement: (1, D, *S), voxels, any floating dtype, on any device. D = 2 or 3, as
            `fold_certificate`; of a volume of one plane nothing moves across it.
        threshold: what every determinant must exceed, in [0, 1).

    Returns:
        The repaired field with its certificate, how many voxels moved and how far.

    Raises:
        TypeError, ValueError: as `fold_certificate`, or a threshold out of range.

    Source:
        Hildreth 1957, with linearised constraints; the form is ours. Of volumes the constraints are
        the Bernstein coefficients of Johnen, Remacle and Geuzaine 2013.

    Example:
        >>> import torch
        >>> from diffreg.fields import make_diffeomorphic
        >>> u = torch.zeros(1, 2, 8, 8)
        >>> u[0, 0, 4, 4] = 1.5  # beyond its neighbour
        >>> make_diffeomorphic(u).certificate.verdict
        'homeomorphism'
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in [0, 1), got {threshold}")
    before = fold_certificate(displacement, threshold)
    if before.passes:
        return Repair(displacement, 0, 0.0, 0.0, before, before)
    target = threshold + _margin(displacement) * (1 - threshold)
    u = _values(displacement)
    local = _unfolded if _spread(u) < _FAR else _scaled
    fixed, certificate = local(displacement, threshold, target)
    moves = _moves(fixed, u)
    if not certificate.passes or (moves**2).sum() > _to_a_shift(u):
        fixed, certificate = _scaled(displacement, threshold, target)
        moves = _moves(fixed, u)
    moved = moves[moves > 0]
    return Repair(fixed, moved.size, float(moved.max()), float(moved.mean()), before, certificate)


def _values(displacement: torch.Tensor) -> np.ndarray:
    """(D, *S) in double; of a volume of one plane the image."""
    return _one_field(displacement)[0].to("cpu", torch.float64).numpy()


def _moves(found: torch.Tensor, u: np.ndarray) -> np.ndarray:
    """How far each voxel of u (D, *S) moved, *S."""
    return (torch.from_numpy(_values(found) - u) ** 2).sum(0).sqrt().numpy()


def _spread(u: np.ndarray) -> float:
    """How far apart displacements are at most in a component, voxels."""
    return float(np.ptp(u.reshape(len(u), -1), axis=1).max())


def _to_a_shift(u: np.ndarray) -> float:
    """The sum of the squared moves from u (D, *S) to its mean, which passes."""
    return float(torch.from_numpy(u).flatten(1).var(1, correction=0).sum() * u[0].size)


def _margin(displacement: torch.Tensor) -> float:
    """What is aimed at above the threshold: rounding to the dtype shall not undo it."""
    spacing = torch.finfo(displacement.dtype).eps * float(displacement.detach().abs().max())
    return min(max(_MARGIN, 8 * spacing), 0.5)


def _unfolded(
    displacement: torch.Tensor, threshold: float, target: float
) -> tuple[torch.Tensor, FoldCertificate]:
    """What some attempts come to, each from a field that is smoother where the last one failed."""
    ground = _Ground.of(_values(displacement))
    start = ground.laid(_values(displacement))
    projection = Projection(start, ground.lattice, _failing(start, threshold), threshold, target)
    smoothed = np.zeros(projection.u.shape[1], np.int8)  # how often, by cell
    shrunk = 0
    for _ in range(_ATTEMPTS):
        low = projection.run()
        fixed = _stored(ground.inner(projection.u), displacement)
        stored = ground.laid(_values(fixed))
        low = np.union1d(low, projection.lacking(stored))
        if not len(low):
            certificate = fold_certificate(fixed, threshold)
            if certificate.passes:
                return fixed, certificate
            if certificate.folded_cells:
                failing = _failing(stored, threshold)
                low = np.setdiff1d(failing, projection.require(failing))
            else:
                _shrink(projection, ground, reach=2 + shrunk)
                shrunk += 1
        _smooth(projection, low, smoothed)
    return fixed, fold_certificate(fixed, threshold)


class _Ground(NamedTuple):
    """Where the field is repaired: an image as it is, a volume with a collar (see `trilinear`).

    Over the collar, one cell wide, the displacement goes to 0; its cells are `width` voxels long,
    which is a displacement too. Where they do not fold the border is mapped one to one.
    """

    collar: int  # cells, 0 or 1
    lattice: Lattice

    @classmethod
    def of(cls, u: np.ndarray) -> _Ground:
        """That for u (D, *S)."""
        if len(u) == 2:
            return cls(0, Lattice(u.shape[1:]))
        ends = [np.abs(u.take(end, axis)).max() for axis in (1, 2, 3) for end in (0, -1)]
        width = _WIDTH * 2.0 ** np.ceil(np.log2(max(1.0, *ends)))
        return cls(1, Lattice(tuple(size + 2 for size in u.shape[1:]), width))

    def laid(self, u: np.ndarray) -> np.ndarray:
        """u (D, *S) with the collar's outer voxels."""
        found = np.pad(u, [(0, 0), *[(self.collar, self.collar)] * len(u)])
        if self.collar:
            for axis, part in enumerate(found):
                layers = np.moveaxis(part, axis, 0)
                layers[0] -= self.lattice.width - 1
                layers[-1] += self.lattice.width - 1
        return found

    def inner(self, u: np.ndarray) -> np.ndarray:
        """(D, *S), given (D, voxels) with the collar."""
        inner = slice(self.collar, -self.collar or None)
        return u.reshape(len(u), *self.lattice.shape)[(slice(None), *[inner] * len(u))]

    def numbered(self, places: tuple[np.ndarray, ...]) -> np.ndarray:
        """Voxels of the field as they are numbered with the collar."""
        return np.ravel_multi_index(tuple(p + self.collar for p in places), self.lattice.shape)


def _failing(u: np.ndarray, threshold: float) -> np.ndarray:
    """The cells of u (D, *S) that do not pass, as a `Lattice` numbers them."""
    field = torch.from_numpy(u)[None]
    if len(u) == 3:
        fails = judged(field, threshold).folded
    else:
        fails = failing_cells(field, jacobian_determinant(field)[0], threshold)
    return np.ravel_multi_index(np.nonzero(fails.numpy()), u.shape[1:])


def _stored(u: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    """The field as it is handed back: what is certified are these very numbers."""
    found = torch.from_numpy(np.ascontiguousarray(u)).to(like.device, like.dtype)
    axis = flat_axis(like)
    if axis is None:
        return found.reshape(like.shape)
    whole = like.detach().clone()
    whole[0, [k for k in range(3) if k != axis]] = found.reshape(2, *like.shape[2:])
    return whole


def _scaled(
    like: torch.Tensor, threshold: float, target: float
) -> tuple[torch.Tensor, FoldCertificate]:
    """The field's mean, a shift, and as much of the rest as passes; the shift alone passes."""

    def judged_at(scale: float) -> tuple[torch.Tensor, FoldCertificate]:
        found = _stored(shift + scale * (u - shift), like)
        return found, fold_certificate(found, threshold)

    u = _values(like)
    shift = u.mean(tuple(range(1, u.ndim)), keepdims=True)
    passing = judged_at(0.0)
    if not passing[1].passes:  # a shift beyond all measure, of a volume
        shift = np.zeros_like(shift)
        passing = judged_at(0.0)
    if not passing[1].passes:
        raise ValueError(f"threshold must leave room for rounding, got {threshold}")
    low, high = 0.0, largest_safe_scale(torch.from_numpy(u - shift)[None], target, limit=1.0)
    for _ in range(20):
        if high - low < 0.01 * high:
            break
        middle = (low + high) / 2
        tried = judged_at(middle)
        if tried[1].passes:
            low, passing = middle, tried
        else:
            high = middle
    return passing


def _shrink(projection: Projection, ground: _Ground, reach: int) -> None:
    """Brings the field nearer to its mean, a shift, where its border is not mapped one to one."""
    lattice, u, inner = ground.lattice, projection.u, ground.inner(projection.u)
    shift = inner.mean(tuple(range(1, inner.ndim)))[:, None]
    at = ground.numbered(_crossing(inner))
    projection.restart(lattice.around(at, reach))
    for k in range(reach):
        voxels = np.unique(lattice.vertices(lattice.around(at, k)))
        voxels = voxels[projection.free[voxels]]
        u[:, voxels] -= 0.3 / reach * (u[:, voxels] - shift)


def _crossing(u: np.ndarray) -> tuple[np.ndarray, ...]:
    """Places of the border, D (n,), where it is not mapped one to one; u: (D, *S)."""
    if len(u) == 3:
        at = collar_folds(torch.from_numpy(np.ascontiguousarray(u))[None]).numpy()
        return np.unravel_index(at, u.shape[1:])
    ring = border(torch.from_numpy(u))
    edges = crossing_edges(*ring)
    return tuple(ring[0][np.concatenate([edges, (edges + 1) % len(ring[0])])].astype(int).T)


def _smooth(projection: Projection, cells: np.ndarray, before: np.ndarray) -> None:
    """Averages the field round some cells, farther about where that was done before."""
    u, lattice = projection.u, projection.lattice
    times = before[cells]
    for time in np.unique(times):
        reach = 1 << min(int(time), _FARTHEST)
        near = lattice.around(cells[times == time], reach)
        before[near] += 1
        projection.restart(near)
        voxels = np.unique(lattice.vertices(near))
        voxels = voxels[projection.free[voxels]]
        beside = lattice.neighbours(voxels)
        beside = np.where(projection.free[beside], beside, voxels)
        for _ in range(reach**2):
            u[:, voxels] = (u[:, voxels] + u[:, beside].mean(1)) / 2
