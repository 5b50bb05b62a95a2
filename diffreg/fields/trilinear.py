"""Which cells of a volume fold: bounds of all, and halving where those do not tell."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F

from diffreg.fields.bernstein import (
    CORNERS,
    ENDS,
    at_points,
    coefficients,
    differences,
    halved,
    magnitudes,
    rounding,
    unravelled,
)
from diffreg.ops import jacobian_determinant

# How often a cell is halved before it is undecided, and how many parts there may be of a block of
# cells: a determinant that all but touches the threshold along a surface leaves very many.
DEPTH = 8
BLOCK = 4096
PARTS = 65536
# How near the bracket of the smallest determinant comes where the parts last.
_NEAR = 1e-5
# What `jacobian_determinant` is given at once.
PLANES = 8
# Widths of the collar, in parts of the border's largest displacement. In a wide one a face moves
# within itself, nearly; in a narrow one what is steep along the border remains.
_WIDTHS = [4**k for k in range(7)]


class Judgement(NamedTuple):
    """What is known of a volume's cells."""

    folded: torch.Tensor  # *(S - 1), bool; the undecided too
    undecided: torch.Tensor  # *(S - 1), bool
    inside: torch.Tensor  # *(S - 1), bool: folded, though the eight corners are not
    smallest: float  # the smallest determinant that was found
    where: tuple[float, ...]  # there, in voxels
    bound: float  # what no determinant is below


def judged(u: torch.Tensor, threshold: float) -> Judgement:
    """Every cell of a volume: does its determinant exceed the threshold in all of it?

    Args:
        u: (1, 3, *S), any floating dtype, contiguous, two voxels an axis at least.
        threshold: of the determinant.
    """
    bounds, corners = _screened(u)
    error = _largest_error(u)
    at_corners = ~(corners > threshold)  # NaN, of values beyond all measure, too
    search = _Search(u, threshold, corners, at_corners.clone())
    for block in (~(bounds > threshold + error) & ~at_corners).nonzero()[:, 0].split(BLOCK):
        search.decide(block)
    lowest = bounds.topk(min(BLOCK + 1, len(bounds)), largest=False)
    bound = search.bracketed(lowest.indices[:BLOCK])
    if len(bounds) > BLOCK:
        bound = min(bound, float(lowest.values[-1]) - error)
    if bool(bounds.isnan().any()):
        bound = -math.inf
    folded = search.folded | search.undecided
    inside = search.folded & ~at_corners
    shape = [n - 1 for n in u.shape[2:]]
    return Judgement(
        folded.reshape(shape),
        search.undecided.reshape(shape),
        inside.reshape(shape),
        search.smallest,
        search.where,
        bound,
    )


def _largest_error(u: torch.Tensor) -> float:
    """The rounding bound of every coefficient: the permanent of edges as long as they may be."""
    reach = (u.amax((2, 3, 4)).double() - u.amin((2, 3, 4)).double()).max()
    return float(rounding() * ((1 + reach) ** 3 + 3 * (1 + reach) * reach**2 + 2 * reach**3))


