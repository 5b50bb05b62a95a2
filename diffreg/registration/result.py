"""What comes of registering one pair."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from diffreg.data.geometry import Image
from diffreg.data.given import in_kind
from diffreg.data.prepare import Compared, Prepared
from diffreg.data.resampling import resample_to, usual_fill
from diffreg.registration.start import Start

# Similarities that compare intensities as they are; after the others, differences mean nothing.
SAME_CONTRAST = {"ssd", "ncc", "lncc"}


@dataclass(frozen=True)
class Registration:
    """What came of registering one pair.

    Args:
        prepared: the pair as it was compared.
        displacement: (1, D, *S), float32, fixed voxels, array axes.
        values: (1, 1, *S), the moving image's intensities at p + u(p), `fill` outside the image.
        moving_on_fixed: (1, 1, *S), the same by the headers alone.
        compared: both before and after, normalised, and the voxels on which the metrics are taken.
        fill: the intensity outside the moving image.
        method: "variational", "network" or "refined network".
        similarity: what was minimised, such as "ncc".
        seconds: what finding the displacement took.
        metrics: as in metrics.json.
        start: the affine map that it started from, and how that was found.
        given: the moving image in the kind that it was given in.
    """

    prepared: Prepared
    displacement: Tensor
    values: Tensor
    moving_on_fixed: Tensor
    compared: Compared
    fill: float
    method: str
    similarity: str
    seconds: float
    metrics: dict[str, Any]
    start: Start = field(default_factory=Start)
    given: Any = None

    @property
    def warped(self) -> Any:
        """The moving image on the fixed grid, in the kind that it was given in."""
        return in_kind(self.values, self.fixed, self.given)

    @property
    def affine(self) -> np.ndarray:
        """(4, 4), RAS mm, from the fixed image's space to the moving one's."""
        return self.prepared.affine

    @property
    def moving(self) -> Image:
        """The moving image, where the affine places it."""
        return self.prepared.moving

    @property
    def fixed(self) -> Image:
        """The fixed image as read."""
        return self.prepared.fixed

    @property
    def mask(self) -> Tensor:
        """(1, 1, *S), 1 where the images are compared before and after, else 0."""
        return self.compared.mask

    @property
    def verdict(self) -> str:
        """The result in one line: how well it fits, then whether it folds."""
        before, after = self.metrics["before"], self.metrics["after"]
        return (
            f"{self._doubt}NCC {before['ncc']:.3f} -> {after['ncc']:.3f}, "
            f"MI {before['mutual_information']:.3f} -> {after['mutual_information']:.3f}, "
            f"compared on {self.metrics['compared_percent']:.3g} % of the voxels, "
            f"{self.metrics['folded_percent']:.2g} % of the cells folded, "
            f"smallest determinant {self.metrics['min_determinant']:.3f}, "
            f"{self.seconds:.2f} s ({self.method}, {self.similarity})"
        )

    @property
    def how(self) -> list[str]:
        """What was done beside the warp, and why: a line each."""
        lines = [] if self.start.found is None else [self.start.found.in_words]
        found = self.metrics.get("contrast")
        if found is not None:
            lines.append(
                f"contrast: squared correlation {found['squared_correlation']:.2f}, correlation "
                f"ratio {found['correlation_ratio']:.2f}, so "
                f"{'they differ' if found['across'] else 'one contrast'}: "
                f"{self.similarity.replace('+', ' + ')}"
            )
        return lines

    @property
    def _doubt(self) -> str:
        count = len(self.metrics.get("warnings", ()))
        return f"doubtful ({count} warning{'s' if count > 1 else ''}): " if count else ""


def registration_of(
    prepared: Prepared,
    displacement: Tensor,
    method: str,
    similarity: str,
    seconds: float,
    metrics: dict[str, Any],
    fill: float | None = None,
) -> Registration:
    """A pair with its displacement: the moving image before and after, and what is compared.

    Args:
        prepared: the pair.
        displacement: (1, D, *S), float32, fixed voxels, array axes.
        method, similarity, seconds, metrics: as in `Registration`.
        fill: None: `diffreg.data.geometry.usual_fill`.

    Raises:
        ValueError: the displacement leaves nothing to compare.
    """
    moving, fixed = prepared.moving, prepared.fixed
    fill = usual_fill(moving) if fill is None else fill
    return Registration(
        prepared=prepared,
        displacement=displacement,
        values=resample_to(moving, fixed, displacement, fill=fill),
        moving_on_fixed=resample_to(prepared.as_given, fixed, fill=fill),
        compared=prepared.compared(displacement),
        fill=fill,
        method=method,
        similarity=similarity,
        seconds=seconds,
        metrics=metrics,
    )
