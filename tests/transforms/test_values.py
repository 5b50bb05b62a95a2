"""Transforms as values: SimpleITK leads points where they do; order, inverse, refusals."""

import drawn_transforms as drawn
import numpy as np
import pytest
import torch

from diffreg.data.grid import Grid
from diffreg.system.files import FileWarning
from diffreg.transforms import Affine, Chain, Field, compose, flattened


def chain_of(rng, count):
    parts = []
    for _ in range(count):
        on = drawn.grid(rng, tuple(rng.integers(8, 14, 3)))
        parts.append(drawn.field(rng, on) if rng.random() < 0.5 else drawn.affine(rng))
    return Chain(tuple(parts))


@pytest.mark.parametrize("seed", range(6))
def test_points_are_led_where_itk_leads_them(seed):
    """Also outside the fields' grids, where nothing moves."""
    rng = np.random.default_rng(seed)
    on = drawn.grid(rng, (10, 9, 11))
    for transform in (drawn.affine(rng), drawn.field(rng, on), chain_of(rng, 12)):
        points = drawn.points(rng, on, 60, beyond=0.3)
        assert np.abs(transform(points) - drawn.itk_points(transform, points)).max() < 1e-6


@pytest.mark.filterwarnings("ignore:.*outside the grid of a field")
@pytest.mark.parametrize("seed", range(4))
def test_a_chain_on_a_grid_is_what_it_does_with_each_voxel(seed):
    rng = np.random.default_rng(seed)
    on, chain = drawn.grid(rng, (7, 8, 9)), chain_of(rng, 6)
    voxels = np.indices(on.size).reshape(3, -1).T
    points = voxels @ on.affine[:3, :3].T + on.affine[:3, 3]
    flat = flattened(chain, on, torch.float64)
    assert np.abs(flat(points) - chain(points)).max() < 1e-9
    assert np.abs(flattened(chain, on)(points) - chain(points)).max() < 1e-4


def test_both_orders():
    """`a @ b` maps x to a(b(x)), `compose([a, b])` to b(a(x))."""
    double, move = Affine(np.diag([2.0, 2, 2, 1])), np.eye(4)
    move[0, 3] = 10
    move, point = Affine(move), [[1.0, 2.0, 3.0]]
    assert (double @ move)(point).tolist() == [[22.0, 4.0, 6.0]]
    assert compose([double, move])(point).tolist() == [[12.0, 4.0, 6.0]]
    assert ((double @ move) @ double)(point).tolist() == [[24.0, 8.0, 12.0]]
    assert len(compose([double @ move, move]).parts) == 3


@pytest.mark.parametrize("axes", [2, 3])
def test_there_and_back(axes):
    rng = np.random.default_rng(axes)
    on = drawn.grid(rng, (16, 18, 17)[:axes])
    fixed = drawn.field(rng, on, 1.0)
    back = fixed.inverse()
    inner = np.stack(np.meshgrid(*[np.arange(4, n - 4) for n in on.size], indexing="ij"), -1)
    inner = inner.reshape(-1, axes)
    points = inner @ on.axes.T + on.origin
    assert back.residual.at_voxels < 1e-4
    assert np.abs(fixed(back(points)) - points).max() < 1e-4
    between = (inner[:-1] + 0.5) @ on.axes.T + on.origin
    error = np.linalg.norm(fixed(back(between)) - between, axis=1).max()
    assert 1e-4 < error <= back.residual.between_voxels + 1e-9
    chain = compose([fixed, drawn.affine(rng)])
    there = chain(points)
    assert [type(part) for part in chain.inverse().parts] == [Affine, Field]
    assert np.abs(chain(chain.inverse()(there)) - there).max() < 2 * error


@pytest.mark.parametrize("size", [(13, 6), (9, 5, 4)], ids=str)
def test_an_inverse_is_found_and_measured_some_planes_at_a_time(size, monkeypatch):
    """A shift by half the grid's length: some voxels come from beyond it in every part."""
    rng = np.random.default_rng(3)
    on = drawn.grid(rng, size)
    field = drawn.field(rng, on, 0.5)
    field.displacement[:, 1] += size[1] / 2
    whole = field.inverse()
    assert 0.2 < whole.residual.outside < 0.8
    assert whole.residual.at_voxels < 1e-6 < 1e-3 < whole.residual.between_voxels
    for planes in (1, 2):
        at_once = planes * int(np.prod(size[1:]))
        monkeypatch.setattr("diffreg.fields.inversion._AT_ONCE", at_once)
        parts = field.inverse()
        torch.testing.assert_close(parts.displacement, whole.displacement, rtol=0, atol=1e-8)
        assert parts.residual == pytest.approx(whole.residual, abs=1e-8)


def test_where_fixed_points_do_not_converge_newton_does():
    """A field that grows by 1.6 voxels a voxel across its middle: the fixed point runs away."""
    x = torch.arange(21, dtype=torch.float64) - 10
    u = torch.zeros(1, 3, 21, 4, 4, dtype=torch.float64)
    u[0, 0] = (4.0 * torch.tanh(0.4 * x) * torch.exp(-((x / 6) ** 2)))[:, None, None]
    back = Field(u, Grid((21, 4, 4), np.eye(4))).inverse()
    assert (u[0, 0, 1:] - u[0, 0, :-1]).max() > 1.4
    assert back.residual.at_voxels < 1e-4


