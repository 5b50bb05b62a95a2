"""What is known of pairs beside their images: labels, points, a displacement.

It is read only where the objective asks for it (TERMS).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from diffreg.data.geometry import Image, voxel_map
from diffreg.data.manifest import Pair
from diffreg.data.points import read_points
from diffreg.data.transforms import read_displacement

# Setting of [objective] -> where a manifest has it.
TERMS = {
    "labels": ("moving_label", "fixed_label"),
    "landmarks": ("moving_points", "fixed_points"),
    "displacement": ("true_displacement",),
}


class Known(NamedTuple):
    """Of N pairs on the grids *S of their fixed images; None where none of them has it.

    Args:
        moving_label, fixed_label: (N, L, *S) in [0, 1], a channel for each label; 0 where a pair
            has none.
        moving_points, fixed_points: (N, K, D), fixed voxels; NaN beyond those of a pair.
        displacement: (N, D, *S), fixed voxels; NaN where it is not known.
    """

    moving_label: Tensor | None = None
    fixed_label: Tensor | None = None
    moving_points: Tensor | None = None
    fixed_points: Tensor | None = None
    displacement: Tensor | None = None

    def to(self, device: torch.device | str) -> Known:
        """The same on a device."""
        return Known(*(p if p is None else p.to(device, non_blocking=True) for p in self))

    def part(self, which: slice) -> Known:
        """Some of the pairs."""
        return Known(*(None if part is None else part[which] for part in self))


def check_terms(pairs: Sequence[Pair], terms: Collection[str]) -> None:
    """Raises where no pair has what a term of the objective needs."""
    for term in terms:
        columns = TERMS[term]
        if not any(all(getattr(pair, column) for column in columns) for pair in pairs):
            raise ValueError(
                f"objective.{term} needs pairs that have {' and '.join(columns)}, columns of the "
                "manifest, and none has"
            )


def read_known(pair: Pair, moving: Image, fixed: Image, terms: Collection[str]) -> Known:
    """The points and the displacement of a pair that are asked for; its labels are read elsewhere.

    Raises:
        FileNotFoundError, ValueError: a file that is missing or does not fit the images.
    """
    points: Sequence[Tensor | None] = (None, None)
    if "landmarks" in terms and pair.fixed_points and pair.moving_points:
        points = _points(pair, moving, fixed)
    displacement = None
    if "displacement" in terms and pair.true_displacement:
        displacement, grid = read_displacement(pair.true_displacement)
        if grid.shape != fixed.shape or not np.allclose(grid.affine, fixed.affine, atol=1e-3):
            raise ValueError(
                f"{pair.name}: {pair.true_displacement} is not on the grid of the fixed image, "
                f"{fixed.shape}, got {grid.shape}"
            )
    return Known._make([None, None, *points, displacement])


def _points(pair: Pair, moving: Image, fixed: Image) -> list[Tensor]:
    """Those of the moving and of the fixed image, (1, K, D) each, fixed voxels."""
    assert pair.moving_points is not None and pair.fixed_points is not None
    there, here = read_points(pair.moving_points), read_points(pair.fixed_points)
    dimensions = len(fixed.shape)
    if there.shape != here.shape or here.shape[1] != dimensions:
        raise ValueError(
            f"{pair.moving_points} and {pair.fixed_points} must have as many points of "
            f"{dimensions} axes, got {list(there.shape)} and {list(here.shape)}"
        )
    to_moving = voxel_map(moving, fixed)
    there = np.linalg.solve(to_moving[:, :-1], (there - to_moving[:, -1]).T).T
    return [torch.from_numpy(points.astype(np.float32))[None] for points in (there, here)]


def placed(displacement: Tensor, affine: np.ndarray, world: np.ndarray) -> Tensor:
    """A displacement to a moving image by its header, as one to where a map of the world places it.

    u'(p) = M (p + u(p)) - p, M = A^-1 T^-1 A

    Args:
        displacement: (1, D, *S), fixed voxels.
        affine: (4, 4) A of the fixed grid.
        world: (4, 4) T, RAS mm, as `Image.placed` takes it.

    Returns:
        (1, D, *S).
    """
    axes = [*range(displacement.shape[1]), 3]
    matrix = np.linalg.solve(affine, np.linalg.solve(world, affine))[np.ix_(axes, axes)]
    ranges = [torch.arange(size, dtype=torch.float64) for size in displacement.shape[2:]]
    voxels = torch.stack(torch.meshgrid(*ranges, indexing="ij"))[None]
    turn, shift = torch.from_numpy(matrix[:-1, :-1]), torch.from_numpy(matrix[:-1, -1:])
    there = torch.einsum("ij,nj...->ni...", turn, voxels + displacement)
    there = there + shift.reshape(-1, *[1] * len(ranges))
    return (there - voxels).to(displacement.dtype)


def one_hot(labels: Tensor, values: Sequence[float] | Tensor) -> Tensor:
    """Label maps (N, 1, *S) as channels (N, L, *S), 1 where they have that value, float32.

    Example:
        >>> import torch
        >>> from diffreg.data.known import one_hot
        >>> one_hot(torch.tensor([[[[0, 1, 2]]]]), [1, 2]).tolist()
        [[[[0.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]]
    """
    each = torch.as_tensor(values, dtype=torch.float64, device=labels.device)
    return (labels == each.reshape(-1, *[1] * (labels.ndim - 2))).float()


def label_values(maps: Sequence[Tensor | None]) -> list[float]:
    """The labels of several maps, but for 0."""
    found = [torch.unique(each) for each in maps if each is not None]
    return sorted(set(torch.cat(found).tolist()) - {0.0}) if found else []


def together(several: Sequence[Known], shape: Sequence[int]) -> Known:
    """What is known of several pairs, one by one (1, ...), as one batch.

    Args:
        several: of each pair.
        shape: *S, the size of their fixed images.
    """
    labels, points, field = (1, 0, *shape), (1, 0, len(shape)), (1, len(shape), *shape)
    empty = (labels, labels, points, points, field)
    values = (0.0, 0.0, torch.nan, torch.nan, torch.nan)
    each = zip(zip(*several, strict=True), empty, values, strict=True)
    return Known._make(_joined(*one) for one in each)


def _joined(parts: Sequence[Tensor | None], empty: tuple[int, ...], value: float) -> Tensor | None:
    """One after the other, each as long along axis 1 as the longest, filled up by a value."""
    there = [part for part in parts if part is not None]
    if not there:
        return None
    longest = max(part.shape[1] for part in there)
    if len(empty) == 3 and longest:  # points, to a power of two: a CUDA graph is of one form
        longest = 1 << (longest - 1).bit_length()
    none = there[0].new_full(empty, value)
    return padded([none if part is None else part for part in parts], longest, value)


def padded(parts: Sequence[Tensor], least: int, value: float) -> Tensor:
    """Parts (1, K, ...) one after the other, filled up to the largest K, or to `least`."""
    longest = max(least, *(part.shape[1] for part in parts))
    return torch.cat(
        [F.pad(p, (0, 0) * (p.ndim - 2) + (0, longest - p.shape[1]), value=value) for p in parts]
    )
