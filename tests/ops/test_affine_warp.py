import math

import pytest
import torch
from cases import Calls, affine_inputs, uniform

from diffreg.ops import affine_warp, affine_warp_reference, warp

both = pytest.mark.parametrize("function", [affine_warp, affine_warp_reference])
sizes = pytest.mark.parametrize("size", [(5, 7), (4, 3, 6)], ids=str)
INTERPOLATIONS = ["linear", "nearest", "cubic"]
PADDINGS = ["border", "zeros", "reflection"]


def identity(dimensions: int, dtype=torch.float64) -> torch.Tensor:
    return torch.eye(dimensions, dimensions + 1, dtype=dtype)[None]


def turned(degrees: float, offset=(0.0, 0.0)) -> torch.Tensor:
    """A map of an image: a rotation, then a translation."""
    angle = math.radians(degrees)
    rows = [
        [math.cos(angle), -math.sin(angle), offset[0]],
        [math.sin(angle), math.cos(angle), offset[1]],
    ]
    return torch.tensor([rows], dtype=torch.float64)


# Value


def test_by_hand():
    image = torch.tensor([[0.0, 1.0], [2.0, 5.0]])[None, None]
    half = torch.tensor([[[0.5, 0.0, 0.25], [0.0, 0.5, 0.25]]])
    # Points 1/4 and 3/4 along both axes.
    expected = [[0.6875, 1.3125], [1.9375, 3.5625]]
    found = affine_warp(image, half, size=(2, 2))[0, 0]
    for y, fy in enumerate((0.25, 0.75)):
        for x, fx in enumerate((0.25, 0.75)):
            expected[y][x] = (1 - fy) * fx + fy * (2 * (1 - fx) + 5 * fx)
    assert found.tolist() == expected


@both
def test_the_displacement_comes_first(function):
    image = torch.arange(8.0).reshape(1, 1, 1, 8)
    double = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 2.0, 1.0]]])
    u = torch.zeros(1, 2, 1, 3)
    u[0, 1] = 0.5
    assert function(image, double, u).flatten().tolist() == [2.0, 4.0, 6.0]  # 2 (x + 1/2) + 1


def whole_maps(size: tuple[int, ...]):
    """Maps of whole numbers from a grid of that size onto its voxels, and what they do to it."""
    dimensions = len(size)
    last = [n - 1 for n in size]
    same = identity(dimensions)
    yield same, lambda image: image
    flip = same.clone()
    flip[0, 0, 0], flip[0, 0, -1] = -1, last[0]
    flip[0, -1, dimensions - 1], flip[0, -1, -1] = -1, last[-1]
    yield flip, lambda image: image.flip(2, -1)
    swap = same[:, [dimensions - 1, *range(1, dimensions - 1), 0]]
    yield swap, lambda image: image.transpose(2, -1)


@pytest.mark.parametrize("size", [(5, 5), (1, 1), (300, 300), (7, 2, 7), (3, 4, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("displaced", [False, True])
def test_maps_of_whole_numbers_give_the_very_voxels(size, dtype, interpolation, padding, displaced):
    image = uniform((1, 1, *size), dtype)
    u = torch.zeros(1, len(size), *size, dtype=dtype)
    where = {"displacement": u} if displaced else {"size": size}
    for matrix, expected in whole_maps(size):
        found = affine_warp(image, matrix, **where, interpolation=interpolation, padding=padding)
        assert torch.equal(found, expected(image))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_shift_by_whole_voxels_far_from_the_origin(dtype):
    image = uniform((1, 1, 2, 5000), dtype)
    shift = identity(2)
    shift[0, 1, 2] = 4321
    found = affine_warp(image, shift, size=(2, 679))
    assert torch.equal(found, image[..., 4321:])


@sizes
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("padding", PADDINGS)
def test_the_identity_leaves_what_warp_does(size, interpolation, padding):
    moving, _, u = affine_inputs(2, 2, size, torch.float64)
    matrix = identity(len(size)).expand(2, -1, -1)
    found = affine_warp(moving, matrix, u, interpolation=interpolation, padding=padding)
    torch.testing.assert_close(found, warp(moving, u, interpolation, padding))


@pytest.mark.core
def test_points_are_rounded_once_however_far_they_are():
    """Half a unit in the last place of the coordinate, and a little of the step to an anchor."""
    stripes = (torch.arange(4096) % 2).float().expand(1, 1, 4, 4096)  # as steep everywhere
    matrix = turned(0.01)
    matrix[0, 1, 1] = 0.999
    found = affine_warp(stripes, matrix, size=(4, 4090))
    apart = (found - affine_warp(stripes.double(), matrix, size=(4, 4090))).abs()
    assert apart[..., :1000].max() < 1.5 * 2**-15
    assert 2**-14 < apart.max() < 1.1 * 2**-13


@both
def test_one_image_is_read_by_all_maps(function):
    image = uniform((1, 2, 6, 5), torch.float64)
    matrix = torch.cat([turned(k * 24.0, (1.0, -0.5 * k)) for k in range(5)])
    found = function(image, matrix, size=(4, 7))
    for n in range(5):
        alone = function(image, matrix[n : n + 1], size=(4, 7))
        torch.testing.assert_close(found[n : n + 1], alone, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.complex64], ids=str)
@pytest.mark.parametrize("padding", PADDINGS)
def test_nearest_takes_every_dtype(dtype, padding):
    numbers = (3 * uniform((1, 2, 5, 6), torch.float64)).round().to(dtype)
    matrix = torch.cat([turned(35.0, (3.0, -2.0)), turned(160.0, (4.0, 5.0))])
    u = 2 * uniform((2, 2, 7, 4), torch.float32, seed=1)
    for where in ({"displacement": u}, {"size": (7, 4)}):
        options = {**where, "interpolation": "nearest", "padding": padding}
        found = affine_warp(numbers, matrix, **options)
        assert found.dtype == dtype
        assert torch.equal(found, affine_warp_reference(numbers, matrix, **options))


def test_nearest_and_zeros_of_ones_is_the_coverage():
    half = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.25, -1.0]]], dtype=torch.float64)
    ones = torch.ones(1, 1, 1, 2, dtype=torch.uint8)
    found = affine_warp(ones, half, size=(1, 12), interpolation="nearest", padding="zeros")
    points = torch.arange(12) / 4 - 1
    assert torch.equal(found.flatten().bool(), (points >= -0.5) & (points < 1.5))


