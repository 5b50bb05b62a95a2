"""convert, compose, invert, points, apply -t, certify and info of other tools' transforms."""

from pathlib import Path

import drawn_transforms as drawn
import nibabel as nib
import numpy as np
import pytest
import torch

from diffreg.cli.main import main
from diffreg.cli.steps import parsed
from diffreg.data.grid import Grid
from diffreg.transforms import Affine, Field, compose, read, resample, write

SIZE = (12, 13, 11)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two oblique images, an affine map and a field between them, in ITK's files."""
    place = tmp_path_factory.mktemp("commands")
    rng = np.random.default_rng(3)
    fixed = drawn.write_pair(place, rng, SIZE)
    write(place / "warp.nii.gz", drawn.field(rng, fixed, 0.8))
    write(place / "affine.mat", drawn.affine(rng, 0.08, 1.0))
    return place


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def run(*words):
    return main([str(word) for word in words])


PAIR = ("--fixed", "fixed.nii.gz", "--moving", "moving.nii.gz")
BOTH = ("-t", "warp.nii.gz", "-t", "affine.mat")


def points_of(fixed):
    rng = np.random.default_rng(0)
    file = nib.load(fixed)
    voxels = rng.uniform(3, np.array(file.shape) - 4, (20, 3))
    return voxels @ file.affine[:3, :3].T + file.affine[:3, 3]


def test_compose_is_ants_order_and_keeps_the_parts(here, capsys):
    assert run("compose", *BOTH, "-o", "whole.h5") == 0
    said = capsys.readouterr()
    assert "moving <- affine.mat <- warp.nii.gz <- fixed" in said.err
    assert said.out.startswith("whole.h5: itk-h5, ")
    points = points_of("fixed.nii.gz")
    whole, warp, affine = (read(name) for name in ("whole.h5", "warp.nii.gz", "affine.mat"))
    assert len(whole.steps) == 2
    assert np.abs(whole(points) - affine(warp(points))).max() < 1e-5


@pytest.mark.parametrize(
    ("name", "format_"),
    [
        ("fsl.nii.gz", "fsl-warp-relative"),
        ("fsl_abs.nii.gz", "fsl-warp-absolute"),
        ("nifty.nii.gz", "niftyreg-deformation"),
        ("free.nii.gz", "freesurfer-warp"),
        ("l2r.nii.gz", "learn2reg"),
        ("itk.nii.gz", None),
    ],
)
def test_there_and_back_through_a_format(here, name, format_, capsys):
    """The whole chain on the fixed grid, and the image that comes of it."""
    to = ["--to", format_] if format_ else []
    assert run("compose", *BOTH, "-o", name, *to, *PAIR) == 0
    assert run("convert", name, "back.h5", *(["--from", format_] if format_ else []), *PAIR) == 0
    named = f"{format_}:{name}" if format_ else name
    assert run("apply", "-t", named, "moving.nii.gz", *PAIR[:2], "-o", "a.nii.gz", "--fill", 0) == 0
    assert run("certify", name, *(["--from", format_] if format_ else []), *PAIR) == 0
    out = capsys.readouterr().out
    assert f"{name}: {format_ or 'itk-field'}" in out
    assert f"{name}: homeomorphism" in out.splitlines()[-1]
    whole = compose([read("warp.nii.gz"), read("affine.mat")])
    file = nib.load("fixed.nii.gz")
    voxels = np.random.default_rng(0).integers(0, file.shape, (40, 3))
    points = voxels @ file.affine[:3, :3].T + file.affine[:3, 3]
    assert np.abs(read("back.h5")(points) - whole(points)).max() < 1e-4
    exact = resample("moving.nii.gz", "fixed.nii.gz", whole, "linear", 0.0).data[0, 0].numpy()
    apart = np.abs(nib.load("a.nii.gz").get_fdata() - exact)
    assert (apart > 1e-2).sum() <= 2


def test_an_affine_goes_to_fsl_and_back_and_must_be_named(here, capsys):
    assert run("convert", "affine.mat", "flirt.mat", "--to", "fsl-flirt", *PAIR) == 0
    assert run("info", "flirt.mat") == 2
    said = capsys.readouterr().err
    assert "name its format, one of fsl-flirt, niftyreg-affine, greedy: fsl-flirt:flirt.mat" in said
    assert "on the command line, format= in Python" in said
    assert run("info", "fsl-flirt:flirt.mat", *PAIR) == 0
    assert run("convert", "flirt.mat", "again.tfm", "--from", "fsl-flirt", *PAIR) == 0
    points = points_of("fixed.nii.gz")
    assert np.abs(read("again.tfm")(points) - read("affine.mat")(points)).max() < 1e-5


