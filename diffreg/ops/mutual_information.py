"""Minus the mutual information of two images, from Parzen windows.

    MI = sum_ab p_ab ln(p_ab / (p_a p_b))

with p from cubic B-splines for the warped image and boxes for the fixed one. The number for
evaluation, from a plain histogram, is diffreg.metrics.mutual_information.
"""

import torch

from diffreg.ops._autograd import differentiable
from diffreg.ops._checks import (
    arithmetic_dtype,
    as_handed,
    check_image,
    check_pair,
    check_same_device,
    checked_mask,
    in_dtype,
    refuse_transforms,
    renamed_keywords,
    widest_dtype,
)
from diffreg.ops._double_backward import gradients_of_gradients
from diffreg.ops._masks import counted

_PADDING = 2  # bins at each end, so that a cubic window stays inside
_FEWEST, _MOST = 2 * _PADDING + 1, 1024

# Other libraries' names, of the operator and of its module.
OF_BINS = {
    "num_bins": "use bins",
    "kernel_type": "the window is cubic for warped and a box for fixed",
    "sigma_ratio": "the window is cubic for warped and a box for fixed",
}


@renamed_keywords(**OF_BINS)
def mutual_information(
    warped: torch.Tensor,
    fixed: torch.Tensor,
    bins: int = 32,
    mask: torch.Tensor | None = None,
    moving: torch.Tensor | None = None,
) -> torch.Tensor:
    """Minus the mutual information in nats: smaller is better, 0 for independent images.

    The bins cover the range of each image, where the mask is not 0, and are constants to autograd.
    No gradient goes to fixed: its window is a box. The joint histogram is added up in double, on a
    GPU in integers of 2^-30 of the largest weight (2^-60 in float64), the same at every run.

    Args:
        warped: image (N, C, *S), any floating dtype; channels are voxels of one image.
        fixed: image of the same shape.
        bins: along each axis of the joint histogram, 5 to 1024.
        mask: weights (N, 1, *S) >= 0 of the voxels, a constant to autograd; None is 1. A voxel of
            weight 0 is not read.
        moving: image (N, any, *any), that before the warp, whose range the bins of `warped` cover,
            so that they do not change with the displacement: that of its finite values, a constant
            to autograd. None: `warped` itself.

    Returns:
        (N,) <= 0 up to rounding, float32 for half types; 0 where an image is constant or the
        weights add up to 0; NaN where a value that counts is not finite.

    Raises:
        TypeError: not tensors, dtypes that are not supported, or `bins` that is not an int.
        ValueError: shapes, devices or `bins` that do not fit, or negative or NaN weights (not
            looked at on a GPU, which would have to be waited for).
        NotImplementedError: forward-mode AD, a gradient to the mask, or a device without kernels.

    Source:
        Mattes et al. 2003: Parzen windows of B-splines of order 3 and 0.

    Example:
        >>> import torch
        >>> from diffreg.ops import mutual_information
        >>> fixed = torch.tensor([0.0, 0.0, 1.0, 1.0]).reshape(1, 1, 1, 4)
        >>> mutual_information(7 - 3 * fixed, fixed)  # each tells which of two the other is: ln 2
        tensor([-0.6931])
    """
    check_pair(warped, fixed)
    _check_bins(bins)
    dtype = arithmetic_dtype(warped, fixed)
    weights = checked_mask(mask, warped, dtype)
    images = [warped, fixed]
    if moving is not None:
        _check_moving(moving, warped)
        moving = moving.detach()
        images.append(moving if moving.dtype == warped.dtype else in_dtype(moving, dtype))
    refuse_transforms("mutual_information")
    warped, fixed, *ends = as_handed(*images)
    moving = ends[0] if ends else None
    value, _histograms, _ranges = _operator(warped, fixed, bins, weights, moving)
    return value


def _check_bins(bins: int) -> None:
    if isinstance(bins, bool) or not isinstance(bins, int):
        raise TypeError(f"bins must be an int, got {type(bins).__name__}")
    if not _FEWEST <= bins <= _MOST:
        raise ValueError(f"bins must be at least {_FEWEST} and at most {_MOST}, got {bins}")


def _check_moving(moving: torch.Tensor, warped: torch.Tensor) -> None:
    check_image("moving", moving)
    if moving.shape[0] != warped.shape[0]:
        raise ValueError(f"moving must have {warped.shape[0]} samples, got {list(moving.shape)}")
    check_same_device("moving", moving, "warped", warped)


def mutual_information_reference(
    warped: torch.Tensor,
    fixed: torch.Tensor,
    bins: int = 32,
    mask: torch.Tensor | None = None,
    moving: torch.Tensor | None = None,
) -> torch.Tensor:
    """`mutual_information` in plain PyTorch: every window at every bin, (N, bins, voxels).

    Args, Returns: as `mutual_information`.
    """
    images = flattened(warped, fixed, mask)
    ranges = ranges_of(*images, moving)
    # A box of NaN is empty, and the bins hold what is infinite: neither would show.
    unknown = (0 * images[0].detach() + 0 * images[1]).sum(1).reshape(-1, 1, 1)
    return minus_information(_joint_histogram(*images, ranges, bins) + unknown)


