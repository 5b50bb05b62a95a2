"""How large an image may be: a header is believed only where the file can hold what it claims."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

LARGEST = 2**28  # voxels: 16384 x 16384, or 512 x 512 x 1024; nobody has the memory for more
_GZIP = 1032  # deflate packs no better
_FEW = 2**24  # numbers that any file may claim: of a blank picture some codes leave next to nothing


def check_size(shape: Sequence[int], path: Path) -> None:
    """Refuse an image that could not be registered anyway, before memory is taken for it.

    Args:
        shape: of the slice or volume that is to be read.
        path: the file, for the message.

    Raises:
        ValueError: it has more than LARGEST voxels.

    Example:
        >>> from pathlib import Path
        >>> from diffreg.data._limits import check_size
        >>> check_size((512, 512), Path("a.png"))
    """
    if prod(shape) > LARGEST:
        raise ValueError(
            f"{path} is too large: its shape is {tuple(shape)}; at most {LARGEST:,} voxels can be "
            "registered"
        )


def check_claim(size: int, path: Path, packed: bool, files: Sequence[Path] = ()) -> None:
    """Refuse a header that claims more bytes than the file can hold, compressed or not.

    Args:
        size: bytes of the numbers, as the header has it.
        path: the file.
        packed: whether its numbers are compressed, by deflate.
        files: those that hold the numbers, where it is not this one.

    Raises:
        ValueError: the file is smaller than that.

    Example: `check_claim(8 * 512 * 512, Path("a.nii"), packed=False)`
    """
    held = sum(file.stat().st_size for file in files or [path])
    if size > held * (_GZIP if packed else 1):
        raise ValueError(
            f"{path} is truncated or damaged: its header claims {size:,} bytes of numbers, the "
            f"file has {held:,}{' compressed' if packed else ''}"
        )


def check_coded(numbers: int, path: Path) -> None:
    """Refuse a picture's claim that no code could keep; those for blank ones know no bound.

    Args:
        numbers: of one byte or more, as the header has them.
        path: the file.

    Raises:
        ValueError: there are many more of them than the file has bytes.

    Example: `check_coded(512 * 512, Path("a.dcm"))`
    """
    if numbers > _FEW:
        check_claim(numbers, path, packed=True)
