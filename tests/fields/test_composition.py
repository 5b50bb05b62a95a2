import itertools
import math

import numpy as np
import pytest
import torch
from cases import uniform
from scipy import ndimage

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

SIZE, VOLUME = (40, 52), (22, 23, 24)
both_sizes = pytest.mark.parametrize("size", [SIZE, VOLUME], ids=str)
both_small = pytest.mark.parametrize("size", [(4, 5), (3, 4, 3)], ids=str)


def waves(points: torch.Tensor, amplitude: float = 1.5) -> torch.Tensor:
    """A smooth displacement (1, D, *S) at points (1, D, *S)."""
    y, x, *z = points.unbind(1)
    first = torch.sin(0.16 * y + 0.11 * x)
    second = torch.cos(0.13 * y - 0.15 * x)
    if not z:
        return amplitude * torch.stack([first, second], dim=1)
    third = torch.sin(0.14 * z[0] - 0.12 * y + 0.5)
    return amplitude * torch.stack([first + 0.3 * torch.cos(0.1 * z[0]), second, third], dim=1)


def grid(size=SIZE) -> torch.Tensor:
    return identity_grid(size, torch.float64)


def per_axis(*values) -> torch.Tensor:
    """One value a component, shaped to multiply a field."""
    return torch.tensor(values, dtype=torch.float64).reshape(1, -1, *[1] * len(values))


def inside(tensor: torch.Tensor, margin: int = 6) -> torch.Tensor:
    return tensor[(..., *[slice(margin, -margin)] * (tensor.ndim - 2))]


def test_identity_grid_holds_the_indices():
    positions = identity_grid((2, 3), torch.float64)
    assert positions.dtype == torch.float64
    assert positions[0, 0].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert positions[0, 1].tolist() == [[0, 1, 2], [0, 1, 2]]
    assert identity_grid((4, 5, 6))[0, :, 3, 1, 2].tolist() == [3, 1, 2]


# compose


@both_sizes
def test_compose_samples_the_outer_field_where_the_inner_one_points(size):
    inner, outer = waves(grid(size)), waves(grid(size) + 7, 2.0)
    exact = inner + waves(grid(size) + inner + 7, 2.0)
    # what linear interpolation costs: curvature / 8, twice
    torch.testing.assert_close(inside(compose(outer, inner)), inside(exact), rtol=0, atol=0.02)


@both_sizes
def test_compose_is_one_warp_after_the_other(size):
    inner, outer = waves(grid(size)), waves(grid(size) + 7, 2.0)
    ramp = grid(size)[:, :1] + 3 * grid(size)[:, 1:2]  # interpolated exactly
    twice = warp(warp(ramp, outer), inner)
    once = warp(ramp, compose(outer, inner))
    torch.testing.assert_close(inside(twice), inside(once))


@both_sizes
def test_compose_with_nothing_changes_nothing(size):
    u, nothing = waves(grid(size)), torch.zeros_like(grid(size))
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


