"""What a network computes in: its weights' dtype, but for its head, which is float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def stacked(moving: Tensor, fixed: Tensor, layers: nn.Module) -> Tensor:
    """Both images as channels (N, 2, *S), in the dtype of the layers that read them."""
    dtype = next(layers.parameters()).dtype
    return torch.cat([moving.to(dtype), fixed.to(dtype)], 1)


def in_single(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution in float32, whatever its weights are stored in."""
    weight, bias = convolution.weight, convolution.bias
    if weight.dtype == torch.float32:
        found: Tensor = convolution(x.float())
        return found
    bias = None if bias is None else bias.float()
    return F.conv2d(x.float(), weight.float(), bias, padding=convolution.padding)
