"""`register FOLDER`, `evaluate FOLDER`: how many pairs it makes is said, many must be meant."""

import nibabel as nib
import numpy as np
import pytest

from diffreg.cli import manifests
from diffreg.cli.main import main

pytestmark = pytest.mark.usefixtures("one_thread")


def blob(shape, at):
    x, y = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    return (200 * np.exp(-(((x - at) / 0.2) ** 2 + ((y - 0.45) / 0.3) ** 2))).astype(np.float32)


def save(path, array):
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 5.0, 1.0])), path)


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder of two volumes of three slices each, a label map and what macOS leaves."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFREG_DEBUG", raising=False)
    (tmp_path / "images").mkdir()
    for k in range(2):
        volume = np.stack([blob((24, 20), 0.5 + (k + n) / 50) for n in range(3)], -1)
        save(f"images/{k}.nii.gz", volume)
    save("images/0_seg.nii.gz", (volume > 100).astype(np.uint8))
    (tmp_path / "images/._0.nii.gz").write_bytes(b"resource fork")
    return tmp_path / "images"


@pytest.mark.parametrize("command", ["register", "evaluate"])
def test_a_folder_says_how_many_pairs_it_makes(command, images, capsys):
    assert run(command, "images", "-o", "out", "--by-slice", "--similarity", "ncc") == 0
    assert capsys.readouterr().err.splitlines() == [
        "no --checkpoint: the variational method with ncc",
        "images: every ordered pair of 2 images, slice by slice: 6 pairs; 1 named as labels is "
        "left out (0_seg.nii.gz)",
    ]


@pytest.mark.parametrize("command", ["register", "evaluate"])
def test_many_pairs_of_a_folder_must_be_meant(command, images, monkeypatch, capsys):
    monkeypatch.setattr(manifests, "MOST_PAIRS", 5)
    assert run(command, "images", "-o", "out", "--by-slice", "--similarity", "ncc") == 2
    said = capsys.readouterr().err
    assert said.startswith("diffreg: error: images: every ordered pair of 2 images, slice by slice")
    assert ": 6 pairs; --all-pairs registers them all, a manifest (.csv, .toml) those" in said
    assert not images.with_name("out").exists()
    assert run(command, "images", "-o", "out", "--by-slice", "--all-pairs") == 0
    assert len(list(images.with_name("out").glob("*/metrics.json"))) == 6


def test_50_pairs_of_a_folder_need_no_word(images, capsys):
    assert manifests.MOST_PAIRS == 50
    for k in range(2, 5):
        save(f"images/{k}.nii.gz", np.stack([blob((24, 20), 0.5)] * 3, -1))
    assert run("register", "images", "-o", "out", "--by-slice") == 2
    assert "5 images, slice by slice: 60 pairs; --all-pairs" in capsys.readouterr().err


def test_what_is_given_for_a_folder_needs_no_word_either(images, monkeypatch, capsys):
    assert run("register", "images", "-o", "out", "--by-slice") == 0
    monkeypatch.setattr(manifests, "MOST_PAIRS", 5)
    assert run("evaluate", "images", "--displacements", "out", "-o", "e", "--by-slice") == 0
