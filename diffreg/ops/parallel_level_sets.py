"""Parallel level sets: how far the level sets of two images are from parallel."""

import math
from typing import NamedTuple

import torch

from diffreg.ops._autograd import differentiable, has_values
from diffreg.ops._checks import (
    arithmetic_dtype,
    as_handed,
    check_choice,
    check_pair,
    checked_mask,
    in_dtype,
    refuse_transforms,
)
from diffreg.ops._double_backward import gradients_of_gradients
from diffreg.ops._masks import visible
from diffreg.ops.gradient_scale import (
    gradient_scale,
    gradient_scale_reference,
    image_gradient_reference,
    masked_mean_reference,
)

VARIANTS = ("pls", "smooth", "ngf")


def parallel_level_sets(
    warped: torch.Tensor,
    fixed: torch.Tensor,
    eps_warped: float | torch.Tensor | None = None,
    eps_fixed: float | torch.Tensor | None = None,
    variant: str = "pls",
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean of f = 1 - Q / (A B) over voxels and channels; 0 where level sets are parallel.

    With g, h the gradients of warped and fixed, A = |g|^2 + eps_warped^2, B = |h|^2 + eps_fixed^2,
    G = <g, h>: "pls" has Q = (|G| + eps_warped eps_fixed)^2, "smooth" Q = G^2 + (eps_warped
    eps_fixed)^2, "ngf" Q = G^2. Blind to an inversion of contrast. "pls" is 0 for an image and
    itself; under "smooth" edges still cost something and under "ngf" flat regions cost 1. "smooth"
    is differentiable where G = 0, but an image registered to itself drifts by up to a voxel.

    Args:
        warped: image (N, C, *S), any floating dtype.
        fixed: image of the same shape.
        eps_warped: edge scale, positive; a float or (N,); None: `gradient_scale` of the argument,
            whatever the mask. A constant to autograd. When registering, pass the scale of the
            unwarped moving image.
        eps_fixed: the same for `fixed`.
        variant: "pls", "smooth" or "ngf".
        mask: weights (N, 1, *S) >= 0 of the mean, a constant to autograd; None is 1. To the
            differences of other voxels, what is not finite where the weight is 0 is 0.

    Returns:
        (N,), in [0, 1], float32 for half types; 0 where the weights add up to 0. Where A B is below
        the smallest normal number f is 0, where it overflows NaN: in float32 that is where both
        images have values of about 1e-9, or 1e10. Scale those.

    Raises:
        TypeError: not tensors, or dtypes that are not supported.
        ValueError: shapes, devices, variant or eps that do not fit, or negative or NaN weights (not
            looked at on a GPU, which would have to be waited for).
        NotImplementedError: forward-mode AD, a gradient to mask or eps, a device without kernels.

    Source:
        Parallel level sets: Theljani and Chen 2020 in its prose; this normalised form is ours.
        "ngf" is Haber and Modersitzki 2006.

    Example:
        >>> import torch
        >>> from diffreg.ops import parallel_level_sets
        >>> ramp = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> parallel_level_sets(5 - 2 * ramp, ramp, eps_warped=2.0, eps_fixed=1.0).abs() < 1e-6
        tensor([True])
    """
    check_pair(warped, fixed)
    check_choice("variant", variant, VARIANTS)
    weights = checked_mask(mask, warped, arithmetic_dtype(warped, fixed))
    refuse_transforms("parallel_level_sets")
    pair = as_handed(warped, fixed)
    scale_warped = scale_argument("eps_warped", eps_warped, pair[0], weights)
    scale_fixed = scale_argument("eps_fixed", eps_fixed, pair[1], weights)
    return _operator(*pair, scale_warped, scale_fixed, variant, weights)


class Measured(NamedTuple):
    """An edge scale (N,) that was measured and not given: NaN where the image is."""

    scale: torch.Tensor


def scale_argument(name, eps, image, mask=None) -> torch.Tensor:
    """eps as the operator takes it: on a GPU a float is one on the host, expanded to (N,), which
    goes along as a kernel's argument."""
    scale = _scale(name, eps, image, gradient_scale, mask, fill=False)
    if isinstance(scale, torch.Tensor):
        return scale
    dtype, samples = arithmetic_dtype(image), image.shape[0]
    if image.is_cuda and not torch.compiler.is_compiling():
        return torch.full((), scale, dtype=dtype, device="cpu").expand(samples)
    return torch.full((samples,), scale, dtype=dtype, device=image.device)


def as_saved(scale: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """One that autograd saved, which hooks may have copied: expanded from one on the host again."""
    if scale.device == image.device or scale.numel() == 0:
        return scale
    return scale[:1].expand(len(scale))


def on_device(scale: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """One of those as a tensor beside the image; nothing waits for it."""
    if scale.device == image.device or scale.numel() == 0:
        return scale.to(image.device)
    return torch.full(scale.shape, scale[0].item(), dtype=scale.dtype, device=image.device)


def _scale(name, eps, image, measure, mask=None, fill=True) -> torch.Tensor | float:
    """eps as a tensor (N,) in the dtype of the image's arithmetic; a float stays without `fill`."""
    if eps is None:
        return measure(visible(image.detach(), mask))
    if isinstance(eps, Measured):
        return in_dtype(eps.scale, arithmetic_dtype(image))
    if isinstance(eps, torch.Tensor):
        if eps.ndim != 1 or eps.shape[0] != image.shape[0]:
            raise ValueError(
                f"{name} must be a float or (N,) = {list(image.shape[:1])}, got {list(eps.shape)}"
            )
        if eps.device != image.device:
            raise ValueError(f"{name} must be on {image.device}, got {eps.device}")
        if has_values(eps):
            values = eps.tolist()
            if not all(value > 0 for value in values):  # NaN too
                raise ValueError(f"{name} must be positive, got {values}")
        return in_dtype(eps, arithmetic_dtype(image))
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise TypeError(f"{name} must be a float, a tensor (N,) or None, got {type(eps).__name__}")
    if not 0 < eps < math.inf:
        raise ValueError(f"{name} must be positive and finite, got {eps}")
    if not fill:
        return eps
    return torch.full(image.shape[:1], eps, dtype=arithmetic_dtype(image), device=image.device)


def parallel_level_sets_reference(
    warped: torch.Tensor,
    fixed: torch.Tensor,
    eps_warped: float | torch.Tensor | None = None,
    eps_fixed: float | torch.Tensor | None = None,
    variant: str = "pls",
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """`parallel_level_sets` in plain PyTorch.

    Args, Returns: as `parallel_level_sets`.
    """
    scale_warped = _scale("eps_warped", eps_warped, warped, gradient_scale_reference, mask)
    scale_fixed = _scale("eps_fixed", eps_fixed, fixed, gradient_scale_reference, mask)
    return _with_scales_reference(warped, fixed, scale_warped, scale_fixed, variant, mask)


def _with_scales_reference(warped, fixed, scale_warped, scale_fixed, variant, mask) -> torch.Tensor:
    warped, fixed = visible(warped, mask), visible(fixed, mask)
    per_sample = (-1, *[1] * (warped.ndim - 1))
    e_w, e_r = (on_device(e, warped).reshape(per_sample) for e in (scale_warped, scale_fixed))
    g, h = image_gradient_reference(warped), image_gradient_reference(fixed)
    (root_w, flat), (root_r, as_flat) = _root(g, e_w), _root(h, e_r)
    # One root after the other: of flat images A B is 1e-25, and its square, by which second
    # derivatives would divide, 0 in float32. The sum first: perpendicular gradients, as images of
    # whole numbers have them, have 0, where |G| has the derivative 0, and not what is rounded.
    G = torch.stack([a * b for a, b in zip(g, h, strict=True)]).sum(0) / root_w / root_r
    E = (e_w / root_w) * (e_r / root_r)
    Q = (G.abs() + E) ** 2 if variant == "pls" else G**2 + (0 if variant == "ngf" else E**2)
    return masked_mean_reference(torch.where(flat | as_flat, 0, 1 - Q), mask)


def _root(g, eps) -> tuple[torch.Tensor, torch.Tensor]:
    """sqrt(A), and where it is 0, there 1."""
    A = torch.stack([component**2 for component in g]).sum(0) + eps**2
    vanishes = A == 0
    return torch.where(vanishes, 1, A).sqrt(), vanishes


@torch.library.register_fake("diffreg::parallel_level_sets")
def _parallel_level_sets_fake(warped, fixed, eps_warped, eps_fixed, variant, mask):
    return warped.new_empty(warped.shape[:1], dtype=arithmetic_dtype(warped))


@torch.library.register_fake("diffreg::parallel_level_sets_backward")
def _parallel_level_sets_backward_fake(
    gradient, warped, fixed, eps_warped, eps_fixed, variant, mask, need_warped, need_fixed
):
    return (
        warped.new_empty(warped.shape if need_warped else (0,)),
        fixed.new_empty(fixed.shape if need_fixed else (0,)),
    )


def _setup_context(ctx, inputs, output):
    warped, fixed, eps_warped, eps_fixed, ctx.variant, mask = inputs
    ctx.save_for_backward(warped, fixed, eps_warped, eps_fixed, mask)


def _backward(ctx, gradient):
    refuse_transforms("parallel_level_sets")
    need_warped, need_fixed, *constants = ctx.needs_input_grad
    for name, need in zip(("eps_warped", "eps_fixed", "variant", "mask"), constants, strict=True):
        if need:
            raise NotImplementedError(
                f"parallel_level_sets has no gradient to {name}: pass {name}.detach()"
            )
    warped, fixed, *scales, mask = ctx.saved_tensors
    scales = [as_saved(scale, warped) for scale in scales]
    to_warped, to_fixed = _operator_backward(
        gradient, warped, fixed, *scales, ctx.variant, mask, need_warped, need_fixed
    )
    return (
        to_warped if need_warped else None,
        to_fixed if need_fixed else None,
        *(None for _ in constants),
    )


def _setup_double_context(ctx, inputs, output):
    gradient, warped, fixed, eps_warped, eps_fixed, ctx.variant, mask, *_ = inputs
    ctx.save_for_backward(gradient, warped, fixed, eps_warped, eps_fixed, mask)
    ctx.set_materialize_grads(False)


def _double_backward(ctx, *grad_gradients):
    refuse_transforms("parallel_level_sets")
    gradient, warped, fixed, eps_warped, eps_fixed, mask = ctx.saved_tensors
    (to_gradient,), (to_warped, to_fixed) = gradients_of_gradients(
        lambda w, r: _with_scales_reference(w, r, eps_warped, eps_fixed, ctx.variant, mask),
        [warped, fixed],
        [gradient],
        grad_gradients,
    )
    return (to_gradient, to_warped, to_fixed, *[None] * 6)


_operator = differentiable("parallel_level_sets", _backward, _setup_context)
_operator_backward = differentiable(
    "parallel_level_sets_backward", _double_backward, _setup_double_context
)
