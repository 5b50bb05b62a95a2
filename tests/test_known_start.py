"""`--start` and `start=`: what another tool found, gone on from."""

import nibabel as nib
import numpy as np
import pytest
import torch
from coarse import coarse_heads

import diffreg
from diffreg.cli.main import main
from diffreg.data.grid import Grid
from diffreg.data.prepare import PairImages
from diffreg.data.transforms import read_displacement
from diffreg.fields.inversion import Residual
from diffreg.registration.known_start import known_start
from diffreg.registration.smoothing import smoothed
from diffreg.registration.unfolded import is_unfolded
from diffreg.transforms import Affine, Field, compose, flattened, read, write

pytestmark = pytest.mark.usefixtures("one_thread")
TURNED = Affine(
    np.array([[0.98, -0.17, 0.02, 3], [0.17, 0.97, 0.05, -4], [0, -0.05, 1.02, 2], [0, 0, 0, 1]])
)


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    return coarse_heads(tmp_path_factory.mktemp("heads"))


@pytest.fixture(scope="module")
def images(heads):
    return [diffreg.read_image(path) for path in heads]


def smooth(grid, size=1.0, seed=3):
    """A field that bends by some voxels, on a grid."""
    draw = torch.randn(
        (1, grid.dimensions, *[4] * grid.dimensions), generator=torch.Generator().manual_seed(seed)
    )
    mode = "trilinear" if grid.dimensions == 3 else "bilinear"
    return Field(torch.nn.functional.interpolate(draw * size, grid.size, mode=mode), grid)


def split(start, images):
    return known_start(start, PairImages(*images))


def places(grid):
    index = np.stack(np.meshgrid(*map(np.arange, grid.size), indexing="ij"), -1)
    return index.reshape(-1, grid.dimensions) @ grid.axes.T + grid.affine[:3, 3]


def test_affine_and_displacement_are_the_whole_transform(images):
    """However its maps and fields follow each other, and on whatever grid the fields lie."""
    grid = images[1].grid
    wider = grid.extended([9, 9, 9], [9, 9, 9])
    oblique = Grid(wider.size, TURNED.matrix @ wider.affine)
    for chain in (
        compose([smooth(grid), TURNED]),  # as ANTs and we have it
        compose([TURNED, smooth(oblique)]),
        compose([TURNED, smooth(oblique), TURNED.inverse(), smooth(wider, seed=4)]),
    ):
        start = split(chain, images)
        field = Field(start.displacement, grid)
        points = places(grid)
        moved = compose([field, Affine(start.matrix)])(points)
        assert np.abs(moved - chain(points)).max() < 1e-4


def test_several_are_one_after_the_other(images, tmp_path):
    """As files, in the order of ANTs' fwdtransforms."""
    field = smooth(images[1].grid)
    for name, transform in (("warp.nii.gz", field), ("affine.mat", TURNED)):
        write(tmp_path / name, transform)
    found = split([tmp_path / "warp.nii.gz", str(tmp_path / "affine.mat")], images)
    assert (found.displacement - field.displacement).abs().max() < 1e-4
    assert np.allclose(found.matrix, TURNED.matrix)


def test_an_affine_start_is_the_matrix(images):
    quick = {"levels": 1, "iterations": 3}
    by_start = diffreg.register(*images, start=TURNED, **quick)
    by_matrix = diffreg.register(*images, affine=TURNED.matrix, **quick)
    assert torch.equal(by_start.displacement, by_matrix.displacement)
    assert np.array_equal(by_start.affine, TURNED.matrix)
    assert "start: given, an affine map" in repr(by_start)


def test_a_field_is_gone_on_from(images):
    """From a finished registration a step is enough, and it ends no higher than it began."""
    done = diffreg.register(*images, iterations=20)
    more = diffreg.register(*images, start=done, iterations=3)
    assert np.allclose(more.affine, done.affine)
    assert (more.displacement - done.displacement).abs().max() < 0.5
    assert done.displacement.abs().max() > 1
    assert more.metrics["after"]["ncc"] >= done.metrics["after"]["ncc"] - 1e-3
    began = more.metrics["start"]
    assert abs(began["ncc"] - done.metrics["after"]["ncc"]) < 1e-3
    assert began["folded_percent"] == 0
    assert f"start: given, with a field: NCC {began['ncc']:.3f}" in repr(more)
    assert more.metrics["objective"]["levels"] == 1 and more.metrics["objective"]["iterations"] == 3
    nothing = diffreg.register(
        *images, affine=done.affine, levels=1, iterations=3, composed_steps=0
    )
    assert more.metrics["after"]["ncc"] > nothing.metrics["after"]["ncc"] + 1e-4


