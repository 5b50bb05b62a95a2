"""LU-net: a light U-net, (moving, fixed) -> displacement in voxels.

Theljani and Chen 2020 recommend a light U-net on the two stacked images; its widths here are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffreg.fields import compose
from diffreg.models._checks import check_dimensions, check_images, check_integration_steps
from diffreg.models._edges import averaged, edges, force
from diffreg.models._layers import convolution, head
from diffreg.models._pooling import halved
from diffreg.models._precision import displacement_of, stacked
from diffreg.models._upsampling import doubled
from diffreg.ops import warp


@dataclass(frozen=True)
class LUNetConfig:
    """What an LUNet is built from.

    Args:
        dimensions: D: 2 of images, 3 of volumes.
        widths: channels of each level, finest first.
        integrate: the head gives a velocity, integrated to the displacement of a diffeomorphism
            (`diffreg.fields.integrate`).
        integration_steps: squarings of that integration.
        half_resolution: the head says what half as many voxels along each axis do, which is
            upsampled; the finest level is then on the way down alone. Left out: of volumes with two
            widths or more, where it is better in the same time, and in less memory.
        edges: its input is n n^T of the images' normalised gradients n, in place of the images, and
            at each level the demons force between these: the same in every contrast.
        passes: displacements that it finds one after the other with the same weights, each from the
            moving image warped so far; their composition is the result.

    Raises:
        ValueError: another number of dimensions, widths that are not positive, or one alone at
            half resolution, steps below 0, or passes below 1.

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
    half_resolution: bool | None = None
    edges: bool = False
    passes: int = 1

    def __post_init__(self) -> None:
        check_dimensions(self.dimensions)
        check_integration_steps(self.integration_steps)
        widths = tuple(self.widths)
        if not widths or not all(isinstance(w, int) and w > 0 for w in widths):
            raise ValueError(f"widths must be positive numbers of channels, got {self.widths}")
        if self.half_resolution is None:
            half = self.dimensions == 3 and len(widths) > 1
            object.__setattr__(self, "half_resolution", half)
        if self.half_resolution and len(widths) == 1:
            raise ValueError(f"half_resolution needs two widths or more, got {self.widths}")
        if isinstance(self.passes, bool) or not isinstance(self.passes, int) or self.passes < 1:
            raise ValueError(f"passes must be a whole number >= 1, got {self.passes!r}")
        object.__setattr__(self, "widths", widths)


class LUNet(nn.Module):
    """A light U-net without batch statistics: one pair's result does not depend on the others.

    Two convolutions of 3 voxels a side a level, max-pool down, linear upsampling and concatenation
    up, and such a head without activation, initialised near zero: training starts from the
    identity. The images are taken in the dtype of the weights; the head and what follows it run in
    float32, under autocast too. Images of any size are padded inside, their border repeated, to a
    multiple of the coarsest voxel.

    Args:
        config: None is the default, of images, 122,178 parameters; of volumes, at half
            resolution, it has 359,763.

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
    # Whether a level keeps what goes in alone, and is computed anew in the backward pass.
    activation_checkpointing = False

    def __init__(self, config: LUNetConfig | None = None) -> None:
        super().__init__()
        self.config = LUNetConfig() if config is None else config
        dimensions, widths = self.config.dimensions, self.config.widths
        self.finest = int(bool(self.config.half_resolution))  # the level of the head
        entries = dimensions * (dimensions + 1) // 2 if self.config.edges else 1
        forces = dimensions if self.config.edges else 0
        inputs = [n + forces for n in (2 * entries, *widths[:-1])]
        self.down = nn.ModuleList(
            _level(dimensions, i, o) for i, o in zip(inputs, widths, strict=True)
        )
        self.up = nn.ModuleList(
            _level(dimensions, widths[level] + widths[level + 1], widths[level])
            for level in reversed(range(self.finest, len(widths) - 1))
        )
        self.head = head(dimensions, widths[self.finest], 3)

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """Displacement (N, D, *S), float32, voxels, of images (N, 1, *S) of about [0, 1].

        The images may be of any floating dtype.
        """
        check_images(moving, fixed, self.config.dimensions)
        displacement = self._pass(moving, fixed)
        for _ in range(self.config.passes - 1):
            warped = warp(moving.float(), displacement)
            displacement = compose(displacement, self._pass(warped, fixed))
        return displacement

    def _pass(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """The displacement that one pass finds."""
        images = [edges(moving), edges(fixed)] if self.config.edges else [moving, fixed]
        x = stacked(self.down[0], *images)
        x = _padded(x, 2 ** (len(self.down) - 1))
        forces = self._forces(x)
        skips: list[Tensor] = []
        for block, between in zip(self.down, forces, strict=True):
            x = self._computed(_coarser if skips else _first, block, x, *between)
            skips.append(x)
        for block, skip in zip(self.up, reversed(skips[self.finest : -1]), strict=True):
            x = self._computed(self._finer, block, x, skip)
        return displacement_of(self.head, x, fixed.shape[2:], self.config)

    def _forces(self, x: Tensor) -> list[tuple[Tensor, ...]]:
        """At each level the force (N, D, *S) that it is given, too; none without edges."""
        if not self.config.edges:
            return [()] * len(self.down)
        moving, fixed = x.float().chunk(2, 1)
        found: list[tuple[Tensor, ...]] = []
        for _ in self.down:
            if found:
                moving, fixed = averaged(moving), averaged(fixed)
            found.append((force(moving, fixed).to(x.dtype),))
        return found

    def _computed(self, level: Callable[..., Tensor], *inputs: Any) -> Tensor:
        if not (self.activation_checkpointing and torch.is_grad_enabled()):
            return level(*inputs)
        # A level draws no random numbers: none have to be drawn again.
        found: Tensor = checkpoint(level, *inputs, use_reentrant=False, preserve_rng_state=False)
        return found

    def _finer(self, block: nn.Module, x: Tensor, skip: Tensor) -> Tensor:
        return _first(block, torch.cat([skip, self.doubled(x)], 1))


def _first(block: nn.Module, *x: Tensor) -> Tensor:
    found: Tensor = block(torch.cat(x, 1) if len(x) > 1 else x[0])
    return found


def _coarser(block: nn.Module, x: Tensor, *force: Tensor) -> Tensor:
    return _first(block, halved(x), *force)


def _level(dimensions: int, inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions of 3 voxels a side, each with its activation."""
    return nn.Sequential(
        convolution(dimensions, inputs, outputs, 3),
        nn.LeakyReLU(0.2, inplace=True),
        convolution(dimensions, outputs, outputs, 3),
        nn.LeakyReLU(0.2, inplace=True),
    )


def _padded(x: Tensor, multiple: int) -> Tensor:
    """The image with its border repeated after the last voxels, up to multiples of `multiple`."""
    if x.device.type != "cpu" and x.requires_grad:
        return _continued(x, multiple)
    more = [part for size in reversed(x.shape[2:]) for part in (0, -size % multiple)]
    return F.pad(x, more, mode="replicate")


def _continued(x: Tensor, multiple: int) -> Tensor:
    """The same, with a gradient that a GPU repeats to the bit: torch's adds in any order."""
    for axis in range(2, x.ndim):
        more = list(x.shape)
        more[axis] = -more[axis] % multiple
        if more[axis]:
            x = torch.cat([x, x.narrow(axis, -1, 1).expand(more)], axis)
    return x
