"""Training: it learns, it reaches the compiled operators, and it goes on where it stopped."""

import errno
import math
import os
from dataclasses import replace
from itertools import permutations

import nibabel as nib
import numpy as np
import pytest
import torch
from runs import config_of, head, trainer
from torch.utils._python_dispatch import TorchDispatchMode

import diffreg.ops
from diffreg.cli.main import main
from diffreg.data.images import read_image
from diffreg.registration import register
from diffreg.training import load_network
from diffreg.training.checkpoint import FORMAT, read_checkpoint
from diffreg.training.config import Config
from diffreg.training.log import StepLog, read_log
from diffreg.training.trainer import NonFiniteLoss


def save_images(folder):
    folder.mkdir()
    for name, at in (("a", 11.0), ("b", 13.0), ("c", 12.0)):
        nib.save(nib.Nifti1Image(head(at), np.diag([2.0, 2.0, 4.0, 1.0])), folder / f"{name}.nii")
    return folder


@pytest.fixture
def images(tmp_path):
    return save_images(tmp_path / "images")


@pytest.fixture
def settings(images, tmp_path):
    """Makes a Config of a short run, its training section as given."""
    return lambda **training: config_of(images, **{"out": tmp_path / "run", **training})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run long enough to learn something; its images are beside its results."""
    folder = tmp_path_factory.mktemp("trained")
    sections = config_of(
        save_images(folder / "images"), folder / "run", steps=100, seed=5
    ).to_dict()
    # With these most seeds learn.
    sections["model"]["widths"] = [8, 16]
    sections["objective"]["weights"] = [60, 1, 30, 3]
    sections["optimizer"] = {"learning_rate": 5e-3, "warmup_steps": 5, "clip_norm": 1.0}
    run = trainer(Config.from_dict(sections))
    run.train()
    return run


def weights(path):
    return read_checkpoint(path)["weights"]


def test_it_learns(trained):
    log = read_log(trained.out / "log.csv")
    assert [entry.step for entry in log] == list(range(1, 101))
    first, last = (np.mean([e.total for e in part]) for part in (log[:10], log[-10:]))
    assert last < 0.5 * first
    assert min(entry.smallest_determinant for entry in log) > 0


def test_a_step_reaches_the_compiled_operators_and_no_reference(settings, monkeypatch):
    def forbidden(*args, **keywords):
        raise AssertionError("a reference was called")

    for name in [name for name in diffreg.ops.__all__ if name.endswith("_reference")]:
        operator = name.removesuffix("_reference")
        module = __import__(f"diffreg.ops.{operator}", fromlist=[name])
        monkeypatch.setattr(module, name, forbidden)
        monkeypatch.setattr(diffreg.ops, name, forbidden)
    seen = set()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.namespace == "diffreg":
                seen.add(function._schema.name.removeprefix("diffreg::"))
            return function(*args, **(kwargs or {}))

    config = settings()
    for similarity, operators in (("ncc", set()), ("pls", {"gradient_scale"})):
        sections = {**config.to_dict(), "objective": {"similarity": similarity}}
        run = trainer(Config.from_dict(sections))
        seen.clear()
        with Recorder():
            run.train_step()
        # One call: the gradient of the total is kept from it.
        assert seen >= {"registration_objective", *operators}
        assert not any(name.endswith("_backward") for name in seen)


def test_a_killed_run_goes_on_to_the_same_bits(settings, tmp_path):
    whole = trainer(settings(out=str(tmp_path / "whole"), steps=7))
    whole.train()

    class Killed(BaseException):
        pass

    stopped = trainer(settings(steps=7))
    step = stopped._take_step

    def killed_in_the_fifth():
        if stopped.step == 4:
            raise Killed
        return step()

    stopped._take_step = killed_in_the_fifth
    with pytest.raises(Killed):
        stopped.train()
    assert read_checkpoint(stopped.out / "last.pt")["step"] == 3

    resumed = trainer(settings(steps=7, resume=True))
    assert resumed.step == 3
    resumed.train()
    ends = [read_checkpoint(run.out / "last.pt") for run in (whole, resumed)]
    for name, value in ends[0]["weights"].items():
        assert torch.equal(value, ends[1]["weights"][name]), name
    for key in ("optimizer", "step", "epoch", "best"):
        assert str(ends[0][key]) == str(ends[1][key])
    logs = [[entry[:11] for entry in read_log(run.out / "log.csv")] for run in (whole, resumed)]
    assert logs[0] == logs[1]


def test_the_same_seed_gives_the_same_bits(settings, tmp_path):
    ends = []
    for name, seed in (("one", 0), ("same", 0), ("other", 1)):
        torch.rand(3)  # what happened to torch's own random numbers does not matter
        trainer(settings(out=str(tmp_path / name), seed=seed)).train()
        ends.append(weights(tmp_path / name / "last.pt"))
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    assert not all(torch.equal(ends[0][key], ends[2][key]) for key in ends[0])


def test_every_step_and_every_rank_draws_random_numbers_of_its_own(settings):
    """As dropout does: those of step 2 are not those of step 1 again, nor another rank's."""
    seen = []
    for rank in (0, 1):
        run = trainer(settings())
        step = run._steps.step
        step.ranks = replace(step.ranks, rank=rank)
        run.network.register_forward_hook(lambda *_: seen.append(torch.rand(1).item()))
        for _ in range(3):
            run.train_step()
    assert len(set(seen)) == len(seen) == 6


