"""A training step asks the device for nothing: what a GPU would wait for is counted on the CPU."""

import math
import warnings
from contextlib import nullcontext
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from cases import Waits
from runs import KNOWN, Pairs, config_of, known_of_some, trainer, with_settings
from test_own_data import config_with
from test_trainer import save_images
from test_training_options import validated
from torch.utils._python_dispatch import TorchDispatchMode

from diffreg.data import drawing
from diffreg.data.pairs import Batch
from diffreg.ops import _checks
from diffreg.training import Trainer, graphs
from diffreg.training.checkpoint import read_checkpoint
from diffreg.training.graphs import EAGER_STEPS, MOST, Replayed
from diffreg.training.log import read_log
from diffreg.training.log_ring import READ_EVERY
from diffreg.training.sent_ahead import SentAhead
from diffreg.training.trainer import NonFiniteLoss


@pytest.fixture
def images(tmp_path):
    return save_images(tmp_path / "images")


SECTIONS = [
    {},
    {"objective": {"similarity": "ncc", "inverse_consistency": 1.0}},
    {"objective": {"similarity": {"ncc": 1.0, "lncc": 0.2}}},
    {"objective": {"similarity": "pls"}},
    {"objective": {"similarity": "mi"}},
    {"objective": {"similarity": {"ngf": 1.0, "ssd": 1.0}}},
    {"optimizer": {"clip_norm": 1.0, "average": 0.9, "weight_decay": 0.1}},
    {"model": {"integrate": True}},
    {"model": {"half_resolution": True, "widths": [4, 8]}},
    {"model": {"name": "sn"}},
    {"training": {"precision": "bfloat16", "accumulate": 2}},
    {"training": {"precision": "float16", "activation_checkpointing": True}},
]


@pytest.mark.parametrize("sections", SECTIONS, ids=str)
def test_a_step_waits_for_nothing(images, tmp_path, sections):
    config = config_of(images, tmp_path / "run")
    if "model" in sections:
        config = with_model(config, sections["model"])
    else:
        config = with_settings(config, **sections)
    run = trainer(config)
    batches = [run.dataset.batch(range(4 * k, 4 * k + 4)) for k in range(3)]
    run._steps.step(batches[0])  # what is looked at once
    with Waits() as waits:
        rows = [run._steps.step(batch) for batch in batches[1:]]
    assert waits.seen == []
    assert all(torch.isfinite(row).all() for row in rows)


def with_model(config, model):
    sections = config.to_dict()
    return type(config).from_dict({**sections, "model": model})


def test_terms_of_labels_points_and_displacements_wait_for_nothing(tmp_path):
    weights = {"similarity": "ncc", "labels": 1.0, "landmarks": 1.0, "displacement": 1.0}
    config = with_settings(config_with(tmp_path / "run"), objective=weights)
    labels, points = torch.zeros(1, 16, 12, dtype=torch.int64), torch.rand(3, 2) * 10
    labels[:, 4:9, 3:8] = 2
    known = {"moving_label": labels, "fixed_label": labels, "displacement": torch.rand(2, 16, 12)}
    known |= {"moving_points": points, "fixed_points": points + 1}
    run = Trainer(config, Pairs(**known), progress=False)
    batches = [run.dataset.batch(range(4 * k, 4 * k + 4)) for k in range(2)]
    run._steps.step(batches[0])
    with Waits() as waits:
        row = run._steps.step(batches[1])
    assert waits.seen == []
    assert (row[5:8] > 0).all()


def test_drawing_what_is_known_waits_for_nothing(tmp_path, monkeypatch):
    """Pairs of a manifest with labels and landmarks, mirrored, bent and cut out within the step."""
    monkeypatch.setattr(drawing, "_sliced", drawing._gathered)
    monkeypatch.setattr(_checks, "_check_weights", lambda mask: None)  # a mask's, on a CPU alone
    config = config_of(known_of_some(tmp_path), tmp_path / "run")
    config = with_settings(config, objective=KNOWN, augmentation={"crop": [16, 12]})
    run = replaying(trainer(config))
    batches = [run._steps.batch(step) for step in range(2)]
    run._steps.step(batches[0])
    with Waits() as waits:
        row = run._steps.step(batches[1])
    assert waits.seen == []
    assert (row[5:7] > 0).all()


def test_the_counter_sees_what_waits():
    x = torch.rand(5)
    with Waits() as waits:
        x.sum().item()
        x[x > 0.5]
        x.nonzero()
        x[[0, 1]]
        x.new_tensor([1.0])
    assert len(waits.seen) >= 5


class Rerun:
    """What stands for a captured graph where there is no GPU: the function, run again."""

    def __init__(self):
        self.captures, self.replays, self.waits = 0, 0, []

    def __call__(self, function, pool):
        self.captures += 1
        left = torch.full((13,), math.nan)

        def replay():
            self.replays += 1
            left.copy_(function())

        return replay, left


