"""Pairs of points that are to meet, in mm, beside what the images say."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from test_registration import FIXED, GRID, MOVING, QUICK, SHAPE, stored
from torch.utils._python_dispatch import TorchDispatchMode

from diffreg.cli.main import main
from diffreg.data.geometry import Image
from diffreg.data.points import read_landmarks
from diffreg.registration import register
from diffreg.registration.landmarks import Landmarks, Pins, Pull
from diffreg.registration.pyramid import levels_of

pytestmark = pytest.mark.usefixtures("one_thread")
HERE = np.array([[-9.0, 4.0, 0.0], [8.0, 7.0, 0.0], [3.0, -11.0, 0.0]])
THERE = HERE + np.array([3.0, -2.0, 0.0])
NCC = {"similarity": "ncc", "affine": "none", **QUICK}


def changed(points, row, values):
    points = points.copy()
    points[row] = values
    return points


@pytest.mark.parametrize(
    ("landmarks", "error", "message"),
    [
        (HERE, TypeError, r"landmarks must be \(fixed points, moving points, weight\)"),
        ((HERE, THERE), TypeError, r"landmarks must be \(fixed points, moving points, weight\)"),
        (
            (HERE, THERE, 0),
            ValueError,
            "weight of landmarks must be .*, got 0",
        ),
        ((HERE, THERE, np.inf), ValueError, "the weight of landmarks must be .*, got inf"),
        ((HERE, THERE[:2], 1), ValueError, r"as many points in both .*\[3, 3\] and \[2, 3\]"),
        ((HERE[:0], THERE[:0], 1), ValueError, r"K >= 1, got \[0, 3\]"),
        (
            (HERE[:, :2], THERE[:, :2], 1),
            ValueError,
            r"\(K, 3\), x, y and z in RAS mm, got .*: fixed, \[.* lies in space",
        ),
        ((HERE[0], THERE[0], 1), ValueError, r"got \[3\] and \[3\]"),
        ((HERE, changed(THERE, 1, np.nan), 1), ValueError, "finite, got .*for moving point 2"),
        ((changed(HERE, 0, np.inf), THERE, 1), ValueError, "finite, got .*for fixed point 1"),
        (
            (changed(HERE, 2, (40, 0, 0)), THERE, 1),
            ValueError,
            r"lie in the fixed image: fixed point 3, \[40.0, 0.0, 0.0\] mm, is voxel \[71.5, 27.5",
        ),
        ((changed(HERE, 1, (0, 0, 9)), THERE, 1), ValueError, "fixed image: fixed point 2, .*9.0"),
    ],
)
def test_landmarks_that_are_none(landmarks, error, message):
    with pytest.raises(error, match=message):
        register(MOVING, FIXED, landmarks=landmarks, **NCC)


def test_a_network_knows_none():
    with pytest.raises(ValueError, match="landmarks is of the variational method"):
        register(MOVING, FIXED, torch.nn.Identity(), landmarks=(HERE, THERE, 1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "i,j,k\n1,2,3\n",
            "the columns must be fixed_x,fixed_y,fixed_z,moving_x,",
        ),
        ("fixed_x,fixed_y,moving_x,moving_y\n", "holds no point"),
        ("fixed_x,fixed_y,moving_x,moving_y\n1,2,3,x\n", "line 2: four numbers are needed"),
        ("fixed_x,fixed_y,moving_x,moving_y\n1,2,3,nan\n", "line 2: four numbers are needed"),
        ("fixed_x,fixed_y,moving_x,moving_y\n1,2,3\n", "line 2: there are 4 columns, but 3 fields"),
    ],
)
def test_a_file_that_is_none(text, message, tmp_path):
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_landmarks(tmp_path / "l.csv")


def test_a_column_of_names_is_left_alone(tmp_path):
    text = "fixed_x,fixed_y,label,moving_x,moving_y\n1,2,the tip,3,4\n"
    (tmp_path / "l.csv").write_text(text)
    assert [points.tolist() for points in read_landmarks(tmp_path / "l.csv")] == [
        [[1, 2]],
        [[3, 4]],
    ]


def pins(dimensions, count=5, seed=0):
    """Points inside a grid of 12 x 11 (x 10), some at its edge, and a turned grid of mm."""
    rng = np.random.default_rng(seed)
    ends = np.array([12, 11, 10])[:dimensions, None] - 1
    places = rng.uniform(0, ends, (dimensions, count))
    places[:, 0], places[:, 1] = -0.5, ends[:, 0]
    parts = places, rng.normal(5, 3, (3, count)), rng.normal(0, 1, (3, dimensions))
    return Pins(*map(torch.from_numpy, parts), weight=0.7)


def field(size):
    torch.manual_seed(0)
    return torch.randn(1, len(size), *size, dtype=torch.float64)


@pytest.mark.parametrize("size", [(12, 11), (12, 11, 10)])
def test_the_gradient_is_that_of_the_value(size):
    pull = Pull(pins(len(size)), field(size))
    u, direction = field(size), field(size).flip(2)
    gradient = torch.ones_like(u)
    value = pull.add(u, gradient)
    nothing = torch.zeros_like(u)
    ahead, behind = (pull.add(u + step * direction, nothing) for step in (1e-4, -1e-4))
    slope = ((gradient - 1) * direction).sum()  # it was added to what was there
    torch.testing.assert_close((ahead - behind) / 2e-4, slope, rtol=1e-7, atol=1e-7)
    assert value > 0 and slope != 0
    second = (ahead - 2 * value + behind) / 1e-4**2
    torch.testing.assert_close(pull.curvature(direction), second, rtol=1e-4, atol=0)


class Added(TorchDispatchMode):
    """Notes what a GPU adds in any order."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function._schema.name.startswith(("aten::index_add", "aten::scatter_add")):
            self.seen.append(function._schema.name)
        return function(*args, **(kwargs or {}))


