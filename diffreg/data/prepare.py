"""Two images made ready to be registered: compared where both are, normalised, on one grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffreg.data.geometry import Image, coverage, resample_to
from diffreg.data.images import Normalization


@dataclass(frozen=True)
class Prepared:
    """A pair as a registration sees it.

    Args:
        moving: the moving image as read.
        fixed: the fixed image as read.
        normalization: of both.
        moving_values: (1, 1, *S) in [0, 1], on the fixed grid.
        fixed_values: (1, 1, *S) in [0, 1].
        mask: (1, 1, *S), 1 where the images are compared, else 0.
    """

    moving: Image
    fixed: Image
    normalization: Normalization
    moving_values: Tensor
    fixed_values: Tensor
    mask: Tensor

    @property
    def weights(self) -> Tensor | None:
        """The mask, None where it is 1 everywhere."""
        return None if bool(self.mask.all()) else self.mask


def prepare(
    moving: Image,
    fixed: Image,
    mask: Image | None = None,
    normalization: Normalization | None = None,
) -> Prepared:
    """Bring the moving image on the fixed grid through both headers, and both to [0, 1].

    Args:
        moving: the image to be warped.
        fixed: the image that stays.
        mask: voxels of the fixed image that count where it is > 0; through its header on any grid.
        normalization: None: the default percentiles.

    Returns:
        The pair.

    Raises:
        ValueError: the images share no plane, no voxel or no contrast, or the mask is empty.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image
        >>> from diffreg.data.prepare import prepare
        >>> image = Image(torch.arange(6.0).reshape(1, 1, 2, 3), np.eye(4))
        >>> prepare(image, image).moving_values.max().item()
        1.0
    """
    inside = compared_region(moving, fixed, mask)
    normalization = normalization or Normalization()
    limits = normalization.limits(moving.data)
    # The border is repeated: to a registration, an edge of the field of view would be an edge.
    flat = normalization.scale(resample_to(moving, fixed, padding="border"), limits)
    return Prepared(moving, fixed, normalization, flat, normalization(fixed.data), inside)


def relative_spacing(fixed: Image) -> tuple[float, ...]:
    """The voxel's proportions: spacing / min(spacing), which the energies weigh derivatives by.

    Only the proportions count: in millimetres, the same weights would mean another regularisation
    on every grid.

    Args:
        fixed: the fixed image.

    Returns:
        One number >= 1 for each array axis.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image
        >>> from diffreg.data.prepare import relative_spacing
        >>> relative_spacing(Image(torch.zeros(1, 1, 2, 2), np.diag([3.0, 1.5, 1, 1])))
        (2.0, 1.0)
    """
    finest = min(fixed.spacing)
    return tuple(round(length / finest, 6) for length in fixed.spacing)


def compared_region(moving: Image, fixed: Image, mask: Image | None = None) -> Tensor:
    """Where two images are compared: in the mask and in the moving image's field of view.

    Args:
        moving: the image to be warped.
        fixed: the image that stays.
        mask: voxels that count where it is > 0; through its header on any grid.

    Returns:
        (1, 1, *S) float32 on the fixed grid, 1 inside and 0 outside.

    Raises:
        ValueError: the two cannot be registered, or nothing is left to compare.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image
        >>> from diffreg.data.prepare import compared_region
        >>> image = Image(torch.arange(6.0).reshape(1, 1, 2, 3), np.eye(4))
        >>> compared_region(image, image).sum().item()
        6.0
    """
    _check_kinds(moving, fixed)
    for image in (moving, fixed):
        _check_contrast(image)
    inside = coverage(moving, fixed)
    if mask is None:
        return inside
    _check_kinds(mask, fixed)
    chosen = resample_to(mask, fixed, interpolation="nearest") > 0
    if not chosen.any():
        raise ValueError(f"the mask {mask.name} selects no voxel of {fixed.name}")
    inside = inside * chosen.to(torch.float32)
    if not inside.any():
        raise ValueError(f"the mask {mask.name} selects no voxel that {moving.name} covers")
    return inside


def _check_kinds(image: Image, fixed: Image) -> None:
    if image.kind != fixed.kind:
        raise ValueError(
            f"{image.name} and {fixed.name} do not belong together: one is a PNG file, which has "
            "no physical coordinates; convert one of them"
        )


def _check_contrast(image: Image) -> None:
    first = image.data.flatten()[0]
    if bool((image.data == first).all()):
        raise ValueError(f"{image.name} is {float(first):g} everywhere: there is nothing to align")
