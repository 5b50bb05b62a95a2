"""Warp against grid_sample with its identity grid made beforehand, PyTorch's own best."""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from harness import Case, displacement, image_pair, main

from diffreg.ops import warp


def grid_sample(moving: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """What PyTorch's users write: voxel units to [-1, 1], last axis first."""
    identity, scale = _constants(u.shape[2], u.shape[3], u.device)
    grid = identity + u.flip(1).permute(0, 2, 3, 1) * scale
    return F.grid_sample(moving, grid, padding_mode="border", align_corners=True)


@functools.cache
def _constants(height: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    axes = (torch.linspace(-1, 1, n, device=device) for n in (height, width))
    y, x = torch.meshgrid(*axes, indexing="ij")
    scale = torch.tensor([2 / (width - 1), 2 / (height - 1)], device=device)
    return torch.stack([x, y], dim=-1).unsqueeze(0), scale


CASE = Case(
    name="warp",
    inputs=lambda samples, size: (image_pair(samples, size)[1], displacement(samples, size)),
    operator=warp,
    reference=grid_sample,
    bytes_forward=16,
    bytes_backward=24,
)

if __name__ == "__main__":
    main(CASE)
