"""Where a NIfTI header puts its voxels: units of length, sform against qform, skewed axes."""

import warnings
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from diffreg.data.comparable import compared_region
from diffreg.data.geometry import Image
from diffreg.data.images import FileWarning, read_image, write_image
from diffreg.data.resampling import resample_to
from diffreg.data.transforms import read_displacement, write_displacement
from diffreg.registration import register, write_registration

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (24, 20)
UNITS = {"meter": 1000.0, "micron": 0.001, "mm": 1.0, "unknown": 1.0}
FLIP = np.diag([-1.0, -1.0, 1.0])


def turned(spacing, angle=0.4):
    """An affine turned about two axes, in mm."""
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ [[1, 0, 0], [0, c, -s], [0, s, c]]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * spacing, (20, -12, 7)
    return affine


def blobs(at, shape=SHAPE):
    x, y = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return (100 * np.exp(-((x - at) ** 2 + (y - 9) ** 2) / 30)).astype(np.float32)


def save(path, array, affine, unit="mm", codes=(1, 1), qform=None, sizes=None):
    """A file whose sform is `affine` in mm, written in its unit."""
    file = nib.Nifti1Image(array, None)
    scale = np.array([[1 / UNITS[unit]]] * 3 + [[1]])
    file.set_qform((affine if qform is None else qform) * scale, codes[0])
    file.set_sform(affine * scale, codes[1])
    if sizes is not None:
        file.header["pixdim"][1:4] = sizes
    file.header.set_xyzt_units(unit)
    nib.save(file, path)
    return path


def place_in_itk(path):
    """The affine (4, 4), RAS mm, of a 3-D file as SimpleITK reads it."""
    image = sitk.ReadImage(str(path))
    affine = np.eye(4)
    affine[:3, :3] = FLIP @ np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = FLIP @ image.GetOrigin()
    return affine


# units of length


@pytest.mark.parametrize("forms", [(1, 1), (1, 0), (0, 2), (0, 0)])
@pytest.mark.parametrize("unit", UNITS)
def test_lengths_are_mm_whatever_the_unit(unit, forms, tmp_path):
    """1.5 and 2 mm by hand, and the place that ITK reads."""
    array = blobs(9)[..., None]
    path = save(tmp_path / "a.nii", array, turned([1.5, 2.0, 5.0]), unit, forms)
    image = read_image(path)
    assert image.spacing == pytest.approx((1.5, 2.0), rel=1e-6)
    np.testing.assert_allclose(image.affine, place_in_itk(path), atol=1e-4)


@pytest.mark.parametrize("code", [4, 7, 8 + 5])
def test_unknown_codes_of_units_are_mm(code, tmp_path):
    path = save(tmp_path / "a.nii", blobs(9)[..., None], turned([1.5, 2.0, 5.0]))
    content = bytearray(path.read_bytes())
    content[123] = code  # xyzt_units
    path.write_bytes(content)
    assert read_image(path).spacing == pytest.approx((1.5, 2.0))
    assert sitk.ReadImage(str(path)).GetSpacing()[:2] == pytest.approx((1.5, 2.0))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """unit -> the folder of a pair registered, whose files hold their lengths in that unit."""
    affines = turned([1.5, 2.0, 5.0]), turned([1.25, 2.5, 5.0])
    found = {}
    for unit in UNITS:
        folder = found[unit] = tmp_path_factory.mktemp(unit)
        names = [folder / "moving.nii", folder / "fixed.nii"]
        for path, affine, at in zip(names, affines, (9, 11), strict=True):
            save(path, blobs(at)[..., None], affine, unit)
        pair = (read_image(path) for path in names)
        # An affine search may end elsewhere by a hundredth of a voxel for a header's rounding.
        result = register(*pair, affine="none", similarity="ncc", levels=1, iterations=8)
        write_registration(result, folder / "out", report=False)
    return found


