"""The affine search part by part, by hand: images in their places, where it starts, its steps."""

import math

import numpy as np
import pytest
import torch

from diffreg.affine.descent import _updated
from diffreg.affine.image import REACH, PlacedImage
from diffreg.affine.loss import AffineLoss
from diffreg.affine.parameters import decomposed, generators
from diffreg.affine.search import starts

sizes = pytest.mark.parametrize("size", [(12, 16), (12, 10, 14)], ids=str)


def oblique(dimensions, spacing=2.0):
    """Turned and shifted, (D + 1, D + 1)."""
    rng = np.random.default_rng(dimensions)
    affine = np.eye(dimensions + 1)
    affine[:-1, :-1] = spacing * np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0]
    affine[:-1, -1] = rng.uniform(-9, 9, dimensions)
    return torch.from_numpy(affine)


def places(affine, shape):
    """Where voxels lie, (D, *S) mm."""
    voxels = torch.from_numpy(np.indices(shape).astype(np.float64))
    return torch.tensordot(affine[:-1, :-1], voxels, 1) + affine[:-1, -1].reshape(
        -1, *[1] * len(shape)
    )


def ramp(affine, shape):
    """An image that rises evenly in the world, (1, 1, *S)."""
    slope = torch.tensor([0.03, -0.02, 0.05][: len(shape)], dtype=torch.float64)
    return torch.tensordot(slope, places(affine, shape), 1).float()[None, None]


@sizes
def test_a_coarser_image_lies_where_the_finer_one_does(size):
    affine = oblique(len(size))
    image = PlacedImage(ramp(affine, size), None, affine)
    coarse = image.coarsened(4.0)
    assert coarse.shape == tuple(n // 2 for n in size) and coarse.mask is None
    torch.testing.assert_close(coarse.middle, image.middle)
    torch.testing.assert_close(coarse.spacing, 2 * image.spacing)
    inner = (..., *[slice(REACH, -REACH)] * len(size))  # the blur repeats the border
    expected = ramp(coarse.affine, coarse.shape)[inner]
    torch.testing.assert_close(coarse.values[inner], expected, rtol=0, atol=1e-5)


@sizes
def test_a_cropped_image_lies_where_it_did(size):
    affine = oblique(len(size))
    mask = torch.zeros(1, 1, *size)
    mask[(..., *[slice(3 + k, 8 + k) for k in range(len(size))])] = 1
    cut = PlacedImage(ramp(affine, size), mask, affine).cropped()
    assert cut.mask is None and cut.shape == (5,) * len(size)
    torch.testing.assert_close(cut.values, ramp(cut.affine, cut.shape), rtol=0, atol=1e-5)


@sizes
def test_a_sheared_grid_has_the_image_in_its_place(size):
    affine = oblique(len(size))
    image = PlacedImage(ramp(affine, size), None, affine)
    sheared = image.sheared()
    torch.testing.assert_close(sheared.middle, image.middle)
    inner = (..., *[slice(1, -1)] * len(size))  # beyond, the border is repeated
    expected = ramp(sheared.affine, size)[inner]
    torch.testing.assert_close(sheared.values[inner], expected, rtol=0, atol=1e-5)


def test_a_block_counts_where_half_of_it_does_and_is_the_mean_of_that():
    """What a mask leaves out is in no mean, nor blurred into its neighbours."""
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 2:5, :] = 1  # all of the second row of blocks, half of the third
    mask[..., 5, ::2] = 1  # and three quarters of it
    mask[..., 6, ::2] = 1  # a quarter of the last
    values = torch.where(mask > 0, 0.3, 100.0)
    coarse = PlacedImage(values, mask, torch.eye(3, dtype=torch.float64)).coarsened(2.0)
    assert coarse.counted[0, 0, :, 0].tolist() == [0, 1, 1, 0]
    counted = coarse.values[coarse.counted > 0]
    torch.testing.assert_close(counted, torch.full_like(counted, 0.3))


