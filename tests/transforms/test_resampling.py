"""Resampling once through a chain: SimpleITK, scipy and hand-made truths; kinds and types kept."""

import drawn_transforms as drawn
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

import diffreg
from diffreg.data.grid import Grid
from diffreg.system.files import FileWarning
from diffreg.transforms import Affine, Field, compose, resample

IDENTITY = Affine(np.eye(4))
pytestmark = pytest.mark.filterwarnings("ignore:.*outside the grid of a field")
ITK = {"linear": sitk.sitkLinear, "nearest": sitk.sitkNearestNeighbor, "bspline": sitk.sitkBSpline}


def scene(seed, size=(14, 12, 13)):
    """A fixed grid, a moving image in it, and a chain of a field and an affine between them."""
    rng = np.random.default_rng(seed)
    fixed, moving = drawn.grid(rng, size), drawn.grid(rng, (15, 16, 11))
    chain = compose([drawn.field(rng, fixed, 0.8), drawn.affine(rng, 0.1, 1.0)])
    return rng, fixed, moving, chain


@pytest.mark.parametrize("interpolation", ITK)
@pytest.mark.parametrize("seed", range(4))
def test_it_is_what_itk_makes(seed, interpolation):
    rng, fixed, moving, chain = scene(seed)
    array = drawn.image(rng, moving.size).astype(np.float32)
    source, target = diffreg.image(array, moving.affine), np.zeros(fixed.size, np.float32)
    itk = sitk.Resample(
        drawn.itk_image(array, moving),
        drawn.itk_image(target, fixed),
        drawn.itk_transform(chain),
        ITK[interpolation],
        -9.0,
    )
    ours = resample(source, fixed, chain, interpolation, fill=-9.0).data[0, 0].numpy()
    theirs = sitk.GetArrayFromImage(itk).T
    apart = np.abs(ours - theirs)
    edge = (ours == -9) != (theirs == -9)
    assert not edge.any() and 0.05 < (ours == -9).mean() < 0.95
    if interpolation == "nearest":
        assert (apart[~edge] > 0).sum() <= 2
    else:
        assert apart[~edge].max() < 1e-4 * np.ptp(array)


def test_a_slice_of_a_volume_and_a_slice_of_a_slice():
    rng, fixed, moving, chain = scene(3)
    array = drawn.image(rng, moving.size)
    source = diffreg.image(array, moving.affine)
    whole = resample(source, fixed, chain, fill=0).data[0, 0]
    cut = fixed.affine.copy()
    cut[:3, 3] += 5 * cut[:3, 2]
    plane = resample(source, Grid(fixed.size[:2], cut), chain, fill=0).data[0, 0]
    assert torch.allclose(plane, whole[..., 5], atol=1e-3)
    flat = resample(array[:, :, 3], array[:, :, 3], IDENTITY, "linear")
    assert np.allclose(flat, array[:, :, 3], rtol=1e-6)


def test_a_2_d_file_has_no_depth_beside_a_slice_that_has():
    array = drawn.image(np.random.default_rng(0), (6, 7))
    deep = np.diag([1.0, 1.0, 3.0, 1.0])
    deep[2, 3] = 40
    flat = diffreg.data.geometry.Image(
        torch.from_numpy(array)[None, None], np.eye(4), ndim_in_file=2
    )
    assert flat.is_flat
    found = resample(flat, Grid((6, 7), deep), IDENTITY, "linear", fill=-1).data[0, 0].numpy()
    np.testing.assert_allclose(found, array)


def test_a_field_on_its_own_grid_is_the_warp_operator():
    rng = np.random.default_rng(0)
    on = Grid((9, 8, 7), np.eye(4))
    array, shift = drawn.image(rng, on.size), drawn.field(rng, on, 1.0)
    found = resample(array, on, shift, "linear", fill=0)
    warped = diffreg.warp(torch.from_numpy(array)[None, None], shift.displacement)[0, 0].numpy()
    inside = found != 0
    assert inside.mean() > 0.6 and np.abs(found - warped)[inside].max() < 1e-4


def test_splines_are_scipys():
    array = drawn.image(np.random.default_rng(1), (9, 9, 9))
    half = np.eye(4)
    half[:3, 3] = 0.3, 0.4, 0.2
    ours = resample(array, array, Affine(half), "bspline", fill=None)
    theirs = ndimage.shift(array, (-0.3, -0.4, -0.2), order=3, mode="mirror")
    assert np.abs(ours - theirs).max() < 1e-4


