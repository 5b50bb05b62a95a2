"""Two images brought onto each other as a whole, before anything is deformed.

x in the fixed image -> T x in the moving one, RAS mm
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffreg.affine.image import PlacedImage
from diffreg.affine.loss import DISSIMILARITIES, FEW, AffineLoss, sums
from diffreg.affine.parameters import KINDS, Decomposition, decomposed
from diffreg.affine.search import best_map, levels
from diffreg.data.comparable import check_type
from diffreg.data.geometry import Image, voxel_map
from diffreg.data.given import as_pair, on_grid_of
from diffreg.data.grid import Grid
from diffreg.data.normalization import normalize
from diffreg.data.resampling import resample_to
from diffreg.system.torch_modes import usual_modes

# Where all that is minimised after it is of these, an affine map is compared by "ncc", else by
# "mi"; "lncc" alone goes by itself.
WITHIN = {"ssd", "ncc", "lncc"}
# Correlation by the headers from which no map may lower it. Of 60 pairs of heads that were aligned
# already, 16 maps by "mi" did, by .002 at most; in 13 of the 16 the labels overlapped less by them.
ONE_CONTRAST = 0.9
COMMON = 0.1  # of the fixed image: with less in common, each map is judged by what it compares


@dataclass(frozen=True)
class AffineStart:
    """A map of the world, and what it is worth.

    Args:
        matrix: (4, 4) float64, RAS mm, from the fixed image to the moving one; it leaves the normal
            of slices alone.
        kind: "none", "translation", "rigid", "similarity" or "affine".
        similarity: "ncc", "mi" or "lncc".
        start: what the search began from where it found the map: "header", "centres of mass",
            "centres of the grids", or "turned by 90 degrees about the centres of mass".
        before: the similarity by the headers alone, more is better.
        after: the same by the map.
        kept: whether the map was better; else `matrix` is the identity. Where the images are one by
            the headers, or correlate by `ONE_CONTRAST` and less by the map, it is not.
        seconds: wall time.
        centre: (3,), the middle of the fixed image, RAS mm, whose shift is told.
        search: whether any turn was looked for.
        in_common: whether both are over the voxels that both compare; each over its own where those
            are less than `COMMON` of the fixed image, and then how many they are decides, too.
    """

    matrix: np.ndarray
    kind: str
    similarity: str
    start: str
    before: float
    after: float
    kept: bool
    seconds: float
    centre: np.ndarray
    search: bool = False
    in_common: bool = True

    @property
    def decomposition(self) -> Decomposition:
        """How far the map turns (degrees), shifts the fixed image's centre (mm) and scales."""
        return decomposed(self.matrix, self.centre)

    @property
    def words(self) -> str:
        """What was done, in a line."""
        name = self.similarity.upper()
        if self.kind == "none":
            return f"no affine start; {name} {self.before:.2f}"
        head = f"{self.kind} ({self.similarity})"
        if not self.kept:
            return f"{head}: not kept, the headers fit as well or better; {name} {self.before:.2f}"
        turn, shift, scale = self.decomposition
        scaled = f", scaled by {100 * (scale - 1):+.0f} %" if abs(scale - 1) >= 0.005 else ""
        return (
            f"{head}: turned by {turn:.1f} degrees, shifted by {shift:.1f} mm{scaled}; "
            f"{name} {self.before:.2f} -> {self.after:.2f} on "
            f"{'the common' if self.in_common else 'other'} voxels, {self.seconds:.1f} s"
        )


