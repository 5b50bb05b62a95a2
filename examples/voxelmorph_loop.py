"""Training VoxelMorph's network on pairs of images, with VoxelMorph's operators and with diffreg's.

    python examples/voxelmorph_loop.py --steps 20

The network gives a velocity, which is integrated to the displacement. Both versions start from the
same weights, see the same images and run by turns. One line, marked below, decides whose operators
run. docs/switching.md says how far each of them differs.
"""

from __future__ import annotations

import argparse
import warnings

import side_by_side
import torch
from torch import Tensor

from diffreg.fields import integrate
from diffreg.losses import SSD
from diffreg.ops import deformation_energy, warp

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from neurite.nn.modules import MSE, SpatialGradient
    from voxelmorph.nn.models import VxmPairwise
    from voxelmorph.nn.modules import IntegrateVelocityField, SpatialTransformer

VOXELMORPH = (IntegrateVelocityField(steps=7), SpatialTransformer(), MSE(), SpatialGradient("l2"))
DIFFREG = (
    lambda velocity: integrate(velocity, steps=7),
    lambda moving, displacement: warp(moving, displacement, padding="zeros"),
    SSD(),
    lambda velocity: deformation_energy(velocity).diffusion.mean() / 4,
)


class Training:
    """VxmPairwise, Adam and an objective of squared difference and diffusion."""

    def __init__(self, ours: bool) -> None:
        torch.manual_seed(0)
        self.network = VxmPairwise(
            ndim=2, source_channels=1, target_channels=1, nb_features=[16, 16, 16, 16]
        )
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=3e-3)
        operators = DIFFREG if ours else VOXELMORPH  # the one line
        self.integrate, self.warp, self.similarity, self.energy = operators

    def field(self, moving: Tensor, fixed: Tensor) -> Tensor:
        return self.network(moving, fixed, return_field_type="velocity")

    def objective(self, moving: Tensor, fixed: Tensor, field: Tensor) -> Tensor:
        warped = self.warp(moving, self.integrate(field))
        return self.similarity(warped, fixed) + 0.01 * self.energy(field)

    def step(self, moving: Tensor, fixed: Tensor) -> float:
        self.optimizer.zero_grad()
        loss = self.objective(moving, fixed, self.field(moving, fixed))
        loss.backward()
        self.optimizer.step()
        return loss.item()


def main(arguments: list[str] | None = None) -> list[side_by_side.Side]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=128, help="of the images; a multiple of 16")
    parser.add_argument("--pairs", type=int, default=4, help="in the batch")
    options = parser.parse_args(arguments)
    images = side_by_side.blobs(options.pairs, options.size, seed=1)
    sides = side_by_side.run(Training(ours=False), Training(ours=True), *images, options.steps)
    side_by_side.show("VoxelMorph", sides)
    return sides


if __name__ == "__main__":
    main()
