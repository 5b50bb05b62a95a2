"""Images that are given as labels: said, where labels are not."""

import warnings

import nibabel as nib
import numpy as np
import pytest
import torch

import diffreg
from diffreg.cli.main import main
from diffreg.data.geometry import Image
from diffreg.data.labels import doubted
from diffreg.system.files import FileWarning

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = (24, 20, 18)
SAID = "may be an image and no labels: its "


def radius(shift=0.0):
    x, y, z = np.indices(SHAPE)
    return np.sqrt((x - 12 - shift) ** 2 + (y - 10) ** 2 + (z - 9) ** 2)


def image(values):
    return Image(torch.from_numpy(values)[None, None], np.eye(4))


def head(kind, most):
    """A ball that gets darker outwards, with noise: whole numbers."""
    noise = np.random.default_rng(0).normal(0, 0.03, SHAPE)
    return (most * np.clip(1 - radius() / 12 + noise, 0, 1)).astype(kind)


def atlas(count, most):
    """So many regions, blocks of 3 x 3 x 3 voxels, their numbers from 0 to `most`."""
    numbers = np.unique(np.linspace(0, most, count).round())
    blocks = np.indices(SHAPE) // 3
    return numbers[(blocks[0] * 48 + blocks[1] * 7 + blocks[2]) % len(numbers)].astype(np.int64)


IMAGES = {
    "8 bits": head(np.uint8, 255),
    "thousands": head(np.int16, 4000),
}
LABELS = {
    "FreeSurfer's": atlas(200, 14175),
    "a mask": (radius() < 5).astype(np.uint8),
    "three": np.digitize(radius(), [3, 6]).astype(np.uint8),
    "nothing": np.zeros(SHAPE, np.uint8),
    "hundreds": atlas(300, 300),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_told(name):
    with pytest.warns(FileWarning, match=f"{SAID}[0-9]+ values do not keep together in regions"):
        doubted(image(IMAGES[name]))


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_not(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        doubted(image(LABELS[name]))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, shift in (("moving", 0.5), ("fixed", 0.0)):
        values = (200 * np.exp(-((radius(shift) / 6) ** 2))).astype(np.uint8)
        floats = (atlas(200, 14175) * (radius(shift) < 7)).astype(np.float32)
        for kind, array in (("", values), ("_label", floats)):
            nib.save(nib.Nifti1Image(array, np.eye(4)), f"{name}{kind}.nii.gz")
    columns = "moving,fixed,moving_label,fixed_label"
    row = "moving.nii.gz,fixed.nii.gz,moving.nii.gz,fixed_label.nii.gz"
    (tmp_path / "pairs.csv").write_text(f"{columns}\n{row}\n")
    return tmp_path


QUICK = ("-o", "out", "--iterations", "1", "--affine", "none")


def test_register_says_it(folder, capsys):
    words = ("register", "moving.nii.gz", "fixed.nii.gz", *QUICK, "--no-report", "--no-composites")
    labels = ("--moving-label", "moving_label.nii.gz", "--fixed-label", "fixed_label.nii.gz")
    assert main([*words, *labels]) == 0
    assert SAID not in capsys.readouterr().err
    assert main([*words, "--moving-label", "moving.nii.gz", *labels[2:]]) in (0, 2)
    said = [line for line in capsys.readouterr().err.splitlines() if SAID in line]
    assert len(said) == 1 and said[0].startswith("diffreg: warning: moving.nii.gz may be an image")


def test_evaluate_says_it(folder, capsys):
    main(["evaluate", "pairs.csv", *QUICK])
    said = [line for line in capsys.readouterr().err.splitlines() if SAID in line]
    assert len(said) == 1 and said[0].startswith("diffreg: warning: moving.nii.gz may be an image")


def test_save_says_it(folder):
    result = diffreg.register("moving.nii.gz", "fixed.nii.gz", affine="none", iterations=1)
    with pytest.warns(FileWarning, match=SAID):
        result.save("out", report=False, composites=False, labels=("fixed.nii.gz",) * 2)


def test_evaluate_says_where_labels_have_none_in_common(folder, capsys):
    labels = nib.load("fixed_label.nii.gz")
    values = np.asarray(labels.dataobj).astype(np.int32)
    others = np.where(values > 0, values + 20_000, 0)
    nib.save(nib.Nifti1Image(others.astype(np.int32), labels.affine), "other_label.nii.gz")
    (folder / "others.csv").write_text(
        "moving,fixed,moving_label,fixed_label\n"
        "moving.nii.gz,fixed.nii.gz,moving_label.nii.gz,other_label.nii.gz\n"
    )
    assert main(["evaluate", "others.csv", *QUICK]) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "none in common" in line]
    assert len(said) == 1 and "so that there is no Dice of them" in said[0]
