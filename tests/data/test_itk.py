"""What SimpleITK reads: every voxel where ITK has it, and words for what is no image."""

import locale
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from PIL import Image as Pillow

from diffreg.cli.main import main
from diffreg.data.images import count_slices, count_times, read_image, write_image
from diffreg.data.manifest import read_manifest

SPACING, ORIGIN = (0.7, 1.5, 3.0), (-12.5, 40.0, 7.25)
UID = "1.2.826.0.1.3680043.2.1125.{}"


@pytest.fixture(autouse=True)
def same_locale():
    """What writes DICOM here leaves the process in the locale C; what reads must not."""
    before = locale.setlocale(locale.LC_ALL)
    yield
    locale.setlocale(locale.LC_ALL, before)


def turned(flip=False):
    """Directions of an oblique grid, left-handed if flipped, rows of a 3 x 3 matrix."""
    a, b = np.cos(0.4), np.sin(0.4)
    matrix = np.array([[a, -b, 0], [b, a, 0], [0, 0, 1]]) @ np.array(
        [[1, 0, 0], [0, a, -b], [0, b, a]]
    )
    return matrix * [1, 1, -1] if flip else matrix


def volume(shape=(4, 5, 6), dtype=np.int16, flip=False):
    """Numbers counted up, (z, y, x) of `shape`, on an oblique grid."""
    image = sitk.GetImageFromArray(np.arange(np.prod(shape)).reshape(shape).astype(dtype))
    image.SetSpacing(SPACING)
    image.SetOrigin(ORIGIN)
    image.SetDirection(turned(flip).ravel().tolist())
    return image


def check_places(image, itk):
    """Every corner and the numbers are where ITK has them."""
    size = itk.GetSize()
    for index in np.ndindex(*(2,) * len(size)):
        voxel = [k * (n - 1) for k, n in zip(index, size, strict=True)]
        place = np.array([*itk.TransformIndexToPhysicalPoint(voxel), 0, 0])[:3] * [-1, -1, 1]
        at = image.affine @ [*voxel, *(0,) * (3 - len(voxel)), 1]
        np.testing.assert_allclose(at[:3], place, atol=1e-4)
        assert image.data[(0, 0, *voxel)] == itk[voxel]


@pytest.mark.parametrize("flip", [False, True], ids=["right-handed", "left-handed"])
@pytest.mark.parametrize("ending", ["mha", "mhd", "nrrd", "nhdr"])
def test_a_volume_lies_where_itk_has_it(ending, flip, tmp_path):
    path = tmp_path / f"a.{ending}"
    sitk.WriteImage(volume(flip=flip), path)
    image = read_image(path)
    assert (image.shape, image.kind, image.dtype) == ((6, 5, 4), "nifti", np.int16)
    check_places(image, volume(flip=flip))
    write_image(tmp_path / "b.nii.gz", image.data, image)
    check_places(read_image(tmp_path / "b.nii.gz"), sitk.ReadImage(tmp_path / "b.nii.gz"))
    check_places(image, sitk.ReadImage(tmp_path / "b.nii.gz"))


@pytest.mark.parametrize("ending", ["mha", "nrrd"])
def test_a_slice_has_its_own_place(ending, tmp_path):
    sitk.WriteImage(volume(), tmp_path / f"a.{ending}")
    image = read_image(tmp_path / f"a.{ending}", 2)
    place = volume().TransformIndexToPhysicalPoint((1, 3, 2))
    np.testing.assert_allclose(image.affine @ [1, 3, 0, 1], [-place[0], -place[1], place[2], 1])
    assert image.data[0, 0, 1, 3] == volume()[1, 3, 2]
    assert (image.slice_index, count_slices(tmp_path / f"a.{ending}")) == (2, 4)
    with pytest.raises(ValueError, match=r"has no slice 4: its slices are 0\.\.3"):
        read_image(tmp_path / f"a.{ending}", 4)


@pytest.mark.parametrize("ending", ["mha", "nrrd"])
def test_an_image_of_two_axes_is_flat(ending, tmp_path):
    itk = sitk.GetImageFromArray(np.arange(30, dtype=np.float32).reshape(5, 6))
    itk.SetSpacing(SPACING[:2])
    itk.SetOrigin(ORIGIN[:2])
    itk.SetDirection([0, -1, 1, 0])
    sitk.WriteImage(itk, tmp_path / f"a.{ending}")
    image = read_image(tmp_path / f"a.{ending}")
    assert image.is_flat
    check_places(image, itk)
    write_image(tmp_path / "b.nii", image.data, image)
    check_places(image, sitk.ReadImage(tmp_path / "b.nii"))


