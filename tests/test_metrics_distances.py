"""Metrics of labels, points, displacements and structure, against hand cases and other programs."""

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from scipy import ndimage
from skimage.metrics import structural_similarity as skimage_ssim

from diffreg import metrics
from diffreg.fields import integrate, invert

SPACING = (1.5, 0.75, 2.0)
both_shapes = pytest.mark.parametrize("shape", [(40, 36), (17, 21, 16)], ids=str)


def disc(centre, radius, shape=(40, 36)):
    """A disc, or a ball."""
    away = np.indices(shape) - np.reshape(centre, (-1, *[1] * len(shape)))
    return ((away**2).sum(0) <= radius**2).astype(np.int64)


def smooth(seed=0, size=0.6, shape=(24, 20)):
    """A smooth unfolded displacement."""
    i, j, *k = np.indices(shape) / 5
    phase = np.random.default_rng(seed).random(4) * 6
    u = [np.sin(i + phase[0]) * np.cos(j + phase[1]), np.cos(i + phase[2]) * np.sin(j + phase[3])]
    if k:
        u = [u[0] * np.cos(k[0]), u[1], np.sin(k[0] + phase[1]) * np.cos(i + phase[3])]
    return size * np.stack(u)


# labels


def test_surface_distances_by_hand():
    """Two squares of 3 x 3 voxels, one moved by 2 along axis 0: the far rows are 2 apart."""
    a, b = np.zeros((9, 9), int), np.zeros((9, 9), int)
    a[1:4, 3:6] = b[3:6, 3:6] = 1
    found = metrics.surface_distances(a, b, spacing=(1.5, 1.0))[1]
    # Of the 8 surface voxels the far row is two rows of 1.5 mm away, the middle row one, and the
    # near row lies on the other surface.
    assert found["assd"] == pytest.approx((3 * 3.0 + 2 * 1.5 + 0) / 8)
    assert found["hd95"] == pytest.approx(3.0)


@pytest.mark.filterwarnings("ignore:monai:FutureWarning")  # one part of it about another
@both_shapes
def test_surface_distances_are_those_of_monai(shape):
    rng, spacing = np.random.default_rng(0), SPACING[: len(shape)]
    middle, reach = np.array(shape) / 2, min(shape) / 3
    for _ in range(6):
        a, b = (
            disc(middle + reach / 3 * rng.standard_normal(len(shape)), rng.uniform(4, reach), shape)
            for _ in range(2)
        )
        found = metrics.surface_distances(a, b, spacing)[1]
        one_hot = [torch.from_numpy(np.stack([1 - m, m]))[None] for m in (a, b)]
        theirs = compute_hausdorff_distance(*one_hot, percentile=95, spacing=spacing)
        assert found["hd95"] == pytest.approx(theirs.item(), rel=1e-5)
        theirs = compute_average_surface_distance(*one_hot, symmetric=True, spacing=spacing)
        assert found["assd"] == pytest.approx(theirs.item(), rel=1e-5)