@pytest.mark.parametrize("ground", [0.0, 0.8])
def test_the_centre_of_mass_is_that_of_what_differs_from_the_background(ground):
    affine = oblique(2)
    values = torch.full((1, 1, 9, 11), ground)
    values[..., 3:6, 4:6] = 0.5
    values[..., 7, 8] = 50.0
    mask = torch.ones_like(values)
    mask[..., 7, 8] = 0
    image = PlacedImage(values, mask, affine)
    torch.testing.assert_close(image.centre_of_mass(), image.placed([4.0, 4.5]))
    flat = PlacedImage(torch.full_like(values, ground), mask, affine)
    torch.testing.assert_close(flat.centre_of_mass(), flat.middle)


def test_where_a_search_starts():
    """World maps from fixed to moving: as it is, middle onto middle, mass onto mass, turned."""
    images = []
    for size, at, spacing in (((9, 11), (2, 3), 2.0), ((12, 8), (7, 5), 3.0)):
        values = torch.zeros(1, 1, *size)
        values[(..., *at)] = 1
        images.append(PlacedImage(values, None, oblique(2, spacing)))
    moving, fixed = images
    header, middles, masses, *turned = starts(moving, fixed, turning=True, fine=False)
    assert torch.equal(header.world, torch.eye(3, dtype=torch.float64))

    def led(world, point):
        return (world @ torch.cat([point, point.new_ones(1)]))[:-1]

    torch.testing.assert_close(led(middles.world, fixed.middle), moving.middle)
    for start in (masses, *turned):
        there = led(start.world, fixed.placed([7, 5]))
        torch.testing.assert_close(there, moving.placed([2, 3]))
    assert len(turned) == 23
    for k, start in enumerate(turned, start=1):
        turn, _, scale = decomposed(start.world.numpy(), np.zeros(2))
        assert turn == pytest.approx(min(15 * k, 360 - 15 * k)) and scale == pytest.approx(1)
    assert len(starts(moving, fixed, turning=False, fine=False)) == 3


def test_the_shift_is_that_of_the_centre():
    centre, angle = np.array([10.0, -4.0]), math.radians(30)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    world = np.eye(3)
    world[:2, :2], world[:2, 2] = 1.2 * turn, centre - 1.2 * turn @ centre + [3, 4]
    found = decomposed(world, centre)
    assert tuple(found) == pytest.approx((30, 5, 1.2))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_curvature_is_that_of_a_ramp(dimensions):
    """Of an image that rises by g a mm, a map changes by G x what it shows at x by g . G x."""
    size, affine = (9, 8, 7)[:dimensions], oblique(dimensions)
    affine[0, :-1] *= 1.7  # neither turned nor alike along the axes
    image = PlacedImage(ramp(affine, size), None, affine)
    basis = generators("affine", dimensions, 10.0)
    found = np.linalg.inv(AffineLoss(image, image, "ncc").preconditioner(basis))
    x = places(affine, size).flatten(1).numpy()
    x = np.concatenate([x, np.ones((1, x.shape[1]))])
    g = np.array([0.03, -0.02, 0.05][:dimensions])
    changes = np.stack([g @ (matrix.numpy()[:-1] @ x) for matrix in basis])
    values = image.values.flatten().double().numpy()
    expected = changes @ changes.T / ((values - values.mean()) ** 2).sum()
    expected += 1e-3 * np.trace(expected) / len(expected) * np.eye(len(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_an_inverse_hessian_that_knows_a_step_leads_back_along_it():
    """The secant equation of BFGS; a step along which the gradient falls teaches nothing."""
    rng = np.random.default_rng(0)
    move, change = rng.normal(size=(2, 5))
    change *= np.sign(move @ change)
    before = np.diag(rng.uniform(1, 3, 5))
    after = _updated(before, move, change)
    np.testing.assert_allclose(after @ change, move)
    np.testing.assert_allclose(after, after.T, atol=1e-12)
    assert np.linalg.eigvalsh(after).min() > 0
    assert _updated(before, move, -change) is before
