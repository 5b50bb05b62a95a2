"""SN: a small plain network without pooling, (moving, fixed) -> displacement in voxels.

Theljani and Chen 2020 compare their light U-net with it; its widths here are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from diffreg.models._checks import check_dimensions, check_images, check_integration_steps
from diffreg.models._layers import convolution, head
from diffreg.models._precision import displacement_of, stacked

KERNELS = (9, 7, 5, 3)
WIDTHS = (16, 32, 16)  # channels after each convolution but the last


@dataclass(frozen=True)
class SNConfig:
    """What an SN is built from.

    Args:
        dimensions: D: 2 of images, 3 of volumes.
        integrate: the last convolution gives a velocity, integrated to the displacement of a
            diffeomorphism (`diffreg.fields.integrate`).
        integration_steps: squarings of that integration.
        half_resolution: the first convolution takes every second voxel along each axis, and the
            displacement is upsampled. Left out: of volumes.

    Raises:
        ValueError: another number of dimensions, or steps below 0.

    Example:
        >>> from diffreg.models.sn import SNConfig
        >>> SNConfig().integrate
        False
    """

    name: ClassVar[str] = "sn"
    dimensions: int = 2
    integrate: bool = False
    integration_steps: int = 7
    half_resolution: bool | None = None

    def __post_init__(self) -> None:
        check_dimensions(self.dimensions)
        check_integration_steps(self.integration_steps)
        if self.half_resolution is None:
            object.__setattr__(self, "half_resolution", self.dimensions == 3)


class SN(nn.Module):
    """Four convolutions, 9 to 3 voxels a side, without pooling: a voxel sees 10 voxels around it.

    ReLU in between; the last one has no activation and is initialised near zero: training starts
    from the identity. It runs in float32, under autocast too, and so does the integration; the
    others in the dtype of their weights, in which the images are taken. Images of any size; outside
    them the convolutions read 0.

    Args:
        config: None is the default, of images, 40,834 parameters; of volumes it has 264,307.

    Source:
        Theljani and Chen 2020: four blocks, kernels of different sizes, ReLU, two input channels, a
        displacement out. Kernel sizes and widths are ours.

    Example:
        >>> import torch
        >>> from diffreg.models.sn import SN
        >>> SN()(torch.rand(1, 1, 50, 33), torch.rand(1, 1, 50, 33)).shape
        torch.Size([1, 2, 50, 33])
    """

    name = SNConfig.name
    Config = SNConfig

    def __init__(self, config: SNConfig | None = None) -> None:
        super().__init__()
        self.config = SNConfig() if config is None else config
        dimensions, channels = self.config.dimensions, (2, *WIDTHS)
        strides = (1 + bool(self.config.half_resolution), 1, 1)
        self.blocks = nn.Sequential()
        for between, kernel, stride in zip(pairwise(channels), KERNELS[:-1], strides, strict=True):
            self.blocks.append(convolution(dimensions, *between, kernel, stride))
            self.blocks.append(nn.ReLU(inplace=True))
        self.head = head(dimensions, WIDTHS[-1], KERNELS[-1])

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Displacement (N, D, *S), float32, voxels, of images (N, 1, *S) of about [0, 1].

        The images may be of any floating dtype.
        """
        check_images(moving, fixed, self.config.dimensions)
        x = self.blocks(stacked(self.blocks, moving, fixed))
        return displacement_of(self.head, x, fixed.shape[2:], self.config)
