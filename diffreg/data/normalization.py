"""Bring intensities to [0, 1] between two percentiles.

A checkpoint keeps the settings.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalization:
    """Intensities between two percentiles to [0, 1]; a checkpoint keeps it.

    Args:
        lower: percentile that becomes 0.
        upper: percentile that becomes 1.
        window: the intensities that become 0 and 1 instead, such as (-160, 240) for a CT.

    Raises:
        ValueError: not 0 <= lower < upper <= 100, or no window of two ascending numbers.

    Example:
        >>> import torch
        >>> from diffreg.data.normalization import Normalization
        >>> Normalization(0, 100)(torch.tensor([[[[2.0, 4.0, 3.0]]]])).flatten().tolist()
        [0.0, 1.0, 0.5]
    """

    lower: float = 0.5
    upper: float = 99.5
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.window is not None and not -np.inf < self.window[0] < self.window[1] < np.inf:
            raise ValueError(
                f"window must be two finite numbers, low < high, got {tuple(self.window)}"
            )
        if not 0 <= self.lower < self.upper <= 100:
            raise ValueError(
                f"lower and upper must be percentiles, 0 <= lower < upper <= 100, "
                f"got {self.lower} and {self.upper}"
            )

    def __call__(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise each channel of each sample by itself: `limits`, then `scale`."""
        return self.scale(image, self.limits(image, mask))

    def limits(self, image: Tensor, mask: Tensor | None = None) -> Tensor:
        """The intensities that become 0 and 1: (N, C, 2) of an image (N, C, *S).

        Where the two percentiles are one value, a few bright voxels on a flat ground, the smallest
        and largest intensity take their place.
        """
        samples, channels = image.shape[:2]
        # In double, as the difference in `scale`: of 1e9 + 1, float32 has only the 1e9.
        limits = torch.empty(samples, channels, 2, dtype=torch.float64, device=image.device)
        if self.window is not None:
            return limits.copy_(limits.new_tensor(self.window).expand_as(limits))
        for n in range(samples):
            inside = slice(None) if mask is None else mask[n].reshape(-1) > 0
            for c in range(channels):
                values = image[n, c].reshape(-1)[inside].cpu().numpy()
                if values.size == 0:
                    raise ValueError(f"mask selects no voxel of sample {n}")
                low, high = np.percentile(values, [self.lower, self.upper])
                if not high > low:
                    low, high = values.min(), values.max()
                limits[n, c, 0], limits[n, c, 1] = float(low), float(high)
        return limits

    def scale(self, image: Tensor, limits: Tensor) -> Tensor:
        """(image - low) / (high - low), clipped to [0, 1], float32; 0 where low = high."""
        shape = (*limits.shape[:2], *(1,) * (image.ndim - 2))
        low, high = limits[..., 0].reshape(shape), limits[..., 1].reshape(shape)
        extent = torch.where(high > low, high - low, torch.ones_like(high))
        scaled = ((image.to(torch.float64) - low) / extent).clamp(0, 1)
        return torch.where(high > low, scaled, torch.zeros_like(scaled)).to(torch.float32)


def normalize(
    image: Tensor, lower: float = 0.5, upper: float = 99.5, mask: Tensor | None = None
) -> Tensor:
    """Bring intensities between two percentiles to [0, 1], clipped; a constant image becomes 0.

    Args:
        image: (N, C, *S), any real type.
        lower: percentile that becomes 0.
        upper: percentile that becomes 1.
        mask: (N, 1, *S); the percentiles are those of the voxels where it is > 0.

    Returns:
        (N, C, *S) float32, each channel of each sample by itself.

    Raises:
        ValueError: the percentiles are out of order, or the mask selects nothing.

    Example:
        >>> import torch
        >>> from diffreg.data.normalization import normalize
        >>> normalize(torch.tensor([[[[1.0, 2.0, 3.0]]]]), lower=0, upper=100).flatten().tolist()
        [0.0, 0.5, 1.0]
    """
    return Normalization(lower, upper)(image, mask)
