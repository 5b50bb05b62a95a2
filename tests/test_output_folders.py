"""Folders of results: another pair's are never overwritten, the same pair's are."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_cohort import blob, save

from diffreg.cli.main import main
from diffreg.data.manifest import Pair
from diffreg.registration.folders import folder_name

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPE = (24, 20)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Images of two people with the same names, and a manifest of each."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFREG_DEBUG", raising=False)
    for k, person in enumerate(("one", "two")):
        (tmp_path / person).mkdir()
        for name, at in (("m", 0.53 + k / 50), ("f", 0.5), ("g", 0.51)):
            save(f"{person}/{name}.nii.gz", blob(SHAPE, at))
        (tmp_path / person / "pairs.csv").write_text("moving,fixed\nm.nii.gz,f.nii.gz\n")
    return tmp_path


def run(*words):
    return main([str(word) for word in words])


def register(person, out="out"):
    return run("register", f"{person}/m.nii.gz", f"{person}/f.nii.gz", "-o", out)


def content(out):
    return {str(path): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def refused(folder, capsys, *words):
    """The one line of a command that must leave the folder `out` as it is."""
    before = content(folder / "out")
    capsys.readouterr()
    assert run(*words) == 2
    assert content(folder / "out") == before
    return capsys.readouterr().err


def test_another_pair_is_refused(folder, capsys):
    assert register("one") == 0
    said = refused(folder, capsys, "register", "two/m.nii.gz", "two/f.nii.gz", "-o", "out")
    assert said == (
        "diffreg: error: out holds the results of one/m.nii.gz to one/f.nii.gz: give another "
        "folder, or remove it\n"
    )


def test_the_same_names_in_another_working_folder_are_another_pair(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder / "one")
    assert run("register", "m.nii.gz", "f.nii.gz", "-o", "../out") == 0
    monkeypatch.chdir(folder / "two")
    assert run("register", "m.nii.gz", "f.nii.gz", "-o", "../out") == 2
    assert "holds the results of m.nii.gz to f.nii.gz" in capsys.readouterr().err


def test_the_same_pair_is_replaced_from_wherever_it_is_named(folder, monkeypatch):
    assert register("one") == register("one") == 0
    monkeypatch.chdir(folder / "one")
    assert run("register", folder / "one" / "m.nii.gz", "f.nii.gz", "-o", "../out") == 0
    assert json.loads((folder / "out" / "metrics.json").read_text())["images"] == [
        "../one/m.nii.gz",
        "../one/f.nii.gz",
    ]


def test_a_link_to_the_folder_of_the_images_is_the_same_place(folder):
    assert register("one") == 0
    os.symlink(folder / "one", folder / "link")
    os.symlink(folder / "out", folder / "same")
    assert register("link", "same") == 0


def test_another_slice_is_another_pair(folder, capsys):
    volume = np.stack([blob(SHAPE, 0.5 + k / 50) for k in range(2)], -1)
    save("v.nii.gz", volume)
    save("w.nii.gz", volume[::-1].copy())
    words = ("register", "v.nii.gz", "w.nii.gz", "-o", "out", "--slice")
    assert run(*words, 0) == run(*words, 0) == 0
    said = refused(folder, capsys, *words, 1)
    assert "the results of v.nii.gz slice 0 to w.nii.gz slice 0" in said


def test_one_pair_and_a_manifest_share_no_folder(folder, capsys):
    assert run("register", "one/pairs.csv", "-o", "out") == 0
    said = refused(folder, capsys, "register", "one/m.nii.gz", "one/f.nii.gz", "-o", "out")
    assert "out holds the results of a manifest's pairs: give another folder" in said
    shutil.rmtree(folder / "out")
    assert register("one") == 0
    for words in (("register", "one/pairs.csv"), ("evaluate", "one/pairs.csv"),
                  ("evaluate", "one/pairs.csv", "--displacements", "one")):  # fmt: skip
        said = refused(folder, capsys, *words, "-o", "out")
        assert "out holds the results of one/m.nii.gz to one/f.nii.gz: give another" in said


def test_an_evaluation_is_no_place_for_one_pair(folder, capsys):
    assert run("register", "one/pairs.csv", "-o", "given") == 0
    assert run("evaluate", "one/pairs.csv", "--displacements", "given", "-o", "out") == 0
    said = refused(folder, capsys, "register", "one/m.nii.gz", "one/f.nii.gz", "-o", "out")
    assert "out holds the results of a manifest's pairs" in said


def test_another_manifest_is_refused(folder, capsys):
    assert run("register", "one/pairs.csv", "-o", "out") == 0
    for command in ("register", "evaluate"):
        said = refused(folder, capsys, command, "two/pairs.csv", "-o", "out")
        expected = "which is none of these pairs: give another folder"
        assert expected in said and "one/m.nii.gz to one/f.nii.gz" in said


def test_rows_may_come_and_go(folder, capsys):
    """A row in front moves all numbers: what is done is done again, and nothing is refused."""
    assert run("register", "one/pairs.csv", "-o", "out") == 0
    rows = "moving,fixed\ng.nii.gz,f.nii.gz\nm.nii.gz,f.nii.gz\n"
    (folder / "one" / "pairs.csv").write_text(rows)
    assert run("register", "one/pairs.csv", "-o", "out") == 0
    assert len(list((folder / "out").glob("*/metrics.json"))) == 3
    (folder / "one" / "pairs.csv").write_text("moving,fixed\nm.nii.gz,f.nii.gz\n")
    assert run("register", "one/pairs.csv", "-o", "out") == 0
    assert "1 of 1 pairs were complete and are kept" in capsys.readouterr().err


def test_the_same_command_goes_on_from_another_working_folder(folder, monkeypatch, capsys):
    assert run("register", "one/pairs.csv", "-o", "out") == 0
    monkeypatch.chdir(folder / "one")
    assert run("register", "pairs.csv", "-o", "../out") == 0
    assert "1 of 1 pairs were complete and are kept" in capsys.readouterr().err


def test_all_of_it_may_be_moved(folder, monkeypatch, capsys):
    assert run("register", "one/pairs.csv", "-o", "out") == 0
    (folder / "moved").mkdir()
    for name in ("one", "out"):
        (folder / name).rename(folder / "moved" / name)
    assert run("register", "moved/one/pairs.csv", "-o", "moved/out") == 0
    assert "1 of 1 pairs were complete and are kept" in capsys.readouterr().err


def test_a_file_of_something_else_stays(folder, capsys):
    (folder / "out").mkdir()
    (folder / "out" / "metrics.json").write_text('{"accuracy": 0.9}')
    for words in (("register", "one/m.nii.gz", "one/f.nii.gz"), ("register", "one/pairs.csv")):
        said = refused(folder, capsys, *words, "-o", "out")
        assert "out holds a metrics.json of something else: give another folder" in said
    said = refused(folder, capsys, "demo", "-o", "out")
    assert "out holds other results than the demo's: give another folder" in said


@pytest.mark.parametrize("name", ["warped.nii.gz", "a.PNG", "field.mat", "report.html", "a.csv"])
def test_a_name_of_a_file_is_no_folder(name, folder, capsys):
    assert register("one", name) == 2
    said = capsys.readouterr().err
    assert f"{name} is named as a file, but the output is a folder" in said
    assert said.count("\n") == 1
    assert not (folder / name).exists()
    (folder / name).mkdir()  # who makes it means it
    assert register("one", name) == 0


def test_a_folder_may_have_a_point_in_its_name(folder):
    assert register("one", "2026.11.28") == 0


def test_the_folder_of_a_pair_has_a_name_that_every_disk_takes():
    for letter in ("a", "\N{LATIN SMALL LETTER E WITH ACUTE}", "\u5fc3", "\U00020000"):
        pair = Pair(*[Path(f"{letter * 200}.nii.gz")] * 2, moving_slice=12345)
        name = f"{folder_name(1234567, pair)}.nii.gz"
        assert len(os.fsencode(f".1234567-{name}")) <= 255
        assert name.startswith(f"1234567_{letter * 25}")
    assert folder_name(3, Pair(Path("es.nii.gz"), Path("ed.nii.gz"))) == "0003_es_to_ed"
