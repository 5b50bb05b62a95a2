import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import golden
import pytest
import torch
import torch.nn.functional as F
from cases import uniform

from diffreg.ops import warp, warp_reference

TESTS = Path(__file__).parents[1]
both = pytest.mark.parametrize("function", [warp, warp_reference])
paddings = pytest.mark.parametrize("padding", ["border", "zeros"])
# Twelve printed digits in double; single keeps six.
dtypes = pytest.mark.parametrize(
    "dtype, digits", [(torch.float64, 1e-11), (torch.float32, 1e-5)], ids=["double", "single"]
)


def displacement_to(points: torch.Tensor) -> torch.Tensor:
    """(1, 2, *S) from points (2, *S) to sample."""
    axes = [torch.arange(n, dtype=points.dtype) for n in points.shape[1:]]
    return (points - torch.stack(torch.meshgrid(*axes, indexing="ij")))[None]


def row(values, dtype=torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype).reshape(1, 1, 1, -1)


def along_row(shifts) -> torch.Tensor:
    """Displacement along the columns of an image of one row."""
    shift = torch.tensor(shifts, dtype=torch.float64).reshape(1, 1, 1, -1)
    return torch.cat([torch.zeros_like(shift), shift], dim=1)


# Value


def test_by_hand():
    image = torch.tensor([[0.0, 1.0], [2.0, 5.0]], dtype=torch.float64)[None, None]
    u = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    u[0, :, 0, 0] = torch.tensor([0.5, 0.25])  # 1/2 (3/4 0 + 1/4 1) + 1/2 (3/4 2 + 1/4 5)
    assert warp(image, u).flatten().tolist() == [1.5, 1.0, 2.0, 5.0]


@both
@dtypes
@pytest.mark.parametrize(
    "padding, value, grad_u, grad_moving",
    [
        ("border", 27.4954709718, 2.00600601913, 13.0267830054),
        ("zeros", 23.810206024, 2.59231410141, 11.4757040566),
    ],
)
def test_golden(function, dtype, digits, padding, value, grad_u, grad_moving):
    image, u = golden.warped(dtype).requires_grad_(), golden.displacement(dtype).requires_grad_()
    squares = (function(image, u, padding=padding) ** 2).sum()
    to_image, to_u = torch.autograd.grad(squares, [image, u])
    assert squares.item() == pytest.approx(value, rel=digits)
    assert to_u.norm().item() == pytest.approx(grad_u, rel=digits)
    assert to_image.norm().item() == pytest.approx(grad_moving, rel=digits)


def test_pull_back_along_the_first_axis():
    image = uniform((1, 1, 5, 4), torch.float64)
    u = torch.zeros(1, 2, 5, 4, dtype=torch.float64)
    u[:, 0] = 1
    assert torch.equal(warp(image, u)[:, :, :-1], image[:, :, 1:])


@both
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_outside_by_hand(function, interpolation):
    image, u = row([3.0, 1.0, 2.0]), along_row([-9.0, 0.0, 9.0])
    assert function(image, u, interpolation).flatten().tolist() == [3, 1, 2]
    zeros = function(image, u, interpolation, padding="zeros")
    assert zeros.flatten().tolist() == [0, 1, 0]


def test_zeros_fade_over_one_voxel():
    image = row([4.0, 4.0])
    points = [-1.0, -0.75, -0.25, 0.0, 1.0, 1.25, 1.75, 2.0]
    u = along_row([p - k for k, p in enumerate(points)])
    expected = [0.0, 1.0, 3.0, 4.0, 4.0, 3.0, 1.0, 0.0]
    assert warp(image, u, padding="zeros").flatten().tolist() == expected


