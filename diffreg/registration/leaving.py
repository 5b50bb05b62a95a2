"""What a displacement pays for leading voxels out of the moving image.

    E_out = mean over voxels of sum_k (beyond_k / n_k)^2

with beyond_k how many voxels p + u(p) lies beyond the outer voxel centres along axis k, n_k long.
There the edge is repeated: without a price, a pair that does not fit gains by moving all of the
image out of sight, where a correlation is 0 and not negative, and a difference that of nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from diffreg.registration.descent import ValueAndGradient
from diffreg.registration.ordered import dot

# Times the similarity's weight. All voxels led out by the image's length cost 1/3 of it, and that
# must be more than any similarity can gain: `ncc` at most 2, from -1 to 1.
STRENGTH = 8.0
_VOXELS = 2**19  # at once: what is needed meanwhile stays small


def staying(
    of_images: ValueAndGradient, strength: float, extent: Sequence[int]
) -> ValueAndGradient:
    """With the price of leaving.

    Args:
        of_images: called with a displacement -> value and gradient.
        strength, extent: as `add_leaving` takes them.

    Example: `staying(of_images, STRENGTH, moving.shape[2:])`
    """

    def evaluate(displacement: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = of_images(displacement)
        return value + add_leaving(displacement, gradient, strength, extent), gradient

    return evaluate


def add_leaving(
    displacement: Tensor, gradient: Tensor, strength: float, extent: Sequence[int]
) -> Tensor:
    """The value of strength * E_out, (); its gradient is added to `gradient`.

    Args:
        displacement: (1, D, *S), from the voxels of the fixed grid to those of the moving image.
        gradient: of the same shape.
        strength: of the term.
        extent: voxels of the moving image along each axis.

    Example:
        >>> import torch
        >>> from diffreg.registration.leaving import add_leaving
        >>> out = torch.zeros(1, 2, 4, 4)
        >>> out[:, 0] = 4  # beyond by 1, 2, 3 and 4 voxels
        >>> add_leaving(out, torch.zeros_like(out), 1.0, (4, 4))
        tensor(0.4688)
    """
    value = displacement.new_zeros(())
    voxels = displacement[0, 0].numel()
    rows = max(1, len(displacement[0, 0]) * _VOXELS // max(voxels, 1))
    for axis, size in enumerate(extent):
        factor = strength / (voxels * size**2)
        index = _index(displacement[0, axis], axis)
        parts = (tensor[0, axis].split(rows) for tensor in (displacement, gradient))
        indices = index.split(rows) if axis == 0 else itertools.repeat(index)
        for component, slope, place in zip(*parts, indices, strict=False):
            position = component + place
            beyond = position.sub_(position.clamp(0, size - 1)).reshape(-1)
            value = value + factor * dot(beyond, beyond)
            slope.add_(beyond.view_as(slope), alpha=2 * factor)
    return value


def _index(component: Tensor, axis: int) -> Tensor:
    """The voxels along an axis of (*S), in a shape that broadcasts."""
    shape = [-1 if k == axis else 1 for k in range(component.ndim)]
    index = torch.arange(component.shape[axis], dtype=component.dtype, device=component.device)
    return index.reshape(shape)
