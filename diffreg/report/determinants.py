"""The determinants of a pair's cells: their colours, their folds, their histogram."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from diffreg.metrics import smallest_determinant
from diffreg.report.panels import PairView
from diffreg.system.extras import require

FOLDED = "#ff1f8f"  # on no colour map used here
DETERMINANTS = ("#14507a", "#6ea6c4", "#f4f2ec", "#e3ab5c", "#a3560b")  # shrinks, keeps, grows


class Folds(NamedTuple):
    """What is said of the cells of one pair."""

    folded: int
    total: int
    smallest: float  # nan where one is not finite
    dimensions: int


def determinants_of(view: PairView) -> np.ndarray:
    """The smallest corner determinant of every cell, (*(S - 1)); of a slice its volume's."""
    given = view.determinants
    return smallest_determinant(view.displacement) if given is None else given


def folds_of(cells: np.ndarray) -> Folds:
    """Counts the cells that fold.

    Args:
        cells: (*(S - 1)), as `determinants_of` gives them.

    Example:
        >>> folds_of(np.array([[-0.5, 1.0]]))
        Folds(folded=1, total=2, smallest=-0.5, dimensions=2)
    """
    finite = cells.size > 0 and bool(np.isfinite(cells).all())
    smallest = float(cells.min()) if finite else float("nan")
    return Folds(int((~(cells > 0)).sum()), cells.size, smallest, cells.ndim)


def determinant_limit(determinants: np.ndarray) -> float:
    """The power of two, 2 to 8, whose [1 / limit, limit] holds 99 % of the positive ones."""
    positive = determinants[np.isfinite(determinants) & (determinants > 0)]
    furthest = np.percentile(np.abs(np.log2(positive)), 99) if positive.size else 0.0
    return float(2.0 ** np.clip(np.ceil(furthest), 1, 3))


def determinant_colours() -> Any:
    """The diverging colour map of the determinant, centred at 1; folded cells stand out of it."""
    colors = require("matplotlib.colors", "the figures")
    colour_map = colors.LinearSegmentedColormap.from_list("determinant", DETERMINANTS)
    return colour_map.with_extremes(bad=FOLDED)
