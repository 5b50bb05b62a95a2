"""Whether two images have one contrast, and so what is to be minimised.

    r^2 = squared correlation of the two      eta^2 = 1 - E[Var(fixed | moving)] / Var(fixed)

The correlation ratio eta^2 (of either image given the other, whichever is larger) is what any
function of the intensities explains, r^2 what a straight line does. Where a line explains well less
than some function does, or falls, the contrasts differ.

    edges = 1 - f / (mean of f where the moving image is shifted by an eighth of an axis)

f is the mean of `parallel_level_sets` over the same voxels, none of them near a flat background,
which all images share: where edges of one image lie on edges of the other they are more parallel
than elsewhere. Ultrasound and MR of an organ hardly share any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, avg_pool3d, pad

from diffreg.data.prepare import Prepared
from diffreg.losses import SIMILARITIES, Objective, usual_objective
from diffreg.ops import gradient_scale, parallel_level_sets
from diffreg.ops._checks import check_choice
from diffreg.ops.gradient_scale import image_gradient_reference
from diffreg.registration.ordered import dot, total

BINS = 32
# Of the correlation ratio, what the squared correlation must reach within a contrast. By
# bench/contrast.py 64 pairs of one contrast have .96 at least, 15 more within tight masks all but
# one .88, and of 157 pairs of two all but one, a slice of the top of the head, .79 at most.
WITHIN = 0.85
# Of edges in common, from where on they count (bench/contrast.py). Edges that are not the other
# image's draw a displacement after them.
EDGES = 0.06
# Of an axis, what an image is shifted by; axes on which that is less than so many voxels are not
# looked along.
PARTS, NEAREST = 8, 2
# A voxel is flat below so much of the steepest slope, and background where half of the voxels round
# it, in a cube of that side, are.
FLAT, ROUND = 1e-3, 5
# Of a voxel's shortest side, the longest from which on a volume is a stack of slices: what moves
# through such planes is as lost on them as on a slice.
THICK = 3.0
WINDOW = 10.0  # mm, of volumes' local correlation: 5 voxels of 2 mm, 9 of 1 mm


class Choice(NamedTuple):
    """What is minimised, and why."""

    objective: Objective
    metrics: dict[str, Any]  # as in metrics.json; empty where it was asked for by name


def choose(prepared: Prepared, similarity: str = "auto") -> Choice:
    """The objective of a pair.

    Args:
        prepared: the pair after its affine start.
        similarity: one of `diffreg.losses.SIMILARITIES`; "auto": the preset "volume", or "slice"
            for slices and stacks of thick ones; where the contrasts differ "multimodal_volume" or
            "multimodal_slice", but "mi" where the images hardly have edges in common.

    Raises:
        ValueError: another name.

    Example: `choose(prepare(moving, fixed)).metrics`
    """
    check_choice("similarity", similarity, ("auto", *SIMILARITIES))
    within, window = _within(prepared.fixed.spacing)
    if similarity != "auto":
        return Choice(usual_objective(similarity, within, window), {})
    correlation, ratio = contrast(prepared.moving_values, prepared.fixed_values, prepared.mask)
    across = correlation <= 0 or correlation**2 < WITHIN * ratio
    found: dict[str, Any] = {"correlation": correlation, "correlation_ratio": ratio}
    found["across"] = across
    if not across:
        return Choice(Objective(weights=within, window=window), found)
    edges = edges_in_common(prepared.moving_values, prepared.fixed_values, prepared.mask)
    found["edges_in_common"] = edges
    if edges is None or edges < EDGES:
        return Choice(usual_objective("mi"), found)
    return Choice(Objective(weights=f"multimodal_{within}", window=window), found)


def _within(spacing: Sequence[float]) -> tuple[str, int | None]:
    """The preset within a contrast, and the window of its local correlation, for voxels of mm."""
    if len(spacing) == 2 or max(spacing) >= THICK * min(spacing):
        return "slice", None
    return "volume", 2 * min(max(int(WINDOW / min(spacing)) // 2, 2), 4) + 1


def contrast(moving: Tensor, fixed: Tensor, mask: Tensor) -> tuple[float, float]:
    """The correlation and the correlation ratio of two images where a mask is > 0.

    Args:
        moving, fixed: (1, 1, *S) in [0, 1].
        mask: (1, 1, *S).

    Example:
        >>> import torch
        >>> from diffreg.registration.contrast import contrast
        >>> x = torch.linspace(0, 1, 64).reshape(1, 1, 8, 8)
        >>> [round(value, 2) for value in contrast(x, (x - 0.5) ** 2, torch.ones_like(x))]
        [0.0, 0.99]
    """
    a, b = (image[mask > 0].to(torch.float64) for image in (moving, fixed))
    a, b = (values - total(values) / len(values) for values in (a, b))
    energy = float(dot(a, a) * dot(b, b))
    correlation = float(dot(a, b)) / energy**0.5 if energy > 0 else 0.0
    return correlation, max(_explained(a, b), _explained(b, a), correlation**2)


def edges_in_common(moving: Tensor, fixed: Tensor, mask: Tensor) -> float | None:
    """How much more parallel the images' level sets are than where one is shifted, from 0 to 1.

    Args:
        moving, fixed: (1, 1, *S).
        mask: (1, 1, *S), in the fixed image.

    Returns:
        None where no axis is long enough, or nothing but background is compared.

    Example:
        >>> import torch
        >>> from diffreg.registration.contrast import edges_in_common
        >>> x = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
        >>> edges_in_common(x.square(), 1 - x, torch.ones_like(x)) > 0.9
        True
    """
    scales = gradient_scale(moving), gradient_scale(fixed)
    known = _foreground(moving)
    weights = mask.to(known) * known * _foreground(fixed)
    here = there = compared = 0.0
    for axis, length in enumerate(fixed.shape[2:], 2):
        by = length // PARTS
        for begin in (0, by) if by >= NEAREST else ():
            at, shifted = (begin, length - by), (by - begin, length - by)
            over = weights.narrow(axis, *at) * known.narrow(axis, *shifted)
            count = float(total(over))
            if count > 0:
                compared += count
                rest = fixed.narrow(axis, *at), *scales
                a, b = moving.narrow(axis, *at), moving.narrow(axis, *shifted)
                here += count * float(parallel_level_sets(a, *rest, mask=over))
                there += count * float(parallel_level_sets(b, *rest, mask=over))
    if not compared:
        return None
    return max(0.0, 1 - here / there) if there > 0 else 0.0


def _foreground(image: Tensor) -> Tensor:
    """1 but in a flat background and along it, else 0, (1, 1, *S)."""
    slopes = torch.stack(image_gradient_reference(image)).square().sum(0).sqrt()
    flat = (slopes <= FLAT * slopes.amax()).to(image)
    pool = avg_pool2d if image.ndim == 4 else avg_pool3d
    # More flat or more not: beyond the border is neither. Of a stack of fewer planes avg_pool3d
    # takes no padding of its own.
    around = pad(flat - 0.5, [ROUND // 2] * 2 * (image.ndim - 2))
    return (pool(around, ROUND, 1) < 0).to(image)


def _explained(given: Tensor, values: Tensor) -> float:
    """The part of the variance of values, of mean 0, that the given ones explain, bin by bin."""
    squares = float(dot(values, values))
    low, high = float(given.min()), float(given.max())
    if not squares > 0 or not high > low:
        return 0.0
    bins = ((given - low) / (high - low) * BINS).long().clamp(max=BINS - 1)
    counts = torch.bincount(bins, minlength=BINS).to(values)
    sums = torch.bincount(bins, weights=values, minlength=BINS)
    # A mean of chance explains one part in as many as a bin has voxels: that is taken off.
    found = float((sums.square() / counts.clamp(min=1)).sum()) / squares
    used, n = int((counts > 0).sum()), len(values)
    return max(0.0, 1 - (1 - found) * (n - 1) / max(n - used, 1))
