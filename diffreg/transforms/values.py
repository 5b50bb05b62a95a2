"""Transforms as values: where a point of the fixed image lies in the moving one, RAS mm.

    Affine  x -> T x        Field  x -> x + d(x), d linear between voxels and 0 outside its grid
    Chain   x -> t_n(... t_1(x))

Fixed to moving is the direction of every one of them (pull-back), whatever a file has.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffreg.data.grid import Grid
from diffreg.fields import FoldCertificate, fold_certificate, warp_points
from diffreg.fields.inversion import Residual, inverted

# How far off its plane, in slices, a slice's field holds: ITK's file has three planes of it.
REACH = 1.5
# A grid ends half a voxel beyond its outer voxel centres, as ITK's does; its bounds are shifted by
# so many voxels against rounding.
EDGE = 1e-9


class Transform(ABC):
    """A map of the fixed image's space to the moving image's, RAS mm.

    Example:
        >>> import numpy as np
        >>> from diffreg.transforms import Affine
        >>> move, double = np.eye(4), np.diag([2.0, 2.0, 2.0, 1.0])
        >>> move[0, 3] = 10
        >>> (Affine(double) @ Affine(move))([[1.0, 0.0, 0.0]]).tolist()
        [[22.0, 0.0, 0.0]]
    """

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Where points lie in the moving image.

        Args:
            points: (K, 3), RAS mm; of flat transforms, between 2-D files, (K, 2) will do.

        Returns:
            Of the shape of points, float64.

        Raises:
            ValueError: no points, or two axes for a transform of three.
        """
        points = np.asarray(_numbers(points), dtype=np.float64)
        axes = (2, 3) if self.is_flat else (3,)
        if points.ndim != 2 or points.shape[1] not in axes or not np.isfinite(points).all():
            raise ValueError(f"points must be (K, 3), RAS mm, finite, got {list(points.shape)}")
        whole = np.zeros((len(points), 3))
        whole[:, : points.shape[1]] = points
        return self._mapped(whole)[:, : points.shape[1]]

    def __matmul__(self, first: Transform) -> Chain:
        """`a @ b` maps x to a(b(x))."""
        return compose([first, self])

    @property
    @abstractmethod
    def is_flat(self) -> bool:
        """Whether it is between 2-D files, so that only the x-y plane has a meaning."""

    @property
    @abstractmethod
    def steps(self) -> tuple[Affine | Field, ...]:
        """What it consists of; a point passes the first one first."""

    @abstractmethod
    def inverse(self) -> Transform:
        """From the moving image's space back to the fixed one's.

        Raises:
            ValueError: a field folds, so that there is no way back.
        """

    @abstractmethod
    def _mapped(self, points: np.ndarray) -> np.ndarray:
        """Of points (K, 3), float64."""


@dataclass(frozen=True, eq=False)
class Affine(Transform):
    """x -> T x, in homogeneous coordinates.

    Args:
        matrix: (4, 4) T, RAS mm, from the fixed image's space to the moving one's.
        is_flat: whether it is of the x-y plane alone, between 2-D files.

    Raises:
        ValueError: not (4, 4), a last row that is not 0 0 0 1, or a map that is singular.
    """

    matrix: np.ndarray
    is_flat: bool = False

    def __post_init__(self) -> None:
        matrix = np.array(_numbers(self.matrix), dtype=np.float64)
        if matrix.shape != (4, 4):
            raise ValueError(f"matrix must be (4, 4), got {list(matrix.shape)}")
        if not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-6):
            raise ValueError("matrix must be finite, its last row 0 0 0 1")
        matrix[3] = 0, 0, 0, 1
        lengths = np.linalg.norm(matrix[:3, :3], axis=0)
        if not (lengths > 0).all() or not abs(np.linalg.det(matrix[:3, :3] / lengths)) > 1e-9:
            raise ValueError("matrix must not be singular: it leads all of space onto a plane")
        out_of_plane = np.abs([*matrix[2, [0, 1, 3]], *matrix[:2, 2]])
        if self.is_flat and out_of_plane.max() > 1e-6:
            raise ValueError("matrix must stay in the x-y plane of 2-D files, and leads out of it")
        matrix.setflags(write=False)
        object.__setattr__(self, "matrix", matrix)

    @property
    def steps(self) -> tuple[Affine | Field, ...]:
        return (self,)

    @property
    def determinant(self) -> float:
        """By how much it changes volumes; negative where it mirrors."""
        return float(np.linalg.det(self.matrix[:3, :3]))

    def inverse(self) -> Affine:
        return Affine(np.linalg.inv(self.matrix), self.is_flat)

    def _mapped(self, points: np.ndarray) -> np.ndarray:
        return points @ self.matrix[:3, :3].T + self.matrix[:3, 3]


