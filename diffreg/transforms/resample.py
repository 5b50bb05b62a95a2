"""Images on another grid, sampled once through a whole transform.

out(p) = moving(A_m^-1 L (p + u(p)))      L, u as `reached` gives them
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from diffreg._files import FileWarning
from diffreg.data._numbers import cast
from diffreg.data.geometry import Image
from diffreg.data.given import as_image, in_kind
from diffreg.data.grid import Grid
from diffreg.data.labels import looks_like_labels
from diffreg.data.resampling import Route, filling, usual_fill
from diffreg.ops._checks import check_choice
from diffreg.transforms.by_points import by_labels, by_splines
from diffreg.transforms.on_grid import reached
from diffreg.transforms.places import place_of
from diffreg.transforms.several import Several, several_of
from diffreg.transforms.values import Affine, Transform, compose, upright

INTERPOLATIONS = ("linear", "nearest", "label", "bspline")
_TOLD = 0.01  # share of the voxels outside a field's grid from which it is said
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
            (scipy's order 3), which overshoots at edges. None: nearest where the image looks like
            labels, else linear.
        fill: outside the image; None: 0, of intensities as `usual_fill`.
        dtype: of the numbers that come back; None: the image's own. Whole ones are rounded.
        device: where it is computed; "bspline" and "label" sample on the CPU.

    Returns:
        In the kind that the image was given in; of a path an Image, or a nibabel image where a
        voxel has several numbers.

    Raises:
        TypeError, ValueError: no image or no transform, one that misses the grid or the image.

    Warns:
        FileWarning: more than 1 % of the voxels are outside a field's grid, where it moves nothing.

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
    several = several_of(image)
    if several is not None:
        channels = np.concatenate(
            [
                _sampled(part, several.place, fixed, by, interpolation or "linear", fill, device)
                for part in _parts(several)
            ]
        )
        kept = channels if dtype is None else cast(channels, np.dtype(dtype))
        return several.on(fixed, kept)
    moving, interpolation = _read(image, interpolation)
    fill = usual_fill(moving) if fill is None and interpolation in ("linear", "bspline") else fill
    numbers = moving.data[0].numpy()
    values = _sampled(numbers, moving, fixed, by, interpolation, fill, device)
    wanted = np.dtype(moving.dtype if dtype is None else dtype)
    values = cast(values, wanted)[None]
    place = fixed.with_data(torch.from_numpy(values.astype(_in_torch(wanted))))
    found = in_kind(torch.from_numpy(values), place, image)
    return replace(place, dtype=wanted) if isinstance(found, Image) else found


def _sampled(
    numbers: np.ndarray,
    moving: Image,
    fixed: Image,
    by: Transform | Sequence[Transform] | None,
    interpolation: str,
    fill: float | None,
    device: torch.device | str,
) -> np.ndarray:
    """Numbers (C, *S) on the fixed grid, (C, *S_fixed), in their own type."""
    own = numbers.dtype
    dtype = _floating(own) if interpolation in ("linear", "bspline") else own
    route = _route(moving, fixed, by, device)
    data = torch.from_numpy(np.ascontiguousarray(numbers.astype(_in_torch(dtype))))
    data = data.reshape(1, len(data), *_volume(moving.grid)).to(device)
    valid = None if moving.valid is None else moving.valid.reshape(1, 1, *_volume(moving.grid))
    known = route.known(_volume(moving.grid), valid)
    if not known.any():
        raise ValueError(
            f"{moving.name} and {fixed.name} do not overlap: through headers and transform no "
            "voxel of the second lies within the first"
        )
    outside = filling(0.0 if fill is None else fill, data.dtype, moving.name)
    if interpolation == "bspline":
        values = by_splines(data, route)
    elif interpolation == "label":
        values = by_labels(data, route)
    else:
        values = route.sampled(data, interpolation)
    values = torch.where(known.to(values.device), values, outside.to(values.device))
    return cast(values[0].reshape(len(numbers), *fixed.shape).cpu().numpy(), own)


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
    wide = torch.float64 if moving.data.dtype == torch.float64 else torch.float32
    found = reached(transform, fixed.grid, wide, device)
    if found.missed > _TOLD:
        warnings.warn(
            f"{100 * found.missed:.3g} % of the voxels of {fixed.name} lie outside the grid of a "
            "field, where it moves nothing",
            FileWarning,
            stacklevel=4,
        )
    matrix = np.linalg.solve(upright(moving.grid), found.matrix)[:3]
    nearest = np.round(matrix)
    matrix = np.where(np.abs(matrix - nearest) < 1e-9, nearest, matrix)  # the identity is exact
    if moving.grid.dimensions == 2 and (moving.is_flat or fixed.is_flat):
        matrix[2] = 0  # there is no depth
    return Route(torch.from_numpy(matrix)[None], found.displacement, _volume(fixed.grid))


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


def _parts(several: Several) -> list[np.ndarray]:
    """The channels in groups that are sampled at once."""
    step = max(1, _AT_ONCE // max(1, several.channels[0].size))
    return [several.channels[k : k + step] for k in range(0, len(several.channels), step)]


def _read(image: Any, interpolation: str | None) -> tuple[Image, str]:
    """The image, as labels where it is one, and how it is sampled."""
    if isinstance(image, Image):
        if interpolation is None:
            interpolation = "nearest" if looks_like_labels(image) else "linear"
        return image, interpolation
    if interpolation in ("linear", "bspline"):
        return as_image("image", image), interpolation
    try:
        labels = as_image("image", image, label=True)
    except ValueError:
        if interpolation == "label":
            raise
        return as_image("image", image), interpolation or "linear"
    if interpolation is not None or looks_like_labels(labels):
        return labels, interpolation or "nearest"
    return as_image("image", image), "linear"


def _volume(grid: Grid) -> tuple[int, ...]:
    return (*grid.size, 1)[:3]


def _floating(dtype: np.dtype) -> np.dtype:
    """What numbers of a type are blended in: float64 where float32 does not hold them all."""
    small = dtype.itemsize <= 2 or dtype == np.float32
    return np.dtype(np.float32 if small else np.float64)


def _in_torch(dtype: np.dtype) -> np.dtype:
    """A type that torch computes with, which holds all numbers of this one."""
    dtype = dtype.newbyteorder("=")
    if dtype.kind == "u" and dtype.itemsize > 1:
        return np.dtype(np.int64 if dtype.itemsize > 2 else np.int32)
    return dtype
