import math

import golden
import pytest
import torch
from cases import uniform

from diffreg.ops import (
    gradient_scale,
    parallel_level_sets,
    parallel_level_sets_reference,
)
from diffreg.ops.gradient_scale import image_gradient_reference

both = pytest.mark.parametrize("function", [parallel_level_sets, parallel_level_sets_reference])
variants = pytest.mark.parametrize("variant", ["pls", "smooth", "ngf"])
dtypes = pytest.mark.parametrize(
    "dtype, digits", [(torch.float64, 1e-11), (torch.float32, 2e-6)], ids=["double", "single"]
)


@both
@pytest.mark.parametrize(
    "variant, value", [("pls", 1 - 16 / 24), ("smooth", 1 - 8 / 24), ("ngf", 1 - 4 / 24)]
)
def test_by_hand(function, variant, value):
    # g = (1, 0) and h = (2, 2) at all voxels, scales 1 and 2: A = 2, B = 12, G = 2, eW eR = 2,
    # Q = (2 + 2)^2, 2^2 + 2^2, 2^2
    warped = torch.tensor([[0.0, 0.0], [2.0, 2.0]], dtype=torch.float64)[None, None]
    fixed = torch.tensor([[0.0, 4.0], [4.0, 8.0]], dtype=torch.float64)[None, None]
    assert function(warped, fixed, 1.0, 2.0, variant).item() == pytest.approx(value, rel=1e-15)


@both
@dtypes
@pytest.mark.parametrize(
    "variant, value, gradient",
    [
        ("pls", 0.550069736896, 0.383128170302),
        ("smooth", 0.723496345091, 0.213222845195),
        ("ngf", 0.916805022271, 0.153436625307),
    ],
)
def test_golden(function, dtype, digits, variant, value, gradient):
    warped = golden.warped(dtype).requires_grad_()
    f = function(warped, golden.fixed(dtype), 0.1, 0.1, variant)
    f.backward()
    assert f.item() == pytest.approx(value, rel=digits)
    assert warped.grad.norm().item() == pytest.approx(gradient, rel=digits)


@both
def test_parallel_level_sets_cost_nothing(function):
    image = golden.warped()
    assert function(image, image).item() == pytest.approx(0, abs=1e-15)
    assert function(5 - 2 * image, image, 0.2, 0.1).item() == pytest.approx(0, abs=1e-15)


@both
def test_flat_regions_cost_one_under_ngf_alone(function):
    flat = torch.ones(1, 1, 5, 6)
    variants = ("pls", "smooth", "ngf")
    values = [function(flat, flat, 0.1, 0.1, variant).item() for variant in variants]
    assert values == pytest.approx([0, 0, 1], abs=1e-7)


@both
@variants
def test_inverting_the_contrast_changes_nothing(function, variant):
    scales = (0.1, 0.2, variant)
    value = function(golden.warped(), golden.fixed(), *scales)
    torch.testing.assert_close(function(1 - golden.warped(), golden.fixed(), *scales), value)


@both
@variants
def test_exchanging_the_images_changes_nothing(function, variant):
    value = function(golden.warped(), golden.fixed(), 0.1, 0.2, variant)
    other = function(golden.fixed(), golden.warped(), 0.2, 0.1, variant)
    torch.testing.assert_close(value, other)


@both
@variants
def test_a_factor_of_image_and_scale_changes_nothing(function, variant):
    value = function(golden.warped(), golden.fixed(), None, 0.2, variant)
    scaled = function(300 * golden.warped(), golden.fixed(), None, 0.2, variant)
    torch.testing.assert_close(value, scaled)


@both
@variants
def test_channels_are_averaged(function, variant):
    a, b = golden.warped(), golden.fixed()
    both_channels = function(torch.cat([a, b], 1), torch.cat([b, b], 1), 0.1, 0.2, variant)
    each = (function(a, b, 0.1, 0.2, variant) + function(b, b, 0.1, 0.2, variant)) / 2
    torch.testing.assert_close(both_channels, each)


# Scales


@both
@variants
@pytest.mark.parametrize("masked", [False, True])
def test_no_scale_is_the_gradient_scale_of_the_argument(function, variant, masked):
    """Of the whole image, whatever the mask."""
    warped, fixed = golden.warped().requires_grad_(), golden.fixed()
    mask = (golden.fixed() > 0.4).double() if masked else None
    value = function(warped, fixed, variant=variant, mask=mask)
    scales = gradient_scale(warped.detach()), gradient_scale(fixed)
    explicit = function(warped, fixed, *scales, variant, mask)
    torch.testing.assert_close(value, explicit, rtol=1e-14, atol=0)
    # and a constant to autograd
    pair = (torch.autograd.grad(v, warped)[0] for v in (value, explicit))
    torch.testing.assert_close(*pair, rtol=1e-12, atol=1e-16)