# What is not finite


@both
@sizes
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("place", [(0, 0), (1, 2), (1, -1)], ids=str)
def test_a_map_that_is_not_finite_gives_nan(function, size, interpolation, padding, bad, place):
    moving, matrix, u = affine_inputs(2, 1, size, torch.float64)
    matrix[1, place[0], place[1]] = bad
    found = function(moving, matrix, u, interpolation=interpolation, padding=padding)
    assert found[1].isnan().all() and found[0].isfinite().all()


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_displacement_that_is_not_finite_gives_nan_there(padding, bad):
    image = uniform((1, 1, 5, 6), torch.float64).requires_grad_()
    u = uniform((1, 2, 5, 6), torch.float64, seed=1)
    u[0, 1, 2, 3] = bad
    u.requires_grad_()
    matrix = turned(10.0).requires_grad_()
    warped = affine_warp(image, matrix, u, padding=padding)
    elsewhere = torch.ones(5, 6, dtype=torch.bool)
    elsewhere[2, 3] = False
    assert warped[..., 2, 3].isnan().all() and warped[..., elsewhere].isfinite().all()
    # A loss that leaves it out knows nothing of it.
    warped[..., elsewhere].sum().backward()
    for tensor in (image, matrix, u):
        assert tensor.grad.isfinite().all()
    affine_warp(image, matrix, u, padding=padding).sum().backward()
    assert matrix.grad.isnan().all() and u.grad[..., 2, 3].isnan().all()
    assert image.grad.isnan().any() and u.grad[..., elsewhere].isfinite().all()


# Gradients


