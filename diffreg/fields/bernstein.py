"""The Jacobian determinant of trilinear cells as polynomials: Bernstein coefficients, halving.

The determinant of phi = id + u is quadratic along each axis of a cell. Of its 27 Bernstein
coefficients the smallest bounds it from below in all of the cell, the eight at the corners are its
values there, and halving the cell brings bound and values together (de Casteljau).
"""

from __future__ import annotations

import itertools

import torch

# Coefficient 9 i + 3 j + k has degree index i, j, k along axes 0, 1, 2; the corners' have 0 or 2.
CORNERS = [9 * i + 3 * j + k for i, j, k in itertools.product((0, 2), repeat=3)]
# Those corners, and the eight parts of a cell, in parts of its length (8, 3).
ENDS = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)), dtype=torch.float64)
_UNIT = 2.0**-53
_Vector = tuple[torch.Tensor, ...]
# Vertex a + 2 b + 4 c of a cell: the lower ends of the four edges along each axis.
_LOW = [[0, 2, 4, 6], [0, 1, 4, 5], [0, 1, 2, 3]]


def differences(u: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Of the displacement along the edges of some cells.

    Args:
        u: (1, 3, *S), any floating dtype, contiguous.
        cells: (K,), numbers of cells in the grid of *(S - 1) of them.

    Returns:
        (K, 3, 4, 3), float64: axis, edge, component; edges are numbered by their ends along the
        other axes, the first one fastest.
    """
    height, width = u.shape[3:]
    plane, row, column = unravelled(cells, u)
    first = (plane * height + row) * width + column
    steps = torch.tensor([height * width, width, 1], device=u.device)
    corners = torch.stack([torch.arange(8, device=u.device) >> k & 1 for k in range(3)], 1)
    values = u.reshape(3, -1)[:, first[:, None] + (corners * steps).sum(1)].double()  # (3, K, 8)
    low = torch.tensor(_LOW, device=u.device)
    high = low + torch.tensor([[1], [2], [4]], device=u.device)
    return (values[:, :, high] - values[:, :, low]).permute(1, 2, 3, 0)


def unravelled(cells: torch.Tensor, u: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Indices along the axes of cells (K,) given by number in the grid of u (1, 3, *S)."""
    rows, columns = u.shape[3] - 1, u.shape[4] - 1
    return cells // (rows * columns), cells // columns % rows, cells % columns


def coefficients(along: torch.Tensor) -> torch.Tensor:
    """The Bernstein coefficients (K, 27) of the determinant, given `differences`.

    The edge along an axis is linear along the others; a coefficient of a product of linear forms is
    the mean over the ways to put its index together from theirs.
    """
    edges = along + torch.eye(3, dtype=along.dtype, device=along.device)[:, None]
    return means(_triple(edges[:, 0], edges[:, 1], edges[:, 2]))


def means(products: torch.Tensor) -> torch.Tensor:
    """(K, 27), given one value for every choice of an edge along each axis, (K, 4, 4, 4)."""
    return products.reshape(-1, 64) @ _MEANS.to(products)


def _triple(e: torch.Tensor, f: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """e . (f x g) of all edges with all, (K, 4, 4, 4)."""
    across = torch.linalg.cross(f[:, :, None], g[:, None], dim=3)
    return torch.einsum("kac,kbdc->kabd", e, across)


def magnitudes(along: torch.Tensor) -> torch.Tensor:
    """What no coefficient, taken without its signs, exceeds, (K,); rounding is in parts of it.

    The permanent of the largest edges: unit vectors plus the absolute differences.
    """
    return 1 + magnitude_orders(along).sum(1)


def orders(along: torch.Tensor) -> torch.Tensor:
    """B, C and D of the coefficients of phi = id + s u, 1 + B s + C s^2 + D s^3: (K, 3, 27)."""
    e, f, g = along[:, 0, :, None, None], along[:, 1, None, :, None], along[:, 2, None, None]
    found = _orders(e.unbind(-1), f.unbind(-1), g.unbind(-1), -1)
    return torch.stack([means(order.expand(-1, 4, 4, 4)) for order in found], 1)


def magnitude_orders(along: torch.Tensor) -> torch.Tensor:
    """The same of `magnitudes`, (K, 3)."""
    e, f, g = along.abs().amax(2).unbind(1)
    return torch.stack(_orders(e.unbind(1), f.unbind(1), g.unbind(1), 1), 1)


def _orders(e: _Vector, f: _Vector, g: _Vector, sign: int) -> list[torch.Tensor]:
    """Of det(I + s (e f g)), given the components of the vectors; for +1 of the permanent."""
    minors = [
        e[0] * f[1] + sign * e[1] * f[0],
        f[1] * g[2] + sign * f[2] * g[1],
        g[2] * e[0] + sign * g[0] * e[2],
    ]
    across = f[2] * g[0] + sign * f[0] * g[2], f[0] * g[1] + sign * f[1] * g[0]
    third = e[0] * minors[1] + e[1] * across[0] + e[2] * across[1]
    return [e[0] + f[1] + g[2], minors[0] + minors[1] + minors[2], third]


def rounding(halvings: int = 0) -> float:
    """Of a coefficient after so many halvings, in parts of `magnitudes`.

    With u = 2^-53: an edge's component is two roundings, so a product of three has six; the cross
    product rounds twice, the scalar product three times, and the sum of up to eight of them seven
    times; weights are powers of two. That is 18 u. Halving sums up to 27 numbers whose weights are
    powers of two that add up to 1: 26 u. The rest is for the terms of second order.
    """
    return (24 + 32 * halvings) * _UNIT


def halved(found: torch.Tensor) -> torch.Tensor:
    """The coefficients of a polynomial (P, 27) on the eight parts of its cell, (P, 8, 27).

    Parts come in the order of `ENDS`.
    """
    return (found @ _HALVES.to(found)).reshape(-1, 8, 27)


def at_points(found: torch.Tensor, points: int) -> torch.Tensor:
    """Values of polynomials (K, 27) at the middles of points^3 equal parts, (K, points^3)."""
    t = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    basis = torch.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2])  # (3, points)
    return found @ torch.kron(torch.kron(basis, basis), basis).to(found)


def _mean_weights() -> torch.Tensor:
    """(64, 27): which products of edges make up which coefficient."""
    weights = torch.zeros(64, 27, dtype=torch.float64)
    for number, (e, f, g) in enumerate(itertools.product(range(4), repeat=3)):
        i, j, k = f % 2 + g % 2, e % 2 + g // 2, e // 2 + f // 2
        middles = (i == 1) + (j == 1) + (k == 1)
        weights[number, 9 * i + 3 * j + k] = 0.5**middles
    return weights


def _halving_weights() -> torch.Tensor:
    """(27, 8 x 27): de Casteljau's at the middle, along all axes."""
    left = torch.tensor([[1, 0, 0], [0.5, 0.5, 0], [0.25, 0.5, 0.25]], dtype=torch.float64)
    both = torch.cat([left, left.flip(0, 1)])  # (6, 3): the lower half's, the upper half's
    weights = torch.kron(torch.kron(both, both), both).reshape(2, 3, 2, 3, 2, 3, 27)
    return weights.permute(0, 2, 4, 1, 3, 5, 6).reshape(8 * 27, 27).T.contiguous()


_MEANS = _mean_weights()
_HALVES = _halving_weights()
