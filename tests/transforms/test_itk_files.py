"""ITK's files: SimpleITK leads points by each where we do; refusals in words."""

import drawn_transforms as drawn
import h5py
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.io import savemat

from diffreg.data.grid import LPS, Grid
from diffreg.transforms import Affine, Chain, Field, flattened, format_of, read, read_field, write

# Parameters of each linear transform of ITK, and fixed ones where they are no centre.
KINDS = {
    "AffineTransform_double_3_3": (12, None),
    "AffineTransform_float_3_3": (12, None),
    "AffineTransform_double_2_2": (6, None),
    "MatrixOffsetTransformBase_double_3_3": (12, None),
    "MatrixOffsetTransformBase_double_2_2": (6, None),
    "Euler2DTransform_double_2_2": (3, None),
    "Euler3DTransform_double_3_3": (6, None),
    "Euler3DTransform_float_3_3": (6, [5.0, -7.0, 11.0, 0.0]),
    "Euler3DTransform_double_3_3 ": (6, [5.0, -7.0, 11.0, 1.0]),
    "QuaternionRigidTransform_double_3_3": (7, None),
    "Rigid2DTransform_double_2_2": (3, None),
    "ScaleSkewVersor3DTransform_double_3_3": (15, None),
    "ScaleVersor3DTransform_double_3_3": (9, None),
    "Similarity2DTransform_double_2_2": (4, None),
    "Similarity3DTransform_double_3_3": (7, None),
    "VersorRigid3DTransform_double_3_3": (6, None),
    "VersorTransform_double_3_3": (3, None),
    "TranslationTransform_double_3_3": (3, []),
    "TranslationTransform_float_2_2": (2, []),
    "ScaleTransform_double_3_3": (3, None),
    "ScaleTransform_double_2_2": (2, None),
    "IdentityTransform_double_3_3": (0, []),
    "IdentityTransform_double_2_2": (0, []),
    "ScaleLogarithmicTransform_double_3_3": (3, None),
    "CenteredRigid2DTransform_double_2_2": (5, None),
}
# Those that SimpleITK makes of a composite's file alone, with ITK's own types.
INSIDE = {
    "CenteredAffineTransform_double_3_3": (15, [5.0, -7.0, 11.0]),
    "CenteredAffineTransform_float_2_2": (8, [5.0, -7.0]),
    "CenteredEuler3DTransform_double_3_3": (9, [5.0, -7.0, 11.0]),
    "CenteredEuler3DTransform_double_3_3 ": (9, [5.0, -7.0, 11.0, 1.0]),
    "CenteredSimilarity2DTransform_double_2_2": (6, [5.0, -7.0]),
    "FixedCenterOfRotationAffineTransform_double_3_3": (12, [5.0, -7.0, 11.0]),
    "ScalableAffineTransform_double_3_3": (12, [5.0, -7.0, 11.0]),
}


def itk_points(path, points, axes=3):
    """Where SimpleITK leads points, RAS mm, by a file; of 2-D ones the x-y plane."""
    made, lps = sitk.ReadTransform(str(path)), np.diag(LPS)[:3]
    moved = points.copy()
    for p, end in zip(points * lps, moved, strict=True):
        end[:axes] = made.TransformPoint(tuple(p[:axes].tolist())) * lps[:axes]
    return moved


def agree(path, points=None, axes=3, tolerance=1e-9):
    points = np.random.default_rng(0).normal(size=(20, 3)) * 30 if points is None else points
    error = np.abs(read(path)(points) - itk_points(path, points, axes)).max()
    assert error < tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_linear_transforms_of_every_kind(kind, tmp_path):
    count, fixed = KINDS[kind]
    axes, kind = int(kind.strip()[-1]), kind.strip()
    numbers = np.random.default_rng(count).uniform(0.2, 0.6, count)
    fixed = [5.0, -7.0, 11.0][:axes] if fixed is None else fixed
    (tmp_path / "t.tfm").write_text(drawn.itk_text((kind, numbers, fixed)))
    agree(tmp_path / "t.tfm", axes=axes, tolerance=1e-9 if "double" in kind else 1e-5)
    found = read(tmp_path / "t.tfm")
    assert isinstance(found, Affine) and found.is_flat == (axes == 2)
    made = sitk.ReadTransform(str(tmp_path / "t.tfm"))
    for name in ("t.h5", "t.txt"):
        sitk.WriteTransform(made, str(tmp_path / name))
        np.testing.assert_allclose(read(tmp_path / name).matrix, found.matrix, atol=1e-6)
    if count:
        content = {kind: numbers[:, None], "fixed": np.array(fixed)[:, None]}
        for level in ("4", "5"):  # ITK's own, and what scripts write with scipy
            savemat(tmp_path / "t.mat", content, format=level)
            np.testing.assert_allclose(read(tmp_path / "t.mat").matrix, found.matrix, atol=1e-6)


