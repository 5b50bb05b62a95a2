"""Images sampled once on another grid, through both headers and a displacement.

warped(p) = moving(M (p + u(p)))      M = A_m^-1 A_f, fixed voxels to moving voxels
"""

from __future__ import annotations

from numbers import Real
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffreg.data.geometry import Image, voxel_map
from diffreg.ops import affine_warp

# How far, in voxels, the bounds of an image are shifted against the rounding of the map to it.
_ROUNDING = 1e-4


def resample_to(
    moving: Image,
    fixed: Image,
    displacement: Tensor | None = None,
    interpolation: str = "linear",
    fill: float | None = 0.0,
) -> Tensor:
    """Sample the moving image on the fixed grid, once, through both headers.

    Rotations, flips, axis swaps, offsets, spacings and sizes may differ. Inside the moving image,
    which ends half a voxel beyond its outer voxel centres as ITK's does, the value is that of the
    edge repeated; outside it is `fill`, never a blend of both, and so it is where the image holds
    no number. What is computed is computed where the displacement is.

    Args:
        moving: the image to sample.
        fixed: the image whose grid is filled.
        displacement: (1, D, *S) on the fixed grid, fixed voxels, array axes; None is the identity.
        interpolation: "linear", or "nearest" for labels.
        fill: outside the moving image; None: the edge repeated without end, which gives a
            registration no border to hold on to.

    Returns:
        (1, 1, *S) on the fixed grid, in the moving image's own type for "nearest", else in its
        floating type (float32 for integers).

    Raises:
        ValueError: the images share no plane, the displacement is not on the fixed grid, or the
            type of labels does not hold the fill value.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image
        >>> from diffreg.data.resampling import resample_to
        >>> moving = Image(torch.arange(4.0).reshape(1, 1, 2, 2), np.eye(4))
        >>> mirrored = Image(torch.zeros(1, 1, 2, 2), np.diag([-1.0, 1.0, 1.0, 1.0]))
        >>> mirrored.affine[0, 3] = 1
        >>> resample_to(moving, mirrored).flatten().tolist()
        [2.0, 3.0, 0.0, 1.0]
    """
    route = _route(moving, fixed, displacement)
    dtype = moving.data.dtype if moving.data.is_floating_point() else torch.float32
    dtype = moving.data.dtype if interpolation == "nearest" else dtype
    outside = None if fill is None else filling(fill, dtype, moving.name)
    values = route.sampled(moving.data.to(dtype), interpolation)
    if outside is None:
        return values
    known = route.known(moving.shape, moving.valid)
    return torch.where(known, values, outside.to(values.device))


def coverage(moving: Image, fixed: Image, displacement: Tensor | None = None) -> Tensor:
    """Which fixed voxels show the moving image: by the headers, or where a displacement leads them.

    Args:
        moving: the image whose field of view counts, and of it the voxels that hold a number.
        fixed: the image whose grid is asked for.
        displacement: (1, D, *S) on the fixed grid, fixed voxels, array axes; None is the identity.

    Returns:
        (1, 1, *S) float32 on the fixed grid, 1 inside and 0 outside.

    Raises:
        ValueError: the images do not lie in one plane, or have no voxel in common.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image
        >>> from diffreg.data.resampling import coverage
        >>> grid = Image(torch.zeros(1, 1, 2, 3), np.eye(4))
        >>> coverage(grid, grid).sum().item()
        6.0
    """
    inside = _route(moving, fixed, displacement).known(moving.shape, moving.valid)
    if not inside.any():
        how = "by their headers" if displacement is None else "by the displacement"
        raise ValueError(
            f"{moving.name} and {fixed.name} do not overlap: {how} no voxel of the "
            "second lies within the first"
        )
    return inside.to(torch.float32)


def usual_fill(moving: Image) -> float:
    """What a resampled image is filled with where the moving image ends, if nothing is said.

    Args:
        moving: an image of intensities.

    Returns:
        0 where that is its most frequent value, as outside a skull-stripped head; else its smallest
        value: a CT is filled with air.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image
        >>> from diffreg.data.resampling import usual_fill
        >>> usual_fill(Image(torch.tensor([[[[-1000.0, 0.0, 40.0, -1000.0]]]]), np.eye(4)))
        -1000.0
    """
    if 2 * int((moving.data == 0).sum()) > moving.data.numel() > 2:
        return 0.0
    values, counts = moving.data.unique(return_counts=True)
    zeros = counts[values == 0].sum()
    return 0.0 if zeros > 1 and zeros == counts.max() else float(values[0])


