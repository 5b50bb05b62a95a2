"""Numbers as a file holds them: contrast on a large offset, 16 bits of PNG, voxels without one."""

import warnings

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch

from diffreg.data.images import FileWarning, read_image, write_image
from diffreg.data.normalization import normalize
from diffreg.data.pairs import PairDataset, find_pairs
from diffreg.data.resampling import resample_to
from diffreg.registration import register, write_registration

pytestmark = pytest.mark.usefixtures("one_thread")

OFFSET = 1_000_000_000  # float32 has a number every 64 there
LEVELS = (np.arange(13 * 11) % 101).reshape(13, 11)


def save(path, array):
    nib.save(nib.Nifti1Image(array, np.eye(4), dtype=array.dtype), path)
    return path


def blob(at):
    x, y = np.meshgrid(np.arange(24), np.arange(20), indexing="ij")
    return np.round(100 * np.exp(-((x - at) ** 2 + (y - 9) ** 2) / 30))


@pytest.mark.parametrize("kind", ["nii", "npz"])
@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.uint64, np.float64])
def test_101_levels_on_a_large_offset_stay_101(dtype, kind, tmp_path):
    array = (LEVELS + OFFSET).astype(dtype)
    if kind == "npz":
        np.savez(tmp_path / "a.npz", array)
        image = read_image(tmp_path / "a.npz")
    else:
        image = read_image(save(tmp_path / "a.nii", array))
    assert image.data.dtype == torch.float64
    assert np.array_equal(image.data[0, 0].numpy() - OFFSET, LEVELS)
    scaled = normalize(image.data, 0, 100)
    assert scaled.dtype == torch.float32 and len(scaled.unique()) == 101
    expected = normalize(torch.from_numpy(LEVELS.astype(np.float32))[None, None], 0, 100)
    torch.testing.assert_close(scaled, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [1, 0.25])
def test_an_offset_in_the_header_keeps_the_levels(factor, tmp_path):
    file = nib.Nifti1Image(LEVELS.astype(np.int16), np.eye(4))
    file.header.set_slope_inter(factor, 2.0**30)
    nib.save(file, tmp_path / "a.nii")
    data = read_image(tmp_path / "a.nii").data
    assert np.array_equal(data[0, 0].numpy() - 2**30, factor * LEVELS)


def test_a_few_zeros_do_not_hide_the_contrast(tmp_path):
    """One dead voxel makes the range large; between the percentiles lie the 100 levels."""
    array = (np.resize(LEVELS, (60, 60)) + OFFSET).astype(np.int32)
    array[3, 4] = 0
    data = read_image(save(tmp_path / "a.nii", array)).data
    assert len(normalize(data).unique()) > 95


ORDINARY = {
    "int16": np.arange(-3000, 3000, 42).reshape(13, 11).astype(np.int16),
    "uint16": (LEVELS * 600).astype(np.uint16),
    "int32": (LEVELS * 10_000).astype(np.int32),
    "int64": (LEVELS - 1024).astype(np.int64),
    "float32": (LEVELS / 7 + 1e6).astype(np.float32),
    "float64": np.random.default_rng(0).normal(40.0, 10.0, (13, 11)),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_numbers_are_float32(name, tmp_path):
    """As they were always read, and written again as float32."""
    image = read_image(save(tmp_path / "a.nii", ORDINARY[name]))
    assert image.data.dtype == torch.float32
    assert np.array_equal(image.data[0, 0].numpy(), ORDINARY[name].astype(np.float32))
    assert resample_to(image, image).dtype == torch.float32
    write_image(tmp_path / "b.nii", image.data, image)
    assert nib.load(tmp_path / "b.nii").get_data_dtype() == np.float32


def test_integers_that_float32_has_not_are_held_whatever_their_range(tmp_path):
    """A ground of zeros, from which the 100 levels are as far as they are close together."""
    array = (LEVELS + OFFSET).astype(np.int32)
    array[:6] = 0
    data = read_image(save(tmp_path / "a.nii", array)).data
    assert np.array_equal(data[0, 0].numpy(), array)


def test_what_float64_cannot_tell_apart_is_refused(tmp_path):
    path = save(tmp_path / "a.nii", LEVELS.astype(np.int64) + 2**62)
    with pytest.raises(
        ValueError, match=r"a\.nii holds values that are too large to be told apart"
    ):
        read_image(path)


def test_numbers_beyond_float32_are_held(tmp_path):
    image = read_image(save(tmp_path / "a.nii", LEVELS * 1e300))
    assert np.array_equal(image.data[0, 0].numpy(), LEVELS * 1e300)
    assert len(normalize(image.data, 0, 100).unique()) == 101


def test_resampling_and_writing_keep_the_contrast(tmp_path):
    """Half a voxel along the first axis: the mean of two neighbours, to the last digit."""
    image = read_image(save(tmp_path / "a.nii", (LEVELS + OFFSET).astype(np.int32)))
    displacement = torch.zeros(1, 2, 13, 11)
    displacement[:, 0] = 0.5
    warped = resample_to(image, image, displacement, fill=None)
    write_image(tmp_path / "w.nii.gz", warped, image)
    expected = (LEVELS[1:] + LEVELS[:-1]) / 2 + OFFSET
    file = nib.load(tmp_path / "w.nii.gz")
    assert file.get_data_dtype() == np.float64
    assert np.array_equal(np.asarray(file.dataobj)[:-1], expected)
    theirs = sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "w.nii.gz"))).T
    assert np.array_equal(theirs[:-1], expected)