@pytest.mark.parametrize("kind", INSIDE)
def test_linear_transforms_of_older_kinds(kind, tmp_path):
    """Some have their centre among the parameters; ANTs may write them all."""
    (count, fixed), kind = INSIDE[kind], kind.strip()
    axes = int(kind[-1])
    numbers = np.random.default_rng(count).uniform(0.2, 0.6, count)
    composite = (f"CompositeTransform_double_{axes}_{axes}", [], [])
    (tmp_path / "c.tfm").write_text(drawn.itk_text(composite, (kind, numbers, fixed)))
    agree(tmp_path / "c.tfm", axes=axes, tolerance=1e-9 if "double" in kind else 1e-5)
    content = {kind: numbers[:, None], "fixed": np.array(fixed)[:, None]}
    savemat(tmp_path / "t.mat", content, format="4")
    found = read(tmp_path / "t.mat")
    assert found.is_flat == (axes == 2)
    np.testing.assert_allclose(found.matrix, read(tmp_path / "c.tfm").matrix, atol=1e-6)


def test_a_rigid_map_of_itk_3_is_matrix_and_shift(tmp_path):
    kinds = ("Rigid3DTransform", "AffineTransform")
    for kind in kinds:
        entry = (f"{kind}_double_3_3", [0, -1, 0, 1, 0, 0, 0, 0, 1, 1, 2, 3], [4, 5, 6])
        (tmp_path / f"{kind}.tfm").write_text(drawn.itk_text(entry))
    found = [read(tmp_path / f"{kind}.tfm").matrix for kind in kinds]
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("heading", [
    "# Insight Transform File V1.0\n# Transform 0\n", "\n  #Insight Transform File V1.0\n", "",
])  # fmt: skip
def test_text_as_itk_reads_it(heading, tmp_path):
    """It skips what begins with #, and the spaces around names."""
    lines = ["  Transform: AffineTransform_double_3_3", "Parameters : 1 0 0 0 1 0 0 0 1 3 4 5"]
    text = heading + "\n".join([*lines, "\t# a comment", " FixedParameters: 0 0 0 "])
    (tmp_path / "t.tfm").write_text(text)
    assert format_of(tmp_path / "t.tfm") == "itk-text"
    agree(tmp_path / "t.tfm")


@pytest.mark.parametrize("versor", [(1.0, 0, 0), (0.9, 0.9, 0.9), (0, 0, 1.5), (0, 0, 0)])
def test_versors_longer_than_one_are_made_one_as_in_itk(versor, tmp_path):
    entry = ("VersorRigid3DTransform_double_3_3", [*versor, 1, 2, 3], [4, 5, 6])
    (tmp_path / "t.tfm").write_text(drawn.itk_text(entry))
    agree(tmp_path / "t.tfm")


@pytest.mark.parametrize("name", ["t.tfm", "t.txt", "t.h5", "t.mat"])
def test_an_affine_map_there_and_back(name, tmp_path):
    rng = np.random.default_rng(1)
    for flat in (False, True):
        whole = drawn.affine(rng).matrix.copy()
        if flat:
            whole[2], whole[:2, 2] = (0, 0, 1, 0), 0
        write(tmp_path / name, Affine(whole, flat))
        agree(tmp_path / name, axes=2 if flat else 3)
        again = read(tmp_path / name)
        assert again.is_flat == flat
        np.testing.assert_allclose(again.matrix, whole, atol=1e-14)


@pytest.mark.parametrize("seed, name", [(0, "t.h5"), (1, "t.h5"), (2, "t.tfm"), (3, "t.tfm")])
def test_twelve_in_a_composite(seed, name, tmp_path):
    """Two digits in a group's name: HDF5 sorts 10 before 2."""
    rng = np.random.default_rng(seed)
    parts = []
    for k in range(12):
        on = drawn.grid(rng, tuple(rng.integers(5, 8, 3)))
        parts.append(drawn.field(rng, on) if k % 3 else drawn.affine(rng))
    chain = Chain(tuple(parts))
    write(tmp_path / name, chain)
    points = drawn.points(rng, on, 40, beyond=0.4)
    agree(tmp_path / name, points, tolerance=1e-9)
    again = read(tmp_path / name)
    assert len(again.parts) == 12
    assert np.abs(again(points) - chain(points)).max() < 1e-10


def test_itks_own_composite_of_twelve(tmp_path):
    rng = np.random.default_rng(5)
    chain = Chain(tuple(drawn.affine(rng, 0.05) for _ in range(12)))
    for name in ("t.h5", "t.tfm"):
        sitk.WriteTransform(drawn.itk_transform(chain), str(tmp_path / name))
        points = rng.normal(size=(9, 3)) * 20
        assert np.abs(read(tmp_path / name)(points) - chain(points)).max() < 1e-9


