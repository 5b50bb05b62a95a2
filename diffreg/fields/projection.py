"""The nearest displacement whose cells' determinants reach a target, as a local method finds it.

The projection goes from coefficient to coefficient of the cells' determinants (`lattice`) along its
slope, with a multiplier each that remembers how far it has pushed, so that a push that others made
needless is taken back (Hildreth's method, the constraints linearised anew at every visit).
Coefficients of cells that share no voxel are treated at once.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from diffreg.fields.lattice import Lattice, coefficients, number_of_coefficients, slope

_SWEEPS = 400  # of one projection, which ends where _PATIENCE of them leave more than half to do
_PATIENCE = 40
_LOOK = 4  # sweeps from one look at all that can have changed to the next
# Up to this multiplier earlier pushes follow the slope of today; beyond, that need not converge.
_STEADY = 0.5
# Sweeps after which a cell that is still too low is asked for more, by what it lacks, and how much
# more at most: the last part of the way is the slowest.
_RAISE = 32
_MOST_RAISED = 0.01
_REACH = 3  # cells round one that is too low that go on being pushed
_CHUNK = 512  # cells whose coefficients are computed at once, in the cache


class _Pairs(NamedTuple):
    """Coefficients of cells, in groups of one coefficient whose cells share no voxel."""

    cell: np.ndarray  # (pairs,)
    number: np.ndarray  # (pairs,)
    multiplier: np.ndarray  # (pairs,)
    pushed: np.ndarray  # (D, 2^D, pairs): by how much each has moved its cell's voxels

    @classmethod
    def none(cls, dimensions: int) -> _Pairs:
        whole, real = np.zeros(0, np.int64), np.zeros(0)
        return cls(whole, whole, real, np.zeros((dimensions, 1 << dimensions, 0)))

    def chosen(self, which: np.ndarray | slice) -> _Pairs:
        return _Pairs(*(each[..., which] for each in self))


class _Group(NamedTuple):
    """Pairs that are pushed at once."""

    part: slice  # of the pairs
    vertices: np.ndarray  # (2^D, n)
    stretch: np.ndarray  # (n,)
    aim: np.ndarray  # (n,)


class Projection:
    """A displacement on its way to pass.

    Args:
        start: (D, *S), float64, voxels.
        lattice: of S. In a collar a determinant has to exceed 0, and what is aimed at is in parts
            of what stretching makes of it.
        failing: flat indices of the cells that have to reach the target. Another, which passes its
            certificate though its coefficients do not, is spared: none of them has to be higher
            than it was.
        threshold: what determinants must exceed.
        target: what is aimed at, above it; half the way is enough.
    """

    def __init__(
        self,
        start: np.ndarray,
        lattice: Lattice,
        failing: np.ndarray,
        threshold: float,
        target: float,
    ) -> None:
        self.lattice, self.free = lattice, lattice.free()
        self.u = start.reshape(len(start), -1).copy()  # (D, voxels)
        self.threshold, self.target = threshold, target - threshold
        self.cells = np.zeros(0, np.int64)  # that are watched, sorted
        self.raised = np.zeros(0)
        self.spared = np.zeros(0, np.int64)  # sorted
        self.wanted = np.zeros((number_of_coefficients(len(start)), 0))  # of the spared
        self.pairs = _Pairs.none(len(start))
        self.watch(self.lattice.around(failing, 1))
        self.require(failing)

    def require(self, cells: np.ndarray) -> np.ndarray:
        """No longer spares these; those of them that were spared."""
        ends = np.isin(self.spared, cells)
        found = self.spared[ends]
        self.spared, self.wanted = self.spared[~ends], self.wanted[:, ~ends]
        return found

    def run(self) -> np.ndarray:
        """Pushes until all is high enough or nothing helps; the cells that are still too low."""
        left = np.inf
        for sweep in range(_SWEEPS):
            if sweep % _LOOK == 0:
                values = self._look()
                lacks = self._lacks(values)
                if not lacks.any():
                    break
                if sweep % _PATIENCE == 0:
                    if lacks.sum() > left / 2:
                        break
                    left = lacks.sum()
                if sweep and sweep % _RAISE == 0:
                    self.raised = np.minimum(self.raised + lacks, _MOST_RAISED)
                groups = self._groups(values, lacks)
            for group in groups:
                self._push(group)
        return self.cells[self._lacks(self._values(self.u, self.cells)) > 0]

    def restart(self, cells: np.ndarray) -> None:
        """Forgets what was pushed about these cells: u is going to be changed there."""
        about = self.lattice.around(cells, 1)
        self.watch(about)
        self.pairs = self.pairs.chosen(~np.isin(self.pairs.cell, about))
        self.raised[np.isin(self.cells, about)] = 0

    def lacking(self, u: np.ndarray) -> np.ndarray:
        """The watched cells that are too low in another displacement (D, *S)."""
        low = self._values(u.reshape(self.u.shape), self.cells).min(0) <= 0
        return np.setdiff1d(self.cells[low], self.spared)

    def watch(self, cells: np.ndarray) -> None:
        """These cells too."""
        more = np.setdiff1d(cells, self.cells)
        if not len(more):
            return
        values = self._values(self.u, more)
        low = values.min(0) <= 0
        self.spared, order = _merged(self.spared, more[low])
        held = np.minimum(values[:, low], self.target)
        self.wanted = np.concatenate([self.wanted, held], 1)[:, order]
        self.cells, order = _merged(self.cells, more)
        self.raised = np.concatenate([self.raised, np.zeros(len(more))])[order]

    def _values(self, u: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """How far the coefficients of cells are above the threshold, (4 or 27, n)."""
        parts = np.array_split(cells, len(cells) // _CHUNK + 1)
        found = [coefficients(u[:, self.lattice.vertices(part)]) for part in parts]
        stretch, threshold = self._stretch(cells)
        return np.concatenate(found, 1) / stretch - threshold

    def _stretch(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What stretching makes of a cell's determinant, and the threshold there."""
        stretch = self.lattice.stretch(cells)
        return stretch, np.where(stretch > 1, 0, self.threshold)

    def _aims(self, values: np.ndarray) -> np.ndarray:
        """What the values of the watched cells have to reach."""
        aims = np.full(values.shape, self.target)
        aims[:, np.searchsorted(self.cells, self.spared)] = self.wanted
        return aims

    def _lacks(self, values: np.ndarray) -> np.ndarray:
        """By how much each watched cell is too low, (n,)."""
        return np.maximum((self._aims(values) - self.target / 2 - values).max(0), 0)

    def _look(self) -> np.ndarray:
        """The coefficients of all cells that can change, which are watched from now on."""
        values = self._values(self.u, self.cells)
        pushing = self.cells[(values < self._aims(values)).any(0)]
        watched = len(self.cells)
        pushing = np.concatenate([pushing, self.pairs.cell[self.pairs.multiplier > 0]])
        self.watch(self.lattice.around(pushing, 1))
        return values if len(self.cells) == watched else self._values(self.u, self.cells)

    def _groups(self, values: np.ndarray, lacks: np.ndarray) -> list[_Group]:
        """What is pushed until the next look."""
        aims = self._aims(values) + self.raised
        pairs = self._live(*np.nonzero(values < aims))
        near = np.isin(pairs.cell, self.lattice.around(self.cells[lacks > 0], _REACH))
        colour = self.lattice.parity(pairs.cell) * len(values) + pairs.number
        colour[~near] = -1
        order = np.argsort(colour, kind="stable")
        self.pairs, colour = pairs.chosen(order), colour[order]
        vertices = self.lattice.vertices(self.pairs.cell)
        stretch, threshold = self._stretch(self.pairs.cell)
        at = np.searchsorted(self.cells, self.pairs.cell)
        aim = aims[self.pairs.number, at] + threshold
        ends = [*np.flatnonzero(np.diff(colour, prepend=-1)), len(colour)]
        parts = [slice(*both) for both in pairwise(ends)]
        return [_Group(part, vertices[:, part], stretch[part], aim[part]) for part in parts]

    def _live(self, number: np.ndarray, at: np.ndarray) -> _Pairs:
        """The pairs that have pushed, and those of these numbers and watched cells."""
        had = self.pairs.chosen(self.pairs.multiplier > 0)
        pushed = np.zeros((*had.pushed.shape[:2], len(at)))
        fresh = _Pairs(self.cells[at], number, np.zeros(len(at)), pushed)
        keys = [pairs.cell * len(self.wanted) + pairs.number for pairs in (had, fresh)]
        fresh = fresh.chosen(~np.isin(keys[1], keys[0]))
        return _Pairs(*(np.concatenate(both, -1) for both in zip(had, fresh, strict=True)))

    def _push(self, group: _Group) -> None:
        """One visit: u and the pairs change."""
        pairs = self.pairs.chosen(group.part)
        here, had, pushed = self.u[:, group.vertices], pairs.multiplier, pairs.pushed
        value, along = slope(here, int(pairs.number[0]))
        along *= self.free[group.vertices] / group.stretch
        square = np.maximum((along * along).sum((0, 1)), 1e-2)
        steady = had < _STEADY
        # What was pushed along slopes of then, in parts of today's.
        held = np.where(steady, (along * pushed).sum((0, 1)) / square, had)
        now = np.maximum((group.aim - value / group.stretch) / square + held, 0)
        more = pushed + (now - had) * along
        less = pushed * (now / np.maximum(had, _STEADY))
        found = np.where(steady, now * along, np.where(now > had, more, less))
        self.u[:, group.vertices] = here + (found - pushed)
        pairs.pushed[:], pairs.multiplier[:] = found, now


def _merged(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both in order, and that order."""
    both = np.concatenate([a, b])
    order = np.argsort(both)
    return both[order], order
