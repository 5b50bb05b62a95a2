"""Random smooth diffeomorphic warps with their inverse: known truth, and variety for training.

v = amplitude * white noise smoothed by a Gaussian, u = exp(v) - id, inverse = exp(-v) - id
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffreg.fields import integrate
from diffreg.ops import warp

# Squarings: the first step of a velocity of a few voxels is then a small part of one.
_STEPS = 6


class RandomWarp(NamedTuple):
    """A displacement and that of the inverse map, (1, D, *S) each, voxels."""

    displacement: Tensor
    inverse: Tensor


def random_velocity(
    shape: Sequence[int], amplitude: float, sigma: float, random: np.random.Generator
) -> Tensor:
    """A stationary velocity: smoothed white noise with one variance everywhere.

    Args:
        shape: *S.
        amplitude: standard deviation of each component, voxels per unit time.
        sigma: standard deviation of the Gaussian that smooths, voxels.
        random: where the numbers come from; the same state gives the same velocity.

    Returns:
        (1, D, *S), float32.

    Raises:
        ValueError: a shape that is not of two or three sizes, or numbers out of range.

    Example:
        >>> import numpy as np
        >>> from diffreg.data.synthetic import random_velocity
        >>> random_velocity((32, 24), 1.5, 6.0, np.random.default_rng(0)).shape
        torch.Size([1, 2, 32, 24])
    """
    _check_amplitude(amplitude, sigma)
    return amplitude * smooth_noise(shape, len(shape), sigma, random)[None]


def smooth_noise(
    shape: Sequence[int], channels: int, sigma: float, random: np.random.Generator
) -> Tensor:
    """White noise smoothed by a Gaussian, of variance 1 everywhere.

    Args:
        shape: *S, two or three sizes.
        channels: C, independent of each other.
        sigma: standard deviation of the Gaussian, voxels.
        random: where the numbers come from; the same state gives the same noise.

    Returns:
        (C, *S), float32.

    Raises:
        ValueError: a shape that is not of two or three sizes.

    Example:
        >>> import numpy as np
        >>> from diffreg.data.synthetic import smooth_noise
        >>> smooth_noise((8, 9, 10), 4, 3.0, np.random.default_rng(0)).shape
        torch.Size([4, 8, 9, 10])
    """
    if len(shape) not in (2, 3) or min(shape) < 1:
        raise ValueError(f"shape must be 2 or 3 sizes of at least 1, got {tuple(shape)}")
    return _smooth(_noise(shape, channels, float(sigma), random), shape, float(sigma))[0]


def random_warp(
    shape: Sequence[int],
    amplitude: float,
    sigma: float,
    random: np.random.Generator,
    steps: int = _STEPS,
) -> RandomWarp:
    """A random diffeomorphic displacement and its inverse.

    Warping an image by `displacement` and the result by `inverse` gives the image back, up to
    interpolation and what left the grid.

    Args:
        shape: *S.
        amplitude: standard deviation of the velocity's components, voxels.
        sigma: of the Gaussian that smooths it, voxels; some times `amplitude` or more.
        random: where the numbers come from; the same state gives the same warp.
        steps: squarings.

    Returns:
        The displacement and that of the inverse, (1, D, *S) each.

    Raises:
        ValueError: as `random_velocity`.

    Source:
        Arsigny et al. 2006, scaling and squaring.

    Example:
        >>> import numpy as np
        >>> from diffreg.data.synthetic import random_warp
        >>> from diffreg.metrics import folding
        >>> warp = random_warp((32, 24), 1.5, 6.0, np.random.default_rng(0))
        >>> folding(warp.displacement)["folded_percent"]
        0.0
    """
    velocity = random_velocity(shape, amplitude, sigma, random)
    both = integrate(torch.cat([velocity, -velocity]), steps)
    return RandomWarp(both[:1], both[1:])


class Change(NamedTuple):
    """What one draw does to a pair: mirror both images, bend each by its own warp, crop both.

    Args:
        axes: of the tensors, along which they are mirrored.
        displacement: (2, D, *S), that of the moving and of the fixed image; None: no warps.
        crop: slices of the last axes.
        shape: *S of the pair before.
    """

    axes: tuple[int, ...]
    displacement: Tensor | None
    crop: tuple[slice, ...]
    shape: tuple[int, ...] = ()

    def __call__(self, moving: Tensor, fixed: Tensor) -> tuple[Tensor, Tensor]:
        """The pair (1, C, *S), changed."""
        if self.displacement is None:  # of a large image only the window is touched
            return self._window(moving), self._window(fixed)
        both = torch.cat([moving.flip(self.axes), fixed.flip(self.axes)])
        both = self._cut(warp(both, self.displacement))
        return both[:1], both[1:]

    def mask(self, mask: Tensor) -> Tensor:
        """A mask (1, 1, *S) of the fixed image, changed as that."""
        if self.displacement is None:
            return self._window(mask)
        return self._cut(warp(mask.flip(self.axes), self.displacement[1:], "nearest", "zeros"))

    def _window(self, image: Tensor) -> Tensor:
        """The window of the mirrored image."""
        window = list(self.crop)
        for axis in self.axes if self.crop else ():
            size, part = self.shape[axis - 2], self.crop[axis - 2]
            window[axis - 2] = slice(size - part.stop, size - part.start)
        return image[(slice(None), slice(None), *window)].flip(self.axes)

    def _cut(self, image: Tensor) -> Tensor:
        return image[(slice(None), slice(None), *self.crop)] if self.crop else image


class RandomNumbers(NamedTuple):
    """What is random of N draws.

    Args:
        flips: (N, D), bool, the axes along which a pair is mirrored.
        corners: (N, D), int64, of the windows in the mirrored images.
        strengths: (2 N,), of the velocities of the moving and the fixed image of each pair, voxels.
        noise: (2 N, D, *knots), white; empty where nothing is bent.
    """

    flips: Tensor
    corners: Tensor
    strengths: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Augmentation:
    """Makes new pairs of one pair: each image bent in its own way, both mirrored and cropped alike.

    Args:
        amplitude: of the random warps (`random_velocity`), voxels; each image draws a part of it,
            from none to all. 0: no warps.
        sigma: of their Gaussian, voxels.
        flip_axes: array axes along which a pair is mirrored, with probability 1/2 each.
        crop: size of a window, of volumes a patch, drawn anew each time, that is cut out of the
            pair; none: all of it.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.synthetic import Augmentation
        >>> image = torch.rand(1, 1, 16, 16)
        >>> augmentation = Augmentation(amplitude=1.0, crop=(8, 12))
        >>> change = augmentation.draw((16, 16), np.random.default_rng(0))
        >>> change(image, image)[0].shape
        torch.Size([1, 1, 8, 12])
    """

    amplitude: float = 0.0
    sigma: float = 10.0
    flip_axes: tuple[int, ...] = ()
    crop: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_amplitude(self.amplitude, self.sigma)
        axes = tuple(self.flip_axes)
        if not set(axes) <= {0, 1, 2} or len(set(axes)) < len(axes):
            raise ValueError(f"flip_axes must be some of 0, 1, 2, or none, got {list(axes)}")
        if len(self.crop) not in (0, 2, 3) or any(size < 1 for size in self.crop):
            raise ValueError(
                f"crop must be 2 or 3 sizes of at least 1, or none, got {list(self.crop)}"
            )

    def check_dimensions(self, dimensions: int) -> None:
        """Raises unless it can be done to images of so many axes."""
        if len(self.crop) not in (0, dimensions):
            raise ValueError(f"crop must be {dimensions} sizes, or none, got {list(self.crop)}")
        if any(axis >= dimensions for axis in self.flip_axes):
            raise ValueError(
                f"flip_axes must be below {dimensions}, the number of axes, got "
                f"{list(self.flip_axes)}"
            )

    def shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The size of what is drawn from images of a size; ValueError where it does not fit."""
        self.check_dimensions(len(shape))
        if any(size < cut for size, cut in zip(shape, self.crop, strict=False)):
            raise ValueError(f"the crop {list(self.crop)} is larger than {list(shape)}")
        return tuple(self.crop or shape)

    def draw(self, shape: Sequence[int], random: np.random.Generator) -> Change:
        """What is done to a pair of that size; the same state of `random` gives the same."""
        return self.draw_all(shape, [random])[0]

    def draw_all(
        self,
        shape: Sequence[int],
        randoms: Sequence[np.random.Generator],
        device: torch.device | str = "cpu",
    ) -> list[Change]:
        """What is done to several pairs, the warps made together, on the device of the images."""
        drawn = self.random(shape, randoms)
        displacements: Sequence[Tensor | None] = [None] * len(randoms)
        if self.amplitude > 0:
            strengths, noise = drawn.strengths.to(device), drawn.noise.to(device)
            displacements = self.bent(shape, strengths, noise).split(2)
        changes = []
        for flips, corner, displacement in zip(
            drawn.flips.tolist(), drawn.corners.tolist(), displacements, strict=True
        ):
            axes = tuple(2 + axis for axis, flipped in enumerate(flips) if flipped)
            cuts = zip(corner, self.crop, strict=False)
            crop = tuple(slice(first, first + size) for first, size in cuts)
            changes.append(Change(axes, displacement, crop, tuple(shape)))
        return changes

    def random(self, shape: Sequence[int], randoms: Sequence[np.random.Generator]) -> RandomNumbers:
        """What is random of several pairs of a size (*S), on the host."""
        count, dimensions = len(randoms), len(shape)
        flips = np.zeros((count, dimensions), bool)
        corners = np.zeros((count, dimensions), np.int64)
        strengths = np.zeros((count, 2), np.float32)
        noise = []
        for which, random in enumerate(randoms):
            for axis in self.flip_axes:
                flips[which, axis] = random.random() < 0.5
            if self.amplitude > 0:
                strengths[which] = [self.amplitude * part for part in random.random(2)]
                noise += [_noise(shape, dimensions, self.sigma, random) for _ in range(2)]
            for axis, (size, cut) in enumerate(zip(shape, self.crop, strict=False)):
                corners[which, axis] = random.integers(size - cut + 1)
        return RandomNumbers(
            torch.from_numpy(flips),
            torch.from_numpy(corners),
            torch.from_numpy(strengths.reshape(-1)),
            torch.cat(noise) if noise else torch.zeros(0),
        )

    def bent(self, shape: Sequence[int], strengths: Tensor, noise: Tensor) -> Tensor:
        """The warps (2 N, D, *S) of random numbers, on their device: moving, fixed, moving, ..."""
        velocity = _smooth(noise, shape, self.sigma)
        return integrate(velocity * strengths.reshape(-1, *[1] * (velocity.ndim - 1)), _STEPS)


