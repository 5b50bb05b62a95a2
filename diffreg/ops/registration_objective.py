"""The whole objective of a registration as one operator: warp, similarity and energies."""

from collections.abc import Sequence

import torch

from diffreg.ops._autograd import differentiable, may_be_batched, needs_gradient
from diffreg.ops._checks import arithmetic_dtype, refuse_transforms
from diffreg.ops._double_backward import gradients_of_gradients
from diffreg.ops._flat_axis import flat_axis
from diffreg.ops._objective import (
    OPERATORS,
    REFERENCES,
    WINDOW,
    Options,
    RegistrationObjective,
    Similarity,
    check_inputs,
    compose,
    compose_raw,
    scaled,
)
from diffreg.ops.deformation_energy import deformation_energy, energies_and_gradient
from diffreg.ops.parallel_level_sets import as_saved


def registration_objective(
    moving: torch.Tensor,
    fixed: torch.Tensor,
    displacement: torch.Tensor,
    similarity: Similarity = "ncc",
    weights: Sequence[float] | None = None,
    eps_moving: float | torch.Tensor | None = None,
    eps_fixed: float | torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    padding: str = "border",
    penalty: str = "hyperelastic",
    threshold: float | None = None,
    spacing: float | Sequence[float] | None = None,
    return_warped: bool = False,
    window: int = WINDOW,
) -> RegistrationObjective:
    """w_s S(moving o phi, fixed) + w_1 E1(u) + w_2 E2(u) + w_det E_det(u), phi = id + u.

    One call gives value and gradient. The parts run one after the other; the warped image and the
    gradient to it are held once while they do, and given back. Where moving or fixed need a
    gradient, the single operators are composed.

    Args:
        moving: image (N, C, *S_moving), any floating dtype.
        fixed: image (N, C, *S).
        displacement: (N, D, *S), voxels. D = 2 or 3.
        similarity: "ssd", "ncc", "lncc", "pls", "smooth_pls" or "ngf", or a mixture, for example
            {"ncc": 1.0, "lncc": 0.2}.
        weights: 4 numbers (similarity, diffusion, bending, determinant), such as a `Weights`; None:
            those of the preset "default".
        eps_moving, eps_fixed: edge scales of the level-set measures, a float or (N,), constants to
            autograd; None: `gradient_scale` of the (unwarped) image.
        mask: weights (N, 1, *S) >= 0 of the similarity, a constant to autograd; None is 1. Where
            the weight is 0, what is not finite of the warped or the fixed image, or of the
            derivative of the former, is 0.
        padding: as in `warp`.
        penalty, threshold, spacing: as in `deformation_energy`.
        return_warped: also return the warped image.
        window: of "lncc", as in `local_correlation`.

    Returns:
        A named tuple (total, similarity, diffusion, bending, determinant, warped): (N,) each,
        the terms raw and the total weighted, all differentiable to the displacement; warped is
        (N, C, *S), or None. float32 for half types. Where neither image needs a gradient, an
        upstream gradient of 0 to a sample's total or similarity passes nothing on, not even NaN.

    Raises:
        TypeError: not tensors, or dtypes that are not supported.
        ValueError: shapes, devices or options that do not fit, or negative or NaN weights (not
            looked at on a GPU, which would have to be waited for).
        NotImplementedError: forward-mode AD, a gradient to anything but the images and the
            displacement, a device without kernels.

    Source:
        Theljani and Chen 2020: its three parts; the exact form is ours.

    Example:
        >>> import torch
        >>> from diffreg.ops import registration_objective
        >>> image = torch.arange(64.0).reshape(1, 1, 8, 8)
        >>> registration_objective(image, image, torch.zeros(1, 2, 8, 8), "ssd").total
        tensor([0.])
    """
    options = Options(similarity, weights, padding, penalty, threshold, spacing, window)
    check_inputs(moving, fixed, displacement)
    refuse_transforms("registration_objective")
    differentiated = needs_gradient(moving) or needs_gradient(fixed)
    inputs = moving, fixed, displacement, eps_moving, eps_fixed, mask
    if differentiated:
        return compose(OPERATORS, options, *inputs, return_warped)
    need_gradient = needs_gradient(displacement)
    return _evaluated(options, *inputs, need_gradient, return_warped)


