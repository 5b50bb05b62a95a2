"""Steps that fold nothing: where one would, it is shortened about the cells that it would fold.

A cell counts as unfolded while the lower bound of its determinants (the smallest of its Bernstein
coefficients) keeps a distance from 0, and a step may take a part of what it has above 0, as the
steps of interior-point methods do. A step that fails in a few cells is multiplied by a factor that
rises from 0 at their vertices to 1 some voxels away.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from diffreg.ops import jacobian_determinant

# The distance from 0: a smaller determinant is within rounding of a fold.
SMALLEST_DETERMINANT = 1e-3
KEPT = 0.2  # of a cell's bound, what a step must leave
REACH = 3  # voxels over which a step is shortened about a cell, one more with every attempt
# What a start that folds is repaired to: at the distance that steps keep from 0 none would be left.
START_DETERMINANT = 0.2
ATTEMPTS = 6
MOST = 1 / 50  # of all cells: where a step fails in more, all of it is too long


def bounds_of(displacement: Tensor) -> Tensor:
    """The lower bound of the determinants of every cell, (N, *cells).

    It is rounded, and so screens but does not certify.

    Args:
        displacement: (N, D, *S).

    Example:
        >>> import torch
        >>> from diffreg.registration.unfolded import bounds_of
        >>> bounds_of(torch.zeros(1, 2, 2, 3))
        tensor([[[1., 1.]]])
    """
    if displacement.numel() == 0 or max(displacement.shape[2:]) == 1:
        return displacement.new_ones(0)  # no cell
    return jacobian_determinant(displacement.detach(), "bound")


def is_unfolded(displacement: Tensor) -> bool:
    """Whether every determinant is positive, by a margin; not so where one is NaN."""
    bounds = bounds_of(displacement)
    return bounds.numel() == 0 or bounds.min().item() > SMALLEST_DETERMINANT


def shortened_(trial: Tensor, point: Tensor, bounds: Tensor) -> tuple[Tensor | None, bool]:
    """Shortens the step from a point to a trial, in place, where it would fold.

    Args:
        trial: displacement (1, D, *S), which is written to.
        point: displacement (1, D, *S), unfolded.
        bounds: (1, *cells) of the point.

    Returns:
        The trial's bounds, None where it still fails; and whether it was changed.

    Example:
        >>> import torch
        >>> from diffreg.registration.unfolded import bounds_of, shortened_
        >>> point = torch.zeros(1, 2, 9, 9)
        >>> trial = point.clone()
        >>> trial[0, 0, 4, 4] = 1.5  # beyond its neighbour
        >>> bounds, changed = shortened_(trial, point, bounds_of(point))
        >>> bool(bounds.min() > 0), changed
        (True, True)
    """
    least = (KEPT * bounds).clamp(min=SMALLEST_DETERMINANT)
    for attempt in range(ATTEMPTS + 1):
        found = bounds_of(trial)
        failing = (found >= least).logical_not_()  # NaN too
        count = int(failing.count_nonzero())
        if not count:
            return found, attempt > 0
        if attempt == ATTEMPTS or count > max(8, MOST * failing.numel()):
            break
        _shorten_about(failing[0], trial, point, REACH + attempt)
    return None, False


def _shorten_about(failing: Tensor, trial: Tensor, point: Tensor, reach: int) -> None:
    """Multiplies the step by a factor that is 0 at the vertices of the failing cells (*cells)."""
    factors = _factors(failing, trial, reach).flatten()
    places = (factors < 1).nonzero()[:, 0]
    whole, from_point = (u.view(u.shape[1], -1) for u in (trial, point))
    start, end = (u.index_select(1, places) for u in (from_point, whole))
    whole[:, places] = start + factors[places] * (end - start)


def _factors(failing: Tensor, like: Tensor, reach: int) -> Tensor:
    """Of every voxel (*S): by the nearest failing cell (*cells), of a displacement (1, D, *S)."""
    steps, apart = _neighbours(failing.ndim, reach, failing.device)
    size = [count + 2 * reach for count in like.shape[2:]]  # no neighbour is beyond that border
    strides = steps.new_tensor([math.prod(size[k + 1 :]) for k in range(len(size))])
    places = ((failing.nonzero() + reach) * strides).sum(1)[:, None] + (steps * strides).sum(1)
    share = (apart / reach).to(like.dtype)
    shares = (share * share * (3 - 2 * share)).expand_as(places)
    factors = like.new_ones(math.prod(size))
    factors.scatter_reduce_(0, places.flatten(), shares.flatten(), "amin")
    return factors.view(size)[(slice(reach, -reach),) * len(size)]


def _neighbours(dimensions: int, reach: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Voxels round a cell's first vertex, (K, D), and how far each is from the cell, (K,)."""
    along = torch.arange(-reach, reach + 2, device=device)
    steps = torch.cartesian_prod(*[along] * dimensions).reshape(-1, dimensions)
    beyond = torch.maximum(-steps, steps - 1).clamp(min=0)
    apart = beyond.to(torch.float32).norm(dim=1)
    return steps[apart < reach], apart[apart < reach]