@pytest.mark.core
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1), (5, 5), (17, 33), (64, 31)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("padding", ["border", "zeros", "reflection"])
@pytest.mark.parametrize("interpolation", ["linear", "nearest", "cubic"])
def test_without_displacement_nothing_changes_to_the_bit(size, dtype, padding, interpolation):
    bits = torch.int32 if dtype == torch.float32 else torch.int64
    image = uniform((2, 3, *size), dtype)
    special = torch.tensor([-0.0, 1e-310, 1e-40, -1e-45, 1e30], dtype=torch.float64).to(dtype)
    image.view(-1)[: len(special)] = special[: image.numel()]
    warped = warp(image, torch.zeros(2, 2, *size, dtype=dtype), interpolation, padding)
    assert torch.equal(warped.view(bits), image.view(bits))


def test_an_infinite_voxel_does_not_spill_to_its_neighbours():
    image = row([1.0, math.inf, 2.0, math.nan, 3.0])
    warped = warp(image, torch.zeros(1, 2, 1, 5, dtype=torch.float64))
    assert torch.equal(warped.nan_to_num(7.0), image.nan_to_num(7.0))


@pytest.mark.core
@pytest.mark.parametrize("interpolation", ["linear", "nearest", "cubic"])
def test_far_outside_under_zeros_no_voxel_is_read(interpolation):
    image = torch.full((1, 1, 3, 4), math.nan, dtype=torch.float64, requires_grad=True)
    u = torch.zeros(1, 2, 3, 4, dtype=torch.float64)
    u[:, 0] = torch.tensor([9.0, -9.0, 0.0])[:, None]
    u[:, 1, 2] = torch.tensor([9.0, -9.0, 99.0, -99.0])
    u.requires_grad_()
    warped = warp(image, u, interpolation, "zeros")
    assert not warped.any()
    to_image, to_u = torch.autograd.grad(warped.sum(), (image, u))
    assert not to_image.any() and not to_u.any()


@pytest.mark.core
@pytest.mark.parametrize("padding", ["border", "zeros", "reflection"])
@pytest.mark.parametrize("interpolation", ["linear", "nearest", "cubic"])
def test_an_upstream_gradient_that_is_nan_goes_to_what_was_read(interpolation, padding):
    """At whole voxels that is the voxel itself: all others have weight 0."""
    image = uniform((1, 1, 4, 5), torch.float64).requires_grad_()
    upstream = uniform((1, 1, 4, 5), torch.float64, seed=1)
    upstream[..., 1, 2] = math.nan
    upstream[..., 3, 4] = math.inf
    warped = warp(image, torch.zeros(1, 2, 4, 5, dtype=torch.float64), interpolation, padding)
    (found,) = torch.autograd.grad(warped, image, upstream)
    torch.testing.assert_close(found, upstream, rtol=0, atol=0, equal_nan=True)


@pytest.mark.core
@pytest.mark.parametrize("interpolation", ["linear", "nearest", "cubic"])
def test_an_upstream_gradient_of_0_passes_on_no_displacement_that_is_nan(interpolation):
    image = uniform((1, 1, 4, 5), torch.float64).requires_grad_()
    u = torch.zeros(1, 2, 4, 5, dtype=torch.float64)
    u[0, 1, 1, 2] = math.nan
    upstream = torch.ones(1, 1, 4, 5, dtype=torch.float64)
    upstream[..., 1, 2] = 0
    (found,) = torch.autograd.grad(warp(image, u, interpolation), image, upstream)
    torch.testing.assert_close(found, upstream, rtol=0, atol=0)


@pytest.mark.core
@pytest.mark.slow
def test_voxels_have_the_same_bits_read_as_pairs_and_by_gathers():
    """A processor reads in the one way that it is faster in, and the other tests know that one."""
    found = {}
    for way in ("pairs", "gathers"):
        run = subprocess.run(
            [sys.executable, str(TESTS / "bits.py"), "warp", "affine", "objective-pls"],
            env=os.environ | {"DIFFREG_WARP_READS": way, "PYTHONPATH": f"{TESTS.parent}:{TESTS}"},
            capture_output=True,
            text=True,
            check=True,
        )
        found[way] = run.stdout.splitlines()
    assert len(found["pairs"]) > 10
    assert found["pairs"] == found["gathers"]


