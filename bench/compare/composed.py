"""A start by composed, smoothed steps, as greedy and ANTs take them; a setting of family.py.

    d = -g / max |g|            g: gradient of the similarity alone, smoothed by 1.73 voxels
    u <- u o (id + d) + d       smoothed by 0.71 voxels

No energy of u holds it back: a step is judged by what it adds. It is not what ships.
"""

import torch
import torch.nn.functional as F
from search_cases import Case

from diffreg.fields import resize
from diffreg.losses import Objective
from diffreg.ops import Weights, warp
from diffreg.registration.pyramid import levels_of
from diffreg.registration.terms import changed, value_and_gradient_of

OF_STEP, OF_WHOLE = 3**0.5, 0.5**0.5  # standard deviations, voxels: greedy's
LEAST = 0.05  # of a standard deviation that does anything


def composed(case: Case, objective: Objective, steps: tuple[int, ...]) -> torch.Tensor:
    """The displacement (1, D, *S), voxels, after so many steps on the last levels, coarse first."""
    size, lengths = case.fixed.shape[2:], objective.spacing
    similarity = changed(objective, objective.similarity, Weights(1, 0, 0, 0))
    u = case.fixed.new_zeros(1, len(size), *[1] * len(size))
    levels = levels_of(size, size, [0] * len(size), len(steps))
    for level, count in zip(levels, steps[-len(levels) :], strict=True):
        u = resize(u, level.size)
        images = level.of_moving(case.moving), level.of_fixed(case.fixed)
        mask = None if case.mask is None else level.of_fixed(case.mask)
        evaluate = value_and_gradient_of(similarity, *images, mask)
        spacing = [h * f for h, f in zip(lengths, level.factors, strict=True)]
        voxels = [min(spacing) / h for h in spacing]  # a thick slice is smoothed across less
        for _ in range(count):
            gradient = smoothed(evaluate(u)[1], [OF_STEP * part for part in voxels])
            step = -gradient / gradient.norm(dim=1).max().clamp(min=torch.finfo(u.dtype).tiny)
            whole = step + warp(u, step, padding="border")
            u = smoothed(whole, [OF_WHOLE * part for part in voxels])
    return u


def smoothed(field: torch.Tensor, deviations: list[float]) -> torch.Tensor:
    """By a Gaussian along each axis, the border repeated."""
    dimensions = len(deviations)
    convolve = F.conv3d if dimensions == 3 else F.conv2d
    for axis, deviation in enumerate(deviations):
        if deviation < LEAST:
            continue
        reach = max(1, round(3 * deviation))
        places = torch.arange(-reach, reach + 1, dtype=field.dtype)
        kernel = torch.exp(-(places**2) / (2 * deviation**2))
        along = [-1 if k == axis else 1 for k in range(dimensions)]
        each = torch.stack([(kernel / kernel.sum()).view(1, *along)] * dimensions)
        border = [0] * (2 * dimensions)
        border[2 * (dimensions - 1 - axis)] = border[2 * (dimensions - 1 - axis) + 1] = reach
        field = convolve(F.pad(field, border, mode="replicate"), each, groups=dimensions)
    return field