@sizes
@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize("padding", PADDINGS)
def test_gradcheck(size, interpolation, padding):
    moving, matrix, u = (t.requires_grad_() for t in affine_inputs(2, 2, size, torch.float64, 1))

    def displaced(moving, matrix, u):
        return affine_warp(moving, matrix, u, interpolation=interpolation, padding=padding)

    def mapped(moving, matrix):
        return affine_warp(moving, matrix, None, size, interpolation, padding)

    for function, inputs in ((displaced, (moving, matrix, u)), (mapped, (moving, matrix))):
        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def test_gradcheck_entry_by_entry_of_one_image_for_all_maps():
    image = uniform((1, 1, 4, 5), torch.float64).requires_grad_()
    matrix = torch.cat([turned(20.0, (0.3, 0.2)), turned(-50.0, (1.1, 2.3))]).requires_grad_()
    u = (0.3 * uniform((2, 2, 3, 3), torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(affine_warp, (image, matrix, u))
    assert torch.autograd.gradgradcheck(affine_warp, (image, matrix, u))


@pytest.mark.parametrize("asked", range(1, 8))
def test_only_gradients_that_are_asked_for_are_computed(asked):
    inputs = affine_inputs(2, 1, (5, 4), torch.float64)
    needs = tuple(bool(asked >> k & 1) for k in range(3))
    inputs = [t.requires_grad_(need) for t, need in zip(inputs, needs, strict=True)]
    with Calls() as record:
        affine_warp(*inputs).sum().backward()
    called = [name for name, _ in record.calls]
    assert called.count("warp_backward") == needs[0]
    assert [args[-2:] for name, args in record.calls if name == "affine_warp_backward"] == (
        [needs[1:]] if any(needs[1:]) else []
    )
    assert [tensor.grad is not None for tensor in inputs] == list(needs)


def test_the_gradient_to_a_float32_map_is_float32():
    matrix = turned(10.0).float().requires_grad_()
    affine_warp(uniform((1, 1, 5, 6), torch.float32), matrix, size=(4, 4)).sum().backward()
    assert matrix.grad.dtype == torch.float32


def test_the_gradient_to_the_map_of_a_large_image_is_as_exact_as_its_terms():
    """Sums of 10^5 terms with positions up to 500: float32 against float64 of the same image."""
    y, x = torch.meshgrid(torch.arange(200) / 9, torch.arange(500) / 11, indexing="ij")
    image = (torch.sin(y) * torch.cos(x + y))[None, None]
    found = []
    for dtype in (torch.float32, torch.float64):
        matrix = turned(3.0, (2.0, -1.0)).requires_grad_()
        warped = affine_warp(image.to(dtype), matrix, size=(190, 480), interpolation="cubic")
        warped.square().sum().backward()
        found.append(matrix.grad)
    torch.testing.assert_close(*found, rtol=0, atol=1e-5 * found[1].abs().max().item())


def test_inputs_may_depend_on_one_number():
    def second(function):
        angle = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        image = torch.sin(angle * torch.arange(30.0, dtype=torch.float64)).reshape(1, 1, 5, 6)
        matrix = turned(15.0, (0.2, 0.4)) * angle.cos()
        u = 0.3 * uniform((1, 2, 4, 5), torch.float64) * angle
        loss = function(image, matrix, u).square().sum()
        (first,) = torch.autograd.grad(loss, angle, create_graph=True)
        return torch.autograd.grad(first, angle)[0]

    torch.testing.assert_close(second(affine_warp), second(affine_warp_reference))


def test_labels_have_no_gradient():
    matrix, u = turned(10.0).requires_grad_(), torch.zeros(1, 2, 3, 4, requires_grad=True)
    labels = torch.ones(1, 1, 3, 4, dtype=torch.int64)
    assert not affine_warp(labels, matrix, u, interpolation="nearest").requires_grad


def test_nearest_has_gradient_zero_to_map_and_displacement():
    matrix, u = turned(10.0).requires_grad_(), torch.zeros(1, 2, 3, 4, requires_grad=True)
    affine_warp(torch.ones(1, 1, 3, 4), matrix, u, interpolation="nearest").sum().backward()
    assert torch.equal(matrix.grad, torch.zeros_like(matrix))
    assert torch.equal(u.grad, torch.zeros_like(u))


# vmap


def test_vmap_of_maps_over_one_image():
    image = uniform((1, 1, 6, 5), torch.float64)
    matrix = torch.stack([turned(k * 24.0).expand(2, -1, -1) for k in range(3)])
    mapped = torch.func.vmap(lambda m: affine_warp(image, m, size=(4, 7)))(matrix)
    for k in range(3):
        assert torch.equal(mapped[k], affine_warp(image, matrix[k], size=(4, 7)))


# Words


@pytest.mark.parametrize(
    "change, message",
    [
        ({"matrix": torch.eye(3)}, r"matrix must be \(N, 2, 3\), from voxels to voxels"),
        ({"matrix": identity(3)}, r"matrix must be \(N, 2, 3\), .* got \[1, 3, 4\]"),
        ({"matrix": identity(2).half()}, "matrix must be float64 or float32, got torch.float16"),
        ({"matrix": [[1, 0, 0], [0, 1, 0]]}, "matrix must be a torch.Tensor, got list"),
        ({"moving": torch.ones(2, 1, 4, 4)}, "batch size of matrix, 1, or 1, got 2"),
        ({"size": None}, "size must be 2 whole numbers, the fixed grid's"),
        ({"size": (4, 4, 4)}, "size must be 2 whole numbers, the fixed grid's"),
        ({"size": (4, 2.5)}, r"size must be 2 whole numbers, .* got \(4, 2.5\)"),
        ({"size": (4, "a")}, r"size must be 2 whole numbers, .* got \(4, 'a'\)"),
        ({"size": (4, None)}, r"size must be 2 whole numbers, .* got \(4, None\)"),
        ({"size": 4}, "size must be 2 whole numbers, .* got 4"),
        ({"displacement": torch.zeros(1, 2, 3, 3)}, r"size must be that of displacement, \[3, 3\]"),
        ({"displacement": torch.zeros(2, 2, 4, 4)}, "displacement must have the batch size of ma"),
        ({"interpolation": "quintic"}, "interpolation must be one of"),
        ({"moving": torch.ones(1, 1, 0, 4)}, "moving must have voxels to read"),
        ({"theta": 1}, r"no argument 'theta': pass matrix, \(N, D, D \+ 1\)"),
        ({"align_corners": True}, "where it has no meaning"),
    ],
)
def test_errors_say_what_would_be_right(change, message):
    arguments = {"moving": torch.ones(1, 1, 4, 4), "matrix": identity(2), "size": (4, 4)}
    with pytest.raises((TypeError, ValueError), match=message):
        affine_warp(**{**arguments, **change})
