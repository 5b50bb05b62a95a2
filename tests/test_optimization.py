"""AdamW, a mean of the weights, batches in parts, float16: what they do, resumed to the bit."""

import math

import pytest
import torch
from runs import config_of, trainer, with_settings
from test_trainer import save_images, weights
from test_training_options import validated

from diffreg.training import load_network
from diffreg.training.checkpoint import read_checkpoint
from diffreg.training.config import Config
from diffreg.training.log import ValidationLog, read_log
from diffreg.training.optimization import Optimization
from diffreg.training.trainer import NonFiniteLoss


@pytest.fixture
def images(tmp_path):
    return save_images(tmp_path / "images")


def same(one, other):
    return all(torch.equal(one[key], other[key]) for key in one)


def copied(network):
    return {key: value.clone() for key, value in network.state_dict().items()}


def test_weight_decay_is_adamws(images, tmp_path):
    """The same step of Adam, and rate x decay of each weight less."""
    rate, decay = 1e-2, 0.3
    plain, decayed = (
        trainer(
            with_settings(
                config_of(images, tmp_path / str(value)),
                optimizer={"learning_rate": rate, "weight_decay": value},
            )
        )
        for value in (0.0, decay)
    )
    before = copied(plain.network)
    for run in (plain, decayed):
        run.train_step()
    for key, value in decayed.network.state_dict().items():
        expected = plain.network.state_dict()[key] - rate * decay * before[key]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-7)


def test_the_mean_of_the_weights_is_kept_and_validated(images, tmp_path):
    config = validated(images, tmp_path / "run", steps=4)
    config = with_settings(config, optimizer={"average": 0.5, "learning_rate": 1e-2})
    run = trainer(config)
    mean = None
    for _ in range(4):
        run.train_step()
        now = copied(run.network)
        mean = now if mean is None else {k: (mean[k] + now[k]) / 2 for k in now}
    run = trainer(config)
    run.train()
    contents = read_checkpoint(run.out / "last.pt")
    for key, value in contents["weights"].items():
        torch.testing.assert_close(value, mean[key], rtol=1e-5, atol=1e-7)
        assert torch.equal(contents["trained"][key], run.network.state_dict()[key])
    assert not same(contents["weights"], contents["trained"])
    network = load_network(run.out / "last.pt")["network"]
    total = 0.0
    for sample in map(run.validation.sample, range(len(run.validation))):
        with torch.no_grad():
            u = network(sample.moving, sample.fixed)
        total += run.objective(sample.moving, sample.fixed, u).total.item() / 2
    entry = read_log(run.out / "validation.csv", ValidationLog)[-1]
    assert entry.total == pytest.approx(total, rel=1e-5)


