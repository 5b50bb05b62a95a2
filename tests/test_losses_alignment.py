"""Losses beside the objective's operator: mutual information, labels and points."""

import math

import pytest
import torch
from cases import uniform

from diffreg import metrics
from diffreg.losses import MI, SIMILARITIES, Dice, Keypoint, Objective
from diffreg.ops import mutual_information, warp

both_sizes = pytest.mark.parametrize("size", [(24, 20), (8, 9, 10)], ids=str)
both_small = pytest.mark.parametrize("size", [(5, 6), (4, 3, 4)], ids=str)


def picture(seed=0, size=(24, 20)):
    return (1 + uniform((2, 1, *size), torch.float64, seed)) / 2


def test_half_precision_is_computed_in_float32():
    warped, fixed = (image.to(torch.float16) for image in (picture(0), picture(1)))
    found = MI(reduction="none")(warped, fixed)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, mutual_information(warped.float(), fixed.float()))


@both_sizes
def test_mutual_information_is_a_similarity_of_the_objective(size):
    """Its bins are those of the moving image: they do not change with the displacement."""
    moving, fixed = picture(0, size), picture(1, size)
    displacement = (0.4 * uniform((2, len(size), *size), torch.float64, 3)).requires_grad_()
    terms = Objective("mi")(moving, fixed, displacement)
    expected = mutual_information(terms.warped, fixed, moving=moving)
    torch.testing.assert_close(terms.similarity, expected)
    terms.total.backward()
    assert displacement.grad.abs().max() > 0
    assert "mi" in SIMILARITIES


def labels(*maps):
    return torch.tensor(maps, dtype=torch.float64)[None, :, None]


def test_dice_by_hand():
    """2 x 0.5 / (1.5 + 1) = 0.4 and 2 x 1 / 2 = 1; the third label is in neither."""
    warped = labels([1.0, 0.5, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0])
    fixed = labels([0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0])
    assert Dice()(warped, fixed).item() == pytest.approx((0.6 + 0.0) / 2)


def test_dice_with_a_mask_and_without_labels():
    warped, fixed = labels([1.0, 1.0, 0.0]), labels([1.0, 0.0, 0.0])
    mask = torch.tensor([[[[1.0, 0.0, 1.0]]]], dtype=torch.float64)
    assert Dice()(warped, fixed, mask).item() == 0
    assert Dice()(0 * warped, 0 * fixed).item() == 0
    with pytest.raises(TypeError, match=r"fixed must be floating, in \[0, 1\], a channel for each"):
        Dice()(warped, fixed.long())


@both_sizes
def test_dice_of_whole_labels_is_the_metric(size):
    a, b = ((picture(seed, size) > 0.5)[:1] for seed in (0, 1))
    expected = 1 - metrics.dice(a, b)[1]
    assert Dice()(a.double(), b.double()).item() == pytest.approx(expected)


@both_small
def test_gradient_of_dice_through_a_warp(size):
    moving, fixed = (picture(seed, size) for seed in (0, 1))
    displacement = (0.3 * uniform((2, len(size), *size), torch.float64, 5) + 0.1).requires_grad_()

    def loss(u):
        return Dice()(warp(moving, u), fixed)

    assert torch.autograd.gradcheck(loss, (displacement,))
    assert torch.autograd.gradgradcheck(loss, (displacement,), fast_mode=True)


def test_keypoint_by_hand():
    """u = (2, -1) everywhere: (3, 4) goes to (5, 3), which is (3, 4) mm from (4, 1)."""
    displacement = torch.tensor([2.0, -1.0]).reshape(1, 2, 1, 1).expand(1, 2, 8, 9)
    fixed, moving = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[4.0, 1.0]]])
    assert Keypoint()(displacement, fixed, moving).item() == 5
    assert Keypoint(spacing=(3.0, 2.0))(displacement, fixed, moving).item() == 25


