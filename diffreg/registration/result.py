"""What comes of registering one pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffreg.data.geometry import Image

# Similarities that compare intensities as they are; after the others, differences mean nothing.
SAME_CONTRAST = {"ssd", "ncc", "lncc"}


@dataclass(frozen=True)
class Registration:
    """What came of registering one pair.

    Args:
        moving: the moving image as read.
        fixed: the fixed image as read.
        displacement: (1, 2, *S), float32, fixed voxels, array axes.
        warped: (1, 1, *S), the moving image's intensities at p + u(p), 0 outside its field of view.
        moving_on_fixed: (1, 1, *S), the same without a displacement.
        mask: (1, 1, *S), 1 where the images were compared, else 0.
        method: "variational", "network" or "refined network".
        similarity: what was minimised, such as "ncc".
        seconds: what finding the displacement took.
        metrics: as in metrics.json.
    """

    moving: Image
    fixed: Image
    displacement: Tensor
    warped: Tensor
    moving_on_fixed: Tensor
    mask: Tensor
    method: str
    similarity: str
    seconds: float
    metrics: dict[str, Any]

    @property
    def verdict(self) -> str:
        """The result in one line."""
        before, after = self.metrics["before"], self.metrics["after"]
        return (
            f"NCC {before['ncc']:.3f} -> {after['ncc']:.3f}, "
            f"MI {before['mutual_information']:.3f} -> {after['mutual_information']:.3f}, "
            f"smallest determinant {self.metrics['min_determinant']:.3f}, "
            f"{self.metrics['folded_percent']:.2g} % of the cells folded, "
            f"{self.seconds:.2f} s ({self.method}, {self.similarity})"
        )
