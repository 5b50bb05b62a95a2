"""What networks are put together from, of images and of volumes: torch has layers of each."""

from __future__ import annotations

import torch
from torch import nn

_CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def memory_order(dimensions: int, channels_last: bool = True) -> torch.memory_format:
    """The memory order of weights and images.

    Args:
        dimensions: D of the images.
        channels_last: with a voxel's channels side by side, which on a CPU halves the time of
            convolutions of images; of volumes it is no slower.

    Example:
        >>> from diffreg.models import memory_order
        >>> memory_order(3)
        torch.channels_last_3d
    """
    return _CHANNELS_LAST[dimensions] if channels_last else torch.contiguous_format


def convolution(
    dimensions: int, inputs: int, outputs: int, kernel: int, stride: int = 1
) -> nn.Conv2d | nn.Conv3d:
    """A convolution that keeps the size, at stride 2 half of it, rounded up."""
    kind = _CONVOLUTIONS[dimensions]
    return kind(inputs, outputs, kernel, stride=stride, padding=kernel // 2)


def head(dimensions: int, inputs: int, kernel: int) -> nn.Conv2d | nn.Conv3d:
    """The last convolution, to a displacement; near zero: training starts from the identity."""
    found = convolution(dimensions, inputs, dimensions, kernel)
    nn.init.normal_(found.weight, std=1e-5)
    nn.init.zeros_(found.get_parameter("bias"))
    return found
