"""Where else the moving image might belong: a coarse search over all shifts and a few turns.

score(t, s) = <f, m_t(. + s)> / (|f| |m_t(. + s)|), sums over the overlap, for every shift s at once
by the Fourier transform; f and m are the edges' directions at twice their angle, which know no sign
and so serve within a contrast and across.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffreg.data.geometry import Image, voxel_map
from diffreg.data.prepare import Prepared
from diffreg.data.resampling import resample_to
from diffreg.fields import identity_grid
from diffreg.ops import warp

SHORTEST = 32  # coarse voxels along the shortest axis of the fixed image
TURNS = tuple(math.radians(7.5 * k) for k in range(-4, 5))
OVERLAP = 0.4  # of the largest number of voxels that any shift shares
STRUCTURE = 0.3  # of the most edges, squared, that any overlap has, in either image


class Placement(NamedTuple):
    """The moving image placed as a whole: x = middle + turned (p + shift - middle), in mm."""

    turn: float  # degrees
    shift: tuple[float, float]  # fixed voxels
    score: float  # how well the edges agree, 1 at best
    as_given: float  # the same by the files, without a turn or a shift


class _Grid(NamedTuple):
    """The fixed image's coarse grid, and one of twice its size round it."""

    shape: list[int]
    factor: Tensor  # (2, 1, 1), fixed voxels along a coarse one
    margin: list[int]  # coarse voxels that the larger one has before the first
    large: list[int]


def second_start(prepared: Prepared) -> Placement | None:
    """The turn and shift of the moving image at which its edges agree best with the fixed image's.

    Args:
        prepared: the pair.

    Returns:
        The best of the grid of turns within 30 degrees and shifts up to half the image; None where
        an image is too small or has no edges.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from diffreg.data.geometry import Image
        >>> from diffreg.data.prepare import prepare
        >>> from diffreg.registration.second_start import second_start
        >>> square = torch.zeros(1, 1, 32, 32)
        >>> square[..., 8:16, 8:20] = 1
        >>> moved = Image(square.roll((6, 4), (2, 3)), np.eye(4))
        >>> second_start(prepare(moved, Image(square, np.eye(4)))).shift
        (6.0, 4.0)
    """
    if min(*prepared.fixed.shape, *prepared.moving.shape) < SHORTEST // 2:
        return None
    grid = _grid_of(prepared.fixed)
    images, inside = _turned(prepared, grid)
    fixed = F.interpolate(prepared.fixed_values, size=grid.shape, mode="area")
    chosen = F.interpolate(prepared.chosen, size=grid.shape, mode="area") > 0.5
    ours, theirs = _directions(fixed, chosen.to(torch.float32)), _directions(images, inside)
    pad = [grid.margin[1], grid.large[1] - grid.margin[1] - grid.shape[1]]
    pad += [grid.margin[0], grid.large[0] - grid.margin[0] - grid.shape[0]]
    scores = _scores([F.pad(part, pad) for part in ours], list(theirs), grid)
    if scores is None:
        return None
    best, as_given = scores
    turn, *shift = best[1]
    lengths = [float(s * f) for s, f in zip(shift, grid.factor.flatten(), strict=True)]
    return Placement(
        math.degrees(TURNS[turn]), (lengths[0], lengths[1]), best[0], min(as_given, best[0])
    )


def displacement_of(placement: Placement, fixed: Image) -> Tensor:
    """The displacement that a placement is, (1, 2, *S), fixed voxels."""
    places = identity_grid(fixed.shape)
    shift = places.new_tensor(placement.shift)[:, None, None]
    turns = places.new_tensor([math.radians(placement.turn)])
    return _turn(places[0] + shift, turns, fixed) - places


