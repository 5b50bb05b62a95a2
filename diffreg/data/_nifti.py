"""NIfTI files in and out."""

from __future__ import annotations

import logging
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from diffreg._extras import require
from diffreg._files import replacing
from diffreg.data._forms import (
    affine_of,
    codes_of,
    in_unit,
    unit_of,
    with_upright_slices,
)
from diffreg.data._limits import check_claim, check_size
from diffreg.data.geometry import Image, check_affine

ENDINGS = (".nii", ".nii.gz")

# What a damaged file raises inside nibabel, gzip and zlib.
_DAMAGE = (OSError, EOFError, ValueError, OverflowError, MemoryError, zlib.error)


def open_nifti(path: Path) -> Any:
    """The nibabel image of a NIfTI file, its numbers not read yet.

    Raises:
        ValueError: it is no NIfTI file, or its header is damaged.
    """
    nib = require("nibabel", "NIfTI files")
    errors = (*_DAMAGE, nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError)
    try:
        with _quiet(nib):
            file = nib.load(path)
    except errors as error:
        raise ValueError(f"{path} is not a readable NIfTI file: {_line(error)}") from error
    if not isinstance(file, nib.Nifti1Pair):
        raise ValueError(f"{path} is not a NIfTI file but {type(file).__name__}")
    _check_zooms(file, path)
    packed = path.name.lower().endswith(".gz")
    check_claim(prod(int(n) for n in file.shape) * file.get_data_dtype().itemsize, path, packed)
    return file


def read_values(file: Any, path: Path, part: tuple | None = None) -> np.ndarray:
    """The numbers of a NIfTI file after its scaling, or of a `part` of it.

    Raises:
        ValueError: the file ends early or is damaged.
    """
    try:
        with _quiet(require("nibabel", "NIfTI files")):
            return np.asarray(file.dataobj if part is None else file.dataobj[part])
    except _DAMAGE as error:
        raise ValueError(f"{path} is truncated or damaged: {_line(error)}") from error


def read_nifti(path: Path, slice_index: int | None) -> tuple[np.ndarray, dict[str, Any]]:
    """One 2-D image of a NIfTI file.

    Returns:
        Its numbers (X, Y), and the other fields of Image.

    Raises:
        ValueError: the file is damaged or is not a 2-D image of real numbers.
    """
    file = open_nifti(path)
    dtype = file.get_data_dtype()
    if dtype.kind not in "iuf":
        raise ValueError(f"{path} holds {_kind(dtype)}; one real number a voxel is needed")
    part, index = _plane(path, file.shape, slice_index)
    affine = affine_of(file)
    check_affine(affine, str(path))
    if index is not None:
        affine[:3, 3] += index * affine[:3, 2]
    fields = {
        "affine": affine,
        "path": path,
        "kind": "nifti",
        "header": file.header.copy(),
        "ndim_in_file": len(file.shape),
        "slice_index": index,
        "dtype": dtype.newbyteorder("="),
    }
    return read_values(file, path, part), fields


def write_nifti(path: Path, array: np.ndarray, like: Image) -> None:
    """Write (X, Y) numbers in their own type with the header of `like`, shifted to its slice."""
    nib = require("nibabel", "NIfTI files")
    if like.header is None:
        header, shape = nib.Nifti1Header(), array.shape + (1,) * (like.ndim_in_file - 2)
        header.set_xyzt_units("mm")
    else:
        header = like.header.copy()
        # A slice of a volume becomes (X, Y, 1); a file of one image keeps its (X, Y) or (X, Y, 1).
        shape = array.shape + tuple(1 for _ in header.get_data_shape()[2:])
    file = type_of(header)(array.reshape(shape), None, header, dtype=array.dtype)
    file.header.set_slope_inter(None, None)
    file.header["cal_min"] = file.header["cal_max"] = 0  # a window for other intensities
    if like.header is None or like.slice_index is not None:
        _set_affine(file, like)
    with replacing(path) as temporary:
        nib.save(file, temporary)


def type_of(header: Any) -> Any:
    """The nibabel image class that a header belongs to: NIfTI-2 stays NIfTI-2."""
    nib = require("nibabel", "NIfTI files")
    two = isinstance(header, nib.Nifti2Header)
    return nib.Nifti2Image if two else nib.Nifti1Image


def _set_affine(file: Any, like: Image) -> None:
    """Write the affine of `like`, in the forms and the unit of length that its file had."""
    codes = (1, 1) if like.header is None else codes_of(like.header)
    unit = 1.0 if like.header is None else unit_of(like.header)
    affine = in_unit(with_upright_slices(like.affine), 1 / unit)
    if codes[1] or not codes[0]:
        file.set_sform(affine, codes[1] or 1)
    if codes[0] or not codes[1]:
        matrix = affine if like.header is None or not codes[0] else _shifted_qform(like)
        file.set_qform(matrix, codes[0] or 1)


def _shifted_qform(like: Image) -> np.ndarray:
    """The qform of the slice, which may be another map than the sform."""
    qform = like.header.get_qform()
    qform[:3, 3] += (like.slice_index or 0) * qform[:3, 2]
    return qform


@contextmanager
def _quiet(nib: Any) -> Iterator[None]:
    """Without nibabel's and numpy's own lines on stderr about what they mend or overflow.

    What matters of it is found afterwards, in the numbers.
    """
    logger = nib.imageglobals.logger
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _check_zooms(file: Any, path: Path) -> None:
    """Refuse voxels without extent, which nibabel reads as 1 mm, unless the sform gives it."""
    with file.file_map["image"].get_prepare_fileobj("rb") as stream:
        header = type(file.header).from_fileobj(stream, check=False)
    zooms = header["pixdim"][1 : 1 + min(3, len(file.shape))]
    if not header["sform_code"] and not np.all(zooms):
        lengths = ", ".join(f"{length:g}" for length in zooms)
        raise ValueError(f"{path}: the header gives a voxel no extent: spacing ({lengths}) mm")


def _plane(path: Path, shape: tuple[int, ...], slice_index: int | None) -> tuple[tuple, int | None]:
    """Where in the file's array the 2-D image is, and which slice of a volume that is."""
    if 0 in shape:
        raise ValueError(f"{path} is empty: its shape is {shape}")
    if len(shape) < 2 or shape[0] * shape[1] == 1:
        raise ValueError(f"{path} is not an image: its shape is {shape}")
    check_size(shape[:2], path)
    if any(size > 1 for size in shape[3:]):
        raise ValueError(
            f"{path} has {len(shape)} axes, shape {shape}; a 2-D image or a 3-D volume is needed: "
            "take one time point or channel out of it first"
        )
    depth = shape[2] if len(shape) > 2 else 1
    if slice_index is None:
        if depth > 1:
            raise ValueError(
                f"{path} is a volume of shape {shape[:3]}; --slice k takes one slice, "
                f"k in 0..{depth - 1}"
            )
        slice_index = 0
    if not 0 <= slice_index < depth:
        raise ValueError(f"{path} has no slice {slice_index}: its slices are 0..{depth - 1}")
    part = (slice(None), slice(None), slice_index, *(0 for _ in shape[3:]))[: len(shape)]
    return part, slice_index if depth > 1 else None


def _kind(dtype: np.dtype) -> str:
    """A voxel type in words."""
    if dtype.kind == "c":
        return "complex numbers"
    return "colours (RGB)" if dtype.names else f"values of type {dtype}"


def _line(error: BaseException) -> str:
    """The error's message on one line; some have none."""
    return " ".join(str(error).split()) or type(error).__name__
