"""What registration_objective is made of: its options, its parts one by one."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from diffreg.ops._checks import (
    arithmetic_dtype,
    as_handed,
    as_number,
    check_axes,
    check_choice,
    check_displacement,
    check_image,
    check_pair,
    check_same_device,
    checked_mask,
    in_dtype,
    refuse_gradient,
)
from diffreg.ops._masks import counted, finite_part, hiding_gradient
from diffreg.ops.correlation import correlation, correlation_reference
from diffreg.ops.deformation_energy import (
    _lengths,
    checked_threshold,
    deformation_energy,
    deformation_energy_reference,
)
from diffreg.ops.gradient_scale import gradient_scale, gradient_scale_reference
from diffreg.ops.local_correlation import (
    check_window,
    local_correlation,
    local_correlation_reference,
)
from diffreg.ops.parallel_level_sets import (
    Measured,
    on_device,
    parallel_level_sets,
    parallel_level_sets_reference,
    scale_argument,
)
from diffreg.ops.warp import PADDINGS, warp, warp_reference

# In the order of the kernel's factors.
MEASURES = ("ssd", "ncc", "lncc", "pls", "smooth_pls", "ngf")
LEVEL_SETS = {"pls": "pls", "smooth_pls": "smooth", "ngf": "ngf"}
WINDOW = 9  # of "lncc", where no other is asked for

Similarity = str | Mapping[str, float]


class Weights(NamedTuple):
    """Factors of the objective's four terms."""

    similarity: float
    diffusion: float
    bending: float
    determinant: float


# Those of the preset "default" (diffreg.losses.presets).
DEFAULT_WEIGHTS = Weights(60, 1, 30, 3)


class RegistrationObjective(NamedTuple):
    """The weighted sum and its terms, which are raw; (N,) each."""

    total: torch.Tensor
    similarity: torch.Tensor
    diffusion: torch.Tensor
    bending: torch.Tensor
    determinant: torch.Tensor
    warped: torch.Tensor | None = None  # (N, C, *S), where it was asked for


