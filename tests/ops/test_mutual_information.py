import math

import golden
import numpy as np
import pytest
import torch
from cases import Calls, uniform
from scipy.interpolate import BSpline
from torch._subclasses.fake_tensor import FakeTensorMode

from diffreg import metrics
from diffreg.ops import _checks, mutual_information, mutual_information_reference

both = pytest.mark.parametrize("function", [mutual_information, mutual_information_reference])
dtypes = pytest.mark.parametrize(
    "dtype, digits", [(torch.float64, 1e-11), (torch.float32, 2e-6)], ids=["double", "single"]
)
# Of the golden images: the definition below and, with the ranges held, its finite differences.
VALUE, GRADIENT_NORM = -1.23334720001, 1.42746727
CUBIC = BSpline.basis_element(np.arange(-2.0, 3.0), extrapolate=False)


def picture(seed=0, size=(24, 20), samples=2):
    return (1 + uniform((samples, 1, *size), torch.float64, seed)) / 2


def row(*values, dtype=torch.float64):
    return torch.tensor(values, dtype=dtype).reshape(1, 1, 1, -1)


def direct(warped, fixed, weight=None, bins=32, moving=None):
    """The definition, voxel by voxel and bin by bin, of one sample."""
    warped, fixed = warped.flatten().numpy(), fixed.flatten().numpy()
    weight = np.ones_like(warped) if weight is None else weight.flatten().numpy()
    known = warped[weight > 0] if moving is None else moving.flatten().numpy()
    low, high = known.min(), known.max()
    below, above = fixed[weight > 0].min(), fixed[weight > 0].max()
    joint = np.zeros((bins, bins))
    for w, r, m in zip(warped, fixed, weight, strict=True):
        at = 2 + min(max((w - low) / (high - low), 0), 1) * (bins - 4)
        box = min(int(2 + (r - below) / (above - below) * (bins - 4)), bins - 3)
        for k in range(bins):
            joint[k, box] += m * np.nan_to_num(CUBIC(k - at))
    joint /= joint.sum()
    information = 0.0
    for a, b in zip(*joint.nonzero(), strict=True):
        information += joint[a, b] * math.log(joint[a, b] / (joint[a].sum() * joint[:, b].sum()))
    return -information


# Values


@both
def test_by_hand(function):
    """Two intensities in equal parts, told apart by the other image: ln 2 nats."""
    # The warped image's values lie on a knot: its cubic windows are (1, 4, 1) / 6 over three bins
    # each, which do not meet, so that nothing is lost.
    value = function(row(1.0, 1.0, 0.0, 0.0), row(0.0, 0.0, 1.0, 1.0))
    assert value.item() == pytest.approx(-math.log(2), abs=1e-12)


@both
@dtypes
def test_golden(function, dtype, digits):
    warped = golden.warped(dtype).requires_grad_()
    value = function(warped, golden.fixed(dtype))
    (gradient,) = torch.autograd.grad(value.sum(), warped)
    assert value.item() == pytest.approx(VALUE, rel=digits)
    assert gradient.norm().item() == pytest.approx(GRADIENT_NORM, rel=max(1e-7, 10 * digits))


@both
@pytest.mark.parametrize("bins", [5, 8, 32])
@pytest.mark.parametrize("size", [(9, 11), (4, 5, 6)], ids=str)
def test_it_is_its_definition(function, size, bins):
    warped, fixed, weight = (picture(seed, size, 1) for seed in range(3))
    weight = (weight - 0.3).clamp(min=0)
    fixed, moving = fixed**2, picture(3, size, 1)[..., 1:]
    for options in ({}, {"mask": weight}, {"moving": moving}, {"mask": weight, "moving": moving}):
        expected = direct(warped, fixed, options.get("mask"), bins, options.get("moving"))
        assert function(warped, fixed, bins, **options).item() == pytest.approx(expected, abs=1e-12)


@both
def test_independent_images_have_none(function):
    fixed = row(0.0, 0.0, 1.0, 1.0)
    assert function(row(0.0, 1.0, 0.0, 1.0), fixed).item() == pytest.approx(0, abs=1e-12)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("constant", [0.0, 0.1, -1234.567])
