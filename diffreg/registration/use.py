"""What people do with a registration: apply it to other images, labels and points, invert it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffreg.data.geometry import Image
from diffreg.data.given import in_kind, on_grid_of
from diffreg.data.labels import looks_like_labels
from diffreg.data.resampling import coverage, resample_to, usual_fill
from diffreg.fields import warp_points
from diffreg.fields.inversion import Residual
from diffreg.ops._checks import check_choice
from diffreg.transforms import Field


def applied(
    image: Any,
    moving: Image,
    fixed: Image,
    displacement: Tensor,
    affine: np.ndarray,
    interpolation: str | None = None,
    fill: float | None = None,
) -> Any:
    """Another image of the moving side on the fixed grid, sampled once, in the kind it was given.

    Args:
        image: as `diffreg.register` takes them; an array lies where the moving image does.
        moving: the moving image, by its own header.
        fixed: the fixed image.
        displacement: (1, D, *S), fixed voxels.
        affine: (4, 4), RAS mm, from the fixed image's space to the moving one's.
        interpolation: "linear" or "nearest"; None: nearest where the image looks like labels.
        fill: outside the image; None: 0 for labels, else as `usual_fill`.

    Raises:
        TypeError, ValueError: no image, or one that the map does not reach.
    """
    if interpolation is not None:
        check_choice("interpolation", interpolation, ("linear", "nearest"))
    given, nearest = _read(image, moving, interpolation)
    placed = given.placed(affine)
    coverage(placed, fixed)
    outside = (0.0 if nearest else usual_fill(placed)) if fill is None else fill
    values = resample_to(placed, fixed, displacement, "nearest" if nearest else "linear", outside)
    return in_kind(values, fixed, image)


def _read(image: Any, moving: Image, interpolation: str | None) -> tuple[Image, bool]:
    """The image, and whether it is one of labels."""
    if isinstance(image, Image):
        labels = interpolation == "nearest" or (interpolation is None and looks_like_labels(image))
        return image, labels
    if interpolation == "linear":
        return on_grid_of(moving, "image", image), False
    try:
        found = on_grid_of(moving, "image", image, label=True)
    except ValueError:
        if interpolation == "nearest":
            raise
        return on_grid_of(moving, "image", image), False
    if interpolation == "nearest" or looks_like_labels(found):
        return found, True
    return on_grid_of(moving, "image", image), False


def points_moved(
    points: np.ndarray, fixed: Image, displacement: Tensor, affine: np.ndarray
) -> np.ndarray:
    """Where points of the fixed image lie in the moving one: T(x + d(x)).

    Args:
        points: (K, 3), RAS mm; of 2-D files (K, 2) will do.
        fixed: the fixed image.
        displacement: (1, D, *S), fixed voxels; outside the grid that of its border holds.
        affine: (4, 4), RAS mm.

    Returns:
        Of the shape of points, RAS mm.

    Raises:
        ValueError: no points.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image
        >>> from diffreg.registration.use import points_moved
        >>> grid, shift = Image(torch.zeros(1, 1, 4, 4), np.diag([2.0, 2, 2, 1])), np.eye(4)
        >>> shift[0, 3] = 10
        >>> points_moved(np.array([[2.0, 4, 0]]), grid, torch.ones(1, 2, 4, 4), shift).tolist()
        [[14.0, 6.0, 0.0]]
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] not in (2, 3) or not np.isfinite(points).all():
        raise ValueError(f"points must be (K, 3), RAS mm, finite, got {list(points.shape)}")
    if points.shape[1] == 2 and not fixed.is_flat:
        raise ValueError("points must be (K, 3), RAS mm: the fixed image lies in space")
    world = np.zeros((len(points), 4))
    world[:, : points.shape[1]], world[:, 3] = points, 1
    voxels = np.linalg.solve(fixed.affine, world.T)
    here = torch.from_numpy(voxels[: len(fixed.shape)].T.copy())[None]
    there = warp_points(here, displacement.to("cpu", torch.float64))[0].numpy()
    voxels[: len(fixed.shape)] = there.T
    moved = (affine @ fixed.affine @ voxels).T
    return moved[:, : points.shape[1]]


@dataclass(frozen=True)
class Inverse:
    """The way back, from the moving image's space to the fixed one's: x -> v(T^-1 x).

    Args:
        displacement: (1, D, *S) v, fixed voxels, on the fixed grid, which comes after the affine.
        affine: (4, 4) T^-1, RAS mm.
        residual: how far the way there and back leads from where it began.
    """

    displacement: Tensor
    affine: np.ndarray
    residual: Residual

    @property
    def residual_mm(self) -> float:
        """The largest distance of a fixed voxel from where the way there and back leads it."""
        return self.residual.at_voxels


def inverse_of(fixed: Image, displacement: Tensor, affine: np.ndarray) -> Inverse:
    """The inverse of T o (id + d).

    Raises:
        ValueError: the displacement folds.
    """
    back = Field(displacement.to("cpu", torch.float32), fixed.grid).inverse()
    assert back.residual is not None
    return Inverse(back.displacement, np.linalg.inv(affine), back.residual)
