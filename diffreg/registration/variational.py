"""Registration without learning: the displacement of each pair is optimised directly.

Multilevel, limited-memory BFGS preconditioned with the regulariser (descent.py), with a line search
that never accepts a displacement with a cell that may fold (unfolded.py). Coarse levels are
stiffer:

    L of a level = w_s S + q^2 w_1 E1 + q^4 w_2 E2 + w_det E_det

with q how many of the images' finest voxels one of the level's is long: bending costs at every
level what it costs there in voxels of the level, and q^2 times more. Levels as soft as the last one
settle on what they see of the images' details, and do not come back from there. Levels of volumes
begin with composed steps (composed.py). Where the images differ by noise alone, nothing pulls
(whiteness.py).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from diffreg.fields import make_diffeomorphic, resize
from diffreg.losses import Objective, Weights
from diffreg.losses.objective import ACROSS
from diffreg.ops import warp
from diffreg.ops._checks import (
    arithmetic_dtype,
    check_floating,
    check_image,
    check_pair,
    check_same_device,
    check_tensor,
)
from diffreg.registration.composed import composed
from diffreg.registration.descent import minimise
from diffreg.registration.landmarks import Pins, Pull
from diffreg.registration.leaving import STRENGTH, staying
from diffreg.registration.pinned import pinned, pulled
from diffreg.registration.pyramid import Level, levels_of
from diffreg.registration.schedule import (
    LEVELS,
    check_composed_steps,
    check_numbers,
    composed_steps_on,
    iterations_on,
)
from diffreg.registration.smoothing import smoothed
from diffreg.registration.terms import (
    Terms,
    changed,
    checked_masks,
    structured_channels,
    value_and_gradient_of,
)
from diffreg.registration.unfolded import START_DETERMINANT, is_unfolded
from diffreg.system.torch_modes import usual_modes

# Called with (steps and iterations done, those at most) over all levels and samples.
Progress = Callable[[int, int], None]


@usual_modes()
def register_variational(
    moving: torch.Tensor,
    fixed: torch.Tensor,
    objective: Objective | None = None,
    levels: int = LEVELS,
    iterations: int | Sequence[int] | None = None,
    mask: torch.Tensor | None = None,
    progress: Progress | None = None,
    start: torch.Tensor | None = None,
    margin: Sequence[int] | None = None,
    counts: Counter[str] | None = None,
    channels: Sequence[float] | None = None,
    landmarks: Pins | None = None,
    composed_steps: int | Sequence[int] | None = None,
) -> torch.Tensor:
    """Minimises the objective over the displacement, pair by pair, from coarse to fine.

    A displacement that leads voxels out of the moving image pays for it
    (`diffreg.registration.leaving`): leaving must not be a way to a lower objective.

    Args:
        moving: image (N, C, *S), any floating dtype; values of about [0, 1] suit the weights. With
            a margin it is larger than `fixed`.
        fixed: image (N, C, *S), D = 2 or 3.
        objective: what to minimise; None is Objective("ncc"), with the default weights.
        levels: pyramid levels at most, each half the size of the next; an axis shrinks to 16 voxels
            only, and there are as many levels as the two longest axes have.
        iterations: at most, on each level, or one number a level, the last of the finest one; the
            first is that of all coarser levels. None: 40, 40, 20; where there are fewer levels and
            no composed steps, or one level, 60 on each.
        mask: weights (N, 1, *S) of the similarity on the fixed grid; None is 1.
        progress: called with (composed steps and iterations done, those at most).
        start: displacement (N, D, *S), voxels, to begin from, such as a network's: `levels` is 1
            then. Where it folds it is repaired first (`diffreg.fields.make_diffeomorphic`), and the
            objective ends no higher than there.
        margin: voxels that `moving` has before the first one of `fixed`, along each axis; None: it
            has the shape of `fixed`.
        counts: where "evaluations", "steps" and the steps "shortened locally", so as not to fold,
            are added up.
        channels: weight of each channel's similarity, which is its own then, as its mask may be,
            (N, C, *S) (`diffreg.registration.terms`); None: one similarity of all of them.
        landmarks: points that are to meet, in every sample (`diffreg.registration.landmarks`).
        composed_steps: steps (`diffreg.registration.composed`) with which levels begin, told as
            iterations are, 0: none. None: 100, 50, 10 of volumes, 0 of slices and from a start.

    Returns:
        Displacement (N, D, *S), voxels; every determinant is positive.

    Raises:
        TypeError, ValueError: images, mask, start or numbers that do not fit.

    Source:
        Multilevel hyperelastic registration with a determinant-preserving line search: Burger,
        Modersitzki and Ruthotto 2013; Modersitzki, FAIR, 2009.

    Example:
        >>> import torch
        >>> from diffreg.registration.variational import register_variational
        >>> image = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        >>> register_variational(image, image, levels=1).abs().max() < 1e-6
        tensor(True)
    """
    margin = _checked_margin(margin, moving, fixed)
    dtype = arithmetic_dtype(moving, fixed)
    moving, fixed = moving.to(dtype), fixed.to(dtype)
    for name, image in (("moving", moving), ("fixed", fixed)):
        bad = int((~torch.isfinite(image)).sum())
        if bad:
            raise ValueError(f"{name} must be finite, {bad} of its values are NaN or infinite")
    weights = checked_masks(mask, fixed, dtype, channels)
    check_numbers(levels, iterations)
    check_composed_steps(composed_steps)
    objective = Objective("ncc") if objective is None else objective
    if start is None:
        start = fixed.new_zeros(len(fixed), fixed.ndim - 2, *[1] * (fixed.ndim - 2))
    else:
        start, levels = _checked_start(start, fixed), 1
        composed_steps = composed_steps or 0
    pyramid = levels_of(fixed.shape[2:], moving.shape[2:], margin, levels)
    before = composed_steps_on(len(pyramid), fixed.ndim - 2, composed_steps)
    at_most = iterations_on(len(pyramid), iterations, any(before))
    counts = Counter() if counts is None else counts
    plan = [Turn(*turn) for turn in zip(pyramid, at_most, before, strict=True)]
    units = sum(turn.iterations + turn.steps for turn in plan)
    displacements = []
    for n in range(len(fixed)):

        def report(done: int, offset: int = n * units) -> None:
            if progress is not None:
                progress(offset + done, len(fixed) * units)

        one = slice(n, n + 1)
        pair = Pair(moving[one], fixed[one], None if weights is None else weights[one])
        terms = Terms(objective, channels, landmarks)
        displacements.append(_register_pair(pair, start[one], terms, plan, report, counts))
    empty = fixed.new_zeros(0, fixed.ndim - 2, *fixed.shape[2:])
    return torch.cat(displacements) if displacements else empty


def _checked_margin(margin, moving, fixed) -> Sequence[int]:
    """Voxels of moving before fixed along each axis, where the images fit each other."""
    if margin is None:
        check_pair(moving, fixed, "moving")
        return [0] * (fixed.ndim - 2)
    check_image("moving", moving)
    check_image("fixed", fixed)
    beyond = [m - n for m, n in zip(moving.shape, fixed.shape, strict=True)]
    fits = len(margin) == fixed.ndim - 2 and beyond[:2] == [0, 0]
    if not fits or not all(0 <= m <= b for m, b in zip(margin, beyond[2:], strict=True)):
        raise ValueError(
            f"moving, {list(moving.shape)}, must hold fixed, {list(fixed.shape)}, and "
            f"{list(margin)} voxels before it"
        )
    return margin


def _checked_start(start: torch.Tensor, fixed: torch.Tensor) -> torch.Tensor:
    """The start in the dtype of the images, each sample unfolded by the optimiser's margin."""
    check_tensor("start", start)
    check_floating("start", start)
    expected = [len(fixed), fixed.ndim - 2, *fixed.shape[2:]]
    if list(start.shape) != expected:
        raise ValueError(f"start must be (N, D, *S) = {expected}, got {list(start.shape)}")
    check_same_device("start", start, "fixed", fixed)
    start = start.detach().to(fixed.dtype)
    if not bool(torch.isfinite(start).all()):
        raise ValueError("start must be finite, it holds values that are NaN or infinite")
    return torch.cat([_unfolded_start(each) for each in start.split(1)]) if len(start) else start