def _screened(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of every cell the smallest Bernstein coefficient and the smallest corner, (cells,)."""
    parts = [u[:, :, z : z + PLANES + 1] for z in range(0, u.shape[2] - 1, PLANES)]
    found = [
        torch.cat([jacobian_determinant(part.double(), which)[0].flatten() for part in parts])
        for which in ("bound", "min")
    ]
    return found[0], found[1]


class _Parts(NamedTuple):
    """Parts of cells."""

    found: torch.Tensor  # (P, 27), the determinant's coefficients
    cell: torch.Tensor  # (P,)
    origin: torch.Tensor  # (P, 3), voxels
    magnitude: torch.Tensor  # (P,)

    def chosen(self, which: torch.Tensor) -> _Parts:
        return _Parts(*(each[which] for each in self))

    def halved(self, length: float) -> _Parts:
        """Eight of each, of that length."""
        cell, magnitude = (each.repeat_interleave(8) for each in (self.cell, self.magnitude))
        origin = (self.origin[:, None] + length * ENDS.to(self.origin)).reshape(-1, 3)
        return _Parts(halved(self.found).reshape(-1, 27), cell, origin, magnitude)


class _Search:
    """Halves cells, and keeps the smallest determinant that it comes across."""

    def __init__(
        self, u: torch.Tensor, threshold: float, corners: torch.Tensor, folded: torch.Tensor
    ) -> None:
        self.u, self.threshold = u, threshold
        self.folded, self.undecided = folded, torch.zeros_like(folded)
        self.smallest, self.where = math.inf, (0.0, 0.0, 0.0)
        self._look(self._whole(corners.argmin()[None]), 1.0)

    def decide(self, cells: torch.Tensor) -> None:
        """Cells (K,), given by number: unfolded, folded or undecided."""
        parts, length = self._whole(cells), 1.0
        for halvings in range(DEPTH + 1):
            if not len(parts.cell):
                return
            limit = self.threshold + rounding(halvings) * parts.magnitude
            self.folded[parts.cell[~(self._look(parts, length) > limit)]] = True
            open_ = ~(parts.found.amin(1) > limit) & ~self.folded[parts.cell]
            parts, length = parts.chosen(open_), length / 2
            if halvings == DEPTH or len(parts.cell) > PARTS:
                self.undecided[parts.cell] = True
                return
            parts = parts.halved(length)

    def bracketed(self, cells: torch.Tensor) -> float:
        """What no determinant of cells (K,) is below, near the smallest one where parts last."""
        parts, length, found = self._whole(cells), 1.0, math.inf
        for halvings in range(DEPTH + 1):
            self._look(parts, length)
            bound = parts.found.amin(1)
            low = bound < self.smallest - _NEAR
            if halvings == DEPTH or int(low.sum()) > PARTS:
                low = torch.zeros_like(low)
            sure = bound - rounding(halvings) * parts.magnitude
            sure = torch.where(sure.isnan(), -math.inf, sure)
            found = min(found, float(torch.where(low, math.inf, sure).min()))
            parts, length = parts.chosen(low), length / 2
            if not len(parts.cell):
                break
            parts = parts.halved(length)
        return found

    def _whole(self, cells: torch.Tensor) -> _Parts:
        along = differences(self.u, cells)
        origin = torch.stack(unravelled(cells, self.u), 1).double()
        return _Parts(coefficients(along), cells, origin, magnitudes(along))

    def _look(self, parts: _Parts, length: float) -> torch.Tensor:
        """The smallest corner of each part (P,), the smallest of all being kept."""
        smallest, corner = parts.found[:, CORNERS].min(1)
        value, part = smallest.min(0)
        if not float(value) >= self.smallest:
            self.smallest = float(value)
            where = parts.origin[part] + length * ENDS.to(parts.origin)[corner[part]]
            self.where = tuple(where.tolist())
        return smallest


def folded_volume(u: torch.Tensor, folded: torch.Tensor, threshold: float) -> float:
    """In how many voxels the determinant does not exceed the threshold, by 64 points a cell.

    Args:
        u: as in `judged`.
        folded: *(S - 1), bool: the cells to look at.
        threshold: of the determinant.
    """
    count = 0
    for cells in folded.flatten().nonzero()[:, 0].split(BLOCK):
        count += int((~(at_points(coefficients(differences(u, cells)), 4) > threshold)).sum())
    return count / 64


def collar_folds(u: torch.Tensor) -> torch.Tensor:
    """Voxels of the border (n,), flat, by which every collar folds; none where one does not.

    Over a collar the border's displacement goes to 0. It is one cell thick, and its cells are w
    voxels long. Before they are stretched to that they are cells of a grid with one more voxel on
    each side, where stretching is a displacement.

    Args:
        u: as in `judged`.

    Returns:
        Those by which the widest one folds, where all do.
    """
    faces = (u.select(2 + k, end).abs().max() for k in range(3) for end in (0, -1))
    largest = min(max(1.0, float(torch.stack(list(faces)).max())), 2.0**300)
    first = 2.0 ** math.ceil(math.log2(largest))  # a whole number: exact in sums
    for width in _WIDTHS:
        sides = _collar(u, first * width)
        cells = torch.cat([judged(side, 0.0).folded.nonzero() + low for side, low in sides])
        if not len(cells):
            break
    voxels = (cells[:, None] + ENDS.to(cells)).reshape(-1, 3)
    size = torch.tensor(u.shape[2:], device=u.device)
    z, y, x = voxels[((voxels >= 0) & (voxels < size)).all(1)].T
    return torch.unique((z * size[1] + y) * size[2] + x)


def _collar(u: torch.Tensor, width: float) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The collar's six sides, (1, 3, *S + 2) but 2 thick, and where in u's grid they begin."""
    for axis in range(3):
        for upper in (False, True):
            face = u.narrow(2 + axis, u.shape[2 + axis] - 1 if upper else 0, 1).double()
            pads = [[1, 1], [1, 1], [1, 1]]
            pads[axis] = [0, 1] if upper else [1, 0]
            slab = F.pad(face, [*pads[2], *pads[1], *pads[0]])
            for k in range(3):
                if pads[k][0]:
                    slab[:, k].narrow(1 + k, 0, 1).sub_(width - 1)
                if pads[k][1]:
                    slab[:, k].narrow(1 + k, slab.shape[2 + k] - 1, 1).add_(width - 1)
            low = [u.shape[2 + k] - 1 if k == axis and upper else -1 for k in range(3)]
            yield slab, torch.tensor(low, device=u.device)