@pytest.mark.parametrize("unit", ["meter", "micron", "unknown"])
def test_a_registration_does_not_depend_on_the_unit(unit, results):
    in_mm, here = results["mm"] / "out", results[unit] / "out"
    (expected, grid), (found, same) = (
        read_displacement(folder / "displacement.nii.gz") for folder in (in_mm, here)
    )
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    np.testing.assert_allclose(same.affine, grid.affine, atol=1e-4)
    millimetres, others = (
        nib.load(folder / "displacement.nii.gz").get_fdata() for folder in (in_mm, here)
    )
    np.testing.assert_allclose(others, millimetres, atol=2e-3)
    warped, theirs = (read_image(folder / "warped.nii.gz") for folder in (in_mm, here))
    torch.testing.assert_close(theirs.data, warped.data, rtol=0, atol=0.05)
    np.testing.assert_allclose(theirs.affine, warped.affine, atol=1e-4)


@pytest.mark.parametrize("unit", UNITS)
def test_itk_resamples_with_what_was_written(unit, results):
    folder = results[unit]
    moving, fixed = (read_image(folder / f"{name}.nii") for name in ("moving", "fixed"))
    path = folder / "out" / "displacement.nii.gz"
    field = sitk.ReadImage(str(path), sitk.sitkVectorFloat64)
    theirs = sitk.Resample(
        *(sitk.ReadImage(str(i.path), sitk.sitkFloat64) for i in (moving, fixed)),
        *(sitk.DisplacementFieldTransform(field), sitk.sitkLinear, -1e6),
    )
    theirs = sitk.GetArrayFromImage(theirs)[0].T
    ones = replace(moving, data=torch.ones_like(moving.data))
    ours, inside = (
        resample_to(image, fixed, read_displacement(path)[0])[0, 0].numpy()
        for image in (moving, ones)
    )
    inside = (inside > 1 - 1e-6) & (theirs > -1e5)  # the border aside
    assert inside.mean() > 0.5
    np.testing.assert_allclose(ours[inside], theirs[inside], atol=1e-2)
    np.testing.assert_allclose(
        place_in_itk(folder / "out" / "warped.nii.gz"), place_in_itk(fixed.path), atol=1e-4
    )


@pytest.mark.parametrize("forms", [(1, 1), (0, 1), (1, 0), (0, 0)])
@pytest.mark.parametrize("unit", ["meter", "micron"])
def test_a_slice_of_a_volume_keeps_its_unit_and_its_place(unit, forms, tmp_path):
    volume = np.stack([blobs(9)] * 4, -1)
    path = save(tmp_path / "a.nii", volume, turned([1.5, 2.0, 5.0]), unit, forms)
    image = read_image(path, slice_index=2)
    write_image(tmp_path / "b.nii", image.data, image)
    again = read_image(tmp_path / "b.nii")
    assert again.header.get_xyzt_units()[0] == unit
    np.testing.assert_allclose(again.affine, image.affine, atol=1e-4)
    expected = place_in_itk(path) @ [0, 0, 2, 1]
    np.testing.assert_allclose(place_in_itk(tmp_path / "b.nii")[:, 3], expected, atol=1e-4)


@pytest.mark.parametrize("unit", UNITS)
def test_vectors_are_mm_whatever_the_unit_of_their_grid(unit, tmp_path):
    """3 mm are 2 voxels of 1.5 mm, and ITK's 3 mm as well."""
    vectors = np.zeros((*SHAPE, 3, 1, 3), np.float32)
    vectors[..., 0] = -3
    path = save(tmp_path / "d.nii", vectors, np.diag([1.5, 2.0, 5.0, 1.0]), unit)
    content = bytearray(path.read_bytes())
    content[68:70] = np.int16(1007).tobytes()  # intent_code
    path.write_bytes(content)
    displacement, grid = read_displacement(path)
    assert grid.spacing == pytest.approx((1.5, 2.0))
    torch.testing.assert_close(displacement[:, 0], torch.full((1, *SHAPE), 2.0))
    field = sitk.ReadImage(str(path))
    assert field[3, 4, 1] == (-3, 0, 0)
    assert field.GetSpacing()[:2] == pytest.approx((1.5, 2.0))


