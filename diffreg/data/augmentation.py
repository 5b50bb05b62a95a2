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
from diffreg.ops import warp


class Change(NamedTuple):
    """What one draw does to a pair: mirror both images, bend each by its own warp, crop both.

    For a pair of one's own, and what `diffreg.data.drawing` is compared with, to the bit.

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
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.augmentation import Augmentation
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

    def draw(self, shape: Sequence[int], random: np.random.Generator) -> Change:
        """What is done to a pair of that size; the same state of `random` gives the same."""
        flips, corners, strengths, noise = self.random(shape, [random])
        axes = tuple(2 + axis for axis, flipped in enumerate(flips[0].tolist()) if flipped)
        cuts = zip(corners[0].tolist(), self.crop, strict=False)
        crop = tuple(slice(first, first + size) for first, size in cuts)
        bent = self.bent(shape, strengths, noise) if self.amplitude > 0 else None
        return Change(axes, bent, crop, tuple(shape))

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
            torch.cat(noise) if noise else torch.zeros(0),
        )

    def bent(self, shape: Sequence[int], strengths: Tensor, noise: Tensor) -> Tensor:
        """The warps (2 N, D, *S) of random numbers, on their device: moving, fixed, moving, ..."""
        velocity = smoothed(noise, shape, self.sigma)
        return integrate(velocity * strengths.reshape(-1, *[1] * (velocity.ndim - 1)), STEPS)
