"""What each step is trained on, drawn beforehand: windows of images that are in memory."""

from __future__ import annotations

import numpy as np
import torch
from images import Frames, Pairs
from recipes import Recipe
from torch import Tensor

from diffreg.data.synthetic import random_warp
from diffreg.ops import warp

FIELDS = 500  # that moving images are bent by


class Draw:
    """What each step is trained on: drawn beforehand, cut out on the device.

    No step needs the host, so that a GPU takes a whole one from a CUDA graph.

    Args:
        moving, fixed: images (K, H, W).
        chosen: (steps, N, 2), which of them.
        recipe: of the run.
        random: what the windows are drawn by.
        device: of the images.
    """

    def __init__(
        self,
        moving: Tensor,
        fixed: Tensor,
        chosen: Tensor,
        recipe: Recipe,
        random: np.random.Generator,
        device: torch.device,
    ) -> None:
        shape = (*chosen.shape[:2], 2)
        ends = np.array(moving.shape[1:]) - recipe.crop + 1
        self.first = torch.from_numpy(random.integers(ends, size=shape)).to(device)
        self.mirrored = torch.from_numpy(random.random(shape) < 0.5).to(device)
        self.turned = torch.from_numpy(random.random(shape[:1]) < 0.5).to(device)
        self.chosen = chosen.to(device)
        self.line = torch.arange(recipe.crop, device=device)
        self.images = moving.to(device), fixed.to(device)
        self.fields = None
        if recipe.bent:
            shape = (recipe.crop, recipe.crop)
            fields = [
                random_warp(shape, recipe.bent * part, recipe.crop / 10, random).displacement
                for part in random.random(FIELDS)
            ]
            self.fields = torch.cat(fields).to(device)
            which = random.integers(FIELDS, size=chosen.shape[:2])
            self.which_field = torch.from_numpy(which).to(device)

    def __call__(self, step: Tensor) -> tuple[Tensor, Tensor]:
        """The pairs (N, 1, crop, crop) of a step (1,): windows, mirrored and turned alike."""
        first, mirrored = self.first[step][0], self.mirrored[step][0]
        rows, columns = (
            first[:, k, None] + torch.where(mirrored[:, k, None], self.line.flip(0), self.line)
            for k in (0, 1)
        )
        found = []
        for images, which in zip(self.images, self.chosen[step][0].unbind(1), strict=True):
            cut = images[which[:, None, None], rows[:, :, None], columns[:, None]][:, None]
            found.append(torch.where(self.turned[step], cut.mT, cut))
        if self.fields is not None:
            found[0] = warp(found[0], self.fields[self.which_field[step][0]])
        return found[0], found[1]


def drawing(frames: Frames, recipe: Recipe, device: torch.device) -> Draw:
    """Two images of one series."""
    random = np.random.default_rng([recipe.seed])
    members = [np.flatnonzero(frames.series == s) for s in frames.series.unique()]
    members = [m for m in members if len(m) > 1]
    which = random.integers(len(members), size=recipe.steps * recipe.batch)
    chosen = np.stack([random.choice(members[k], 2, replace=False) for k in which])
    both = torch.from_numpy(chosen).reshape(recipe.steps, recipe.batch, 2)
    return Draw(frames.images, frames.images, both, recipe, random, device)


def drawing_pairs(pairs: Pairs, recipe: Recipe, device: torch.device) -> Draw:
    """Given pairs."""
    random = np.random.default_rng([recipe.seed])
    which = torch.from_numpy(random.integers(len(pairs), size=(recipe.steps, recipe.batch)))
    both = which[..., None].expand(-1, -1, 2)
    return Draw(pairs.moving[:, 0], pairs.fixed[:, 0], both, recipe, random, device)
