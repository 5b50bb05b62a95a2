"""The paper's studies: each runs, small; the page is what the committed files make of it."""

import csv
import importlib
import json
import os
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
PAPER, PAGES = ROOT / "paper", ROOT / "paper" / "results"
TABLES = {
    "regularisers": ["_shapes", "_disc_to_C"],
    "similarity_weight": [""],
    "monomodal": ["", "_seeds", "_strengths"],
    "multimodal": ["", "_weights"],
    "networks": ["", "_difference"],
    "realtime": [""],
}


@pytest.fixture(scope="module")
def room():
    """The studies' modules, imported as their scripts import them."""
    before = set(sys.modules)
    sys.path.insert(0, str(PAPER))
    wanted = ("drawing", "everything", "images", "measuring", "multimodal", "page", "pages",
              "recipes", "regularisers", "training")  # fmt: skip
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in wanted})
    sys.path.remove(str(PAPER))
    for name in set(sys.modules) - before:
        if str(PAPER) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("study", TABLES)
def test_a_study_runs_without_data(study, tmp_path):
    command = [sys.executable, PAPER / f"{study}.py", "--quick", "--out", tmp_path]
    environment = os.environ | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / f"{study}.json").read_text())
    assert result["quick"] and result["rows"]
    for ending in TABLES[study]:
        rows = list(csv.reader((tmp_path / f"{study}{ending}.csv").read_text().splitlines()))
        shown = (tmp_path / f"{study}{ending}.md").read_text()
        assert len(rows) > 1 and shown in done.stdout
        assert all(len(row) == len(rows[0]) for row in rows)


