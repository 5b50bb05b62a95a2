"""Validation, early stop, precision, logs: what a run of a day needs beside its steps."""

import math
import shutil
import sys

import numpy as np
import pytest
import torch
from runs import config_of, trainer, with_settings
from test_trainer import save_images, weights

from diffreg.data.images import read_image, write_image
from diffreg.metrics import folding
from diffreg.training.checkpoint import read_checkpoint
from diffreg.training.config import Config, load_config
from diffreg.training.log import ValidationLog, read_log
from diffreg.training.pretrained import checkpoint_path
from diffreg.training.validation import validate


@pytest.fixture
def images(tmp_path):
    return save_images(tmp_path / "images")


def validated(images, out, **training):
    """A run that validates on two patients' pairs, one of them with labels."""
    for name in "abc":
        image = read_image(images / f"{name}.nii")
        label = (image.data > 120).to(torch.uint8)
        write_image(images / f"label_{name}.nii", label, image, "uint8")
    rows = ["moving,fixed,moving_label,fixed_label,group"]
    rows += ["a.nii,b.nii,label_a.nii,label_b.nii,one", "b.nii,c.nii,,,one"]
    rows += ["c.nii,a.nii,,,two", "b.nii,a.nii,,,two"]
    (images / "pairs.csv").write_text("\n".join(rows))
    config = config_of(images / "pairs.csv", out, **{"validate_every": 2, **training})
    return with_settings(config, data={"validation_groups": ["one"]})


