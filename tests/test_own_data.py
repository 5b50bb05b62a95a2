"""Datasets of the user's own: the protocol, draws that are a function of a number, workers."""

import os
import random
import re
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import Pairs, config_of
from test_trainer import save_images, weights
from torch.utils.data import IterableDataset

from diffreg.data.known import Known
from diffreg.data.pairs import PairDataset, find_pairs
from diffreg.system.files import FileWarning
from diffreg.training import Trainer
from diffreg.training.config import Config
from diffreg.training.log import ValidationLog, read_log
from diffreg.training.own_pairs import OwnPairs
from diffreg.training.protocol import PROTOCOL, checked_sample
from diffreg.training.seeding import seeded

ROOT = Path(__file__).parents[1]
SHAPE = Pairs.shape


class Stream(IterableDataset):
    def __init__(self, length=5):
        self.length = length

    def __iter__(self):
        yield from (Pairs()[index] for index in range(self.length))


def config_with(out, workers=0, **training):
    sections = config_of("unused", out, **training).to_dict()
    sections |= {"data": {"workers": workers}, "augmentation": {}}
    return Config.from_dict(sections)


def trainer(config, dataset=None, validation=None, **parts):
    return Trainer(config, dataset, validation, progress=False, **parts)


def same(one, other):
    return all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("kind", [Pairs, Stream])
def test_a_draw_is_a_function_of_seed_and_number(kind):
    def drawn(start, workers=0, seed=0, size=3):
        pairs = OwnPairs(kind(), seed, size, workers=workers)
        found = [pairs.batch(range(k * size, (k + 1) * size)) for k in range(start, 4)]
        pairs.close()
        return torch.cat([batch.moving for batch in found])

    whole = drawn(0)
    torch.rand(1), np.random.rand(), random.random()  # what else is drawn does not matter
    for start, workers in ((2, 0), (0, 1), (2, 1)):
        assert torch.equal(drawn(start, workers), whole[3 * start :])
    assert len(torch.unique(whole.flatten(1).sum(1))) == 12  # each with noise of its own
    assert not torch.equal(drawn(0, seed=1), whole)
    if kind is Pairs:
        assert torch.equal(drawn(0, workers=2), whole)


def test_drawing_leaves_the_random_numbers_of_the_process_alone():
    def numbers():
        return torch.rand(1).item(), np.random.rand(), random.random()

    for generator in (torch.manual_seed, np.random.seed, random.seed):
        generator(3)
    expected = numbers()
    for generator in (torch.manual_seed, np.random.seed, random.seed):
        generator(3)
    OwnPairs(Pairs(), 0, 2).batch([0, 1])
    assert numbers() == expected
    with seeded(1), seeded(2):
        inner = numbers()
    with seeded(2):
        assert numbers() == inner


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mtia"])
def test_a_run_leaves_the_random_numbers_of_other_devices_alone(kind, monkeypatch, tmp_path):
    monkeypatch.setattr(getattr(torch, kind), "manual_seed_all", lambda seed: pytest.fail(kind))
    trainer(config_with(tmp_path / "run"), Pairs()).train_step()


def test_every_epoch_draws_every_sample_once():
    pairs = OwnPairs(Pairs(), 0, 2)
    drawn = [pairs.position(number) for number in range(14)]
    assert [epoch for epoch, _ in drawn] == [0] * 7 + [1] * 7
    orders = [[index for epoch, index in drawn if epoch == e] for e in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(7)) and orders[0] != orders[1]


