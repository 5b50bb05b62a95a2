"""Displacement files that other tools wrote, and what the tools themselves make of them.

The files are no part of the repository: DIFFREG_GOLDEN names their folder, by default
shared/golden/transforms beside the checkout.
"""

import json
import os
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from diffreg.cli.main import main
from diffreg.data.images import read_image
from diffreg.data.resampling import resample_to
from diffreg.data.transforms import read_displacement, read_field, write_displacement
from diffreg.fields import warp_points

BESIDE = Path(__file__).parents[3] / "shared" / "golden" / "transforms"
GOLDEN = Path(os.environ.get("DIFFREG_GOLDEN", BESIDE))
pytestmark = pytest.mark.skipif(
    not (GOLDEN / "expected.json").exists(),
    reason="the golden transforms are not here: DIFFREG_GOLDEN must name their folder",
)
SLICE = GOLDEN / "13_slice_displacement_3planes.nii.gz"


@pytest.mark.parametrize("name, words", [
    ("07_fsl_warp_abs", r"its shape is \(8, 9, 6, 3\), as FSL's and FreeSurfer's warps have it"),
    ("07_fsl_warp_rel", r"its shape is \(8, 9, 6, 3\), as FSL's and FreeSurfer's warps have it"),
    ("09_niftyreg_def", "is a transformation of NiftyReg .intent name NREG_TRANS."),
    ("09_niftyreg_disp", "is a transformation of NiftyReg .intent name NREG_TRANS."),
])  # fmt: skip
def test_what_is_no_displacement_of_itk_is_refused_in_words(name, words, capsys):
    path = GOLDEN / f"{name}.nii.gz"
    for read in (read_displacement, read_field):
        with pytest.raises(ValueError, match=words):
            read(path)
    niftyreg = "niftyreg" in name  # which says what it is, as FSL's does not
    assert main(["certify", str(path)]) == (0 if niftyreg else 2)
    said = capsys.readouterr()
    assert niftyreg or said.err.count("\n") == 1
    assert not niftyreg or "homeomorphism" in said.out


@pytest.mark.parametrize("name", ["09_niftyreg_def", "09_niftyreg_disp"])
def test_one_slice_of_niftyreg_is_refused_too(name, tmp_path):
    """As (X, Y, 1, 1, 3) it was read as ITK's: positions as vectors, voxels off."""
    whole = nib.load(GOLDEN / f"{name}.nii.gz")
    part = whole.dataobj[:, :, 2:3]
    nib.save(nib.Nifti1Image(part, whole.affine, whole.header), tmp_path / "d.nii.gz")
    with pytest.raises(ValueError, match="is a transformation of NiftyReg"):
        read_displacement(tmp_path / "d.nii.gz")


def test_a_volume_of_itk_moves_points_as_itk_does():
    case = json.loads((GOLDEN / "expected.json").read_text())["04_itk_displacement.nii.gz"]
    displacement, grid = read_displacement(GOLDEN / "04_itk_displacement.nii.gz")
    start, expected = np.array(case["points"]), np.array(case["mapped"])
    inverse = np.linalg.inv(grid.affine)
    places = start @ inverse[:3, :3].T + inverse[:3, 3]
    moved = warp_points(torch.from_numpy(places)[None], displacement.double())[0].numpy()
    ours = moved @ grid.affine[:3, :3].T + grid.affine[:3, 3]
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_a_slice_in_three_planes_is_read_in_voxels():
    expected = np.load(GOLDEN / "13_displacement_voxels.npy")
    displacement, grid = read_displacement(SLICE)
    np.testing.assert_allclose(displacement[0].numpy(), expected.reshape(2, *grid.shape), atol=2e-5)
    fixed = read_image(GOLDEN / "13_slice_fixed.nii.gz")
    np.testing.assert_allclose(grid.affine, fixed.affine, atol=1e-4)
    assert torch.equal(read_field(SLICE).float(), displacement)


def test_a_slice_is_warped_as_ants_does_it():
    """To 1e-3 of the range, inside: tools differ in the last half voxel."""
    case = json.loads((GOLDEN / "expected.json").read_text())[SLICE.name]
    displacement, grid = read_displacement(SLICE)
    moving = read_image(GOLDEN / "13_slice_moving.nii.gz")
    ones = replace(moving, data=torch.ones_like(moving.data))
    ours, inside = (
        resample_to(image, grid, displacement)[0, 0].numpy() for image in (moving, ones)
    )
    theirs = np.load(GOLDEN / case["warped_image"]).reshape(ours.shape)
    inside = (inside > 1 - 1e-6) & (theirs != 0)
    assert inside.mean() > 0.8
    np.testing.assert_allclose(ours[inside], theirs[inside], rtol=0, atol=0.1)


def test_a_slice_is_written_as_the_file_that_ants_applies(tmp_path):
    """To the last vector, and in the same place."""
    displacement, _ = read_displacement(SLICE)
    fixed = read_image(GOLDEN / "13_slice_fixed.nii.gz")
    write_displacement(tmp_path / "d.nii.gz", displacement, fixed)
    ours, theirs = nib.load(tmp_path / "d.nii.gz"), nib.load(SLICE)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours.get_fdata(), theirs.get_fdata(), atol=1e-5)
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-4)


def test_the_command_line_reads_a_slice_in_three_planes(tmp_path, capsys):
    assert main(["certify", str(SLICE)]) == 0
    assert "no cell folds" in capsys.readouterr().out
    moving = GOLDEN / "13_slice_moving.nii.gz"
    assert main(["apply", str(SLICE), str(moving), "-o", str(tmp_path / "w.nii.gz")]) == 0
    file = nib.load(tmp_path / "w.nii.gz")
    expected = read_image(GOLDEN / "13_slice_fixed.nii.gz")
    assert file.shape == (*expected.shape, 1)
    np.testing.assert_allclose(file.affine, expected.affine, atol=1e-4)