class Counting(torch.nn.Module):
    """One weight; and what is no parameter changes at every call."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return (self.weight * x).sum()


def stepped(optimization, step, x):
    """One step by a loss of slope x."""
    optimization.prepare(step)
    optimization.begin()
    loss = optimization.network(torch.tensor([x]))
    optimization.backward(loss)
    optimization.change(loss.detach())


def optimized(**sections):
    """(the optimisation, its network) of one weight."""
    sections = {"optimizer": {"learning_rate": 0.1}, **sections}
    network = Counting()
    return Optimization(network, Config.from_dict(sections), torch.device("cpu")), network


def test_the_mean_has_what_else_a_network_holds_as_it_is():
    optimization, network = optimized(optimizer={"learning_rate": 0.1, "average": 0.9})
    for step in range(3):
        stepped(optimization, step, 1.0)
    assert optimization.result.calls == network.calls == 3
    assert optimization.result.weight != network.weight


def test_a_run_that_stopped_changes_neither_the_weights_nor_their_mean():
    optimization, network = optimized(optimizer={"learning_rate": 0.1, "average": 0.9})
    for step in range(3):
        stepped(optimization, step, 1.0)
    before = optimization.result.weight.item(), network.weight.item()
    assert before[0] > before[1]
    stepped(optimization, 3, math.nan)
    stepped(optimization, 4, 1.0)
    assert optimization.stopped == 1
    assert (optimization.result.weight.item(), network.weight.item()) == before


@pytest.mark.parametrize(("scale", "stops"), [(2.0, False), (1.0, True)])
def test_a_gradient_that_is_not_finite_is_to_blame_once_the_scale_is_1(scale, stops):
    """Above that the range of float16 may be, and a smaller scale mends it."""
    optimization, network = optimized(training={"precision": "float16"})
    optimization.scaler.load_state_dict({**optimization.scaler.state_dict(), "scale": scale})
    optimization.prepare(0)
    optimization.begin()
    loss = network(torch.ones(1))
    optimization.backward(loss)
    network.weight.grad.fill_(math.inf)
    optimization.change(loss.detach())
    assert bool(optimization.stopped) == stops
    assert network.weight == 1


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_a_batch_in_parts_is_the_same_step(images, tmp_path, parts):
    whole, split = (
        trainer(config_of(images, tmp_path / str(n), accumulate=n, threads=1)) for n in (1, parts)
    )
    seen = []
    split.network.register_forward_hook(lambda module, given, found: seen.append(len(given[0])))
    for _ in range(2):
        one, other = whole.train_step(), split.train_step()
        for a, b in zip(one[:11], other[:11], strict=True):
            assert a == pytest.approx(b, rel=1e-3, abs=1e-6)
    assert len(seen) == 2 * parts and sum(seen) == 8
    assert max(seen) - min(seen) <= 1
    for key, value in whole.network.state_dict().items():
        torch.testing.assert_close(split.network.state_dict()[key], value, rtol=1e-2, atol=2e-4)


def test_float16_is_scaled_and_close(images, tmp_path):
    plain, half = (
        trainer(config_of(images, tmp_path / kind, precision=kind))
        for kind in ("float32", "float16")
    )
    seen = []
    for module in half.network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    for _ in range(3):
        one, other = plain.train_step(), half.train_step()
        assert one.total == pytest.approx(other.total, rel=1e-2)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=5e-2)
    assert seen.count(torch.float16) >= 12 and seen[-1] == torch.float32
    assert {p.dtype for p in half.network.parameters()} == {torch.float32}


def test_a_gradient_beyond_float16_changes_no_weight_and_the_scale_falls(images, tmp_path):
    run = trainer(config_of(images, tmp_path / "run", precision="float16"))
    scaler = run.optimization.scaler

    def scale(value):
        scaler.load_state_dict({**scaler.state_dict(), "scale": value})

    scale(2.0**100)
    before = copied(run.network)
    entry = run.train_step()
    assert not math.isfinite(entry.gradient_norm) and math.isfinite(entry.total)
    assert same(before, copied(run.network)) and run.step == 1
    assert scaler.get_scale() == 2.0**99
    scale(2.0**10)
    assert math.isfinite(run.train_step().gradient_norm)
    assert not same(before, copied(run.network))


def test_a_loss_that_is_not_finite_stops_float16_too(images, tmp_path):
    run = trainer(config_of(images, tmp_path / "run", precision="float16"))
    with torch.no_grad():
        run.network.head.weight.fill_(math.nan)
    run._steps.step._checked = True
    with pytest.raises(NonFiniteLoss, match="the loss is nan"):
        run.train()


@pytest.mark.parametrize(
    "sections",
    [
        {"optimizer": {"weight_decay": 0.1}},
        {"optimizer": {"average": 0.9}},
        {"training": {"accumulate": 2}},
        {"training": {"precision": "float16"}},
        {
            "optimizer": {"weight_decay": 0.1, "average": 0.9, "clip_norm": 0.5},
            "training": {"precision": "float16", "accumulate": 2},
        },
    ],
    ids=["AdamW", "mean", "parts", "float16", "all"],
)
def test_all_of_it_is_resumed_to_the_bit(images, tmp_path, sections):
    ends = []
    for name, stops in (("whole", [5]), ("parts", [2, 5])):
        for stop in stops:
            config = config_of(images, tmp_path / name, steps=stop, resume=True)
            plain = config.to_dict()
            plain["optimizer"] = {"learning_rate": 1e-2}
            run = trainer(with_settings(Config.from_dict(plain), **sections))
            run.train()
        ends.append(read_checkpoint(tmp_path / name / "last.pt"))
    assert same(ends[0]["weights"], ends[1]["weights"])
    for key in ("optimizer", "trained", "scaler"):
        assert str(ends[0].get(key)) == str(ends[1].get(key))


@pytest.mark.parametrize(
    ("section", "settings", "message"),
    [
        ("optimizer", {"weight_decay": -1}, "weight_decay must be a number >= 0, got -1"),
        ("optimizer", {"average": 1}, r"average must be in \[0, 1\), got 1"),
        ("training", {"accumulate": 0}, "accumulate must be at least 1, got 0"),
    ],
)
def test_settings_that_are_refused(section, settings, message):
    with pytest.raises(ValueError, match=message):
        Config.from_dict({section: settings})


def test_more_parts_than_pairs(images, tmp_path):
    message = "batch_size must be at least the 1 processes, each in 5 parts, got 4"
    with pytest.raises(ValueError, match=message):
        trainer(config_of(images, tmp_path / "run", accumulate=5))


def test_a_default_run_keeps_what_it_kept(images, tmp_path):
    run = trainer(config_of(images, tmp_path / "run", steps=1))
    run.train()
    contents = read_checkpoint(run.out / "last.pt")
    assert not {"trained", "scaler"} & set(contents)
    assert type(run.optimizer) is torch.optim.Adam
    assert same(weights(run.out / "last.pt"), run.network.state_dict())
