"""Losses beside the operators: mutual information, labels and points."""

import math

import pytest
import torch
from cases import uniform

from diffreg import metrics
from diffreg.losses import MI, SIMILARITIES, Dice, Keypoint, Objective, mutual_information
from diffreg.ops import warp

both_sizes = pytest.mark.parametrize("size", [(24, 20), (8, 9, 10)], ids=str)
both_small = pytest.mark.parametrize("size", [(5, 6), (4, 3, 4)], ids=str)


def picture(seed=0, size=(24, 20)):
    return (1 + uniform((2, 1, *size), torch.float64, seed)) / 2


def test_mutual_information_by_hand():
    """Two intensities in equal parts, told apart by the other image: ln 2 nats, box windows."""
    fixed = torch.tensor([[[[0.0, 0.0, 1.0, 1.0]]]], dtype=torch.float64)
    # The warped image's values lie on a knot: its cubic windows are (1, 4, 1) / 6 over three bins
    # each, which do not meet, so that nothing is lost.
    warped = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]]], dtype=torch.float64)
    assert mutual_information(warped, fixed).item() == pytest.approx(-math.log(2), abs=1e-12)


def test_mutual_information_of_independent_images_is_zero():
    fixed = torch.tensor([[[[0.0, 0.0, 1.0, 1.0]]]], dtype=torch.float64)
    warped = torch.tensor([[[[0.0, 1.0, 0.0, 1.0]]]], dtype=torch.float64)
    assert mutual_information(warped, fixed).item() == pytest.approx(0, abs=1e-12)
    assert mutual_information(torch.ones_like(fixed), fixed).item() == pytest.approx(0, abs=1e-12)


def direct(warped, fixed, weight, bins=32):
    """The definition, voxel by voxel and bin by bin."""
    joint = torch.zeros(bins, bins, dtype=torch.float64)
    low, high, below, above = warped.min(), warped.max(), fixed.min(), fixed.max()
    for w, r, m in zip(warped.flatten(), fixed.flatten(), weight.flatten(), strict=True):
        a = 2 + (w - low) / (high - low) * (bins - 4)
        b = min(int(2 + (r - below) / (above - below) * (bins - 4)), bins - 3)
        for k in range(bins):
            t = abs(float(a) - k)
            near, far = (4 - 6 * t**2 + 3 * t**3) / 6, max(2 - t, 0) ** 3 / 6
            joint[k, b] += m * (near if t < 1 else far)
    joint /= joint.sum()
    outer = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return -(joint * (joint / outer).log())[joint > 0].sum().item()


@both_sizes
def test_mutual_information_is_its_definition(size):
    warped, fixed, weight = (picture(seed, size)[:1] for seed in range(3))
    fixed = fixed**2
    found = mutual_information(warped, fixed, mask=weight).item()
    assert found == pytest.approx(direct(warped, fixed, weight), abs=1e-12)


def test_mutual_information_follows_the_histograms():
    fixed = torch.linspace(0, 1, 4096, dtype=torch.float64).reshape(1, 1, 64, 64)
    aligned, turned = 1 - fixed, fixed.mT.contiguous()
    assert mutual_information(aligned, fixed) < mutual_information(turned, fixed) - 1
    exact = metrics.mutual_information(aligned, fixed, bins=28)
    assert 2 < -mutual_information(aligned, fixed).item() < exact  # windows blur: some is lost


@both_small
def test_gradient_of_mutual_information(size):
    warped, fixed = picture(0, size).requires_grad_(), picture(1, size)
    ends = torch.tensor([-0.1, 1.1], dtype=torch.float64)
    moving = ends.reshape(1, 1, *[1] * (len(size) - 1), 2).expand(2, *[-1] * (len(size) + 1))

    def loss(image):
        return mutual_information(image, fixed, moving=moving)

    assert torch.autograd.gradcheck(loss, (warped,))
    assert torch.autograd.gradgradcheck(loss, (warped,), fast_mode=True)


@both_sizes
def test_what_a_mask_leaves_out_has_no_say(size):
    warped, fixed = picture(0, size), picture(1, size)
    mask = torch.ones_like(fixed)
    mask[:, :, size[0] // 2 :] = 0
    other = torch.where(mask > 0, warped, 1 - warped)
    ends = picture(3, size)
    found = [mutual_information(image, fixed, mask=mask, moving=ends) for image in (warped, other)]
    torch.testing.assert_close(*found)
    nothing = mutual_information(warped, fixed, mask=0 * mask)
    torch.testing.assert_close(nothing, torch.zeros_like(nothing))


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


@pytest.mark.parametrize("bins", [0, 4])
def test_too_few_bins_are_refused(bins):
    with pytest.raises(ValueError, match="bins must be at least 5"):
        mutual_information(picture(), picture(), bins=bins)


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
