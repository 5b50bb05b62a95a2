"""ITK's transforms in HDF5 (.h5), as ANTs' composites and Slicer's: groups by number, in order."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from diffreg.data._limits import LARGEST, check_claim
from diffreg.system.atomic import replacing
from diffreg.system.extras import require
from diffreg.transforms.formats.adapter import Adapter, Places
from diffreg.transforms.formats.itk import Stored, stored_of, transform_of
from diffreg.transforms.values import Transform

_GROUP = "TransformGroup"
# Older files of ITK spell what follows the first of each pair.
_NAMES = (
    ("TransformParameters", "TranformParameters"),
    ("TransformFixedParameters", "TranformFixedParameters"),
)
# What it raises of damaged files; ValueError is also ours, which names the file.
_OF_H5PY = OSError, KeyError, RuntimeError, TypeError, OverflowError, MemoryError, ValueError


def _read(path: Path, places: Places) -> Transform:
    try:
        with require("h5py", ".h5 files", "h5").File(path, "r") as file:
            stored = [_stored(path, group) for group in _groups(path, file)]
    except _OF_H5PY as error:
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"{path} does not exist") from None
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path} is not a readable .h5 file: {message}") from error
    return transform_of(path, stored)


def _groups(path: Path, file: Any) -> list[Any]:
    """The transforms in their order; HDF5 sorts names as text, 10 before 2."""
    if _GROUP not in file or not hasattr(file[_GROUP], "keys"):
        raise ValueError(f"{path} holds no transform of ITK: it has no {_GROUP}")
    names = list(file[_GROUP])
    if not all(isinstance(name, str) and name.isdecimal() for name in names):  # else bytes
        raise ValueError(f"{path}: the groups of {_GROUP} must be numbers, got {names[:4]}")
    groups = [file[_GROUP][name] for name in sorted(names, key=int)]
    if any(not hasattr(group, "keys") or "TransformType" not in group for group in groups):
        raise ValueError(
            f"{path} has a group without TransformType, as X5 files have it, which are not read: "
            "write it as ITK's .h5 with what made it"
        )
    return groups


def _stored(path: Path, group: Any) -> Stored:
    kind = np.asarray(_data_set(path, group, "TransformType")[()]).ravel()
    if kind.size != 1:
        raise ValueError(f"{path}: a TransformType holds {kind.size} words, not one")
    word = kind[0].decode("latin-1") if isinstance(kind[0], bytes) else str(kind[0])
    return Stored(word, *(_numbers(path, group, names) for names in _NAMES))


def _numbers(path: Path, group: Any, names: tuple[str, str]) -> np.ndarray:
    """A data set of numbers, which the file must be able to hold."""
    name = next((name for name in names if name in group), None)
    if name is None:
        return np.zeros(0)
    data = _data_set(path, group, name)
    if data.dtype.kind not in "iuf":
        raise ValueError(f"{path}: {name} must be numbers")
    check_claim(data.size * data.dtype.itemsize, path, packed=data.compression is not None)
    if data.size > 3 * LARGEST:
        raise ValueError(f"{path} is too large: {name} has {data.size:,} numbers")
    return np.asarray(data[()]).ravel()


def _data_set(path: Path, group: Any, name: str) -> Any:
    """Not a group, or a type of data, of that name."""
    found = group[name]
    if not hasattr(found, "size"):
        raise ValueError(f"{path}: {name} must be data, got a {type(found).__name__}")
    return found


_OVERHEAD = 2**15  # bytes of a file beside its numbers


def _write(path: Path, transform: Transform, places: Places) -> None:
    h5py = require("h5py", ".h5 files", "h5")
    stored = stored_of(transform)
    words = h5py.string_dtype("ascii")
    with replacing(path) as temporary:
        _check_room(temporary, sum(part.nbytes for _, *parts in stored for part in parts))
        with h5py.File(temporary, "w") as file:
            for index, (kind, numbers, fixed) in enumerate(stored):
                group = file.create_group(f"{_GROUP}/{index}")
                group.create_dataset("TransformType", data=[kind], dtype=words)
                if not numbers.size and not fixed.size:  # a composite
                    continue
                # Not packed: a fifth less for ten times the time.
                group.create_dataset(_NAMES[0][0], data=numbers)
                group.create_dataset(_NAMES[1][0], data=fixed)


def _check_room(path: Path, size: int) -> None:
    """Raises OSError where the disk has no room: HDF5 would end the process, not raise."""
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size + _OVERHEAD)


H5 = Adapter(
    "ITK, ANTs' Composite.h5, Slicer: chains of affine maps and fields",
    "fixed to moving, LPS mm, the last one stored is applied first",
    _read,
    _write,
    (".h5", ".hdf5"),
)
