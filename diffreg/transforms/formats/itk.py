"""ITK's transforms as its files store them: a type, parameters and fixed parameters, in LPS mm.

In a composite the one that is stored last is applied first to points.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from diffreg.data._forms import check_right_angles
from diffreg.data._limits import check_size
from diffreg.data.grid import LPS, Grid, check_affine
from diffreg.data.vectors import laid_out, to_voxels
from diffreg.transforms.formats.itk_linear import linear_of
from diffreg.transforms.values import Affine, Field, Transform, compose

COMPOSITE = "CompositeTransform"
_FIELDS = (
    "DisplacementFieldTransform",
    "GaussianSmoothingOnUpdateDisplacementFieldTransform",
    "BSplineSmoothingOnUpdateDisplacementFieldTransform",
)
_TYPE = re.compile(r"(\w+?)_(?:double|float)_([23])_\2")


class Stored(NamedTuple):
    """A transform as it is stored.

    Args:
        type: such as "AffineTransform_double_3_3".
        numbers: (P,), the parameters.
        fixed: (Q,), the fixed parameters.
    """

    type: str
    numbers: np.ndarray
    fixed: np.ndarray


def transform_of(path: Path, stored: list[Stored]) -> Transform:
    """What a file's transforms are together.

    Args:
        path: the file, for messages.
        stored: in its order.

    Raises:
        ValueError: none, several that no composite holds together, or one that is not read.
    """
    if not stored:
        raise ValueError(f"{path} holds no transform of ITK")
    parts = stored
    if _kind(path, stored[0].type)[0] == COMPOSITE:
        parts = stored[1:]
    elif len(stored) > 1:
        raise ValueError(
            f"{path} holds {len(stored)} transforms and no composite, so that nothing says how they"
            " follow each other (ITK reads the first one alone): write one file each, or a "
            "CompositeTransform"
        )
    if not parts:
        raise ValueError(f"{path} holds a composite of no transform")
    if len({_kind(path, part.type)[1] for part in parts}) > 1:
        raise ValueError(f"{path} holds transforms of two axes and of three in one composite")
    found = [_part(path, part) for part in reversed(parts)]
    return found[0] if len(found) == 1 else compose(found)


def stored_of(transform: Transform) -> list[Stored]:
    """A transform as ITK stores it: of several parts, a composite, the first one last.

    Raises:
        ValueError: a field's grid is none of ITK's.
    """
    flat = transform.is_flat
    parts = [_stored(part, flat) for part in reversed(transform.steps)]
    if len(parts) == 1:
        return parts
    return [Stored(_type(COMPOSITE, flat), np.zeros(0), np.zeros(0)), *parts]


def _type(kind: str, flat: bool) -> str:
    return f"{kind}_double_{'2_2' if flat else '3_3'}"


def _kind(path: Path, name: str) -> tuple[str, int]:
    """The name and the axes of a type."""
    found = _TYPE.fullmatch(name)
    if found is None:
        raise ValueError(
            f"{path} holds {name[:80]!r}; a transform of ITK between two axes or three is needed"
        )
    return found[1], int(found[2])


def _part(path: Path, stored: Stored) -> Affine | Field:
    kind, n = _kind(path, stored.type)
    if not np.all(np.isfinite(stored.fixed)):
        raise ValueError(f"{path}: fixed parameters of its {kind} are NaN or infinite")
    if kind in _FIELDS:
        return _field(path, stored, n)
    found = linear_of(path, kind, n, stored.numbers, stored.fixed)
    if found is None:
        raise ValueError(f"{path} holds a {kind}, {_refusal(kind)}")
    return found


def _refusal(kind: str) -> str:
    if kind == COMPOSITE:
        return "a composite within a composite, which ITK's own files never hold: flatten it first"
    if kind.startswith("Inverse"):
        return (
            "which is Slicer's and holds the map the other way round: harden it on a grid in "
            "Slicer (Transforms, Convert), or write the transform itself and invert it here"
        )
    return (
        "which is none of the linear transforms and fields that are read: SimpleITK's "
        "TransformToDisplacementField makes a field of it"
    )


def _field(path: Path, stored: Stored, n: int) -> Field:
    """A field: size, origin, spacing and direction are fixed, components run fastest, then x."""
    fixed = stored.fixed
    if fixed.size != n * (3 + n):
        raise ValueError(f"{path}: its field has {fixed.size} fixed parameters, not {n * (3 + n)}")
    if not np.all((fixed[:n] >= 1) & (fixed[:n] < 2**31) & (fixed[:n] % 1 == 0)):
        raise ValueError(f"{path}: its field's size is {fixed[:n].tolist()}")
    size = tuple(int(length) for length in fixed[:n])
    check_size(size, path)
    if stored.numbers.size != n * np.prod(size, dtype=np.int64):
        raise ValueError(f"{path}: its field of {size} voxels has {stored.numbers.size} numbers")
    linear = fixed[3 * n :].reshape(n, n) * fixed[2 * n : 3 * n]
    affine = np.eye(4)
    affine[:n, :n], affine[:n, 3] = linear, fixed[n : 2 * n]
    affine = LPS @ affine
    check_affine(affine, str(path))
    vectors = stored.numbers.reshape(*size[::-1], n).T  # (n, x, y, z)
    u = _voxels(path, np.moveaxis(vectors, 0, -1), affine)
    return field_of(path, u, affine, flat=n == 2)


def _voxels(path: Path, vectors: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Vectors (*S, n), LPS mm, as voxels (n, *S): one plane is one, three alike are three."""
    n = vectors.shape[-1]
    with np.errstate(all="ignore"):  # of numbers that are not finite
        u = to_voxels(vectors.astype(np.float64), (LPS @ affine)[:n, :n], str(path))
    if not np.all(np.isfinite(u)):
        raise ValueError(f"{path}: displacements of its field are NaN or infinite")
    return u