# Nearest


@both
def test_nearest_rounds_half_up(function):
    image = torch.arange(5).reshape(1, 1, 1, 5)
    u = along_row([0.49, 0.5, -0.5, -0.51, 0.0])
    assert function(image, u, "nearest").flatten().tolist() == [0, 2, 2, 2, 4]


@pytest.mark.parametrize(
    "dtype",
    [
        torch.uint8,
        torch.int16,
        torch.int64,
        torch.bool,
        torch.float16,
        torch.bfloat16,
        torch.complex64,
        torch.complex128,
    ],
    ids=str,
)
@paddings
def test_nearest_takes_every_dtype(dtype, padding):
    numbers = (3 * uniform((2, 2, 5, 6), torch.float64)).round()
    image = numbers.to(dtype)
    u = 4 * uniform((2, 2, 4, 7), torch.float32, seed=1)
    warped = warp(image, u, "nearest", padding)
    assert warped.dtype == dtype
    assert torch.equal(warped, warp_reference(image, u, "nearest", padding))
    expected = warp_reference(image.to(torch.complex128), u.double(), "nearest", padding)
    assert torch.equal(warped.to(torch.complex128), expected)


def test_nearest_reads_conjugate_and_negative_views():
    parts = (uniform((1, 1, 3, 4), torch.float32, seed) for seed in (0, 1))
    image = torch.complex(*parts)
    u = torch.zeros(1, 2, 3, 4)
    assert torch.equal(warp(image.conj(), u, "nearest"), image.conj().resolve_conj())
    assert torch.equal(warp(image.conj().imag, u), -image.imag)


def test_nearest_sends_the_gradient_to_the_voxel_that_it_read():
    image = row([1.0, 2.0, 3.0]).requires_grad_()
    warp(image, along_row([1.0, 0.2, 9.0]), "nearest").backward(row([10.0, 20.0, 30.0]))
    assert image.grad.flatten().tolist() == [0, 30, 30]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_nearest_has_gradient_zero_to_the_displacement(dtype):
    image = uniform((1, 1, 3, 4), dtype)
    u = uniform((1, 2, 3, 4), torch.float32).requires_grad_()
    warp(image, u, "nearest").sum().backward()
    assert torch.equal(u.grad, torch.zeros_like(u))


def test_nearest_of_labels_has_no_gradient():
    u = torch.zeros(1, 2, 3, 4, requires_grad=True)
    assert not warp(torch.ones(1, 1, 3, 4, dtype=torch.int64), u, "nearest").requires_grad


# Displacements that are not finite, or huge


@both
@paddings
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("component", [0, 1])
def test_not_finite_gives_nan_there_and_nowhere_else(function, padding, bad, component):
    image = uniform((1, 2, 5, 6), torch.float64).requires_grad_()
    u = uniform((1, 2, 5, 6), torch.float64, seed=1)
    clean = function(image, u, padding=padding)
    u[0, component, 2, 3] = bad
    u.requires_grad_()
    warped = function(image, u, padding=padding)
    warped.sum().backward()
    elsewhere = torch.ones(5, 6, dtype=torch.bool)
    elsewhere[2, 3] = False
    assert warped[..., 2, 3].isnan().all()
    assert torch.equal(warped[..., elsewhere], clean[..., elsewhere])
    assert u.grad[0, component, 2, 3].isnan()
    assert u.grad[..., elsewhere].isfinite().all()
    assert image.grad.isnan().any()


@both
@paddings
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
@pytest.mark.parametrize("component", [0, 1])
def test_not_finite_gives_nan_far_outside_along_the_other_axis(
    function, interpolation, padding, component
):
    u = golden.displacement()
    u[0, 1 - component, 4, 4] = 100.0
    u[0, component, 4, 4] = math.nan
    assert function(golden.warped(), u, interpolation, padding)[0, 0, 4, 4].isnan()


