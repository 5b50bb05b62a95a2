"""1 minus the squared local correlation coefficient, averaged over windows."""

import torch
import torch.nn.functional as F

from diffreg.ops._autograd import differentiable
from diffreg.ops._checks import (
    arithmetic_dtype,
    as_handed,
    check_pair,
    checked_mask,
    refuse_transforms,
    renamed_keywords,
    widest_dtype,
)
from diffreg.ops._double_backward import gradients_of_gradients
from diffreg.ops._masks import visible
from diffreg.ops.gradient_scale import masked_mean_reference

GUARD = 1e-5  # smallest variance that counts; assumes images in [0, 1]


# Other libraries' names, of the operator and of its module.
OF_WINDOWS = {
    "win": "use window, one odd number",
    "window_size": "use window",
    "kernel_size": "use window",
    "kernel_type": "the window is a box",
    "spatial_dims": "what is given tells the dimension",
}


@renamed_keywords(**OF_WINDOWS)
def local_correlation(
    warped: torch.Tensor,
    fixed: torch.Tensor,
    window: int = 9,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """1 - mean of c^2 / (max(v, 1e-5) max(r, 1e-5)) over the windows around every voxel.

    c, v, r are the covariance and the variances of both images in a box window, cut at the border
    and divided by its true count. Not 0 when aligned: a flat window costs 1. The guard 1e-5 assumes
    images in [0, 1]. On a CPU the cost a voxel grows slowly with the window, one of 17 takes about
    twice one of 3; on a GPU it is the same for any window of images, but not of volumes.

    Args:
        warped: image (N, C, *S), any floating dtype.
        fixed: image of the same shape.
        window: side of the box in voxels, odd.
        mask: weights (N, 1, *S) >= 0 of the mean over windows, a constant to autograd; None is 1.
            To the windows of other voxels, what is not finite where the weight is 0 is 0.

    Returns:
        (N,), in [0, 1], float32 for half types; 0 where the weights add up to 0.

    Raises:
        TypeError: not tensors, dtypes that are not supported, or a window that is no int.
        ValueError: shapes, devices or a window that do not fit, or negative or NaN weights (not
            looked at on a GPU, which would have to be waited for).
        NotImplementedError: forward-mode AD, a gradient to the mask, or a device without kernels.

    Source:
        Local cross-correlation (Avants et al. 2008), with population moments.

    Example:
        >>> import torch
        >>> from diffreg.ops import local_correlation
        >>> ramp = torch.arange(16.0).reshape(1, 1, 4, 4) / 16
        >>> local_correlation(1 - ramp, ramp, window=3) < 1e-6
        tensor([True])
    """
    check_pair(warped, fixed)
    check_window(window)
    weights = checked_mask(mask, warped, arithmetic_dtype(warped, fixed))
    refuse_transforms("local_correlation")
    return _operator(*as_handed(warped, fixed), window, weights)


def check_window(window: int) -> None:
    if isinstance(window, bool) or not isinstance(window, int):
        raise TypeError(f"window must be an int, got {type(window).__name__}")
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and positive, got {window}")


def local_correlation_reference(
    warped: torch.Tensor,
    fixed: torch.Tensor,
    window: int = 9,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`local_correlation` in plain PyTorch: five box means in double, or central moments in float.

    Args, Returns: as `local_correlation`.
    """
    wide = widest_dtype(warped)
    moments = _moments if wide == torch.float64 else _central_moments
    v, variance, c = moments(visible(warped, mask).to(wide), visible(fixed, mask).to(wide), window)
    f = 1 - c**2 / (v.clamp(min=GUARD) * variance.clamp(min=GUARD))
    return masked_mean_reference(f, None if mask is None else mask.to(wide)).to(warped.dtype)


def _moments(w: torch.Tensor, r: torch.Tensor, window: int) -> tuple[torch.Tensor, ...]:
    """Variances of both images and their covariance over the windows, (N, C, *S) each."""
    mean_w, mean_r = _box_mean(w, window), _box_mean(r, window)
    v = _box_mean(w * w, window) - mean_w**2
    variance = _box_mean(r * r, window) - mean_r**2
    return v, variance, _box_mean(w * r, window) - mean_w * mean_r


def _central_moments(w: torch.Tensor, r: torch.Tensor, window: int) -> tuple[torch.Tensor, ...]:
    """The same where float64 is missing and a difference of large means would cancel.

    Of lines, of planes, of boxes: what varies within the parts, on average, and what varies between
    their means, about the mean of these (Chan, Golub and LeVeque 1983).
    """
    within = [torch.zeros_like(w) for _ in range(3)]
    for axis in range(2, w.ndim):
        lines = [_about_mean(image, window, axis) for image in (w, r)]
        pairs = (lines[0], lines[0]), (lines[1], lines[1]), lines
        within = [
            _line_mean(part, window, axis) + (one * other).sum(-1)
            for part, (one, other) in zip(within, pairs, strict=True)
        ]
        w, r = _line_mean(w, window, axis), _line_mean(r, window, axis)
    return tuple(within)


def _about_mean(image: torch.Tensor, window: int, axis: int) -> torch.Tensor:
    """What the voxels of a window along an axis have more than their mean, (N, C, *S, window), over
    the root of their number; 0 outside of the image."""
    ends = (window // 2, window // 2)
    lines = F.pad(image.movedim(axis, -1), ends).unfold(-1, window, 1).movedim(-2, axis)
    inside = F.pad(image.new_ones(image.shape[axis]), ends).unfold(0, window, 1)
    share = (inside / inside.sum(1, keepdim=True)).sqrt()
    share = share.reshape(-1, *[1] * (image.ndim - 1 - axis), window)
    return (lines - _line_mean(image, window, axis).unsqueeze(-1)) * share


def _box_mean(image: torch.Tensor, window: int) -> torch.Tensor:
    """Mean over the window around every voxel, cut at the border, (N, C, *S)."""
    for axis in range(2, image.ndim):
        image = _line_mean(image, window, axis)
    return image


def _line_mean(image: torch.Tensor, window: int, axis: int) -> torch.Tensor:
    """Mean over the window along one axis."""
    if image.numel() == 0:
        return image
    rows = image.movedim(axis, -1)
    means = F.avg_pool1d(rows.flatten(0, -2), window, 1, window // 2, count_include_pad=False)
    return means.unflatten(0, rows.shape[:-1]).movedim(-1, axis)


@torch.library.register_fake("diffreg::local_correlation")
def _local_correlation_fake(warped, fixed, window, mask):
    return warped.new_empty(warped.shape[:1], dtype=arithmetic_dtype(warped))


@torch.library.register_fake("diffreg::local_correlation_backward")
def _local_correlation_backward_fake(
    gradient, warped, fixed, window, mask, need_warped, need_fixed
):
    return (
        warped.new_empty(warped.shape if need_warped else (0,)),
        fixed.new_empty(fixed.shape if need_fixed else (0,)),
    )


def _setup_context(ctx, inputs, output):
    warped, fixed, ctx.window, mask = inputs
    ctx.save_for_backward(warped, fixed, mask)


def _backward(ctx, gradient):
    refuse_transforms("local_correlation")
    need_warped, need_fixed, _, need_mask = ctx.needs_input_grad
    if need_mask:
        raise NotImplementedError("local_correlation has no gradient to mask: pass mask.detach()")
    warped, fixed, mask = ctx.saved_tensors
    to_warped, to_fixed = _operator_backward(
        gradient, warped, fixed, ctx.window, mask, need_warped, need_fixed
    )
    return to_warped if need_warped else None, to_fixed if need_fixed else None, None, None


def _setup_double_context(ctx, inputs, output):
    gradient, warped, fixed, ctx.window, mask, *_ = inputs
    ctx.save_for_backward(gradient, warped, fixed, mask)
    ctx.set_materialize_grads(False)


def _double_backward(ctx, *grad_gradients):
    refuse_transforms("local_correlation")
    gradient, warped, fixed, mask = ctx.saved_tensors
    (to_gradient,), (to_warped, to_fixed) = gradients_of_gradients(
        lambda w, r: local_correlation_reference(w, r, ctx.window, mask),
        [warped, fixed],
        [gradient],
        grad_gradients,
    )
    return (to_gradient, to_warped, to_fixed, *[None] * 4)


_operator = differentiable("local_correlation", _backward, _setup_context)
_operator_backward = differentiable(
    "local_correlation_backward", _double_backward, _setup_double_context
)
