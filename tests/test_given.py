"""Images in as people have them, results back in kind."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

import diffreg
from diffreg.data.given import as_image, in_kind
from diffreg.data.images import write_image

AFFINE = np.array([[0, -2.0, 0.3, 10], [1.5, 0, 0.2, -4], [0.1, 0, 5, 30], [0, 0, 0, 1]])
AFFINE[:3, :3] = np.linalg.qr(AFFINE[:3, :3])[0] * [1.5, 2.0, 5.0]
ARRAY = np.random.default_rng(1).normal(size=(4, 5, 6)).astype(np.float32)
QUICK = {"levels": 1, "iterations": 2, "affine": "none"}


def as_sitk(array=ARRAY, affine=AFFINE):
    """Independent of the package: the physical point of every index is set by hand."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose()))
    lps = np.diag([-1, -1, 1, 1]) @ affine
    n = array.ndim
    lengths = np.linalg.norm(lps[:n, :n], axis=0)
    image.SetSpacing(lengths.tolist())
    image.SetDirection((lps[:n, :n] / lengths).ravel().tolist())
    image.SetOrigin(lps[:n, 3].tolist())
    return image


def test_every_kind_is_one_image(tmp_path):
    nib.save(nib.Nifti1Image(ARRAY, AFFINE), tmp_path / "a.nii.gz")
    given = {
        "path": str(tmp_path / "a.nii.gz"),
        "nibabel": nib.load(tmp_path / "a.nii.gz"),
        "mgh": nib.MGHImage(ARRAY, AFFINE.astype(np.float32)),
        "SimpleITK": as_sitk(),
    }
    for name, value in given.items():
        image = as_image(name, value)
        assert torch.equal(image.data[0, 0], torch.from_numpy(ARRAY)), name
        np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5, err_msg=name)
    for value in (ARRAY, torch.from_numpy(ARRAY), torch.from_numpy(ARRAY)[None, None]):
        image = diffreg.image(value, affine=AFFINE)
        assert torch.equal(image.data[0, 0], torch.from_numpy(ARRAY))
        assert np.array_equal(image.affine, AFFINE)
        assert diffreg.image(value, spacing=2.0).spacing == (2.0, 2.0, 2.0)


def test_results_come_back_in_kind(tmp_path):
    write_image(tmp_path / "a.nii.gz", torch.from_numpy(ARRAY), diffreg.image(ARRAY, AFFINE))
    grid = diffreg.image(ARRAY, AFFINE)
    values = torch.rand(1, 1, 4, 5, 6)
    assert np.array_equal(in_kind(values, grid, ARRAY), values[0, 0].numpy())
    assert in_kind(values, grid, torch.zeros(1, 1, 2, 2, 2)).shape == (1, 1, 4, 5, 6)
    assert in_kind(values, grid, torch.zeros(2, 2, 2)).shape == (4, 5, 6)
    nifti = in_kind(values, grid, nib.Nifti1Image(ARRAY, np.eye(4)))
    np.testing.assert_allclose(nifti.affine, AFFINE, atol=1e-5)
    assert np.array_equal(nifti.get_fdata().astype(np.float32), values[0, 0].numpy())
    itk = in_kind(values, grid, as_sitk())
    point = np.array(itk.TransformIndexToPhysicalPoint((1, 2, 3))) * [-1, -1, 1]
    np.testing.assert_allclose(point, (AFFINE @ [1, 2, 3, 1])[:3], atol=1e-5)
    assert itk[1, 2, 3] == values[0, 0, 1, 2, 3]
    image = in_kind(values, grid, str(tmp_path / "a.nii.gz"))
    assert torch.equal(image.data, values) and np.array_equal(image.affine, AFFINE)


def test_a_slice_of_itk_comes_back_as_one():
    plane = as_sitk(ARRAY[..., 0], np.diag([2.0, 3.0, 1.0, 1.0]))
    image = as_image("moving", plane)
    assert (image.shape, image.spacing) == ((4, 5), (2.0, 3.0))
    back = in_kind(image.data, image, plane)
    assert back.GetDimension() == 2 and back.GetSpacing() == (2.0, 3.0)
    assert np.array_equal(sitk.GetArrayFromImage(back), ARRAY[..., 0].T)


def test_mixed_kinds_are_registered_and_the_moving_one_counts():
    x = np.arange(20.0)
    blob = np.exp(-((x[:, None] - 9) ** 2 + (x - 10) ** 2) / 18).astype(np.float32)
    result = diffreg.register(blob, torch.from_numpy(blob.T.copy()), **QUICK)
    assert isinstance(result.warped, np.ndarray) and result.warped.shape == (20, 20)
    again = diffreg.register(torch.from_numpy(blob), blob.T, **QUICK)
    assert torch.equal(again.warped, torch.from_numpy(result.warped))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((ARRAY, np.eye(4), 2.0), ValueError, "give the affine or the spacing of data, not both"),
        ((ARRAY, None, (1, 2)), ValueError, r"spacing must be 3 lengths > 0, mm, or one"),
        ((ARRAY, None, -1), ValueError, r"spacing must be 3 lengths > 0, mm, or one"),
        ((ARRAY[None, None],), ValueError, r"must have two or three axes, got shape \[1, 1, 4"),
        ((ARRAY + 1j,), ValueError, "data must hold real numbers, got complex"),
        ((as_sitk(), np.eye(4)), ValueError, "SimpleITK.*Image, has its own"),
        (({"data": ARRAY},), TypeError, "data must be a path, a diffreg Image.*got dict"),
    ],
)
def test_what_is_no_image_is_refused_in_words(arguments, error, message):
    with pytest.raises(error, match=message):
        diffreg.image(*arguments)