@pytest.mark.parametrize("which", ["warped", "fixed", "both"])
def test_constant_images_have_none_and_no_gradient(function, dtype, constant, which):
    flat, rough = torch.full((1, 1, 8, 9), constant, dtype=dtype), picture(0, (8, 9), 1).to(dtype)
    warped = (flat if which != "fixed" else rough).clone().requires_grad_()
    value = function(warped, flat if which != "warped" else rough)
    assert value.item() == pytest.approx(0, abs=4 * torch.finfo(dtype).eps)
    value.backward()
    assert warped.grad.abs().max() < 1e2 * torch.finfo(dtype).eps


def test_it_follows_the_histograms():
    fixed = torch.linspace(0, 1, 4096, dtype=torch.float64).reshape(1, 1, 64, 64)
    aligned, turned = 1 - fixed, fixed.mT.contiguous()
    assert mutual_information(aligned, fixed) < mutual_information(turned, fixed) - 1
    exact = metrics.mutual_information(aligned, fixed, bins=28)
    assert 2 < -mutual_information(aligned, fixed).item() < exact  # windows blur: some is lost


def test_scale_and_offset_do_not_matter():
    warped, fixed = picture(0), picture(1)
    expected = mutual_information(warped, fixed)
    torch.testing.assert_close(mutual_information(40 - 3 * warped.flip(3), fixed.flip(3)), expected)


def test_channels_count_together():
    warped, fixed = uniform((2, 3, 4, 5), torch.float64), uniform((2, 3, 4, 5), torch.float64, 1)
    flat = mutual_information(warped.reshape(2, 1, 12, 5), fixed.reshape(2, 1, 12, 5))
    torch.testing.assert_close(mutual_information(warped, fixed), flat, rtol=1e-13, atol=0)


@pytest.mark.parametrize("bins", [5, 64, 200])
def test_images_of_several_strips(bins):
    """Strips grow with the histogram; the smallest have 16,384 voxels."""
    warped, fixed = picture(0, (130, 140), 1).requires_grad_(), picture(1, (130, 140), 1)
    found, expected = (
        [value.detach(), *torch.autograd.grad(value.sum(), warped)]
        for value in (
            mutual_information(warped, fixed, bins),
            mutual_information_reference(warped, fixed, bins),
        )
    )
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-15)


# The range of the moving image


@both
def test_the_bins_are_those_of_the_moving_image(function):
    warped, fixed = picture(0, (6, 7), 1), picture(1, (6, 7), 1)
    ends = torch.tensor([[[[-0.5, torch.nan, 2.0, torch.inf]]]], dtype=torch.float64)
    expected = direct(warped, fixed, moving=ends[ends.isfinite()])
    assert function(warped, fixed, moving=ends).item() == pytest.approx(expected, abs=1e-12)
    volume = ends[None].float()  # of other axes and of another dtype
    assert function(warped, fixed, moving=volume).item() == pytest.approx(expected, abs=1e-12)


@both
def test_what_leaves_the_range_is_held_at_its_end(function):
    warped, fixed = picture(0, (6, 7), 1).requires_grad_(), picture(1, (6, 7), 1)
    ends = row(0.3, 0.7).requires_grad_()
    value = function(warped, fixed, moving=ends)
    held = function(warped.detach().clamp(0.3, 0.7), fixed, moving=ends)
    torch.testing.assert_close(value, held)
    to_warped, to_ends = torch.autograd.grad(value.sum(), (warped, ends), allow_unused=True)
    outside = (warped < 0.3) | (warped > 0.7)
    assert outside.any() and not to_warped[outside].any() and to_warped[~outside].all()
    assert to_ends is None


# Mask


@both
@pytest.mark.parametrize("mask_dtype", [torch.float64, torch.bool, torch.uint8], ids=str)
def test_a_mask_of_zeros_and_ones_crops(function, mask_dtype):
    warped = golden.warped().requires_grad_()
    mask = torch.zeros(1, 1, 8, 10, dtype=mask_dtype)
    mask[..., 2:7, 3:9] = 1
    value = function(warped, golden.fixed(), mask=mask)
    value.backward()
    cropped = golden.warped()[..., 2:7, 3:9].requires_grad_()
    expected = function(cropped, golden.fixed()[..., 2:7, 3:9])
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(warped.grad[..., 2:7, 3:9], cropped.grad, rtol=1e-11, atol=1e-15)
    assert not warped.grad[mask == 0].any()


