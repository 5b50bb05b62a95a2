"""MetaImage, NRRD, TIFF, JPEG and DICOM files in, the first two out, by SimpleITK.

What has a place in the world becomes an image as of a NIfTI file: axes (x, y, z), RAS mm. TIFF and
JPEG files have none, whatever resolution they claim: a picture of 8 or 16 bits is one as of a PNG
file, any other and a stack of pages are arrays as of an npz file.
"""

from __future__ import annotations

import locale
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from diffreg.data import _npz, _png
from diffreg.data._dicom_elements import walk
from diffreg.data._headers import check_header
from diffreg.data._limits import check_claim, check_coded, check_size
from diffreg.data._nifti import part_of
from diffreg.data._tiff import check_directories
from diffreg.data.geometry import Image
from diffreg.data.grid import LPS, Grid, check_affine
from diffreg.system.atomic import replacing
from diffreg.system.extras import require

PICTURES = {
    **dict.fromkeys((".tif", ".tiff"), "TIFFImageIO"),
    **dict.fromkeys((".jpg", ".jpeg"), "JPEGImageIO"),
}
_PLACED = {
    **dict.fromkeys((".mha", ".mhd"), "MetaImageIO"),
    **dict.fromkeys((".nrrd", ".nhdr"), "NrrdImageIO"),
}
ENDINGS = (*_PLACED, *PICTURES)
WRITTEN = (".mha", ".nrrd")
PLACED = tuple(_PLACED)
_LONGEST = 200  # letters of what ITK says
_T = TypeVar("_T")


def open_itk(path: Path) -> Any:
    """The SimpleITK reader of a file, its header read; what has no other known ending is DICOM.

    Raises:
        ImportError: SimpleITK is not installed.
        ValueError: it is no such file, or its header is damaged.
    """
    reader = require("SimpleITK", f"reading {path.name}", "itk").ImageFileReader()
    ending = path.suffix.lower()
    reader.SetImageIO({**_PLACED, **PICTURES}.get(ending, "GDCMImageIO"))
    reader.SetFileName(str(path))
    check = _check_before(path, ending)
    ask(path, reader.ReadImageInformation)
    check(reader)
    return reader


