"""How alike two images are: NCC, relative SSD, mutual information, from a histogram, and SSIM."""

from __future__ import annotations

import math

import numpy as np
import torch

from diffreg.metrics._arrays import Array, single, voxels


def ncc(warped: Array, fixed: Array, mask: Array | None = None) -> float:
    """The correlation coefficient of two images: 1 is a linear relation, -1 an inverted one.

    Args:
        warped: image, (*S) or (1, 1, *S).
        fixed: image of the same shape.
        mask: weights >= 0 of the same shape.

    Returns:
        The coefficient in [-1, 1]; nan where an image is constant or not finite.

    Raises:
        ValueError: shapes differ, an image is empty, or no voxel is inside the mask.

    Source: Pearson's correlation coefficient.

    Example:
        >>> round(ncc(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[3.0, 5.0, 4.0]])), 6)
        0.5
    """
    w, r, weight = voxels({"warped": warped, "fixed": fixed}, mask)
    a, b = w - np.average(w, weights=weight), r - np.average(r, weights=weight)
    spread_a, spread_b = np.sum(weight * a * a), np.sum(weight * b * b)
    # The mean of a constant image is rounded: the operator `correlation` has the same bound.
    floor = (8 * np.finfo(np.float64).eps) ** 2
    if not (
        spread_a > floor * np.sum(weight * w * w) and spread_b > floor * np.sum(weight * r * r)
    ):
        return float("nan")
    cc = np.sum(weight * a * b) / (np.sqrt(spread_a) * np.sqrt(spread_b))
    return float(np.clip(cc, -1.0, 1.0))