@both_shapes
def test_surface_distances_are_found_one_by_one(shape):
    """By all distances between all surface voxels; the second region is cut by the border."""
    spacing = SPACING[: len(shape)]

    def surface(m):
        padded = np.pad(m, 1)
        shifted = [np.roll(padded, step, axis) for axis in range(m.ndim) for step in (-1, 1)]
        inner = np.all(shifted, axis=0)[(slice(1, -1),) * m.ndim]
        return np.argwhere(m & ~inner) * spacing

    a = disc((8, 11, 7)[: len(shape)], 6, shape) > 0
    b = disc((11, 14, 13)[: len(shape)], 5, shape) > 0
    apart = np.linalg.norm(surface(a)[:, None] - surface(b)[None], axis=2)
    there, back = apart.min(1), apart.min(0)
    found = metrics.surface_distances(a, b, spacing)[1]
    assert found["hd95"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert found["assd"] == pytest.approx(np.concatenate([there, back]).mean())


def test_a_label_that_only_one_map_has():
    a, b = disc((10, 10), 4), disc((10, 10), 4) * 3
    found = metrics.surface_distances(a, b)
    assert sorted(found) == [1, 3]
    assert all(math.isnan(value) for both in found.values() for value in both.values())
    assert metrics.surface_distances(a, a)[1] == {"hd95": 0, "assd": 0}


# structure


@pytest.mark.parametrize("shape", [(30, 27), (31, 27), (11, 40), (15, 13, 17)], ids=str)
def test_ssim_is_that_of_scikit_image(shape):
    rng = np.random.default_rng(len(shape))
    a = rng.random(shape)
    b = np.clip(a + 0.2 * rng.standard_normal(a.shape), 0, 1)
    expected = skimage_ssim(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1
    )
    assert metrics.structural_similarity(a, b) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", [(32, 30), (32, 13, 14)], ids=str)
def test_ssim_inside_a_mask_and_of_a_small_image(shape):
    rng = np.random.default_rng(0)
    a, mask = rng.random(shape), np.zeros(shape)
    b, mask[:12] = a.copy(), 1
    b[20:] = 0
    assert metrics.structural_similarity(a, b, mask) == pytest.approx(1)
    assert metrics.structural_similarity(a, b) < 0.9
    assert math.isnan(metrics.structural_similarity(a[:10], b[:10]))


# displacements


def test_sd_log_jacobian_by_hand():
    """u_0 = i on the upper rows, 0 below: half of the cells have J = 2, half J = 1."""
    u = np.zeros((2, 5, 4))
    u[0] = np.array([0, 1, 2, 2, 2])[:, None]
    assert metrics.sd_log_jacobian(u) == pytest.approx(math.log(2) / 2)
    volume = np.concatenate([u, 0 * u[:1]])[..., None] * np.ones(3)  # the same planes, stacked
    assert metrics.sd_log_jacobian(volume) == pytest.approx(math.log(2) / 2)
    assert math.isnan(metrics.sd_log_jacobian(-2 * u))  # J = -1 has no logarithm
    assert math.isnan(metrics.sd_log_jacobian(np.zeros((2, 1, 1))))


@pytest.mark.parametrize("shape", [(24, 20), (12, 11, 13)], ids=str)
def test_sd_log_jacobian_as_learn2reg(shape):
    """Theirs: correlations with (-1/2, 0, 1/2), the determinant written out."""
    u = smooth(shape=shape)
    slopes = [ndimage.correlate1d(u, [-0.5, 0, 0.5], axis=1 + k) for k in range(len(shape))]
    rows = np.stack(slopes, 1) + np.eye(len(shape)).reshape(*[len(shape)] * 2, *[1] * len(shape))
    rows = rows[(..., *[slice(2, -2)] * len(shape))]
    if len(shape) == 2:
        (a, b), (c, d) = rows
        determinant = a * d - b * c
    else:
        (a, b, c), (d, e, f), (g, h, i) = rows
        determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    found = metrics.sd_log_jacobian_learn2reg(u)
    assert found == pytest.approx(np.log(np.clip(determinant + 3, 1e-9, 1e9)).std(), abs=1e-12)
    assert found < metrics.sd_log_jacobian(u) / 2
    assert math.isnan(metrics.sd_log_jacobian_learn2reg(np.zeros((2, 4, 9))))
    # Theirs within a mask: a masked array, without its border of two as well.
    mask = np.random.default_rng(1).random(shape) > 0.5
    logarithms = np.log(np.clip(determinant + 3, 1e-9, 1e9))
    expected = np.ma.array(logarithms, mask=~mask[(slice(2, -2),) * len(shape)]).std()
    assert metrics.sd_log_jacobian_learn2reg(u, mask) == pytest.approx(expected, abs=1e-12)
    border = np.pad(np.zeros([n - 4 for n in shape]), 2, constant_values=1)
    assert math.isnan(metrics.sd_log_jacobian_learn2reg(u, border))
    with pytest.raises(ValueError, match=r"mask must be \[.*, got \[3, 3\]"):
        metrics.sd_log_jacobian_learn2reg(u, np.ones((3, 3)))


def test_end_point_error_by_hand():
    true = np.zeros((2, 3, 4))
    u = np.stack([np.full((3, 4), 3.0), np.full((3, 4), 4.0)])
    assert metrics.end_point_error(u, true) == 5
    assert metrics.end_point_error(u, true, spacing=(2, 2)) == 10
    mask = np.zeros((3, 4))
    mask[0, 0] = 1
    u[:, 0, 0] = 0
    assert metrics.end_point_error(u, true, mask=mask) == 0
    with pytest.raises(ValueError, match="true must be"):
        metrics.end_point_error(u, true[:, :2])
    with pytest.raises(ValueError, match="spacing must have 2 lengths, one an axis, got"):
        metrics.end_point_error(u, true, spacing=(1, 2, 3))


def test_lengths_in_a_volume_by_hand():
    """(2, 3, 6) voxels are 7; a voxel of (1, 2, 1/2) makes (2, 6, 3) mm of it, 7 again."""
    u = np.ones((3, 4, 5, 6)) * np.reshape([2.0, 3.0, 6.0], (3, 1, 1, 1))
    assert metrics.end_point_error(u, 0 * u) == 7
    assert metrics.displacement_length(u, (1, 2, 0.5)) == {"mean": 7.0, "max": 7.0}
    mask = np.zeros((4, 5, 6))
    mask[1, 2, 3] = 1
    u[:, 1, 2, 3] = 0
    assert metrics.end_point_error(u, 0 * u, mask=mask) == 0


@pytest.mark.parametrize("shape", [(24, 20), (13, 12, 14)], ids=str)
def test_inverse_consistency(shape):
    velocity = torch.from_numpy(smooth(1, shape=shape))[None]
    there, back = integrate(velocity), integrate(-velocity)
    assert metrics.inverse_consistency(there, back) < 0.02
    assert metrics.inverse_consistency(there, invert(there)) < 1e-2
    assert metrics.inverse_consistency(there, 0 * back) > 0.2
    # By scipy, voxel by voxel: the mean over those that stay on the grid.
    reached = np.indices(shape) + there[0].numpy()
    last = np.reshape(shape, (-1, *[1] * len(shape))) - 1
    stays = ((reached >= 0) & (reached <= last)).all(0)
    home = there[0].numpy() + np.stack(
        [ndimage.map_coordinates(v, reached, order=1, mode="nearest") for v in back[0].numpy()]
    )
    expected = np.linalg.norm(home, axis=0)[stays].mean()
    assert metrics.inverse_consistency(there, back) == pytest.approx(expected)
    one = np.ones((2, 6, 6))
    assert metrics.inverse_consistency(one, 0 * one, spacing=(3, 4)) == 5
    assert math.isnan(metrics.inverse_consistency(9 * one, one))  # no voxel stays on the grid


def test_voxels_that_stay_on_the_border_count_for_inverse_consistency():
    """16 of 5 x 5 lie there, each 4 voxels from home, and 9 within it are at home."""
    back = np.zeros((2, 5, 5))
    back[0] = 4
    back[0, 1:-1, 1:-1] = 0
    assert metrics.inverse_consistency(0 * back, back) == pytest.approx(4 * 16 / 25)


def test_target_registration_error_by_hand():
    """(1, 2) goes by (0.5, 1) to (1.5, 3): half a voxel of 2 mm and one of 3 mm from (2, 2)."""
    u = np.zeros((2, 4, 5))
    u[0, 1:], u[1] = 0.5, 1.0
    error = metrics.target_registration_error(u, [[1, 2]], [[2, 2]], axes=np.eye(3)[:, :2] * (2, 3))
    assert error == pytest.approx(math.hypot(1, 3))
    between = metrics.target_registration_error(u, [[0.5, 2]], [[0.75, 3]])  # u_0 is 0.25 there
    assert between == pytest.approx(0)
    turned = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])  # the moving image's axes are swapped
    assert metrics.target_registration_error(u, [[1, 2]], [[3, 1.5]], turned) == pytest.approx(0)
    with pytest.raises(ValueError, match=r"fixed point 2, \[9.0, 0.0\], lies outside the grid"):
        metrics.target_registration_error(u, [[0, 0], [9, 0]], [[0, 0], [9, 0]])
    with pytest.raises(ValueError, match=r"must be \(K, 2\) each"):
        metrics.target_registration_error(u, [[0, 0]], [[0, 0], [9, 0]])


