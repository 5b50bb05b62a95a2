"""Images as people have them, paths, arrays or another library's, and results in the same kind."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffreg.data import _itk, _nifti
from diffreg.data._forms import affine_of
from diffreg.data.geometry import Image
from diffreg.data.grid import LPS
from diffreg.data.images import from_array, read_image
from diffreg.system.files import FileWarning

TAKEN = (
    "a path, a diffreg Image, a numpy array, a torch tensor, a nibabel image, a SimpleITK image or "
    "an ants image"
)

PICTURE = 16  # pixels along each side from which an axis of 3 beside them may be of colours


def image(
    data: Any,
    affine: np.ndarray | None = None,
    spacing: float | Sequence[float] | None = None,
    label: bool = False,
) -> Image:
    """An array, or another library's image, as a diffreg Image.

    Args:
        data: a numpy array (*S) or a tensor, (*S) or (1, 1, *S), of two or three axes; or a path, a
            nibabel, SimpleITK or ants image, or an Image, which know their place.
        affine: (4, 4), voxel -> RAS mm, of an array.
        spacing: length of an array's voxel along each axis, mm, or one for all; None: 1.
        label: keep whole numbers as integers, and refuse others.

    Returns:
        The image.

    Raises:
        TypeError: anything else; the message lists what is taken.
        ValueError: a place for an image that has one, or both affine and spacing.

    Example:
        >>> import numpy as np
        >>> import diffreg
        >>> diffreg.image(np.zeros((8, 9, 10)), spacing=(1, 1, 3)).spacing
        (1.0, 1.0, 3.0)
    """
    return _image("data", data, affine, spacing, label)


def as_image(name: str, data: Any, label: bool = False) -> Image:
    """As `image`; `name` is what messages call the argument, and the image if it has no path."""
    found = _image(name, data, label=label)
    if not label and isinstance(data, np.ndarray | Tensor):
        _tell_colours(name, found.shape)
    known = found.path is not None or found.called == name
    return found if known else replace(found, called=name)


def as_pair(moving: Any, fixed: Any) -> tuple[Image, Image]:
    """As `as_image`, of both; an array beside an image of a place would lie anywhere.

    Raises:
        ValueError: one of them is an array, and the other has a place.
    """
    given = {"moving": moving, "fixed": fixed}
    images = as_image("moving", moving), as_image("fixed", fixed)
    arrays = [name for name, data in given.items() if isinstance(data, np.ndarray | Tensor)]
    if len(arrays) == 1:
        other = images[arrays[0] == "moving"]
        if other.kind == "nifti":
            raise ValueError(
                f"{arrays[0]} is an array, which does not say where it lies, as {other.name} does: "
                f"diffreg.image({arrays[0]}, affine=...) says it"
            )
    return images


def _image(
    name: str,
    data: Any,
    affine: np.ndarray | None = None,
    spacing: float | Sequence[float] | None = None,
    label: bool = False,
) -> Image:
    if isinstance(data, np.ndarray | Tensor):
        array = _array(name, data)
        return from_array(array, _place(name, array.ndim, affine, spacing), name, label)
    if affine is not None or spacing is not None:
        raise ValueError(f"affine and spacing are of arrays; {name}, {_kind(data)}, has its own")
    if isinstance(data, Image):
        return data
    if isinstance(data, str | Path):
        return read_image(data, label=label)
    if _is(data, "nibabel", "spatialimages", "SpatialImage"):
        return _from_nibabel(name, data, label)
    if _is(data, "SimpleITK", None, "Image"):
        return _from_itk(name, data, label)
    if _is(data, "ants", None, "ANTsImage"):
        linear = np.asarray(data.direction) * np.asarray(data.spacing)
        return from_array(data.numpy(), _ras(linear, data.origin), name, label)
    raise TypeError(f"{name} must be {TAKEN}, got {_kind(data)}")


def on_grid_of(image: Image, name: str, data: Any, label: bool = False) -> Image:
    """What belongs to an image, such as its mask: an array has its shape, and lies where it does.

    Args:
        image: which.
        name: what messages call the data.
        data: as `as_image` takes it.
        label: keep whole numbers as integers, and refuse others.

    Raises:
        TypeError, ValueError: as `as_image`; or an array of another shape.
    """
    if not isinstance(data, np.ndarray | Tensor):
        return as_image(name, data, label=label)
    array = _array(name, data)
    if array.shape != image.shape:
        raise ValueError(
            f"{name} is an array of shape {list(array.shape)}, and has no place of its own: that "
            f"of its image, {list(image.shape)}, is needed"
        )
    found = from_array(array, image.affine, name, label)
    return replace(found, kind=image.kind, ndim_in_file=image.ndim_in_file, called=name)


def in_kind(values: Tensor, grid: Image, like: Any) -> Any:
    """Numbers on a grid in the kind that an image was given in.

    Args:
        values: (1, 1, *S).
        grid: where they lie.
        like: what was given; an Image comes back of a path.

    Returns:
        A numpy array (*S); a tensor of the shape and on the device of `like`; an image of nibabel,
        SimpleITK or ants; or an Image.
    """
    if isinstance(like, np.ndarray):
        return values[0, 0].cpu().numpy()
    if isinstance(like, Tensor):
        own = values if like.ndim == values.ndim else values[0, 0]
        return own.to(like.device)
    array = values[0, 0].cpu().numpy()
    if _is(like, "nibabel", "spatialimages", "SpatialImage"):
        file = _nifti.nifti_of(array, grid)
        return type(file)(file.dataobj, file.header.get_best_affine(), file.header)
    if _is(like, "SimpleITK", None, "Image"):
        return _itk.to_itk(array, grid)
    if _is(like, "ants", None, "ANTsImage"):
        return _to_ants(array, grid)
    return grid.with_data(values.cpu())


def _is(data: Any, package: str, module: str | None, kind: str) -> bool:
    """Whether it is another library's image; a library that is not imported has none."""
    found = sys.modules.get(package if module is None else f"{package}.{module}")
    return found is not None and isinstance(data, getattr(found, kind, ()))


