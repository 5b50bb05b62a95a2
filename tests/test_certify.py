"""`diffreg certify` and `diffreg register --guarantee`."""

import json

import numpy as np
import pytest
import torch
from fields.drawn import smooth

from diffreg.cli.main import main
from diffreg.data.geometry import Image
from diffreg.data.transforms import read_displacement, read_field, write_displacement
from diffreg.fields import fold_certificate

FOLDS = smooth((40, 33), 14.0, 0)
FINE = smooth((40, 33), 2.0, 0)


def grid():
    image = torch.zeros(1, 1, 40, 33)
    return Image(image, np.diag([1.5, 0.7, 2.0, 1.0]))


@pytest.fixture(params=["nifti", "first", "last", "one"])
def written(request, tmp_path):
    def write(u):
        if request.param == "nifti":
            write_displacement(tmp_path / "u.nii.gz", u, grid())
            return tmp_path / "u.nii.gz"
        array = {"first": u[0], "last": u[0].movedim(0, -1), "one": u}[request.param]
        np.savez(tmp_path / "u.npz", vol=array.numpy(), other=np.zeros(3))
        return f"{tmp_path / 'u.npz'}:vol"

    return write


def test_certify_says_it_in_words(written, capsys):
    path = written(FINE)
    assert main(["certify", str(path)]) == 0
    assert f"{path}: homeomorphism: no cell folds" in capsys.readouterr().out
    assert torch.allclose(read_field(path), FINE.double(), atol=1e-5)
    path = written(FOLDS)
    assert main(["certify", str(path)]) == 1
    said = capsys.readouterr().out
    cells = fold_certificate(FOLDS).folded_cells
    assert f"folded: {cells} of 1248 cells" in said and "no cell fails before 0." in said


def test_certify_above_a_threshold(tmp_path, capsys):
    write_displacement(tmp_path / "u.nii", FINE, grid())
    assert main(["certify", str(tmp_path / "u.nii"), "--threshold", "0.9"]) == 1
    said = capsys.readouterr().out
    assert "have a determinant of 0.9 or less" in said
    assert ": not above 0.9: " in said and "folded" not in said


def test_what_folds_is_folded_above_any_threshold():
    found = fold_certificate(FOLDS, 0.9)
    assert found.verdict == "folded" and str(found).startswith("folded: ")
    assert "have a determinant of 0.9 or less; smallest determinant -" in str(found)


@pytest.mark.parametrize(
    "array, words",
    [
        (np.zeros((3, 4, 5)), "must be a field (D, *S) or (*S, D)"),
        (np.array(["a"]), "must hold real numbers"),
        (np.full((2, 4, 4), np.nan), "NaN or infinite"),
        (np.zeros((2, 1, 4)), "at least 2 voxels"),
    ],
)
def test_certify_refuses_in_one_line(tmp_path, capsys, array, words):
    np.savez(tmp_path / "u.npz", array)
    assert main(["certify", str(tmp_path / "u.npz")]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert main(["certify", str(tmp_path / "none.npz")]) == 2
    assert "does not exist" in capsys.readouterr().err


class Folding(torch.nn.Module):
    """A network whose field folds."""

    def forward(self, moving, fixed):
        return FOLDS.expand(len(fixed), -1, -1, -1)


def images(tmp_path):
    nib = pytest.importorskip("nibabel")
    paths = []
    for k, name in enumerate(("moving", "fixed")):
        values = torch.rand(40, 33, 1, generator=torch.Generator().manual_seed(k)).numpy()
        paths.append(tmp_path / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(values, np.diag([1.5, 0.7, 2.0, 1.0])), paths[-1])
    return [str(path) for path in paths]


@pytest.mark.parametrize("guarantee", [False, True])
def test_register_guarantees_what_is_in_the_file(tmp_path, monkeypatch, guarantee):
    from diffreg.cli import commands

    monkeypatch.setattr(commands, "network_of", lambda options: {"network": Folding()})
    out = tmp_path / "out"
    command = ["register", *images(tmp_path), "-o", str(out)]
    assert main([*command, "--guarantee"] if guarantee else command) == 0
    certificate = fold_certificate(read_displacement(out / "displacement.nii.gz")[0])
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["certificate"] == {
        "verdict": certificate.verdict,
        "in_words": str(certificate),
    }
    report = (out / "report.html").read_text()
    assert certificate.verdict in report
    if guarantee:
        assert certificate.passes and metrics["folded_percent"] == 0
        assert metrics["repair"]["before"] == "folded"
        assert metrics["repair"]["moved_voxels"] > 0
        assert "voxels moved, by at most" in report
    else:
        assert certificate.verdict == "folded" and "repair" not in metrics


def test_a_manifest_with_the_guarantee(tmp_path):
    moving, fixed = images(tmp_path)
    (tmp_path / "pairs.csv").write_text(f"moving,fixed\n{moving},{fixed}\n")
    out = tmp_path / "out"
    command = ["register", str(tmp_path / "pairs.csv"), "-o", str(out), "--similarity", "ncc"]
    assert main([*command, "--guarantee"]) == 0
    (metrics,) = (json.loads(path.read_text()) for path in out.glob("*/metrics.json"))
    assert metrics["certificate"]["verdict"] == "homeomorphism"
    assert metrics["repair"]["before"] in ("homeomorphism", "folded", "locally unfolded")


def test_a_nifti_file_is_certified_as_it_is_stored(tmp_path, capsys):
    """In float64: rounded to float32 this field would not fold."""
    nib = pytest.importorskip("nibabel")
    vectors = np.zeros((6, 6, 1, 1, 2))
    vectors[:3, ..., 0], vectors[3:, ..., 0] = -1024.00005, -1024.00005 + 1.00001  # LPS
    file = nib.Nifti1Image(vectors, np.eye(4))
    file.header.set_intent("vector")
    nib.save(file, tmp_path / "u.nii.gz")
    assert main(["certify", str(tmp_path / "u.nii.gz")]) == 1
    assert "folded: 5 of 25 cells" in capsys.readouterr().out


def test_a_file_of_another_kind(tmp_path, capsys):
    np.save(tmp_path / "u.npy", np.zeros((2, 4, 4)))
    assert main(["certify", str(tmp_path / "u.npy")]) == 2
    assert "u.npy is no transform of a format that is read" in capsys.readouterr().err


def test_an_affine_that_cannot_be_read_is_said_before_any_answer(tmp_path, capsys):
    np.savez(tmp_path / "flow.npz", u=np.zeros((2, 8, 8), np.float32))
    words = [f"{tmp_path / 'flow.npz'}:u", "--affine", str(tmp_path / "no.mat")]
    assert main(["certify", *words]) == 2
    said = capsys.readouterr()
    assert not said.out and "no.mat" in said.err