# two forms, and what ITK takes

SQUARE = np.diag([1.5, 2.0, 5.0, 1.0])


def changed(row, column, by):
    affine = SQUARE.copy()
    affine[row, column] += by
    return affine


DISAGREEING = {
    "moved": (changed(0, 3, 3.0), None),
    "turned": (turned([1.5, 2.0, 5.0]), None),
    "skewed": (changed(0, 1, 0.6), None),
    "slanted": (changed(0, 2, 2.0), None),
    "larger": (np.diag([1.8, 2.0, 5.0, 1.0]), None),
    "larger, no qform": (np.diag([1.8, 2.0, 5.0, 1.0]), (1.5, 2, 5)),
    "skewed, no qform": (changed(0, 1, 0.6), (1.5, 2, 5)),
}


def claimed(message, sform, qform, sizes):
    """The affine that a warning says ITK takes."""
    if "ITK the qform" in message:
        return qform
    if "and ITK as well" in message:
        return sform
    assert "ITK its directions and pixdim" in message
    affine = sform.copy()
    affine[:3, :3] *= sizes / np.linalg.norm(sform[:3, :3], axis=0)
    return affine


@pytest.mark.parametrize("code", [1, 2, 4])
@pytest.mark.parametrize("name", DISAGREEING)
def test_a_warning_says_what_itk_takes(name, code, tmp_path):
    sform, sizes = DISAGREEING[name]
    codes = (0 if "no qform" in name else 1, code)
    volume = np.stack([blobs(9)] * 3, -1)
    path = save(tmp_path / "a.nii", volume, sform, "mm", codes, SQUARE, sizes)
    with pytest.warns(FileWarning) as told:
        image = read_image(path, slice_index=0)
    assert len(told) == 1 and str(path) in str(told[0].message)
    np.testing.assert_allclose(image.affine, sform, atol=1e-6)
    message = str(told[0].message)
    if name == "skewed, no qform":
        assert "its sform is skewed, as no grid of ITK is: ITK and ANTs refuse the file" in message
        with pytest.raises(RuntimeError, match="orthonormal"):
            sitk.ReadImage(str(path))
    else:
        itk = claimed(message, sform, SQUARE, [1.5, 2, 5])
        np.testing.assert_allclose(place_in_itk(path), itk, atol=1e-5)


@pytest.mark.parametrize("unit", ["mm", "micron"])
def test_the_largest_distance_over_the_grid_is_named(unit, tmp_path):
    """23 voxels of 0.3 mm more: 6.9 mm; of three slices the far corners count."""
    volume = np.stack([blobs(9)] * 3, -1)
    larger = np.diag([1.8, 2.0, 5.0, 1.0])
    save(tmp_path / "a.nii", volume, larger, unit, (1, 2), SQUARE)
    words = (
        r"a\.nii: its sform and its qform put a voxel up to 6\.9 mm apart; diffreg takes the sfo"
    )
    with pytest.warns(FileWarning, match=words):
        read_image(tmp_path / "a.nii", slice_index=1)
    save(tmp_path / "b.nii", volume, changed(0, 2, 2.0), unit, (1, 2), SQUARE)
    with pytest.warns(FileWarning, match=r"up to 4 mm apart; diffreg takes the sform, ITK the qf"):
        read_image(tmp_path / "b.nii", slice_index=0)


