"""Linear upsampling to twice the size, with a gradient that is a convolution.

torch's own gradient of it takes four times as long on a CPU (a fifth of a U-net's training step),
and on a GPU adds in an order that changes from run to run.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_MODES = {2: "bilinear", 3: "trilinear"}


class _Doubled(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(image: Tensor) -> Tensor:
        mode = _MODES[image.ndim - 2]
        return F.interpolate(image, scale_factor=2.0, mode=mode, align_corners=False)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        channels, dimensions = gradient.shape[1], gradient.ndim - 2
        line = gradient.new_full((4,), 0.75)  # made on the device: CUDA graphs allow no copy
        line[::3].fill_(0.25)
        weights = line
        for _ in range(dimensions - 1):
            weights = weights[..., None] * line
        weights = weights.repeat(channels, *[1] * (dimensions + 1))
        around = F.pad(gradient, (1, 1) * dimensions, mode="replicate")
        convolve = F.conv2d if dimensions == 2 else F.conv3d
        return convolve(around, weights, stride=2, groups=channels)


def doubled(image: Tensor) -> Tensor:
    """An image (N, C, *S) at twice its size, half-voxel centres: (N, C, *2 S)."""
    found: Tensor = _Doubled.apply(image)
    return found
