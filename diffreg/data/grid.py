"""Where voxels lie: one grid for slices and volumes, and the map from one grid to another.

w = A p        p voxels, w RAS mm; from the fixed grid to the moving one: A_m^-1 A_f
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

# Between RAS and LPS, (4, 4): its own inverse.
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
# How far two planes may be tilted to each other and still be taken for one (degrees).
_TILT = 1.0


@dataclass(frozen=True)
class Grid:
    """The voxels of a volume, or of a slice: a volume with one plane, half a slice either way.

    Args:
        size: (*S), voxels along each array axis; two axes for a slice.
        affine: (4, 4), voxel -> RAS mm; of a slice the third column is what leads to the next one.
        name: what messages call it.
        is_flat: whether its file has no third axis, so that only the x-y plane has a meaning.

    Raises:
        ValueError: not two or three axes, or an affine that gives two voxels one place.

    Example:
        >>> import numpy as np
        >>> from diffreg.data.grid import Grid
        >>> grid = Grid((80, 96, 80), np.diag([-2.0, 2.0, 2.0, 1.0]))
        >>> grid.spacing, grid.direction.tolist()[0]
        ((2.0, 2.0, 2.0), [-1.0, 0.0, 0.0])
    """

    size: tuple[int, ...]
    affine: np.ndarray
    name: str = "grid"
    is_flat: bool = False

    def __post_init__(self) -> None:
        if len(self.size) not in (2, 3):
            raise ValueError(f"size must be two or three numbers, got {self.size}")
        check_affine(self.affine, self.name)

    @property
    def dimensions(self) -> int:
        """2 for a slice, 3 for a volume."""
        return len(self.size)

    @property
    def axes(self) -> np.ndarray:
        """(3, D), what leads from one voxel to the next along each array axis, mm."""
        return self.affine[:3, : self.dimensions]

    @property
    def spacing(self) -> tuple[float, ...]:
        """Physical length of a voxel along each array axis, mm."""
        return tuple(float(length) for length in np.linalg.norm(self.axes, axis=0))

    @property
    def direction(self) -> np.ndarray:
        """(3, D), unit vectors along the array axes, RAS."""
        return self.axes / np.linalg.norm(self.axes, axis=0)

    @property
    def volume(self) -> tuple[int, int, int]:
        """(X, Y, Z), of which a slice has one plane."""
        x, y, z = (*self.size, 1)[:3]
        return x, y, z

    @property
    def in_space(self) -> np.ndarray:
        """(4, 4), voxel -> RAS mm; of a 2-D file that of its x-y plane alone, depth 1 mm."""
        return _without_depth(self.affine) if self.is_flat else self.affine

    @property
    def origin(self) -> np.ndarray:
        """(3,), where the first voxel lies, RAS mm."""
        return self.affine[:3, 3]

    @property
    def centre(self) -> np.ndarray:
        """(3,), the middle of the grid, RAS mm."""
        return self.origin + self.axes @ ((np.array(self.size) - 1) / 2)

    @property
    def corners(self) -> np.ndarray:
        """(4, 2^D), the outer voxels in homogeneous coordinates, 0 across a slice."""
        ends = [(0, n - 1) for n in self.size]
        found = np.zeros((4, 2**self.dimensions))
        found[: self.dimensions] = np.array(list(product(*ends))).T
        found[3] = 1
        return found

    def extended(self, before: Sequence[int], after: Sequence[int]) -> Grid:
        """The grid with so many voxels more before its first and after its last, axis by axis."""
        affine = self.affine.astype(np.float64)
        affine[:3, 3] = self.origin - self.axes @ np.asarray(before)
        size = tuple(b + n + a for b, n, a in zip(before, self.size, after, strict=True))
        return Grid(size, affine, self.name, self.is_flat)

    def map_to(self, moving: Grid) -> np.ndarray:
        """The map from the voxels of this grid, the fixed one, to those of another.

        Of a 2-D file, which has no third axis, only the x-y plane counts.

        Args:
            moving: the grid to sample.

        Returns:
            (D, D + 1) matrix M with moving voxel = M (p, 1), p a voxel of this grid.

        Raises:
            ValueError: one is a slice and one a volume, or two slices do not lie in one plane: they
                are tilted to each other, or further apart than half a slice.

        Example:
            >>> import numpy as np
            >>> from diffreg.data.grid import Grid
            >>> coarse, fine = Grid((4, 5), np.diag([2.0, 2.0, 2.0, 1.0])), Grid((8, 10), np.eye(4))
            >>> coarse.map_to(fine).tolist()
            [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]
        """
        _check_dimensions(moving, self)
        to_moving, to_fixed = moving.affine, self.affine
        if self.dimensions == 2:
            _check_tilt(moving, self)
            if moving.is_flat or self.is_flat:
                to_moving, to_fixed = _without_depth(to_moving), _without_depth(to_fixed)
            else:
                _check_offset(moving, self)
        matrix = np.linalg.solve(to_moving, to_fixed)
        # Solving leaves 1e-16 where grids are equal; the identity is to be exact.
        nearest = np.round(matrix)
        matrix = np.where(np.abs(matrix - nearest) < 1e-9, nearest, matrix)
        return matrix[: self.dimensions, [*range(self.dimensions), 3]]


def check_affine(affine: np.ndarray, name: str) -> None:
    """Refuse an affine that gives two voxels one place.

    Args:
        affine: (4, 4), voxel -> RAS mm.
        name: the file, for the message.

    Raises:
        TypeError: it is no array of numbers.
        ValueError: a value is not finite, a voxel has no extent, or the axes are dependent.

    Example:
        >>> import numpy as np
        >>> from diffreg.data.grid import check_affine
        >>> check_affine(np.eye(4), "a.nii")
    """
    if not isinstance(affine, np.ndarray) or affine.dtype.kind not in "iuf":
        raise TypeError(f"affine must be an array (4, 4) of numbers, got {type(affine).__name__}")
    if affine.shape != (4, 4):
        raise ValueError(f"affine must be (4, 4), got {affine.shape}")
    if not np.all(np.abs(affine) < 1e15):
        raise ValueError(f"{name}: the affine in the header holds values that are not finite")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.all(spacing > 0):
        zooms = ", ".join(f"{length:g}" for length in spacing)
        raise ValueError(f"{name}: the header gives a voxel no extent: spacing ({zooms}) mm")
    if not abs(np.linalg.det(affine[:3, :3] / spacing)) > 1e-6:
        raise ValueError(f"{name}: the affine in the header is singular: its axes are dependent")


def in_words(size: Sequence[int | str]) -> str:
    """A size as people write it.

    Example:
        >>> from diffreg.data.grid import in_words
        >>> in_words((80, 96, 80))
        '80 x 96 x 80'
    """
    return " x ".join(map(str, size))


def _without_depth(affine: np.ndarray) -> np.ndarray:
    """The affine of the x-y plane alone, (4, 4)."""
    plane = np.eye(4)
    plane[:2, :2], plane[:2, 3] = affine[:2, :2], affine[:2, 3]
    return plane


def _normal(grid: Grid) -> np.ndarray:
    """Unit normal of a slice's plane, (3,); the z axis for a 2-D file."""
    if grid.is_flat:
        return np.array([0.0, 0.0, 1.0])
    normal = np.cross(grid.affine[:3, 0], grid.affine[:3, 1])
    return normal / np.linalg.norm(normal)


