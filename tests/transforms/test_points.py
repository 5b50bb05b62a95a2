"""Files of points: which way their axes run, what is kept of them, what is refused."""

import json

import numpy as np
import pytest

from diffreg.transforms.points import read_point_file

FCSV = """# Markups fiducial file version = 4.11
# CoordinateSystem = {axes}
# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID
1,1.5,-2,3,0,0,0,1,1,1,0,"F,1",,
2,4,5,6,0,0,0,1,1,1,0,F-2,,
"""
SHIFT = np.array([1, 2, 3])
RAS = [[1.5, -2, 3], [4, 5, 6]]


def markups(axes="LPS", points=RAS):
    placed = [{"id": str(k), "label": f"F-{k}", "position": p} for k, p in enumerate(points)]
    placed.append({"id": "9", "position": None, "positionStatus": "undefined"})
    return json.dumps({"markups": [{"coordinateSystem": axes, "controlPoints": placed}]})


def mirrored(points):
    return (np.array(points) * [-1, -1, 1]).tolist()


FILES = [
    ("a.csv", "x,y,z,t,label\n1.5,-2,3,0,7\n4,5,6,0,8\n", mirrored(RAS), "CSV of ANTs, LPS"),
    ("a.csv", "x;y;z\n1,5;-2;3\n4;5;6\n", mirrored(RAS), "CSV of ANTs, LPS"),
    ("a.csv", "x,y\n1.5,-2\n4,5\n", [[-1.5, 2.0], [-4.0, -5.0]], "CSV of ANTs, LPS"),
    ("a.fcsv", FCSV.format(axes="LPS"), mirrored(RAS), ".fcsv of 3D Slicer, LPS"),
    ("a.fcsv", FCSV.format(axes="RAS"), RAS, ".fcsv of 3D Slicer, RAS"),
    ("a.fcsv", FCSV.format(axes="0"), RAS, ".fcsv of 3D Slicer, RAS"),
    ("a.fcsv", FCSV.format(axes="1"), mirrored(RAS), ".fcsv of 3D Slicer, LPS"),
    ("a.mrk.json", markups(), mirrored(RAS), ".mrk.json of 3D Slicer, LPS"),
    ("a.mrk.json", markups("RAS"), RAS, ".mrk.json of 3D Slicer, RAS"),
]


@pytest.mark.parametrize(("name", "text", "points", "words"), FILES)
def test_points_and_all_else_of_a_file(tmp_path, name, text, points, words):
    (tmp_path / name).write_text(text)
    file = read_point_file(tmp_path / name)
    assert file.points.tolist() == points and file.format == f"{words} mm"
    out = tmp_path / f"out_{name}"
    shift = SHIFT[: file.points.shape[1]]
    file.write(out, file.points + shift)
    again = read_point_file(out)
    assert np.allclose(again.points, file.points + shift) and again.format == file.format
    again.write(tmp_path / name, file.points)
    rewritten = (tmp_path / name).read_text()
    for kept in ("label", "F-1", "F,1", "F-2", "undefined", "# CoordinateSystem"):
        assert (kept in rewritten) == (kept in text)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "i,j,k\n1,2,3\n", "the first columns must be x,y,z, LPS mm"),
        ("a.csv", "x,y,z\n1,2,three\n", "line 2: x, y and z must be numbers"),
        ("a.csv", "x,y,z\n", "holds no point"),
        ("a.fcsv", FCSV.format(axes="IJK"), "CoordinateSystem must be LPS or RAS, got 'IJK'"),
        ("a.fcsv", "1,2,3,4\n", "CoordinateSystem must be LPS or RAS"),
        ("a.fcsv", FCSV.format(axes="RAS") + "3,1\n", "line 6: it has no x, y and z: 2 fields"),
        ("a.mrk.json", markups(axes=""), "CoordinateSystem must be LPS or RAS"),
        ("a.mrk.json", markups(points=[[1, 2]]), "x, y and z must be numbers"),
        ("a.mrk.json", markups(points=[[1, 2, "NaN"]]), "x, y and z must be numbers"),
        ("a.mrk.json", markups(points=[[1, 2, 3]]).replace("3]", "3" * 5000 + "]"), "a.mrk.json"),
        ("a.mrk.json", markups().replace('"LPS",', '"LPS", "coordinateUnits": "m",'), "is in m: "),
        ("a.mrk.json", "{}", "no markups file"),
        ("a.mrk.json", "[1]", "no markups file"),
        ("a.mrk.json", "{", "is not JSON"),
        ("a.json", "{}", "must end in .csv, .fcsv, .mrk.json"),
    ],
)
def test_what_is_no_file_of_points(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_point_file(tmp_path / name)
