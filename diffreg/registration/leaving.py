"""What a displacement pays for leading voxels out of the moving image.

    E_out = mean over voxels of sum_k (beyond_k / n_k)^2

with beyond_k how many voxels p + u(p) lies beyond the outer voxel centres along axis k, n_k long.
There the edge is repeated: without a price, a pair that does not fit gains by moving all of the
image out of sight, where a correlation is 0 and not negative, and a difference that of nothing.
"""

from __future__ import annotations

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
    value = 0.0
    for axis, size in enumerate(displacement.shape[2:]):
        component = displacement[0, axis]
        index = torch.arange(size, dtype=component.dtype, device=component.device)
        position = component + index.reshape(
            [-1 if k == axis else 1 for k in range(component.ndim)]
        )
        beyond = position - position.clamp(0, size - 1)
        lost = beyond.square().sum().item()
        if lost == 0:
            continue
        factor = strength / (component.numel() * size**2)
        value += factor * lost
        gradient[0, axis].add_(beyond, alpha=2 * factor)
    return value
