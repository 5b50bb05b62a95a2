"""Several pairs of volumes: one page, a row each, and never the arrays of more than two pairs."""

import gc
import sys
import weakref

import nibabel as nib
import numpy as np
import pytest

from diffreg.cli.main import main
from diffreg.evaluation import cohort_report

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (18, 16, 14)


def ball(at):
    x, y, z = np.indices(SHAPE) - np.reshape([at, 8, 7], (3, 1, 1, 1))
    return (100 / (1 + np.exp((x**2 + 0.8 * y**2 + 1.3 * z**2 + x * y / 3) / 6 - 4))).astype("f4")


@pytest.fixture(scope="module")
def registered(tmp_path_factory):
    """Three pairs, and what was alive of the earlier ones while each was drawn for the page."""
    folder = tmp_path_factory.mktemp("volumes")
    lines = ["moving,fixed"]
    for k in range(3):
        for name, at in (("m", 10 + k / 2), ("f", 9)):
            nib.save(nib.Nifti1Image(ball(at), np.diag([2.0, 2, 3, 1])), folder / f"{name}{k}.nii")
        lines.append(f"m{k}.nii,f{k}.nii")
    (folder / "pairs.csv").write_text("\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        alive = watched(patch, cohort_report)
        words = ["register", str(folder / "pairs.csv"), "-o", str(folder / "out")]
        assert main([*words, "--affine", "none"]) == 0
    return folder, alive


def watched(patch, module):
    """How many of the pairs drawn before are alive whenever the next one is, and at the end."""
    seen, alive = [], []
    original = module.view

    def view(*arguments):
        alive.append(count())
        found = original(*arguments)
        seen.append(weakref.ref(found))
        return found

    def count():
        gc.collect()
        return sum(one() is not None for one in seen)

    patch.setattr(module, "view", view)
    return lambda: [*alive, count()]


def test_register_keeps_a_row_of_each_pair(registered):
    folder, alive = registered
    assert alive() == [0, 0, 0, 0]
    check_rows((folder / "out/report.html").read_text("utf-8"))


def test_evaluate_keeps_a_row_of_each_pair(registered, tmp_path, monkeypatch):
    folder, _ = registered
    alive = watched(monkeypatch, sys.modules["diffreg.evaluation.evaluate"])
    words = ["evaluate", str(folder / "pairs.csv"), "--displacements", str(folder / "out")]
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    assert max(alive()) <= 1 and alive()[-1] == 0
    check_rows((tmp_path / "out/report.html").read_text("utf-8"))


def check_rows(page):
    for plane in ("Axial", "Coronal", "Sagittal"):
        for when in ("before", "after"):
            assert page.count(f'alt="{plane} overlay {when}: ') == 3
    assert 'class="viewer"' not in page and len(page) < 1e6


def test_of_one_pair_of_volumes_the_page_has_the_viewer(registered, tmp_path):
    folder, _ = registered
    (folder / "one.csv").write_text("moving,fixed\nm0.nii,f0.nii\n")
    words = ["evaluate", str(folder / "one.csv"), "--displacements", str(folder / "out")]
    assert main([*words, "-o", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out/report.html").read_text("utf-8")
    assert "slice" in page and 'class="viewer"' in page