def _check_before(path: Path, ending: str) -> Callable[[Any], None]:
    """Refuse a header that does harm to ITK's libraries; what to ask of what they make of it.

    Raises:
        ValueError: as `open_itk`.
    """
    if ending in _PLACED:
        packed, files = check_header(path, _PLACED[ending] == "MetaImageIO")
        return lambda reader: check_claim(prod(reader.GetSize()), path, packed, files)
    if PICTURES.get(ending) == "TIFFImageIO":
        bits = check_directories(path)
        return lambda reader: _check_depth(reader, path, bits)
    if ending in PICTURES:
        return lambda reader: check_claim(prod(reader.GetSize()), path, packed=True)
    elements = walk(path)
    check_coded(elements.claimed, path)
    if elements.packed:
        return lambda reader: check_coded(prod(reader.GetSize()), path)
    # Masks may have a bit a voxel, all others a byte or more.
    return lambda reader: check_claim(prod(reader.GetSize()) // 8, path, packed=False)


def _check_depth(reader: Any, path: Path, bits: int) -> None:
    """Refuse what ITK draws as colours of 8 bits, such as tiles, where the file has more."""
    itk = require("SimpleITK", "images", "itk")
    if bits > 8 and "8-bit unsigned" in itk.GetPixelIDValueAsString(reader.GetPixelIDValue()):
        raise ValueError(
            f"{path} has {bits} bits a pixel, of which SimpleITK reads 8 of such a file, in tiles "
            "or of another layout; write it in strips, its first row on top"
        )


def shape_of(path: Path) -> tuple[int, ...]:
    """The voxels along the axes of a file, (x, y), (x, y, z) or (x, y, z, time)."""
    return tuple(open_itk(path).GetSize())


def affine_of(reader: Any, path: Path | str) -> np.ndarray:
    """(4, 4), voxel -> RAS mm, of a reader or image; what is 2-D lies in the x-y plane."""
    axes = len(reader.GetSize())
    direction = np.array(reader.GetDirection()).reshape(axes, axes)
    if axes == 4 and (direction[3, :3].any() or direction[:3, 3].any()):
        raise ValueError(f"{path}: its axes of space and time are mixed")
    space = min(axes, 3)
    affine = np.eye(4)
    affine[:space, :space] = direction[:space, :space] * reader.GetSpacing()[:space]
    affine[:space, 3] = reader.GetOrigin()[:space]
    affine = LPS @ affine
    check_affine(affine, str(path))
    return affine


def read_itk(
    path: Path, slice_index: int | None, time: int | None = None
) -> tuple[np.ndarray, dict[str, Any]]:
    """A volume, or one slice of it, of a file.

    Returns:
        Its numbers (X, Y, Z) or (X, Y); of a picture (Y, X), of pages (pages, Y, X); and the other
        fields of Image.

    Raises:
        ValueError: the file is damaged or is no image of real numbers.
    """
    reader = open_itk(path)
    part, index = part_of(path, reader.GetSize(), slice_index, time)
    if path.suffix.lower() in PICTURES:
        values = read_voxels(reader, path, part, colours=True)
        if reader.GetNumberOfComponents() > 1:
            values = _png.one_channel(values, path)
        return _picture(path, values.T, index)
    affine = affine_of(reader, path)
    values = read_voxels(reader, path, part)
    if index is not None:
        affine[:3, 3] += index * affine[:3, 2]
    fields = {
        "affine": affine,
        "path": path,
        "ndim_in_file": min(len(reader.GetSize()), 3),
        "slice_index": index,
        "time": time if len(reader.GetSize()) > 3 and reader.GetSize()[3] > 1 else None,
        "dtype": values.dtype,
    }
    return values, fields


def read_voxels(reader: Any, path: Path, part: tuple, colours: bool = False) -> np.ndarray:
    """A part of a file's numbers, (X, Y, ...); with `colours` (X, Y, ..., channels) where it has.

    Raises:
        ValueError: the file ends early or is damaged, or a voxel is no real number.
    """
    channels = reader.GetNumberOfComponents()
    if channels > 1 and not colours:
        raise ValueError(
            f"{path} holds {channels} numbers a voxel, as vectors, colours and complex numbers "
            "are; one real number a voxel is needed"
        )
    whole = [
        (0, size) if isinstance(at, slice) else (at, 1)
        for at, size in zip(part, reader.GetSize(), strict=True)
    ]
    reader.SetExtractIndex([first for first, _ in whole])
    reader.SetExtractSize([size for _, size in whole])
    array = require("SimpleITK", "images", "itk").GetArrayFromImage(ask(path, reader.Execute))
    axes = range(len(part))
    array = array.transpose([*reversed(axes), *range(len(part), array.ndim)])
    return array[tuple(at if isinstance(at, slice) else 0 for at in part)]


def lps_of(grid: Image) -> tuple[np.ndarray, list[float], np.ndarray]:
    """Directions, spacing and origin in LPS of three axes, or two of a 2-D file."""
    affine = LPS @ grid.affine
    n = 2 if grid.is_flat else 3
    linear = affine[:n, :n]
    spacing = np.linalg.norm(linear, axis=0)
    return linear / spacing, spacing.tolist(), affine[:n, 3]


def to_itk(array: np.ndarray, grid: Image) -> Any:
    """A SimpleITK image of numbers (*S), or of vectors (C, *S), on a grid."""
    direction, spacing, origin = lps_of(grid)
    vectors = array.ndim > len(grid.shape)
    array = array.reshape(array.shape + (1,) * (len(spacing) - len(grid.shape)))
    array = np.ascontiguousarray(array.transpose())  # (z, y, x), or (z, y, x, C)
    found = require("SimpleITK", "images", "itk").GetImageFromArray(array, isVector=vectors)
    found.SetDirection(direction.ravel().tolist())
    found.SetSpacing(spacing)
    found.SetOrigin(origin.tolist())
    return found


def read_vectors(path: Path) -> tuple[np.ndarray, Grid]:
    """A field's vectors (X, Y, Z, components), or (X, Y, components), LPS, and where they lie.

    Raises:
        ValueError: the file is damaged, or has not as many real numbers a voxel as axes.
    """
    reader = open_itk(path)
    size, components = tuple(reader.GetSize()), reader.GetNumberOfComponents()
    kind = reader.GetPixelIDValue()
    itk = require("SimpleITK", "fields", "itk")
    real = kind in (itk.sitkVectorFloat32, itk.sitkVectorFloat64)
    if len(size) not in (2, 3) or components != len(size) or not real:
        raise ValueError(
            f"{path} is no field: it has {len(size)} axes and {components} numbers a voxel, "
            f"{itk.GetPixelIDValueAsString(kind)}"
        )
    check_size(size, path)
    values = read_voxels(reader, path, (slice(None),) * len(size), colours=True)
    flat = len(size) == 2
    size = size[:2] if flat or size[2] == 1 else size
    return values.astype(np.float64), Grid(size, affine_of(reader, path), str(path), flat)


def write_itk(path: Path, array: np.ndarray, like: Image) -> None:
    """Write numbers in their own type, packed, on the grid of `like`; the file appears whole."""
    itk = require("SimpleITK", f"writing {path.name}", "itk")
    with replacing(path) as temporary:
        # MetaImage's writer takes .MHA for the name of a header, and writes two other files.
        written = temporary.with_suffix(path.suffix.lower())
        try:
            ask(path, lambda: itk.WriteImage(to_itk(array, like), str(written), True))
            written.replace(temporary)
        finally:
            if written != temporary:
                written.unlink(missing_ok=True)


def ask(path: Path, action: Callable[[], _T]) -> _T:
    """What a call of ITK gives; what its libraries print is not shown but why it failed.

    Some print only, and go on with what they have.

    Raises:
        ValueError: it failed, or a file ended early.
    """
    failure = None
    with tempfile.TemporaryFile() as printed:
        with _printing_into(printed.fileno()), _same_locale():
            try:
                result = action()
            except (RuntimeError, MemoryError, UnicodeError) as error:
                failure = error
        printed.seek(0)
        said = printed.read().decode(errors="replace")
    if failure is not None or "Premature end" in said:
        reason = said or re.sub(r"(?s).*ERROR: (\w+\(0x\w+\): )?", "", str(failure))
        reason = " ".join("".join(c if c.isprintable() else " " for c in reason).split())
        raise ValueError(f"{path} is damaged or no such file: {reason[:_LONGEST]}") from failure
    return result


@contextmanager
def _same_locale() -> Iterator[None]:
    """GDCM leaves the process in the locale C, in which Python reads text as ASCII."""
    before = locale.setlocale(locale.LC_ALL)
    try:
        yield
    finally:
        locale.setlocale(locale.LC_ALL, before)


@contextmanager
def _printing_into(file: int) -> Iterator[None]:
    """Both streams of the process, which C and C++ write to past Python, lead into a file."""
    kept = [(stream, os.dup(stream)) for stream in (1, 2)]
    try:
        for stream, _ in kept:
            os.dup2(file, stream)
        yield
    finally:
        for stream, before in kept:
            os.dup2(before, stream)
            os.close(before)


def _picture(
    path: Path, values: np.ndarray, index: int | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """A picture (Y, X) or pages (pages, Y, X), and the other fields of Image."""
    if values.ndim == 2 and values.dtype in (np.uint8, np.uint16):
        return values, {**_png.fields_of(path, values.dtype), "slice_index": index}
    return values, _npz.fields_of(path, values.ndim == 3, index, values.dtype)
