"""Displacement files: what ITK makes of ours, what we make of others', and the round trip."""

import itertools
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image as Pillow

from diffreg.data.geometry import Image
from diffreg.data.images import read_image
from diffreg.data.resampling import resample_to
from diffreg.data.transforms import read_displacement, read_field, write_displacement

SHAPE = (24, 31)
ORIENTATIONS = list(itertools.product((False, True), (1, -1), (1, -1)))


def picture(shape, seed=0):
    """A smooth image without symmetry, intensities of a few hundred."""
    x, y = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    rng = np.random.default_rng(seed)
    waves = [np.sin(a * x + b * y + c) for a, b, c in rng.uniform(0.05, 0.6, (5, 3))]
    return (600 + 100 * sum(waves)).astype(np.float32)


def field(shape, size=2.0, seed=1):
    """A smooth displacement (1, 2, *shape) of about `size` voxels."""
    parts = [picture(shape, seed + k) for k in (0, 7)]
    return torch.from_numpy(np.stack([size * (p - p.mean()) / np.ptp(p) for p in parts]))[None]


def save(path, array, affine):
    nib.save(nib.Nifti1Image(array, affine), path)
    return read_image(path)


def in_plane(matrix, offset, depth=(0.0, 0.0, 4.0)):
    affine = np.eye(4)
    affine[:2, :2], affine[:2, 3], affine[:3, 2] = matrix, offset, depth
    return affine


def rotation(degrees):
    angle = np.radians(degrees)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def in_space():
    axes = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes * [1.2, 0.8, 3.0], (20, -30, 11)
    return affine


