"""Files of FSL, FreeSurfer, NiftyReg, greedy, elastix, Learn2Reg, VoxelMorph and AFNI."""

import struct
import warnings

import drawn_transforms as drawn
import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.affines import apply_affine

from diffreg.data.grid import Grid
from diffreg.system.files import FileWarning
from diffreg.transforms import FORMATS, Affine, Chain, compose, format_of, read, read_field, write

AFFINES = ["fsl-flirt", "freesurfer-lta", "niftyreg-affine", "greedy", "elastix"]
FIELDS = {
    "itk-field": "d.nii.gz",
    "fsl-warp-absolute": "d.nii.gz",
    "fsl-warp-relative": "d.nii",
    "freesurfer-warp": "d.nii.gz",
    "niftyreg-deformation": "d.nii.gz",
    "niftyreg-displacement": "d.nii.gz",
    "learn2reg": "d.npz",
    "voxelmorph": "d.npz",
}
# What is found by what it holds.
TOLD = ["freesurfer-lta", "elastix", "itk-field", "freesurfer-warp", "niftyreg-deformation"]
TOLD += ["niftyreg-displacement", "learn2reg", "voxelmorph"]


def pair(seed, size=(7, 9, 6)):
    """Oblique, anisotropic, one left-handed: no error of sign, order or flip cancels."""
    rng = np.random.default_rng(seed)
    fixed = drawn.grid(rng, size, mirrored=bool(seed % 2))
    return rng, fixed, drawn.grid(rng, (9, 7, 8), mirrored=not seed % 2)


def voxels_of(grid):
    return np.moveaxis(np.indices((*grid.size, 1)[:3], dtype=float), 0, -1)


def places(grid):
    return apply_affine(grid.affine, voxels_of(grid)).reshape(-1, 3)


