"""The largest of 2^D voxels, with a gradient that is a gather.

torch's own gradient of volumes is refused on a GPU by torch.use_deterministic_algorithms(True)
before torch 2.13. Windows do not overlap: each voxel asks whether it was the largest of its own.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _Halved(torch.autograd.Function):
    """Of volumes (N, C, D, H, W) of even sizes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(volume: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = F.max_pool3d(volume, 2, return_indices=True)
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient, (largest,) = gradients[0], ctx.saved_tensors
        depth, height, width = (
            torch.arange(0, 2 * n, 2, device=largest.device) for n in gradient.shape[2:]
        )
        rows, columns = 2 * len(height), 2 * len(width)
        first = (depth[:, None, None] * rows + height[:, None]) * columns + width
        parts = [
            torch.where(largest == first + (a * rows + b) * columns + c, gradient, 0)
            for a, b, c in product((0, 1), repeat=3)
        ]
        return _interleaved(parts)


def _interleaved(parts: list[Tensor]) -> Tensor:
    """The volume of which the parts are every second voxel, the last axis changing first."""
    for axis in (4, 3, 2):
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = [torch.stack(pair, axis + 1).flatten(axis, axis + 1) for pair in pairs]
    return parts[0]


def halved(image: Tensor) -> Tensor:
    """The largest of each 2^D voxels of an image (N, C, *S), S even: (N, C, *S / 2)."""
    if image.ndim == 4:
        return F.max_pool2d(image, 2)
    if image.device.type == "cpu":  # torch's gradient is no sum there, and eight times as fast
        return F.max_pool3d(image, 2)
    found: Tensor = _Halved.apply(image)[0]
    return found
