"""The slices of the comparison, on images made here, and what is said of several pairs a person."""

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from diffreg.training.pretrained import model_card, pretrained_networks

sys.path.insert(0, str(Path(__file__).parent.parent / "bench" / "compare"))
compare = pytest.importorskip("compare")
compare_page = pytest.importorskip("compare_page")
labelled = pytest.importorskip("labelled")
registering = pytest.importorskip("registering")
sets = pytest.importorskip("sets")
slice_pairs = pytest.importorskip("slice_pairs")
summary = pytest.importorskip("summary")

PERSON, OTHER = slice_pairs.PERSON, "SCD0000101"
SIDE, SHIFT = 40, 2.0  # of the simulated images; of the displacement that bent them


def disc(side, radius, middle):
    away = np.indices((side, side)) - np.reshape(middle, (2, 1, 1))
    return np.hypot(*away) < radius


@pytest.fixture
def data(tmp_path):
    """A beating disc in two people's cine MR, and a pair of simulated CT of each."""
    cardiac, ctmr = tmp_path / "cardiac", tmp_path / "ctmr"
    cardiac.mkdir()
    ctmr.mkdir()
    discs = np.stack([disc(128, radius, (70, 60)) for radius in (20, 14)], -1)[:, :, None]
    cine = (100 * discs + np.random.default_rng(0).random((128, 128, 1, 2)) * 20).astype(np.int16)
    for person in (PERSON, OTHER):
        for kind, array in (("cine", cine), ("endo", discs.astype(np.uint8))):
            nib.save(nib.Nifti1Image(array, np.eye(4)), cardiac / f"{person}_{kind}.nii.gz")
    rows = [f"{person},0,0,1,1.5" for person in (OTHER, PERSON)]
    table = ["patient,slice,ed,es,px_mm", *rows]
    (cardiac / "ed_es_pairs.csv").write_text("\n".join(table) + "\n")
    aligned = np.where(disc(SIDE, 12, (20, 20)), 40, -1000).astype(np.int16)
    moving = np.roll(aligned, -int(SHIFT), axis=0)  # moving(x) = aligned(x + disp(x))
    bent = np.zeros((2, SIDE, SIDE), np.float16)
    bent[0] = SHIFT
    one = {"mr": (aligned > 0).astype(np.uint8), "ct_moving": moving, "ct_aligned": aligned}
    one |= {"disp": bent, "endo": disc(SIDE, 5, (20, 20)).astype(np.uint8)}
    one["endo_moving"] = np.roll(one["endo"], -int(SHIFT), axis=0)
    two = one | {name: np.zeros_like(one[name]) for name in ("endo", "endo_moving")}
    held = {name: np.stack([one[name], one[name], two[name]]) for name in one}
    items = np.array([f"{OTHER}:2:18", f"{PERSON}:3:19", f"{PERSON}:4:19"])
    np.savez(ctmr / "simulated_120.npz", items=items, **held)
    return tmp_path


@pytest.fixture
def pairs(data):
    (data / "out").mkdir()
    return slice_pairs.write_slices(data, data / "out")


def test_the_person_is_whom_no_network_of_slices_has_seen():
    for name in ("lunet-cardiac-mr", "lunet-mr-ct"):
        assert f"{PERSON} was left out" in model_card(name)


def test_slices_of_that_person_are_written_as_files_of_two_axes(pairs):
    (heart,), (first, second) = pairs["slices_mr"], pairs["slices_ctmr"]
    assert (heart.name, heart.person) == (f"{PERSON}_00_es-{PERSON}_00_ed", PERSON)
    assert (first.name, second.person) == (f"{PERSON}_3_19_ct-{PERSON}_3_19_mr", PERSON)
    image = nib.load(heart.fixed)
    assert image.shape == (112, 112)
    assert image.header.get_zooms() == (1.5, 1.5)
    assert nib.load(first.moving).shape == (SIDE, SIDE)


def test_what_the_data_lack_is_left_out(data, pairs):
    (data / "ctmr" / "simulated_120.npz").unlink()
    found = slice_pairs.write_slices(data, data / "out")
    assert (len(found["slices_mr"]), found["slices_ctmr"]) == (1, [])
    table = data / "cardiac" / "ed_es_pairs.csv"
    table.write_text(table.read_text().replace(PERSON, "SCD0000901"))
    assert slice_pairs.write_slices(data, data / "out") == {"slices_mr": [], "slices_ctmr": []}
    table.unlink()
    assert slice_pairs.write_slices(data, data / "out") == {"slices_mr": [], "slices_ctmr": []}