def fsl_mm(grid, voxels):
    """FSL's millimetres of voxels, written out: x from the other side of a right-handed image."""
    voxels = voxels.copy()
    if np.linalg.det(grid.affine[:3, :3]) > 0:
        voxels[..., 0] = grid.size[0] - 1 - voxels[..., 0]
    return voxels * np.linalg.norm(grid.affine[:3, :3], axis=0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", AFFINES)
def test_affine_maps_there_and_back(kind, seed, tmp_path):
    rng, fixed, moving = pair(seed)
    chain = Chain((drawn.affine(rng), drawn.affine(rng)))
    path = tmp_path / {"freesurfer-lta": "t.lta"}.get(kind, "t.txt")
    write(path, chain, kind, fixed=fixed, moving=moving)
    again = read(path, kind, fixed=fixed, moving=moving)
    points = drawn.points(rng, fixed, 20)
    assert isinstance(again, Affine)
    assert np.abs(again(points) - chain(points)).max() < 1e-9
    if kind in TOLD:
        assert format_of(path) == kind


@pytest.mark.filterwarnings("ignore:.*outside the grid of a field")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", FIELDS)
def test_fields_there_and_back(kind, seed, tmp_path):
    rng, fixed, moving = pair(seed, (7, 9) if seed == 3 else (7, 9, 6))
    chain = Chain((drawn.field(rng, fixed), drawn.affine(rng), drawn.field(rng, moving)))
    chain = drawn.field(rng, fixed) if seed == 3 else chain
    path = tmp_path / FIELDS[kind]
    write(path, chain, kind, fixed=fixed, moving=moving)
    again = read(path, kind, fixed=fixed, moving=moving)
    error = np.abs(again(places(fixed)) - chain(places(fixed))).max()
    assert error < 1e-4
    assert again.grid.size == fixed.size
    np.testing.assert_allclose(again.grid.affine, fixed.affine, atol=1e-5)
    displacement = read_field(path, kind, fixed=fixed, moving=moving)
    assert torch.equal(displacement, again.displacement)
    if kind in TOLD:
        assert format_of(path) == kind


@pytest.mark.parametrize(
    "kind", ["fsl-warp-absolute", "fsl-warp-relative", "learn2reg", "voxelmorph"]
)
def test_fields_between_2_d_files(kind, tmp_path):
    """They lie on the fixed image's grid, which says that it is flat."""
    rng = np.random.default_rng(0)
    affine = np.diag([1.5, -2.0, 1.0, 1.0])
    fixed = Grid((9, 8), affine, is_flat=True)
    field = drawn.field(rng, fixed)
    names = [FIELDS[kind]] if kind != "learn2reg" else ["d.npz", "d.nii"]
    for name in names:
        write(tmp_path / name, field, kind, fixed=fixed, moving=fixed)
        found = read(tmp_path / name, kind, fixed=fixed, moving=fixed)
        assert found.is_flat
        assert (found.displacement - field.displacement).abs().max() < 1e-5


def test_an_affine_map_between_2_d_files_for_elastix(tmp_path):
    fixed = Grid((9, 8), np.diag([1.5, -2.0, 1.0, 1.0]), is_flat=True)
    matrix = np.array([[1.1, 0.2, 0, 3], [-0.1, 0.9, 0, 4], [0, 0, 1, 0], [0, 0, 0, 1]])
    write(tmp_path / "p.txt", Affine(matrix, True), "elastix", fixed=fixed)
    assert "(Size 9 8)" in (tmp_path / "p.txt").read_text()
    found = read(tmp_path / "p.txt")
    assert found.is_flat
    np.testing.assert_allclose(found.matrix, matrix, atol=1e-14)


def test_an_affine_map_between_2_d_files_for_greedy(tmp_path):
    """greedy -d 2 has 3 x 3 numbers, in RAS too; of 4 x 4 it takes nine for another map."""
    matrix = np.array([[1.1, 0.2, 0, 3], [-0.1, 0.9, 0, 4], [0, 0, 1, 0], [0, 0, 0, 1]])
    write(tmp_path / "t.mat", Affine(matrix, True), "greedy")
    np.testing.assert_array_equal(
        np.loadtxt(tmp_path / "t.mat"), matrix[np.ix_([0, 1, 3], [0, 1, 3])]
    )
    found = read(tmp_path / "t.mat", "greedy")
    assert found.is_flat
    np.testing.assert_array_equal(found.matrix, matrix)
    with pytest.raises(ValueError, match=r"a bare 3 x 3 matrix.* one of greedy"):
        format_of(tmp_path / "t.mat")
    # greedy's own testing/data/t1longi_2d_rigid.mat
    text = "0.946238 0.323471 47.0365 \n-0.323471 0.946238 -2.75042 \n0 0 1 \n"
    (tmp_path / "t.mat").write_text(text)
    assert read(tmp_path / "t.mat", "greedy")([[10.0, 0.0]]) == pytest.approx(
        np.array([[56.49888, -5.98513]])
    )


@pytest.mark.parametrize("seed", range(4))
def test_flirts_matrix_leads_from_moving_to_fixed_in_its_millimetres(seed, tmp_path):
    rng, fixed, moving = pair(seed)
    affine, voxels = drawn.affine(rng), voxels_of(fixed).reshape(-1, 3)
    write(tmp_path / "t.mat", affine, "fsl-flirt", fixed=fixed, moving=moving)
    there = apply_affine(np.linalg.inv(moving.affine), affine(places(fixed)))
    found = apply_affine(np.loadtxt(tmp_path / "t.mat"), fsl_mm(moving, there))
    np.testing.assert_allclose(found, fsl_mm(fixed, voxels), atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_fsls_warps_are_in_millimetres_of_the_moving_image(seed, tmp_path):
    rng, fixed, moving = pair(seed)
    chain = Chain((drawn.field(rng, fixed), drawn.affine(rng)))
    there = apply_affine(np.linalg.inv(moving.affine), chain(places(fixed)))
    expected = fsl_mm(moving, there).reshape(*fixed.size, 3)
    for kind in ("absolute", "relative"):
        path = tmp_path / f"{kind}.nii.gz"
        write(path, chain, f"fsl-warp-{kind}", fixed=fixed, moving=moving)
        stored = nib.load(path).get_fdata()
        stored = stored + fsl_mm(fixed, voxels_of(fixed)) if kind == "relative" else stored
        np.testing.assert_allclose(stored, expected, atol=1e-5)


def test_fsl_does_not_flip_where_a_header_has_no_form(tmp_path):
    """It takes such an image for a radiological one."""
    _, fixed, _ = pair(0)
    file = nib.Nifti1Image(np.zeros((5, 6, 7), np.float32), None)
    file.header.set_zooms((2.0, 3.0, 4.0))
    nib.save(file, tmp_path / "m.nii")
    assert not any(nib.load(tmp_path / "m.nii").header[k] for k in ("qform_code", "sform_code"))
    there = np.diag([2.0, 3.0, 4.0, 1.0])
    np.savetxt(tmp_path / "t.mat", there @ np.linalg.inv(np.diag([2.0, 3.0, 4.0, 1.0])))
    found = read(
        tmp_path / "t.mat", "fsl-flirt", fixed=tmp_path / "m.nii", moving=tmp_path / "m.nii"
    )
    np.testing.assert_allclose(found.matrix, np.eye(4), atol=1e-12)
    found = read(tmp_path / "t.mat", "fsl-flirt", fixed=tmp_path / "m.nii", moving=fixed)
    first = found([[0.0, 0.0, 0.0]])  # the first voxel, 0 mm in both, by FSL
    flipped = np.linalg.det(fixed.affine[:3, :3]) > 0
    corner = [fixed.size[0] - 1 if flipped else 0, 0, 0]
    np.testing.assert_allclose(first, apply_affine(fixed.affine, [corner]), atol=1e-9)


@pytest.mark.parametrize("kind", ["fsl-warp-absolute", "fsl-warp-relative"])
def test_a_warp_of_another_grid_is_refused(kind, tmp_path):
    rng, fixed, moving = pair(1)
    write(tmp_path / "w.nii", drawn.field(rng, fixed), kind, fixed=fixed, moving=moving)
    elsewhere = Grid(fixed.size, fixed.affine + np.eye(4, k=3) * 5)
    with pytest.raises(ValueError, match="voxels lie up to 5 mm apart"):
        read(tmp_path / "w.nii", kind, fixed=elsewhere, moving=moving)
    with pytest.raises(ValueError, match="7 x 9 x 6 voxels, not 7 x 9 x 5"):
        read(tmp_path / "w.nii", kind, fixed=Grid((7, 9, 5), fixed.affine), moving=moving)


def packed(grid, name=b""):
    """A geometry in FreeSurfer's extension."""
    spacing = np.linalg.norm(grid.affine[:3, :3], axis=0)
    centre = apply_affine(grid.affine, np.array(grid.size) / 2)
    axes = (grid.affine[:3, :3] / spacing).T.ravel()
    numbers = (1, *grid.size, *spacing, *axes, *centre, len(name))
    return struct.pack(">i3i3f9f3fi", *numbers) + name


def freesurfer_file(path, values, kind, fixed, moving, shape, spacing=1):
    tags = [(3, b"a command"), (10, packed(moving, b"moving.mgz") + packed(fixed, b"f.mgz"))]
    tags += [(13, struct.pack(">iif", kind, spacing, 0.0)), (-1, b"*")]
    content = b">\0\3\1" + b"".join(struct.pack(">iq", t, len(d)) + d for t, d in tags)
    file = nib.Nifti1Image(values.reshape(shape).astype(np.float32), fixed.affine)
    file.header.set_intent(1006)
    file.header.extensions.append(nib.nifti1.Nifti1Extension(14, content))
    nib.save(file, path)


@pytest.mark.parametrize("kind", range(4))
def test_warps_of_freesurfer_of_all_four_kinds(kind, tmp_path):
    rng, fixed, moving = pair(kind)
    chain = Chain((drawn.field(rng, fixed), drawn.affine(rng)))
    ends, here = chain(places(fixed)), places(fixed)
    if kind < 2:  # voxels of the moving image
        ends = apply_affine(np.linalg.inv(moving.affine), ends)
        here = voxels_of(fixed).reshape(-1, 3)
    values = ends - here if kind % 2 else ends
    shape = (*fixed.size, 3) if kind else (*fixed.size, 1, 3)
    path = tmp_path / "w.nii.gz"
    freesurfer_file(path, values, kind, fixed, moving, shape)
    assert format_of(path) == "freesurfer-warp"
    assert np.abs(read(path)(places(fixed)) - chain(places(fixed))).max() < 1e-4


def test_freesurfers_displacements_without_an_extension_must_be_named(tmp_path):
    rng, fixed, _ = pair(0)
    values = rng.normal(size=(*fixed.size, 1, 3)).astype(np.float32)
    file = nib.Nifti1Image(values, fixed.affine)
    file.header.set_intent(1006)
    nib.save(file, tmp_path / "w.nii")
    with pytest.raises(ValueError, match=r"of intent 1006, RAS mm .*one of freesurfer-warp:"):
        read(tmp_path / "w.nii")
    found = read(tmp_path / "w.nii", "freesurfer-warp")
    moved = found(places(fixed)) - places(fixed)
    np.testing.assert_allclose(moved, values.reshape(-1, 3), atol=1e-5)


@pytest.mark.parametrize("change, words", [
    ({"spacing": 2}, "has a node every 2 voxels"),
    ({"kind": 7}, "says no kind or geometry"),
])  # fmt: skip
def test_other_warps_of_freesurfer_are_refused(change, words, tmp_path):
    _, fixed, moving = pair(0)
    options = {"kind": 3, "spacing": 1, **change}
    values = np.zeros((*fixed.size, 3))
    freesurfer_file(
        tmp_path / "w.nii", values, fixed=fixed, moving=moving, shape=values.shape, **options
    )
    with pytest.raises(ValueError, match=words):
        read(tmp_path / "w.nii")
    (tmp_path / "w.m3z").write_bytes(b"\x1f\x8b")
    with pytest.raises(ValueError, match="mri_warp_convert --inm3z"):
        read(tmp_path / "w.m3z")


def test_lta_in_voxels(tmp_path):
    rng, fixed, moving = pair(2)
    affine, path = drawn.affine(rng), tmp_path / "t.lta"
    write(path, affine, fixed=fixed, moving=moving)
    inverse = np.linalg.inv(affine.matrix)
    voxels = np.linalg.inv(fixed.affine) @ inverse @ moving.affine
    lines = (
        path.read_text().replace("type      = 1 # LINEAR_RAS_TO_RAS", "type      = 0").split("\n")
    )
    lines[5:9] = [" ".join(map(repr, map(float, row))) for row in voxels]
    path.write_text("# made by hand\n" + "\n".join(lines))
    np.testing.assert_allclose(read(path).matrix, affine.matrix, atol=1e-9)
    path.write_text("\n".join(lines).replace("valid = 1", "valid = 0"))
    with pytest.raises(ValueError, match="its src volume has no valid geometry"):
        read(path)


@pytest.mark.parametrize("old, new, words", [
    ("type      = 1", "type      = 14", "is of type 14, which is not read"),
    ("nxforms   = 1", "nxforms   = 2", "holds 2 maps"),
    ("1 4 4", "2 4 4", "lacks its type, or 1 4 4"),
    ("1 4 4\n", "1 4 4\n1 2 3\n", "finite numbers|15 numbers"),
])  # fmt: skip
def test_other_ltas_are_refused(old, new, words, tmp_path):
    rng, fixed, moving = pair(2)
    write(tmp_path / "t.lta", drawn.affine(rng), fixed=fixed, moving=moving)
    text = (tmp_path / "t.lta").read_text()
    assert old in text
    (tmp_path / "t.lta").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=words):
        read(tmp_path / "t.lta")


def nifti(path, values, affine, intent=1007, name="", p1=0.0):
    file = nib.Nifti1Image(values, affine)
    file.header.set_intent(intent, name=name, allow_unknown=True)
    file.header["intent_p1"] = p1
    nib.save(file, path)


@pytest.mark.parametrize("shape, intent, name, p1, words", [
    ((4, 5, 6, 1, 3), 1007, "NREG_TRANS", 2, "the control points of a spline of NiftyReg"),
    ((4, 5, 6, 1, 3), 1007, "NREG_TRANS", 3, "a velocity field of NiftyReg"),
    ((4, 5, 6, 1, 3), 1007, "NREG_TRANS", 9, "another kind of transform of NiftyReg"),
    ((4, 5, 6, 1, 3), 1007, "Mapping", 0, "a deformation of SPM"),
    ((4, 5, 6, 3), 2007, "", 0, "coefficients of FSL .intent code 2007.*fnirtfileutils"),
    ((4, 5, 6, 3), 2006, "", 0, "one of fsl-warp-absolute, fsl-warp-relative: fsl-warp-abs"),
    ((4, 5, 6, 3), 0, "", 0, "fsl-warp-relative, learn2reg, voxelmorph: fsl-warp-absolute:"),
    ((4, 5, 6, 1, 2), 1007, "", 0, "one vector of as many components"),
    ((4, 5, 6), 0, "", 0, "is no displacement file"),
])  # fmt: skip
def test_niftis_that_are_not_read_or_must_be_named(shape, intent, name, p1, words, tmp_path):
    nifti(tmp_path / "d.nii", np.zeros(shape, np.float32), np.eye(4), intent, name, p1)
    with pytest.raises(ValueError, match=words) as caught:
        read(tmp_path / "d.nii")
    assert "\n" not in str(caught.value)


def test_whole_numbers_that_are_scaled(tmp_path):
    values = np.random.default_rng(0).integers(-300, 300, (6, 5, 4, 1, 3)).astype(np.int16)
    file = nib.Nifti1Image(values, np.diag([2.0, 3.0, 1.0, 1.0]))
    file.header.set_intent(1007, name="NREG_TRANS")
    file.header["intent_p1"] = 1
    file.header.set_slope_inter(0.01, 0.5)
    nib.save(file, tmp_path / "d.nii.gz")
    assert nib.load(tmp_path / "d.nii.gz").dataobj.slope == np.float32(0.01)
    found = read(tmp_path / "d.nii.gz")
    expected = (values[:, :, :, 0] * 0.01 + 0.5) / [2, 3, 1]
    np.testing.assert_allclose(
        np.moveaxis(found.displacement[0].numpy(), 0, -1), expected, atol=1e-6
    )


def test_niftyregs_slices_have_two_components(tmp_path):
    values = np.random.default_rng(0).normal(size=(6, 5, 1, 1, 2)).astype(np.float32)
    affine = np.diag([2.0, 3.0, 1.0, 1.0])
    nifti(tmp_path / "d.nii", values, affine, name="NREG_TRANS", p1=1)
    found = read(tmp_path / "d.nii")
    grid = Grid((6, 5), affine, is_flat=True)
    moved = found(places(grid))[:, :2] - places(grid)[:, :2]
    np.testing.assert_allclose(moved, values.reshape(-1, 2), atol=1e-6)
    for kind in ("niftyreg-deformation", "niftyreg-displacement"):
        write(tmp_path / "e.nii", found, kind)
        assert nib.load(tmp_path / "e.nii").shape == (6, 5, 1, 1, 2)
        assert (read(tmp_path / "e.nii").displacement - found.displacement).abs().max() < 1e-6


ELASTIX = """(Transform "{kind}")
(NumberOfParameters {count})
(TransformParameters {numbers})
({key} "{initial}")
(HowToCombineTransforms "Compose")
(FixedImageDimension {axes})
(CenterOfRotationPoint {centre})  // a comment
{more}
"""


def elastix(path, kind, numbers, axes=3, initial="NoInitialTransform", more="", key=None):
    key = key or "InitialTransformParametersFileName"
    centre = "5 -7 11"[: 4 if axes == 2 else None]
    words, count = " ".join(map(repr, numbers)), len(numbers)
    values = {"kind": kind, "count": count, "numbers": words, "axes": axes, "more": more}
    path.write_text(ELASTIX.format(initial=initial, key=key, centre=centre, **values))
    return path


@pytest.mark.parametrize("kind, axes, numbers, itk, more, zyx", [
    ("EulerTransform", 3, [0.1, 0.2, 0.3, 1, 2, 3], "Euler3D", "", [0]),
    ("EulerTransform", 3, [0.1, 0.2, 0.3, 1, 2, 3], "Euler3D", '(ComputeZYX "true")', [1]),
    ("EulerTransform", 2, [0.3, 1, 2], "Euler2D", "", []),
    ("SimilarityTransform", 3, [0.1, 0.2, 0.3, 1, 2, 3, 1.2], "Similarity3D", "", []),
    ("SimilarityTransform", 2, [1.2, 0.3, 1, 2], "Similarity2D", "", []),
    ("AffineTransform", 2, [1.2, 0.3, 0.1, 0.9, 1, 2], "Affine", "", []),
    ("TranslationTransform", 3, [1, 2, 3], "Translation", "", None),
])  # fmt: skip
def test_elastix_has_the_transforms_of_itk(kind, axes, numbers, itk, more, zyx, tmp_path):
    found = read(elastix(tmp_path / "p.txt", kind, numbers, axes, more=more))
    fixed = [] if zyx is None else [5, -7, 11][:axes] + zyx
    lines = ["#Insight Transform File V1.0", f"Transform: {itk}Transform_double_{axes}_{axes}"]
    lines += [f"Parameters: {' '.join(map(str, numbers))}"]
    lines += [f"FixedParameters: {' '.join(map(str, fixed))}"]
    (tmp_path / "t.tfm").write_text("\n".join(lines))
    np.testing.assert_allclose(found.matrix, read(tmp_path / "t.tfm").matrix, atol=1e-12)
    assert found.is_flat == (axes == 2)


@pytest.mark.parametrize("key", [None, "InitialTransformParameterFileName"])
def test_elastix_initial_transform_comes_first(key, tmp_path):
    first = elastix(tmp_path / "0.txt", "EulerTransform", [0.1, 0.2, 0.3, 1, 2, 3])
    numbers = [1.1, 0.2, 0, 0, 0.9, 0, 0.1, 0, 1, 4, 5, 6]
    alone = read(elastix(tmp_path / "1.txt", "AffineTransform", numbers))
    both = read(elastix(tmp_path / "2.txt", "AffineTransform", numbers, initial="0.txt", key=key))
    points = np.random.default_rng(0).normal(size=(5, 3)) * 20
    np.testing.assert_allclose(both(points), alone(read(first)(points)), atol=1e-10)
    elastix(tmp_path / "3.txt", "AffineTransform", numbers, initial="/nowhere/0.txt")
    with pytest.warns(FileWarning, match="is not there; .*0.txt is taken"):
        np.testing.assert_allclose(read(tmp_path / "3.txt")(points), both(points), atol=1e-12)
    elastix(tmp_path / "4.txt", "AffineTransform", numbers, initial="none.txt")
    with pytest.raises(FileNotFoundError, match=r"its initial transform 'none\.txt' is not"):
        read(tmp_path / "4.txt")
    (tmp_path / "itk.txt").write_text("#Insight Transform File V1.0\n")
    elastix(tmp_path / "4.txt", "AffineTransform", numbers, initial="itk.txt")
    with pytest.raises(ValueError, match=r"itk\.txt has no Transform, as files of elastix have"):
        read(tmp_path / "4.txt")
    elastix(tmp_path / "5.txt", "AffineTransform", numbers, initial="5.txt")
    with pytest.raises(ValueError, match="or a circle"):
        read(tmp_path / "5.txt")


def test_elastix_has_what_itk_stores_too(tmp_path):
    """As of a transform that was given to elastix from without: the centre is among the fixed."""
    numbers, centre = "1.1 0.2 0 0 0.9 0 0.1 0 1 4 5 6", "4 5 6"
    lines = ['(Transform "AffineTransform")', f"(ITKTransformParameters {numbers})"]
    lines += [f"(ITKTransformFixedParameters {centre})", "(FixedImageDimension 3)"]
    (tmp_path / "p.txt").write_text("\n".join(lines))
    lines = ["#Insight Transform File V1.0", "Transform: AffineTransform_double_3_3"]
    lines += [f"Parameters: {numbers}", f"FixedParameters: {centre}"]
    (tmp_path / "t.tfm").write_text("\n".join(lines))
    found = [read(tmp_path / name).matrix for name in ("p.txt", "t.tfm")]
    np.testing.assert_array_equal(*found)


def test_elastix_without_a_dimension_has_that_of_its_numbers(tmp_path):
    """As the files of elastix's own tests, of a translation by (1, -2)."""
    first = '(NumberOfParameters 2)\n(Transform "TranslationTransform")\n'
    none = '(InitialTransformParameterFileName "NoInitialTransform")\n'
    (tmp_path / "0.txt").write_text(none + first + "(TransformParameters 1 0)")
    named = '(InitialTransformParameterFileName "0.txt")\n'
    (tmp_path / "1.txt").write_text(named + first + "(TransformParameters 0 -2)")
    assert read(tmp_path / "1.txt")([[0.0, 0.0]]).tolist() == [[-1.0, 2.0]]  # LPS


@pytest.mark.parametrize("old, new, words", [
    ('(Transform "AffineTransform")', '(Transform "File")\n(TransformFileName "i.tfm")',
     "nothing but the name of 'i.tfm': give that file"),
    ("AffineTransform", "BSplineTransform", "'BSplineTransform' of elastix.*transformix -def all"),
    ("(CenterOfRotationPoint", "(Centre", "has no CenterOfRotationPoint"),
    ("Dimension 3", "Dimension 4", "between images of 4 axes"),
    ("1.25", "x", "must be finite numbers"),
    ("1.25", "", "has 11 parameters"),
    ("// a comment", '\n(UseDirectionCosines "false")', "ignores the directions"),
    ("// a comment", '\n(UseBinaryFormatForTransformationParameters "true")', "in another file"),
])  # fmt: skip
def test_other_files_of_elastix_are_refused(old, new, words, tmp_path):
    numbers = [1.25, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0]
    path = elastix(tmp_path / "p.txt", "AffineTransform", numbers)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=words) as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float16, ">f4", np.float64, np.int16])
