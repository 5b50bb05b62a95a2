"""make_diffeomorphic: what it gives passes, hardly moves, and is near the best there is."""

import numpy as np
import pytest
import torch
from fields.drawn import checkerboard, smooth, turned
from scipy.optimize import NonlinearConstraint, minimize

from diffreg.fields import fold_certificate, make_diffeomorphic
from diffreg.fields.lattice import Lattice, coefficients, number_of_coefficients, slope
from diffreg.ops import jacobian_determinant

SIZES = [(40, 33), (10, 11, 12)]
AMPLITUDE = {2: 14.0, 3: 2.0}


def bounds(u):
    """The smallest Bernstein coefficient of every cell."""
    return jacobian_determinant(u.double(), "bound")[0]


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", SIZES, ids=["image", "volume"])
def test_the_result_passes_its_certificate(size, dtype, threshold):
    for seed in range(2):
        u = smooth(size, AMPLITUDE[len(size)], seed).to(dtype)
        assert fold_certificate(u).verdict == "folded"
        found = make_diffeomorphic(u, threshold)
        assert found.displacement.dtype == dtype and found.displacement.shape == u.shape
        assert found.certificate == fold_certificate(found.displacement, threshold)
        assert found.certificate.passes
        moves = (found.displacement.double() - u.double())[0].norm(dim=0)
        assert found.moved_voxels == (moves > 0).sum()
        assert found.largest_move == pytest.approx(float(moves.max()))
        assert found.mean_move == pytest.approx(float(moves[moves > 0].mean()))


@pytest.mark.parametrize("amplitude", [1.4, 4.0, 8.0])
def test_volumes_however_much_of_them_folds(amplitude):
    u = smooth((10, 11, 12), amplitude, 0)
    before = fold_certificate(u)
    assert before.folded_cells and before.folded_share < 0.8
    found = make_diffeomorphic(u)
    assert found.before == before and found.certificate.passes
    # Never farther than a shift, which passes too.
    shift = u.mean((2, 3, 4), keepdim=True)
    assert (found.displacement - u).norm() <= (u - shift).norm()


def test_what_passes_can_be_repaired_again():
    once = make_diffeomorphic(smooth((10, 11, 12), 2.0, 1)).displacement
    assert make_diffeomorphic(once).displacement is once


def test_a_field_that_passes_comes_back():
    for u in (smooth((30, 30), 2.0, 0), smooth((12, 12, 12), 0.5, 0)):
        found = make_diffeomorphic(u)
        assert found.displacement is u and found.moved_voxels == 0
        assert str(found).startswith("nothing was repaired")


@pytest.mark.parametrize("dimensions", [2, 3])
def test_only_the_neighbourhood_moves(dimensions):
    u = torch.zeros(1, dimensions, *[20] * dimensions)
    u[(0, 0, *[10] * dimensions)] = 1.5
    found = make_diffeomorphic(u)
    moved = (found.displacement != u)[0].any(0).nonzero()
    assert found.moved_voxels == len(moved) <= 12
    assert (moved - 10).abs().max() <= 2


def test_two_folds_far_apart_are_repaired_as_each_alone():
    u = torch.zeros(1, 3, 8, 8, 40)
    u[0, 2, 4, 4, 8] = 1.5
    alone = make_diffeomorphic(u).displacement[..., :20]
    u[0, 0, 3, 4, 32] = -1.8
    both = make_diffeomorphic(u).displacement[..., :20]
    assert torch.equal(alone, both)


def unlike_its_bound(folds, room):
    """A cell, in the middle of others: its corners are positive, its smallest coefficient is not.

    It folds inside, or does not fold.
    """
    generator = torch.Generator().manual_seed(0)
    size, inner = 2 * room + 2, slice(room, room + 2)
    u = torch.zeros(4096, 3, size, size, size, dtype=torch.float64)
    for _ in range(100):
        drawn = 0.27 * torch.randn(4096, 3, 2, 2, 2, generator=generator)
        u[..., inner, inner, inner] = drawn
        found = jacobian_determinant(u, "bound")
        odd = found[:, room, room, room] < -0.02
        odd &= jacobian_determinant(u, "min").amin((1, 2, 3)) > 0.02
        found[:, room, room, room] = 1
        for number in (odd & (found.amin((1, 2, 3)) > 0)).nonzero()[:, 0]:
            one = u[number, None]
            if (fold_certificate(one).smallest_determinant < -0.01) == folds:
                return one
    raise AssertionError("no such cell was drawn")


def test_a_cell_that_folds_inside_only():
    u = unlike_its_bound(folds=True, room=0)
    assert fold_certificate(u).folded_inside == fold_certificate(u).folded_cells == 1
    found = make_diffeomorphic(u)
    assert found.certificate.passes
    assert float(bounds(found.displacement)[0, 0, 0]) > 0


