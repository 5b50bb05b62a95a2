"""The fold certificate of volumes: against dense sampling, exact fractions, and built cells."""

import math
from fractions import Fraction
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from fields.drawn import smooth, turned

from diffreg.data.transforms import read_field
from diffreg.fields import (
    FoldCertificate,
    fold_certificate,
    identity_grid,
    largest_safe_scale,
    safe_scale,
    trilinear,
)
from diffreg.fields.bernstein import at_points, coefficients, differences, halved, magnitudes
from diffreg.fields.trilinear import judged
from diffreg.ops import jacobian_determinant


def noise(size, amplitude, seed):
    generator = torch.Generator().manual_seed(seed)
    return amplitude * torch.randn(1, 3, *size, generator=generator, dtype=torch.float64)


def sampled(u, *places):
    """Determinants (*(S - 1), n0, n1, n2) at given places of every cell, by its eight vertices."""
    u = u[0].double().numpy()
    ends = [slice(None, -1), slice(1, None)]
    vertices = np.array([[[u[(slice(None), a, b, c)] for c in ends] for b in ends] for a in ends])
    vertices += np.stack(np.meshgrid(*[[0.0, 1.0]] * 3, indexing="ij"), 3)[..., None, None, None]
    weights = [np.stack([1 - np.asarray(t), np.asarray(t)]) for t in places]
    edges = []
    for axis in range(3):
        signs = np.stack([-np.ones_like(places[axis]), np.ones_like(places[axis])])
        along = [signs if k == axis else weights[k] for k in range(3)]
        edges.append(np.einsum("abcdxyz,ap,bq,cr->xyzpqrd", vertices, *along, optimize=True))
    e, f, g = np.broadcast_arrays(*edges)
    return (e * np.cross(f, g, axis=-1)).sum(-1)


def at(u, where):
    """The determinant at a place in voxels: the smallest of the cells that it is in."""
    found = []
    for low in product(*({math.ceil(x) - 1, math.floor(x)} for x in where)):
        if all(0 <= i < n - 1 for i, n in zip(low, u.shape[2:], strict=True)):
            part = u[(..., *(slice(i, i + 2) for i in low))]
            inside = (np.array([x - i]) for x, i in zip(where, low, strict=True))
            found.append(float(sampled(part, *inside).squeeze()))
    return min(found)


def dense(u, points=11):
    t = np.linspace(0, 1, points)
    return sampled(u, t, t, t).reshape(*(n - 1 for n in u.shape[2:]), -1)


FIELDS = [noise((8, 9, 10), 0.3, 0), noise((7, 6, 9), 0.2, 1), noise((8, 8, 8), 0.5, 2)]
FIELDS += [noise((6, 6, 6), 0.1, 8)]
FIELDS += [smooth((8, 9, 10), amplitude, 3, coarse=4) for amplitude in (1.0, 2.0, 4.0)]


@pytest.mark.parametrize("u", FIELDS)
def test_cells_fold_where_dense_sampling_says_so(u):
    found, smallest = judged(u.contiguous(), 0.0), dense(u).min(-1)
    folded = found.folded.numpy()
    assert not (~folded & (smallest <= 0)).any()
    # Between the points of the sampling no determinant is much smaller.
    assert smallest[folded].max(initial=0) < 5e-3 * np.abs(smallest).max()
    corners = sampled(u, *[[0.0, 1.0]] * 3).min((3, 4, 5))
    assert (found.inside.numpy() == (folded & (corners > 0))).all()
    assert not found.undecided.any()


@pytest.mark.parametrize("u", FIELDS)
def test_the_smallest_determinant_is_bracketed_and_in_its_place(u):
    found, smallest = fold_certificate(u), dense(u).min()
    assert found.determinant_bound <= smallest + 1e-12
    assert found.smallest_determinant <= smallest + 1e-5
    assert 0 <= found.smallest_determinant - found.determinant_bound <= 2e-5
    assert at(u, found.where) == pytest.approx(found.smallest_determinant, abs=1e-12)
    assert found.cells == smallest.size * np.prod([n - 1 for n in u.shape[2:]])
    points = (np.arange(4) + 0.5) / 4
    volume = (sampled(u, points, points, points) <= 0).sum() / 64
    assert found.folded_volume == volume