def relative_ssd(warped: Array, fixed: Array, moving: Array, mask: Array | None = None) -> float:
    """|W - R|^2 / |T - R|^2: what is left of the squared difference, for images of one contrast.

    Args:
        warped: the moving image after the warp, (*S) or (1, 1, *S).
        fixed: image of the same shape.
        moving: the moving image before the warp, on the fixed grid, same shape.
        mask: weights >= 0 of the same shape.

    Returns:
        0 when the warp explains everything, 1 when nothing changed. Where moving equals fixed:
        inf, or nan (0 / 0) if warped equals them too.

    Raises:
        ValueError: shapes differ, an image is empty, or no voxel is inside the mask.

    Example:
        >>> relative_ssd(torch.tensor([[1.0, 1.0]]), torch.zeros(1, 2), torch.tensor([[2.0, 2.0]]))
        0.25
    """
    w, r, t, weight = voxels({"warped": warped, "fixed": fixed, "moving": moving}, mask)
    after, before = np.sum(weight * (w - r) ** 2), np.sum(weight * (t - r) ** 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(after / before)


def mutual_information(
    warped: Array,
    fixed: Array,
    bins: int = 64,
    mask: Array | None = None,
    moving: Array | None = None,
) -> float:
    """Mutual information of two images in nats, from a joint histogram of equal bins.

    Args:
        warped: image, (*S) or (1, 1, *S).
        fixed: image of the same shape.
        bins: bins along each axis of the histogram.
        mask: weights >= 0 of the same shape.
        moving: the image whose range sets the bins of `warped`, so that before and after share
            them; values outside go into the end bins. None: `warped` itself.

    Returns:
        >= 0; 0 where an image is constant; nan where a value is not finite.

    Raises:
        ValueError: shapes differ, an image is empty, bins < 1, or no voxel is inside the mask.

    Source: Viola and Wells 1997, Maes et al. 1997; histogram estimate.

    Example:
        >>> round(mutual_information(torch.tensor([[0.0, 1.0]]), torch.tensor([[5.0, 3.0]])), 4)
        0.6931
    """
    joint = _joint_histogram(warped, fixed, bins, mask, moving)
    information = _entropy(joint.sum(1)) + _entropy(joint.sum(0)) - _entropy(joint)
    return float(np.maximum(information, 0.0))  # rounding; nan stays nan


def normalized_mutual_information(
    warped: Array,
    fixed: Array,
    bins: int = 64,
    mask: Array | None = None,
    moving: Array | None = None,
) -> float:
    """Studholme's (H(W) + H(R)) / H(W, R): 1 for independent images, 2 for one told by the other.

    Args:
        warped, fixed, bins, mask, moving: as in `mutual_information`.

    Returns:
        A value in [1, 2]; nan where both images are constant or a value is not finite.

    Raises:
        ValueError: as `mutual_information`.

    Source: Studholme, Hill and Hawkes 1999.

    Example:
        >>> normalized_mutual_information(torch.tensor([[0.0, 1.0]]), torch.tensor([[5.0, 3.0]]))
        2.0
    """
    joint = _joint_histogram(warped, fixed, bins, mask, moving)
    together = _entropy(joint)
    if not together > 0:
        return float("nan")
    return (_entropy(joint.sum(1)) + _entropy(joint.sum(0))) / together


def structural_similarity(warped: Array, fixed: Array, mask: Array | None = None) -> float:
    """SSIM of two images of one contrast in [0, 1]: 1 for equal images.

    Gaussian windows of sigma 1.5 cut at 3.5 sigma, population covariance, data range 1; windows
    that do not fit into the image are left out, as scikit-image leaves them out of its mean.

    Args:
        warped: image, (*S) or (1, 1, *S), 2-D or 3-D.
        fixed: image of the same shape.
        mask: weights >= 0 of the same shape, of the windows' centres. Windows around a voxel that
            counts read one of weight 0, too; what is not finite there is 0.

    Returns:
        The mean, at most 1; nan where no window fits (an axis of less than 11 voxels), or a value
        that counts is not finite.

    Raises:
        ValueError: shapes differ, or no voxel is inside the mask.

    Source: Wang et al. 2004, with the settings of their code.

    Example:
        >>> structural_similarity(np.eye(16), np.eye(16))
        1.0
    """
    voxels({"warped": warped, "fixed": fixed}, mask)  # the checks
    values = [single("image", image) for image in (warped, fixed)]
    weight = np.ones(values[0].shape) if mask is None else single("mask", mask)
    hidden = [(weight == 0) & ~np.isfinite(image) for image in values]
    a, b = (
        torch.from_numpy(np.where(where, 0, image))
        for image, where in zip(values, hidden, strict=True)
    )
    if a.ndim < 2:
        raise ValueError(f"warped must be 2-D or 3-D, got {list(a.shape)}")
    radius = int(3.5 * 1.5 + 0.5)
    if min(a.shape) <= 2 * radius:
        return float("nan")
    mean_a, mean_b, aa, bb, ab = _blurred(torch.stack([a, b, a * a, b * b, a * b]), radius)
    above = (2 * mean_a * mean_b + 0.01**2) * (2 * (ab - mean_a * mean_b) + 0.03**2)
    squares = mean_a**2 + mean_b**2
    similarity = (above / ((squares + 0.01**2) * (aa + bb - squares + 0.03**2))).numpy()
    weight = weight[(slice(radius, -radius),) * a.ndim]
    counts = weight > 0
    if not counts.any():
        return float("nan")
    return float(np.average(similarity[counts], weights=weight[counts]))


def _blurred(images: torch.Tensor, radius: int) -> torch.Tensor:
    """(N, *S) with Gaussian weights of sigma 1.5, where the whole window fits."""
    window = [math.exp(-0.5 * (k / 1.5) ** 2) for k in range(-radius, radius + 1)]
    for axis in range(1, images.ndim):  # by slices: a convolution copies all windows first
        size = images.shape[axis] - 2 * radius
        blurred = torch.zeros_like(images.narrow(axis, 0, size))
        for start, weight in enumerate(window):
            blurred.add_(images.narrow(axis, start, size), alpha=weight / sum(window))
        images = blurred
    return images


def _joint_histogram(
    warped: Array, fixed: Array, bins: int, mask: Array | None, moving: Array | None
) -> np.ndarray:
    """(bins, bins) joint probabilities; all nan where a value inside the mask is not finite."""
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    images = {"warped": warped, "fixed": fixed, "moving": warped if moving is None else moving}
    w, r, t, weight = voxels(images, mask)
    if not (np.isfinite(w).all() and np.isfinite(r).all() and np.isfinite(t).all()):
        return np.full((bins, bins), np.nan)
    index = _bin_index(w, t, bins) * bins + _bin_index(r, r, bins)
    counts = np.bincount(index, weights=weight, minlength=bins * bins)
    return (counts / counts.sum()).reshape(bins, bins)


def _bin_index(values: np.ndarray, of_range: np.ndarray, bins: int) -> np.ndarray:
    """The bin, of equal ones over the range of `of_range`; the ends take what lies outside."""
    low, high = of_range.min(), of_range.max()
    if not high > low:
        return np.zeros(values.shape, dtype=np.int64)
    edges = np.linspace(low, high, bins + 1)
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, bins - 1)


def _entropy(probability: np.ndarray) -> float:
    """In nats; 0 log 0 = 0, and nan stays nan."""
    p = probability[probability != 0]
    return float(-np.sum(p * np.log(p))) + 0.0