@pytest.mark.parametrize("ending", ["mha", "nrrd"])
def test_of_a_series_one_time_point(ending, tmp_path):
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).astype(np.int16)
    path = tmp_path / f"a.{ending}"
    itk = sitk.JoinSeries([volume((3, 4, 5)), volume((3, 4, 5)) + 60])
    sitk.WriteImage(itk, path)
    image = read_image(path, time=1)
    assert np.array_equal(image.data[0, 0], array[1].T)
    assert np.array_equal(read_image(path, 2, time=0).data[0, 0], array[0, 2].T)
    assert (image.time, count_times(path), count_slices(path)) == (1, 2, 3)
    place = volume().TransformIndexToPhysicalPoint((4, 3, 2))
    np.testing.assert_allclose(image.affine @ [4, 3, 2, 1], [-place[0], -place[1], place[2], 1])
    with pytest.raises(ValueError, match=r"series of 2 volumes.*--time k takes one, k in 0\.\.1"):
        read_image(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32])
def test_labels_keep_their_integers(dtype, tmp_path):
    sitk.WriteImage(volume(dtype=dtype), tmp_path / "a.nrrd", useCompression=True)
    image = read_image(tmp_path / "a.nrrd", label=True)
    assert (image.dtype, image.data.is_floating_point()) == (dtype, False)
    assert int(image.data.max()) == 119


# Pictures


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("ending", ["tif", "tiff"])
def test_a_tiff_file_is_a_picture(ending, dtype, tmp_path):
    array = (np.arange(30).reshape(5, 6) * 7).astype(dtype)
    Pillow.fromarray(array).save(tmp_path / f"a.{ending}", dpi=(300, 300))
    Pillow.fromarray(array).save(tmp_path / "a.png")
    image, png = read_image(tmp_path / f"a.{ending}"), read_image(tmp_path / "a.png")
    assert torch.equal(image.data, png.data)
    assert (image.kind, image.dtype, image.is_flat) == ("png", dtype, True)
    assert np.array_equal(image.affine, png.affine)
    assert image.data[0, 0, 1, 2] == 7 * 8


@pytest.mark.parametrize("ending", ["jpg", "jpeg"])
def test_a_grey_jpeg_file_is_a_picture(ending, tmp_path):
    array = np.add.outer(np.arange(40), 3 * np.arange(50)).astype(np.uint8)
    for mode in ("L", "RGB"):
        Pillow.fromarray(array).convert(mode).save(tmp_path / f"a.{ending}", quality=95)
        image = read_image(tmp_path / f"a.{ending}")
        assert (image.shape, image.kind, image.dtype) == ((40, 50), "png", np.uint8)
        assert np.abs(image.data[0, 0].numpy() - array).max() <= 4


def test_other_tiff_files_are_arrays_without_a_place(tmp_path):
    pages = np.arange(3 * 4 * 5).reshape(3, 4, 5)
    Pillow.fromarray(pages[0].astype(np.float32)).save(tmp_path / "a.tif")
    first, *others = [Pillow.fromarray(page.astype(np.uint8)) for page in pages]
    first.save(tmp_path / "b.tif", save_all=True, append_images=others)
    np.savez(tmp_path / "a.npz", one=pages[0].astype(np.float32), all=pages.astype(np.uint8))
    for name, array in (("a.tif", "one"), ("b.tif", "all")):
        image, npz = read_image(tmp_path / name), read_image(tmp_path / f"a.npz:{array}")
        assert torch.equal(image.data, npz.data)
        assert np.array_equal(image.affine, npz.affine)
        assert (image.kind, image.ndim_in_file, image.dtype) == (
            npz.kind,
            npz.ndim_in_file,
            npz.dtype,
        )
    assert count_slices(tmp_path / "b.tif") == 3
    page = read_image(tmp_path / "b.tif", 2)
    assert np.array_equal(page.data[0, 0], pages[2])
    assert (page.kind, page.slice_index) == ("png", 2)


def smooth(shift):
    """A blob of 8 bits, (40, 48)."""
    y, x = np.mgrid[:40, :48]
    blob = 220 * np.exp(-((x - 23 - shift) ** 2 + 2 * (y - 19) ** 2) / 90) + 10
    return Pillow.fromarray(blob.astype(np.uint8))


