"""The command line: what it leaves, and every mistake in one line."""

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from diffreg import __version__, losses
from diffreg.cli.main import main
from diffreg.cli.parser import _parser
from diffreg.cli.spelling import nearest
from diffreg.cli.variational import PRESETS, SIMILARITIES
from diffreg.data.normalization import Normalization
from diffreg.data.transforms import read_displacement
from diffreg.registration import solved as registration_module
from diffreg.registration.pair_page import duration

pytestmark = pytest.mark.usefixtures("one_thread")


def blob(shape, at=0.5, extent=0.2):
    x, y = np.meshgrid(*(np.linspace(0, 1, n) for n in shape), indexing="ij")
    body = np.exp(-(((x - at) / extent) ** 2 + ((y - 0.45) / (1.5 * extent)) ** 2))
    return (200 * body + 40 * np.sin(5 * x + 3 * y)).astype(np.float32)


def save(path, array):
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 5.0, 1.0])), path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder of a user with a few images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFREG_DEBUG", raising=False)
    shape = (48, 40)
    save("fixed.nii.gz", blob(shape))
    save("moving.nii.gz", blob(shape, 0.55))
    save("labels.nii.gz", (blob(shape, 0.55) > 100).astype(np.uint16) * 700)
    save("mask.nii.gz", (blob(shape) > 20).astype(np.uint8))
    save("volume.nii.gz", np.stack([blob(shape, 0.5 + k / 100) for k in range(4)], -1))
    save("flat.nii.gz", np.full(shape, 3, np.float32))
    for name, at, extent in (("fixed", 0.5, 0.2), ("moving", 0.55, 0.2)):
        picture = (blob(shape, at, extent) + 40).astype(np.uint8)
        Pillow.fromarray(picture).save(f"{name}.png")
    (tmp_path / "broken.nii.gz").write_bytes(b"")
    return tmp_path


def run(*words):
    return main([str(word) for word in words])