@paddings
@pytest.mark.parametrize("other", [0.0, 100.0], ids=["inside", "outside"])
@pytest.mark.parametrize("component", [0, 1])
def test_both_components_of_the_gradient_are_nan(padding, other, component):
    image, u = golden.warped().requires_grad_(), golden.displacement()
    u[0, component, 4, 4] = math.nan
    u[0, 1 - component, 4, 4] += other
    u.requires_grad_()
    warp(image, u, padding=padding).sum().backward()
    assert u.grad[0, :, 4, 4].isnan().all()
    assert image.grad.isnan().any()


@both
@paddings
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_not_finite_with_nearest_is_nan_or_zero(function, padding, bad):
    u = torch.zeros(1, 2, 1, 3)
    u[0, 1, 0, 1] = bad
    image = torch.tensor([1, 2, 3]).reshape(1, 1, 1, 3)
    assert function(image, u, "nearest", padding).flatten().tolist() == [1, 0, 3]
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64):
        values = function(image.to(dtype), u, "nearest", padding).flatten()
        assert values.isnan().tolist() == [False, True, False], dtype


@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.complex64, torch.complex128, torch.float64],
    ids=str,
)
def test_the_raw_operator_knows_the_nan_of_every_dtype(dtype):
    u = torch.full((1, 2, 1, 2), math.nan)
    image = torch.ones(1, 1, 1, 2, dtype=dtype)
    assert torch.ops.diffreg.warp(image, u, "nearest", "border").isnan().all()


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("huge", [1e30, -1e30, 3e9, -3e9, 1e19])
def test_huge_displacements_are_far_outside(interpolation, dtype, huge):
    image = (uniform((1, 1, 3, 4), dtype) + 2).requires_grad_()
    u = torch.full((1, 2, 3, 4), huge, dtype=dtype, requires_grad=True)
    corner = image[0, 0, 0 if huge < 0 else -1, 0 if huge < 0 else -1]
    warped = warp(image, u, interpolation)
    assert (warped == corner).all()
    warped.sum().backward()
    assert not u.grad.any()
    assert image.grad.sum() == 12
    assert not warp(image, u, interpolation, "zeros").any()


def test_a_displacement_that_overflows_the_coordinate_is_safe():
    largest = torch.finfo(torch.float32).max
    u = torch.full((1, 2, 3, 4), largest)
    assert (warp(torch.ones(1, 1, 3, 4), u) == 1).all()


# Gradients


def branch_points() -> torch.Tensor:
    """Points (2, 6, 6) for an image of 5 x 7 voxels: all pairs of every kind of coordinate."""
    y = torch.tensor([-40.3, -0.6, 0.3, 2.7, 4.4, 77.2], dtype=torch.float64)
    x = torch.tensor([-40.3, -0.6, 0.3, 3.7, 6.4, 77.2], dtype=torch.float64)
    return torch.stack(torch.meshgrid(y, x, indexing="ij"))


def test_the_points_below_cover_every_branch():
    points, last = branch_points(), torch.tensor([4.0, 6.0]).reshape(2, 1, 1)
    far = (points < -1) | (points > last + 1)
    beside = ((points < 0) | (points > last)) & ~far
    inside = (points > 0) & (points < last)
    assert far[0].sum() == beside[0].sum() == inside[0].sum() == 12
    assert (inside[0] & inside[1]).sum() == 4
    assert (inside[0] & beside[1]).sum() == (far[0] & inside[1]).sum() == 4
    assert (points - points.round()).abs().min() > 0.2  # away from the kinks


@paddings
def test_gradcheck(padding):
    image = uniform((1, 2, 5, 7), torch.float64).requires_grad_()
    u = displacement_to(branch_points()).requires_grad_()
    inputs = (image, u, "linear", padding)
    assert torch.autograd.gradcheck(warp, inputs)
    assert torch.autograd.gradgradcheck(warp, inputs, fast_mode=True)