@both
def test_one_scale_for_each_sample(function):
    warped, fixed = golden.warped().expand(2, -1, -1, -1), golden.fixed().expand(2, -1, -1, -1)
    scales = torch.tensor([0.1, 0.4], dtype=torch.float64)
    values = function(warped, fixed, scales, 0.2)
    one_by_one = [function(golden.warped(), golden.fixed(), s.item(), 0.2) for s in scales]
    torch.testing.assert_close(values, torch.cat(one_by_one))


@both
@variants
def test_where_the_denominator_vanishes_nothing_costs(function, variant):
    # Both scales are the smallest normal number, whose square is 0.
    image = torch.zeros(1, 1, 5, 6, requires_grad=True)
    value = function(image, torch.zeros(1, 1, 5, 6), variant=variant)
    value.backward()
    assert value.item() == 0
    assert not image.grad.any()


@pytest.mark.core
@variants
@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e-10), (torch.float64, 1e-80)])
def test_a_denominator_below_the_normal_numbers_counts_as_vanished(variant, dtype, size):
    """A B is some size^4: its digits are few, and 1 / (A B) may be infinite."""
    pair = [(size * uniform((1, 1, 5, 6), dtype, seed)).requires_grad_() for seed in (0, 1)]
    value = parallel_level_sets(*pair, size, size, variant)
    assert value.item() == 0
    assert not any(g.any() for g in torch.autograd.grad(value.sum(), pair))


@pytest.mark.parametrize("name", ["eps_warped", "eps_fixed"])
def test_a_gradient_to_a_scale_is_refused(name):
    scale = torch.tensor([0.1], dtype=torch.float64, requires_grad=True)
    value = parallel_level_sets(golden.warped(), golden.fixed(), **{name: scale})
    with pytest.raises(NotImplementedError, match=rf"no gradient to {name}: pass {name}.detach"):
        value.backward()


# Mask


@both
@variants
@pytest.mark.parametrize("dtype", [torch.float64, torch.bool], ids=str)
def test_a_mask_inside_a_crop_is_a_crop(function, variant, dtype):
    mask = torch.zeros(1, 1, 8, 10, dtype=dtype)
    mask[..., 2:6, 3:8] = 1
    window = (..., slice(1, 7), slice(2, 9))  # one voxel more, for the differences
    warped = golden.warped().requires_grad_()
    value = function(warped, golden.fixed(), 0.1, 0.2, variant, mask)
    cropped = function(warped[window], golden.fixed()[window], 0.1, 0.2, variant, mask[window])
    torch.testing.assert_close(value, cropped)
    pair = (torch.autograd.grad(v, warped)[0] for v in (value, cropped))
    torch.testing.assert_close(*pair)


@both
@variants
def test_an_empty_mask_gives_zero_and_gradient_zero(function, variant):
    warped = golden.warped().requires_grad_()
    mask = torch.zeros(1, 1, 8, 10, dtype=torch.float64)
    value = function(warped, golden.fixed(), variant=variant, mask=mask)
    value.backward()
    assert value.item() == 0
    assert not warped.grad.any()


def test_a_gradient_to_the_mask_is_refused():
    mask = torch.ones(1, 1, 8, 10, dtype=torch.float64, requires_grad=True)
    value = parallel_level_sets(golden.warped(), golden.fixed(), mask=mask)
    with pytest.raises(NotImplementedError, match=r"no gradient to mask: pass mask.detach\(\)"):
        value.backward()


# Gradients


@variants
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(variant, masked):
    warped, fixed = uniform((2, 2, 3, 3), torch.float64), uniform((2, 2, 3, 3), torch.float64, 3)
    pairs = zip(image_gradient_reference(warped), image_gradient_reference(fixed), strict=True)
    G = sum(g * h for g, h in pairs)
    assert (G > 1e-3).sum() > 5 and (G < -1e-3).sum() > 5
    assert G.abs().min() > 1e-4  # away from the kink of pls
    scales = torch.tensor([0.3, 0.1], dtype=torch.float64)
    mask = uniform((2, 1, 3, 3), torch.float64, seed=2).clamp(min=0) if masked else None
    assert mask is None or ((mask == 0).sum() >= 4 and (mask > 0).sum() >= 4)
    inputs = (warped.requires_grad_(), fixed.requires_grad_(), scales, 0.2, variant, mask)
    assert torch.autograd.gradcheck(parallel_level_sets, inputs)
    assert torch.autograd.gradgradcheck(parallel_level_sets, inputs, fast_mode=True)


