"""Pairs of images kept in a folder: the same bits, whole files, made anew where one changed."""

import os
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from runs import SHAPE, config_of, head
from test_trainer import save_images, weights

from diffreg.data.augmentation import Augmentation
from diffreg.data.images import read_part
from diffreg.data.pairs import PairDataset, find_pairs
from diffreg.data.store import MISSING, Kept
from diffreg.system import atomic
from diffreg.training import Trainer
from diffreg.training.config import Config, load_config
from diffreg.training.read_ahead import ReadAhead

AUGMENTATION = Augmentation(amplitude=0.5, sigma=4.0, flip_axes=(0, 1), crop=(16, 12))


@pytest.fixture
def images(tmp_path):
    """Three images and a manifest of two with labels, masks and points, on grids of their own."""
    folder = save_images(tmp_path / "images")
    labels = (head(10.0) > 100).astype(np.uint8)
    for name, shift in (("d", 0.4), ("e", -0.7)):
        affine = np.diag([2.0, 2.0, 4.0, 1.0])
        affine[0, 3] = shift
        nib.save(nib.Nifti1Image(head(11.0 + shift), affine), folder / f"{name}.nii")
        nib.save(nib.Nifti1Image(labels, affine), folder / f"{name}_seg.nii")
        (folder / f"{name}.csv").write_text("i,j\n3,4\n5,6.5\n")
    mask = np.ones(SHAPE, np.uint8)
    mask[:4] = 0
    nib.save(nib.Nifti1Image(mask, np.diag([2.0, 2.0, 4.0, 1.0])), folder / "a_mask.nii")
    (folder / "images.csv").write_text(
        "image,label,mask,points\nd.nii,d_seg.nii,,d.csv\ne.nii,e_seg.nii,,e.csv\n"
        "a.nii,,a_mask.nii,\n"
    )
    return folder


def drawn(dataset, steps=3, size=4):
    batches = [dataset.batch(range(k * size, (k + 1) * size)) for k in range(steps)]
    dataset.close()
    tensors = [t for b in batches for t in (b.moving, b.fixed, b.mask, *b.known) if t is not None]
    return [tensor.numpy().tobytes() for tensor in tensors]


@pytest.mark.parametrize("amplitude", [0.0, 0.5])
@pytest.mark.parametrize("source", [".", "images.csv"])
def test_draws_are_the_same_bits_with_a_cache_and_any_number_of_workers(
    source, amplitude, images, tmp_path
):
    pairs = find_pairs([images / source])
    terms = ("labels", "landmarks") if source == "images.csv" else ()
    given = pairs, None, replace(AUGMENTATION, amplitude=amplitude), 3
    expected = drawn(PairDataset(*given, terms=terms))
    for _ in ("made", "found again"):
        assert drawn(PairDataset(*given, terms=terms, cache=tmp_path / "cache")) == expected
    for workers in (0, 1, 2):
        ahead = {"size": 4, "workers": workers, "cache": tmp_path / "cache"}
        assert drawn(ReadAhead(*given, terms=terms, **ahead)) == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_of_pairs_in_a_cache_the_windows_alone_are_read(workers, images, tmp_path):
    """And of a worker's no view, which would bring the pair with it."""
    window = Augmentation(flip_axes=(0,), crop=(10, 7))
    terms = {"terms": ("labels", "landmarks")}
    given = find_pairs([images / "images.csv"]), None, window, 3
    dataset = ReadAhead(*given, **terms, size=2, workers=workers, cache=tmp_path / "cache")
    for step in range(3):
        samples = dataset.samples([2 * step, 2 * step + 1])
        for sample in samples:
            there = [part for part in sample[:5] if part is not None]
            assert {part.shape for part in there} == {(1, 1, 10, 7)}
            assert all(part.untyped_storage().nbytes() == part.nbytes for part in there)
            assert sample.size == SHAPE and sample._replace(whole=list(SHAPE)).size == SHAPE
    dataset.close()