@both
def test_a_mask_weighs_voxels_as_often_as_they_would_be_repeated(function):
    weighted = function(row(1.0, 2.0, 4.0), row(4.0, 7.0, 5.0), mask=row(1.0, 2.0, 1.0))
    repeated = function(row(1.0, 2.0, 2.0, 4.0), row(4.0, 7.0, 7.0, 5.0))
    torch.testing.assert_close(weighted, repeated, rtol=1e-14, atol=0)


@both
def test_the_scale_of_the_mask_does_not_matter(function):
    mask = picture(2, (8, 10), 1)
    value = function(golden.warped(), golden.fixed(), mask=mask)
    torch.testing.assert_close(value, function(golden.warped(), golden.fixed(), mask=8 * mask))


@both
def test_an_empty_mask_has_a_value_and_gradient_zero(function):
    warped = golden.warped().requires_grad_()
    value = function(warped, golden.fixed(), mask=torch.zeros(1, 1, 8, 10, dtype=torch.float64))
    value.backward()
    assert value.item() == 0
    assert not warped.grad.any()


@both
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("which", [0, 1])
def test_what_is_not_finite_is_nan_where_it_counts(function, bad, which):
    images, mask = [picture(0), picture(1)], torch.ones(2, 1, 24, 20, dtype=torch.float64)
    mask[:, :, 3, 4:7] = 0
    expected = function(*images, mask=mask)
    for x, spoiled in ((5, False), (8, True)):
        images[which][0, 0, 3, x] = bad
        warped = images[0].clone().requires_grad_()
        value = function(warped, images[1], mask=mask)
        value.sum().backward()
        assert value.isnan().tolist() == [spoiled, False]
        assert warped.grad[1].isfinite().all() and not warped.grad[mask == 0].any()
        if not spoiled:
            assert torch.equal(value, expected)
        elif function is mutual_information:
            assert warped.grad[0, 0, 5].isnan().all()


def test_a_gradient_to_the_mask_is_refused():
    mask = torch.ones(1, 1, 8, 10, dtype=torch.float64, requires_grad=True)
    value = mutual_information(golden.warped(), golden.fixed(), mask=mask)
    with pytest.raises(NotImplementedError, match=r"no gradient to mask: pass mask.detach\(\)"):
        value.backward()


# Gradients


