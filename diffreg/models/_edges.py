"""Where images have edges and which way they lie, and the demons force between two images'.

E = n n^T, n = grad I / sqrt(|grad I|^2 + eta^2), eta = mean |grad I|
f = grad S : R / (|R|^2 + |grad S|^2 / 2 + eps), S = E_moving + E_fixed, R = E_fixed - E_moving

None of it depends on a contrast's sign, and little on its size. A network that is shown images has
to find such products by itself, which takes it thousands of steps.
"""

from __future__ import annotations

from itertools import combinations_with_replacement

import torch
import torch.nn.functional as F
from torch import Tensor

_EPSILON = 1e-3  # where there is no edge, nothing pulls


def edges(image: Tensor) -> Tensor:
    """The entries of n n^T on and above its diagonal, in float32.

    Args:
        image: (N, 1, *S), D sizes.

    Returns:
        (N, D (D + 1) / 2, *S), in [-1, 1].

    Source:
        Haber and Modersitzki 2006: the normalised gradient.
    """
    axes = range(2, image.ndim)
    gradient = torch.cat([_difference(image.float(), axis) for axis in axes], 1)
    # A flat image has a root, too. (Of a sum with so small a number ONNX's exporter drops it.)
    squared = (gradient * gradient).sum(1, keepdim=True).clamp(min=1e-12)
    mean = squared.sqrt().mean(tuple(axes), keepdim=True)
    normal = gradient / (squared + mean * mean).sqrt()
    pairs = combinations_with_replacement(range(len(axes)), 2)
    return torch.stack([normal[:, i] * normal[:, j] for i, j in pairs], 1)


def force(moving: Tensor, fixed: Tensor) -> Tensor:
    """The symmetric demons force between the edges of two images: a first guess of what moved them.

    Args:
        moving, fixed: (N, C, *S), entries of E.

    Returns:
        (N, D, *S), voxels.

    Source:
        Thirion 1998; here the images are matrices.
    """
    rest = fixed - moving
    slopes = [_difference(moving + fixed, axis) for axis in range(2, moving.ndim)]
    pull = torch.cat([(slope * rest).sum(1, keepdim=True) for slope in slopes], 1)
    steep = torch.cat(slopes, 1).square().sum(1, keepdim=True)
    return pull / ((rest * rest).sum(1, keepdim=True) + steep / 2 + _EPSILON)


def averaged(x: Tensor) -> Tensor:
    """The mean of each 2^D voxels of (N, C, *S), S even."""
    if x.ndim == 4:
        pooled: Tensor = F.avg_pool2d(x, 2)
        return pooled
    if x.device.type == "cpu":
        pooled = F.avg_pool3d(x, 2)
        return pooled
    return _means(x)


def _means(x: Tensor) -> Tensor:
    """The same, with a gradient that a GPU repeats to the bit; that of avg_pool3d is refused."""
    for axis in range(2, x.ndim):
        x = x.unflatten(axis, (-1, 2)).mean(axis + 1)
    return x


def _difference(image: Tensor, axis: int) -> Tensor:
    """Central differences, the border repeated."""
    size = image.shape[axis]
    ends = image.narrow(axis, 0, 1), image.narrow(axis, size - 1, 1)
    padded = torch.cat([ends[0], image, ends[1]], axis)
    return (padded.narrow(axis, 2, size) - padded.narrow(axis, 0, size)) / 2
