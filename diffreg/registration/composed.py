"""Composed, smoothed steps, as greedy and ANTs take them: how a level may begin.

    d = -g / max |g|            g: gradient of the similarity alone, smoothed by 1.73 voxels
    u <- u o (id + d) + d       smoothed by half a voxel

No energy of u holds it back, so volumes find their way to better minima than by the objective's own
steps from coarse to fine. A step is a voxel of the level long however little there is to gain: what
they came to is kept where the similarity fell. Landmarks count with the similarity. Steps are in
voxels, the smoothing is by the shortest axis's length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from diffreg.ops import warp
from diffreg.registration.descent import ValueAndGradient
from diffreg.registration.smoothing import smoothed
from diffreg.registration.unfolded import is_unfolded

OF_STEP, OF_WHOLE = 3**0.5, 0.5  # standard deviations, voxels; greedy's, and less than its .71
LEAST = 0.05  # of a standard deviation that does anything


def composed(
    similarity: ValueAndGradient,
    u: Tensor,
    count: int,
    spacing: Sequence[float],
    report: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """The displacement after so many steps, or the start where what is to fall did not.

    Args:
        similarity: called with a displacement -> what is to fall, and its gradient; as often as
            there are steps, and once more.
        u: displacement (1, D, *S), voxels, to begin with, without a fold.
        count: steps.
        spacing: lengths of a voxel, of which the shortest axis's is the unit of the smoothing: a
            thick slice is smoothed across less.
        report: called with the steps done, after each.

    Source:
        Steps of a smoothed gradient, smoothed: Avants et al. 2008 (ANTs), Yushkevich et al. 2016
        (greedy); composed: Vercauteren et al. 2009.

    Example:
        >>> import torch
        >>> from diffreg.registration.composed import composed
        >>> total = lambda u: (u.sum(), torch.ones_like(u))
        >>> composed(total, torch.zeros(1, 2, 8, 8), 1, (1, 1))[0, :, 4, 4]
        tensor([-0.7071, -0.7071])
    """
    voxels = [min(spacing) / length for length in spacing]
    start, before = u, None
    for number in range(1, count + 1):
        value, gradient = similarity(u)
        before = value if before is None else before
        gradient = gaussian(gradient, [OF_STEP * part for part in voxels])
        low, high = gradient.aminmax()
        _, exponent = torch.frexp(torch.maximum(-low, high))
        # By a power of two, or squares overflow; made of one number: ldexp takes it voxel by voxel.
        gradient.mul_(torch.ldexp(torch.ones_like(low), -exponent))
        square = gradient.square().sum(1).max().clamp(min=torch.finfo(u.dtype).tiny)
        step = gradient.mul_(-square.rsqrt())
        u = gaussian(warp(u, step, padding="border").add_(step), [OF_WHOLE * v for v in voxels])
        report(number)
    u = smoothed(u)
    kept = before is not None and bool(similarity(u)[0] < before) and is_unfolded(u)
    return u if kept else start


def gaussian(field: Tensor, deviations: Sequence[float]) -> Tensor:
    """By a Gaussian along each axis, the border repeated: sums in one order, unlike convolutions'.

    Args:
        field: (1, D, *S).
        deviations: standard deviation along each axis, voxels.

    Example:
        >>> import torch
        >>> from diffreg.registration.composed import gaussian
        >>> gaussian(torch.eye(3).expand(1, 2, 3, 3), (1, 0))[0, 0, 1]
        tensor([0.3005, 0.3991, 0.3005])
    """
    dimensions = len(deviations)
    for axis, deviation in enumerate(deviations):
        if deviation < LEAST:
            continue
        reach = max(1, round(3 * deviation))
        shares = [math.exp(-(place**2) / (2 * deviation**2)) for place in range(reach + 1)]
        middle, *sides = (share / (2 * sum(shares) - shares[0]) for share in shares)
        border = [0] * (2 * dimensions)
        border[2 * (dimensions - 1 - axis)] = border[2 * (dimensions - 1 - axis) + 1] = reach
        wider, size = F.pad(field, border, mode="replicate"), field.shape[2 + axis]
        field = wider.narrow(2 + axis, reach, size) * middle
        for place, share in enumerate(sides, start=1):
            for first in (reach - place, reach + place):
                field.add_(wider.narrow(2 + axis, first, size), alpha=share)
    return field
