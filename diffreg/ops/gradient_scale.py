"""The edge scale of an image: the mean length of its gradient."""

import math

import torch

from diffreg.ops._autograd import differentiable
from diffreg.ops._checks import (
    arithmetic_dtype,
    as_handed,
    as_number,
    check_image,
    checked_mask,
    refuse_transforms,
)
from diffreg.ops._double_backward import gradients_of_gradients
from diffreg.ops._masks import visible


def gradient_scale(
    image: torch.Tensor, eta: float = 1.0, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """eta times the mean of |grad image|, floored at max(1e-6 max |image|, smallest normal).

    The gradient is the central difference with a replicated border; the mean runs over voxels and
    channels. `parallel_level_sets` takes it as the scale below which an edge is noise.

    Args:
        image: (N, C, *S), any floating dtype.
        eta: positive factor.
        mask: weights (N, 1, *S) >= 0 of the mean, a constant to autograd; None is 1. To the
            differences of other voxels, what is not finite where the weight is 0 is 0.

    Returns:
        (N,), positive, float32 for half types. Where the floor is reached, that of the whole image
        whatever the mask, it has no gradient.

    Raises:
        TypeError: not a tensor, or a dtype that is not supported.
        ValueError: shapes, devices or `eta` that do not fit, or negative or NaN weights (not looked
            at on a GPU, which would have to be waited for).
        NotImplementedError: forward-mode AD, a gradient to eta or mask, or a device without
            kernels.

    Source:
        The edge parameter of normalised gradient fields (Haber and Modersitzki 2006); the floor is
        ours.

    Example:
        >>> import torch
        >>> from diffreg.ops import gradient_scale
        >>> ramp = torch.arange(4.0).reshape(1, 1, 1, 4)  # derivatives 1/2, 1, 1, 1/2
        >>> gradient_scale(ramp)
        tensor([0.7500])
    """
    check_image("image", image)
    eta = _checked_eta(eta)
    weights = checked_mask(mask, image, arithmetic_dtype(image))
    refuse_transforms("gradient_scale")
    return _operator(*as_handed(image), eta, weights)


def _checked_eta(eta: float) -> float:
    eta = as_number("eta", eta)
    if not 0 < eta < math.inf:
        raise ValueError(f"eta must be positive and finite, got {eta}")
    return eta


def image_gradient_reference(image: torch.Tensor) -> list[torch.Tensor]:
    """Central difference (I[min(i+1, n-1)] - I[max(i-1, 0)]) / 2 along each axis."""
    gradients = []
    for k in range(2, image.ndim):
        index = torch.arange(image.shape[k], device=image.device)
        above = image.index_select(k, (index + 1).clamp(max=max(image.shape[k] - 1, 0)))
        gradients.append((above - image.index_select(k, (index - 1).clamp(min=0))) / 2)
    return gradients


def gradient_scale_reference(
    image: torch.Tensor, eta: float = 1.0, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """`gradient_scale` in plain PyTorch.

    Args, Returns: as `gradient_scale`.
    """
    image = visible(image, mask)
    squares = torch.stack([g**2 for g in image_gradient_reference(image)]).sum(0)
    edge = squares > 0
    length = torch.where(edge, torch.where(edge, squares, torch.ones_like(squares)).sqrt(), 0)
    scale = eta * masked_mean_reference(length, mask)
    tiny = torch.finfo(image.dtype).tiny
    if image.numel() == 0:
        return torch.full_like(scale, tiny)
    largest = image.detach().abs().flatten(1).amax(1)
    return torch.maximum(scale, (1e-6 * largest).clamp(min=tiny))


def masked_mean_reference(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over channels and voxels, weighted by the mask; 0 where the weights add up to 0."""
    weights = torch.ones_like(values[:, :1]) if mask is None else mask.to(values.dtype)
    total = weights.flatten(1).sum(1) * values.shape[1]
    return (weights * values).flatten(1).sum(1) / torch.where(total == 0, 1, total)


@torch.library.register_fake("diffreg::gradient_scale")
def _gradient_scale_fake(image, eta, mask):
    return image.new_empty(image.shape[:1], dtype=arithmetic_dtype(image))


@torch.library.register_fake("diffreg::gradient_scale_backward")
def _gradient_scale_backward_fake(gradient, image, eta, mask):
    return image.new_empty(image.shape)


def _setup_context(ctx, inputs, output):
    image, ctx.eta, mask = inputs
    ctx.save_for_backward(image, mask)


def _backward(ctx, gradient):
    refuse_transforms("gradient_scale")
    image, mask = ctx.saved_tensors
    if ctx.needs_input_grad[2]:
        raise NotImplementedError("gradient_scale has no gradient to mask: pass mask.detach()")
    return _operator_backward(gradient, image, ctx.eta, mask), None, None


def _setup_double_context(ctx, inputs, output):
    gradient, image, ctx.eta, mask = inputs
    ctx.save_for_backward(gradient, image, mask)


def _double_backward(ctx, grad_gradient):
    refuse_transforms("gradient_scale")
    gradient, image, mask = ctx.saved_tensors
    (to_gradient,), (to_image,) = gradients_of_gradients(
        lambda i: gradient_scale_reference(i, ctx.eta, mask), [image], [gradient], [grad_gradient]
    )
    return to_gradient, to_image, None, None


_operator = differentiable("gradient_scale", _backward, _setup_context)
_operator_backward = differentiable(
    "gradient_scale_backward", _double_backward, _setup_double_context
)
