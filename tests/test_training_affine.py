"""The affine start of training: that of `register`, found once for a pair, of all that it has."""

import re
import shutil
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest
import torch
from runs import SHAPE, config_of, head, with_settings
from test_trainer import save_images

from diffreg.affine.start import AffineStarts, affine_start
from diffreg.data.images import read_image
from diffreg.data.known import placed
from diffreg.data.pairing import Pair
from diffreg.data.pairs import PairDataset, find_pairs
from diffreg.data.prepare import PairImages
from diffreg.data.transforms import write_displacement
from diffreg.training import Trainer
from diffreg.training.config import Config

AFFINE = np.diag([2.0, 2.0, 4.0, 1.0])


@pytest.fixture
def images(tmp_path):
    return save_images(tmp_path / "images")


def test_it_is_the_start_of_register(images):
    pairs = find_pairs([images])
    start = AffineStarts("translation", "ncc")
    dataset = PairDataset(pairs, start=start)
    for index, pair in enumerate(pairs):
        both = PairImages(read_image(pair.moving), read_image(pair.fixed))
        matrix = affine_start(both, "translation", "ncc").matrix
        expected = both.prepared(None, matrix)
        sample = dataset.sample(index)
        assert torch.equal(sample.moving, expected.moving_values)
        assert torch.equal(sample.fixed, expected.fixed_values)
        assert torch.equal(sample.mask, expected.weights)
    both = dataset.sample(0), PairDataset(pairs).sample(0)
    apart = [(sample.moving - sample.fixed).abs().mean() for sample in both]
    assert apart[0] < 0.7 * apart[1]


def test_it_is_found_once_and_kept(images, tmp_path, monkeypatch):
    counted = []

    def start(pair):
        counted.append(pair)
        return affine_start(pair, "translation", "ncc").matrix

    monkeypatch.setattr(AffineStarts, "__call__", lambda self, pair: start(pair))
    pairs, how = find_pairs([images]), {"start": AffineStarts("translation")}
    held = PairDataset(pairs, **how)
    for _ in range(2):
        whole = [held.sample(index).moving for index in range(6)]
    assert len(counted) == 6
    for _ in range(2):
        kept = PairDataset(pairs, cache=tmp_path / "cache", **how)
        assert all(torch.equal(kept.sample(k).moving, whole[k]) for k in range(6))
    assert len(counted) == 12
    PairDataset(pairs, cache=tmp_path / "cache", start=AffineStarts("rigid"))
    assert len(counted) == 15  # another kind is another start


def test_it_is_kept_beside_the_data(images, tmp_path, monkeypatch):
    """Without a cache, too; where nothing can be written it is found by each run."""
    counted = []
    found = AffineStarts.__call__

    def start(self, pair):
        counted.append(pair)
        return found(self, pair)

    monkeypatch.setattr(AffineStarts, "__call__", start)
    config = config_of(images, tmp_path / "run")
    config = with_settings(config, data={"affine": "translation"})
    draws = [Trainer(config, progress=False).dataset.batch([0]).moving for _ in range(2)]
    once = len(counted)
    assert 3 <= once <= 4 and torch.equal(*draws)  # those that show all images, and the one drawn
    assert sorted(file.name for file in images.iterdir())[0] == ".diffreg"
    for name, error in (("save", OSError(28, "No space left")), ("load", PermissionError())):
        with monkeypatch.context() as broken:
            broken.setattr(np, name, Mock(side_effect=error))
            dataset = Trainer(config, progress=False).dataset
            assert torch.equal(dataset.batch([0]).moving, draws[0])
        assert len(counted) == once * (1 if name == "save" else 2)  # what is there is read
        assert torch.equal(dataset.sample(0).moving, dataset.sample(0).moving)
    shutil.rmtree(images / ".diffreg")
    (images / ".diffreg").write_text("in the way")
    assert torch.equal(Trainer(config, progress=False).dataset.batch([0]).moving, draws[0])