def _kind(data: Any) -> str:
    return f"{type(data).__module__}.{type(data).__qualname__}".removeprefix("builtins.")


def _array(name: str, data: np.ndarray | Tensor) -> np.ndarray:
    """(*S) of an array or a tensor."""
    if np.ma.is_masked(data):
        raise ValueError(
            f"{name} is a masked array: give what is in it, .filled(VALUE), and what counts of the "
            "fixed or the moving image, ~numpy.ma.getmaskarray(...), as fixed_mask or moving_mask"
        )
    array = np.asarray(data) if isinstance(data, np.ndarray) else _numbers(data)
    if array.ndim not in (2, 3):
        raise ValueError(f"{name} must have two or three axes, got shape {list(array.shape)}")
    return array


def _tell_colours(name: str, shape: tuple[int, ...]) -> None:
    """Warn of an array that looks like a picture in colours, whose axis of colours is one of space.

    Pictures of (Y, X, 3), or as torch has them, (3, Y, X).
    """
    last = shape[-1] == 3
    sides = shape[:-1] if last else shape[1:]
    if len(shape) == 3 and 3 in (shape[0], shape[-1]) and min(sides) >= PICTURE:
        warnings.warn(
            f"{name}: the {'last' if last else 'first'} axis of 3 looks like colours, and is taken "
            "for one of space: of a picture give one grey channel, such as the mean along it",
            FileWarning,
            stacklevel=4,
        )


def _numbers(tensor: Tensor) -> np.ndarray:
    """What a tensor (*S) or (1, 1, *S) holds; numpy has no bfloat16."""
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    array = (tensor.float() if half else tensor).detach().cpu().numpy()
    return array[0, 0] if array.ndim in (4, 5) and array.shape[:2] == (1, 1) else array


def _place(
    name: str, axes: int, affine: np.ndarray | None, spacing: float | Sequence[float] | None
) -> np.ndarray:
    """The affine of an array."""
    if affine is not None:
        if spacing is not None:
            raise ValueError(f"give the affine or the spacing of {name}, not both")
        return np.asarray(affine, dtype=np.float64)
    lengths = np.asarray(1.0 if spacing is None else spacing, dtype=np.float64)
    if lengths.shape not in ((), (axes,)) or not np.all((lengths > 0) & np.isfinite(lengths)):
        raise ValueError(f"spacing must be {axes} lengths > 0, mm, or one, got {spacing}")
    found = np.eye(4)
    found[range(axes), range(axes)] = lengths
    return found


def _from_nibabel(name: str, data: Any, label: bool) -> Image:
    shape = [n for n in data.shape[3:] if n != 1]
    if shape:
        raise ValueError(f"{name} is a series, shape {data.shape}: give one volume of it")
    array = np.asarray(data.dataobj).reshape(data.shape[:3])
    found = from_array(array, affine_of(data), name, label)
    nifti = isinstance(data, sys.modules["nibabel"].Nifti1Pair)
    return replace(found, header=data.header.copy()) if nifti else found


def _from_itk(name: str, data: Any, label: bool) -> Image:
    itk = sys.modules["SimpleITK"]
    if data.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(f"{name} has several numbers a voxel; one is needed")
    array = itk.GetArrayFromImage(data).transpose()
    return from_array(array, _itk.affine_of(data, name), name, label)


def _ras(linear: np.ndarray, origin: Sequence[float]) -> np.ndarray:
    """(4, 4) RAS of axes and an origin in LPS mm, of two or three dimensions."""
    affine = np.eye(4)
    n = len(linear)
    affine[:n, :n], affine[:n, 3] = linear, origin
    return LPS @ affine


def _to_ants(array: np.ndarray, grid: Image) -> Any:
    direction, spacing, origin = _itk.lps_of(grid)
    array = array.reshape(array.shape + (1,) * (len(spacing) - array.ndim))
    place = {"origin": tuple(origin), "spacing": tuple(spacing), "direction": direction}
    return sys.modules["ants"].from_numpy(array, **place)
