"""The nearest displacement that passes its certificate: what folds moves, and what is beside it.

Every corner's determinant J is quadratic in the displacement of three voxels. The projection onto
{J >= target at all corners} goes corner by corner along the gradient of J, with a multiplier each
that remembers how far it has pushed, so that a push that others made needless is taken back
(Hildreth's method with the constraints linearised anew at every visit). Corners whose voxels differ
are treated at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from diffreg.fields.certificate import (
    FoldCertificate,
    _one_field,
    border,
    fold_certificate,
)
from diffreg.fields.polygon import crossing_edges
from diffreg.fields.safe_scale import largest_safe_scale
from diffreg.ops import jacobian_determinant
from diffreg.ops._checks import check_displacement, check_flat

_SWEEPS = 400  # of one attempt, which ends where _PATIENCE of them close less than half the gap
_PATIENCE = 40
_ATTEMPTS = 12  # each from a field that is smoother where it folds
# What is aimed at lies above the threshold, so that rounding to float32 does not undo it.
_MARGIN = 1e-3


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
    border's image crosses itself, the field is first made smaller about there. Where the local
    repair does not get there in some attempts, the whole field is scaled towards its mean until it
    passes, which moves every voxel; `moved_voxels` tells.

    Args:
        displacement: (1, D, *S), voxels, any floating dtype. D = 2, two voxels an axis at least.
        threshold: what every determinant must exceed, in [0, 1).

    Returns:
        The repaired field with its certificate, how many voxels moved and how far.

    Raises:
        TypeError, ValueError: as `fold_certificate`, or a threshold out of range.

    Source:
        Hildreth 1957, with linearised constraints; the form is ours.

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
    check_displacement(displacement)
    check_flat("displacement", displacement, "the repair")
    before = fold_certificate(displacement, threshold)
    if before.passes:
        return Repair(displacement, 0, 0.0, 0.0, before, before)
    original = _one_field(displacement).double()
    spacing = torch.finfo(displacement.dtype).eps * float(original.abs().max())
    target = threshold + min(max(_MARGIN, 8 * spacing), 0.5) * (1 - threshold)
    start = original.numpy()[0].copy()
    for attempt in range(_ATTEMPTS):
        u = _projected(start, target)
        fixed, certificate = _rounded(u, displacement, threshold)
        if certificate.passes:
            break
        if certificate.folded_cells:
            # What is handed back folds, if only by its rounding.
            stored = fixed.to("cpu", torch.float64)[0].numpy()
            start = _smoothed(u, stored, target, reach=min(2 << attempt, 16))
        else:
            start = _shrunk(u, reach=2 + attempt)
    if not certificate.passes:
        fixed, certificate = _scaled(original.numpy()[0], displacement, target, threshold)
    moves = torch.hypot(*(fixed.to("cpu", torch.float64) - original)[0])
    moved = moves[moves > 0]
    return Repair(
        fixed, moved.numel(), float(moved.max()), float(moved.mean()), before, certificate
    )


def _rounded(
    u: np.ndarray, like: torch.Tensor, threshold: float
) -> tuple[torch.Tensor, FoldCertificate]:
    """The field as it is handed back: what is certified are these very numbers."""
    found = torch.from_numpy(u)[None].to(like.device, like.dtype)
    return found, fold_certificate(found, threshold)


def _scaled(
    u: np.ndarray, like: torch.Tensor, target: float, threshold: float
) -> tuple[torch.Tensor, FoldCertificate]:
    """The field's mean, a shift, and as much of the rest as passes; the shift alone passes."""
    shift = u.mean((1, 2), keepdims=True)
    passing = _rounded(np.broadcast_to(shift, u.shape).copy(), like, threshold)
    if not passing[1].passes:
        raise ValueError(f"threshold must leave room for rounding, got {threshold}")
    low, high = 0.0, largest_safe_scale(torch.from_numpy(u - shift)[None], target, limit=1.0)
    for _ in range(20):
        middle = (low + high) / 2
        tried = _rounded(shift + middle * (u - shift), like, threshold)
        if tried[1].passes:
            low, passing = middle, tried
        else:
            high = middle
    return passing


