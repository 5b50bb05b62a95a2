"""Warp against grid_sample with its identity grid made beforehand, PyTorch's own best."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.nn.functional as F
from harness import Case, displacement, image_pair, main

from diffreg.ops import warp


def grid_sample(moving: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """What PyTorch's users write: voxel units to [-1, 1], last axis first."""
    size = torch.tensor([u.shape[3] - 1, u.shape[2] - 1], dtype=u.dtype)
    grid = _identity(u.shape[2], u.shape[3]) + u.flip(1).permute(0, 2, 3, 1) * (2 / size)
    return F.grid_sample(moving, grid, padding_mode="border", align_corners=True)


_GRIDS: dict[tuple[int, int], torch.Tensor] = {}


def _identity(height: int, width: int) -> torch.Tensor:
    if (height, width) not in _GRIDS:
        axes = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
        y, x = torch.meshgrid(*axes, indexing="ij")
        _GRIDS[height, width] = torch.stack([x, y], dim=-1).unsqueeze(0)
    return _GRIDS[height, width]


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
