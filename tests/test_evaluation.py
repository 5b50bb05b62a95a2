"""Evaluation of a manifest: the numbers are those of the metrics, intervals are over patients."""

import csv
import json
import math
import tracemalloc
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from diffreg import metrics
from diffreg.cli.main import main
from diffreg.data.geometry import Image
from diffreg.data.manifest import Pair, read_manifest
from diffreg.data.prepare import prepare
from diffreg.data.transforms import read_displacement, write_displacement
from diffreg.evaluation import (
    Evaluation,
    bootstrap,
    evaluate,
    measure_pair,
    summarize,
    write_evaluation,
)
from diffreg.evaluation.measures import Measure
from diffreg.evaluation.pages import _warnings
from diffreg.registration.cohort import Method, register_all
from diffreg.registration.result import registration_of

pytestmark = pytest.mark.usefixtures("one_thread")

AFFINE = np.diag([2.0, 1.0, 5.0, 1.0])
SHAPE = (32, 28)


def body(at):
    x, y = np.meshgrid(*(np.arange(n) for n in SHAPE), indexing="ij")
    return (100 / (1 + np.exp((x - at) ** 2 / 16 + (y - 14) ** 2 / 25 - 2))).astype(np.float32)


def save(path, array):
    nib.save(nib.Nifti1Image(array, AFFINE), path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six pairs of three patients: the body lies 2 voxels (4 mm) further along axis 0."""
    folder = tmp_path_factory.mktemp("pairs")
    columns = "moving_label,fixed_label,moving_points,fixed_points,true_displacement,group"
    lines = [f"moving,fixed,{columns}"]
    true = torch.zeros(1, 2, *SHAPE)
    true[:, 0] = 2
    for k in range(6):
        for name, at in (("m", 17 + k % 2), ("f", 15 + k % 2)):
            save(folder / f"{name}{k}.nii.gz", body(at))
            labels = (body(at) > 50).astype(np.uint8) + (body(at) > 80)
            save(folder / f"{name}{k}_label.nii.gz", labels.astype(np.uint8))
        (folder / f"m{k}.csv").write_text(f"i,j\n{17 + k % 2},14\n18,13\n")
        (folder / f"f{k}.csv").write_text(f"i,j\n{15 + k % 2},14\n16,13\n")
        write_displacement(folder / f"t{k}.nii.gz", true, Image(torch.zeros(1, 1, *SHAPE), AFFINE))
        files = (f"m{k}.nii.gz,f{k}.nii.gz,m{k}_label.nii.gz,f{k}_label.nii.gz,m{k}.csv,f{k}.csv,"
                 f"t{k}.nii.gz,p{k // 2}")  # fmt: skip
        lines.append(files)
    (folder / "pairs.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def true_fields(folder):
    """The true displacements under the names that `--displacements` asks for."""
    given = folder / "given"
    given.mkdir()
    for k in range(6):
        name = f"{k + 1:04d}_m{k}_to_f{k}.nii.gz"
        (given / name).write_bytes((folder / f"t{k}.nii.gz").read_bytes())
    return given


def run(*words):
    return main([str(word) for word in words])


def test_the_true_displacement_is_perfect(folder, true_fields, tmp_path, capsys):
    words = ("evaluate", folder / "pairs.csv", "--displacements", true_fields, "-o", tmp_path / "o")
    assert run(*words) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "Dice" in said.out and "TRE (mm)" in said.out
    found = json.loads((tmp_path / "o" / "evaluation.json").read_text())
    summary = found["summary"]
    for name, before, after in (("tre", 4, 0), ("end_point_error", 4, 0), ("hd95", 4, 0)):
        assert summary[name]["before"]["mean"] == pytest.approx(before, abs=1e-5)
        assert summary[name]["after"]["mean"] == pytest.approx(after, abs=1e-5)
        assert summary[name]["verdict"] == "better"
    assert summary["dice"]["after"]["mean"] == 1
    assert summary["dice_label_1"]["pairs"] == summary["dice_label_2"]["pairs"] == 6
    assert summary["folded_percent"]["after"]["mean"] == 0
    assert "inverse_consistency" not in summary and "seconds" not in summary
    assert list(found["groups"]) == ["p0", "p1", "p2"]
    assert found["groups"]["p1"]["dice"]["pairs"] == 2


def test_given_displacements_are_judged(folder, true_fields, tmp_path, capsys):
    """One of the six leads the wrong way."""
    wrong, grid = read_displacement(true_fields / "0002_m1_to_f1.nii.gz")
    places = tmp_path / "given"
    places.mkdir()
    for path in true_fields.iterdir():
        (places / path.name).write_bytes(path.read_bytes())
    write_displacement(places / "0002_m1_to_f1.nii.gz", -2 * wrong, grid)
    words = ("evaluate", folder / "pairs.csv", "--displacements", places, "-o", tmp_path / "o")
    assert run(*words) == 0
    line = "diffreg: warning: 1 of 6 pairs may not fit; evaluation.json says why\n"
    assert capsys.readouterr().err == line
    found = json.loads((tmp_path / "o" / "evaluation.json").read_text())
    counts = [record["warnings"] for record in found["pairs"]]
    assert counts == [0, len(found["warnings"]), 0, 0, 0, 0]
    assert {entry["pair"] for entry in found["warnings"]} == {"m1.nii.gz to f1.nii.gz"}
    assert any("hardly agree" in entry["sentence"] for entry in found["warnings"])


def test_of_many_labels_a_terminal_shows_those_that_overlap_least(tmp_path, capsys):
    """All of them are in the files."""
    labels = np.kron(np.arange(1, 13).reshape(3, 4), np.ones((8, 6), int)).astype(np.uint8)
    moved = labels.copy()
    for label in range(1, 13):  # label k keeps its first 48 - k voxels
        rows, columns = (values[48 - label :] for values in np.nonzero(labels == label))
        moved[rows, columns] = 0
    for name, array in (("m", labels), ("f", labels), ("ml", moved), ("fl", labels)):
        save(tmp_path / f"{name}.nii.gz", array)
    columns = "moving,fixed,moving_label,fixed_label\n"
    for file, kept in (("pairs", "ml,fl"), ("few", "some,some")):
        words = f"m,f,{kept}".replace(",", ".nii.gz,") + ".nii.gz"
        (tmp_path / f"{file}.csv").write_text(columns + words)
    save(tmp_path / "some.nii.gz", labels * (labels < 6))
    still = torch.zeros(1, 2, *labels.shape)
    grid = Image(torch.zeros(1, 1, *labels.shape), AFFINE)
    (tmp_path / "given").mkdir()
    write_displacement(tmp_path / "given" / "0001_m_to_f.nii.gz", still, grid)
    words = ("--displacements", tmp_path / "given", "-o", tmp_path / "o")
    assert run("evaluate", tmp_path / "pairs.csv", *words) == 0
    said = capsys.readouterr().out
    assert "above are the 5 of 12 labels that overlap least, all of them there and in eval" in said
    assert "mean after" in said and "median" not in said  # those are on the page
    for measure in ("Dice", "HD95 (mm)", "ASSD (mm)"):
        name, _, unit = measure.partition(" ")
        told = [k for k in range(1, 13) if f"{name}, label {k} {unit}".strip() + " " in said]
        assert told == [8, 9, 10, 11, 12] and measure in said
    found = json.loads((tmp_path / "o" / "evaluation.json").read_text())["summary"]
    assert all(f"hd95_label_{label}" in found for label in range(1, 13))
    assert "Dice, label 1<" in (tmp_path / "o" / "report.html").read_text()
    assert run("evaluate", tmp_path / "few.csv", *words) == 0
    said = capsys.readouterr().out
    assert "Dice, label 1 " in said and "overlap least" not in said


def test_the_numbers_are_those_of_the_metrics(folder, true_fields, tmp_path):
    run("evaluate", folder / "pairs.csv", "--displacements", true_fields, "-o", tmp_path)
    with (tmp_path / "evaluation.csv").open() as file:
        first = next(csv.DictReader(file))
    assert (first["pair"], first["group"]) == ("m0.nii.gz to f0.nii.gz", "p0")
    labels = [np.asarray(nib.load(folder / f"{n}0_label.nii.gz").dataobj) for n in "mf"]
    overlap = metrics.dice(*labels)
    distances = metrics.surface_distances(*labels, spacing=(2.0, 1.0))
    for label in (1, 2):
        assert float(first[f"dice_label_{label}_before"]) == pytest.approx(overlap[label])
        assert float(first[f"assd_label_{label}_before"]) == pytest.approx(distances[label]["assd"])
    assert float(first["dice_before"]) == pytest.approx(np.mean(list(overlap.values())))


def test_what_is_registered_is_kept_and_measured_both_ways(folder, tmp_path, capsys):
    words = ("evaluate", folder / "pairs.csv", "--method", "variational", "-o", tmp_path / "o")
    assert run(*words) == 0
    first = json.loads((tmp_path / "o" / "evaluation.json").read_text())
    assert 0 < first["summary"]["inverse_consistency"]["after"]["mean"] < 2
    assert first["summary"]["seconds"]["pairs"] == 6
    assert first["summary"]["ncc"]["verdict"] == "better"
    capsys.readouterr()
    assert run(*words) == 0
    assert "6 of 6 pairs were complete and are kept" in capsys.readouterr().err
    assert json.loads((tmp_path / "o" / "evaluation.json").read_text()) == first
    page = (tmp_path / "o" / "report.html").read_text()
    for words in ("All pairs", "By group", "bootstrap draws of the 3 groups", "few", "Charts"):
        assert words in page


def test_what_a_registration_warns_of_stands_at_the_top_of_the_evaluation(folder, tmp_path):
    words = ("evaluate", folder / "pairs.csv", "--method", "variational", "-o", tmp_path / "o")
    run(*words)
    first = next((tmp_path / "o").glob("0001*/metrics.json"))
    values = json.loads(first.read_text())
    first.write_text(json.dumps({**values, "warnings": ["The images share 4 % of their voxels."]}))
    run(*words)
    page = (tmp_path / "o" / "report.html").read_text()
    assert page.index("m0.nii.gz to f0.nii.gz: The images share 4 %") < page.index(
        "The labels overlap"
    )
    assert 'class="sentence"' not in page


def test_contrasts_that_differ_are_not_subtracted(folder, true_fields, tmp_path):
    words = ("evaluate", folder / "pairs.csv", "--displacements", true_fields, "-o", tmp_path)
    run(*words, "--contrasts-differ")
    summary = json.loads((tmp_path / "evaluation.json").read_text())["summary"]
    assert not {"ssim", "relative_ssd"} & set(summary)
    manifest = read_manifest(folder / "pairs.csv")
    (tmp_path / "pls").mkdir()
    one = replace(manifest, pairs=manifest.pairs[:1])
    cohort = register_all(one, tmp_path / "pls", Method(similarity="pls"))
    found = evaluate([(job.pair, job.folder) for job in cohort.jobs])
    assert "ssim_after" not in found.records[0]


def test_a_pair_without_a_displacement_fails_alone(folder, true_fields, tmp_path, capsys):
    part = tmp_path / "part"
    part.mkdir()
    name = "0002_m1_to_f1.nii.gz"
    (part / name).write_bytes((true_fields / name).read_bytes())
    words = ("evaluate", folder / "pairs.csv", "--displacements", part, "-o", tmp_path / "o")
    assert run(*words) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith(
        "part has neither 0001_m0_to_f0/displacement.nii.gz nor 0001_m0_to_f0.nii.gz"
    )
    assert lines[-1] == "diffreg: error: 5 of 6 pairs failed"
    found = json.loads((tmp_path / "o" / "evaluation.json").read_text())
    assert [len(found["pairs"]), len(found["failed"])] == [1, 5]
    assert found["summary"]["dice"]["interval_95"] is None


def test_a_displacement_on_another_grid_is_refused(folder, tmp_path, capsys):
    grid = Image(torch.zeros(1, 1, *SHAPE), np.diag([1.0, 1.0, 5.0, 1.0]))
    write_displacement(tmp_path / "0001_m0_to_f0.nii.gz", torch.zeros(1, 2, *SHAPE), grid)
    words = ("evaluate", folder / "pairs.csv", "--displacements", tmp_path, "-o", tmp_path / "o")
    assert run(*words) == 2
    assert "is no displacement on the grid of" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


# statistics


def records(before, after, groups):
    rows = zip(before, after, groups, strict=True)
    return [{"a_before": b, "a_after": a, "group": g} for b, a, g in rows]


def test_a_group_counts_once():
    """Group x changes by (1 + 3) / 2, group y by 5: (2 + 5) / 2, not (1 + 3 + 5) / 3."""
    found = summarize(Measure("a", "A", "", "higher"), records([0, 0, 0], [1, 3, 5], "xxy"))
    assert found.change == 3.5
    assert (found.pairs, found.groups) == (3, 2)
    assert found.after == (3, 3)
    assert found.interval == (2, 5)
    assert found.verdict == "better"


def test_a_tie_is_called_a_tie():
    groups = "abcdef"
    changes = [0.1, -0.1, 0.2, -0.2, 0.05, -0.04]
    found = summarize(Measure("a", "A", "", "higher"), records([1] * 6, np.add(1, changes), groups))
    assert found.verdict == "tie"
    worse = summarize(Measure("a", "A", "", "lower"), records([1] * 6, [2] * 6, groups))
    assert worse.verdict == "worse"
    one = summarize(Measure("a", "A", "", "lower"), records([1, 1], [2, 2], "aa"))
    assert one.verdict == "one group: no interval"


def test_pairs_without_a_number_are_left_out():
    rows = records([1, math.nan, 1], [2, 2, None], "abc")
    assert summarize(Measure("a", "A"), rows).pairs == 1
    assert summarize(Measure("b", "B"), rows) is None


def test_the_bootstrap_is_seeded_and_about_right():
    """The interval of a mean of 50 normal values: 1.96 standard errors to each side."""
    values = np.random.default_rng(0).standard_normal(50)
    assert bootstrap(values, seed=3) == bootstrap(values, seed=3)
    assert bootstrap(values, seed=3) != bootstrap(values, seed=4)
    error = 1.96 * values.std() / math.sqrt(50)
    low, high = bootstrap(values)
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.03)
    assert bootstrap(values[:1]) is None


def lost(folder, name):
    """Label 2 of `name` is one voxel that the warp leaves behind, label 9 is in one image alone."""
    labels = np.zeros((20, 16, 1), np.uint8)
    labels[4:12, 4:12] = 1
    labels[2, 2] = 2
    labels[15, 3] = 9 if name == "m" else 0
    nib.save(nib.Nifti1Image(labels, np.diag([2.0, 1.0, 3.0, 1.0])), folder / f"{name}.nii.gz")
    return folder / f"{name}.nii.gz"


def test_the_bootstrap_of_many_pairs_fits_into_memory():
    values = np.arange(2000.0)
    bootstrap(values[:2])
    tracemalloc.start()
    interval = bootstrap(values, seed=3)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    at_once = np.random.default_rng(3).integers(0, 2000, (10_000, 2000))
    assert interval == tuple(np.percentile(values[at_once].mean(1), (2.5, 97.5)))
    assert peak < 50e6  # of which 320 MB were drawn at once


class Name(str):
    """A group's, which counts with how many others it is compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        Name.compared += 1
        return str.__eq__(self, other)


def test_many_groups_take_no_more_time_each(tmp_path):
    evaluation = Evaluation("ours", grouped=True)
    for k in range(300):
        ends = {"ncc_before": 0.5, "ncc_after": k / 300, "min_determinant": 0.5}
        about = {"pair": f"{k}", "group": Name(f"g{k}"), "folded_percent": 0.0}
        evaluation.records.append({**about, **ends})
    Name.compared = 0
    write_evaluation(evaluation, tmp_path / "out")
    assert len(json.loads((tmp_path / "out/evaluation.json").read_text())["groups"]) == 300
    assert Name.compared < 300 * 20  # not each with each


def test_a_label_that_warping_lost_counts_and_one_of_a_single_image_does_not(tmp_path):
    image = Image(torch.rand(1, 1, 20, 16), np.diag([2.0, 1.0, 3.0, 1.0]))
    u = torch.zeros(1, 2, 20, 16)
    u[:, 0, 2, 2] = 1.0  # its only voxel shows the background now
    result = registration_of(prepare(image, image), u, "given", "ncc", 0.1, {})
    names = {f"{end}_label": lost(tmp_path, end[0]) for end in ("moving", "fixed")}
    pair = Pair(Path("m"), Path("f"), **names)
    record = measure_pair(pair, result)
    assert record["dice_label_2_before"] == 1 and record["dice_label_2_after"] == 0
    assert record["dice_after"] == pytest.approx((record["dice_label_1_after"] + 0) / 2)
    assert record["hd95_after"] == record["hd95_label_1_after"]  # mean over the labels present
    assert np.isnan(record["hd95_label_2_after"])
    assert (record["missing_labels_before"], record["missing_labels_after"]) == (0, 1)
    assert not any("label_9" in name for name in record)
    measured = Evaluation("given", [{"pair": "p", "group": "g", **record}])
    assert any("were lost by warping, 1 in 1 pair" in words for words in _warnings(measured))
    still = measure_pair(pair, registration_of(prepare(image, image), 0 * u, "given", "ncc", 0, {}))
    assert not any(name.startswith("missing") for name in still)
