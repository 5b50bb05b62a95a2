"""Where two images differ by noise alone, nothing is left to register.

    rho = mean of d(p) d(p + e) / mean of d(p)^2    over a window and the axes e

with d what the fixed image is beyond what the warped one's intensities explain: by a straight line
within a contrast, and across contrasts as well by the mean of the fixed image's where the warped
one has that intensity, for more than that their similarities do not see. What tissue in the wrong
place leaves is alike from voxel to voxel, noise is not: rho is 0 for white noise. There
the similarity gets no weight, or the displacement would follow the noise.

Source: the discrepancy principle (Morozov 1966), with the whiteness of the residual for its size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from diffreg.registration.ordered import dot, total

BINS = 32  # of the warped image's intensities
RADIUS = {2: 13, 3: 4}  # voxels, of the window, which has some 729
# rho of independent noise is at most .08 in 99 % of such windows, that of two people's heads, at 8,
# 4 and 2 mm, before and after their registration, at least .1 in 95 %.
NOISE, TISSUE = 0.1, 0.2
SMALLEST = 1e-3  # of the mean of d^2: where there is less, rho says nothing
LEAST = 1e-2  # of where rho tells: a smaller part is chance, and would move all of it
EQUAL = 1e-9  # of the image's variance: where the images differ by less, they are equal


def structured(
    warped: Tensor, fixed: Tensor, mask: Tensor | None = None, across: bool = False
) -> tuple[Tensor | None, float]:
    """The mask times weights in [0, 1] of what differs by more than noise, and their share of it.

    Where all weights are 1 the mask itself comes back; the share is 0 where it is next to nothing.

    Args:
        warped: image (1, C, *S).
        fixed: image (1, C, *S).
        mask: weights (1, 1, *S); None is 1. It is a factor of what is returned.
        across: whether the contrasts may differ.

    Example:
        >>> import torch
        >>> from diffreg.registration.whiteness import structured
        >>> noise = torch.rand(2, 1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
        >>> structured(*noise)[1] < 0.1
        True
    """
    inside = torch.ones_like(fixed[:, :1]) if mask is None else mask
    pairs = zip(warped.split(1, 1), fixed.split(1, 1), strict=True)
    each = [_weight(a, b, (inside > 0).to(b), across) for a, b in pairs]
    weights = torch.stack([weight for weight, _ in each]).amax(0)
    telling = torch.stack([tells for _, tells in each]).any(0) & (inside > 0)
    found = inside * weights
    if not total(weights[telling]) >= LEAST * telling.sum().to(weights.dtype) or not telling.any():
        return found, 0.0
    share = (total(found) / total(inside)).item()
    return (mask, share) if share == 1 else (found, share)


def _weight(warped: Tensor, fixed: Tensor, inside: Tensor, across: bool) -> tuple[Tensor, Tensor]:
    """The weights, and where the images differ by enough for them to tell."""
    line = _by_a_line(warped, fixed, inside)
    rho, tells = _autocorrelation(inside * (fixed - line), fixed)
    if across:
        apart = inside * (fixed - _by_intensity(warped, fixed, inside))
        rho = torch.minimum(rho, _autocorrelation(apart, fixed)[0])
    return ((rho - NOISE) / (TISSUE - NOISE)).clamp(0, 1).nan_to_num_(1.0), tells


def _autocorrelation(apart: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    energy, product = apart * apart, torch.zeros_like(apart)
    axes = [axis for axis in range(2, apart.ndim) if apart.shape[axis] > 1]
    for axis in axes:
        pairs = apart.shape[axis] - 1
        here, next_one = apart.narrow(axis, 0, pairs), apart.narrow(axis, 1, pairs)
        product.narrow(axis, 0, pairs).addcmul_(here, next_one, value=1 / len(axes))
    mean = total(energy) / energy.numel()
    least = SMALLEST * mean
    local = _mean_about(energy)
    tells = (local > least) & (mean > EQUAL * _variance(image))
    return (_mean_about(product) + least) / (local + least), tells


def _variance(image: Tensor) -> Tensor:
    apart = image - total(image) / image.numel()
    return dot(apart, apart) / image.numel()


def _by_a_line(warped: Tensor, fixed: Tensor, inside: Tensor) -> Tensor:
    """The fixed image by a straight line of the warped one's intensities.

    Its slope is the ratio of their deviations: one by least squares would fall with every misfit,
    and leave tissue where there is none.
    """
    count = total(inside)
    a, b = (image - dot(inside, image) / count for image in (warped, fixed))
    products = [dot(inside, product) for product in (a * a, b * b, a * b)]
    slope = torch.sign(products[2]) * (products[1] / products[0]).sqrt()
    return fixed - b + slope * a


def _by_intensity(warped: Tensor, fixed: Tensor, inside: Tensor) -> Tensor:
    """The mean of the fixed image where the warped one has that intensity."""
    low, high = warped.aminmax()
    scale = BINS / torch.where(high > low, high - low, 1)
    bins = ((warped - low) * scale).long().clamp_(0, BINS - 1).flatten()
    count, sums = (_sums(bins, v.flatten().double()) for v in (inside, inside * fixed))
    return (sums / count.clamp(min=1)).to(fixed.dtype)[bins].view_as(fixed)


def _sums(bins: Tensor, values: Tensor) -> Tensor:
    """The sum of the values in each bin, (BINS,)."""
    if bins.is_cpu:
        return torch.bincount(bins, weights=values, minlength=BINS)
    # On a GPU that adds in any order, and torch.use_deterministic_algorithms(True) refuses it.
    return torch.stack([torch.where(bins == k, values, 0).sum() for k in range(BINS)])


def _mean_about(values: Tensor) -> Tensor:
    """The mean over the window about every voxel, cut at the border, axis by axis."""
    for axis in range(2, values.ndim):
        along = [length if k == axis else 1 for k, length in enumerate(values.shape)]
        counts = _sum_about(values.new_ones(along), axis)
        values = _sum_about(values, axis).div_(counts)
    return values


def _sum_about(values: Tensor, axis: int) -> Tensor:
    """Shifted and added, which takes a quarter of the time of torch's pooling."""
    length, sums = values.shape[axis], values.clone()
    for shift in range(1, min(RADIUS[values.ndim - 2], length - 1) + 1):
        first, last = (axis, 0, length - shift), (axis, shift, length - shift)
        sums.narrow(*first).add_(values.narrow(*last))
        sums.narrow(*last).add_(values.narrow(*first))
    return sums
