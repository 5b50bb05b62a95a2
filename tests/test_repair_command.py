"""`diffreg repair`: transforms of any tool, brought near to what they were, and unfolded."""

import drawn_transforms as drawn
import nibabel as nib
import numpy as np
import pytest
import torch
from fields.drawn import smooth

from diffreg.cli.main import main
from diffreg.data.grid import Grid
from diffreg.fields import fold_certificate, make_diffeomorphic
from diffreg.transforms import Affine, Field, compose, format_of, read, read_field, write

SIZE = (12, 13, 11)
FOLDS = smooth(SIZE, 2.5, 0)
PAIR = ("--fixed", "fixed.nii.gz", "--moving", "moving.nii.gz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two images, a field that folds and an affine map."""
    place = tmp_path_factory.mktemp("repair")
    rng = np.random.default_rng(3)
    fixed = drawn.write_pair(place, rng, SIZE)
    write(place / "warp.nii.gz", Field(FOLDS, fixed))
    write(place / "affine.mat", drawn.affine(rng, 0.08, 1.0))
    return place


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def run(*words):
    return main([str(word) for word in words])


def test_what_folds_is_unfolded_and_little_else_moves(here, capsys):
    assert run("certify", "warp.nii.gz") == 1
    assert run("repair", "warp.nii.gz", "-o", "better.nii.gz") == 0
    said = capsys.readouterr().out
    assert "warp.nii.gz: folded: " in said and "voxels moved by at most" in said
    assert "in better.nii.gz: homeomorphism" in said
    assert run("certify", "better.nii.gz") == 0
    before, after = read_field("warp.nii.gz"), read_field("better.nii.gz")
    assert (after - make_diffeomorphic(before).displacement).abs().max() < 1e-5
    still = (after - before).abs().amax(1) < 1e-5
    assert 0.1 < still.to(torch.float64).mean() < 1


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        ("fsl.nii.gz", "fsl-warp-relative"),
        ("nifty.nii.gz", "niftyreg-deformation"),
        ("free.nii.gz", "freesurfer-warp"),
        ("l2r.nii.gz", "learn2reg"),
    ],
)
def test_the_format_is_kept(here, name, format_, capsys):
    assert run("convert", "warp.nii.gz", name, "--to", format_, *PAIR) == 0
    assert run("repair", name, "--from", format_, "-o", f"better_{name}", *PAIR) == 0
    said = capsys.readouterr().out
    assert f"better_{name}: {format_}" in said and "homeomorphism" in said.splitlines()[-1]
    found = read_field(f"better_{name}", format_, "fixed.nii.gz", "moving.nii.gz")
    wanted = make_diffeomorphic(FOLDS.to(torch.float64)).displacement
    assert (found - wanted).abs().max() < 1e-3


def test_an_array_in_voxels_needs_no_image(here, capsys):
    np.savez("flow.npz", vol=FOLDS[0].movedim(0, -1).numpy())
    assert run("repair", "flow.npz", "-o", "better.npz") == 0
    assert format_of("better.npz") == "voxelmorph"
    assert "folded: " in capsys.readouterr().out
    assert fold_certificate(read_field("better.npz")).verdict == "homeomorphism"


def test_an_array_in_voxels_goes_where_no_place_is_needed_alone(here, capsys):
    """A field of ITK's that lay at the origin in voxels of 1 mm would move other points."""
    np.savez("flow.npz", vol=FOLDS[0].movedim(0, -1).numpy())
    for out in ("placed.nii.gz", "placed.h5"):
        assert run("repair", "flow.npz", "-o", out) == 2
        assert "flow.npz needs the fixed image" in capsys.readouterr().err
        assert not (here / out).exists()
    assert run("repair", "flow.npz", "-o", "l2r.npz", "--to", "learn2reg") == 0
    assert run("repair", "flow.npz", "-o", "placed.nii.gz", *PAIR[:2]) == 0
    assert np.allclose(read("placed.nii.gz").grid.affine, nib.load("fixed.nii.gz").affine)


def test_how_well_an_inverse_does_is_said(here, capsys):
    write("fine.nii.gz", Field(0.1 * FOLDS, read("warp.nii.gz").grid))
    assert run("repair", "fine.nii.gz,-1", "-o", "back.nii.gz") == 0
    assert "residual of the inverse: " in capsys.readouterr().err


