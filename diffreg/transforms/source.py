"""What is sampled: an image's numbers, one or several a voxel, and the way back to its kind."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffreg.data.geometry import Image
from diffreg.data.given import as_image, in_kind
from diffreg.data.labels import looks_like_labels
from diffreg.data.resampling import usual_fill
from diffreg.system.files import FileWarning
from diffreg.transforms.several import Several, several_of


class Source(NamedTuple):
    """What is sampled.

    Args:
        numbers: (C, *S).
        valid: (1 or C, *S) bool, False where there is no number; None: all are.
        place: where the voxels lie.
        dtype: of the numbers in the image.
        interpolation: "linear", "nearest", "label" or "bspline".
        usual_fill: outside the image where nothing is said.
        back: numbers (C, *S) of the dtype that is wanted, on another grid, in the image's kind.
        is_colours: whether the channels are colours.
    """

    numbers: np.ndarray
    valid: Tensor | None
    place: Image
    dtype: np.dtype
    interpolation: str
    usual_fill: float
    back: Callable[[np.ndarray, Image], Any]
    is_colours: bool = False

    @property
    def is_blended(self) -> bool:
        """Whether numbers come back that are none of the image's own."""
        return self.interpolation in ("linear", "bspline")


def source_of(image: Any, interpolation: str | None) -> Source:
    """An image as `diffreg.transforms.resample` takes it.

    Args:
        image: of any kind.
        interpolation: None: nearest where it looks like labels, else linear.

    Raises:
        TypeError, ValueError: it is none.

    Warns:
        FileWarning: some of its numbers are NaN or infinite.
    """
    several = several_of(image)
    if several is not None:
        return _of_several(several, interpolation)
    read, how = _read(image, interpolation)

    def back(found: np.ndarray, fixed: Image) -> Any:
        place = fixed.with_data(torch.from_numpy(found.astype(in_torch(found.dtype)))[None])
        made = in_kind(torch.from_numpy(found)[None], place, image)
        return replace(place, dtype=found.dtype) if isinstance(made, Image) else made

    valid = None if read.valid is None else read.valid[0]
    fill = usual_fill(read) if how in ("linear", "bspline") else 0.0
    return Source(read.data[0].numpy(), valid, read, np.dtype(read.dtype), how, fill, back)


def _of_several(several: Several, interpolation: str | None) -> Source:
    numbers, valid = several.channels, None
    if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
        finite = np.isfinite(numbers)
        bad = int(np.count_nonzero(~finite))
        warnings.warn(
            f"{several.place.name}: {bad} of {finite.size} numbers are NaN or infinite; they count "
            "as outside",
            FileWarning,
            stacklevel=4,
        )
        numbers, valid = np.where(finite, numbers, 0).astype(numbers.dtype), finite
    fill = 0.0
    if several.is_series:
        shown = next((volume for volume in numbers if volume.min() < volume.max()), numbers[0])
        data = torch.from_numpy(shown.astype(in_torch(numbers.dtype)))[None, None]
        first = replace(several.place, data=data)
        if interpolation is None and looks_like_labels(first):
            interpolation = "nearest"
        if interpolation in (None, "linear", "bspline"):
            fill = usual_fill(first)
    known = None if valid is None else torch.from_numpy(valid)
    return Source(
        numbers=numbers,
        valid=known,
        place=several.place,
        dtype=numbers.dtype,
        interpolation=interpolation or "linear",
        usual_fill=fill,
        back=several.back,
        is_colours=several.is_colours,
    )


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


def in_torch(dtype: np.dtype) -> np.dtype:
    """A type that torch computes with, which holds all numbers of this one."""
    dtype = dtype.newbyteorder("=")
    if dtype.kind == "u" and dtype.itemsize > 1:
        return np.dtype(np.int64 if dtype.itemsize > 2 else np.int32)
    return dtype
