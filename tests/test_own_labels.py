"""Labels of a dataset of one's own: channels of a batch, whichever of them its maps show."""

import numpy as np
import pytest
import torch
from runs import with_settings
from test_own_data import config_with
from torch.utils.data import Dataset, IterableDataset

from diffreg.data.known import Known, together
from diffreg.data.shapes import Shapes
from diffreg.training import Trainer
from diffreg.training.own_pairs import OwnPairs


class Labelled(Dataset):
    """Sample k shows label 3 k + 1 alone, and k + 1 points."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        label = torch.zeros(1, 16, 12, dtype=torch.int64)
        label[:, 4:9, 3 : 6 + index] = 3 * index + 1
        points = 3 + torch.rand(index + 1, 2)
        images = {side: torch.rand(1, 16, 12) for side in ("moving", "fixed")}
        sides = {"moving_points": points, "fixed_points": points}
        return {"moving_label": label, "fixed_label": label, **sides, **images}


class Streamed(IterableDataset):
    label_values = (1, 4, 7, 10)

    def __iter__(self):
        return map(Labelled().__getitem__, range(4))


def saying(values):
    dataset = Labelled()
    dataset.label_values = values
    return dataset


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_has_the_labels_that_the_dataset_says(workers):
    for dataset in (saying([0, 1, 4, 7, 10]), Streamed()):
        pairs = OwnPairs(dataset, 0, 2, workers=workers, terms=("labels",))
        batches = [pairs.batch(range(k, k + 2)).known.fixed_label for k in (0, 2)]
        pairs.close()
        assert [batch.shape for batch in batches] == [(2, 4, 16, 12)] * 2
        assert torch.cat(batches).flatten(2).amax(2).sum(0).tolist() == [1, 1, 1, 1]
    bare = OwnPairs(Labelled(), 0, 2, terms=("labels",))
    assert bare.batch(range(2)).known.fixed_label.shape[1] == 2
    assert OwnPairs(saying([4]), 0, 1, terms=("labels",)).whole(0)[1].fixed_label.sum() == 0


def test_what_is_minimised_is_the_same(tmp_path):
    """A label that no map of the batch shows does not count."""
    weights = {"similarity": "ncc", "labels": 1.0, "landmarks": 1.0}
    config = with_settings(config_with(tmp_path / "run"), objective=weights)
    torch.manual_seed(0)
    bare, said = (Trainer(config, data, progress=False) for data in (Labelled(), saying(range(12))))
    for _ in range(3):
        one, other = bare.train_step(), said.train_step()
        torch.testing.assert_close(torch.tensor(one[:11]), torch.tensor(other[:11]))


class Some(Labelled):
    """Of four samples one has labels, and one points."""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        lacks = {"label": index != 2, "points": index != 1}
        return {k: v for k, v in sample.items() if not lacks.get(k.partition("_")[2], False)}


@pytest.mark.parametrize("values", [None, [1, 4, 7, 10]])
def test_a_batch_may_have_nothing_that_a_term_needs(values, tmp_path):
    """It counts with the other terms; an epoch without any is refused."""
    weights = {"similarity": "ncc", "labels": 1.0, "landmarks": 1.0}
    config = with_settings(config_with(tmp_path / "run"), objective=weights)
    config = with_settings(config, training={"batch_size": 1, "steps": 8})
    data = Some()
    if values:
        data.label_values = values
    run = Trainer(config, data, progress=False)
    entries = [run.train_step() for _ in range(8)]
    assert sum(entry.labels > 0 for entry in entries) == 2
    if values:
        pairs = OwnPairs(data, 0, 1, terms=("labels",))
        assert {pairs.batch([k]).known.fixed_label.shape[1] for k in range(4)} == {4}
    for seed in range(12):  # a run that goes on within an epoch, and sees the end of it first
        pairs = OwnPairs(data, seed, 1, terms=("labels",))
        for k in range(1 + seed % 3, 12):
            pairs.batch([k])
    refused_after_an_epoch(with_settings(config, objective={"displacement": 1.0}), Some())


def refused_after_an_epoch(config, data, missing="displacement"):
    run = Trainer(config, data, progress=False)
    with pytest.raises(ValueError, match=f"no sample of the first 4 batches has {missing}"):
        for _ in range(8):
            run.train_step()


def test_label_values_that_no_map_shows_are_refused(tmp_path):
    config = with_settings(config_with(tmp_path / "run"), objective={"labels": 1.0})
    config = with_settings(config, training={"batch_size": 1, "steps": 8})
    run = Trainer(config, saying([4, 20]), progress=False)
    assert sum(run.train_step().labels > 0 for _ in range(8)) == 2
    refused_after_an_epoch(config, saying([20, 21]), "moving_label")


def test_points_are_filled_up_to_a_power_of_two():
    known = [Known(None, None, *torch.ones(2, 1, count, 2)) for count in (1, 5)]
    both = together(known, (4, 4))
    assert both.fixed_points.shape == both.moving_points.shape == (2, 8, 2)
    assert both.fixed_points.isfinite().all(2).sum(1).tolist() == [1, 5]


@pytest.mark.parametrize("values", [[], [0.5], [float("nan")], "some", [[1], [2, 3]], 3])
def test_values_that_are_none_are_refused(values):
    with pytest.raises(ValueError, match="label_values must be the whole numbers of its labels"):
        OwnPairs(saying(values), 0, 2)


def test_shapes_say_their_labels():
    assert list(Shapes((8, 8), labels=5).label_values) == [1, 2, 3, 4]
    given = np.zeros((8, 8), int)
    given[2:5], given[5:] = 7, 40
    data = Shapes((8, 8), maps=[given], scale=2.0)
    assert list(data.label_values) == [1, 2]
    assert data[0]["fixed_label"].max() <= 2


def test_a_dataset_that_exits_is_said_with_its_sample():
    class Licensed(Labelled):
        def __getitem__(self, index):
            raise SystemExit("no licence")

    with pytest.raises(ValueError, match=r"sample \d of .*Licensed: SystemExit: no licence"):
        OwnPairs(Licensed(), 0, 2).batch(range(2))
