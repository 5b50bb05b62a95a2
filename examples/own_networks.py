"""Networks of other libraries as `diffreg train` takes them: one small class each.

    [model]
    name = "own_networks:LocalNet"      # or "own_networks:VoxelMorph"
    channels = 8                        # features = [16, 32, 32, 32]

What a network has to be: `forward(moving, fixed)`, images (N, 1, *S) of about [0, 1], gives the
displacement (N, D, *S) in voxels, component k along axis k of S, by which the moving image is read:
warped(p) = moving(p + u(p)). The keys of [model] but `name` are the class's keywords.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffreg.fields import integrate


class LocalNet(nn.Module):
    """MONAI's LocalNet, a displacement; sizes are multiples of 8."""

    def __init__(self, dimensions: int = 2, channels: int = 8) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of packages that it could use and does not find
            from monai.networks.nets import LocalNet as MonaiLocalNet
        self.network = MonaiLocalNet(
            spatial_dims=dimensions,
            in_channels=2,
            out_channels=dimensions,
            num_channel_initial=channels,
            extract_levels=(0, 1, 2, 3),
            out_kernel_initializer="zeros",
        )

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        return self.network(torch.cat([moving, fixed], 1))


class VoxelMorph(nn.Module):
    """VoxelMorph's network, a velocity that is integrated; sizes are multiples of 16."""

    def __init__(self, dimensions: int = 2, features: Sequence[int] = (16, 32, 32, 32)) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from voxelmorph.nn.models import VxmPairwise
        self.network = VxmPairwise(
            ndim=dimensions, source_channels=1, target_channels=1, nb_features=list(features)
        )

    def forward(self, moving: Tensor, fixed: Tensor) -> Tensor:
        return integrate(self.network(moving, fixed, return_field_type="velocity"))