def test_ranks_make_ready_what_the_others_have_not(images, tmp_path, monkeypatch):
    """Each begins with its own part of the pairs."""
    opened, read = [], read_part
    monkeypatch.setattr(
        "diffreg.data.prepared_pairs.read_part", lambda path, *_: opened.append(path) or read(path)
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, first in (("0", "b.nii"), ("1", "d.nii")):
        monkeypatch.setenv("RANK", rank)
        PairDataset(find_pairs([images]), cache=tmp_path / rank)
        assert opened[0].name == first
        opened.clear()


def test_what_is_kept_is_not_read_again(images, tmp_path, monkeypatch):
    pairs = find_pairs([images / "images.csv"])
    expected = drawn(PairDataset(pairs, cache=tmp_path / "cache"))

    def never(*_):
        raise AssertionError("an image was opened")

    monkeypatch.setattr("diffreg.data.prepared_pairs.read_part", never)
    assert drawn(PairDataset(pairs, cache=tmp_path / "cache")) == expected


@pytest.mark.parametrize("changed", ["a.nii", "a_mask.nii", "e_seg.nii"])
def test_what_changed_is_made_anew(changed, images, tmp_path):
    pairs, cache = find_pairs([images / "images.csv"]), tmp_path / "cache"
    before = drawn(PairDataset(pairs, terms=["labels"], cache=cache))
    image = nib.load(images / changed)
    values = np.asarray(image.dataobj)[::-1].copy()
    nib.save(nib.Nifti1Image(values, image.affine), images / changed)
    os.utime(images / changed, ns=(1, 1))  # of the same size: the time tells
    after = drawn(PairDataset(pairs, terms=["labels"], cache=cache))
    assert after != before and after == drawn(PairDataset(pairs, terms=["labels"]))


def test_another_normalisation_is_kept_beside(images, tmp_path):
    pairs, cache = find_pairs([images / "images.csv"]), tmp_path / "cache"
    sections = [config_of(images, tmp_path).normalization, None]
    sections[0] = type(sections[0])(5.0, 95.0)
    found = [drawn(PairDataset(pairs, how, cache=cache)) for how in (*sections, sections[0])]
    assert found[0] == found[2] == drawn(PairDataset(pairs, sections[0])) != found[1]


def test_writing_that_is_interrupted_leaves_no_half_file(tmp_path, monkeypatch):
    kept = Kept(tmp_path / "cache")
    value = torch.arange(12.0).reshape(3, 4)

    def interrupted(file, array, **_):
        file.write(array.tobytes()[:20])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "write_array", interrupted)
        with pytest.raises(KeyboardInterrupt):
            kept.put(("a",), value)
    assert kept.get(("a",)) is MISSING and not list((tmp_path / "cache").iterdir())
    assert torch.equal(kept.put(("a",), value), value)
    (file,) = (tmp_path / "cache").iterdir()
    for content in (b"", file.read_bytes()[:-8]):  # of a computer that went down
        file.write_bytes(content)
        assert kept.get(("a",)) is MISSING
    dead = tmp_path / "cache" / f".999999999-{atomic._place()}-{file.name}"
    dead.touch()  # of a process that was killed
    Kept(tmp_path / "cache")
    assert not dead.exists()


def test_none_and_nothing_are_two_things(tmp_path):
    kept = Kept(tmp_path / "cache")
    assert kept.put(("a",), None) is None and kept.get(("b",)) is MISSING
    assert kept.put(("c",), torch.zeros(1, 0, 2)) is not None


def config_with(images, out, **data):
    sections = config_of(images, out, steps=4, checkpoint_every=2).to_dict()
    sections["data"] |= data
    sections["optimizer"] = {"learning_rate": 1e-2}
    return sections


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_from_the_cache_goes_on_to_the_same_bits(workers, images, tmp_path):
    ends = []
    for name, stops, data in (
        ("held", [4], {}),
        ("kept", [2, 4], {"cache": str(tmp_path / "cache"), "workers": workers}),
    ):
        for stop in stops:
            sections = config_with(images, tmp_path / name, **data)
            sections["training"] |= {"steps": stop, "resume": True}
            Trainer(Config.from_dict(sections), progress=False).train()
        ends.append(weights(tmp_path / name / "last.pt"))
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_pair_that_cannot_be_made_ready_stops_the_run_in_words(workers, images, tmp_path):
    """Of every ordered pair of five images five are seen at first; the others when drawn."""
    data = {"cache": str(tmp_path / "cache"), "workers": workers}
    config = Config.from_dict(config_with(images, tmp_path / "run", **data))
    run = Trainer(config, progress=False)
    for path in images.glob("?.nii"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"\.nii does not exist"):
        run.train()


def test_the_cache_is_a_path_of_the_settings_file(tmp_path):
    (tmp_path / "a.toml").write_text('[data]\nimages = "images"\ncache = "kept"\n')
    assert load_config(tmp_path / "a.toml").data.cache == str(tmp_path / "kept")
    (tmp_path / "a.toml").write_text('[data]\nimages = "images"\ncache = ""\n')
    assert load_config(tmp_path / "a.toml").data.cache == ""
