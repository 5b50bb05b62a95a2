"""Pairs from folders and manifests, and draws that depend on the seed and their number alone."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from diffreg.data._kinds import file_of
from diffreg.data.augmentation import Augmentation
from diffreg.data.manifest import Pair
from diffreg.data.normalization import Normalization
from diffreg.data.pairing import Crossed, Member, Pairs
from diffreg.data.pairs import PairDataset, find_pairs, split_by_group


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
    return [pair.name for pair in pairs]


def test_a_folder_gives_every_ordered_pair(folder):
    pairs = find_pairs([folder])
    assert len(pairs) == len(set(pairs)) == 6
    assert pairs[0].name == "a.nii.gz to b.nii.gz"


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
    dataset = PairDataset([Pair(moving, fixed)], Normalization(0, 100))
    moved, still = dataset.sample(0)[:2]
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
    assert torch.equal(batch.moving, later.moving) and torch.equal(batch.fixed, later.fixed)
    assert not torch.equal(batch.moving, other.batch(range(8, 11)).moving)
    alone = [dataset.batch([number]).moving for number in range(8, 11)]
    assert torch.equal(torch.cat(alone), batch.moving)


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
        "empty folder": ([folder / "empty"], (), "holds no image"),
        "twice": ([a, a], (), "must be different files"),
        "slices": ([a, b], (1,), "slices are for volumes"),
        "counts": ([a, volume], (), "has 1 slices and .*volume.nii has 3: slices"),
        "constant": ([a, flat], (), "flat.nii is 7 everywhere"),
        "sizes": ([a, small], (), r"one size \(or a crop\) and voxels of one shape"),
        "proportions": ([a, thin], (), r"one size \(or a crop\) and voxels of one shape"),
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
    with pytest.raises(ValueError, match=rf"has no slice {index}, only 0\.\.3"):
        find_pairs(volumes, [index])


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="no pairs to train on"):
        PairDataset([])


def labelled(folder):
    """Three images of two patients, with masks and labels, as a manifest of images."""
    mask = np.zeros((12, 10), np.uint8)
    mask[3:9, 2:8] = 1
    save(folder / "mask.nii", mask)
    save(folder / "label.nii", 2 * mask)
    rows = ["image,label,mask,group"]
    rows += [f"{name}.nii.gz,label.nii,mask.nii,{g}" for name, g in (("a", 1), ("b", 1))]
    save(folder / "d.nii.gz", picture((12, 10), 9))
    rows += [f"{name}.nii.gz,,,2" for name in ("c", "d")]
    (folder / "images.csv").write_text("\n".join(rows))
    return find_pairs([folder / "images.csv"])


def test_pairs_stay_within_their_group_and_bring_masks_and_labels(folder):
    pairs = labelled(folder)
    assert {(p.moving.name[0], p.fixed.name[0]) for p in pairs} == {
        *map(tuple, ["ab", "ba", "cd", "dc"])
    }
    dataset = PairDataset(pairs)
    first, last = dataset.sample(0), dataset.sample(-1)
    assert int(first.mask.sum()) == 36 and first.moving_label.unique().tolist() == [0, 2]
    assert last.mask is None and last.fixed_label is None
    numbers = sorted(range(4), key=lambda k: dataset.position(k)[1])
    mask = dataset.batch(numbers).mask
    assert mask.sum((1, 2, 3)).tolist() == [36, 36, 120, 120]  # no mask: all of it counts


def test_a_mask_goes_with_its_image(folder):
    (folder / "line.csv").write_text("moving,fixed,fixed_mask\na.nii.gz,fixed.nii,mask.nii\n")
    mask = np.zeros((12, 10), np.uint8)
    mask[2:8, 1:6] = 1
    image = mask.copy()
    image[4, 3] = 0  # a mask over one value is refused
    save(folder / "fixed.nii", image)
    save(folder / "mask.nii", mask)
    augmentation = Augmentation(1.0, 4.0, flip_axes=(0, 1), crop=(8, 7))
    dataset = PairDataset(find_pairs([folder / "line.csv"]), Normalization(0, 100), augmentation)
    for number in range(6):
        _, fixed, mask, _ = dataset.batch([number])
        assert fixed.shape == mask.shape == (1, 1, 8, 7)
        assert ((fixed > 0.5) == (mask > 0)).float().mean() > 0.9


def test_crops_are_windows_of_the_image(folder):
    dataset = PairDataset(find_pairs([folder]), augmentation=Augmentation(crop=(5, 6)))
    places = set()
    for number in range(12):
        whole = dataset.sample(dataset.position(number)[1])
        moving, fixed, *_ = dataset.batch([number])
        at = []
        for image, window in ((whole.fixed, fixed), (whole.moving, moving)):
            windows = image.unfold(2, 5, 1).unfold(3, 6, 1)
            at.append((windows == window).all(-1).all(-1).nonzero().tolist())
        assert len(at[0]) == 1 and at[0] == at[1]
        places.add(tuple(at[0][0]))
    assert len(places) > 4


def test_with_a_crop_sizes_may_differ_but_not_be_smaller(folder):
    save(folder / "large.nii", picture((14, 15)))
    crop = Augmentation(crop=(12, 10))
    batch = PairDataset(find_pairs([folder]), augmentation=crop).batch(range(6))
    assert batch.moving.shape == (6, 1, 12, 10)
    with pytest.raises(
        ValueError, match=r"\w\.nii\.gz: the crop \[13, 10\] is larger than \[12, 10\]"
    ):
        PairDataset(find_pairs([folder]), augmentation=Augmentation(crop=(13, 10)))


def grouped(*names):
    return [Pair("m", "f", group=name) for name in names]


def test_the_split_keeps_groups_together():
    pairs = grouped("a", "b", "b", "c", "c", "d")
    train, held_out = split_by_group(pairs, share=0.5, seed=1)
    assert len(train) + len(held_out) == 6
    sides = [{pair.group for pair in part} for part in (train, held_out)]
    assert not sides[0] & sides[1] and len(sides[1]) == 2
    assert split_by_group(pairs, share=0.5, seed=1) == (train, held_out)
    drawn = {tuple(p.group for p in split_by_group(pairs, share=0.5, seed=s)[1]) for s in range(9)}
    assert len(drawn) > 2
    whole, nothing = split_by_group(pairs)
    assert list(whole) == pairs and not nothing


def test_of_images_without_groups_each_file_is_one(tmp_path):
    for name in "abcdef":
        save(tmp_path / f"{name}.nii", picture((6, 7)))
    for listed in ([tmp_path], [tmp_path / f"{name}.nii" for name in "abcdef"]):
        pairs = find_pairs(listed)
        sides = split_by_group(pairs, share=0.3, seed=1)
        files = [{path for p in side for path in (p.moving, p.fixed)} for side in sides]
        assert [len(side) for side in sides] == [4 * 3, 2 * 1]
        assert [len(side) for side in files] == [4, 2] and not files[0] & files[1]
        assert split_by_group(pairs, share=0.3, seed=1) == sides
    drawn = {split_by_group(pairs, share=0.3, seed=s)[1][0].name for s in range(9)}
    assert len(drawn) > 2
    assert len(split_by_group(pairs, share=0.01)[1]) == 2  # one image makes no pair


def test_a_file_at_several_slices_stays_on_one_side():
    blocks = [Crossed(tuple(Member(Path(n)) for n in "abcd"), index=k) for k in (2, 5)]
    train, held_out = split_by_group(Pairs(blocks), share=0.5)
    assert {p.moving for p in train}.isdisjoint(p.moving for p in held_out)
    assert {p.moving_slice for p in train} == {p.moving_slice for p in held_out} == {2, 5}


def test_arrays_of_one_file_stay_on_one_side():
    members = [Member(Path(f"{file}.npz:{array}")) for file in "abcd" for array in "xy"]
    sides = split_by_group(Pairs([Crossed(tuple(members))]), share=0.5)
    files = [{file_of(p.moving) for p in pairs} for pairs in sides]
    assert files[0].isdisjoint(files[1]) and [len(side) for side in files] == [2, 2]


def test_three_images_cannot_be_split():
    pairs = Pairs([Crossed(tuple(Member(Path(name)) for name in "abc"))])
    with pytest.raises(ValueError, match=r"data\.validation_share keeps 2 of 3 .* to train on"):
        split_by_group(pairs, share=0.5)
    with pytest.raises(ValueError, match=r"data\.validation_share splits files"):
        split_by_group(pairs, groups=["a"])


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        (("", ""), {"share": 0.5}, r"data\.validation_share: the pairs have no groups .* column"),
        (("a", "b"), {"groups": ["x"]}, "no group 'x'; the groups are a, b"),
        (("a", "b"), {"groups": ["a", "b"]}, "leaves none to train on"),
        (("a",), {"share": 0.1}, "leaves none to train on"),
    ],
)
def test_a_split_is_refused_in_words(names, options, message):
    with pytest.raises(ValueError, match=message):
        split_by_group(grouped(*names), **options)


def test_images_that_are_not_there_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist"):
        find_pairs([tmp_path / "nowhere"])
