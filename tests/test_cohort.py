"""Every pair of a manifest: resumed, batched, and one bad pair loses no other."""

import csv
import errno
import json
import os
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

from diffreg.cli.main import main
from diffreg.data.manifest import Pair, read_manifest
from diffreg.data.normalization import Normalization
from diffreg.registration import cohort, finished
from diffreg.registration.cohort import Method, _request, register_all
from diffreg.system import atomic

pytestmark = pytest.mark.usefixtures("one_thread")


def blob(shape, at):
    x, y = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    return (200 * np.exp(-(((x - at) / 0.2) ** 2 + ((y - 0.45) / 0.3) ** 2))).astype(np.float32)


def save(path, array):
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 5.0, 1.0])), path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Four pairs of two patients, the last one of another size; and one that cannot be read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFREG_DEBUG", raising=False)
    for k in range(4):
        shape = (32, 24) if k < 3 else (20, 24)
        for name, at in (("moving", 0.5001 + 0.02 * k), ("fixed", 0.5)):
            save(f"{name}{k}.nii.gz", blob(shape, at))
            save(f"{name}{k}_label.nii.gz", (blob(shape, at) > 100).astype(np.uint8))
    lines = [f"moving{k}.nii.gz,fixed{k}.nii.gz,p{k // 2}" for k in range(4)]
    (tmp_path / "pairs.csv").write_text("\n".join(["moving,fixed,group", *lines]) + "\n")
    (tmp_path / "bad.nii.gz").write_bytes(b"no image")
    (tmp_path / "some.csv").write_text("\n".join(["moving,fixed", "bad.nii.gz,fixed0.nii.gz",
        "moving1.nii.gz,fixed1.nii.gz"]))  # fmt: skip
    return tmp_path


