"""Metrics of labels, points, displacements and structure, against hand cases and other programs."""

import math

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance
from skimage.metrics import structural_similarity as skimage_ssim

from diffreg import metrics
from diffreg.fields import integrate, invert

SPACING = (1.5, 0.75)


def disc(centre, radius, shape=(40, 36)):
    i, j = np.indices(shape)
    return ((i - centre[0]) ** 2 + (j - centre[1]) ** 2 <= radius**2).astype(np.int64)


def smooth(seed=0, size=0.6, shape=(24, 20)):
    """A smooth unfolded displacement."""
    i, j = np.indices(shape) / 5
    phase = np.random.default_rng(seed).random(4) * 6
    u = [np.sin(i + phase[0]) * np.cos(j + phase[1]), np.cos(i + phase[2]) * np.sin(j + phase[3])]
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
def test_surface_distances_are_those_of_monai():
    rng = np.random.default_rng(0)
    for _ in range(6):
        a, b = (disc(18 + 4 * rng.standard_normal(2), rng.uniform(4, 12)) for _ in range(2))
        found = metrics.surface_distances(a, b, SPACING)[1]
        one_hot = [torch.from_numpy(np.stack([1 - m, m]))[None] for m in (a, b)]
        theirs = compute_hausdorff_distance(*one_hot, percentile=95, spacing=SPACING)
        assert found["hd95"] == pytest.approx(theirs.item(), rel=1e-5)
        theirs = compute_average_surface_distance(*one_hot, symmetric=True, spacing=SPACING)
        assert found["assd"] == pytest.approx(theirs.item(), rel=1e-5)


def test_surface_distances_are_found_one_by_one():
    """By all distances between all surface voxels."""

    def surface(m):
        padded = np.pad(m, 1)
        inner = padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
        return np.argwhere(m & ~inner) * SPACING

    a, b = disc((10, 12), 7) > 0, disc((13, 15), 5) > 0
    apart = np.linalg.norm(surface(a)[:, None] - surface(b)[None], axis=2)
    there, back = apart.min(1), apart.min(0)
    found = metrics.surface_distances(a, b, SPACING)[1]
    assert found["hd95"] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)))
    assert found["assd"] == pytest.approx(np.concatenate([there, back]).mean())


def test_a_label_that_only_one_map_has():
    a, b = disc((10, 10), 4), disc((10, 10), 4) * 3
    found = metrics.surface_distances(a, b)
    assert sorted(found) == [1, 3]
    assert all(math.isnan(value) for both in found.values() for value in both.values())
    assert metrics.surface_distances(a, a)[1] == {"hd95": 0, "assd": 0}


# structure


@pytest.mark.parametrize("seed", range(3))
def test_ssim_is_that_of_scikit_image(seed):
    rng = np.random.default_rng(seed)
    a = rng.random((30 + seed, 27))
    b = np.clip(a + 0.2 * rng.standard_normal(a.shape), 0, 1)
    expected = skimage_ssim(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1
    )
    assert metrics.structural_similarity(a, b) == pytest.approx(expected, abs=1e-12)


def test_ssim_inside_a_mask_and_of_a_small_image():
    rng = np.random.default_rng(0)
    a, mask = rng.random((32, 30)), np.zeros((32, 30))
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
    assert math.isnan(metrics.sd_log_jacobian(-2 * u))  # J = -1 has no logarithm
    assert math.isnan(metrics.sd_log_jacobian(np.zeros((2, 1, 1))))


def test_sd_log_jacobian_as_learn2reg():
    """Theirs, written with numpy's gradient, which is central inside."""
    u = smooth()
    down, across = (np.gradient(u, axis=axis)[:, 2:-2, 2:-2] for axis in (1, 2))
    determinant = (1 + down[0]) * (1 + across[1]) - down[1] * across[0]
    found = metrics.sd_log_jacobian_learn2reg(u)
    assert found == pytest.approx(np.log(np.clip(determinant + 3, 1e-9, 1e9)).std(), abs=1e-12)
    assert found < metrics.sd_log_jacobian(u) / 2
    assert math.isnan(metrics.sd_log_jacobian_learn2reg(np.zeros((2, 4, 9))))


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


def test_inverse_consistency():
    velocity = torch.from_numpy(smooth(1))[None]
    there, back = integrate(velocity), integrate(-velocity)
    assert metrics.inverse_consistency(there, back) < 0.02
    assert metrics.inverse_consistency(there, invert(there)) < 1e-2
    assert metrics.inverse_consistency(there, 0 * back) > 0.2
    one = np.ones((2, 6, 6))
    assert metrics.inverse_consistency(one, 0 * one, spacing=(3, 4)) == 5
    assert math.isnan(metrics.inverse_consistency(9 * one, one))  # no voxel stays on the grid


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


def test_points_on_the_last_voxel():
    u = np.ones((2, 4, 1))
    assert metrics.target_registration_error(u, [[3, 0]], [[4, 1]]) == pytest.approx(0)
