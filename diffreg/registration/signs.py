"""What a registration shows that went wrong, in numbers, read off the result alone.

Lengths are in millimetres; between PNG files, which have no place in space, in pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffreg.data.geometry import Image
from diffreg.data.prepare import Compared, Prepared
from diffreg.data.resampling import coverage
from diffreg.metrics import ncc, normalized_mutual_information, smallest_determinant
from diffreg.registration.result import SAME_CONTRAST, Registration
from diffreg.registration.second_start import displacement_of, second_start

NCC, INFORMATION = "ncc", "normalized_mutual_information"
CONTENT = 0.1  # of the range of intensities: what is darker in both images is background
# Share of the compared voxels that are none; in masks of organs .97 and more, in fields of view .83
# and less, of heads .42.
NO_BACKGROUND = 0.9
ENOUGH = 2**15  # voxels to fit an affine map on, of many
# Of the histogram; fewer bins for fewer voxels, which in many bins make information by chance.
MOST_BINS, VOXELS_A_BIN = 32, 5


@dataclass(frozen=True)
class Motion:
    """The affine map that a displacement is nearest to, by least squares.

    Args:
        turn: degrees.
        shift: of the middle of the voxels that it was fitted on.
        growth: of lengths, 1 for none.
        share: of the squared displacement, from 0 to 1.
        length: root mean square of the affine part.
    """

    turn: float
    shift: float
    growth: float
    share: float
    length: float


@dataclass(frozen=True)
class Elsewhere:
    """Where a second start found the moving image to fit better.

    Args:
        turn: degrees.
        shift: its length.
        gain: of the edges' agreement, which is 1 at best, over the images as the files lie.
        apart: mean distance of the displacement from there.
    """

    turn: float
    shift: float
    gain: float
    apart: float


@dataclass(frozen=True)
class Signs:
    """What a result shows; lengths of the displacement where the images are not dark.

    Args:
        extent: the square root of the fixed image's area, the cube root of a volume.
        voxel: the same of a fixed voxel.
        smallest_determinant: of all corners; nan where there is no cell.
        measure: NCC within a contrast, else INFORMATION.
        before, after: of that, on the voxels that are compared.
        covered: share of the fixed voxels to be compared that the moving image shows.
        led_out: share of the voxels compared at the start that are led out of the moving image.
        moved: mean length of the displacement.
        motion: the affine part of the displacement.
        elsewhere: what a second start found; None: the images do not allow one.
        in_mask: whether they are volumes that are compared within a mask that leaves out the
            background.
    """

    extent: float
    voxel: float
    smallest_determinant: float
    measure: str
    before: float
    after: float
    covered: float
    led_out: float
    moved: float
    motion: Motion
    elsewhere: Elsewhere | None
    in_mask: bool = False

    @property
    def gained(self) -> float:
        """Of what was missing to perfect agreement, the part that was gained; 1: nothing was."""
        missing = (1.0 if self.measure == NCC else 2.0) - self.before
        return (self.after - self.before) / missing if missing > 1e-6 else 1.0


def signs_of(result: Registration, one_contrast: bool | None = None) -> Signs:
    """Measure what a result shows.

    Args:
        result: with or without its metrics.
        one_contrast: whether intensities can be compared; None: as its similarity has it.

    Example: `signs_of(register(moving, fixed)).moved`
    """
    compared, fixed = result.compared, result.fixed
    if one_contrast is None:
        one_contrast = set(result.similarity.split("+")) <= SAME_CONTRAST
    before, after = _agreement(result, one_contrast)
    content = _content(compared)
    dimensions = len(fixed.shape)
    voxel = math.prod(fixed.spacing) ** (1 / dimensions)
    cells = smallest_determinant(result.displacement)
    return Signs(
        extent=math.prod(fixed.shape) ** (1 / dimensions) * voxel,
        voxel=voxel,
        smallest_determinant=float(cells.min()) if cells.size else math.nan,
        measure=NCC if one_contrast else INFORMATION,
        before=before,
        after=after,
        covered=_covered(result.prepared),
        led_out=1 - float(compared.mask.sum()) / float(result.prepared.mask.sum()),
        moved=_mean_length(result.displacement, fixed, content),
        motion=motion_of(result.displacement, fixed, content),
        elsewhere=_elsewhere(result, content),
        in_mask=dimensions == 3 and _masked(result.prepared) and _without_background(compared),
    )


def motion_of(displacement: Tensor, fixed: Image, where: Tensor) -> Motion:
    """The affine map x + u = A x + b that a displacement is nearest to, x in mm.

    Args:
        displacement: (1, D, *S), fixed voxels.
        fixed: gives the voxels' lengths.
        where: (*S) bool, the voxels that count.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image
        >>> from diffreg.registration.signs import motion_of
        >>> shift = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1).expand(1, 2, 8, 8)
        >>> grid = Image(torch.zeros(1, 1, 8, 8), np.diag([2.0, 2.0, 1.0, 1.0]))
        >>> round(motion_of(shift, grid, torch.ones(8, 8, dtype=torch.bool)).shift, 6)
        10.0
    """
    length = torch.tensor(fixed.spacing, dtype=torch.float64)[:, None]
    places = where.nonzero()
    places = places[:: max(1, len(places) // ENOUGH)]
    x = places.T.to(torch.float64) * length
    u = displacement[0][(slice(None), *places.T)].to(torch.float64) * length
    x, shift = x - x.mean(1, keepdim=True), u.mean(1, keepdim=True)
    # By the pseudo-inverse: voxels of one line know nothing of the direction across it.
    linear = (u - shift) @ x.T @ torch.linalg.pinv(x @ x.T, hermitian=True)
    mapped = torch.eye(len(x), dtype=torch.float64) + linear
    affine, squared = (v.square().sum(0).mean() for v in (linear @ x + shift, u))
    return Motion(
        turn=_turn_of(mapped),
        shift=float(shift.norm()),
        growth=float(torch.linalg.det(mapped).abs()) ** (1 / len(x)),
        share=float(affine / squared) if squared > 0 else 0.0,
        length=float(affine.sqrt()),
    )


def _turn_of(mapped: Tensor) -> float:
    """The angle, degrees, of the rotation that is nearest to a matrix (D, D); signed in a plane."""
    if len(mapped) == 2:
        sine, cosine = mapped[1, 0] - mapped[0, 1], mapped[0, 0] + mapped[1, 1]
        return math.degrees(math.atan2(float(sine), float(cosine)))
    u, _, v = torch.linalg.svd(mapped)
    u[:, -1] *= torch.linalg.det(u @ v).sign()
    cosine = (torch.trace(u @ v) - 1) / 2
    return math.degrees(math.acos(float(cosine.clamp(-1, 1))))


def _agreement(result: Registration, one_contrast: bool) -> tuple[float, float]:
    """Of the fixed image with the moving one before and after, on the same voxels."""
    before, after, fixed, mask = result.compared
    if one_contrast:
        known = [result.metrics.get(when, {}).get("ncc") for when in ("before", "after")]
        pairs = zip(known, (before, after), strict=True)
        first, last = (ncc(image, fixed, mask) if cc is None else cc for cc, image in pairs)
        return first, last
    bins = max(2, min(MOST_BINS, math.isqrt(int(mask.sum()) // VOXELS_A_BIN)))
    binned = bins, mask, before
    return (
        normalized_mutual_information(before, fixed, *binned),
        normalized_mutual_information(after, fixed, *binned),
    )


def _content(compared: Compared) -> Tensor:
    """(*S) bool: the compared voxels that are no background, or all of them."""
    inside = compared.mask[0, 0] > 0
    bright = inside & ((compared.fixed > CONTENT) | (compared.after > CONTENT))[0, 0]
    return bright if bool(bright.any()) else inside


def _without_background(compared: Compared) -> bool:
    compared_voxels = float((compared.mask > 0).sum())
    return float(_content(compared).sum()) >= NO_BACKGROUND * compared_voxels


def _mean_length(displacement: Tensor, fixed: Image, where: Tensor) -> float:
    squares = torch.zeros_like(displacement[0, 0])
    for component, length in zip(displacement[0], fixed.spacing, strict=True):
        squares.addcmul_(component * length, component * length)
    return float(squares.sqrt_()[where].mean())


def _masked(prepared: Prepared) -> bool:
    return prepared.fixed_mask is not None or prepared.moving_mask is not None


def _covered(prepared: Prepared) -> float:
    if prepared.weights is None:
        return 1.0
    chosen = prepared.chosen
    return float((chosen * coverage(prepared.moving, prepared.fixed)).sum() / chosen.sum())


def _elsewhere(result: Registration, content: Tensor) -> Elsewhere | None:
    if len(result.fixed.shape) == 3:
        return None  # the edges' directions at twice their angle are those of a plane
    place = second_start(result.prepared)
    if place is None:
        return None
    there = displacement_of(place, result.fixed)
    return Elsewhere(
        turn=place.turn,
        shift=math.hypot(*(s * h for s, h in zip(place.shift, result.fixed.spacing, strict=True))),
        gain=place.score - place.as_given,
        apart=_mean_length(result.displacement - there, result.fixed, content),
    )
