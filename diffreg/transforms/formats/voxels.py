"""Learn2Reg and VoxelMorph: displacements in fixed voxels, component k along axis k."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from diffreg.data import _npz
from diffreg.data.grid import Grid
from diffreg.system.atomic import replacing
from diffreg.transforms.formats import nifti
from diffreg.transforms.formats.adapter import Adapter, Places, check_grid, check_size, dense
from diffreg.transforms.values import Field, Transform

_WHY = "its numbers are voxels of it"


def _read(path: Path, places: Places) -> Field:
    fixed = places.of_fixed(path, _WHY).grid
    u = _npz.read_field(_array(path), fixed.size) if is_npz(path) else read_nifti(path, fixed)
    check_size(path, u.shape[1:], fixed)
    u = np.ascontiguousarray(u, dtype=np.float64)
    if not np.all(np.isfinite(u)):
        raise ValueError(f"{path} holds displacements that are NaN or infinite")
    return Field(torch.from_numpy(u)[None], replace(fixed, name=str(path)))


def _array(path: Path) -> Path:
    """VoxelMorph's array where none is named."""
    file, array = _npz.split_array(path)
    return Path(f"{file}:vol") if array is None and holds_vol(path) else path


def is_npz(path: Path) -> bool:
    """Whether a name is that of an npz file, or of an array in one."""
    return _npz.split_array(path)[0].name.lower().endswith(_npz.ENDING)


def holds_vol(path: Path) -> bool:
    """Whether an npz file's array is called as VoxelMorph does it."""
    file, array = _npz.split_array(path)
    return array == "vol" or (array is None and "vol" in _npz.names_of(file))


def read_nifti(path: Path, fixed: Grid | None = None) -> np.ndarray:
    """The displacement (D, *S) of Learn2Reg's NIfTI file.

    Raises:
        ValueError: another file, a slice's that leaves its plane, or one that lies elsewhere than
            the fixed image; a file whose affine is the identity says nothing of its place.
    """
    values, grid = nifti.vectors_of(path, nifti.opened(path))
    if fixed is not None and not np.allclose(np.abs(grid.affine), np.eye(4)):
        check_grid(path, grid, fixed)
    if grid.dimensions == 2:
        if values.shape[-1] == 3 and np.abs(values[..., 2]).max() > 1e-3:
            raise ValueError(f"{path} moves voxels of a slice out of its plane")
        values = values[:, :, 0, :2]
    return np.moveaxis(values, -1, 0)


def _write_npz(path: Path, u: np.ndarray, key: str) -> None:
    with replacing(path) as temporary:
        np.savez_compressed(temporary, allow_pickle=False, **{key: np.moveaxis(u, 0, -1)})


def _writer(key: str) -> Callable[[Path, Transform, Places], None]:
    def write(path: Path, transform: Transform, places: Places) -> None:
        field = dense(path, transform, places)
        u = field.displacement[0].detach().cpu().numpy().astype(np.float32)
        if is_npz(path):
            _write_npz(path, u, key)
            return
        if field.grid.dimensions == 2:
            u = np.concatenate([u, np.zeros_like(u[:1])])[..., None]
        nifti.save(path, np.moveaxis(u, 0, -1), field.grid, code=0)

    return write


LEARN2REG = Adapter(
    "Learn2Reg: displacements in voxels, npz or NIfTI (X, Y, Z, 3); needs the fixed image",
    "fixed to moving, voxels of the fixed image",
    _read,
    _writer("arr_0"),
    (_npz.ENDING, *nifti.ENDINGS),
)
VOXELMORPH = Adapter(
    "VoxelMorph: displacements in voxels, npz with `vol`; needs the fixed image",
    "fixed to moving, voxels of the fixed image",
    _read,
    _writer("vol"),
    (_npz.ENDING,),
)