class _Corner(NamedTuple):
    """One corner of some cells: flat indices of its voxel and of the neighbours along both axes.

    J = e x f with e, f the edges that meet there; `sign` +1 where the voxel is the edge's end. A
    vector is a complex number, its first component the real part: half the calls on short arrays.
    """

    voxel: np.ndarray
    along_0: np.ndarray
    along_1: np.ndarray
    sign_0: int
    sign_1: int

    def values(self, u: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The displacements (voxels,) of the corner's voxel and of the two neighbours."""
        return u[self.voxel], u[self.along_0], u[self.along_1]

    def edges(
        self, here: np.ndarray, there_0: np.ndarray, there_1: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """e and f."""
        return self.sign_0 * (here - there_0) + 1, self.sign_1 * (here - there_1) + 1j


def _corners(i: np.ndarray, j: np.ndarray, width: int) -> list[_Corner]:
    """The four corners of cells (i, j)."""
    return [
        _Corner(
            (i + a) * width + j + b,
            (i + 1 - a) * width + j + b,
            (i + a) * width + j + 1 - b,
            2 * a - 1,
            2 * b - 1,
        )
        for a in (0, 1)
        for b in (0, 1)
    ]


def _smallest(u: np.ndarray) -> np.ndarray:
    """Smallest corner determinant of every cell of (2, H, W), (H - 1, W - 1)."""
    return jacobian_determinant(torch.from_numpy(u)[None], reduce="min")[0].numpy()


def _smallest_of(u: np.ndarray, i: np.ndarray, j: np.ndarray, width: int) -> np.ndarray:
    """The same of cells (i, j) alone; u is complex (voxels,)."""
    found = []
    for corner in _corners(i, j, width):
        e, f = corner.edges(*corner.values(u))
        found.append((e.conj() * f).imag)
    return np.min(found, axis=0)


def _complex(u: np.ndarray) -> np.ndarray:
    """(2, H, W) as (H * W,)."""
    return (u[0] + 1j * u[1]).ravel()


def _projected(start: np.ndarray, target: float) -> np.ndarray:
    """The field (2, H, W) near `start` whose determinants reach the target, as far as it gets."""
    height, width = start.shape[1:]
    u = _complex(start)
    groups: list[tuple[_Corner, np.ndarray]] = []
    active = np.zeros((height - 1, width - 1), bool)
    surrounded = active  # with all their neighbours
    touched = np.nonzero(active)  # all that a push can change
    smallest = _smallest(start)
    gap = np.inf
    for sweep in range(_SWEEPS):
        if sweep % 4 == 0:
            smallest[touched] = _smallest_of(u, touched[0], touched[1], width)
            low = smallest < target
            if not low.any():
                break
            if sweep % _PATIENCE == 0:
                if target - smallest.min() > gap / 2:
                    break
                gap = target - smallest.min()
            if (low & ~surrounded).any():
                multipliers = _kept(groups, len(u))
                active = active | _dilated(low, 1)
                groups = _grouped(active, multipliers, width)
                surrounded = ~_dilated(~active, 1)
                touched = np.nonzero(_dilated(active, 1))
        for corner, multiplier in groups:
            _push(u, corner, multiplier, target)
    return np.stack([u.real, u.imag]).reshape(2, height, width)


def _push(u: np.ndarray, corner: _Corner, multiplier: np.ndarray, target: float) -> None:
    """One visit to corners that share no voxel: u and the multipliers change in place."""
    here, there_0, there_1 = corner.values(u)
    e, f = corner.edges(here, there_0, there_1)
    product = e.conj() * f  # its imaginary part is J
    to_e, to_f = (-1j * corner.sign_0) * f, (1j * corner.sign_1) * e
    both = to_e + to_f
    # |both|^2 + |to_e|^2 + |to_f|^2
    length = 2 * (_square(e) + _square(f) - corner.sign_0 * corner.sign_1 * product.real)
    step = (target * (1 + 1e-6) - product.imag) / np.maximum(length, 1e-2)
    step = np.maximum(step, -multiplier)
    multiplier += step
    u[corner.voxel] = here + step * both
    u[corner.along_0] = there_0 - step * to_e
    u[corner.along_1] = there_1 - step * to_f


def _square(z: np.ndarray) -> np.ndarray:
    return z.real**2 + z.imag**2


def _grouped(
    active: np.ndarray, multipliers: list[np.ndarray] | None, width: int
) -> list[tuple[_Corner, np.ndarray]]:
    """Corners of the active cells in 16 groups without common voxels, with their multipliers."""
    groups = []
    for parity in range(4):
        i, j = np.nonzero(active)
        chosen = (i % 2 == parity // 2) & (j % 2 == parity % 2)
        i, j = i[chosen], j[chosen]
        cells = i * width + j
        for number, corner in enumerate(_corners(i, j, width)):
            kept = multipliers[number][cells] if multipliers else np.zeros(len(cells))
            groups.append((corner, kept))
    return groups


def _kept(groups: list[tuple[_Corner, np.ndarray]], voxels: int) -> list[np.ndarray] | None:
    """The multipliers of all cells, one array a corner, at the cells' first voxels."""
    if not groups:
        return None
    found = [np.zeros(voxels) for _ in range(4)]
    for k, (corner, multiplier) in enumerate(groups):
        first = np.minimum(np.minimum(corner.voxel, corner.along_0), corner.along_1)
        # The corner at the cell's last voxel does not touch its first one.
        if corner.sign_0 == corner.sign_1 == 1:
            first = corner.along_0 + corner.along_1 - corner.voxel
        found[k % 4][first] = multiplier
    return found


def _dilated(cells: np.ndarray, reach: int) -> np.ndarray:
    found = cells.copy()
    for _ in range(reach):
        padded = np.pad(found, 1)
        for axis in (0, 1):
            padded = padded | np.roll(padded, 1, axis) | np.roll(padded, -1, axis)
        found = padded[1:-1, 1:-1]
    return found


def _shrunk(u: np.ndarray, reach: int) -> np.ndarray:
    """The field nearer to its mean, a shift, where the border's image crosses itself and about."""
    ring = border(torch.from_numpy(u))
    edges = crossing_edges(*ring)
    voxels = np.zeros(u.shape[1:], bool)
    for i, j in ring[0][np.concatenate([edges, (edges + 1) % len(ring[0])])].astype(int):
        voxels[i, j] = True
    part = sum(_dilated(voxels, k).astype(np.float64) for k in range(reach)) / reach
    shift = u.mean((1, 2), keepdims=True)
    return u - 0.3 * part * (u - shift)


def _smoothed(u: np.ndarray, stored: np.ndarray, target: float, reach: int) -> np.ndarray:
    """The field with its values averaged `reach` times round the cells that fold as stored."""
    cells = _dilated(_smallest(stored) < target, reach)
    voxels = np.zeros(u.shape[1:], bool)
    for a in (0, 1):
        for b in (0, 1):
            voxels[a : a + cells.shape[0], b : b + cells.shape[1]] |= cells
    found = u.copy()
    if not voxels.any():
        return found
    # The window that holds them, with their neighbours: what folds is mostly a small part.
    lines = [np.flatnonzero(voxels.any(axis)) for axis in (1, 0)]
    rows, columns = (slice(max(line[0] - 1, 0), line[-1] + 2) for line in lines)
    voxels, part = voxels[rows, columns], found[:, rows, columns]
    for _ in range(reach**2):
        p = np.pad(part, ((0, 0), (1, 1), (1, 1)), mode="edge")
        mean = (p[:, 2:, 1:-1] + p[:, :-2, 1:-1] + p[:, 1:-1, 2:] + p[:, 1:-1, :-2]) / 4
        part = np.where(voxels, (part + mean) / 2, part)
    found[:, rows, columns] = part
    return found
