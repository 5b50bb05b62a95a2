"""New pairs of one pair for training: mirrored, bent and cut out anew each time it is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffreg.data.synthetic import STEPS, check_amplitude, smoothed, white_noise
from diffreg.fields import integrate


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

    def lows(self, shape: Sequence[int], window: Sequence[int]) -> Tensor:
        """(N, D), the first voxels of the windows in the images before they are mirrored."""
        room = torch.tensor([size - length for size, length in zip(shape, window, strict=True)])
        return torch.where(self.flips, room - self.corners, self.corners)


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
        >>> from diffreg.data.augmentation import Augmentation
        >>> Augmentation(amplitude=1.0, crop=(8, 12)).shape((16, 16))
        (8, 12)
    """

    amplitude: float = 0.0
    sigma: float = 10.0
    flip_axes: tuple[int, ...] = ()
    crop: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_amplitude(self.amplitude, self.sigma)
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
            volumes = "; [model] dimensions = 3 is for volumes" if dimensions == 2 else ""
            raise ValueError(
                f"crop must be {dimensions} sizes, or none, got {list(self.crop)}{volumes}"
            )
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
                strengths[which] = self.amplitude * random.random(2)
                both = white_noise(shape, 2 * dimensions, self.sigma, random)
                noise.append(both.unflatten(1, (2, dimensions))[0])
            for axis, (size, cut) in enumerate(zip(shape, self.crop, strict=False)):
                corners[which, axis] = random.integers(size - cut + 1)
        return RandomNumbers(
            torch.from_numpy(flips),
            torch.from_numpy(corners),
            torch.from_numpy(strengths.reshape(-1)),
            torch.cat(noise) if noise else torch.zeros(0, dtype=torch.float32),
        )

    def bent(self, shape: Sequence[int], strengths: Tensor, noise: Tensor) -> Tensor:
        """The warps (2 N, D, *S) of random numbers, on their device: moving, fixed, moving, ..."""
        velocity = smoothed(noise, shape, self.sigma)
        return integrate(velocity * strengths.reshape(-1, *[1] * (velocity.ndim - 1)), STEPS)
