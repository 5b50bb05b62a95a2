"""The map of the world at which two images agree best.

Many starts are scored on a coarse level, in one batch, and the best refined level by level. World
maps are homogeneous, (D + 1, D + 1) float64, in mm, from fixed to moving.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffreg.affine.descent import minimise
from diffreg.affine.image import PlacedImage
from diffreg.affine.loss import FEWER_BINS, AffineLoss
from diffreg.affine.parameters import about, generators, rotations, shifted

# Voxels along the fixed image's mean extent, level by level: 8, 4 and 2 mm in a head.
LEVELS = {2: (32, 64, 128), 3: (21, 42, 84)}
ITERATIONS = (40, 20, 10)
# Starts to the end of the coarsest level; of turns three times as many where it is fine.
REFINED = 4
PLAIN = 3  # starts without a turn
TURNED = 0.04  # by which a turned start has to be better than those, unless turns were asked for
TOLERANCE = 0.02  # voxels, of a step


class Start(NamedTuple):
    """A map, how it came about, and its loss on the level where it is."""

    words: str
    world: Tensor
    loss: float = math.inf


class Found(NamedTuple):
    """The best map, and the loss on the finest level."""

    best: Start
    finest: AffineLoss


def best_map(
    moving: PlacedImage, fixed: PlacedImage, kind: str, similarity: str, fine: bool = False
) -> Found:
    """The map of a kind with the lowest loss.

    Args:
        moving: the image that is sampled.
        fixed: the image whose grid it is sampled on.
        kind: "translation", "rigid", "similarity" or "affine".
        similarity: "ncc", "mi" or "lncc".
        fine: score many more turns.

    Returns:
        The best map and its loss.
    """
    coarsest, *finer = levels(moving.cropped(), fixed.cropped(), similarity)
    begin = starts(coarsest.moving, coarsest.fixed, kind != "translation", fine)
    scores = coarsest.scores(torch.stack([start.world for start in begin]))
    plain = {start.words for start in begin[:PLAIN]}
    # A turn fits by chance sooner than a plain start: each of those has its try.
    order = torch.argsort(scores[PLAIN:], stable=True) + PLAIN
    chosen = begin[:PLAIN] + [begin[k] for k in order[: REFINED * (3 if fine else 1)].tolist()]

    def price(start: Start) -> float:
        return 0.0 if fine or start.words in plain else TURNED

    # Where it lies and how it is turned first: a stretch must not make up for a turn.
    for step in dict.fromkeys(("translation" if kind == "translation" else "rigid", kind)):
        found = [refined(start, coarsest, step, ITERATIONS[0]) for start in chosen]
        chosen = sorted(found, key=lambda start: start.loss + price(start))[:REFINED]
    best = chosen[0]
    for level, iterations in zip(finer, ITERATIONS[1:], strict=False):
        best = refined(best, level, kind, iterations)
    return Found(best, finer[-1] if finer else coarsest)


def levels(moving: PlacedImage, fixed: PlacedImage, similarity: str) -> list[AffineLoss]:
    """The pair from coarse to fine, as far as the fixed image goes."""
    found: list[AffineLoss] = []
    for count in LEVELS[len(fixed.shape)]:
        spacing = fixed.extent / count
        pair = moving.coarsened(spacing), fixed.coarsened(spacing).sheared()
        if not found or pair[1].shape != found[-1].fixed.shape:
            found.append(AffineLoss(*pair, similarity))
    if len(found) > 1:
        found[0].bins = FEWER_BINS
    return found


def starts(moving: PlacedImage, fixed: PlacedImage, turning: bool, fine: bool) -> list[Start]:
    """Maps to begin from: by the headers, by the grids, by the centres of mass and turned there."""
    here, there = fixed.centre_of_mass(), moving.centre_of_mass()
    found = [
        Start("header", torch.eye(len(here) + 1, dtype=torch.float64)),
        Start("centres of the grids", shifted(moving.middle - fixed.middle)),
        Start("centres of mass", shifted(there - here)),
    ]
    for turn in rotations(len(here), fine)[1:] if turning else []:
        world = torch.block_diag(turn, torch.ones(1, 1, dtype=torch.float64))
        cosine = (float(turn.trace()) - (len(here) - 2)) / 2
        degrees = math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
        words = f"turned by {degrees:.0f} degrees about the centres of mass"
        found.append(Start(words, shifted(there) @ world @ shifted(-here)))
    return found


def refined(start: Start, level: AffineLoss, kind: str, iterations: int) -> Start:
    """A start led down to a minimum among the maps that its kind makes of it."""
    centre = level.fixed.middle
    basis = about(centre, generators(kind, len(centre), level.fixed.extent / 2))

    def moved(parameters: Tensor) -> Tensor:
        return start.world @ torch.linalg.matrix_exp(torch.tensordot(parameters, basis, 1))

    def function(place: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = torch.tensor(place, requires_grad=True)
        loss = level(moved(parameters)[None])[0]
        (gradient,) = torch.autograd.grad(loss, parameters)
        return float(loss.detach()), gradient.numpy()

    voxel = float(level.fixed.spacing.min())
    place, loss = minimise(
        function, level.preconditioner(basis), 2 * voxel, iterations, TOLERANCE * voxel
    )
    return Start(start.words, moved(torch.from_numpy(place)), loss)
