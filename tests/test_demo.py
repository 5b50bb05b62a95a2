"""The demo: what it ships, what it leaves, and how it judges itself."""

import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from coarse import coarse_heads

import diffreg
from diffreg.data.pairs import find_pairs
from diffreg.demo import raw
from diffreg.demo import run as demo
from diffreg.demo.measures import HEADS, HELD_OUT, METHODS, Case, targets
from diffreg.metrics import folding
from diffreg.training.checkpoint import read_checkpoint
from diffreg.training.config import load_config

pytestmark = pytest.mark.slow

FILES = ("colin27_t1", "mni152_t1", "mni152_gm")


@pytest.mark.parametrize("name", FILES)
def test_a_head_keeps_its_place_in_space(name):
    head = nib.load(HEADS / f"{name}.nii.gz")
    assert head.shape == (96, 112, 21)
    assert head.get_data_dtype() == np.uint8
    # 2 x 2 voxels of 1 mm in one: the centre of the first lies half a small voxel further on.
    expected = [[2, 0, 0, -95.5], [0, 2, 0, -125.5], [0, 0, 4, -24], [0, 0, 0, 1]]
    assert np.array_equal(head.affine, expected)


def test_what_is_shipped_is_small_and_has_its_notices():
    assert sum(path.stat().st_size for path in HEADS.iterdir()) < 1e6
    notice = (HEADS / "NOTICE.md").read_text()
    for words in ("Louis Collins", "without fee", "Chris Rorden", "The nilearn developers", *FILES):
        assert words in notice


@pytest.mark.parametrize("task", demo.TASKS, ids=lambda task: task.name)
def test_the_held_out_slices_are_not_trained_on(task):
    config = load_config(HEADS / f"{task.name}.toml")
    trained = {pair.fixed_slice for pair in find_pairs(config.data.images, config.data.slices)}
    assert trained == set(range(21)) - {k + above for k in HELD_OUT for above in (0, 1)}
    assert config.objective.weights == (60, 1, 30, 3)


def test_the_second_training_never_sees_the_fixed_heads_t1():
    config = load_config(HEADS / "cross_contrast.toml")
    pairs = find_pairs(config.data.images, config.data.slices)
    assert {(pair.moving.name, pair.fixed.name) for pair in pairs} == {
        ("colin27_t1.nii.gz", "mni152_gm.nii.gz")
    }


