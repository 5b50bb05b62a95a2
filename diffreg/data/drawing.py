"""Pairs augmented together on one device, which nothing on the host has to wait for.

The same values, to the bit, as `diffreg.data.augmentation.Change` gives pair by pair.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffreg.data.augmentation import Augmentation, RandomNumbers
from diffreg.data.samples import Batch
from diffreg.ops import warp


class Undrawn(NamedTuple):
    """Pairs as they are, (N, 1, *S) each, and what is random of their draw, on one device."""

    moving: Tensor
    fixed: Tensor
    numbers: RandomNumbers
    augmentation: Augmentation


def drawn(pairs: Undrawn) -> Batch:
    """Mirror the pairs, bend each image by a warp of its own, cut a window out of both.

    Example:
        >>> import numpy as np, torch
        >>> from diffreg.data.drawing import Undrawn, drawn
        >>> from diffreg.data.augmentation import Augmentation
        >>> augmentation = Augmentation(amplitude=1.0, crop=(8, 6))
        >>> numbers = augmentation.random((16, 12), [np.random.default_rng(k) for k in range(2)])
        >>> images = torch.rand(2, 1, 16, 12)
        >>> drawn(Undrawn(images, images, numbers, augmentation)).moving.shape
        torch.Size([2, 1, 8, 6])
    """
    shape, augmentation = pairs.moving.shape[2:], pairs.augmentation
    flips, corners, strengths, noise = pairs.numbers
    flips, corners = flips.repeat_interleave(2, 0), corners.repeat_interleave(2, 0)
    both = torch.stack([pairs.moving, pairs.fixed], 1).flatten(0, 1)
    window = tuple(augmentation.crop or shape)
    if augmentation.amplitude > 0:
        mirrored = _cut(both, torch.zeros_like(corners), shape, flips)
        both = warp(mirrored, augmentation.bent(shape, strengths, noise))
        flips = torch.zeros_like(flips)
    both = _cut(both, corners, window, flips).unflatten(0, (-1, 2))
    return Batch(both[:, 0], both[:, 1], None)


def _cut(images: Tensor, corners: Tensor, window: tuple[int, ...], flips: Tensor) -> Tensor:
    """Windows (N, 1, *window) of images (N, 1, *S), mirrored before along the axes of `flips`."""
    number = torch.arange(len(images), device=images.device)
    places = [number.reshape(-1, *[1] * len(window))]
    for axis, (size, length) in enumerate(zip(images.shape[2:], window, strict=True)):
        place = corners[:, axis, None] + torch.arange(length, device=images.device)
        place = torch.where(flips[:, axis, None], size - 1 - place, place)
        around = [-1 if other == axis else 1 for other in range(len(window))]
        places.append(place.reshape(len(images), *around))
    return images[:, 0][tuple(places)][:, None]
