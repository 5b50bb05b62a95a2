"""NiftyReg and greedy: text = T itself; NiftyReg's fields, absolute or relative; all RAS mm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from diffreg.transforms.formats import nifti
from diffreg.transforms.formats.adapter import (
    Adapter,
    Places,
    affine_of,
    dense,
    in_text,
    matrix_of,
    one_affine,
    text_of,
    write_text,
)
from diffreg.transforms.values import Affine, Field, Transform

_VECTOR, NAME = 1007, "NREG_TRANS"
DEFORMATION, DISPLACEMENT = 0, 1
_PLANE = np.ix_([0, 1, 3], [0, 1, 3])  # x, y and the shift, of a map between 2-D images
_OTHERS: dict[float, str] = {
    2: "the control points of a spline",
    3: "a velocity field",
    4: "a velocity field",
    5: "a spline of velocities",
}


def _read_affine(path: Path, places: Places) -> Affine:
    return affine_of(path, matrix_of(path, text_of(path)))


def _write_affine(path: Path, transform: Transform, places: Places) -> None:
    affine = one_affine(path, transform, "an affine file of NiftyReg")
    write_text(path, in_text(affine.matrix))


def _read_greedy(path: Path, places: Places) -> Affine:
    matrix = matrix_of(path, text_of(path), axes=(3, 2))
    if len(matrix) == 4:
        return affine_of(path, matrix)
    whole = np.eye(4)
    whole[_PLANE] = matrix
    return affine_of(path, whole, is_flat=True)


def _write_greedy(path: Path, transform: Transform, places: Places) -> None:
    """Between 2-D images 3 x 3: of a 4 x 4 file greedy -d 2 takes the first nine numbers."""
    affine = one_affine(path, transform, "a matrix of greedy")
    write_text(path, in_text(affine.matrix[_PLANE] if affine.is_flat else affine.matrix))


def _read(path: Path, places: Places) -> Field:
    file = nifti.opened(path)
    kind = float(file.header["intent_p1"])
    if not nifti.intent_name(file).startswith(NAME):
        raise ValueError(f"{path} is no field of NiftyReg: its intent name is not {NAME}")
    if kind not in (DEFORMATION, DISPLACEMENT):
        raise ValueError(
            f"{path} holds {_OTHERS.get(kind, 'another kind of transform')} of NiftyReg (intent_p1 "
            f"{kind:g}), no field: make one of it with reg_transform -ref FIXED -def IN OUT"
        )
    values, grid = nifti.vectors_of(path, file)
    if kind == DEFORMATION:
        values = values - nifti.positions(grid)[..., : values.shape[-1]]
    return nifti.field_from(values, grid)


def _writer(kind: int) -> Callable[[Path, Transform, Places], None]:
    def write(path: Path, transform: Transform, places: Places) -> None:
        field = dense(path, transform, places)
        values = nifti.vectors_from(field)
        if kind == DEFORMATION:
            values += nifti.positions(field.grid)
        values = values[..., : 2 if field.is_flat else 3]
        nifti.save(path, values[:, :, :, None], field.grid, _VECTOR, NAME, kind)

    return write


AFFINE = Adapter(
    "NiftyReg: reg_aladin's 4 x 4 in text, RAS mm",
    "fixed to moving, RAS mm",
    _read_affine,
    _write_affine,
)
GREEDY = Adapter(
    "greedy, c3d, ITK-SNAP: 4 x 4, in 2-D 3 x 3, in text, RAS mm; greedy's warps are ITK's fields",
    "fixed to moving, RAS mm",
    _read_greedy,
    _write_greedy,
)
DEFORMATIONS = Adapter(
    "NiftyReg: a field of positions in RAS mm",
    "fixed to moving, positions in RAS mm",
    _read,
    _writer(DEFORMATION),
    nifti.ENDINGS,
)
DISPLACEMENTS = Adapter(
    "NiftyReg: a field of displacements in RAS mm",
    "fixed to moving, displacements in RAS mm",
    _read,
    _writer(DISPLACEMENT),
    nifti.ENDINGS,
)
