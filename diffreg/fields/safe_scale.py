"""How far a displacement may be scaled before anything folds."""

from __future__ import annotations

import math

import torch

from diffreg.fields.bernstein import (
    CORNERS,
    differences,
    halved,
    magnitude_orders,
    orders,
    rounding,
)
from diffreg.fields.certificate import _ROUNDING, _one_field
from diffreg.fields.trilinear import BLOCK, DEPTH, PARTS, PLANES

# Of a volume: how near the scale comes, relatively; how fine steps towards it are, and how many.
_NEAR, _FINE, _STEPS = 5e-4, 1e-4, 80


def largest_safe_scale(
    displacement: torch.Tensor, threshold: float = 0.0, limit: float = math.inf
) -> float:
    """Supremum of the t up to `limit` such that no s u, s < t, has a determinant of `threshold`.

    Connected to 0: u = -2 x folds as it grows and unfolds again beyond, which does not count. Of a
    volume it is a scale below that, by a thousandth at most where eight halvings of the cells
    suffice, and always a safe one.

    Args:
        displacement: (1, D, *S), voxels, any floating dtype, as `fold_certificate` takes it.
        threshold: in [0, 1).
        limit: largest scale of interest.

    Returns:
        The scale, in double; at least 0, infinite where nothing ever folds and no limit is given
        (of a volume that is not constant then some very large number).

    Raises:
        TypeError, ValueError: as `fold_certificate`, or a threshold or limit out of range.

    Example:
        >>> import torch
        >>> from diffreg.fields import identity_grid, largest_safe_scale
        >>> largest_safe_scale(-2 * identity_grid((8, 8)))
        0.5
    """
    u = _one_field(displacement)
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in [0, 1), got {threshold}")
    if not limit > 0:
        raise ValueError(f"limit must be positive, got {limit}")
    if u.ndim == 5:
        return _of_volume(u, threshold, float(limit))
    return _of_image(u.double(), threshold, float(limit))


def _of_image(u: torch.Tensor, threshold: float, limit: float) -> float:
    """Exact but for rounding."""
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


def _of_volume(u: torch.Tensor, threshold: float, limit: float) -> float:
    """From below, by halving cells until the bound comes near what some corner allows."""
    parts = (u[:, :, z : z + PLANES + 1] for z in range(0, u.shape[2] - 1, PLANES))
    reach = torch.cat([_reach(part.double()) for part in parts])
    # The singular values of I + s M are 1 - s |M| at least: below this nothing folds. The factor is
    # for rounding.
    alone = (1 - 1e-12) * (1 - threshold ** (1 / 3)) / reach
    if not bool((alone < limit).any()):
        return limit
    found = _Scale(u, 1 - threshold, limit, float(alone.min()))
    near = alone.topk(min(BLOCK, len(alone)), largest=False).indices
    found.examine(near)
    cells = (alone < found.reached).nonzero()[:, 0]
    for block in cells[alone[cells].argsort()].split(BLOCK):
        found.examine(block[alone[block] < found.reached])
    return min(found.safe, found.reached)


def _reach(u: torch.Tensor) -> torch.Tensor:
    """Of every cell a bound of the Frobenius norm of u's derivative, (cells,)."""
    total = torch.zeros((), dtype=u.dtype, device=u.device)
    for axis in range(3):
        length = torch.diff(u[0], dim=1 + axis).square().sum(0)
        for other in {0, 1, 2} - {axis}:
            ends = (length.narrow(other, k, length.shape[other] - 1) for k in (0, 1))
            length = torch.maximum(*ends)
        total = total + length
    return total.flatten().sqrt()


class _Scale:
    """The smallest scale at which a cell reaches the threshold, bracketed."""

    def __init__(self, u: torch.Tensor, gap: float, limit: float, step: float) -> None:
        self.u, self.gap, self.step = u, gap, step
        self.reached = limit  # nearly: by what the corners of cells and parts tell
        self.safe = limit  # of the parts that were left alone

    def examine(self, cells: torch.Tensor) -> None:
        """Lowers `reached` and `safe` to what cells (K,), given by number, allow."""
        along = differences(self.u, cells)
        found, magnitude = orders(along), magnitude_orders(along)
        for halvings in range(DEPTH + 1):
            if not len(found):
                return
            error = rounding(1 + halvings)
            safe = self._marched(found, magnitude, error)
            open_ = safe < self.reached * (1 - _NEAR)
            if bool(open_.any()):
                corners = self._marched(found[open_][:, :, CORNERS], magnitude[open_], error)
                self.reached = min(self.reached, float(corners.min()))
                open_ = safe < self.reached * (1 - _NEAR)
            if halvings == DEPTH or int(open_.sum()) > PARTS:
                self.safe = min(self.safe, float(safe.min()))
                return
            self.safe = min(self.safe, float(torch.where(open_, math.inf, safe).min()))
            found = halved(found[open_].reshape(-1, 27)).reshape(-1, 3, 8, 27)
            found = found.transpose(1, 2).reshape(-1, 3, 27)
            magnitude = magnitude[open_].repeat_interleave(8, 0)

    def _marched(self, found: torch.Tensor, magnitude: torch.Tensor, error: float) -> torch.Tensor:
        """Up to where polynomials gap + B s + C s^2 + D s^3 are positive together, or `reached`.

        Steps double as long as the Bernstein coefficients of the next one are positive, else halve.

        Args:
            found: (P, 3, n), B, C and D.
            magnitude: (P, 3), of their terms.
            error: rounding, in parts of that.

        Returns:
            (P,), from below.
        """
        at = torch.zeros(len(found), dtype=found.dtype, device=found.device)
        step = torch.full_like(at, self.reached if self.reached < math.inf else self.step)
        going = torch.arange(len(found), device=found.device)
        for _ in range(_STEPS):
            s, e = at[going, None], (at + step)[going, None]
            b, c, d = found[going].unbind(1)
            least = torch.stack(
                [
                    self.gap + b * (x + y + z) / 3 + c * (x * y + y * z + z * x) / 3 + d * x * y * z
                    for x, y, z in ((s, s, e), (s, e, e), (e, e, e))
                ]
            ).amin((0, 2))
            grown = 1 + (magnitude[going] * torch.cat([e, e**2, e**3], 1)).sum(1)
            passes = least > error * grown
            at[going[passes]] += step[going[passes]]
            step[going] *= torch.where(passes, 2.0, 0.5).to(step)
            going = going[(at[going] < self.reached) & (step[going] > _FINE * at[going])]
            if not len(going):
                break
        return at
