"""What metrics.json and the reports say of a result's origin."""

import json
import math
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

import diffreg
from diffreg import __version__, metrics
from diffreg.data.geometry import Image
from diffreg.losses import Objective
from diffreg.registration import provenance as module
from diffreg.registration import register, write_registration
from diffreg.registration.provenance import in_words, provenance

pytestmark = pytest.mark.usefixtures("one_thread")

AFFINE = np.diag([1.5, 2.0, 5.0, 1.0])


def blob(at):
    x, y = torch.meshgrid(*(torch.linspace(0, 1, n) for n in (40, 36)), indexing="ij")
    return (200 * torch.exp(-(((x - at) / 0.2) ** 2 + ((y - 0.45) / 0.3) ** 2)))[None, None]


MOVING, FIXED = Image(blob(0.53), AFFINE), Image(blob(0.5), AFFINE)


class Shift(nn.Module):
    """A network that displaces every voxel alike."""

    def forward(self, moving, fixed):
        return torch.full((len(fixed), 2, *fixed.shape[2:]), 2.0)


def test_lengths_by_hand():
    u = np.zeros((2, 3, 4))
    u[0, 1, 2], u[1, 1, 2], u[0, 0, 0] = 3.0, 2.0, 1.0
    found = metrics.displacement_length(u, (1.0, 2.0))
    assert found == {"mean": pytest.approx((5 + 1) / 12), "max": pytest.approx(5)}
    mask = np.zeros((3, 4))
    mask[0, :2] = 1
    inside = metrics.displacement_length(u, None, mask)
    assert inside == {"mean": pytest.approx(0.5), "max": pytest.approx(math.sqrt(13))}
    with pytest.raises(ValueError, match=r"mask must be \[3, 4\]"):
        metrics.displacement_length(u, None, mask[:2])


def test_a_displacement_is_measured_in_millimetres():
    found = register(MOVING, FIXED, network=Shift()).metrics["displacement_mm"]
    assert found["mean"] == found["max"] == pytest.approx(math.hypot(2 * 1.5, 2 * 2.0))


def test_the_objective_is_what_was_minimised():
    objective = Objective({"ncc": 1.0, "lncc": 0.2}, (9, 8, 7, 6))
    found = register(MOVING, FIXED, objective=objective, levels=3, iterations=4).metrics
    assert found["objective"] == {
        "similarity": {"ncc": 1.0, "lncc": 0.2},
        "weights": {"similarity": 9, "diffusion": 8, "bending": 7, "determinant": 6},
        "penalty": "hyperelastic",
        "threshold": None,
        "window": 9,
        "spacing": pytest.approx([1.0, 4 / 3]),
        "levels": 2,  # of 36 voxels, three levels would leave 9
        "iterations": 4,
        "composed_steps": 0,
    }
    words = in_words(found)
    assert words["objective"] == "similarity ncc + 0.2 lncc"
    assert words["weights"].startswith("similarity 9, diffusion 8, bending 7, determinant 6")
    assert words["levels"] == "2 levels, at most 4 iterations on each"


def test_a_networks_objective_is_the_one_that_it_was_trained_with():
    found = register(MOVING, FIXED, network=Shift(), objective=Objective("pls")).metrics
    assert found["objective"]["similarity"] == {"pls": 1.0}
    assert "levels" not in found["objective"]
    assert "objective" not in register(MOVING, FIXED, network=Shift()).metrics


def test_date_versions_and_device_are_those_of_this_run():
    before = datetime.now(timezone.utc)
    found = provenance()
    date = datetime.fromisoformat(found["date"])
    assert date.utcoffset() is not None
    assert -timedelta(seconds=1) <= date - before < timedelta(minutes=1)
    versions = {"diffreg": __version__, "torch": torch.__version__}
    assert found["versions"] == {**versions, "python": platform.python_version()}
    assert found["device"].endswith(", 1 thread") and len(found["device"]) > len(", 1 thread")


@pytest.mark.parametrize(
    ("program", "command"),
    [
        (["/usr/bin/diffreg", "register", "a b.nii", "c.nii"], "diffreg register 'a b.nii' c.nii"),
        (["/x/diffreg/__main__.py", "demo"], "diffreg demo"),
        (["/usr/bin/pytest", "-q"], None),
        (["-c"], None),
        ([], None),
    ],
)
def test_only_a_command_line_of_ours_is_a_command(monkeypatch, program, command):
    monkeypatch.setattr(sys, "argv", program)
    assert provenance()["command"] == command
    assert ("command" in in_words(provenance())) == (command is not None)


def test_a_command_leaves_its_origin_in_both_files(tmp_path):
    for name, image in (("moving", MOVING), ("fixed", FIXED)):
        nib.save(nib.Nifti1Image(image.data[0, 0].numpy(), AFFINE), tmp_path / f"{name}.nii.gz")
    words = ["register", "moving.nii.gz", "fixed.nii.gz", "-o", "out"]
    here = {**os.environ, "PYTHONPATH": str(Path(diffreg.__file__).parents[1])}
    subprocess.run([sys.executable, "-m", "diffreg", *words], cwd=tmp_path, env=here, check=True)
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["command"] == "diffreg register moving.nii.gz fixed.nii.gz -o out"
    assert re.fullmatch(rf"{re.escape(module.processor())}, \d+ threads?", found["device"])
    page = (tmp_path / "out" / "report.html").read_text()
    said = dict(re.findall(r'<dt>([^<]*)</dt><dd class="\w+">([^<]*)</dd>', page))
    assert said == in_words(found)


def test_warnings_of_a_result_are_on_its_page(tmp_path):
    result = register(MOVING, FIXED, levels=1, iterations=2)
    result.metrics["warnings"] = ["The images share 4 % of their voxels."]
    write_registration(result, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert '<section class="warnings"' in page and "share 4 %" in page
    assert page.index("share 4 %") < page.index("The images agree")
    assert json.loads((tmp_path / "metrics.json").read_text())["warnings"]


def test_pixels_are_no_millimetres(tmp_path):
    pair = [Image(image.data, np.eye(4), kind="png", dtype=np.uint8) for image in (MOVING, FIXED)]
    write_registration(register(*pair, levels=1, iterations=2), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "(|u|, pixels)" in page and "(|u|, mm)" not in page