def _evaluated(
    options, moving, fixed, displacement, eps_moving, eps_fixed, mask, need_gradient, return_warped
) -> RegistrationObjective:
    """The operator and, where an axis has one voxel, beside it the energies of one axis less."""
    flat = flat_axis(displacement) is not None
    inputs = moving, fixed, displacement, eps_moving, eps_fixed, mask
    arguments = options.arguments(*inputs, with_energies=not flat)
    asked = need_gradient, return_warped, options.window
    *terms, warped, _gradient = _operator(*arguments, *asked)
    if flat:
        total, similarity, *_ = terms
        energies = list(deformation_energy(arguments[2], *options.of_energies()))
        for weight, energy in zip(options.weights[1:], energies, strict=True):
            total = total + weight * energy
        terms = [total, similarity, *energies]
    return RegistrationObjective._make([*terms, warped if return_warped else None])


def registration_objective_value_and_gradient(
    moving: torch.Tensor,
    fixed: torch.Tensor,
    displacement: torch.Tensor,
    similarity: Similarity = "ncc",
    weights: Sequence[float] | None = None,
    eps_moving: float | torch.Tensor | None = None,
    eps_fixed: float | torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    padding: str = "border",
    penalty: str = "hyperelastic",
    threshold: float | None = None,
    spacing: float | Sequence[float] | None = None,
    window: int = WINDOW,
) -> tuple[RegistrationObjective, torch.Tensor]:
    """`registration_objective` and the gradient of its total, without autograd.

    Args, Raises: as `registration_objective`.

    Returns:
        The terms, and the gradient (N, D, *S) of the sum of the totals to the displacement.

    Example:
        >>> import torch
        >>> from diffreg.ops import registration_objective_value_and_gradient
        >>> image = torch.arange(64.0).reshape(1, 1, 8, 8)
        >>> u = torch.zeros(1, 2, 8, 8)
        >>> terms, gradient = registration_objective_value_and_gradient(image, image, u, "ssd")
        >>> gradient.abs().max()
        tensor(0.)
    """
    options = Options(similarity, weights, padding, penalty, threshold, spacing, window)
    check_inputs(moving, fixed, displacement)
    images = moving.detach(), fixed.detach()
    scales = eps_moving, eps_fixed
    flat = flat_axis(displacement) is not None
    with torch.no_grad():
        inputs = *images, displacement, *scales, mask
        arguments = options.arguments(*inputs, with_energies=not flat)
        *values, _warped, gradient = _operator(*arguments, True, False, options.window)
        if flat:
            weights = options.weights[1:]
            energies, to_energies = energies_and_gradient(
                arguments[2], weights, *options.of_energies()
            )
            values[2:] = energies
            gradient = gradient + to_energies
            for weight, energy in zip(weights, energies, strict=True):
                values[0] = values[0] + weight * energy
    return RegistrationObjective._make([*values, None]), gradient.to(displacement.dtype)


def registration_objective_reference(
    moving: torch.Tensor,
    fixed: torch.Tensor,
    displacement: torch.Tensor,
    similarity: Similarity = "ncc",
    weights: Sequence[float] | None = None,
    eps_moving: float | torch.Tensor | None = None,
    eps_fixed: float | torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    padding: str = "border",
    penalty: str = "hyperelastic",
    threshold: float | None = None,
    spacing: float | Sequence[float] | None = None,
    return_warped: bool = False,
    window: int = WINDOW,
) -> RegistrationObjective:
    """`registration_objective` in plain PyTorch: the references of its parts.

    Args, Returns: as `registration_objective`.
    """
    options = Options(similarity, weights, padding, penalty, threshold, spacing, window)
    scales = eps_moving, eps_fixed
    return compose(REFERENCES, options, moving, fixed, displacement, *scales, mask, return_warped)


@torch.library.register_fake("diffreg::registration_objective")
def _registration_objective_fake(
    moving, fixed, displacement, eps_moving, eps_fixed, mask, mixture, weights, padding, spacing,
    penalty, threshold, need_gradient, need_warped, window=WINDOW,
):  # fmt: skip
    shapes = [displacement.shape[:1]] * 5
    shapes += [fixed.shape if need_warped else (0,), displacement.shape if need_gradient else (0,)]
    return tuple(displacement.new_empty(s, dtype=arithmetic_dtype(displacement)) for s in shapes)