def test_a_validation_without_matplotlib_is_refused_before_the_first_step(
    images, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    run = trainer(validated(images, tmp_path / "run", steps=7))
    with pytest.raises(ImportError, match="matplotlib is needed for the pictures of a validation"):
        run.train()
    assert run.step == 0 and not run.out.exists()
    trainer(config_of(images, tmp_path / "run", steps=1)).train()


def test_validation_keeps_the_best_network_and_a_picture(images, tmp_path):
    run = trainer(validated(images, tmp_path / "run", steps=7))
    assert [pair.group for pair in run.dataset.pairs] == ["two", "two"]
    assert [pair.group for pair in run.validation.pairs] == ["one", "one"]
    run.train()
    log = read_log(run.out / "validation.csv", ValidationLog)
    assert [entry.step for entry in log] == [2, 4, 6, 7]
    best = min(log, key=lambda entry: entry.total)
    contents = read_checkpoint(run.out / "best.pt")
    assert contents["step"] == best.step == contents["best"]["step"]
    assert contents["best"]["total"] == pytest.approx(best.total, rel=1e-5)
    assert [p.name for p in sorted((run.out / "pictures").iterdir())] == [
        f"step000000{step}.png" for step in (2, 4, 6, 7)
    ]
    for path in (run.out / "pictures").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")
    assert str(run.out / "best.pt") in run.conclusion


def test_the_validation_is_of_the_pairs_as_they_are(images, tmp_path):
    run = trainer(validated(images, tmp_path / "run", steps=2))
    run.train()
    (entry,) = read_log(run.out / "validation.csv", ValidationLog)
    totals, dices = [], []
    for sample in map(run.validation.sample, range(len(run.validation))):
        with torch.no_grad():
            u = run.network(sample.moving, sample.fixed)
        totals.append(run.objective(sample.moving, sample.fixed, u).total.item())
        if sample.fixed_label is not None:
            a, b = sample.moving_label, sample.fixed_label
            dices.append(
                2 * float(((a > 0) & (b > 0)).sum()) / float((a > 0).sum() + (b > 0).sum())
            )
    assert entry.total == pytest.approx(sum(totals) / 2, rel=1e-5)
    assert len(dices) == 1 and entry.dice_before == pytest.approx(dices[0], rel=1e-5)
    assert 0 < entry.dice <= 1 and entry.smallest_determinant > 0 and entry.folded_percent == 0


def test_folds_and_overlaps_of_known_displacements(images, tmp_path):
    """Of the first pair, which has labels, two of 23 x 19 cells fold; the second stays as it is."""
    run = trainer(validated(images, tmp_path / "run"))
    moved = torch.zeros(1, 2, 24, 20)
    moved[:, 0] = -1.0  # voxel i shows voxel i - 1
    moved[0, 0, 20, 4] += 1.5  # past its neighbour: an edge of -0.5
    known = iter([moved, torch.zeros_like(moved)])
    found = validate(
        lambda moving, fixed: next(known),
        run.validation,
        lambda images, displacement, mask, truth: torch.arange(9.0) * displacement.std(),
        run.ranks,
        step=7,
    )
    terms = (torch.arange(9.0) * moved.std() / 2).tolist()
    assert found[:6] == pytest.approx((7, *terms[:5]))
    assert found[10:] == pytest.approx(terms[5:])
    assert found.smallest_determinant == -0.5
    assert found.folded_percent == pytest.approx(100 * 2 / (23 * 19) / 2)
    sample = run.validation.sample(0)
    a, b = (label[0, 0].numpy() > 0 for label in (sample.moving_label, sample.fixed_label))
    shifted = np.concatenate([a[:1], a[:-1]])
    assert not shifted[18:].any()
    for overlap, warped in ((found.dice_before, a), (found.dice, shifted)):
        assert overlap == pytest.approx(2 * (warped & b).sum() / (warped.sum() + b.sum()))
    assert found.dice != pytest.approx(found.dice_before, abs=0.05)


def test_without_labels_there_is_no_overlap(images, tmp_path):
    config = with_settings(
        config_of(images, tmp_path / "run", steps=1), data={"validation": [str(images)]}
    )
    run = trainer(config)
    run.train()
    (entry,) = read_log(run.out / "validation.csv", ValidationLog)
    assert math.isnan(entry.dice)


def test_a_run_that_gets_no_better_stops_and_stays_stopped(images, tmp_path):
    config = validated(images, tmp_path / "run", steps=50, patience=2)
    run = trainer(with_settings(config, optimizer={"learning_rate": 1e-12}))
    run.best = {"total": -math.inf, "step": 0}
    run.train()
    assert run.step == 4 and "stopped early" in run.conclusion
    assert read_checkpoint(run.out / "last.pt")["step"] == 4
    again = trainer(with_settings(run.config, training={"resume": True}))
    again.train()
    assert again.step == 4


def test_a_resumed_run_validates_as_one_that_never_stopped(images, tmp_path):
    whole = trainer(validated(images, tmp_path / "whole", steps=8, checkpoint_every=3))
    whole.train()
    half = trainer(validated(images, tmp_path / "half", steps=8, checkpoint_every=3))
    step = half._take_step

    def killed_after_the_fifth():
        if half.step == 5:
            raise KeyboardInterrupt
        return step()

    half._take_step = killed_after_the_fifth
    with pytest.raises(KeyboardInterrupt):
        half.train()
    assert read_checkpoint(half.out / "last.pt")["step"] == 3
    resumed = trainer(with_settings(half.config, training={"resume": True}))
    resumed.train()
    for name in ("last.pt", "best.pt"):
        one, other = (weights(run.out / name) for run in (whole, resumed))
        assert all(torch.equal(one[key], other[key]) for key in one)
    logs = [read_log(run.out / "validation.csv", ValidationLog) for run in (whole, resumed)]
    assert str(logs[0]) == str(logs[1])


def test_a_folder_validates_on_a_share_of_its_images(images, tmp_path):
    for name, source in ("da", "eb"):
        shutil.copy(images / f"{source}.nii", images / f"{name}.nii")
    config = config_of(images, tmp_path / "run", steps=2, validate_every=2)
    run = trainer(with_settings(config, data={"validation_share": 0.3}))
    assert len(run.dataset) == 3 * 2 and len(run.validation) == 2
    run.train()
    assert len(read_log(run.out / "validation.csv", ValidationLog)) == 1


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": {"patience": 3}}, "patience needs pairs to validate on"),
        ({"data": {"validation_share": 0.5}}, "keeps 2 of 3 images out, which leaves no pair"),
        ({"data": {"validation_groups": ["x"]}}, "no groups to split by"),
    ],
)
def test_a_validation_that_cannot_be(images, tmp_path, sections, message):
    with pytest.raises(ValueError, match=message):
        trainer(with_settings(config_of(images, tmp_path / "run"), **sections))


@pytest.mark.parametrize(
    ("section", "settings", "message"),
    [
        ("training", {"precision": "half"}, r"precision must be one of float32, bfloat16"),
        ("training", {"device": "tpu"}, r"device must be one of auto, cpu, cuda"),
        ("training", {"validate_every": 0}, "validate_every must be at least 1"),
        ("data", {"validation_share": 1.0}, r"validation_share must be in \[0, 1\)"),
        ("data", {"validation_share": 0.5, "validation": ["x"]}, "three ways to say one thing"),
        ("optimizer", {"warmup_steps": -1}, "warmup_steps must be at least 0"),
        ("augmentation", {"crop": [5]}, "crop must be 2 or 3 sizes of at least 1"),
        ("objective", {"window": 4}, r"\[objective\] window must be odd and positive, got 4"),
        ("objective", {"window": 2.5}, r"objective\.window must be a whole number, got 2\.5"),
    ],
)
def test_settings_that_are_refused(section, settings, message):
    with pytest.raises(ValueError, match=message):
        Config.from_dict({section: settings})


