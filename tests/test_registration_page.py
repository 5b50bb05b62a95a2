"""docs/registration.md: its script runs on coarse heads and makes every block of the page."""

import importlib.util
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from coarse import coarse_heads

import diffreg

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("registration_page", DOCS / "registration.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_block_of_the_page_is_made(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    moving, fixed = coarse_heads(tmp_path)
    file = nib.load(moving)
    turned = script.turn(diffreg.read_image(script.MOVING)) @ file.affine
    nib.save(nib.Nifti1Image(np.asarray(file.dataobj), turned), moving)
    blocks = script.volumes(tmp_path, (moving, fixed), iterations=2) | script.slices(tmp_path)
    page = (DOCS / "registration.md").read_text()
    assert set(re.findall(r"<!-- (\w+) -->", page)) - {"end"} == set(blocks)
    assert "affine start: affine (mi): turned by 2" in blocks["volumes"]
    near = float(re.search(r"ends ([\d.]+) mm", blocks["affine"])[1])
    assert near < 2  # a quarter of a voxel
    text = script.written(page, blocks)
    assert text.count("<!-- end -->") == len(blocks) and blocks["slices"] in text