def test_a_slice(here):
    """ITK's file of one has three planes."""
    u = smooth((40, 33), 14.0, 0)
    write("slice.nii.gz", Field(u, Grid((40, 33), np.diag([1.5, 0.7, 2.0, 1.0]))))
    assert run("certify", "slice.nii.gz") == 1
    assert run("repair", "slice.nii.gz", "-o", "plane.nii.gz") == 0
    assert nib.load("plane.nii.gz").shape == nib.load("slice.nii.gz").shape
    assert run("certify", "plane.nii.gz") == 0


def test_affine_maps_stay(here):
    assert run("compose", "-t", "warp.nii.gz", "-t", "affine.mat", "-o", "whole.h5") == 0
    assert run("repair", "whole.h5", "-o", "better.h5") == 0
    field, affine = read("better.h5").steps
    assert np.array_equal(affine.matrix, read("whole.h5").steps[1].matrix)
    assert field.certificate().verdict == "homeomorphism"


def test_an_affine_map_that_mirrors_is_told(here, capsys):
    mirror = Affine(np.diag([-1.0, 1.0, 1.0, 1.0]))
    write("mirrored.h5", compose([read("warp.nii.gz"), mirror]))
    assert run("repair", "mirrored.h5", "-o", "better.h5") == run("certify", "better.h5") == 1
    assert "mirrors: that stays" in capsys.readouterr().err


def test_what_does_not_fold_stays_as_it_is(here, capsys):
    write("fine.nii.gz", Field(0.1 * FOLDS, read("warp.nii.gz").grid))
    assert run("repair", "fine.nii.gz", "-o", "same.nii.gz") == 0
    assert "moved" not in capsys.readouterr().out
    assert torch.equal(read_field("fine.nii.gz"), read_field("same.nii.gz"))


def test_above_a_threshold(here):
    assert run("repair", "warp.nii.gz", "-o", "above.nii.gz", "--threshold", 0.2) == 0
    assert fold_certificate(read_field("above.nii.gz")).smallest_determinant > 0.2


def test_what_the_file_does_not_hold_is_told(here, capsys):
    """Two fields that do not fold, sampled on one grid, may."""
    parts = [make_diffeomorphic(smooth(SIZE, 2.5, seed)).displacement for seed in (1, 2)]
    twice = compose([Field(u, read("warp.nii.gz").grid) for u in parts])
    write("twice.h5", twice)
    assert run("repair", "twice.h5", "-o", "one.nii.gz", *PAIR[:2]) == 1
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith("in one.nii.gz: folded: ")
    assert "diffreg: warning: one.nii.gz does not pass" in said.err and ".h5 keeps" in said.err
    assert run("repair", "twice.h5", "-o", "both.h5") == 0


def test_what_is_not_shown_is_not_said_to_fold(here, capsys):
    """Affine maps move the border, so that no collar holds it."""
    assert run("compose", "-t", "warp.nii.gz", "-t", "affine.mat", "-o", "whole.h5") == 0
    assert run("repair", "whole.h5", "-o", "sampled.nii.gz", *PAIR[:2]) == 1
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith("in sampled.nii.gz: locally unfolded")
    assert "sampled.nii.gz does not pass" in said.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("warp.nii.gz", "-o", "warp.nii.gz"), "warp.nii.gz"),
        (("warp.nii.gz", "-o", "b.nii.gz", "--threshold", 1), "--threshold must be in [0, 1)"),
        (("nothing.nii.gz", "-o", "b.nii.gz"), "does not exist"),
        (("affine.mat", "-o", "b.png"), "b.png"),
        (("warp.nii.gz", "-o", "b.png"), "b.png: the name must end in"),
        (("warp.nii.gz", "-o", "b.nii.gz", "--to", "fsl"), "format must be one of"),
        (("warp.nii.gz", "-o", "b.nii.gz", "--to", "itk-h5"), "must end in .h5"),
    ],
)
def test_refused_in_one_line_before_the_work(here, words, told, capsys):
    assert run("repair", *words) == 2
    out, said = capsys.readouterr()
    assert told in said and said.count("\n") == 1
    assert out == ""
    assert not (here / "b.nii.gz").exists()
