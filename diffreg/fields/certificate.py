"""Whether a displacement folds: exactly, for the continuous bilinear map that `warp` samples.

On a bilinear cell the Jacobian determinant is affine, so that its four corners tell all of it.
Where all are positive and the image of the grid's border is a simple polygon that runs the right
way round, the map is a homeomorphism onto what the polygon encloses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from diffreg.fields.polygon import crossing_edges, signed_area
from diffreg.ops import jacobian_determinant
from diffreg.ops._checks import check_displacement, check_flat

# Of the corners' determinants in double: 8 u ((1 + |s|)(1 + |t|) + |b c|), s, t, b, c the
# differences of the displacement along the axes, bounds what six operations round off.
_ROUNDING = 8 * 2.0**-53


@dataclass(frozen=True)
class FoldCertificate:
    """What is known of phi = id + u, for all points of the grid's cells.

    Args:
        smallest_determinant: of the Jacobian, in double; it is taken at the corner of a cell.
        where: that corner, in voxels.
        cells: how many the grid has.
        folded_cells: those with a determinant that is not above `threshold`, or within its rounding
            bound of it.
        threshold: of the determinant.
        boundary_injective: whether the image of the grid's border is a simple polygon.
        boundary_oriented: whether that runs round as the border does; it does where no cell folds.
    """

    smallest_determinant: float
    where: tuple[int, int]
    cells: int
    folded_cells: int
    threshold: float
    boundary_injective: bool
    boundary_oriented: bool

    @property
    def folded_share(self) -> float:
        """Folded cells in parts of all, 0 to 1."""
        return self.folded_cells / self.cells

    @property
    def passes(self) -> bool:
        """Whether the map is certified to be a homeomorphism."""
        return self.verdict == "homeomorphism"

    @property
    def verdict(self) -> str:
        """ "homeomorphism"; "locally unfolded", where only the border fails; or "folded"."""
        if self.folded_cells:
            return "folded"
        return "homeomorphism" if self.boundary_injective else "locally unfolded"

    def __str__(self) -> str:
        place = f"smallest determinant {self.smallest_determinant:.4g} at voxel {self.where}"
        if self.folded_cells:
            share = f"{self.folded_cells} of {self.cells} cells ({100 * self.folded_share:.3g} %)"
            limit = f" below {self.threshold:g}" if self.threshold else ""
            return f"folded: {share} have a determinant{limit or ' of 0 or less'}; {place}"
        if self.passes:
            return f"homeomorphism: no cell folds and the border is mapped one to one; {place}"
        return f"locally unfolded: no cell folds, but the border's image crosses itself; {place}"


def fold_certificate(displacement: torch.Tensor, threshold: float = 0.0) -> FoldCertificate:
    """Certifies a displacement, or says where it folds.

    Exact for the bilinear map of the values as they are stored: determinants are computed in
    double, and one within its rounding bound of the threshold counts as failing; the border's
    intersections are decided exactly.

    Args:
        displacement: (1, D, *S), voxels, any floating dtype. D = 2, two voxels an axis at least.
        threshold: what determinants must exceed.

    Returns:
        The certificate; str() says it in words.

    Raises:
        TypeError, ValueError: not one field, values that are not finite, or a negative threshold.

    Source:
        The determinant of a bilinear cell is affine; a local homeomorphism of a disc that is
        injective on the border is one (for example Lipman 2014, theorem 1).

    Example:
        >>> import torch
        >>> from diffreg.fields import fold_certificate
        >>> fold_certificate(torch.zeros(1, 2, 8, 8)).verdict
        'homeomorphism'
    """
    u = _one_field(displacement)
    if not 0 <= threshold < math.inf:
        raise ValueError(f"threshold must be finite and not negative, got {threshold}")
    corners = jacobian_determinant(u)[0]  # (4, H - 1, W - 1), corner a + 2 b at vertex (a, b)
    smallest = corners.amin(0)
    value, place = smallest.flatten().min(0)
    row, column = divmod(int(place), smallest.shape[1])
    corner = int(corners[:, row, column].argmin())
    ring = border(u[0].cpu())
    folded = int(failing_cells(u, corners, threshold).sum())
    return FoldCertificate(
        smallest_determinant=float(value),
        where=(row + corner % 2, column + corner // 2),
        cells=smallest.numel(),
        folded_cells=folded,
        threshold=threshold,
        boundary_injective=not len(crossing_edges(*ring)),
        # What the border encloses, with its sign, is the integral of the determinant.
        boundary_oriented=folded == 0 or signed_area(ring[0] + ring[1]) > 0,
    )


def failing_cells(u: torch.Tensor, corners: torch.Tensor, threshold: float) -> torch.Tensor:
    """Cells (H - 1, W - 1) with a corner not above the threshold by more than its rounding.

    Args:
        u: (1, 2, H, W), float64.
        corners: its determinants, (4, H - 1, W - 1).
        threshold: what they must exceed.
    """
    reach = 2 * u.abs().max()  # of all differences
    bound = _ROUNDING * ((1 + reach) ** 2 + reach**2)
    doubtful = ~(corners.amin(0) > threshold + bound)  # NaN, of values beyond all measure, too
    if bool(doubtful.any()):
        i, j = doubtful.nonzero(as_tuple=True)
        own = _ROUNDING * _magnitudes(u[0], i, j)
        doubtful[i, j] = ~(corners[:, i, j] > threshold + own).all(0)
    return doubtful


def _magnitudes(u: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
    """(1 + |s|)(1 + |t|) + |b c| at the four corners of cells (i, j), (4, cells)."""
    along_0 = [(u[:, i + 1, j + b] - u[:, i, j + b]).abs() for b in (0, 1)]
    along_1 = [(u[:, i + a, j + 1] - u[:, i + a, j]).abs() for a in (0, 1)]
    return torch.stack(
        [
            (1 + along_0[b][0]) * (1 + along_1[a][1]) + along_0[b][1] * along_1[a][0]
            for b in (0, 1)
            for a in (0, 1)
        ]
    )


def border(u: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Voxels of the grid's border, (n, 2), counter-clockwise in (axis 0, axis 1), and u there."""
    height, width = u.shape[1:]
    down = [(i, 0) for i in range(height - 1)]
    right = [(height - 1, j) for j in range(width - 1)]
    up = [(i, width - 1) for i in range(height - 1, 0, -1)]
    left = [(0, j) for j in range(width - 1, 0, -1)]
    ring = np.array(down + right + up + left)
    return ring.astype(np.float64), u.numpy()[:, ring[:, 0], ring[:, 1]].T