@torch.library.register_fake("diffreg::registration_objective_backward")
def _registration_objective_backward_fake(
    grad_total, grad_similarity, grad_diffusion, grad_bending, grad_determinant, moving, fixed,
    displacement, *options,
):  # fmt: skip
    return displacement.new_empty(displacement.shape)


@torch.library.register_fake("diffreg::registration_objective_scale")
def _registration_objective_scale_fake(tensor, factor):
    pass


def _setup_context(ctx, inputs, output):
    *tensors, mixture, weights, padding, spacing, penalty, threshold, _, _, window = inputs
    ctx.options, ctx.window = (mixture, weights, padding, spacing, penalty, threshold), window
    ctx.gradient = output[6]  # the operator's own: the first backward scales and hands it out
    ctx.mark_non_differentiable(ctx.gradient)
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _backward(ctx, *upstream):
    refuse_transforms("registration_objective")
    for name, need in zip(
        ("eps_moving", "eps_fixed", "mask"), ctx.needs_input_grad[3:6], strict=True
    ):
        if need:
            raise NotImplementedError(
                f"registration_objective has no gradient to {name}: pass {name}.detach()"
            )
    if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
        raise NotImplementedError(
            "torch.ops.diffreg.registration_objective has a gradient to the displacement alone: "
            "call diffreg.ops.registration_objective, which composes the single operators"
        )
    tensors = _saved(ctx)
    moving, _, displacement, *_ = tensors
    *terms, warped, _ = upstream
    found = None
    if terms[0] is not None and all(g is None for g in terms[1:]) and not torch.is_grad_enabled():
        found = _scaled(_taken_gradient(ctx, displacement), terms[0])
    elif any(g is not None for g in terms):
        found = _operator_backward(*terms, *tensors, *ctx.options, ctx.window)
    if warped is not None:
        _, through = torch.ops.diffreg.warp_backward(
            warped.to(moving.dtype), moving, displacement, "linear", ctx.options[2], False, True
        )
        found = through if found is None else found + through
    return (None, None, found, *[None] * 12)


def _saved(ctx) -> tuple:
    moving, fixed, displacement, *scales, mask = ctx.saved_tensors
    scales = [scale if scale is None else as_saved(scale, moving) for scale in scales]
    return (moving, fixed, displacement, *scales, mask)


def _taken_gradient(ctx, displacement: torch.Tensor) -> torch.Tensor:
    """The total's gradient: the one that forward left, or once that is gone a new one."""
    gradient, ctx.gradient = ctx.gradient, None
    if gradient is None or gradient.shape != displacement.shape:
        *_, gradient = _operator(*_saved(ctx), *ctx.options, True, False, ctx.window)
    return gradient


def _scaled(gradient: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """The gradient times every sample's factor, in place where both are plain tensors: most factors
    are 1, and then nothing is read. A factor of 0 leaves nothing, not even NaN."""
    plain = type(factor) is torch.Tensor and type(gradient) is torch.Tensor
    if not plain or torch.compiler.is_compiling() or may_be_batched(factor):
        return scaled(gradient, factor)
    torch.ops.diffreg.registration_objective_scale(gradient, factor)
    return gradient


def _setup_double_context(ctx, inputs, output):
    *tensors, mixture, weights, padding, spacing, penalty, threshold, window = inputs
    ctx.options = mixture, weights, padding, spacing, penalty, threshold, window
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _double_backward(ctx, grad_gradient):
    refuse_transforms("registration_objective")
    *upstream, moving, fixed, displacement, eps_moving, eps_fixed, mask = ctx.saved_tensors

    def reference(u):
        images = moving, fixed, u, eps_moving, eps_fixed, mask
        return compose_raw(REFERENCES, *images, *ctx.options)[:5]

    to_upstream, (to_displacement,) = gradients_of_gradients(
        reference, [displacement], upstream, [grad_gradient]
    )
    return (*to_upstream, None, None, to_displacement, *[None] * 10)


_operator = differentiable("registration_objective", _backward, _setup_context)
_operator_backward = differentiable(
    "registration_objective_backward", _double_backward, _setup_double_context
)
