"""From coarse to fine: images averaged over the area of larger voxels.

    coarse(j) = mean of the image over [j f, (j + 1) f)      f the factor of an axis

A voxel counts by the share of it that lies in the coarse one, so that any factor is exact and the
moving image's grid, which may reach further, has its voxels where the fixed image's are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST = 16  # voxels along an axis that shrinks


class Level(NamedTuple):
    """One level of the pyramid, for D axes."""

    size: list[int]  # of the fixed image
    factors: list[float]  # voxels of the whole images along one of this level's
    margin: list[int]  # voxels that the moving image has before the fixed one's first
    extent: list[int]  # of the moving image
    first: list[float]  # where its first voxel begins, in voxels of the whole moving image

    def of_fixed(self, image: Tensor) -> Tensor:
        """A fixed image, or its mask, (1, C, *S) on this level."""
        return averaged(image, self.factors, [0.0] * len(self.size), self.size)

    def of_moving(self, image: Tensor) -> Tensor:
        """A moving image (1, C, *S) on this level."""
        return averaged(image, self.factors, self.first, self.extent)


def levels_of(
    fixed: Sequence[int], moving: Sequence[int], margin: Sequence[int], levels: int
) -> list[Level]:
    """The levels from coarse to fine; an axis shrinks as far as it can bear it.

    Args:
        fixed: (*S) of the fixed image.
        moving: (*S) of the moving image, which holds the fixed one's grid.
        margin: voxels that it has before the first of the fixed one.
        levels: at most so many.

    Example:
        >>> from diffreg.registration.pyramid import levels_of
        >>> [level.size for level in levels_of((64, 48, 12), (64, 48, 12), (0, 0, 0), 3)]
        [[32, 24, 12], [64, 48, 12]]
    """
    found = []
    for level in reversed(range(possible_levels(fixed, levels))):
        size = [max(-(-n // 2**level), min(n, SMALLEST)) for n in fixed]
        factors = [n / m for n, m in zip(fixed, size, strict=True)]
        before = [math.floor(a / f) for a, f in zip(margin, factors, strict=True)]
        after = [
            math.floor((m - n - a) / f)
            for m, n, a, f in zip(moving, fixed, margin, factors, strict=True)
        ]
        extent = [b + m + e for b, m, e in zip(before, size, after, strict=True)]
        first = [a - b * f for a, b, f in zip(margin, before, factors, strict=True)]
        found.append(Level(size, factors, before, extent, first))
    return found


def possible_levels(shape: Sequence[int], levels: int) -> int:
    """How many of the pyramid's levels an image of this shape (*S) has: by its two longest axes."""
    bearing = sorted(shape)[-2]
    while levels > 1 and bearing < SMALLEST * 2 ** (levels - 1):
        levels -= 1
    return levels


def averaged(
    image: Tensor, factors: Sequence[float], first: Sequence[float], size: Sequence[int]
) -> Tensor:
    """The image's means over coarse voxels, axis by axis.

    Args:
        image: (N, C, *S).
        factors: voxels along one coarse voxel, each at least 1.
        first: where the first coarse voxel begins, in voxels from the image's edge.
        size: coarse voxels along each axis.

    Returns:
        (N, C, *size).

    Example:
        >>> import torch
        >>> from diffreg.registration.pyramid import averaged
        >>> averaged(torch.arange(6.0).reshape(1, 1, 1, 6), [1, 1.5], [0, 0], [1, 4]).flatten()
        tensor([0.3333, 1.6667, 3.3333, 4.6667])
    """
    for axis, (factor, begin, count) in enumerate(zip(factors, first, size, strict=True)):
        if (factor, begin, count) == (1, 0, image.shape[2 + axis]):
            continue
        voxels, shares = _shares(image.shape[2 + axis], factor, begin, count)
        along = [-1 if k == axis else 1 for k in range(len(size))]
        # One voxel of each coarse one after the other: in a matrix product their order would be
        # the number of threads'.
        parts = [
            image.index_select(2 + axis, places).mul_(share.view(along))
            for places, share in zip(voxels.to(image.device), shares.to(image), strict=True)
        ]
        image = reduce(Tensor.add_, parts)
    return image.contiguous()


def _shares(voxels: int, factor: float, first: float, size: int) -> tuple[Tensor, Tensor]:
    """The voxels that lie in each coarse one, and which share of it each has, both (K, size)."""
    begins = first + factor * torch.arange(size, dtype=torch.float64)
    index = begins.floor() + torch.arange(math.ceil(factor) + 1)[:, None]
    shared = torch.minimum(begins + factor, index + 1) - torch.maximum(begins, index)
    shared[(index < 0) | (index >= voxels)] = 0
    return index.clamp(0, voxels - 1).long(), shared.clamp(min=0) / factor