def test_pictures_are_registered_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    smooth(3).save("moving.jpg", quality=95)
    smooth(0).save("fixed.tif")
    assert main(["register", "moving.jpg", "fixed.tif", "-o", "out"]) == 0, capsys.readouterr().err
    warped = np.asarray(Pillow.open("out/warped.png")).astype(float)
    before = np.abs(np.asarray(smooth(3)).astype(float) - np.asarray(smooth(0))).mean()
    assert np.abs(warped - np.asarray(smooth(0))).mean() < 0.3 * before
    assert main(["apply", "out", "moving.jpg", "-o", "again.png"]) == 0
    assert np.abs(np.asarray(Pillow.open("again.png")) - warped).max() <= 1


def test_what_belongs_to_different_kinds_is_not_registered(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    smooth(3).save("moving.jpg")
    sitk.WriteImage(volume(), "fixed.mha")
    assert main(["register", "moving.jpg", "fixed.mha", "-o", "out", "--slice", "1"]) == 2
    said = capsys.readouterr().err
    assert "the one is a picture of 8 or 16 bits (PNG, JPEG, TIFF), which has no physical" in said


# DICOM


def write_series(folder, image, series=1, names=None, tags=None, keep=None):
    """The slices of a volume as DICOM files, in any order of names."""
    folder.mkdir(exist_ok=True)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for k in keep or range(image.GetSize()[2]):
        part = image[:, :, k]
        place = image.TransformIndexToPhysicalPoint((0, 0, k))
        for tag, value in {
            "0008|0060": "CT",
            "0008|0018": UID.format(f"{series}.{k + 1}"),
            "0020|000d": UID.format(9),
            "0020|000e": UID.format(series),
            "0020|0032": "\\".join(f"{x:.6f}" for x in place),
            "0020|0037": "\\".join(f"{x:.8f}" for x in direction[:, :2].T.ravel()),
            "0018|0050": "1",
            **(tags or {}),
        }.items():
            part.SetMetaData(tag, value)
        written = folder / f"{series}-{k}.dcm"
        writer.SetFileName(written)
        writer.Execute(part)
        if names:
            written.rename(folder / names[k])
    return folder


@pytest.mark.parametrize("flip", [False, True], ids=["right-handed", "left-handed"])
def test_a_series_is_stacked_by_the_places_of_its_slices(flip, tmp_path):
    names = ["z.dcm", "b.dcm", "a.dcm", "m"]
    folder = write_series(tmp_path / "ct", volume(flip=flip), names=names)
    (folder / "readme.txt").write_text("not DICOM")
    image = read_image(folder)
    itk = volume(flip=flip)
    # The way of the slices is the one along which they are right-handed.
    check_places(image, itk[:, :, ::-1] if flip else itk)
    assert (count_slices(folder), count_times(folder), image.kind) == (4, 1, "nifti")
    one = read_image(folder, 3)
    assert torch.equal(one.data, image.data[..., 3])
    np.testing.assert_allclose(one.affine @ [1, 2, 0, 1], image.affine @ [1, 2, 3, 1])


def test_a_slanted_stack_is_not_made_upright(tmp_path):
    folder = tmp_path / "ct"
    for k in range(3):
        one = volume((1, 5, 6)) + k
        one.SetOrigin((1.0, 2.0 + 0.5 * k, 3.0 + 2 * k))
        one.SetDirection(np.eye(3).ravel().tolist())
        write_series(folder, one, names=[f"{k}.dcm"], tags={"0008|0018": UID.format(f"8.{k}")})
    image = read_image(folder)
    np.testing.assert_allclose(image.affine[:3, 2], [0, -0.5, 2])
    assert image.data[0, 0, 0, 0].tolist() == [0, 1, 2]


def test_a_dicom_file_alone_is_a_slice(tmp_path):
    folder = write_series(tmp_path / "ct", volume())
    image = read_image(folder / "1-2.dcm")
    place = volume().TransformIndexToPhysicalPoint((1, 3, 2))
    np.testing.assert_allclose(
        image.affine @ [1, 3, 0, 1], [-place[0], -place[1], place[2], 1], atol=1e-4
    )
    assert (image.shape, image.slice_index) == ((6, 5), None)
    assert image.data[0, 0, 1, 3] == volume()[1, 3, 2]


def test_intensities_are_rescaled(tmp_path):
    """Slices of one series may have scales of their own, as those of PET have."""
    array = 5 * np.arange(60, dtype=np.float64).reshape(2, 5, 6)
    for k, (slope, kind) in enumerate([("1", sitk.sitkInt16), ("0.5", sitk.sitkFloat64)]):
        tags = {"0028|1052": "-1024", "0028|1053": slope}
        image = sitk.Cast(volume((2, 5, 6)) * 5, kind)
        if k == 1:  # stored in 16 bits: the scale is what makes fractions of it
            image += 0.5
            array[1] += 0.5
            tags |= {"0028|0100": "16", "0028|0101": "16", "0028|0102": "15", "0028|0103": "1"}
        folder = write_series(tmp_path / "pt", image, tags=tags, keep=[k])
    assert np.array_equal(read_image(folder).data[0, 0], array.T)
    stored = np.frombuffer((folder / "1-0.dcm").read_bytes()[-60:], "<i2").reshape(5, 6)
    assert np.array_equal(stored - 1024, array[0])


def test_files_without_pixels_are_no_series(tmp_path):
    """Such as reports and contours, which lie in the folders of many scanners."""
    folder = write_series(tmp_path / "ct", volume())
    write_series(folder, volume((2, 5, 6)), series=2)
    for k in range(2):
        file = folder / f"2-{k}.dcm"
        content = file.read_bytes()
        file.write_bytes(content[: content.rindex(b"\xe0\x7f\x10\x00")])
    check_places(read_image(folder), volume())


def without(folder, k):
    (folder / f"1-{k}.dcm").unlink()


def moved(folder):
    write_series(folder, volume(), keep=[1], tags={"0020|0032": "-12.5\\40\\7.25"})


def longer(folder):
    write_series(folder, volume((4, 5, 7)), keep=[1])


def tilted(folder):
    write_series(folder, volume(), keep=[1], tags={"0020|0037": "1\\0\\0\\0\\1\\0"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: without(folder, 2), r"no even stack: from slice to slice it is 3 to 6 mm"),
        (moved, "4 slices at 3 places: more than one volume, such as a series in time"),
        (longer, r"ct: 1-1\.dcm is \(7, 5, 1\), 1-0\.dcm \(6, 5, 1\) voxels"),
        (tilted, r"1-1\.dcm and 1-0\.dcm are not parallel slices"),
    ],
    ids=["missing", "twice", "size", "tilted"],
)
def test_what_is_no_even_stack_is_refused(damage, message, tmp_path):
    folder = write_series(tmp_path / "ct", volume())
    damage(folder)
    with pytest.raises(ValueError, match=message):
        read_image(folder)


