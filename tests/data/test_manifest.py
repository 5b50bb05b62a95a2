"""Manifests: what they mean, and what is wrong with them in one line."""

import nibabel as nib
import numpy as np
import pytest

from diffreg.data import slices
from diffreg.data.manifest import Pair, read_manifest
from diffreg.data.points import read_points
from diffreg.data.slices import by_slice, numbered
from diffreg.system.files import FileWarning


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png", "c.nii.gz", "la.png", "lb.png", "m.png", "pa.csv", "pb.csv"):
        (tmp_path / name).touch()
    (tmp_path / "d.png").mkdir()
    np.savez(tmp_path / "s.npz", x=np.zeros((3, 4, 5)), y=np.zeros((3, 4, 5)), z=np.zeros((4, 5)))
    return tmp_path


def written(folder, text, name="pairs.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_csv(folder):
    text = (
        "\N{BYTE ORDER MARK}moving, fixed,moving_label,fixed_label,fixed_mask,moving_points,"
        "fixed_points,group,slice\r\n"
        "a.png,b.png,la.png,lb.png,m.png,pa.csv,pb.csv,patient 1,\r\n\r\n"
        "c.nii.gz,c.nii.gz,,,,,,2,7\r\n"
    )
    first, second = read_manifest(written(folder, text))
    assert first == Pair(
        folder / "a.png",
        folder / "b.png",
        folder / "la.png",
        folder / "lb.png",
        folder / "m.png",
        folder / "pa.csv",
        folder / "pb.csv",
        group="patient 1",
        row=f"{folder / 'pairs.csv'}, line 2",
    )
    assert (second.moving_slice, second.fixed_slice, second.group) == (7, 7, "2")
    assert second.row.endswith("line 4")
    assert second.name == "c.nii.gz to c.nii.gz, slice 7"


def test_toml(folder):
    text = """
    [[pair]]
    moving = "a.png"
    fixed = "b.png"
    group = 3
    [[pair]]
    moving = "s.npz:x"
    fixed = "s.npz:y"
    moving_slice = 0
    fixed_slice = 2
    """
    manifest = read_manifest(written(folder, text, "pairs.toml"))
    assert list(manifest.groups) == ["3", ""]
    assert manifest.pairs[1].name == "s.npz:x slice 0 to s.npz:y slice 2"


def test_a_folder_means_all_pairs(folder):
    (folder / "s.npz").unlink()
    names = [pair.name for pair in read_manifest(folder)]
    assert len(names) == 6 * 5
    assert names[0] == "a.png to b.png"


def test_images_mean_all_pairs_of_a_group_and_slice(folder):
    text = "image,label,points,group,slice\na.png,la.png,pa.csv,x,1\nb.png,lb.png,,x,1\n"
    manifest = read_manifest(written(folder, text + "c.nii.gz,,,x,2\nm.png,,,y,1\n"))
    assert [pair.name for pair in manifest] == [
        "a.png to b.png, slice 1",
        "b.png to a.png, slice 1",
    ]
    first = manifest.pairs[0]
    assert (first.moving_label, first.fixed_label) == (folder / "la.png", folder / "lb.png")
    assert first.moving_points is None  # only one of the two has points
    assert first.row.endswith("line 2 with line 3")


def test_columns_of_other_things_are_left_alone_and_told_once(folder):
    csv = "moving,age,fixed,Sex\na.png,63,b.png,f\nb.png,63,a.png,\n"
    toml = "[[pair]]\nmoving = 'a.png'\nfixed = 'b.png'\nage = 63\n[pair.scanner]\ntesla = 3\n"
    images = "image,age\na.png,63\nb.png,64\n"
    for text, name, said in (
        (csv, "pairs.csv", "'age', 'Sex'"),
        (toml, "pairs.toml", "'age', 'scanner'"),
        (images, "images.csv", "'age'"),
    ):
        with pytest.warns(FileWarning) as caught:
            manifest = read_manifest(written(folder, text, name))
        assert [str(each.message) for each in caught] == [f"{folder / name}: left alone: {said}"]
        assert manifest.pairs[0].name == "a.png to b.png"


MISTAKES = {
    "unknown column": (
        "moving,fixd\na.png,b.png",
        "pairs.csv: there is no column 'fixd'; the nearest is fixed",
    ),
    "another separator": (
        "moving|fixed\na.png|b.png",
        "the column moving and fixed is missing; it has ['moving|fixed']",
    ),
    "another case": (
        "moving,fixed,Group\na.png,b.png,x",
        "no column 'Group'; the nearest is group",
    ),
    "the other kind's column": ("moving,fixed,label\na.png,b.png,la.png", "no column 'label'; the"),
    "column twice": ("moving,fixed,fixed\n", "pairs.csv: the column fixed is there twice"),
    "missing column": ("moving\na.png", "pairs.csv: the column fixed is missing"),
    "two kinds of slice": ("moving,fixed,slice,fixed_slice\n", "slice stands for moving_slice"),
    "no rows": ("moving,fixed\n", "pairs.csv lists no pair"),
    "no bytes": ("", "pairs.csv is empty: its first line must name the columns"),
    "a field too few": ("moving,fixed,group\na.png,b.png", "line 2: there are 3 columns, but 2"),
    "an empty field": ("moving,fixed\na.png,", "line 2: fixed must be a file"),
    "a missing file": ("moving,fixed\na.png,x.png", "line 2: fixed {}/x.png does not exist"),
    "no image": ("moving,fixed\na.png,pa.csv", "line 2: fixed: {}/pa.csv: the name of an image"),
    "one label": ("moving,fixed,moving_label\na.png,b.png,la.png", "moving_label and fixed_label"),
    "twice": (
        "moving,fixed\na.png,b.png\nb.png,a.png\na.png,b.png",
        "line 4: this pair is there twice, first in {}/pairs.csv, line 2",
    ),
    "a slice below 0": ("moving,fixed,slice\na.png,b.png,-1", "slice must be a whole number >= 0"),
    "no number": ("moving,fixed,slice\na.png,b.png,two", "must be a whole number >= 0, got 'two'"),
    "an open quote": ('moving,fixed\n"a.png,b.png', "pairs.csv is not a CSV file in UTF-8"),
    "a null byte": ("moving,fixed\na.png,b\0.png", "pairs.csv"),
    "one image": ("image\na.png", "pairs.csv lists no pair"),
    "a folder": ("moving,fixed\na.png,d.png", "line 2: fixed {}/d.png is a folder, not a file"),
    "a folder of points": (
        "moving,fixed,moving_points,fixed_points\na.png,b.png,pa.csv,d.png",
        "line 2: fixed_points {}/d.png is a folder, not a file",
    ),
    "twice by another name": (
        "moving,fixed\na.png,b.png\na.png,d.png/../b.png",
        "line 3: this pair is there twice, first in {}/pairs.csv, line 2",
    ),
    "a slice of the whole": (
        "moving,fixed,slice\na.png,b.png,2\na.png,b.png,",
        "line 3: this pair is there twice, first in {}/pairs.csv, line 2",
    ),
    "the whole and a slice": (
        "moving,fixed,slice\na.png,b.png,\na.png,b.png,2",
        "line 3: this pair is there twice, first in {}/pairs.csv, line 2",
    ),
    "no image of images": ("image\na.png\npa.csv", "line 3: image: {}/pa.csv: the name of an"),
    "columns of the other kind": ("image,fixed\na.png,b.png", "there is no column 'fixed'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_csv_is_one_line(name, folder):
    text, message = MISTAKES[name]
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read_manifest(written(folder, text))
    assert message.replace("{}", str(folder)) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text, message", [
    ("", "is empty: it must list its pairs, each as"),
    ("a = [", "is not TOML"),
    ("a = " + "[" * 5000, "is not TOML"),
    ("pairs = 3", "is [[pair]] tables or [[image]] tables, got ['pairs']"),
    ("pair = 3", "pair must be tables, each written [[pair]]"),
    ("[[pair]]\nmoving = 3\nfixed = 'a.png'", "pair 1: moving must be a text on one line, got 3"),
    ("[[pair]]\nmoving = 'a.png'", "pair 1: the column fixed is missing"),
    ("[[pair]]\nmovin = 'a.png'", "no column 'movin'; the nearest is moving"),
    ("[[pair]]\nmoving = 'a.png'\nfixed = 'b.png'\nslice = true", "must be a whole number >= 0"),
    ("[[pair]]\nmoving = 'a.png'\nfixed = 'b.png'\ngroup = 1.5", "group must be a text"),
])  # fmt: skip
def test_a_mistake_in_a_toml_is_one_line(text, message, folder):
    with pytest.raises(ValueError) as caught:
        read_manifest(written(folder, text, "pairs.toml"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_manifest(folder):
    (folder / "empty").mkdir()
    (folder / "latin.csv").write_bytes(b"moving,fixed\n\xe4.png,b.png")
    for name, message in {
        "none.csv": "does not exist",
        "a.png": "a manifest is a folder, or its name ends in .csv, .tsv, .toml or .json",
        "empty": "must hold at least two images",
        "latin.csv": "is not a CSV file in UTF-8",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            read_manifest(folder / name)


def test_volumes_slice_by_slice(folder):
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 3), np.float32), np.eye(4)), folder / "v.nii")
    nib.save(nib.Nifti1Image(np.zeros((4, 5, 2), np.float32), np.eye(4)), folder / "w.nii")
    pair = Pair(folder / "v.nii", folder / "v.nii")
    assert [part.fixed_slice for part in by_slice(pair)] == [0, 1, 2]
    assert [part.moving_slice for part in by_slice(pair, [2])] == [2]
    assert by_slice(Pair(folder / "s.npz:z", folder / "s.npz:z"))[0].fixed_slice is None
    assert len(by_slice(Pair(folder / "s.npz:x", folder / "s.npz:y"))) == 3
    with pytest.raises(ValueError, match=r"has no slice 3, only 0\.\.2"):
        by_slice(pair, [3])
    with pytest.raises(ValueError, match=r"v.nii has 3 slices and .*w.nii has 2"):
        by_slice(Pair(folder / "v.nii", folder / "w.nii"))


