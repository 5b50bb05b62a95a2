"""One pair in, one result out: the same physical result however the images are stored."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diffreg.data.geometry import Image, display_orientation
from diffreg.data.prepare import relative_spacing
from diffreg.data.resampling import resample_to
from diffreg.data.transforms import read_displacement
from diffreg.losses import Objective
from diffreg.metrics import folding
from diffreg.registration import register, write_registration

pytestmark = pytest.mark.usefixtures("one_thread")

ORIENTATIONS = list(itertools.product((False, True), (1, -1), (1, -1)))


def phantom(shape, affine, bend=0.0):
    """A body with three organs, no symmetry; `bend` moves it smoothly by up to so many mm."""
    i, j = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    x, y = np.einsum("wk,kij->wij", affine[:2, [0, 1, 3]], np.stack([i, j, np.ones_like(i)]))
    x, y = x + bend * np.sin(y / 14), y + bend * np.cos(x / 17)

    def organ(cx, cy, rx, ry):
        distance = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)
        return 1 / (1 + np.exp(8 * (distance - 1)))

    picture = (
        100 * organ(0, 0, 25, 20)
        + 80 * organ(9, 6, 7, 5)
        - 50 * organ(-11, 2, 5, 9)
        + 60 * organ(2, -12, 9, 3)
    )
    return torch.from_numpy(picture.astype(np.float32))[None, None]


def centred(shape, spacing):
    affine = np.diag([*spacing, 4.0, 1.0])
    affine[:2, 3] = [-(n - 1) * h / 2 for n, h in zip(shape, spacing, strict=True)]
    return affine


def stored(image, swap, first, second):
    """The same picture in space with axes swapped and flipped, in the array and the affine."""
    array, affine = image.data, image.affine.copy()
    for axis, sign in enumerate((first, second)):
        if sign < 0:
            affine[:3, 3] += affine[:3, axis] * (array.shape[2 + axis] - 1)
            affine[:3, axis] *= -1
            array = array.flip(2 + axis)
    if swap:
        array, affine = array.mT, affine[:, [1, 0, 2, 3]]
    return replace(image, data=array.contiguous(), affine=affine)


SHAPE, SPACING = (64, 56), (1.0, 1.25)
GRID = centred(SHAPE, SPACING)
FIXED = Image(phantom(SHAPE, GRID), GRID)
MOVING = Image(phantom(SHAPE, GRID, bend=3.0), GRID)
QUICK = {"levels": 2, "iterations": 15}


@pytest.fixture(scope="module")
def straight():
    return register(MOVING, FIXED, **QUICK)


def test_it_aligns_without_folding(straight):
    before, after = straight.metrics["before"], straight.metrics["after"]
    assert after["ncc"] > 0.99 > before["ncc"]
    assert after["mutual_information"] > before["mutual_information"]
    assert after["relative_ssd"] < 0.1
    assert before["relative_ssd"] == 1
    assert straight.metrics["min_determinant"] > 0
    assert straight.metrics["folded_percent"] == 0


def assert_same_in_space(result, expected, atol):
    """The warped images agree, compared on one grid."""
    warped, inside = (
        resample_to(replace(result.fixed, data=data), FIXED)
        for data in (result.values, result.mask)
    )
    # Where one of the two just leaves the image, it is filled.
    inside = (inside > 0) & (expected.mask > 0)
    assert inside.float().mean() > 0.9
    torch.testing.assert_close(warped[inside], expected.values[inside], rtol=0, atol=atol)


@pytest.fixture(scope="module")
def converged():
    return register(MOVING, FIXED, levels=2, iterations=60)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_orientation_gives_the_same_result(orientation, converged):
    """One minimum, reached on other ways: at u = 0 the warp's derivative is one-sided."""
    pair = (stored(image, *orientation) for image in (MOVING, FIXED))
    result = register(*pair, levels=2, iterations=60)
    assert_same_in_space(result, converged, atol=2.0)  # of 180
    for when in ("before", "after"):
        assert result.metrics[when] == pytest.approx(converged.metrics[when], rel=0.02, abs=1e-3)


@pytest.mark.parametrize("orientation", ORIENTATIONS[1::2])
def test_the_two_images_may_be_stored_differently(orientation, straight):
    result = register(stored(MOVING, *orientation), FIXED, affine="none", **QUICK)
    torch.testing.assert_close(result.moving_on_fixed, MOVING.data, rtol=0, atol=1e-4)
    torch.testing.assert_close(result.displacement, straight.displacement, rtol=0, atol=1e-2)


def test_the_two_grids_may_differ():
    """Another spacing, another size, turned by 10 degrees: the same body, so it is found again."""
    shape, angle = (80, 90), np.radians(10)
    affine = centred(shape, (0.8, 0.9))
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    moving = Image(phantom(shape, turn @ affine, bend=3.0), turn @ affine)
    result = register(moving, FIXED, **QUICK)
    assert result.metrics["after"]["ncc"] > 0.99
    assert result.values.shape == FIXED.data.shape


