"""Where an image lies, without reading its numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffreg.data import _nifti
from diffreg.data._forms import affine_of, tell_place
from diffreg.data._kinds import existing, kind_of
from diffreg.data.geometry import Image
from diffreg.data.given import as_image
from diffreg.data.grid import Grid, check_affine


def place_of(name: str, given: Any) -> Image:
    """An image's place; of NIfTI and MGH files only the header is read, of series the volume's.

    Args:
        name: what messages call it.
        given: a Grid, or as `diffreg.image` takes it.

    Returns:
        An image on that grid; its intensities are those of the file or 0.

    Raises:
        FileNotFoundError, TypeError, ValueError: nothing that has a place.

    Example:
        >>> import numpy as np
        >>> from diffreg.data.grid import Grid
        >>> from diffreg.transforms.places import place_of
        >>> place_of("fixed", Grid((4, 5, 6), np.eye(4))).shape
        (4, 5, 6)
    """
    if isinstance(given, Grid):
        axes = 2 if given.is_flat else 3
        return Image(nothing(given.size), given.affine, ndim_in_file=axes)
    if isinstance(given, str | Path) and kind_of(existing(given)) == "nifti":
        file = _nifti.open_nifti(existing(given))
        image = of_nibabel(file, existing(given))
        if image.header is not None:
            tell_place(existing(given), file.header)
        return image
    if hasattr(given, "dataobj") and hasattr(given, "header"):
        return of_nibabel(given, Path(name))
    return as_image(name, given)


def of_nibabel(file: Any, path: Path) -> Image:
    """The place of the volume, or of each volume, of a nibabel image."""
    affine = affine_of(file)
    check_affine(affine, str(path))
    shape = tuple(int(n) for n in file.shape)
    size = shape[:2] if shape[2:3] == (1,) else shape[:3]
    if len(size) < 2 or 0 in size:
        raise ValueError(f"{path} is not an image: its shape is {shape}")
    nifti = "xyzt_units" in file.header
    header = file.header.copy() if nifti else None
    if header is not None and len(file.shape) > 3:  # of a series, each volume's
        header.set_data_shape(file.shape[:3])
    return Image(
        nothing(size),
        affine,
        path=path,
        header=header,
        ndim_in_file=min(len(file.shape), 3),
        dtype=np.float32,
    )


def nothing(size: tuple[int, ...]) -> torch.Tensor:
    """Zeros (1, 1, *S) that take no memory."""
    return torch.zeros((), dtype=torch.float32).expand(1, 1, *size)