def test_labels_are_voted_for():
    """Of three labels at 0.4, 0.3 and 0.3 the first is taken: nearest would take another."""
    line = np.array([[1, 1], [2, 3]], np.uint16)  # (x, y)
    move = np.eye(4)
    move[:2, 3] = 0.6, 0.5
    ours = resample(line, Grid((1, 1), np.eye(4), is_flat=True), Affine(move), "label")
    assert ours.dtype == np.uint16 and ours[0, 0] == 1
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 5, (6, 7, 5)).astype(np.int16)
    turn = drawn.affine(rng, 0.1, 0.5)
    ours = resample(labels, labels, turn, "label")
    masks = [resample((labels == k) * 1.0, labels, turn, "linear") for k in range(5)]
    best = np.argmax(np.round(masks, 9), axis=0)
    assert np.array_equal(ours, np.where(np.sum(masks, 0) > 0.99, best, 0))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_types_are_kept(dtype):
    rng = np.random.default_rng(4)
    array = (drawn.image(rng, (8, 8, 8))).astype(dtype)
    move = np.eye(4)
    move[0, 3] = 0.5
    found = resample(array, array, Affine(move), "linear")
    half = (array[:-1].astype(float) + array[1:]) / 2
    exact = np.round(half) if array.dtype.kind in "iu" else half
    assert found.dtype == dtype and np.abs(found[:-1] - exact).max() < 1e-4
    assert resample(array, array, Affine(move), "linear", dtype=np.float64).dtype == np.float64
    nearest = resample(array, array, IDENTITY, "nearest")
    assert nearest.dtype == dtype
    assert np.array_equal(nearest.astype(np.float32), array.astype(np.float32))


def test_series_vectors_and_colours(tmp_path):
    rng, fixed, moving, chain = scene(5)
    series = np.stack([drawn.image(rng, moving.size) for _ in range(3)], -1).astype(np.int16)
    file = nib.Nifti1Image(series, moving.affine)
    file.header["pixdim"][4] = 2.5
    found = resample(file, fixed, chain, fill=0)
    assert found.shape == (*fixed.size, 3) and found.get_data_dtype() == np.int16
    assert found.header["pixdim"][4] == 2.5 and np.allclose(found.affine, fixed.affine)
    for k in range(3):
        one = diffreg.image(series[..., k], moving.affine)
        alone = resample(one, fixed, chain, "linear", fill=0).data[0, 0].numpy()
        assert np.array_equal(np.asarray(found.dataobj)[..., k], alone)
    vectors = nib.Nifti1Image(series[:, :, :, None].astype(np.float32), moving.affine)
    nib.save(vectors, tmp_path / "vectors.nii.gz")
    again = resample(tmp_path / "vectors.nii.gz", fixed, chain)
    assert again.shape == (*fixed.size, 1, 3) and again.get_data_dtype() == np.float32
    colours = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb = np.ascontiguousarray(series.clip(0, 255).astype(np.uint8)).view(colours)[..., 0]
    painted = resample(nib.Nifti1Image(rgb, moving.affine), fixed, chain)
    assert painted.get_data_dtype() == colours
    assert np.array_equal(np.asarray(painted.dataobj)["G"], np.asarray(found.dataobj)[..., 1])
    itk = drawn.itk_image(series.transpose(3, 0, 1, 2).astype(np.float32), moving, vectors=True)
    theirs = sitk.Resample(
        itk, drawn.itk_image(np.zeros(fixed.size), fixed), drawn.itk_transform(chain)
    )
    ours = resample(itk, fixed, chain)
    apart = np.abs(sitk.GetArrayFromImage(ours) - sitk.GetArrayFromImage(theirs))
    assert ours.GetOrigin() == pytest.approx(theirs.GetOrigin())
    assert (apart.max(-1) > 1e-2).sum() <= 2


def test_a_series_is_what_its_volumes_are():
    """Labels are not blended, a CT is filled with air, and a number that is none is outside."""
    half = np.eye(4)
    half[0, 3] = 0.5
    labels = np.repeat(np.array([2, 2, 7, 7, 7], np.int16)[:, None, None], 6, 1).repeat(6, 2)
    # Of a cine only some phases are drawn, and FSL writes labels as floats.
    for first, dtype in ((labels, np.int16), (0 * labels, np.uint8), (labels, np.float32)):
        both = nib.Nifti1Image(np.stack([first, labels[::-1]], -1).astype(dtype), np.eye(4))
        found = resample(both, both, Affine(half))
        assert set(np.unique(found.dataobj)) == {0, 2, 7} and found.get_data_dtype() == dtype
    air = np.full((6, 5, 4, 2), -1000.0, np.float32)
    air[1:4, 1:4, 1:3] = np.random.default_rng(0).normal(30, 9, (3, 3, 2, 2))
    air[2, 2, 2, 1] = np.nan
    alone = [diffreg.image(air[..., 0], np.eye(4))]
    with pytest.warns(FileWarning, match="1 of 240 numbers are NaN or infinite"):
        series = np.asarray(resample(nib.Nifti1Image(air, np.eye(4)), both, Affine(half)).dataobj)
    with pytest.warns(FileWarning, match="1 of 120 voxels are NaN"):
        alone.append(diffreg.image(air[..., 1], np.eye(4)))
    for k, image in enumerate(alone):
        one = resample(image, both, Affine(half), "linear").data[0, 0].numpy()
        assert np.array_equal(series[..., k], one) and one.min() == -1000