def test_ranks_share_the_draws_of_a_step():
    for kind in (Pairs, Stream):
        whole = OwnPairs(kind(), 0, 4).batch(range(4, 8)).moving
        parts = []
        for which in (slice(0, 2), slice(2, 4)):
            pairs = OwnPairs(kind(), 0, 4, share=lambda numbers, which=which: numbers[which])
            parts.append(pairs.batch(range(4, 8)[which]).moving)
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(("kind", "workers"), [(Pairs, 0), (Pairs, 2), (Stream, 0), (Stream, 1)])
def test_a_run_is_resumed_to_the_bit(kind, workers, tmp_path):
    ends = []
    for name, stops in (("whole", [6]), ("parts", [2, 6])):
        for stop in stops:
            sections = config_with(tmp_path / name, workers, steps=stop, resume=True).to_dict()
            sections["optimizer"] = {"learning_rate": 1e-2}
            trainer(Config.from_dict(sections), kind()).train()
        ends.append(weights(tmp_path / name / "last.pt"))
    assert same(*ends)


def test_the_protocol_reaches_the_objective():
    """What is in the dict is what the batch has."""
    label = torch.zeros(1, *SHAPE, dtype=torch.uint8)
    label[:, 3:7] = 2
    points = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    more = {
        "moving_mask": torch.ones(1, *SHAPE),
        "fixed_mask": torch.zeros(1, *SHAPE),
        "moving_label": label,
        "fixed_label": label.flip(1).numpy(),
        "moving_points": points + 1,
        "fixed_points": points.double(),
        "displacement": torch.ones(2, *SHAPE),
    }
    batch = OwnPairs(Pairs(**more), 0, 2, terms=("labels", "landmarks", "displacement")).batch(
        [0, 1]
    )
    assert batch.moving.dtype == torch.float32 and batch.moving.shape == (2, 1, *SHAPE)
    assert batch.mask.unique().tolist() == [0]  # where both count
    assert batch.known.moving_label.sum((1, 2, 3)).tolist() == [48, 48]
    assert torch.equal(batch.known.fixed_points[1], points)
    assert batch.known.displacement.shape == (2, 2, *SHAPE)
    assert OwnPairs(Pairs(**more), 0, 2).batch([0, 1]).known == Known()  # nobody asked
    soft = torch.rand(3, *SHAPE)
    pairs = OwnPairs(Pairs(moving_label=soft, fixed_label=soft), 0, 1, terms=("labels",))
    assert torch.equal(pairs.batch([0]).known.moving_label[0], soft)


@pytest.mark.parametrize(
    ("item", "said"),
    [
        ([1, 2], "must be a dict with moving and fixed, got list"),
        ({"fixed": 1, "movin": 2}, r"must have moving, \(C, \*S\).*; it has fixed, movin"),
        ({"moving": "a.nii"}, r"moving must be a tensor .*, got str"),
        ({"moving": torch.rand(16, 12)}, r"moving must be \(C, \*S\), .* got \[16, 12\]"),
        ({"moving": torch.rand(1, 12, 16)}, r"got \[1, 12, 16\] torch.float32, where fixed is \[1"),
        ({"moving": torch.ones(1, *SHAPE, dtype=torch.uint8)}, "floating, .* torch.uint8"),
        ({"fixed_mask": torch.ones(SHAPE)}, r"fixed_mask must be \(1, \*S\), >= 0"),
        ({"fixed_mask": -torch.ones(1, *SHAPE)}, "fixed_mask must be .*>= 0"),
        ({"moving_label": torch.ones(1, *SHAPE)}, "moving_label and fixed_label, or neither"),
        (
            {key: 3 * torch.ones(1, *SHAPE) for key in ("moving_label", "fixed_label")},
            r"label must be \(1, \*S\), whole numbers, or \(L, \*S\), floating, in \[0, 1\]",
        ),
        (
            {key: torch.ones(4, 3) for key in ("moving_points", "fixed_points")},
            r"points must be \(K, D\)",
        ),
        ({"displacement": torch.ones(3, *SHAPE)}, r"displacement must be \(D, \*S\), voxels"),
        ({"displacement": torch.ones(2, *SHAPE) / 0}, "displacement has 384 numbers .* infinite"),
        (
            {"moving": torch.tensor([torch.nan, torch.inf, *190 * [1.0]]).view(1, *SHAPE)},
            "moving has 2 numbers that are NaN or infinite",
        ),
    ],
)
def test_what_is_no_sample_is_refused_in_words(item, said):
    image = torch.rand(1, *SHAPE)
    whole = {"moving": image, "fixed": image}
    given = {**whole, **item} if isinstance(item, dict) and "movin" not in item else item
    with pytest.raises((TypeError, ValueError), match=rf"^sample 3 of Pairs.*{said}"):
        checked_sample(given, "sample 3 of Pairs")


