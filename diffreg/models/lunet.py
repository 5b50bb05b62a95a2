"""LU-net: a light U-net, (moving, fixed) -> displacement in voxels.

Theljani and Chen 2020 recommend a light U-net on the two stacked images; its widths here are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffreg.fields import integrate
from diffreg.models._checks import check_dimensions, check_images, check_integration_steps
from diffreg.models._precision import in_single, stacked
from diffreg.models._upsampling import doubled


@dataclass(frozen=True)
class LUNetConfig:
    """What an LUNet is built from.

    Args:
        dimensions: D of the images; 2, the operators are not yet 3-D.
        widths: channels of each level, finest first.
        integrate: the head gives a velocity, integrated to the displacement of a diffeomorphism
            (`diffreg.fields.integrate`).
        integration_steps: squarings of that integration.

    Raises:
        ValueError: another number of dimensions, widths that are not positive, or steps below 0.

    Example:
        >>> from diffreg.models.lunet import LUNetConfig
        >>> LUNetConfig().widths
        (8, 16, 32, 64)
    """

    name: ClassVar[str] = "lunet"
    dimensions: int = 2
    widths: tuple[int, ...] = (8, 16, 32, 64)
    integrate: bool = False
    integration_steps: int = 7

    def __post_init__(self) -> None:
        check_dimensions(self.dimensions)
        check_integration_steps(self.integration_steps)
        widths = tuple(self.widths)
        if not widths or not all(isinstance(w, int) and w > 0 for w in widths):
            raise ValueError(f"widths must be positive numbers of channels, got {self.widths}")
        object.__setattr__(self, "widths", widths)


class LUNet(nn.Module):
    """A light U-net without batch statistics: one pair's result does not depend on the others.

    Two 3x3 convolutions a level, max-pool down, bilinear upsampling and concatenation up, and a 3x3
    head without activation, initialised near zero: training starts from the identity. The images
    are taken in the dtype of the weights; the head and what follows it run in float32, under
    autocast too. Images of any size are padded inside, their border repeated, to a multiple of the
    coarsest voxel.

    Args:
        config: None is the default, 122,178 parameters.

    Source:
        Theljani and Chen 2020: two input channels, a displacement out, a light U-net. Widths,
        depth and activation are ours.

    Example:
        >>> import torch
        >>> from diffreg.models.lunet import LUNet
        >>> LUNet()(torch.rand(1, 1, 50, 33), torch.rand(1, 1, 50, 33)).shape
        torch.Size([1, 2, 50, 33])
    """

    name = LUNetConfig.name
    Config = LUNetConfig
    doubled = staticmethod(doubled)

    def __init__(self, config: LUNetConfig | None = None) -> None:
        super().__init__()
        self.config = LUNetConfig() if config is None else config
        widths = self.config.widths
        inputs = (2, *widths[:-1])
        self.down = nn.ModuleList(_level(i, o) for i, o in zip(inputs, widths, strict=True))
        self.up = nn.ModuleList(
            _level(fine + coarse, fine)
            for fine, coarse in zip(widths[-2::-1], widths[:0:-1], strict=True)
        )
        self.head = nn.Conv2d(widths[0], self.config.dimensions, 3, padding=1)
        nn.init.normal_(self.head.weight, std=1e-5)
        nn.init.zeros_(self.head.get_parameter("bias"))

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Displacement (N, D, *S), float32, voxels, of images (N, 1, *S) of about [0, 1].

        The images may be of any floating dtype.
        """
        check_images(moving, fixed)
        shape = fixed.shape[2:]
        x = stacked(moving, fixed, self.down[0])
        x = _padded(x, 2 ** (len(self.down) - 1))
        skips = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            x = block(torch.cat([skip, self.doubled(x)], 1))
        with torch.autocast(x.device.type, enabled=False):
            field = in_single(self.head, x)[..., : shape[0], : shape[1]]
            if self.config.integrate:
                return integrate(field, self.config.integration_steps)
        return field


def _level(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3x3 convolutions, each with its activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.LeakyReLU(0.2, inplace=True),
    )


def _padded(x: Tensor, multiple: int) -> Tensor:
    """The image with its border repeated below and to the right, up to multiples of `multiple`."""
    height, width = x.shape[2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
