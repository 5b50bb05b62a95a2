import math

import golden
import pytest
import torch
from cases import uniform

from diffreg.ops import jacobian_determinant, jacobian_determinant_reference

both = pytest.mark.parametrize("function", [jacobian_determinant, jacobian_determinant_reference])
dtypes = pytest.mark.parametrize(
    "dtype, digits", [(torch.float64, 1e-11), (torch.float32, 1e-5)], ids=["double", "single"]
)


def one_cell(*vertices) -> torch.Tensor:
    """Displacement of the vertices (0,0), (1,0), (0,1), (1,1), each (u_0, u_1)."""
    u = torch.tensor(vertices, dtype=torch.float64).reshape(2, 2, 2)  # [b, a, component]
    return u.permute(2, 1, 0)[None].contiguous()


@both
def test_by_hand(function):
    # Only the vertex (1, 0) moves, by one voxel down and half a voxel to the right:
    # e0 = (2, 1/2), e1 = (1, 0), f0 = (0, 1), f1 = (-1, 1/2)
    u = one_cell((0, 0), (1, 0.5), (0, 0), (0, 0))
    # J00 = e0 x f0, J10 = e0 x f1, J01 = e1 x f0, J11 = e1 x f1
    assert function(u).flatten().tolist() == [2.0, 1.5, 1.0, 0.5]


@both
def test_corners_have_the_first_axis_fastest(function):
    # The determinant at a vertex is that of the edges that meet there; (0, 1) is corner 2.
    u = torch.zeros(1, 2, 3, 4, dtype=torch.float64)
    u[0, 1, 0, 3] = 1.0  # the vertex (0, 3): only f of the cell (0, 2) at a = 0 grows
    corners = function(u)
    assert corners.shape == (1, 4, 2, 3)
    assert corners[0, :, 0, 2].tolist() == [2.0, 1.0, 2.0, 1.0]


@both
@dtypes
def test_golden(function, dtype, digits):
    corners = function(golden.displacement(dtype))
    assert corners.shape == (1, 4, 7, 9)
    assert corners.min().item() == pytest.approx(0.209934140324, rel=digits)
    assert corners.max().item() == pytest.approx(2.86140745067, rel=digits)


@both
@dtypes
def test_golden_of_twice_the_field(function, dtype, digits):
    smallest = function(golden.displacement(dtype, factor=2), reduce="min")
    assert smallest.shape == (1, 7, 9)
    assert smallest.min().item() == pytest.approx(-1.20414745561, rel=digits)
    assert (smallest <= 0).sum().item() == 30


@both
def test_reductions_are_over_the_corners(function):
    u = golden.displacement()
    corners = jacobian_determinant_reference(u)
    torch.testing.assert_close(function(u, "min"), corners.amin(1), rtol=0, atol=1e-15)
    torch.testing.assert_close(function(u, "mean"), corners.mean(1), rtol=0, atol=1e-15)


@both
@pytest.mark.parametrize("reduce", [None, "min", "mean"])
def test_identity_is_one_to_the_bit(function, reduce):
    assert (function(torch.zeros(2, 2, 20, 5), reduce) == 1).all()


def test_affine_fields_have_the_determinant_of_their_matrix():
    M = torch.tensor([[0.3, -0.7], [0.4, 0.1]], dtype=torch.float64)
    grid = torch.stack(torch.meshgrid(torch.arange(18.0), torch.arange(5.0), indexing="ij"))
    u = torch.einsum("kl,lij->kij", M, grid.double())[None]
    expected = torch.linalg.det(torch.eye(2, dtype=torch.float64) + M)
    corners = jacobian_determinant(u)
    torch.testing.assert_close(corners, expected.expand_as(corners), rtol=1e-13, atol=0)


def test_a_translation_far_away_costs_no_digits():
    # Edges are differences of u: with absolute positions single precision would lose five digits.
    assert (jacobian_determinant(torch.full((1, 2, 6, 7), 12345.678)) == 1).all()


def test_the_transpose_of_a_field_has_the_same_determinants():
    u = golden.displacement()
    swapped = u.transpose(2, 3).flip(1)
    corners = jacobian_determinant(u)[:, [0, 2, 1, 3]].transpose(2, 3)
    torch.testing.assert_close(jacobian_determinant(swapped), corners, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("reduce", [None, "min", "mean"])
def test_gradcheck(reduce):
    u = (1.2 * uniform((2, 2, 3, 4), torch.float64)).requires_grad_()
    corners = jacobian_determinant_reference(u).flatten(2).detach()
    chosen = corners.argmin(1)
    assert set(chosen.flatten().tolist()) == {0, 1, 2, 3}  # every corner is the smallest somewhere
    gaps = corners.sort(1).values.diff(dim=1)[:, 0]
    assert gaps.min() > 1e-4  # away from ties
    assert (corners < 0).any() and (corners > 0).any()
    assert torch.autograd.gradcheck(jacobian_determinant, (u, reduce))
    assert torch.autograd.gradgradcheck(jacobian_determinant, (u, reduce))


def test_the_first_of_equal_corners_takes_the_gradient_of_the_minimum():
    u = torch.zeros(1, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    jacobian_determinant(u, "min").sum().backward()
    # corner 0: d(e0 x f0), e0 = u10 - u00 along axis 0, f0 = u01 - u00 along axis 1
    assert u.grad[0, 0].tolist() == [[-1, 0], [1, 0]]
    assert u.grad[0, 1].tolist() == [[-1, 1], [0, 0]]


@both
@pytest.mark.parametrize("reduce", [None, "min", "mean"])
@pytest.mark.parametrize("vertex", [(1, 1), (2, 3), (0, 0)])
def test_nan_reaches_its_cells_and_no_others(function, reduce, vertex):
    u = golden.displacement()
    u[0, 0, vertex[0], vertex[1]] = math.nan
    touched = function(u, reduce).isnan()
    touched = touched if reduce else touched.any(1)
    expected = torch.zeros_like(touched)
    expected[0, max(vertex[0] - 1, 0) : vertex[0] + 1, max(vertex[1] - 1, 0) : vertex[1] + 1] = True
    assert torch.equal(touched, expected)


@pytest.mark.parametrize(
    "displacement, options, error, message",
    [
        ([1], {}, TypeError, "displacement must be a torch.Tensor, got list"),
        (
            torch.zeros(2, 4, 4),
            {},
            ValueError,
            r"displacement must be \(N, 2, H, W\) .*, got \[2, 4",
        ),
        (
            torch.zeros(1, 3, 4, 4),
            {},
            ValueError,
            r"must be \(N, 2, H, W\) .*, got \[1, 3, 4, 4\]$",
        ),
        (torch.zeros(1, 2, 4, 4, 4), {}, ValueError, r"\(N, 3, Z, H, W\), got \[1, 2, 4, 4, 4\]"),
        (torch.zeros(1, 2, 4, 4).long(), {}, TypeError, "float32 or float64, got torch.int64"),
        (
            torch.zeros(1, 2, 4, 4),
            {"reduce": "max"},
            ValueError,
            "reduce must be one of None, 'min', 'mean', 'bound', got 'max'",
        ),
        (torch.zeros(1, 2, 4, 4), {"reduce": "none"}, ValueError, "reduce must be one of None"),
    ],
)
def test_bad_arguments_are_refused(displacement, options, error, message):
    with pytest.raises(error, match=message):
        jacobian_determinant(displacement, **options)
