"""A volume turned so that its axes run to the patient's right, front and head, and its planes.

Then every plane is drawn by one rule: its first axis to the right, its second one up. The patient's
left is on the left, as in `diffreg.data.geometry.display_orientation`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from diffreg.report.determinants import determinant_limit, determinants_of
from diffreg.report.panels import OUTLINED, PairView, level
from diffreg.system.extras import require


class Plane(NamedTuple):
    """A plane of an upright volume: which of its axes runs where."""

    name: str
    across: int  # to the right
    up: int
    through: int
    letters: str  # what lies left, right, at the top and at the bottom


PLANES = (
    Plane("Axial", 0, 1, 2, "LRAP"),
    Plane("Coronal", 0, 2, 1, "LRSI"),
    Plane("Sagittal", 1, 2, 0, "PASI"),
)


class Turn(NamedTuple):
    """How an array is stored: the axis that runs along x, y and z, and whether it runs backwards.

    x is the patient's right, y the front, z the head.
    """

    axes: tuple[int, int, int]
    backwards: tuple[bool, bool, bool]

    def upright(self, volume: np.ndarray) -> np.ndarray:
        """(X, Y, Z) of the array in the axes x, y, z, a view."""
        return np.flip(volume.transpose(self.axes), tuple(np.flatnonzero(self.backwards)))

    def stored(self, shape: tuple[int, ...]) -> np.ndarray:
        """(4, 4), a voxel of the upright volume of this shape -> the voxel of the array."""
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1
        for k, (axis, backwards) in enumerate(zip(*self, strict=True)):
            matrix[axis, k] = -1 if backwards else 1
            matrix[axis, 3] = shape[k] - 1 if backwards else 0
        return matrix


def turn_of(affine: np.ndarray | None) -> Turn:
    """How a volume has to be turned: each array axis belongs to the world axis that it follows.

    Args:
        affine: (4, 4), voxel -> RAS mm, oblique ones too; None: there is no patient, and the first
            plane is drawn as it is stored, its rows downwards.

    Returns:
        Which axis lies along x, y and z, and which way it runs.

    Example:
        >>> turn_of(np.diag([-1.0, 1.0, 2.5, 1.0]))
        Turn(axes=(0, 1, 2), backwards=(True, False, False))
    """
    if affine is None:
        return Turn((2, 1, 0), (False, True, True))
    found = require("nibabel.orientations", "the planes of volumes").io_orientation(affine)
    axes = np.argsort(found[:, 0])
    x, y, z = (int(axis) for axis in axes)
    return Turn((x, y, z), tuple((found[axes, 1] < 0).tolist()))


def tilt_of(affine: np.ndarray) -> float:
    """The largest angle between an axis of an upright volume and its world axis, degrees.

    Example:
        >>> tilt_of(np.diag([1.0, 1.0, 2.5, 1.0]))
        0.0
    """
    edges = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.degrees(np.arccos(np.clip(np.diag(edges), -1, 1)).max()))


def planes_of(view: PairView) -> tuple[Plane, ...]:
    """The planes of a pair; without a place in space they have numbers, and no letters."""
    if view.affine is not None:
        return PLANES
    axes = turn_of(None).axes
    return tuple(
        plane._replace(name=f"Across axis {axes[plane.through]}", letters="") for plane in PLANES
    )


class Upright(NamedTuple):
    """A pair of volumes in the axes x, y, z, ready to be cut; `upright_volume` makes it."""

    pair: PairView
    cells: np.ndarray  # (*(S - 1)), the smallest corner determinant of each
    turn: Turn  # that made it upright


def upright_volume(view: PairView) -> Upright:
    """A pair with all its arrays in the axes x, y, z, and its displacement in their directions.

    Args:
        view: a volume.

    Returns:
        The pair, its affine taking the new voxels to the same places; its determinants; the turn.

    Example:
        >>> volume = np.arange(24.0).reshape(2, 3, 4)
        >>> affine = np.diag([-1.0, 1, 1, 1])
        >>> pair = PairView("a", *[volume] * 3, np.zeros((3, 2, 3, 4)), affine=affine)
        >>> upright_volume(pair).pair.fixed[0, 0, 0]
        np.float64(12.0)
    """
    turn = turn_of(view.affine)
    names = [n for n in ("moving", "fixed", "warped", *OUTLINED) if getattr(view, n) is not None]
    arrays: dict[str, Any] = {name: turn.upright(getattr(view, name)) for name in names}
    signs = [-1.0 if backwards else 1.0 for backwards in turn.backwards]
    components = zip(signs, turn.axes, strict=True)
    pair = replace(
        view,
        **arrays,
        displacement=np.stack([s * turn.upright(view.displacement[k]) for s, k in components]),
        spacing=tuple(view.spacing[axis] for axis in turn.axes),
        affine=None if view.affine is None else view.affine @ turn.stored(arrays["fixed"].shape),
        limits=view.windows,
    )
    return Upright(pair, determinants_of(pair), turn)


def plane_view(volume: Upright, plane: Plane, index: int) -> PairView:
    """A slice as an image, with the windows, determinants and colours of the volume.

    Args:
        volume: the pair.
        plane: one of `planes_of`.
        index: of the slice, along plane.through; it shows the cells above it.

    Returns:
        The slice; its displacement is the part that lies in the plane.
    """

    def cut(array: np.ndarray) -> np.ndarray:
        return array.take(min(index, array.shape[plane.through] - 1), plane.through)

    pair, across, up = volume.pair, plane.across, plane.up
    return PairView(
        f"{pair.title}, {plane.name.lower()} slice {index + 1}",
        cut(pair.moving),
        cut(pair.fixed),
        cut(pair.warped),
        np.stack([cut(pair.displacement[across]), cut(pair.displacement[up])]),
        spacing=(pair.spacing[across], pair.spacing[up]),
        display=(True, True, False),
        mask=None if pair.mask is None else cut(pair.mask),
        limits=pair.windows,
        determinants=cut(volume.cells) if volume.cells.size else None,
        determinant_limit=determinant_limit(volume.cells),
    )


def slices_of(volume: Upright) -> list[tuple[Plane, PairView]]:
    """The three planes through `point_of_view`."""
    point = point_of_view(volume)
    planes = planes_of(volume.pair)
    return [(plane, plane_view(volume, plane, point[plane.through])) for plane in planes]


def point_of_view(volume: Upright) -> tuple[int, ...]:
    """Where the planes cross at first: in the worst cell where one folds, else in the middle."""
    worst = worst_cell(volume.cells)
    folds = worst is not None and not volume.cells[worst] > 0
    return worst if worst is not None and folds else centre(volume.pair)


def centre(volume: PairView) -> tuple[int, ...]:
    """The voxel in the middle of what is bright in the fixed image."""
    weights = level(volume.fixed, volume.windows[1])
    if not weights.any():
        return tuple(n // 2 for n in weights.shape)
    sums = (weights.sum(tuple({0, 1, 2} - {axis})) for axis in range(3))
    return tuple(round(float(np.average(np.arange(len(s)), weights=s))) for s in sums)


def worst_cell(cells: np.ndarray) -> tuple[int, ...] | None:
    """The cell with the smallest determinant, the first that is not a number before all others."""
    if cells.size == 0:
        return None
    worst = np.argmin(np.nan_to_num(cells, nan=-np.inf, neginf=-np.inf))
    return tuple(int(i) for i in np.unravel_index(worst, cells.shape))
