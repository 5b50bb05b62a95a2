"""Affine files: as ITK maps points by them, and what is none."""

import numpy as np
import pytest
import SimpleITK as sitk

from diffreg.data.affine import read_affine, write_affine

WORLD = np.array([[1.1, 0.2, -0.1, 5], [-0.3, 0.9, 0.05, -7], [0.02, 0.1, 1.2, 3], [0, 0, 0, 1]])
LPS = np.array([-1.0, -1.0, 1.0])


def test_itk_maps_points_by_it_as_we_do(tmp_path):
    write_affine(tmp_path / "affine.mat", WORLD)
    transform = sitk.ReadTransform(str(tmp_path / "affine.mat"))
    for x in np.random.default_rng(0).normal(size=(5, 3)) * 30:
        theirs = np.array(transform.TransformPoint((x * LPS).tolist())) * LPS
        np.testing.assert_allclose(theirs, (WORLD @ [*x, 1])[:3], atol=1e-12)
    np.testing.assert_allclose(read_affine(tmp_path / "affine.mat"), WORLD, atol=1e-14)


def test_of_2_d_files_the_map_of_their_plane(tmp_path):
    plane = np.eye(4)
    plane[:2, [0, 1, 3]] = WORLD[:2, [0, 1, 3]]
    write_affine(tmp_path / "affine.mat", plane, is_flat=True)
    transform = sitk.ReadTransform(str(tmp_path / "affine.mat"))
    assert transform.GetDimension() == 2
    theirs = np.array(transform.TransformPoint((-4.0, 9.0)))
    np.testing.assert_allclose(theirs, -(plane @ [4, -9, 0, 1])[:2])
    np.testing.assert_allclose(read_affine(tmp_path / "affine.mat"), plane, atol=1e-14)


def test_a_centre_counts(tmp_path):
    transform = sitk.AffineTransform(3)
    transform.SetMatrix((LPS[:, None] * WORLD[:3, :3] * LPS).ravel().tolist())
    transform.SetCenter([10.0, -20.0, 30.0])
    transform.SetTranslation([1.0, 2.0, 3.0])
    sitk.WriteTransform(transform, str(tmp_path / "itk.mat"))
    found = read_affine(tmp_path / "itk.mat")
    x = np.array([3.0, 4.0, 5.0])
    theirs = np.array(transform.TransformPoint((x * LPS).tolist())) * LPS
    np.testing.assert_allclose((found @ [*x, 1])[:3], theirs, atol=1e-12)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"nothing of the kind", "is not a readable .mat file"),
        (b"", "is not a readable .mat file"),
        (None, "holds no affine map of ITK: it holds other"),
    ],
)
def test_what_is_no_affine_is_refused_in_words(content, words, tmp_path):
    path = tmp_path / "a.mat"
    if content is None:
        from scipy.io import savemat

        savemat(path, {"other": np.eye(2)}, format="4")
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_affine(path)


def test_a_singular_map_and_another_name_are_refused(tmp_path):
    write_affine(tmp_path / "a.mat", np.diag([1.0, 1.0, 0.0, 1.0]))
    with pytest.raises(ValueError, match="singular"):
        read_affine(tmp_path / "a.mat")
    with pytest.raises(ValueError, match=r"must end in \.mat"):
        write_affine(tmp_path / "a.txt", WORLD)