def test_of_several_series_one_is_named(tmp_path):
    folder = write_series(tmp_path / "ct", volume())
    write_series(folder, volume((3, 5, 6)) + 1000, series=2)
    with pytest.raises(ValueError, match="holds 2 DICOM series; name one as ct:UID, of ") as caught:
        read_image(folder)
    assert f"{UID.format(1)} (4 slices), {UID.format(2)} (3 slices)" in str(caught.value)
    chosen = f"{folder}:{UID.format(2)}"
    assert read_image(chosen).data.min() == 1000
    assert count_slices(chosen) == 3
    with pytest.raises(ValueError, match=r"ct has no series 1\.2; name one as ct:UID"):
        read_image(f"{folder}:1.2")


def test_a_manifest_takes_a_series_for_an_image(tmp_path):
    write_series(tmp_path / "ct", volume())
    sitk.WriteImage(volume(), tmp_path / "a.mha")
    (tmp_path / "none").mkdir()
    manifest = tmp_path / "pairs.csv"
    manifest.write_text(f"moving,fixed,slice\nct:{UID.format(1)},a.mha,1\n")
    (pair,) = read_manifest(manifest)
    assert read_image(pair.moving, pair.moving_slice).shape == (6, 5)
    manifest.write_text("moving,fixed\nnone,a.mha\n")
    with pytest.raises(ValueError, match=r"line 2: moving .*none is a folder, not a file"):
        read_manifest(manifest)
    with pytest.raises(ValueError, match="ct holds DICOM files, which are one image"):
        read_manifest(tmp_path / "ct")


