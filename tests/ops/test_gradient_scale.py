import math

import golden
import pytest
import torch
from cases import uniform

from diffreg.ops import gradient_scale, gradient_scale_reference
from diffreg.ops.gradient_scale import image_gradient_reference

both = pytest.mark.parametrize("function", [gradient_scale, gradient_scale_reference])
dtypes = pytest.mark.parametrize(
    "dtype, digits", [(torch.float64, 1e-11), (torch.float32, 1e-6)], ids=["double", "single"]
)


@both
def test_by_hand(function):
    image = torch.tensor([[0.0, 3.0], [4.0, 7.0]], dtype=torch.float64)[None, None]
    # replicated border: differences 4 down and 3 across, halved, at each of the four voxels
    assert function(image).item() == 2.5


@both
@dtypes
def test_golden(function, dtype, digits):
    assert function(golden.warped(dtype)).item() == pytest.approx(0.155423005562, rel=digits)
    assert function(golden.fixed(dtype)).item() == pytest.approx(0.10496178222, rel=digits)


@both
def test_eta_is_a_factor(function):
    torch.testing.assert_close(function(golden.warped(), 3.0), 3 * function(golden.warped()))


@both
def test_the_mean_runs_over_channels(function):
    image = torch.cat([golden.warped(), golden.fixed()], dim=1)
    expected = (function(golden.warped()) + function(golden.fixed())) / 2
    torch.testing.assert_close(function(image), expected)


def test_the_border_is_replicated():
    image = torch.tensor([1.0, 2.0, 4.0, 8.0]).reshape(1, 1, 4, 1)
    along, across = image_gradient_reference(image)
    assert along.flatten().tolist() == [0.5, 1.5, 3.0, 2.0]
    assert not across.any()
    assert gradient_scale(image).item() == 7 / 4


@both
@dtypes
def test_a_flat_image_has_the_floor(function, dtype, digits):
    image = torch.stack([torch.full((1, 5, 6), value, dtype=dtype) for value in (-3.0, 0.5, 0.0)])
    tiny = torch.finfo(dtype).tiny
    assert function(image).tolist() == pytest.approx([3e-6, 5e-7, tiny], rel=digits)


@both
def test_eta_does_not_change_the_floor(function):
    assert function(torch.ones(1, 1, 5, 6), 100.0).item() == pytest.approx(1e-6)


@both
def test_on_the_floor_there_is_no_gradient(function):
    image = torch.ones(1, 1, 5, 6, dtype=torch.float64, requires_grad=True)
    function(image).sum().backward()
    assert not image.grad.any()


@both
def test_nan_is_not_floored(function):
    image = golden.warped()
    image[0, 0, 3, 3] = math.nan
    assert function(image).isnan().all()


# Mask


@both
@pytest.mark.parametrize("dtype", [torch.float64, torch.bool], ids=str)
def test_a_mask_inside_a_crop_is_a_crop(function, dtype):
    mask = torch.zeros(1, 1, 8, 10, dtype=dtype)
    mask[..., 2:6, 3:8] = 1
    window = (..., slice(1, 7), slice(2, 9))  # one voxel more, for the differences
    value = function(golden.warped(), 1.0, mask)
    torch.testing.assert_close(value, function(golden.warped()[window], 1.0, mask[window]))


@both
def test_mask_by_hand(function):
    image = torch.tensor([0.0, 2.0, 6.0], dtype=torch.float64).reshape(1, 1, 1, 3)
    mask = torch.tensor([1.0, 0.0, 3.0], dtype=torch.float64).reshape(1, 1, 1, 3)
    assert function(image, 1.0, mask).item() == (1 * 1 + 3 * 2) / 4


@both
def test_an_empty_mask_leaves_the_floor(function):
    image = golden.warped().requires_grad_()
    value = function(image, 1.0, torch.zeros(1, 1, 8, 10, dtype=torch.float64))
    assert value.item() == pytest.approx(1e-6 * golden.warped().abs().max().item())
    value.backward()
    assert not image.grad.any()


