"""Pairs on the grid of their fixed image: one as it is, and several drawn together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffreg.data.known import Known


class Sample(NamedTuple):
    """A pair on the grid of its fixed image, (1, 1, *S) each; None where the manifest has none.

    The images are float32 in [0, 1], the mask is 0 or 1, None where all voxels are compared, the
    labels are whole numbers.
    """

    moving: Tensor
    fixed: Tensor
    mask: Tensor | None
    moving_label: Tensor | None
    fixed_label: Tensor | None
    display: tuple[bool, bool, bool]
    known: Known = Known()


class Batch(NamedTuple):
    """Pairs drawn together: images (N, 1, *S) in [0, 1], and what counts."""

    moving: Tensor
    fixed: Tensor
    mask: Tensor | None
    known: Known = Known()

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
