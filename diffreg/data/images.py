"""Read and write images: slices and volumes."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffreg.data import _dicom, _itk, _nifti, _npz, _png
from diffreg.data._forms import tell_place
from diffreg.data._kinds import ENDINGS, existing, file_of, is_picture, kind_of
from diffreg.data._numbers import as_labels, cast, held
from diffreg.data.geometry import Image, display_orientation
from diffreg.data.normalization import Normalization, normalize
from diffreg.data.resampling import coverage, resample_to
from diffreg.system.extras import require
from diffreg.system.files import FileWarning

__all__ = [
    "ENDINGS",
    "FileWarning",
    "Image",
    "Normalization",
    "count_slices",
    "count_times",
    "coverage",
    "display_orientation",
    "file_of",
    "is_picture",
    "kind_of",
    "normalize",
    "read_image",
    "read_part",
    "resample_to",
    "write_image",
]


def read_image(
    path: str | Path,
    slice_index: int | None = None,
    label: bool = False,
    time: int | None = None,
) -> Image:
    """Read a slice or a volume from a NIfTI, MGH, PNG or npz file, or from what SimpleITK reads.

    A volume with one plane is a slice. A TIFF or JPEG file is a picture as a PNG file is, and what
    is made of it becomes PNG; of more than 16 bits, or of many pages, it is as an array of an npz
    file and becomes NIfTI.

    Of two affines in a NIfTI header the sform counts; a FileWarning says where they disagree and
    what ITK takes. Voxels that are NaN or infinite are not there: `valid` is False, `data` is the
    smallest number, for labels 0, and a FileWarning counts them.

    Args:
        path: the file, .nii, .nii.gz, .img beside .hdr, .mgz or .png; of an npz file an array,
            `file.npz:array`. With SimpleITK .mha, .mhd, .nrrd, .nhdr, .tif, .jpg or .dcm, or a
            folder with the files of a DICOM series; `folder:UID` where it holds several.
        slice_index: which slice of a volume, along its last axis; along the first one of a stack
            (slices, Y, X) in an npz or TIFF file; None: all of the volume.
        label: keep whole numbers as integers, and refuse others.
        time: which volume of a series, along the fourth axis.

    Returns:
        The image; `data` is (1, 1, *S), float32, float64 where float32 would lose contrast, or
        integers for labels. Spacing and affine are in mm, whatever the header's unit.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the package that reads it is not installed.
        ValueError: it is not an image that can be registered; the message says why.

    Warns:
        FileWarning: as above; the command line prints it as one line.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image
        >>> from diffreg.data.images import read_image, write_image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     grid = Image(torch.zeros(1, 1, 3, 2), np.eye(4))
        ...     write_image(folder + "/a.nii.gz", torch.ones(3, 2), grid)
        ...     read_image(folder + "/a.nii.gz").shape
        (3, 2)
    """
    path = existing(path)
    if kind_of(path) == "nifti":
        array, fields = _nifti.read_nifti(path, slice_index, time)
    elif kind_of(path) == "itk":
        read = _dicom.read_series if file_of(path).is_dir() else _itk.read_itk
        array, fields = read(path, slice_index, time)
    elif time is not None:
        raise ValueError(f"{path} has no time points: it is no series of volumes")
    elif kind_of(path) == "npz":
        array, fields = _npz.read_npz(path, slice_index)
    elif slice_index in (None, 0):
        array, fields = _png.read_png(path, label)
    else:
        raise ValueError(f"{path} has no slice {slice_index}: a PNG file is one image")
    image = _image(array, path, label, fields)
    if image.header is not None:
        tell_place(path, image.header)
    return image


def from_array(array: np.ndarray, affine: np.ndarray, name: str, label: bool = False) -> Image:
    """An array in memory as an image.

    Args:
        array: (*S), two or three axes, real numbers.
        affine: (4, 4), voxel -> RAS mm.
        name: what messages call it.
        label: keep whole numbers as integers, and refuse others.

    Returns:
        The image, without a path; a volume of one plane is a slice.

    Raises:
        ValueError: as `read_image`.

    Example:
        >>> import numpy as np
        >>> from diffreg.data.images import from_array
        >>> from_array(np.zeros((4, 5, 1), np.int16), np.eye(4), "moving").shape
        (4, 5)
    """
    if array.dtype.kind not in "iufb" or array.size == 0:
        raise ValueError(
            f"{name} must hold real numbers, got {array.dtype} of shape {list(array.shape)}"
        )
    fields: dict[str, Any] = {"affine": affine, "ndim_in_file": array.ndim}
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    array = array.astype(np.uint8) if array.dtype.kind == "b" else array
    fields["dtype"] = array.dtype.newbyteorder("=")
    return _image(array, Path(name), label, fields)


def _image(array: np.ndarray, path: Path, label: bool, fields: dict[str, Any]) -> Image:
    """An image of an array, which may hold numbers that are none."""
    valid = _valid(array, path)
    if valid is not None:
        array = np.where(valid, array, array.dtype.type(0) if label else array[valid].min())
    values, dtype = as_labels(array, path) if label else (held(array, path), fields["dtype"])
    data = torch.from_numpy(np.ascontiguousarray(values))[None, None]
    image = Image(data=data, **{**fields, "dtype": dtype})
    return image if valid is None else _partly_valid(image, valid, path)


def read_part(
    path: str | Path,
    slice_index: int | None = None,
    time: int | None = None,
    label: bool = False,
) -> Image:
    """As `read_image`, but a slice and a time point are taken only of files that have several.

    Example: `read_part("mask.nii.gz", 3, label=True)`
    """
    return read_image(
        path,
        slice_index if slice_index is not None and count_slices(path) > 1 else None,
        label,
        time if time is not None and count_times(path) > 1 else None,
    )


def count_slices(path: str | Path) -> int:
    """How many slices a file has, along the axis that `read_image` takes; 1 for a 2-D image.

    Args:
        path: as `read_image` takes it.

    Returns:
        The number of slices.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no file of such a kind.

    Example: `count_slices("volume.nii.gz")`
    """
    return _shape_in_file(path)[2]


def count_times(path: str | Path) -> int:
    """How many volumes a file has in time, as `count_slices` counts slices; 1 for most.

    Example: `count_times("cine.nii.gz")`
    """
    return _shape_in_file(path)[3]


def _shape_in_file(path: str | Path) -> tuple[int, ...]:
    """Two axes of a slice, the slices and the volumes in time: their numbers, at least."""
    path = existing(path)
    kind = kind_of(path)
    shape: tuple[int, ...] = (1, 1)
    if kind == "npz":
        shape = _npz.shape_of(path)
        shape = (*shape[1:], shape[0]) if len(shape) == 3 else shape[:2]
    elif kind == "itk":
        shape = (_dicom if file_of(path).is_dir() else _itk).shape_of(path)
    elif kind == "nifti":
        shape = tuple(map(int, _nifti.open_nifti(path).shape))
    return (*shape, 1, 1, 1)


def write_image(
    path: str | Path, data: Tensor, like: Image, dtype: np.dtype | type | None = None
) -> None:
    """Write an image on the grid of another, with its header; the file appears whole or not at all.

    Args:
        path: .png where `like` is a picture; else .nii or .nii.gz, or with SimpleITK .mha or .nrrd.
        data: (*S) or (1, 1, *S) on the grid of `like`, in its array axes.
        like: gives the header, of a MetaImage or NRRD file the place alone; a slice of a volume
            becomes a file (X, Y, 1) with its own affine.
        dtype: numbers in the file. By default float32, float64 where `data` is, and for PNG those
            of `like`; integers are rounded and clipped to what the type holds.

    Raises:
        ImportError: SimpleITK is not installed.
        ValueError: the name asks for another kind of file, or the grids differ.

    Example: see read_image.
    """
    path = Path(path)
    check_ending(path, like)
    array = data.detach().cpu().numpy()
    if array.shape not in (like.shape, (1, 1, *like.shape)):
        raise ValueError(f"data must be {like.shape} as {like.name}, got {array.shape}")
    array = array.reshape(like.shape)
    if dtype is None:
        real = np.float64 if array.dtype == np.float64 else np.float32
        dtype = like.dtype if like.kind == "png" else real
    array = cast(array, np.dtype(dtype))
    if like.kind == "png":
        _png.write_png(path, array)
    elif path.name.lower().endswith(_itk.WRITTEN):
        _itk.write_itk(path, array, like)
    else:
        _nifti.write_nifti(path, array, like)


def check_ending(path: str | Path, like: Image) -> None:
    """Refuse a file name whose ending does not fit the grid that is to be written.

    Args:
        path: the file to be written.
        like: the image whose grid it will have.

    Raises:
        ImportError: the package that writes it is not installed.
        ValueError: .png for a grid with a place in the world, or the other way round.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image
        >>> from diffreg.data.images import check_ending
        >>> check_ending("a.nii", Image(torch.zeros(1, 1, 2, 2), np.eye(4)))
    """
    name = Path(path).name.lower()
    if not name.endswith((".png",) if like.kind == "png" else (*_nifti.ENDINGS, *_itk.WRITTEN)):
        right = ".png" if like.kind == "png" else ".nii.gz, .nii, .mha or .nrrd"
        raise ValueError(f"{path}: the name must end in {right}, as the fixed image's grid does")
    if name.endswith(_itk.WRITTEN):
        require("SimpleITK", f"writing {Path(path).name}", "itk")


def _valid(array: np.ndarray, path: Path) -> np.ndarray | None:
    """Where the numbers of a file are finite; None where all of them are."""
    valid = np.isfinite(array)
    if not valid.any():
        raise ValueError(f"{path} holds no number: every voxel is NaN or infinite")
    return None if valid.all() else valid


def _partly_valid(image: Image, valid: np.ndarray, path: Path) -> Image:
    """The image with a note of where it holds numbers, and a warning."""
    bad = int(np.count_nonzero(~valid))
    message = f"{path}: {bad} of {valid.size} voxels are NaN or infinite"
    warnings.warn(f"{message}; they count as outside", FileWarning, stacklevel=4)
    return replace(image, valid=torch.from_numpy(np.ascontiguousarray(valid))[None, None])
