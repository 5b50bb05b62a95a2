"""The benchmark of volumes, on volumes made here, without other people's packages but SimpleITK."""

import argparse
import json
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "bench" / "compare"))
compare = pytest.importorskip("compare")
labelled = pytest.importorskip("labelled")
summary = pytest.importorskip("summary")

SIZE, SPACING = (20, 22, 24), (2.0, 2.0, 3.0)
needs_time = pytest.mark.skipif(not shutil.which("/usr/bin/time"), reason="no GNU time")


def ball(middle, radius=5.0):
    away = np.indices(SIZE) - np.array(middle).reshape(3, 1, 1, 1)
    return np.sqrt((away**2).sum(0)) < radius


def save(path, array):
    nib.save(nib.Nifti1Image(array.astype(np.uint8), np.diag([*SPACING, 1.0])), path)


@pytest.fixture
def data(tmp_path):
    """Three people: a bright ball (label 1) in a head of label 2, moved by a voxel or two."""
    rows = ["group,moving,fixed,moving_label,fixed_label"]
    draw = np.random.default_rng(0)
    noise = 20 * draw.random(SIZE)
    for person, shift in enumerate((0, 1, 2)):
        inner, outer = ball((9 + shift, 11, 12), 4), ball((10, 11, 12), 9)
        save(tmp_path / f"{person}_t1.nii.gz", 100 * outer + 100 * inner + noise)
        save(tmp_path / f"{person}_seg.nii.gz", 2 * outer - inner)
    for moving, fixed in ((1, 0), (2, 0)):
        files = [f"{person}_{kind}.nii.gz" for kind in ("t1", "seg") for person in (moving, fixed)]
        rows.append(",".join(["brain2mm", *files]))
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def options(data, **more):
    known = {"data": data, "runs": data / "runs.jsonl", "fields": data / "fields"}
    return argparse.Namespace(**known, python=sys.executable, **more)


def test_a_pair_is_of_the_person_whose_image_is_fixed(data):
    first, second = labelled.read_pairs(data, "brain2mm")
    assert (first.name, first.person) == ("1_t1-0_t1", "0")
    assert second.name == "2_t1-0_t1"
    assert labelled.read_pairs(data, "cardiac3d") == []


def test_a_shift_by_what_was_moved_makes_the_ball_fit(data):
    pair = labelled.read_pairs(data, "brain2mm")[1]
    u = np.zeros((3, *SIZE), np.float32)
    before = labelled.measured(pair, u)
    u[0] = 2  # warped(p) = moving(p + u)
    after = labelled.measured(pair, u)
    assert before["dice_labels"]["1"] < 0.9
    assert after["dice_labels"]["1"] == 1
    assert after["dice"] == pytest.approx(sum(after["dice_labels"].values()) / 2, abs=1e-4)
    # The ball is off by two voxels of 2 mm, the rim around it by one along two axes.
    assert before["hd95"] == pytest.approx((4 + 8**0.5) / 2)
    assert before["sd_log_j"] == after["sd_log_j"] == 0


def test_a_label_that_is_lost_overlaps_by_nothing(data):
    pair = labelled.read_pairs(data, "brain2mm")[0]
    u = np.zeros((3, *SIZE), np.float32)
    u[0] = 100  # the border is repeated: background everywhere
    assert labelled.measured(pair, u)["dice"] == 0


def test_folds_are_counted_by_central_differences_and_by_corners(data):
    pair = labelled.read_pairs(data, "brain2mm")[0]
    u = np.zeros((3, *SIZE), np.float32)
    u[1, :, 10] = 2.5  # one plane jumps over the next ones
    found = labelled.measured(pair, u)
    # Centrally row 11 alone, (0 - 2.5) / 2, less the border; the cells between 10 and 11.
    assert found["folded_central"] == (SIZE[0] - 4) * (SIZE[2] - 4)
    assert found["folded_corners"] == (SIZE[0] - 1) * (SIZE[2] - 1)
    assert found["smallest_corner"] == pytest.approx(-1.5)


def test_determinants_of_an_even_stretch():
    u = 0.5 * np.indices((9, 8, 7)).astype(np.float32) * np.array([1, 0, -1]).reshape(3, 1, 1, 1)
    determinants = labelled.central_determinants(u)
    assert determinants.shape == (5, 4, 3)
    assert determinants == pytest.approx(1.5 * 0.5)


def test_a_run_goes_on_where_it_was_stopped(data):
    pair = labelled.read_pairs(data, "brain2mm")[0]
    asked = options(data)
    compare.run_pair(pair, "identity", asked)
    with asked.runs.open("a") as file:
        file.write('{"group": "brain2mm", "cut o')  # by a kill
    compare.run_pair(pair, "identity", asked)
    assert len(asked.runs.read_text().splitlines()) == 2
    (run,) = compare.read_runs(asked.runs).values()
    assert np.load(compare.field_of(run, asked.fields)).shape == (3, *SIZE)


