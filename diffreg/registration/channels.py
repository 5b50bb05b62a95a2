"""Several images of each side: each channel has a similarity of its own, the energies are one.

L = sum_k w_k w_s S(moving_k o phi, fixed_k) + energies of u      w_0 = 1, of the pair itself
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffreg.data.comparable import check_images
from diffreg.data.geometry import Image
from diffreg.data.given import on_grid_of
from diffreg.data.normalization import Normalization
from diffreg.data.prepare import PairImages, Prepared
from diffreg.data.resampling import coverage, resample_to
from diffreg.data.resolution import as_coarse_as
from diffreg.registration.landmarks import checked_weight


class Channel(NamedTuple):
    """One image more of each side, and the weight of their similarity; the pair's own has 1."""

    moving: Image
    fixed: Image  # on the grid of the pair's
    weight: float
    name: str = "channel"  # in messages

    @classmethod
    def checked(cls, number: int, given: Any, pair: PairImages) -> Channel:
        """What was given: (moving, fixed, weight), the images as `register` takes them.

        Args:
            number: of the channel, from 1, for messages.
            given: an array lies where the pair's image of its side does.
            pair: the images that it goes with.

        Raises:
            TypeError, ValueError: no such three, or images that do not belong to the pair's.
        """
        if not isinstance(given, tuple | list) or len(given) != 3:
            raise TypeError(
                "also must be a list of (moving, fixed, weight), got "
                f"{type(given).__name__} for entry {number}"
            )
        name = f"channel {number}"
        weight = checked_weight(f"the weight of {name}", given[2])
        moving = on_grid_of(pair.moving, f"{name}, moving", given[0])
        fixed = on_grid_of(pair.fixed, f"{name}, fixed", given[1])
        with _named(name):
            check_images(moving, pair.fixed, (fixed,))
            fixed = _on_grid(fixed, pair.fixed)
            check_images(moving, fixed)
        return cls(moving, fixed, weight, name)

    def prepared(self, pair: Prepared) -> Prepared:
        """Made ready as the pair is; where a side does not reach, nothing is compared.

        A window of intensities is of the pair's own images: a channel has its percentiles.

        Raises:
            ValueError: nothing is left to compare, or it is one value.
        """
        images = PairImages(self.moving, self.fixed, pair.fixed_mask, pair.moving_mask)
        own: Normalization = replace(pair.normalization, window=None)
        with _named(self.name):
            return images.prepared(own, pair.affine)


class Stack(NamedTuple):
    """A pair with its channels, as the search takes it."""

    moving: Tensor  # (1, C, *larger)
    fixed: Tensor  # (1, C, *S)
    mask: Tensor | None  # (1, C, *S); None: 1 everywhere
    margin: list[int] | None  # voxels that moving has before fixed; None: none
    inside: Tensor  # (1, C, *S), moving on the grid of fixed

    @property
    def turned(self) -> Stack:
        """The fixed images onto the moving ones, on the fixed grid."""
        return Stack(self.fixed, self.inside, self.mask, None, self.fixed)


def stacked(pair: Prepared, channels: Sequence[Prepared] = ()) -> Stack:
    """The images of a pair and of its channels, over each other.

    Args:
        pair: the images themselves.
        channels: each on the fixed grid of the pair.

    Example: `stacked(prepare(moving, fixed)).fixed.shape`
    """
    around, images = pair.surroundings(), (pair, *channels)
    sizes = zip(around.values.shape[2:], pair.fixed.shape, around.margin, strict=True)
    after = [larger - n - before for larger, n, before in sizes]
    grid = pair.fixed.on(pair.fixed.grid.extended(around.margin, after))
    values = [
        channel.normalization.scale(resample_to(channel.as_seen, grid, fill=None), channel.limits)
        for channel in channels
    ]
    moving, fixed, mask, inside = (
        parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        for parts in (
            [around.values, *values],
            [image.fixed_values for image in images],
            [image.mask for image in images],
            [image.moving_values for image in images],
        )
    )
    return Stack(moving, fixed, None if bool(mask.all()) else mask, around.margin, inside)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """A message that says which channel it is of."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(name) else f"{name}: {text}") from None


def _on_grid(image: Image, grid: Image) -> Image:
    """An image on the grid of another one of its side, where it reaches."""
    if image.shape == grid.shape and abs(image.affine - grid.affine).max() < 1e-6:
        return image
    known = coverage(image, grid) > 0
    values = resample_to(as_coarse_as(grid, image), grid, fill=None)
    return replace(grid.with_data(values), path=image.path, valid=known)