def test_keypoint_in_a_volume_by_hand():
    """u = (2, -1, 3): (3, 4, 1) goes to (5, 3, 4), which is (1, 2, 2) from (4, 1, 2)."""
    displacement = torch.tensor([2.0, -1.0, 3.0]).reshape(1, 3, 1, 1, 1).expand(1, 3, 8, 9, 6)
    fixed, moving = torch.tensor([[[3.0, 4.0, 1.0]]]), torch.tensor([[[4.0, 1.0, 2.0]]])
    assert Keypoint()(displacement, fixed, moving).item() == pytest.approx(9)
    found = Keypoint(spacing=(3.0, 1.0, 0.5))(displacement, fixed, moving).item()
    assert found == pytest.approx(9 + 4 + 1)


def test_keypoint_between_voxels_and_without_some_points():
    rows = torch.arange(4.0).reshape(1, 1, 4, 1).expand(1, 1, 4, 5)
    displacement = torch.cat([rows, 0 * rows], 1)  # u_0 = i
    fixed = torch.tensor([[[1.25, 2.5], [math.nan, 0.0]]], requires_grad=True)
    moving = torch.tensor([[[2.0, 2.5], [1.0, 1.0]]])
    loss = Keypoint()(displacement, fixed, moving)
    assert loss.item() == pytest.approx(0.25)
    loss.backward()
    assert torch.isfinite(fixed.grad).all()


@both_small
def test_gradient_of_keypoint(size):
    displacement = uniform((2, len(size), *size), torch.float64, 0).requires_grad_()
    points = 1.1 + picture(1, (3, len(size)))[:, 0] / 2
    there = points + 0.3
    points.requires_grad_()

    def loss(u, points):
        return Keypoint(reduction="none")(u, points, there)

    assert torch.autograd.gradcheck(loss, (displacement, points))
    assert torch.autograd.gradgradcheck(loss, (displacement, points), fast_mode=True)


@both_small
def test_vmap_is_a_loop_over_the_samples(size):
    a, b = (picture(seed, size).unsqueeze(1) for seed in (0, 1))
    for loss in (MI, Dice):
        looped = loss(reduction="none")(a.squeeze(1), b.squeeze(1))
        torch.testing.assert_close(torch.func.vmap(loss())(a, b), looped)
    u = uniform((2, 1, len(size), *size), torch.float64)
    points = 1 + picture(1, (3, len(size)))
    looped = Keypoint(reduction="none")(u.squeeze(1), points.squeeze(1), points.squeeze(1) + 0.3)
    torch.testing.assert_close(torch.func.vmap(Keypoint())(u, points, points + 0.3), looped)


def test_keypoint_on_a_grid_of_one_voxel_across():
    displacement = torch.ones(1, 2, 1, 5)
    point = torch.tensor([[[0.0, 2.0]]])
    assert Keypoint()(displacement, point, point).item() == 2


@pytest.mark.parametrize("fixed, moving, message", [
    ((1, 3, 3), (1, 3, 2), r"fixed_points must be \(1, K, 2\), got \[1, 3, 3\]"),
    ((2, 3, 2), (1, 3, 2), r"fixed_points must be \(1, K, 2\), got \[2, 3, 2\]"),
    ((1, 3, 2), (1, 2, 2), "moving_points must have the shape of fixed_points"),
])  # fmt: skip
def test_points_that_do_not_fit(fixed, moving, message):
    with pytest.raises(ValueError, match=message):
        Keypoint()(torch.zeros(1, 2, 4, 4), torch.zeros(fixed), torch.zeros(moving))
    with pytest.raises(ValueError, match=r"fixed_points must be \(1, K, 3\), got \[1, 3, 2\]"):
        Keypoint()(torch.zeros(1, 3, 4, 4, 4), torch.zeros(1, 3, 2), torch.zeros(1, 3, 2))


@pytest.mark.parametrize("spacing", [(1.0, 2.0), 0])
def test_a_spacing_that_does_not_fit(spacing):
    volume, points = torch.zeros(1, 3, 4, 4, 4), torch.zeros(1, 3, 3)
    with pytest.raises(ValueError, match="spacing must"):
        Keypoint(spacing=spacing)(volume, points, points)
