"""Pairs on the grid of their fixed image: one as it is, and several drawn together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffreg.data.known import Known


class Sample(NamedTuple):
    """A pair on the grid of its fixed image, (1, 1, *S) each; None where the manifest has none.

    The images are float32 in [0, 1], the mask is 0 or 1, None where all voxels are compared, the
    labels are whole numbers. Of a window that was cut out of a pair, `whole` is the pair's size, in
    whose voxels points still are.
    """

    moving: Tensor
    fixed: Tensor
    mask: Tensor | None
    moving_label: Tensor | None
    fixed_label: Tensor | None
    display: tuple[bool, bool, bool]
    known: Known = Known()
    whole: tuple[int, ...] = ()

    @property
    def size(self) -> tuple[int, ...]:
        """Of the pair (*S)."""
        return tuple(self.whole or self.fixed.shape[2:])  # pinned memory makes lists of tuples

    def window(self, low: Sequence[int], size: Sequence[int]) -> Sample:
        """The part of a size, from a voxel on, as views; a window as it is."""
        if self.whole:
            return self

        def cut(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[place]

        both = zip(low, size, strict=True)
        place: Any = (..., *(slice(first, first + length) for first, length in both))
        known = self.known._replace(displacement=cut(self.known.displacement))
        return Sample._make([*map(cut, self[:5]), self.display, known, self.size])

    def copied(self) -> Sample:
        """Of a window: without the rest of its pair, which views would hold."""

        def copy(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.clone()

        known = self.known._replace(displacement=copy(self.known.displacement))
        return Sample._make([*map(copy, self[:5]), self.display, known, self.whole])

    @property
    def both_labels(self) -> tuple[Tensor | None, Tensor | None]:
        """The label maps; those of one image alone are compared with nothing."""
        if self.moving_label is None or self.fixed_label is None:
            return None, None
        return self.moving_label, self.fixed_label


class Batch(NamedTuple):
    """Pairs drawn together: images (N, 1, *S) in [0, 1], and what counts."""

    moving: Tensor
    fixed: Tensor
    mask: Tensor | None
    known: Known = Known()

    @classmethod
    def of(cls, several: Sequence[Batch]) -> Batch:
        """Several one after the other, which have the same but for masks."""
        masks = None
        if any(batch.mask is not None for batch in several):
            both = [(batch.mask, batch.fixed) for batch in several]
            masks = torch.cat([torch.ones_like(f) if mask is None else mask for mask, f in both])
        each = zip(*(batch.known for batch in several), strict=True)
        known = (torch.cat(parts) if parts[0] is not None else None for parts in each)
        moving = torch.cat([batch.moving for batch in several])
        fixed = torch.cat([batch.fixed for batch in several])
        return cls(moving, fixed, masks, Known._make(known))

    def part(self, which: slice) -> Batch:
        """Some of the pairs."""
        mask = None if self.mask is None else self.mask[which]
        return Batch(self.moving[which], self.fixed[which], mask, self.known.part(which))

    def to(self, device: torch.device | str) -> Batch:
        """The same on a device; from pinned memory the host does not wait."""
        mask = None if self.mask is None else self.mask.to(device, non_blocking=True)
        moving = self.moving.to(device, non_blocking=True)
        fixed = self.fixed.to(device, non_blocking=True)
        return Batch(moving, fixed, mask, self.known.to(device))