def test_kept_displacements_are_certified_later(data):
    pair = labelled.read_pairs(data, "brain2mm")[0]
    asked = options(data, again=False)
    compare.run_pair(pair, "identity", asked)
    (run,) = compare.read_runs(asked.runs).values()
    u = np.zeros((3, *SIZE), np.float32)
    u[1, :, 10] = 2.5
    np.save(compare.field_of(run, asked.fields), u)
    compare.measure(asked)
    compare.measure(asked)  # finds nothing left to do
    assert len(asked.runs.read_text().splitlines()) == 2
    (run,) = compare.read_runs(asked.runs).values()
    assert run["verdict"] == "folded"
    assert run["folded_cells"] == (SIZE[0] - 1) * (SIZE[2] - 1)


@needs_time
def test_demons_in_a_process_of_its_own_bring_the_ball_back(data):
    pytest.importorskip("SimpleITK")
    pair = labelled.read_pairs(data, "brain2mm")[1]
    for method in ("identity", "demons"):
        compare.run_pair(pair, method, options(data))
    identity, demons = compare.read_runs(data / "runs.jsonl").values()
    assert demons["dice_labels"]["1"] > identity["dice_labels"]["1"] + 0.1
    assert 0 < demons["search_s"] < demons["cpu_s"]
    assert 20 < demons["peak_mb"] < 1000
    assert demons["version"].startswith("SimpleITK 2")


@needs_time
def test_what_stops_with_an_error_is_recorded_and_not_tried_again(data, monkeypatch):
    monkeypatch.setattr(compare, "PEER", data / "none.py")
    pair = labelled.read_pairs(data, "brain2mm")[0]
    for _ in range(2):
        compare.run_pair(pair, "greedy", options(data))
    (line,) = (data / "runs.jsonl").read_text().splitlines()
    assert "none.py" in json.loads(line)["error"]


def runs_of(method, dice, setting=""):
    """Of one label each: {person: Dice}."""
    about = {"group": "brain2mm", "method": method, "setting": setting, "hd95": 5.0}
    about |= {"sd_log_j": 0.3, "sd_log_j_learn2reg": 0.06, "cpu_s": 4.0, "smallest_corner": 0.1}
    about |= {"folded_central_percent": 0.0, "folded_corners_percent": 0.5}
    about |= {"folded_central": 0, "folded_corners": 7}
    return [
        {**about, "person": person, "dice": value, "pair": f"x-{person}",
         "dice_labels": {"4": value, "100": value, "38": value}}
        for person, value in dice.items()
    ]  # fmt: skip


PEOPLE = dict(zip("abcdef", (0.60, 0.62, 0.58, 0.61, 0.59, 0.60), strict=True))


def test_a_difference_is_over_the_people_of_both_and_a_tie_is_called_one(tmp_path):
    better = {person: value + 0.02 for person, value in PEOPLE.items()}
    mixed = {person: value + (-1) ** k / 50 for k, (person, value) in enumerate(PEOPLE.items())}
    few = {person: PEOPLE[person] for person in "ab"}
    runs = [*runs_of("diffreg", PEOPLE), *runs_of("good", better), *runs_of("alike", mixed)]
    runs += runs_of("few", few) + runs_of("good", dict.fromkeys("abcdef", 1.0), "an older setting")
    settings = dict.fromkeys(("diffreg", "good", "alike", "few"), "")
    summary.write_results(runs, settings, ("diffreg",), tmp_path)
    page = (tmp_path / "variational_volumes.md").read_text()
    assert "| good | -0.0200 [-0.0200, -0.0200] |" in page
    assert "| few | +0.0000 (people: 2) |" in page
    alike = next(line for line in page.splitlines() if line.startswith("| alike | +0.0000 ["))
    assert alike.endswith("(tie) |")
    rows = json.loads((tmp_path / "variational_volumes.json").read_text())["groups"]["brain2mm"]
    good = next(row for row in rows if row["method"] == "good")
    assert good["mean"]["dice"] == pytest.approx(0.62)
    assert good["mean"]["cortex"] == pytest.approx(0.62)
    assert good["counts"]["folded_corners"] == 6 * 7
    assert (tmp_path / "variational_volumes.png").stat().st_size > 1000


def test_an_error_is_named_on_the_page(tmp_path):
    failed = {"group": "cardiac3d", "method": "greedy", "setting": "", "person": "a", "pair": "x-a"}
    summary.write_results(
        [{**failed, "error": "of filter (0x7f) too thin"}], {"greedy": ""}, (), tmp_path
    )
    page = (tmp_path / "variational_volumes.md").read_text()
    assert "greedy stopped on 1 of 1 pairs: `of filter too thin`" in page


def test_the_interval_of_few_people_is_none():
    assert summary.interval([0.5] * 4) is None
    low, high = summary.interval([0.5, 0.6, 0.7, 0.8, 0.9])
    assert 0.5 < low < 0.7 < high < 0.9
