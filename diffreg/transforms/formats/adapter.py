"""What the adapters of all tools share: their form, the images they need, text and numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np
import torch

from diffreg.data.geometry import Image
from diffreg.data.grid import Grid, in_words
from diffreg.system.atomic import replacing
from diffreg.system.files import read_text
from diffreg.transforms.on_grid import flattened
from diffreg.transforms.values import Affine, Field, Transform

# Bytes of a text that holds one map; such files have some 2,000.
_LARGEST = 2**20
# How far apart, in voxels, two headers may put a voxel and still mean one grid.
_APART = 0.01


@dataclass(frozen=True)
class Places:
    """The images between which a transform leads, of which the place counts; None: not given."""

    fixed: Image | None = None
    moving: Image | None = None

    def of_fixed(self, path: Path, why: str) -> Image:
        """The fixed image; why a file's numbers mean nothing without it."""
        return _given(self.fixed, "fixed", path, why)

    def of_moving(self, path: Path, why: str) -> Image:
        """The moving image, likewise."""
        return _given(self.moving, "moving", path, why)


@dataclass(frozen=True)
class Adapter:
    """One format.

    Args:
        about: a line on it.
        stored: the direction and the unit of its numbers.
        read: of a path and the images.
        write: of a path, a transform and the images; None: it is read only.
        endings: of the names of its files; none: any.
    """

    about: str
    stored: str
    read: Callable[[Path, Places], Transform]
    write: Callable[[Path, Transform, Places], None] | None = None
    endings: tuple[str, ...] = ()


def one_affine(path: Path, transform: Transform, what: str) -> Affine:
    """A chain of affines multiplied.

    Args:
        path: where it is to be written.
        transform: what is given.
        what: what the file is called.

    Raises:
        ValueError: there is a field in it.
    """
    matrices = [step.matrix for step in transform.steps if isinstance(step, Affine)]
    if len(matrices) < len(transform.steps):
        raise ValueError(
            f"{path}: {what} holds one affine map, and here is a displacement field too; a format "
            "of fields, or ITK's .h5, holds it"
        )
    return Affine(reduce(lambda before, after: after @ before, matrices), transform.is_flat)


def dense(path: Path, transform: Transform, places: Places) -> Field:
    """A transform as one field on the fixed grid; a single field keeps its own where none is given.

    Raises:
        ValueError: there is no grid for it.
    """
    steps = transform.steps
    if places.fixed is None and len(steps) == 1 and isinstance(steps[0], Field):
        return steps[0]
    image = places.of_fixed(path, "a field lives on its grid")
    return flattened(transform, image.grid, torch.float64)


def check_grid(path: Path, grid: Grid, fixed: Grid) -> None:
    """Refuse a field whose grid is not that of the fixed image.

    Raises:
        ValueError: it has another size, or lies elsewhere.
    """
    check_size(path, grid.size, fixed)
    difference = (grid.in_space - fixed.in_space) @ fixed.corners
    apart = float(np.linalg.norm(difference, axis=0).max())
    if not apart <= _APART * min(fixed.spacing):
        raise ValueError(
            f"{path} is of another grid than {fixed.name}: by their headers, voxels lie up to "
            f"{apart:.3g} mm apart"
        )


def check_size(path: Path, size: tuple[int, ...], fixed: Grid) -> None:
    """Refuse a field of another size than the fixed image's."""
    if size != fixed.size:
        raise ValueError(
            f"{path} is of another grid than {fixed.name}: {in_words(size)} voxels, not "
            f"{in_words(fixed.size)}"
        )


def text_of(path: Path, largest: int = _LARGEST) -> str:
    """The text of a file that is no larger than its kind can be.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is no text.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not path.is_file() or path.stat().st_size > largest:
        raise ValueError(f"{path} is no transform in text: no file of at most {largest:,} bytes")
    try:
        return read_text(path)
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no transform in text: its bytes are no characters") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def numbers_of(path: Path, text: str, what: str) -> np.ndarray:
    """The numbers of a text, float64.

    Args:
        path: the file.
        text: numbers, and spaces between them.
        what: they are, for the message.

    Raises:
        ValueError: something that is no finite number.
    """
    try:
        numbers = np.array(text.split(), dtype=np.float64)
    except ValueError:
        numbers = np.array([np.nan])
    if not np.all(np.isfinite(numbers)):
        raise ValueError(f"{path}: its {what} must be finite numbers, got {text.strip()[:60]!r}")
    return numbers


def matrix_of(path: Path, text: str, axes: tuple[int, ...] = (3,)) -> np.ndarray:
    """The 4 x 4 numbers of a bare text, `#` before comments; between 2-D images 3 x 3.

    Args:
        path: the file, for messages.
        text: what it holds.
        axes: of the images that the format is of.

    Raises:
        ValueError: other numbers.
    """
    lines = [line.split("#")[0] for line in text.splitlines()]
    numbers = numbers_of(path, " ".join(lines), "numbers")
    for side in (n + 1 for n in axes):
        if numbers.size == side**2:
            return numbers.reshape(side, side)
    needed = " or ".join(f"the {(n + 1) ** 2} of a {n + 1} x {n + 1} map" for n in axes)
    raise ValueError(f"{path} holds {numbers.size} numbers; {needed} are needed")


def affine_of(path: Path, matrix: np.ndarray, is_flat: bool = False) -> Affine:
    """The map of a file's matrix.

    Raises:
        ValueError: it is singular, or of another form; with the path.
    """
    try:
        return Affine(matrix, is_flat)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def in_text(matrix: np.ndarray) -> str:
    """A matrix row by row, every digit of it."""
    return "".join(" ".join(f"{value:.17g}" for value in row) + "\n" for row in matrix)


def _given(image: Image | None, side: str, path: Path, why: str) -> Image:
    if image is None:
        raise ValueError(f"{path} needs the {side} image (--{side}, {side}=): {why}")
    return image