def test_a_study_needs_its_data():
    command = [sys.executable, PAPER / "similarity_weight.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "--data DIR is needed (docs/data.md), or --quick" in done.stderr


@pytest.mark.skipif(not PAGES.exists(), reason="no study has been run")
def test_the_page_is_what_its_files_make(room):
    assert (PAGES / "README.md").read_text() == room.page.page()


def test_the_truth_of_the_shapes(room):
    pairs = room.images.shapes(4, seed=3)
    back = room.images.warp(pairs.moving, pairs.truth)
    assert (back - pairs.fixed).abs().mean() < 0.01 < (pairs.moving - pairs.fixed).abs().mean()
    reach = pairs.truth.norm(dim=1).amax((1, 2))
    assert reach.min() > 5 and reach.max() < 11


def test_differences_alone_overlook_folds(room):
    """A checkerboard of 0.6 voxels: central differences see the identity."""
    rows, columns = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    field = torch.zeros(1, 2, 9, 9)
    field[0, 0] = 0.6 * (-1.0) ** (rows + columns)
    found = room.measuring.folds(field)
    assert found["folded_percent"] > 0 and found["folded_percent_central"] == 0


def test_moving_and_fixed_are_cut_and_turned_alike(room):
    image = torch.rand(1, 1, 20, 20)
    pairs = room.images.Pairs(("a",), ("a",), image, 2 * image)
    recipe = room.recipes.Recipe("pairs", steps=12, batch=3, crop=8)
    draw = room.drawing.drawing_pairs(pairs, recipe, torch.device("cpu"))
    windows = []
    for step in range(12):
        moving, fixed = draw(torch.tensor([step]))
        assert moving.shape == (3, 1, 8, 8) and torch.equal(2 * moving, fixed)
        windows += list(moving)
    assert len({tuple(window.flatten().tolist()) for window in windows}) > 30
    bent = room.drawing.drawing_pairs(pairs, replace(recipe, bent=2.0), torch.device("cpu"))
    moving, fixed = bent(torch.tensor([0]))
    plain = draw(torch.tensor([0]))
    assert not torch.equal(2 * moving, fixed) and fixed.shape == plain[1].shape


def test_a_run_is_kept_under_all_of_its_recipe(room):
    recipe = room.recipes.Recipe("images")
    other = {"images": "others", "model": "sn", "integrate": True, "similarity": {"ssd": 1.0},
             "weights": (1, 1, 1, 1), "variation": 1.0, "bent": 1.0, "steps": 1, "batch": 1,
             "crop": 1, "learning_rate": 1.0, "seed": 1, "start": "0"}  # fmt: skip
    assert set(other) == {field.name for field in fields(recipe)}
    keys = {replace(recipe, **{name: value}).key for name, value in other.items()}
    assert len(keys | {recipe.key}) == len(other) + 1


def test_a_setting_is_chosen_on_the_other_patients(room):
    """Each patient's own best setting is the other's worst."""
    values = {1.0: {"a": 0.0, "b": 9.0, "c": 3.0}, 2.0: {"a": 9.0, "b": 0.0, "c": 3.0}}
    search = {
        setting: [{"patient": p, "value": v} for p, v in of.items()]
        for setting, of in values.items()
    }
    chosen = room.measuring.chosen_on_others
    assert chosen(search, ["a", "b"], "value", sign=-1) == {"a": 2.0, "b": 1.0}
    assert chosen(search, ["a", "b"], "value", sign=1) == {"a": 1.0, "b": 2.0}


def test_no_patient_is_on_both_sides(room):
    pairs = replace(room.images.shapes(3, seed=0, size=32), patients=("a", "b", "a"))
    assert set(pairs.of("a").patients) == {"a"} and len(pairs.of("a")) == 2
    assert set(pairs.without("a").patients) == {"b"}
    frames = room.images.Frames(torch.rand(3, 4, 4), torch.arange(3), ("a", "b", "a"))
    assert frames.without("a").patients == ("b",)


def test_intervals_and_differences(room):
    measuring, pages = room.measuring, room.pages
    mean, low, high = measuring.mean_and_interval([1.0, 2.0, 3.0])
    assert mean == 2 and 1 <= low < 2 < high <= 3
    assert pages.ranged(measuring.mean_and_interval([1.5])) == "1.500"
    assert pages.changed(measuring.mean_and_interval([1.5])) == "+1.500"
    assert pages.changed((0.1, -0.1, 0.3)).endswith("(tie)")
    ours = [{"pair": k, "patient": "a", "dice": float(k)} for k in range(4)]
    theirs = [{"pair": k, "patient": "a", "dice": float(k) - 1} for k in (2, 3)]
    assert measuring.by_patient(ours, theirs, "dice") == {"a": 1.0}


def test_what_dominates_what(room):
    regularisers = room.regularisers
    points = {(regularisers.NEW, 1.0): (0.9, 0.0), ("E1 + E2", 1.0): (0.9, 0.0),
              ("E1 + E2", 0.1): (0.95, 1.0), ("diffusion", 1.0): (0.8, 0.5)}  # fmt: skip
    rows = [
        {"test": "t", "regulariser": name, "weight": w, "dice": dice, "folded_percent": folded}
        for (name, w), (dice, folded) in points.items()
    ]
    found = regularisers.claim(rows)["t"]
    assert (found["dominated"], found["of"]) == (2, 3)
    assert found["each"]["E1 + E2"] == {"unfolded": (0.9, 0.9, 0.9), "folded": [0.0, 1.0]}
    assert found["each"]["diffusion"] == {"unfolded": None, "folded": [0.5, 0.5]}


def test_a_share_is_of_the_same_pairs(room):
    before = [{"pair": k, "patient": "a", "error": e} for k, e in enumerate((2.0, 4.0, 9.0))]
    rows = [{"pair": k, "patient": "a", "error": 1.0} for k in (0, 1)]
    assert room.measuring.share_of_before(rows, before, "error") == pytest.approx(1 / 3)


def test_seeds_are_compared_with_the_same(room):
    def row(seed, value):
        return {"pair": 0, "patient": "a", "seed": seed, "dice": value}

    ours, theirs = [row(0, 0.5), row(1, 0.9)], [row(0, 0.25)]
    assert room.measuring.by_patient(ours, theirs, "dice") == {"a": 0.25}


def test_rows_as_the_guarantee_leaves_them(room):
    row = {"pair": 0, "dice": 0.5, "dice_guaranteed": 0.25, "folded_percent": 3.0}
    assert room.measuring.as_guaranteed([row])[0] | {"pair": 0} == {
        "pair": 0, "dice": 0.25, "dice_guaranteed": 0.25, "folded_percent": 0.0,
    }  # fmt: skip


def test_fields_of_waves_bring_the_pair_together(room):
    pairs = room.images.shapes(2, seed=5)
    again = room.images.bent_by_waves(pairs, 2.0, 30.0, seed=1)
    back = room.images.warp(again.moving, again.truth)
    assert (back - again.fixed).abs().mean() < 0.02 < (again.moving - again.fixed).abs().mean()
    assert np.isfinite(again.truth.numpy()).all()


def test_a_run_goes_on_where_it_was_stopped(room, tmp_path, monkeypatch):
    training = room.training
    pairs = room.images.shapes(4, seed=1, size=32)
    recipe = room.recipes.Recipe("shapes", similarity={"ssd": 1.0}, steps=6, batch=2, crop=32)

    def fitted(folder):
        place = training.Place(torch.device("cpu"), folder)
        draw = lambda device: room.drawing.drawing_pairs(pairs, recipe, device)  # noqa: E731
        return training.fit(recipe, draw, place, every=2)

    whole = fitted(tmp_path / "whole")
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    taken = []

    class Stopping(training.Step):
        def __call__(self, rate):
            if len(taken) == 4:
                raise KeyboardInterrupt
            taken.append(rate)
            super().__call__(rate)

    with monkeypatch.context() as stopping, pytest.raises(KeyboardInterrupt):
        stopping.setattr(training, "Step", Stopping)
        fitted(tmp_path / "parts")
    parts = fitted(tmp_path / "parts")
    for one, other in zip(whole.network.parameters(), parts.network.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [row["step"] for row in parts.curve] == [2, 4, 6]
    again = fitted(tmp_path / "parts")  # read, not trained
    assert again.seconds == parts.seconds


@pytest.mark.alone
def test_after_a_part_that_fails_no_other_is_begun(room, monkeypatch):
    begun = []

    def failing(arguments, environment=None):
        begun.append(arguments[0])
        time.sleep(1 if len(begun) > 1 else 0)  # until the rest is called off
        raise SystemExit(f"{arguments[0]} failed")

    monkeypatch.setattr(room.everything, "run", failing)
    with pytest.raises(SystemExit, match="a failed"):
        room.everything.side_by_side([["a"], ["b"], ["c"]], processes=1)
    assert begun[0] == "a" and "c" not in begun


def test_everything_is_there_to_be_run(room):
    parts = [study for stage in room.everything.TRAINING for study in stage]
    assert {name for name, *_ in parts} | {"realtime"} == set(room.everything.STUDIES)
    stages = [study[2] for study in parts if study[0] == "multimodal"]
    assert tuple(stages) == room.multimodal.STAGES


def test_a_run_begins_with_anothers_network(room, tmp_path):
    training = room.training
    pairs = room.images.shapes(4, seed=1, size=32)
    place = training.Place(torch.device("cpu"), tmp_path)
    first = room.recipes.Recipe("shapes", similarity={"ssd": 1.0}, steps=3, batch=2, crop=32)
    still = replace(first, steps=1, learning_rate=1e-30, seed=1, start=first.key)
    weights = []
    for recipe in (first, still):
        draw = lambda device, recipe=recipe: room.drawing.drawing_pairs(pairs, recipe, device)  # noqa: E731
        weights.append(training.fit(recipe, draw, place).network.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