@usual_modes()
def register_affine(
    moving: Any,
    fixed: Any,
    kind: str = "affine",
    similarity: str | None = "auto",
    mask: Any = None,
    moving_mask: Any = None,
    search: bool = False,
) -> AffineStart:
    """Find the map of the world at which the moving image fits the fixed one best.

    Volumes move in space, slices in their plane. Only what both images show, and both masks
    select, is compared; a map that leaves less than half of what the fixed image shows pays for it.
    The search begins at the headers, at the centres of the grids and of mass, and there at turns
    all round; what is best at a 21st of the fixed image's extent (8 mm in a head) is refined at a
    42nd and an 84th. The same images give the same bits on any number of threads.

    Args:
        moving: the image to be moved; images are what `diffreg.register` takes.
        fixed: the image that stays.
        kind: "none", "translation", "rigid", "similarity" (with one scale) or "affine".
        similarity: "ncc" within a contrast, "mi" across, "lncc" where brightness drifts; "auto" or
            None: as the start of `diffreg.register` where nothing is said, "mi".
        mask: voxels of the fixed image that count where it is > 0; through its header on any grid.
        moving_mask: voxels of the moving image that count where it is > 0; on any grid as well.
        search: begin at hundreds of turns instead of 24, for images that lie in any way.

    Returns:
        The map. It is kept where it is better than the headers on the voxels that both compare:
        by the similarity, and by ncc, too, where by the headers that is 0.9 or more.

    Raises:
        TypeError: an argument of another type.
        ValueError: another kind or similarity, a slice and a volume, slices of different planes, an
            image that is constant where it counts, or a mask that selects nothing of it.

    Source:
        Jenkinson and Smith 2001 for a search from many starts, coarse to fine.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image
        >>> from diffreg.registration import register_affine
        >>> x = torch.arange(32.0).reshape(32, 1)
        >>> blob = torch.exp(-((x - 15) ** 2 / 18 + (x.T - 18) ** 2 / 50))[None, None]
        >>> shifted = np.eye(4)
        >>> shifted[:2, 3] = 4, -3
        >>> found = register_affine(Image(blob, shifted), Image(blob, np.eye(4)), "translation")
        >>> found.matrix[:3, 3].round(1).tolist()
        [4.0, -3.0, 0.0]
    """
    moving, fixed = as_pair(moving, fixed)
    if mask is not None:
        mask = on_grid_of(fixed, "mask", mask, label=True)
    if moving_mask is not None:
        moving_mask = on_grid_of(moving, "moving_mask", moving_mask, label=True)
    check_type("search", search, bool)
    return found_affine(moving, fixed, kind, similarity, mask, moving_mask, search)


def found_affine(
    moving: Image,
    fixed: Image,
    kind: str,
    similarity: str | None,
    mask: Image | None,
    moving_mask: Image | None,
    search: bool,
) -> AffineStart:
    """The same of images, which messages call as they are called."""
    _check_choice("kind", kind, ("none", *KINDS))
    _check_choice("similarity", similarity, (None, "auto", *DISSIMILARITIES))
    similarity = compared_by(similarity)
    begin = time.perf_counter()
    frame = _frame(fixed.grid)
    pair = _placed(moving, fixed, mask, moving_mask, frame)
    identity = torch.eye(len(fixed.shape) + 1, dtype=torch.float64)
    if kind == "none" or _same(moving, fixed):
        world, start, finest = identity, "header", levels(*pair, similarity)[-1]
    else:
        (start, world, _), finest = best_map(*pair, kind, similarity, search)
    judged, in_common = _judged(finest, torch.stack([identity, world]))
    (before, loss_before), (after, loss_after) = judged
    kept = loss_after < loss_before and not _correlate_less(finest, torch.stack([identity, world]))
    matrix = frame @ _embedded(world.numpy()) @ np.linalg.inv(frame) if kept else np.eye(4)
    seconds = time.perf_counter() - begin
    known = kind, similarity, start, before, after if kept else before, kept, seconds
    return AffineStart(matrix, *known, fixed.grid.centre, search, in_common)


def compared_by(similarity: str | Iterable[str] | None) -> str:
    """What an affine map is compared by, given what is minimised after it.

    Args:
        similarity: one measure or several, joined by "+" or not; "auto" or None: not known yet.

    Example:
        >>> from diffreg.affine.register import compared_by
        >>> [compared_by(names) for names in ("auto", "ncc+lncc", "lncc", ["ncc", "ngf"])]
        ['mi', 'ncc', 'lncc', 'mi']
    """
    if isinstance(similarity, str | None):
        similarity = (similarity or "auto").split("+")
    names = set(similarity)
    if names == {"lncc"}:
        return "lncc"
    return "ncc" if names <= WITHIN else "mi"


