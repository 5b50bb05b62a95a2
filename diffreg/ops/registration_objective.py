"""The whole objective of a registration as one operator: warp, similarity and energies."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from diffreg.ops._checks import (
    arithmetic_dtype,
    check_choice,
    check_displacement,
    check_image,
    check_pair,
    check_same_device,
    checked_mask,
    refuse_forward_mode,
)
from diffreg.ops._double_backward import gradients_of_gradients
from diffreg.ops.correlation import correlation, correlation_reference
from diffreg.ops.deformation_energy import (
    THRESHOLDS,
    _lengths,
    _threshold,
    deformation_energy,
    deformation_energy_reference,
)
from diffreg.ops.gradient_scale import gradient_scale, gradient_scale_reference
from diffreg.ops.local_correlation import local_correlation, local_correlation_reference
from diffreg.ops.parallel_level_sets import (
    _scale,
    parallel_level_sets,
    parallel_level_sets_reference,
)
from diffreg.ops.warp import PADDINGS, warp, warp_reference

# In the order of the kernel's factors.
MEASURES = ("ssd", "ncc", "lncc", "pls", "smooth_pls", "ngf")
LEVEL_SETS = {"pls": "pls", "smooth_pls": "smooth", "ngf": "ngf"}
WINDOW = 9  # of "lncc"

Similarity = str | Mapping[str, float]


class Weights(NamedTuple):
    """Factors of the objective's four terms."""

    similarity: float
    diffusion: float
    bending: float
    determinant: float


class Preset(NamedTuple):
    """What is minimised where nothing else is said."""

    similarity: Mapping[str, float]
    weights: Weights


# "paper": lambda = 60 is Theljani and Chen's, the three ones are ours; it folds on cardiac pairs.
# "default" was found on the very images that it was tried on: tune inside the split.
PRESETS = {
    "default": Preset({"ncc": 1.0, "lncc": 0.2}, Weights(60, 1, 30, 3)),
    "paper": Preset({"ncc": 1.0}, Weights(60, 1, 1, 1)),
}


class RegistrationObjective(NamedTuple):
    """The weighted sum and its terms, which are raw; (N,) each."""

    total: torch.Tensor
    similarity: torch.Tensor
    diffusion: torch.Tensor
    bending: torch.Tensor
    determinant: torch.Tensor
    warped: torch.Tensor | None = None  # (N, C, *S), where it was asked for