def flattened(
    warped: torch.Tensor, fixed: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Both images and the weights, (N, voxels) each; what does not count is 0."""
    dtype = arithmetic_dtype(warped, fixed)
    weight = torch.ones_like(warped[:, :1], dtype=dtype) if mask is None else mask.to(dtype)
    weight = weight.expand_as(warped).flatten(1)
    warped, fixed = counted(warped.to(dtype), mask), counted(fixed.detach().to(dtype), mask)
    return warped.flatten(1), fixed.flatten(1), weight


def ranges_of(
    warped: torch.Tensor, fixed: torch.Tensor, weight: torch.Tensor, moving: torch.Tensor | None
) -> torch.Tensor:
    """Lowest intensity and extent that the bins cover, of warped and of fixed, (N, 4)."""
    if moving is None:
        of_warped = _range(warped, weight > 0)
    else:
        of_warped = _range(moving.flatten(1).to(warped.dtype), None)
    return torch.cat([of_warped, _range(fixed, weight > 0)], 1)


def _joint_histogram(
    warped: torch.Tensor,
    fixed: torch.Tensor,
    weight: torch.Tensor,
    ranges: torch.Tensor,
    bins: int,
) -> torch.Tensor:
    """Boxes of the fixed image by windows of the other, of (N, voxels) (N, bins - 4, bins)."""
    centres = torch.arange(bins, dtype=warped.dtype, device=warped.device).reshape(1, -1, 1)
    windows = cubic(centres - positions(warped, ranges[:, :2], bins).unsqueeze(1))
    box = positions(fixed, ranges[:, 2:], bins).floor().clamp(_PADDING, bins - _PADDING - 1)
    boxes = (box.unsqueeze(1) == centres[:, _PADDING : bins - _PADDING]).to(warped.dtype)
    return boxes @ (windows * weight.unsqueeze(1)).mT


def minus_information(counts: torch.Tensor) -> torch.Tensor:
    """Of a joint histogram (N, rows, columns), in nats, (N,)."""
    total = counts.sum((1, 2), keepdim=True)
    joint = counts / torch.where(total == 0, torch.ones_like(total), total)
    return _entropy(joint) - _entropy(joint.sum(2)) - _entropy(joint.sum(1))


def _range(values: torch.Tensor, counts: torch.Tensor | None) -> torch.Tensor:
    """Smallest finite intensity of each sample (N, voxels) that counts, and the extent, (N, 2)."""
    values = values.detach()
    if values.shape[1] == 0:
        return values.new_tensor([[0.0, 1.0]]).expand(len(values), 2)
    known = torch.isfinite(values)
    if counts is not None:
        known = known & counts
    low = torch.where(known, values, torch.inf).amin(1, keepdim=True)
    high = torch.where(known, values, -torch.inf).amax(1, keepdim=True)
    none = low > high  # nothing counts
    return torch.cat([torch.where(none, 0, low), torch.where(none, 1, high - low)], 1)


def positions(image: torch.Tensor, ends: torch.Tensor, bins: int) -> torch.Tensor:
    """Where intensities (N, voxels) fall among the bins, in [2, bins - 2]."""
    low, extent = ends[:, :1], ends[:, 1:]
    extent = torch.where(extent > 0, extent, torch.ones_like(extent))
    part = (image - low) / extent
    # Of clamp's derivative at its ends torch has changed its mind.
    part = torch.where((part < 0) | (part > 1), part.detach().clamp(0, 1), part)
    return _PADDING + part * (bins - 2 * _PADDING)


def cubic(t: torch.Tensor) -> torch.Tensor:
    """The cubic B-spline, of support (-2, 2)."""
    distance = t.abs()
    return ((2 - distance).clamp(min=0) ** 3 - 4 * (1 - distance).clamp(min=0) ** 3) / 6


def _entropy(probability: torch.Tensor) -> torch.Tensor:
    """In nats, (N,); 0 ln 0 = 0, in the gradient too."""
    p = probability.flatten(1)
    return -(p * torch.where(p > 0, p, torch.ones_like(p)).log()).sum(1)


@torch.library.register_fake("diffreg::mutual_information")
def _mutual_information_fake(warped, fixed, bins, mask, moving):
    samples = warped.shape[0]
    return (
        warped.new_empty((samples,), dtype=arithmetic_dtype(warped)),
        warped.new_empty((samples, bins - 2 * _PADDING, bins), dtype=widest_dtype(warped)),
        warped.new_empty((samples, 4), dtype=widest_dtype(warped)),
    )


@torch.library.register_fake("diffreg::mutual_information_backward")
def _mutual_information_backward_fake(
    gradient, histograms, ranges, warped, fixed, bins, mask, moving
):
    return warped.new_empty(warped.shape)


def _setup_context(ctx, inputs, output):
    warped, fixed, ctx.bins, mask, moving = inputs
    ctx.save_for_backward(*output[1:], warped, fixed, mask, moving)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx, gradient, _grad_histograms, _grad_ranges):
    refuse_transforms("mutual_information")
    if ctx.needs_input_grad[3]:
        raise NotImplementedError("mutual_information has no gradient to mask: pass mask.detach()")
    if gradient is None or not ctx.needs_input_grad[0]:
        return 5 * (None,)
    *saved, mask, moving = ctx.saved_tensors
    return _operator_backward(gradient, *saved, ctx.bins, mask, moving), *4 * (None,)


def _setup_double_context(ctx, inputs, output):
    gradient, _histograms, _ranges, warped, fixed, ctx.bins, mask, moving = inputs
    ctx.save_for_backward(gradient, warped, fixed, mask, moving)
    ctx.set_materialize_grads(False)


def _double_backward(ctx, grad_gradient):
    refuse_transforms("mutual_information")
    gradient, warped, fixed, mask, moving = ctx.saved_tensors
    (to_gradient,), (to_warped,) = gradients_of_gradients(
        lambda w: mutual_information_reference(w, fixed, ctx.bins, mask, moving),
        *([warped], [gradient], [grad_gradient]),
    )
    return to_gradient, None, None, to_warped, *4 * (None,)


_operator = differentiable("mutual_information", _backward, _setup_context)
_operator_backward = differentiable(
    "mutual_information_backward", _double_backward, _setup_double_context
)
