"""Training MONAI's LocalNet on pairs of images, with MONAI's operators and with diffreg's.

    python examples/monai_loop.py --steps 20

Both versions start from the same weights, see the same images and run by turns. One line, marked
below, decides whose operators run. docs/switching.md says how far each of them differs.
"""

from __future__ import annotations

import argparse
import warnings

import side_by_side
import torch
from torch import Tensor

from diffreg.losses import LNCC
from diffreg.ops import deformation_energy, warp

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of packages that MONAI could use and does not find
    from monai.losses import BendingEnergyLoss, LocalNormalizedCrossCorrelationLoss
    from monai.networks.blocks import Warp
    from monai.networks.nets import LocalNet

    MONAI = (
        Warp("bilinear", "border"),
        LocalNormalizedCrossCorrelationLoss(spatial_dims=2, kernel_size=9),
        BendingEnergyLoss(),
    )

lncc = LNCC(window=9)
DIFFREG = (
    warp,
    lambda warped, fixed: lncc(warped, fixed) - 1,
    lambda displacement: deformation_energy(displacement).bending.mean() / 2,
)


class Training:
    """LocalNet, Adam and an objective of local correlation and bending energy."""

    def __init__(self, ours: bool) -> None:
        torch.manual_seed(0)
        self.network = LocalNet(
            spatial_dims=2,
            in_channels=2,
            out_channels=2,
            num_channel_initial=8,
            extract_levels=(0, 1, 2, 3),
            out_kernel_initializer="zeros",
        )
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)
        operators = DIFFREG if ours else MONAI  # the one line
        self.warp, self.similarity, self.energy = operators

    def field(self, moving: Tensor, fixed: Tensor) -> Tensor:
        return self.network(torch.cat([moving, fixed], 1))

    def objective(self, moving: Tensor, fixed: Tensor, field: Tensor) -> Tensor:
        return self.similarity(self.warp(moving, field), fixed) + 10 * self.energy(field)

    def step(self, moving: Tensor, fixed: Tensor) -> float:
        self.optimizer.zero_grad()
        loss = self.objective(moving, fixed, self.field(moving, fixed))
        loss.backward()
        self.optimizer.step()
        return loss.item()


def main(arguments: list[str] | None = None) -> list[side_by_side.Side]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=128, help="of the images; a multiple of 8")
    parser.add_argument("--pairs", type=int, default=4, help="in the batch")
    options = parser.parse_args(arguments)
    images = side_by_side.blobs(options.pairs, options.size, seed=1)
    sides = side_by_side.run(Training(ours=False), Training(ours=True), *images, options.steps)
    side_by_side.show("MONAI", sides)
    return sides


if __name__ == "__main__":
    main()
