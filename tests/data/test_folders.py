"""Folders of images: hidden files, labels and masks are no images."""

import nibabel as nib
import numpy as np
import pytest

from diffreg.data.folders import folder_images, folder_labels, is_label_name
from diffreg.data.manifest import read_manifest
from diffreg.data.pairs import find_pairs
from diffreg.data.slices import count_pairs, numbered

IMAGES = ("1000_t1.nii.gz", "1001_t1.nii.gz")
LABELS = ("1000_seg.nii.gz", "1001_Seg.nii", "b_labels.png", "c-label.nii.gz", "d_MASK.png")
HIDDEN = ("._1000_t1.nii.gz", ".DS_Store", ".a.png")


@pytest.fixture
def folder(tmp_path):
    for name in IMAGES:
        nib.save(nib.Nifti1Image(np.zeros((4, 5, 3), np.float32), np.eye(4)), tmp_path / name)
    for name in (*LABELS, *HIDDEN, "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    return tmp_path


def test_what_a_folder_holds(folder):
    assert [file.name for file in folder_images(folder)] == list(IMAGES)
    assert [file.name for file in folder_labels(folder)] == sorted(LABELS)


def test_a_manifest_and_a_training_take_the_same(folder):
    expected = {(a, b) for a in IMAGES for b in IMAGES if a != b}
    for found in (read_manifest(folder), find_pairs([folder])):
        assert {(pair.moving.name, pair.fixed.name) for pair in found} == expected


def test_pairs_are_counted_slice_by_slice(folder):
    manifest = read_manifest(folder)
    assert count_pairs(manifest) == 2 * 3 == len(list(numbered(manifest, (ValueError,))))
    (folder / "damaged.nii").write_bytes(b"no image")
    manifest = read_manifest(folder)
    errors = (ValueError, OSError)
    assert count_pairs(manifest) == 2 * 3 + 4 == len(list(numbered(manifest, errors)))


def test_a_folder_without_images_says_what_it_left_out(folder, tmp_path):
    for name in IMAGES:
        (folder / name).unlink()
    expected = r"got 0; 5 named as labels are left out \(1000_seg.nii.gz, ...\)"
    with pytest.raises(ValueError, match=expected):
        read_manifest(folder)
    with pytest.raises(ValueError, match=r"holds no image; 5 named as labels are left out"):
        find_pairs([folder])


def test_one_image_is_no_pair(folder):
    (folder / IMAGES[1]).unlink()
    with pytest.raises(ValueError, match=r"must hold at least two images .* got 1; 5 named"):
        read_manifest(folder)


def test_a_file_that_is_named_itself_is_taken(folder):
    files = [folder / "1000_seg.nii.gz", folder / "1001_Seg.nii"]
    for file in files:
        nib.save(nib.Nifti1Image(np.zeros((4, 5), np.uint8), np.eye(4)), file)
    assert len(find_pairs(files)) == 2


@pytest.mark.parametrize("name", [
    "a_seg.nii.gz", "a_SEG.NII.GZ", "a-label.nii", "a.labels.png", "mask.png", "a_dseg.nii.gz",
    "segmentation-12.nii", "seg35.nii.gz", "aseg.nii.gz", "patient001_frame01_gt.nii.gz",
    "a_brain_mask.nii.gz", "a_mask2.png", "a_ground_truth.png",
])  # fmt: skip
def test_names_of_labels(name):
    assert is_label_name(name)


@pytest.mark.parametrize("name", [
    "a.nii.gz", "unlabelled.nii", "masked.png", "brainmask.nii.gz", "segment3.png", "a_seg_t1.nii",
    "label_t1.png", "length.png", "warped.nii.gz", "a_t1.nii.gz", "msgt.png",
])  # fmt: skip
def test_names_of_images(name):
    assert not is_label_name(name)
