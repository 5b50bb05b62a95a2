"""SN: a small plain network without pooling, (moving, fixed) -> displacement in voxels.

Theljani and Chen 2020 compare their light U-net with it; its widths here are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from diffreg.fields import integrate
from diffreg.models._checks import check_dimensions, check_images, check_integration_steps
from diffreg.models._precision import in_single, stacked

KERNELS = (9, 7, 5, 3)
WIDTHS = (16, 32, 16)  # channels after each convolution but the last


@dataclass(frozen=True)
class SNConfig:
    """What an SN is built from.

    Args:
        dimensions: D of the images; 2, the operators are not yet 3-D.
        integrate: the last convolution gives a velocity, integrated to the displacement of a
            diffeomorphism (`diffreg.fields.integrate`).
        integration_steps: squarings of that integration.

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

    def __post_init__(self) -> None:
        check_dimensions(self.dimensions)
        check_integration_steps(self.integration_steps)


class SN(nn.Module):
    """Four convolutions, 9x9 to 3x3, at full resolution: each voxel sees 10 voxels around it.

    ReLU in between; the last one has no activation and is initialised near zero: training starts
    from the identity. It runs in float32, under autocast too, and so does the integration; the
    others in the dtype of their weights, in which the images are taken. Images of any size; outside
    them the convolutions read 0.

    Args:
        config: None is the default, 40,834 parameters.

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
        channels = (2, *WIDTHS)
        self.blocks = nn.Sequential()
        for (inputs, outputs), kernel in zip(pairwise(channels), KERNELS[:-1], strict=True):
            self.blocks.append(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2))
            self.blocks.append(nn.ReLU(inplace=True))
        last = KERNELS[-1]
        self.head = nn.Conv2d(WIDTHS[-1], self.config.dimensions, last, padding=last // 2)
        nn.init.normal_(self.head.weight, std=1e-5)
        nn.init.zeros_(self.head.get_parameter("bias"))

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Displacement (N, D, *S), float32, voxels, of images (N, 1, *S) of about [0, 1].

        The images may be of any floating dtype.
        """
        check_images(moving, fixed)
        x = self.blocks(stacked(moving, fixed, self.blocks))
        with torch.autocast(x.device.type, enabled=False):
            field = in_single(self.head, x)
            if self.config.integrate:
                return integrate(field, self.config.integration_steps)
        return field