@both
@pytest.mark.parametrize("value", [5.0, -5.0])
def test_the_floor_is_of_the_largest_magnitude_wherever_it_is(function, value):
    images = torch.zeros(36, 1, 2, 18, dtype=torch.float64)
    images.view(36, 36).fill_diagonal_(value)
    found = function(images, 1.0, torch.zeros_like(images))
    torch.testing.assert_close(found, torch.full_like(found, 5e-6), rtol=1e-12, atol=0)


def test_a_gradient_to_the_mask_is_refused():
    mask = torch.ones(1, 1, 8, 10, dtype=torch.float64, requires_grad=True)
    value = gradient_scale(golden.warped(), 1.0, mask)
    with pytest.raises(NotImplementedError, match=r"no gradient to mask: pass mask.detach\(\)"):
        value.backward()


# Gradients


@pytest.mark.parametrize("masked", [False, True])
def test_gradcheck(masked):
    # The second sample is on its floor: 1e-6 * 1e6 is more than its edges.
    image = uniform((2, 2, 3, 4), torch.float64)
    image[1] = 1e6 + 1e-2 * image[1]
    image.requires_grad_()
    mask = uniform((2, 1, 3, 4), torch.float64, seed=2).clamp(min=0) if masked else None
    values = gradient_scale(image, 0.7, mask)
    floors = 1e-6 * image.abs().flatten(1).amax(1)
    assert (values > floors).tolist() == [True, False]
    # The floor counts as a constant, so perturbing the largest voxel shows 1e-6 more.
    assert torch.autograd.gradcheck(gradient_scale, (image, 0.7, mask), atol=3e-6)
    assert torch.autograd.gradgradcheck(gradient_scale, (image, 0.7, mask))


def test_where_the_image_is_flat_there_is_no_direction():
    image = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    image[..., 6:, 6:] = 1
    image.requires_grad_()
    gradient_scale(image).backward()
    assert image.grad.isfinite().all()
    assert not image.grad[..., :4, :4].any()
    assert image.grad.any()


@pytest.mark.parametrize("shape", [(0, 1, 3, 4), (2, 1, 3, 0), (2, 0, 3, 4)])
def test_a_gradient_penalty_without_voxels_is_0(shape):
    """The scale of such an image is a constant."""
    image = torch.zeros(shape, requires_grad=True)
    (first,) = torch.autograd.grad(gradient_scale(image).sum(), image, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), image, materialize_grads=True)
    assert second.shape == shape


# Errors

IMAGE = torch.zeros(2, 1, 4, 5)


@pytest.mark.parametrize(
    "image, options, error, message",
    [
        (None, {}, TypeError, "image must be a torch.Tensor, got NoneType"),
        (IMAGE[0], {}, ValueError, r"image must be \(N, C, H, W\) .*, got \[1, 4, 5\]"),
        (IMAGE[None, None], {}, ValueError, r"or \(N, C, Z, H, W\), got"),
        (IMAGE.long(), {}, TypeError, "image must be float16, bfloat16, float32 or float64, got"),
        (IMAGE, {"eta": 0.0}, ValueError, "eta must be positive and finite, got 0.0"),
        (IMAGE, {"eta": math.nan}, ValueError, "eta must be positive and finite, got nan"),
        (IMAGE, {"eta": "1"}, TypeError, "eta must be a number, got '1'"),
        (
            IMAGE,
            {"eta": torch.ones((), requires_grad=True)},
            NotImplementedError,
            r"no gradient to eta: pass its .detach\(\)",
        ),
        (IMAGE, {"eta": math.inf}, ValueError, "eta must be positive and finite, got inf"),
        (IMAGE, {"mask": IMAGE[:1]}, ValueError, r"mask must be .* = \[2, 1, 4, 5\], got \[1, 1"),
        (IMAGE, {"mask": 1}, TypeError, "mask must be a torch.Tensor, got int"),
    ],
)
def test_bad_arguments_are_refused(image, options, error, message):
    with pytest.raises(error, match=message):
        gradient_scale(image, **options)