def test_time_points_from_the_command_line_and_a_manifest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    frames = [sitk.GetImageFromArray(np.asarray(smooth(k)).astype(np.int16)[None]) for k in (0, 3)]
    sitk.WriteImage(sitk.JoinSeries(frames), "cine.nrrd")
    series = ["register", "cine.nrrd", "cine.nrrd", "-o", "out"]
    assert main([*series, "--time", "0", "--moving-time", "1"]) == 0, capsys.readouterr().err
    assert main([*series, "--time", "1", "--moving-time", "0"]) == 2
    said = capsys.readouterr().err
    assert "out holds the results of cine.nrrd time 1 to cine.nrrd time 0: give another" in said
    (tmp_path / "pairs.csv").write_text(
        "moving,fixed,moving_time,fixed_time\ncine.nrrd,cine.nrrd,1,0\ncine.nrrd,cine.nrrd,0,1\n"
    )
    (tmp_path / "images.csv").write_text("image,time\ncine.nrrd,0\ncine.nrrd,1\n")
    for manifest in ("pairs.csv", "images.csv"):
        names = {pair.name for pair in read_manifest(manifest)}
        assert names == {f"cine.nrrd time {k} to cine.nrrd time {1 - k}" for k in (0, 1)}
    assert main(["register", "pairs.csv", "-o", "both"]) == 0, capsys.readouterr().err
    assert main(["register", "pairs.csv", "-o", "no", "--time", "1"]) == 2
    assert "a manifest has the column time" in capsys.readouterr().err
    smooth(0).save("a.png")
    assert main(["register", "a.png", "a.png", "-o", "no", "--time", "1"]) == 2
    assert "--time is for series; a.png and a.png have no time points" in capsys.readouterr().err


# What is no image


def refused(folder):
    """name -> what read_image says about it."""
    sitk.WriteImage(volume(), folder / "whole.mha")
    sitk.WriteImage(volume(), folder / "whole.nrrd")
    smooth(0).save(folder / "whole.jpg")
    smooth(0).save(folder / "whole.tif")
    write_series(folder / "ct", volume())
    for ending in ("mha", "nrrd", "jpg", "tif"):
        whole = (folder / f"whole.{ending}").read_bytes()
        (folder / f"cut.{ending}").write_bytes(whole[: len(whole) - 200])
        (folder / f"text.{ending}").write_text("not an image" * 90)
        (folder / f"zero.{ending}").write_text("")
    whole = (folder / "ct" / "1-0.dcm").read_bytes()
    (folder / "cut.dcm").write_bytes(whole[:-10])
    (folder / "text.dcm").write_text("not an image" * 90)
    head = (folder / "whole.mha").read_bytes()[:-240]
    (folder / "huge.mha").write_bytes(head.replace(b"6 5 4", b"60000 50000 4"))
    (folder / "claim.mha").write_bytes(head.replace(b"6 5 4", b"600 500 4"))
    nrrd = (
        "NRRD0004\ntype: double\ndimension: 3\nsizes: 512 512 900\nencoding: gzip\nendian: little"
    )
    (folder / "claim.nrrd").write_text(nrrd + "\n\nshort")
    (folder / "ascii.mha").write_bytes(head.replace(b"BinaryData = True", b"BinaryData = False"))
    (folder / "endless.nrrd").write_text(nrrd + "kinds: " + 9999 * "9" + "\n\n")
    vectors = np.zeros((3, 4, 5, 3), np.float32)
    sitk.WriteImage(sitk.GetImageFromArray(vectors, isVector=True), folder / "vector.nrrd")
    sitk.WriteImage(sitk.GetImageFromArray(np.ones((4, 5), np.complex64)), folder / "complex.mha")
    colour = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    Pillow.fromarray(colour).save(folder / "colour.tif")
    Pillow.fromarray(colour).resize((50, 40)).save(folder / "colour.jpg")
    (folder / "empty").mkdir()
    (folder / "hollow").mkdir()
    whole = whole[: whole.rindex(b"\xe0\x7f\x10\x00")]
    (folder / "hollow" / "a.dcm").write_bytes(whole)
    return {
        **{f"cut.{e}": "is damaged or no such file" for e in ("mha", "nrrd", "jpg", "tif", "dcm")},
        **{f"text.{e}": "is damaged or no such file" for e in ("nrrd", "jpg", "tif", "dcm")},
        "text.mha": "holds its numbers as text|is damaged or no such file",
        **{f"zero.{e}": "is empty: 0 bytes" for e in ("mha", "nrrd", "jpg", "tif")},
        "huge.mha": "header claims 12,000,000,000 bytes of numbers",
        "claim.mha": "header claims 1,200,000 bytes of numbers",
        "claim.nrrd": "header claims 235,929,600 bytes of numbers",
        "ascii.mha": "holds its numbers as text",
        "endless.nrrd": "its header is not lines of text",
        "vector.nrrd": "holds 3 numbers a voxel",
        "complex.mha": "holds 2 numbers a voxel",
        "colour.tif": "is a colour image",
        "colour.jpg": "is a colour image",
        "empty": "is a folder, not an image: it holds no DICOM file",
        "hollow": "holds no DICOM series that can be read",
    }


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".MHA", ".NRRD"])
@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_an_image_is_written_where_itk_has_it(ending, dtype, tmp_path):
    """Volumes, slices of volumes and 2-D images: as the NIfTI file of the same numbers."""
    values = np.random.default_rng(0).integers(0, 200, (6, 7, 5)).astype(dtype)
    affine = np.array([[0, -2.0, 0, 10], [1.5, 0, 0, -4], [0, 0, 5, 30], [0, 0, 0, 1]])
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "volume.nii")
    nib.save(nib.Nifti1Image(values[..., 0], affine), tmp_path / "flat.nii")
    given = [("volume", None), ("volume", 3), ("flat", None)]
    for name, index in given:
        image = read_image(tmp_path / f"{name}.nii", index)
        written = tmp_path / f"written{ending}"
        write_image(written, image.data, image, dtype)
        write_image(tmp_path / "written.nii", image.data, image, dtype)
        back = read_image(written)
        assert torch.equal(back.data, image.data) and np.dtype(back.dtype) == dtype
        known = np.s_[:2, [0, 1, 3]] if name == "flat" else np.s_[:]  # of two axes nothing has a z
        np.testing.assert_allclose(back.affine[known], image.affine[known], atol=1e-4)
        io = {".mha": "MetaImageIO", ".nrrd": "NrrdImageIO"}[ending.lower()]
        ours = sitk.ReadImage(str(written), imageIO=io)
        assert ours.GetDimension() == (2 if name == "flat" else 3)
        theirs = sitk.ReadImage(tmp_path / "written.nii")
        np.testing.assert_allclose(ours.GetSpacing(), theirs.GetSpacing(), rtol=1e-6)
    assert not list(tmp_path.glob(".*")) and len(list(tmp_path.iterdir())) == 4


