"""Bilinear upsampling to twice the size, with a gradient that is a convolution.

torch's own gradient of it takes four times as long on a CPU (a fifth of a U-net's training step),
and on a GPU adds in an order that changes from run to run.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _Doubled(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(image: Tensor) -> Tensor:
        return F.interpolate(image, scale_factor=2.0, mode="bilinear", align_corners=False)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        channels = gradient.shape[1]
        line = gradient.new_full((4,), 0.75)  # made on the device: CUDA graphs allow no copy
        line[::3] = 0.25
        weights = torch.outer(line, line).repeat(channels, 1, 1, 1)
        around = F.pad(gradient, (1, 1, 1, 1), mode="replicate")
        return F.conv2d(around, weights, stride=2, groups=channels)


def doubled(image: Tensor) -> Tensor:
    """An image (N, C, H, W) at twice its size, half-voxel centres: (N, C, 2 H, 2 W)."""
    found: Tensor = _Doubled.apply(image)
    return found