def check_fill(fill: float | None) -> None:
    """Refuse what no voxel outside an image can hold.

    Args:
        fill: as in `resample_to`.

    Raises:
        ValueError: it is neither a finite number nor None.

    Example:
        >>> from diffreg.data.resampling import check_fill
        >>> check_fill(-1000.0)
    """
    number = isinstance(fill, Real) and not isinstance(fill, bool)
    if fill is not None and not (number and np.isfinite(float(fill))):
        raise ValueError(f"fill must be a finite number or None, got {fill!r}")


class Route(NamedTuple):
    """From the fixed voxels to where the moving image is read: matrix (p + displacement(p), 1).

    Args:
        matrix: (1, D, D + 1), float64, fixed voxels to moving voxels.
        displacement: (1, D, *S), fixed voxels; None: 0.
        size: (*S).
        rounding: by how many voxels the bounds of the image are shifted against it.
    """

    matrix: Tensor
    displacement: Tensor | None
    size: tuple[int, ...]
    rounding: float = _ROUNDING

    def sampled(
        self, data: Tensor, interpolation: str, padding: str = "border", shift: float = 0.0
    ) -> Tensor:
        """An image (1, C, *S_moving) on the fixed grid; positions are shifted by `shift` voxels."""
        matrix, displacement = self.matrix, self.displacement
        if shift:
            matrix = matrix.clone()
            matrix[..., -1] += shift
        if displacement is not None:
            data = data.to(displacement.device)
            if data.is_floating_point():
                displacement = displacement.to(data.dtype)
        size = self.size if displacement is None else None
        matrix = matrix.to(data.device)
        return affine_warp(data, matrix, displacement, size, interpolation, padding)

    def known(self, size: tuple[int, ...], valid: Tensor | None = None) -> Tensor:
        """Where a moving image of a size is reached and holds a number, (1, 1, *S) bool.

        In the image is -0.5 <= index < n - 0.5 on every axis: there the nearest voxel is one of its
        own. A value is known where no voxel that it is interpolated from is missing.

        Args:
            size: of the moving image.
            valid: (1, 1, *size) bool, where it holds a number; None: everywhere.
        """
        ones = torch.ones((1, 1, *size), dtype=torch.uint8)
        inside = self.sampled(ones, "nearest", "zeros", self.rounding) > 0
        if valid is None:
            return inside
        return inside & (self.sampled(valid.to(torch.float32), "linear") > 1 - 1e-5)


def _route(moving: Image, fixed: Image, displacement: Tensor | None) -> Route:
    for name, image in (("moving", moving), ("fixed", fixed)):
        if not isinstance(image, Image):
            raise TypeError(f"{name} must be a diffreg Image, got {type(image).__name__}")
    if displacement is not None and not isinstance(displacement, Tensor):
        raise TypeError(f"displacement must be a tensor, got {type(displacement).__name__}")
    expected = (1, len(fixed.shape), *fixed.shape)
    if displacement is not None and tuple(displacement.shape) != expected:
        raise ValueError(
            f"displacement must be {expected} on the grid of {fixed.name}, "
            f"got {tuple(displacement.shape)}"
        )
    return Route(torch.from_numpy(voxel_map(moving, fixed))[None], displacement, fixed.shape)


def filling(fill: float, dtype: torch.dtype, name: str) -> Tensor:
    """The fill value in the type of the samples, ().

    Raises:
        ValueError: it is no finite number, or one that the type of labels does not hold; `name` is
            what the message calls the image.
    """
    check_fill(fill)
    value = torch.tensor(fill, dtype=torch.float64)
    if not dtype.is_floating_point and value.to(dtype).to(torch.float64) != value:
        raise ValueError(f"fill must be a value of {name}, which holds {dtype}, got {fill}")
    return value.to(dtype)
