"""make_diffeomorphic: what it gives passes, hardly moves, and is near the best there is."""

import numpy as np
import pytest
import torch
from fields.drawn import checkerboard, smooth, turned
from scipy.optimize import NonlinearConstraint, minimize

from diffreg.fields import fold_certificate, make_diffeomorphic
from diffreg.ops import jacobian_determinant


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("seed", range(4))
def test_the_result_passes_its_certificate(seed, dtype, threshold):
    u = smooth((40, 33), 14.0, seed).to(dtype)
    assert fold_certificate(u).verdict == "folded"
    found = make_diffeomorphic(u, threshold)
    assert found.displacement.dtype == dtype
    assert found.certificate == fold_certificate(found.displacement, threshold)
    assert found.certificate.passes
    moves = (found.displacement.double() - u.double())[0].norm(dim=0)
    assert found.moved_voxels == (moves > 0).sum()
    assert found.largest_move == pytest.approx(float(moves.max()))


def test_a_field_that_passes_comes_back():
    u = smooth((30, 30), 2.0, 0)
    found = make_diffeomorphic(u)
    assert found.displacement is u and found.moved_voxels == 0
    assert str(found).startswith("nothing was repaired")


def spike():
    u = torch.zeros(1, 2, 40, 40)
    u[0, 0, 20, 20] = 1.5
    return u


def test_only_the_neighbourhood_moves():
    u = spike()
    found = make_diffeomorphic(u)
    moved = (found.displacement != u)[0].any(0)
    i, j = moved.nonzero(as_tuple=True)
    assert found.moved_voxels <= 12
    assert (i - 20).abs().max() <= 2 and (j - 20).abs().max() <= 2


@pytest.mark.parametrize("seed", range(3))
def test_it_is_near_the_nearest(seed):
    """Against SciPy's constrained minimiser on a grid that it can handle."""
    u = smooth((7, 6), 2.6, seed, coarse=4).double()
    threshold = 0.1
    assert fold_certificate(u, threshold).folded_cells
    found = make_diffeomorphic(u, threshold).displacement
    start, origin = found.flatten().numpy(), u.flatten().numpy()

    def corners(x):
        return jacobian_determinant(torch.from_numpy(x).reshape(u.shape)).flatten().numpy()

    def slopes(x):
        return torch.autograd.functional.jacobian(
            lambda v: jacobian_determinant(v.reshape(u.shape)).flatten(), torch.from_numpy(x)
        ).numpy()

    best = minimize(
        lambda x: 0.5 * ((x - origin) ** 2).sum(),
        start,
        jac=lambda x: x - origin,
        method="SLSQP",
        constraints=NonlinearConstraint(corners, threshold, np.inf, jac=slopes),
        options={"maxiter": 500},
    )
    assert best.success
    ours, theirs = np.linalg.norm(start - origin), np.linalg.norm(best.x - origin)
    assert ours <= 1.1 * theirs


@pytest.mark.parametrize("amplitude", [0.6, 3.0])
def test_checkerboards(amplitude):
    assert make_diffeomorphic(checkerboard(16, amplitude), 0.1).certificate.passes


def test_noise():
    u = 6 * torch.rand(1, 2, 24, 24, generator=torch.Generator().manual_seed(0)) - 3
    assert make_diffeomorphic(u, 0.05).certificate.passes


def test_a_border_that_crosses_itself_scales_the_field():
    found = make_diffeomorphic(turned(20, 7.0))
    assert found.before.verdict == "locally unfolded"
    assert found.certificate.passes


def notch(amplitude):
    """The border's middle is pushed out, and its neighbours over it."""
    i, j = torch.meshgrid(torch.arange(60.0), torch.arange(60.0), indexing="ij")
    u = torch.zeros(1, 2, 60, 60, dtype=torch.float64)
    u[0, 1] = amplitude * torch.sin((j - 30) / 4) * torch.exp(-(((j - 30) / 8) ** 2) - i / 6)
    u[0, 0] = amplitude * torch.exp(-(((j - 30) / 6) ** 2) - i / 6)
    return u


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


def test_no_room_for_rounding():
    with pytest.raises(ValueError, match="threshold must leave room for rounding"):
        make_diffeomorphic(torch.zeros(1, 2, 4, 4), 1 - 2.0**-53)


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_thresholds_out_of_range(threshold):
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\)"):
        make_diffeomorphic(torch.zeros(1, 2, 4, 4), threshold)
