"""Gradients of the operators' gradients.

Double backward is rare (gradient penalties, Hessian products), so it is derived from the plain
PyTorch reference instead of a third kernel per operator: right, differentiable again, and as slow
as the reference.
"""

from collections.abc import Callable, Sequence

import torch

from diffreg.ops._checks import arithmetic_dtype

Tensors = Sequence[torch.Tensor]


def _differentiable(tensors: Tensors) -> list[torch.Tensor]:
    """Views of the tensors that no other one depends on.

    Upstream gradients depend on the inputs as soon as the loss is not linear, and both inputs may
    be one tensor: the derivative to one view must not run on through another.
    """
    return [t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in tensors]


def gradients_of_gradients(
    reference: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]],
    inputs: Tensors,
    upstream: Sequence[torch.Tensor | None],
    grad_gradients: Sequence[torch.Tensor | None],
) -> tuple[list[torch.Tensor | None], list[torch.Tensor | None]]:
    """Derivatives of sum_i <grad_gradients[i], d<upstream, reference(inputs)>/d inputs[i]>.

    Args:
        reference: function of `inputs`, which it gets in the arithmetic's dtype; its outputs in the
            order of `upstream`.
        inputs: the operator's differentiable inputs.
        upstream: gradient to each output; None where that output was not used.
        grad_gradients: gradient to each gradient; None where that gradient was not used.

    Returns:
        Gradients to `upstream` and gradients to `inputs`; None where there is no dependence.
    """
    create_graph = torch.is_grad_enabled()
    to_upstream: list[torch.Tensor | None] = [None] * len(upstream)
    to_inputs: list[torch.Tensor | None] = [None] * len(inputs)
    asked = [i for i, g in enumerate(grad_gradients) if g is not None]
    if not asked:
        return to_upstream, to_inputs
    with torch.enable_grad():
        points = _differentiable(inputs)
        wide = arithmetic_dtype(*points)
        values = reference(*(point.to(wide) for point in points))
        values = values if isinstance(values, tuple) else (values,)
        # A value may be a constant: an edge scale of an image without voxels is the smallest.
        pairs = [(k, g) for k, g in enumerate(upstream) if g is not None]
        used = [(k, g) for k, g in pairs if values[k].requires_grad]
        if not used:
            return to_upstream, to_inputs
        weights = _differentiable([g for _, g in used])
        outputs = [values[k].to(g.dtype) for k, g in used]
        gradients = torch.autograd.grad(
            outputs, [points[i] for i in asked], weights, create_graph=True, allow_unused=True
        )
        dependent = [
            (gradient, grad_gradients[i])
            for i, gradient in zip(asked, gradients, strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        if not dependent:
            return to_upstream, to_inputs
        results = torch.autograd.grad(
            [gradient for gradient, _ in dependent],
            [*weights, *points],
            [weight for _, weight in dependent],
            create_graph=create_graph,
            allow_unused=True,
        )
    for (k, _), result in zip(used, results, strict=False):
        to_upstream[k] = result
    return to_upstream, list(results[len(used) :])
