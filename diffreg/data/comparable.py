"""Whether two images can be compared, and where: the refusals before any registration."""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffreg.data._forms import check_right_angles, codes_of
from diffreg.data.geometry import Image, voxel_map
from diffreg.data.resampling import coverage, resample_to
from diffreg.system.files import FileWarning

_AIR, _GAP = -1024.0, 500.0  # Hounsfield units
# The kinds of images in words.
_KINDS = {
    "nifti": "an image with physical coordinates",
    "png": "a picture of 8 or 16 bits (PNG, JPEG, TIFF), which has no physical coordinates",
    "npz": "an array (npz, other TIFF), which has no physical coordinates",
}


def check_type(name: str, value: Any, kind: type, optional: bool = False) -> None:
    """Refuse an argument of another type; True and False are no numbers.

    Args:
        name: of the argument.
        value: what was given.
        kind: what it must be an instance of.
        optional: whether None will do.

    Raises:
        TypeError: it is something else.

    Example:
        >>> from diffreg.data.comparable import check_type
        >>> check_type("levels", 3, int)
    """
    if optional and value is None:
        return
    taken = numbers.Integral if kind is int else kind  # numpy's whole numbers are no int
    if isinstance(value, taken) and (kind is bool or not isinstance(value, bool)):
        return
    what = f"a diffreg {kind.__name__}" if kind.__module__.startswith("diffreg") else kind.__name__
    hint = ", as diffreg.read_image gives it" if kind is Image else ""
    none = " or None" if optional else ""
    raise TypeError(f"{name} must be {what}{none}{hint}, got {type(value).__name__}")


def tell_padding(image: Image, values: Tensor) -> None:
    """Warn of a value far below all others that fills a part of what is compared of an image.

    Of a CT in Hounsfield units nothing is below -1024 but what pads it beside the scanner's field
    of view; percentiles take it for an intensity, and the tissues for one of few.

    Args:
        image: as read.
        values: those that are compared, at least one.
    """
    low = float(values.min())
    if low >= _AIR:
        return
    others = values[values > low]
    share = 1 - others.numel() / values.numel()
    if share >= 0.01 and others.numel() and float(others.min()) - low >= _GAP:
        warnings.warn(
            f"{image.name}: {100 * share:.0f} % of the voxels are {low:g}, all others "
            f"{float(others.min()):g} or more: that counts as an intensity, padding or not; "
            "--window LOW HIGH (of a CT, -1000 1000), in Python Normalization(window=...), leaves "
            "it out",
            FileWarning,
            stacklevel=2,
        )


def compared_region(
    moving: Image, fixed: Image, mask: Image | None = None, moving_mask: Image | None = None
) -> Tensor:
    """Where two images are compared: in the masks and in the moving image's field of view.

    Args:
        moving: the image to be warped.
        fixed: the image that stays.
        mask: voxels of the fixed image that count where it is > 0; through its header on any grid.
        moving_mask: voxels of the moving image that count where it is > 0; on any grid as well.

    Returns:
        (1, 1, *S) float32 on the fixed grid, 1 inside and 0 outside.

    Raises:
        ValueError: the two cannot be registered, or nothing is left to compare.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image
        >>> from diffreg.data.comparable import compared_region
        >>> image = Image(torch.arange(6.0).reshape(1, 1, 2, 3), np.eye(4))
        >>> compared_region(image, image).sum().item()
        6.0
    """
    check_images(moving, fixed, (mask, moving_mask))
    inside = coverage(moving, fixed)
    if fixed.valid is not None:
        inside = inside * fixed.valid.to(torch.float32)
    for chosen in (mask, moving_mask):
        if chosen is None:
            continue
        where = selected(chosen, fixed)
        if not where.any():
            raise ValueError(f"the mask {chosen.name} selects no voxel of {fixed.name}")
        inside = inside * where
        if not inside.any():
            raise ValueError(f"the mask {chosen.name} selects no voxel that {moving.name} covers")
    if not inside.any():
        raise ValueError(f"{moving.name} and {fixed.name} have no voxel in common that has a value")
    return inside


def check_images(moving: Image, fixed: Image, masks: Sequence[Image | None] = ()) -> None:
    """Refuse two images that no map brings onto each other.

    Args:
        moving, fixed: the images.
        masks: of either.

    Raises:
        ValueError: kinds or dimensions that do not go together, two slices that do not lie in one
            plane, a skewed grid, or an image of one value.

    Warns:
        FileWarning: a header without a place, of an image that is not on the fixed one's grid.

    Example: `check_images(read_image("a.nii.gz"), read_image("b.nii.gz"))`
    """
    for image in (moving, *(mask for mask in masks if mask is not None)):
        _check_kinds(image, fixed)
        voxel_map(image, fixed)
        _tell_no_place(image, fixed)
    check_right_angles(fixed.grid)
    for image in (moving, fixed):
        check_contrast(image, image.data, torch.ones_like(image.data), "everywhere")


def _tell_no_place(*images: Image) -> None:
    """Warn of a NIfTI header that gives no place where the other image lies on another grid."""
    one, other = images
    if one.shape == other.shape and np.allclose(one.affine, other.affine, atol=1e-3):
        return
    for image in images:
        if image.header is not None and not any(codes_of(image.header)):
            warnings.warn(
                f"{image.name}: its header has neither sform nor qform, and so no place: its first "
                "voxel is put at the origin, its axes along L, P and S, as ITK has it; FSL and "
                "nibabel put it elsewhere",
                FileWarning,
                stacklevel=2,
            )


def selected(mask: Image, fixed: Image, displacement: Tensor | None = None) -> Tensor:
    """Where a mask is > 0, (1, 1, *S) float32 on the fixed grid."""
    return (resample_to(mask, fixed, displacement, "nearest") > 0).to(torch.float32)


def _check_kinds(image: Image, fixed: Image) -> None:
    if image.kind != fixed.kind:
        raise ValueError(
            f"{image.name} and {fixed.name} do not belong together: the one is "
            f"{_KINDS[image.kind]}, the other {_KINDS[fixed.kind]}; convert one of them"
        )


def check_contrast(image: Image, values: Tensor, inside: Tensor, where: str) -> None:
    """Refuse an image that is one value at all the voxels that count, (1, 1, *S) both."""
    counts = inside > 0
    number = int(counts.count_nonzero())
    if number == 0:
        raise ValueError(f"{image.name} has no voxel {where}: there is nothing to align")
    first = values.flatten()[counts.flatten().byte().argmax()]
    if not bool(((values != first) & counts).any()):
        voxels = f"all {number} voxels" if number > 1 else "the only voxel"
        raise ValueError(
            f"{image.name} is {float(first):g} everywhere: there is nothing to align"
            if where == "everywhere"
            else f"{image.name} is {float(first):g} at {voxels} {where}: there is nothing to align"
        )