def sum_of_squares(
    warped: torch.Tensor, fixed: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared difference over voxels and channels, weighted by the mask.

    Args:
        warped: image (N, C, *S), any floating dtype.
        fixed: image of the same shape.
        mask: weights (N, 1, *S) >= 0; None is 1. A voxel of weight 0 is not read.

    Returns:
        (N,); 0 where the weights add up to 0.

    Raises:
        TypeError, ValueError: dtypes, shapes, devices or weights that do not fit.

    Example:
        >>> import torch
        >>> from diffreg.losses import sum_of_squares
        >>> sum_of_squares(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
        tensor([1.])
    """
    check_pair(warped, fixed)
    dtype = arithmetic_dtype(warped, fixed)
    weights = checked_mask(mask, warped, dtype)
    apart = counted(warped.to(dtype), weights) - counted(fixed.to(dtype), weights)
    squares = (apart**2).flatten(1)
    if weights is None:
        return squares.mean(1) if squares.shape[1] else squares.sum(1)
    total = weights.flatten(1).sum(1) * warped.shape[1]
    sums = (squares * weights.expand_as(warped).flatten(1)).sum(1)
    return sums / torch.where(total == 0, torch.ones_like(total), total)


class Options:
    """What is not a tensor, checked."""

    def __init__(self, similarity, weights, padding, penalty, threshold, spacing, window) -> None:
        self.mixture = checked_mixture(similarity)
        self.weights = checked_weights(DEFAULT_WEIGHTS if weights is None else weights)
        check_choice("padding", padding, PADDINGS)
        checked_threshold(penalty, threshold)
        self.padding, self.penalty, self.threshold, self.spacing = (
            padding,
            penalty,
            threshold,
            spacing,
        )
        check_window(window)
        self.window = window

    def of_energies(self) -> tuple:
        """What follows the displacement in `deformation_energy`."""
        return self.spacing, self.penalty, self.threshold

    def arguments(
        self, moving, fixed, displacement, eps_moving, eps_fixed, mask, with_energies: bool = True
    ) -> tuple:
        """What torch.ops.diffreg.registration_objective takes, but for what it is to return.

        Without energies, their weights are 0.
        """
        dtype = arithmetic_dtype(moving, fixed, displacement)
        moving, fixed, displacement = as_handed(moving, fixed, displacement)
        mask = checked_mask(mask, fixed, dtype)
        scales: tuple[torch.Tensor | None, ...] = (None, None)
        if any(name in LEVEL_SETS for name in self.mixture):
            if eps_moving is None:
                eps_moving = scale_of_moving(moving, mask)
            scales = (
                in_dtype(scale_argument("eps_moving", eps_moving, moving), dtype),
                in_dtype(scale_argument("eps_fixed", eps_fixed, fixed, mask), dtype),
            )
        return (
            *(moving, fixed, displacement, *scales),
            mask,
            [self.mixture.get(name, 0.0) for name in MEASURES],
            [self.weights[0], *(weight * with_energies for weight in self.weights[1:])],
            self.padding,
            _lengths(self.spacing, displacement.ndim - 2),
            self.penalty,
            checked_threshold(self.penalty, self.threshold),
        )


def checked_mixture(similarity: Similarity, names: Sequence[str] = MEASURES) -> dict[str, float]:
    """Measure -> factor.

    Raises:
        ValueError: a name that is not known, no name, or a factor that is not finite.
    """
    mixture = {similarity: 1.0} if isinstance(similarity, str) else dict(similarity)
    if not mixture:
        raise ValueError("similarity must name at least one measure, got an empty mapping")
    for name in mixture:
        check_choice("similarity", name, tuple(names))
    factors = {n: as_number(f"similarity's factor of {n!r}", f) for n, f in mixture.items()}
    for name, factor in factors.items():
        if not -math.inf < factor < math.inf:  # torch.compile has no isfinite of what may change
            raise ValueError(f"similarity must have finite factors, got {factor} for {name!r}")
    return factors


def checked_weights(weights: Sequence[float]) -> Weights:
    """Four finite numbers >= 0.

    Raises:
        ValueError: they are not.
    """
    for weight in weights:
        refuse_gradient("weights", weight)
    values = [float(weight) for weight in weights]
    if len(values) != 4 or not all(0 <= value < math.inf for value in values):
        raise ValueError(
            "weights must be a preset or 4 numbers >= 0 (similarity, diffusion, bending, "
            f"determinant), got {values}"
        )
    return Weights(*values)


def check_inputs(moving: Any, fixed: Any, displacement: Any) -> None:
    check_displacement(displacement)
    check_image("moving", moving)
    check_image("fixed", fixed)
    check_axes("moving", moving, "fixed", fixed)
    if moving.shape[:2] != fixed.shape[:2]:
        raise ValueError(
            f"moving must have the samples and channels of fixed, {list(fixed.shape[:2])}, got "
            f"{list(moving.shape[:2])}"
        )
    if displacement.shape[0] != fixed.shape[0] or displacement.shape[2:] != fixed.shape[2:]:
        raise ValueError(
            f"displacement must be (N, D, *S) on the grid of fixed, {list(fixed.shape)}, got "
            f"{list(displacement.shape)}"
        )
    if 0 in moving.shape[2:] and 0 not in displacement.shape:
        raise ValueError(f"moving must have voxels to read, got shape {list(moving.shape)}")
    check_same_device("moving", moving, "fixed", fixed)
    check_same_device("displacement", displacement, "fixed", fixed)


def scale_of_moving(moving, mask=None, measure=gradient_scale) -> Measured:
    """The edge scale (N,) of the unwarped image: it must not change with the displacement."""
    return Measured(measure(finite_part(moving.detach(), mask)))


class Parts(NamedTuple):
    """The functions that the objective is made of."""

    warp: Callable[..., torch.Tensor]
    correlation: Callable[..., torch.Tensor]
    local_correlation: Callable[..., torch.Tensor]
    parallel_level_sets: Callable[..., torch.Tensor]
    deformation_energy: Callable[..., Any]
    gradient_scale: Callable[..., torch.Tensor]


OPERATORS = Parts(
    warp, correlation, local_correlation, parallel_level_sets, deformation_energy, gradient_scale
)
REFERENCES = Parts(
    warp_reference,
    correlation_reference,
    local_correlation_reference,
    parallel_level_sets_reference,
    deformation_energy_reference,
    gradient_scale_reference,
)


def scaled(gradient: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """A gradient (N, ...) times the factors (N); one of 0 leaves nothing, not even NaN."""
    by = factor.reshape(-1, *[1] * (gradient.ndim - 1))
    return torch.where(by == 0, 0, gradient * by)


def _warped(warp, moving, displacement, padding, mask) -> torch.Tensor:
    if mask is None:
        return warp(moving, displacement, padding=padding)
    # What is hidden in one channel has no gradient; the others have theirs.
    seen = (hiding_gradient(displacement, mask) for _ in range(max(moving.shape[1], 1)))
    channels = moving.split(1, 1)
    return torch.cat([warp(c, u, padding=padding) for c, u in zip(channels, seen, strict=True)], 1)


def compose(
    parts, options, moving, fixed, displacement, eps_moving, eps_fixed, mask, return_warped
) -> RegistrationObjective:
    """The objective out of its parts, one after the other.

    As in the operator neither the warped image nor a part of a gradient is rounded to a half type.
    """
    dtype = arithmetic_dtype(moving, fixed, displacement)
    moving, fixed, displacement = (in_dtype(x, dtype) for x in (moving, fixed, displacement))
    warped = _warped(parts.warp, moving, displacement, options.padding, mask)

    def measure(name: str) -> torch.Tensor:
        if name == "ssd":
            return sum_of_squares(warped, fixed, mask)
        if name == "ncc":
            return parts.correlation(warped, fixed, mask)
        if name == "lncc":
            return parts.local_correlation(warped, fixed, options.window, mask)
        eps = eps_moving
        if eps is None:
            eps = scale_of_moving(moving, mask, parts.gradient_scale)
        return parts.parallel_level_sets(warped, fixed, eps, eps_fixed, LEVEL_SETS[name], mask)

    measures = [factor * measure(name) for name, factor in options.mixture.items()]
    similarity = torch.stack(measures).sum(0)
    energies = parts.deformation_energy(displacement, *options.of_energies())
    terms = similarity, *energies
    pairs = zip(options.weights, terms, strict=True)
    total = torch.stack([weight * term for weight, term in pairs]).sum(0)
    return RegistrationObjective._make([total, *terms, warped if return_warped else None])


def compose_raw(
    parts, moving, fixed, displacement, eps_moving, eps_fixed, mask, mixture, weights, padding,
    spacing, penalty, threshold, window=WINDOW,
) -> RegistrationObjective:  # fmt: skip
    """`compose` of what the registered operator takes, the warped image included."""
    named = {name: factor for name, factor in zip(MEASURES, mixture, strict=True) if factor}
    limit = threshold if penalty != "relu" else None
    measures = named or {"ssd": 0.0}
    options = Options(measures, weights, padding, penalty, limit, spacing, window)
    eps_moving, eps_fixed = (  # looked at before the operator was called
        e if e is None else Measured(on_device(e, moving)) for e in (eps_moving, eps_fixed)
    )
    inputs = moving, fixed, displacement, eps_moving, eps_fixed, mask
    return compose(parts, options, *inputs, True)
