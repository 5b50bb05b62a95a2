import doctest
import math

import pytest
import torch
from cases import uniform

from diffreg import fields
from diffreg.fields import (
    compose,
    identity_grid,
    integrate,
    inversion_residual,
    invert,
    resize,
    warp_points,
)
from diffreg.ops import jacobian_determinant, warp

SIZE = (40, 52)


def waves(points: torch.Tensor, amplitude: float = 1.5) -> torch.Tensor:
    """A smooth displacement (1, 2, *S) at points (1, 2, *S)."""
    y, x = points[:, 0], points[:, 1]
    first = torch.sin(0.16 * y + 0.11 * x)
    second = torch.cos(0.13 * y - 0.15 * x)
    return amplitude * torch.stack([first, second], dim=1)


def grid(size=SIZE) -> torch.Tensor:
    return identity_grid(size, torch.float64)


def inside(tensor: torch.Tensor, margin: int = 6) -> torch.Tensor:
    return tensor[..., margin:-margin, margin:-margin]


def test_identity_grid_holds_the_indices():
    positions = identity_grid((2, 3), torch.float64)
    assert positions.dtype == torch.float64
    assert positions[0, 0].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert positions[0, 1].tolist() == [[0, 1, 2], [0, 1, 2]]


# compose


def test_compose_samples_the_outer_field_where_the_inner_one_points():
    inner, outer = waves(grid()), waves(grid() + 7, 2.0)
    exact = inner + waves(grid() + inner + 7, 2.0)
    # what linear interpolation costs: curvature / 8, twice
    torch.testing.assert_close(inside(compose(outer, inner)), inside(exact), rtol=0, atol=0.02)


def test_compose_is_one_warp_after_the_other():
    inner, outer = waves(grid()), waves(grid() + 7, 2.0)
    ramp = grid()[:, :1] + 3 * grid()[:, 1:]  # interpolated exactly
    twice = warp(warp(ramp, outer), inner)
    once = warp(ramp, compose(outer, inner))
    torch.testing.assert_close(inside(twice), inside(once))


def test_compose_with_nothing_changes_nothing():
    u, nothing = waves(grid()), torch.zeros(1, 2, *SIZE, dtype=torch.float64)
    assert torch.equal(compose(u, nothing), u)
    assert torch.equal(compose(nothing, u), u)


def test_the_order_of_a_composition_matters():
    shift = torch.zeros(1, 2, 1, 4)
    shift[:, 1] = 1
    stretch = torch.zeros(1, 2, 1, 4)
    stretch[0, 1, 0] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert compose(stretch, shift)[0, 1, 0, :3].tolist() == [2, 3, 4]
    assert compose(shift, stretch)[0, 1, 0, :3].tolist() == [1, 2, 3]


def test_compose_takes_an_outer_field_of_another_size():
    inner = torch.zeros(1, 2, 3, 4)
    assert compose(torch.ones(1, 2, 9, 9), inner).shape == (1, 2, 3, 4)