@pytest.mark.parametrize("size", [(4, 5), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(masked, size):
    # Between the ends of the range, which finite differences would move.
    ends = row(-0.1, 1.1).expand(2, 1, 1, 2)
    warped, fixed = picture(0, size).requires_grad_(), picture(1, size)
    mask = (picture(2, size) - 0.3).clamp(min=0) if masked else None

    def function(image):
        return mutual_information(image, fixed, 8, mask, ends)

    assert torch.autograd.gradcheck(function, warped)
    assert torch.autograd.gradgradcheck(function, warped)


def test_the_gradient_is_the_slope_of_the_definition():
    warped, fixed, ends = picture(0, (5, 6), 1), picture(1, (5, 6), 1), row(-0.1, 1.1)
    leaf = warped.clone().requires_grad_()
    mutual_information(leaf, fixed, moving=ends).backward()
    for y, x in ((0, 0), (2, 3), (4, 5)):
        step = torch.zeros_like(warped)
        step[..., y, x] = 1e-6
        up, down = (direct(warped + s, fixed, moving=ends) for s in (step, -step))
        assert leaf.grad[0, 0, y, x].item() == pytest.approx((up - down) / 2e-6, rel=1e-6, abs=1e-9)


def test_there_is_no_gradient_to_fixed():
    warped, fixed = picture(0).requires_grad_(), picture(1).requires_grad_()
    value = mutual_information(warped, fixed).sum()
    assert torch.autograd.grad(value, fixed, allow_unused=True) == (None,)


def test_histograms_and_ranges_are_what_they_are_called():
    warped = golden.warped().requires_grad_()
    arguments = (warped, golden.fixed(), 8, None, None)
    _, histograms, ranges = torch.ops.diffreg.mutual_information(*arguments)
    assert histograms.shape == (1, 4, 8) and histograms.sum().item() == pytest.approx(80)
    counts = torch.histc(golden.fixed(), 4)
    torch.testing.assert_close(histograms.sum(2)[0], counts)
    images = golden.warped(), golden.fixed()
    expected = [part for i in images for part in (i.min().item(), (i.max() - i.min()).item())]
    assert ranges.tolist() == [expected]
    assert not histograms.requires_grad and not ranges.requires_grad


# A GPU, whose kernels read half types


@pytest.mark.core
@pytest.mark.parametrize("other", [torch.float16, torch.float32, torch.float64], ids=str)
def test_a_moving_image_in_float32_is_not_rounded_to_the_images_half_type(monkeypatch, other):
    monkeypatch.setattr(_checks, "_CUDA_BUILT", True)
    with FakeTensorMode(), Calls() as record:
        image = torch.zeros(2, 1, 8, 9, dtype=torch.float16, device="cuda")
        value = mutual_information(image, image, moving=image.to(other))
        assert (value.dtype, value.shape, value.device.type) == (torch.float32, (2,), "cuda")
    ((_, handed),) = record.calls
    dtypes = {a.dtype for a in handed if isinstance(a, torch.Tensor)}
    assert dtypes == {torch.float16 if other == torch.float16 else torch.float32}


# Errors

IMAGE = torch.zeros(2, 1, 4, 5)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((None, IMAGE), TypeError, "warped must be a torch.Tensor, got NoneType"),
        ((IMAGE, 1), TypeError, "fixed must be a torch.Tensor, got int"),
        ((IMAGE[0], IMAGE), ValueError, r"warped .* or \(N, C, Z, H, W\), got \[1, 4, 5\]"),
        ((IMAGE, IMAGE[:1]), ValueError, r"fixed must have the shape of warped, \[2, 1, 4, 5\]"),
        ((IMAGE.int(), IMAGE.int()), TypeError, "warped must be float16, bfloat16, float32 or"),
        ((IMAGE, IMAGE.to("meta")), ValueError, "fixed must be on the device of warped, cpu"),
        ((IMAGE, IMAGE, 4), ValueError, "bins must be at least 5 and at most 1024, got 4"),
        ((IMAGE, IMAGE, 1025), ValueError, "bins must be at least 5 and at most 1024, got 1025"),
        ((IMAGE, IMAGE, 32.0), TypeError, "bins must be an int, got float"),
        ((IMAGE, IMAGE, True), TypeError, "bins must be an int, got bool"),
        ((IMAGE, IMAGE, 32, IMAGE[:1]), ValueError, r"mask must be \(N, 1, \*S\) = \[2, 1, 4, 5\]"),
        ((IMAGE, IMAGE, 32, IMAGE - 1), ValueError, "mask must hold weights >= 0, got -1"),
        ((IMAGE, IMAGE, 32, None, 1.0), TypeError, "moving must be a torch.Tensor, got float"),
        ((IMAGE, IMAGE, 32, None, IMAGE[:1]), ValueError, r"moving must have 2 samples, got \[1, "),
        ((IMAGE, IMAGE, 32, None, IMAGE[0]), ValueError, r"moving must be \(N, C, H, W\) or"),
        ((IMAGE, IMAGE, 32, None, IMAGE.int()), TypeError, "moving must be float16, bfloat16,"),
        ((IMAGE, IMAGE, 32, None, IMAGE.to("meta")), ValueError, "moving must be on the device of"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        mutual_information(*arguments)


@pytest.mark.core
@pytest.mark.parametrize("bins", [-1, 0, 4, 1025, 2**40])
def test_the_core_refuses_histograms_of_other_sizes(bins):
    with pytest.raises(RuntimeError, match="bins must be at least 5 and at most 1024, got"):
        torch.ops.diffreg.mutual_information(IMAGE, IMAGE, bins, None, None)


@pytest.mark.core
def test_the_core_refuses_a_moving_image_that_does_not_fit():
    with pytest.raises(RuntimeError, match=r"moving must have 2 samples, got \[1, 1, 4, 5\]"):
        torch.ops.diffreg.mutual_information(IMAGE, IMAGE, 32, None, IMAGE[:1])
    with pytest.raises(RuntimeError, match="moving must have the dtype of the other inputs"):
        torch.ops.diffreg.mutual_information(IMAGE, IMAGE, 32, None, IMAGE.double())
