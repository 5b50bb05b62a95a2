"""Other tools' files, and what the tools themselves make of them: read, and written again.

The files are no part of the repository: DIFFREG_GOLDEN names their folder, by default
shared/golden/transforms beside the checkout.
"""

import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from diffreg.data.grid import Grid
from diffreg.transforms import Affine, compose, format_of, read, read_field, resample, write

BESIDE = Path(__file__).parents[3] / "shared" / "golden" / "transforms"
GOLDEN = Path(os.environ.get("DIFFREG_GOLDEN", BESIDE))
pytestmark = [
    pytest.mark.skipif(
        not (GOLDEN / "expected.json").exists(),
        reason="the golden transforms are not here: DIFFREG_GOLDEN must name their folder",
    ),
    pytest.mark.filterwarnings("ignore:.*AFNI's transforms:diffreg.system.files.FileWarning"),
]
FOUND = {
    "01_itk_affine.tfm": "itk-text",
    "02_itk_affine.mat": "itk-matlab",
    "03_itk_euler.tfm": "itk-text",
    "04_itk_displacement.nii.gz": "itk-field",
    "05_itk_composite.h5": "itk-h5",
    "08_freesurfer.lta": "freesurfer-lta",
    "09_niftyreg_def.nii.gz": "niftyreg-deformation",
    "09_niftyreg_disp.nii.gz": "niftyreg-displacement",
    "11_elastix.txt": "elastix",
    "14_afni.aff12.1D": "afni-affine",
}
NAMED = {
    "06_fsl_flirt.mat": "fsl-flirt",
    "07_fsl_warp_abs.nii.gz": "fsl-warp-absolute",
    "07_fsl_warp_rel.nii.gz": "fsl-warp-relative",
    "09_niftyreg_affine.txt": "niftyreg-affine",
    "10_greedy_affine.mat": "greedy",
}
IMAGES = {"fixed": GOLDEN / "fixed.nii.gz", "moving": GOLDEN / "moving.nii.gz"}
# Of which the tools warped an image.
WARPED = ("05", "07", "09", "10", "11")
# Text of AFNI has 6 digits, the geometry of an .lta file is float32.
COARSE = {"14_afni.aff12.1D": 1e-5, "08_freesurfer.lta": 1e-5}


def case(name):
    return json.loads((GOLDEN / "expected.json").read_text())[name]


def golden(name):
    return read(GOLDEN / name, NAMED.get(name), **IMAGES)


def agrees(transform, name):
    """With all that the tool said of its file, but for images."""
    told, checked = case(name), 0
    if "matrix_ras" in told:
        error = np.abs(transform.matrix - np.array(told["matrix_ras"])).max()
        assert error < COARSE.get(name, 1e-6)
        checked += 1
    if "points" in told:
        error = np.abs(transform(np.array(told["points"])) - np.array(told["mapped"])).max()
        assert error < 2e-5
        checked += 1
    return checked


@pytest.mark.parametrize("name", FOUND)
def test_a_format_is_found_by_content(name):
    assert format_of(GOLDEN / name) == FOUND[name]


@pytest.mark.parametrize("name", NAMED)
def test_what_may_be_of_several_formats_must_be_named(name):
    with pytest.raises(ValueError, match=NAMED[name]) as caught:
        read(GOLDEN / name, **IMAGES)
    assert "on the command line, format= in Python" in str(caught.value)


@pytest.mark.parametrize("name", [*FOUND, *NAMED])
def test_points_and_matrices_are_those_of_the_tool(name):
    checked = agrees(golden(name), name)
    assert checked or "warped_image" in case(name)


def test_outside_its_grid_a_field_moves_nothing():
    told = case("04_itk_displacement.nii.gz")
    found = golden("04_itk_displacement.nii.gz")([told["outside_point"]])
    assert np.abs(found - told["outside_mapped"]).max() < 1e-6


@pytest.mark.parametrize("name", [n for n in [*FOUND, *NAMED] if n[:2] in WARPED])
def test_images_are_warped_as_the_tool_does(name):
    """To 1e-3 of a range of 100, inside: tools differ in the last half voxel outside."""
    transform, told = golden(name), case(name)["warped_image"]
    if name.startswith("10"):  # after the field of ITK, which greedy takes as its own
        transform = compose([golden("04_itk_displacement.nii.gz"), transform])
    ours = resample(nib.load(IMAGES["moving"]), IMAGES["fixed"], transform, "linear", 0.0)
    theirs = nib.load(GOLDEN / told).get_fdata() if told.endswith("gz") else np.load(GOLDEN / told)
    inside = reached_inside(transform)
    assert inside.sum() > 20
    assert np.abs(np.asarray(ours.dataobj) - theirs)[inside].max() < 0.1