@pytest.mark.parametrize("name", ["vol", "arr_0", "anything"])
def test_arrays_of_npz_files_in_voxels(name, dtype, tmp_path):
    rng, fixed, _ = pair(0)
    u = (rng.normal(size=(*fixed.size, 3)) * 3).astype(dtype)
    np.savez(tmp_path / "last.npz", **{name: u})
    np.savez(tmp_path / "first.npz", **{name: np.moveaxis(u, -1, 0)})
    for path in ("last.npz", "first.npz", f"last.npz:{name}"):
        found = read(tmp_path / path, fixed=fixed)
        assert np.array_equal(found.displacement[0].numpy(), np.moveaxis(u.astype(float), -1, 0))
    kind = "voxelmorph" if name == "vol" else "learn2reg"
    assert format_of(tmp_path / "last.npz") == kind
    with pytest.raises(ValueError, match=r"needs the fixed image.*its numbers are voxels of it"):
        read(tmp_path / "last.npz")
    with pytest.raises(ValueError, match="7 x 9 x 6 voxels, not 7 x 9 x 5"):
        read(tmp_path / "last.npz", fixed=Grid((7, 9, 5), fixed.affine))


def test_the_size_of_the_fixed_image_tells_which_axis_is_which(tmp_path):
    """(3, 4, 5, 3) may be both."""
    u = np.random.default_rng(0).normal(size=(3, 4, 5, 3))
    np.savez(tmp_path / "d.npz", vol=u)
    found = read(tmp_path / "d.npz", fixed=Grid((3, 4, 5), np.eye(4)))
    assert np.array_equal(found.displacement[0].numpy(), np.moveaxis(u, -1, 0))
    found = read(tmp_path / "d.npz", fixed=Grid((4, 5, 3), np.eye(4)))
    assert np.array_equal(found.displacement[0].numpy(), u)


