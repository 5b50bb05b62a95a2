"""Pairs augmented together on one device, which nothing on the host has to wait for.

The same values, to the bit, as `diffreg.data.augmentation.Change` gives pair by pair. What a device
looks up is found on the host: a GPU takes as long for a tiny kernel as for a batch of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from diffreg.data.augmentation import Augmentation, RandomNumbers
from diffreg.data.samples import Batch
from diffreg.ops import warp


class Draws(NamedTuple):
    """What is random of N draws from images of one size, as it is sent to a device.

    Args:
        places: (N, P), int64: the voxels along each axis that make the mirrored images, and, where
            these are bent, then those of the window.
        strengths, noise: of `diffreg.data.augmentation.RandomNumbers`.
    """

    places: Tensor
    strengths: Tensor
    noise: Tensor

    @classmethod
    def of(cls, random: RandomNumbers, augmentation: Augmentation, shape: Sequence[int]) -> Draws:
        """Of images of a size (*S)."""
        flips, corners, strengths, noise = random
        window = augmentation.crop or shape
        if augmentation.amplitude > 0:
            places = _places(shape, shape, torch.zeros_like(corners), flips)
            places += _places(shape, window, corners, torch.zeros_like(flips))
        else:
            places = _places(shape, window, corners, flips)
        return cls(torch.cat(places, 1), strengths, noise)

    def part(self, pairs: slice) -> Draws:
        """Those of some pairs, of each of which there are two images."""
        images = slice(2 * pairs.start, 2 * pairs.stop)
        return Draws(self.places[pairs], self.strengths[images], self.noise[images])


class Undrawn(NamedTuple):
    """Pairs as they are, and their draws, on one device.

    Args:
        images: (N, 2, *S), moving and fixed.
        masks: (N, 1, *S), of all fixed images; None: of none.
        draws: of the N pairs.
        augmentation: what is done to them.
    """

    images: Tensor
    masks: Tensor | None
    draws: Draws
    augmentation: Augmentation


def drawn(pairs: Undrawn) -> Batch:
    """Mirror the pairs, bend each image by a warp of its own, cut a window out of both.

    Example:
        >>> import numpy as np, torch
        >>> from diffreg.data.drawing import Draws, Undrawn, drawn
        >>> from diffreg.data.augmentation import Augmentation
        >>> augmentation = Augmentation(amplitude=1.0, crop=(8, 6))
        >>> random = augmentation.random((16, 12), [np.random.default_rng(k) for k in range(3)])
        >>> draws = Draws.of(random, augmentation, (16, 12))
        >>> drawn(Undrawn(torch.rand(3, 2, 16, 12), None, draws, augmentation)).moving.shape
        torch.Size([3, 1, 8, 6])
    """
    images, masks, (places, strengths, noise), augmentation = pairs
    shape = images.shape[2:]
    if augmentation.amplitude > 0:
        mirrored, places = places.tensor_split([sum(shape)], 1)
        displacement = augmentation.bent(shape, strengths, noise)
        images = _taken(images, mirrored[:, None], shape)
        images = warp(images.flatten(0, 1)[:, None], displacement)[:, 0].unflatten(0, (-1, 2))
        if masks is not None:
            masks = _taken(masks, mirrored[:, None], shape)
            masks = warp(masks, displacement[1::2], "nearest", "zeros")
    window = tuple(augmentation.crop or shape)
    moving, fixed = _taken(images.transpose(0, 1), places[None], window)
    if masks is not None:
        masks = _taken(masks, places[:, None], window)
    return Batch(moving[:, None], fixed[:, None], masks)


def _places(
    shape: Sequence[int], window: Sequence[int], corners: Tensor, flips: Tensor
) -> list[Tensor]:
    """Where windows with corners (N, D) lie in images that are mirrored before, along each axis."""
    found = []
    for axis, (size, length) in enumerate(zip(shape, window, strict=True)):
        place = corners[:, axis, None] + torch.arange(length)
        found.append(torch.where(flips[:, axis, None], size - 1 - place, place))
    return found


def _taken(images: Tensor, places: Tensor, window: Sequence[int]) -> Tensor:
    """The voxels (A, B, *window) of images (A, B, *S) at places (A or 1, B or 1, all of window)."""
    first, second = (_count(number, images.device) for number in images.shape[:2])
    one = [1] * len(window)
    index = [first.reshape(-1, 1, *one), second.reshape(1, -1, *one)]
    for axis, place in enumerate(places.split(list(window), 2)):
        index.append(place.reshape(*place.shape[:2], *one[:axis], -1, *one[axis + 1 :]))
    return images[tuple(index)]


@cache  # CUDA graphs go on reading them
def _count(number: int, device: torch.device) -> Tensor:
    return torch.arange(number, device=device)
