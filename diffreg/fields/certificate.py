"""Whether a displacement folds: exactly, for the continuous map, linear between voxels, of `warp`.

On a bilinear cell the Jacobian determinant is affine, so that its four corners tell all of it; of a
trilinear one `trilinear` says what it does inside. Where it is positive in all cells and the border
is mapped one to one, the map is a homeomorphism onto its image: of an image the border's image must
be a simple polygon, and a volume gets a collar around which nothing moves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from diffreg.fields.polygon import crossing_edges, signed_area
from diffreg.fields.trilinear import collar_folds, folded_volume, judged
from diffreg.ops import jacobian_determinant
from diffreg.ops._checks import check_displacement
from diffreg.ops._flat_axis import flat_axis, without_axis

# Of the corners' determinants in double: 8 u ((1 + |s|)(1 + |t|) + |b c|), s, t, b, c the
# differences of the displacement along the axes, bounds what six operations round off.
_ROUNDING = 8 * 2.0**-53


@dataclass(frozen=True)
class FoldCertificate:
    """What is known of phi = id + u, for all points of the grid's cells.

    Args:
        smallest_determinant: of the Jacobian, in double; of an image it is exact, and taken at the
            corner of a cell; of a volume it is the smallest that was found.
        where: that place, in voxels; of a volume it may lie inside a cell.
        cells: how many the grid has.
        folded_cells: those with a determinant that is not above `threshold`, or within its rounding
            bound of it; and the undecided ones.
        threshold: of the determinant.
        boundary_injective: whether the border is mapped one to one: its image is a simple polygon,
            or the volume has a collar. Of a volume that folds no collar is looked for.
        boundary_oriented: whether the border's image runs round as the border does; it does where
            no cell folds. Of a volume that folds it is not looked at.
        determinant_bound: what no determinant is below; beside `smallest_determinant` a bracket.
        undecided_cells: of a volume, those of which so many halvings do not tell.
        folded_inside: of a volume, folded cells whose eight corners are all above the threshold.
        folded_volume: in voxels, what of the grid has a determinant not above the threshold, by 64
            points in each folded cell; of an image 16.
    """

    smallest_determinant: float
    where: tuple[float, ...]
    cells: int
    folded_cells: int
    threshold: float
    boundary_injective: bool
    boundary_oriented: bool
    determinant_bound: float
    undecided_cells: int
    folded_inside: int
    folded_volume: float

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
        """ "homeomorphism"; "locally unfolded", where only the border fails; "folded"; or, where no
        determinant is known to be 0 or less, "not above" the threshold.
        """
        if self.folded_cells:
            folds = not self.threshold or self.smallest_determinant <= 0
            return "folded" if folds else f"not above {self.threshold:g}"
        return "homeomorphism" if self.boundary_injective else "locally unfolded"

    def __str__(self) -> str:
        at = ", ".join(f"{index:.8g}" for index in self.where)
        place = f"smallest determinant {self.smallest_determinant:.4g} at voxel ({at})"
        if self.folded_cells:
            share = f"{self.folded_cells} of {self.cells} cells ({100 * self.folded_share:.3g} %)"
            have = f"have a determinant of {self.threshold:g} or less{self._of_those}"
            return f"{self.verdict}: {share} {have}; {place}"
        if self.passes:
            return f"homeomorphism: no cell folds and the border is mapped one to one; {place}"
        why = (
            "the border's image crosses itself"
            if len(self.where) == 2
            else "no collar shows that the border is mapped one to one"
        )
        return f"locally unfolded: no cell folds, but {why}; {place}"

    @property
    def _of_those(self) -> str:
        """Of a volume's folded cells, which ones other tests overlook, and which may be none."""
        kinds = ((self.folded_inside, "inside only"), (self.undecided_cells, "undecided"))
        return "".join(f", {count} {words}" for count, words in kinds if count)