def test_apply_writes_what_slicer_reads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    nib.save(nib.Nifti1Image(random.random((6, 7, 5)), np.diag([2, 2, 3, 1])), "image.nii")
    nib.save(nib.Nifti1Image(random.random((6, 7, 5, 3)), np.diag([2, 2, 3, 1])), "series.nii")
    sitk.WriteTransform(sitk.TranslationTransform(3, (1.0, 0.0, 0.5)), "shift.tfm")
    words = "apply -t shift.tfm --fixed image.nii -o"
    assert main([*words.split(), "moved.nrrd", "image.nii"]) == 0
    assert main([*words.split(), "moved.nii", "image.nii"]) == 0
    assert torch.equal(read_image("moved.nrrd").data, read_image("moved.nii").data)
    assert main([*words.split(), "moved.mha", "series.nii"]) == 2
    assert "a series, vectors or colours are written as .nii.gz" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    assert main([*words.split(), "again.mha", "image.nii"]) == 2
    assert "SimpleITK" in capsys.readouterr().err
    assert not Path("moved.mha").exists() and not Path("again.mha").exists()


def test_what_is_no_image_is_refused_in_one_line(tmp_path, capfd):
    for name, message in refused(tmp_path).items():
        with pytest.raises(ValueError, match=message) as caught:
            read_image(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "ImageIO(" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_missing_package_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    folder = write_series(tmp_path / "ct", volume())
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    (tmp_path / "a.mha").write_text("x")
    for name, what in (("a.mha", "reading a.mha"), ("ct", f"DICOM files as in {folder}")):
        assert main(["register", str(tmp_path / name), "b.nii", "-o", str(tmp_path / "o")]) == 2
        said = capsys.readouterr().err
        assert (
            said == f"diffreg: error: SimpleITK is needed for {what}: pip install 'diffreg[itk]'\n"
        )
