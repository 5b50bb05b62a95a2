"""A pair of volumes from end to end: registered, written, read again, applied, inverted."""

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch

import diffreg
from diffreg.cli.main import main
from diffreg.data.affine import write_affine
from diffreg.data.transforms import read_displacement, write_displacement
from diffreg.fields import fold_certificate
from diffreg.registration import read_registration
from diffreg.registration.cohort import PairImages
from diffreg.registration.determinants import voxel_determinants

pytestmark = pytest.mark.usefixtures("one_thread")

AFFINE = np.array([[0, 2.0, 0, -20], [-2.0, 0, 0, 17], [0, 0, 3.0, 5], [0, 0, 0, 1]])
SHAPE = (22, 20, 16)


def head(shift=0.0, shape=SHAPE, affine=AFFINE, bent=0.0):
    """A lopsided phantom, given by its values in space: an ellipsoid with an organ and a knob."""
    places = affine @ np.stack([*np.indices(shape), np.ones(shape)]).reshape(4, -1)
    middle = (AFFINE @ [*(np.array(SHAPE) / 2), 1])[:3]
    x, y, z = (places[:3].T - middle - shift).T
    x = x + bent * np.cos(y / 8)

    def ball(cx, cy, cz, a, b, c):
        radius = ((x - cx) / a) ** 2 + ((y - cy) / b) ** 2 + ((z - cz) / c) ** 2
        return 1 / (1 + np.exp(np.minimum(6 * (radius - 1), 50)))

    values = ball(0, 0, 0, 14, 16, 16) + ball(4, 5, 3, 5, 4, 6) + 0.7 * ball(-6, -4, -5, 4, 6, 4)
    return (100 * values).reshape(shape).astype(np.float32)


def save(path, array, affine=AFFINE):
    nib.save(nib.Nifti1Image(array, affine), path)
    return str(path)


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """From the command line: the moving image on another grid, and bent."""
    folder = tmp_path_factory.mktemp("volumes")
    finer = AFFINE @ np.diag([0.8, 0.9, 1.1, 1.0])
    finer[:3, 3] -= 2
    moving = save(folder / "moving.nii.gz", head(shape=(28, 26, 17), affine=finer, bent=3.0), finer)
    fixed = save(folder / "fixed.nii.gz", head())
    organs = [
        save(folder / "a.nii.gz", (nib.load(moving).get_fdata() > 120).astype(np.int16), finer)
    ]
    organs += [save(folder / "b.nii.gz", (head() > 120).astype(np.int16))]
    words = ["register", moving, fixed, "-o", str(folder / "out"), "--affine", "none", "--jacobian"]
    assert main([*words, "--moving-label", organs[0], "--fixed-label", organs[1]]) == 0
    return folder


def test_it_fits_and_does_not_fold(registered):
    metrics = json.loads((registered / "out/metrics.json").read_text())
    assert metrics["after"]["ncc"] > 0.999 > metrics["before"]["ncc"] + 0.02
    assert metrics["min_determinant"] > 0.3 and metrics["folded_percent"] == 0
    assert metrics["dice"]["after"] > 0.91 > metrics["dice"]["before"]
    assert metrics["shape"] == list(SHAPE) and metrics["spacing_mm"] == pytest.approx([2, 2, 3])


def test_its_files_fit_the_fixed_grid(registered):
    warped = nib.load(registered / "out/warped.nii.gz")
    np.testing.assert_allclose(warped.affine, AFFINE, atol=1e-5)
    inside = head() > 50
    assert np.abs(warped.get_fdata() - head())[inside].mean() < 2
    u, grid = read_displacement(registered / "out/displacement.nii.gz")
    jacobian = nib.load(registered / "out/jacobian.nii.gz").get_fdata()
    expected = voxel_determinants(u)[0, 0].numpy()
    np.testing.assert_allclose(jacobian, expected, atol=1e-4)
    logarithm = nib.load(registered / "out/log_jacobian.nii.gz").get_fdata()
    np.testing.assert_allclose(np.exp(logarithm), expected, rtol=1e-4)
    assert grid.shape == SHAPE
    page = (registered / "out/report.html").read_text("utf-8")
    assert "Axial" in page and len(page) < 6e6


