"""Labels of both images on the fixed grid: what the page outlines, and how well they overlap."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from diffreg.data.geometry import Image
from diffreg.data.resampling import resample_to
from diffreg.metrics import dice, shared_labels
from diffreg.registration.result import Registration


class Outlines(NamedTuple):
    """Labels on the fixed grid, (1, 1, *S) whole numbers each."""

    moving: Tensor  # by the headers alone
    started: Tensor  # where the affine places them
    warped: Tensor
    fixed: Tensor
    shared: list[int]  # what both files have, wherever it comes to lie

    @property
    def overlap(self) -> dict[str, float]:
        """Mean Dice of what both have: by the headers, before and after the warp. Lost is 0."""
        found = {}
        ends = {"by_headers": self.moving, "before": self.started, "after": self.warped}
        for when, image in ends.items():
            values = dice(image, self.fixed, self.shared)
            found[when] = sum(values.values()) / len(values)
        return found


def labels_shared(moving: Tensor, fixed: Tensor) -> list[int]:
    """The labels but 0 that two maps have, of any shapes; a ValueError where there is none."""
    labels = shared_labels(moving, fixed)
    if not labels:
        raise ValueError("the labels of the two images have none in common but 0")
    return labels


def fallen(overlap: dict[str, float]) -> list[str]:
    """A sentence where labels overlap less in the end than by the headers alone.

    Args:
        overlap: as `Outlines.overlap`.

    Example:
        >>> from diffreg.registration.outlines import fallen
        >>> fallen({"by_headers": 0.5, "before": 0.6, "after": 0.8})
        []
    """
    if overlap["after"] >= overlap["by_headers"]:
        return []
    return [
        "The labels overlap less than by the headers alone: mean Dice "
        f"{overlap['by_headers']:.3f} there, {overlap['after']:.3f} in the end."
    ]


def outlines_of(result: Registration, moving: Image, fixed: Image) -> Outlines:
    """The labels of a registered pair.

    Args:
        result: the registration.
        moving, fixed: labels of the images, each through its header on any grid.

    Raises:
        ValueError: labels that lie in another plane, or of which the two share none.

    Example: `outlines_of(result, moving_labels, fixed_labels).overlap["after"]`
    """
    placed, grid = moving.placed(result.affine), result.fixed
    by_header = resample_to(moving, grid, interpolation="nearest")
    started = resample_to(placed, grid, interpolation="nearest")
    warped = resample_to(placed, grid, result.displacement, "nearest")
    there = resample_to(fixed, grid, interpolation="nearest")
    return Outlines(by_header, started, warped, there, labels_shared(moving.data, there))