def test_the_known_displacement_has_no_error_and_is_the_inverse_of_what_bent(pairs):
    labelled_pair, bare = pairs["slices_ctmr"]
    u = np.zeros((2, SIDE, SIDE), np.float32)
    before = labelled.measured(labelled_pair, u)
    u[0] = -SHIFT
    after = labelled.measured(labelled_pair, u)
    assert before["end_point_error"] == pytest.approx(SHIFT, abs=1e-3)
    assert after["end_point_error"] == pytest.approx(0, abs=1e-3)
    assert before["dice"] < 0.9
    assert after["dice"] == 1
    assert after["folded_cells"] == 0
    assert "dice" not in labelled.measured(bare, u)


def test_a_slice_goes_the_way_of_the_volumes(data, pairs, monkeypatch):
    """By SimpleITK's demons in a process of their own, by files."""
    pytest.importorskip("SimpleITK")
    (heart,) = pairs["slices_mr"]
    still, _ = registering.registered(heart, "identity", sys.executable)
    u, cost = registering.registered(heart, "demons", sys.executable)
    assert still.shape == u.shape == (2, 112, 112)
    before, after = (labelled.measured(heart, each) for each in (still, u))
    assert after["dice"] > before["dice"] + 0.1
    assert cost["version"].startswith("SimpleITK 2")


def test_networks_that_ship_are_run_without_a_checkpoint_being_given(data, pairs):
    volumes = {group for group in sets.GROUPS if not group.startswith("slices")}
    runner = compare.Runner(data / "runs.jsonl", data / "peers", {})
    for ending in ("", ", refined"):
        method = f"diffreg lunet-any{ending}"
        assert {task.group for task in sets.PLAN if task.method == method} == volumes
        assert registering.OURS[method][:2] == ("--checkpoint", "lunet-any")
    for name in pretrained_networks():
        tasks = [task for task in sets.PLAN if task.method == f"diffreg {name}"]
        assert tasks
        assert runner.can(tasks[0].method)
        assert runner.pairs(tasks[0], pairs["slices_mr"]) == pairs["slices_mr"]


def test_a_mean_is_over_people_and_a_difference_over_the_pairs_of_both():
    def run(method, person, pair, dice):
        found = {"group": "slices_mr", "method": method, "person": person, "pair": pair}
        found |= {"setting": registering.SETTINGS[method], "dice": dice, "smallest_corner": 1.0}
        return found | {"folded_certificate_percent": 0.5}

    runs = [run("diffreg", "a", "1", 0.5), run("diffreg", "a", "2", 0.7)]
    runs += [run("diffreg", "b", "3", 0.9), run("demons", "a", "2", 0.4)]
    rows = summary.summaries(runs, registering.SETTINGS)["slices_mr"]
    summary.compared(rows, ("diffreg",))
    ours, theirs = rows
    assert ours["mean"]["dice"] == pytest.approx((0.6 + 0.9) / 2)
    assert ours["worst"] == 0.5
    assert ours["folded_pairs"]["folded_certificate_percent"] == 3
    apart = theirs["minus_this"]["diffreg"]["dice"]
    assert (apart["people"], apart["mean"]) == (1, pytest.approx(0.3))


def test_the_page_has_errors_of_known_displacements_and_says_what_is_to_come(tmp_path):
    about = {"group": "slices_ctmr", "person": PERSON, "processor": "one", "commit": "abc"}
    about |= {"folded_certificate_percent": 0.0, "sd_log_j": 0.1, "smallest_corner": 0.5}
    runs = []
    for method, error, dice in (
        ("diffreg", 1.0, 0.98), ("diffreg lunet-mr-ct", 1.25, 0.97), ("SyNOnly Mattes", 1.5, 0.96)
    ):  # fmt: skip
        run = {**about, "method": method, "setting": registering.SETTINGS[method]}
        runs.append({**run, "pair": "labelled", "end_point_error": error, "dice": dice})
        runs.append({**run, "pair": "bare", "end_point_error": error + 1})
    compare_page.write_page(runs, {}, tmp_path, tmp_path)
    page = (tmp_path / "compare.md").read_text()
    assert "| tool | pairs | Dice | worst | diffreg minus it | error, voxels | diffreg min" in page
    assert "| diffreg lunet-mr-ct | 2 | 0.9700 | 0.970 | +0.0100 (people: 1) | 1.75 | -0.25" in page
    assert "| Slices, simulated CT to MR | 2 | 0.9800 | 0.980 | 0 (0) |  | SyNOnly Mattes |" in page
    assert "- not run so far, Slices of a heart: identity, diffreg, diffreg lunet-card" in page
    assert "- not run so far, Hearts: " in page
    (tmp_path / "others").mkdir()
    of_volumes = {**runs[0], "group": "cardiac3d"}
    del of_volumes["end_point_error"]
    compare_page.write_page([of_volumes], {}, tmp_path / "others", tmp_path / "others")
    assert "error, voxels" not in (tmp_path / "others" / "compare.md").read_text()