@pytest.fixture
def rerun(monkeypatch):
    found = Rerun()
    monkeypatch.setattr(graphs, "captured", found)
    monkeypatch.setattr(graphs, "new_pool", lambda: None)
    monkeypatch.setattr(graphs, "waits", lambda: nullcontext(found.waits))
    monkeypatch.setattr(Replayed, "_aside", lambda self, batch: self.step(batch))
    return found


def replaying(run):
    """A trainer on the CPU that goes the way of a GPU: replayed steps, a log read now and then."""
    run._steps.run.replays = True
    size, share = run.config.training.batch_size, run.ranks.share
    run._steps.batch = SentAhead(run.dataset, size, share, run.ranks.device).next
    run._steps.log.rows = torch.zeros(READ_EVERY, len(run._steps.log.rows[0]))
    return run


@pytest.mark.parametrize("sections", [{}, {"optimizer": {"average": 0.9}}], ids=str)
def test_replayed_steps_read_together_are_the_steps(images, tmp_path, rerun, sections):
    """To the bit, with the log, validations and checkpoints of a run that reads each."""
    runs = []
    for name in ("each", "together"):
        config = validated(images, tmp_path / name, steps=9, checkpoint_every=4, validate_every=3)
        run = trainer(with_settings(config, **sections))
        runs.append(replaying(run) if name == "together" else run)
        runs[-1].train()
    assert (rerun.captures, rerun.replays) == (1, 9 - EAGER_STEPS)
    each, together = ([e[:11] for e in read_log(run.out / "log.csv")] for run in runs)
    assert each == together and len(each) == 9
    for kind in ("last.pt", "best.pt"):
        ends = [read_checkpoint(run.out / kind) for run in runs]
        for key in ("weights", "trained"):
            for name, value in ends[0].get(key, {}).items():
                assert torch.equal(value, ends[1][key][name])
        assert str(ends[0]["optimizer"]) == str(ends[1]["optimizer"])
        assert [ends[0][key] for key in ("step", "best")] == [
            ends[1][key] for key in ("step", "best")
        ]


def test_steps_that_are_taken_together_are_those_taken_one_by_one(images, tmp_path, rerun):
    one = trainer(config_of(images, tmp_path / "one"))
    many = replaying(trainer(config_of(images, tmp_path / "many")))
    each = [one.train_step()[:11] for _ in range(5)]
    assert [entry[:11] for entry in many.take(5)] == each and many.take(0) == []


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_run_that_stops_within_a_reading_keeps_the_last_good_weights(
    images, tmp_path, rerun, precision
):
    options = {"steps": 20, "checkpoint_every": 20, "precision": precision}
    good = trainer(config_of(images, tmp_path / "good", **options))
    for _ in range(4):
        good.train_step()
    run = replaying(trainer(config_of(images, tmp_path / "run", **options)))
    objective = run._steps.step.objective

    def poisoned(*images, **options):
        terms = objective(*images, **options)
        return terms._replace(total=terms.total * (math.nan if run.step == 4 else 1.0))

    poisoned.padding = objective.padding
    run._steps.step.objective = poisoned
    told = SimpleNamespace(on_step=lambda run, entry: said.append(run.step))
    said = []
    run.callbacks.append(told)
    with pytest.raises(NonFiniteLoss, match=r"the loss is nan .* at step 5, pairs"):
        run.train()
    assert said == [4] * 4  # that of the weights, though 20 steps were taken
    assert run.step == 4 and len(read_log(run.out / "log.csv")) == 4
    for key, value in good.network.state_dict().items():
        assert torch.equal(value, run.network.state_dict()[key])
    state = run.optimizer.state_dict()["state"]
    assert str(state) == str(good.optimizer.state_dict()["state"])


def test_each_shape_has_its_graph_up_to_a_number(rerun):
    seen = []

    def step(batch):
        seen.append(batch.moving.shape[-1])
        return torch.full((13,), batch.moving.sum() + batch.fixed.sum())

    def batch(size, value):
        image = torch.full((1, 1, 4, size), value)
        return Batch(image, 2 * image, None)

    run = Replayed(step, True, pytest.fail)
    for size in range(2, MOST + 4):
        for call in range(EAGER_STEPS + 3):
            value = size + call / 4
            assert run(batch(size, value))[0] == 12 * size * value
    assert rerun.captures == MOST and rerun.replays == 3 * MOST


class ToMoving(TorchDispatchMode):
    """Notes how a GPU would add the gradient to what is warped."""

    def __init__(self):
        super().__init__()
        self.deterministic = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name == "diffreg::warp_backward" and args[5]:
            self.deterministic.append(args[7:] == (True,))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("taken", ["train", "take"])
def test_a_step_is_what_a_gpu_repeats_to_the_bit(images, tmp_path, taken):
    objective = {"similarity": "ncc", "inverse_consistency": 1.0}
    run = trainer(with_settings(config_of(images, tmp_path / "run"), objective=objective))
    with torch.autograd.set_multithreading_enabled(False), ToMoving() as seen:
        run.train() if taken == "train" else run.take(6)
    assert seen.deterministic == 12 * [True]
    assert not torch.backends.cudnn.deterministic


