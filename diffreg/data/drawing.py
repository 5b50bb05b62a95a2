"""Pairs augmented together on one device, which nothing on the host has to wait for.

What a device looks up is found on the host: a GPU takes as long for a tiny kernel as for a batch of
images.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property

import torch
from torch import Tensor

from diffreg.data.known import Known, one_hot
from diffreg.data.samples import Batch
from diffreg.data.undrawn import Undrawn
from diffreg.fields import compose, invert, warp_points
from diffreg.ops import warp
from diffreg.ops._per_axis import per_axis


def drawn(pairs: Undrawn) -> Batch:
    """Mirror the pairs, bend each image by a warp of its own, cut a window out of both.

    What is known of them goes with them.

    Example:
        >>> import numpy as np, torch
        >>> from diffreg.data.augmentation import Augmentation
        >>> from diffreg.data.drawing import drawn
        >>> from diffreg.data.undrawn import Draws, Undrawn
        >>> augmentation = Augmentation(amplitude=1.0, crop=(8, 6))
        >>> random = augmentation.random((16, 12), [np.random.default_rng(k) for k in range(3)])
        >>> draws = Draws.of(random, augmentation, (16, 12))
        >>> drawn(Undrawn(torch.rand(3, 2, 16, 12), (16, 12), draws, augmentation)).moving.shape
        torch.Size([3, 1, 8, 6])
    """
    change = _Change(pairs)
    moving, fixed = change.images(pairs.images)
    _, _, *points, displacement = pairs.known
    labels = change.labels(pairs.labels, pairs.values)
    points = [change.points(of_image, side) for side, of_image in enumerate(points)]
    known = Known._make([*labels, *points, change.displacement(displacement)])
    return Batch(moving[:, None], fixed[:, None], change.masks(pairs.masks, pairs.masked), known)


class _Change:
    """What is done to all that there is of N pairs, each method on one kind of it; None stays."""

    def __init__(self, pairs: Undrawn) -> None:
        augmentation, draws = pairs.augmentation, pairs.draws
        self.shape, self.flips, self.corners = pairs.shape, draws.flips, draws.corners
        self.window = tuple(augmentation.crop or self.shape)
        self.mirrors = self.places = draws.places
        self._mirrors, self._cuts = bool(augmentation.flip_axes), bool(augmentation.crop)
        self.warps: Tensor | None = None
        if augmentation.amplitude > 0:
            self.mirrors, self.places = draws.places.tensor_split([sum(self.shape)], 1)
            # Of the moving and the fixed image of each pair by turns.
            self.warps = augmentation.bent(self.shape, draws.strengths, draws.noise)

    def images(self, images: Tensor) -> Tensor:
        """(N, 2, *S) -> (2, N, *W)."""
        if self.warps is not None:
            images = warp(self._mirrored(images).flatten(0, 1)[:, None], self.warps)
            images = images[:, 0].unflatten(0, (-1, 2))
        images = images.transpose(0, 1)
        return (
            _taken(images, self.places[None], self.window) if self._moves else images.contiguous()
        )

    def masks(self, masks: Tensor | None, masked: Tensor | None) -> Tensor | None:
        """(N, 1, *S) -> (N, 1, *W), 1 where a pair has none."""
        if masks is None or masked is None:
            return None
        if self.warps is not None:
            masks = warp(self._mirrored(masks), self.warps[1::2], "nearest", "zeros")
        masks = self._cut(masks)
        return torch.where(masked.reshape(-1, *[1] * (masks.ndim - 1)), masks, 1)

    def labels(self, maps: Tensor | None, values: Tensor | None) -> Sequence[Tensor | None]:
        """(N, 2, *S) -> (N, L, *W) of the moving and of the fixed images."""
        if maps is None or values is None:
            return None, None
        if self.warps is None:
            return [one_hot(of_image[:, None], values) for of_image in self.images(maps)]
        channels = one_hot(self._mirrored(maps).flatten(0, 1)[:, None], values)
        channels = warp(channels, self.warps).reshape(len(maps), -1, *self.shape)
        return self._cut(channels).chunk(2, 1)

    def points(self, points: Tensor | None, side: int) -> Tensor | None:
        """(N, K, D) of the moving images (side 0) or of the fixed ones (1)."""
        if points is None or self.flips is None or self.corners is None:
            return None
        last = per_axis([size - 1 for size in self.shape], points)
        points = torch.where(self.flips[:, None], last - points, points)
        if self.warps is not None:
            points = warp_points(points, self._inverses[side::2])
        return points - self.corners[:, None]

    def displacement(self, displacement: Tensor | None) -> Tensor | None:
        """(N, D, *S): from the changed fixed image to the fixed, the moving, the changed moving."""
        if displacement is None or self.flips is None:
            return None
        signs = (1 - 2 * self.flips.to(displacement.dtype)).reshape(
            *self.flips.shape, *[1] * len(self.shape)
        )
        if self.warps is None:
            return signs * self._cut(displacement)
        displacement = signs * self._mirrored(displacement)
        displacement = compose(displacement, self.warps[1::2])
        return self._cut(compose(self._inverses[0::2], displacement))

    @cached_property
    def _inverses(self) -> Tensor:
        """Of the warps, found once for points and displacements."""
        assert self.warps is not None
        return invert(self.warps)

    def _mirrored(self, values: Tensor) -> Tensor:
        """(N, B, *S), before they are bent."""
        return _taken(values, self.mirrors[:, None], self.shape) if self._mirrors else values

    def _cut(self, values: Tensor) -> Tensor:
        """(N, B, *S) -> (N, B, *W): the window, of what is not bent that of the mirrored values."""
        return _taken(values, self.places[:, None], self.window) if self._moves else values

    @property
    def _moves(self) -> bool:
        """Whether a window is another than all of the image as it is by then."""
        return self._cuts or (self._mirrors and self.warps is None)


def _taken(images: Tensor, places: Tensor, window: Sequence[int]) -> Tensor:
    """The voxels (A, B, *window) of images (A, B, *S) at places (A or 1, B or 1, all of window)."""
    # On a CPU copies of slices are several times as fast; a GPU would be asked for their ends.
    return (_sliced if images.is_cpu else _gathered)(images, places, window)


def _sliced(images: Tensor, places: Tensor, window: Sequence[int]) -> Tensor:
    found = images.new_empty((*images.shape[:2], *window))
    each = places.expand(*images.shape[:2], -1).split(list(window), 2)
    ends = torch.stack([torch.stack([place[..., 0], place[..., -1]], -1) for place in each], -2)
    for first, row in enumerate(ends.tolist()):
        for second, along in enumerate(row):
            part = images[first, second][tuple(slice(min(e), max(e) + 1) for e in along)]
            turned = [axis for axis, (start, stop) in enumerate(along) if start > stop]
            found[first, second] = part.flip(turned) if turned else part
    return found


def _gathered(images: Tensor, places: Tensor, window: Sequence[int]) -> Tensor:
    first, second = (_count(number, images.device) for number in images.shape[:2])
    one = [1] * len(window)
    index = [first.reshape(-1, 1, *one), second.reshape(1, -1, *one)]
    for axis, place in enumerate(places.split(list(window), 2)):
        index.append(place.reshape(*place.shape[:2], *one[:axis], -1, *one[axis + 1 :]))
    return images[tuple(index)]


@cache  # CUDA graphs go on reading them
def _count(number: int, device: torch.device) -> Tensor:
    return torch.arange(number, device=device)