def test_learn2reg_in_nifti(tmp_path):
    rng, fixed, _ = pair(0)
    field = drawn.field(rng, fixed)
    write(tmp_path / "d.nii.gz", field, "learn2reg", fixed=fixed)
    stored = nib.load(tmp_path / "d.nii.gz")
    assert stored.shape == (*fixed.size, 3)
    nib.save(nib.Nifti1Image(np.asarray(stored.dataobj), np.eye(4)), tmp_path / "placeless.nii.gz")
    for name in ("d.nii.gz", "placeless.nii.gz"):
        found = read(tmp_path / name, "learn2reg", fixed=fixed)
        assert (found.displacement - field.displacement).abs().max() < 1e-6
        alone = read_field(tmp_path / name, "learn2reg")
        assert torch.equal(alone, found.displacement)
    elsewhere = Grid(fixed.size, fixed.affine + np.eye(4, k=3) * 5)
    with pytest.raises(ValueError, match="voxels lie up to 5 mm apart"):
        read(tmp_path / "d.nii.gz", "learn2reg", fixed=elsewhere)


def test_afni_is_read_with_a_warning(tmp_path):
    """LPS mm, row by row; a warp is told by AFNI's extension."""
    path = tmp_path / "t.aff12.1D"
    path.write_text("# 3dAllineate matrices\n1 0.5 0 4 0 1 0 5 0 0 1 6\n")
    with pytest.warns(FileWarning, match="unverified; the obliquity .* is not accounted for"):
        found = read(path)
    np.testing.assert_allclose(found([[1.0, 2.0, 3.0]]), [[1 + 1 - 4, 2 - 5, 3 + 6]])
    values = np.random.default_rng(0).normal(size=(4, 5, 6, 1, 3)).astype(np.float32)
    file = nib.Nifti1Image(values, np.diag([2.0, 3.0, 1.0, 1.0]))
    file.header.extensions.append(nib.nifti1.Nifti1Extension(4, b"<AFNI_attributes/>"))
    nib.save(file, tmp_path / "w.nii")
    with pytest.warns(FileWarning, match="unverified"):
        found = read(tmp_path / "w.nii")
    moved = found([[2.0, 3.0, 1.0]]) - [[2.0, 3.0, 1.0]]
    np.testing.assert_allclose(moved[0], values[1, 1, 1, 0] * [-1, -1, 1], atol=1e-6)
    path.write_text("1 0.5 0 4 0 1 0 5 0 0 1 6\n" * 2)
    with pytest.raises(ValueError, match=r"holds 24 numbers; .* and of a series the row of one"):
        read(path)
    for kind in ("afni-affine", "afni-warp"):
        with pytest.raises(ValueError, match=f"{kind} is read only"):
            write(tmp_path / "t.1D", Affine(np.eye(4)), kind)


