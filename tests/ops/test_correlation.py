import golden
import pytest
import torch
from cases import uniform

from diffreg.ops import correlation, correlation_reference

both = pytest.mark.parametrize("function", [correlation, correlation_reference])
dtypes = pytest.mark.parametrize(
    "dtype, digits", [(torch.float64, 1e-11), (torch.float32, 1e-6)], ids=["double", "single"]
)


def row(values, dtype=torch.float64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype).reshape(1, 1, 1, -1)


@both
def test_by_hand(function):
    # about their means: (-1, 0, 1) and (-1, 1, 0), so cc = 1 / sqrt(2 * 2)
    assert function(row([1.0, 2.0, 3.0]), row([4.0, 6.0, 5.0])).item() == pytest.approx(0.5)


@both
@dtypes
def test_golden(function, dtype, digits):
    value = function(golden.warped(dtype), golden.fixed(dtype))
    assert value.item() == pytest.approx(0.920199133648, rel=digits)


@both
@pytest.mark.parametrize("factor, value", [(2.5, 0.0), (-0.3, 2.0)])
def test_linear_dependence(function, factor, value):
    image = golden.warped()
    assert function(factor * image + 7, image).item() == pytest.approx(value, abs=1e-14)


@both
@dtypes
def test_equal_images_are_never_below_nothing(function, dtype, digits):
    image = torch.cat(
        [uniform((1, 1, n, 7), dtype, seed=n).flatten(2)[..., :21] for n in range(3, 60)]
    )
    value = function(image[:, :, None], image[:, :, None])
    assert (value >= 0).all() and value.max() < 10 * digits


def test_at_linear_dependence_the_gradient_vanishes():
    image = (3 * golden.warped() - 1).requires_grad_()
    correlation(image, golden.warped()).sum().backward()
    assert image.grad.abs().max() < 1e-16


@pytest.mark.parametrize("function", [correlation])
def test_a_large_offset_costs_no_digits(function):
    # As in CT: raw float32 moments are wrong from the fourth digit on.
    warped = (1000 + 40 * uniform((1, 1, 120, 110), torch.float64)).float()
    fixed = (1000 + 40 * uniform((1, 1, 120, 110), torch.float64, seed=1)).float()
    fixed = (0.7 * warped + 0.3 * fixed).requires_grad_()
    exact = correlation_reference(warped.double(), fixed.detach().double())
    value = function(warped, fixed)
    assert value.item() == pytest.approx(exact.item(), rel=2e-7)
    value.backward()
    exact_fixed = fixed.detach().double().requires_grad_()
    correlation_reference(warped.double(), exact_fixed).backward()
    expected = exact_fixed.grad.float()
    torch.testing.assert_close(fixed.grad, expected, rtol=1e-5, atol=1e-6 * expected.abs().max())


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("constant", [0.0, 0.1, 1234.567])
@pytest.mark.parametrize("which", ["warped", "fixed", "both"])
def test_constant_images_have_no_correlation_and_no_gradient(function, dtype, constant, which):
    flat = torch.full((1, 1, 20, 7), constant, dtype=dtype)
    rough = uniform((1, 1, 20, 7), dtype)
    warped = (flat if which != "fixed" else rough).clone().requires_grad_()
    fixed = (flat if which != "warped" else rough).clone().requires_grad_()
    value = function(warped, fixed)
    assert value.item() == 1
    value.backward()
    assert not warped.grad.any() and not fixed.grad.any()


def test_a_faint_image_is_not_constant():
    image = 1 + 1e-4 * golden.fixed(torch.float32)
    assert correlation(image, golden.fixed(torch.float32)).item() == pytest.approx(0, abs=1e-4)


def test_channels_count_together():
    warped, fixed = uniform((2, 3, 4, 5), torch.float64), uniform((2, 3, 4, 5), torch.float64, 1)
    flat = correlation(warped.reshape(2, 1, 12, 5), fixed.reshape(2, 1, 12, 5))
    torch.testing.assert_close(correlation(warped, fixed), flat, rtol=1e-14, atol=0)


# Mask


@both
@pytest.mark.parametrize("mask_dtype", [torch.float64, torch.bool, torch.uint8], ids=str)
def test_a_mask_of_zeros_and_ones_crops(function, mask_dtype):
    warped = golden.warped().requires_grad_()
    mask = torch.zeros(1, 1, 8, 10, dtype=mask_dtype)
    mask[..., 2:7, 3:9] = 1
    value = function(warped, golden.fixed(), mask)
    value.backward()
    cropped = golden.warped()[..., 2:7, 3:9].requires_grad_()
    expected = function(cropped, golden.fixed()[..., 2:7, 3:9])
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-14, atol=0)
    torch.testing.assert_close(warped.grad[..., 2:7, 3:9], cropped.grad, rtol=1e-12, atol=1e-16)
    assert not warped.grad[mask == 0].any()