def test_training_leaves_torchs_random_numbers_and_threads_alone(settings):
    torch.manual_seed(5)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(5)
    trainer(settings()).train()
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_a_checkpoint_holds_what_is_needed(settings, tmp_path):
    config = settings()
    trainer(config).train()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"last.pt", "log.csv"}
    contents = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert contents["format"] == FORMAT
    assert Config.from_dict(contents["config"]) == config
    assert type(contents["versions"]["torch"]) is str
    assert (contents["step"], contents["epoch"]) == (6, 4)
    assert contents["spacing"] == [1.0, 1.0]
    assert contents["best"] == {} and contents["validation"] == []  # none was validated
    assert contents["pairs"] == ["every ordered pair of 3 images:", "a.nii", "b.nii", "c.nii"]


def test_a_checkpoint_registers(trained):
    arguments = load_network(trained.out / "last.pt")
    assert (arguments["similarity"], arguments["normalization"].upper) == ("ncc", 99.5)
    pair = [read_image(trained.out.parent / "images" / f"{name}.nii") for name in "ab"]
    result = register(*pair, **arguments)
    assert result.metrics["after"]["ncc"] > result.metrics["before"]["ncc"]
    assert result.method == "network"


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("network", r"load weights with Trainer\.network\.load_state_dict"),
        ("objective", r"give the settings \(objective\.\*\)"),
        ("optimizer", r"give the settings \(optimizer\.\*\)"),
        ("dataset", "give dataset to the Trainer"),
        ("validation", "give validation to the Trainer"),
        ("ranks", "give ranks to the Trainer"),
        ("config", "make a Trainer of the other settings"),
        ("out", r"give the settings \(training\.out\)"),
    ],
)
def test_what_a_run_is_made_of_cannot_be_replaced(settings, name, instead):
    run = trainer(settings())
    before = getattr(run, name)
    with pytest.raises(AttributeError, match=rf"Trainer\.{name} cannot be replaced: .*{instead}"):
        setattr(run, name, None)
    assert getattr(run, name) is before


def test_a_layer_that_would_not_be_trained_is_refused(settings):
    run = trainer(settings())
    run.network.head = torch.nn.Conv2d(4, 2, 3, padding=1)
    with pytest.raises(ValueError, match=r"parameters of Trainer\.network were added, removed or"):
        run.train()
    assert not (run.out / "last.pt").exists()


def test_other_weights_are_trained_and_saved(settings):
    """What the message says instead of another network."""
    run = trainer(settings(steps=1))
    other = trainer(settings(seed=7)).network.state_dict()
    run.network.load_state_dict(other)
    run.train()
    saved, apart = weights(run.out / "last.pt"), 0.0
    for key, value in load_network(run.out / "last.pt")["network"].state_dict().items():
        assert torch.equal(value, saved[key])
        apart = max(apart, (value - other[key]).abs().max().item())
    assert 0 < apart <= 1.01e-2  # one step of Adam: its rate


class Poison(torch.nn.Module):
    """An objective that is not finite from some step on."""

    def __init__(self, objective, run, step, where):
        super().__init__()
        self.objective, self.run, self.step, self.where = objective, run, step, where

    def forward(self, moving, fixed, displacement, mask=None, return_warped=True):
        terms = self.objective(moving, fixed, displacement, mask, return_warped)
        if self.run.step + 1 < self.step:
            return terms
        if self.where == "loss":
            return terms._replace(total=terms.total * math.nan)
        root = (displacement - displacement.detach()).square().sum().sqrt()  # 0, slope 0 / 0
        return terms._replace(total=terms.total + root)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run(settings, where):
    run = trainer(settings())
    run._steps.step.objective = Poison(run.objective, run, 5, where)
    with pytest.raises(NonFiniteLoss, match=r"at step 5, pairs \w\.nii to .*; .*last\.pt") as error:
        run.train()
    assert str(error.value).count(" to ") == 4
    assert all(torch.isfinite(value).all() for value in run.network.state_dict().values())
    kept = read_checkpoint(run.out / "last.pt")
    assert kept["step"] == 3
    assert len(read_log(run.out / "log.csv")) == 4


def test_the_learning_rate_falls_by_half_a_cosine(settings):
    run = trainer(settings(steps=11))
    rates = [run.learning_rate(step) for step in (0, 5, 10, 20)]
    assert rates == pytest.approx([1e-2, 5.5e-3, 1e-3, 1e-3])
    sections = run.config.to_dict()
    del sections["optimizer"]["final_learning_rate"]
    sections["training"]["resume"] = True
    constant = trainer(Config.from_dict(sections))
    assert constant.learning_rate(0) == constant.learning_rate(10) == 1e-2


