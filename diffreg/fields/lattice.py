"""The cells of a grid by number, and the Bernstein coefficients of their determinants.

A cell's determinant lies above the smallest of them: the 4 corners in 2-D, 27 values in 3-D. Each
is a mean of determinants of D of the cell's edges, one along each axis.
"""

from __future__ import annotations

from functools import lru_cache
from itertools import product
from typing import NamedTuple

import numpy as np


class Lattice(NamedTuple):
    """The voxels of a grid as flat indices, row-major; a cell is its first voxel.

    A collar is the outermost layer of cells, stretched to a width; its outer voxels do not move.
    """

    shape: tuple[int, ...]
    width: float = 0.0  # of the collar in voxels; 0: there is none

    @property
    def strides(self) -> list[int]:
        """Voxels from one to the next along each axis."""
        return [int(np.prod(self.shape[axis + 1 :])) for axis in range(len(self.shape))]

    def vertices(self, cells: np.ndarray) -> np.ndarray:
        """The voxels of cells (n,), (2^D, n), the last axis fastest."""
        ends = product((0, 1), repeat=len(self.shape))
        return cells + np.array([[np.dot(end, self.strides)] for end in ends])

    def around(self, cells: np.ndarray, reach: int) -> np.ndarray:
        """Cells at most `reach` from some of `cells` along every axis, sorted.

        A voxel that is no cell's first one, being the last along an axis, counts as the one before.
        """
        steps = np.arange(-reach, reach + 1)[:, None]
        for size, stride in zip(self.shape, self.strides, strict=True):
            place = cells // stride % size
            cells = np.unique(cells + (np.clip(place + steps, 0, size - 2) - place) * stride)
        return cells

    def neighbours(self, voxels: np.ndarray) -> np.ndarray:
        """Those beside voxels (n,) along each axis, (2 D, n); at the border themselves."""
        found = []
        for size, stride in zip(self.shape, self.strides, strict=True):
            place = voxels // stride % size
            found += [voxels - (place > 0) * stride, voxels + (place < size - 1) * stride]
        return np.stack(found)

    def free(self) -> np.ndarray:
        """Which voxels may move, (voxels,)."""
        thickness = int(self.width > 0)
        inner = np.ones([size - 2 * thickness for size in self.shape], bool)
        return np.pad(inner, thickness).ravel()

    def stretch(self, cells: np.ndarray) -> np.ndarray:
        """What the collar's width makes of the determinants of cells, (n,)."""
        found = np.ones(len(cells))
        if self.width:
            for place, size in zip(np.unravel_index(cells, self.shape), self.shape, strict=True):
                found[(place == 0) | (place == size - 2)] *= self.width
        return found

    def parity(self, cells: np.ndarray) -> np.ndarray:
        """0 to 2^D - 1; cells of one parity share no voxel."""
        places = np.unravel_index(cells, self.shape)
        return np.sum([place % 2 << axis for axis, place in enumerate(places)], 0)


@lru_cache
def _edges(dimensions: int) -> list[np.ndarray]:
    """For each coefficient the edges of its determinants, (D, determinants, 2^D).

    Row [a, t] times the cell's voxels is the edge along axis a, less the unit vector. The place of
    an edge on the other axes is 0 or 1; places add up, axis by axis, to the coefficient's number.
    """
    places = list(product((0, 1), repeat=dimensions))
    found: dict[tuple[int, ...], list[np.ndarray]] = {}
    for lows in product(*([p for p in places if not p[axis]] for axis in range(dimensions))):
        rows = np.zeros((dimensions, len(places)))
        for axis, low in enumerate(lows):
            high = (*low[:axis], 1, *low[axis + 1 :])
            rows[axis, places.index(low)], rows[axis, places.index(high)] = -1, 1
        found.setdefault(tuple(map(sum, zip(*lows, strict=True))), []).append(rows)
    return [np.stack(rows, 1) for _, rows in sorted(found.items())]


def _along(u: np.ndarray, edges: np.ndarray) -> list[np.ndarray]:
    """The edges of phi along each axis, (D, determinants, n) each; u: (D, 2^D, n)."""
    found = [rows @ u for rows in edges]
    for axis, edge in enumerate(found):
        edge[axis] += 1
    return found


def _cofactor(edges: list[np.ndarray], axis: int) -> np.ndarray:
    """The determinant's derivative by the edge along an axis; their product is the determinant."""
    if len(edges) == 2:
        first, second = edges[1 - axis]
        return np.stack([second, -first] if axis == 0 else [-second, first])
    return _cross(edges[axis - 2], edges[axis - 1])


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.stack([a[k - 2] * b[k - 1] - a[k - 1] * b[k - 2] for k in range(3)])


def number_of_coefficients(dimensions: int) -> int:
    """4 or 27."""
    return len(_edges(dimensions))


def coefficients(u: np.ndarray) -> np.ndarray:
    """The Bernstein coefficients of the cells' determinants.

    Args:
        u: (D, 2^D, n), displacements of the cells' voxels, as `Lattice.vertices` orders them.

    Returns:
        (4 or 27, n).
    """
    tables = _edges(len(u))
    edges = _along(u, np.concatenate(tables, 1))
    counts = [table.shape[1] for table in tables]
    sums = np.add.reduceat(
        (edges[0] * _cofactor(edges, 0)).sum(0), np.cumsum([0, *counts[:-1]]), axis=0
    )
    return sums / np.array(counts)[:, None]


def slope(u: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """One coefficient (n,) of cells u (D, 2^D, n), and its derivative by them."""
    table = _edges(len(u))[number]
    edges = _along(u, table)
    across = [_cofactor(edges, axis) for axis in range(len(u))]
    count = table.shape[1]
    value = (edges[0] * across[0]).sum((0, 1)) / count
    parts = [rows.T @ derivative for rows, derivative in zip(table, across, strict=True)]
    return value, np.sum(parts, 0) / count
