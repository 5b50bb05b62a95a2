"""The numbers of an image: in which type they are held and written, so that contrast is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np

# Integers that torch computes with; labels of other types are held as int64.
_TORCH_INTEGERS = ("uint8", "int8", "int16", "int32")
# The part of an image's contrast that rounding may take: one of 65,536 levels.
_ROUNDING = 2.0**-16
_SAMPLE = 2**18  # voxels that tell an image's percentiles


def held(array: np.ndarray, path: Path) -> np.ndarray:
    """The numbers in float32, or in float64 where that would lose contrast."""
    for dtype in (np.float32, np.float64):
        if _keeps_contrast(dtype, array):
            return array.astype(dtype)
    raise ValueError(f"{path} holds values that are too large to be told apart in float64")


def _keeps_contrast(dtype: type, array: np.ndarray) -> bool:
    """Whether rounding to a type keeps integers, and 65,536 levels between the percentiles."""
    values = array[np.isfinite(array)]
    least, most = np.longdouble(values.min()), np.longdouble(values.max())
    if not most - least <= np.finfo(dtype).max:
        return False
    stored, whole = array.dtype.newbyteorder("="), 2 ** (np.finfo(dtype).nmant + 1)
    if stored == dtype or stored.itemsize < np.dtype(dtype).itemsize:
        return True
    if stored.kind != "f" and (dtype is np.float32 or max(-least, most) <= whole):
        return bool(max(-least, most) <= whole)
    with np.errstate(all="ignore"):
        exact = values if stored == np.float64 else values.astype(np.longdouble)
        error = np.abs(exact.astype(dtype) - exact).max()
        low, high = np.percentile(exact[:: 1 + exact.size // _SAMPLE], [0.5, 99.5])
    return bool(error <= _ROUNDING * (high - low or most - least))


def as_labels(array: np.ndarray, path: Path) -> tuple[np.ndarray, np.dtype]:
    """The numbers as integers that torch computes with, and the type to write them in again."""
    stored = array.dtype.newbyteorder("=")
    with np.errstate(all="ignore"):
        whole = stored.kind != "f" or np.all((np.abs(array) < 2**53) & (array == np.round(array)))
    if not whole:
        raise ValueError(
            f"{path} is no label image, nor a mask: it holds values that are not whole numbers"
        )
    return array.astype(stored if stored.name in _TORCH_INTEGERS else np.int64), stored


def cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The numbers in another type; rounded and clipped where that holds integers only."""
    if dtype.kind in "iu" and array.dtype.kind == "f":
        span = np.iinfo(dtype)
        array = np.clip(np.round(array), span.min, span.max)
    return array.astype(dtype)
