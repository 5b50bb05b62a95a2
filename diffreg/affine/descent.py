"""A minimum in a dozen parameters: BFGS with backtracking."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

ValueAndGradient = Callable[[np.ndarray], tuple[float, np.ndarray]]

SUFFICIENT = 1e-4  # of the decrease that the slope promises
SHORTER = 6  # times that a step is shortened before the search gives up


def minimise(
    function: ValueAndGradient,
    inverse: np.ndarray,
    longest: float,
    iterations: int,
    tolerance: float,
) -> tuple[np.ndarray, float]:
    """Go down from 0.

    Args:
        function: parameters (K,) -> value, gradient (K,).
        inverse: (K, K), the inverse Hessian to begin with.
        longest: length of a step at most.
        iterations: at most.
        tolerance: length of a step at which the search ends.

    Returns:
        The parameters and their value.

    Source:
        Nocedal and Wright, Numerical Optimization, algorithm 6.1.

    Example:
        >>> import numpy as np
        >>> from diffreg.affine.descent import minimise
        >>> bowl = lambda x: (float(((x - 3) ** 2).sum()), 2 * (x - 3))
        >>> minimise(bowl, np.eye(2), 1.0, 20, 1e-6)[0].round(6).tolist()
        [3.0, 3.0]
    """
    place = np.zeros(len(inverse))
    value, gradient = function(place)
    for _ in range(iterations):
        direction = -inverse @ gradient
        length = float(np.linalg.norm(direction))
        if not length > 0:
            break
        direction *= min(1.0, longest / length)
        found = _line(function, place, value, gradient, direction)
        if found is None:
            break
        move, value, after = found
        inverse = _updated(inverse, move, after - gradient)
        place, gradient = place + move, after
        if np.linalg.norm(move) < tolerance:
            break
    return place, value


def _line(
    function: ValueAndGradient,
    place: np.ndarray,
    value: float,
    gradient: np.ndarray,
    direction: np.ndarray,
) -> tuple[np.ndarray, float, np.ndarray] | None:
    """The first step along the direction that goes down enough; shortened by parabolas."""
    slope, share = float(gradient @ direction), 1.0
    for _ in range(SHORTER):
        there, after = function(place + share * direction)
        if there <= value + SUFFICIENT * share * slope:
            return share * direction, there, after
        bend = there - value - share * slope
        share *= min(0.5, max(0.1, -slope * share / (2 * bend))) if bend > 0 else 0.5
    return None


def _updated(inverse: np.ndarray, move: np.ndarray, change: np.ndarray) -> np.ndarray:
    """The inverse Hessian that knows one step more; as it was where that step bends down."""
    along = float(move @ change)
    if not along > 1e-10 * np.linalg.norm(move) * np.linalg.norm(change):
        return inverse
    left = np.eye(len(move)) - np.outer(move, change) / along
    return left @ inverse @ left.T + np.outer(move, move) / along