def largest_safe_scale(
    displacement: torch.Tensor, threshold: float = 0.0, limit: float = math.inf
) -> float:
    """Supremum of the t up to `limit` such that no s u, s < t, has a determinant of `threshold`.

    Connected to 0: u = -2 x folds as it grows and unfolds again beyond, which does not count.

    Args:
        displacement: (1, D, *S), voxels, any floating dtype. D = 2, two voxels an axis at least.
        threshold: in [0, 1).
        limit: largest scale of interest.

    Returns:
        The scale, in double; at least 0, infinite where nothing ever folds and no limit is given.

    Raises:
        TypeError, ValueError: as `fold_certificate`, or a threshold or limit out of range.

    Example:
        >>> import torch
        >>> from diffreg.fields import identity_grid, largest_safe_scale
        >>> largest_safe_scale(-2 * identity_grid((8, 8)))
        0.5
    """
    u = _one_field(displacement)
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be in [0, 1), got {threshold}")
    if not limit > 0:
        raise ValueError(f"limit must be positive, got {limit}")
    # J(t) = 1 + B t + C t^2 at each corner, C the determinant of the differences alone.
    along_0, along_1 = torch.diff(u[0], dim=1), torch.diff(u[0], dim=2)
    scale = limit
    for a in (0, 1):
        for b in (0, 1):
            e = along_0[:, :, b : b + along_1.shape[2]]
            f = along_1[:, a : a + along_0.shape[1], :]
            first, second = e[0] + f[1], e[0] * f[1] - e[1] * f[0]
            product = 4 * second * (1 - threshold)
            inside = first**2 - product
            # A double root, which touches and does not cross, counts, and rounding may hide it.
            real = inside >= -_ROUNDING * (first**2 + product.abs())
            root = inside.clamp(min=0).sqrt()
            # Of the two forms of the smallest positive root the one without cancellation.
            falls, bends = (
                real & (first <= 0) & (root - first > 0),
                real & (first > 0) & (second < 0),
            )
            for crosses, at in (
                (falls, 2 * (1 - threshold) / (root - first)),
                (bends, (first + root) / (-2 * second)),
            ):
                if bool(crosses.any()):
                    scale = min(scale, float(at[crosses].min()))
    return scale


def _one_field(displacement: torch.Tensor) -> torch.Tensor:
    """(1, 2, H, W) in double, detached."""
    check_displacement(displacement)
    check_flat("displacement", displacement, "the certificate")
    shape = list(displacement.shape)
    if shape[0] != 1 or min(shape[2:]) < 2:
        raise ValueError(
            f"displacement must be one field (1, 2, H, W) of at least 2 voxels an axis, got {shape}"
        )
    u = displacement.detach().to(torch.float64).contiguous()
    if not bool(torch.isfinite(u).all()):
        raise ValueError("displacement must be finite; it holds values that are NaN or infinite")
    return u