def field_of(path: Path, u: np.ndarray, affine: np.ndarray, flat: bool = False) -> Field:
    """The value of a displacement (D, *S), voxels."""
    grid = Grid(u.shape[1:], affine, str(path), flat)
    return Field(torch.from_numpy(np.ascontiguousarray(u))[None], grid)


def _stored(part: Affine | Field, flat: bool) -> Stored:
    n = 2 if flat else 3
    if isinstance(part, Affine):
        itk = (LPS @ part.matrix @ LPS)[[*range(n), 3]][:, [*range(n), 3]]
        numbers = np.concatenate([itk[:n, :n].ravel(), itk[:n, n]])
        return Stored(_type("AffineTransform", flat), numbers, np.zeros(n))
    if part.is_flat != flat:
        raise ValueError(f"{part.grid.name} is of a 2-D file and others of the chain are not")
    u = part.displacement[0].detach().cpu().numpy()
    if part.grid.dimensions == 3:
        return _volume(u, part.grid)
    vectors, affine = laid_out(u, part.grid, u.dtype.type)
    affine = LPS @ affine
    spacing = np.linalg.norm(affine[:n, :n], axis=0)
    direction = affine[:n, :n] / spacing
    place = [vectors.shape[:n], affine[:n, 3], spacing, direction.ravel()]
    numbers = vectors[..., :n].transpose(2, 1, 0, 3).ravel()
    return Stored(_type(_FIELDS[0], flat), numbers, np.concatenate(place).astype(np.float64))


def _volume(u: np.ndarray, grid: Grid) -> Stored:
    """A field (3, X, Y, Z) of voxels, plane by plane: there is no second one of its size."""
    check_right_angles(grid)
    affine = LPS @ grid.affine
    numbers = np.empty((*grid.size[::-1], 3), u.dtype)
    for k, plane in enumerate(numbers):
        plane[:] = np.einsum("wk,kxy->yxw", affine[:3, :3], u[..., k].astype(np.float64))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    direction = affine[:3, :3] / spacing
    place = [grid.size, affine[:3, 3], spacing, direction.ravel()]
    fixed = np.concatenate(place).astype(np.float64)
    return Stored(_type(_FIELDS[0], flat=False), numbers.reshape(-1), fixed)
