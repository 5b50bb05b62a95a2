"""Images with several numbers a voxel, in and out: series, vectors and colours."""

from __future__ import annotations

import sys
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffreg.data import _itk, _nifti
from diffreg.data._forms import in_unit, unit_of, with_upright_slices
from diffreg.data._itk import to_itk
from diffreg.data._kinds import existing, kind_of
from diffreg.data._limits import check_size
from diffreg.data.geometry import Image
from diffreg.system.extras import require
from diffreg.transforms.places import nothing, of_nibabel


class Several(NamedTuple):
    """What a file or another library's image holds.

    Args:
        channels: (C, *S), numbers of its own type.
        place: of each channel.
        given: the nibabel or SimpleITK image, whose kind comes back.
        is_series: whether each channel is an image, not a component or a colour.
    """

    channels: np.ndarray
    place: Image
    given: Any
    is_series: bool = False

    @property
    def is_colours(self) -> bool:
        """Whether a voxel's numbers are a colour."""
        return hasattr(self.given, "dataobj") and self.given.get_data_dtype().names is not None

    def back(self, channels: np.ndarray, onto: Image) -> Any:
        """Other numbers (C, *S) on another grid, in the kind that was given."""
        if hasattr(self.given, "dataobj"):
            return _to_nibabel(channels, onto, self.given)
        return to_itk(channels, onto)


def has_several(given: Any) -> bool:
    """Whether a voxel has several numbers; of a path only the header is read."""
    if isinstance(given, str | Path):
        path = existing(given)
        if kind_of(path) != "nifti":
            return False
        given = _nifti.open_nifti(path)
    itk = sys.modules.get("SimpleITK")
    if itk is not None and isinstance(given, itk.Image):
        return given.GetNumberOfComponentsPerPixel() > 1
    if not hasattr(given, "dataobj"):
        return False
    return given.get_data_dtype().names is not None or prod(given.shape[3:]) > 1


def several_of(given: Any) -> Several | None:
    """An image with several numbers a voxel; None where it has one, or is of another kind.

    Args:
        given: a path or an image, as `diffreg.image` takes them.

    Raises:
        ValueError: complex numbers, or a damaged file.
    """
    if not has_several(given):
        return None
    if not isinstance(given, str | Path):
        return _of_nibabel(given, Path("image")) if hasattr(given, "dataobj") else _of_itk(given)
    return _of_nibabel(_nifti.open_nifti(existing(given)), existing(given))


def _of_nibabel(file: Any, path: Path) -> Several:
    if file.get_data_dtype().kind == "c":
        raise ValueError(f"{path} holds complex numbers: take their parts out of it first")
    place = of_nibabel(file, path)
    check_size(tuple(int(n) for n in file.shape), path)
    array = _nifti.read_values(file, path)
    if array.dtype.names is not None:  # colours
        array = np.stack([array[name] for name in array.dtype.names], axis=-1)
    elif array.dtype != file.get_data_dtype():
        array = array.astype(np.float32)  # scaled, which nibabel does in double
    array = array.reshape(*place.shape, -1)
    is_series = file.get_data_dtype().names is None and prod(file.shape[4:]) == 1
    return Several(np.moveaxis(array, -1, 0), place, file, is_series)


def _to_nibabel(channels: np.ndarray, onto: Image, like: Any) -> Any:
    """A nibabel image of the axes and the kind of `like`; FreeSurfer's becomes NIfTI."""
    nib = require("nibabel", "NIfTI files")
    array = np.moveaxis(channels, 0, -1)
    size = (*onto.shape, 1)[:3]
    names = like.get_data_dtype().names
    if names is None:
        array = array.reshape(*size, *like.shape[3:])
    else:
        colours = np.dtype([(name, array.dtype) for name in names])
        array = np.ascontiguousarray(array).view(colours).reshape(*size, *like.shape[3:])
    affine = with_upright_slices(onto.affine)
    if "xyzt_units" not in like.header:
        return nib.Nifti1Image(array, affine)
    header = like.header.copy()
    header.set_data_dtype(array.dtype)
    codes = (1, 1) if onto.header is None else _codes(onto.header)
    file = _nifti.type_of(header)(array, None, header)
    affine = in_unit(affine, 1 / unit_of(header))
    file.set_qform(affine, codes[0])
    file.set_sform(affine, codes[1])
    return file


def _codes(header: Any) -> tuple[int, int]:
    """The codes of both forms, one at least of which says something."""
    codes = int(header["qform_code"]), int(header["sform_code"])
    return codes if any(codes) else (1, 1)


def _of_itk(image: Any) -> Several:
    array = sys.modules["SimpleITK"].GetArrayFromImage(image).transpose()  # (C, x, y, z)
    if array.ndim > 4:
        raise ValueError("image has four axes and several numbers a voxel: give one volume of it")
    axes = array.ndim - 1
    array = array[..., 0] if array.ndim == 4 and array.shape[3] == 1 else array
    affine = _itk.affine_of(image, "image")
    return Several(array, Image(nothing(array.shape[1:]), affine, ndim_in_file=axes), image)
