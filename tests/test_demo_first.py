"""The demo's first stage: two volumes that ship, one registration, two raw files to try."""

import json

import nibabel as nib
import numpy as np
import pytest
from coarse import coarse_heads
from PIL import Image as Picture

from diffreg.data.images import read_image
from diffreg.data.resampling import resample_to
from diffreg.demo import first, raw
from diffreg.demo.measures import HEADS
from diffreg.demo.raw import FIXED, MOVING, turn, write_raw_heads
from diffreg.metrics import ncc

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("path", "shape"), [(MOVING, (80, 96, 80)), (FIXED, (77, 95, 79))])
def test_a_volume_that_ships_is_small_and_lies_where_its_slices_lie(path, shape):
    head = nib.load(path)
    assert (head.shape, head.get_data_dtype()) == (shape, np.uint8)
    assert path.stat().st_size < 250_000
    assert f"`{path.name}`" in (HEADS / "NOTICE.md").read_text()
    plane = read_image(path, 43)  # at 15.5 mm, the mean of 15 and 16
    of_slices = read_image(HEADS / path.name.replace("_2mm", ""), 10)  # at 16 mm
    assert ncc(resample_to(of_slices, plane), plane.data) > 0.995


def test_a_raw_head_has_the_same_voxels_turned_by_20_degrees_and_shifted_by_25_mm(tmp_path):
    moving, fixed = write_raw_heads(tmp_path / "heads")
    turned, head = nib.load(moving), nib.load(MOVING)
    assert np.array_equal(turned.dataobj, head.dataobj) and turned.get_data_dtype() == np.uint8
    assert fixed.read_bytes() == FIXED.read_bytes()
    world = turned.affine @ np.linalg.inv(head.affine)
    angle = np.degrees(np.arccos((np.trace(world[:3, :3]) - 1) / 2))
    middle = np.array([*(np.subtract(head.shape, 1) / 2), 1])
    assert angle == pytest.approx(20, abs=1e-4)
    shift = (turned.affine - head.affine) @ middle
    assert np.linalg.norm(shift) == pytest.approx(25, abs=1e-4)


def test_the_turn_brings_a_raw_head_back(tmp_path):
    """A start that is known: the map from where the head lay to where it lies."""
    moving, _ = write_raw_heads(tmp_path)
    head = read_image(MOVING)
    np.testing.assert_allclose(read_image(moving).placed(turn(head)).affine, head.affine, atol=1e-4)


def test_a_raw_head_gives_the_same_place_in_both_forms(tmp_path):
    header = nib.load(write_raw_heads(tmp_path)[0]).header
    assert (header["sform_code"], header["qform_code"]) == (1, 1)
    np.testing.assert_allclose(header.get_sform(), header.get_qform(), atol=1e-4)


def test_two_raw_volumes_are_registered_and_shown(tmp_path, monkeypatch, capsys):
    moving, fixed = coarse_heads(tmp_path)
    monkeypatch.setattr(raw, "MOVING", moving)
    monkeypatch.setattr(raw, "FIXED", fixed)
    out = tmp_path / "demo"
    out.mkdir()
    report = first.show_first(out)
    said = capsys.readouterr().out
    assert {path.name for path in out.iterdir()} == {"first", "heads", "picture.png"}
    metrics = json.loads((out / "first/metrics.json").read_text())
    assert metrics["after"]["ncc"] > metrics["before"]["ncc"] and metrics["folded_percent"] == 0
    head = read_image(moving)
    left = np.linalg.inv(turn(head)) @ metrics["affine"]["matrix"]  # what no header says
    middle = np.array([*(head.affine @ [*(np.array(head.shape) / 2), 1])[:3], 1])
    assert np.linalg.norm((left - np.eye(4)) @ middle) < 8  # mm, a voxel
    page = report.read_text()
    for words in ("The images agree better than before", "Louis Collins", "Axial", "Sagittal"):
        assert words in page
    typed = f"diffreg register {out}/heads/colin27_turned.nii.gz {out}/heads/mni152.nii.gz"
    assert said.index(typed) < said.index("NCC") < said.index(f"Report: {report}")
    with Picture.open(out / "picture.png") as picture:
        width, height = picture.size
    assert width <= 1400 and 1.8 * height < width < 2.6 * height  # three rows, at README's width
