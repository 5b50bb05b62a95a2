"""World maps by their parameters: x -> T0 c exp(sum_k theta_k G_k) c^-1 x, c the centre.

Translations, rigid maps, similarities and affine maps are groups; each has its generators G_k, so
that one formula serves all, in two dimensions and three. A map is homogeneous, (D + 1, D + 1).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

KINDS = ("translation", "rigid", "similarity", "affine")


class Decomposition(NamedTuple):
    """What a map does: x -> turned and stretched about the centre, then shifted."""

    turn: float  # degrees
    shift: float  # of the centre, mm
    scale: float  # of lengths, their geometric mean: 1.03 makes what is looked up 3 % longer


def generators(kind: str, dimensions: int, radius: float) -> Tensor:
    """What the parameters multiply: each moves a point at the radius by a millimetre or so.

    Args:
        kind: one of KINDS.
        dimensions: D.
        radius: mm.

    Returns:
        (K, D + 1, D + 1) float64: the shifts, then the turns, the scale, the stretches and shears.

    Example:
        >>> from diffreg.affine.parameters import KINDS, generators
        >>> [len(generators(kind, 3, 80.0)) for kind in KINDS]
        [3, 6, 7, 12]
    """
    found = [_unit(dimensions, (i, dimensions, 1.0)) for i in range(dimensions)]
    pairs = [(i, j) for i in range(dimensions) for j in range(i + 1, dimensions)]
    if kind != "translation":
        found += [_unit(dimensions, (i, j, -1 / radius), (j, i, 1 / radius)) for i, j in pairs]
    if kind in ("similarity", "affine"):
        found += [_unit(dimensions, *((i, i, 1 / radius) for i in range(dimensions)))]
    if kind == "affine":
        found += [
            _unit(dimensions, (i, i, 1 / radius), (i + 1, i + 1, -1 / radius))
            for i in range(dimensions - 1)
        ]
        found += [_unit(dimensions, (i, j, 1 / radius), (j, i, 1 / radius)) for i, j in pairs]
    return torch.stack(found)


def _unit(dimensions: int, *entries: tuple[int, int, float]) -> Tensor:
    matrix = torch.zeros(dimensions + 1, dimensions + 1, dtype=torch.float64)
    for row, column, value in entries:
        matrix[row, column] = value
    return matrix


def about(centre: Tensor, matrix: Tensor) -> Tensor:
    """A map with another origin: c matrix c^-1.

    Args:
        centre: (D,), mm.
        matrix: (..., D + 1, D + 1) that has the centre for its origin.

    Returns:
        The same in world coordinates.

    Example:
        >>> import torch
        >>> from diffreg.affine.parameters import about
        >>> about(torch.tensor([3.0]), torch.tensor([[2.0, 0.0], [0.0, 1.0]]))[0].tolist()
        [2.0, -3.0]
    """
    return shifted(centre) @ matrix @ shifted(-centre)


def shifted(shift: Tensor) -> Tensor:
    """The map x -> x + shift, (D + 1, D + 1) of (D,).

    Example:
        >>> import torch
        >>> from diffreg.affine.parameters import shifted
        >>> shifted(torch.tensor([3.0])).tolist()
        [[1.0, 3.0], [0.0, 1.0]]
    """
    matrix = torch.eye(len(shift) + 1, dtype=shift.dtype)
    matrix[:-1, -1] = shift
    return matrix


def rotations(dimensions: int, fine: bool = False) -> Tensor:
    """Turns spread over all there are.

    Args:
        dimensions: 2 or 3.
        fine: many more.

    Returns:
        (R, D, D) float64, the identity first. Of 2: 24 of 15 degrees, or 72 of 5. Of 3: the 24 of
        the cube, or those and 600 others, no turn further than about 30 degrees from one of them.

    Source:
        Super-Fibonacci spirals (Alexa 2022).

    Example:
        >>> from diffreg.affine.parameters import rotations
        >>> [len(rotations(d, fine)) for d in (2, 3) for fine in (False, True)]
        [24, 72, 24, 624]
    """
    if dimensions == 2:
        count = 72 if fine else 24
        angle = torch.arange(count, dtype=torch.float64) * (2 * math.pi / count)
        rows = [angle.cos(), -angle.sin(), angle.sin(), angle.cos()]
        return torch.stack(rows, 1).reshape(-1, 2, 2)
    cube = _turns_of_the_cube()
    return torch.cat([cube, _spirals(600)]) if fine else cube


def _turns_of_the_cube() -> Tensor:
    """The 24 signed permutations of the axes with determinant 1."""
    found = []
    for signs in np.ndindex(2, 2, 2):
        for order in ((0, 1, 2), (1, 2, 0), (2, 0, 1), (0, 2, 1), (2, 1, 0), (1, 0, 2)):
            matrix = np.zeros((3, 3))
            matrix[range(3), order] = [1 - 2 * sign for sign in signs]
            if np.linalg.det(matrix) > 0:
                found.append(matrix)
    return torch.from_numpy(np.stack(found))


def _spirals(count: int) -> Tensor:
    """Unit quaternions spread evenly, as rotations."""
    s = torch.arange(count, dtype=torch.float64) + 0.5
    near, far = (s / count).sqrt(), (1 - s / count).sqrt()
    alpha, beta = 2 * math.pi * s / math.sqrt(2), 2 * math.pi * s / 1.533751168755204288118041
    x, y, z, w = near * alpha.sin(), near * alpha.cos(), far * beta.sin(), far * beta.cos()
    rows = [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)]
    rows += [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)]
    rows += [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]
    return torch.stack(rows, 1).reshape(-1, 3, 3)


def decomposed(matrix: np.ndarray, centre: np.ndarray) -> Decomposition:
    """How far a map turns, shifts and scales.

    Args:
        matrix: (D + 1, D + 1), mm.
        centre: (D,), whose shift is told.

    Returns:
        The turn of the nearest rotation, the shift of the centre and the mean scale.

    Example:
        >>> import numpy as np
        >>> from diffreg.affine.parameters import decomposed
        >>> tuple(decomposed(np.diag([1.1, 1.1, 1.1, 1.0]), np.zeros(3)))
        (0.0, 0.0, 1.1)
    """
    linear = matrix[:-1, :-1]
    left, lengths, right = np.linalg.svd(linear)
    turn = left @ right
    # From the sine and the cosine: near 0 the cosine alone knows six digits fewer.
    sine = np.linalg.norm(turn - turn.T) / math.sqrt(8)
    cosine = (np.trace(turn) - (len(turn) - 2)) / 2
    shift = float(np.linalg.norm(linear @ centre + matrix[:-1, -1] - centre))
    scale = float(np.prod(lengths) ** (1 / len(lengths)))
    return Decomposition(math.degrees(math.atan2(sine, cosine)), shift, scale)