class Shift(torch.nn.Module):
    """A network that displaces every voxel alike, and remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def forward(self, moving, fixed):
        self.batches.append(tuple(fixed.shape))
        return torch.full((len(fixed), 2, *fixed.shape[2:]), 0.5)


@pytest.fixture
def network(folder, monkeypatch):
    """A checkpoint that brings Shift."""
    shift = Shift()
    trained = {"network": shift, "normalization": Normalization(1, 99), "similarity": "ncc"}
    monkeypatch.setattr("diffreg.training.checkpoint.load_network", lambda path: trained)
    (folder / "c.pt").write_bytes(b"weights")
    return shift


def run(*words):
    return main([str(word) for word in words])


def done(folder):
    return sorted(path.parent.name for path in folder.glob("*/metrics.json"))


def test_every_pair_and_one_report(folder, capsys):
    assert run("register", "pairs.csv", "-o", "out") == 0
    said = capsys.readouterr()
    assert said.err == "no --checkpoint: the variational method with what suits the contrasts\n"
    assert said.out.startswith("out/report.html: 4 pairs: NCC ")
    assert "no cell folds in any of the 4 pairs" in said.out
    assert done(folder / "out")[0] == "0001_moving0_to_fixed0"
    names = {path.name for path in (folder / "out/0001_moving0_to_fixed0").iterdir()}
    assert names == {"warped.nii.gz", "displacement.nii.gz", "affine.mat", "metrics.json"}
    with (folder / "out/metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["group"] for line in lines] == ["p0", "p0", "p1", "p1"]
    assert {"max_displacement_mm", "mean_displacement_mm"} <= set(lines[0])
    assert not {"date", "command", "device"} & set(lines[0])
    gains = [float(line["ncc_after"]) - float(line["ncc_before"]) for line in lines]
    assert (
        gains[0] == pytest.approx(0, abs=1e-4) and min(gains[1:]) > 0
    )  # the first are nearly equal
    page = (folder / "out/report.html").read_text()
    assert "No cell folds in any of the 4 pairs" in page
    assert page.index("better in 3 of 4 pairs") < page.index("No cell folds")
    assert "moving3.nii.gz to fixed3.nii.gz" in page


def test_without_a_page(folder, capsys):
    assert run("register", "some.csv", "-o", "out") == 2
    assert (folder / "out/report.html").exists()
    capsys.readouterr()
    assert run("register", "some.csv", "-o", "out", "--no-report") == 2
    assert capsys.readouterr().out.startswith("out/metrics.csv: 1 pair: NCC ")
    assert not (folder / "out/report.html").exists()


def test_maps_of_the_determinant_of_every_pair(folder, capsys):
    """Of pairs that are complete too, which are not registered again."""
    maps = {"jacobian.nii.gz", "log_jacobian.nii.gz", "jacobian_with_affine.nii.gz"}
    assert run("register", "pairs.csv", "-o", "out", "--jacobian") == 0
    assert run("register", "pairs.csv", "-o", "late", "--no-report") == 0
    capsys.readouterr()
    assert run("register", "pairs.csv", "-o", "late", "--jacobian", "--no-report") == 0
    assert "4 of 4 pairs were complete and are kept" in capsys.readouterr().err
    assert run("register", "moving1.nii.gz", "fixed1.nii.gz", "-o", "one", "--jacobian") == 0
    for pair in sorted(folder.glob("out/0*")):
        there = {path.name for path in pair.iterdir()}
        late = folder / "late" / pair.name
        assert maps < there == {path.name for path in late.iterdir()}
        for name in maps:
            values = nib.load(pair / name).get_fdata()
            assert np.array_equal(values, nib.load(late / name).get_fdata())
            if "moving1" in pair.name:
                assert np.array_equal(values, nib.load(folder / "one" / name).get_fdata())
        grown = nib.load(pair / "jacobian.nii.gz").get_fdata()
        assert (grown.std() > 0.015) == ("moving0" not in pair.name)  # the first are nearly equal


def test_pairs_that_may_not_fit_are_counted(folder, capsys):
    noise = np.random.default_rng(0).random((32, 24)).astype(np.float32)
    save("moving1.nii.gz", noise)
    assert run("register", "pairs.csv", "-o", "out") == 0
    line = "diffreg: warning: 1 of 4 pairs may not fit; each metrics.json says why\n"
    assert line in capsys.readouterr().err
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("out/*/metrics.json"))]
    sentences = [values["warnings"] for values in found]
    assert [bool(each) for each in sentences] == [False, True, False, False]
    with (folder / "out/metrics.csv").open() as file:
        counts = [line["warnings"] for line in csv.DictReader(file)]
    assert counts == [str(len(each)) for each in sentences]


def test_it_goes_on_where_it_stopped(folder, capsys):
    run("register", "pairs.csv", "-o", "out")
    first = (folder / "out/0001_moving0_to_fixed0/metrics.json").read_bytes()
    (folder / "out/0003_moving2_to_fixed2/metrics.json").unlink()
    capsys.readouterr()
    assert run("register", "pairs.csv", "-o", "out") == 0
    assert "3 of 4 pairs were complete and are kept\n" in capsys.readouterr().err
    assert (folder / "out/0001_moving0_to_fixed0/metrics.json").read_bytes() == first
    assert len(done(folder / "out")) == 4


def test_another_question_is_answered_anew(folder, capsys):
    """Other settings, or an image that has changed: what is there is no answer."""
    manifest = read_manifest("pairs.csv")
    out = folder / "out"
    out.mkdir()
    register_all(manifest, out, Method(similarity="ssd"))
    assert register_all(manifest, out, Method(similarity="ssd")).kept == 4
    assert register_all(manifest, out, Method(similarity="ncc")).kept == 0
    save("moving1.nii.gz", blob((32, 24), 0.6))
    assert register_all(manifest, out, Method(similarity="ncc")).kept == 3


def test_a_header_that_changed_beside_its_numbers_is_another_question(folder, tmp_path):
    file = nib.Nifti1Pair(np.zeros((6, 5, 4), np.float32), np.eye(4))
    nib.save(file, tmp_path / "a.img")
    pair = Pair(tmp_path / "a.img", tmp_path / "a.img")
    before = _request(pair, Method(), "", tmp_path)
    assert _request(pair, Method(), "", tmp_path) == before
    file.affine[0, 3] = 4.0
    nib.save(nib.Nifti1Pair(file.dataobj, file.affine), tmp_path / "b.img")
    (tmp_path / "b.hdr").replace(tmp_path / "a.hdr")
    assert _request(pair, Method(), "", tmp_path) != before


def test_another_day_and_command_ask_the_same_question(folder, monkeypatch):
    manifest, out = read_manifest("pairs.csv"), folder / "out"
    out.mkdir()
    first = register_all(manifest, out, Method(similarity="ncc"))
    words = ["/usr/bin/diffreg", "register", "pairs.csv", "-o", "out"]
    monkeypatch.setattr(sys, "argv", words)
    origin = {"date": "2001-01-01T00:00:00+00:00", "versions": {}, "device": "another"}
    monkeypatch.setattr(finished, "provenance", lambda result: origin)
    assert register_all(manifest, out, Method(similarity="ncc")).kept == 4
    (first.jobs[0].folder / "metrics.json").unlink()
    again = register_all(manifest, out, Method(similarity="ncc"))
    assert [job.request for job in again.jobs] == [job.request for job in first.jobs]
    assert json.loads((first.jobs[0].folder / "metrics.json").read_text())["device"] == "another"


def test_warnings_of_pairs_and_failures_stand_at_the_top_of_the_report(folder, monkeypatch):
    origin = {"warnings": ["The images share 4 % of their voxels."]}
    monkeypatch.setattr(finished, "provenance", lambda result: origin)
    assert run("register", "some.csv", "-o", "out") == 2
    page = (folder / "out/report.html").read_text()
    assert page.index("1 of 2 pairs failed") < page.index("The images agree")
    assert "moving1.nii.gz to fixed1.nii.gz: The images share 4 %" in page
    assert 'class="sentence"' not in page


def test_a_pair_that_fails_loses_no_other(folder, capsys):
    assert run("register", "some.csv", "-o", "out") == 2
    said = capsys.readouterr()
    assert said.out.startswith("out/report.html: 1 pair: NCC ")
    lines = said.err.splitlines()
    assert lines[1].startswith("diffreg: error: some.csv, line 2: bad.nii.gz is not a readable")
    assert lines[2] == "diffreg: error: 1 of 2 pairs failed"
    assert done(folder / "out") == ["0002_moving1_to_fixed1"]
    assert "Failed: some.csv, line 2" in (folder / "out/report.html").read_text()


def test_where_every_pair_fails_nothing_is_left(folder, capsys):
    (folder / "none.csv").write_text("moving,fixed\nbad.nii.gz,bad.nii.gz\n")
    assert run("register", "none.csv", "-o", "out") == 2
    assert not (folder / "out").exists()
    assert run("evaluate", "none.csv", "-o", "out") == 2
    assert not (folder / "out").exists()


def test_a_network_gets_pairs_of_one_size_together(folder, network):
    assert run("register", "pairs.csv", "-o", "out", "--checkpoint", "c.pt") == 0
    assert network.batches == [(3, 1, 32, 24), (1, 1, 20, 24)]
    metrics = json.loads((folder / "out/0004_moving3_to_fixed3/metrics.json").read_text())
    assert (metrics["method"], metrics["similarity"]) == ("network", "ncc")
    (folder / "c.pt").write_bytes(b"other weights")
    network.batches.clear()
    words = ("register", "pairs.csv", "-o", "out", "--checkpoint", "c.pt", "--batch-size", 2)
    assert run(*words) == 0
    assert network.batches == [(2, 1, 32, 24), (1, 1, 32, 24), (1, 1, 20, 24)]


def test_a_displacement_that_is_not_finite_fails_its_pair_alone(folder, network, capsys):
    def forward(moving, fixed):
        u = torch.zeros(len(fixed), 2, *fixed.shape[2:])
        u[1:2, 0, 0, 0] = float("nan")
        return u

    network.forward = forward
    assert run("register", "pairs.csv", "-o", "out", "--checkpoint", "c.pt") == 2
    assert "line 3: the network's displacement holds values that are NaN" in capsys.readouterr().err
    assert len(done(folder / "out")) == 3


def test_volumes_are_taken_whole_or_slice_by_slice(folder):
    for name, at in (("a", 0.5), ("b", 0.52)):
        save(f"{name}.nii.gz", np.stack([blob((24, 20), at + k / 50) for k in range(2)], -1))
    (folder / "volumes.csv").write_text("moving,fixed\na.nii.gz,b.nii.gz\n")
    assert run("register", "volumes.csv", "-o", "out", "--by-slice") == 0
    assert done(folder / "out") == ["0001_a_to_b_0", "0002_a_to_b_1"]
    assert run("evaluate", "volumes.csv", "-o", "whole") == 0
    assert done(folder / "whole") == ["0001_a_to_b"]


def test_a_folder_and_arrays(folder):
    (folder / "images").mkdir()
    for k in range(2):
        save(f"images/{k}.nii.gz", blob((24, 20), 0.5 + 0.02 * k))
    assert run("register", "images", "-o", "out") == 0
    assert done(folder / "out") == ["0001_0_to_1", "0002_1_to_0"]
    np.savez("s.npz", a=blob((24, 20), 0.5), b=blob((24, 20), 0.55))
    assert run("register", "s.npz:a", "s.npz:b", "-o", "arrays") == 0
    assert run("apply", "arrays", "s.npz:a", "-o", "again.nii.gz") == 0
    again, warped = (nib.load(p).get_fdata() for p in ("again.nii.gz", "arrays/warped.nii.gz"))
    np.testing.assert_allclose(again, warped, atol=1e-3)


# what one pair may do to the others: nothing


def test_a_pair_that_cannot_be_written_loses_no_other(folder, capsys):
    """Where its folder should be made there is a file."""
    (folder / "out").mkdir()
    (folder / "out/0002_moving1_to_fixed1").touch()
    assert run("register", "pairs.csv", "-o", "out") == 2
    said = capsys.readouterr()
    assert said.out.startswith("out/report.html: 3 pairs")
    assert said.err.splitlines()[1:] == [
        "diffreg: error: pairs.csv, line 3: the output folder out/0002_moving1_to_fixed1 is a "
        "file, not a folder",
        "diffreg: error: 1 of 4 pairs failed",
    ]
    assert len(done(folder / "out")) == 3
    assert "Failed: pairs.csv, line 3" in (folder / "out/report.html").read_text()


@pytest.mark.parametrize("number, lost", [
    (errno.EACCES, 1), (errno.EROFS, 1), (errno.ENAMETOOLONG, 1), (errno.EIO, 1),
    (errno.ENOSPC, None), (errno.EDQUOT, None), (errno.EFBIG, None),
])  # fmt: skip
def test_only_a_full_disk_stops_the_run(number, lost, folder, monkeypatch, capsys):
    write = cohort.write_registration

    def fail(result, out, **keywords):
        if out.name.startswith("0002"):
            raise OSError(number, os.strerror(number), f"{out}/.{os.getpid()}-metrics.json")
        return write(result, out, **keywords)

    monkeypatch.setattr(cohort, "write_registration", fail)
    assert run("register", "pairs.csv", "-o", "out") == 2
    said = capsys.readouterr().err.splitlines()
    assert len(done(folder / "out")) == (1 if lost is None else 3)
    words = os.strerror(number).lower()
    assert said[1:] == (
        [f"diffreg: error: out: {words}: no file was left half-written"]
        if lost is None
        else [
            f"diffreg: error: pairs.csv, line 3: out/0002_moving1_to_fixed1: {words}",
            "diffreg: error: 1 of 4 pairs failed",
        ]
    )


def test_a_size_that_a_network_refuses_loses_no_other(folder, network, capsys):
    def forward(moving, fixed):
        if fixed.shape[2] < 24:
            raise ValueError("the image must be larger")
        return Shift.forward(network, moving, fixed)

    network.forward = forward
    assert run("register", "pairs.csv", "-o", "out", "--checkpoint", "c.pt") == 2
    assert "pairs.csv, line 5: the image must be larger" in capsys.readouterr().err
    assert len(done(folder / "out")) == 3


def test_too_little_memory_for_a_batch_is_enough_for_one(folder, network, capsys):
    def forward(moving, fixed):
        if len(fixed) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate")
        return Shift.forward(network, moving, fixed)

    network.forward = forward
    assert run("register", "pairs.csv", "-o", "out", "--checkpoint", "c.pt") == 0
    assert network.batches == [(1, 1, 32, 24)] * 3 + [(1, 1, 20, 24)]


def test_too_little_memory_for_a_pair_loses_no_other(folder, monkeypatch, capsys):
    register = cohort.register

    def fail(moving, fixed, **keywords):
        if moving.name == "moving1.nii.gz":
            raise RuntimeError("CUDA out of memory. Tried to allocate 80.00 GiB")
        return register(moving, fixed, **keywords)

    monkeypatch.setattr(cohort, "register", fail)
    assert run("register", "pairs.csv", "-o", "out") == 2
    assert "line 3: there is not enough memory for images of this" in capsys.readouterr().err
    assert len(done(folder / "out")) == 3


def test_results_that_were_damaged_lose_no_other(folder, capsys):
    run("register", "pairs.csv", "-o", "out")
    (folder / "out/0002_moving1_to_fixed1/displacement.nii.gz").write_bytes(b"damaged")
    capsys.readouterr()
    assert run("register", "pairs.csv", "-o", "out") == 2
    said = capsys.readouterr()
    assert said.out.startswith("out/report.html: 3 pairs")
    assert "out/0002_moving1_to_fixed1/displacement.nii.gz is not a readable" in said.err
    with (folder / "out/metrics.csv").open() as file:
        assert [line["row"][-1] for line in csv.DictReader(file)] == ["2", "4", "5"]


def test_what_a_killed_process_left_goes_with_the_next(folder):
    (folder / "out").mkdir()
    mark = f".999999999-{atomic._place()}-"
    (folder / "out" / f"{mark}trialx").mkdir()
    (folder / "out" / f"{mark}metrics.csv").touch()
    assert run("register", "some.csv", "-o", "out", "--no-report") == 2
    assert not list((folder / "out").glob(".*"))