@pytest.mark.parametrize("name", ["d.nii.gz", "d.nii", "d.h5", "d.tfm"])
@pytest.mark.parametrize("size", [(7, 8, 6), (7, 8, 3), (9, 8)])
def test_fields_of_volumes_and_slices(size, name, tmp_path):
    rng = np.random.default_rng(len(size))
    on = drawn.grid(rng, size)
    field = drawn.field(rng, on)
    write(tmp_path / name, field)
    again = read(tmp_path / name)
    points = drawn.points(rng, on, 40, beyond=0.3)
    planes = (3,) if len(size) == 2 and "nii" not in name else ()  # there as ITK has a slice
    assert again.grid.size == (*size, *planes) and again.displacement.dtype == torch.float64
    assert np.abs(again(points) - field(points)).max() < 1e-4
    if "nii" in name:  # SimpleITK reads it as an image
        vectors = sitk.ReadImage(str(tmp_path / name), sitk.sitkVectorFloat64)
        sitk.WriteTransform(sitk.DisplacementFieldTransform(vectors), str(tmp_path / "v.h5"))
        assert np.abs(itk_points(tmp_path / "v.h5", points) - field(points)).max() < 1e-4
    else:
        assert np.abs(again(points) - field(points)).max() < 1e-10
        agree(tmp_path / name, points, tolerance=1e-9)


def test_what_only_smooths_updates_is_a_field(tmp_path):
    """What ANTs registers by, as it is stored."""
    rng = np.random.default_rng(0)
    field = drawn.field(rng, drawn.grid(rng, (5, 6, 4)))
    write(tmp_path / "d.tfm", field)
    text = (tmp_path / "d.tfm").read_text()
    for smoothing in ("GaussianSmoothing", "BSplineSmoothing"):
        name = f"{smoothing}OnUpdateDisplacementFieldTransform"
        (tmp_path / "e.tfm").write_text(text.replace("DisplacementFieldTransform", name))
        found = read(tmp_path / "e.tfm")
        assert (found.displacement - field.displacement).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["d.nii.gz", "d.h5", "d.tfm"])
def test_fields_between_2_d_files(name, tmp_path):
    rng = np.random.default_rng(0)
    affine = np.eye(4)
    affine[:2, :2] = np.array([[0.8, 0.6], [-0.6, 0.8]]) * [1.2, 2.0]
    affine[:2, 3] = 5, -3
    field = drawn.field(rng, Grid((9, 8), affine, is_flat=True))
    write(tmp_path / name, field)
    again = read(tmp_path / name)
    points = drawn.points(rng, field.grid, 30)
    assert again.is_flat
    assert np.abs(again(points) - field(points)).max() < 1e-4
    if name != "d.nii.gz":
        agree(tmp_path / name, points, axes=2)


def test_a_pictures_field_stays_one(tmp_path):
    from diffreg.data import _png

    rng = np.random.default_rng(0)
    field = drawn.field(rng, Grid((9, 8), _png.AFFINE, is_flat=True))
    for name in ("d.nii.gz", "d.h5"):
        write(tmp_path / name, field)
        again = read(tmp_path / name)
        points = drawn.points(rng, field.grid, 30)
        assert np.abs(again(points) - field(points)).max() < 1e-4
    write(tmp_path / "e.nii.gz", read(tmp_path / "d.nii.gz"))
    assert np.array_equal(read(tmp_path / "e.nii.gz").grid.affine, _png.AFFINE)


@pytest.mark.parametrize("dtype", [">f4", "<f8", ">f8"])
def test_numbers_in_other_types(dtype, tmp_path):
    rng = np.random.default_rng(0)
    field = drawn.field(rng, drawn.grid(rng, (5, 6, 4)))
    write(tmp_path / "d.nii", field)
    file = nib.load(tmp_path / "d.nii")
    header = file.header.as_byteswapped(">" if dtype[0] == ">" else "<")
    again = nib.Nifti1Image((file.get_fdata() - 0.25) / 0.5, None, header, dtype=dtype)
    again.header.set_slope_inter(0.5, 0.25)
    name = tmp_path / "e.nii.gz"
    nib.save(again, name)
    stored = nib.load(name)
    assert stored.get_data_dtype() == np.dtype(dtype) and stored.dataobj.slope == 0.5
    points = drawn.points(rng, field.grid, 20)
    assert np.abs(read(name)(points) - field(points)).max() < 1e-4


