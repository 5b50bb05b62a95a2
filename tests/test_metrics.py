import math

import golden
import numpy as np
import pytest
import torch

from diffreg import metrics

TWO = np.array([[0.0, 1.0], [0.0, 1.0]])


@pytest.fixture(params=[(30, 41), (15, 21, 16)], ids=str)
def images(request):
    """Warped, fixed, moving and a ball as mask, of an image and of a volume."""
    i, j, *k = np.indices(request.param).astype(float)
    k = k[0] if k else 0
    fixed = 0.5 + 0.3 * np.cos(0.5 * i - 0.4 * j + 0.3 * k)
    warped = 0.5 + 0.4 * np.sin(0.3 * i + 0.1 * j - 0.2 * k) + 0.1 * np.cos(0.9 * j)
    moving = 0.5 + 0.5 * np.sin(0.3 * i + 0.2 * j + 0.1 * k)
    centre = [n // 2 for n in request.param]
    square = sum((x - c) ** 2 for x, c in zip((i, j, k), centre, strict=False))
    # No window around a voxel of the mask reads the first voxel of the image.
    return warped, fixed, moving, (square < (120 if len(centre) == 2 else 30)).astype(float)


def oracle_mi(joint):
    p = joint / joint.sum()
    outer = p.sum(1, keepdims=True) @ p.sum(0, keepdims=True)
    return float((p[p > 0] * np.log(p[p > 0] / outer[p > 0])).sum())


# ncc


def test_ncc_by_hand():
    # a = (-1, 0, 1), b = (-1, 1, 0) about their means: 1 / sqrt(2 * 2)
    assert metrics.ncc(np.array([[1.0, 2.0, 3.0]]), np.array([[4.0, 6.0, 5.0]])) == pytest.approx(
        0.5
    )


def test_ncc_is_blind_to_a_positive_linear_change_and_inverts_with_a_negative_one(images):
    fixed = images[1]
    assert metrics.ncc(7 * fixed - 3, fixed) == pytest.approx(1)
    assert metrics.ncc(-2 * fixed, fixed) == pytest.approx(-1)


def test_ncc_is_numpys_corrcoef(images):
    warped, fixed, _, mask = images
    expected = np.corrcoef(warped.ravel(), fixed.ravel())[0, 1]
    assert metrics.ncc(warped, fixed) == pytest.approx(expected, abs=1e-12)
    inside = mask > 0
    expected = np.corrcoef(warped[inside], fixed[inside])[0, 1]
    assert metrics.ncc(warped, fixed, mask) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 / 3])
def test_ncc_of_a_constant_image_is_nan(images, value):
    assert math.isnan(metrics.ncc(np.full_like(images[1], value), images[1]))


def test_tensors_with_leading_ones_gradients_and_any_dtype_are_taken(images):
    warped, fixed, _, mask = (torch.from_numpy(a)[None, None] for a in images)
    expected = metrics.ncc(*images[:2], images[3])
    assert metrics.ncc(warped.requires_grad_(), fixed, mask > 0) == pytest.approx(expected)
    labels = torch.tensor([[1, 2, 3]], dtype=torch.int16)
    assert metrics.ncc(labels, labels) == pytest.approx(1)


# relative SSD


def test_relative_ssd_by_hand():
    moving, fixed, warped = np.array([4.0, 0.0]), np.array([0.0, 0.0]), np.array([1.0, 1.0])
    assert metrics.relative_ssd(warped, fixed, moving) == 2 / 16
    assert metrics.relative_ssd(warped, fixed, moving, np.array([1, 0])) == 1 / 16


def test_relative_ssd_is_its_definition(images):
    warped, fixed, moving, mask = images
    inside = mask > 0
    after, before = ((image - fixed)[inside] for image in (warped, moving))
    expected = np.dot(after, after) / np.dot(before, before)
    assert metrics.relative_ssd(warped, fixed, moving, mask) == pytest.approx(expected)


def test_relative_ssd_where_there_is_nothing_to_reduce():
    assert math.isnan(metrics.relative_ssd(TWO, TWO, TWO))
    assert metrics.relative_ssd(TWO + 1, TWO, TWO) == math.inf


# mutual information


def test_mutual_information_by_hand():
    assert metrics.mutual_information(TWO, 5 - TWO) == pytest.approx(math.log(2))
    assert metrics.mutual_information(TWO, TWO.T) == 0
    assert metrics.normalized_mutual_information(TWO, 5 - TWO) == pytest.approx(2)
    assert metrics.normalized_mutual_information(TWO, TWO.T) == pytest.approx(1)


