"""The voxels of the images that a network was trained on: no network resamples what it is given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from diffreg.data.grid import in_words

Lengths = tuple[float, ...]


class Voxels(NamedTuple):
    """The shape and the lengths of voxels, along each array axis; () where that is not known.

    Args:
        proportions: (D,), all of them alike.
        shortest: (D,), mm.
        longest: (D,), mm.
    """

    proportions: Lengths = ()
    shortest: Lengths = ()
    longest: Lengths = ()

    @classmethod
    def of(cls, contents: Mapping[str, Any]) -> Voxels:
        """Those that a checkpoint names: spacing, its proportions, and spacing_mm, from and to.

        Raises:
            ValueError: they are no lengths.

        Example:
            >>> from diffreg.data.voxels import Voxels
            >>> Voxels.of({"spacing_mm": [[1.0, 1.0], [2.0, 2.0]]}).proportions
            (1.0, 1.0)
        """
        shortest, longest = contents.get("spacing_mm") or ((), ())
        proportions = contents.get("spacing") or shortest
        found = cls(*(tuple(float(n) for n in part) for part in (proportions, shortest, longest)))
        if not all(0 < length < math.inf for part in found for length in part):
            raise ValueError(f"lengths of voxels must be numbers > 0, got {found}")
        return found

    def stretched(self, spacing: Sequence[float]) -> float:
        """How often as long the voxels are along one axis as along another, beside those here.

        Args:
            spacing: (D,), lengths of a voxel.

        Returns:
            1 where they are of one shape, or that is not known.

        Example:
            >>> from diffreg.data.voxels import Voxels
            >>> Voxels((1.0, 1.0, 2.0)).stretched((1.5, 1.5, 9.0))
            3.0
        """
        if len(spacing) != len(self.proportions):
            return 1.0
        times = [length / n for length, n in zip(spacing, self.proportions, strict=True)]
        return max(times) / min(times)

    def finer(self, spacing: Sequence[float]) -> float:
        """How often as long the shortest voxels here are, on average over the axes.

        Args:
            spacing: (D,), lengths of a voxel, mm.

        Returns:
            1 where that is not more, or not known.

        Example:
            >>> from diffreg.data.voxels import Voxels
            >>> Voxels((1.0, 1.0), (2.0, 2.0), (3.0, 3.0)).finer((0.5, 0.5))
            4.0
        """
        if len(spacing) != len(self.shortest):
            return 1.0
        mean, shortest = (
            math.prod(lengths) ** (1 / len(spacing)) for lengths in (spacing, self.shortest)
        )
        return max(1.0, shortest / mean)

    @property
    def words(self) -> str:
        """ "1 x 1 x 2 (proportions)", "1.5 x 1.5 x 3 mm" or "1 x 1 to 2 x 2 mm"."""
        ends = list(dict.fromkeys(map(lengths_in_words, (self.shortest, self.longest))))
        if ends == [""]:
            return f"{lengths_in_words(self.proportions)} (proportions)"
        return f"{' to '.join(ends)} mm"


def lengths_in_words(spacing: Iterable[float]) -> str:
    """ "1.37 x 1.37 x 10"."""
    return in_words([f"{length:.3g}" for length in spacing])