def test_two_mirrors_are_none(here, capsys):
    mirror = Affine(np.diag([-1.0, 1, 1, 1]))
    write("twice.h5", compose([mirror, read("warp.nii.gz"), mirror]))
    assert run("certify", "twice.h5") == 0
    assert "mirrors" not in capsys.readouterr().out


def test_points_of_the_way_back_are_of_the_moving_image(here, capsys):
    np.savetxt("there.csv", np.ones((2, 3)), delimiter=",", header="x,y,z", comments="")
    assert run("points", "there.csv", "-t", "affine.mat,-1", "-o", "back.csv") == 0
    said = capsys.readouterr()
    assert "2 points, from the transform's moving image to its fixed one" in said.out
    assert "fixed <- inverse of affine.mat <- moving" in said.err


def test_the_way_back_needs_the_moving_images_grid(here, capsys):
    assert run("compose", *BOTH, "-o", "whole.h5") == 0
    assert run("invert", "whole.h5", "-o", "one.nii.gz", "--fixed", "fixed.nii.gz") == 2
    assert (
        "lies on the moving image's grid, as the way back does: --moving" in capsys.readouterr().err
    )
    assert run("invert", "whole.h5", "-o", "one.nii.gz", "--moving", "moving.nii.gz") == 0


def test_invert_and_its_residual(here, capsys):
    assert run("invert", "warp.nii.gz", "-o", "inverse.nii.gz") == 0
    said = capsys.readouterr().err
    assert "fixed <- inverse of warp.nii.gz <- moving" in said
    assert "residual of the inverse: " in said and "mm at its voxels" in said
    points, warp = points_of("fixed.nii.gz"), read("warp.nii.gz")
    back = read("inverse.nii.gz")(warp(points))
    assert np.abs(back - points).max() < 0.3
    assert run("compose", *BOTH, "-o", "whole.h5") == 0
    assert run("invert", "whole.h5", "-o", "whole_back.h5") == 0
    assert (
        run("invert", "whole.h5", "-o", "back_fsl.nii.gz", "--to", "fsl-warp-relative", *PAIR) == 0
    )
    there, back = read("whole.h5")(points), read("whole_back.h5")
    assert np.abs(back(there) - points).max() < 0.3
    swapped = {"fixed": "moving.nii.gz", "moving": "fixed.nii.gz"}
    flat = read("back_fsl.nii.gz", "fsl-warp-relative", **swapped)
    inside = flat.holds(there)
    assert inside.sum() > 3 and np.abs(flat(there) - points)[inside].max() < 0.6


def test_points_follow_and_those_outside_are_counted(here, capsys):
    points = points_of("fixed.nii.gz")
    lps = np.vstack([points, [900.0, 0, 0]]) * [-1, -1, 1]
    np.savetxt("points.csv", lps, delimiter=",", header="x,y,z", comments="", fmt="%.9g")
    assert run("points", "points.csv", *BOTH, "-o", "moved.csv") == 0
    said = capsys.readouterr()
    assert "1 of 21 points lie outside the grid of a field" in said.err
    assert (
        "21 points, from the transform's fixed image to its moving one (those of an inverse"
        in said.out
    )
    assert "CSV of ANTs, LPS mm" in said.out
    found = np.loadtxt("moved.csv", delimiter=",", skiprows=1) * [-1, -1, 1]
    whole = compose([read("warp.nii.gz"), read("affine.mat")])
    assert np.abs(found[:20] - whole(points)).max() < 1e-5
    assert run("points", "points.csv", *BOTH, "-o", "moved.fcsv") == 2


def test_info_of_each_part(here, capsys):
    assert run("compose", *BOTH, "-o", "whole.h5") == 0
    capsys.readouterr()
    assert run("info", "whole.h5") == 0
    said = capsys.readouterr().out
    for words in (
        "whole.h5: itk-h5",
        "stored: fixed to moving, LPS mm, the last one stored is applied first",
        "read as: points of the fixed image to the moving one, RAS mm",
        "field: 12 x 13 x 11 voxels of",
        "smallest determinant",
        "affine: turned by",
        "determinant",
    ):
        assert words in said


def test_certify_of_a_chain_says_where_it_mirrors(here, capsys):
    mirror = np.diag([-1.0, 1, 1, 1])
    write("mirrored.h5", compose([read("warp.nii.gz"), Affine(mirror)]))
    assert run("certify", "mirrored.h5") == 1
    said = capsys.readouterr().out
    assert "homeomorphism" in said and "the affine map mirrors: its determinant is -1" in said


