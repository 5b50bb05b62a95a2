"""The studies of docs/paper: each runs, small; the page is what the committed files make of it."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
PAPER, PAGES = ROOT / "bench" / "paper", ROOT / "docs" / "paper"
TABLES = {
    "regularisers": ["_shapes", "_disc_to_C"],
    "similarity_weight": [""],
    "monomodal": [""],
    "multimodal": ["", "_weights"],
    "networks": ["", "_difference"],
    "realtime": [""],
}


@pytest.fixture(scope="module")
def room():
    """The studies' modules, imported as their scripts import them."""
    names = set(sys.modules)
    sys.path.insert(0, str(PAPER))
    try:
        import images
        import measuring
        import page
        import training

        yield type("Room", (), {"images": images, "measuring": measuring, "page": page,
                                "training": training})  # fmt: skip
    finally:
        sys.path.remove(str(PAPER))
        for name in set(sys.modules) - names:
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


def test_a_run_goes_on_where_it_was_stopped(room, tmp_path, monkeypatch):
    training = room.training
    pairs = room.images.shapes(4, seed=1, size=32)
    recipe = training.Recipe("shapes", similarity={"ssd": 1.0}, steps=6, batch=2, crop=32)

    def fitted(folder):
        place = training.Place(torch.device("cpu"), folder)
        draw = lambda device: training.drawing_pairs(pairs, recipe, device)  # noqa: E731
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
