"""Steps that fold nothing: where one would, it is shortened about the cells that it would fold.

A cell counts as unfolded while the lower bound of its determinants (the smallest of its Bernstein
coefficients) keeps a distance from 0, and a step may take a part of what it has above 0, as the
steps of interior-point methods do. A step that fails in a few cells is multiplied by a factor that
rises from 0 at their vertices to 1 some voxels away.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffreg.ops import jacobian_determinant

# The distance from 0: a smaller determinant is within rounding of a fold.
SMALLEST_DETERMINANT = 1e-3
KEPT = 0.2  # of a cell's bound, what a step must leave
REACH = 3  # voxels over which a step is shortened about a cell, one more with every attempt
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
        failing = ~(found >= least)  # NaN too
        count = int(failing.sum())
        if not count:
            return found, attempt > 0
        if attempt == ATTEMPTS or count > max(8, MOST * failing.numel()):
            break
        _shorten_about(failing[0], trial, point, REACH + attempt)
    return None, False


def _shorten_about(failing: Tensor, trial: Tensor, point: Tensor, reach: int) -> None:
    """Multiplies the step by a factor that is 0 at the vertices of the failing cells (*cells)."""
    size = trial.shape[2:]
    steps, apart = _neighbours(failing.ndim, reach, failing.device)
    vertices = failing.nonzero()[:, None] + steps
    upper = torch.tensor(size, device=failing.device)
    inside = ((vertices >= 0) & (vertices < upper)).all(2)
    flat = torch.zeros(vertices.shape[:2], dtype=torch.int64, device=failing.device)
    for axis, count in enumerate(size):
        flat = flat * count + vertices[..., axis]
    share = (apart / reach).to(trial.dtype)
    factors = (share * share * (3 - 2 * share)).expand_as(flat)[inside]
    places, of_place = flat[inside].unique(return_inverse=True)
    factor = trial.new_ones(len(places)).scatter_reduce_(0, of_place, factors, "amin")
    whole, from_point = (u.view(u.shape[1], -1) for u in (trial, point))
    start = from_point[:, places]
    whole[:, places] = start + factor * (whole[:, places] - start)


def _neighbours(dimensions: int, reach: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Voxels round a cell's first vertex, (K, D), and how far each is from the cell, (K,)."""
    along = torch.arange(-reach, reach + 2, device=device)
    steps = torch.cartesian_prod(*[along] * dimensions).reshape(-1, dimensions)
    beyond = torch.maximum(-steps, steps - 1).clamp(min=0)
    apart = beyond.to(torch.float32).norm(dim=1)
    return steps[apart < reach], apart[apart < reach]