def test_a_start_that_folds_is_smoothed(images, monkeypatch):
    monkeypatch.setattr("diffreg.registration.variational.make_diffeomorphic", None)  # takes long
    done = diffreg.register(*images, start=smooth(images[1].grid, 2.5), iterations=2)
    assert done.metrics["start"]["folded_percent"] > 0
    assert done.metrics["folded_percent"] == 0
    assert "smoothed there first" in repr(done)


def test_all_cells_are_a_hundred_percent(images):
    mirrored = Affine(np.diag([-1.0, 1, 1, 1]))
    begun = [flattened(mirrored, images[1].grid), Affine(np.eye(4))]
    done = diffreg.register(*images, start=begun, iterations=1)
    assert "100 % of its cells folded" in repr(done)
    done.metrics["folded_percent"] = 100.0
    assert "100 % of the cells folded" in repr(done)
    assert "; 100 % of them" in str(Residual(0.0, 0.0, 1.0))


@pytest.mark.parametrize("size", [(30, 31), (22, 13, 14), (20, 21, 1), (20, 2, 5)])
def test_smoothing_leaves_no_fold_and_the_rest_as_it_was(size):
    """The repair of `register_variational`, a hundred times as long, finds nothing to do."""
    u = torch.zeros(1, len(size), *size)
    u[(0, 0, 4, *[1] * (len(size) - 2), 0)] = 3  # beyond its neighbours
    found = smoothed(u)
    assert is_unfolded(found) and not is_unfolded(u)
    assert torch.equal(found[:, :, 18:], u[:, :, 18:])
    assert smoothed(found) is found


@pytest.mark.parametrize("size", [(30, 31), (12, 13, 14)])
@pytest.mark.parametrize("kind", ["torn", "mirrored", "noise"])
def test_smoothing_ends(size, kind):
    along = torch.arange(float(size[0])).reshape(-1, *[1] * (len(size) - 1)).expand(size)
    u = torch.zeros(1, len(size), *size)
    u[0, 0] = {"torn": 40.0 * (along < 6), "mirrored": -2 * along, "noise": 0}[kind]
    if kind == "noise":
        u = 9 * torch.randn(u.shape, generator=torch.Generator().manual_seed(3))
    assert not is_unfolded(u) and is_unfolded(smoothed(u))


def test_a_field_with_an_affine_map_in_it_is_taken_apart(images):
    """As FSL, elastix and NiftyReg have it: what is compared, judged and priced is the warp."""
    grid = images[1].grid
    turned = Affine(TURNED.matrix @ np.diag([1, -1, 1, 1.0]))
    for affine in (TURNED, turned):
        whole = compose([smooth(grid, 0.3), affine])
        start = split(flattened(whole, grid), images)
        assert np.abs(start.matrix - affine.matrix)[:3, :3].max() < 0.1
        assert start.displacement.abs().max() < 2
        moved = compose([Field(start.displacement, grid), Affine(start.matrix)])(places(grid))
        assert np.abs(moved - whole(places(grid))).max() < 1e-3


def test_a_field_of_a_part_of_the_grid_tears_nothing(images):
    """Beyond it the affine map in it holds, too."""
    grid = images[1].grid
    part = flattened(
        TURNED, Grid(tuple(n - 8 for n in grid.size), grid.extended([-4] * 3, [-4] * 3).affine)
    )
    with pytest.warns(UserWarning, match="outside the grid of a field"):
        start = split(part, images)
    np.testing.assert_allclose(start.matrix, TURNED.matrix, atol=1e-4)
    assert start.displacement.abs().max() < 1e-3


def test_a_field_that_leads_to_a_point_has_no_affine_map(images):
    grid = images[1].grid
    index = torch.stack(torch.meshgrid(*[torch.arange(n) for n in grid.size], indexing="ij"))
    assert np.array_equal(split(Field(5.0 - index[None], grid), images).matrix, np.eye(4))


def test_a_field_that_leads_the_other_way_is_a_warning(images):
    done = diffreg.register(*images, iterations=20)
    field, affine = done.transform.steps
    wrong = diffreg.register(*images, start=[field.inverse(), affine], iterations=1)
    assert any("it may lead the other way" in warning for warning in wrong.warnings)
    right = diffreg.register(*images, start=done, iterations=1)
    assert not any("it may lead the other way" in warning for warning in right.warnings)


