"""Whether a closed polygon crosses or touches itself, decided exactly."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

# Of the sign of an orientation in double: vertices, differences and products are all rounded.
_ROUNDING = 32 * 2.0**-53


@np.errstate(over="ignore", invalid="ignore")  # of values beyond all measure: not positive
def signed_area(vertices: np.ndarray) -> float:
    """Of a closed polygon (n, 2); positive where it runs from axis 0 to axis 1."""
    x, y = (vertices - vertices.mean(0)).T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y) / 2)


@np.errstate(over="ignore", invalid="ignore")  # fractions decide
def crossing_edges(grid: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Edges of the closed polygon of the vertices grid + shift that cross or touch another one.

    Args:
        grid: (n, 2), whole numbers.
        shift: (n, 2), float64. Where double does not decide a sign, fractions do, of these numbers.

    Returns:
        Their numbers, ascending, edge k being that from vertex k; none where the polygon is simple.
    """
    start = grid + shift
    end = np.roll(start, -1, 0)
    n = len(start)
    along, after = end - start, np.roll(end - start, -1, 0)
    forwards = (along * after).sum(1)
    doubtful = forwards <= _ROUNDING * np.abs(start).max() * np.abs(along).max() * 4
    back = [int(i) for i in doubtful.nonzero()[0] if _folds_back(grid, shift, int(i))]
    found = {*back, *((i + 1) % n for i in back)}
    first, second = _meeting_boxes(start, end)
    neighbours = (second - first == 1) | (second - first == n - 1)
    first, second = first[~neighbours], second[~neighbours]
    a, b, c, d = start[first], end[first], start[second], end[second]
    sides = np.stack([_signs(a, b, c), _signs(a, b, d), _signs(c, d, a), _signs(c, d, b)])
    cross = (sides[0] * sides[1] == -1) & (sides[2] * sides[3] == -1)
    apart = (sides[0] * sides[1] == 1) | (sides[2] * sides[3] == 1)
    found.update(first[cross].tolist(), second[cross].tolist())
    for i, j in zip(first[~apart & ~cross], second[~apart & ~cross], strict=True):
        if _meet(grid, shift, int(i), int(j)):
            found.update((int(i), int(j)))
    return np.array(sorted(found), dtype=np.int64)


def _meeting_boxes(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs i < j of edges whose bounding boxes meet.

    Edges are swept along the diagonal: along an axis, a straight side would lie in one place.
    """
    ends = start.sum(1), end.sum(1)
    slack = _ROUNDING * np.abs(np.stack(ends)).max()
    order = np.argsort(np.minimum(*ends), kind="stable")
    from_, to = np.minimum(*ends)[order] - slack, np.maximum(*ends)[order] + slack
    low, high = np.minimum(start, end)[order], np.maximum(start, end)[order]
    last = np.searchsorted(from_, to, side="right")
    counts = last - np.arange(len(order)) - 1
    first = np.repeat(np.arange(len(order)), counts)
    offset = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
    second = first + 1 + offset
    meets = ((low[first] <= high[second]) & (low[second] <= high[first])).all(1)
    i, j = order[first[meets]], order[second[meets]]
    return np.minimum(i, j), np.maximum(i, j)


def _signs(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Side of c beside the line from a to b: -1 or 1; 0 where double cannot tell."""
    left, right = (b - a)[:, 0] * (c - a)[:, 1], (b - a)[:, 1] * (c - a)[:, 0]
    extent = np.abs(b - a).sum(1) + np.abs(c - a).sum(1)
    largest = np.abs(np.stack([a, b, c])).max((0, 2))
    bound = _ROUNDING * (largest * extent + np.abs(left) + np.abs(right))
    value = left - right
    return np.where(np.abs(value) > bound, np.sign(value), 0)


def _exact(grid: np.ndarray, shift: np.ndarray, index: int) -> tuple[Fraction, Fraction]:
    pairs = zip(grid[index].tolist(), shift[index].tolist(), strict=True)
    x, y = (Fraction(whole) + Fraction(rest) for whole, rest in pairs)
    return x, y


def _edge(grid: np.ndarray, shift: np.ndarray, index: int) -> list[tuple[Fraction, Fraction]]:
    return [_exact(grid, shift, k % len(grid)) for k in (index, index + 1)]


def _side(a, b, c) -> Fraction:
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def _meet(grid: np.ndarray, shift: np.ndarray, i: int, j: int) -> bool:
    """Whether two edges without a common vertex share a point."""
    (a, b), (c, d) = _edge(grid, shift, i), _edge(grid, shift, j)
    sides = _side(a, b, c), _side(a, b, d), _side(c, d, a), _side(c, d, b)
    if sides[0] * sides[1] < 0 and sides[2] * sides[3] < 0:
        return True
    ends = ((a, b, c), (a, b, d), (c, d, a), (c, d, b))
    return any(side == 0 and _between(*end) for side, end in zip(sides, ends, strict=True))


def _between(a, b, c) -> bool:
    """Whether c, on the line through a and b, lies between them."""
    return all(min(a[k], b[k]) <= c[k] <= max(a[k], b[k]) for k in (0, 1))


def _folds_back(grid: np.ndarray, shift: np.ndarray, i: int) -> bool:
    """Whether an edge and the next one share more than their vertex."""
    (a, b), (_, c) = _edge(grid, shift, i), _edge(grid, shift, (i + 1) % len(grid))
    if a == b or b == c:
        return True
    straight = _side(a, b, c) == 0
    return straight and sum((b[k] - a[k]) * (c[k] - b[k]) for k in (0, 1)) < 0
