"""The fold certificate: against dense sampling, and on fields that are built to fool."""

import math

import numpy as np
import pytest
import torch
from fields.drawn import checkerboard, smooth, turned
from shapely.geometry import LinearRing

from diffreg.fields import (
    fold_certificate,
    identity_grid,
    largest_safe_scale,
    make_diffeomorphic,
)
from diffreg.fields.certificate import border
from diffreg.fields.polygon import crossing_edges
from diffreg.ops import jacobian_determinant


def sampled(u, points=9):
    """Determinants of the bilinear map inside every cell, by differences of its formula."""
    u = u[0].double().numpy()
    t = np.linspace(0, 1, points)
    s, r = t[:, None, None, None], t[None, :, None, None]
    p = u + np.stack(np.meshgrid(*(np.arange(n) for n in u.shape[1:]), indexing="ij"))
    p00, p10, p01, p11 = p[:, :-1, :-1], p[:, 1:, :-1], p[:, :-1, 1:], p[:, 1:, 1:]
    e = [(1 - r) * (p10[k] - p00[k]) + r * (p11[k] - p01[k]) for k in (0, 1)]
    f = [(1 - s) * (p01[k] - p00[k]) + s * (p11[k] - p10[k]) for k in (0, 1)]
    return e[0] * f[1] - e[1] * f[0]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("amplitude", [1.0, 4.0, 9.0])
def test_the_smallest_determinant_is_that_of_the_continuous_map(seed, amplitude):
    u = smooth((23, 31), amplitude, seed)
    found, dense = fold_certificate(u), sampled(u)
    assert found.smallest_determinant == pytest.approx(dense.min(), abs=1e-12)
    assert found.folded_cells == (dense.min((0, 1)) <= 0).sum()
    assert (found.verdict == "folded") == bool((dense <= 0).any())
    row, column = found.where
    around = dense[:, :, max(row - 1, 0) : row + 1, max(column - 1, 0) : column + 1]
    assert around.min() == pytest.approx(found.smallest_determinant, abs=1e-12)


def test_a_fold_that_central_and_forward_differences_overlook():
    u = torch.zeros(1, 2, 9, 9)
    u[0, 0, 4, 4], u[0, 1, 4, 4] = (
        0.6,
        0.6,
    )  # no forward difference reaches -1, no central one either
    along_0, along_1 = torch.diff(u, dim=2)[0, 0], torch.diff(u, dim=3)[0, 1]
    forward = jacobian_determinant(u)[0, 0]
    assert along_0.min() > -1 and along_1.min() > -1 and forward.min() < 0
    central = torch.stack(torch.gradient(u[0], dim=(1, 2)))
    determinant = (1 + central[0, 0]) * (1 + central[1, 1]) - central[0, 1] * central[1, 0]
    assert determinant.min() > 0
    assert fold_certificate(u).verdict == "folded"


def test_a_checkerboard_folds_though_its_central_differences_are_zero():
    assert fold_certificate(checkerboard(12, 0.6)).folded_cells == 121
    assert fold_certificate(checkerboard(12, 0.4)).folded_cells == 0


def test_a_determinant_within_its_rounding_of_0_fails():
    u = torch.zeros(1, 2, 4, 4, dtype=torch.float64)
    u[0, 0, 2, 2] = 1 - 2.0**-53  # the cell beyond is as thin as rounding
    found = fold_certificate(u)
    assert found.verdict == "folded"
    u[0, 0, 2, 2] = 1 - 1e-12
    assert fold_certificate(u).folded_cells == 0


def test_the_folded_area_of_an_image_by_hand():
    """In the first cell the determinant rises from -1 at its first row to 1 at its second."""
    u = torch.zeros(1, 2, 2, 3, dtype=torch.float64)
    u[0, 1, 0, 1] = -2
    found = fold_certificate(u)
    assert (found.smallest_determinant, found.folded_cells, found.cells) == (-1, 1, 2)
    assert found.folded_volume == 0.5
    assert fold_certificate(u, 0.5).folded_volume == 0.75
    assert fold_certificate(0.4 * u).folded_volume == 0


def test_the_bound_of_an_image_is_below_by_what_any_cell_may_round_off():
    found = fold_certificate(checkerboard(12, 0.6).double())  # neighbours are 1.2 apart
    rounding = 8 * 2.0**-53 * ((1 + 1.2) ** 2 + 1.2**2)
    apart = found.smallest_determinant - found.determinant_bound
    assert apart == pytest.approx(rounding, rel=0.1, abs=0)


def test_float32_would_see_another_sign():
    """Products of two large numbers: their difference is a rounding error in float32."""
    generator = torch.Generator().manual_seed(0)
    wrong = 0
    for _ in range(200):
        a, b, c = (1 + 40 * torch.rand(3, generator=generator)).tolist()
        u = torch.zeros(1, 2, 2, 2)
        u[0, 0, 1], u[0, 1, 1] = a, b
        u[0, 0, :, 1] += c
        u[0, 1, :, 1] += b * c / (1 + a) - 1
        exact = fold_certificate(u).smallest_determinant
        wrong += float(jacobian_determinant(u).min() > 0) != (exact > 0)
    assert wrong > 10


