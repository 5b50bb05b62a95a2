"""A finer image is smoothed as wide as the coarser grid's voxels are, along its own axes."""

import numpy as np
import pytest
import torch

from diffreg.data.geometry import Image
from diffreg.data.resolution import as_coarse_as


@pytest.mark.parametrize("turned", [False, True])
def test_a_voxel_gets_the_width_of_a_coarse_one(turned):
    """Gaussians of full width 4 and 2.5 at half height less one of 1: their variances add up."""
    data = torch.zeros(1, 1, 41, 41, 3)
    data[..., 20, 20, 1] = 1
    place = np.diag([4.0, 2.5, 1.0, 1.0])
    place = place[:, [1, 0, 2, 3]] if turned else place  # the coarse image's axes, not the fine
    seen = as_coarse_as(Image(torch.zeros(1, 1, 8, 8, 3), place), Image(data, np.eye(4))).data[0, 0]
    assert seen.sum().item() == pytest.approx(1, abs=1e-4)
    assert not seen[..., [0, 2]].any()  # along this axis the voxels are alike
    offset = torch.arange(41.0) - 20
    for axis, width in enumerate((4.0, 2.5)):
        along = seen[..., 1].sum(1 - axis)
        variance = float((along * offset**2).sum())
        assert variance == pytest.approx((width**2 - 1) / (8 * np.log(2)), rel=0.06)
