"""1 minus the correlation coefficient of two images."""

import torch

from diffreg.ops._autograd import differentiable
from diffreg.ops._checks import (
    arithmetic_dtype,
    as_handed,
    check_pair,
    checked_mask,
    refuse_transforms,
    widest_dtype,
)
from diffreg.ops._double_backward import gradients_of_gradients
from diffreg.ops._masks import counted


def correlation(
    warped: torch.Tensor, fixed: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """1 - cc, cc the correlation coefficient over all voxels and channels of a sample.

    0 for images that are linearly dependent with a positive factor, 2 with a negative one. An image
    that is constant up to rounding has cc = 0 and no gradient. Moments are taken in double.

    Args:
        warped: image (N, C, *S), any floating dtype.
        fixed: image of the same shape.
        mask: weights (N, 1, *S) >= 0 of the voxels, a constant to autograd; None is 1. A voxel of
            weight 0 is not read.

    Returns:
        (N,), in [0, 2], float32 for half types; 1 where the weights add up to 0.

    Raises:
        TypeError: not tensors, or dtypes that are not supported.
        ValueError: shapes or devices that do not fit, or negative or NaN weights (not looked at on
            a GPU, which would have to be waited for).
        NotImplementedError: forward-mode AD, a gradient to the mask, or a device without kernels.

    Source:
        Theljani and Chen 2020 in its prose (a correlation measure); the form 1 - cc is ours.

    Example:
        >>> import torch
        >>> from diffreg.ops import correlation
        >>> image = torch.arange(6.0).reshape(1, 1, 2, 3)
        >>> correlation(torch.cat([2 * image + 1, -image]), torch.cat([image, image]))
        tensor([0., 2.])
    """
    check_pair(warped, fixed)
    weights = checked_mask(mask, warped, arithmetic_dtype(warped, fixed))
    refuse_transforms("correlation")
    value, _moments = _operator(*as_handed(warped, fixed), weights)
    return value


def correlation_reference(
    warped: torch.Tensor, fixed: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """`correlation` in plain PyTorch: centred moments in double, or float where there is none.

    Args, Returns: as `correlation`.
    """
    warped, fixed = counted(warped, mask), counted(fixed, mask)
    weights = torch.ones_like(warped[:, :1]) if mask is None else mask
    weights = weights.expand_as(warped).flatten(1).to(widest_dtype(warped))
    b, b_constant = _centred(warped, weights)
    a, a_constant = _centred(fixed, weights)
    constant = a_constant | b_constant
    squares = (weights * a * a).sum(1) * (weights * b * b).sum(1)
    norms = torch.where(constant, torch.ones_like(squares), squares).sqrt()
    product = (weights * a * b).sum(1)
    cc = torch.where(constant, torch.zeros_like(product), product / norms)
    return (1 - cc).to(warped.dtype)


def _centred(image: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The image less its weighted mean (N, voxels) in double, and where it is constant (N,)."""
    values = image.flatten(1).to(weights.dtype)
    total = weights.sum(1, keepdim=True)
    total = torch.where(total == 0, torch.ones_like(total), total)
    centred = values - (weights * values).sum(1, keepdim=True) / total
    rounding = (8 * torch.finfo(image.dtype).eps) ** 2
    constant = (weights * centred**2).sum(1) <= rounding * (weights * values**2).sum(1)
    return centred, constant


@torch.library.register_fake("diffreg::correlation")
def _correlation_fake(warped, fixed, mask):
    samples = warped.shape[0]
    value = warped.new_empty((samples,), dtype=arithmetic_dtype(warped))
    return value, warped.new_empty((samples, 5), dtype=widest_dtype(warped))


@torch.library.register_fake("diffreg::correlation_backward")
def _correlation_backward_fake(gradient, moments, warped, fixed, mask, need_warped, need_fixed):
    return (
        warped.new_empty(warped.shape if need_warped else (0,)),
        fixed.new_empty(fixed.shape if need_fixed else (0,)),
    )


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(output[1], *inputs)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx, gradient, _grad_moments):
    refuse_transforms("correlation")
    need_warped, need_fixed, need_mask = ctx.needs_input_grad
    if need_mask:
        raise NotImplementedError("correlation has no gradient to mask: pass mask.detach()")
    if gradient is None:
        return None, None, None
    to_warped, to_fixed = _operator_backward(gradient, *ctx.saved_tensors, need_warped, need_fixed)
    return to_warped if need_warped else None, to_fixed if need_fixed else None, None


def _setup_double_context(ctx, inputs, output):
    gradient, _moments, warped, fixed, mask, *_ = inputs
    ctx.save_for_backward(gradient, warped, fixed, mask)
    ctx.set_materialize_grads(False)


def _double_backward(ctx, *grad_gradients):
    refuse_transforms("correlation")
    gradient, warped, fixed, mask = ctx.saved_tensors
    (to_gradient,), (to_warped, to_fixed) = gradients_of_gradients(
        lambda w, r: correlation_reference(w, r, mask), [warped, fixed], [gradient], grad_gradients
    )
    return to_gradient, None, to_warped, to_fixed, None, None, None


_operator = differentiable("correlation", _backward, _setup_context)
_operator_backward = differentiable("correlation_backward", _double_backward, _setup_double_context)
