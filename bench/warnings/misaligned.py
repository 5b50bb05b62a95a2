"""The same pairs, out of place: turned, shifted, or as PNG files of different sizes.

x = A_f (p + u(p)) of the aligned pair; T x of one whose moving image was moved by T, mm
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from aligned import Aligned
from torch import Tensor

from diffreg.data.geometry import Image
from diffreg.data.resampling import resample_to, usual_fill

# Degrees and mm, drawn evenly; either sign.
TURNS, SHIFTS = (8.0, 30.0), (10.0, 40.0)
HOW = ("turned", "shifted", "turned and shifted", "other size")


@dataclass(frozen=True)
class Misaligned:
    """A pair out of place, and where the moving image's points have gone.

    Args:
        how: in words.
        moving, fixed: the images.
        truth: (1, 2, *S), the displacement to find, fixed voxels.
    """

    how: str
    moving: Image
    fixed: Image
    truth: Tensor


def misaligned(pair: Aligned, truth: Tensor, random: np.random.Generator) -> Misaligned:
    """One draw.

    Args:
        pair: as it should be.
        truth: (1, 2, *S), of that pair, fixed voxels.
        random: what it is drawn with.
    """
    how = HOW[random.integers(len(HOW))]
    if how == "other size":
        return _other_size(pair, truth, random)
    sign = random.choice([-1.0, 1.0])
    turn = np.radians(sign * random.uniform(*TURNS)) * how.startswith("turned")
    length, way = random.uniform(*SHIFTS), random.uniform(0, 2 * np.pi)
    shift = length * np.array([np.cos(way), np.sin(way)]) * how.endswith("shifted")
    move = _about_the_middle(pair.fixed, turn, shift)
    by = f"{how} by {abs(np.degrees(turn)):.0f} degrees, {np.linalg.norm(shift):.0f} mm"
    # Either the header is wrong, or the person lay otherwise on the same grid.
    moved = replace(pair.moving, affine=move @ pair.moving.affine)
    if random.random() < 0.5:
        wide = replace(pair.wide, affine=move @ pair.wide.affine)
        data = resample_to(wide, pair.moving, fill=usual_fill(pair.wide))
        moved, by = replace(pair.moving, data=data), f"{by}, resampled"
    inverse = np.linalg.inv(pair.fixed.affine)
    matrix = inverse @ move @ pair.fixed.affine
    return Misaligned(by, moved, pair.fixed, _carried(truth, matrix[:2, :2], matrix[:2, 3]))


def _about_the_middle(fixed: Image, turn: float, shift: np.ndarray) -> np.ndarray:
    """(4, 4): a turn about the middle of the fixed image, then a shift, mm."""
    middle = fixed.affine @ [*((n - 1) / 2 for n in fixed.shape), 0, 1]
    move = np.eye(4)
    cosine, sine = np.cos(turn), np.sin(turn)
    move[:2, :2] = [[cosine, -sine], [sine, cosine]]
    move[:2, 3] = middle[:2] - move[:2, :2] @ middle[:2] + shift
    return move


def _other_size(pair: Aligned, truth: Tensor, random: np.random.Generator) -> Misaligned:
    """Two PNG files, the moving one of a finer or coarser grid, or with more or less round it."""
    factor, offset = 1.0, np.zeros(2)
    if random.random() < 0.5:
        factor = float(random.choice([0.6, 0.75, 1.25, 1.5, 2.0]))
        by = f"PNG, {factor:g} times the size"
    else:
        offset = np.round(np.array(pair.fixed.shape) * random.uniform(0.08, 0.25, 2))
        offset = offset * random.choice([-1.0, 1.0])
        by = f"PNG, {offset[0]:+.0f} and {offset[1]:+.0f} pixels at either side"
    shape = [round(n * factor + 2 * o) for n, o in zip(pair.moving.shape, offset, strict=True)]
    grid = pair.moving.affine.copy()
    grid[:3, 3] -= grid[:3, :2] @ offset
    grid[:3, :2] /= factor
    onto = replace(pair.moving, data=torch.zeros(1, 1, *shape), affine=grid)
    data = resample_to(pair.wide, onto, fill=usual_fill(pair.wide))
    moving, fixed = (Image(array, np.eye(4), kind="png") for array in (data, pair.fixed.data))
    return Misaligned(by, moving, fixed, _carried(truth, factor * np.eye(2), offset))


def _carried(truth: Tensor, matrix: np.ndarray, shift: np.ndarray) -> Tensor:
    """The displacement p -> matrix (p + u(p)) + shift - p, fixed voxels."""
    axes = [torch.arange(n, dtype=torch.float64) for n in truth.shape[2:]]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
    there = torch.einsum("dk,kij->dij", torch.from_numpy(matrix), grid + truth[0].double())
    there += torch.from_numpy(np.asarray(shift, np.float64))[:, None, None]
    return (there - grid)[None].float()
