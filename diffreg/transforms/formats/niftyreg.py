"""NiftyReg: 4 x 4 text = T itself, and fields, absolute or relative, all RAS mm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
_OTHERS: dict[float, str] = {
    2: "the control points of a spline",
    3: "a velocity field",
    4: "a velocity field",
    5: "a spline of velocities",
}


def _read_affine(path: Path, places: Places) -> Affine:
    return affine_of(path, matrix_of(path, text_of(path)))


def _affine_writer(what: str) -> Callable[[Path, Transform, Places], None]:
    def write(path: Path, transform: Transform, places: Places) -> None:
        write_text(path, in_text(one_affine(path, transform, what).matrix))

    return write


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
    _affine_writer("an affine file of NiftyReg"),
)
GREEDY = Adapter(
    "greedy, c3d, ITK-SNAP: 4 x 4 in text, RAS mm; greedy's warps are ITK's fields",
    "fixed to moving, RAS mm",
    _read_affine,
    _affine_writer("a matrix of greedy"),
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