@pytest.mark.parametrize("bins", [1, 7, 64])
def test_mutual_information_is_that_of_numpys_histogram(images, bins):
    warped, fixed, _, mask = images
    joint, _, _ = np.histogram2d(warped.ravel(), fixed.ravel(), bins)
    assert metrics.mutual_information(warped, fixed, bins) == pytest.approx(
        oracle_mi(joint), abs=1e-12
    )
    inside = mask > 0
    joint, _, _ = np.histogram2d(warped[inside], fixed[inside], bins)
    assert metrics.mutual_information(warped, fixed, bins, mask) == pytest.approx(
        oracle_mi(joint), abs=1e-12
    )


def test_mutual_information_takes_its_bins_from_the_moving_image(images):
    warped, fixed, moving, _ = images
    clipped = np.clip(warped, moving.min(), moving.max())
    ranges = [(moving.min(), moving.max()), (fixed.min(), fixed.max())]
    joint, _, _ = np.histogram2d(clipped.ravel(), fixed.ravel(), 64, range=ranges)
    assert joint.sum() == warped.size
    found = metrics.mutual_information(warped, fixed, moving=moving)
    assert found == pytest.approx(oracle_mi(joint), abs=1e-12)
    assert found != metrics.mutual_information(warped, fixed)


def test_mutual_information_of_a_constant_image(images):
    fixed = images[1]
    flat = np.ones_like(fixed)
    assert metrics.mutual_information(flat, fixed) == pytest.approx(0, abs=1e-12)
    assert metrics.normalized_mutual_information(flat, fixed) == pytest.approx(1)
    assert math.isnan(metrics.normalized_mutual_information(flat, flat))


# what is not finite


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "measure",
    [
        metrics.ncc,
        metrics.mutual_information,
        metrics.normalized_mutual_information,
        metrics.structural_similarity,
        lambda warped, fixed, mask=None: metrics.relative_ssd(warped, fixed, 1 - fixed, mask),
    ],
)
def test_a_nan_counts_inside_the_mask_only(images, measure, bad):
    warped, fixed, _, mask = images
    expected = measure(warped, fixed, mask=mask)
    warped.flat[0] = bad
    assert measure(warped, fixed, mask=mask) == expected
    warped.flat[0] = math.nan
    assert math.isnan(measure(warped, fixed))


def test_a_window_reads_0_for_a_nan_of_weight_0(images):
    warped, fixed, _, mask = images
    centre = tuple(n // 2 for n in warped.shape)
    mask[centre] = warped[centre] = 0
    expected = metrics.structural_similarity(warped, fixed, mask)
    warped[centre] = math.nan
    assert metrics.structural_similarity(warped, fixed, mask) == expected


@pytest.mark.parametrize("measure", [metrics.end_point_error, metrics.inverse_consistency])
@pytest.mark.parametrize("size", [(9, 8), (9, 8, 7)], ids=str)
def test_a_displacement_that_is_nan_outside_the_mask_does_not_count(measure, size):
    u = 0.3 * np.random.default_rng(0).standard_normal((len(size), *size))
    u[:, :3] = 0
    mask = np.zeros(size)
    mask[4:] = 0.5
    expected = measure(u, -u, mask=mask)
    broken = u.copy()
    broken[:, 0] = math.nan
    assert measure(broken, -u, mask=mask) == expected
    assert math.isnan(metrics.end_point_error(broken, -u))


# dice


def test_dice_by_hand():
    a = torch.tensor([[0, 1, 1], [2, 2, 0]])
    b = torch.tensor([[0, 1, 0], [2, 2, 3]])
    assert metrics.dice(a, b) == {1: 2 / 3, 2: 1.0, 3: 0.0}
    assert metrics.dice(a, b, [0, 1]) == {0: 0.5, 1: 2 / 3}
    assert metrics.dice(a > 0, b > 0) == {1: 6 / 8}


def test_dice_of_volumes_is_simpleitk_s():
    sitk = pytest.importorskip("SimpleITK", reason="the peer: pip install SimpleITK")
    a, b = np.random.default_rng(0).integers(0, 4, (2, 5, 6, 7))
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(sitk.GetImageFromArray(labels.astype(np.uint8)) for labels in (a, b)))
    expected = {label: overlap.GetDiceCoefficient(label) for label in (1, 2, 3)}
    assert metrics.dice(a, b) == pytest.approx(expected)
    assert metrics.dice(a[None, None], torch.from_numpy(b)) == metrics.dice(a, b)