@paddings
def test_gradgradcheck_entry_by_entry(padding):
    image = uniform((2, 2, 3, 2), torch.float64).requires_grad_()
    u = (1.4 * uniform((2, 2, 2, 3), torch.float64, seed=3)).requires_grad_()
    assert torch.autograd.gradgradcheck(warp, (image, u, "linear", padding))


@paddings
@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_gradcheck_to_moving_at_whole_voxels(padding, interpolation):
    image = uniform((1, 2, 4, 5), torch.float64).requires_grad_()
    u = (4 * uniform((1, 2, 4, 5), torch.float64, seed=1)).round()
    assert torch.autograd.gradcheck(warp, (image, u, interpolation, padding))
    assert torch.autograd.gradgradcheck(warp, (image, u, interpolation, padding))


def derivative_along_row(function, image, shifts, padding):
    u = along_row(shifts).requires_grad_()
    function(image, u, padding=padding).sum().backward()
    return u.grad[0, 1, 0].tolist(), u.grad[0, 0, 0].tolist()


@both
def test_at_whole_voxels_the_derivative_is_from_the_right_and_zero_at_the_border(function):
    along, across = derivative_along_row(function, row([0.0, 1.0, 4.0, 9.0]), [0.0] * 4, "border")
    assert along == [0, 3, 5, 0]
    assert across == [0, 0, 0, 0]  # an axis of size 1


@both
def test_beyond_the_border_the_derivative_is_zero(function):
    along, _ = derivative_along_row(function, row([5.0, 1.0, 4.0]), [-0.01, 0.5, 0.01], "border")
    assert along == [0, 3, 0]


@both
def test_with_zeros_the_right_hand_difference_holds_at_the_border_too(function):
    # points -1, 0, 1, 2, 3 of an image that continues with 0
    along, across = derivative_along_row(function, row([5.0, 1.0, 4.0]), [-1.0] * 5, "zeros")
    assert along == [5, -4, 3, -4, 0]
    assert across == [0, -5, -1, -4, 0]


# Peers


def sampled_by_torch(image, u, padding):
    """grid_sample at the same points: its unit is half an image, x comes first."""
    axes = [torch.arange(n, dtype=u.dtype) for n in u.shape[2:]]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij")) + u
    units = [2 * points[:, k] / (image.shape[2 + k] - 1) - 1 for k in (1, 0)]
    grid = torch.stack(units, dim=-1)
    return F.grid_sample(image, grid, padding_mode=padding, align_corners=True)


@paddings
@pytest.mark.parametrize("size", [(2, 3), (9, 12), (33, 18)], ids=str)
def test_grid_sample_agrees(padding, size):
    image = uniform((2, 3, 7, 10), torch.float64).requires_grad_()
    reach = torch.tensor([0.8, 25.0], dtype=torch.float64).reshape(2, 1, 1, 1)
    u = (reach * uniform((2, 2, *size), torch.float64, seed=1)).requires_grad_()
    weights = uniform((2, 3, *size), torch.float64, seed=2)
    actual, expected = warp(image, u, padding=padding), sampled_by_torch(image, u, padding)
    # The change of unit and back loses some digits of a coordinate of about 40.
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)
    pairs = zip(
        torch.autograd.grad((weights * actual).sum(), [image, u]),
        torch.autograd.grad((weights * expected).sum(), [image, u]),
        strict=True,
    )
    for a, e in pairs:
        torch.testing.assert_close(a, e, rtol=1e-11, atol=1e-12)