class Pair(NamedTuple):
    """Images and the weights of the similarity, (1, C, *S) each, of one sample."""

    moving: torch.Tensor
    fixed: torch.Tensor
    mask: torch.Tensor | None

    def on(self, level: Level) -> "Pair":
        mask = None if self.mask is None else level.of_fixed(self.mask)
        return Pair(level.of_moving(self.moving), level.of_fixed(self.fixed), mask)


class Turn(NamedTuple):
    """A level, and what it is given."""

    level: Level
    iterations: int  # at most
    steps: int  # composed, before them


def _register_pair(
    pair: Pair,
    displacement: torch.Tensor,
    terms: Terms,
    plan: Sequence[Turn],
    report: Callable[[int], None],
    counts: Counter[str],
) -> torch.Tensor:
    """The displacement (1, D, *S) of the last level."""
    done = 0
    for turn in plan:

        def report_turn(ready: int, offset: int = done) -> None:
            report(offset + ready)

        # Between voxels it may fold: smoothed there, for a repair may take minutes.
        start = _halved(smoothed(resize(displacement, turn.level.size)))
        # In voxels of the moving image: a constant changes neither energies nor determinants.
        offset = _offset(turn.level, start)
        found = _on_level(pair, start + offset, terms, turn, report_turn, counts)
        displacement = found.sub_(offset)
        done += turn.steps + turn.iterations
    return displacement