def _grid_of(fixed: Image) -> _Grid:
    factor = max(1.0, min(fixed.shape) / SHORTEST)
    shape = [math.ceil(n / factor) for n in fixed.shape]
    factors = [n / m for n, m in zip(fixed.shape, shape, strict=True)]
    factor_of_axes = torch.tensor(factors, dtype=torch.float64)[:, None, None]
    return _Grid(shape, factor_of_axes, [n // 2 for n in shape], [2 * n for n in shape])


def _turn(places: Tensor, turns: Tensor, fixed: Image) -> Tensor:
    """Places (2, *S), fixed voxels, turned about the image's middle: (T, 2, *S)."""
    middle = places.new_tensor([(n - 1) / 2 for n in fixed.shape])[:, None, None]
    length = places.new_tensor(fixed.spacing)[:, None, None]
    cosine, sine = turns.cos(), turns.sin()
    matrices = torch.stack([cosine, -sine, sine, cosine], -1).reshape(-1, 2, 2)
    return torch.einsum("tdk,kij->tdij", matrices, (places - middle) * length) / length + middle


def _turned(prepared: Prepared, grid: _Grid) -> tuple[Tensor, Tensor]:
    """The moving image on the large grid for every turn, and where it has a value: (T, 1, *S)."""
    fixed, moving = prepared.fixed, prepared.moving
    places = identity_grid(grid.large, torch.float64)[0]
    margin = torch.tensor(grid.margin, dtype=torch.float64)[:, None, None]
    places = (places - margin + 0.5) * grid.factor - 0.5
    turns = torch.tensor(TURNS, dtype=torch.float64)
    places = _turn(places, turns, fixed)
    matrix = torch.from_numpy(voxel_map(moving, fixed))
    places = torch.einsum("dk,tkij->tdij", matrix[:, :2], places) + matrix[:, 2, None, None]
    # As coarse as the grid, along its own axes.
    reach = (matrix[:, :2] * grid.factor.flatten()).norm(dim=1).clamp(min=1)
    size = [max(1, round(n / float(r))) for n, r in zip(moving.shape, reach, strict=True)]
    ratios = [n / m for n, m in zip(moving.shape, size, strict=True)]
    factor = torch.tensor(ratios, dtype=torch.float32)[:, None, None]
    values = prepared.normalization.scale(moving.data, prepared.limits)
    coarse = F.interpolate(values, size=size, mode="area").expand(len(turns), -1, -1, -1)
    places = (places + 0.5) / factor - 0.5
    ends = torch.tensor(size, dtype=torch.float64)[:, None, None]
    inside = ((places >= -0.5) & (places < ends - 0.5)).all(1, keepdim=True).to(torch.float32)
    steps = (places - identity_grid(grid.large, torch.float64)).to(torch.float32)
    known = _known(prepared)
    if known is not None:
        known = F.interpolate(known, size=size, mode="area").expand_as(coarse)
        inside = inside * (warp(known, steps) > 0.99)
    return warp(coarse, steps), inside


def _known(prepared: Prepared) -> Tensor | None:
    """Where the moving image counts, (1, 1, *S) of its own; None: everywhere."""
    moving, mask = prepared.moving, prepared.moving_mask
    known = None if moving.valid is None else moving.valid.to(torch.float32)
    if mask is None:
        return known
    chosen = (resample_to(mask, moving, interpolation="nearest") > 0).to(torch.float32)
    return chosen if known is None else known * chosen


def _directions(image: Tensor, inside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient's direction at twice its angle, (N, 2, *S), its square, and where it is known.

    An edge counts by its strength, up to 1; a gradient counts half where it is as strong as usual.
    """
    down, right = ((image.roll(-1, axis) - image.roll(1, axis)) / 2 for axis in (-2, -1))
    known = inside.clone()
    for axis in (-2, -1):
        for step in (-1, 1):
            known = known * inside.roll(step, axis)
    known[..., [0, -1], :] = 0
    known[..., :, [0, -1]] = 0
    square = (down**2 + right**2) * known
    usual = square.sum((-2, -1), keepdim=True) / known.sum((-2, -1), keepdim=True).clamp(min=1)
    scale = known / (square + usual).clamp(min=1e-12)
    directions = torch.cat([(down**2 - right**2) * scale, 2 * down * right * scale], 1)
    return directions, directions.square().sum(1, keepdim=True), known


def _scores(
    ours: list[Tensor], theirs: list[Tensor], grid: _Grid
) -> tuple[tuple[float, tuple[int, int, int]], float] | None:
    """The best score with its turn and shift, coarse voxels, and that without either."""
    (f, f_square, f_known), (m, m_square, m_known) = (
        [torch.fft.rfft2(part) for part in parts] for parts in (ours, theirs)
    )

    def over_shifts(a: Tensor, b: Tensor) -> Tensor:
        return torch.fft.irfft2((a.conj() * b).sum(1), s=grid.large)  # (T, *S)

    product, shared = over_shifts(f, m), over_shifts(f_known, m_known)
    squares = over_shifts(f_square, m_known), over_shifts(f_known, m_square)
    if not min(float(square.max()) for square in squares) > 1e-3:
        return None
    score = product / (squares[0].clamp(min=0) * squares[1].clamp(min=0)).sqrt().clamp(min=1e-3)
    allowed = shared > OVERLAP * shared.max()
    for square in squares:
        allowed &= square > STRUCTURE * square.max()
    for axis, (n, large) in enumerate(zip(grid.shape, grid.large, strict=True), start=1):
        step = torch.arange(large)
        near = torch.minimum(step, large - step) <= n // 2
        allowed &= near.reshape([-1 if k == axis else 1 for k in range(3)])
    as_given = float(score[len(TURNS) // 2, 0, 0])
    score = torch.where(allowed, score, torch.full_like(score, -1.0))
    best = int(score.argmax())
    turn, place = divmod(best, grid.large[0] * grid.large[1])
    shift = divmod(place, grid.large[1])
    down, right = (
        s - large if s > large // 2 else s for s, large in zip(shift, grid.large, strict=True)
    )
    return (float(score.flatten()[best]), (turn, down, right)), as_given