def test_dice_of_a_label_nobody_has_is_nan():
    assert math.isnan(metrics.dice(TWO, TWO, [4])[4])
    assert metrics.dice(0 * TWO, 0 * TWO) == {}


@pytest.mark.parametrize("value", [0.5, math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("measure", [metrics.dice, metrics.surface_distances])
def test_a_label_is_a_whole_number(measure, value):
    other = TWO.astype(float)
    other.flat[1] = value
    with pytest.raises(ValueError, match="label_b must hold whole numbers"):
        measure(TWO, other)


# folding


def test_nothing_folds_in_the_identity():
    expected = {"min_determinant": 1, "max_determinant": 1, "folded_percent": 0}
    assert metrics.folding(torch.zeros(1, 2, 5, 6)) == expected
    assert metrics.folding(np.zeros((2, 5, 6), dtype=np.float32)) == expected
    assert metrics.folding(torch.zeros(1, 3, 4, 5, 6)) == expected


def test_folding_of_a_scaling_is_the_scaling():
    i, j = np.meshgrid(np.arange(4.0), np.arange(5.0), indexing="ij")
    found = metrics.folding(np.stack([i, -0.5 * j]))
    assert found == {"min_determinant": 1, "max_determinant": 1, "folded_percent": 0}
    found = metrics.folding(np.stack([-2 * i, 0 * j]))
    assert found == {"min_determinant": -1, "max_determinant": -1, "folded_percent": 100}


def test_one_vertex_pushed_past_its_neighbour_folds_two_cells():
    # Vertex (1, 1) of a 3 x 3 grid goes to (1, 2.5), past (1, 2): an edge of -0.5 in two cells.
    u = np.zeros((2, 3, 3))
    u[1, 1, 1] = 1.5
    smallest = metrics.smallest_determinant(u)
    np.testing.assert_array_equal(smallest, [[1, -0.5], [1, -0.5]])
    assert metrics.folding(u) == {
        "min_determinant": -0.5,
        "max_determinant": 2.5,
        "folded_percent": 50,
    }


def test_one_vertex_of_a_volume_pushed_past_its_neighbour():
    """Vertex (1, 1, 1) of 3 x 3 x 3 goes to (1, 1, 2.5), past (1, 1, 2): folded are the four cells
    above it; those below are as high as 2.5 at that vertex."""
    u = np.zeros((3, 3, 3, 3))
    u[2, 1, 1, 1] = 1.5
    smallest = metrics.smallest_determinant(u)
    np.testing.assert_array_equal(smallest[..., 0], np.ones((2, 2)))
    np.testing.assert_array_equal(smallest[..., 1], np.full((2, 2), -0.5))
    assert metrics.folding(u) == {
        "min_determinant": -0.5,
        "max_determinant": 2.5,
        "folded_percent": 50,
    }


@pytest.mark.parametrize("shape", [(9, 7), (7, 4, 5)], ids=str)
def test_a_large_grid_is_measured_rows_by_rows_without_a_seam(shape, monkeypatch):
    rng = np.random.default_rng(0)
    rough, smooth = (size * rng.normal(size=(len(shape), *shape)) for size in (1.0, 0.05))
    measures = [
        lambda: metrics.smallest_determinant(rough).tolist(),
        lambda: metrics.folding(rough),
        lambda: metrics.sd_log_jacobian(smooth),
    ]
    whole = [measure() for measure in measures]
    for cells in (1, 3 * math.prod(shape[1:])):  # a row of cells at a time, and three
        monkeypatch.setattr("diffreg.metrics.displacements._CELLS", cells)
        parts = [measure() for measure in measures]
        assert parts[:2] == whole[:2] and parts[2] == pytest.approx(whole[2], rel=1e-12)


def test_a_cell_without_area_is_folded():
    u = np.zeros((2, 2, 2))
    u[1, :, 1] = -1
    assert metrics.folding(u) == {
        "min_determinant": 0,
        "max_determinant": 0,
        "folded_percent": 100,
    }


def test_the_golden_volume():
    found = metrics.folding(golden.volume_displacement())
    assert found["min_determinant"] == pytest.approx(0.346728873401)
    assert found["max_determinant"] == pytest.approx(1.84302010411)
    assert found["folded_percent"] == 0


def test_the_golden_field():
    u = golden.displacement()[0].numpy()
    found = metrics.folding(u)
    assert found["min_determinant"] == pytest.approx(0.209934140324)
    assert found["max_determinant"] == pytest.approx(2.86140745067)
    assert found["folded_percent"] == 0
    found = metrics.folding(2 * u)
    assert found["min_determinant"] == pytest.approx(-1.20414745561)
    assert found["folded_percent"] == pytest.approx(100 * 30 / 63)


def test_a_cell_with_nan_is_folded():
    u = np.zeros((2, 3, 4))
    u[0, 0, 0] = math.nan
    found = metrics.folding(u)
    assert math.isnan(found["min_determinant"]) and math.isnan(found["max_determinant"])
    assert found["folded_percent"] == pytest.approx(100 / 6)


@pytest.mark.parametrize("shape", [(2, 1, 1), (3, 1, 1, 1)])
def test_a_grid_without_cells_folds_nowhere(shape):
    found = metrics.folding(np.zeros(shape))
    assert math.isnan(found["min_determinant"]) and found["folded_percent"] == 0
    assert math.isnan(metrics.sd_log_jacobian(np.zeros(shape)))
    assert metrics.smallest_determinant(np.zeros(shape)).size == 0


@pytest.mark.parametrize("shape", [(2, 1, 5), (2, 5, 1), (3, 1, 5, 1)])
def test_a_row_is_a_line_and_has_cells(shape):
    u = np.zeros(shape)
    axis = shape.index(5) - 1
    u[axis].flat[:] = [0, 1, 2, 0.5, 0]  # 1 + differences: 2, 2, -0.5, 0.5
    u[axis - 1] = np.random.default_rng(0).standard_normal(shape[1:])  # does not matter
    assert metrics.smallest_determinant(u).flatten() == pytest.approx([2, 2, -0.5, 0.5])
    assert metrics.folding(u)["folded_percent"] == 25


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_volume_of_one_plane_is_an_image(axis):
    flat = golden.displacement()[0].numpy()
    across = np.random.default_rng(0).standard_normal((1, 8, 10))  # does not matter
    u = np.expand_dims(np.insert(flat, axis, across, axis=0), 1 + axis)
    for measure in (
        metrics.folding,
        metrics.sd_log_jacobian,
        metrics.sd_log_jacobian_learn2reg,
    ):
        assert measure(u) == measure(flat)
    mask = flat[0] > 0
    within = metrics.sd_log_jacobian_learn2reg(u, np.expand_dims(mask, axis))
    assert within == metrics.sd_log_jacobian_learn2reg(flat, mask)
    smallest = metrics.smallest_determinant(u)
    np.testing.assert_array_equal(smallest.squeeze(axis), metrics.smallest_determinant(flat))


# what is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.ncc(TWO, np.zeros((2, 3))), r"fixed must have the shape of warped"),
        (
            lambda: metrics.relative_ssd(TWO, TWO, np.zeros((2, 3))),
            r"moving must have the shape of warped, \[2, 2\], got \[2, 3\]",
        ),
        (lambda: metrics.dice(TWO, np.zeros((4,))), r"label_b must have the shape of label_a"),
        (lambda: metrics.ncc(TWO, TWO, np.ones((3, 3))), r"mask must have the shape of warped"),
        (lambda: metrics.ncc(TWO, TWO, 0 * TWO), r"mask must have a voxel inside, got none"),
        (lambda: metrics.ncc(TWO, TWO, -TWO), r"mask must be finite and nowhere negative"),
        (
            lambda: metrics.end_point_error(np.stack([TWO, TWO]), np.stack([TWO, TWO]), mask=-TWO),
            r"mask must be finite and nowhere negative",
        ),
        (lambda: metrics.ncc(np.zeros((0, 3)), np.zeros((0, 3))), r"warped must not be empty"),
        (
            lambda: metrics.ncc(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4)),
            r"warped must be one image, \(\*S\) or \(1, 1, \*S\), got \[2, 1, 4, 4\]",
        ),
        (lambda: metrics.mutual_information(TWO, TWO, bins=0), r"bins must be at least 1, got 0"),
        (
            lambda: metrics.folding(torch.zeros(2, 2, 4, 4)),
            r"displacement must be \(D, \*S\) or \(1, D, \*S\), got \[2, 2, 4, 4\]",
        ),
    ],
)
def test_refusals_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