def test_points_that_share_voxels_have_the_same_bits_at_every_run_of_a_gpu():
    places = torch.tensor([[1.0, 1.2, 1.1], [1.5, 1.4, 1.3]])
    pull = Pull(
        Pins(places, torch.rand(3, 3), torch.eye(3, 2), weight=3.0), torch.zeros(1, 2, 3, 4)
    )
    gradient = torch.zeros(1, 2, 3, 4)
    with Added() as added:
        pull.add(torch.zeros(1, 2, 3, 4), gradient)
    assert added.seen == [] and gradient.count_nonzero() == 8


def test_the_value_by_hand():
    """Half way between two voxels of displacements 1 and 3; 2 mm a voxel."""
    u = torch.zeros(1, 2, 3, 4)
    u[0, 1, 1, 1], u[0, 1, 1, 2] = 1, 3
    places, targets = torch.tensor([[1.0], [1.5]]), torch.tensor([[2.0], [6.0], [0.0]])
    pull = Pull(Pins(places, targets, 2 * torch.eye(3, 2), weight=3.0), u)
    gradient = torch.zeros_like(u)
    assert pull.add(u, gradient).item() == 3 * (2 * (1.5 + 2) - 6) ** 2
    assert gradient[0, 1, 1].tolist() == [0, 6, 6, 0]  # 2 x 3 x 2 mm x 1 mm, half of it each
    assert gradient.count_nonzero() == 2


