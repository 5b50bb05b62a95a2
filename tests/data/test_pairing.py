"""Pairs by their number alone: no list of all pairs is made, images are read and held once."""

import time
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from diffreg.data.manifest import read_manifest
from diffreg.data.pairing import Crossed, Listed, Member, Pair, Pairs
from diffreg.data.pairs import PairDataset, find_pairs
from diffreg.data.store import MISSING, Held


def members(count, **more):
    return tuple(Member(Path(f"{k}.png"), **more) for k in range(count))


def pictures(folder, count, shape=(6, 7)):
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for k in range(count):
        values = random.integers(0, 255, shape).astype(np.uint8)
        Pillow.fromarray(values).save(folder / f"{k:04}.png")
    return folder


def test_pairs_come_in_the_order_of_permutations():
    pairs = Pairs([Crossed(members(4)), Listed(Pair(Path("a"), Path("b")))])
    expected = [(f"{a}.png", f"{b}.png") for a, b in permutations(range(4), 2)] + [("a", "b")]
    assert [(pair.moving.name, pair.fixed.name) for pair in pairs] == expected
    assert [pairs[k] for k in range(len(pairs))] == list(pairs) == pairs[:]
    assert pairs[-1].name == "a to b" and pairs[3:5] == list(pairs)[3:5]
    with pytest.raises(IndexError):
        pairs[13]


def test_slices_are_the_fastest_index():
    pairs = Pairs([Crossed(members(2), "p", slices=(4, 7))])
    found = [(p.moving.name, p.moving_slice, p.fixed_slice, p.group) for p in pairs]
    assert found == [(f"{k}.png", at, at, "p") for k in (0, 1) for at in (4, 7)]


def test_a_cover_shows_each_image_on_both_sides_with_its_label():
    label = Path("label.png")
    some = [one._replace(label=label if k in (1, 4) else None) for k, one in enumerate(members(6))]
    cover = list(Pairs([Crossed(tuple(some))]).cover())
    assert len(cover) == 6
    for side in ("moving", "fixed"):
        assert sorted(getattr(p, side).name for p in cover) == [f"{k}.png" for k in range(6)]
    assert any(pair.moving_label for pair in cover)


def test_a_thousand_images_are_paired_without_a_list_of_all_pairs(tmp_path):
    folder = pictures(tmp_path / "images", 1000)
    begin = time.process_time()
    dataset = PairDataset(find_pairs([folder]))
    drawn = dataset.batch(range(8))
    assert len(dataset) == 999_000 and drawn.moving.shape == (8, 1, 6, 7)
    assert len(dataset.names) == 1001
    assert len(dataset.prepared.store) < 5 * 1000
    # 4 s where a pair is made ready for each image; all 999,000 would take an hour.
    assert time.process_time() - begin < 20


def test_an_image_is_held_once(tmp_path):
    dataset = PairDataset(find_pairs([pictures(tmp_path / "images", 5)]))
    samples = [dataset.sample(k) for k in range(len(dataset))]
    held = {id(image) for sample in samples for image in (sample.moving, sample.fixed)}
    assert len(held) == 5


@pytest.mark.filterwarnings("ignore:.*may be an image:diffreg.system.files.FileWarning")
def test_an_image_may_be_its_own_label_map(tmp_path):
    pictures(tmp_path, 3)
    rows = ["image,label", *(f"000{k}.png,000{k}.png" for k in range(3))]
    (tmp_path / "images.csv").write_text("\n".join(rows))
    dataset = PairDataset(find_pairs([tmp_path / "images.csv"]))
    samples = [dataset.sample(k) for k in range(6)]
    assert len({id(label) for s in samples for label in (s.moving_label, s.fixed_label)}) == 3
    assert not samples[0].moving_label.is_floating_point()


def test_what_does_not_fit_into_memory_is_made_again(tmp_path):
    pairs = find_pairs([pictures(tmp_path / "images", 4)])
    dataset, small = PairDataset(pairs), PairDataset(pairs)
    small.prepared.store = Held(300)
    for k in (3, 0, 11, 3):
        for one, other in zip(dataset.sample(k)[:2], small.sample(k)[:2], strict=True):
            assert torch.equal(one, other)
    assert small.prepared.store.get(("mask", ())) is MISSING


IMAGES_TWICE = {
    "in a group": ("a,x\nb,x\na,x", "line 4: this image is there twice, first in {}, line 2"),
    "in two groups": (
        "a,x\nb,x\na,y\nb,y",
        "line 5: this image and that of {}, line 4 are pairs twice, first in the group of {}, line",
    ),
}


@pytest.mark.parametrize("name", IMAGES_TWICE)
def test_images_that_make_a_pair_twice_are_refused(tmp_path, name):
    pictures(tmp_path, 2)
    text, message = IMAGES_TWICE[name]
    text = text.replace("a,", "0000.png,").replace("b,", "0001.png,")
    manifest = tmp_path / "images.csv"
    manifest.write_text(f"image,group\n{text}")
    with pytest.raises(ValueError) as caught:
        read_manifest(manifest)
    assert message.replace("{}", str(manifest)) in str(caught.value)


def test_an_image_may_be_in_two_groups_and_at_several_slices(tmp_path):
    pictures(tmp_path, 3)
    rows = ["image,group,slice", "0000.png,x,", "0001.png,x,", "0001.png,y,", "0002.png,y,"]
    rows += [f"000{k}.png,z,{at}" for at in (1, 2) for k in (0, 2)]
    (tmp_path / "images.csv").write_text("\n".join(rows))
    manifest = read_manifest(tmp_path / "images.csv")
    assert [len(pairs) for pairs in manifest.groups.values()] == [2, 2, 4]
    (tmp_path / "images.csv").write_text("\n".join([*rows, "0000.png,w,2", "0001.png,w,2"]))
    with pytest.raises(ValueError, match="are pairs twice"):  # at a slice of the whole
        read_manifest(tmp_path / "images.csv")