def reached_inside(transform):
    """Which fixed voxels lead at least 0.01 voxels into the moving grid."""
    fixed, moving = (nib.load(path) for path in IMAGES.values())
    voxels = np.moveaxis(np.indices(fixed.shape, dtype=float), 0, -1).reshape(-1, 3)
    points = transform(nib.affines.apply_affine(fixed.affine, voxels))
    there = nib.affines.apply_affine(np.linalg.inv(moving.affine), points)
    inside = (there >= 0.01) & (there <= np.array(moving.shape) - 1.01)
    return inside.all(axis=1).reshape(fixed.shape)


@pytest.mark.parametrize("name", [n for n in [*FOUND, *NAMED] if not n.startswith("14")])
def test_what_is_written_again_is_the_same_map(name, tmp_path):
    kind = FOUND.get(name) or NAMED[name]
    path = tmp_path / name
    write(path, golden(name), kind, **IMAGES)
    again = read(path, kind, **IMAGES)
    if not agrees(again, name):
        points = np.array(case("01_itk_affine.tfm")["points"])
        assert np.abs(again(points) - golden(name)(points)).max() < 2e-5


@pytest.mark.parametrize("name", ["06_fsl_flirt.mat", "09_niftyreg_affine.txt"])
def test_a_text_has_the_numbers_of_the_tool(name, tmp_path):
    write(tmp_path / name, golden(name), NAMED[name], **IMAGES)
    theirs, ours = (np.loadtxt(folder / name) for folder in (GOLDEN, tmp_path))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize(
    "name", [n for n in [*FOUND, *NAMED] if n[:2] in ("04", "07") or "_d" in n]
)
def test_a_field_has_the_numbers_of_the_tool(name, tmp_path):
    write(tmp_path / name, golden(name), FOUND.get(name) or NAMED[name], **IMAGES)
    theirs, ours = (nib.load(folder / name) for folder in (GOLDEN, tmp_path))
    assert ours.shape == theirs.shape and ours.get_data_dtype() == theirs.get_data_dtype()
    for key in ("intent_code", "intent_name", "intent_p1"):
        assert ours.header[key] == theirs.header[key]
    np.testing.assert_allclose(ours.get_fdata(), theirs.get_fdata(), atol=2e-5)


def test_fields_of_learn2reg_are_voxels():
    name = "12_learn2reg_disp_0001_0002.npz"
    stored = np.load(GOLDEN / name)["arr_0"].astype(float)
    labels = np.load(GOLDEN / "12_learn2reg_seg.npz")
    grid = Grid(stored.shape[:3], np.eye(4))
    found = read(GOLDEN / name, fixed=grid)
    assert np.array_equal(np.moveaxis(found.displacement[0].numpy(), 0, -1), stored)
    assert np.array_equal(read_field(GOLDEN / name), found.displacement)
    moving = nib.Nifti1Image(labels["moving"], np.eye(4))
    warped = np.asarray(resample(moving, grid, found, "nearest", 0).dataobj)
    ends = np.moveaxis(np.indices(grid.size), 0, -1) + stored
    inside = ((ends >= 0) & (ends <= np.array(grid.size) - 1)).all(axis=-1)  # theirs is 0 beyond
    assert inside.mean() > 0.7
    assert np.array_equal(warped[inside], labels["warped"][inside])
    told = case(name)
    ends = found(np.array(told["fixed_landmarks"])) - told["moving_landmarks"]
    errors = np.linalg.norm(ends * told["spacing_moving"], axis=1)
    np.testing.assert_allclose(errors, told["tre"], atol=0.15)  # they interpolate by cubics


def test_a_slice_in_three_planes_is_one():
    found = read(GOLDEN / "13_slice_displacement_3planes.nii.gz")
    expected = np.load(GOLDEN / "13_displacement_voxels.npy")
    assert found.grid.dimensions == 2
    np.testing.assert_allclose(
        found.displacement[0].numpy(), expected.reshape(2, *found.grid.size), atol=2e-5
    )


def test_x5_is_refused_in_words():
    with pytest.raises(ValueError, match="as X5 files have it"):
        read(GOLDEN / "15_nitransforms.x5")


def test_an_inverse_is_the_other_direction():
    there = golden("02_itk_affine.mat")
    assert isinstance(there, Affine)
    points = np.array(case("02_itk_affine.mat")["points"])
    assert np.abs(there.inverse()(there(points)) - points).max() < 1e-10
