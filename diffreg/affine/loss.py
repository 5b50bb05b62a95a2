"""How badly two images agree under maps of the world, with derivatives.

    loss(T) = dissimilarity(moving(T x), fixed(x); where both are) + LOST max(0, FEW / share - 1)^2
            + sum max(0, mean(s^2) / FAR^2 - 1)^2, s what T makes of unit lengths, and of 1 / s

share is the part of what the fixed image shows that is compared: leaving must not be a way to a
lower loss, and no more must be looking at a corner of the moving image as through a lens. While
more than FEW is compared and lengths change by less than FAR, both terms are 0 and bend nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from diffreg.affine.image import PlacedImage
from diffreg.ops import affine_warp, correlation, local_correlation, mutual_information

LOST, FEW = 0.05, 0.5
FAR = 1.5
LEAST = 0.02  # share below which the term grows no more
AT_ONCE = 64  # maps in one batch
SAMPLES = 10_000  # voxels that the curvature is of
WINDOW = 5  # voxels, of lncc
# Of mi. Windows as wide as a bin blur intensities, and a map that spreads those further is blurred
# less: by 20 bins a phantom of 32^3 voxels fits itself best enlarged by 6 %, by 32 3 %, by 64
# .5 %. On the coarsest of several levels, of few voxels, a rough histogram leads from further off.
BINS, FEWER_BINS = 64, 20

# Of (warped, fixed, mask, moving), each (N, 1, *S), and bins: (N,), smaller is better.
DISSIMILARITIES: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]] = {
    "ncc": lambda warped, fixed, mask, *_: correlation(warped, fixed, mask),
    "mi": lambda warped, fixed, mask, moving, bins: mutual_information(
        warped, fixed, bins, mask, moving
    ),
    "lncc": lambda warped, fixed, mask, *_: local_correlation(warped, fixed, WINDOW, mask),
}


class AffineLoss:
    """The loss of one pair on one level.

    Args:
        moving: the image that is sampled.
        fixed: the image whose grid it is sampled on.
        similarity: one of DISSIMILARITIES.
    """

    def __init__(self, moving: PlacedImage, fixed: PlacedImage, similarity: str):
        self.moving, self.fixed, self.similarity, self.bins = moving, fixed, similarity, BINS
        self.dissimilarity = DISSIMILARITIES[similarity]
        self.to_moving = torch.linalg.inv(moving.affine)
        mass = fixed.mass() ** 2
        self.shown = mass / max(float(sums(mass)), 1e-12)

    def __call__(self, worlds: Tensor) -> Tensor:
        """The loss of maps (N, D + 1, D + 1), (N,) float64."""
        cover = self.cover(worlds)
        share = sums(cover * self.shown).clamp(min=LEAST)
        lost = LOST * (FEW / share - 1).clamp(min=0) ** 2
        return self.compared(worlds, cover.detach()) + lost + _stretched(worlds)

    def scores(self, worlds: Tensor) -> Tensor:
        """The loss of any number of maps, without derivatives."""
        with torch.no_grad():
            return torch.cat([self(some) for some in worlds.split(AT_ONCE)])

    def cover(self, worlds: Tensor) -> Tensor:
        """How far what counts of the moving image reaches fixed voxels, (N, 1, *S) in [0, 1]."""
        inside = self.moving.counted
        size = self.fixed.shape
        cover = affine_warp(inside, self._matrices(worlds), size=size, padding="zeros")
        return cover if self.fixed.mask is None else cover * self.fixed.mask

    def compared(self, worlds: Tensor, mask: Tensor) -> Tensor:
        """The dissimilarity of what the mask (N, 1, *S) weighs, (N,) float64."""
        values, size = self.moving.values, self.fixed.shape
        warped = affine_warp(values, self._matrices(worlds), size=size)
        fixed = self.fixed.values.expand_as(warped).contiguous()
        moving = values.expand(len(worlds), *values.shape[1:]).contiguous()
        return self.dissimilarity(warped, fixed, mask, moving, self.bins).double()

    def _matrices(self, worlds: Tensor) -> Tensor:
        return (self.to_moving @ worlds @ self.fixed.affine)[:, :-1]

    @cached_property
    def _samples(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Places (D + 1, n) and gradients (D, n) of the fixed image, and their variance in all."""
        values = self.fixed.values[0, 0].numpy().astype(np.float64)
        counted = np.flatnonzero(self.fixed.counted.numpy())
        if len(counted) > SAMPLES:
            counted = counted[np.random.default_rng(0).integers(len(counted), size=SAMPLES)]
        voxels = np.stack([*np.unravel_index(counted, values.shape), np.ones(len(counted))])
        slopes = [_slope(values, axis).ravel()[counted] for axis in range(values.ndim)]
        affine = self.fixed.affine.numpy()
        gradients = np.linalg.inv(affine[:-1, :-1]).T @ np.stack(slopes)
        return affine @ voxels, gradients, float(values.ravel()[counted].var() * len(counted))

    def preconditioner(self, generators: Tensor) -> np.ndarray:
        """What turns a gradient into a step: the inverse of Gauss and Newton's matrix for `ncc`.

        With the fixed image's gradient in place of the warped one's, it is the same at every map.
        It is added up in one order, on any number of threads.

        Args:
            generators: (K, D + 1, D + 1) about the world's origin.

        Returns:
            (K, K), symmetric and positive.
        """
        places, gradients, variance = self._samples
        moves = np.einsum("kij,jn->kin", generators.numpy()[:, :-1], places)
        changes = np.einsum("in,kin->kn", gradients, moves)
        matrix = np.einsum("kn,ln->kl", changes, changes) / max(variance, 1e-12)
        ridge = 1e-3 * np.trace(matrix) / len(matrix) + 1e-12
        return np.linalg.inv(matrix + ridge * np.eye(len(matrix)))


def _stretched(worlds: Tensor) -> Tensor:
    """What maps (N, D + 1, D + 1) pay for lengths that nobody's anatomy has, (N,)."""
    linear = worlds[:, :-1, :-1]
    squares = torch.stack([linear, torch.linalg.inv(linear)]).square().sum((-2, -1))
    return (squares / linear.shape[-1] / FAR**2 - 1).clamp(min=0).square().sum(0)


def _slope(values: np.ndarray, axis: int) -> np.ndarray:
    """Central differences; 0 along an axis of one voxel."""
    return np.gradient(values, axis=axis) if values.shape[axis] > 1 else np.zeros_like(values)


def sums(image: Tensor) -> Tensor:
    """Sums over all but the first axis, axis by axis: in one order on any number of threads.

    Args:
        image: (N, 1, *S).

    Returns:
        (N,) float64.

    Example:
        >>> import torch
        >>> from diffreg.affine.loss import sums
        >>> sums(torch.ones(2, 1, 3, 4)).tolist()
        [12.0, 12.0]
    """
    image = image.sum(-1).double()
    while image.ndim > 1:
        image = image.sum(-1)
    return image