def test_many_volumes_are_sampled_some_at_a_time(monkeypatch):
    series = np.random.default_rng(0).normal(size=(6, 5, 4, 7)).astype(np.float32)
    file = nib.Nifti1Image(series, np.eye(4))
    whole = np.asarray(resample(file, file, drawn.affine(np.random.default_rng(1))).dataobj)
    monkeypatch.setattr("diffreg.transforms.resampling._AT_ONCE", 300)
    parts = np.asarray(resample(file, file, drawn.affine(np.random.default_rng(1))).dataobj)
    assert np.array_equal(whole, parts)


@pytest.mark.parametrize("interpolation", ["bspline", "label"])
def test_many_voxels_are_sampled_some_at_a_time(interpolation, monkeypatch):
    rng, fixed, moving, chain = scene(5)
    numbers = drawn.image(rng, moving.size)
    array = numbers if interpolation == "bspline" else (numbers / 20).astype(np.int16)
    source = diffreg.image(array, moving.affine)

    def sampled():
        return resample(source, fixed, chain, interpolation).data

    whole = sampled()
    assert len(whole.unique()) > 3
    monkeypatch.setattr("diffreg.transforms.by_points._AT_ONCE", 100)
    torch.testing.assert_close(sampled(), whole, rtol=0, atol=1e-9)


def test_a_scaled_series_comes_back_unscaled(tmp_path):
    file = nib.Nifti1Image(np.arange(48, dtype=np.int16).reshape(2, 4, 3, 2), np.eye(4))
    file.header.set_slope_inter(0.5, 10)
    nib.save(file, tmp_path / "a.nii")
    found = resample(tmp_path / "a.nii", tmp_path / "a.nii", IDENTITY)
    assert np.allclose(np.asarray(found.dataobj), nib.load(tmp_path / "a.nii").get_fdata())


def test_kinds_come_back():
    rng, fixed, moving, chain = scene(6)
    array = drawn.image(rng, moving.size).astype(np.float32)
    nifti = nib.Nifti1Image(array, moving.affine)
    itk = drawn.itk_image(array, moving)
    ours = resample(diffreg.image(array, moving.affine), fixed, chain, fill=0).data[0, 0].numpy()
    assert np.allclose(resample(nifti, fixed, chain, fill=0).get_fdata(), ours, atol=1e-3)
    assert np.allclose(
        sitk.GetArrayFromImage(resample(itk, fixed, chain, fill=0)).T, ours, atol=1e-3
    )
    tensor = resample(torch.from_numpy(array)[None, None], moving, IDENTITY, "linear")
    assert isinstance(tensor, torch.Tensor) and tensor.shape == (1, 1, *moving.size)


def test_what_is_missed_is_said():
    on, far = Grid((4, 4, 4), np.eye(4)), np.eye(4)
    far[:3, 3] = 100
    image = np.ones((4, 4, 4))
    with pytest.raises(ValueError, match="do not overlap"):
        resample(image, on, Affine(far))
    with pytest.raises(ValueError, match="moves nothing here"):
        resample(image, on, Field(torch.ones(1, 3, 4, 4, 4), Grid((4, 4, 4), far)))


@pytest.mark.filterwarnings("error")
def test_a_field_of_half_the_image_is_warned_of():
    on, image = Grid((4, 4, 4), np.eye(4)), np.ones((8, 4, 4))
    with pytest.warns(FileWarning, match=r"50 % of the voxels of .* outside the grid of a field"):
        resample(image, image, Field(torch.ones(1, 3, 4, 4, 4), on))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interpolation": "cubic"}, "interpolation must be"),
        ({"fill": np.nan}, "fill must be a finite number"),
        ({"image": np.ones((4, 4, 4), np.uint8), "fill": -1000}, "fill must be a value of uint8"),
        ({"by": [1]}, "transforms must be transforms, got int"),
        ({"image": nib.Nifti1Image(np.ones((4, 4, 4), np.complex64), np.eye(4))}, "complex"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    whole = {"image": np.ones((4, 4, 4)), "onto": np.ones((4, 4, 4)), **arguments}
    with pytest.raises((ValueError, TypeError), match=message):
        resample(**whole)