def test_it_is_read_and_applied_again(registered):
    images = [diffreg.read_image(registered / f"{name}.nii.gz") for name in ("moving", "fixed")]
    result = read_registration(PairImages(*images), registered / "out")
    warped = nib.load(registered / "out/warped.nii.gz").get_fdata()
    np.testing.assert_allclose(result.values[0, 0].numpy(), warped, atol=2e-2)
    again = str(registered / "again.nii.gz")
    assert main(["apply", str(registered / "out"), str(registered / "moving.nii.gz"), "-o", again,
                 "--interpolation", "linear"]) == 0  # fmt: skip
    np.testing.assert_allclose(nib.load(again).get_fdata(), warped, atol=2e-2)


def test_an_affine_that_is_known_is_part_of_the_map(tmp_path):
    """The image shifted by its header and brought back: nothing is left to warp."""
    there = AFFINE.copy()
    there[:3, 3] += [9, -4, 6]
    known = np.eye(4)
    known[:3, 3] = [9, -4, 6]
    moving, fixed = nib.Nifti1Image(head(), there), nib.Nifti1Image(head(), AFFINE)
    options = {"levels": 1, "iterations": 3, "similarity": "ncc"}
    result = diffreg.register(moving, fixed, affine=known, **options)
    np.testing.assert_allclose(result.warped.get_fdata(), head(), atol=0.1)
    assert result.displacement.abs().max() < 1e-2
    points = np.array([[0.0, 0, 20], [-5, 3, 25]])
    np.testing.assert_allclose(result.apply(points) - points, [[9, -4, 6]] * 2, atol=2e-2)
    labels = nib.Nifti1Image((head() > 50).astype(np.int16), there)
    moved = result.apply(labels)
    assert moved.get_data_dtype() == np.int16
    assert np.array_equal(np.asarray(moved.dataobj), np.asarray(labels.dataobj))
    back = result.inverse
    assert back.residual_mm < 0.01
    np.testing.assert_allclose(back.affine, np.linalg.inv(known))
    saved = result.save(tmp_path / "out", report=False)
    images = PairImages(diffreg.image(moving), diffreg.image(fixed))
    again = read_registration(images, tmp_path / "out")
    np.testing.assert_allclose(again.affine, known, atol=1e-12)
    assert torch.allclose(again.values, saved.values, atol=1e-2)
    growth = np.diag([1.1, 1.2, 1.0, 1.0])
    grown = diffreg.register(moving, fixed, affine=growth @ known, levels=1, iterations=1)
    grown.save(tmp_path / "grown", report=False, jacobian=True)
    part, whole = (
        nib.load(tmp_path / "grown" / f"{name}.nii.gz").get_fdata()
        for name in ("jacobian", "jacobian_with_affine")
    )
    np.testing.assert_allclose(whole, 1.32 * part, rtol=1e-5)


def test_what_lies_outside_the_fixed_grid_is_fetched():
    """The fixed array ends within the head; what is beyond it in the moving image is brought in."""
    part = AFFINE.copy()
    part[:3, 3] += AFFINE[:3, 0] * 6
    moving = diffreg.image(head(shift=[0.0, 5.0, 0.0]), affine=AFFINE)
    fixed = diffreg.image(head(shape=(10, *SHAPE[1:]), affine=part), affine=part)
    result = diffreg.register(moving, fixed, affine="none")
    assert result.metrics["compared_percent"] > 95
    assert result.metrics["after"]["ncc"] > 0.995 > result.metrics["before"]["ncc"] + 0.02


