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

from diffreg.data._forms import (
    affine_of,
    codes_of,
    in_unit,
    unit_of,
    with_upright_slices,
)
from diffreg.data._limits import check_claim, check_size
from diffreg.data.geometry import Image
from diffreg.data.grid import check_affine
from diffreg.system.atomic import replacing
from diffreg.system.extras import require

ENDINGS = (".nii", ".nii.gz")
# What nibabel reads too, and is written again as NIfTI: FreeSurfer's, and NIfTI in two files.
MGH_ENDINGS = (".mgz", ".mgh")
PAIR_ENDINGS = (".img", ".hdr")
READ_ONLY = (*MGH_ENDINGS, *PAIR_ENDINGS)

# What a damaged file raises inside nibabel, gzip and zlib.
_DAMAGE = (OSError, EOFError, ValueError, OverflowError, MemoryError, zlib.error)


def open_nifti(path: Path) -> Any:
    """The nibabel image of a NIfTI or MGH file, its numbers not read yet.

    Raises:
        FileNotFoundError: of its two files the other one is not there.
        ValueError: it is no such file, or its header is damaged.
    """
    nib = require("nibabel", "NIfTI files")
    if path.suffix.lower() in PAIR_ENDINGS:
        _check_other(path)
    errors = (*_DAMAGE, nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError)
    try:
        with _quiet(nib):
            file = nib.load(path)
    except errors as error:
        raise ValueError(
            f"{path} is not a readable {_format(path)} file: {_line(error)}"
        ) from error
    kind = nib.MGHImage if path.name.lower().endswith(MGH_ENDINGS) else nib.Nifti1Pair
    if isinstance(file, nib.AnalyzeImage) and not isinstance(file, kind):
        raise ValueError(
            f"{path} is an ANALYZE 7.5 file, which does not say which side is left; write it as "
            "NIfTI by the program that made it, or by one that knows its convention"
        )
    if not isinstance(file, kind):
        raise ValueError(f"{path} is not a {_format(path)} file but {type(file).__name__}")
    if _is_nifti(file):
        _check_zooms(file, path)
    packed = path.name.lower().endswith((".gz", ".mgz"))
    claim = prod(int(n) for n in file.shape) * file.get_data_dtype().itemsize
    check_claim(claim, path, packed, [Path(file.file_map["image"].filename)])
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