def test_slices():
    x = np.linspace(-1, 1, 40)
    blob = lambda at: np.exp(-((x[:, None] - at) ** 2 + x**2) / 0.2)  # noqa: E731
    shift = Field(torch.full((1, 2, 40, 40), 2.0), diffreg.image(blob(0)).grid)
    done = diffreg.register(blob(0.1), blob(0), start=shift, iterations=1)
    grid = diffreg.image(blob(0)).grid
    moved = done.transform(places(grid)) - places(grid)
    assert np.abs(moved.mean(0)[:2] - 2).max() < 0.7
    assert done.displacement.abs().max() < 1


@pytest.mark.parametrize(
    "more, words",
    [
        ({"affine": "rigid"}, "leave affine out"),
        ({"affine": np.eye(4)}, "leave affine out"),
        ({"search": True}, "search looks for an affine start"),
        ({"levels": 3}, "leave out levels, got 3"),
        ({"both_ways": True}, "leave out both_ways"),
        ({"network": lambda moving, fixed: None}, "leave out the network"),
        ({"iterations": (40, 20)}, "iterations must be one number"),
    ],
)
def test_what_does_not_go_with_it_is_refused(images, more, words):
    with pytest.raises(ValueError, match=words):
        diffreg.register(*images, start=smooth(images[1].grid), **more)


def test_what_is_no_start_is_refused(images, tmp_path):
    with pytest.raises(TypeError, match="a matrix is for affine"):
        diffreg.register(*images, start=np.eye(4))
    with pytest.raises(FileNotFoundError, match="nothing"):
        diffreg.register(*images, start=tmp_path / "nothing.mat")
    grid = images[1].grid
    beyond = Field(torch.full((1, 3, *grid.size), 500.0), grid)
    far = Affine(np.diag([1, 1, 1, 1.0]) + np.pad(np.full((3, 1), 5e3), ((0, 1), (3, 0))))
    for start in (beyond, far, compose([beyond, TURNED])):
        with pytest.raises(
            ValueError, match="start, as a transform from the fixed image to the mo"
        ):
            diffreg.register(*images, start=start)
    with pytest.raises(ValueError, match="start must be a transform or several, got none"):
        diffreg.register(*images, start=[])


def register(heads, out, *more):
    words = [str(word) for word in (*heads, "-o", out, *more)]
    return main(["register", *words, "--no-report", "--no-composites"])


def test_of_other_tools_on_the_command_line(heads, images, tmp_path, capsys):
    quick = "--levels", 1, "--iterations", 2
    write(tmp_path / "flirt.mat", TURNED, "fsl-flirt", *reversed(images))
    write(tmp_path / "back.lta", TURNED.inverse(), "freesurfer-lta", *images)
    found = []
    for name in (f"fsl-flirt:{tmp_path / 'flirt.mat'}", f"[{tmp_path / 'back.lta'},1]"):
        out = tmp_path / f"out{len(found)}"
        assert register(heads, out, "--start", name, *quick) == 0
        np.testing.assert_allclose(read(out / "affine.mat").matrix, TURNED.matrix, atol=1e-5)
        found.append(read_displacement(out / "displacement.nii.gz")[0])
    assert (found[0] - found[1]).abs().max() < 0.02
    said = capsys.readouterr().err
    assert "moving <- flirt.mat <- fixed" in said
    assert "moving <- inverse of back.lta <- fixed" in said


def test_a_warp_and_its_affine_on_the_command_line(heads, tmp_path):
    """As antsApplyTransforms takes them, or as the folder that holds both."""
    assert register(heads, tmp_path / "out", "--iterations", 5) == 0
    out = tmp_path / "out"
    two = ["--start", out / "displacement.nii.gz", "--start", out / "affine.mat"]
    assert register(heads, tmp_path / "two", *two, "--iterations", 2) == 0
    assert register(heads, tmp_path / "one", "--start", tmp_path / "out", "--iterations", 2) == 0
    two, one = (nib.load(tmp_path / n / "displacement.nii.gz").get_fdata() for n in ("two", "one"))
    assert np.abs(two - one).max() < 1e-3


def test_of_a_manifest_it_is_refused(heads, tmp_path, capsys):
    assert (
        main(["register", str(heads[0].parent), "-o", str(tmp_path / "o"), "--start", "a.mat"]) == 2
    )
    assert "--start is of one pair" in capsys.readouterr().err