def _check_dimensions(moving: Grid, fixed: Grid) -> None:
    if moving.dimensions == fixed.dimensions:
        return
    grids = {grid.dimensions: grid for grid in (moving, fixed)}
    raise ValueError(
        f"{grids[3].name} is a volume of {in_words(grids[3].size)} voxels and {grids[2].name} a "
        "slice: take one slice of the volume too (--slice K, --moving-slice K; in Python "
        "array[:, :, K] or read_image(path, K))"
    )


def _check_tilt(moving: Grid, fixed: Grid) -> None:
    sine = np.linalg.norm(np.cross(_normal(moving), _normal(fixed)))
    tilt = float(np.degrees(np.arcsin(np.minimum(1.0, sine))))
    if tilt > _TILT:
        raise ValueError(
            f"{moving.name} and {fixed.name} do not lie in one plane: they are tilted by "
            f"{tilt:.1f} degrees to each other, and 2-D registration moves nothing out of its plane"
        )


def _check_offset(moving: Grid, fixed: Grid) -> None:
    depth = np.linalg.solve(moving.affine, fixed.affine @ fixed.corners)[2]  # slices of the moving
    apart = float(np.abs(depth).max())
    if apart > 0.5 + 1e-3:
        thickness = float(np.linalg.norm(moving.affine[:3, 2]))
        raise ValueError(
            f"{moving.name} and {fixed.name} do not lie in one plane: they are up to "
            f"{apart * thickness:.2f} mm apart, more than half a slice of {thickness:g} mm"
        )
