"""The last convolution, in float32 whatever the network is held in."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from diffreg.ops._checks import arithmetic_dtype


def field_of(head: nn.Conv2d, features: Tensor) -> Tensor:
    """A field of voxels: half types would round it; a network in float64 keeps that.

    Args:
        head: the convolution, without activation.
        features: its input, (N, C, *S).

    Returns:
        (N, D, *S), float32, or float64 where the convolution is.
    """
    dtype = arithmetic_dtype(head.weight)
    if head.weight.dtype == dtype:
        return head(features.to(dtype))
    bias = None if head.bias is None else head.bias.to(dtype)
    weight = head.weight.to(dtype)
    return F.conv2d(features.to(dtype), weight, bias, head.stride, head.padding)