def test_certify_judges_the_whole_map_in_mm(here, capsys):
    """Twice as small along every axis: an eighth of every determinant of the warp."""
    write("small.h5", compose([read("warp.nii.gz"), Affine(np.diag([0.5, 0.5, 0.5, 1]))]))
    assert run("certify", "warp.nii.gz", "--threshold", 0.3) == 0
    assert run("certify", "small.h5", "--threshold", 0.3) == 1
    said = capsys.readouterr().out.splitlines()
    smallest = float(said[0].partition("smallest determinant ")[2].split()[0])
    assert said[-1].startswith("in RAS mm: the determinant of the whole map is at least ")
    assert float(said[-1].split()[-1]) == pytest.approx(smallest / 8, rel=1e-2)
    assert run("certify", "affine.mat") == 0
    assert "the determinant of the whole map is " in capsys.readouterr().out


def test_a_step_that_is_inverted_leads_the_other_way(here):
    """FSL's files mean nothing without the images, which are exchanged then."""
    assert run("convert", "affine.mat", "flirt.mat", "--to", "fsl-flirt", *PAIR) == 0
    swapped = ("--fixed", "moving.nii.gz")
    for name, out in (("affine.mat", "itk.nii.gz"), ("fsl-flirt:flirt.mat", "fsl.nii.gz")):
        words = ["-t", f"[{name},1]", "fixed.nii.gz", *swapped, "-o", out]
        assert run("apply", *words, "--fill", 0) == 0
    itk, fsl = (nib.load(name).get_fdata() for name in ("itk.nii.gz", "fsl.nii.gz"))
    assert np.ptp(itk) > 50 and (np.abs(itk - fsl) > 1e-2).sum() <= 2


def test_formats_are_named_in_three_ways(here, capsys):
    assert run("convert", "affine.mat", "greedy.mat", "--to", "greedy") == 0
    capsys.readouterr()
    for words in (["info", "greedy:greedy.mat"], ["info", "greedy.mat", "--from", "greedy"]):
        assert run(*words) == 0
        assert "greedy, c3d, ITK-SNAP" in capsys.readouterr().out
    assert run("certify", "greedy:greedy.mat") == 0
    assert run("convert", "greedy.mat", "a.mat", "--from", "gredy") == 2
    assert "format must be one of itk-text" in capsys.readouterr().err
    assert run("info", "gredy:greedy.mat") == 2
    assert "'gredy' is no format: one of itk-text" in capsys.readouterr().err
    assert run("convert", ".", "a.h5", "--from", "greedy") == 2
    assert "is a folder of register, which has no format greedy" in capsys.readouterr().err


def test_a_series_is_applied_whole(here):
    moving = nib.load("moving.nii.gz")
    series = np.stack(
        [moving.get_fdata(dtype=np.float32), 2 * moving.get_fdata(dtype=np.float32)], -1
    )
    nib.save(nib.Nifti1Image(series, moving.affine), "series.nii.gz")
    assert run("apply", *BOTH, "series.nii.gz", *PAIR[:2], "-o", "s.nii.gz", "--fill", 0) == 0
    found = nib.load("s.nii.gz").get_fdata()
    assert found.shape == (*SIZE, 2) and np.allclose(found[..., 1], 2 * found[..., 0], rtol=1e-5)
    assert run("apply", *BOTH, "series.nii.gz", *PAIR[:2], "-o", "t.nii.gz", "--time", 1) == 0
    assert nib.load("t.nii.gz").shape == SIZE


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("apply moving.nii.gz -o a.nii.gz", "apply takes -t FILE, once or more, --fixed IMAGE"),
        ("apply -t affine.mat moving.nii.gz -o a.nii.gz", "apply -t takes --fixed IMAGE"),
        ("apply -t none.h5 --fixed fixed.nii.gz moving.nii.gz -o a.nii.gz", "none.h5 does not ex"),
        ("apply -t affine.mat --fixed fixed.nii.gz moving.nii.gz -o no/a.nii.gz", "no does not ex"),
        ("convert affine.mat flirt.txt --to fsl-flirt", "fixed"),
        ("convert affine.mat a.xyz", "the format must be named (--to, format=)"),
        ("convert affine.mat a.mat --to fls", "format must be one of itk-text"),
        ("convert affine.mat no/a.tfm", "no does not exist"),
        ("compose -t warp.nii.gz -t affine.mat -o a.mat", "one affine map"),
        ("points none.csv -t affine.mat -o b.csv", "none.csv does not exist"),
        ("info fixed.nii.gz", "fixed.nii.gz is no displacement file"),
        ("invert fixed.nii.gz -o a.nii.gz", "fixed.nii.gz is no displacement file"),
    ],
)
def test_a_mistake_is_one_line(here, capsys, words, message):
    assert run(*words.split()) == 2
    said = capsys.readouterr()
    assert message in said.err.splitlines()[-1] and "Traceback" not in said.err
    assert not said.out


