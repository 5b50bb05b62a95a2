"""Data and a measure of one's own for `diffreg train`.

[data]
name = "own_parts:Folder"           # in place of images
settings = {folder = "/data/heads"}
validation_settings = {folder = "/data/other_heads", noise = 0.0}
workers = 4

[objective]
similarity = {ncc = 1.0, "own_parts:robust" = 0.2}
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from diffreg.data.folders import folder_images
from diffreg.data.images import read_image
from diffreg.data.prepare import prepare


class Folder(Dataset):
    """Every ordered pair of a folder's images, read when it is drawn: any number fits in memory.

    The trainer seeds torch, numpy and random for each sample: what is drawn here is a function of
    the run's seed and of the draw, in whatever worker.

    Args:
        folder: of images of one size.
        noise: standard deviation of what is added to each image, in parts of its range.
    """

    def __init__(self, folder: str, noise: float = 0.02) -> None:
        self.files = folder_images(Path(folder))
        self.noise = noise

    def __len__(self) -> int:
        return len(self.files) * (len(self.files) - 1)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        first, second = divmod(index, len(self.files) - 1)
        second += second >= first
        moving, fixed = (read_image(self.files[k]) for k in (first, second))
        pair = prepare(moving, fixed)  # in [0, 1], on the fixed grid, as `register` does it
        images = (pair.moving_values[0], pair.fixed_values[0])
        images = [image + self.noise * torch.randn_like(image) for image in images]
        return {"moving": images[0], "fixed": images[1]}


def robust(warped: Tensor, fixed: Tensor, mask: Tensor | None) -> Tensor:
    """Charbonnier's difference, sqrt(d^2 + 0.01^2), mean over what counts: (N,)."""
    apart = ((warped - fixed) ** 2 + 1e-4).sqrt()
    weights = torch.ones_like(apart) if mask is None else mask.expand_as(apart)
    return (weights * apart).flatten(1).sum(1) / weights.flatten(1).sum(1).clamp(min=1e-6)
