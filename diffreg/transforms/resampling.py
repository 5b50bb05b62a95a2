"""Images on another grid, sampled once through a whole transform.

out(p) = moving(A_m^-1 L (p + u(p)))      L, u as `reached` gives them
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from diffreg.data._numbers import cast
from diffreg.data.geometry import Image
from diffreg.data.resampling import Route, check_fill
from diffreg.ops._checks import check_choice
from diffreg.ops._gpus import checked_device
from diffreg.transforms.by_points import by_labels, by_splines
from diffreg.transforms.on_grid import reached
from diffreg.transforms.places import place_of
from diffreg.transforms.source import Source, in_torch, source_of
from diffreg.transforms.values import EDGE, Affine, Transform, compose

INTERPOLATIONS = ("linear", "nearest", "label", "bspline")
_AT_ONCE = 2**27  # numbers of a series that are sampled together


def resample(
    image: Any,
    onto: Any,
    by: Transform | Sequence[Transform] | None = None,
    interpolation: str | None = None,
    fill: float | None = None,
    dtype: Any = None,
    device: torch.device | str = "cpu",
) -> Any:
    """An image on another grid, sampled once through a whole transform.

    Inside the image, which ends half a voxel beyond its outer voxel centres as ITK's does, the
    value is that of the edge repeated; outside it is `fill`, never a blend of both.

    Args:
        image: of the moving side, as `diffreg.image` takes it; or a nibabel image, its path, or a
            SimpleITK image with several numbers a voxel: a series, vectors, which are not turned,
            or colours. Slices and volumes.
        onto: the fixed image, whose grid is filled, as `diffreg.image` takes it; or a Grid.
        by: a transform, or several, the first of which a point passes first; None: the identity.
        interpolation: "linear"; "nearest"; "label", for each voxel the label that linear
            interpolation of each one's mask would give most; "bspline", cubic with prefilter
            (scipy's order 3), which overshoots at edges. None: nearest where the image, of a series
            the first volume with two values, looks like labels, else linear.
        fill: outside the image, and where it holds no number; None: 0, of intensities, of a series
            of that volume's, as `diffreg.data.resampling.usual_fill`.
        dtype: of the numbers that come back; None: the image's own. Whole ones are rounded.
        device: where it is computed; "bspline" and "label" sample on the CPU.

    Returns:
        In the kind that the image was given in; of a path an Image, or a nibabel image where a
        voxel has several numbers.

    Raises:
        TypeError, ValueError: no image or no transform, one that misses the grid or the image, or a
            fill that the numbers' type does not hold.

    Warns:
        FileWarning: more than 1 % of the voxels are outside a field's grid, where it moves nothing;
            or some numbers are none.

    Example:
        >>> import numpy as np
        >>> import diffreg
        >>> from diffreg.transforms import Affine, resample
        >>> one_up = np.eye(4)
        >>> one_up[0, 3] = 1
        >>> image = np.arange(8.0).reshape(2, 2, 2)
        >>> resample(image, image, Affine(one_up))[0].ravel().tolist()
        [4.0, 5.0, 6.0, 7.0]
    """
    if interpolation is not None:
        check_choice("interpolation", interpolation, INTERPOLATIONS)
    fixed = place_of("onto", onto)
    return sampled(source_of(image, interpolation), fixed, by, fill, dtype, device)


def sampled(
    source: Source,
    fixed: Image,
    by: Transform | Sequence[Transform] | None,
    fill: float | None,
    dtype: Any,
    device: torch.device | str,
) -> Any:
    """As `resample`, of what was read."""
    wanted = np.dtype(source.dtype if dtype is None else dtype)
    if fill is not None:
        _check_fill(fill, wanted, source.place.name)
    outside = source.usual_fill if fill is None else fill
    route = _route(source.place, fixed, by, device)
    found = np.empty((len(source.numbers), *fixed.shape), wanted)
    step = max(1, _AT_ONCE // max(source.numbers[0].size, found[0].size))
    for first in range(0, len(found), step):
        part = slice(first, first + step)
        found[part] = cast(
            _sampled(source, part, route, outside, fixed.name).reshape(found[part].shape), wanted
        )
    return source.back(found, fixed)


def _sampled(source: Source, part: slice, route: Route, outside: float, onto: str) -> np.ndarray:
    """Some of an image's channels on the fixed grid, in the type that they are sampled in."""
    size = source.place.grid.volume
    numbers = source.numbers[part]
    dtype = in_torch(_floating(numbers.dtype) if source.is_blended else numbers.dtype)
    data = torch.from_numpy(np.ascontiguousarray(numbers.astype(dtype)))
    data = data.reshape(1, len(numbers), *size).to(route.matrix.device)
    valid = None if source.valid is None else source.valid[part].reshape(1, -1, *size)
    known = route.known(size, valid)
    if not known.any():
        raise ValueError(
            f"{source.place.name} and {onto} do not overlap: through headers and transform no "
            "voxel of the second lies within the first"
        )
    if source.interpolation == "bspline":
        values = by_splines(data, route)
    elif source.interpolation == "label":
        values = by_labels(data, route)
    else:
        values = route.sampled(data, source.interpolation)
    empty = torch.tensor(outside, dtype=values.dtype, device=values.device)
    return torch.where(known.to(values.device), values, empty)[0].cpu().numpy()


def _check_fill(fill: float, dtype: np.dtype, name: str) -> None:
    check_fill(fill)
    held = cast(np.array(float(fill)), dtype)
    if not np.isfinite(held) or (dtype.kind in "iu" and held != fill):
        raise ValueError(f"fill must be a value of {dtype}, which {name} comes back in, got {fill}")


def _route(
    moving: Image,
    fixed: Image,
    by: Transform | Sequence[Transform] | None,
    device: torch.device | str,
) -> Route:
    """From the fixed voxels to the moving ones, (X, Y, Z) each, of which a slice has one plane."""
    _check_places(moving, fixed)
    transform = Affine(np.eye(4)) if by is None else by
    transform = transform if isinstance(transform, Transform) else compose(transform)
    # In double, whatever the numbers: which voxels lie in the image is what ITK finds.
    found = reached(transform, fixed.grid, torch.float64, checked_device(device))
    matrix = np.linalg.solve(moving.grid.in_space, found.matrix)[:3]
    nearest = np.round(matrix)
    matrix = np.where(np.abs(matrix - nearest) < 1e-9, nearest, matrix)  # the identity is exact
    if moving.grid.dimensions == 2 and (moving.is_flat or fixed.is_flat):
        matrix[2] = 0  # there is no depth
    on_device = torch.from_numpy(matrix)[None].to(device)
    return Route(on_device, found.displacement, fixed.grid.volume, EDGE)


def _check_places(moving: Image, fixed: Image) -> None:
    flat = [image.name for image in (moving, fixed) if image.is_flat]
    if flat and moving.grid.dimensions != fixed.grid.dimensions:
        other = fixed if moving.is_flat else moving
        raise ValueError(
            f"{flat[0]} is a 2-D file, without a place in depth, and {other.name} is a volume: "
            "take a slice of it"
        )
    if (moving.kind == "png") != (fixed.kind == "png"):
        raise ValueError(f"{moving.name} and {fixed.name} must both be pictures, or neither")


def _floating(dtype: np.dtype) -> np.dtype:
    """What numbers of a type are blended in: float64 where float32 does not hold them all."""
    small = dtype.itemsize <= 2 or dtype == np.float32
    return np.dtype(np.float32 if small else np.float64)