@pytest.mark.parametrize("codes", [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (1, 4), (2, 1)])
def test_nothing_is_said_of_ordinary_files(codes, tmp_path):
    """The quaternion's rounding is no disagreement."""
    volume = np.zeros((200, 180, 3), np.float32)
    volume[90:, 40] = 1
    path = save(tmp_path / "a.nii", volume, turned([0.7, 1.3, 6.0], 1.1), "mm", codes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_image(path, slice_index=2)


def test_a_displacement_with_two_forms_is_told_of(tmp_path):
    vectors = np.zeros((*SHAPE, 1, 1, 2), np.float32)
    file = nib.Nifti1Image(vectors, None)
    file.set_qform(SQUARE, 1)
    file.set_sform(changed(1, 3, -2.0), 2)
    file.header.set_intent(1007)
    nib.save(file, tmp_path / "d.nii")
    with pytest.warns(FileWarning, match="up to 2 mm apart; diffreg takes the sform, ITK the qfo"):
        read_displacement(tmp_path / "d.nii")


# axes that ITK cannot hold


def test_a_skewed_fixed_grid_is_refused(tmp_path):
    fixed = Image(torch.from_numpy(blobs(9))[None, None], changed(0, 1, 0.6))
    moving = Image(torch.from_numpy(blobs(11))[None, None], SQUARE)
    words = r"its axes stand at 73\.30 degrees in its plane.*resample it to right angles first"
    with pytest.raises(ValueError, match=words):
        compared_region(moving, fixed)
    with pytest.raises(ValueError, match=words):
        write_displacement(tmp_path / "d.nii", torch.zeros(1, 2, *SHAPE), fixed)
    assert not list(tmp_path.iterdir())
    assert compared_region(fixed, moving).any()  # a moving image is sampled, wherever it lies


def test_slanted_slices_are_written_where_itk_finds_them(tmp_path):
    """Behind a tilted gantry each slice has right angles, and the stack has none."""
    volume = np.stack([blobs(9)] * 4, -1)
    path = save(tmp_path / "a.nii", volume, changed(0, 2, 2.0), "micron", (0, 1))
    with pytest.warns(FileWarning, match="skewed"):
        fixed = read_image(path, slice_index=3)
    write_image(tmp_path / "w.nii", fixed.data, fixed)
    displacement = torch.zeros(1, 2, *SHAPE)
    displacement[:, 0], displacement[:, 1] = 2, -1
    write_displacement(tmp_path / "d.nii", displacement, fixed)
    for file, first in (("w.nii", 0), ("d.nii", 1)):
        for voxel in ([0, 0], [23, 0], [0, 19], [23, 19]):
            place = place_in_itk(tmp_path / file) @ [*voxel, first, 1]
            np.testing.assert_allclose(place, fixed.affine @ [*voxel, 0, 1], atol=1e-4)
    assert sitk.ReadImage(str(tmp_path / "d.nii"))[4, 5, 1] == pytest.approx((-3, 2, 0))
    again, grid = read_displacement(tmp_path / "d.nii")
    torch.testing.assert_close(again, displacement)
    np.testing.assert_allclose(grid.affine[:, [0, 1, 3]], fixed.affine[:, [0, 1, 3]], atol=1e-5)


def test_a_header_without_a_place_is_told_beside_another_grid(tmp_path):
    codes = {"one": (0, 0), "other": (0, 0), "placed": (1, 1)}
    for name, given in codes.items():
        save(tmp_path / f"{name}.nii", blobs(10), turned((2, 2, 3)), codes=given)
    one, other, placed = (read_image(tmp_path / f"{name}.nii") for name in codes)
    compared_region(one, other, mask=other)  # one grid, wherever it lies
    whole = replace(placed, affine=one.affine @ np.diag([2, 2, 1, 1]))
    for moving, fixed in ((one, whole), (whole, one)):
        with pytest.warns(FileWarning) as said:
            compared_region(moving, fixed)
        (line,) = (str(warning.message) for warning in said)
        assert line.startswith(f"{one.path}: its header has neither sform nor qform, and so no pl")
        assert line.endswith("as ITK has it; FSL and nibabel put it elsewhere")
