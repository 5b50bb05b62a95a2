"""Displacement files as ITK and ANTs read them: 5-D NIfTI, vector intent 1007, LPS, mm.

    d(p) = F R_f u(p)      R_f the linear part of the fixed affine, F = diag(-1, -1, 1)

A point x of the fixed image lies at x + d(x) in the moving image. The header's unit of length is
the grid's alone: vectors are in mm, as ITK has it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffreg._extras import require
from diffreg._files import replacing
from diffreg.data import _nifti, _npz, _png
from diffreg.data._forms import affine_of, check_right_angles, tell_place, with_upright_slices
from diffreg.data._limits import check_size
from diffreg.data.geometry import Image
from diffreg.data.grid import check_affine

_VECTOR = 1007
_LPS = np.array([-1.0, -1.0, 1.0])
# Says in the header that the grid is a PNG file's, whose arrays are (y, x) here and (x, y) in ITK.
_PNG_GRID = "PNG grid"
# The same of a volume of as many planes as a slice has in its file, which may be alike.
_VOLUME = "volume"
# A slice's plane is written so many times: ITK reads a single one as a 2-D image.
_PLANES = 3
# How the intent names of other tools' 5-D files begin.
_TOOLS = {"NREG_": "a transformation of NiftyReg", "Mapping": "a deformation of SPM"}
# How far, in voxels, a field may leave its plane by rounding alone.
_RISE = 1e-3


def write_displacement(path: str | Path, displacement: Tensor, fixed: Image) -> None:
    """Write a displacement so that ITK resamples with it as diffreg does.

    A volume gives (X, Y, Z, 1, 3). A 2-D file, NIfTI or PNG, gives (X, Y, 1, 1, 2), which ITK reads
    as a 2-D field. A slice or an image (X, Y, 1) lies anywhere in space and gives (X, Y, 3, 1, 3),
    its plane three times, the second one in its place: of (X, Y, 1, 1, 3) ITK makes a 2-D image of
    3-vectors, by which ANTs and greedy displace nothing, silently.

    Args:
        path: .nii.gz or .nii; it appears whole or not at all.
        displacement: (1, D, *S) in fixed voxels, array axes.
        fixed: the image on whose grid it lives.

    Raises:
        ValueError: the name or the shape is wrong, the displacement is not finite, or the grid's
            axes are not at right angles.

    Source: the conventions of itk::DisplacementFieldTransform and of ANTs' warp files.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image
        >>> from diffreg.data.transforms import read_displacement, write_displacement
        >>> grid = Image(torch.zeros(1, 1, 3, 2), np.diag([2.0, 2.0, 2.0, 1.0]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_displacement(folder + "/d.nii.gz", torch.ones(1, 2, 3, 2), grid)
        ...     read_displacement(folder + "/d.nii.gz")[0].sum().item()
        12.0
    """
    path = Path(path)
    check_displacement_ending(path)
    expected = (1, len(fixed.shape), *fixed.shape)
    if tuple(displacement.shape) != expected:
        raise ValueError(
            f"displacement must be {expected} on the grid of {fixed.name}, "
            f"got {tuple(displacement.shape)}"
        )
    u = displacement[0].detach().cpu().numpy()
    if not np.all(np.isfinite(u)):
        raise ValueError("displacement holds values that are NaN or infinite")
    check_right_angles(fixed.grid)
    affine, name = fixed.affine, ""
    if len(fixed.shape) == 3:
        vectors = _to_world(u, affine)[:, :, :, None]
        name = _VOLUME if fixed.shape[2] == _PLANES else ""
    else:
        affine = with_upright_slices(affine)
        if fixed.kind == "png":
            u, affine, name = u[::-1].transpose(0, 2, 1), affine[:, [1, 0, 2, 3]], _PNG_GRID
        vectors = _to_world(u, affine)[:, :, None, None]
        if fixed.is_flat:
            vectors = vectors[..., :2]
        else:
            vectors, affine = np.repeat(vectors, _PLANES, axis=2), _moved(affine, -1)
    _write(path, vectors, affine, name)


def read_displacement(path: str | Path) -> tuple[Tensor, Image]:
    """Read a displacement file of diffreg, ANTs or ITK, with the grid on which it lives.

    Args:
        path: a NIfTI file with vector intent, (X, Y, Z, 1, 3); of a slice (X, Y, 1, 1, 2), or
            (X, Y, 3, 1, 3) with one plane three times, or (X, Y, 1, 1, 3).

    Returns:
        The displacement (1, D, *S), float32, fixed voxels, array axes; and the fixed grid, an Image
        whose intensities are 0.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no displacement file; the message says why.

    Example: see write_displacement.
    """
    path = Path(path)
    exact, affine, kind, components = _read(path)
    with np.errstate(all="ignore"):  # of numbers that are not in float32
        u = exact.astype(np.float32)
    if not np.all(np.isfinite(u)):
        raise ValueError(f"{path} holds displacements that are infinite in float32")
    displacement = torch.from_numpy(np.ascontiguousarray(u))[None]
    grid = Image(
        data=torch.zeros(()).expand(1, 1, *u.shape[1:]),
        affine=affine,
        path=path,
        kind=kind,
        ndim_in_file=components,
    )
    return displacement, grid


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, str, int]:
    """What a file holds, (D, *S) in float64 voxels; its affine, kind and components."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    check_displacement_ending(path)
    file = _nifti.open_nifti(path)
    _check_layout(path, file)
    affine = affine_of(file)
    check_affine(affine, str(path))
    components = file.shape[4]
    if components == 2:
        affine[2, :2] = 0  # a 2-D file has no third axis, whatever its header says
    vectors = _nifti.read_values(file, path)[:, :, :, 0]
    if _is_slice(file, vectors):
        affine = _moved(affine, 1) if vectors.shape[2] == _PLANES else affine
        vectors = vectors[:, :, 0]
    with np.errstate(all="ignore"):  # of numbers that are not finite
        vectors = vectors.astype(np.float64)
        if not np.all(np.isfinite(vectors)):
            raise ValueError(f"{path} holds displacements that are NaN or infinite")
        u = _to_voxels(vectors, affine, path)
    if not np.all(np.isfinite(u)):
        raise ValueError(f"{path} holds displacements that are infinite in voxels")
    tell_place(path, file.header)
    kind = "nifti"
    if _intent_name(file) == _PNG_GRID:
        kind, u, affine = "png", u[::-1].transpose(0, 2, 1), _png.AFFINE.copy()
    return u, affine, kind, components


def read_field(path: str | Path) -> Tensor:
    """A displacement in voxels of its grid, for those who need no place in space.

    Args:
        path: what `read_displacement` reads; or an array in voxels of an npz file,
            `file.npz:array`, (D, *S), (1, D, *S) or (*S, D), as VoxelMorph's users keep them; an
            array whose first and last axis are D is taken as (D, *S).

    Returns:
        (1, D, *S), float64: every value as it is stored, of NIfTI files from their millimetres.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no displacement.

    Example: `fold_certificate(read_field("flow.npz:vol"))`
    """
    if _npz.split_array(path)[0].name.lower().endswith(_npz.ENDING):
        field = _npz.read_field(path)
    elif Path(path).name.lower().endswith(_nifti.ENDINGS):
        field = _read(Path(path))[0]
    else:
        raise ValueError(f"{path}: the name of a field's file must end in .nii.gz, .nii or .npz")
    return torch.from_numpy(np.ascontiguousarray(field, dtype=np.float64))[None]


def check_displacement_ending(path: str | Path) -> None:
    """Refuse a name that is not a NIfTI file's.

    Args:
        path: the displacement file.

    Raises:
        ValueError: the name ends in neither .nii nor .nii.gz.

    Example:
        >>> from diffreg.data.transforms import check_displacement_ending
        >>> check_displacement_ending("displacement.nii.gz")
    """
    if not Path(path).name.lower().endswith(_nifti.ENDINGS):
        raise ValueError(f"{path}: the name of a displacement file must end in .nii.gz or .nii")


def _to_world(u: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """A displacement (D, *S) in voxels -> vectors (*S, 3), LPS, mm, float32."""
    axes = _LPS[:, None] * affine[:3, : len(u)]
    vectors = np.empty((*u.shape[1:], 3), np.float32)
    for row in range(u.shape[1]):  # in double, which for all of a volume would be much
        vectors[row] = np.einsum("wk,k...->...w", axes, u[:, row].astype(np.float64))
    return vectors


def _write(path: Path, vectors: np.ndarray, affine: np.ndarray, name: str) -> None:
    """Write (X, Y, Z, 1, components) vectors, LPS, mm."""
    nib = require("nibabel", "NIfTI files")
    file = nib.Nifti1Image(vectors, None)
    file.set_qform(affine, 1)
    file.set_sform(affine, 1)
    file.header.set_intent(_VECTOR, name=name)
    file.header.set_xyzt_units("mm")
    with replacing(path) as temporary:
        nib.save(file, temporary)


def _check_layout(path: Path, file: Any) -> None:
    """Refuse what is not a field of vectors."""
    shape, intent = file.shape, int(file.header["intent_code"])
    _check_tool(path, file)
    if len(shape) != 5 or shape[4] not in (2, 3):
        raise ValueError(
            f"{path} is no displacement file: its shape is {shape}; ITK's (X, Y, Z, 1, 3), or of a "
            "2-D image (X, Y, 1, 1, 2), is needed"
        )
    if shape[3] > 1 or (shape[2] > 1 and shape[4] != 3):
        raise ValueError(
            f"{path} is no displacement file: its shape is {shape}; one vector of as many "
            "components as there are axes is needed for each voxel"
        )
    check_size(shape[:3], path)
    if 0 in shape:
        raise ValueError(f"{path} is empty: its shape is {shape}")
    if intent != _VECTOR:
        raise ValueError(
            f"{path} is no displacement file: its intent code is {intent}, not {_VECTOR} (vector)"
        )
    if file.get_data_dtype().kind != "f":
        raise ValueError(f"{path} is no displacement file: it holds {file.get_data_dtype()} values")


def _check_tool(path: Path, file: Any) -> None:
    """Refuse the files of other tools, whose vectors are no displacements in LPS mm."""
    name, shape = _intent_name(file), file.shape
    for start, tool in _TOOLS.items():
        if name.startswith(start):
            raise ValueError(
                f"{path} is {tool} (intent name {name}), whose vectors are not the displacements "
                "in LPS mm of ITK's files; convert it to one of those"
            )
    if len(shape) == 4 and shape[3] == 3:
        raise ValueError(
            f"{path} is no displacement file of ITK: its shape is {shape}, as FSL's and "
            "FreeSurfer's warps have it, whose vectors are in other coordinates; convert it to "
            "(X, Y, Z, 1, 3), or of a 2-D image (X, Y, 1, 1, 2)"
        )


def _intent_name(file: Any) -> str:
    return bytes(file.header["intent_name"].item()).decode("latin-1").rstrip("\0 ")


def _is_slice(file: Any, vectors: np.ndarray) -> bool:
    """Whether vectors (X, Y, Z, components) are of one plane, which may be there three times."""
    planes = vectors.shape[2]
    if planes == 1 or planes != _PLANES or _intent_name(file) == _VOLUME:
        return planes == 1
    return np.array_equal(vectors, np.repeat(vectors[:, :, :1], _PLANES, 2), equal_nan=True)


def _moved(affine: np.ndarray, slices: int) -> np.ndarray:
    """The affine of the slice that lies so many further on, (4, 4)."""
    moved = affine.copy()
    moved[:3, 3] += slices * affine[:3, 2]
    return moved


def _to_voxels(vectors: np.ndarray, affine: np.ndarray, path: Path) -> np.ndarray:
    """World vectors (*S, components), LPS -> displacement (D, *S) in voxels."""
    components, dimensions = vectors.shape[-1], vectors.ndim - 1
    axes = _LPS[:components, None] * affine[:components, :dimensions]
    if np.linalg.matrix_rank(axes) < dimensions:
        raise ValueError(f"{path}: two components cannot describe a plane that is not x-y")
    u = np.einsum("kw,...w->k...", np.linalg.pinv(axes), vectors)
    if dimensions == 3:
        return u
    rise = np.abs(np.einsum("wk,k...->...w", axes, u) - vectors).max()
    if rise > _RISE * np.linalg.norm(axes, axis=0).min():
        raise ValueError(f"{path} moves voxels out of their plane, by up to {rise:.3g} mm")
    return u