def test_labels_keep_whole_numbers():
    assert diffreg.image(np.eye(4, dtype=np.int16), label=True).data.dtype == torch.int16
    with pytest.raises(ValueError, match="no label image"):
        diffreg.image(np.eye(4) / 2, label=True)


BLOB = np.exp(-(np.hypot(*(np.mgrid[:20, :24] - 11)) ** 2) / 30)
SOLID = np.stack([BLOB] * 4, -1)


@pytest.mark.parametrize(
    ("moving", "fixed", "masks", "message"),
    [
        (BLOB, SOLID, {}, r"^fixed is a volume of .* and moving a slice: .* in Python array\["),
        (BLOB * 0, BLOB, {}, r"^moving is 0 everywhere"),
        (BLOB, BLOB * 0, {}, r"^fixed is 0 everywhere"),
        (BLOB, BLOB, {"fixed_mask": BLOB * 0}, "fixed_mask selects no voxel of fixed"),
        (BLOB, BLOB, {"moving_mask": BLOB * 0}, "moving_mask selects no voxel of"),
    ],
)
@pytest.mark.parametrize("affine", ["none", "affine"])
@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, diffreg.image])
def test_messages_call_images_as_the_arguments_do(moving, fixed, masks, message, affine, kind):
    with pytest.raises(ValueError, match=message):
        diffreg.register(kind(moving), kind(fixed), **masks, **{**QUICK, "affine": affine})


def test_an_image_is_called_as_the_call_has_it():
    result = diffreg.register(BLOB, np.roll(BLOB, 1, 0), **QUICK)
    assert (result.metrics["moving"], result.metrics["fixed"]) == ("moving", "fixed")
    with pytest.raises(ValueError, match=r"^fixed is 0 everywhere"):
        diffreg.register(result.fixed, result.moving.with_data(result.moving.data * 0), **QUICK)


def test_numpys_whole_numbers_count():
    counts = {"levels": np.int64(1), "iterations": (np.int32(2),), "affine": "none"}
    one = diffreg.register(BLOB, np.roll(BLOB, 1, 0), **counts)
    two = diffreg.register(BLOB, np.roll(BLOB, 1, 0), **QUICK)
    assert torch.equal(one.displacement, two.displacement)
    with pytest.raises(TypeError, match="iterations must be int, got float64"):
        diffreg.register(BLOB, BLOB, iterations=np.float64(2))


def test_a_mask_of_numpys_is_not_lost():
    masked = np.ma.masked_greater(BLOB, 0.9)
    for given in ({"moving": masked}, {"fixed": masked}, {"fixed_mask": masked}):
        with pytest.raises(ValueError, match=f"^{next(iter(given))} is a masked array: give what"):
            diffreg.register(**{"moving": BLOB, "fixed": BLOB, **given}, **QUICK)
    assert np.allclose(diffreg.image(np.ma.masked_greater(BLOB, 9)).data[0, 0], BLOB)


@pytest.mark.parametrize("side", ["first", "last"])
def test_colours_are_told_from_space(side):
    picture = np.stack([BLOB, 1 - BLOB, BLOB**2], 0 if side == "first" else -1)
    with pytest.warns(diffreg.data.images.FileWarning) as said:
        diffreg.register(picture, picture + BLOB.max(), **QUICK)
    lines = [str(warning.message) for warning in said]
    assert [line.partition(",")[0] for line in lines] == [
        f"{name}: the {side} axis of 3 looks like colours" for name in ("moving", "fixed")
    ]


@pytest.mark.parametrize("run", [diffreg.register, diffreg.register_affine])
def test_an_array_beside_an_image_of_a_place_is_refused(run):
    """Both on the command line and here: it would lie at the origin, in voxels of 1 mm."""
    placed = nib.Nifti1Image(BLOB[:, :, None], np.diag([2.0, 2, 2, 1]))
    ours = diffreg.image(BLOB, spacing=2)
    for name, given in (
        ("moving", (BLOB, placed)),
        ("fixed", (placed, torch.from_numpy(BLOB))),
        ("moving", (BLOB, ours)),
        ("fixed", (ours, BLOB)),
    ):
        with pytest.raises(ValueError, match=f"^{name} is an array, which does not say where it"):
            run(*given)