def _on_level(
    pair: Pair,
    start: torch.Tensor,
    terms: Terms,
    turn: Turn,
    report: Callable[[int], None],
    counts: Counter[str],
) -> torch.Tensor:
    """The displacement, margin included, that a level arrives at from its start."""
    level, iterations, steps = turn
    objective, channels, landmarks = terms
    moving, fixed, mask = pair.on(level)
    share, pins = 1.0, None
    if landmarks is None:
        across = any(name in ACROSS for name in objective.similarity)
        warped = warp(moving, start, padding=objective.padding)
        mask, share, channels = structured_channels(warped, fixed, mask, channels, across)
    else:  # they may pull at what fits, which must hold against it
        pins = landmarks.on(level.factors, level.margin)
    if not share and pins is None:  # nothing is left to do but for finer levels
        report(steps + iterations)
        return start
    lengths = _lengths(objective, fixed.ndim - 2)
    spacing = [h * f for h, f in zip(lengths, level.factors, strict=True)]
    own = objective.with_spacing(spacing, _stiffer(objective.weights, spacing, lengths, share))
    images = moving, fixed, mask, channels
    if steps:
        alone = changed(own, own.similarity, Weights(own.weights.similarity, 0, 0, 0))
        pulls = value_and_gradient_of(alone, *images)
        if pins is not None:
            pulls = pulled(pulls, Pull(pins, start))
        start = composed(pulls, start, steps, spacing, report)
        counts["evaluations"] += steps + 1
    of_images = staying(
        value_and_gradient_of(own, *images), STRENGTH * terms.of_similarity, moving.shape[2:]
    )
    goal, regulariser = pinned(of_images, pins, start, spacing, own.weights)
    return minimise(goal, start, regulariser, iterations, lambda done: report(steps + done), counts)


def _stiffer(
    weights: Weights, spacing: Sequence[float], finest: Sequence[float], share: float
) -> Weights:
    """The weights of a level: as above, by its smallest voxel length and that of the images.

    The similarity, a mean over what is compared, has the weight of its share of the image.
    """
    q = min(spacing) / min(finest)
    similarity, diffusion, bending, determinant = weights
    return Weights(share * similarity, q**2 * diffusion, q**4 * bending, determinant)


def _offset(level: Level, like: torch.Tensor) -> torch.Tensor:
    """The margin as a displacement (1, D, 1, ...)."""
    return like.new_tensor(level.margin).reshape(1, -1, *[1] * (like.ndim - 2))


def _lengths(objective: Objective, dimensions: int) -> list[float]:
    spacing = objective.spacing
    if spacing is None:
        return [1.0] * dimensions
    return [float(spacing)] * dimensions if isinstance(spacing, (int, float)) else list(spacing)


def _unfolded_start(displacement: torch.Tensor) -> torch.Tensor:
    """The field itself, or repaired where it folds or nearly does.

    What passes the repair's certificate and not the bound, a rare cell, leaves half of all of it.
    """
    if not is_unfolded(displacement):
        displacement = make_diffeomorphic(displacement, START_DETERMINANT).displacement
    return _halved(displacement)


def _halved(displacement: torch.Tensor) -> torch.Tensor:
    """The field itself, or the largest half, quarter, ... of it that folds nowhere."""
    while not is_unfolded(displacement):
        displacement = displacement / 2
    return displacement