def test_a_volume_and_a_slice_are_refused(registered, capsys):
    words = ["register", str(registered / "moving.nii.gz"), str(registered / "fixed.nii.gz")]
    assert main([*words, "-o", str(registered / "mixed"), "--slice", "4"]) == 0
    save(registered / "plane.nii.gz", head()[:, :, :1])
    assert main([*words[:2], str(registered / "plane.nii.gz"), "-o", "none"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert re.search(
        r"is a volume of 28 x 26 x 17 voxels and .*plane.nii.gz a slice: .*--slice", said
    )


def test_a_volume_is_guaranteed(tmp_path, monkeypatch):
    """Where the search comes back with a field that folds."""

    def folding(moving, *_, **__):
        found = torch.zeros(1, 3, *moving.shape[2:])
        found[0, 0, 8, 8, 8] = 1.5
        return found

    monkeypatch.setattr("diffreg.registration.solved.register_variational", folding)
    for guarantee in (False, True):
        result = diffreg.register(head(), head(), guarantee=guarantee, affine="none")
        result.save(tmp_path / "out")
        stored = read_displacement(tmp_path / "out" / "displacement.nii.gz")[0]
        assert fold_certificate(stored).passes == guarantee
        metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert metrics["certificate"]["verdict"] == ("homeomorphism" if guarantee else "folded")
        assert ("repair" in metrics) == guarantee
    assert 0 < metrics["repair"]["moved_voxels"] < 20
    assert "voxels moved, by at most" in (tmp_path / "out" / "report.html").read_text()


def test_a_registration_says_what_it_is():
    result = diffreg.register(head(), head(shift=1.0), affine="none", levels=1, iterations=2)
    said = repr(result)
    assert said.startswith("Registration of moving to fixed, 22 x 20 x 16:\n  contrast: squared")
    assert 3 <= said.count("\n") <= 6
    page = result._repr_html_()
    assert page.count("<img") == 1 and "data:image/png;base64," in page and "NCC" in page


def test_a_volumes_displacement_is_certified(registered, capsys):
    field = registered / "out" / "displacement.nii.gz"
    certificate = fold_certificate(read_displacement(field)[0])
    assert certificate.passes
    assert main(["certify", str(field)]) == 0
    assert f"{field}: homeomorphism: no cell folds" in capsys.readouterr().out
    found = json.loads((registered / "out" / "metrics.json").read_text())["certificate"]
    assert found["verdict"] == "homeomorphism" and found["in_words"] == str(certificate)
    assert found["where"] == list(certificate.where) and found["folded_cells"] == 0
    assert found["determinant_bound"] <= found["smallest_determinant"]
    report = (registered / "out" / "report.html").read_text()
    assert "what the map is certified to be" in report
    assert "Certified for the displacement as its file holds it: homeomorphism" in report


def test_a_folding_volume_is_certified_in_words(tmp_path, capsys):
    grid = diffreg.image(head(), AFFINE)
    u = torch.zeros(1, 3, *SHAPE)
    u[0, 0, 10, 10, 8] = 1.5
    write_displacement(tmp_path / "u.nii.gz", u, grid)
    assert main(["certify", str(tmp_path / "u.nii.gz")]) == 1
    said = capsys.readouterr().out
    assert "folded: 4 of 5985 cells (0.0668 %) have a determinant of 0 or less" in said
    assert "at voxel (10, 10, 8)" in said and "no cell fails before 0.66" in said


def test_an_affine_map_that_mirrors_has_a_line_of_its_own(registered, tmp_path, capsys):
    shutil.copy(registered / "out" / "displacement.nii.gz", tmp_path)
    write_affine(tmp_path / "affine.mat", np.diag([1.0, -2.0, 1.0, 1.0]))
    for words in ([str(tmp_path)], [str(tmp_path / "displacement.nii.gz")]):
        assert main(["certify", *words]) == 1
        said = capsys.readouterr().out.splitlines()
        assert "homeomorphism" in said[0] and len(said) == 2
        assert said[1].endswith("affine.mat: the affine map mirrors: its determinant is -2")
    straight = str(tmp_path / "straight.mat")
    write_affine(straight, np.diag([1.0, 2.0, 1.0, 1.0]))
    assert main(["certify", str(tmp_path), "--affine", straight]) == 0
    assert "mirrors" not in capsys.readouterr().out


def test_labels_that_part_are_warned_of(tmp_path):
    """The images agree, and an affine map led the labels away."""
    image = diffreg.image(head(), AFFINE)
    away = np.eye(4)
    away[0, 3] = 9
    result = diffreg.register(image, image, affine=away, levels=1, iterations=1, similarity="ncc")
    labels = diffreg.image((head() > 120).astype(np.int16), AFFINE, label=True)
    saved = result.save(tmp_path / "out", report=False, labels=(labels, labels))
    assert saved.metrics["dice"]["by_headers"] == 1 > saved.metrics["dice"]["after"]
    again = saved.save(tmp_path / "out", report=False, labels=(labels, labels))
    parted = [w for w in again.warnings if "overlap less than by the headers" in w]
    assert len(parted) == 1 and result.warnings == [w for w in again.warnings if w not in parted]
