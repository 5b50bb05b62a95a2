"""Where a NIfTI header puts its voxels: the unit of length, sform and qform, and what ITK takes.

diffreg takes the sform where there is one. ITK takes it only where its axes are at right angles and
it is a scanner's or the only form; then its directions and the voxel sizes of pixdim.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from diffreg.data.grid import Grid
from diffreg.system.extras import require
from diffreg.system.files import FileWarning

# Millimetres in a metre and a micrometre, by their codes in xyzt_units.
_LENGTHS = {1: 1000.0, 3: 0.001}
_SCANNER = 1
# How far axes may be from right angles for ITK: the cosine.
_SKEW = 1e-4
# How far apart, in voxels, two forms may put a voxel and still be taken for one.
_APART = 0.01


def unit_of(header: Any) -> float:
    """Millimetres in a header's unit of length; an unknown unit counts as mm, as ITK has it."""
    return _LENGTHS.get(int(header["xyzt_units"]) & 7, 1.0)


def affine_of(file: Any) -> np.ndarray:
    """(4, 4), voxel -> RAS mm: the sform, else the qform, else the voxel sizes alone.

    With neither, the first voxel is the origin and the axes run along L, P and S, as ITK has it, so
    that ITK resamples such files with our displacement as we do.
    """
    if "xyzt_units" not in file.header:  # MGH: always in mm
        return np.array(file.affine, dtype=np.float64)
    if any(codes_of(file.header)):
        return in_unit(np.array(file.affine, dtype=np.float64), unit_of(file.header))
    zooms = np.ones(3)
    zooms[: min(3, len(file.shape))] = file.header.get_zooms()[:3]
    return in_unit(np.diag([-zooms[0], -zooms[1], zooms[2], 1.0]), unit_of(file.header))


def codes_of(header: Any) -> tuple[int, int]:
    """qform_code and sform_code."""
    return int(header["qform_code"]), int(header["sform_code"])


def in_unit(affine: np.ndarray, unit: float) -> np.ndarray:
    """An affine whose lengths are multiplied by `unit`, (4, 4)."""
    with np.errstate(all="ignore"):  # of a damaged header
        return affine * np.array([[unit], [unit], [unit], [1.0]])


def skew_of(axes: np.ndarray) -> float:
    """How far the axes (3, K) are from right angles: the largest cosine between two of them."""
    axes = axes / np.linalg.norm(axes, axis=0)
    return float(np.abs(axes.T @ axes - np.eye(axes.shape[1])).max())


def check_right_angles(grid: Grid) -> None:
    """Refuse a grid whose axes are skewed: no displacement on it has a place in ITK.

    Args:
        grid: the fixed image's; of a slice the axes in its plane count.

    Raises:
        ValueError: the axes are further from right angles than ITK allows.
    """
    skew = skew_of(grid.axes)
    if skew > _SKEW:
        where = "in its plane" if grid.dimensions == 2 else "to each other"
        raise ValueError(
            f"{grid.name}: its axes stand at {np.degrees(np.arccos(skew)):.2f} degrees {where}; no "
            "displacement on such a grid has a place in ITK: resample it to right angles first"
        )


def with_upright_slices(affine: np.ndarray) -> np.ndarray:
    """The same plane, (4, 4); slices that slant, as behind a tilted gantry, are stacked upright.

    ITK holds no other grid. What lies between two slices keeps its thickness.
    """
    if not skew_of(affine[:3, :3]) > _SKEW:
        return affine
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    normal /= np.linalg.norm(normal)
    upright = affine.copy()
    upright[:3, 2] = normal * (normal @ affine[:3, 2])
    return upright


@np.errstate(all="ignore")  # of a damaged header
def tell_place(path: Path, header: Any) -> None:
    """Warn in one line of a header that puts its voxels at two places, or that ITK refuses.

    Args:
        path: the file.
        header: its nibabel header, whose affine is no singular one.
    """
    nib = require("nibabel", "NIfTI files")
    if not codes_of(header)[1]:
        return
    try:
        sform, qform = header.get_sform(), header.get_qform()
    except (ValueError, nib.spatialimages.HeaderDataError):  # the qform is damaged
        return
    chosen = _of_itk(header, sform, qform)
    if chosen is None:
        _warn(f"{path}: its sform is skewed, as no grid of ITK is: ITK and ANTs refuse the file")
        return
    corners = _corners(header.get_data_shape())
    tolerance = _APART * np.linalg.norm(sform[:3, :2], axis=0).min()

    def apart(other: np.ndarray) -> float:
        return float(np.linalg.norm((sform - other)[:3] @ corners, axis=0).max())

    in_itk = apart(_with_sizes(chosen, header))
    if chosen is qform:
        itk = "ITK the qform"
    else:
        itk = "ITK its directions and pixdim" if in_itk > tolerance else "and ITK as well"
    other, far = "qform", apart(qform)
    if not codes_of(header)[0] or not far > tolerance:
        other, far = "voxel sizes (pixdim)", in_itk
    if far > tolerance:
        _warn(
            f"{path}: its sform and its {other} put a voxel up to {far * unit_of(header):.3g} mm "
            f"apart; diffreg takes the sform, {itk}"
        )


def _of_itk(header: Any, sform: np.ndarray, qform: np.ndarray) -> np.ndarray | None:
    """The form that ITK takes; None where it refuses the file.

    Source: NiftiImageIO::SetImageIOOrientationFromNIfTI of ITK 5.4.
    """
    qform_code, sform_code = codes_of(header)
    upright = not skew_of(sform[:3, :3]) > _SKEW
    if upright and (sform_code == _SCANNER or not qform_code):
        return sform
    return qform if qform_code else None


def _with_sizes(affine: np.ndarray, header: Any) -> np.ndarray:
    """The directions of an affine with the voxel sizes of pixdim, as ITK has them, (4, 4)."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    sizes = np.abs(header["pixdim"][1:4].astype(np.float64))
    sized = affine.astype(np.float64)
    sized[:3, :3] *= sizes / np.where(lengths > 0, lengths, 1.0)
    return sized


def _corners(shape: tuple[int, ...]) -> np.ndarray:
    """The first and last voxels along the axes of a volume, (4, 8)."""
    ends = [(0, size - 1) for size in (*shape, 1, 1)[:3]]
    return np.array([[i, j, k, 1] for i in ends[0] for j in ends[1] for k in ends[2]]).T


def _warn(message: str) -> None:
    warnings.warn(message, FileWarning, stacklevel=2)
