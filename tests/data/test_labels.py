"""What `apply` takes for a label map where nobody says how to interpolate."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from diffreg.cli.main import main
from diffreg.data.geometry import Image
from diffreg.data.images import read_image
from diffreg.data.labels import looks_like_labels
from diffreg.data.transforms import write_displacement

DATA = Path(__file__).parents[2].parent / "shared" / "data"
real = pytest.mark.skipif(not DATA.exists(), reason="the images of shared/data are not here")


def looks(array):
    return looks_like_labels(
        Image(torch.from_numpy(np.ascontiguousarray(array))[None, None], np.eye(4))
    )


def smooth(shape=(96, 80), waves=(0.05, 0.03)):
    """In [0, 1], its steps small."""
    i, j = np.indices(shape)
    return 0.5 + 0.25 * np.sin(waves[0] * i) + 0.25 * np.cos(waves[1] * j + waves[0] * i)


def regions(count, shape=(96, 80)):
    """The nearest of some points, each a label."""
    random = np.random.default_rng(count)
    points = random.uniform(0, shape, (count, 2))
    i, j = np.indices(shape)
    distances = (i[..., None] - points[:, 0]) ** 2 + (j[..., None] - points[:, 1]) ** 2
    return random.permutation(1000)[:count][distances.argmin(-1)]


@pytest.mark.parametrize("count", [2, 3, 5, 20, 100, 300])
@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32])
def test_regions_are_labels(count, dtype):
    assert looks(regions(count).astype(dtype))


def test_regions_on_a_background_are_labels():
    labels = np.zeros((96, 80), np.uint8)
    labels[40:44, 30:34], labels[60:80, 40:60] = 1, 7
    assert looks(labels)
    assert looks(labels * 0 + (labels > 3))
    assert looks(regions(5) * 100_000_000)  # numbers of an atlas: no memory for each of them


@pytest.mark.parametrize("levels", [100, 255, 4095])
def test_grey_values_are_none(levels):
    random = np.random.default_rng(0)
    noisy = smooth() + random.normal(0, 0.02, (96, 80))
    assert not looks((levels * noisy.clip(0, 1)).astype(np.int16))
    assert not looks((levels * smooth()).astype(np.int16))


def test_a_smooth_picture_is_none():
    """Plateaus all over, but from each of them the next step is to the next grey value."""
    assert not looks((60 * smooth((512, 512), (0.006, 0.004))).astype(np.uint8))


def test_a_window_that_clips_makes_no_labels():
    noisy = 2000 * (smooth() - 0.5) + np.random.default_rng(0).normal(0, 20, (96, 80))
    clipped = noisy.clip(-100, 100).astype(np.int16)
    assert (np.abs(clipped) == 100).mean() > 0.6
    assert not looks(clipped)


def test_fractions_and_a_constant_are_none():
    assert not looks(regions(4) + 0.5)
    assert not looks(np.full((8, 8), 3))
    assert not looks(regions(4) * 1e300)


@real
@pytest.mark.parametrize("name, labels", [
    ("abdomen_ctmr_3d/example_ct_sm.nii.gz", False),
    ("abdomen_ctmr_3d/example_mr_sm.nii.gz", False),
    ("abdomen_ctmr_3d/example_seg.nii.gz", True), ("abdomen_ctmr_3d/example_seg_mr.nii.gz", True),
    ("brain/colin27_t1.nii.gz", False), ("brain/mni152_gm.nii.gz", False),
    ("volumes/abdomen/ct_t1.nii.gz", False), ("volumes/abdomen/ct_seg.nii.gz", True),
    ("volumes/brain2mm/1000_t1.nii.gz", False), ("volumes/brain2mm/1000_seg.nii.gz", True),
    ("volumes/cardiac3d/SCD0000101_ed_t1.nii.gz", False),
    ("volumes/cardiac3d/SCD0000101_ed_seg.nii.gz", True), ("volumes/free/colin27_aal.nii.gz", True),
    ("volumes/prostate/000000_us_seg.nii.gz", True),
])  # fmt: skip
def test_real_images(name, labels):
    """The middle half of each: at the ends of a scan there is hardly anything."""
    volume = np.asarray(nib.load(DATA / name).dataobj)
    count = volume.shape[2]
    slices = [volume[:, :, k] for k in range(count // 4, count - count // 4)]
    assert {looks(s) for s in slices if s.min() < s.max()} == {labels}


# apply


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A displacement of half a voxel on the grid of a NIfTI and of a PNG file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFREG_DEBUG", raising=False)
    labels = regions(5).astype(np.int16)
    grey = (4000 * smooth()).astype(np.int16)
    for name, array in (("labels", labels), ("grey", grey), ("float", labels.astype(np.float32))):
        nib.save(nib.Nifti1Image(array, np.eye(4)), f"{name}.nii.gz")
    coloured = Pillow.fromarray((labels % 5).astype(np.uint8), "P")
    coloured.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255, 255, 255, 0])
    coloured.save("coloured.png")
    half = torch.full((1, 2, 96, 80), 0.5)
    write_displacement("u.nii.gz", half, read_image("grey.nii.gz"))
    return tmp_path


def apply(capsys, image, out, *more):
    """What is said, and the values."""
    assert main(["apply", "u.nii.gz", image, "-o", out, *more]) == 0
    return capsys.readouterr(), np.asarray(nib.load(out).dataobj)


SAID = "{}: labels, so nearest; --interpolation linear blends them\n"


@pytest.mark.parametrize("name", ["labels.nii.gz", "float.nii.gz"])
def test_labels_are_not_blended_and_it_is_said(name, folder, capsys):
    said, values = apply(capsys, name, "w.nii.gz")
    assert said.err == SAID.format(name)
    assert said.out == f"w.nii.gz: {name} on the grid of u.nii.gz, nearest\n"
    before = np.asarray(nib.load(name).dataobj)
    assert values.dtype == before.dtype
    assert set(np.unique(values)) <= {0, *np.unique(before)}


def test_an_image_is_blended_and_nothing_is_said(folder, capsys):
    said, values = apply(capsys, "grey.nii.gz", "w.nii.gz")
    assert said.err == ""
    assert said.out.endswith(", linear\n")
    assert values.dtype == np.float32 and (values != values.round()).any()


def test_what_is_asked_for_is_done(folder, capsys):
    said, values = apply(capsys, "labels.nii.gz", "w.nii.gz", "--interpolation", "linear")
    assert said.err == "" and (values != values.round()).any()
    said, values = apply(capsys, "grey.nii.gz", "w.nii.gz", "--interpolation", "nearest")
    assert said.err == "" and values.dtype == np.int16


def test_a_palette_is_of_labels(folder, capsys):
    write_displacement(
        "u.nii.gz", torch.zeros(1, 2, 96, 80), read_image("coloured.png", label=True)
    )
    assert main(["apply", "u.nii.gz", "coloured.png", "-o", "w.png"]) == 0
    assert capsys.readouterr().err == SAID.format("coloured.png")
    with Pillow.open("w.png") as warped, Pillow.open("coloured.png") as before:
        assert np.array_equal(np.asarray(warped), np.asarray(before))


def test_what_a_header_calls_labels_are_labels(tmp_path):
    """A line, of which no region is left; its intensities would not be taken for labels."""
    line = np.zeros((12, 12, 4), np.uint8)
    line[:, 5, 1] = np.arange(12) % 3
    for name, intent in (("none", "none"), ("label", "label")):
        file = nib.Nifti1Image(line, np.eye(4))
        file.header.set_intent(intent)
        nib.save(file, tmp_path / f"{name}.nii.gz")
        image = read_image(tmp_path / f"{name}.nii.gz", label=True)
        assert looks_like_labels(image) == (name == "label")
