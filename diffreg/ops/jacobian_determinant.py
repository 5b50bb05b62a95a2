"""Jacobian determinants of phi = id + u at every corner of every cell."""

import torch

from diffreg.ops._autograd import differentiable
from diffreg.ops._checks import (
    arithmetic_dtype,
    as_handed,
    check_choice,
    check_displacement,
    refuse_transforms,
)
from diffreg.ops._double_backward import gradients_of_gradients

REDUCTIONS = (None, "min", "mean")


def jacobian_determinant(displacement: torch.Tensor, reduce: str | None = None) -> torch.Tensor:
    """Jacobian determinant of phi = id + displacement at each corner of each cell.

    In 2-D the determinant is affine on a bilinear cell, so a cell whose four corners are positive
    does not fold anywhere; forward or central differences alone miss folds.

    Args:
        displacement: (N, D, *S), voxels, any floating dtype. D = 2.
        reduce: None keeps the corners, "min" and "mean" reduce them to one value a cell.

    Returns:
        (N, 2**D, *(S-1)), corner a + 2b at vertex (i+a, j+b), the first axis fastest; with `reduce`
        (N, *(S-1)). 1 for the identity. float32 for half types: rounding would hide folds.

    Raises:
        TypeError: not a tensor, or a dtype that is not supported.
        ValueError: shape or `reduce` that do not fit.
        NotImplementedError: forward-mode AD, or a device without kernels.

    Source:
        Cross products of the cell's edges, as in Burger, Modersitzki and Ruthotto 2013.

    Example:
        >>> import torch
        >>> from diffreg.ops import jacobian_determinant
        >>> stretch = torch.zeros(1, 2, 2, 2)
        >>> stretch[0, 0] = torch.arange(2.0).reshape(2, 1)  # u_0 = i_0
        >>> jacobian_determinant(stretch).flatten()
        tensor([2., 2., 2., 2.])
    """
    check_displacement(displacement)
    check_choice("reduce", reduce, REDUCTIONS)
    refuse_transforms("jacobian_determinant")
    return _operator(*as_handed(displacement), reduce or "none")


def jacobian_determinant_reference(
    displacement: torch.Tensor, reduce: str | None = None
) -> torch.Tensor:
    """`jacobian_determinant` in plain PyTorch: cross products of unit vector plus difference of u.

    Args, Returns: as `jacobian_determinant`.
    """
    unit = torch.eye(2, dtype=displacement.dtype, device=displacement.device)
    along_0 = torch.diff(displacement, dim=2) + unit[0].reshape(1, 2, 1, 1)
    along_1 = torch.diff(displacement, dim=3) + unit[1].reshape(1, 2, 1, 1)
    e = along_0[..., :-1], along_0[..., 1:]  # at b = 0, 1
    f = along_1[:, :, :-1], along_1[:, :, 1:]  # at a = 0, 1
    corners = torch.stack(
        [e[b][:, 0] * f[a][:, 1] - e[b][:, 1] * f[a][:, 0] for b in (0, 1) for a in (0, 1)], dim=1
    )
    if reduce == "min":
        return corners.min(dim=1).values
    return corners.mean(dim=1) if reduce == "mean" else corners


@torch.library.register_fake("diffreg::jacobian_determinant")
def _jacobian_determinant_fake(displacement, reduce):
    cells = [max(n - 1, 0) for n in displacement.shape[2:]]
    corners = [2 ** len(cells)] if reduce == "none" else []
    shape = displacement.shape[0], *corners, *cells
    return displacement.new_empty(shape, dtype=arithmetic_dtype(displacement))


@torch.library.register_fake("diffreg::jacobian_determinant_backward")
def _jacobian_determinant_backward_fake(gradient, displacement, reduce):
    return displacement.new_empty(displacement.shape)


def _setup_context(ctx, inputs, output):
    displacement, ctx.reduce = inputs
    ctx.save_for_backward(displacement)


def _backward(ctx, gradient):
    refuse_transforms("jacobian_determinant")
    return _operator_backward(gradient, *ctx.saved_tensors, ctx.reduce), None


def _setup_double_context(ctx, inputs, output):
    gradient, displacement, ctx.reduce = inputs
    ctx.save_for_backward(gradient, displacement)


def _double_backward(ctx, grad_gradient):
    refuse_transforms("jacobian_determinant")
    gradient, displacement = ctx.saved_tensors
    (to_gradient,), (to_displacement,) = gradients_of_gradients(
        lambda u: jacobian_determinant_reference(u, ctx.reduce if ctx.reduce != "none" else None),
        [displacement],
        [gradient],
        [grad_gradient],
    )
    return to_gradient, to_displacement, None


_operator = differentiable("jacobian_determinant", _backward, _setup_context)
_operator_backward = differentiable(
    "jacobian_determinant_backward", _double_backward, _setup_double_context
)