def cells_folded_inside(count):
    """Volumes of one cell, drawn until so many fold though no corner does."""
    found = []
    for seed in range(100):
        u = noise((14, 14, 14), 0.3, 100 + seed)
        for i, j, k in judged(u, 0.0).inside.nonzero().tolist():
            found.append(u[..., i : i + 2, j : j + 2, k : k + 2].contiguous())
            if len(found) == count:
                return found
    raise AssertionError("too few")


def test_eight_positive_corners_are_no_proof():
    """Of cells at displacements of .3 voxel with eight positive corners .6 % fold inside."""
    for u in cells_folded_inside(40):
        assert jacobian_determinant(u, "min") > 0
        found = fold_certificate(u)
        assert (found.verdict, found.folded_cells, found.folded_inside) == ("folded", 1, 1)
        assert found.smallest_determinant <= 0 and at(u, found.where) < 1e-15
        assert any(0 < x < 1 for x in found.where)
        assert "1 inside only" in str(found)


def test_the_smallest_determinant_of_an_unfolded_cell_is_found_inside():
    inside = 0
    for u, part in product(cells_folded_inside(5), (0.7, 0.8, 0.9, 0.98)):
        u = part * largest_safe_scale(u) * u
        found, corner = fold_certificate(u), float(jacobian_determinant(u, "min"))
        assert found.folded_cells == 0
        assert found.determinant_bound > found.smallest_determinant - 2e-5
        assert found.determinant_bound <= dense(u).min() + 1e-12
        inside += found.smallest_determinant < corner - 1e-4
    assert inside > 5


def test_halving_proves_what_the_bound_alone_does_not():
    proven = 0
    for seed in range(4):
        u = noise((12, 12, 12), 0.3, seed)
        doubtful = jacobian_determinant(u, "bound")[0] <= 0
        unfolded = doubtful & ~judged(u, 0.0).folded
        assert (dense(u, 9)[unfolded.numpy()] > 0).all()
        proven += int(unfolded.sum())
    assert proven > 50


def test_without_halving_they_are_undecided_and_count_as_folded(monkeypatch):
    u = noise((26, 26, 26), 0.4, 0)  # of all coefficients but the middle one some are low alone
    whole = fold_certificate(u)
    monkeypatch.setattr(trilinear, "DEPTH", 0)
    found = fold_certificate(u)
    bounds, corners = (jacobian_determinant(u, which) for which in ("bound", "min"))
    assert found.undecided_cells == int(((bounds <= 0) & (corners > 0)).sum()) > 0
    assert found.folded_cells == int((bounds <= 0).sum()) > whole.folded_cells
    assert f"{found.undecided_cells} undecided" in str(found)
    assert found.determinant_bound <= whole.determinant_bound
    monkeypatch.setattr(trilinear, "DEPTH", 8)
    monkeypatch.setattr(trilinear, "PARTS", 0)  # no room
    assert fold_certificate(u).folded_cells == found.folded_cells


@pytest.mark.parametrize("axis", range(3))
def test_a_determinant_within_its_rounding_of_0_fails(axis):
    u = torch.zeros(1, 3, 4, 4, 4, dtype=torch.float64)
    u[0, axis, 2, 2, 2] = 1 - 2.0**-53
    assert fold_certificate(u).verdict == "folded"
    u[0, axis, 2, 2, 2] = 1 - 1e-12
    found = fold_certificate(u)
    assert found.verdict == "homeomorphism"
    assert found.smallest_determinant == pytest.approx(1e-12, rel=1e-3)


def exact_determinant(edges):
    signs = {p: (-1) ** sum(p[i] > p[j] for i in range(3) for j in range(i, 3)) for p in
             permutations(range(3))}  # fmt: skip
    return sum(
        s * math.prod((edges[i][k] for i, k in enumerate(p)), start=Fraction(1))
        for p, s in signs.items()
    )


def smallest_exact(u):
    """Of the corners of one cell."""
    value = {
        v: [Fraction(x) for x in u[(0, slice(None), *v)].tolist()]
        for v in product((0, 1), repeat=3)
    }
    found = []
    for v in value:
        edges = []
        for k in range(3):
            low, high = ((*v[:k], end, *v[k + 1 :]) for end in (0, 1))
            along = zip(value[high], value[low], strict=True)
            edges.append([a - b + (c == k) for c, (a, b) in enumerate(along)])
        found.append(exact_determinant(edges))
    return min(found)


