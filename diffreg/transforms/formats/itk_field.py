"""ITK's, ANTs' and greedy's fields in NIfTI, (X, Y, Z, 1, 3), and elastix's and Slicer's in
MetaImage and NRRD: LPS mm, 0 outside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from diffreg.data import _itk, _png
from diffreg.data.geometry import Image
from diffreg.data.grid import LPS, Grid
from diffreg.data.transforms import read_exact, write_displacement
from diffreg.transforms.formats import nifti
from diffreg.transforms.formats.adapter import Adapter, Places, dense
from diffreg.transforms.formats.itk import field_of
from diffreg.transforms.values import Field, Transform


def read_field(path: Path, places: Places) -> Field:
    """A field of ITK; every digit of it."""
    if path.name.lower().endswith(_itk.PLACED):
        return _of_itk(path)
    u, affine, _, components = read_exact(path)
    return field_of(path, u, affine, flat=components == 2)


def _of_itk(path: Path) -> Field:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    vectors, grid = _itk.read_vectors(path)
    if not np.all(np.isfinite(vectors)):
        raise ValueError(f"{path} holds numbers that are NaN or infinite")
    vectors = vectors[:, :, None] if vectors.ndim == 3 else vectors
    return nifti.field_from(vectors * np.diag(LPS)[: vectors.shape[-1]], grid)


def _write(path: Path, transform: Transform, places: Places) -> None:
    field = dense(path, transform, places)
    if not path.name.lower().endswith(_itk.WRITTEN):
        return write_displacement(path, field.displacement, _image(field.grid))
    vectors = nifti.vectors_from(field) * np.diag(LPS)[:3]
    if field.grid.is_flat:
        vectors = vectors[:, :, 0, :2]
    channels = np.moveaxis(vectors, -1, 0).reshape(-1, *field.grid.size)
    _itk.write_itk(path, channels.astype(np.float32), _image(field.grid))


def _image(grid: Grid) -> Image:
    """An image of zeros; a picture's grid, which its axes tell, stays one."""
    png = grid.is_flat and np.array_equal(grid.affine, _png.AFFINE)
    return Image(
        data=torch.zeros((), dtype=torch.float32).expand(1, 1, *grid.size),
        affine=grid.affine,
        path=Path(grid.name),
        kind="png" if png else "nifti",
        ndim_in_file=2 if grid.is_flat else 3,
    )


FIELD = Adapter(
    "ITK, ANTs, greedy: a field in LPS mm, NIfTI (X, Y, Z, 1, 3); elastix, Slicer: .mha, .nrrd",
    "fixed to moving, displacements in LPS mm",
    read_field,
    _write,
    (".nii", ".nii.gz", *_itk.WRITTEN),
)