@both_small
def test_the_gradient_of_composing_a_field_with_itself_is_right(size):
    u = (0.4 * uniform((1, len(size), *size), torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: compose(v, v), u)
    assert torch.autograd.gradgradcheck(lambda v: compose(v, v), u, fast_mode=True)


# integrate


@pytest.mark.parametrize("steps", [0, 3, 7])
@pytest.mark.parametrize("size", [(16, 19), (16, 19, 12)], ids=str)
def test_integrate_of_a_contraction_is_exact(size, steps):
    # Affine fields are interpolated exactly: 2^n small steps multiply up.
    rate = per_axis(*[-0.5, -0.8, -0.3][: len(size)])
    from_centre = grid(size) - per_axis(*((n - 1) / 2 for n in size))
    expected = ((1 + rate / 2**steps) ** (2**steps) - 1) * from_centre
    torch.testing.assert_close(integrate(rate * from_centre, steps), expected)


def test_integrate_approaches_the_exponential():
    from_centre = grid((16, 16)) - 7.5
    error = integrate(-0.5 * from_centre, 9) - (math.exp(-0.5) - 1) * from_centre
    assert error.abs().max() < 2e-3


@both_sizes
def test_integrating_backwards_inverts(size):
    v = waves(grid(size), 2.0)
    both = compose(integrate(v), integrate(-v))
    assert inside(both).abs().max() < 0.05


@pytest.mark.parametrize("size, amplitude", [((48, 48), 12), ((24, 24, 24), 4)], ids=str)
def test_integrate_does_not_fold_where_the_velocity_as_a_displacement_would(size, amplitude):
    v = amplitude * torch.sin(19.2 / size[0] * grid(size) + 0.2)
    v = v * torch.sin(math.pi * grid(size) / (size[0] - 1)).prod(1, keepdim=True)
    assert jacobian_determinant(v).min() < 0
    assert jacobian_determinant(integrate(v), reduce="bound").min() > 0


@both_small
def test_integrate_has_gradients(size):
    v = waves(grid(size) + 0.3, 0.7).requires_grad_()  # no point on a voxel centre
    assert torch.autograd.gradcheck(lambda x: integrate(x, 3), v, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: integrate(x, 3), v, fast_mode=True)


@pytest.mark.parametrize("count", [-1, 2.5, "7"])
@pytest.mark.parametrize("function, name", [(integrate, "steps"), (invert, "iterations")])
def test_steps_are_whole_numbers_from_0(function, name, count):
    with pytest.raises(ValueError, match=f"{name} must be a whole number >= 0, got {count!r}"):
        function(torch.zeros(1, 2, 4, 4), count)


# invert


@both_sizes
def test_a_field_and_its_inverse_compose_to_nothing(size):
    u = waves(grid(size), 2.0)
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


@pytest.mark.parametrize(
    "size", [(80, 104), (20, 26), (33, 61), (44, 46, 48), (11, 12, 12), (31, 17, 29)], ids=str
)
def test_resize_keeps_a_linear_field_s_meaning(size):
    # Positions as fractions of the extent: half-voxel centres.
    before = SIZE if len(size) == 2 else VOLUME
    matrix = torch.tensor(
        [[0.2, -0.3, 0.1], [0.1, 0.4, -0.2], [0.3, -0.1, 0.2]], dtype=torch.float64
    )[: len(size), : len(size)]

    def voxels(extent):
        fractions = (grid(extent) + 0.5) / per_axis(*extent)
        return torch.einsum("kl,nl...->nk...", matrix, fractions) * per_axis(*extent)

    resized = resize(voxels(before), size)
    torch.testing.assert_close(inside(resized, 2), inside(voxels(size), 2))


@both_sizes
def test_resize_to_the_same_size_changes_nothing(size):
    u = waves(grid(size))
    torch.testing.assert_close(resize(u, size), u, rtol=0, atol=1e-14)


@both_sizes
def test_resize_warps_a_finer_image_the_same_way(size):
    u = waves(grid(size), 2.0)
    fine = resize(u, [2 * n for n in size])
    # the voxel at the middle of the 2^D fine ones
    corners = list(itertools.product((slice(0, None, 2), slice(1, None, 2)), repeat=len(size)))
    mean = sum(fine[(..., *corner)] for corner in corners) / len(corners) / 2
    torch.testing.assert_close(inside(mean), inside(u), rtol=0, atol=0.02)


@pytest.mark.parametrize("shape", [(4,), (4, 4, 4), (0, 4)], ids=str)
def test_resize_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="shape must be 2 sizes of at least 1, got"):
        resize(torch.zeros(1, 2, 4, 4), shape)
    with pytest.raises(ValueError, match="shape must be 3 sizes of at least 1, got"):
        resize(torch.zeros(1, 3, 4, 4, 4), shape[:2])
    with pytest.raises(ValueError, match="shape must be 2 sizes of at least 1, got 4"):
        resize(torch.zeros(1, 2, 4, 4), 4)
    with pytest.raises(ValueError, match=r"shape must be .*, got \(3,"):
        identity_grid((3,))


@pytest.mark.parametrize(
    "function", [integrate, invert, lambda u: resize(u, (4, 4)), lambda u: compose(u, u)]
)
def test_what_is_no_field_is_refused(function):
    with pytest.raises(
        ValueError, match=r"displacement must be \(N, 2, H, W\) .*, got \[1, 3, 4, 4\]"
    ):
        function(torch.zeros(1, 3, 4, 4))


@both_sizes
def test_points_go_where_the_image_comes_from(size):
    """A blob of the moving image, seen at a point of the fixed grid, lies where that is taken."""
    u = waves(grid(size)).float()
    point = torch.tensor([[[10.0, 12.0, 11.0], [11.25, 9.5, 12.75]]])[..., : len(size)]
    taken = warp_points(point, u)
    positions = identity_grid(size)
    for here, there in zip(point[0], taken[0], strict=True):
        blob = torch.exp(-((positions - per_axis(*there)) ** 2).sum(1, keepdim=True) / 8).float()
        seen = warp(blob, u)
        weight = seen * ((positions - per_axis(*here)) ** 2).sum(1, keepdim=True).lt(9)
        centre = (weight * positions).flatten(2).sum((0, 2)) / weight.sum()
        assert (centre - here).abs().max() < 0.25
    there_and_back = warp_points(taken.double(), invert(u.double()))
    torch.testing.assert_close(there_and_back, point.double(), rtol=0, atol=2e-2)