def resampled_by_itk(moving_path, fixed_path, field_path):
    """The moving image on the fixed grid as SimpleITK makes it, in array axes (x, y)."""
    fixed, moving = (sitk.ReadImage(str(p), sitk.sitkFloat64) for p in (fixed_path, moving_path))
    vectors = sitk.ReadImage(str(field_path), sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(vectors)
    warped = sitk.Resample(moving, fixed, transform, sitk.sitkLinear, -1e6)
    return sitk.GetArrayFromImage(warped).squeeze().T


def assert_as_itk(moving, fixed, displacement, tmp_path):
    path = tmp_path / "displacement.nii.gz"
    write_displacement(path, displacement, fixed)
    theirs = resampled_by_itk(moving.path, fixed.path, path)
    ours = resample_to(moving, fixed, displacement)[0, 0].numpy()
    ours = ours.T if fixed.kind == "png" else ours
    # ITK extends the image by half a voxel, "zeros" fades out over one: only the border differs.
    ones = replace(moving, data=torch.ones_like(moving.data))
    inside = resample_to(ones, fixed, displacement)[0, 0].numpy() > 1 - 1e-6
    inside = inside.T if fixed.kind == "png" else inside
    assert inside.mean() > 0.3
    np.testing.assert_allclose(ours[inside], theirs[inside], rtol=0, atol=1e-3)


GEOMETRIES = {
    "identity": (np.eye(2), (0, 0), np.eye(2), (0, 0)),
    "anisotropic": (np.diag([0.7, 2.5]), (3, -8), np.diag([0.7, 2.5]), (3, -8)),
    "oblique": (rotation(25) * 1.5, (40, -12), rotation(25) * 1.5, (40, -12)),
    "another grid": (rotation(25) * [1.5, 1.2], (4, -2), rotation(10) * [1.1, 1.6], (-1, 3)),
    "axes swapped": (np.diag([1.5, 1.2]), (4, -2), [[0, -1.4], [1.9, 0]], (40, 0)),
}


@pytest.mark.parametrize("third_axis", [False, True])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_itk_resamples_alike(name, third_axis, tmp_path):
    fixed_matrix, fixed_offset, moving_matrix, moving_offset = GEOMETRIES[name]
    end = (1,) if third_axis else ()
    fixed = save(
        tmp_path / "f.nii.gz",
        picture(SHAPE).reshape(SHAPE + end),
        in_plane(fixed_matrix, fixed_offset),
    )
    shape = (33, 27) if "grid" in name or "swapped" in name else SHAPE
    moving = save(
        tmp_path / "m.nii.gz",
        picture(shape, 3).reshape(shape + end),
        in_plane(moving_matrix, moving_offset),
    )
    assert_as_itk(moving, fixed, field(SHAPE), tmp_path)


@pytest.mark.parametrize("swap, first, second", ORIENTATIONS)
def test_itk_resamples_alike_in_every_orientation(swap, first, second, tmp_path):
    matrix = np.diag([first * 1.5, second * 2.0])
    matrix = matrix[:, ::-1] if swap else matrix
    fixed = save(tmp_path / "f.nii.gz", picture(SHAPE), in_plane(matrix, (5, -7)))
    moving = save(tmp_path / "m.nii.gz", picture(SHAPE, 3), in_plane(matrix, (5, -7)))
    assert_as_itk(moving, fixed, field(SHAPE), tmp_path)


def test_itk_resamples_alike_in_an_oblique_plane(tmp_path):
    """A slice that lies askew in space: the vectors have all three components."""
    fixed = save(tmp_path / "f.nii.gz", picture(SHAPE)[..., None], in_space())
    moving = save(tmp_path / "m.nii.gz", picture(SHAPE, 3)[..., None], in_space())
    assert_as_itk(moving, fixed, field(SHAPE), tmp_path)


def test_itk_resamples_png_files_alike(tmp_path):
    for name, seed, shape in (("f", 0, SHAPE), ("m", 3, (28, 25))):
        Pillow.fromarray(picture(shape, seed).astype(np.uint16)).save(tmp_path / f"{name}.png")
    fixed, moving = (read_image(tmp_path / f"{name}.png") for name in "fm")
    assert_as_itk(moving, fixed, field(SHAPE), tmp_path)


def test_field_of_a_png_file_has_its_size_in_itk(tmp_path):
    Pillow.fromarray(picture(SHAPE).astype(np.uint16)).save(tmp_path / "f.png")
    write_displacement(tmp_path / "d.nii.gz", field(SHAPE), read_image(tmp_path / "f.png"))
    vectors, fixed = (sitk.ReadImage(str(tmp_path / name)) for name in ("d.nii.gz", "f.png"))
    assert vectors.GetSize() == fixed.GetSize()
    assert vectors.GetDirection() == fixed.GetDirection()
    assert vectors.GetOrigin() == fixed.GetOrigin()


def test_itk_resamples_alike_without_any_affine_in_the_header(tmp_path):
    for name, seed in (("f", 0), ("m", 3)):
        file = nib.Nifti1Image(picture(SHAPE, seed), None)
        file.header.set_zooms((1.5, 2.0))
        nib.save(file, tmp_path / f"{name}.nii.gz")
    fixed, moving = (read_image(tmp_path / f"{name}.nii.gz") for name in "fm")
    assert_as_itk(moving, fixed, field(SHAPE), tmp_path)


def test_a_displacement_by_hand(tmp_path):
    """Two voxels of 3 mm along the first axis, towards the patient's right: -6 mm along L."""
    fixed = Image(torch.zeros(1, 1, 4, 5), np.diag([3.0, 2.0, 1.0, 1.0]), ndim_in_file=2)
    displacement = torch.zeros(1, 2, 4, 5)
    displacement[0, 0] = 2
    write_displacement(tmp_path / "d.nii.gz", displacement, fixed)
    file = nib.load(tmp_path / "d.nii.gz")
    assert file.shape == (4, 5, 1, 1, 2)
    assert file.header["intent_code"] == 1007
    assert file.header.get_xyzt_units()[0] == "mm"
    assert np.all(file.get_fdata() == [-6, 0])


@pytest.mark.parametrize("kind", ["flat", "slice", "png"])
def test_round_trip(kind, tmp_path):
    displacement = field(SHAPE)
    if kind == "png":
        Pillow.fromarray(picture(SHAPE).astype(np.uint16)).save(tmp_path / "f.png")
        fixed = read_image(tmp_path / "f.png")
    else:
        affine = in_plane(rotation(25) * [1.5, 0.6], (40, -12), (0, 0, 3))
        end = (1,) if kind == "slice" else ()
        fixed = save(tmp_path / "f.nii.gz", picture(SHAPE).reshape(SHAPE + end), affine)
    write_displacement(tmp_path / "d.nii.gz", displacement, fixed)
    again, grid = read_displacement(tmp_path / "d.nii.gz")
    torch.testing.assert_close(again, displacement, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(grid.affine[:2], fixed.affine[:2], atol=1e-5)
    assert (grid.kind, grid.is_flat, grid.shape) == (fixed.kind, fixed.is_flat, fixed.shape)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_reads_fields_that_itk_writes(dimensions, tmp_path):
    size, components = [5, 6, 1][:dimensions], dimensions
    image = sitk.Image(size, sitk.sitkVectorFloat32, components)
    image.SetSpacing([2.0, 4.0, 1.0][:dimensions])
    image[[1, 3, 0][:dimensions]] = [6.0, -8.0, 0.0][:dimensions]
    sitk.WriteImage(image, str(tmp_path / "d.nii.gz"))
    displacement, grid = read_displacement(tmp_path / "d.nii.gz")
    assert displacement[0, :, 1, 3].tolist() == [3.0, -2.0]
    assert displacement.abs().sum() == 5
    assert grid.shape == (5, 6)


@pytest.mark.parametrize("planes", [2, 3, 4])
@pytest.mark.parametrize("alike", [False, True])
def test_a_volume_there_and_back(planes, alike, tmp_path):
    """Also one of three planes that are alike, which is how a slice is written."""
    affine = np.array([[0, -2.0, 0.3, 10], [1.5, 0, 0.2, -4], [0, 0, 5, 30], [0, 0, 0, 1]])
    affine[:3, :3] = np.linalg.qr(affine[:3, :3])[0] * [1.5, 2, 5]
    fixed = Image(torch.zeros(1, 1, 4, 5, planes), affine)
    u = torch.rand(1, 3, 4, 5, 1).expand(1, 3, 4, 5, planes)
    u = u if alike else torch.rand(1, 3, 4, 5, planes)
    write_displacement(tmp_path / "d.nii.gz", u, fixed)
    again, grid = read_displacement(tmp_path / "d.nii.gz")
    torch.testing.assert_close(again, u, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(grid.affine, affine, atol=1e-5)
    assert grid.shape == fixed.shape


def test_itk_moves_points_by_a_volume_as_we_do(tmp_path):
    affine = np.diag([-1.5, 2.0, 3.0, 1.0])
    affine[:3, 3] = 7, -5, 11
    u = torch.rand(1, 3, 4, 5, 6, dtype=torch.float64) - 0.5
    write_displacement(tmp_path / "d.nii.gz", u, Image(torch.zeros(1, 1, 4, 5, 6), affine))
    field = sitk.ReadImage(str(tmp_path / "d.nii.gz"), sitk.sitkVectorFloat64)
    transform = sitk.DisplacementFieldTransform(field)
    for p in ((1, 2, 3), (3, 0, 5)):
        ours = affine[:3, :3] @ (np.array(p) + u[(0, slice(None), *p)].numpy()) + affine[:3, 3]
        start = affine[:3, :3] @ p + affine[:3, 3]
        theirs = np.array(transform.TransformPoint((start * [-1, -1, 1]).tolist())) * [-1, -1, 1]
        np.testing.assert_allclose(theirs, ours, atol=1e-5)


def refusals():
    plain = np.zeros((4, 5, 1, 1, 2), np.float32)
    tilted = np.zeros((4, 5, 1, 1, 3), np.float32)
    tilted[..., 2] = 1
    volume = np.zeros((4, 5, 3, 1, 3), np.float32)
    volume[2, 3, 2, 0, 1] = 1
    return {
        "an image": (np.zeros((4, 5), np.float32), 1007, r"shape is \(4, 5\)"),
        "four components": (np.zeros((4, 5, 1, 1, 4), np.float32), 1007, "is needed"),
        "two components": (0 * volume[..., :2], 1007, "one vector of as many components"),
        "a series": (np.repeat(plain, 2, 3), 1007, "one vector of as many components"),
        "four axes": (plain[..., 0, :], 1007, "is no displacement file"),
        "FSL's axes": (volume[..., 0, :], 1006, "as FSL's and FreeSurfer's warps have it"),
        "another intent": (plain, 0, r"intent code is 0, not 1007 \(vector\)"),
        "integers": (plain.astype(np.int16), 1007, "holds int16"),
        "not finite": (np.full_like(plain, np.nan), 1007, "NaN or infinite"),
        "out of its plane": (tilted, 1007, "out of their plane, by up to 1 mm"),
    }


@pytest.mark.parametrize("name", refusals())
def test_refuses_in_words(name, tmp_path):
    array, intent, message = refusals()[name]
    file = nib.Nifti1Image(array, np.eye(4))
    file.header.set_intent(intent)
    nib.save(file, tmp_path / "d.nii.gz")
    with pytest.raises(ValueError, match=message):
        read_displacement(tmp_path / "d.nii.gz")


OTHER_TOOLS = {
    "NREG_TRANS": "is a transformation of NiftyReg",
    "Mapping": "is a deformation of SPM",
}


@pytest.mark.parametrize("name", OTHER_TOOLS)
@pytest.mark.parametrize("shape", [(4, 5, 1, 1, 2), (4, 5, 1, 1, 3), (4, 5, 6, 1, 3)])
def test_refuses_other_tools_by_name(shape, name, tmp_path):
    """Positions or RAS vectors, which as ITK's would be a displacement of many voxels."""
    file = nib.Nifti1Image(np.ones(shape, np.float32), np.eye(4))
    file.header.set_intent(1007, name=name)
    nib.save(file, tmp_path / "d.nii.gz")
    for read in (read_displacement, read_field):
        with pytest.raises(ValueError, match=f"{OTHER_TOOLS[name]}.*LPS mm of ITK's files"):
            read(tmp_path / "d.nii.gz")


def test_a_slice_is_written_three_times(tmp_path):
    """The second plane lies where the slice is: there ITK, ANTs and greedy displace it."""
    fixed = Image(torch.zeros(1, 1, *SHAPE), in_space())
    write_displacement(tmp_path / "d.nii.gz", field(SHAPE), fixed)
    file = nib.load(tmp_path / "d.nii.gz")
    assert file.shape == (*SHAPE, 3, 1, 3)
    values = file.get_fdata()
    assert np.array_equal(values, np.repeat(values[:, :, 1:2], 3, axis=2))
    np.testing.assert_allclose(file.affine @ [0, 0, 1, 1], [20, -30, 11, 1], atol=1e-5)
    np.testing.assert_allclose(file.affine[:, :3], in_space()[:, :3], atol=1e-6)


def test_a_slice_written_once_is_still_read(tmp_path):
    """As diffreg 0.1 wrote it, and as ANTs does of an image of one slice."""
    fixed = Image(torch.zeros(1, 1, *SHAPE), in_space())
    write_displacement(tmp_path / "new.nii.gz", field(SHAPE), fixed)
    file = nib.Nifti1Image(nib.load(tmp_path / "new.nii.gz").get_fdata()[:, :, 1:2], in_space())
    file.header.set_intent(1007)
    nib.save(file, tmp_path / "old.nii.gz")
    (new, grid), (old, same) = (read_displacement(tmp_path / f"{n}.nii.gz") for n in ("new", "old"))
    torch.testing.assert_close(new, old, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(grid.affine, same.affine, atol=1e-5)
    assert grid.shape == same.shape == SHAPE


def test_antspy_applies_the_displacement_of_a_slice(tmp_path):
    ants = pytest.importorskip("ants", reason="antspyx is not installed")
    fixed = save(tmp_path / "f.nii.gz", picture(SHAPE)[..., None], in_space())
    moving = save(tmp_path / "m.nii.gz", picture(SHAPE, 3)[..., None], in_space())
    path = str(tmp_path / "d.nii.gz")
    write_displacement(path, field(SHAPE), fixed)
    images = (ants.image_read(str(image.path)) for image in (fixed, moving))
    theirs = ants.apply_transforms(*images, [path], "linear", defaultvalue=-1e6).numpy()[..., 0]
    ours = resample_to(moving, fixed, field(SHAPE))[0, 0].numpy()
    inside = theirs > -1e5
    inside[[0, -1]] = inside[:, [0, -1]] = False
    assert inside.mean() > 0.7
    assert np.abs(ours - resample_to(moving, fixed)[0, 0].numpy())[inside].max() > 50
    np.testing.assert_allclose(ours[inside], theirs[inside], rtol=0, atol=2e-2)


def test_refuses_to_write_what_does_not_fit(tmp_path):
    fixed = Image(torch.zeros(1, 1, 4, 5), np.eye(4))
    with pytest.raises(ValueError, match=r"must be \(1, 2, 4, 5\).*got \(1, 2, 5, 4\)"):
        write_displacement(tmp_path / "d.nii.gz", torch.zeros(1, 2, 5, 4), fixed)
    with pytest.raises(ValueError, match="NaN or infinite"):
        write_displacement(tmp_path / "d.nii.gz", torch.full((1, 2, 4, 5), torch.inf), fixed)
    with pytest.raises(ValueError, match="must end in"):
        write_displacement(tmp_path / "d.png", torch.zeros(1, 2, 4, 5), fixed)
    assert not list(tmp_path.iterdir())