def test_an_inverse_is_refused_where_it_folds():
    u = torch.zeros(1, 3, 6, 6, 6)
    u[0, 0, 3, 3, 3] = 2.5
    with pytest.raises(ValueError, match="there is no inverse where a field folds: folded: "):
        Field(u, Grid((6, 6, 6), np.eye(4))).inverse()


def test_a_turn_of_a_quarter_has_an_inverse():
    """No cell folds, and no collar proves that the border goes one to one: it does all the same."""
    x, y, z = torch.meshgrid(*[torch.arange(9, dtype=torch.float64) - 4] * 3, indexing="ij")
    turn = Field(torch.stack([-y - x, x - y, 0 * z])[None], Grid((9, 9, 9), np.eye(4)))
    assert turn.certificate().verdict == "locally unfolded"
    points = np.array([[3.0, 4, 2], [5, 2, 7]])
    assert np.abs(turn.inverse()(turn(points)) - points).max() < 1e-6


def test_a_slice_holds_beside_its_plane_and_not_further():
    on = Grid((4, 5), np.diag([1.0, 1.0, 2.0, 1.0]))
    shift = Field(torch.ones(1, 2, 4, 5), on)
    moved = shift([[1, 1, 0], [1, 1, 2.9], [1, 1, 3.1]])
    assert moved.tolist() == [[2, 2, 0], [2, 2, 2.9], [1, 1, 3.1]]
    flat = Field(torch.ones(1, 2, 4, 5), Grid((4, 5), np.eye(4), is_flat=True))
    assert flat([[1, 1, 90]]).tolist() == [[2, 2, 90]] and flat([[1, 1]]).tolist() == [[2, 2]]
    with pytest.raises(ValueError, match="RAS mm"):
        shift([[1, 1]])


@pytest.mark.parametrize("seed", range(8))
def test_a_grid_has_its_lower_faces_and_not_its_upper_ones(seed):
    """As ITK has it, half a voxel beyond the outer centres, whatever the affine's rounding."""
    on = drawn.grid(np.random.default_rng(seed), (4, 5, 6))
    field = Field(torch.ones(1, 3, *on.size), on)
    middle = (np.array(on.size) - 1) / 2
    for axis, length in enumerate(on.size):
        faces = np.tile(middle, (2, 1))
        faces[:, axis] = -0.5, length - 0.5
        assert field.holds(faces @ on.axes.T + on.origin).tolist() == [True, False]
        # The planes of this grid lie on the faces of voxels of the other.
        size = [1, 1, 1]
        size[axis] = length + 1
        start = np.round(middle) + 0.25
        start[axis] = -0.5
        planes = on.affine.copy()
        planes[:3, 3] += on.axes @ start
        with pytest.warns(FileWarning, match="outside the grid of a field"):
            moved = flattened(field, Grid(tuple(size), planes), torch.float64).displacement
        assert (moved[0, 0].flatten() > 0.5).tolist() == [True] * length + [False]


def test_on_a_volume_a_slice_reaches_one_and_a_half_slices_to_either_side():
    depths = np.diag([1.0, 1.0, 1.45, 1.0])
    depths[2, 3] = -2 * 1.45 * 2  # planes at -5.8, -4.35, -2.9, ... mm
    shift = Field(torch.ones(1, 2, 4, 5), Grid((4, 5), np.diag([1.0, 1.0, 2.0, 1.0])))
    with pytest.warns(FileWarning, match="44.4 % of the voxels .* outside the grid of a field"):
        moved = flattened(shift, Grid((4, 5, 9), depths)).displacement[0, 0, 1, 1]
    assert moved.tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0]


def test_voxels_that_any_field_of_a_chain_misses_are_counted():
    whole, half = Grid((8, 4, 4), np.eye(4)), Grid((4, 4, 4), np.eye(4))
    fields = [Field(torch.zeros(1, 3, *on.size), on) for on in (half, whole)]
    for chain in (compose(fields), compose(fields[::-1])):
        with pytest.warns(FileWarning, match="50 % of the voxels"):
            flattened(chain, whole)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Affine(np.zeros((4, 4))), "last row 0 0 0 1"),
        (lambda: Affine(np.diag([1.0, 1, 0, 1])), "singular"),
        (lambda: Affine(np.eye(3)), r"must be \(4, 4\), got \[3, 3\]"),
        (lambda: Affine(np.full((4, 4), np.nan)), "finite"),
        (lambda: Affine(np.eye(4)[[0, 2, 1, 3]], is_flat=True), "x-y plane of 2-D files"),
        (lambda: Chain(()), "at least one"),
        (lambda: Field(torch.ones(1, 3, 4, 4), Grid((4, 4), np.eye(4))), "on the grid of grid"),
        (lambda: Affine(np.eye(4))(np.zeros(3)), r"\(K, 3\), RAS mm"),
        (lambda: Field(torch.full((1, 2, 4, 4), np.inf), Grid((4, 4), np.eye(4))), "infinite"),
    ],
)
def test_what_is_no_transform_is_refused_in_words(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_field_that_misses_a_grid_is_refused():
    on, far = Grid((4, 4, 4), np.eye(4)), np.eye(4)
    far[:3, 3] = 100
    with pytest.raises(ValueError, match="moves nothing here: its grid and grid have no voxel"):
        flattened(Field(torch.ones(1, 3, 4, 4, 4), on), Grid((4, 4, 4), far))
