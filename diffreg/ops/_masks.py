"""What a measure reads of an image under a mask: a voxel of weight 0 says nothing.

A measure of single voxels does not read it at all. One with a stencil (windows, image gradients)
reads it as a neighbour of voxels that count; what is hidden, that is not finite and of weight 0,
is 0 there. A hidden voxel has no gradient.
"""

from typing import Any

import torch
from torch import Tensor


def counted(image: Tensor, mask: Tensor | None) -> Tensor:
    """The image (N, C, *S), 0 where the weight (N, 1, *S) is 0: what single voxels are read of."""
    return image if mask is None else image.masked_fill(mask == 0, 0)


def visible(image: Tensor, mask: Tensor | None) -> Tensor:
    """The image (N, C, *S), 0 where it is hidden by the mask (N, 1, *S): what stencils read."""
    if mask is None:
        return image
    return image.masked_fill((mask == 0) & torch.isfinite(image).logical_not(), 0)


def finite_part(image: Tensor, mask: Tensor | None) -> Tensor:
    """The moving image, which has no mask of its own: where there is one, 0 for what is not finite.

    For what is measured of the whole image, of which the warp may read a part: a voxel that counts
    and reads what is not finite is not finite either.
    """
    return image if mask is None else image.masked_fill(torch.isfinite(image).logical_not(), 0)


class _Unseen(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(displacement: Tensor, mask: Tensor) -> Tensor:
        return displacement.view_as(displacement)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return visible(gradients[0], ctx.saved_tensors[0]), None


def hiding_gradient(displacement: Tensor, mask: Tensor | None) -> Tensor:
    """The displacement (N, D, *S), to warp by: what is hidden of the gradient through it is 0."""
    if mask is None:
        return displacement
    found: Tensor = _Unseen.apply(displacement, mask)
    return found
