"""Maps of the Jacobian determinant: of each voxel by the cells that meet there; with the affine."""

import itertools

import numpy as np
import pytest
import torch

from diffreg.data.geometry import Image
from diffreg.data.images import read_image
from diffreg.registration.determinants import voxel_determinants, write_determinants


def by_hand(u, voxel):
    """The mean over the cells round a voxel of the determinant of the edges that meet in it."""
    found = []
    for sides in itertools.product((-1, 1), repeat=len(voxel)):
        beside = [voxel[axis] + side for axis, side in enumerate(sides)]
        if all(0 <= k < n for k, n in zip(beside, u.shape[1:], strict=True)):
            edges = np.eye(len(voxel))
            for axis, side in enumerate(sides):
                neighbour = (*voxel[:axis], beside[axis], *voxel[axis + 1 :])
                edges[:, axis] += side * (u[(slice(None), *neighbour)] - u[(slice(None), *voxel)])
            found.append(np.linalg.det(edges))
    return np.mean(found)


@pytest.mark.parametrize("size", [(4, 5), (3, 4, 2)], ids=str)
def test_a_voxel_has_the_mean_of_the_corners_that_meet_there(size):
    u = np.random.default_rng(0).normal(size=(len(size), *size))
    found = voxel_determinants(torch.from_numpy(u)[None])[0, 0]
    expected = [by_hand(u, voxel) for voxel in np.ndindex(size)]
    np.testing.assert_allclose(found.flatten(), expected, rtol=1e-10)


@pytest.mark.parametrize("size", [(4, 5), (4, 5, 3)], ids=str)
def test_the_affine_map_multiplies_what_the_displacement_does(size, tmp_path):
    """Of a slice, which is a sagittal one here, the growth of its plane."""
    affine = np.eye(4)[:, [1, 2, 0, 3]] * [3, 2, 4, 1]
    fixed = Image(torch.zeros(1, 1, *size), affine)
    world = np.diag([5.0, 1.5, 0.8, 1.0])
    u = torch.zeros(1, len(size), *size)
    u[0, 1] = 0.5 * torch.arange(5.0).reshape(-1, *[1] * (len(size) - 2))
    write_determinants(tmp_path, u, world, fixed)
    growth = {2: 1.5 * 0.8, 3: 5 * 1.5 * 0.8}[len(size)]
    names = ("jacobian", "log_jacobian", "jacobian_with_affine")
    for name, value in zip(names, (1.5, np.log(1.5), 1.5 * growth), strict=True):
        values = read_image(tmp_path / f"{name}.nii.gz").data
        torch.testing.assert_close(values, torch.full_like(values, value))
