"""NIfTI files with a vector a voxel, whatever the tool: their header, numbers and grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffreg.data import _nifti
from diffreg.data._forms import affine_of
from diffreg.data._limits import check_size
from diffreg.data.grid import Grid
from diffreg.data.vectors import to_voxels, to_world
from diffreg.system.extras import require
from diffreg.transforms.values import Field

ENDINGS = _nifti.ENDINGS
# Intent codes: what FSL's fnirt and topup write that is no dense field lies among these.
_COEFFICIENTS = range(2007, 2020)


def opened(path: Path) -> Any:
    """The nibabel image of a file of vectors, its numbers not read yet.

    Raises:
        FileNotFoundError, ValueError: there is none, or it is no such file, or SPM's or fnirt's.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not path.name.lower().endswith(ENDINGS):
        raise ValueError(f"{path}: the name of a field's file must end in .nii.gz or .nii")
    file = _nifti.open_nifti(path)
    check_size(file.shape[:3], path)
    if intent_name(file).startswith("Mapping"):
        raise ValueError(
            f"{path} is a deformation of SPM (y_*.nii, intent name Mapping), which is not read; "
            "what is read is a field of ITK, NiftyReg, FSL or FreeSurfer: convert it to one"
        )
    if intent(file) in _COEFFICIENTS:
        raise ValueError(
            f"{path} holds coefficients of FSL (intent code {intent(file)}), no field: make one of "
            "them with fnirtfileutils --in=COEFFICIENTS --ref=FIXED --out=WARP, or convertwarp"
        )
    return file


def vectors_of(path: Path, file: Any) -> tuple[np.ndarray, Grid]:
    """What a file's voxels hold, (X, Y, Z, components) in float64, and where they lie.

    A volume of one plane is a slice, as everywhere.

    Raises:
        ValueError: not three numbers a voxel (two of a 2-D file), or numbers that are not finite.
    """
    shape, dtype = file.shape, file.get_data_dtype()
    components = shape[-1]
    five = len(shape) == 5 and shape[3] == 1
    flat = five and components == 2 and shape[2] == 1
    if not (((five or len(shape) == 4) and components == 3) or flat) or 0 in shape:
        raise ValueError(
            f"{path} is no field: its shape is {tuple(shape)}; (X, Y, Z, 1, 3) or (X, Y, Z, 3) is "
            "needed"
        )
    if dtype.kind not in "iuf":
        raise ValueError(f"{path} is no field: it holds {dtype} values")
    grid = Grid(shape[: 2 if shape[2] == 1 else 3], affine_of(file), str(path), flat)
    values = _nifti.read_values(file, path).astype(np.float64)
    if not np.all(np.isfinite(values)):
        raise ValueError(f"{path} holds numbers that are NaN or infinite")
    return values.reshape(*shape[:3], components), grid


def positions(grid: Grid) -> np.ndarray:
    """(X, Y, Z, 3), where the voxels of a grid lie, RAS mm."""
    return voxels(grid) @ grid.in_space[:3, :3].T + grid.in_space[:3, 3]


def voxels(grid: Grid) -> np.ndarray:
    """(X, Y, Z, 3), the voxels of a grid; a slice has one plane."""
    return np.moveaxis(np.indices((*grid.size, 1)[:3], dtype=np.float64), 0, -1)


def field_from(vectors: np.ndarray, grid: Grid) -> Field:
    """A field of displacements (X, Y, Z, components), RAS mm.

    Raises:
        ValueError: a slice's lead out of its plane, or they are infinite in voxels.
    """
    plane = vectors[:, :, 0] if grid.dimensions == 2 else vectors
    u = to_voxels(plane, grid.axes, grid.name)
    if not np.all(np.isfinite(u)):
        raise ValueError(f"{grid.name} holds displacements that are infinite in voxels")
    return Field(torch.from_numpy(np.ascontiguousarray(u))[None], grid)


def vectors_from(field: Field) -> np.ndarray:
    """(X, Y, Z, 3), the displacements of a field, RAS mm, float64."""
    u = field.displacement[0].detach().cpu().numpy()
    vectors = to_world(u, field.grid.axes, np.float64)
    return vectors[:, :, None] if field.grid.dimensions == 2 else vectors


def save(
    path: Path,
    vectors: np.ndarray,
    grid: Grid,
    code: int,
    name: str = "",
    p1: float = 0.0,
    extension: bytes = b"",
) -> None:
    """Write vectors in float32 on a grid.

    Args:
        path: .nii or .nii.gz.
        vectors: in the axes of the file.
        grid: where they lie.
        code, name, p1: the intent.
        extension: FreeSurfer's, b"": none.
    """
    nib = require("nibabel", "NIfTI files")
    stored = vectors.astype(np.float32)
    if not np.all(np.isfinite(stored)):
        raise ValueError(f"{path}: the transform has numbers that are infinite in float32")
    file = nib.Nifti1Image(stored, None)
    file.set_qform(grid.in_space, 1)
    file.set_sform(grid.in_space, 1)
    file.header.set_intent(code, name=name, allow_unknown=True)
    file.header["intent_p1"] = p1
    file.header.set_xyzt_units("mm")
    if extension:
        file.header.extensions.append(nib.nifti1.Nifti1Extension(14, extension))
    _nifti.save(path, file)


def intent(file: Any) -> int:
    """The intent code."""
    return int(file.header["intent_code"])


def intent_name(file: Any) -> str:
    """The intent name."""
    return bytes(file.header["intent_name"].item()).decode("latin-1").rstrip("\0 ")