@pytest.mark.parametrize("angle, verdict", [(6.0, "homeomorphism"), (7.0, "locally unfolded")])
def test_a_ring_that_overlaps_is_locally_unfolded_only(angle, verdict):
    u = turned(40, angle)
    found = fold_certificate(u)
    assert found.folded_cells == 0
    assert found.verdict == verdict
    assert found.boundary_oriented
    assert ("crosses itself" in str(found)) == (verdict != "homeomorphism")


def test_a_reflection_folds_everywhere():
    grid = identity_grid((6, 7))
    u = torch.zeros(1, 2, 6, 7)
    u[0, 0] = 5 - 2 * grid[0, 0]
    found = fold_certificate(u)
    assert found.folded_share == 1 and not found.boundary_oriented


@pytest.mark.parametrize("seed", range(40))
def test_borders_against_shapely(seed):
    u = smooth((12, 17), 6.0, seed, coarse=5)
    ring = border(u[0].double())
    simple = LinearRing(ring[0] + ring[1]).is_simple
    assert (len(crossing_edges(*ring)) == 0) == simple


@pytest.mark.parametrize(
    "shift, simple",
    [
        ({}, True),
        ({(3, 0): (0.0, 6.0)}, False),  # a vertex on the opposite edge: touched, not crossed
        ({(3, 0): (0.0, math.nextafter(6.0, 0))}, True),  # as close as double tells
        ({(3, 0): (-1.0, 0.0)}, False),  # on its neighbour
        ({(3, 0): (-1.5, 0.0)}, False),  # back over its neighbour
    ],
)
def test_touching_is_decided_exactly(shift, simple):
    u = torch.zeros(1, 2, 8, 7, dtype=torch.float64)
    for (i, j), (a, b) in shift.items():
        u[0, 0, i, j], u[0, 1, i, j] = a, b
    assert (len(crossing_edges(*border(u[0]))) == 0) == simple


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(8))
def test_the_largest_safe_scale_is_where_it_first_fails(seed, threshold):
    u = smooth((15, 18), 8.0, seed).double()
    scale = largest_safe_scale(u, threshold)
    steps = torch.linspace(0, 1, 400, dtype=torch.float64)[1:]
    smallest = [jacobian_determinant(scale * (1 - 1e-9) * s * u).min() for s in steps]
    assert min(smallest) >= threshold - 1e-12
    assert jacobian_determinant(scale * (1 + 1e-6) * u).min() < threshold


def test_safe_scales_at_the_ends():
    assert largest_safe_scale(torch.zeros(1, 2, 4, 4)) == math.inf
    assert largest_safe_scale(torch.zeros(1, 2, 4, 4), limit=2.0) == 2.0
    assert largest_safe_scale(identity_grid((5, 5)), limit=10.0) == 10.0  # growing never folds
    # -2 x is unfolded at scale 1 again (a half turn), but has folded in between.
    assert largest_safe_scale(-2 * identity_grid((5, 5))) == 0.5


@pytest.mark.parametrize(
    "u, words",
    [
        (torch.zeros(2, 2, 4, 4), "one field"),
        (torch.zeros(1, 2, 1, 4), "at least 2 voxels"),
        (torch.full((1, 2, 4, 4), math.nan), "NaN or infinite"),
        (torch.zeros(1, 3, 4, 4), "displacement must be"),
        (torch.full((1, 3, 3, 3, 3), math.inf), "NaN or infinite"),
        (torch.zeros(2, 3, 3, 3, 3), "one field"),
        (torch.zeros(1, 3, 1, 1, 3), "at least 2 voxels"),
    ],
)
def test_what_is_no_field_is_refused(u, words):
    for function in (fold_certificate, largest_safe_scale, make_diffeomorphic):
        with pytest.raises(ValueError, match=words):
            function(u)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_values_as_stored_are_certified(dtype):
    u = smooth((20, 20), 3.0, 1).to(dtype)
    assert fold_certificate(u) == fold_certificate(u.double())


def test_values_beyond_all_measure_fold():
    for scale in (1e160, 1e300):
        found = fold_certificate(scale * smooth((9, 9), 1.0, 0).double())
        assert found.verdict == "folded"


def test_a_shear_as_large_as_double_holds_is_a_homeomorphism():
    u = torch.zeros(1, 2, 5, 6, dtype=torch.float64)
    u[0, 0] = 2.0**40 * torch.arange(6.0)
    assert fold_certificate(u).verdict == "homeomorphism"


@pytest.mark.parametrize("size", [(2, 8192), (8192, 2), (2048, 2048)])
def test_long_borders_cost_no_square(size):
    assert fold_certificate(torch.zeros(1, 2, *size)).passes


def test_double_roots_count_whatever_rounding_says():
    for k in range(200):
        u = -(1 + k / 7) * identity_grid((4, 4), torch.float64)
        assert largest_safe_scale(u, limit=9.0) == pytest.approx(1 / (1 + k / 7), rel=1e-6)


def test_a_corner_that_bends_over_far_away():
    grid = identity_grid((3, 3), torch.float64)
    u = torch.stack([grid[:, 0] + 1e-8 * grid[:, 1], grid[:, 0]], dim=1)  # 1 + t - 1e-8 t^2
    assert largest_safe_scale(u) == pytest.approx(1e8, rel=1e-6)