def test_where_edges_are_orthogonal_pls_takes_the_slope_zero():
    # G = 0 is a kink of |G|: both sides' slopes are equal and opposite.
    warped = torch.arange(3.0, dtype=torch.float64).reshape(1, 1, 3, 1).expand(1, 1, 3, 3).clone()
    fixed = torch.arange(3.0, dtype=torch.float64).reshape(1, 1, 1, 3).expand(1, 1, 3, 3).clone()
    pls, smooth = warped.clone().requires_grad_(), warped.clone().requires_grad_()
    parallel_level_sets(pls, fixed, 0.1, 0.1, "pls").backward()
    parallel_level_sets(smooth, fixed, 0.1, 0.1, "smooth").backward()
    assert torch.equal(pls.grad, smooth.grad)


@pytest.mark.parametrize("variant", ["pls", "smooth", "ngf"])
def test_nan_is_not_hidden(variant):
    warped = golden.warped()
    warped[0, 0, 3, 3] = math.nan
    warped.requires_grad_()
    value = parallel_level_sets(warped, golden.fixed(), 0.1, 0.1, variant)
    value.backward()
    assert value.isnan().all()
    assert warped.grad.isnan().any()


# Errors

IMAGE = torch.zeros(2, 1, 4, 5)


@pytest.mark.parametrize(
    "warped, fixed, options, error, message",
    [
        (None, IMAGE, {}, TypeError, "warped must be a torch.Tensor, got NoneType"),
        (IMAGE[None, None], IMAGE, {}, ValueError, r"or \(N, C, Z, H, W\), got"),
        (IMAGE, IMAGE[0], {}, ValueError, r"fixed must be \(N, C, H, W\) .*, got \[1, 4, 5\]"),
        (IMAGE, IMAGE[..., 1:], {}, ValueError, r"fixed must have the shape of warped, \[2, 1, 4"),
        (IMAGE.long(), IMAGE.long(), {}, TypeError, "warped must be float16, bfloat16"),
        (
            IMAGE,
            IMAGE,
            {"variant": "NGF"},
            ValueError,
            "variant must be one of 'pls', 'smooth', 'ngf', got 'NGF'",
        ),
        (IMAGE, IMAGE, {"eps_warped": 0}, ValueError, "eps_warped must be positive and finite"),
        (IMAGE, IMAGE, {"eps_fixed": -1.0}, ValueError, "eps_fixed must be positive and finite"),
        (IMAGE, IMAGE, {"eps_fixed": math.nan}, ValueError, "eps_fixed must be positive"),
        (IMAGE, IMAGE, {"eps_fixed": "1"}, TypeError, r"eps_fixed must be a float, a tensor"),
        (IMAGE, IMAGE, {"eps_fixed": True}, TypeError, r"eps_fixed must be a float, .* got bool"),
        (
            IMAGE,
            IMAGE,
            {"eps_warped": torch.ones(3)},
            ValueError,
            r"eps_warped must be a float or \(N,\) = \[2\], got \[3\]",
        ),
        (
            IMAGE,
            IMAGE,
            {"eps_warped": torch.tensor([1.0, 0.0])},
            ValueError,
            r"eps_warped must be positive, got \[1.0, 0.0\]",
        ),
        (
            IMAGE,
            IMAGE,
            {"eps_warped": torch.tensor([1.0, math.nan])},
            ValueError,
            r"eps_warped must be positive, got \[1.0, nan\]",
        ),
        (IMAGE, IMAGE, {"mask": IMAGE[:1]}, ValueError, r"mask must be .* = \[2, 1, 4, 5\], got"),
        (IMAGE, IMAGE, {"mask": 1}, TypeError, "mask must be a torch.Tensor, got int"),
    ],
)
def test_bad_arguments_are_refused(warped, fixed, options, error, message):
    with pytest.raises(error, match=message):
        parallel_level_sets(warped, fixed, **options)


@pytest.mark.parametrize("variant", ["pls", "smooth", "ngf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_derivatives_of_flat_images_are_finite(variant, dtype):
    """Their edge scales are some 1e-6, the square of A B is 0 in float32."""
    pair = [torch.full((1, 2, 6, 9), 0.75, dtype=dtype, requires_grad=True) for _ in range(2)]
    gradients = torch.autograd.grad(
        parallel_level_sets(*pair, variant=variant).sum(), pair, create_graph=True
    )
    found = torch.autograd.grad(sum(g.square().sum() + g[0, 0].sum() for g in gradients), pair)
    assert all(bool(g.isfinite().all()) for g in (*gradients, *found))


@pytest.mark.parametrize("size", [(40, 50), (7, 8, 9)])
def test_perpendicular_gradients_have_no_product(size):
    """Of images of whole numbers many are: |G| has the derivative 0 there, in plain PyTorch too."""
    random = torch.Generator().manual_seed(0)
    pair = [
        torch.randint(0, 9, (1, 1, *size), generator=random).double().requires_grad_()
        for _ in range(2)
    ]
    found, right = (
        torch.autograd.grad(operator(*pair, eps_warped=0.3, eps_fixed=0.7).sum(), pair)
        for operator in (parallel_level_sets, parallel_level_sets_reference)
    )
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