def sum_of_squares(
    warped: torch.Tensor, fixed: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared difference over voxels and channels, weighted by the mask.

    Args:
        warped: image (N, C, *S), any floating dtype.
        fixed: image of the same shape.
        mask: weights (N, 1, *S) >= 0; None is 1.

    Returns:
        (N,); 0 where the weights add up to 0.

    Raises:
        TypeError, ValueError: dtypes, shapes or devices that do not fit.

    Example:
        >>> import torch
        >>> from diffreg.losses import sum_of_squares
        >>> sum_of_squares(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
        tensor([1.])
    """
    check_pair(warped, fixed)
    dtype = arithmetic_dtype(warped, fixed)
    weights = checked_mask(mask, warped, dtype)
    squares = ((warped.to(dtype) - fixed.to(dtype)) ** 2).flatten(1)
    if weights is None:
        return squares.mean(1) if squares.shape[1] else squares.sum(1)
    total = weights.flatten(1).sum(1) * warped.shape[1]
    sums = (squares * weights.expand_as(warped).flatten(1)).sum(1)
    return sums / torch.where(total == 0, torch.ones_like(total), total)


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
) -> RegistrationObjective:
    """w_s S(moving o phi, fixed) + w_1 E1(u) + w_2 E2(u) + w_det E_det(u), phi = id + u.

    On the CPU one sweep over the rows gives value and gradient, two where "ncc" is part of S (its
    gradient needs the moments of the whole image); neither the warped image nor its gradient are
    kept. Where moving or fixed need a gradient, and on devices other than the CPU, the single
    operators are composed.

    Args:
        moving: image (N, C, *S_moving), any floating dtype.
        fixed: image (N, C, *S).
        displacement: (N, D, *S), voxels. D = 2.
        similarity: "ssd", "ncc", "lncc" (window 9), "pls", "smooth_pls" or "ngf", or a mixture,
            for example {"ncc": 1.0, "lncc": 0.2}.
        weights: 4 numbers (similarity, diffusion, bending, determinant), such as a `Weights`; None:
            those of the preset "default".
        eps_moving, eps_fixed: edge scales of the level-set measures, a float or (N,), constants to
            autograd; None: `gradient_scale` of the (unwarped) image.
        mask: weights (N, 1, *S) >= 0 of the similarity, a constant to autograd; None is 1.
        padding: as in `warp`.
        penalty, threshold, spacing: as in `deformation_energy`.
        return_warped: also return the warped image.

    Returns:
        A named tuple (total, similarity, diffusion, bending, determinant, warped): (N,) each,
        the terms raw and the total weighted, all differentiable to the displacement; warped is
        (N, C, *S), or None. float32 for half types.

    Raises:
        TypeError: not tensors, or dtypes that are not supported.
        ValueError: shapes, devices or options that do not fit.
        NotImplementedError: forward-mode AD, a gradient to mask or eps, a device without kernels.

    Source:
        Theljani and Chen 2020: its three parts; the exact form is ours.

    Example:
        >>> import torch
        >>> from diffreg.ops import registration_objective
        >>> image = torch.arange(64.0).reshape(1, 1, 8, 8)
        >>> registration_objective(image, image, torch.zeros(1, 2, 8, 8), "ssd").total
        tensor([0.])
    """
    options = _Options(similarity, weights, padding, penalty, threshold, spacing)
    _check(moving, fixed, displacement)
    refuse_forward_mode("registration_objective")
    differentiated = torch.is_grad_enabled() and (moving.requires_grad or fixed.requires_grad)
    if differentiated or moving.device.type not in ("cpu", "meta"):
        scales = eps_moving, eps_fixed
        return _compose(
            _OPERATORS, options, moving, fixed, displacement, *scales, mask, return_warped
        )
    need_gradient = torch.is_grad_enabled() and displacement.requires_grad
    arguments = options.arguments(moving, fixed, displacement, eps_moving, eps_fixed, mask)
    *terms, warped, _gradient = torch.ops.diffreg.registration_objective(
        *arguments, need_gradient, return_warped
    )
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
) -> tuple[RegistrationObjective, torch.Tensor]:
    """`registration_objective` and the gradient of its total, without autograd.

    Args, Raises: as `registration_objective`; on devices without the fused kernel autograd computes
    the gradient.

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
    options = _Options(similarity, weights, padding, penalty, threshold, spacing)
    _check(moving, fixed, displacement)
    images = moving.detach(), fixed.detach()
    if moving.device.type not in ("cpu", "meta"):
        with torch.enable_grad():
            u = displacement.detach().requires_grad_()
            terms = _compose(_OPERATORS, options, *images, u, eps_moving, eps_fixed, mask, False)
            (gradient,) = torch.autograd.grad(terms.total.sum(), u)
        return RegistrationObjective._make([*(t.detach() for t in terms[:5]), None]), gradient
    with torch.no_grad():
        arguments = options.arguments(*images, displacement, eps_moving, eps_fixed, mask)
        *values, _warped, gradient = torch.ops.diffreg.registration_objective(
            *arguments, True, False
        )
    return RegistrationObjective._make([*values, None]), gradient.to(displacement.dtype)


class _Options:
    """What is not a tensor, checked."""

    def __init__(self, similarity, weights, padding, penalty, threshold, spacing) -> None:
        self.mixture = checked_mixture(similarity)
        self.weights = checked_weights(PRESETS["default"].weights if weights is None else weights)
        check_choice("padding", padding, PADDINGS)
        check_choice("penalty", penalty, tuple(THRESHOLDS))
        self.padding, self.penalty, self.threshold, self.spacing = (
            padding,
            penalty,
            threshold,
            spacing,
        )

    def arguments(self, moving, fixed, displacement, eps_moving, eps_fixed, mask) -> tuple:
        """What torch.ops.diffreg.registration_objective takes, but for what it is to return."""
        dtype = arithmetic_dtype(moving, fixed, displacement)
        moving, fixed = moving.to(dtype), fixed.to(dtype)
        scales: tuple[torch.Tensor | None, ...] = (None, None)
        if any(name in LEVEL_SETS for name in self.mixture):
            scales = (
                _scale("eps_moving", eps_moving, moving, gradient_scale).to(dtype),
                _scale("eps_fixed", eps_fixed, fixed, gradient_scale).to(dtype),
            )
        return (
            *(moving, fixed, displacement.to(dtype), *scales),
            checked_mask(mask, fixed, dtype),
            [self.mixture.get(name, 0.0) for name in MEASURES],
            list(self.weights),
            self.padding,
            _lengths(self.spacing, displacement.ndim - 2),
            self.penalty,
            _threshold(self.penalty, self.threshold),
        )


def checked_mixture(similarity: Similarity, names: Sequence[str] = MEASURES) -> dict[str, float]:
    """Measure -> factor.

    Raises:
        ValueError: a name that is not known, no name, or a factor that is not finite.
    """
    mixture = {similarity: 1.0} if isinstance(similarity, str) else dict(similarity)
    if not mixture:
        raise ValueError("similarity must name at least one measure, got an empty mapping")
    for name, factor in mixture.items():
        check_choice("similarity", name, tuple(names))
        if not math.isfinite(factor):
            raise ValueError(f"similarity must have finite factors, got {factor} for {name!r}")
    return {name: float(factor) for name, factor in mixture.items()}


def checked_weights(weights: Sequence[float]) -> Weights:
    """Four finite numbers >= 0.

    Raises:
        ValueError: they are not.
    """
    values = [float(weight) for weight in weights]
    if len(values) != 4 or not all(0 <= value < math.inf for value in values):
        raise ValueError(
            "weights must be a preset or 4 numbers >= 0 (similarity, diffusion, bending, "
            f"determinant), got {values}"
        )
    return Weights(*values)


def _check(moving: Any, fixed: Any, displacement: Any) -> None:
    check_displacement(displacement)
    check_image("moving", moving)
    check_image("fixed", fixed)
    if moving.shape[:2] != fixed.shape[:2]:
        raise ValueError(
            f"moving must have the samples and channels of fixed, {list(fixed.shape[:2])}, got "
            f"{list(moving.shape[:2])}"
        )
    if displacement.shape[0] != fixed.shape[0] or displacement.shape[2:] != fixed.shape[2:]:
        raise ValueError(
            f"displacement must be (N, 2, H, W) on the grid of fixed, {list(fixed.shape)}, got "
            f"{list(displacement.shape)}"
        )
    if moving.shape[2:].numel() == 0 and displacement.numel() > 0:
        raise ValueError(f"moving must have voxels to read, got shape {list(moving.shape)}")
    check_same_device("moving", moving, "fixed", fixed)
    check_same_device("displacement", displacement, "fixed", fixed)


class _Parts(NamedTuple):
    """The functions that the objective is made of."""

    warp: Callable[..., torch.Tensor]
    correlation: Callable[..., torch.Tensor]
    local_correlation: Callable[..., torch.Tensor]
    parallel_level_sets: Callable[..., torch.Tensor]
    deformation_energy: Callable[..., Any]
    gradient_scale: Callable[..., torch.Tensor]


_OPERATORS = _Parts(
    warp, correlation, local_correlation, parallel_level_sets, deformation_energy, gradient_scale
)
_REFERENCES = _Parts(
    warp_reference,
    correlation_reference,
    local_correlation_reference,
    parallel_level_sets_reference,
    deformation_energy_reference,
    gradient_scale_reference,
)


def _compose(
    parts, options, moving, fixed, displacement, eps_moving, eps_fixed, mask, return_warped
) -> RegistrationObjective:
    """The objective out of its parts, one after the other."""
    warped = parts.warp(moving, displacement, padding=options.padding)

    def measure(name: str) -> torch.Tensor:
        if name == "ssd":
            return sum_of_squares(warped, fixed, mask)
        if name == "ncc":
            return parts.correlation(warped, fixed, mask)
        if name == "lncc":
            return parts.local_correlation(warped, fixed, WINDOW, mask)
        # The edge scale is that of the unwarped image: it must not change with the displacement.
        eps = parts.gradient_scale(moving.detach()) if eps_moving is None else eps_moving
        return parts.parallel_level_sets(warped, fixed, eps, eps_fixed, LEVEL_SETS[name], mask)

    measures = [factor * measure(name) for name, factor in options.mixture.items()]
    similarity = torch.stack(measures).sum(0)
    energies = parts.deformation_energy(
        displacement, options.spacing, options.penalty, options.threshold
    )
    terms = similarity, *energies
    pairs = zip(options.weights, terms, strict=True)
    total = torch.stack([weight * term for weight, term in pairs]).sum(0)
    return RegistrationObjective._make([total, *terms, warped if return_warped else None])


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
) -> RegistrationObjective:
    """`registration_objective` in plain PyTorch: the references of its parts.

    Args, Returns: as `registration_objective`.
    """
    options = _Options(similarity, weights, padding, penalty, threshold, spacing)
    scales = eps_moving, eps_fixed
    return _compose(_REFERENCES, options, moving, fixed, displacement, *scales, mask, return_warped)


@torch.library.register_fake("diffreg::registration_objective")
def _registration_objective_fake(
    moving, fixed, displacement, eps_moving, eps_fixed, mask, mixture, weights, padding, spacing,
    penalty, threshold, need_gradient, need_warped,
):  # fmt: skip
    return (
        *(displacement.new_empty(displacement.shape[:1]) for _ in range(5)),
        fixed.new_empty(fixed.shape if need_warped else (0,)),
        displacement.new_empty(displacement.shape if need_gradient else (0,)),
    )


@torch.library.register_fake("diffreg::registration_objective_backward")
def _registration_objective_backward_fake(
    grad_total, grad_similarity, grad_diffusion, grad_bending, grad_determinant, moving, fixed,
    displacement, *options,
):  # fmt: skip
    return displacement.new_empty(displacement.shape)


def _setup_context(ctx, inputs, output):
    *tensors, mixture, weights, padding, spacing, penalty, threshold, _, _ = inputs
    ctx.options = mixture, weights, padding, spacing, penalty, threshold
    ctx.padding = padding
    gradient = output[6]
    ctx.mark_non_differentiable(gradient)
    ctx.save_for_backward(*tensors, gradient)
    ctx.set_materialize_grads(False)


def _backward(ctx, *upstream):
    refuse_forward_mode("registration_objective")
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
    *tensors, gradient = ctx.saved_tensors
    *terms, warped, _ = upstream
    found = None
    if terms[0] is not None and all(g is None for g in terms[1:]) and _is_kept(gradient, tensors):
        found = gradient * terms[0].reshape(-1, *[1] * (gradient.ndim - 1))
    elif any(g is not None for g in terms):
        found = torch.ops.diffreg.registration_objective_backward(*terms, *tensors, *ctx.options)
    if warped is not None:
        moving, _, displacement, *_ = tensors
        _, through = torch.ops.diffreg.warp_backward(
            warped, moving, displacement, "linear", ctx.padding, False, True
        )
        found = through if found is None else found + through
    return (None, None, found, *[None] * 11)


def _is_kept(gradient: torch.Tensor, tensors: Sequence[torch.Tensor | None]) -> bool:
    """Whether the forward pass left the total's gradient, and nobody differentiates it again."""
    displacement = tensors[2]
    assert displacement is not None
    return gradient.shape == displacement.shape and not torch.is_grad_enabled()


def _setup_double_context(ctx, inputs, output):
    *tensors, mixture, weights, padding, spacing, penalty, threshold = inputs
    ctx.options = mixture, weights, padding, spacing, penalty, threshold
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _double_backward(ctx, grad_gradient):
    refuse_forward_mode("registration_objective")
    *upstream, moving, fixed, displacement, eps_moving, eps_fixed, mask = ctx.saved_tensors
    mixture, weights, padding, spacing, penalty, threshold = ctx.options
    named = {name: factor for name, factor in zip(MEASURES, mixture, strict=True) if factor}
    limit = threshold if penalty != "relu" else None

    def reference(u):
        terms = registration_objective_reference(
            moving, fixed, u, named or {"ssd": 0.0}, weights, eps_moving, eps_fixed, mask, padding,
            penalty, limit, spacing,
        )  # fmt: skip
        return tuple(terms[:5])

    to_upstream, (to_displacement,) = gradients_of_gradients(
        reference, [displacement], upstream, [grad_gradient]
    )
    return (*to_upstream, None, None, to_displacement, *[None] * 9)


torch.library.register_autograd(
    "diffreg::registration_objective", _backward, setup_context=_setup_context
)
torch.library.register_autograd(
    "diffreg::registration_objective_backward",
    _double_backward,
    setup_context=_setup_double_context,
)