def test_a_long_gradient_is_shortened(settings):
    run = trainer(settings())
    sections = run.config.to_dict()
    sections["optimizer"]["clip_norm"] = 1e-3
    clipped = trainer(Config.from_dict(sections))
    norms = [each.train_step().gradient_norm for each in (run, clipped)]
    assert norms[0] == norms[1] > 1e-3  # the log has it as it was
    gradients = [p.grad for p in clipped.network.parameters()]
    assert torch.nn.utils.get_total_norm(gradients).item() == pytest.approx(1e-3, rel=1e-3)


def test_an_earlier_run_is_not_overwritten(settings, images):
    """And that is said before images are read, which may be moved onto each other for minutes."""
    trainer(settings()).train()
    for image in images.iterdir():
        image.write_bytes(b"read")
    with pytest.raises(ValueError, match=r"last\.pt is the checkpoint of an earlier run: set"):
        trainer(settings())
    with pytest.raises(ValueError, match=r"a run with training\.batch_size = 4, not 2"):
        trainer(settings(batch_size=2, resume=True))


def test_a_checkpoint_that_names_every_pair_is_gone_on_with(settings, tmp_path):
    """Those of earlier releases did."""
    run = trainer(settings(steps=2))
    run.train()
    path = tmp_path / "run" / "last.pt"
    contents = read_checkpoint(path)
    each = [f"{a}.nii to {b}.nii" for a, b in permutations("abc", 2)]
    torch.save({**contents, "pairs": each}, path)
    trainer(settings(steps=3, resume=True)).train()
    assert read_checkpoint(path)["step"] == 3
    torch.save({**contents, "pairs": each[::-1]}, path)
    with pytest.raises(ValueError, match="a run on other pairs"):
        trainer(settings(steps=3, resume=True))


def test_another_run_is_not_gone_on_with(settings, images):
    trainer(settings()).train()
    with pytest.raises(ValueError, match=r"a run with training\.batch_size = 4, not 2"):
        trainer(settings(batch_size=2, resume=True))
    other = {**settings(resume=True).to_dict(), "model": {"name": "sn"}}
    with pytest.raises(ValueError, match=r"a run with model\.name = 'lunet', not 'sn'"):
        trainer(Config.from_dict(other))  # before the settings that one of the two has not
    (images / "c.nii").rename(images / "d.nii")
    with pytest.raises(ValueError, match="a run on other pairs"):
        trainer(settings(resume=True))


def test_a_run_can_be_made_longer(settings):
    trainer(settings()).train()
    run = trainer(settings(steps=8, resume=True))
    run.train()
    assert read_checkpoint(run.out / "last.pt")["step"] == 8
    assert [entry.step for entry in read_log(run.out / "log.csv")] == list(range(1, 9))


def test_a_log_whose_last_line_is_torn(tmp_path):
    entry = StepLog(1, 0, *(0.5,) * 11)
    text = ",".join(StepLog._fields) + "\n" + ",".join(map(str, entry)) + "\n2,0,0.3"
    (tmp_path / "log.csv").write_text(text)
    assert read_log(tmp_path / "log.csv") == [entry]


def hostile(path):
    class Runs:
        def __reduce__(self):
            return (print, ("code that must not run",))

    torch.save({"format": FORMAT, "weights": Runs()}, path)


def test_files_that_are_no_checkpoint(tmp_path, capfd):
    path = tmp_path / "c.pt"
    with pytest.raises(FileNotFoundError, match=r"c\.pt does not exist"):
        load_network(path)
    for write in (
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(b"not a checkpoint"),
        lambda: hostile(path),
        lambda: torch.save({"weights": {}}, path),
        lambda: torch.save([1, 2], path),
    ):
        write()
        with pytest.raises(ValueError, match=r"c\.pt is no checkpoint"):
            load_network(path)
    assert "must not run" not in capfd.readouterr().out


def test_the_command_line_trains_and_registers(images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text(
        "[data]\nimages = 'images'\n[model]\nwidths = [4, 8]\n[training]\nout = 'run'\nthreads = 1"
    )
    words = ["train", "config.toml", "training.steps=2", "training.batch_size=2"]
    assert main(words) == 0
    assert "2/2" in capsys.readouterr().err
    assert read_checkpoint("run/last.pt")["step"] == 2
    pair = ["images/a.nii", "images/b.nii"]
    assert main(["register", *pair, "--checkpoint", "run/last.pt", "-o", "out"]) == 0
    assert "(network, ncc+lncc)" in capsys.readouterr().out
    assert main(["train", "config.toml"]) == 2
    assert "set training.resume=true" in capsys.readouterr().err
    assert main(["train", "config.toml", "training.step=2"]) == 2
    assert "the nearest is training.steps" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    assert "; training.steps is 2: give more to go on" in capsys.readouterr().out

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # write() knows no name

    monkeypatch.setattr(torch, "save", fail)
    assert main([*words, "--resume", "training.steps=3"]) == 2
    last = tmp_path / "run" / "last.pt"
    assert f"diffreg: error: {last}: no space left on device" in capsys.readouterr().err
