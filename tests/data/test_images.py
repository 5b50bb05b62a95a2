"""Images in and out: what is read, what is refused and in which words, and what a file keeps."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from diffreg.data import _png
from diffreg.data._kinds import ENDINGS
from diffreg.data.folders import folder_images
from diffreg.data.images import Image, count_slices, read_image, write_image

AFFINE = np.array([[0, -2.0, 0, 10], [1.5, 0, 0, -4], [0, 0, 5, 30], [0, 0, 0, 1]])


def ramp(*shape, dtype=np.float32):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def save(path, array, affine=AFFINE, dtype=None):
    nib.save(nib.Nifti1Image(array, affine, dtype=dtype), path)
    return path


@pytest.mark.parametrize("end", [(), (1,), (1, 1)])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_reads_one_image_of_any_number_of_axes(end, name, tmp_path):
    image = read_image(save(tmp_path / name, ramp(4, 5).reshape((4, 5, *end))))
    assert image.data.dtype == torch.float32
    assert torch.equal(image.data[0, 0], torch.from_numpy(ramp(4, 5)))
    assert image.spacing == (1.5, 2.0)
    assert (image.slice_index, image.ndim_in_file) == (None, 2 + len(end))


def test_a_slice_has_its_own_place(tmp_path):
    path = save(tmp_path / "a.nii.gz", ramp(4, 5, 3))
    image = read_image(path, slice_index=2)
    assert torch.equal(image.data[0, 0], torch.from_numpy(ramp(4, 5, 3)[..., 2]))
    assert image.affine[:3, 3].tolist() == [10, -4, 40]
    assert count_slices(path) == 3


def test_a_volume_is_read_and_written_whole(tmp_path):
    path = save(tmp_path / "a.nii.gz", ramp(4, 5, 3))
    image = read_image(path)
    assert torch.equal(image.data[0, 0], torch.from_numpy(ramp(4, 5, 3)))
    assert (image.spacing, image.slice_index, image.is_flat) == ((1.5, 2.0, 5.0), None, False)
    write_image(tmp_path / "b.nii.gz", image.data, image)
    again = nib.load(tmp_path / "b.nii.gz")
    assert np.array_equal(again.get_fdata(), ramp(4, 5, 3))
    assert np.array_equal(again.affine, AFFINE)


def test_of_a_series_one_time_point(tmp_path):
    path = save(tmp_path / "a.nii.gz", ramp(4, 5, 3, 2))
    image = read_image(path, time=1)
    assert torch.equal(image.data[0, 0], torch.from_numpy(ramp(4, 5, 3, 2)[..., 1]))
    assert read_image(path, 2, time=0).data[0, 0, 1, 1] == ramp(4, 5, 3, 2)[1, 1, 2, 0]
    write_image(tmp_path / "b.nii.gz", image.data, image)
    assert np.array_equal(np.squeeze(nib.load(tmp_path / "b.nii.gz").dataobj), image.data[0, 0])
    for wrong in (-1, 2):
        with pytest.raises(ValueError, match=rf"no time point {wrong}: its time points are 0\.\.1"):
            read_image(path, time=wrong)
    with pytest.raises(ValueError, match="no series of volumes"):
        Pillow.fromarray(np.eye(3, dtype=np.uint8)).save(tmp_path / "a.png")
        read_image(tmp_path / "a.png", time=1)


@pytest.mark.parametrize("name", ["a.mgz", "a.mgh"])
def test_freesurfer_volumes_are_read(name, tmp_path):
    affine = AFFINE * np.array([-1, 1, 1, 1])
    nib.save(nib.MGHImage(ramp(4, 5, 3), affine), tmp_path / name)
    image = read_image(tmp_path / name)
    assert torch.equal(image.data[0, 0], torch.from_numpy(ramp(4, 5, 3)))
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)
    write_image(tmp_path / "b.nii.gz", image.data, image)
    np.testing.assert_allclose(nib.load(tmp_path / "b.nii.gz").affine, affine, atol=1e-5)
    with pytest.raises(ValueError, match=r"must end in \.nii\.gz, \.nii, \.mha"):
        write_image(tmp_path / "b.mgz", image.data, image)
    nib.save(nib.MGHImage(ramp(4, 5, 3, 2), affine), tmp_path / name)
    with pytest.raises(ValueError, match=r"a series of 2 volumes, shape \(4, 5, 3, 2\); --time"):
        read_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a.img", "a.hdr"])
def test_nifti_in_two_files_is_read(name, tmp_path):
    pair = nib.Nifti1Pair(ramp(4, 5, 3), AFFINE)
    pair.set_qform(AFFINE, 1)
    nib.save(pair, tmp_path / "a.img")
    image = read_image(tmp_path / name)
    assert torch.equal(image.data[0, 0], torch.from_numpy(ramp(4, 5, 3)))
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    write_image(tmp_path / "b.nii.gz", image.data, image)
    assert type(nib.load(tmp_path / "b.nii.gz")) is nib.Nifti1Image
    np.testing.assert_allclose(nib.load(tmp_path / "b.nii.gz").affine, AFFINE, atol=1e-5)
    with pytest.raises(ValueError, match=r"must end in \.nii\.gz, \.nii, \.mha"):
        write_image(tmp_path / "b.img", image.data, image)
    assert [file.name for file in folder_images(tmp_path)] == ["a.img", "b.nii.gz"]


def test_nifti_in_two_files_of_which_one_is_no_good(tmp_path):
    nib.save(nib.Nifti1Pair(ramp(4, 5, 3), AFFINE), tmp_path / "a.img")
    content = (tmp_path / "a.img").read_bytes()
    (tmp_path / "a.img").write_bytes(content[:-1])
    with pytest.raises(ValueError, match=r"a.hdr is truncated or damaged: its header claims 240"):
        read_image(tmp_path / "a.hdr")
    (tmp_path / "a.img").unlink()
    with pytest.raises(FileNotFoundError, match=r"a.img does not exist, without which .*a.hdr"):
        read_image(tmp_path / "a.hdr")
    (tmp_path / "a.img").write_bytes(content)
    (tmp_path / "a.hdr").unlink()
    with pytest.raises(FileNotFoundError, match=r"a.hdr does not exist, without which .*a.img"):
        read_image(tmp_path / "a.img")
    nib.save(nib.AnalyzeImage(ramp(4, 5, 3), AFFINE), tmp_path / "a.img")
    with pytest.raises(ValueError, match=r"a.img is an ANALYZE 7\.5 file, which does not say"):
        read_image(tmp_path / "a.img")


def test_scaled_integers_are_read_as_what_they_mean(tmp_path):
    file = nib.Nifti1Image(ramp(4, 5, dtype=np.int16), AFFINE)
    file.header.set_slope_inter(0.5, -1)
    nib.save(file, tmp_path / "a.nii")
    assert read_image(tmp_path / "a.nii").data[0, 0, 0, :3].tolist() == [-1, -0.5, 0]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.int64, np.float32])
def test_labels_keep_values_and_type(dtype, tmp_path):
    labels = (ramp(4, 5) % 7).astype(dtype)
    image = read_image(save(tmp_path / "a.nii.gz", labels, dtype=dtype), label=True)
    assert not image.data.is_floating_point()
    write_image(tmp_path / "b.nii.gz", image.data, image, image.dtype)
    again = nib.load(tmp_path / "b.nii.gz")
    assert again.get_data_dtype() == dtype
    assert np.array_equal(np.asarray(again.dataobj), labels)


def test_labels_must_be_whole_numbers(tmp_path):
    path = save(tmp_path / "a.nii.gz", ramp(4, 5) / 2)
    with pytest.raises(ValueError, match="not whole numbers"):
        read_image(path, label=True)


def damaged(folder):
    """name -> (file, what read_image says about it)."""
    whole = save(folder / "whole.nii", ramp(40, 50)).read_bytes()
    picture = folder / "whole.png"
    Pillow.fromarray(ramp(40, 50, dtype=np.uint8)).save(picture)
    files = {
        "zero.nii": (b"", "is empty: 0 bytes"),
        "zero.png": (b"", "is empty: 0 bytes"),
        "cut.nii": (whole[:600], "truncated or damaged"),
        "head.nii": (whole[:100], "not a readable NIfTI file"),
        "cut.nii.gz": (gzip.compress(whole)[:-1000], "truncated or damaged"),
        "text.nii": (b"not an image" * 90, "not a readable NIfTI file"),
        "text.nii.gz": (b"not an image" * 90, "not a readable NIfTI file"),
        "cut.png": (picture.read_bytes()[:100], "not a readable PNG file"),
        "text.png": (b"not an image" * 90, "not a readable PNG file"),
        "a.gif": (b"GIF", f"must end in one of {', '.join(ENDINGS)}, "),
    }
    for name, (content, _) in files.items():
        (folder / name).write_bytes(content)
    Pillow.fromarray(ramp(8, 8, dtype=np.uint8)).save(folder / "photo.png", format="JPEG")
    files["photo.png"] = (b"", "its content is JPEG")
    return {name: message for name, (_, message) in files.items()}


def test_damaged_files_are_refused_in_words(tmp_path):
    for name, message in damaged(tmp_path).items():
        with pytest.raises(ValueError, match=message) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.nii does not exist"):
        read_image(tmp_path / "none.nii")
    (tmp_path / "a.nii").mkdir()
    with pytest.raises(ValueError, match="is a folder"):
        read_image(tmp_path / "a.nii")


RGB = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
NO_WIDTH = AFFINE * [0, 1, 1, 1]
DEPENDENT = AFFINE[:, [0, 0, 2, 3]]
REFUSED = {
    "channels": (ramp(4, 5, 3, 1, 2), AFFINE, r"has 5 axes, shape \(4, 5, 3, 1, 2\)"),
    "a series": (ramp(4, 5, 3, 2), AFFINE, r"a series of 2 volumes.*; --time k .* k in 0\.\.1"),
    "NaN": (np.full((4, 5), np.nan, np.float32), AFFINE, "holds no number: every voxel is"),
    "infinite": (np.full((4, 5), -np.inf), AFFINE, "holds no number: every voxel is"),
    "too large": ((ramp(4, 5).astype(float) - 9) * 1.7e307, AFFINE, "be told apart in float64"),
    "complex": (ramp(4, 5, dtype=np.complex64), AFFINE, "complex numbers"),
    "colours": (np.zeros((4, 5), RGB), AFFINE, r"colours \(RGB\)"),
    "no extent": (ramp(4, 5), NO_WIDTH, "no extent"),
    "dependent": (ramp(4, 5), DEPENDENT, "singular"),
    "NaN affine": (ramp(4, 5), np.full((4, 4), np.nan), "not finite"),
    "a line": (ramp(20), AFFINE, "is not an image"),
    "one voxel": (ramp(1, 1, 3), AFFINE, "is not an image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_in_words(name, tmp_path):
    array, affine, message = REFUSED[name]
    file = nib.Nifti1Image(array, np.eye(4))
    file.header["sform_code"] = 1
    for row, values in zip("xyz", affine, strict=False):
        file.header[f"srow_{row}"] = values
    file = nib.Nifti1Image(array, None, file.header)
    with np.errstate(invalid="ignore"):
        nib.save(file, tmp_path / "a.nii")
    with pytest.raises(ValueError, match=message):
        read_image(tmp_path / "a.nii")


def test_voxel_sizes_of_zero_are_refused(tmp_path):
    path = save(tmp_path / "a.nii", ramp(4, 5), None)
    content = bytearray(path.read_bytes())
    content[80:84] = bytes(4)  # pixdim[1]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"no extent: spacing \(0, 1\) mm"):
        read_image(path)


@pytest.mark.parametrize("index", [-1, 3])
def test_a_slice_must_exist(index, tmp_path):
    path = save(tmp_path / "a.nii", ramp(4, 5, 3))
    with pytest.raises(ValueError, match=rf"has no slice {index}: its slices are 0\.\.2"):
        read_image(path, slice_index=index)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_keeps_its_depth(dtype, tmp_path):
    array = ramp(6, 4, dtype=dtype) * (257 if dtype == np.uint16 else 1)
    Pillow.fromarray(array).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.shape == (6, 4)
    assert np.array_equal(image.data[0, 0].numpy(), array)
    write_image(tmp_path / "b.png", image.data + 0.3, image)
    with Pillow.open(tmp_path / "b.png") as again:
        assert np.array_equal(np.asarray(again), array)
        assert np.asarray(again).dtype == dtype


def test_png_lies_where_itk_puts_it():
    """Pixel x = 3, y = 2 at LPS (3, 2, 0)."""
    assert (_png.AFFINE @ [2, 3, 0, 1]).tolist() == [-3, -2, 0, 1]


def test_png_values_are_clipped_to_what_the_type_holds(tmp_path):
    image = Image(torch.zeros(1, 1, 1, 2), _png.AFFINE, kind="png", ndim_in_file=2, dtype=np.uint8)
    write_image(tmp_path / "a.png", torch.tensor([[-3.0, 300.0]]), image)
    assert read_image(tmp_path / "a.png").data.flatten().tolist() == [0, 255]


def test_grey_in_colour_is_grey_and_colour_is_refused(tmp_path):
    grey = ramp(6, 4, dtype=np.uint8)
    Pillow.fromarray(np.stack([grey] * 3, -1)).save(tmp_path / "grey.png")
    Pillow.fromarray(np.stack([grey, grey, grey + 1], -1)).save(tmp_path / "colour.png")
    Pillow.fromarray(np.stack([grey] * 4, -1)).save(tmp_path / "clear.png")
    assert np.array_equal(read_image(tmp_path / "grey.png").data[0, 0].numpy(), grey)
    with pytest.raises(ValueError, match="is a colour image"):
        read_image(tmp_path / "colour.png")
    with pytest.raises(ValueError, match="partly transparent"):
        read_image(tmp_path / "clear.png")


def test_labels_of_a_palette_are_its_indices(tmp_path):
    picture = Pillow.new("P", (3, 2))
    picture.putdata(list(range(6)))
    picture.putpalette([250, 10, 10] * 6)
    picture.save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", label=True).data.flatten().tolist() == list(range(6))
    with pytest.raises(ValueError, match="is a colour image"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("shape, index, written", [
    ((4, 5), None, (4, 5)), ((4, 5, 1), None, (4, 5, 1)), ((4, 5, 3), 2, (4, 5, 1)),
])  # fmt: skip
def test_a_written_image_has_the_header_of_the_fixed_one(shape, index, written, tmp_path):
    file = nib.Nifti1Image(ramp(*shape, dtype=np.int16), AFFINE)
    file.set_sform(AFFINE, 4)
    file.set_qform(AFFINE, 1)
    file.header.set_xyzt_units("mm", "sec")
    file.header.set_slope_inter(2, 1)
    file.header["cal_max"] = 9
    nib.save(file, tmp_path / "f.nii.gz")
    fixed = read_image(tmp_path / "f.nii.gz", slice_index=index)
    write_image(tmp_path / "w.nii.gz", fixed.data / 3, fixed)
    again = nib.load(tmp_path / "w.nii.gz")
    assert again.shape == written
    assert again.get_data_dtype() == np.float32
    assert again.header.get_zooms()[:2] == file.header.get_zooms()[:2]
    assert (again.header["qform_code"], again.header["sform_code"]) == (1, 4)
    assert again.header.get_xyzt_units() == ("mm", "sec")
    assert again.header["cal_max"] == 0
    np.testing.assert_allclose(again.get_sform(), fixed.affine, atol=1e-6)
    np.testing.assert_allclose(again.get_qform(), fixed.affine, atol=1e-5)
    torch.testing.assert_close(read_image(tmp_path / "w.nii.gz").data, fixed.data / 3)


def test_a_header_without_affine_stays_one(tmp_path):
    fixed = read_image(save(tmp_path / "f.nii", ramp(4, 5), None))
    write_image(tmp_path / "w.nii", fixed.data, fixed)
    again = nib.load(tmp_path / "w.nii")
    assert (again.header["qform_code"], again.header["sform_code"]) == (0, 0)
    assert np.array_equal(read_image(tmp_path / "w.nii").affine, fixed.affine)


def test_nifti_2_stays_nifti_2(tmp_path):
    nib.save(nib.Nifti2Image(ramp(4, 5), AFFINE), tmp_path / "f.nii")
    fixed = read_image(tmp_path / "f.nii")
    write_image(tmp_path / "w.nii", fixed.data, fixed)
    assert isinstance(nib.load(tmp_path / "w.nii"), nib.Nifti2Image)


def test_a_name_must_fit_the_grid(tmp_path):
    fixed = read_image(save(tmp_path / "f.nii", ramp(4, 5)))
    with pytest.raises(ValueError, match=r"must end in \.nii\.gz, \.nii, \.mha"):
        write_image(tmp_path / "w.png", fixed.data, fixed)
    with pytest.raises(ValueError, match=r"data must be \(4, 5\)"):
        write_image(tmp_path / "w.nii", fixed.data.mT, fixed)


@pytest.mark.parametrize("name", ["w.nii.gz", "w.png"])
def test_a_file_appears_whole_or_not_at_all(name, tmp_path, monkeypatch):
    kind = "png" if name.endswith("png") else "nifti"
    fixed = Image(torch.zeros(1, 1, 4, 5), AFFINE, kind=kind, ndim_in_file=2, dtype=np.uint8)
    write_image(tmp_path / name, fixed.data, fixed)
    before = (tmp_path / name).read_bytes()

    def fail(content, path, **keywords):
        with path.open("wb") as file:
            file.write(b"half a file")
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", lambda path, content: fail(content, path))
    monkeypatch.setattr(Pillow.Image, "save", fail)
    with pytest.raises(OSError, match="No space left"):
        write_image(tmp_path / name, fixed.data + 1, fixed)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == before