def without_help(parser, name="diffreg"):
    """What `--help` only names."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, command in action.choices.items():
                yield from without_help(command, f"{name} {word}")
        elif not action.help:
            yield f"{name} {action.dest}"


def test_every_option_of_every_command_is_explained():
    assert not list(without_help(_parser()))


def values(path):
    return np.asarray(nib.load(path).dataobj)


def test_register_alone(folder, capsys):
    assert run("register", "moving.nii.gz", "fixed.nii.gz", "-o", "out") == 0
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert lines[0] == "no --checkpoint: the variational method with what suits the contrasts"
    assert lines[1].startswith("contrast: squared correlation 0.") and len(lines) == 2
    assert lines[1].endswith("one contrast: ncc + lncc")
    assert said.out.startswith("out/report.html: NCC ")
    assert said.out.count("\n") == 1
    names = {path.name for path in (folder / "out").iterdir()}
    assert names == {
        "warped.nii.gz",
        "displacement.nii.gz",
        "affine.mat",
        "composite.h5",
        "inverse_displacement.nii.gz",
        "inverse_composite.h5",
        "metrics.json",
        "report.html",
    }
    metrics = json.loads((folder / "out/metrics.json").read_text())
    assert metrics["after"]["ncc"] > metrics["before"]["ncc"]
    assert metrics["min_determinant"] > 0


def test_overlap_and_landmarks_stand_beside_the_other_figures(folder, capsys):
    save("fixed_labels.nii.gz", (blob((48, 40)) > 100).astype(np.uint16) * 700)
    (folder / "points.csv").write_text("fixed_x,fixed_y,moving_x,moving_y\n46,34,50,34\n")
    labels = ("--moving-label", "labels.nii.gz", "--fixed-label", "fixed_labels.nii.gz")
    quick = ("--iterations", "5", "--no-report", "--no-composites")
    points = ("--landmarks", "points.csv", "0.1")
    words = ("register", "moving.nii.gz", "fixed.nii.gz", "-o", "out", *quick)
    assert run(*words, *labels, *points) == 0
    metrics = json.loads((folder / "out/metrics.json").read_text())
    said = " ".join(capsys.readouterr().out.split())
    dice, apart = metrics["dice"], metrics["landmarks"]
    assert dice["after"] > dice["before"]
    assert f", mean Dice {dice['before']:.3f} -> {dice['after']:.3f}, landmarks " in said
    first, last = (apart[f"{when}_mm"]["mean"] for when in ("before", "after"))
    assert f", landmarks {first:.2f} -> {last:.2f} mm, compared on " in said
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert "Dice" not in said and "landmarks" not in said


def test_register_without_a_report(folder, capsys):
    assert run("register", "moving.nii.gz", "fixed.nii.gz", "-o", "out") == 0
    assert run("register", "moving.nii.gz", "fixed.nii.gz", "-o", "out", "--no-report") == 0
    assert "out: NCC " in capsys.readouterr().out
    names = {path.name for path in (folder / "out").iterdir()}
    assert "report.html" not in names and "metrics.json" in names
    assert run("register", "manifest.csv", "-o", "all", "--no-composites") == 2
    assert "--no-composites is of one pair: leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--by-slice", "--all-pairs"])
def test_an_option_of_a_manifest_is_none_of_a_pair(tmp_path, capsys, option):
    assert main(["register", "a.nii", "b.nii", "-o", str(tmp_path / "out"), option]) == 2
    assert f"{option} is of a manifest or a folder: leave it out" in capsys.readouterr().err


def test_apply_repeats_what_register_did(folder):
    run("register", "moving.nii.gz", "fixed.nii.gz", "-o", "out")
    assert run("apply", "out/displacement.nii.gz", "moving.nii.gz", "-o", "again.nii.gz") == 0
    np.testing.assert_allclose(values("again.nii.gz"), values("out/warped.nii.gz"), atol=1e-3)
    assert np.array_equal(nib.load("again.nii.gz").affine, nib.load("fixed.nii.gz").affine)
    assert values("again.nii.gz").shape == (48, 40)


def test_apply_keeps_labels(folder):
    run("register", "moving.nii.gz", "fixed.nii.gz", "-o", "out")
    words = ("apply", "out/displacement.nii.gz", "labels.nii.gz", "-o", "warped.nii")
    assert run(*words, "--interpolation", "nearest") == 0
    warped = nib.load("warped.nii")
    assert warped.get_data_dtype() == np.uint16
    assert np.unique(values("warped.nii")).tolist() == [0, 700]
    assert not np.array_equal(values("warped.nii"), values("labels.nii.gz"))


def test_png(folder):
    assert run("register", "moving.png", "fixed.png", "-o", "out", "--similarity", "ssd") == 0
    assert run("apply", "out", "moving.png", "-o", "again.png") == 0
    with Pillow.open("out/warped.png") as warped, Pillow.open("again.png") as again:
        assert np.asarray(warped).dtype == np.uint8
        assert np.abs(np.asarray(warped).astype(int) - np.asarray(again)).max() <= 1
        inner = [
            np.asarray(image)[4:-4, 4:-4].ravel() for image in (warped, Pillow.open("fixed.png"))
        ]
    # The best field is nearly a shift: what it brings in from outside is 0, the background is 40.
    assert np.corrcoef(*inner)[0, 1] > 0.99
    assert json.loads((folder / "out/metrics.json").read_text())["after"]["ncc"] > 0.97
    assert run("apply", "out/displacement.nii.gz", "moving.nii.gz", "-o", "again.png") == 2


class Still(torch.nn.Module):
    """A network that moves nothing."""

    def forward(self, moving, fixed):
        return torch.zeros(1, 2, *fixed.shape[2:])


def test_a_checkpoint_brings_its_network_and_settings(folder, monkeypatch, capsys):
    importlib.import_module("diffreg.training")  # before a part of it is another
    trained = {"network": Still(), "normalization": Normalization(1, 99), "similarity": "pls"}
    monkeypatch.setattr("diffreg.training.checkpoint.load_network", lambda path: trained)
    (folder / "c.pt").write_bytes(b"")
    assert run(*PAIR, "--checkpoint", "c.pt") == 0
    metrics = json.loads((folder / "out/metrics.json").read_text())
    assert (metrics["method"], metrics["similarity"]) == ("network", "pls")
    assert np.array_equal(values("out/warped.nii.gz"), values("moving.nii.gz"))
    assert capsys.readouterr().err == ""
    assert run(*PAIR, "--checkpoint", "c.pt", "--similarity", "ncc") == 2


def test_slices_of_volumes(folder, capsys):
    run("register", "volume.nii.gz", "volume.nii.gz", "-o", "out", "--slice", 2)
    assert json.loads((folder / "out/metrics.json").read_text())["before"]["ncc"] > 0.9999
    assert nib.load("out/warped.nii.gz").shape == (48, 40, 1)
    assert nib.load("out/warped.nii.gz").affine[2, 3] == 10
    words = ("register", "volume.nii.gz", "fixed.nii.gz", "-o", "other", "--moving-slice", 3)
    assert run(*words) == 0
    words = ("apply", "other/displacement.nii.gz", "volume.nii.gz", "-o", "again.nii.gz")
    assert run(*words, "--slice", 3) == 0


def test_a_mask(folder):
    words = ("register", "moving.nii.gz", "fixed.nii.gz", "-o", "out", "--fixed-mask")
    assert run(*words, "mask.nii.gz") == 0
    assert "inside the outline" in (folder / "out/report.html").read_text()


PAIR = ("register", "moving.nii.gz", "fixed.nii.gz", "-o", "out")
MISTAKES = {
    "no such image": (("register", "none.nii", "fixed.nii.gz", "-o", "out"), "none.nii does not"),
    "an empty file": (("register", "broken.nii.gz", "fixed.nii.gz", "-o", "out"), "0 bytes"),
    "a volume": (
        ("register", "volume.nii.gz", "fixed.nii.gz", "-o", "out"),
        "--slice K, --moving-slice K",
    ),
    "no such slice": (
        ("register", "volume.nii.gz", "volume.nii.gz", "-o", "out", "--slice", "9"),
        "has no slice 9: its slices are 0..3",
    ),
    "two planes": (
        ("register", *["volume.nii.gz"] * 2, "-o", "out", "--slice", "0", "--moving-slice", "2"),
        "do not lie in one plane: they are up to 10.00 mm apart",
    ),
    "a slice of an image": ((*PAIR, "--slice", "0"), "--slice is for volumes"),
    "a constant image": (("register", "flat.nii.gz", "fixed.nii.gz", "-o", "out"), "3 everywhere"),
    "two kinds": (("register", "moving.png", "fixed.nii.gz", "-o", "out"), "physical coordinates"),
    "no folder": ((*PAIR[:-1], "none/out"), "does not exist"),
    "a file as folder": ((*PAIR[:-1], "mask.nii.gz"), "is a file, not a folder"),
    "no checkpoint": ((*PAIR, "--method", "network"), "needs --checkpoint"),
    "missing checkpoint": ((*PAIR, "--checkpoint", "none.pt"), "none.pt does not exist"),
    "both methods": ((*PAIR, "--method", "variational", "--checkpoint", "c.pt"), "leave one"),
    "a mask of another kind": ((*PAIR, "--fixed-mask", "fixed.png"), "do not belong together"),
    "a mask of fractions": ((*PAIR, "--fixed-mask", "moving.nii.gz"), "not whole numbers"),
    "not a displacement": (("apply", "fixed.nii.gz", "moving.nii.gz", "-o", "a.nii"), "(48, 40)"),
    "no displacement": (("apply", "none.nii", "moving.nii.gz", "-o", "a.nii"), "does not exist"),
}


def test_a_fill_that_is_no_number_is_refused_before_anything_is_read(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([*PAIR, "--fill", "nan"])
    assert "argument --fill: must be a finite number, got 'nan'" in capsys.readouterr().err


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name, folder, capsys):
    words, message = MISTAKES[name]
    before = sorted(folder.iterdir())
    assert run(*words) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.startswith("diffreg: error: ")
    assert said.err.count("\n") == 1
    assert said.out == ""
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("out, message", [
    ("a.png", "must end in .nii.gz, .nii,"), ("a.txt", "must end in"), ("none/a.nii", "not exist"),
])  # fmt: skip
def test_the_output_of_apply_is_checked_first(out, message, folder, capsys):
    run("register", "moving.nii.gz", "fixed.nii.gz", "-o", "out")
    capsys.readouterr()
    assert run("apply", "out/displacement.nii.gz", "none.nii", "-o", out) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("words", [(), ("fly",), ("register", "a"), (*PAIR, "--similarity", "x")])
def test_a_wrong_command_is_one_line(words, folder, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(*words)
    said = capsys.readouterr().err
    assert said.startswith("diffreg: error: ")
    assert said.count("\n") == 1


def test_the_debug_variable_shows_where(folder, monkeypatch):
    monkeypatch.setenv("DIFFREG_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        run("register", "none.nii", "fixed.nii.gz", "-o", "out")


def test_faults_are_not_swallowed(folder, monkeypatch):
    fail = Mock(side_effect=RuntimeError("a fault of ours"))  # raised in no file of the user's
    monkeypatch.setattr(registration_module, "register_variational", fail)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run(*PAIR)


def test_an_interruption_is_one_line(folder, monkeypatch, capsys):
    def interrupt(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(registration_module, "register_variational", interrupt)
    assert run(*PAIR) == 130
    assert capsys.readouterr().err.endswith(
        "diffreg: interrupted; no file in out is half-written\n"
    )
    assert not (folder / "out").exists()


def test_a_working_folder_that_was_removed_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["info"]) == 2
    assert capsys.readouterr().err.startswith("diffreg: error: the working folder was removed;")


def test_a_missing_package_says_how_to_get_it(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    assert run(*PAIR) == 2
    assert (
        "nibabel is needed for NIfTI files: pip install 'diffreg[app]'" in capsys.readouterr().err
    )


def test_every_similarity_is_offered():
    assert set(SIMILARITIES) == {"auto", *losses.SIMILARITIES}
    assert tuple(losses.PRESETS) == PRESETS


def test_times_are_in_words():
    assert [duration(t) for t in (0.0042, 0.9996, 12.123, 240.0)] == [
        "4 ms",
        "1 s",
        "12.1 s",
        "240 s",
    ]


def test_info(capsys):
    assert run("info") == 0
    said = capsys.readouterr().out
    assert f"version: {__version__}\n" in said
    for key in ("compiler", "cuda_architectures", "python", "numpy", "threads"):
        assert f"\n{key}: " in said


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        run("--version")
    assert capsys.readouterr().out == f"diffreg {__version__}\n"


def test_the_written_field_is_the_registration(folder):
    run("register", "moving.nii.gz", "fixed.nii.gz", "-o", "out")
    displacement, grid = read_displacement("out/displacement.nii.gz")
    assert displacement.shape == (1, 2, 48, 40)
    assert torch.isfinite(displacement).all()
    assert grid.is_flat


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("register a b -o out --iter 5", "there is no option --iter; the nearest is --iterations"),
        ("register a b --similarty=ncc", "no option --similarty; the nearest is --similarity"),
        ("register a b --lables c", "no option --lables; the nearest is --moving-label"),
        ("register a b -o out --qqqq", "unrecognized arguments: --qqqq"),
        ("train a.toml --resum", "no option --resum; the nearest is --resume"),
        ("--verson", "no option --verson; the nearest is --version"),
        ("regster a b -o out", "there is no command regster; the nearest is register"),
        ("qqqq", "there is no command qqqq; known are register, evaluate, "),
    ],
)
def test_a_misspelt_word_is_told_with_the_nearest(words, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words.split())
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("diffreg: error: ") and said in error
    assert error.count("\n") == 1


def test_what_is_begun_is_nearer_than_what_is_alike():
    assert nearest("--time", ("--times", "--time-point")) == "--times"
    assert nearest("--sim", ("--slim", "--similarity")) == "--similarity"
    assert nearest("--xyz", ("--slim",)) == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_standard_output_is_named():
    with open("/dev/full", "w") as full:
        words = [sys.executable, "-m", "diffreg", "train", "--print-config"]
        ended = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    assert ended.returncode == 2
    assert ended.stderr.startswith("diffreg: error: standard output: no space left on device")
