"""Displacement files as ITK and ANTs read them: 5-D NIfTI, vector intent 1007, LPS, mm.

    d(p) = F R_f u(p)      R_f the linear part of the fixed affine, F = diag(-1, -1, 1)

A point x of the fixed image lies at x + d(x) in the moving image. The header's unit of length is
the grid's alone: vectors are in mm, as ITK has it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffreg.data import _nifti, _npz, _png
from diffreg.data._forms import affine_of, tell_place
from diffreg.data._limits import check_size
from diffreg.data.geometry import Image
from diffreg.data.grid import check_affine
from diffreg.data.vectors import PLANES, laid_out, taken_up
from diffreg.system.extras import require

_VECTOR = 1007
# Says in the header that the grid is a PNG file's, whose arrays are (y, x) here and (x, y) in ITK.
_PNG_GRID = "PNG grid"
# The same of a volume of as many planes as a slice has in its file, which may be alike.
_VOLUME = "volume"
# How the intent names of other tools' 5-D files begin.
_TOOLS = {"NREG_": "a transformation of NiftyReg", "Mapping": "a deformation of SPM"}


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
    grid = fixed.grid
    name = _VOLUME if len(grid.size) == 3 and grid.size[2] == PLANES else ""
    if fixed.kind == "png":
        u, name = u[::-1].transpose(0, 2, 1), _PNG_GRID
        grid = replace(grid, size=grid.size[::-1], affine=grid.affine[:, [1, 0, 2, 3]])
    laid = laid_out(u, grid)
    _write(path, laid.vectors[:, :, :, None], laid.affine, name)


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
    exact, affine, kind, components = read_exact(path)
    with np.errstate(all="ignore"):  # of numbers that are not in float32
        u = exact.astype(np.float32)
    if not np.all(np.isfinite(u)):
        raise ValueError(f"{path} holds displacements that are infinite in float32")
    displacement = torch.from_numpy(np.ascontiguousarray(u))[None]
    grid = Image(
        data=torch.zeros((), dtype=torch.float32).expand(1, 1, *u.shape[1:]),
        affine=affine,
        path=path,
        kind=kind,
        ndim_in_file=components,
    )
    return displacement, grid


def read_exact(path: Path) -> tuple[np.ndarray, np.ndarray, str, int]:
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
    u, affine = taken_up(vectors, affine, str(path), _intent_name(file) == _VOLUME)
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
        field = read_exact(Path(path))[0]
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


def _write(path: Path, vectors: np.ndarray, affine: np.ndarray, name: str) -> None:
    """Write (X, Y, Z, 1, components) vectors, LPS, mm."""
    nib = require("nibabel", "NIfTI files")
    file = nib.Nifti1Image(vectors, None)
    file.set_qform(affine, 1)
    file.set_sform(affine, 1)
    file.header.set_intent(_VECTOR, name=name)
    file.header.set_xyzt_units("mm")
    _nifti.save(path, file)


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
    scaled = file.header["scl_slope"] not in (0, 1) and np.isfinite(file.header["scl_slope"])
    if file.get_data_dtype().kind != "f" and not (scaled and file.get_data_dtype().kind in "iu"):
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