def test_target_registration_error_in_a_volume():
    """u between voxels by scipy; a moving grid of its own, whose axes are turned in space."""
    rng = np.random.default_rng(0)
    u, points = rng.standard_normal((3, 4, 5, 6)), rng.random((7, 3)) * [3, 4, 5]
    there = rng.random((7, 3))
    matrix, axes = rng.standard_normal((3, 4)), rng.standard_normal((3, 3))
    shift = [ndimage.map_coordinates(v, points.T, order=1) for v in u]
    reached = np.concatenate([points + np.stack(shift, 1), np.ones((7, 1))], 1) @ matrix.T
    expected = [np.linalg.norm(axes @ apart) for apart in reached - there]
    found = metrics.target_registration_error(u, points, there, matrix, axes)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    with pytest.raises(ValueError, match=r"must be \(K, 3\) each"):
        metrics.target_registration_error(u, points[:, :2], there[:, :2])
    with pytest.raises(ValueError, match=r"\[0.0, 0.0, 5.5\], lies outside the grid \[4, 5, 6\]"):
        metrics.target_registration_error(u, [[0, 0, 5.5]], [[0, 0, 0]])


def test_points_on_the_last_voxel():
    u = np.ones((2, 4, 1))
    assert metrics.target_registration_error(u, [[3, 0]], [[4, 1]]) == pytest.approx(0)