def fold_certificate(displacement: torch.Tensor, threshold: float = 0.0) -> FoldCertificate:
    """Certifies a displacement, or says where it folds.

    Exact for the map, linear between voxels, of the values as they are stored: determinants are
    computed in double, and one within its rounding bound of the threshold counts as failing; the
    intersections of an image's border are decided exactly. Of a volume each cell is unfolded,
    folded at a point that was found, or undecided after eight halvings, which counts as folded;
    and that its border is mapped one to one is shown by a collar, where it is shown.

    Args:
        displacement: (1, D, *S), voxels, any floating dtype, on the CPU or a GPU. D = 2 or 3, two
            voxels an axis at least; but a volume of one plane is an image, whose displacement
            across that plane does not matter.
        threshold: what determinants must exceed.

    Returns:
        The certificate; str() says it in words.

    Raises:
        TypeError, ValueError: not one field, values that are not finite, or a negative threshold.

    Source:
        The determinant of a bilinear cell is affine; of a trilinear one Bernstein coefficients
        bound it (Johnen, Remacle and Geuzaine 2013). A local homeomorphism of a disc that is
        injective on the border is one (for example Lipman 2014, theorem 1). For cells that meet at
        edges and vertices Scholtes 1996, for the whole docs/folding.md.

    Example:
        >>> import torch
        >>> from diffreg.fields import fold_certificate
        >>> fold_certificate(torch.zeros(1, 2, 8, 8)).verdict
        'homeomorphism'
    """
    u = _one_field(displacement)
    if not 0 <= threshold < math.inf:
        raise ValueError(f"threshold must be finite and not negative, got {threshold}")
    if u.ndim == 5:
        return _certified_volume(u, threshold)
    found = _certified_image(u.double(), threshold)
    axis = flat_axis(displacement)
    if axis is None:
        return found
    return replace(found, where=(*found.where[:axis], 0, *found.where[axis:]))


def _certified_volume(u: torch.Tensor, threshold: float) -> FoldCertificate:
    found = judged(u, threshold)
    folded = int(found.folded.sum())
    unfolds = folded == 0 and not len(collar_folds(u))
    return FoldCertificate(
        smallest_determinant=found.smallest,
        where=found.where,
        cells=found.folded.numel(),
        folded_cells=folded,
        threshold=threshold,
        boundary_injective=unfolds,
        boundary_oriented=folded == 0,
        determinant_bound=found.bound,
        undecided_cells=int(found.undecided.sum()),
        folded_inside=int(found.inside.sum()),
        folded_volume=folded_volume(u, found.folded, threshold),
    )


def _certified_image(u: torch.Tensor, threshold: float) -> FoldCertificate:
    corners = jacobian_determinant(u)[0]  # (4, H - 1, W - 1), corner a + 2 b at vertex (a, b)
    smallest = corners.amin(0)
    value, place = smallest.flatten().min(0)
    row, column = divmod(int(place), smallest.shape[1])
    corner = int(corners[:, row, column].argmin())
    ring = border(u[0].cpu())
    fails = failing_cells(u, corners, threshold)
    folded = int(fails.sum())
    return FoldCertificate(
        smallest_determinant=float(value),
        where=(row + corner % 2, column + corner // 2),
        cells=smallest.numel(),
        folded_cells=folded,
        threshold=threshold,
        boundary_injective=not len(crossing_edges(*ring)),
        # What the border encloses, with its sign, is the integral of the determinant.
        boundary_oriented=folded == 0 or signed_area(ring[0] + ring[1]) > 0,
        determinant_bound=float(value) - _largest_error(u),
        undecided_cells=0,
        folded_inside=0,
        folded_volume=_folded_area(corners[:, fails], threshold),
    )


def _folded_area(corners: torch.Tensor, threshold: float) -> float:
    """Of folded cells (4, cells), by 16 points in each."""
    t = (torch.arange(4).to(corners) + 0.5) / 4
    basis = torch.stack([1 - t, t])  # of the corners along one axis
    values = torch.einsum("bac,ai,bj->cij", corners.reshape(2, 2, -1), basis, basis)
    return int((~(values > threshold)).sum()) / 16


def _largest_error(u: torch.Tensor) -> float:
    """The rounding bound of every determinant of an image."""
    reach = 2 * u.abs().max()  # of all differences
    return float(_ROUNDING * ((1 + reach) ** 2 + reach**2))


def failing_cells(u: torch.Tensor, corners: torch.Tensor, threshold: float) -> torch.Tensor:
    """Cells (H - 1, W - 1) with a corner not above the threshold by more than its rounding.

    Args:
        u: (1, 2, H, W), float64.
        corners: its determinants, (4, H - 1, W - 1).
        threshold: what they must exceed.
    """
    doubtful = ~(
        corners.amin(0) > threshold + _largest_error(u)
    )  # NaN, of values beyond all measure, too
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


def _one_field(displacement: torch.Tensor) -> torch.Tensor:
    """(1, D, *S), detached; of a volume of one plane the image."""
    check_displacement(displacement)
    shape = list(displacement.shape)
    u = displacement.detach()
    axis = flat_axis(u)
    if u.ndim == 5 and axis is not None:
        u = without_axis(u, axis)
    if shape[0] != 1 or min(u.shape[2:]) < 2:
        raise ValueError(
            "displacement must be one field (1, 2, H, W) or (1, 3, Z, H, W) of at least 2 voxels "
            f"an axis, but one of a volume's, got {shape}"
        )
    if not bool(torch.isfinite(u).all()):
        raise ValueError("displacement must be finite; it holds values that are NaN or infinite")
    return u.contiguous()
