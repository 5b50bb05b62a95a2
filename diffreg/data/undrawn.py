"""What a batch is drawn from: pairs as they are, and what is random of their draws.

All of it is on one device and of the same form in each batch, so that a CUDA graph can hold what is
done with it (`diffreg.data.drawing`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffreg.data.augmentation import Augmentation, RandomNumbers
from diffreg.data.known import Known, padded
from diffreg.data.samples import Sample

Send = Callable[[Sequence[Tensor]], Sequence[Tensor]]  # tensors of the host -> on the device


class Draws(NamedTuple):
    """What is random of N draws from images of one size, as it is sent to a device.

    Args:
        places: (N, P), int64: the voxels along each axis that make the mirrored images, and, where
            these are bent, then those of the window; or those of windows that were cut out before.
        strengths, noise: of `diffreg.data.augmentation.RandomNumbers`.
        flips, corners: of it, for what is known of the pairs; None: nothing is.
    """

    places: Tensor
    strengths: Tensor
    noise: Tensor
    flips: Tensor | None = None
    corners: Tensor | None = None

    @classmethod
    def of(
        cls,
        random: RandomNumbers,
        augmentation: Augmentation,
        shape: Sequence[int],
        known: bool = False,
        windows: bool = False,
    ) -> Draws:
        """What is random of images, as a device looks it up.

        Args:
            random: of the images, in the size (*S).
            augmentation: what is done to them.
            shape: *S.
            known: with what is done to what is known of them.
            windows: of images of which nothing but the windows is there, which are not bent.
        """
        flips, corners, strengths, noise = random
        window = augmentation.crop or shape
        if windows:
            places = _places(window, window, torch.zeros_like(corners), flips)
        elif augmentation.amplitude > 0:
            places = _places(shape, shape, torch.zeros_like(corners), flips)
            places += _places(shape, window, corners, torch.zeros_like(flips))
        else:
            places = _places(shape, window, corners, flips)
        return cls(torch.cat(places, 1), strengths, noise, *((flips, corners) if known else ()))

    def part(self, pairs: slice) -> Draws:
        """Those of some pairs, of each of which there are two images."""
        images = slice(2 * pairs.start, 2 * pairs.stop)
        parts = pairs, images, images, pairs, pairs
        both = zip(self, parts, strict=True)
        return Draws._make(None if values is None else values[part] for values, part in both)

    def each(self, change: Callable[[Tensor], Tensor]) -> Draws:
        """The same, each tensor changed."""
        return Draws._make(None if values is None else change(values) for values in self)


class Wanted(NamedTuple):
    """What is drawn of all that is known of pairs, the same of each batch.

    Args:
        values: (L,), float64, the labels that become channels; None: no labels.
        points: as many as a pair has, of those that were looked at; 0: none are wanted.
        displacement: whether it is.
    """

    values: Tensor | None = None
    points: int = 0
    displacement: bool = False


class Undrawn(NamedTuple):
    """Pairs as they are, and their draws, on one device.

    Args:
        images: (N, 2, *S), moving and fixed.
        shape: of the images that the draws are of, S unless these are windows of them.
        draws: of the N pairs.
        augmentation: what is done to them.
        masks: (N, 1, *S), of the fixed images, anything where a pair has none; None: no pair has.
        masked: (N,), bool, those pairs.
        labels: (N, 2, *S), maps of whole numbers, 0 where a pair has none; None: none are wanted.
        values: (L,), the labels that become channels.
        known: points and displacements.
    """

    images: Tensor
    shape: Sequence[int]
    draws: Draws
    augmentation: Augmentation
    masks: Tensor | None = None
    masked: Tensor | None = None
    labels: Tensor | None = None
    values: Tensor | None = None
    known: Known = Known()

    @classmethod
    def of(
        cls,
        samples: Sequence[Sample],
        draws: Draws,
        augmentation: Augmentation,
        wanted: Wanted,
        send: Send,
    ) -> Undrawn:
        """Pairs of one size, together; what one lacks is filled with what does not count.

        Args:
            samples: the pairs, on the host.
            draws: of them, on the device.
            augmentation: what is done to them.
            wanted: of what is known of them.
            send: brings tensors to the device.
        """
        shape = samples[0].size
        one, count = samples[0].fixed, samples[0].fixed.ndim - 2
        parts = {"images": [image for sample in samples for image in sample[:2]]}
        masks = [sample.mask for sample in samples]
        if any(mask is not None for mask in masks):
            parts["masks"] = _filled(masks, one.shape, 1.0, one.dtype)
            parts["masked"] = [torch.tensor([mask is not None for mask in masks])]
        if wanted.values is not None:
            labels = [label for sample in samples for label in sample.both_labels]
            parts["labels"] = _filled(labels, one.shape, 0, torch.uint8)
            parts["values"] = [wanted.values]
        for side in Known._fields[2:4] if wanted.points else ():
            points = [getattr(sample.known, side) for sample in samples]
            there = _filled(points, (1, 0, count), torch.nan, one.dtype)
            parts[side] = [padded(there, wanted.points, torch.nan)]
        if wanted.displacement:
            fields = [sample.known.displacement for sample in samples]
            parts["displacement"] = _filled(
                fields, (1, count, *one.shape[2:]), torch.nan, one.dtype
            )
        sent = iter(send(list(chain.from_iterable(parts.values()))))
        together: dict[str, Any] = {
            name: torch.cat([next(sent) for _ in several]) for name, several in parts.items()
        }
        for name in {"images", "labels"} & together.keys():
            together[name] = together[name][:, 0].unflatten(0, (-1, 2))
        if "labels" in together:  # of whatever types the files are
            together["labels"] = together["labels"].long()
        known = Known(**{name: together.pop(name) for name in Known._fields if name in together})
        return cls(shape=shape, draws=draws, augmentation=augmentation, known=known, **together)


def _places(
    shape: Sequence[int], window: Sequence[int], corners: Tensor, flips: Tensor
) -> list[Tensor]:
    """Where windows with corners (N, D) lie in images that are mirrored before, along each axis."""
    found = []
    for axis, (size, length) in enumerate(zip(shape, window, strict=True)):
        place = corners[:, axis, None] + torch.arange(length)
        found.append(torch.where(flips[:, axis, None], size - 1 - place, place))
    return found


def _filled(
    parts: Sequence[Tensor | None], shape: Sequence[int], value: float, dtype: torch.dtype
) -> list[Tensor]:
    """Parts (*shape), and constant ones, of the type of the others, in place of those missing."""
    there = [part.dtype for part in parts if part is not None]
    empty = _constant(tuple(shape), value, there[0] if there else dtype)
    return [empty if part is None else part for part in parts]


@lru_cache(8)  # the same tensor is sent to a device once
def _constant(shape: tuple[int, ...], value: float, dtype: torch.dtype) -> Tensor:
    return torch.full(shape, value, dtype=dtype)
