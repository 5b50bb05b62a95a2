"""Random smooth diffeomorphic warps with their inverse: known truth, and variety for training.

    v = amplitude * white noise smoothed by a Gaussian, u = exp(v) - id, inverse = exp(-v) - id

Called by the pair datasets.
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
        ValueError: a shape that is not 2-D, or numbers out of range.

    Example:
        >>> import numpy as np
        >>> from diffreg.data.synthetic import random_velocity
        >>> random_velocity((32, 24), 1.5, 6.0, np.random.default_rng(0)).shape
        torch.Size([1, 2, 32, 24])
    """
    if len(shape) != 2 or min(shape) < 1:
        raise ValueError(f"shape must be 2 sizes of at least 1, got {tuple(shape)}")
    _check_amplitude(amplitude, sigma)
    noise = torch.from_numpy(random.standard_normal((2, *shape), dtype=np.float32))
    rows, columns = (_smoothing(size, float(sigma)) for size in shape)
    return amplitude * (rows @ noise @ columns.mT)[None]


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


@dataclass(frozen=True)
class Augmentation:
    """Makes a new pair out of a pair: both images bent, each in its own way, and mirrored together.

    Args:
        amplitude: of the random warps (`random_velocity`), voxels; each image draws a part of it,
            from none to all. 0: no warps.
        sigma: of their Gaussian, voxels.
        flip_axes: array axes along which a pair is mirrored, with probability 1/2 each.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.synthetic import Augmentation
        >>> image = torch.rand(1, 1, 16, 16)
        >>> Augmentation(amplitude=1.0)(image, image, np.random.default_rng(0))[0].shape
        torch.Size([1, 1, 16, 16])
    """

    amplitude: float = 0.0
    sigma: float = 10.0
    flip_axes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _check_amplitude(self.amplitude, self.sigma)
        axes = tuple(self.flip_axes)
        if not set(axes) <= {0, 1} or len(set(axes)) < len(axes):
            raise ValueError(f"flip_axes must be 0, 1, both or none, got {list(axes)}")

    def __call__(
        self, moving: Tensor, fixed: Tensor, random: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """A pair (1, C, *S) from a pair; the same state of `random` gives the same one."""
        axes = [2 + axis for axis in self.flip_axes if random.random() < 0.5]
        moving, fixed = moving.flip(axes), fixed.flip(axes)
        if self.amplitude == 0:
            return moving, fixed
        velocity = torch.cat(
            [
                random_velocity(image.shape[2:], self.amplitude * part, self.sigma, random)
                for image, part in zip((moving, fixed), random.random(2), strict=True)
            ]
        )
        bent = warp(torch.cat([moving, fixed]), integrate(velocity, _STEPS))
        return bent[:1], bent[1:]


@lru_cache(maxsize=16)
def _smoothing(size: int, sigma: float) -> Tensor:
    """(size, size) Gaussian weights; each row has norm 1, so that white noise keeps its variance.

    At the border the Gaussian is cut, not mirrored or wrapped: no side knows of the opposite one.
    """
    position = np.arange(size)
    weights = np.exp(-0.5 * ((position[:, None] - position) / sigma) ** 2)
    weights /= np.linalg.norm(weights, axis=1, keepdims=True)
    return torch.from_numpy(weights.astype(np.float32))


def _check_amplitude(amplitude: float, sigma: float) -> None:
    if not 0 <= amplitude < np.inf:
        raise ValueError(f"amplitude must be a number >= 0 of voxels, got {amplitude}")
    if not 0 < sigma < np.inf:
        raise ValueError(f"sigma must be a number > 0 of voxels, got {sigma}")