def test_the_gradient_of_composing_a_field_with_itself_is_right():
    u = (0.4 * uniform((1, 2, 4, 5), torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: compose(v, v), u)
    assert torch.autograd.gradgradcheck(lambda v: compose(v, v), u, fast_mode=True)


# integrate


@pytest.mark.parametrize("steps", [0, 3, 7])
def test_integrate_of_a_contraction_is_exact(steps):
    # Affine fields are interpolated exactly: 2^n small steps multiply up.
    rate = torch.tensor([-0.5, -0.8], dtype=torch.float64).reshape(1, 2, 1, 1)
    centre = torch.tensor([7.5, 9.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    from_centre = grid((16, 19)) - centre
    expected = ((1 + rate / 2**steps) ** (2**steps) - 1) * from_centre
    torch.testing.assert_close(integrate(rate * from_centre, steps), expected)


def test_integrate_approaches_the_exponential():
    from_centre = grid((16, 16)) - 7.5
    error = integrate(-0.5 * from_centre, 9) - (math.exp(-0.5) - 1) * from_centre
    assert error.abs().max() < 2e-3


def test_integrating_backwards_inverts():
    v = waves(grid(), 2.5)
    both = compose(integrate(v), integrate(-v))
    assert inside(both).abs().max() < 0.05


def test_integrate_does_not_fold_where_the_velocity_as_a_displacement_would():
    v = 12 * torch.sin(0.4 * grid((48, 48)) + 0.2)
    v = v * torch.sin(math.pi * grid((48, 48)) / 47).prod(1, keepdim=True)
    assert jacobian_determinant(v).min() < 0
    assert jacobian_determinant(integrate(v)).min() > 0


def test_integrate_has_gradients():
    v = waves(grid((9, 8)), 0.7).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: integrate(x, 3), v, fast_mode=True)


def test_integrate_refuses_a_negative_number_of_steps():
    with pytest.raises(ValueError, match="steps must be at least 0, got -1"):
        integrate(torch.zeros(1, 2, 4, 4), -1)


# invert


def test_a_field_and_its_inverse_compose_to_nothing():
    u = waves(grid(), 2.0)
    assert inside(compose(u, invert(u))).abs().max() < 1e-9
    # the other order interpolates the inverse, which is no multilinear function
    assert inside(compose(invert(u), u)).abs().max() < 0.05


def test_invert_of_a_translation():
    u = torch.full((1, 2, 5, 6), 1.25)
    assert torch.equal(invert(u), -u)


def test_more_iterations_invert_better():
    u = waves(grid(), 2.0)
    residuals = [inside(compose(u, invert(u, n))).abs().max() for n in (1, 3, 9)]
    assert residuals[0] > 4 * residuals[1] > 16 * residuals[2]


# resize


@pytest.mark.parametrize("size", [(80, 104), (20, 26), (33, 61)], ids=str)
def test_resize_keeps_a_linear_field_s_meaning(size):
    # Positions as fractions of the extent: half-voxel centres.
    old = (grid() + 0.5) / torch.tensor(SIZE).reshape(1, 2, 1, 1)
    new = (grid(size) + 0.5) / torch.tensor(size).reshape(1, 2, 1, 1)
    matrix = torch.tensor([[0.2, -0.3], [0.1, 0.4]], dtype=torch.float64)

    def voxels(fractions, extent):
        moved = torch.einsum("kl,nlij->nkij", matrix, fractions)
        return moved * torch.tensor(extent).reshape(1, 2, 1, 1)

    resized = resize(voxels(old, SIZE), size)
    torch.testing.assert_close(inside(resized, 2), inside(voxels(new, size), 2))


def test_resize_to_the_same_size_changes_nothing():
    u = waves(grid())
    torch.testing.assert_close(resize(u, SIZE), u, rtol=0, atol=1e-14)


def test_resize_warps_a_finer_image_the_same_way():
    u = waves(grid(), 2.0)
    fine = resize(u, (80, 104))
    # the voxel at the middle of four fine ones
    pairs = 0.25 * sum(fine[..., a::2, b::2] for a in (0, 1) for b in (0, 1)) / 2
    torch.testing.assert_close(inside(pairs), inside(u), rtol=0, atol=0.02)


@pytest.mark.parametrize("shape", [(4,), (4, 4, 4), (0, 4)], ids=str)
def test_resize_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="shape must be 2 sizes of at least 1, got"):
        resize(torch.zeros(1, 2, 4, 4), shape)


@pytest.mark.parametrize(
    "function", [integrate, invert, lambda u: resize(u, (4, 4)), lambda u: compose(u, u)]
)
def test_what_is_no_field_is_refused(function):
    with pytest.raises(
        ValueError, match=r"displacement must be \(N, 2, H, W\) .*, got \[1, 3, 4, 4\]"
    ):
        function(torch.zeros(1, 3, 4, 4))


def test_examples():
    assert doctest.testmod(fields).failed == 0


def test_points_go_where_the_image_comes_from():
    """A blob of the moving image, seen at a point of the fixed grid, lies where that is taken."""
    u = waves(grid()).float()
    point = torch.tensor([[[17.0, 25.0], [20.25, 30.5]]])
    taken = warp_points(point, u)
    positions = identity_grid(SIZE)
    for here, there in zip(point[0], taken[0], strict=True):
        blob = torch.exp(-((positions - there.reshape(1, 2, 1, 1)) ** 2).sum(1, keepdim=True) / 8)
        seen = warp(blob, u)
        weight = seen * ((positions - here.reshape(1, 2, 1, 1)) ** 2).sum(1, keepdim=True).lt(9)
        centre = (weight * positions).sum((0, 2, 3)) / weight.sum()
        assert (centre - here).abs().max() < 0.25
    there_and_back = warp_points(taken.double(), invert(u.double()))
    torch.testing.assert_close(there_and_back, point.double(), rtol=0, atol=2e-2)


def test_points_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"points must be \(1, K, 2\), got \[1, 3\]"):
        warp_points(torch.zeros(1, 3), torch.zeros(1, 2, 4, 4))


def test_the_residual_of_an_inverse():
    u = waves(grid())
    inverse = invert(u)
    residual = inversion_residual(u, inverse)
    assert residual.shape == (1,)
    assert residual.item() == pytest.approx(compose(u, inverse).norm(dim=1).max().item())
    assert inversion_residual(u, torch.zeros_like(u)).item() == u.norm(dim=1).max().item()
