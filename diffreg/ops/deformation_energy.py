"""Diffusion, bending and determinant energies of a displacement."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from diffreg.ops._autograd import differentiable
from diffreg.ops._checks import (
    arithmetic_dtype,
    as_handed,
    as_number,
    check_choice,
    check_displacement,
    refuse_gradient,
    refuse_transforms,
    renamed_keywords,
)
from diffreg.ops._double_backward import gradients_of_gradients
from diffreg.ops._flat_axis import flat_axis, lengths_without_axis, with_axis, without_axis
from diffreg.ops._per_axis import per_axis
from diffreg.ops.jacobian_determinant import jacobian_determinant_reference

# Below its threshold a penalty goes on as its tangent ("hinge" is 0 above it, "relu" has none).
THRESHOLDS = {"hyperelastic": 0.2, "log2": 0.01, "hinge": 0.2, "relu": 0.0}


class DeformationEnergy(NamedTuple):
    """Energies of a displacement, each (N,)."""

    diffusion: torch.Tensor
    bending: torch.Tensor
    determinant: torch.Tensor


@renamed_keywords(
    normalize="use spacing=[1 / n for n in S], which is in units of the image",
    ddf="use displacement",
    flow="use displacement",
)
def deformation_energy(
    displacement: torch.Tensor,
    spacing: float | Sequence[float] | None = None,
    penalty: str = "hyperelastic",
    threshold: float | None = None,
) -> DeformationEnergy:
    """First-order, second-order and determinant energy of phi = id + displacement.

    diffusion is the mean of sum |d_k u|^2, bending that of sum |d_kl u|^2 on compact stencils,
    determinant that of psi(J) over every corner of every cell. Each is a sum over components and
    derivative terms and a mean over its stencil positions, without a factor 1/2; an axis that is
    too short for a stencil adds 0.

    Args:
        displacement: (N, D, *S), voxels, any floating dtype. D = 2 or 3; a volume with an axis of
            one voxel is treated as an image, such an image as a line, and the displacement along
            that axis does not matter.
        spacing: physical length of a voxel along each axis, or one for all; None is 1. First
            derivatives become d_k u_c h_c / h_k, second d_kl u_c h_c / (h_k h_l).
        penalty: "hyperelastic" psi = ((J-1)^2 / J)^2, "log2" (ln J)^2, "hinge" max(0, t - J)^2,
            "relu" max(0, -J). The first two go on as their tangent below the threshold t.
        threshold: t > 0, below 1 with the first two; None is the penalty's own (0.2, 0.01, 0.2;
            "relu" takes none).

    Returns:
        A named tuple (diffusion, bending, determinant), each (N,), float32 for half types.

    Raises:
        TypeError: not a tensor, or a dtype that is not supported.
        ValueError: shape, spacing, penalty or threshold that do not fit.
        NotImplementedError: forward-mode AD, a gradient to spacing or threshold, or a
            device without kernels.

    Source:
        Diffusion and bending energy are standard; the determinant term is ours after Burger,
        Modersitzki and Ruthotto 2013 (hyperelastic registration).

    Example:
        >>> import torch
        >>> from diffreg.ops import deformation_energy
        >>> stretch = torch.zeros(1, 2, 4, 4)
        >>> stretch[0, 0] = torch.arange(4.0).reshape(4, 1)  # u_0 = i_0, so J = 2
        >>> deformation_energy(stretch).determinant
        tensor([0.2500])
    """
    check_displacement(displacement)
    limit = checked_threshold(penalty, threshold)
    lengths = _lengths(spacing, displacement.ndim - 2)
    refuse_transforms("deformation_energy")
    axis = flat_axis(displacement)
    if axis is not None:
        flat = without_axis(displacement, axis)
        return deformation_energy(flat, lengths_without_axis(lengths, axis), penalty, threshold)
    (u,) = as_handed(displacement)
    energies = _operator(u, lengths, penalty, limit)
    return DeformationEnergy(*energies)


def energies_and_gradient(
    displacement: torch.Tensor,
    weights: Sequence[float],
    spacing: float | Sequence[float] | None,
    penalty: str,
    threshold: float | None,
) -> tuple[DeformationEnergy, torch.Tensor]:
    """The energies, and the gradient of their weighted sum, without autograd.

    Args: as `deformation_energy`, and the energies' weights.
    """
    lengths = _lengths(spacing, displacement.ndim - 2)
    axis = flat_axis(displacement)
    if axis is not None:
        flat = without_axis(displacement, axis), weights, lengths_without_axis(lengths, axis)
        energies, gradient = energies_and_gradient(*flat, penalty, threshold)
        return energies, with_axis(gradient, axis, displacement.ndim - 2)
    options = lengths, penalty, checked_threshold(penalty, threshold)
    (u,) = as_handed(displacement)
    energies = DeformationEnergy(*_operator(u, *options))
    upstream = [torch.full_like(energies[0], weight) for weight in weights]
    return energies, _operator_backward(*upstream, u, *options)


def _lengths(spacing: float | Sequence[float] | None, dimensions: int) -> list[float]:
    if spacing is None:
        return [1.0] * dimensions
    one = isinstance(spacing, (int, float)) or getattr(spacing, "ndim", 1) == 0
    try:
        given = [spacing] * dimensions if one else list(spacing)  # type: ignore[arg-type]
        for length in given:
            refuse_gradient("spacing", length)
        lengths = [float(length) for length in given]  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"spacing must be {dimensions} lengths or one, got {spacing!r}") from None
    if len(lengths) != dimensions:
        raise ValueError(f"spacing must have {dimensions} lengths, one an axis, got {lengths}")
    if not all(0 < length < math.inf for length in lengths):
        raise ValueError(f"spacing must be positive and finite, got {lengths}")
    return lengths


def checked_threshold(penalty: str, threshold: float | None) -> float:
    """The threshold, or the penalty's own.

    Raises:
        TypeError, ValueError: no such penalty, or a threshold that does not fit it.
    """
    check_choice("penalty", penalty, tuple(THRESHOLDS))
    if threshold is None:
        return THRESHOLDS[penalty]
    if penalty == "relu":
        raise ValueError(f"threshold must be None with penalty='relu', which has none: {threshold}")
    limit = as_number("threshold", threshold)
    if not 0 < limit < math.inf:
        raise ValueError(f"threshold must be positive and finite, got {limit}")
    if penalty != "hinge" and limit >= 1:  # its tangent there would fall with the determinant
        raise ValueError(f"threshold must be below 1 with penalty={penalty!r}, got {limit}")
    return limit


def penalty_reference(
    determinant: torch.Tensor, penalty: str = "hyperelastic", threshold: float | None = None
) -> torch.Tensor:
    """psi(J), element by element, of `deformation_energy`'s determinant term."""
    limit = checked_threshold(penalty, threshold)
    if penalty == "hinge":
        return (limit - determinant).clamp(min=0) ** 2
    if penalty == "relu":
        return torch.relu(-determinant)
    above = torch.where(determinant < limit, torch.full_like(determinant, limit), determinant)
    below = torch.where(determinant < limit, determinant - limit, torch.zeros_like(determinant))
    if penalty == "log2":
        return torch.log(above) ** 2 + 2 * math.log(limit) / limit * below
    slope = 2 * (limit - 1) ** 3 * (limit + 1) / limit**3
    return ((above - 1) ** 2 / above) ** 2 + slope * below