def test_every_orientation_is_drawn_alike():
    pictures = []
    for orientation in ORIENTATIONS:
        image = stored(FIXED, *orientation)
        transpose, flip_rows, flip_columns = display_orientation(image.affine, image.kind)
        array = image.data[0, 0].mT if transpose else image.data[0, 0]
        array = array.flip(0) if flip_rows else array
        pictures.append(array.flip(1) if flip_columns else array)
    assert all(torch.equal(picture, FIXED.data[0, 0].mT.flip(0)) for picture in pictures)


def test_only_the_moving_images_field_of_view_counts():
    shape = (40, 56)
    part = Image(MOVING.data[:, :, 24:].contiguous(), MOVING.affine.copy())
    part.affine[:3, 3] += 24 * part.affine[:3, 0]
    result = register(part, FIXED, affine="none", **QUICK)
    assert part.shape == shape
    start = result.prepared.mask
    assert start[:, :, 24:].min() == 1
    assert start[:, :, :24].max() == 0
    assert 0 < result.mask.sum() < start.sum()  # some are led out of the moving image
    assert bool((result.mask <= start).all())
    assert result.metrics["after"]["ncc"] > 0.98


def test_the_mask_may_be_stored_differently():
    half = replace(FIXED, data=torch.zeros(FIXED.data.shape, dtype=torch.uint8))
    half.data[:, :, :30] = 3
    result = register(MOVING, FIXED, fixed_mask=stored(half, True, -1, 1), levels=1, iterations=2)
    assert torch.equal(result.mask, (half.data > 0).float())


def test_the_energies_see_the_voxels_proportions():
    assert relative_spacing(FIXED) == (1.0, 1.25)
    fine = replace(FIXED, affine=FIXED.affine @ np.diag([0.1, 0.1, 1, 1]))
    assert relative_spacing(fine) == (1.0, 1.25)


class Shift(nn.Module):
    """A network that displaces every voxel alike."""

    def __init__(self, by):
        super().__init__()
        self.by = by

    def forward(self, moving, fixed):
        assert not torch.is_grad_enabled()
        assert moving.min() >= 0 and moving.max() <= 1
        return torch.full((1, 2, *fixed.shape[2:]), self.by)


def lambda_module(function):
    module = nn.Module()
    module.forward = function
    return module


def test_a_network_takes_the_place_of_the_optimiser():
    result = register(MOVING, FIXED, network=Shift(2.0), similarity="pls")
    assert (result.method, result.similarity) == ("network", "pls")
    assert torch.equal(result.values[:, :, :-2, :-2], MOVING.data[:, :, 2:, 2:])
    assert "relative_ssd" not in result.metrics["after"]
    with pytest.raises(ValueError, match="NaN or infinite"):
        register(MOVING, FIXED, network=Shift(float("nan")))
    with pytest.raises(ValueError, match=r"must be \(1, 2, 64, 56\), got \(1, 1, 64, 56\)"):
        register(MOVING, FIXED, network=lambda_module(lambda moving, fixed: moving))


def refusals():
    flat = replace(MOVING, data=torch.full_like(MOVING.data, 7), path=Path("flat.nii"))
    away = replace(MOVING, affine=MOVING.affine + np.array([[0, 0, 0, 500]] + [[0] * 4] * 3))
    empty = replace(FIXED, data=torch.zeros_like(FIXED.data), path=Path("empty.nii"))
    return {
        "constant": (flat, {}, r"flat\.nii is 7 everywhere"),
        "away": (away, {}, "do not overlap"),
        "png": (replace(MOVING, kind="png"), {}, "no physical coordinates"),
        "empty mask": (MOVING, {"fixed_mask": empty}, r"mask empty\.nii selects no voxel"),
    }


@pytest.mark.parametrize("name", refusals())
def test_refuses_in_words(name):
    moving, keywords, message = refusals()[name]
    with pytest.raises(ValueError, match=message):
        register(moving, FIXED, affine="none", **keywords)


def test_metrics_of_another_contrast():
    objective = Objective("pls", spacing=relative_spacing(FIXED))
    result = register(MOVING, FIXED, objective=objective, levels=1, iterations=2)
    assert result.similarity == "pls"
    assert "relative_ssd" not in result.metrics["after"]


def test_written_files(straight, tmp_path):
    result = write_registration(straight, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "warped.nii.gz",
        "displacement.nii.gz",
        "affine.mat",
        "composite.h5",
        "inverse_displacement.nii.gz",
        "inverse_composite.h5",
        "metrics.json",
        "report.html",
    }
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics == result.metrics
    written, _ = read_displacement(tmp_path / "out" / "displacement.nii.gz")
    assert metrics["min_determinant"] == folding(written)["min_determinant"]
    assert "NCC" in result.verdict


def test_numbers_that_json_lacks_become_null(straight, tmp_path):
    result = replace(straight, metrics={**straight.metrics, "seconds": float("nan")})
    write_registration(result, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["seconds"] is None


def test_the_output_folder_is_checked(straight, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file, not a folder"):
        write_registration(straight, tmp_path / "file")
    with pytest.raises(ValueError, match=r"none does not exist"):
        write_registration(straight, tmp_path / "none" / "out")