def test_a_path_is_no_settings():
    with pytest.raises(TypeError, match=r"must be a Config, of load_config\(path\), got 'a.toml'"):
        Trainer("a.toml")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wrong_sample_stops_the_run_in_one_line(workers, tmp_path):
    dataset = Pairs(fixed_mask=torch.ones(2, *SHAPE))
    with pytest.raises(ValueError, match=r"^sample \d of Pairs: fixed_mask must be .*$") as found:
        trainer(config_with(tmp_path / "run", workers), dataset).train()
    assert "\n" not in str(found.value)
    sections = config_with(tmp_path / "run", workers).to_dict()
    sections["objective"]["labels"] = 1.0
    message = "objective.labels needs moving_label and fixed_label from the dataset, and no sample"
    with pytest.raises(ValueError, match=message):
        trainer(Config.from_dict(sections), Pairs()).train()


class Sizes(Pairs):
    def __getitem__(self, index):
        return {key: torch.rand(1, 8, 8 + index) for key in ("moving", "fixed")}


def test_data_that_cannot_be(tmp_path):
    config = config_with(tmp_path / "run")
    for dataset, said in (
        ([], "must have samples; list has none"),
        (iter([1]), "must be a torch Dataset with a length, an IterableDataset or a"),
    ):
        with pytest.raises((TypeError, ValueError), match=said):
            trainer(config, dataset)
    with pytest.raises(ValueError, match="samples of a batch must have one size"):
        trainer(config, Sizes()).train()
    with pytest.raises(ValueError, match=r"data\.workers must be 0 or 1 for an IterableDataset"):
        trainer(config_with(tmp_path / "run", workers=2), Stream())
    with pytest.raises(ValueError, match="validation must be a dataset with a length"):
        trainer(config, Pairs(), Stream())
    for workers in (0, 1):
        with pytest.raises(ValueError, match=r"^dataset must have samples; Stream has none$"):
            trainer(config_with(tmp_path / "run", workers), Stream(0)).train()
    sections = config.to_dict()
    sections["augmentation"] = {"amplitude": 1.0}
    with pytest.raises(ValueError, match=r"\[augmentation\] is for the pairs of images"):
        trainer(Config.from_dict(sections), Pairs())
    with pytest.raises(ValueError, match="validation goes with dataset"):
        trainer(config, None, Pairs())


def test_another_dataset_is_not_gone_on_with(tmp_path):
    trainer(config_with(tmp_path / "run"), Pairs()).train()
    resumed = config_with(tmp_path / "run", resume=True)
    assert trainer(resumed, Pairs()).step == 6
    for other in (Pairs(6), Stream()):
        with pytest.raises(ValueError, match="a run on other pairs"):
            trainer(resumed, other)


def test_validation_on_samples_as_they_always_are(tmp_path):
    label = torch.zeros(1, *SHAPE, dtype=torch.int64)
    label[:, 4:9] = 1
    logs = []
    for name in ("one", "same"):
        config = config_with(tmp_path / name, steps=4, validate_every=2)
        trainer(config, Pairs(), Pairs(2, moving_label=label, fixed_label=label)).train()
        logs.append(read_log(tmp_path / name / "validation.csv", ValidationLog))
        assert (tmp_path / name / "pictures" / "step0000002.png").exists()
    assert logs[0] == logs[1] and len(logs[0]) == 2
    assert logs[0][0].dice_before == 1


