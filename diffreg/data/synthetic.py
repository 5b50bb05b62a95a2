"""Random smooth diffeomorphic warps with their inverse: known truth, and variety for training.

v = amplitude * white noise smoothed by a Gaussian, u = exp(v) - id, inverse = exp(-v) - id
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffreg.fields import integrate

# Squarings: the first step of a velocity of a few voxels is then a small part of one.
STEPS = 6


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
    check_amplitude(amplitude, sigma)
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
    return smoothed(white_noise(shape, channels, float(sigma), random), shape, float(sigma))[0]


def random_warp(
    shape: Sequence[int],
    amplitude: float,
    sigma: float,
    random: np.random.Generator,
    steps: int = STEPS,
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


def white_noise(
    shape: Sequence[int], channels: int, sigma: float, random: np.random.Generator
) -> Tensor:
    """White noise at the knots, (1, C, *knots)."""
    knots = [len(_knots(size, sigma)) for size in shape]
    return torch.from_numpy(random.standard_normal((1, channels, *knots), dtype=np.float32))


def smoothed(noise: Tensor, shape: Sequence[int], sigma: float) -> Tensor:
    """Noise at the knots (N, C, *knots) at the voxels, (N, C, *shape)."""
    *others, last = (_smoothing(size, sigma, noise.device) for size in shape)
    for axis, weights in enumerate(others, start=2):
        noise = (weights @ noise.movedim(axis, -2)).movedim(-2, axis)
    return noise @ last.mT


@cache
def _knots(size: int, sigma: float) -> np.ndarray:
    """Places 3/4 sigma apart, or a voxel, from 5 sigma before the grid to 5 sigma after it."""
    step = max(0.75 * sigma, 1.0)
    outside = np.ceil(5 * sigma / step)
    return step * np.arange(-outside, np.ceil((size - 1) / step) + outside + 1)


@cache  # CUDA graphs go on reading them
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


def check_amplitude(amplitude: float, sigma: float) -> None:
    if not 0 <= amplitude < np.inf:
        raise ValueError(f"amplitude must be a number >= 0 of voxels, got {amplitude}")
    if not 0 < sigma < np.inf:
        raise ValueError(f"sigma must be a number > 0 of voxels, got {sigma}")