@dataclass(frozen=True, eq=False)
class Field(Transform):
    """x -> x + d(x), d linear between the voxels of a grid and 0 outside it, as ITK has it.

    Args:
        displacement: (1, D, *S), float32 or float64, voxels of the grid, array axes.
        grid: where it lives; a slice's holds 1.5 slices to either side, as ITK's file does.
        residual: of an inverse, how far the way there and back leads from where it began.

    Raises:
        TypeError, ValueError: no displacement, or one that is not on the grid or not finite.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.grid import Grid
        >>> from diffreg.transforms import Field
        >>> shift = Field(torch.ones(1, 3, 4, 4, 4), Grid((4, 4, 4), np.diag([2.0, 2.0, 2.0, 1.0])))
        >>> shift([[2.0, 2.0, 2.0], [90.0, 2.0, 2.0]]).tolist()
        [[4.0, 4.0, 4.0], [90.0, 2.0, 2.0]]
    """

    displacement: Tensor
    grid: Grid
    residual: Residual | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.grid, Grid):
            raise TypeError(f"grid must be a Grid, got {type(self.grid).__name__}")
        u, expected = self.displacement, (1, self.grid.dimensions, *self.grid.size)
        if not isinstance(u, Tensor) or u.dtype not in (torch.float32, torch.float64):
            kind = u.dtype if isinstance(u, Tensor) else type(u).__name__
            raise TypeError(f"displacement must be a tensor of float32 or float64, got {kind}")
        if tuple(u.shape) != expected:
            raise ValueError(
                f"displacement must be {expected} on the grid of {self.grid.name}, "
                f"got {tuple(u.shape)}"
            )
        if not torch.isfinite(u).all():
            raise ValueError("displacement holds values that are NaN or infinite")
        object.__setattr__(self, "displacement", u.detach())

    @property
    def is_flat(self) -> bool:
        return self.grid.is_flat

    @property
    def steps(self) -> tuple[Affine | Field, ...]:
        return (self,)

    def certificate(self, threshold: float = 0.0) -> FoldCertificate:
        """Whether it folds, proven; its determinants in mm are those in voxels."""
        return fold_certificate(self.displacement, threshold)

    def holds(self, points: np.ndarray) -> np.ndarray:
        """Which points (K, 3), RAS mm, lie in its grid: bools (K,)."""
        return self._inside(self._voxels(points))

    def inverse(self, certificate: FoldCertificate | None = None) -> Field:
        """The way back, on the same grid, with its residual, by fixed points and Newton's method.

        Args:
            certificate: of this field, where it is known.

        Raises:
            ValueError: the field folds.
        """
        certificate = certificate or self.certificate()
        if certificate.folded_cells:
            raise ValueError(
                f"{self.grid.name}: there is no inverse where a field folds: {certificate} "
                "(`diffreg repair` unfolds it)"
            )
        back, residual = inverted(self.displacement, self.grid.axes)
        return Field(back, self.grid, residual)

    def _mapped(self, points: np.ndarray) -> np.ndarray:
        voxels = self._voxels(points)
        inside, axes = self._inside(voxels), self.grid.dimensions
        here = torch.from_numpy(voxels[inside][:, :axes].copy())[None]
        u = self.displacement.to("cpu", torch.float64)
        step = (warp_points(here, u) - here)[0].numpy() @ self.grid.axes.T
        moved = points.copy()
        moved[inside] += step
        return moved

    def _voxels(self, points: np.ndarray) -> np.ndarray:
        """Points (K, 3), RAS mm, in voxels; a third coordinate in slices from a slice's plane."""
        affine = self.grid.in_space
        return (points - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T

    def _inside(self, voxels: np.ndarray) -> np.ndarray:
        axes = self.grid.dimensions
        inner = voxels[:, :axes] + EDGE
        inside = np.all((inner >= -0.5) & (inner < np.array(self.grid.size) - 0.5), axis=1)
        if axes == 2 and not self.is_flat:
            inside = inside & (np.abs(voxels[:, 2]) < REACH)
        return inside


@dataclass(frozen=True, eq=False)
class Chain(Transform):
    """x -> t_n(... t_2(t_1(x))).

    Args:
        parts: Affines and Fields, t_1 first: the order in which a point passes them.

    Raises:
        TypeError: something else among them.
        ValueError: there is none at all.
    """

    parts: tuple[Affine | Field, ...]

    def __post_init__(self) -> None:
        wrong = [part for part in self.parts if not isinstance(part, Affine | Field)]
        if wrong:
            raise TypeError(f"parts must be Affines and Fields, got {type(wrong[0]).__name__}")
        if not self.parts:
            raise ValueError("parts must be at least one")

    @property
    def is_flat(self) -> bool:
        return all(part.is_flat for part in self.parts)

    @property
    def steps(self) -> tuple[Affine | Field, ...]:
        return self.parts

    def inverse(self) -> Chain:
        """The inverses, the last one's first: a map for the moving image's grid."""
        return Chain(tuple(part.inverse() for part in reversed(self.parts)))

    def _mapped(self, points: np.ndarray) -> np.ndarray:
        for part in self.parts:
            points = part._mapped(points)
        return points


def compose(transforms: Transform | Iterable[Transform]) -> Chain:
    """`compose([a, b])` maps x to b(a(x)), as ANTs' `-t a -t b` does.

    Args:
        transforms: one, or several; chains among them are taken apart.

    Raises:
        TypeError: something that is no transform.
        ValueError: there is none at all.

    Example:
        >>> import numpy as np
        >>> from diffreg.transforms import Affine, compose
        >>> move, double = np.eye(4), np.diag([2.0, 2.0, 2.0, 1.0])
        >>> move[0, 3] = 10
        >>> compose([Affine(double), Affine(move)])([[1.0, 0.0, 0.0]]).tolist()
        [[12.0, 0.0, 0.0]]
    """
    parts: list[Affine | Field] = []
    for transform in [transforms] if isinstance(transforms, Transform) else transforms:
        if not isinstance(transform, Transform):
            raise TypeError(f"transforms must be transforms, got {type(transform).__name__}")
        parts += transform.steps
    return Chain(tuple(parts))


def _numbers(given: Any) -> Any:
    """What numpy reads: a tensor may be on another device, or part of a graph."""
    return given.detach().cpu().numpy() if isinstance(given, Tensor) else given