def deformation_energy_reference(
    displacement: torch.Tensor,
    spacing: float | Sequence[float] | None = None,
    penalty: str = "hyperelastic",
    threshold: float | None = None,
) -> DeformationEnergy:
    """`deformation_energy` in plain PyTorch: one difference and one mean for every term.

    Args, Returns: as `deformation_energy`.
    """
    u = displacement
    dimensions = u.ndim - 2
    lengths = _lengths(spacing, dimensions)
    axis = flat_axis(u)
    if axis is not None:
        flat = without_axis(u, axis)
        return deformation_energy_reference(
            flat, lengths_without_axis(lengths, axis), penalty, threshold
        )
    own = per_axis(lengths, u).reshape(1, -1, *[1] * dimensions)
    zero = u.flatten(1)[:, :0].sum(1)
    diffusion, bending = zero, zero
    for k in range(dimensions):
        first = torch.diff(u, dim=2 + k)
        diffusion = diffusion + _mean_square(first * own / lengths[k])
        for other in range(k, dimensions):
            second = torch.diff(first, dim=2 + other) * own / (lengths[k] * lengths[other])
            bending = bending + (1 if other == k else 2) * _mean_square(second)
    corners = jacobian_determinant_reference(u).flatten(1)
    psi = penalty_reference(corners, penalty, threshold)
    determinant = psi.mean(dim=1) if psi.shape[1] else zero
    return DeformationEnergy(diffusion, bending, determinant)


def _mean_square(term: torch.Tensor) -> torch.Tensor:
    """Sum over components, mean over positions; 0 where there are none."""
    squares = (term**2).sum(dim=1).flatten(1)
    return squares.mean(dim=1) if squares.shape[1] else squares.sum(dim=1)


@torch.library.register_fake("diffreg::deformation_energy")
def _deformation_energy_fake(displacement, spacing, penalty, threshold):
    dtype = arithmetic_dtype(displacement)
    return tuple(displacement.new_empty(displacement.shape[:1], dtype=dtype) for _ in range(3))


@torch.library.register_fake("diffreg::deformation_energy_backward")
def _deformation_energy_backward_fake(
    grad_diffusion, grad_bending, grad_determinant, displacement, spacing, penalty, threshold
):
    return displacement.new_empty(displacement.shape)


def _setup_context(ctx, inputs, output):
    displacement, *ctx.options = inputs
    ctx.save_for_backward(displacement)
    ctx.set_materialize_grads(False)


def _backward(ctx, *gradients):
    refuse_transforms("deformation_energy")
    if all(gradient is None for gradient in gradients):
        return None, None, None, None
    gradient = _operator_backward(*gradients, *ctx.saved_tensors, *ctx.options)
    return gradient, None, None, None


def _setup_double_context(ctx, inputs, output):
    *gradients, displacement, spacing, penalty, threshold = inputs
    ctx.options = spacing, penalty, threshold if penalty != "relu" else None
    ctx.save_for_backward(*gradients, displacement)
    ctx.set_materialize_grads(False)


def _double_backward(ctx, grad_gradient):
    refuse_transforms("deformation_energy")
    *gradients, displacement = ctx.saved_tensors
    to_gradients, (to_displacement,) = gradients_of_gradients(
        lambda u: tuple(deformation_energy_reference(u, *ctx.options)),
        [displacement],
        gradients,
        [grad_gradient],
    )
    return (*to_gradients, to_displacement, None, None, None)


_operator = differentiable("deformation_energy", _backward, _setup_context)
_operator_backward = differentiable(
    "deformation_energy_backward", _double_backward, _setup_double_context
)
