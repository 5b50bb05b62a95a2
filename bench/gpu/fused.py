"""Fused CUDA operators of other projects, where they are installed: they are never shipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from work import Case, Draw

Tensors = tuple[torch.Tensor, ...]
MARGIN = 12  # voxels at the border that are not compared: windows end differently there


@dataclass(frozen=True)
class Rival:
    """One of their functions.

    Args:
        name, module: as it is called, and imported.
        case: ours on the same work.
        leaf: of our inputs, theirs that is differentiated, in their layout.
        value: of our inputs and their leaf.
        gradient: of their gradient, ours.
        least: the smallest agreement at which a time is printed.
    """

    name: str
    module: str
    case: str
    leaf: Callable[[Tensors], torch.Tensor]
    value: Callable[[Tensors, torch.Tensor], torch.Tensor]
    gradient: Callable[[torch.Tensor], torch.Tensor]
    least: float = 0.999

    def prepared(self, inputs: Tensors) -> Callable[[], Any]:
        """Forward and backward, the layout made beforehand."""
        ours = tuple(tensor.detach() for tensor in inputs)
        leaf = self.leaf(ours).detach().contiguous().requires_grad_()
        upstream = torch.ones_like(self.value(ours, leaf).detach())
        return lambda: torch.autograd.grad(self.value(ours, leaf), leaf, upstream)


def agreement(rival: Rival, case: Case, draw: Draw) -> float:
    """The cosine of their gradient and ours inside: factors are left to each."""
    inputs = case.inputs(draw)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    value = case.ours(*inputs)
    (ours,) = torch.autograd.grad(value, wanted, torch.ones_like(value))
    theirs = rival.gradient(rival.prepared(inputs)()[0])
    inside = (..., *(slice(MARGIN, n - MARGIN) for n in ours.shape[2:]))
    a, b = ours[inside].flatten().double(), theirs[inside].flatten().double()
    return float((a @ b).abs() / (a.norm() * b.norm()))


def _to_unit(u: torch.Tensor) -> torch.Tensor:
    """(1, 3) factors from voxels to [-1, 1], x first."""
    return torch.tensor([2 / (n - 1) for n in u.shape[2:]][::-1], device=u.device, dtype=u.dtype)


def _fireants_warp(inputs: Tensors, grid: torch.Tensor) -> torch.Tensor:
    from fireants.interpolator.fused_grid_sample import fused_grid_sampler_3d

    return fused_grid_sampler_3d(inputs[0], grid=grid, padding_mode="border", align_corners=True)


def _back(gradient: torch.Tensor) -> torch.Tensor:
    """Of a normalised grid, x last, to voxels: ours."""
    sizes = gradient.shape[1:-1][::-1]
    scale = torch.tensor([2 / (n - 1) for n in sizes], device=gradient.device)
    return (gradient * scale).movedim(-1, 1).flip(1)


def _fireants_lncc(inputs: Tensors, warped: torch.Tensor) -> torch.Tensor:
    from fireants.losses.fusedcc import FusedLocalNormalizedCrossCorrelationLoss

    return FusedLocalNormalizedCrossCorrelationLoss(3, kernel_size=9)(warped, inputs[1])


def _fused_lncc(inputs: Tensors, warped: torch.Tensor) -> torch.Tensor:
    from fused_lncc import fused_lncc_loss

    return fused_lncc_loss(warped, inputs[1], 9, 1e-5)


FUSED = (
    Rival(
        "FireANTs, fused warp",
        "fireants_fused_ops",
        "warp",
        lambda inputs: inputs[1].flip(1).movedim(1, -1) * _to_unit(inputs[1]),
        _fireants_warp,
        _back,
    ),
    Rival(
        "FireANTs, fused lncc",
        "fireants_fused_ops",
        "local_correlation",
        lambda inputs: inputs[0],
        _fireants_lncc,
        lambda gradient: gradient,
        least=0.9,  # its gradient is not quite that of its value
    ),
    Rival(
        "fused-lncc",
        "fused_lncc",
        "local_correlation",
        lambda inputs: inputs[0],
        _fused_lncc,
        lambda gradient: gradient,
    ),
)
