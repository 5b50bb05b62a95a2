"""Networks of volumes: they train, go on where they stopped, and register what they are given."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from diffreg.cli.main import main
from diffreg.data.pairs import find_pairs
from diffreg.registration import register
from diffreg.training.checkpoint import load_network, read_checkpoint
from diffreg.training.config import Config
from diffreg.training.log import ValidationLog, read_log
from diffreg.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (16, 14, 12)


def head(at):
    x, y, z = np.indices(SHAPE)
    body = np.exp(-(((x - at) / 4) ** 2) - ((y - 7) / 3) ** 2 - ((z - 6) / 3) ** 2)
    return (200 * body + 20 * np.sin(x / 3 + y / 4 + z / 2)).astype(np.float32)


def save(file, array, spacing=(2.0, 2.0, 4.0)):
    nib.save(nib.Nifti1Image(array, np.diag([*spacing, 1.0])), file)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name, at in (("a", 7.0), ("b", 9.0), ("c", 8.0)):
        save(folder / f"{name}.nii", head(at))
    return folder


def settings(images, out, **changed):
    sections = {
        "data": {"images": [str(images)]},
        "model": {"dimensions": 3, "widths": [8, 8]},
        "objective": {"similarity": "ncc", "weights": [60, 1, 10, 3]},
        "optimizer": {
            "learning_rate": 1e-2,
            "final_learning_rate": 1e-3,
            "warmup_steps": 5,
            "clip_norm": 1.0,
        },
        "training": {"out": str(out), "steps": 60, "batch_size": 3, "checkpoint_every": 30},
    }
    both = {
        **sections,
        **{key: {**sections.get(key, {}), **table} for key, table in changed.items()},
    }
    both["training"]["threads"] = 1
    return Config.from_dict(both)


def trained(*arguments, **changed):
    run = Trainer(settings(*arguments, **changed), progress=False)
    run.train()
    return run


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """Long enough to learn something, with validation on the same pairs."""
    validation = {"data": {"images": [str(images)], "validation": [str(images)]}}
    return trained(images, tmp_path_factory.mktemp("run"), **validation)


@pytest.fixture
def checkpoint(run):
    return str(run.out / "last.pt")


def test_it_learns(run):
    log = read_log(run.out / "log.csv")
    totals = [entry.total for entry in log]
    assert len(totals) == 60 and np.mean(totals[-5:]) < 0.5 * np.mean(totals[:5])
    assert 0 < log[0].peak_memory <= log[-1].peak_memory
    (measured,) = read_log(run.out / "validation.csv", ValidationLog)
    assert measured.total < totals[0] and measured.smallest_determinant > 0
    assert (run.out / "pictures" / "step0000060.png").stat().st_size > 1000


def test_a_run_goes_on_to_the_bit(images, tmp_path):
    drawn = {
        "augmentation": {"amplitude": 0.5, "sigma": 4.0, "flip_axes": [0, 2]},
        "optimizer": {"final_learning_rate": 1e-2},
    }
    whole = trained(images, tmp_path / "whole", **drawn, training={"steps": 6})
    trained(images, tmp_path / "again", **drawn, training={"steps": 3})
    again = trained(images, tmp_path / "again", **drawn, training={"steps": 6, "resume": True})
    found, expected = (read_checkpoint(r.out / "last.pt")["weights"] for r in (again, whole))
    assert again.step == 6 and all(torch.equal(found[key], expected[key]) for key in expected)


def test_patches_are_a_function_of_the_seed_and_the_step(images, tmp_path):
    patch = {"augmentation": {"crop": [8, 10, 6], "amplitude": 0.5, "sigma": 4.0}}
    one, same = (trained(images, tmp_path / name, **patch, training={"steps": 2}) for name in "ab")
    assert one.dataset.batch([3, 4]).moving.shape == (2, 1, 8, 10, 6)
    for k in (0, 7):
        assert torch.equal(one.dataset.batch([k]).moving, same.dataset.batch([k]).moving)
    assert not torch.equal(one.dataset.batch([0]).moving, one.dataset.batch([6]).moving)
    found, expected = (read_checkpoint(r.out / "last.pt")["weights"] for r in (one, same))
    assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    "model",
    [{"half_resolution": True, "integrate": True}, {"name": "sn", "half_resolution": True}],
    ids=str,
)
def test_other_networks_train_and_are_loaded(images, tmp_path, model):
    if model.get("name") == "sn":
        model = {**model, "widths": None, "edges": None, "passes": None}
    sections = settings(images, tmp_path, training={"steps": 2}).to_dict()
    sections["model"] = {
        key: value for key, value in {**sections["model"], **model}.items() if value is not None
    }
    run = Trainer(Config.from_dict(sections), progress=False)
    run.train()
    network = load_network(run.out / "last.pt")["network"]
    moving, fixed, *_ = run.dataset.batch([0])
    torch.testing.assert_close(network(moving, fixed), run.network(moving, fixed))


def test_a_pair_is_registered_and_certified(images, tmp_path, checkpoint):
    pair = [str(images / f"{name}.nii") for name in "ab"]
    words = ["register", *pair, "-o", str(tmp_path / "out"), "--checkpoint", checkpoint]
    assert main([*words, "--affine", "none"]) == 0
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["method"] == "network"
    assert metrics["after"]["ncc"] > metrics["before"]["ncc"]
    assert metrics["certificate"]["verdict"] == "homeomorphism"


def test_its_displacement_is_refined(images, checkpoint):
    pair = [images / f"{name}.nii" for name in "ab"]
    result = register(*pair, **load_network(checkpoint), affine="none", refine=4, guarantee=True)
    said = result.metrics["refinement"]
    assert said["objective_after"] < said["objective_before"]
    assert result.metrics["folded_percent"] == 0


def test_a_folder_of_volumes_is_registered_whole(images, tmp_path, checkpoint, capsys):
    words = ["register", str(images), "-o", str(tmp_path / "out"), "--checkpoint", checkpoint]
    assert main([*words, "--affine", "none"]) == 0
    assert "every ordered pair of 3 images: 6 pairs" in capsys.readouterr().err
    assert len(list((tmp_path / "out").glob("*/displacement.nii.gz"))) == 6
    evaluated = ["evaluate", str(images), "-o", str(tmp_path / "measured")]
    assert main([*evaluated, "--checkpoint", checkpoint, "--affine", "none"]) == 0
    measured = json.loads((tmp_path / "measured" / "evaluation.json").read_text())
    assert len(measured["pairs"]) == 6


# what does not fit


def refusal(words, capsys):
    assert main(words) == 2
    return capsys.readouterr().err


def test_slices_are_refused_by_a_network_of_volumes(images, tmp_path, checkpoint, capsys):
    out = ["-o", str(tmp_path / "out"), "--checkpoint", checkpoint]
    said = refusal(["register", str(images), *out, "--by-slice"], capsys)
    assert "--by-slice makes slices of volumes, which the network takes whole" in said
    pair = [str(images / f"{name}.nii") for name in "ab"]
    said = refusal(["register", *pair, *out, "--slice", "3"], capsys)
    assert "must be (N, 1, D, H, W), got the image [1, 1, 16, 14]" in said


def test_volumes_are_refused_by_a_network_of_images(images, tmp_path, capsys):
    pair = [str(images / f"{name}.nii") for name in "ab"]
    out = ["-o", str(tmp_path / "out"), "--checkpoint", "lunet-cardiac-mr", "--affine", "none"]
    assert "register volumes slice by slice" in refusal(["register", *pair, *out], capsys)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data": {"slices": [2]}}, r"slices must be left out where volumes are taken whole"),
        ({"augmentation": {"crop": [4, 4]}}, r"\.nii: crop must be 3 sizes, or none, got \[4, 4\]"),
        ({"augmentation": {"crop": [4, 4, 20]}}, r"is larger than \[16, 14, 12\]"),
    ],
    ids=str,
)
def test_settings_that_do_not_fit_volumes(images, tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        Trainer(settings(images, tmp_path, **changed), progress=False)


def test_images_and_slices_are_no_volumes(images, tmp_path):
    for name in "ab":
        save(tmp_path / f"{name}.nii", head(8.0)[:, :, :1])
    with pytest.raises(ValueError, match=r"\w\.nii must be a volume, and holds one slice"):
        find_pairs([tmp_path], dimensions=3)
    lines = f"moving,fixed,slice\n{images / 'a.nii'},{images / 'b.nii'},3\n"
    (tmp_path / "pairs.csv").write_text(lines)
    with pytest.raises(ValueError, match=r"a slice of .*a\.nii is asked for, where volumes are"):
        find_pairs([tmp_path / "pairs.csv"], dimensions=3)