def test_a_field_that_misses_the_image_is_no_quiet_identity(here, capsys):
    far = nib.load("fixed.nii.gz")
    affine = far.affine.copy()
    affine[:3, 3] += 500
    nib.save(nib.Nifti1Image(np.asarray(far.dataobj), affine), "far.nii.gz")
    words = ["apply", *BOTH, "--fixed", "far.nii.gz", "moving.nii.gz", "-o", "b.nii.gz"]
    assert run(*words) == 2
    assert "moves nothing here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [(("no.png",), "no.png: the name must end in"), (("no.h5", "--to", "fsl"), "format must be")],
)
def test_where_nothing_can_be_written_nothing_is_inverted(here, words, told, monkeypatch, capsys):
    monkeypatch.setattr(Field, "inverse", lambda self: pytest.fail("it was inverted"))
    assert run("invert", "warp.nii.gz", "-o", *words) == 2
    assert told in capsys.readouterr().err


def test_a_folding_field_is_not_inverted(here, capsys):
    u = torch.zeros(1, 3, 6, 6, 6)
    u[0, 0, 3, 3, 3] = 2.5
    write("folded.nii.gz", Field(u, Grid((6, 6, 6), np.eye(4))))
    assert run("invert", "folded.nii.gz", "-o", "no.nii.gz") == 2
    assert "there is no inverse where a field folds" in capsys.readouterr().err


def test_ways_to_name_a_step():
    assert parsed("a,b.mat") == ("a,b.mat", None, False)
    assert parsed("a.mat,-1") == ("a.mat", None, True)
    assert parsed("[a.mat,0]") == ("a.mat", None, False)
    assert parsed("[greedy:a.mat, 1]") == ("a.mat", "greedy", True)
    assert parsed("itk-text:[a.tfm,1]") == ("a.tfm", "itk-text", True)
    assert parsed("flow.npz:vol") == ("flow.npz:vol", None, False)


@pytest.mark.parametrize(
    ("words", "out"),
    [
        ("apply -t affine.mat moving.nii.gz --fixed fixed.nii.gz -o", "moving.nii.gz"),
        ("apply -t affine.mat moving.nii.gz --fixed fixed.nii.gz -o", "fixed.nii.gz"),
        ("apply -t [warp.nii.gz,1] moving.nii.gz --fixed fixed.nii.gz -o", "warp.nii.gz"),
        ("apply warp.nii.gz moving.nii.gz -o", "./moving.nii.gz"),
        ("convert itk-matlab:affine.mat", "affine.mat"),
        ("compose -t warp.nii.gz -t affine.mat --fixed fixed.nii.gz -o", "warp.nii.gz"),
        ("invert warp.nii.gz --fixed fixed.nii.gz --moving moving.nii.gz -o", "warp.nii.gz"),
        ("points points.csv -t affine.mat -o", "points.csv"),
    ],
)
def test_what_is_read_is_not_overwritten(words, out, here, capsys):
    Path("points.csv").write_text("x,y,z\n1,2,3\n")
    before = Path(out).read_bytes()
    assert run(*words.split(), out) == 2
    assert f"{Path(out)} is what is read; the output needs another" in capsys.readouterr().err
    assert Path(out).read_bytes() == before


def test_a_folder_of_results_is_not_overwritten_either(here, capsys):
    out = here / "out"
    out.mkdir(exist_ok=True)
    for name, given in (("displacement.nii.gz", "warp.nii.gz"), ("affine.mat", "affine.mat")):
        (out / name).write_bytes((here / given).read_bytes())
    before = (out / "displacement.nii.gz").read_bytes()
    for words in ("apply out moving.nii.gz", "apply -t out moving.nii.gz --fixed fixed.nii.gz"):
        assert run(*words.split(), "-o", "out/displacement.nii.gz") == 2
        assert "out/displacement.nii.gz is what is read" in capsys.readouterr().err
    assert (out / "displacement.nii.gz").read_bytes() == before
