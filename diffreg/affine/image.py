"""An image as the affine search sees it: intensities, what counts of them, and places in mm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffreg.ops import affine_warp

SIGMA = 1.0  # voxels, of the blur: less, and losses have dips where two grids fall together
REACH = 2  # voxels that the blur sees either way, and that an image is carried on beyond its mask


class PlacedImage(NamedTuple):
    """Intensities and where they lie.

    Args:
        values: (1, 1, *S) float32, about [0, 1].
        mask: (1, 1, *S) float32, 1 where they count, else 0; None: everywhere.
        affine: (D + 1, D + 1) float64, voxel -> mm.
    """

    values: Tensor
    mask: Tensor | None
    affine: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(*S)."""
        return tuple(self.values.shape[2:])

    @property
    def counted(self) -> Tensor:
        """The mask, ones where there is none."""
        return torch.ones_like(self.values) if self.mask is None else self.mask

    @property
    def spacing(self) -> Tensor:
        """(D,) mm."""
        return self.affine[:-1, :-1].norm(dim=0)

    @property
    def extent(self) -> float:
        """The geometric mean of its lengths, mm."""
        lengths = self.spacing * torch.tensor(self.shape, dtype=torch.float64)
        return float(lengths.log().mean().exp())

    @property
    def middle(self) -> Tensor:
        """(D,) mm."""
        return self.placed([(n - 1) / 2 for n in self.shape])

    def placed(self, voxel: Sequence[float]) -> Tensor:
        """Where a place in voxels lies, (D,) mm."""
        return (self.affine @ torch.tensor([*voxel, 1.0], dtype=torch.float64))[:-1]

    def cropped(self) -> PlacedImage:
        """The smallest box that holds all that counts."""
        if self.mask is None:
            return self
        places = self.mask[0, 0].nonzero()
        first, last = places.amin(0).tolist(), places.amax(0).tolist()
        box: tuple[slice, ...] = (slice(None), slice(None))
        box += tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))
        mask = self.mask[box]
        affine = self.affine.clone()
        affine[:-1, -1] = self.placed(first)
        return PlacedImage(self.values[box], None if bool(mask.all()) else mask, affine)

    def coarsened(self, spacing: float) -> PlacedImage:
        """Means of what counts over blocks of about so many mm, blurred by a voxel of theirs.

        A block counts where half of it does. An axis is coarsened as far as it can bear.
        """
        lengths = zip(self.shape, self.spacing.tolist(), strict=True)
        block = [max(1, min(n, round(spacing / length))) for n, length in lengths]
        pad = [p for n, b in zip(self.shape, block, strict=True) for p in (-n % b, 0)][::-1]
        share = _pooled(F.pad(self.counted, pad), block)
        values = _pooled(F.pad(self.values * self.counted, pad), block) / share.clamp(min=1e-6)
        mask = (share >= 0.5).to(torch.float32)
        to_block = torch.diag(torch.tensor([*block, 1.0], dtype=torch.float64))
        to_block[:-1, -1] = (torch.tensor(block, dtype=torch.float64) - 1) / 2
        whole = bool(mask.all())
        values = _blurred(values if whole else _carried_on(values, mask))
        return PlacedImage(values, None if whole else mask, self.affine @ to_block)

    def sheared(self) -> PlacedImage:
        """The image on a grid that is sheared by a voxel along each axis.

        Where two grids coincide nothing is interpolated, and noise is seen as it is; a turn of a
        degree would smooth it and seem to fit better. Sampled between its voxels, evenly all the
        way, an image looks the same to every map.
        """
        matrix = torch.eye(len(self.shape) + 1, dtype=torch.float64)
        for axis, n in enumerate(self.shape):
            along = (axis - 1) % len(self.shape)
            matrix[along, axis] = 1 / n
            matrix[along, -1] = -(n - 1) / (2 * n)
        step = matrix[None, :-1]
        values = affine_warp(self.values, step, size=self.shape)
        mask = None if self.mask is None else affine_warp(self.mask, step, size=self.shape).round()
        return PlacedImage(values, mask, self.affine @ matrix)

    def mass(self) -> Tensor:
        """How far what counts is from the background, (1, 1, *S): an image may be dark on white.

        The background is the median of the border, where there is a border that counts, else 0.
        """
        border = torch.zeros(self.shape, dtype=torch.bool)
        for axis, n in enumerate(self.shape):
            if n > 2:
                border.index_fill_(axis, torch.tensor([0, n - 1]), True)
        chosen = border & (self.counted[0, 0] > 0)
        ground = self.values[0, 0][chosen].median() if bool(chosen.any()) else 0.0
        return (self.values - ground).abs() * self.counted

    def centre_of_mass(self) -> Tensor:
        """(D,) mm; the middle of an image that shows nothing."""
        mass = self.mass()[0, 0].numpy().astype(np.float64)
        if not mass.sum() > 0:
            return self.middle
        axes = set(range(mass.ndim))
        along = [mass.sum(axis=tuple(axes - {axis})) for axis in sorted(axes)]
        return self.placed([float(m @ np.arange(len(m)) / m.sum()) for m in along])


def _pooled(image: Tensor, size: list[int], stride: int | None = None) -> Tensor:
    """Means over blocks, or over windows round every voxel."""
    pool = F.avg_pool2d if image.ndim == 4 else F.avg_pool3d
    if stride is not None:  # padded here: torch refuses an image that is smaller than the window
        image = F.pad(image, [n // 2 for n in reversed(size) for _ in range(2)])
    return pool(image, size, stride)


def _carried_on(values: Tensor, mask: Tensor) -> Tensor:
    """Values beyond the mask as beyond an image's edge: those nearby; a voxel at a time."""
    values, window = values * mask, [3] * (values.ndim - 2)
    for _ in range(2 * REACH):
        share = _pooled(mask, window, 1)
        around = _pooled(values, window, 1) / share.clamp(min=1e-6)
        values = torch.where(mask > 0, values, around)
        mask = (share > 1e-6).to(mask.dtype)
    return values


def _blurred(values: Tensor) -> Tensor:
    """Blurred by a Gaussian of SIGMA voxels, its edge repeated."""
    steps = torch.arange(-REACH, REACH + 1)
    taps = (-0.5 * (steps.to(torch.float32) / SIGMA) ** 2).exp()
    for axis in range(2, values.ndim):
        n = values.shape[axis]
        rows = [values.index_select(axis, (torch.arange(n) + k).clamp(0, n - 1)) for k in steps]
        pairs = zip(rows, (taps / taps.sum()).tolist(), strict=True)
        values = torch.stack([row * tap for row, tap in pairs]).sum(0)
    return values
