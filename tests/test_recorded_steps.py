"""What one step called, run again without Python as a CUDA graph is, has the bits of each step."""

from contextlib import nullcontext

import pytest
import torch
from recorded import Recorded
from runs import KNOWN, config_of, known_of_some, trainer, with_settings
from test_step import replaying
from test_trainer import save_images
from test_training_options import validated
from torch import nn

from diffreg.data import drawing
from diffreg.training import Trainer, graphs
from diffreg.training.graphs import EAGER_STEPS, Replayed
from diffreg.training.log import read_log

SECTIONS = [
    {"training": {"precision": "float16", "accumulate": 2}},
    {
        "optimizer": {"average": 0.9, "clip_norm": 1.0, "weight_decay": 0.1, "warmup_steps": 6},
        "training": {"precision": "bfloat16"},
    },
    {"objective": {"similarity": {"ncc": 1.0, "lncc": 0.2}, "inverse_consistency": 1.0}},
    {"objective": {"similarity": "mi"}},
    {"objective": {"similarity": "pls"}},
    {
        "model": {"widths": [4, 8], "edges": True, "passes": 2, "integrate": True},
        "training": {"activation_checkpointing": True},
    },
]


@pytest.fixture
def recorded(monkeypatch):
    found = Recorded()
    monkeypatch.setattr(graphs, "captured", found)
    monkeypatch.setattr(graphs, "new_pool", lambda: None)
    monkeypatch.setattr(graphs, "waits", lambda: nullcontext([]))
    monkeypatch.setattr(Replayed, "_aside", lambda self, batch: self.step(batch))
    monkeypatch.setattr(drawing, "_sliced", drawing._gathered)
    return found


def merged(config, sections):
    plain = config.to_dict()
    return with_settings(config, **{k: {**plain[k], **v} for k, v in sections.items()})


@pytest.mark.parametrize("sections", SECTIONS, ids=str)
def test_what_a_step_called_is_the_step(tmp_path, recorded, sections):
    images = save_images(tmp_path / "images")
    runs = [trainer(merged(config_of(images, tmp_path / n, steps=9), sections)) for n in "ab"]
    replaying(runs[1])
    logs = [[entry[:11] for entry in run.take(9)] for run in runs]
    assert logs[0] == logs[1]
    assert (recorded.captures, recorded.replays) == (1, 9 - EAGER_STEPS)


def test_what_is_known_of_pairs(tmp_path, recorded):
    """Labels and landmarks, drawn in the step; a batch of which no pair has a mask is another."""
    config = config_of(known_of_some(tmp_path), tmp_path / "run", steps=9)
    config = with_settings(config, objective=KNOWN, augmentation={"crop": [16, 12]})
    runs = [trainer(config) for _ in range(2)]
    replaying(runs[1])
    logs = [[entry[:11] for entry in run.take(9)] for run in runs]
    assert logs[0] == logs[1] and recorded.replays > 1


class Noisy(nn.Module):
    """A network of one's own: batch statistics, dropout, noise, and a count of its calls."""

    def __init__(self):
        super().__init__()
        layers = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.3)
        self.features, self.head = nn.Sequential(*layers), nn.Conv2d(4, 2, 3, padding=1)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, moving, fixed):
        self.calls += 1
        displacement = 0.1 * self.head(self.features(torch.cat([moving, fixed], 1)))
        return displacement + 0.01 * torch.randn_like(displacement)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_network_of_ones_own_between_validations_and_checkpoints(tmp_path, recorded, precision):
    images, ends = save_images(tmp_path / "images"), []
    for name in ("each", "graph"):
        often = {"steps": 10, "checkpoint_every": 6, "validate_every": 5}
        config = validated(images, tmp_path / name, precision=precision, **often)
        torch.manual_seed(0)
        run = Trainer(
            with_settings(config, optimizer={"average": 0.9}), None, None, False, network=Noisy()
        )
        (replaying(run) if name == "graph" else run).train()
        log = [entry[:11] for entry in read_log(run.out / "log.csv")]
        states = run.network.state_dict(), run.optimization.result.state_dict()
        ends.append((log, (run.out / "validation.csv").read_text(), states))
    assert ends[0][:2] == ends[1][:2] and recorded.replays == 10 - EAGER_STEPS
    for one, other in zip(ends[0][2], ends[1][2], strict=True):
        for key, value in one.items():
            assert torch.equal(value, other[key]), key
