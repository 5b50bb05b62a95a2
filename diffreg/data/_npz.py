"""Images as arrays of npz files, `file.npz:array`.

An array is (Y, X), or (slices, Y, X), without physical coordinates: its voxels are cubes of 1 mm,
each slice drawn as a picture is, its first axis downwards.
"""

from __future__ import annotations

import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from diffreg.data._limits import check_size

ENDING = ".npz"
# RAS: axis 0 of a slice runs to posterior, which is drawn downwards, axis 1 to the patient's right.
AFFINE = np.array([[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=np.float64)
_DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, SyntaxError, MemoryError, OverflowError),
    *(RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)


def split_array(path: str | Path) -> tuple[Path, str | None]:
    """A path without the array's name that follows `.npz:`, and that name.

    Args:
        path: such as "images.npz:mr", or any other path.

    Returns:
        The file, and the array's name, None where there is none.

    Example:
        >>> from diffreg.data._npz import split_array
        >>> split_array("images.npz:mr")[1]
        'mr'
    """
    text = str(path)
    head, colon, array = text.rpartition(f"{ENDING}:")
    return (Path(head + ENDING), array) if colon and "/" not in array else (Path(path), None)


def shape_of(path: str | Path) -> tuple[int, ...]:
    """The shape that an array of an npz file has, from its header alone."""
    file, array = split_array(path)
    return _opened(file, array, read=False)[0]


def read_npz(path: Path, slice_index: int | None) -> tuple[np.ndarray, dict[str, Any]]:
    """A slice or a volume of an npz file.

    Returns:
        Its numbers (Y, X) or (slices, Y, X), and the other fields of Image.

    Raises:
        ValueError: the file is damaged, has no such array, or that is no image.
    """
    file, array = split_array(path)
    shape, dtype, values = _opened(file, array)
    if dtype.kind not in "iufb":
        raise ValueError(f"{path} holds values of type {dtype}; one real number a voxel is needed")
    if 0 in shape or len(shape) not in (2, 3) or int(np.prod(shape[-2:])) == 1:
        raise ValueError(f"{path} is not an image: its shape is {shape}; (Y, X) is needed")
    if len(shape) == 2 and slice_index not in (None, 0):
        raise ValueError(f"{path} has no slice {slice_index}: it is one image")
    stacked = len(shape) == 3 and slice_index is None and shape[0] > 1
    if len(shape) == 3 and not stacked:
        slice_index = slice_index or 0
        if not 0 <= slice_index < shape[0]:
            raise ValueError(f"{path} has no slice {slice_index}: its slices are 0..{shape[0] - 1}")
        values = values[slice_index]
    index = slice_index if len(shape) == 3 and not stacked else None
    fields = fields_of(path, stacked, index, dtype)
    return values.astype(np.uint8) if dtype.kind == "b" else values, fields


def fields_of(
    path: Path, stacked: bool, slice_index: int | None, dtype: np.dtype
) -> dict[str, Any]:
    """The fields of Image, but its numbers, of an array (Y, X), `stacked`: (slices, Y, X)."""
    return {
        "affine": AFFINE[:, [2, 0, 1, 3]] if stacked else AFFINE.copy(),
        "path": path,
        "kind": "npz",
        "ndim_in_file": 3 if stacked else 2,
        "slice_index": slice_index,
        "dtype": dtype.newbyteorder("="),
    }


def read_field(path: str | Path, size: tuple[int, ...] | None = None) -> np.ndarray:
    """A displacement in voxels, (D, *S); in its file (D, *S), (1, D, *S) or (*S, D).

    Args:
        path: with the array's name where there are several.
        size: S, where it is known; None: an array that may be either is taken as (D, *S).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no npz file, or the array is no field.
    """
    file, array = split_array(path)
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist")
    shape, dtype, values = _opened(file, array)
    if dtype.kind not in "fiu":
        raise ValueError(f"{path} must hold real numbers, got {dtype}")
    field = values[0] if len(shape) in (4, 5) and shape[0] == 1 else values
    dimensions = field.ndim - 1
    if dimensions not in (2, 3) or dimensions not in (field.shape[0], field.shape[-1]):
        raise ValueError(f"{path} must be a field (D, *S) or (*S, D), got {list(shape)}")
    last = field.shape[-1] == dimensions and (
        field.shape[0] != dimensions or field.shape[:-1] == size
    )
    return np.moveaxis(field, -1, 0) if last else field


def _opened(
    file: Path, array: str | None, read: bool = True
) -> tuple[tuple[int, ...], np.dtype, np.ndarray]:
    """Shape, type and numbers of an array; its header must fit its size in the file."""
    try:
        with warnings.catch_warnings(), zipfile.ZipFile(file) as archive:
            warnings.simplefilter("ignore")  # about headers of other numpys
            name = _member(archive, file, array)
            with archive.open(name) as stream:
                version = np.lib.format.read_magic(stream)
                reader = {(1, 0): np.lib.format.read_array_header_1_0}.get(
                    version, np.lib.format.read_array_header_2_0
                )
                shape, _, dtype = reader(stream)
                size = archive.getinfo(name).file_size
            if dtype.hasobject:
                raise ValueError("it holds Python objects, which are not read")
            if any(n < 0 for n in shape) or _bytes(shape, dtype) > size:
                raise ValueError(f"its header claims {shape}, more than the file holds")
            check_size(shape[-3:], file)
            values = np.empty(0)
            if read:
                with archive.open(name) as stream:
                    values = np.lib.format.read_array(stream, allow_pickle=False)
    except _DAMAGE as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{file} is not a readable npz file: {message}") from error
    return shape, dtype, values


def _bytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    total = dtype.itemsize
    for size in shape:
        total *= int(size)
    return total


def names_of(file: Path) -> list[str]:
    """The names of the arrays in an npz file.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is damaged.
    """
    if not file.exists():
        raise FileNotFoundError(f"{file} does not exist")
    try:
        with zipfile.ZipFile(file) as archive:
            return _names(archive)
    except _DAMAGE as error:
        message = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{file} is not a readable npz file: {message}") from error


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def _member(archive: zipfile.ZipFile, file: Path, array: str | None) -> str:
    """The archive's file of an array; the only one needs no name."""
    names = _names(archive)
    if array is None and len(names) == 1:
        array = names[0]
    if array not in names:
        asked = "which array is meant is not said" if array is None else f"it has no array {array}"
        listed = ", ".join(names[:8]) or "none"
        raise ValueError(f"{asked}; name one as {file.name}:ARRAY, of {listed}")
    return f"{array}.npy"
