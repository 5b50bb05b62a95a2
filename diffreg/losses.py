"""Similarities and deformation energies as modules, and the objective that weighs them.

A similarity is minimised. SSD, NCC and PLS are 0 when aligned; LNCC and NGF are not: flat regions
cost 1.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from diffreg.ops import (
    correlation,
    deformation_energy,
    gradient_scale,
    local_correlation,
    parallel_level_sets,
    warp,
)
from diffreg.ops._checks import check_choice, check_pair, checked_mask
from diffreg.ops.local_correlation import check_window

REDUCTIONS = ("mean", "sum", "none")


def sum_of_squares(
    warped: torch.Tensor, fixed: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared difference over voxels and channels, weighted by the mask.

    Args:
        warped: image (N, C, *S), float32 or float64.
        fixed: image of the same shape and dtype.
        mask: weights (N, 1, *S) >= 0; None is 1.

    Returns:
        (N,); 0 where the weights add up to 0.

    Raises:
        TypeError, ValueError: dtypes, shapes or devices that do not fit.

    Example:
        >>> import torch
        >>> from diffreg.losses import sum_of_squares
        >>> sum_of_squares(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2))
        tensor([1.])
    """
    check_pair(warped, fixed)
    weights = checked_mask(mask, warped)
    squares = ((warped - fixed) ** 2).flatten(1)
    if weights is None:
        return squares.mean(1)
    total = weights.flatten(1).sum(1) * warped.shape[1]
    sums = (squares * weights.expand_as(warped).flatten(1)).sum(1)
    return sums / torch.where(total == 0, torch.ones_like(total), total)


def _reduce(values: torch.Tensor, reduction: str) -> torch.Tensor:
    if reduction == "none":
        return values
    return values.mean() if reduction == "mean" else values.sum()