@pytest.mark.parametrize("name", ["d.h5", "d.tfm"])
def test_a_field_of_one_plane_reaches_as_far_as_itk_has_it(tmp_path, name):
    rng = np.random.default_rng(5)
    on = drawn.grid(rng, (7, 6, 1))
    field = Field(torch.from_numpy(rng.normal(size=(1, 3, 7, 6, 1))), on)
    made = drawn.itk_transform(field)
    sitk.WriteTransform(made, str(tmp_path / name))
    again = read(tmp_path / name)
    voxels = np.column_stack([rng.uniform(0, 5, (60, 2)), np.linspace(-2, 2, 60)])
    points = voxels @ on.affine[:3, :3].T + on.affine[:3, 3]
    assert np.abs(again(points) - drawn.itk_points(field, points)).max() < 1e-6
    assert 10 < (np.abs(again(points) - points).max(1) > 1e-3).sum() < 20
    write(tmp_path / f"again_{name}", again)
    assert np.abs(read(tmp_path / f"again_{name}")(points) - again(points)).max() < 1e-6


@pytest.mark.filterwarnings("ignore:.*outside the grid of a field")
def test_a_chain_becomes_one_field_on_the_fixed_grid(tmp_path):
    rng = np.random.default_rng(3)
    on, elsewhere = drawn.grid(rng, (7, 8, 6)), drawn.grid(rng, (6, 6, 6))
    chain = Chain((drawn.affine(rng), drawn.field(rng, elsewhere), drawn.affine(rng)))
    with pytest.raises(ValueError, match=r"needs the fixed image \(--fixed, fixed=\)"):
        write(tmp_path / "d.nii.gz", chain)
    write(tmp_path / "d.nii.gz", chain, fixed=on)
    expected = flattened(chain, on, torch.float64)
    error = read(tmp_path / "d.nii.gz").displacement - expected.displacement
    assert error.abs().max() < 1e-5
    assert torch.equal(read_field(tmp_path / "d.nii.gz"), read(tmp_path / "d.nii.gz").displacement)


def test_older_h5_files_spell_otherwise(tmp_path):
    rng = np.random.default_rng(0)
    chain = Chain((drawn.affine(rng), drawn.affine(rng)))
    write(tmp_path / "t.h5", chain)
    with h5py.File(tmp_path / "t.h5", "r+") as file:
        for group in list(file["TransformGroup"].values())[1:]:
            for name in ("Parameters", "FixedParameters"):
                group.move(f"Transform{name}", f"Tranform{name}")
    points = rng.normal(size=(5, 3))
    assert np.abs(read(tmp_path / "t.h5")(points) - chain(points)).max() < 1e-12


def test_fields_in_float32_take_half_of_the_room(tmp_path):
    rng = np.random.default_rng(0)
    field = drawn.field(rng, drawn.grid(rng, (9, 9, 9)), dtype=torch.float32)
    write(tmp_path / "t.h5", field)
    with h5py.File(tmp_path / "t.h5") as file:
        assert file["TransformGroup/0/TransformParameters"].dtype == np.float32
    agree(tmp_path / "t.h5", drawn.points(rng, field.grid, 20), tolerance=1e-5)


def test_a_mat_file_holds_one_affine_map(tmp_path):
    rng = np.random.default_rng(0)
    chain = Chain((drawn.affine(rng), drawn.affine(rng)))
    write(tmp_path / "t.mat", chain)
    points = rng.normal(size=(5, 3))
    assert np.abs(read(tmp_path / "t.mat")(points) - chain(points)).max() < 1e-12
    assert format_of(tmp_path / "t.mat") == "itk-matlab"
    field = drawn.field(rng, drawn.grid(rng, (5, 5, 5)))
    with pytest.raises(ValueError, match="holds one affine map, and here is a displacement field"):
        write(tmp_path / "t.mat", Chain((field,)))
    assert isinstance(field, Field)


def test_a_flat_field_among_others_is_refused(tmp_path):
    rng = np.random.default_rng(0)
    flat = drawn.field(rng, Grid((5, 6), np.eye(4), is_flat=True))
    with pytest.raises(ValueError, match="of a 2-D file and others of the chain are not"):
        write(tmp_path / "t.h5", Chain((flat, drawn.affine(rng))))
    assert not (tmp_path / "t.h5").exists()


def test_scales_and_skews_that_are_composed(tmp_path):
    """SimpleITK writes it, and does not find its own name for it when it reads."""
    rng = np.random.default_rng(0)
    made = sitk.ComposeScaleSkewVersor3DTransform()
    made.SetCenter(rng.normal(size=3).tolist())
    made.SetParameters([*rng.uniform(-0.2, 0.4, 6), 1.1, 0.8, 1.3, *rng.uniform(-0.2, 0.2, 3)])
    sitk.WriteTransform(made, str(tmp_path / "t.tfm"))
    points = rng.normal(size=(9, 3)) * 20
    lps = np.diag(LPS)[:3]
    theirs = [made.TransformPoint(p) for p in (points * lps).tolist()] * lps
    assert np.abs(read(tmp_path / "t.tfm")(points) - theirs).max() < 1e-9
