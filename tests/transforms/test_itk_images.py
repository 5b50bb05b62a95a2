"""Fields in MetaImage and NRRD, as elastix and Slicer write them: where ITK has their points."""

import numpy as np
import pytest
import SimpleITK as sitk

from diffreg import transforms
from diffreg.cli.main import main
from diffreg.transforms import format_of, read, write

SIZE = (5, 6, 7)


def field_of(dimensions):
    """An image of vectors that lies askew, and the transform that ITK makes of it."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(*SIZE[:dimensions][::-1], dimensions))
    image = sitk.GetImageFromArray(vectors, isVector=True)
    image.SetSpacing([2.0, 1.5, 3.0][:dimensions])
    image.SetOrigin([3.0, -4.0, 5.0][:dimensions])
    turn = [[0.0, 1.0], [-1.0, 0.0]] if dimensions == 2 else [[0, 0, 1.0], [1, 0, 0], [0, 1, 0]]
    image.SetDirection(np.ravel(turn).tolist())
    return image, sitk.DisplacementFieldTransform(sitk.Image(image))


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_field_leads_where_itk_has_it(dimensions, ending, tmp_path):
    image, itk = field_of(dimensions)
    path = tmp_path / f"deformationField{ending}"
    sitk.WriteImage(image, path)
    assert format_of(path) == "itk-field"
    found, ras = read(path), np.array([-1, -1, 1])[:dimensions]
    for index in ((1, 2, 3), (3, 4, 2), (0, 0, 0)):
        point = np.array(image.TransformIndexToPhysicalPoint(index[:dimensions]))
        there = ras * np.array(itk.TransformPoint(point.tolist()))
        np.testing.assert_allclose(np.asarray(found((ras * point)[None]))[0], there, atol=1e-9)


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_field_is_written_as_it_was_read(dimensions, ending, tmp_path):
    image, _ = field_of(dimensions)
    sitk.WriteImage(image, tmp_path / "given.mha")
    assert write(tmp_path / f"written{ending}", read(tmp_path / "given.mha")) == "itk-field"
    back = sitk.ReadImage(tmp_path / f"written{ending}")
    ours, theirs = map(sitk.GetArrayFromImage, (back, image))
    np.testing.assert_allclose(ours, theirs, atol=1e-6)
    for place in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(back, place)(), getattr(image, place)(), atol=1e-12)


def test_what_is_no_field_is_refused(tmp_path):
    sitk.WriteImage(sitk.Image(4, 5, 6, sitk.sitkFloat32), tmp_path / "image.nrrd")
    with pytest.raises(ValueError, match=r"image.nrrd is no field: it has 3 axes and 1 n"):
        read(tmp_path / "image.nrrd")
    colours = sitk.Image((4, 5, 6), sitk.sitkVectorUInt8, 3)
    sitk.WriteImage(colours, tmp_path / "colours.mha")
    with pytest.raises(ValueError, match=r"colours.mha is no field: .* 3 numbers a voxel, vector"):
        read(tmp_path / "colours.mha")
    image, _ = field_of(3)
    image[1, 1, 1] = (np.nan, 0.0, 0.0)
    sitk.WriteImage(image, tmp_path / "nan.mha")
    with pytest.raises(ValueError, match=r"nan.mha holds numbers that are NaN"):
        read(tmp_path / "nan.mha")
    with pytest.raises(FileNotFoundError, match=r"none.mhd does not exist"):
        transforms.read(tmp_path / "none.mhd")


def test_elastix_fields_become_those_of_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    image, _ = field_of(3)
    sitk.WriteImage(image, "deformationField.mhd")
    assert main(["convert", "deformationField.mhd", "warp.nii.gz"]) == 0
    assert main(["convert", "warp.nii.gz", "back.nrrd"]) == 0
    back = sitk.GetArrayFromImage(sitk.ReadImage("back.nrrd"))
    np.testing.assert_allclose(back, sitk.GetArrayFromImage(image), atol=1e-5)