def read_nifti(
    path: Path, slice_index: int | None, time: int | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """A volume, or one slice of it, of a NIfTI or MGH file.

    Returns:
        Its numbers (X, Y, Z) or (X, Y), and the other fields of Image.

    Raises:
        ValueError: the file is damaged or is no image of real numbers.
    """
    file = open_nifti(path)
    dtype = file.get_data_dtype()
    if dtype.kind not in "iuf":
        raise ValueError(f"{path} holds {_kind(dtype)}; one real number a voxel is needed")
    shape = tuple(int(n) for n in file.shape)  # of an MGH file they are numpy's
    part, index = part_of(path, shape, slice_index, time)
    affine = affine_of(file)
    check_affine(affine, str(path))
    if index is not None:
        affine[:3, 3] += index * affine[:3, 2]
    fields = {
        "affine": affine,
        "path": path,
        "kind": "nifti",
        "header": file.header.copy() if _is_nifti(file) else None,
        "ndim_in_file": len(shape) if _is_nifti(file) else 3,
        "slice_index": index,
        "time": time if len(shape) > 3 and shape[3] > 1 else None,
        "dtype": dtype.newbyteorder("="),
    }
    return read_values(file, path, part), fields


def part_of(
    path: Path, shape: tuple[int, ...], slice_index: int | None, time: int | None
) -> tuple[tuple, int | None]:
    """Where in the file's array the image is, and which slice of a volume that is.

    Args:
        path: the file, for messages.
        shape: of its array, (X, Y), (X, Y, Z) or (X, Y, Z, time).
        slice_index, time: what is asked for, None: all, and the only one.

    Raises:
        ValueError: there is no such slice or time point, or the image is empty or too large.
    """
    if 0 in shape:
        raise ValueError(f"{path} is empty: its shape is {shape}")
    if len(shape) < 2 or shape[0] * shape[1] == 1:
        raise ValueError(f"{path} is not an image: its shape is {shape}")
    depth = shape[2] if len(shape) > 2 else 1
    check_size(shape[:2] if slice_index is not None else (*shape[:2], depth), path)
    whole = slice(None)
    # A volume with one plane is a slice.
    along = whole if slice_index is None and depth > 1 else slice_index or 0
    if slice_index is not None and not 0 <= slice_index < depth:
        raise ValueError(f"{path} has no slice {slice_index}: its slices are 0..{depth - 1}")
    part = (whole, whole, along, *_time(path, shape, time))[: len(shape)]
    return part, slice_index if depth > 1 else None


def write_nifti(path: Path, array: np.ndarray, like: Image) -> None:
    """Write numbers in their own type with the header of `like`, shifted to its slice."""
    save(path, nifti_of(array, like))


def save(path: Path, file: Any) -> None:
    """Write a nibabel image; the file appears whole or not at all.

    Of what gzip can do, runs of one byte alone are looked for: measured numbers have hardly any
    longer strings in common, and to look for these takes twice to three times as long.
    """
    content = file.to_bytes()
    if path.name.lower().endswith(".gz"):
        packer = zlib.compressobj(wbits=31, strategy=zlib.Z_RLE)
        content = packer.compress(content) + packer.flush()
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def nifti_of(array: np.ndarray, like: Image) -> Any:
    """The nibabel image of numbers in their own type, with the header of `like`."""
    nib = require("nibabel", "NIfTI files")
    if like.header is None:
        header = nib.Nifti1Header()
        shape = array.shape + (1,) * (like.ndim_in_file - array.ndim)
        header.set_xyzt_units("mm")
    else:
        header = like.header.copy()
        # A slice of a volume becomes (X, Y, 1); a file of one image keeps its (X, Y) or (X, Y, 1).
        shape = array.shape + tuple(1 for _ in header.get_data_shape()[array.ndim :])
    file = type_of(header)(array.reshape(shape), None, header, dtype=array.dtype)
    file.header.set_slope_inter(None, None)
    file.header["cal_min"] = file.header["cal_max"] = 0  # a window for other intensities
    if like.header is None or like.slice_index is not None:
        _set_affine(file, like)
    return file


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


def _check_other(path: Path) -> None:
    """Raises unless the other file of NIfTI in two files is there."""
    ending = ".hdr" if path.suffix.lower() == ".img" else ".img"
    other = path.with_suffix(ending.upper() if path.suffix.isupper() else ending)
    if not other.is_file():
        raise FileNotFoundError(f"{other} does not exist, without which {path} is half an image")


def _check_zooms(file: Any, path: Path) -> None:
    """Refuse voxels without extent, which nibabel reads as 1 mm, unless the sform gives it."""
    files = file.file_map
    with files.get("header", files["image"]).get_prepare_fileobj("rb") as stream:
        header = type(file.header).from_fileobj(stream, check=False)
    zooms = header["pixdim"][1 : 1 + min(3, len(file.shape))]
    if not header["sform_code"] and not np.all(zooms):
        lengths = ", ".join(f"{length:g}" for length in zooms)
        raise ValueError(f"{path}: the header gives a voxel no extent: spacing ({lengths}) mm")


def _time(path: Path, shape: tuple[int, ...], time: int | None) -> tuple[int, ...]:
    """The indices along the axes of a file that come after those of space."""
    if any(size > 1 for size in shape[4:]):
        raise ValueError(
            f"{path} has {len(shape)} axes, shape {shape}; a slice, a volume or a series of "
            "volumes is needed: take one channel out of it first"
        )
    times = shape[3] if len(shape) > 3 else 1
    if time is None and times > 1:
        raise ValueError(
            f"{path} is a series of {times} volumes, shape {shape}; --time k takes one, "
            f"k in 0..{times - 1}, in Python read_image(path, time=k)"
        )
    if not 0 <= (time or 0) < times:
        raise ValueError(f"{path} has no time point {time}: its time points are 0..{times - 1}")
    return (time or 0, *(0 for _ in shape[4:]))


def _is_nifti(file: Any) -> bool:
    return isinstance(file, require("nibabel", "NIfTI files").Nifti1Pair)


def _format(path: Path) -> str:
    return "MGH" if path.name.lower().endswith(MGH_ENDINGS) else "NIfTI"


def _kind(dtype: np.dtype) -> str:
    """A voxel type in words."""
    if dtype.kind == "c":
        return "complex numbers"
    return "colours (RGB)" if dtype.names else f"values of type {dtype}"


def _line(error: BaseException) -> str:
    """The error's message on one line; some have none."""
    return " ".join(str(error).split()) or type(error).__name__