def _noise(
    shape: Sequence[int], channels: int, sigma: float, random: np.random.Generator
) -> Tensor:
    """White noise at the knots, (1, C, *knots)."""
    knots = [len(_knots(size, sigma)) for size in shape]
    return torch.from_numpy(random.standard_normal((1, channels, *knots), dtype=np.float32))


def _smooth(noise: Tensor, shape: Sequence[int], sigma: float) -> Tensor:
    """Noise at the knots (N, C, *knots) at the voxels, (N, C, *shape)."""
    *others, last = (_smoothing(size, sigma, noise.device) for size in shape)
    for axis, weights in enumerate(others, start=2):
        noise = (weights @ noise.movedim(axis, -2)).movedim(-2, axis)
    return noise @ last.mT


def _knots(size: int, sigma: float) -> np.ndarray:
    """Places 3/4 sigma apart, or a voxel, from 5 sigma before the grid to 5 sigma after it."""
    step = max(0.75 * sigma, 1.0)
    outside = np.ceil(5 * sigma / step)
    return step * np.arange(-outside, np.ceil((size - 1) / step) + outside + 1)


@lru_cache(maxsize=16)
def _smoothing(size: int, sigma: float, device: torch.device) -> Tensor:
    """(size, knots) Gaussian weights; each row has norm 1, so that white noise keeps its variance.

    On the device, once: a CUDA graph allows no copy from the host.

    White noise at the knots, smoothed, has the covariance of continuous noise to 1e-7 from a sigma
    of 4/3 voxels on (Poisson's sum formula), for a fraction of the work of noise at every voxel.
    The knots reach beyond the grid: its border is like its inside.
    """
    distance = np.arange(size)[:, None] - _knots(size, sigma)
    weights = np.exp(-0.5 * (distance / sigma) ** 2)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    return torch.from_numpy(weights.astype(np.float32)).to(device)


def _check_amplitude(amplitude: float, sigma: float) -> None:
    if not 0 <= amplitude < np.inf:
        raise ValueError(f"amplitude must be a number >= 0 of voxels, got {amplitude}")
    if not 0 < sigma < np.inf:
        raise ValueError(f"sigma must be a number > 0 of voxels, got {sigma}")