def test_a_cell_that_the_certificate_passes_does_not_move_for_itself():
    u = torch.zeros(1, 3, 6, 6, 24, dtype=torch.float64)
    u[..., 1:5, 1:5, 1:5] = unlike_its_bound(folds=False, room=1)
    assert float(bounds(u).min()) < 0 and not fold_certificate(u).folded_cells
    u[0, 2, 3, 3, 18] = 1.5
    found = make_diffeomorphic(u)
    assert found.certificate.passes and found.moved_voxels
    assert torch.equal(found.displacement[..., :12], u[..., :12])


@pytest.mark.parametrize("place", [(0, 5, 5), (0, 0, 5), (9, 0, 9)], ids=["face", "edge", "corner"])
def test_folds_on_the_border_of_a_volume(place):
    u = torch.zeros(1, 3, 10, 10, 10)
    u[0, :, place[0], place[1], place[2]] = torch.tensor([0.4, 1.7, -1.5])
    found = make_diffeomorphic(u)
    assert found.certificate.passes and found.largest_move < 1.5
    moved = (found.displacement != u)[0].any(0).nonzero()
    assert (moved - torch.tensor(place)).abs().max() <= 3


def test_where_only_the_border_of_a_volume_fails_the_rest_stays():
    """Every plane turns within itself, in the middle by more than half a turn."""
    x = torch.arange(28.0, dtype=torch.float64) - 13.5
    angle = 3.3 * torch.exp(-(x[:, None] ** 2 + x**2) / 81)
    y = x[:, None].expand(28, 28)
    u = torch.zeros(1, 3, 4, 28, 28, dtype=torch.float64)
    u[0, 1] = y * angle.cos() - x * angle.sin() - y
    u[0, 2] = y * angle.sin() + x * angle.cos() - x
    found = make_diffeomorphic(u)
    assert found.before.verdict == "locally unfolded"
    assert found.certificate.passes and found.moved_voxels < 0.6 * u[0, 0].numel()
    assert torch.equal(found.displacement[..., :4], u[..., :4])


def test_a_volume_of_one_plane_is_repaired_as_an_image():
    image = smooth((24, 22), 8.0, 0)
    volume = torch.cat([torch.full((1, 1, 24, 22), 7.0), image], 1)[:, :, None]
    flat, found = make_diffeomorphic(image), make_diffeomorphic(volume)
    assert found.certificate.passes and found.moved_voxels == flat.moved_voxels
    assert torch.equal(found.displacement[0, 1:, 0], flat.displacement[0])
    assert bool((found.displacement[0, 0] == 7).all())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_result_is_on_the_device_of_what_was_given():
    u = smooth((10, 11, 12), 2.0, 0)
    found = make_diffeomorphic(u.cuda()).displacement
    assert found.is_cuda and torch.equal(found.cpu(), make_diffeomorphic(u).displacement)


def nearest(u, threshold, start):
    """By SciPy's constrained minimiser, whose constraints are all Bernstein coefficients."""
    lattice = Lattice(tuple(u.shape[2:]))
    inner = np.ravel_multi_index(np.indices([n - 1 for n in u.shape[2:]]), u.shape[2:]).ravel()
    vertices = lattice.vertices(inner)
    origin = u.flatten().numpy()

    def cells(x):
        return x.reshape(u.shape[1], -1)[:, vertices]

    def slopes(x):
        found = []
        for number in range(number_of_coefficients(u.shape[1])):
            along = slope(cells(x), number)[1]  # (D, 2^D, cells)
            rows = np.zeros((len(inner), *x.reshape(u.shape[1], -1).shape))
            for k, corner in enumerate(vertices):
                rows[np.arange(len(inner)), :, corner] += along[:, k].T
            found.append(rows.reshape(len(inner), -1))
        return np.concatenate(found)

    best = minimize(
        lambda x: 0.5 * ((x - origin) ** 2).sum(),
        start.flatten().numpy(),
        jac=lambda x: x - origin,
        method="SLSQP",
        constraints=NonlinearConstraint(
            lambda x: coefficients(cells(x)).ravel(), threshold, np.inf, jac=slopes
        ),
        options={"maxiter": 300},
    )
    assert best.success
    return float(np.linalg.norm(best.x - origin))


@pytest.mark.parametrize("seed", [0, 1, 2, 6, 8, 10])
def test_it_is_near_the_nearest(seed):
    """On a grid that SciPy can handle, up to a third of whose cells fold."""
    u = smooth((7, 6), 2.6, seed, coarse=4).double()
    assert fold_certificate(u, 0.1).folded_cells
    found = make_diffeomorphic(u, 0.1).displacement
    assert float((found - u).norm()) <= 1.03 * nearest(u, 0.1, found)