def _weighted(factors: Sequence[float], terms: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([f * term for f, term in zip(factors, terms, strict=True)]).sum(0)


class _Similarity(nn.Module):
    """Called `loss(warped, fixed, mask=None)`, (N, C, *S) each; reduction over the batch."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS)
        self.reduction = reduction

    def forward(
        self, warped: torch.Tensor, fixed: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        return _reduce(self.per_sample(warped, fixed, mask), self.reduction)

    def per_sample(self, warped, fixed, mask=None) -> torch.Tensor:
        raise NotImplementedError


class SSD(_Similarity):
    """Mean squared difference.

    Args:
        reduction: "mean", "sum" or "none" over the batch.

    Example:
        >>> import torch
        >>> from diffreg.losses import SSD
        >>> SSD()(torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4))
        tensor(1.)
    """

    def per_sample(self, warped, fixed, mask=None) -> torch.Tensor:
        return sum_of_squares(warped, fixed, mask)


class NCC(_Similarity):
    """1 - correlation coefficient (`diffreg.ops.correlation`).

    Args:
        reduction: "mean", "sum" or "none" over the batch.

    Example:
        >>> import torch
        >>> from diffreg.losses import NCC
        >>> image = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> NCC()(3 * image + 1, image)
        tensor(0.)
    """

    def per_sample(self, warped, fixed, mask=None) -> torch.Tensor:
        return correlation(warped, fixed, mask)


class PLS(_Similarity):
    """Parallel level sets (`diffreg.ops.parallel_level_sets`), for images of different contrast.

    Args:
        eps_warped: edge scale of the warped image, a float or (N,). None measures the image that it
            is given; when registering, give that of the unwarped moving image (Objective does).
        eps_fixed: edge scale of the fixed image; None measures it.
        variant: "pls" or "smooth".
        reduction: "mean", "sum" or "none" over the batch.

    Example:
        >>> import torch
        >>> from diffreg.losses import PLS
        >>> ramp = torch.arange(16.0).reshape(1, 1, 4, 4)
        >>> PLS(eps_warped=2.0, eps_fixed=1.0)(5 - 2 * ramp, ramp)
        tensor(0.)
    """

    def __init__(
        self,
        eps_warped: float | torch.Tensor | None = None,
        eps_fixed: float | torch.Tensor | None = None,
        variant: str = "pls",
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        check_choice("variant", variant, ("pls", "smooth", "ngf"))
        self.eps_warped, self.eps_fixed, self.variant = eps_warped, eps_fixed, variant

    def per_sample(self, warped, fixed, mask=None) -> torch.Tensor:
        return parallel_level_sets(
            warped, fixed, self.eps_warped, self.eps_fixed, self.variant, mask
        )


class NGF(PLS):
    """Normalised gradient fields: `PLS` with variant "ngf". Flat regions cost 1, also when aligned.

    Args:
        eps_warped, eps_fixed: as in `PLS`.
        reduction: "mean", "sum" or "none" over the batch.

    Example:
        >>> import torch
        >>> from diffreg.losses import NGF
        >>> NGF(eps_warped=1.0, eps_fixed=1.0)(torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4))
        tensor(1.)
    """

    def __init__(
        self,
        eps_warped: float | torch.Tensor | None = None,
        eps_fixed: float | torch.Tensor | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(eps_warped, eps_fixed, "ngf", reduction)


class LNCC(_Similarity):
    """1 - squared local correlation (`diffreg.ops.local_correlation`). Flat windows cost 1.

    Args:
        window: side of the box in voxels, odd.
        reduction: "mean", "sum" or "none" over the batch.

    Example:
        >>> import torch
        >>> from diffreg.losses import LNCC
        >>> ramp = torch.arange(16.0).reshape(1, 1, 4, 4) / 16
        >>> LNCC(window=3)(1 - ramp, ramp)
        tensor(0.)
    """

    def __init__(self, window: int = 9, reduction: str = "mean") -> None:
        super().__init__(reduction)
        check_window(window)
        self.window = window

    def per_sample(self, warped, fixed, mask=None) -> torch.Tensor:
        return local_correlation(warped, fixed, self.window, mask)


class DeformationEnergy(nn.Module):
    """Weighted sum of diffusion, bending and determinant energy of a displacement (N, D, *S).

    Args:
        diffusion, bending, determinant: weights of the three energies.
        spacing, penalty, threshold: as in `diffreg.ops.deformation_energy`.
        reduction: "mean", "sum" or "none" over the batch.

    Example:
        >>> import torch
        >>> from diffreg.losses import DeformationEnergy
        >>> DeformationEnergy()(torch.zeros(1, 2, 8, 8))
        tensor(0.)
    """

    def __init__(
        self,
        diffusion: float = 1.0,
        bending: float = 1.0,
        determinant: float = 1.0,
        spacing: float | Sequence[float] | None = None,
        penalty: str = "hyperelastic",
        threshold: float | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        check_choice("reduction", reduction, REDUCTIONS)
        self.weights = diffusion, bending, determinant
        self.options = spacing, penalty, threshold
        self.reduction = reduction

    def forward(self, displacement: torch.Tensor) -> torch.Tensor:
        energies = deformation_energy(displacement, *self.options)
        return _reduce(_weighted(self.weights, energies), self.reduction)


class Weights(NamedTuple):
    """Factors of the objective's four terms."""

    similarity: float
    diffusion: float
    bending: float
    determinant: float


# "paper": lambda = 60 is Theljani and Chen's, the three ones are ours; it folds on cardiac pairs.
# "default" was found on the very images that it was tried on: tune inside the split.
WEIGHTS = {"default": Weights(60, 1, 30, 3), "paper": Weights(60, 1, 1, 1)}


def _level_sets(variant: str) -> Callable[..., torch.Tensor]:
    def similarity(moving, warped, fixed, mask):
        # The edge scale is that of the unwarped image: it must not change with the displacement.
        return parallel_level_sets(
            warped, fixed, gradient_scale(moving.detach()), None, variant, mask
        )

    return similarity


# name -> function of (moving, warped, fixed, mask) -> (N,)
SIMILARITIES: dict[str, Callable[..., torch.Tensor]] = {
    "ssd": lambda moving, warped, fixed, mask: sum_of_squares(warped, fixed, mask),
    "ncc": lambda moving, warped, fixed, mask: correlation(warped, fixed, mask),
    "lncc": lambda moving, warped, fixed, mask: local_correlation(warped, fixed, mask=mask),
    "pls": _level_sets("pls"),
    "smooth_pls": _level_sets("smooth"),
    "ngf": _level_sets("ngf"),
}