@pytest.mark.filterwarnings("ignore")  # other packages' own warnings, while they are imported
@pytest.mark.parametrize("padding", ["border", "zeros"])
def test_monai_agrees(padding):
    blocks = pytest.importorskip("monai.networks.blocks", exc_type=ImportError)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = blocks.Warp(mode="bilinear", padding_mode=padding)
    image = uniform((2, 3, 9, 12), torch.float64).requires_grad_()
    u = (3 * uniform((2, 2, 9, 12), torch.float64, seed=1)).requires_grad_()
    actual, expected = warp(image, u, padding=padding), theirs(image, u)
    torch.testing.assert_close(actual, expected)
    pairs = zip(
        torch.autograd.grad((actual**2).sum(), [image, u]),
        torch.autograd.grad((expected**2).sum(), [image, u]),
        strict=True,
    )
    for a, e in pairs:
        torch.testing.assert_close(a, e)


# Errors

IMAGE, FIELD = torch.zeros(1, 1, 4, 5), torch.zeros(1, 2, 4, 5)


@pytest.mark.parametrize(
    "moving, displacement, error, message",
    [
        (None, FIELD, TypeError, r"moving must be a torch.Tensor, got NoneType"),
        (IMAGE, 3.0, TypeError, r"displacement must be a torch.Tensor, got float"),
        (IMAGE[0], FIELD, ValueError, r"moving must be \(N, C, H, W\) .*, got \[1, 4, 5\]$"),
        (
            IMAGE[None],
            FIELD,
            ValueError,
            r"displacement must have as many axes as moving, \[1, 1, 1, 4, 5\]",
        ),
        (IMAGE, FIELD[0], ValueError, r"displacement must be \(N, 2, H, W\) .*, got \[2, 4, 5\]$"),
        (IMAGE, torch.zeros(1, 3, 4, 5), ValueError, r"displacement .* got \[1, 3, 4, 5\]$"),
        (
            IMAGE,
            torch.zeros(1, 3, 3, 4, 5),
            ValueError,
            r"displacement must have as many axes as moving, \[1, 1, 4, 5\]",
        ),
        (IMAGE.int(), FIELD, TypeError, r"moving must be float16, .* or float64, got torch.int32"),
        (IMAGE.long(), FIELD, TypeError, r"moving must be float16, bfloat16, float32 or float64"),
        (IMAGE, FIELD.long(), TypeError, r"displacement must be float16, .* got torch.int64"),
        (
            torch.zeros(3, 1, 4, 5),
            FIELD,
            ValueError,
            r"displacement must have the batch size of moving, 3, got 1",
        ),
        (
            torch.zeros(1, 1, 0, 5),
            FIELD,
            ValueError,
            r"moving must have voxels to read, got shape \[1, 1, 0, 5\]",
        ),
    ],
)
def test_bad_tensors_are_refused(moving, displacement, error, message):
    with pytest.raises(error, match=message):
        warp(moving, displacement)


@pytest.mark.parametrize(
    "options, error, message",
    [
        (
            {"interpolation": "bilinear"},
            ValueError,
            r"interpolation must be one of 'linear', 'nearest', 'cubic', got 'bilinear'",
        ),
        (
            {"padding": "wrap"},
            ValueError,
            r"padding must be one of 'border', 'zeros', 'reflection', got",
        ),
        ({"mode": "bilinear"}, TypeError, r"'mode': use interpolation='linear', .* or 'cubic'"),
        ({"padding_mode": "zeros"}, TypeError, r"use padding='border', 'zeros' or 'reflection'"),
        ({"align_corners": True}, TypeError, r"'align_corners': displacements are in voxels"),
        ({"grid": FIELD}, TypeError, r"'grid': pass displacement, \(N, D, \*S\) in voxels"),
        ({"colour": 1}, TypeError, r"unexpected keyword argument 'colour'"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        warp(IMAGE, FIELD, **options)


def test_a_gradient_to_an_image_without_one_is_refused():
    with pytest.raises(TypeError, match="moving that requires a gradient must be float16"):
        warp(IMAGE.cfloat().requires_grad_(), FIELD, "nearest")


def test_another_device_is_refused():
    sparse = IMAGE.to_sparse()
    with pytest.raises((NotImplementedError, RuntimeError)):
        warp(sparse, FIELD)
