"""Pairs from folders and manifests, and draws that depend on the seed and their number alone."""

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from diffreg.data.normalization import Normalization
from diffreg.data.pairs import PairDataset, PairFiles, find_pairs, read_manifest
from diffreg.data.synthetic import Augmentation


def picture(shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 200, shape).astype(np.float32)


def save(path, array, spacing=(2.0, 2.0), shift=0.0):
    affine = np.diag([*spacing, 4.0, 1.0])
    affine[0, 3] = shift
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


@pytest.fixture
def folder(tmp_path):
    for k, name in enumerate(("a", "b", "c")):
        save(tmp_path / f"{name}.nii.gz", picture((12, 10), k))
    return tmp_path


@pytest.fixture
def volumes(tmp_path):
    return [save(tmp_path / f"v{k}.nii.gz", picture((8, 9, 4), k)) for k in range(2)]


def names(pairs):
    return [str(pair) for pair in pairs]


def test_a_folder_gives_every_ordered_pair(folder):
    pairs = find_pairs([folder])
    assert len(pairs) == len(set(pairs)) == 6
    assert str(pairs[0]) == "a.nii.gz to b.nii.gz"


def test_volumes_are_paired_slice_by_slice(volumes):
    assert len(find_pairs(volumes)) == 8
    pairs = find_pairs(volumes, [1, 3])
    assert names(pairs) == [
        "v0.nii.gz to v1.nii.gz, slice 1",
        "v0.nii.gz to v1.nii.gz, slice 3",
        "v1.nii.gz to v0.nii.gz, slice 1",
        "v1.nii.gz to v0.nii.gz, slice 3",
    ]


def test_a_manifest_says_which_pairs(folder):
    manifest = folder / "pairs.csv"
    manifest.write_text("fixed, moving\nb.nii.gz,a.nii.gz\n\nc.nii.gz,b.nii.gz\n")
    assert read_manifest(manifest) == [
        (folder / "a.nii.gz", folder / "b.nii.gz"),
        (folder / "b.nii.gz", folder / "c.nii.gz"),
    ]
    assert names(find_pairs([manifest])) == ["a.nii.gz to b.nii.gz", "b.nii.gz to c.nii.gz"]


def test_png_files(tmp_path):
    for k in range(2):
        Pillow.fromarray(picture((6, 7), k).astype(np.uint8)).save(tmp_path / f"{k}.png")
    dataset = PairDataset(find_pairs([tmp_path]))
    assert dataset.batch([0, 1]).moving.shape == (2, 1, 6, 7)


def test_images_are_normalised_and_lie_on_the_fixed_grid(folder):
    array = picture((12, 10))
    moving = save(folder / "shifted.nii.gz", array, shift=2.0)  # one voxel to the right
    fixed = save(folder / "fixed.nii.gz", array)
    dataset = PairDataset([PairFiles(moving, fixed)], Normalization(0, 100))
    moved, still = dataset.images[0]
    assert (still.min(), still.max()) == (0, 1)
    assert torch.equal(moved[:, :, 1:], still[:, :, :-1])
    assert torch.equal(moved[:, :, :1], still[:, :, :1])  # its border is repeated


def test_every_epoch_draws_every_pair_once(folder):
    dataset = PairDataset(find_pairs([folder]), seed=3)
    drawn = [dataset.position(number) for number in range(12)]
    assert [epoch for epoch, _ in drawn] == [0] * 6 + [1] * 6
    orders = [[index for epoch, index in drawn if epoch == e] for e in (0, 1)]
    assert [sorted(order) for order in orders] == [list(range(6))] * 2
    assert orders[0] != orders[1]


def test_a_draw_is_a_function_of_seed_and_number(folder):
    augmentation = Augmentation(amplitude=1.0, sigma=3.0, flip_axes=(0,))
    dataset, same, other = (
        PairDataset(find_pairs([folder]), augmentation=augmentation, seed=seed)
        for seed in (0, 0, 1)
    )
    later = same.batch(range(8, 11))  # without the draws before
    dataset.batch(range(8))
    batch = dataset.batch(range(8, 11))
    assert batch.names == later.names
    assert torch.equal(batch.moving, later.moving) and torch.equal(batch.fixed, later.fixed)
    assert not torch.equal(batch.moving, other.batch(range(8, 11)).moving)


def test_the_voxels_proportions_are_kept(folder):
    paths = [save(folder / f"{k}.nii", picture((6, 5), k), (3.0, 1.5)) for k in range(2)]
    assert PairDataset(find_pairs(paths)).spacing == (2.0, 1.0)


def refusals(folder):
    flat = save(folder / "flat.nii", np.full((12, 10), 7, np.float32))
    small = save(folder / "small.nii", picture((6, 5)))
    thin = save(folder / "thin.nii", picture((12, 10)), (1.0, 2.0))
    volume = save(folder / "volume.nii", picture((12, 10, 3)))
    a, b = folder / "a.nii.gz", folder / "b.nii.gz"
    (folder / "empty").mkdir()
    return {
        "nothing": ([], (), "at least two images to make a pair, got none"),
        "one": ([a], (), "at least two images to make a pair"),
        "missing": ([folder / "x.nii", a], (), "x.nii does not exist"),
        "empty folder": ([folder / "empty"], (), "holds no NIfTI or PNG file"),
        "twice": ([a, a], (), "must be different files"),
        "slices": ([a, b], (1,), "slices are for volumes"),
        "counts": ([a, volume], (), "has 1 slices and .*volume.nii has 3"),
        "constant": ([a, flat], (), "flat.nii is constant"),
        "sizes": ([a, small], (), "one size and voxels of one shape"),
        "proportions": ([a, thin], (), "one size and voxels of one shape"),
        "manifest and image": ([folder / "pairs.csv", a], (), "one manifest or images"),
        "text": ([folder / "notes.txt", a], (), "the name of an image must end in"),
    }


REFUSED = (
    "nothing,one,missing,empty folder,twice,slices,counts,constant,sizes,proportions,"
    "manifest and image,text"
)


@pytest.mark.parametrize("name", REFUSED.split(","))
def test_images_are_refused_in_words(folder, name):
    (folder / "notes.txt").write_text("no image")
    images, slices, message = refusals(folder)[name]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        PairDataset(find_pairs(images, slices))


@pytest.mark.parametrize("index", [-1, 4])
def test_a_slice_that_is_not_there(volumes, index):
    with pytest.raises(ValueError, match=rf"slices must be within 0\.\.3 of .*, got {index}"):
        find_pairs(volumes, [index])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the columns must be moving, fixed, got none"),
        ("moving,target\na,b\n", "the columns must be moving, fixed, got moving, target"),
        ("moving,fixed\n", "lists no pair"),
        ("moving,fixed\na.nii\n", "line 2: moving and fixed must each be a file"),
        ("moving,fixed\na.nii, \n", "line 2: moving and fixed must each be a file"),
        ("moving,fixed\na.nii,b.nii\na.nii,b.nii\n", "line 3: this pair is there twice"),
    ],
)
def test_a_manifest_is_refused_in_words(tmp_path, text, message):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_manifest(tmp_path / "pairs.csv")


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="no pairs to train on"):
        PairDataset([])
