"""CSV and TOML as spreadsheets, numpy and editors write them: manifests and points alike."""

import numpy as np
import pytest

from diffreg.data.manifest import read_manifest
from diffreg.data.points import read_points
from diffreg.system.files import read_text
from diffreg.training.config import load_config

BOM = "\N{BYTE ORDER MARK}"
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be")


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png", "c;d.png", "e,f.png", "g\N{NO-BREAK SPACE}h.png"):
        (tmp_path / name).touch()
    return tmp_path


def pairs(path):
    found = [(p.moving.name, p.fixed.name, p.group, p.fixed_slice) for p in read_manifest(path)]
    return found[0] if len(found) == 1 else found


MANIFESTS = {
    "semicolons": "moving;fixed;group;slice\na.png;b.png;x;2\n",
    "tabs": "moving\tfixed\tgroup\tslice\na.png\tb.png\tx\t2\n",
    "commas at the end": "moving,fixed,group,slice,\na.png,b.png,x,2,\n",
    "more commas in a row": "moving,fixed,group,slice\na.png,b.png,x,2,,\n",
    "Excel's own line": "sep=;\r\nmoving;fixed;group;slice\r\na.png;b.png;x;2\r\n",
    "pandas' row numbers": ",moving,fixed,group,slice\n0,a.png,b.png,x,2\n",
    "a column without a name": ";moving;fixed;group;slice\n;a.png;b.png;x;2\n",
    "2.0": "moving,fixed,group,slice\na.png,b.png,x,2.0\n",
    "2,0": "moving;fixed;group;slice\na.png;b.png;x;2,0\n",
    "blank lines first": "\n;;;\nmoving;fixed;group;slice\na.png;b.png;x;2\n",
    "old line ends": "moving,fixed,group,slice\ra.png,b.png,x,2\r",
    "a hash": "# moving,fixed,group,slice\na.png,b.png,x,2\n",
    "quotes": '"moving";"fixed";"group";"slice"\n"a.png";"b.png";"x";"2"\n',
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_in_any_of_these_forms_is_the_same(name, encoding, folder):
    path = folder / ("pairs.tsv" if name == "tabs" else "pairs.csv")
    path.write_bytes(MANIFESTS[name].encode(encoding))
    assert pairs(path) == ("a.png", "b.png", "x", 2)


def test_the_other_delimiter_may_be_in_a_name(folder):
    (folder / "p.csv").write_text("moving,fixed\na.png,c;d.png\n")
    assert pairs(folder / "p.csv")[1] == "c;d.png"
    (folder / "p.csv").write_text("moving;fixed\na.png;e,f.png\n")
    assert pairs(folder / "p.csv")[1] == "e,f.png"
    (folder / "p.csv").write_text('image\nc;d.png\n"e,f.png"\n')
    assert pairs(folder / "p.csv")[0][:2] == ("c;d.png", "e,f.png")


def test_an_odd_space_in_a_name_is_no_mistake(folder):
    (folder / "p.csv").write_text("moving,fixed\na.png,g\N{NO-BREAK SPACE}h.png\n")
    assert pairs(folder / "p.csv")[1] == "g\N{NO-BREAK SPACE}h.png"


@pytest.mark.parametrize("text, message", [
    ("moving,fixed,\na.png,b.png,x", "line 2: there are 2 columns, but 3 fields"),
    (",moving,fixed\nx,a.png,b.png", "line 2: 'x' stands under no column's name"),
    ("moving,fixed,slice\na.png,b.png,2.5", "slice must be a whole number >= 0, got '2.5'"),
    ("moving,fixed,,slice\na.png,b.png,,2", "there is no column ''"),
    ("#\n", "is empty: its first line must name the columns"),
    ("sep=;\n", "is empty: its first line must name the columns"),
])  # fmt: skip
def test_what_stays_a_mistake(text, message, folder):
    (folder / "p.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_manifest(folder / "p.csv")


POINTS = {
    "semicolons": "i;j\n3;4.5\n",
    "decimal commas": "i;j\n3,0;4,5\n",
    "decimal commas between tabs": "i\tj\n3\t4,5\n",
    "a comma at the end": "i,j,\n3,4.5,\n",
    "Excel's own line": "sep=;\ni;j\n3;4,5\n",
    "pandas' row numbers": ",i,j\n0,3,4.5\n",
    "names": "name,i,j\nthe tip,3,4.5\n",
    "labels": "i,j,Label\n3,4.5,\n",
    "numpy's savetxt": "# i,j\n3.000000000000000000e+00,4.500000000000000000e+00\n",
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", POINTS)
def test_points_in_any_of_these_forms_are_the_same(name, encoding, tmp_path):
    (tmp_path / "p.csv").write_bytes(POINTS[name].encode(encoding))
    np.testing.assert_array_equal(read_points(tmp_path / "p.csv"), [[3, 4.5]])


def test_between_commas_a_comma_is_no_decimal_point(tmp_path):
    (tmp_path / "p.csv").write_text('i,j\n"3,5",4\n')
    with pytest.raises(ValueError, match="line 2: two numbers are needed"):
        read_points(tmp_path / "p.csv")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_toml_may_begin_with_a_byte_order_mark(encoding, folder):
    (folder / "p.toml").write_bytes(
        '[[pair]]\nmoving = "a.png"\nfixed = "b.png"\nslice = 2.0\n'.encode(encoding)
    )
    assert pairs(folder / "p.toml") == ("a.png", "b.png", "", 2)
    (folder / "c.toml").write_bytes("[training]\r\nsteps = 7\r\n".encode(encoding))
    assert load_config(folder / "c.toml").training.steps == 7


def test_a_whole_number_with_a_point_is_one(tmp_path):
    (tmp_path / "c.toml").write_text("[training]\nsteps = 1e3\n[data]\nslices = [2.0, 3]\n")
    config = load_config(tmp_path / "c.toml", ["training.batch_size=4.0"])
    assert (config.training.steps, config.training.batch_size) == (1000, 4)
    assert type(config.training.steps) is int
    assert config.data.slices == (2, 3)


def test_text_in_neither_encoding_is_refused_in_words(folder):
    (folder / "p.csv").write_bytes("moving,fixed\nä.png,b.png".encode("latin-1"))
    with pytest.raises(ValueError, match="is not a CSV file in UTF-8 or UTF-16"):
        read_manifest(folder / "p.csv")
    (folder / "c.toml").write_bytes("# ä".encode("latin-1"))
    with pytest.raises(ValueError, match="is not TOML"):
        load_config(folder / "c.toml")


def test_an_empty_file_is_an_empty_text(tmp_path):
    (tmp_path / "e").touch()
    assert read_text(tmp_path / "e") == ""
    (tmp_path / "e").write_text(BOM, encoding="utf-8")
    assert read_text(tmp_path / "e") == ""