QUICK = ("training.steps=2", "training.batch_size=2", "training.threads=1")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A demo on coarse volumes, of two steps for each training, on one held-out slice.

    What it leaves, finds and says.
    """
    out = tmp_path_factory.mktemp("demo")
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said):
        patch.setattr(demo, "HELD_OUT", HELD_OUT[:1])
        moving, fixed = coarse_heads(tmp_path_factory.mktemp("coarse"))
        patch.setattr(raw, "MOVING", moving)
        patch.setattr(raw, "FIXED", fixed)
        lines = demo.run(out, QUICK, progress=False)
    return out, lines, said.getvalue()


def test_it_leaves_report_images_figures_and_checkpoints(small):
    out, *_ = small
    assert {path.name for path in out.iterdir()} == {
        "picture.png",
        "report.html",
        "metrics.json",
        "first",
        "heads",
        "same_contrast",
        "cross_contrast",
    }
    assert {path.name for path in (out / "cross_contrast").iterdir()} == {
        "last.pt",
        "log.csv",
        "colin27_t1_to_mni152_gm_slice03_warped.nii.gz",
        "colin27_t1_to_mni152_gm_slice03_displacement.nii.gz",
    }
    assert read_checkpoint(out / "same_contrast" / "last.pt")["step"] == 2


def test_a_registration_is_shown_before_anything_is_trained(small):
    out, _, said = small
    assert said.index("1 of 4") < said.index("first/report.html") < said.index("2 of 4")
    names = {path.name for path in (out / "first").iterdir()}
    assert names == {
        "warped.nii.gz",
        "displacement.nii.gz",
        "affine.mat",
        "metrics.json",
        "report.html",
    }


def test_every_stage_says_what_it_does_and_how_long_it_takes(small):
    stages = re.findall(r"^(\d) of 4: \w.*\(usually \d+ seconds\)$", small[2], re.MULTILINE)
    assert stages == ["1", "2", "3", "4"]


def test_the_report_credits_and_says_what_it_shows(small):
    report = (small[0] / "report.html").read_text()
    for words in ("Louis Collins", "this shows the machinery, not accuracy", *METHODS):
        assert words.replace("'", "&#x27;") in report


def test_the_figures_of_every_method(small):
    facts = json.loads((small[0] / "metrics.json").read_text())
    assert set(facts["means"]) == {
        "colin27_t1 to mni152_t1",
        "mni152_t1 to colin27_t1",
        "colin27_t1 to mni152_gm",
    }
    for direction, methods in facts["means"].items():
        assert tuple(methods) == METHODS
        identity, variational = methods["identity"], methods["variational"]
        assert identity["min_determinant"] == 1
        assert variational["mutual_information"] > identity["mutual_information"]
        assert variational["dice"] > identity["dice"]
        same = not direction.endswith("gm")
        assert (identity.get("relative_ssd") == 1) is same
        assert ("unseen_t1_ncc" not in identity) is same
        assert variational["milliseconds"] > methods["network"]["milliseconds"] > 0


def test_two_steps_do_not_pass_for_a_trained_network(small):
    out, lines, _ = small
    assert not all(line.met for line in lines)
    assert json.loads((out / "metrics.json").read_text())["targets"][0]["met"]


def test_a_finished_demo_is_not_trained_again(small, capsys):
    out, *_ = small
    config = demo.settings(demo.TASKS[0], out, QUICK)
    before = (out / "same_contrast" / "last.pt").stat().st_mtime_ns
    demo.train(demo.TASKS[0], config, progress=False)
    assert "step 2" in capsys.readouterr().out
    assert (out / "same_contrast" / "last.pt").stat().st_mtime_ns == before


def test_a_case_measures_what_it_says():
    case = Case("colin27_t1", "mni152_gm", 3)
    shift = torch.zeros(1, 2, 96, 112)
    still = case.measure(shift)
    assert {"milliseconds", "ncc"}.isdisjoint(still)
    shift[:, 0] = 8
    moved = case.measure(shift, 0.5)
    assert moved["milliseconds"] == 500
    assert moved["dice"] < still["dice"] and moved["unseen_t1_ncc"] < still["unseen_t1_ncc"]
    assert folding(shift)["min_determinant"] == moved["min_determinant"] == 1


def figures(ssd=0.5, dice=0.98, mi=1.0, t1=0.8):
    same = {"relative_ssd": ssd, "dice": dice, "mutual_information": mi}
    cross = {"dice": dice, "mutual_information": mi, "unseen_t1_ncc": t1}
    return same, cross


def test_the_lines_are_met_or_not():
    names = ("identity", "mean training field", "neighbour slice's field", "network")
    values = [(1.0, 0.96, 0.8, 0.65), (0.6, 0.97, 0.9, 0.7), (0.6, 0.97, 0.9, 0.7), (0.5,)]
    rows = [figures(*value) for value in values]
    means = {
        "one": {name: row[0] for name, row in zip(names, rows, strict=True)},
        "two": {name: row[1] for name, row in zip(names, rows, strict=True)},
    }
    assert all(line.met for line in targets(means, 0))
    assert [line.met for line in targets(means, 1)].count(False) == 1
    means["one"]["network"] = figures(ssd=0.9)[0]
    assert [line.met for line in targets(means, 0)].count(False) == 3
    means["two"]["network"] = figures(mi=0.91, t1=0.72)[1]
    assert [line.met for line in targets(means, 0)].count(False) == 5


def test_the_heads_are_package_data():
    assert Path(diffreg.__file__).parent / "demo" / "heads" == HEADS
