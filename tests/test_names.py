"""Names of files that are not UTF-8, or as long as a disk allows: printed, written, registered."""

import csv
import json
import os
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from diffreg.cli.main import main
from diffreg.system.atomic import replacing, staged

pytestmark = pytest.mark.usefixtures("one_thread")

ODD = b"caf\xe9"  # Latin-1
LONG = {
    "latin": "a" * 248,
    "cjk": "\u5fc3" * 82,
    "accents": "\N{LATIN SMALL LETTER O WITH ACUTE}" * 124,
}


def blob(at, shape=(24, 20)):
    x, y = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    return (200 * np.exp(-(((x - at) / 0.2) ** 2 + ((y - 0.45) / 0.3) ** 2))).astype(np.float32)


def save(path, at=0.5):
    nib.save(nib.Nifti1Image(blob(at), np.diag([2.0, 2.0, 5.0, 1.0])), path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of two images whose names are no UTF-8, in a folder whose name is none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFREG_DEBUG", raising=False)
    images = os.fsdecode(ODD)
    try:
        os.mkdir(images)
    except OSError:
        pytest.skip("this disk takes UTF-8 only")
    for k in range(2):
        save(f"{images}/{k}.nii.gz", 0.5 + k / 50)
        os.rename(f"{images}/{k}.nii.gz", os.fsencode(f"{images}/{k}") + b"\xff.nii.gz")
    with open(f"{images}/pairs.csv", "w") as file:
        file.write("moving,fixed\nm.nii.gz,f.nii.gz\n")
    save(f"{images}/m.nii.gz", 0.53)
    save(f"{images}/f.nii.gz")
    return images


def run(*words):
    return main([str(word) for word in words])


def test_one_pair(folder, capsys):
    pair = [f"{folder}/{k}\udcff.nii.gz" for k in range(2)]
    out = f"{folder}-out"
    assert run("register", *pair, "-o", out) == 0
    assert r"caf\udce9-out/report.html: NCC " in capsys.readouterr().out
    with open(f"{out}/report.html", encoding="utf-8") as page:
        assert r"0\udcff.nii.gz to 1\udcff.nii.gz" in page.read()
    with open(f"{out}/metrics.json") as file:
        assert json.load(file)["moving"] == pair[0]
    assert run("register", *pair, "-o", out) == 0
    assert run("register", *pair[::-1], "-o", out) == 2
    assert run("apply", f"{out}/displacement.nii.gz", pair[0], "-o", f"{folder}/w.nii.gz") == 0
    assert run("certify", f"{out}/displacement.nii.gz") == 0


@pytest.mark.parametrize("command", ["register", "evaluate"])
def test_a_folder_of_them(command, folder, capsys):
    for name in ("m.nii.gz", "f.nii.gz"):
        os.remove(f"{folder}/{name}")
    assert run(command, folder, "-o", "out") == 0
    table = {"register": "metrics.csv", "evaluate": "evaluation.csv"}[command]
    with open(f"out/{table}", encoding="utf-8") as file:
        assert next(csv.DictReader(file))["row"] == r"caf\udce9"
    with open("out/report.html", encoding="utf-8") as page:
        assert r"0\udcff.nii.gz to 1\udcff.nii.gz" in page.read()
    assert sorted(p for p in os.listdir("out") if p[:2] == "00") == [
        "0001_0-_to_1-",
        "0002_1-_to_0-",
    ]


def test_a_manifest_in_such_a_folder(folder, capsys):
    assert run("register", f"{folder}/pairs.csv", "-o", "out") == 0
    assert run("register", f"{folder}/pairs.csv", "-o", "out") == 0
    assert "1 of 1 pairs were complete" in capsys.readouterr().err
    assert run("evaluate", f"{folder}/pairs.csv", "--displacements", "out", "-o", "e") == 0
    with open(f"{folder}/pairs.csv", "a") as file:
        file.write("none.nii.gz,f.nii.gz\n")
    assert run("register", f"{folder}/pairs.csv", "-o", "out") == 2
    assert r"caf\udce9/pairs.csv, line 3: moving " in capsys.readouterr().err


def test_training_on_such_images(folder, capsys):
    from diffreg.training.checkpoint import load_network

    settings = f"{folder}/c.toml"
    with open(settings, "w") as file:
        file.write(
            '[data]\nimages = "."\n[model]\nwidths = [2, 4]\n[training]\nout = "run"\nsteps = 1\n'
            "batch_size = 2\n"
        )
    os.mkdir(f"{folder}/run")
    assert run("train", settings) == 0
    assert load_network(f"{folder}/run/last.pt")["network"] is not None
    assert run("train", settings, "--resume") == 0


@pytest.mark.parametrize("name", LONG)
def test_names_as_long_as_the_disk_allows(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    stem = LONG[name][:-1]
    for letter in "xy":
        save(f"images/{letter}.nii", 0.5 + (letter == "x") / 50)
        os.rename(f"images/{letter}.nii", f"images/{stem}{letter}.nii")
    assert run("register", "images", "-o", "out") == 0
    assert len(list((tmp_path / "out").glob("*/metrics.json"))) == 2
    long = f"{stem}x"
    pair = [f"images/{stem}{letter}.nii" for letter in "xy"]
    assert run("register", *pair, "-o", long) == 0
    assert run("apply", f"{long}/displacement.nii.gz", pair[0], "-o", f"{stem}z.nii") == 0
    assert len(os.fsencode(f"{stem}z.nii")) > 240
    assert run("register", *pair, "-o", "b" * 300) == 2
    assert "file name too long" in capsys.readouterr().err


def test_a_temporary_name_keeps_the_ending(tmp_path):
    name = "\u5fc3" * 82 + ".nii.gz"
    with replacing(tmp_path / name) as temporary:
        assert temporary.name.endswith("\u5fc3.nii.gz")
        assert temporary.name.startswith(f".{os.getpid()}-")
        temporary.write_text("whole")
    with staged(tmp_path / ("b" * 255)) as inside:
        (inside / "a.txt").write_text("whole")
    assert sorted(len(os.fsencode(n)) for n in os.listdir(tmp_path)) == [253, 255]


def test_a_terminal_without_the_letters(folder):
    """The table of an evaluation has arrows and dashes that ASCII lacks."""
    done = subprocess.run(
        [sys.executable, "-m", "diffreg", "evaluate", f"{folder}/pairs.csv", "-o", f"{folder}/out"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "ascii",
             "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))},
        capture_output=True,
        text=True,
        timeout=120,
    )  # fmt: skip
    said = "no --checkpoint: the variational method with what suits the contrasts\n"
    assert (done.returncode, done.stderr) == (0, said)
    assert r"\u2013" in done.stdout or r"\u2212" in done.stdout
    assert r"caf\udce9/out/report.html: 1 pair" in done.stdout
