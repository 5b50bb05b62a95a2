"""What a network computes in: its weights' dtype, but for its head, which is float32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffreg.fields import integrate
from diffreg.models._upsampling import doubled


class _Output(Protocol):
    """What a config says of a network's output."""

    @property
    def integrate(self) -> bool: ...
    @property
    def integration_steps(self) -> int: ...
    @property
    def half_resolution(self) -> bool | None: ...


def stacked(layers: nn.Module, *images: Tensor) -> Tensor:
    """Images (N, C, *S) as channels of one, in the dtype of the layers that read them."""
    dtype = next(layers.parameters()).dtype
    return torch.cat([image.to(dtype) for image in images], 1)


def displacement_of(
    head: nn.Conv2d | nn.Conv3d, x: Tensor, shape: Sequence[int], config: _Output
) -> Tensor:
    """What the head says of the features, as a displacement on the grid of the images.

    Args:
        head: the last convolution.
        x: (N, C, *P), P at least the sizes of the images, or half of them at half resolution.
        shape: *S of the images.
        config: of the network.

    Returns:
        (N, D, *S), float32, voxels.
    """
    half = config.half_resolution
    with torch.autocast(x.device.type, enabled=False):
        field = _first(in_single(head, x), [(n + 1) // 2 for n in shape] if half else shape)
        if config.integrate:
            field = integrate(field, config.integration_steps)
        return _first(2 * doubled(field), shape) if half else field


def _first(field: Tensor, shape: Sequence[int]) -> Tensor:
    """The part of a field with the first voxels along each axis."""
    for axis, size in enumerate(shape, start=2):
        field = field.narrow(axis, 0, size)
    return field


def in_single(convolution: nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """A convolution in float32, whatever its weights are stored in."""
    weight, bias = convolution.weight, convolution.bias
    if weight.dtype == torch.float32:
        found: Tensor = convolution(x.float())
        return found
    bias = None if bias is None else bias.float()
    convolve = F.conv2d if x.ndim == 4 else F.conv3d
    return convolve(x.float(), weight.float(), bias, padding=convolution.padding)