def _check_choice(name: str, value: str | None, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        known = ", ".join(filter(None, choices))
        raise ValueError(f"{name} must be one of {known}, got {value!r}")


def _frame(grid: Grid) -> np.ndarray:
    """Axes -> RAS mm, (4, 4): of a slice its plane, then the normal; of a volume the world's."""
    frame = np.eye(4)
    if grid.dimensions == 2:
        along, across = grid.direction.T
        normal = np.cross(along, across)
        normal /= np.linalg.norm(normal)
        frame[:3, :3] = np.stack([along, np.cross(normal, along), normal], 1)
        frame[:3, 3] = grid.origin
    return frame


def _embedded(world: np.ndarray) -> np.ndarray:
    """A map of D axes as one of three, (4, 4), that leaves the others alone."""
    matrix, axes = np.eye(4), [*range(len(world) - 1), 3]
    matrix[np.ix_(axes, axes)] = world
    return matrix


def _placed(
    moving: Image, fixed: Image, mask: Image | None, moving_mask: Image | None, frame: np.ndarray
) -> tuple[PlacedImage, PlacedImage]:
    """Both images in the frame."""
    to_moving = np.vstack([voxel_map(moving, fixed), np.eye(4)[3, -len(fixed.shape) - 1 :]])
    axes = [*range(len(fixed.shape)), 3]
    to_world = np.linalg.solve(frame, fixed.affine)[np.ix_(axes, axes)]
    places = to_world @ np.linalg.inv(to_moving), to_world
    (ours, theirs) = (
        PlacedImage(*_counted(image, chosen), torch.from_numpy(place))
        for image, chosen, place in zip((moving, fixed), (moving_mask, mask), places, strict=True)
    )
    return ours, theirs


def _counted(image: Image, mask: Image | None) -> tuple[Tensor, Tensor | None]:
    """Intensities in [0, 1] and what counts of them, None for all, (1, 1, *S) float32 each."""
    chosen = torch.ones_like(image.data, dtype=torch.bool) if image.valid is None else image.valid
    if mask is not None:
        chosen = chosen & (resample_to(mask, image, interpolation="nearest") > 0)
    if not bool(chosen.any()):
        raise ValueError(f"{mask.name if mask else 'mask'} selects no voxel of {image.name}")
    values = normalize(image.data, mask=chosen)
    seen = values[chosen]
    if not bool(seen.max() > seen.min()):
        raise ValueError(f"{image.name} is constant where it counts: there is nothing to compare")
    return values, None if bool(chosen.all()) else chosen.to(torch.float32)


def _judged(level: AffineLoss, worlds: Tensor) -> tuple[list[tuple[float, float]], bool]:
    """Similarity and loss of two maps, on common voxels or, where those are few, on its own."""
    with torch.no_grad():
        cover = level.cover(worlds)
        common = cover.prod(0, keepdim=True)
        in_common = float(sums(common * level.shown)) >= COMMON
        if in_common:
            loss = value = level.compared(worlds, common.expand_as(cover).contiguous())
        else:
            loss, value = level(worlds), level.compared(worlds, cover)
    shown = -value if level.similarity == "mi" else 1 - value
    return list(zip(shown.tolist(), loss.tolist(), strict=True)), in_common


def _same(moving: Image, fixed: Image) -> bool:
    """Whether the two are one image on one grid: a map by mutual information would move it."""
    return (
        moving.shape == fixed.shape
        and np.array_equal(moving.affine, fixed.affine)
        and torch.equal(moving.data, fixed.data)
    )


def _correlate_less(level: AffineLoss, worlds: Tensor) -> bool:
    """Whether the second of two maps fits worse in what the first shows to be one contrast.

    Mutual information of few voxels may rise where such images come apart. Where the two compare
    little in common, nothing is plain.
    """
    level = AffineLoss(level.moving, level.fixed, "ncc")
    with torch.no_grad():
        common = level.cover(worlds).prod(0, keepdim=True)
        if float(sums(common * level.shown)) < FEW:
            return False
        before, after = 1 - level.compared(worlds, torch.cat([common, common]))
    return bool(before >= ONE_CONTRAST and after < before)