def test_a_registration_does_not_depend_on_the_offset(tmp_path):
    results = {}
    for offset in (0, OFFSET):
        paths = [tmp_path / f"{offset}_{at}.nii" for at in (9, 11)]
        for path, at in zip(paths, (9, 11), strict=True):
            save(path, (blob(at) + offset).astype(np.int32))
        result = register(*(read_image(path) for path in paths), levels=1, iterations=8)
        write_registration(result, tmp_path / f"out_{offset}", report=False)
        warped = np.asarray(nib.load(tmp_path / f"out_{offset}" / "warped.nii.gz").dataobj)
        sample = PairDataset(find_pairs(paths)[:1]).sample(0)
        results[offset] = result, warped[2:-2, 2:-2] - offset, sample
    (plain, warped, drawn), (lifted, same, also) = results.values()
    torch.testing.assert_close(lifted.displacement, plain.displacement, rtol=0, atol=1e-4)
    np.testing.assert_allclose(same, warped, atol=1e-2)
    torch.testing.assert_close(also.moving, drawn.moving, rtol=0, atol=1e-6)
    for when in ("before", "after"):
        assert lifted.metrics[when] == pytest.approx(plain.metrics[when], rel=1e-4)


def deep_png(path, channels):
    """A 16-bit PNG file of that many equal channels, opaque."""
    grey = (np.arange(24).reshape(6, 4) * 2000 + 7).astype(np.uint16)
    planes = [grey] * channels
    if channels in (2, 4):
        planes[-1] = np.full_like(grey, 65535)
    image = sitk.GetImageFromArray(np.stack(planes, -1), isVector=channels > 1)
    sitk.WriteImage(image if channels > 1 else sitk.GetImageFromArray(grey), str(path))
    return path, grey


@pytest.mark.parametrize("channels, name", [
    (2, "opacity"), (3, "colours"), (4, "colours and opacity"),
])  # fmt: skip
def test_16_bits_in_several_channels_are_refused(channels, name, tmp_path):
    """Pillow keeps the upper 8 bits of them, silently: 24 values would be 24 others."""
    path, _ = deep_png(tmp_path / "a.png", channels)
    words = rf"a\.png holds 16-bit values with {name}, of which only 8 .*to 16-bit greyscale"
    for label in (False, True):
        with pytest.raises(ValueError, match=words):
            read_image(path, label=label)


def test_16_bits_of_grey_are_read(tmp_path):
    path, grey = deep_png(tmp_path / "a.png", 1)
    assert np.array_equal(read_image(path).data[0, 0].numpy(), grey)


# voxels without a number


def with_holes(dtype=np.float32):
    array = (LEVELS - 7).astype(dtype)
    array[0], array[4, 5], array[6, 7] = np.nan, np.inf, -np.inf
    return array


@pytest.mark.parametrize("kind", ["nii", "npz"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_voxels_that_are_nan_are_not_there(dtype, kind, tmp_path):
    """11 and 2 of them; the smallest number stands for them, and `valid` says where they are."""
    array = with_holes(dtype)
    path = tmp_path / f"a.{kind}"
    save(path, array) if kind == "nii" else np.savez(path, array)
    words = rf"a\.{kind}: 13 of 143 voxels are NaN or infinite; they count as outside$"
    with pytest.warns(FileWarning, match=words):
        image = read_image(path)
    assert image.valid.shape == (1, 1, 13, 11) and image.valid.dtype == torch.bool
    assert np.array_equal(image.valid[0, 0].numpy(), np.isfinite(array))
    expected = np.where(np.isfinite(array), array, -7)
    assert np.array_equal(image.data[0, 0].numpy(), expected)


def test_nan_on_a_large_offset_keeps_the_contrast(tmp_path):
    path = save(tmp_path / "a.nii", with_holes(np.float64) + OFFSET)
    with pytest.warns(FileWarning, match="13 of 143"):
        image = read_image(path)
    found = image.data[0, 0].numpy()[np.isfinite(with_holes())] - OFFSET
    assert np.array_equal(found, with_holes()[np.isfinite(with_holes())])


def test_only_the_slice_that_is_read_counts(tmp_path):
    path = save(tmp_path / "a.nii", np.stack([LEVELS + 0.5, with_holes()], -1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(path, slice_index=0).valid is None
    with pytest.warns(FileWarning, match="13 of 143"):
        assert not read_image(path, slice_index=1).valid.all()


def test_labels_are_0_where_there_is_no_number(tmp_path):
    with pytest.warns(FileWarning, match="13 of 143"):
        image = read_image(save(tmp_path / "a.nii", with_holes()), label=True)
    assert not image.data.is_floating_point()
    assert np.array_equal(image.data[0, 0].numpy(), np.nan_to_num(with_holes(), posinf=0, neginf=0))
    assert not image.valid.all()