def test_pairs_are_numbered_and_a_bad_one_counts(folder):
    (folder / "bad.nii").write_bytes(b"no image")
    text = "moving,fixed\ns.npz:z,s.npz:z\nbad.nii,bad.nii\ns.npz:x,s.npz:y\n"
    found = list(numbered(read_manifest(written(folder, text)), (ValueError,)))
    assert [number for number, _, _ in found] == [1, 2, 3, 4, 5]
    assert [error is None for _, _, error in found] == [True, False, True, True, True]


@pytest.mark.parametrize("by_slices", [True, False])
def test_an_image_of_many_rows_is_opened_once(by_slices, folder, monkeypatch):
    opened = []
    count = slices.count_slices
    monkeypatch.setattr(slices, "count_slices", lambda path: opened.append(path) or count(path))
    text = "moving,fixed\ns.npz:x,s.npz:y\ns.npz:y,s.npz:x\ns.npz:x,s.npz:x\n"
    manifest = read_manifest(written(folder, text))
    assert len(list(numbered(manifest, (), by_slices))) == (9 if by_slices else 3)
    assert len(opened) == 2
    assert len(slices.sliced(manifest.pairs)) == 9
    assert len(opened) == 4


def test_points(folder):
    path = written(folder, "i,j\n1,2\n\n 3.5 , 4\n", "p.csv")
    assert read_points(path).tolist() == [[1, 2], [3.5, 4]]
    for text, message in {
        "x,y\n1,2": "the columns must be i,j",
        "i,j\n1": "p.csv, line 2: there are 2 columns, but 1 field",
        "i,j\n1,nan": "line 2: two numbers are needed",
        "i,j\n": "holds no point",
        "": "holds no point",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_points(written(folder, text, "p.csv"))


@pytest.mark.parametrize(
    "name", ["mask_fixed", "labels_moving", "moving_segmentation", "fixed_roi"]
)
def test_a_column_that_may_be_meant_for_ours_is_refused(name, folder):
    (folder / "p.csv").write_text(f"moving,fixed,{name}\na.png,b.png,la.png\n")
    with pytest.raises(ValueError, match=f"there is no column '{name}'; the nearest is "):
        read_manifest(folder / "p.csv")


@pytest.mark.parametrize("name", ["moving_id", "fixed_id", "site", "scanner"])
def test_a_column_of_something_else_is_left_alone(name, folder):
    (folder / "p.csv").write_text(f"moving,fixed,{name}\na.png,b.png,7\n")
    with pytest.warns(FileWarning, match=f"left alone: '{name}'"):
        assert len(read_manifest(folder / "p.csv")) == 1