def test_a_level_of_the_pyramid_has_the_same_value():
    """An affine displacement is itself on every level, also with a margin of the moving image."""
    fixed, moving, margin = (48, 40), (61, 50), (7, 6)
    matrix, shift = torch.tensor([[0.1, -0.2], [0.05, 0.1]]).double(), torch.tensor([1.5, -2.0])
    given = pins(2)._replace(places=torch.tensor([[9.0, 30.2], [11.4, 30.6]]).double())
    given = given._replace(targets=given.targets[:, :2])
    values = []
    for level in levels_of(fixed, moving, margin, 2):
        factor = torch.tensor(level.factors).double()[:, None, None]
        grid = torch.stack(torch.meshgrid(*map(torch.arange, level.size), indexing="ij")).double()
        whole = (grid + 0.5) * factor - 0.5
        u = torch.einsum("dk,kij->dij", matrix, whole) + shift.double()[:, None, None]
        before = torch.tensor(level.margin).double()[:, None, None]
        u = (u / factor + before)[None]
        pull = Pull(given.on(level.factors, level.margin), u)
        values.append(pull.add(u, torch.zeros_like(u)))
    assert len(values) == 2
    torch.testing.assert_close(*values)


def test_an_axis_of_one_voxel():
    u = torch.zeros(1, 2, 1, 4)
    places, targets = torch.zeros(2, 1), torch.tensor([[1.0], [2.0], [2.0]])
    gradient = torch.zeros_like(u)
    pins = Pins(places, targets, torch.eye(3, 2), weight=1.0)
    assert Pull(pins, u).add(u, gradient).item() == 9
    assert gradient[0, :, 0, 0].tolist() == [-2, -4] and gradient.count_nonzero() == 2


def test_points_meet_where_the_images_say_nothing():
    """Two equal images: the images hold still, the points pull."""
    alone = register(FIXED, FIXED, **NCC)
    assert alone.displacement.abs().max() < 1e-3 and "landmarks" not in alone.metrics
    result = register(FIXED, FIXED, landmarks=(HERE, THERE, 100.0), **NCC)
    found = result.metrics["landmarks"]
    assert found["count"] == 3 and found["weight_per_mm2"] == 100
    assert found["before_mm"] == {"mean": pytest.approx(13**0.5), "max": pytest.approx(13**0.5)}
    assert found["after_mm"]["mean"] < 0.3 and found["after_mm"]["max"] < 0.5
    np.testing.assert_allclose(result.apply(HERE), THERE, atol=0.5)
    assert result.metrics["folded_percent"] == 0


def test_a_heavier_weight_brings_them_nearer():
    after = [
        register(FIXED, FIXED, landmarks=(HERE, THERE, weight), **NCC).metrics["landmarks"]
        for weight in (0.1, 1.0, 10.0)
    ]
    light, middle, heavy = (found["after_mm"]["mean"] for found in after)
    assert 3.6 > light > middle > heavy


@pytest.mark.parametrize("turn", [(False, -1, 1), (True, 1, -1)])
def test_however_the_images_are_stored(turn):
    own = register(MOVING, FIXED, landmarks=(HERE, THERE, 1.0), **NCC).metrics["landmarks"]
    pair = stored(MOVING, *turn), stored(FIXED, *turn)
    found = register(*pair, landmarks=(HERE, THERE, 1.0), **NCC).metrics["landmarks"]
    for when in ("before_mm", "after_mm"):
        assert found[when]["mean"] == pytest.approx(own[when]["mean"], abs=0.02)