class Moved:
    """Two voxels along the first axis, 4 mm."""

    def __call__(self, pair):
        world = np.eye(4)
        world[0, 3] = 4.0
        return world

    def __repr__(self):
        return "Moved()"


def test_labels_points_and_known_displacements_go_with_the_moving_image(tmp_path):
    labels = (head(11.0) > 100).astype(np.uint8)
    for name, array in {"m": head(11.0), "f": head(9.0), "l": labels}.items():
        nib.save(nib.Nifti1Image(array, AFFINE), tmp_path / f"{name}.nii")
    (tmp_path / "p.csv").write_text("i,j\n3,4\n5,6.5\n")
    true = torch.zeros(1, 2, *SHAPE)
    true[:, 0] = 2.25
    write_displacement(tmp_path / "u.nii", true, read_image(tmp_path / "f.nii"))
    files = {name: tmp_path / f"{name[0]}.nii" for name in ("moving", "fixed")}
    files |= {f"{side}_label": tmp_path / "l.nii" for side in ("moving", "fixed")}
    files |= {f"{side}_points": tmp_path / "p.csv" for side in ("moving", "fixed")}
    pair = Pair(**files, true_displacement=tmp_path / "u.nii")
    terms = ("labels", "landmarks", "displacement")
    dataset = PairDataset([pair], terms=terms, start=Moved())
    sample, known = dataset.whole(0)
    assert torch.equal(sample.moving_label[:, :, :-2], sample.fixed_label[:, :, 2:])
    assert known.fixed_points.tolist() == [[[3, 4], [5, 6.5]]]
    assert known.moving_points.tolist() == [[[1, 4], [3, 6.5]]]
    assert torch.allclose(known.displacement[:, 0], torch.tensor(0.25), atol=1e-6)
    assert torch.allclose(known.displacement[:, 1], torch.tensor(0.0), atol=1e-6)
    assert (sample.moving - sample.fixed).abs().mean() < 0.05


def test_a_displacement_in_space_is_placed_by_hand():
    world = np.eye(4)
    world[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]  # a quarter turn about the origin
    found = placed(torch.zeros(1, 3, 2, 2, 2), np.diag([2.0, 2.0, 2.0, 1.0]), world)
    # T^-1 takes (x, y) to (y, -x): of voxel (1, 0) it is voxel (0, -1).
    assert found[0, :, 1, 0, 1].tolist() == [-1, -1, 0]


def test_a_run_takes_it_and_goes_on_with_the_same_only(images, tmp_path):
    sections = config_of(images, tmp_path / "run", steps=2).to_dict()
    sections["data"] |= {"affine": "auto"}
    run = Trainer(Config.from_dict(sections), progress=False)
    # Slices whose headers agree are left where they are, as `register` leaves them.
    assert torch.equal(
        run.dataset.sample(0).moving, PairDataset(find_pairs([images])).sample(0).moving
    )
    assert run.dataset.prepared.start == AffineStarts("auto", "ncc")
    run.train()
    sections["data"]["affine"] = "rigid"
    sections["training"]["resume"] = True
    with pytest.raises(ValueError, match=r"a run with data\.affine = 'auto', not 'rigid'"):
        Trainer(Config.from_dict(sections), progress=False)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            {"affine": "both"},
            "affine must be one of auto, none, translation, rigid, similarity",
        ),
        (
            {"affine": "rigid", "name": "a:B"},
            "affine is for images, name for a dataset",
        ),
    ],
)
def test_what_is_no_start_is_refused(data, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        Config.from_dict({"data": data})


def test_measures_that_are_joined_are_those_of_one_contrast(images):
    """A network's are: "ncc+lncc"."""
    pair = PairImages(*(read_image(images / f"{name}.nii") for name in "ab"))
    for joined, measure in {"ncc+lncc": "ncc", "lncc": "lncc", "ncc+mi": "mi"}.items():
        assert affine_start(pair, "translation", joined).found.similarity == measure
