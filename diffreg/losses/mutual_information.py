"""Mutual information of two images, differentiable, as a similarity that is minimised.

    MI = sum_ab p_ab ln(p_ab / (p_a p_b))

with p from Parzen windows: cubic B-splines for the warped image, boxes for the fixed one.

Plain PyTorch. The number for evaluation, from a histogram, is diffreg.metrics.mutual_information.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from diffreg.ops._checks import arithmetic_dtype, check_pair, checked_mask
from diffreg.ops._masks import counted

_PADDING = 2  # bins at each end, so that a cubic window stays inside


class Range(NamedTuple):
    """The intensities that the bins cover, (N, 1) each."""

    low: Tensor
    high: Tensor


def mutual_information(
    warped: Tensor,
    fixed: Tensor,
    bins: int = 32,
    mask: Tensor | None = None,
    moving: Tensor | None = None,
) -> Tensor:
    """Minus the mutual information in nats: smaller is better, 0 for independent images.

    The bins cover the range of each image, where the mask is not 0, and are constants to autograd.
    No gradient goes to fixed: its window is a box.

    Args:
        warped: image (N, C, *S), any floating dtype; channels are voxels of one image.
        fixed: image of the same shape.
        bins: along each axis of the joint histogram, at least 5.
        mask: weights (N, 1, *S) >= 0; None is 1. A voxel of weight 0 is not read.
        moving: (N, C, *any), the image before the warp, whose range the bins of `warped` cover, so
            that they do not change with the displacement: that of its finite values. None: `warped`
            itself.

    Returns:
        (N,) <= 0 up to rounding; 0 where an image is constant or the weights add up to 0; NaN where
        a value that counts is not finite.

    Raises:
        TypeError, ValueError: dtypes, shapes, devices or weights that do not fit, or too few bins.

    Source:
        Mattes et al. 2003: Parzen windows of B-splines of order 3 and 0.

    Example:
        >>> import torch
        >>> from diffreg.losses import mutual_information
        >>> image = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
        >>> bool(mutual_information(1 - image, image) < -2)
        True
    """
    check_pair(warped, fixed)
    if bins < 2 * _PADDING + 1:
        raise ValueError(f"bins must be at least {2 * _PADDING + 1}, got {bins}")
    dtype = arithmetic_dtype(warped, fixed)
    weights = checked_mask(mask, warped, dtype)
    if weights is None:
        weight = warped.new_ones((), dtype=dtype).expand(warped.shape)
    else:
        weight = weights.expand_as(warped)
    inside = weight > 0
    warped, fixed = counted(warped.to(dtype), weights), counted(fixed.detach().to(dtype), weights)
    limits = _range(warped, inside) if moving is None else _range(moving.to(dtype), None)
    w = _positions(warped, limits, bins)
    r = _positions(fixed, _range(fixed, inside), bins)
    centres = torch.arange(bins, dtype=dtype, device=warped.device).reshape(1, -1, 1)
    windows = _cubic(centres - w[:, None])  # (N, bins, V)
    boxes = (r.floor().clamp(_PADDING, bins - _PADDING - 1)[:, None] == centres).to(dtype)
    counts = (windows * weight.flatten(1)[:, None]) @ boxes.mT  # (N, bins, bins)
    # A box of NaN is empty, and the bins hold what is infinite: neither would show.
    unknown = (0 * (warped.detach() + fixed)).flatten(1).sum(1)
    total = counts.sum((1, 2), keepdim=True) + unknown[:, None, None]
    joint = counts / torch.where(total == 0, torch.ones_like(total), total)
    return _entropy(joint) - _entropy(joint.sum(2)) - _entropy(joint.sum(1))


def _range(image: Tensor, counts: Tensor | None) -> Range:
    """Smallest and largest finite intensity of each sample that counts, without gradient."""
    values = image.detach().flatten(1)
    if values.shape[1] == 0:
        return Range(values.new_zeros(len(values), 1), values.new_ones(len(values), 1))
    known = torch.isfinite(values)
    if counts is not None:
        known = known & counts.flatten(1)
    low = torch.where(known, values, torch.inf).amin(1, keepdim=True)
    high = torch.where(known, values, -torch.inf).amax(1, keepdim=True)
    none = low > high  # nothing counts
    return Range(torch.where(none, 0, low), torch.where(none, 1, high))


def _positions(image: Tensor, limits: Range, bins: int) -> Tensor:
    """Where the intensities fall among the bins, (N, V) in [2, bins - 2]."""
    extent = limits.high - limits.low
    extent = torch.where(extent > 0, extent, torch.ones_like(extent))
    part = ((image.flatten(1) - limits.low) / extent).clamp(0, 1)
    return _PADDING + part * (bins - 2 * _PADDING)


def _cubic(t: Tensor) -> Tensor:
    """The cubic B-spline, of support (-2, 2)."""
    distance = t.abs()
    return ((2 - distance).clamp(min=0) ** 3 - 4 * (1 - distance).clamp(min=0) ** 3) / 6


def _entropy(probability: Tensor) -> Tensor:
    """In nats, (N,); 0 ln 0 = 0, in the gradient too."""
    p = probability.flatten(1)
    return -(p * torch.where(p > 0, p, torch.ones_like(p)).log()).sum(1)
