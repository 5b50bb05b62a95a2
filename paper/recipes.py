"""What a network of a study is trained with: a recipe, its network, its loss, its learning rate."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from diffreg.losses import Objective, total_variation
from diffreg.models import build_model

LAST_RATE = 0.05  # of the first learning rate


@dataclass(frozen=True)
class Recipe:
    """All that a run depends on but its images, which `images` names.

    Args:
        images: what is trained on, in words that are unique to it.
        model: "lunet", "sn" or "voxelmorph"; "lunet" with `integrate` gives a velocity.
        similarity: measure -> factor.
        weights: (similarity, diffusion, bending, determinant).
        variation: weight of the total variation.
        bent: moving images are bent while training by random fields of up to this standard
            deviation, voxels.
        steps, batch, crop: optimisation steps, pairs a step, voxels of a side.
        start: key of the recipe whose network it begins with; "": random weights.
    """

    images: str
    model: str = "lunet"
    integrate: bool = False
    similarity: dict[str, float] = field(default_factory=lambda: {"ncc": 1.0, "lncc": 0.2})
    weights: tuple[float, float, float, float] = (60, 1, 30, 3)
    variation: float = 0.0
    bent: float = 0.0
    steps: int = 3000
    batch: int = 16
    crop: int = 96
    learning_rate: float = 2e-3
    seed: int = 0
    start: str = ""

    @property
    def key(self) -> str:
        """Of the file that the run is kept in."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


class VoxelMorph(nn.Module):
    """VoxelMorph's network, of about the LU-net's size, with its integration."""

    def __init__(self) -> None:
        super().__init__()
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from voxelmorph.nn.models import VxmPairwise
        self.network = VxmPairwise(
            ndim=2,
            source_channels=1,
            target_channels=1,
            nb_features=[16, 32, 32, 32],
            integration_steps=7,
        )

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        return self.network(moving, fixed, return_field_type="displacement")


def build(recipe: Recipe) -> nn.Module:
    """The network at its start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if recipe.model == "voxelmorph":
            return VoxelMorph()
        return build_model(recipe.model, integrate=recipe.integrate)


def loss_of(recipe: Recipe) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """(moving, fixed, displacement) -> the loss of a batch."""
    objective = Objective(recipe.similarity, recipe.weights)

    def loss(moving: Tensor, fixed: Tensor, displacement: Tensor) -> Tensor:
        total = objective(moving, fixed, displacement, return_warped=False).total
        if recipe.variation:
            total = total + recipe.variation * total_variation(displacement).mean()
        return total

    return loss


def learning_rate(recipe: Recipe, step: int) -> float:
    """Of a step, 0 being the first: half a cosine, to a twentieth."""
    part = (1 + math.cos(math.pi * step / recipe.steps)) / 2
    return recipe.learning_rate * max(part, LAST_RATE)