class ObjectiveTerms(NamedTuple):
    """The objective and its terms: total is weighted and averaged over the batch, the rest raw."""

    total: torch.Tensor  # ()
    similarity: torch.Tensor  # (N,)
    diffusion: torch.Tensor  # (N,)
    bending: torch.Tensor  # (N,)
    determinant: torch.Tensor  # (N,)
    warped: torch.Tensor  # (N, C, *S)

    def per_sample(self, weights: Weights) -> torch.Tensor:
        """Weighted sum of the terms of each sample, (N,)."""
        return _weighted(weights, self[1:5])


class Objective(nn.Module):
    """L = w_s S(moving o phi, fixed) + w_1 E1(u) + w_2 E2(u) + w_det E_det(u), phi = id + u.

    Args:
        similarity: one of SIMILARITIES ("ssd", "ncc", "lncc", "pls", "smooth_pls", "ngf"), or a
            mixture, for example {"ncc": 1.0, "lncc": 0.2}.
        weights: a preset ("default", "paper"), a `Weights`, or 4 numbers (similarity, diffusion,
            bending, determinant).
        padding, penalty, threshold, spacing: as in `diffreg.ops.warp` and `deformation_energy`.

    Raises:
        ValueError: a name that is not known, or weights that are not 4 finite numbers.

    Source:
        Theljani and Chen 2020: its three parts; the exact form is ours.

    Example:
        >>> import torch
        >>> from diffreg.losses import Objective
        >>> image = torch.arange(64.0).reshape(1, 1, 8, 8)
        >>> Objective("ncc")(image, image, torch.zeros(1, 2, 8, 8)).total
        tensor(0.)
    """

    def __init__(
        self,
        similarity: str | Mapping[str, float] = "ncc",
        weights: str | Sequence[float] = "default",
        padding: str = "border",
        penalty: str = "hyperelastic",
        threshold: float | None = None,
        spacing: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        mixture = {similarity: 1.0} if isinstance(similarity, str) else dict(similarity)
        if not mixture:
            raise ValueError("similarity must name at least one measure, got an empty mapping")
        for name in mixture:
            check_choice("similarity", name, tuple(SIMILARITIES))
        self.similarity = mixture
        self.weights = _weights(weights)
        self.padding, self.penalty, self.threshold = padding, penalty, threshold
        self.spacing = spacing

    def forward(
        self,
        moving: torch.Tensor,
        fixed: torch.Tensor,
        displacement: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> ObjectiveTerms:
        """The objective of a displacement (N, D, *S) for images (N, C, *S), mask (N, 1, *S)."""
        warped = warp(moving, displacement, padding=self.padding)
        measures = [SIMILARITIES[name](moving, warped, fixed, mask) for name in self.similarity]
        similarity = _weighted(list(self.similarity.values()), measures)
        energies = deformation_energy(displacement, self.spacing, self.penalty, self.threshold)
        terms = ObjectiveTerms(similarity, similarity, *energies, warped)
        return terms._replace(total=terms.per_sample(self.weights).mean())

    def with_spacing(self, spacing: float | Sequence[float] | None) -> "Objective":
        """The same objective for fields on a grid of another spacing, such as a pyramid level's."""
        return Objective(
            self.similarity, self.weights, self.padding, self.penalty, self.threshold, spacing
        )


def _weights(weights: str | Sequence[float]) -> Weights:
    if isinstance(weights, str):
        check_choice("weights", weights, tuple(WEIGHTS))
        return WEIGHTS[weights]
    values = [float(weight) for weight in weights]
    if len(values) != 4 or not all(0 <= value < float("inf") for value in values):
        raise ValueError(
            "weights must be a preset or 4 numbers >= 0 (similarity, diffusion, bending, "
            f"determinant), got {values}"
        )
    return Weights(*values)
