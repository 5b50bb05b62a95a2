"""AFNI, read only, unverified: 12 numbers row by row, and warps; base to source in LPS mm."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from diffreg.data.grid import LPS
from diffreg.system.files import FileWarning
from diffreg.transforms.formats import nifti
from diffreg.transforms.formats.adapter import Adapter, Places, affine_of, numbers_of, text_of
from diffreg.transforms.values import Affine, Field

_ECODE = 4


def _read_affine(path: Path, places: Places) -> Affine:
    lines = [line.split("#")[0] for line in text_of(path).splitlines()]
    numbers = numbers_of(path, " ".join(lines), "numbers")
    if numbers.size != 12:
        raise ValueError(
            f"{path} holds {numbers.size} numbers; the 12 of one map are needed, and of a series "
            "the row of one volume, in a file of its own"
        )
    _warn(path)
    matrix = np.eye(4)
    matrix[:3] = numbers.reshape(3, 4)
    return affine_of(path, LPS @ matrix @ LPS)


def _read_warp(path: Path, places: Places) -> Field:
    vectors, grid = nifti.vectors_of(path, nifti.opened(path))
    _warn(path)
    return nifti.field_from(vectors * np.diag(LPS)[: vectors.shape[-1]], grid)


def is_of_afni(file: Any) -> bool:
    """Whether a NIfTI header has AFNI's extension."""
    return _ECODE in file.header.extensions.get_codes()


def _warn(path: Path) -> None:
    message = (
        f"{path}: AFNI's transforms are read by its documentation alone, unverified; the obliquity "
        "of oblique images, which AFNI drops, is not accounted for"
    )
    warnings.warn(message, FileWarning, stacklevel=2)


AFFINE = Adapter(
    "AFNI: .aff12.1D, read only, unverified; plumb images",
    "fixed to moving, LPS mm, unverified",
    _read_affine,
)
WARP = Adapter(
    "AFNI: a warp of 3dQwarp in NIfTI, read only, unverified",
    "fixed to moving, displacements in LPS mm, unverified",
    _read_warp,
)