@pytest.mark.parametrize("kind, name, needed", [
    ("fsl-flirt", "t.mat", "fixed"),
    ("fsl-warp-absolute", "t.nii", "fixed"),
    ("freesurfer-lta", "t.lta", "moving"),
    ("freesurfer-warp", "t.nii", "moving"),
    ("niftyreg-displacement", "t.nii", "fixed"),
    ("itk-field", "t.nii", "fixed"),
    ("elastix", "t.txt", "fixed"),
    ("learn2reg", "t.npz", "fixed"),
])  # fmt: skip
def test_the_image_that_a_format_needs_is_named(kind, name, needed, tmp_path):
    with pytest.raises(ValueError, match=rf"needs the {needed} image \(--{needed}, {needed}=\): "):
        write(tmp_path / name, Affine(np.eye(4)), kind)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name, kind, words", [
    ("t.npz", None, "name the format, learn2reg or voxelmorph"),
    ("t.xyz", None, "must end in .tfm, .txt, .mat.*one of itk-text, .* learn2reg, voxelmorph$"),
    ("t.nii", "itk-h5", "a file of itk-h5 must end in .h5 or .hdf5"),
    ("t.mat", "fsl", "format must be one of itk-text, "),
])  # fmt: skip
def test_names_and_formats_that_are_none(name, kind, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        write(tmp_path / name, Affine(np.eye(4)), kind)
    with pytest.raises(TypeError, match="must be a Transform"):
        write(tmp_path / "t.mat", np.eye(4))
    with pytest.raises(ValueError, match="format must be one of"):
        read(tmp_path / "t.mat", "ants")


@pytest.mark.parametrize("text, words", [
    ("1 0 0 0\n1 0 0 0\n0 0 1 0\n0 0 0 1\n", "must not be singular"),
    ("1 0 0 0\n0 1 0 0\n0 0 1 0\n0 0 1 1\n", "last row 0 0 0 1"),
    ("1 0 0\n", "holds 3 numbers; the 16 of a 4 x 4 map"),
    ("1 0 0 nan\n" * 4, "must be finite numbers"),
])  # fmt: skip
def test_bare_matrices_that_are_none(text, words, tmp_path):
    (tmp_path / "t.txt").write_text(text)
    for kind in ("greedy", "niftyreg-affine", "fsl-flirt"):
        with pytest.raises(ValueError, match=words):
            read(tmp_path / "t.txt", kind, fixed=pair(0)[1], moving=pair(0)[2])


def test_images_are_given_as_paths_too_of_which_the_header_is_read(tmp_path):
    rng, fixed, moving = pair(0)
    for name, grid in (("f.nii", fixed), ("m.nii", moving)):
        nib.save(nib.Nifti1Image(np.zeros(grid.size, np.float32), grid.affine), tmp_path / name)
    content = (tmp_path / "m.nii").read_bytes()
    affine = drawn.affine(rng)
    given = {"fixed": tmp_path / "f.nii", "moving": str(tmp_path / "m.nii")}
    write(tmp_path / "t.mat", affine, "fsl-flirt", **given)
    assert len(content) > 352
    by_grids = read(tmp_path / "t.mat", "fsl-flirt", fixed=fixed, moving=moving)
    np.testing.assert_allclose(by_grids.matrix, affine.matrix, atol=1e-5)  # headers are float32
    by_paths = read(tmp_path / "t.mat", "fsl-flirt", **given)
    np.testing.assert_allclose(by_paths.matrix, affine.matrix, atol=1e-12)


def test_what_is_no_single_field_has_no_voxels(tmp_path):
    rng, fixed, _ = pair(0)
    write(tmp_path / "t.h5", compose([drawn.field(rng, fixed), drawn.affine(rng)]))
    with pytest.raises(ValueError, match="holds a chain of 2, not one displacement field"):
        read_field(tmp_path / "t.h5")
    write(tmp_path / "t.mat", drawn.affine(rng))
    with pytest.raises(ValueError, match="holds an affine map, not one"):
        read_field(tmp_path / "t.mat")
    write(tmp_path / "t.h5", drawn.field(rng, fixed))
    assert read_field(tmp_path / "t.h5").shape == (1, 3, *fixed.size)


def test_every_format_has_a_line():
    assert set(AFFINES) | set(FIELDS) < set(FORMATS)
    assert all("\n" not in line and len(line) < 110 for line in FORMATS.values())


def test_fsl_counts_in_pixdim_whatever_the_form_says(tmp_path):
    """A form of 2 mm over a pixdim of 1: FSL's millimetre is a voxel, which moves 2 mm."""
    file = nib.Nifti1Image(np.zeros((8, 8, 8), np.float32), np.diag([-2.0, 2, 2, 1]))
    file.header["pixdim"][1:4] = 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nib.save(file, tmp_path / "image.nii")
    matrix = np.eye(4)
    matrix[1, 3] = -1
    np.savetxt(tmp_path / "flirt.mat", matrix)
    with pytest.warns(FileWarning, match="pixdim"):
        found = read(tmp_path / "flirt.mat", "fsl-flirt", *[tmp_path / "image.nii"] * 2)
    assert np.allclose(found.matrix[:3, 3], [0, 2, 0])