def test_a_run_begins_with_the_weights_of_another(images, tmp_path):
    first = trainer(config_of(images, tmp_path / "first", steps=2))
    first.train()
    kept = weights(first.out / "last.pt")
    again = with_settings(
        config_of(images, tmp_path / "again", steps=2),
        training={"start": str(first.out / "last.pt"), "seed": 7},
    )
    second = trainer(again)
    assert all(torch.equal(kept[k], w) for k, w in second.network.state_dict().items())
    assert second.step == 0
    second.train()
    trained = weights(second.out / "last.pt")
    assert any(not torch.equal(kept[k], w) for k, w in trained.items())
    # Going on is from its own checkpoint: the one that it began with may be gone.
    (first.out / "last.pt").unlink()
    moved = {"start": "/elsewhere/last.pt", "steps": 3, "resume": True}
    gone_on = trainer(with_settings(again, training=moved))
    assert gone_on.step == 2
    assert all(torch.equal(trained[k], w) for k, w in gone_on.network.state_dict().items())


def test_a_start_that_does_not_fit(images, tmp_path):
    config = config_of(images, tmp_path / "run")
    with pytest.raises(FileNotFoundError, match=r"nothing\.pt does not exist, and is none of"):
        trainer(with_settings(config, training={"start": "nothing.pt"}))
    with pytest.raises(ValueError, match="is a folder, not a checkpoint"):
        trainer(with_settings(config, training={"start": str(tmp_path)}))
    other = with_settings(config, model={"integrate": True})
    wrong = r"lunet-cardiac-mr has .*integrate = False, and .model. has .*integrate = True"
    with pytest.raises(ValueError, match=wrong):
        trainer(with_settings(other, training={"start": "lunet-cardiac-mr"}))
    assert not (tmp_path / "run").exists()


def test_a_folder_of_the_name_of_a_network_does_not_stand_in_its_way(tmp_path, monkeypatch):
    (tmp_path / "lunet-cardiac-mr").mkdir()
    monkeypatch.chdir(tmp_path)
    assert checkpoint_path("lunet-cardiac-mr").is_file()


def test_the_rate_warms_up(images, tmp_path):
    config = config_of(images, tmp_path / "run", steps=12)
    run = trainer(with_settings(config, optimizer={"warmup_steps": 3}))
    rates = [run.learning_rate(step) for step in (0, 1, 2, 3, 11)]
    assert rates == pytest.approx([2.5e-3, 5e-3, 7.5e-3, 1e-2, 1e-3])


@pytest.mark.parametrize(
    "options", [{"precision": "bfloat16"}, {"channels_last": True}], ids=lambda o: next(iter(o))
)
def test_faster_ways_to_the_same_field(images, tmp_path, options):
    plain, fast = (
        trainer(config_of(images, tmp_path / name, **extra))
        for name, extra in (("plain", {}), ("fast", options))
    )
    entries = [[run.train_step() for _ in range(3)] for run in (plain, fast)]
    for one, other in zip(*entries, strict=True):
        assert one.total == pytest.approx(other.total, rel=1e-2)
        assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=5e-2)
    kinds = {p.dtype for p in fast.network.parameters()}
    assert kinds == {torch.float32}  # autocast keeps the weights


def test_half_precision_reaches_the_convolutions(images, tmp_path):
    run = trainer(config_of(images, tmp_path / "run", precision="bfloat16"))
    seen = []
    for module in run.network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    run.train_step()
    assert seen.count(torch.bfloat16) >= 4 and seen[-1] == torch.float32  # the head's is exact


def test_the_channels_order_reaches_the_weights(images, tmp_path):
    run = trainer(config_of(images, tmp_path / "run", channels_last=True))
    weight = next(p for p in run.network.parameters() if p.ndim == 4 and min(p.shape[:2]) > 1)
    assert weight.is_contiguous(memory_format=torch.channels_last)
    run.train_step()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, of its own modules
def test_a_compiled_network_takes_the_same_steps(images, tmp_path):
    plain, compiled = (
        trainer(config_of(images, tmp_path / name, compile=name == "fast", steps=3))
        for name in ("plain", "fast")
    )
    for _ in range(2):
        one, other = plain.train_step(), compiled.train_step()
        assert one.total == pytest.approx(other.total, rel=1e-4)
    compiled.out.mkdir()
    compiled.save_checkpoint()
    assert set(weights(compiled.out / "last.pt")) == set(plain.network.state_dict())


