"""What is no transform of ITK, or one that is not read, is refused in one line."""

import sys

import drawn_transforms as drawn
import h5py
import numpy as np
import pytest
from scipy.io import savemat

from diffreg.transforms import Affine, read, write

SPLINE = (
    "BSplineTransform_double_3_3",
    np.zeros(192),
    [4, 4, 4, 0, 0, 0, 1, 1, 1, *np.eye(3).ravel()],
)
AFFINE = ("AffineTransform_double_3_3", [1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0], [0, 0, 0])
COMPOSITE = ("CompositeTransform_double_3_3", [], [])
FIELD = [2, 2, 2, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1]


@pytest.mark.parametrize("entries, words", [
    ([SPLINE], "holds a BSplineTransform.*SimpleITK's TransformToDisplacementField"),
    ([("InverseDisplacementFieldTransform_double_3_3", np.zeros(24), FIELD)], "which is Slicer's"),
    ([AFFINE, AFFINE], "holds 2 transforms and no composite"),
    ([COMPOSITE], "composite of no transform"),
    ([COMPOSITE, AFFINE, COMPOSITE, AFFINE], "composite within a composite"),
    ([COMPOSITE, AFFINE, ("TranslationTransform_double_2_2", [0, 0], [])], "two axes and of three"),
    ([("AffineTransform_double_3_3", [1, 2], [0, 0, 0])], "AffineTransform has 2 parameters"),
    ([("AffineTransform_double_3_3", np.zeros(12), [0, 0, 0])], "must not be singular"),
    ([("AffineTransform_double_4_4", np.zeros(20), [0, 0, 0, 0])], "between two axes or three"),
    ([("DisplacementFieldTransform_double_3_3", np.zeros(5), FIELD)], "has 5 numbers"),
    ([("DisplacementFieldTransform_double_3_3", np.zeros(5), [2])], "1 fixed parameters, not 18"),
    ([("DisplacementFieldTransform_double_3_3", [], [1e9, 1e9, 1e9, *FIELD[3:]])], "too large"),
    ([("DisplacementFieldTransform_double_3_3", [], [1.5, 1, 1, *FIELD[3:]])], "field's size is"),
    ([("DisplacementFieldTransform_double_3_3", np.zeros(24), [2, 2, 2, *[0] * 15])], "no extent"),
    ([], "holds no transform of ITK"),
])  # fmt: skip
def test_what_is_not_read_is_said(entries, words, tmp_path):
    (tmp_path / "t.tfm").write_text(drawn.itk_text(*entries))
    with pytest.raises(ValueError, match=words) as caught:
        read(tmp_path / "t.tfm")
    assert "\n" not in str(caught.value) and str(tmp_path / "t.tfm") in str(caught.value)


@pytest.mark.parametrize("text, words", [
    ("#Insight Transform File V1.0\nParameters: 1\n", "stands where one of"),
    ("#Insight Transform File V1.0\nhello\n", "'hello' stands where one of"),
    ("#Insight Transform File V1.0\nTransform: A_double_3_3\nParameters: a\n", "must be finite"),
    ("hello", "no transform of a format that is read"),
    ("", "no transform of a format that is read"),
])  # fmt: skip
def test_text_that_is_none_is_refused(text, words, tmp_path):
    (tmp_path / "t.tfm").write_text(text)
    with pytest.raises(ValueError, match=words):
        read(tmp_path / "t.tfm")


def test_without_h5py_it_is_said_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(
        ImportError, match=r"h5py is needed for \.h5 files: pip install 'diffreg\[h5"
    ):
        write(tmp_path / "t.h5", Affine(np.eye(4)))
    (tmp_path / "t.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(ImportError, match="h5py is needed"):
        read(tmp_path / "t.h5")


def test_h5_files_that_are_none_are_refused(tmp_path):
    path = tmp_path / "t.h5"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read(path)
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(ValueError, match=r"is not a readable \.h5 file"):
        read(path)
    with h5py.File(path, "w") as file:
        file["other"] = 1
    with pytest.raises(ValueError, match="has no TransformGroup"):
        read(path)
    with h5py.File(path, "w") as file:
        group = file.create_group("TransformGroup/0")
        group["TransformType"] = ["DisplacementFieldTransform_double_3_3"]
        group["TransformFixedParameters"] = np.array([500, 500, 500, *FIELD[3:]], float)
        group.create_dataset("TransformParameters", shape=(3 * 500**3,), dtype="f8", chunks=True)
    with pytest.raises(ValueError, match="header claims 3,000,000,000 bytes"):
        read(path)


@pytest.mark.parametrize("name", ["TransformType", "TransformParameters"])
@pytest.mark.parametrize("what", ["a group", "a type", "a float that no processor has"])
def test_h5_files_without_data_of_that_name_are_refused(name, what, tmp_path):
    path = tmp_path / "t.h5"
    write(path, Affine(np.eye(4)))
    with h5py.File(path, "r+") as file:
        group = file["TransformGroup/0"]
        del group[name]
        if what == "a group":
            group.create_group(name)
        elif what == "a type":
            group[name] = np.dtype("f8")
        else:
            kind = h5py.h5t.IEEE_F64LE.copy()
            kind.set_ebias(100_000)
            space = h5py.h5s.create_simple((1,))
            h5py.h5d.create(group.id, name.encode(), kind, space)
    with pytest.raises(ValueError, match=r"t\.h5") as error:
        read(path)
    assert "\n" not in str(error.value)


def test_mat_files_that_are_none_are_refused(tmp_path):
    savemat(tmp_path / "t.mat", {"a": np.eye(2), "b": np.eye(2)}, format="4")
    with pytest.raises(ValueError, match="holds 2 arrays"):
        read(tmp_path / "t.mat")
    savemat(tmp_path / "t.mat", {"a": np.ones((3, 1)), "fixed": np.ones((3, 1))}, format="4")
    with pytest.raises(ValueError, match="holds 'a'; a transform of ITK"):
        read(tmp_path / "t.mat")
