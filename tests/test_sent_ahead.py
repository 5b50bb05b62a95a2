"""What is sent to a GPU for a step, seen on the CPU: the draws of the dataset, to the bit."""

import nibabel as nib
import numpy as np
import pytest
import torch
from runs import SHAPE, config_of, known_of_some, trainer
from test_trainer import save_images

from diffreg.data import drawing
from diffreg.data.augmentation import Augmentation
from diffreg.data.drawing import drawn
from diffreg.data.images import read_image
from diffreg.data.known import TERMS
from diffreg.data.pairs import PairDataset, find_pairs
from diffreg.data.samples import Batch
from diffreg.data.transforms import write_displacement
from diffreg.data.undrawn import Draws, Undrawn
from diffreg.training.graphs import _key
from diffreg.training.read_ahead import ReadAhead
from diffreg.training.sent_ahead import SentAhead


@pytest.fixture
def images(tmp_path):
    return save_images(tmp_path / "images")


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(drawing, "_sliced", drawing._gathered)


def test_what_is_sent_ahead_is_drawn_once_a_block_and_held_while_it_lives(images, tmp_path):
    run = trainer(config_of(images, tmp_path / "run"))
    ahead = SentAhead(run.dataset, 4, run.ranks.share, run.ranks.device)
    blocks = []
    block = ahead._block
    ahead._block = lambda first, shape: blocks.append(first) or block(first, shape)
    for step in range(60):
        batch = drawn(ahead.next(step))
        expected = run.dataset.batch(range(4 * step, 4 * step + 4))
        assert torch.equal(batch.moving, expected.moving)
        assert torch.equal(batch.fixed, expected.fixed)
    assert blocks == [0, 25, 50, 75]
    ahead._sent = torch.clone
    image = torch.rand(1, 1, 5, 5)
    held = len(ahead._there)
    assert ahead._hold([image]) and len(ahead._there) == held + 1
    del image
    assert len(ahead._there) == held


AUGMENTATIONS = [
    Augmentation(),
    Augmentation(flip_axes=(0, 1), crop=(10, 8)),
    Augmentation(amplitude=2.0, sigma=3.0, flip_axes=(1,), crop=(9, 12)),
]
MASKS = {"all": ["m.nii"] * 3, "some": ["m.nii", "", ""], "none": [""] * 3}


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=str)
@pytest.mark.parametrize("kept", ["memory", "no room", "folder", "workers"])
def test_what_is_sent_ahead_are_the_draws_of_the_dataset(
    masks, augmentation, kept, images, tmp_path
):
    """To the bit, masks too, wherever the images are."""
    mask = np.zeros(nib.load(images / "a.nii").shape, np.uint8)
    mask[4:13, 3:] = 1
    nib.save(nib.Nifti1Image(mask, nib.load(images / "a.nii").affine), images / "m.nii")
    rows = [f"{name}.nii,{there}" for name, there in zip("abc", MASKS[masks], strict=True)]
    (images / "images.csv").write_text("\n".join(["image,mask", *rows]))
    given = find_pairs([images / "images.csv"]), None, augmentation, 3
    expected = PairDataset(*given)
    cache = {"cache": tmp_path / "cache"} if kept in ("folder", "workers") else {}
    if kept == "workers":
        dataset = ReadAhead(*given, size=4, workers=1, **cache)
    else:
        dataset = PairDataset(*given, **cache)
    ahead = SentAhead(dataset, 4, lambda numbers: numbers, torch.device("cpu"))
    ahead._room = 0.0 if kept != "memory" else ahead._room
    undrawn = []
    for step in range(4):
        batch = ahead.next(step)
        undrawn.append(isinstance(batch, Undrawn))
        found = drawn(batch) if undrawn[-1] else batch
        each = expected.batch(range(4 * step, 4 * step + 4))
        for one, other in zip(found[:3], each[:3], strict=True):
            assert (one is other is None) or torch.equal(one, other)
    assert all(undrawn)
    assert bool(ahead._there) == (kept == "memory")
    if kept in ("folder", "workers") and augmentation.crop and not augmentation.amplitude:
        assert batch.images.shape[2:] == augmentation.crop and batch.shape == expected.size
    dataset.close()


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=str)
def test_what_is_known_is_sent_ahead_in_one_form(augmentation, tmp_path):
    """Whichever pairs have it: one CUDA graph, and the draws of the dataset, to the bit."""
    manifest = known_of_some(tmp_path)
    truth = torch.rand(1, 2, *SHAPE, generator=torch.Generator().manual_seed(0))
    write_displacement(tmp_path / "u.nii", truth, read_image(tmp_path / "b.npz"))
    first, *rows = manifest.read_text().splitlines()
    lines = [f"{first},true_displacement", f"{rows[0]},u.nii", *(f"{row}," for row in rows[1:])]
    manifest.write_text("\n".join(lines))
    dataset = PairDataset(find_pairs([manifest]), None, augmentation, 3, terms=TERMS)
    ahead = SentAhead(dataset, 2, lambda numbers: numbers, torch.device("cpu"))
    forms = set()
    for step in range(6):
        pairs = ahead.next(step)
        forms.add(_key(pairs._replace(masks=None, masked=None)))
        found, expected = drawn(pairs), dataset.batch(range(2 * step, 2 * step + 2))
        each = (*found[:2], *found.known), (*expected[:2], *expected.known)
        for one, other in zip(*each, strict=True):
            assert torch.equal(one.nan_to_num(99.0), other.nan_to_num(99.0))
        assert (found.mask is None) == (expected.mask is None)
    assert len(forms) == 1


def test_images_of_several_sizes_are_drawn_to_their_window(images, tmp_path):
    """Of each size there would be a CUDA graph."""
    spacing = np.diag([2.0, 2.0, 4.0, 1.0])
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((30, 22)), spacing), images / "d.nii")
    dataset = PairDataset(find_pairs([images]), None, Augmentation(crop=(9, 8)), 0)
    assert dataset.size is None
    ahead = SentAhead(dataset, 1, lambda numbers: numbers, torch.device("cpu"))
    for step in range(6):
        batch = ahead.next(step)
        assert isinstance(batch, Batch) and batch.moving.shape == (1, 1, 9, 8)


def test_draws_are_those_of_their_steps(images, tmp_path):
    """Wherever a run begins, and begins anew."""
    run = trainer(config_of(images, tmp_path / "run"))
    ahead = SentAhead(run.dataset, 4, run.ranks.share, run.ranks.device)
    shape = run.dataset.sample(0).fixed.shape[2:]
    for step in (0, 30, 63, 64, 90, 7, 8, 200):
        numbers = range(4 * step, 4 * step + 4)
        randoms = [
            np.random.default_rng([run.dataset.seed, *run.dataset.position(k)]) for k in numbers
        ]
        random = run.dataset.augmentation.random(shape, randoms)
        expected = Draws.of(random, run.dataset.augmentation, shape)
        assert all(map(torch.equal, ahead._drawn(step, shape)[:3], expected))


def test_what_fails_while_draws_are_made_ahead_stops_the_step(images, tmp_path, monkeypatch):
    run = trainer(config_of(images, tmp_path / "run"))
    ahead = SentAhead(run.dataset, 4, run.ranks.share, run.ranks.device)
    position = run.dataset.position

    def failing(number):
        if number == 4 * 26:
            raise OSError("gone")
        return position(number)

    monkeypatch.setattr(run.dataset, "position", failing)
    with pytest.raises(OSError, match="gone"):
        for step in range(30):
            ahead.next(step)
    assert step == 13  # when they were to be sent
