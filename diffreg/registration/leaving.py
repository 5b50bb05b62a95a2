"""What a displacement pays for leading voxels out of the moving image.

    E_out = mean over voxels of sum_k (beyond_k / n_k)^2

with beyond_k how many voxels p + u(p) lies beyond the outer voxel centres along axis k, n_k long.
There the edge is repeated: without a price, a pair that does not fit gains by moving all of the
image out of sight, where a correlation is 0 and not negative, and a difference that of nothing.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Times the similarity's weight. All voxels led out by the image's length cost 1/3 of it, and that
# must be more than any similarity can gain: `ncc` at most 2, from -1 to 1.
STRENGTH = 8.0


def add_leaving(displacement: Tensor, gradient: Tensor, strength: float) -> float:
    """The value of strength * E_out; its gradient is added to `gradient`.

    Args:
        displacement: (1, D, *S), voxels of a grid that both images have.
        gradient: of the same shape.
        strength: of the term.

    Example:
        >>> import torch
        >>> from diffreg.registration.leaving import add_leaving
        >>> out = torch.zeros(1, 2, 4, 4)
        >>> out[:, 0] = 4  # beyond by 1, 2, 3 and 4 voxels
        >>> round(add_leaving(out, torch.zeros_like(out), 1.0), 6)
        0.46875
    """
    value, voxels = 0.0, displacement[0, 0].numel()
    for axis in range(displacement.shape[1]):
        size = displacement.shape[2 + axis]
        component, slope = displacement[:, axis], gradient[:, axis]
        if not component.numel():
            continue
        least, most = (float(end) for end in component.aminmax())
        factor = strength / (voxels * size**2)
        for farthest, sign in ((-least, -1.0), (most, 1.0)):
            if farthest <= 0:
                continue
            # Only voxels that are as near to this end as the farthest step to it can leave.
            reach = min(size, math.ceil(farthest)) if math.isfinite(farthest) else size
            first, end = (0, 0.0) if sign < 0 else (size - reach, size - 1.0)
            part = component.narrow(1 + axis, first, reach)
            index = torch.arange(first, first + reach, dtype=part.dtype, device=part.device)
            shape = [1] * part.ndim
            shape[1 + axis] = reach
            beyond = (sign * (part + index.reshape(shape) - end)).clamp_(min=0)
            lost = beyond.square().sum().item()
            if lost == 0:
                continue
            value += factor * lost
            slope.narrow(1 + axis, first, reach).add_(beyond, alpha=2 * factor * sign)
    return value