@both
def test_the_scale_of_the_mask_does_not_matter(function):
    mask = uniform((1, 1, 8, 10), torch.float64).abs()
    value = function(golden.warped(), golden.fixed(), mask)
    torch.testing.assert_close(value, function(golden.warped(), golden.fixed(), 8 * mask))


@both
def test_a_mask_weighs_voxels_as_often_as_they_would_be_repeated(function):
    mask = torch.ones(1, 1, 1, 3, dtype=torch.float64)
    mask[..., 1] = 2
    weighted = function(row([1.0, 2.0, 4.0]), row([4.0, 7.0, 5.0]), mask)
    repeated = function(row([1.0, 2.0, 2.0, 4.0]), row([4.0, 7.0, 7.0, 5.0]))
    torch.testing.assert_close(weighted, repeated, rtol=1e-14, atol=0)


@both
def test_an_empty_mask_has_a_value_and_gradient_zero(function):
    warped = golden.warped().requires_grad_()
    value = function(warped, golden.fixed(), torch.zeros(1, 1, 8, 10, dtype=torch.float64))
    value.backward()
    assert value.item() == 1
    assert not warped.grad.any()


def test_a_gradient_to_the_mask_is_refused():
    mask = torch.ones(1, 1, 8, 10, dtype=torch.float64, requires_grad=True)
    value = correlation(golden.warped(), golden.fixed(), mask)
    with pytest.raises(NotImplementedError, match=r"no gradient to mask: pass mask.detach\(\)"):
        value.backward()


# Gradients


@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(masked):
    warped = uniform((2, 2, 3, 3), torch.float64).requires_grad_()
    fixed = uniform((2, 2, 3, 3), torch.float64, seed=1).requires_grad_()
    mask = uniform((2, 1, 3, 3), torch.float64, seed=2).clamp(min=0) if masked else None
    assert mask is None or ((mask == 0).sum() >= 5 and (mask > 0).sum() >= 5)
    assert torch.autograd.gradcheck(correlation, (warped, fixed, mask))
    assert torch.autograd.gradgradcheck(correlation, (warped, fixed, mask))


def test_gradient_descends_to_linear_dependence():
    # A step along the gradient must lower the value: the sign by itself.
    warped = golden.warped().requires_grad_()
    value = correlation(warped, golden.fixed())
    value.backward()
    assert correlation(warped - 0.1 * warped.grad, golden.fixed()).item() < value.item()


def test_moments_have_no_gradient():
    warped = golden.warped().requires_grad_()
    _, moments = torch.ops.diffreg.correlation(warped, golden.fixed(), None)
    assert not moments.requires_grad


# Errors

IMAGE = torch.zeros(2, 1, 4, 5)


@pytest.mark.parametrize(
    "warped, fixed, mask, error, message",
    [
        (None, IMAGE, None, TypeError, "warped must be a torch.Tensor, got NoneType"),
        (IMAGE, 1, None, TypeError, "fixed must be a torch.Tensor, got int"),
        (IMAGE[0], IMAGE, None, ValueError, r"warped .* or \(N, C, Z, H, W\), got \[1, 4, 5\]"),
        (IMAGE, IMAGE[0], None, ValueError, r"fixed .* or \(N, C, Z, H, W\), got \[1, 4, 5\]"),
        (IMAGE[None, None], IMAGE, None, ValueError, r"got \[1, 1, 2, 1, 4, 5\]"),
        (
            IMAGE,
            IMAGE[:1],
            None,
            ValueError,
            r"fixed must have the shape of warped, \[2, 1, 4, 5\], got \[1, 1, 4, 5\]",
        ),
        (IMAGE.int(), IMAGE.int(), None, TypeError, "warped must be float16, bfloat16, float32 or"),
        (IMAGE, IMAGE, 1.0, TypeError, "mask must be a torch.Tensor, got float"),
        (
            IMAGE,
            IMAGE,
            IMAGE[:1],
            ValueError,
            r"mask must be \(N, 1, \*S\) = \[2, 1, 4, 5\], got \[1, 1, 4, 5\]",
        ),
        (IMAGE, IMAGE, IMAGE[:, 0], ValueError, r"mask must be \(N, 1, \*S\) .* got \[2, 4, 5\]"),
        (IMAGE, IMAGE, IMAGE.cfloat(), TypeError, "mask must be real, got torch.complex64"),
        (IMAGE, IMAGE, IMAGE.to("meta"), ValueError, "mask must be on the device of the image"),
        (IMAGE, IMAGE.to("meta"), None, ValueError, "fixed must be on the device of warped, cpu"),
    ],
)
def test_bad_arguments_are_refused(warped, fixed, mask, error, message):
    with pytest.raises(error, match=message):
        correlation(warped, fixed, mask)