@pytest.mark.parametrize("seed", range(3))
def test_volumes_are_near_the_nearest(seed):
    """Of an inner fold: SciPy knows no collar."""
    u = torch.zeros(1, 3, 6, 6, 6, dtype=torch.float64)
    u[..., 1:5, 1:5, 1:5] = smooth((4, 4, 4), 1.2, seed, coarse=3)
    assert fold_certificate(u, 0.1).folded_cells >= 3
    found = make_diffeomorphic(u, 0.1).displacement
    assert float((found - u).norm()) <= 1.1 * nearest(u, 0.1, found)


@pytest.mark.parametrize("amplitude", [0.6, 3.0])
def test_checkerboards(amplitude):
    assert make_diffeomorphic(checkerboard(16, amplitude), 0.1).certificate.passes


@pytest.mark.parametrize("size", [(24, 24), (9, 8, 9)])
def test_noise(size):
    u = 6 * torch.rand(1, len(size), *size, generator=torch.Generator().manual_seed(0)) - 3
    assert make_diffeomorphic(u, 0.05).certificate.passes


@pytest.mark.parametrize("size", [(6, 7), (3, 4, 5)])
def test_the_slopes_of_the_coefficients(size):
    """Those of the operator's bound, which is the smallest, and of differences."""
    u = smooth(size, 1.0, 0, coarse=3).double()
    flat = u.numpy().reshape(len(size), -1)
    cells = np.arange(int(np.prod(size))).reshape(size)[tuple([slice(-1)] * len(size))].ravel()
    here = flat[:, Lattice(size).vertices(cells)]
    values = coefficients(here)
    assert np.allclose(values.min(0), bounds(u).flatten().numpy(), atol=1e-12)
    step = 1e-6 * np.random.default_rng(0).standard_normal(here.shape)
    for number, value in enumerate(values):
        again, along = slope(here, number)
        change = coefficients(here + step)[number] - coefficients(here - step)[number]
        assert np.allclose(again, value, atol=1e-12)
        assert np.allclose(change, 2 * (along * step).sum((0, 1)), atol=1e-10)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_border_that_crosses_itself_scales_the_field(dimensions):
    u = turned(20 if dimensions == 2 else 12, 7.0)
    if dimensions == 3:
        u = torch.cat([torch.zeros_like(u[:, :1]), u], 1)[:, :, None].repeat(1, 1, 4, 1, 1)
    found = make_diffeomorphic(u)
    assert found.before.verdict == "locally unfolded"
    assert found.certificate.passes


def notch(amplitude):
    """The border's middle is pushed out, and its neighbours over it."""
    i, j = torch.meshgrid(torch.arange(60.0), torch.arange(60.0), indexing="ij")
    u = torch.zeros(1, 2, 60, 60, dtype=torch.float64)
    u[0, 1] = amplitude * torch.sin((j - 30) / 4) * torch.exp(-(((j - 30) / 8) ** 2) - i / 6)
    u[0, 0] = amplitude * torch.exp(-(((j - 30) / 6) ** 2) - i / 6)
    return u


def test_a_shift_of_a_volume_changes_next_to_nothing():
    u = torch.zeros(1, 3, 8, 8, 8, dtype=torch.float64)
    u[0, 0, 4, 4, 4] = 1.5
    here, there = make_diffeomorphic(u), make_diffeomorphic(u + 200)
    assert there.moved_voxels == here.moved_voxels
    assert there.largest_move == pytest.approx(here.largest_move, rel=1e-6)


def test_a_shift_changes_nothing():
    u = notch(6.0)
    assert not fold_certificate(u).passes
    shift = torch.tensor([200.0, -70.0]).reshape(1, 2, 1, 1)
    here, there = make_diffeomorphic(u), make_diffeomorphic(u + shift)
    assert here.largest_move < 6
    assert there.largest_move == pytest.approx(here.largest_move, rel=1e-3)


def test_half_types_that_hold_little_are_done_with_soon():
    u = (smooth((48, 48), 8.0, 0) + 100).bfloat16()  # half a voxel is the least it holds
    assert make_diffeomorphic(u).certificate.passes


@pytest.mark.parametrize("scale", [1e5, 1e60, 1e160])
@pytest.mark.parametrize("size", [(9, 9), (5, 4, 6)])
def test_values_beyond_all_measure_are_made_smaller(size, scale):
    assert make_diffeomorphic(scale * smooth(size, 1.0, 0).double()).certificate.passes


def test_no_room_for_rounding():
    with pytest.raises(ValueError, match="threshold must leave room for rounding"):
        make_diffeomorphic(torch.zeros(1, 2, 4, 4), 1 - 2.0**-53)


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_thresholds_out_of_range(threshold):
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\)"):
        make_diffeomorphic(torch.zeros(1, 2, 4, 4), threshold)
