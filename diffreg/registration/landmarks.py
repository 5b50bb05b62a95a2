"""What a displacement pays for pairs of points that it does not bring onto each other.

    E_points = weight * mean_k |T phi(p_k) - q_k|^2      mm^2

with p_k in the fixed image, q_k in the moving one, T the affine start and u linear between voxels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffreg.data.geometry import Image
from diffreg.registration.use import points_moved


class Landmarks(NamedTuple):
    """Pairs of points, RAS mm, and their weight, per mm^2 of the mean squared distance."""

    fixed: np.ndarray  # (K, 3), of 2-D files (K, 2) will do
    moving: np.ndarray  # of the same shape
    weight: float

    @classmethod
    def checked(cls, given: Any, fixed: Image) -> Landmarks:
        """What was given, inside the fixed image.

        Args:
            given: (fixed points, moving points, weight).
            fixed: the fixed image.

        Raises:
            TypeError, ValueError: no such three, or a point that is NaN or outside.
        """
        if not isinstance(given, tuple | list) or len(given) != 3:
            raise TypeError("landmarks must be (fixed points, moving points, weight)")
        weight = checked_weight("the weight of landmarks", given[2])
        here, there = (np.asarray(points, dtype=np.float64) for points in given[:2])
        _check_points(here, there, fixed)
        _check_inside(here, fixed)
        return cls(here, there, weight)

    def apart(self, fixed: Image, displacement: Tensor, affine: np.ndarray) -> np.ndarray:
        """The distance of each point, displaced, from the one that belongs to it, (K,) mm."""
        moved = points_moved(self.fixed, fixed, displacement, affine)
        return np.linalg.norm(moved - self.moving, axis=1)

    def measured(self, fixed: Image, displacement: Tensor, affine: np.ndarray) -> dict[str, Any]:
        """As metrics.json has it: before the displacement, which is after the affine, and after."""
        found: dict[str, Any] = {"count": len(self.fixed), "weight_per_mm2": self.weight}
        for when, u in (("before", torch.zeros_like(displacement)), ("after", displacement)):
            apart = self.apart(fixed, u, affine)
            found[f"{when}_mm"] = {"mean": float(apart.mean()), "max": float(apart.max())}
        return found

    def in_voxels(self, fixed: Image, affine: np.ndarray, back: bool = False) -> Pins:
        """The same for the search on the fixed grid; `back`: of the fixed image onto the moving."""
        here, there = (_in_space(points) for points in (self.fixed, self.moving))
        world = affine @ fixed.affine
        if back:  # both where the affine start has them, on the fixed grid
            home = np.linalg.inv(affine)
            here, there, world = there @ home.T, here, fixed.affine
        dimensions = len(fixed.shape)
        places, across, _ = np.split(np.linalg.solve(fixed.affine, here.T), [dimensions, 3])
        origin = world[:3, 3:] + world[:3, dimensions:3] @ across  # (3, K): points off their plane
        targets = there[:, :3].T - origin
        voxels, mm, matrix = (
            torch.from_numpy(array.copy()) for array in (places, targets, world[:3, :dimensions])
        )
        return Pins(voxels, mm, matrix, self.weight)


class Pins(NamedTuple):
    """Landmarks on a grid: matrix (p + u(p)) should be the targets."""

    places: Tensor  # (D, K), voxels
    targets: Tensor  # (3, K), mm
    matrix: Tensor  # (3, D), mm a voxel
    weight: float

    def on(self, factors: Sequence[float], margin: Sequence[int]) -> Pins:
        """On a level of the pyramid, for displacements to the voxels of the moving image.

        Args:
            factors: voxels along one of the level's.
            margin: voxels of the level that the moving image has before the fixed one's first.
        """
        factor, before = (
            self.places.new_tensor([float(value) for value in values])[:, None]
            for values in (factors, margin)
        )
        places = (self.places + 0.5) / factor - 0.5
        # p + u(p) = (y + 1/2) factor - 1/2 with y the level's voxel, `margin` less than u has it.
        targets = self.targets - self.matrix @ (0.5 * factor - 0.5 - factor * before)
        return Pins(places, targets, self.matrix * factor.T, self.weight)


class Pull:
    """The landmarks' term of displacements (1, D, *S), voxels, u linear between voxels.

    Beyond the outer voxel centres the border's displacement holds.

    Args:
        pins: on the displacements' grid.
        like: such a displacement.

    Example:
        >>> import torch
        >>> from diffreg.registration.landmarks import Pins, Pull
        >>> places, targets = torch.tensor([[1.0], [1.5]]), torch.tensor([[4.0], [1.5], [0.0]])
        >>> u = torch.zeros(1, 2, 4, 4)
        >>> gradient = torch.zeros_like(u)
        >>> Pull(Pins(places, targets, torch.eye(3, 2), weight=0.5), u).add(u, gradient)
        tensor(4.5000)
        >>> gradient[0, 0, 1].tolist()
        [0.0, -1.5, -1.5, 0.0]
    """

    def __init__(self, pins: Pins, like: Tensor) -> None:
        places, targets, self.matrix = (part.to(like) for part in pins[:3])
        self.corners, self.shares = _corners(places, like.shape[2:])
        self.resting = self.matrix @ places - targets  # (3, K)
        self.factor = pins.weight / places.shape[1]

    def add(self, displacement: Tensor, gradient: Tensor) -> Tensor:
        """The value of the term, (); its gradient is added to `gradient`, which is contiguous."""
        apart = self.resting + self._moved(displacement)
        to_moved = 2 * self.factor * (self.matrix.T @ apart)
        slope = (to_moved[:, None] * self.shares).flatten(1)
        # By index_put_, which sorts on a GPU: points that share a voxel are added in one order.
        places = torch.arange(len(slope), device=slope.device)[:, None], self.corners.flatten()
        gradient[0].view(len(slope), -1).index_put_(places, slope, accumulate=True)
        return self.factor * apart.square().sum()

    def curvature(self, step: Tensor) -> Tensor:
        """step^T (second derivative) step, ()."""
        return 2 * self.factor * self._moved(step).square().sum()

    def _moved(self, displacement: Tensor) -> Tensor:
        """How far the points are moved, (3, K) mm."""
        u = displacement[0].flatten(1)
        return self.matrix @ (u[:, self.corners] * self.shares).sum(1)


def _corners(places: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The voxels round each place (D, K) as one number each, and their shares, (2^D, K) both."""
    ends = places.new_tensor([n - 1 for n in shape])[:, None]
    inside = torch.minimum(places.clamp(min=0), ends)
    first = torch.minimum(inside.floor(), (ends - 1).clamp(min=0))
    rest = inside - first
    numbers, shares = [], []
    for corner in itertools.product((0, 1), repeat=len(shape)):
        step = places.new_tensor(corner)[:, None]
        at = torch.minimum(first + step, ends).long()
        number = torch.zeros_like(at[0])
        for n, index in zip(shape, at, strict=True):
            number = number * n + index
        numbers.append(number)
        shares.append(torch.where(step > 0, rest, 1 - rest).prod(0))
    return torch.stack(numbers), torch.stack(shares)