@both_small
def test_points_between_voxels_are_those_of_scipy(size):
    u = uniform((1, len(size), *size), torch.float64)
    points = 5 * uniform((1, 9, len(size)), torch.float64, 1)  # some outside
    shift = [
        ndimage.map_coordinates(component, points[0].numpy().T, order=1, mode="nearest")
        for component in u[0].numpy()
    ]
    expected = points[0] + torch.from_numpy(np.stack(shift, 1))
    torch.testing.assert_close(warp_points(points, u)[0], expected)


@both_small
def test_a_point_that_is_nan_stays_so_and_is_nothing_to_the_others(size):
    points = torch.ones(1, 3, len(size), dtype=torch.float64)
    points[0, 1, 0] = torch.nan
    found = warp_points(points, torch.ones(1, len(size), *size, dtype=torch.float64))
    assert found[0, 1, 0].isnan()
    assert (found[0, [0, 2]] == 2).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_points_of_half_types_stay_in_the_field(dtype):
    """There 299 is 300, beyond the last voxel of 300."""
    points = torch.tensor([[[299.0, 500.0], [2051.0, 1.0]]], dtype=dtype)
    u = torch.ones(1, 2, 300, 2052, dtype=dtype)
    assert torch.equal(warp_points(points, u), points + 1)


def test_at_the_last_voxel_the_slope_is_that_within():
    u = 0.5 * torch.arange(5.0).expand(1, 2, 5, 5).contiguous()
    points = torch.tensor([[[2.0, 1.5], [2.0, 4.0]]], requires_grad=True)
    warp_points(points, u)[..., 1].sum().backward()
    assert points.grad[0, :, 1].tolist() == [1.5, 1.5]


@both_small
def test_gradients_of_points_and_of_resize(size):
    u = uniform((1, len(size), *size), torch.float64).requires_grad_()
    points = (1.2 + 0.7 * uniform((1, 4, len(size)), torch.float64, 1)).requires_grad_()
    for function, inputs in (
        (warp_points, (points, u)),
        (lambda u: resize(u, [2 * n - 1 for n in size]), (u,)),
    ):
        assert torch.autograd.gradcheck(function, inputs)
        assert torch.autograd.gradgradcheck(function, inputs)


@both_small
def test_vmap_is_a_loop_over_the_samples(size):
    u = uniform((3, 2, len(size), *size), torch.float64)
    points = 2 + uniform((3, 2, 4, len(size)), torch.float64, 1)
    for function, inputs in (
        (integrate, (u,)),
        (invert, (u,)),
        (compose, (u, u / 2)),
        (lambda u: resize(u, [2 * n - 1 for n in size]), (u,)),
        (warp_points, (points, u)),
    ):
        looped = torch.stack([function(*each) for each in zip(*inputs, strict=True)])
        torch.testing.assert_close(torch.func.vmap(function)(*inputs), looped)


def test_points_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"points must be \(1, K, 2\), got \[1, 3\]"):
        warp_points(torch.zeros(1, 3), torch.zeros(1, 2, 4, 4))
    with pytest.raises(ValueError, match=r"points must be \(1, K, 3\), got \[1, 5, 2\]"):
        warp_points(torch.zeros(1, 5, 2), torch.zeros(1, 3, 4, 4, 4))
    with pytest.raises(
        TypeError, match=r"points must be of displacement.s torch.float64, got torch"
    ):
        warp_points(torch.zeros(1, 5, 2), torch.zeros(1, 2, 4, 4).double())


def test_fields_of_other_dimensions_are_not_composed():
    with pytest.raises(ValueError, match="outer must have as many axes as inner"):
        compose(torch.zeros(1, 3, 4, 4, 4), torch.zeros(1, 2, 4, 4))


@both_sizes
def test_the_residual_of_an_inverse(size):
    u = waves(grid(size))
    inverse = invert(u)
    residual = inversion_residual(u, inverse)
    assert residual.shape == (1,)
    assert residual.item() == pytest.approx(compose(u, inverse).norm(dim=1).max().item())
    assert inversion_residual(u, torch.zeros_like(u)).item() == u.norm(dim=1).max().item()
