"""Greyscale PNG files in and out.

PNG has no physical coordinates: as ITK has it, pixel (x, y) lies at LPS (x, y, 0) mm.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from diffreg.data._limits import check_claim, check_size
from diffreg.system.atomic import replacing
from diffreg.system.extras import require

# Axis 0 of the array is y, axis 1 is x; RAS is LPS with x and y negated.
AFFINE = np.array([[0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], dtype=np.float64)


def read_png(path: Path, label: bool) -> tuple[np.ndarray, dict[str, Any]]:
    """One greyscale image of a PNG file; of a palette, labels are the indices.

    Returns:
        Its numbers (Y, X), uint8 or uint16, and the other fields of Image.

    Raises:
        ValueError: the file is damaged, not PNG or in colour.
    """
    pillow = require("PIL.Image", "PNG files")
    errors = (OSError, SyntaxError, ValueError, EOFError, pillow.DecompressionBombError)
    try:
        with _allowing_large(pillow), pillow.open(path) as picture:
            if picture.format != "PNG":
                raise ValueError(f"its content is {picture.format}")
            check_size(picture.size[::-1], path)
            check_claim(prod(picture.size) // 8, path, packed=True)  # a pixel has 1 bit or more
            _check_depth(path)
            array = np.asarray(_grey_mode(picture, label))
    except errors as error:
        message = " ".join(str(error).split())
        if message.startswith(str(path)):
            raise  # of ours, which says it all
        raise ValueError(f"{path} is not a readable PNG file: {message}") from error
    if array.ndim == 3:
        array = one_channel(array, path)
    # Older Pillow opens 16-bit greyscale in a 32-bit mode.
    array = array if array.dtype == np.uint8 else array.astype(np.uint16)
    return array, fields_of(path, array.dtype)


def fields_of(path: Path, dtype: np.dtype) -> dict[str, Any]:
    """The fields of Image, but its numbers, of a picture (Y, X)."""
    fields = {"affine": AFFINE.copy(), "path": path, "kind": "png", "ndim_in_file": 2}
    return {**fields, "dtype": dtype}


def one_channel(array: np.ndarray, path: Path) -> np.ndarray:
    """The first of channels (..., C) where all colours are equal and the opacity is full.

    Raises:
        ValueError: it is a colour image, or partly transparent.
    """
    colours = array.shape[-1] - (array.shape[-1] % 2 == 0)  # LA and RGBA end with opacity
    if np.any(array[..., :colours] != array[..., :1]):
        raise ValueError(f"{path} is a colour image; a greyscale image is needed")
    full = 1 if array.dtype.kind == "f" else np.iinfo(array.dtype).max
    if np.any(array[..., colours:] != full):
        raise ValueError(f"{path} is partly transparent; an opaque greyscale image is needed")
    return array[..., 0]


@contextmanager
def _allowing_large(pillow: Any) -> Iterator[None]:
    """Without Pillow's own limit, whose warning is for web servers; check_size has ours."""
    before = pillow.MAX_IMAGE_PIXELS
    pillow.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        pillow.MAX_IMAGE_PIXELS = before


def write_png(path: Path, array: np.ndarray) -> None:
    """Write (Y, X) numbers of type uint8 or uint16."""
    pillow = require("PIL.Image", "PNG files")
    with replacing(path) as temporary:
        pillow.fromarray(array).save(temporary, format="PNG")


def _check_depth(path: Path) -> None:
    """Refuse 16 bits in several channels, of which Pillow keeps the upper 8."""
    with path.open("rb") as file:
        depth, colours = file.read(26)[24:]
    if depth == 16 and colours != 0:
        name = {2: "colours", 4: "opacity", 6: "colours and opacity"}.get(colours, "channels")
        raise ValueError(
            f"{path} holds 16-bit values with {name}, of which only 8 bits could be read; convert "
            "it to 16-bit greyscale"
        )


def _grey_mode(picture: Any, label: bool) -> Any:
    """The picture in a mode whose array holds grey values, or red, green, blue (and opacity)."""
    if picture.mode == "P" and not label:
        return picture.convert("RGBA")
    return picture.convert("L") if picture.mode == "1" else picture