def test_a_dataset_by_its_import_path(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "own_data", sys.modules[__name__])
    sections = config_with(tmp_path / "run", steps=2, validate_every=2).to_dict()
    sections["data"] = {
        "name": "own_data:Pairs",
        "settings": {"length": 3},
        "validation_settings": {"length": 2},
        "workers": 1,
    }
    config = Config.from_dict(sections)
    assert Config.from_dict(config.to_dict()) == config
    run = trainer(config)
    assert (len(run.dataset), len(run.validation)) == (3, 2)
    run.train()
    sections["data"] = {"name": "own_data:Stream", "settings": {"size": 3}}
    sections["training"]["out"] = str(tmp_path / "other")
    with pytest.raises(ValueError, match=r"data\.name = 'own_data:Stream' does not take these set"):
        trainer(Config.from_dict(sections))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"name": "Pairs"}, "name must be a path, package.module:Class, got 'Pairs'"),
        ({"name": "a:B", "images": ["x"]}, "images is for images, name for a dataset of your own"),
        ({"settings": {"a": 1}}, "settings is for a dataset of your own: give its import path"),
        ({"workers": -1}, "workers must be at least 0, got -1"),
        ({"name": "a:B", "cache": "c"}, "cache is for images, name for a dataset of your own"),
    ],
)
def test_settings_of_data_that_are_refused(data, said):
    with pytest.raises(ValueError, match=rf"\[data\] {re.escape(said)}"):
        Config.from_dict({"data": data})


def test_workers_of_images_need_a_cache_and_terms_their_dataset(tmp_path):
    sections = config_of(save_images(tmp_path / "images"), tmp_path / "run").to_dict()
    sections["data"]["workers"] = 2
    with pytest.raises(ValueError, match=r"data\.workers read images from a folder: give data\.c"):
        trainer(Config.from_dict(sections))
    dataset = PairDataset(find_pairs([tmp_path / "images"]))
    sections["objective"]["labels"] = 1.0
    with pytest.raises(ValueError, match=r"objective\.labels needs PairDataset\(\.\.\., terms="):
        trainer(Config.from_dict(sections), dataset)


def test_the_example_trains_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    images = save_images(tmp_path / "images")
    ends = []
    for name, workers, stops in (("whole", 0, [4]), ("parts", 2, [2, 4])):
        for stop in stops:
            sections = config_with(tmp_path / name, workers, steps=stop, resume=True).to_dict()
            sections["data"] |= {"name": "own_parts:Folder", "settings": {"folder": str(images)}}
            sections["data"]["validation_settings"] = {"folder": str(images), "noise": 0.0}
            sections["objective"]["similarity"] = {"ncc": 1.0, "own_parts:robust": 0.2}
            sections["optimizer"] = {"learning_rate": 1e-2}
            run = trainer(Config.from_dict(sections))
            assert len(run.dataset) == 6
            run.train()
        ends.append(weights(tmp_path / name / "last.pt"))
    assert same(*ends)


def test_the_protocol_is_in_the_documentation():
    text = (ROOT / "docs" / "training.md").read_text()
    for key, what in PROTOCOL.items():
        assert f"| `{key}` | {what} |" in text


class Killed(Pairs):
    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_reader_is_one_line():
    pairs = OwnPairs(Killed(), 0, 2, workers=1)
    with pytest.raises(ChildProcessError, match=r"was killed, .*: go on with --resume and fewer"):
        pairs.batch(range(2))


class Full(Pairs):
    """No room in shared memory, as by default in a container: 64 MB."""

    def __getitem__(self, index):
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        return super().__getitem__(index)


def test_full_shared_memory_is_one_line_and_no_wait():
    pairs = OwnPairs(Full(), 0, 2, workers=1)
    with pytest.raises(OSError, match=r"shared memory, /dev/shm, .*File too large.*--shm-size"):
        pairs.batch(range(2))


def test_images_far_from_0_and_1_are_told(recwarn):
    image = torch.rand(1, 8, 8)
    checked_sample({"moving": image - 5, "fixed": 9 * image}, "sample 0")
    assert not recwarn
    with pytest.warns(FileWarning, match="values beyond 50, .* normalise them in __getitem__"):
        checked_sample({"moving": 1000 * image, "fixed": image}, "sample 0")
