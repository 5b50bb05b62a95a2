"""Files that are odd and read all the same: the command line says so in one line, once."""

import json
import warnings

import nibabel as nib
import numpy as np
import pytest

from diffreg.cli.main import main
from diffreg.data.transforms import read_displacement

pytestmark = pytest.mark.usefixtures("one_thread")

AFFINE = np.diag([2.0, 2.0, 5.0, 1.0])


def moved(row, column, by):
    matrix = np.eye(4)
    matrix[row, column] = by
    return matrix


def picture(at):
    x, y = np.meshgrid(np.arange(24), np.arange(20), indexing="ij")
    return (100 * np.exp(-((x - at) ** 2 + (y - 9) ** 2) / 30)).astype(np.float32)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, at in (("moving", 9), ("fixed", 11)):
        array = picture(at)
        nib.save(nib.Nifti1Image(array, AFFINE), f"{name}.nii")
        array[:3] = np.nan
        nib.save(nib.Nifti1Image(array, AFFINE), f"{name}_nan.nii")
    file = nib.Nifti1Image(picture(11), AFFINE)
    file.set_qform(AFFINE @ moved(0, 3, 0.75), 1)
    nib.save(file, "two_forms.nii")
    return tmp_path


def register(capsys, *names, similarity="ncc"):
    """What a registration of two files says of them on stderr; its result is judged elsewhere."""
    out = "-".join(name.partition(".")[0] for name in names)
    assert main(["register", *names, "-o", out, "--similarity", similarity]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{out}/report.html: ")
    return [line for line in said.err.splitlines() if ".nii: " in line]


def test_nothing_is_said_of_ordinary_files(here, capsys):
    assert register(capsys, "moving.nii", "fixed.nii") == []


def test_nan_outside_the_brain_registers_with_one_line_a_file(here, capsys):
    assert register(capsys, "moving_nan.nii", "fixed_nan.nii") == [
        f"diffreg: warning: {name}_nan.nii: 60 of 480 voxels are NaN or infinite; "
        "they count as outside"
        for name in ("moving", "fixed")
    ]
    out = here / "moving_nan-fixed_nan"
    assert read_displacement(out / "displacement.nii.gz")[0].isfinite().all()
    assert np.isfinite(nib.load(out / "warped.nii.gz").get_fdata()).all()
    metrics = json.loads((out / "metrics.json").read_text())
    assert 300 < metrics["compared_voxels"] <= 480 - 60
    assert metrics["after"]["ncc"] > 0.99 > metrics["before"]["ncc"]


def test_two_forms_are_one_line(here, capsys):
    line = (
        "diffreg: warning: two_forms.nii: its sform and its qform put a voxel up to 1.5 mm apart; "
        "diffreg takes the sform, ITK the qform"
    )
    assert register(capsys, "moving.nii", "two_forms.nii") == [line]
    assert register(capsys, "two_forms.nii", "two_forms.nii") == [line]


def test_a_manifest_says_it_once_for_a_file(here, capsys):
    (here / "pairs.csv").write_text(
        "moving,fixed\nmoving.nii,two_forms.nii\nmoving_nan.nii,two_forms.nii\n"
    )
    assert main(["evaluate", "pairs.csv", "-o", "out", "--similarity", "ncc"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if ".nii: " in line]
    assert len(lines) == 2 and all(line.startswith("diffreg: warning: ") for line in lines)


def test_a_skewed_fixed_image_is_refused_before_any_work(here, capsys):
    nib.save(nib.Nifti1Image(picture(11), AFFINE @ moved(0, 1, 0.25)), "skewed.nii")
    assert main(["register", "moving.nii", "skewed.nii", "-o", "out"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("diffreg: error: skewed.nii: its axes stand at 75.96 degrees")
    assert said[-1].endswith("resample it to right angles first")
    assert not (here / "out").exists()


def test_other_warnings_stay_python_s(here, capsys, monkeypatch):
    def run(options):
        warnings.warn("of a library", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setattr("diffreg.cli.commands.run_info", run)
    with pytest.warns(UserWarning, match="of a library"):
        assert main(["info"]) == 0
    assert capsys.readouterr().err == ""
