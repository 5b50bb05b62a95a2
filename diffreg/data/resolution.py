"""A finer image as a coarser grid sees it: by voxels that are wider than its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from diffreg.data.geometry import Image, voxel_map

# Of a Gaussian, full width at half maximum over standard deviation.
_FWHM = 2 * np.sqrt(2 * np.log(2))


def as_coarse_as(fixed: Image, moving: Image) -> Image:
    """The moving image, smoothed where its voxels are finer than the fixed image's.

    Sampled as it is, a finer image shows the coarser grid its noise and steps between its voxels;
    smoothed, it shows what a scanner of that resolution would have seen. Along each of its axes a
    Gaussian widens a voxel, taken for a Gaussian of one voxel's full width at half maximum, to the
    extent that a fixed voxel has there: sigma = sqrt(ratio^2 - 1) / 2.355 voxels, ratio > 1.

    Args:
        fixed: the image whose grid is to be filled.
        moving: the image that is sampled.

    Returns:
        The moving image; the very same object where no axis is finer.

    Raises:
        ValueError: the images share no plane.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image
        >>> from diffreg.data.resolution import as_coarse_as
        >>> fine = Image(torch.eye(8)[None, None], np.eye(4))
        >>> coarse = Image(torch.zeros(1, 1, 4, 4), np.diag([2.0, 2.0, 1.0, 1.0]))
        >>> as_coarse_as(fine, coarse) is coarse, as_coarse_as(coarse, fine).data.max().item() < 0.7
        (True, True)
    """
    extents = np.linalg.norm(voxel_map(moving, fixed)[:, :-1], axis=1)
    widths = [float(np.sqrt(r**2 - 1) / _FWHM) if r > 1 + 1e-3 else 0.0 for r in extents]
    if not any(widths):
        return moving
    data = moving.data.to(torch.float64)
    if moving.valid is None:
        data = _widened(data, widths)
    else:
        # A mean of the voxels that hold a number; those that hold none stay as they are.
        valid = moving.valid.to(torch.float64)
        mean = _widened(data * valid, widths) / _widened(valid, widths).clamp(min=1e-12)
        data = torch.where(moving.valid, mean, data)
    return replace(moving, data=data.to(moving.data.dtype))


def _widened(data: Tensor, widths: list[float]) -> Tensor:
    """Smoothed along each axis that has a width."""
    for axis, sigma in enumerate(widths):
        if sigma:
            data = _smoothed(data, 2 + axis, sigma)
    return data


def _smoothed(data: Tensor, axis: int, sigma: float) -> Tensor:
    """Gaussian weights along one axis, the edge repeated."""
    radius = min(int(np.ceil(3 * sigma)), data.shape[axis])  # of a voxel beyond all measure
    offsets = torch.arange(-radius, radius + 1)
    weights = torch.exp(-0.5 * (offsets.to(torch.float64) / sigma) ** 2)
    size, result = data.shape[axis], torch.zeros_like(data)
    for offset, weight in zip(offsets, weights / weights.sum(), strict=True):
        index = (torch.arange(size) + offset).clamp(0, size - 1)
        result += weight * data.index_select(axis, index)
    return result