def test_no_determinant_of_the_wrong_sign_is_certified():
    """Affine cells whose third edge lies in the plane of the others, nearly: double errs."""
    generator, wrong = torch.Generator().manual_seed(0), 0
    eye, grid = torch.eye(3, dtype=torch.float64), identity_grid((2, 2, 2), torch.float64)
    for _ in range(200):
        a = 20 * torch.randn(3, 3, generator=generator, dtype=torch.float64)
        a[2] = 0.3 * (a[0] + eye[0]) - 0.7 * (a[1] + eye[1]) - eye[2]
        u = torch.einsum("nkxyz,kc->ncxyz", grid, a).contiguous()
        exact, computed = smallest_exact(u), float(jacobian_determinant(u).min())
        wrong += computed > 0 and exact <= 0
        assert exact > 0 or judged(u, 0.0).folded.all()
    assert wrong > 10


def test_polynomials_are_the_determinant_and_halving_keeps_them():
    u = noise((4, 5, 6), 0.5, 0)
    along = differences(u, torch.arange(60))
    found, points = coefficients(along), (np.arange(6) + 0.5) / 6
    expected = sampled(u, points, points, points).reshape(60, -1)
    assert torch.allclose(at_points(found, 6), torch.from_numpy(expected), atol=1e-12)
    parts = at_points(halved(found).reshape(-1, 27), 3).reshape(60, 2, 2, 2, 3, 3, 3)
    together = parts.permute(0, 1, 4, 2, 5, 3, 6).reshape(60, -1)
    assert torch.allclose(together, torch.from_numpy(expected), atol=1e-12)
    assert (found.abs().amax(1) <= magnitudes(along)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_values_as_stored_are_certified(dtype):
    u = noise((6, 7, 8), 0.2, 5).to(dtype)
    assert fold_certificate(u) == fold_certificate(u.double())
    assert largest_safe_scale(u) == largest_safe_scale(u.double())
    turned_round = u.transpose(2, 4)  # not contiguous
    assert fold_certificate(turned_round) == fold_certificate(turned_round.contiguous())


def test_a_threshold_between_the_bracket_and_above():
    u = smooth((10, 11, 12), 1.0, 4, coarse=4)
    found = fold_certificate(u)
    assert found.passes
    assert fold_certificate(u, found.determinant_bound - 1e-9).passes
    above = fold_certificate(u, found.smallest_determinant + 1e-9)
    assert above.folded_cells >= 1 and above.verdict == "not above 0.109717"


GOLDEN = Path(__file__).parents[3] / "shared" / "golden" / "transforms"


@pytest.mark.skipif(
    not GOLDEN.exists(), reason="the other tools' files are not beside the checkout"
)
@pytest.mark.parametrize("name", ["04_itk_displacement.nii.gz", "12_learn2reg_disp_0001_0002.npz"])
def test_fields_of_other_tools(name):
    u = read_field(GOLDEN / name)
    found, smallest = fold_certificate(u), dense(u).min()
    assert found.determinant_bound <= smallest + 1e-12
    assert found.smallest_determinant <= smallest + 1e-5
    assert (found.folded_cells > 0) == bool(smallest <= 0)


def test_many_blocks_of_cells_are_as_one(monkeypatch):
    u = noise((9, 10, 11), 0.4, 6)
    whole = fold_certificate(u)
    monkeypatch.setattr(trilinear, "BLOCK", 7)
    monkeypatch.setattr(trilinear, "PLANES", 3)
    found = fold_certificate(u)
    assert found.folded_cells == whole.folded_cells
    assert found.where == whole.where and found.folded_volume == whole.folded_volume


@pytest.mark.parametrize("scale", [1e60, 1e160, 1e300])
def test_values_beyond_all_measure_fold(scale):
    for size in ((3, 4, 5), (18, 18, 18)):
        found = fold_certificate(scale * noise(size, 1.0, 0))
        assert found.verdict == "folded"
        assert found.determinant_bound < 0 and not found.smallest_determinant > 0


def test_a_large_shear_is_a_homeomorphism():
    u = torch.zeros(1, 3, 4, 5, 6, dtype=torch.float64)
    u[0, 0] = 2.0**40 * torch.arange(6.0)
    assert fold_certificate(u).folded_cells == 0


def rotation(size, degrees, axis=0):
    grid = identity_grid(size, torch.float64)[0]
    from_centre = grid - (torch.tensor(size).double() - 1).view(3, 1, 1, 1) / 2
    a, b = (k for k in range(3) if k != axis)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    u = torch.zeros_like(from_centre)
    u[a] = (cos - 1) * from_centre[a] - sin * from_centre[b]
    u[b] = sin * from_centre[a] + (cos - 1) * from_centre[b]
    return u[None]


@pytest.mark.parametrize("shift", [0.0, 0.4, 5.3, -1e6])
def test_a_shift_beyond_the_border_is_a_homeomorphism(shift):
    assert fold_certificate(torch.full((1, 3, 4, 5, 6), shift)).passes


@pytest.mark.parametrize("axis", range(3))
def test_a_rotated_border(axis):
    assert fold_certificate(rotation((5, 6, 7), 60, axis)).passes
    # One to one too, but no face gets there without turning over: a sufficient test only.
    found = fold_certificate(rotation((5, 6, 7), 180, axis))
    assert found.verdict == "locally unfolded" and "no collar shows" in str(found)


@pytest.mark.parametrize("angle, verdict", [(1.0, "homeomorphism"), (7.0, "locally unfolded")])
def test_a_ring_that_overlaps_is_locally_unfolded_only(angle, verdict):
    flat = turned(40, angle)
    u = torch.zeros(1, 3, 3, 40, 40, dtype=torch.float64)
    u[:, 1:] = flat[:, :, None]
    found = fold_certificate(u)
    assert (found.verdict, found.folded_cells) == (verdict, 0)
    assert found.boundary_oriented and found.boundary_injective == (verdict == "homeomorphism")


def test_a_face_pushed_through_the_opposite_one_is_no_homeomorphism():
    """Bent like a gutter until its ends meet: the border crosses itself, and no cell folds."""
    flat = turned(24, 6.6)
    for k in range(3):
        kept = [c for c in range(3) if c != k]
        u = torch.zeros(1, 3, 24, 24, 3, dtype=torch.float64).movedim(4, 2 + k).contiguous()
        u[:, kept] = flat.unsqueeze(2 + k)
        assert fold_certificate(u).verdict == "locally unfolded"


def test_the_collar_is_the_border_within_and_the_stretch_without():
    u = noise((4, 5, 6), 0.1, 7)
    size, width = [n + 2 for n in u.shape[2:]], 8.0
    whole = torch.zeros(1, 3, *size, dtype=torch.float64)
    whole[..., 1:-1, 1:-1, 1:-1] = u
    for k in range(3):
        whole[:, k].narrow(1 + k, 0, 1).fill_(1 - width)
        whole[:, k].narrow(1 + k, size[k] - 1, 1).fill_(width - 1)
    outer = [whole.narrow(2 + k, 0 if low else size[k] - 2, 2) for k in range(3) for low in (1, 0)]
    for (found, _), expected in zip(trilinear._collar(u, width), outer, strict=True):
        assert torch.equal(found, expected)


def test_a_collar_folds_where_it_is_too_narrow():
    u = torch.full((1, 3, 4, 5, 6), 5.0, dtype=torch.float64)

    def folds(width):
        return any(bool(judged(s, 0.0).folded.any()) for s, _ in trilinear._collar(u, width))

    assert folds(1.0) and folds(4.0) and not folds(32.0)


@pytest.mark.parametrize("place", [(3, 3, 0), (0, 2, 3), (3, 6, 3), (6, 3, 0)])
def test_the_voxels_by_which_all_collars_fold(place):
    """A voxel of a face, moved within it beyond its neighbour."""
    u = torch.zeros(1, 3, 7, 7, 7, dtype=torch.float64)
    k = next(k for k, i in enumerate(place) if 0 < i < 6)
    u[(0, k, *place)] = 1.5
    near = trilinear.collar_folds(u)
    flat = np.ravel_multi_index(place, (7, 7, 7))
    assert flat in near
    distance = np.stack(np.unravel_index(near.numpy(), (7, 7, 7))) - np.array(place)[:, None]
    assert np.abs(distance).max() <= 1
    assert not len(trilinear.collar_folds(0.5 * u))


@pytest.mark.parametrize("axis", range(3))
def test_a_volume_of_one_plane_is_an_image(axis):
    flat = smooth((9, 10), 3.0, 1)
    u = torch.full((1, 3, 9, 10, 1), 7.0).movedim(4, 2 + axis).contiguous()
    u[:, [k for k in range(3) if k != axis]] = flat.unsqueeze(2 + axis)
    found, expected = fold_certificate(u), fold_certificate(flat)
    where = list(found.where)
    assert where.pop(axis) == 0 and tuple(where) == expected.where
    assert found.folded_cells == expected.folded_cells > 0
    assert found.verdict == expected.verdict and isinstance(found, FoldCertificate)
    assert largest_safe_scale(u) == largest_safe_scale(flat)


def first_fold(u, threshold, limit):
    """By certificates: the last scale without a fold before the first with one, to 1e-6."""
    steps = np.linspace(0, limit, 40)[1:]
    folds = [bool(judged(float(s) * u, threshold).folded.any()) for s in steps]
    if not any(folds):
        return limit
    first = folds.index(True)
    low, high = (steps[first - 1] if first else 0.0), steps[first]
    while high - low > 1e-6 * high:
        middle = float(low + high) / 2
        low, high = (low, middle) if judged(middle * u, threshold).folded.any() else (middle, high)
    return low


@pytest.mark.parametrize("threshold", [0.0, 0.3])
@pytest.mark.parametrize("u", FIELDS)
def test_the_largest_safe_scale_is_where_it_first_folds(u, threshold):
    u = u.double().contiguous()
    expected, found = first_fold(u, threshold, 3.0), largest_safe_scale(u, threshold, limit=3.0)
    assert expected * (1 - 1e-3) <= found <= expected * (1 + 1e-6)
    assert not judged(found * (1 - 1e-9) * u, threshold).folded.any()


def test_no_derivative_in_a_cell_is_longer_than_its_reach():
    u = noise((5, 6, 7), 1.0, 0)
    along = differences(u, torch.arange(4 * 5 * 6))  # (K, axis, edge, component)
    longest = along.square().sum(3).amax(2).sum(1).sqrt()
    assert torch.allclose(safe_scale._reach(u), longest)


def test_halving_finds_the_scale_where_the_bound_alone_would_stop():
    """A cell that folds inside first: at the bound's scale no determinant is near 0."""
    for u in cells_folded_inside(10):
        steps = torch.linspace(0, 1, 2001, dtype=torch.float64)[1:]
        bounds = torch.cat([jacobian_determinant(s * u, "bound").flatten() for s in steps])
        alone = float(steps[(bounds <= 0).nonzero()[0, 0]])
        found = largest_safe_scale(u)
        assert found > alone
        assert found == pytest.approx(first_fold(u, 0.0, 1.0), rel=1e-3)


def test_safe_scales_at_the_ends():
    grid = identity_grid((4, 5, 6), torch.float64)
    assert largest_safe_scale(torch.ones(1, 3, 4, 4, 4)) == math.inf
    assert largest_safe_scale(torch.ones(1, 3, 4, 4, 4), limit=2.0) == 2.0
    assert largest_safe_scale(grid) > 1e6  # growing never folds
    assert largest_safe_scale(grid, limit=10.0) == 10.0
    # -2 x is turned inside out at scale 1.
    assert largest_safe_scale(-2 * grid) == pytest.approx(0.5, rel=1e-3)
    assert largest_safe_scale(-2 * grid) <= 0.5
    # A half turn in a plane at scale 1: unfolded again, but not on the way.
    half = torch.zeros_like(grid)
    half[:, :2] = -2 * grid[:, :2]
    assert (
        largest_safe_scale(half) == pytest.approx(0.5, rel=1e-3)
        and fold_certificate(half).folded_cells == 0
    )
    assert largest_safe_scale(1e300 * noise((3, 3, 3), 1.0, 0)) < 1e-299


def test_a_scale_of_what_double_does_not_hold_is_safe():
    for a, b, c in product((1.0, 1e-12), (1.0, 1e9), (-1.0, 1.0)):
        u = torch.zeros(1, 3, 2, 2, 2, dtype=torch.float64)
        u[0, 0, 1], u[0, 1, :, 1], u[0, 2, :, :, 1] = a * c, b, -c
        found = largest_safe_scale(u, limit=100.0)
        assert not judged(found * (1 - 1e-9) * u, 0.0).folded.any()