def checked_weight(name: str, weight: Any) -> float:
    """A finite number > 0.

    Raises:
        ValueError: it is none.
    """
    number = isinstance(weight, int | float | np.number) and not isinstance(weight, bool)
    if not number or not 0 < weight < np.inf:
        raise ValueError(f"{name} must be a finite number > 0, got {weight!r}")
    return float(weight)


def _check_points(here: np.ndarray, there: np.ndarray, fixed: Image) -> None:
    axes = (2, 3) if fixed.is_flat else (3,)
    if here.ndim == 2 and here.shape[1] == 2 and not fixed.is_flat:
        raise ValueError(
            f"landmarks must be (K, 3), x, y and z in RAS mm, got {list(here.shape)}: "
            f"{fixed.name}, {list(fixed.shape)}, lies in space"
        )
    if here.ndim != 2 or here.shape != there.shape or here.shape[1] not in axes or not len(here):
        raise ValueError(
            f"landmarks must be as many points in both images, (K, {axes[-1]}) each, RAS mm, "
            f"K >= 1, got {list(here.shape)} and {list(there.shape)}"
        )
    for name, points in (("fixed", here), ("moving", there)):
        bad = ~np.isfinite(points).all(1)
        if bad.any():
            which = int(np.argmax(bad))
            raise ValueError(
                f"landmarks must be finite, got {points[which].tolist()} for {name} point "
                f"{which + 1}"
            )


def _check_inside(points: np.ndarray, fixed: Image) -> None:
    """Points lie in a voxel of the image, of a slice in the slice itself."""
    voxels = np.linalg.solve(fixed.affine, _in_space(points).T)[:3]
    sizes = np.array([*fixed.shape, *[1] * (3 - len(fixed.shape))])[:, None]
    counts = len(fixed.shape) if fixed.is_flat else 3
    outside = ~((voxels >= -0.5) & (voxels <= sizes - 0.5))[:counts].all(0)
    if outside.any():
        which = int(np.argmax(outside))
        raise ValueError(
            f"landmarks must lie in the fixed image: fixed point {which + 1}, "
            f"{points[which].tolist()} mm, is voxel {voxels[:counts, which].round(1).tolist()} of "
            f"{fixed.name}, {list(fixed.shape)}"
        )


def _in_space(points: np.ndarray) -> np.ndarray:
    """(K, 4), homogeneous; 0 along an axis that there is not."""
    world = np.zeros((len(points), 4))
    world[:, : points.shape[1]], world[:, 3] = points, 1
    return world