def test_tensorboard_shows_losses_folds_rate_and_a_picture(images, tmp_path):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="TensorBoard is not here"
    )
    run = trainer(validated(images, tmp_path / "run", steps=4, tensorboard=True))
    run.train()
    seen = events.EventAccumulator(str(run.out / "tensorboard"))
    seen.Reload()
    tags = seen.Tags()
    for name in ("total", "similarity", "folded_percent", "learning_rate", "pairs_per_second"):
        assert f"training/{name}" in tags["scalars"]
    assert [event.step for event in seen.Scalars("training/total")] == [1, 2, 3, 4]
    assert [event.step for event in seen.Images("validation/pair")] == [2, 4]


def test_the_log_says_how_much_folds(images, tmp_path):
    run = trainer(config_of(images, tmp_path / "run"))
    with torch.no_grad():
        head = run.network.head
        head.weight.normal_(generator=torch.Generator().manual_seed(0)).mul_(50)
    predict, fields = run._steps.step.predict, []
    run._steps.step.predict = lambda *pair: fields.append(predict(*pair)) or fields[-1]
    entry = run.train_step()
    assert entry.smallest_determinant < 0 < entry.folded_percent <= 100
    each = [folding(u) for u in fields[0].detach().split(1)]
    assert entry.folded_percent == pytest.approx(np.mean([f["folded_percent"] for f in each]))
    smallest = min(f["min_determinant"] for f in each)
    assert entry.smallest_determinant == pytest.approx(smallest, rel=1e-4)


def test_the_network_and_the_optimizer_of_a_run_cannot_be_replaced(images, tmp_path):
    """The old one was trained, and the file that was saved could not be read."""
    run = trainer(config_of(images, tmp_path / "run"))
    with pytest.raises(AttributeError, match=r"Trainer\.network cannot be replaced: .*model\.name"):
        run.network = torch.nn.Conv2d(2, 2, 3)
    with pytest.raises(AttributeError, match=r"Trainer\.optimizer cannot be replaced"):
        run.optimizer = torch.optim.SGD(run.network.parameters())
    run.train()
    assert run.step == run.config.training.steps


def test_a_start_is_relative_to_its_file(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "config.toml").write_text('[training]\nstart = "first/best.pt"\n')
    (tmp_path / "runs" / "bare").write_text("")
    found = load_config(tmp_path / "runs" / "config.toml")
    assert found.training.start == str(tmp_path / "runs" / "first" / "best.pt")
    monkeypatch.chdir(tmp_path)
    for given, expected in (
        ("x.pt", str(tmp_path / "x.pt")),  # of an override: to the working folder
        ("lunet-cardiac-mr", "lunet-cardiac-mr"),
        ("runs/bare", str(tmp_path / "runs" / "bare")),
    ):
        override = f"training.start={given}"
        assert load_config("runs/config.toml", [override]).training.start == expected


def test_the_best_is_that_of_the_pairs_validated_on(images, tmp_path):
    """Not the training loss of a run without, nor a validation of others."""
    out = tmp_path / "run"
    plain = trainer(config_of(images, out, steps=2))
    plain.train()
    assert plain.best == {} and "best.pt" not in plain.conclusion
    sections = plain.config.to_dict()
    sections["data"] |= {"validation": [str(images / "a.nii"), str(images / "b.nii")]}
    sections["training"] |= {"steps": 4, "validate_every": 2, "resume": True}
    going_on = trainer(Config.from_dict(sections))
    assert going_on.best == {}
    going_on.train()
    assert going_on.best["step"] == 4 and (out / "best.pt").exists()
    sections["data"] |= {"validation": [str(images / "a.nii"), str(images / "c.nii")]}
    assert trainer(Config.from_dict(sections)).best == {}
    sections["data"] |= {"validation": [str(images / "a.nii"), str(images / "b.nii")]}
    assert trainer(Config.from_dict(sections)).best == going_on.best


def test_steps_taken_by_hand_are_saved_where_the_run_ends(images, tmp_path):
    run = trainer(config_of(images, tmp_path / "run", steps=4, checkpoint_every=3))
    run.take(4)
    run.train()
    assert read_checkpoint(run.out / "last.pt")["step"] == 4


def test_another_network_on_the_command_line_is_of_the_same_dimensions(tmp_path):
    (tmp_path / "c.toml").write_text("[model]\ndimensions = 3\nwidths = [4, 8]\n")
    found = load_config(tmp_path / "c.toml", ["model.name=sn"]).model
    assert (found.name, found.dimensions) == ("sn", 3)