def test_a_step_that_cannot_be_captured_is_run_as_it_is(monkeypatch, rerun):
    def refused(function, pool):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(graphs, "captured", refused)
    said = []
    image = torch.ones(1, 1, 4, 4)
    run = Replayed(lambda batch: batch.moving.sum()[None], True, said.append)
    for _ in range(EAGER_STEPS + 4):
        assert run(Batch(image, image, None)) == 16
    assert len(said) == 1 and "runs without one: operation not permitted" in said[0]
    assert "\n" not in said[0]


def test_a_capture_that_fails_within_the_change_of_weights_leaves_no_trace(
    images, tmp_path, monkeypatch, rerun
):
    """Such as for want of memory: float16's scaler has unscaled the gradients by then."""
    options = {"precision": "float16", "steps": 50}
    one, other = (trainer(config_of(images, tmp_path / n, **options)) for n in ("a", "b"))
    expected = [entry[:11] for entry in one.take(6)]

    def refused(function, pool):
        with monkeypatch.context() as patch:
            patch.setattr(torch.optim.Adam, "step", Mock(side_effect=RuntimeError("no memory")))
            return function()

    monkeypatch.setattr(graphs, "captured", refused)
    with pytest.warns(UserWarning, match="runs without one: no memory"):
        assert [entry[:11] for entry in replaying(other).take(6)] == expected


def test_a_step_that_waits_is_never_captured(rerun):
    rerun.waits.append("called a synchronizing CUDA operation")
    said = []
    image = torch.ones(1, 1, 4, 4)
    run = Replayed(lambda batch: batch.moving.sum()[None], True, said.append)
    for _ in range(EAGER_STEPS + 4):
        assert run(Batch(image, image, None)) == 16
    assert rerun.captures == 0 and len(said) == 1 and "synchronizing" in said[0]


def test_what_torch_says_of_its_own_mode_is_no_wait(monkeypatch, recwarn):
    modes = []

    def set_mode(mode):
        modes.append(mode)
        warnings.warn(  # torch/csrc/cuda/Module.cpp, once in a process
            "Synchronization debug mode is a prototype feature and does not yet detect all "
            "synchronizing operations",
            stacklevel=1,
        )

    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with graphs.waits() as seen:
        warnings.warn("another", stacklevel=1)
    assert seen == [] and [str(warning.message) for warning in recwarn] == ["another"]
    with graphs.waits() as seen:
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    assert seen == ["called a synchronizing CUDA operation"] and modes == ["warn", 0] * 2


def test_graphs_that_are_forgotten_take_their_pool_with_them(monkeypatch, rerun):
    """torch's allocator refuses a pool that no graph holds any more."""
    pools = []

    def captured(function, pool):
        pools.append(pool)
        return rerun(function, pool)

    monkeypatch.setattr(graphs, "captured", captured)
    monkeypatch.setattr(graphs, "new_pool", object)
    run = Replayed(lambda batch: torch.full((13,), batch.moving.sum()), True, pytest.fail)
    for size in (2, 3):
        image = torch.ones(1, 1, 4, size)
        for _ in range(EAGER_STEPS + 1):
            run(Batch(image, image, None))
    run.forget()
    for _ in range(EAGER_STEPS + 1):
        run(Batch(image, image, None))
    assert len(pools) == 3 and pools[0] is pools[1] and pools[2] is not pools[0]


def test_a_checkpoint_that_is_loaded_is_what_the_next_steps_train(images, tmp_path, rerun):
    """After a capture, after steps that nobody read, and after a stop."""
    run = replaying(trainer(config_of(images, tmp_path / "run", steps=50)))
    run.take(3)
    run.out.mkdir()
    run.save_checkpoint()
    expected = [entry[:11] for entry in run.take(6)]
    run._take_step()
    run.load_checkpoint(run.out / "last.pt")
    run.optimization.stopped.fill_(1.0)
    run.load_checkpoint(run.out / "last.pt")
    captures = rerun.captures
    assert [entry[:11] for entry in run.take(6)] == expected
    assert captures == 1 and rerun.captures == 2


def test_a_loss_that_is_not_finite_changes_no_weight_in_float16(images, tmp_path):
    """Whatever its gradient."""
    run = trainer(config_of(images, tmp_path / "run", precision="float16"))
    before = {key: value.clone() for key, value in run.network.state_dict().items()}
    objective = run._steps.step.objective

    def infinite(*images, **options):
        terms = objective(*images, **options)
        return terms._replace(total=terms.total + math.inf)

    infinite.padding = objective.padding
    run._steps.step.objective = infinite
    with pytest.raises(NonFiniteLoss):
        run.train_step()
    assert all(torch.equal(before[key], value) for key, value in run.network.state_dict().items())