@pytest.mark.parametrize("both_ways", [False, True])
def test_after_an_affine_start_they_are_where_it_has_them(both_ways):
    """Images that are moved, and their points with them: nothing is left to pull."""
    angle = np.radians(20)
    known = np.eye(4)
    known[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    known[:2, 3] = 5, -3
    moving = Image(FIXED.data, known @ GRID)
    there = HERE @ known[:3, :3].T + known[:3, 3]
    options = {**NCC, "affine": known, "both_ways": both_ways}
    result = register(moving, FIXED, landmarks=(HERE, there, 100.0), **options)
    assert result.metrics["landmarks"]["before_mm"]["max"] < 1e-9
    assert result.displacement.abs().max() < 0.01
    if both_ways:
        assert result.metrics["inverse_consistency_mm"] < 0.01
    there = there + np.array([2.0, 1.0, 0.0])
    pulled = register(moving, FIXED, landmarks=(HERE, there, 1.0), **options)
    found = pulled.metrics["landmarks"]
    assert found["before_mm"]["mean"] == pytest.approx(5**0.5)
    assert found["after_mm"]["mean"] < 0.3
    if both_ways:  # the way back is pulled the other way
        assert pulled.metrics["inverse_consistency_mm"] < 0.3


def test_volumes():
    torch.manual_seed(0)
    noise = torch.rand(1, 1, 5, 6, 5)
    data = torch.nn.functional.interpolate(noise, (18, 20, 17), mode="trilinear")
    image = Image(data, np.diag([-2.0, 1.5, 2.0, 1.0]))
    here = np.array([[-12.0, 13.0, 15.0], [-20.0, 15.0, 18.0]])
    there = here + np.array([1.5, -1.0, 2.0])
    options = {"weights": (60, 1, 30, 3), "affine": "none", "levels": 1, "iterations": 40}
    found = register(image, image, landmarks=(here, there, 10.0), **options).metrics["landmarks"]
    assert found["after_mm"]["max"] < 0.5 < 2.6 < found["before_mm"]["mean"]


def test_of_flat_images_two_numbers_will_do():
    flat = Image(FIXED.data, GRID, ndim_in_file=2)
    landmarks = Landmarks.checked((HERE[:, :2], THERE[:, :2], 1), flat)
    found = landmarks.measured(flat, torch.zeros(1, 2, *SHAPE), np.eye(4))
    assert found["before_mm"]["mean"] == pytest.approx(13**0.5)
    result = register(flat, flat, landmarks=(HERE[:, :2], THERE[:, :2], 100.0), **NCC)
    assert result.metrics["landmarks"]["after_mm"]["mean"] < 0.3


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DIFFREG_DEBUG", raising=False)
    for name, image in (("m", MOVING), ("f", FIXED)):
        data = image.data[0, 0, :, :, None].numpy()
        nib.save(nib.Nifti1Image(data, image.affine), f"{name}.nii.gz")
    head = ",".join(f"{side}_{axis}" for side in ("fixed", "moving") for axis in "xyz")
    rows = [",".join(map(str, row)) for row in np.hstack([HERE, THERE])]
    (tmp_path / "l.csv").write_text("\n".join([head, *rows]) + "\n")
    plane, far = "fixed_x,fixed_y,moving_x,moving_y\n1,2,3,4\n", f"{head}\n900,0,0,1,2,3\n"
    (tmp_path / "plane.csv").write_text(plane)
    (tmp_path / "far.csv").write_text(far)
    pair = ("register", "m.nii.gz", "f.nii.gz", "-o", "out", "--landmarks")
    for words, message in (
        (("plane.csv", "1"), "error: plane.csv: landmarks must be (K, 3), x, y and z in RAS mm"),
        (("far.csv", "1"), "error: far.csv: landmarks must lie in the fixed image: fixed point 1"),
        (("l.csv", "-1"), "--landmarks: WEIGHT must be a finite number > 0, got '-1'"),
        (("no.csv", "1"), "no.csv does not exist"),
        (("l.csv", "1", "--checkpoint", "lunet-cardiac-mr"), "--landmarks is of the variational"),
    ):
        assert main([*pair, *words]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
    (tmp_path / "pairs.csv").write_text("moving,fixed\nm.nii.gz,f.nii.gz\n")
    assert main(["register", "pairs.csv", "-o", "out", "--landmarks", "l.csv", "1"]) == 2
    assert "--landmarks is of one pair: leave it out" in capsys.readouterr().err
    assert main([*pair, "l.csv", "10", "--iterations", "9"]) == 0
    found = json.loads((tmp_path / "out/metrics.json").read_text())["landmarks"]
    assert found["count"] == 3 and found["after_mm"]["mean"] < found["before_mm"]["mean"]
    page = (tmp_path / "out/report.html").read_text()
    assert "how far the landmarks are apart (mean TRE, mm)" in page
