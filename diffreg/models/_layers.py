"""What networks are put together from, of images and of volumes: torch has layers of each."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Channels times the two outer sizes of a single volume up to which torch, on a CPU and in float32,
# takes its slow convolution for kernels of 3^3 (`use_mkldnn` in ATen/native/Convolution.cpp, torch
# 2.13).
_SLOW = 20480
_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def memory_order(dimensions: int, channels_last: bool = True) -> torch.memory_format:
    """The memory order of weights and images.

    Args:
        dimensions: D of the images.
        channels_last: with a voxel's channels side by side, which on a CPU halves the time of
            convolutions of images, and takes a fifth to a half off those of volumes.

    Example:
        >>> from diffreg.models import memory_order
        >>> memory_order(3)
        torch.channels_last_3d
    """
    return _CHANNELS_LAST[dimensions] if channels_last else torch.contiguous_format


def in_memory_order(network: nn.Module, dimensions: int, channels_last: bool = True) -> nn.Module:
    """The network, its weights of convolutions of D axes in the order of the images.

    Parameters of another rank, which no such order has, stay as they are.

    Args:
        network: whose parameters and buffers change their strides, in place.
        dimensions, channels_last: as `memory_order`.

    Example:
        >>> import torch
        >>> from diffreg.models import in_memory_order
        >>> in_memory_order(torch.nn.Conv2d(2, 2, 3), 2).weight.stride()
        (18, 1, 6, 2)
    """
    order = memory_order(dimensions, channels_last)
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.ndim == dimensions + 2:
            tensor.data = tensor.data.to(memory_format=order)
    return network


class _Convolution3d(nn.Conv3d):
    """torch's, to rounding; a small single volume in two slabs, which torch does at full speed."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._is_slow(x):
            return super().forward(x)
        depth = x.shape[2]
        half = (depth + 1) // 2
        padded = F.pad(x, (0, 0, 0, 0, 1, 1 + 2 * half - depth))
        slabs = [padded.narrow(2, first, half + 2) for first in (0, half)]
        found = F.conv3d(torch.cat(slabs), self.weight, self.bias, padding=(0, 1, 1))
        return torch.cat([found[:1], found[1:, :, : depth - half]], 2)

    def _is_slow(self, x: Tensor) -> bool:
        fixed = torch.compiler.is_compiling() or torch.jit.is_tracing()  # for other sizes, too
        if fixed or torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.is_available():
            return False
        usual = self.kernel_size == (3, 3, 3) and self.stride == (1, 1, 1) and x.ndim == 5
        single = usual and len(x) == 1 and x.device.type == "cpu" and x.dtype == torch.float32
        return single and math.prod(x.shape[1:4]) <= _SLOW


_CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: _Convolution3d}


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
