"""Jacobian determinants of phi = id + u at every corner of every cell."""

import itertools

import torch

from diffreg.ops._autograd import differentiable, needs_gradient
from diffreg.ops._checks import (
    arithmetic_dtype,
    as_handed,
    check_choice,
    check_displacement,
    refuse_transforms,
    renamed_keywords,
)
from diffreg.ops._double_backward import gradients_of_gradients
from diffreg.ops._flat_axis import determinants_with_axis, flat_axis, without_axis

REDUCTIONS = (None, "min", "mean", "bound")


@renamed_keywords(disp="use displacement", ddf="use displacement", flow="use displacement")
def jacobian_determinant(displacement: torch.Tensor, reduce: str | None = None) -> torch.Tensor:
    """Jacobian determinant of phi = id + displacement at each corner of each cell.

    In 2-D the determinant is affine on a bilinear cell, so a cell whose four corners are positive
    does not fold anywhere; forward or central differences alone miss folds. In 3-D it is quadratic
    along each axis of a trilinear cell, and eight positive corners prove nothing about its inside:
    "bound" does.

    Args:
        displacement: (N, D, *S), voxels, any floating dtype. D = 2 or 3. Along an axis of one voxel
            nothing can change: such a volume is treated as an image, such an image as a line, and
            the displacement along that axis does not matter.
        reduce: None keeps the corners, "min" and "mean" reduce them to one value a cell, "bound" is
            the smallest of the cell's Bernstein coefficients (27 in 3-D; the corners in 2-D): the
            determinant is at least that everywhere in the cell. It is computed in the field's
            precision and rounded as everything: for screening, no certificate. It has no gradient.

    Returns:
        (N, 2**D, *(S-1)), corner a + 2b + 4c at vertex (i+a, j+b, k+c), the first axis fastest;
        with `reduce` (N, *(S-1)). An axis of one voxel stays, of size 1, and D counts the others. 1
        for the identity. float32 for half types: rounding would hide folds.

    Raises:
        TypeError: not a tensor, or a dtype that is not supported.
        ValueError: shape or `reduce` that do not fit, a gradient through "bound", or a reduction
            over no cell: a grid of one voxel, or of none. A batch of 0 is reduced to one of 0.
        NotImplementedError: forward-mode AD, or a device without kernels.

    Source:
        Cross products of the cell's edges, as in Burger, Modersitzki and Ruthotto 2013; bounds by
        Bernstein coefficients as in Johnen, Remacle and Geuzaine 2013.

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
    _check_cells(displacement, reduce)
    refuse_transforms("jacobian_determinant")
    axis = flat_axis(displacement)
    if axis is not None:
        flat = jacobian_determinant(without_axis(displacement, axis), reduce)
        return determinants_with_axis(flat, axis, displacement.ndim - 2, bool(reduce))
    if reduce == "bound" and needs_gradient(displacement):
        raise ValueError('reduce="bound" has no gradient: pass displacement.detach()')
    return _operator(*as_handed(displacement), reduce or "none")


def _check_cells(displacement: torch.Tensor, reduce: str | None) -> None:
    sizes = displacement.shape[2:]
    if reduce is not None and displacement.shape[0] and (0 in sizes or max(sizes) < 2):
        raise ValueError(
            f"reduce={reduce!r} needs a cell, there is none in shape {list(displacement.shape)}"
        )


def jacobian_determinant_reference(
    displacement: torch.Tensor, reduce: str | None = None
) -> torch.Tensor:
    """`jacobian_determinant` in plain PyTorch: determinants of edges, unit vector plus difference.

    Args, Returns: as `jacobian_determinant`.
    """
    axis = flat_axis(displacement)
    if axis is not None:
        flat = jacobian_determinant_reference(without_axis(displacement, axis), reduce)
        return determinants_with_axis(flat, axis, displacement.ndim - 2, bool(reduce))
    edges = _edges(displacement)
    dimensions = len(edges)
    ends = list(itertools.product((0, 1), repeat=dimensions))
    corners = {}
    for corner in ends:
        # The edge along an axis at a corner: the other axes say which of the parallel ones.
        meeting = [edges[k][corner[:k] + corner[k + 1 :]] for k in range(dimensions)]
        corners[corner] = _determinant(meeting)
    first_fastest = sorted(ends, key=lambda corner: corner[::-1])
    stacked = torch.stack([corners[corner] for corner in first_fastest], dim=1)
    if reduce == "min":
        return stacked.min(dim=1).values
    if reduce == "bound":
        return _bernstein(edges).min(dim=1).values
    return stacked.mean(dim=1) if reduce == "mean" else stacked


def _edges(displacement: torch.Tensor) -> list[dict[tuple[int, ...], torch.Tensor]]:
    """Of each axis the parallel edges of all cells, (N, D, *(S-1)), by the other axes' ends."""
    dimensions = displacement.shape[1]
    unit = torch.eye(dimensions, dtype=displacement.dtype, device=displacement.device)
    edges = []
    for k in range(dimensions):
        along = torch.diff(displacement, dim=2 + k)
        along = along + unit[k].reshape(1, -1, *[1] * dimensions)
        others = [other for other in range(dimensions) if other != k]
        parallel = {}
        for which in itertools.product((0, 1), repeat=dimensions - 1):
            edge = along
            for other, end in zip(others, which, strict=True):
                size = edge.shape[2 + other]
                edge = edge.narrow(2 + other, min(end, size), max(size - 1, 0))
            parallel[which] = edge
        edges.append(parallel)
    return edges


def _determinant(edges: list[torch.Tensor]) -> torch.Tensor:
    """The determinant of D vectors (N, D, ...)."""
    if len(edges) == 2:
        e, f = edges
        return e[:, 0] * f[:, 1] - e[:, 1] * f[:, 0]
    e, f, g = edges
    return (e * torch.linalg.cross(f, g, dim=1)).sum(1)


def _bernstein(edges: list[dict[tuple[int, ...], torch.Tensor]]) -> torch.Tensor:
    """The Bernstein coefficients of every cell's determinant, of degree D - 1 along each axis.

    The edge along an axis is linear along the others; a coefficient of a product of linear forms is
    the mean over the ways to put its index together from theirs.
    """
    dimensions = len(edges)
    if dimensions == 2:
        parts = [[edges[0][(b,)], edges[1][(a,)]] for b in (0, 1) for a in (0, 1)]
        return torch.stack([_determinant(part) for part in parts], 1)
    coefficients = []
    for i, j, k in itertools.product(range(3), repeat=3):
        terms = [
            _determinant([edges[0][(j1, k1)], edges[1][(i1, k - k1)], edges[2][(i - i1, j - j1)]])
            for i1, j1, k1 in itertools.product((0, 1), repeat=3)
            if i - i1 in (0, 1) and j - j1 in (0, 1) and k - k1 in (0, 1)
        ]
        coefficients.append(torch.stack(terms).mean(0))
    return torch.stack(coefficients, 1)


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
