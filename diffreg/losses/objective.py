"""The objective: a weighted sum of a similarity and the deformation energies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from diffreg.losses.own import Measure, measured, named_measures
from diffreg.losses.presets import PRESETS
from diffreg.losses.similarities import REDUCTIONS, reduced
from diffreg.ops import (
    Weights,
    deformation_energy,
    gradient_scale,
    mutual_information,
    registration_objective,
    registration_objective_value_and_gradient,
    warp,
)
from diffreg.ops._checks import check_choice
from diffreg.ops._masks import visible
from diffreg.ops._objective import (
    LEVEL_SETS,
    MEASURES,
    checked_mixture,
    checked_weights,
    scale_of_moving,
)
from diffreg.ops.deformation_energy import checked_threshold
from diffreg.ops.local_correlation import check_window
from diffreg.ops.parallel_level_sets import Measured
from diffreg.ops.warp import PADDINGS


def _weighted(factors: Sequence[float], terms: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([f * term for f, term in zip(factors, terms, strict=True)]).sum(0)


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
        checked_threshold(penalty, threshold)
        self.weights = diffusion, bending, determinant
        self.options = spacing, penalty, threshold
        self.reduction = reduction

    def forward(self, displacement: torch.Tensor) -> torch.Tensor:
        energies = deformation_energy(displacement, *self.options)
        return reduced(_weighted(self.weights, energies), self.reduction)


WEIGHTS = {name: preset.weights for name, preset in PRESETS.items()}


# What `registration_objective` has, and "mi", which is no part of that operator.
SIMILARITIES = (*MEASURES, "mi")
ACROSS = (*LEVEL_SETS, "mi")  # those that see one image's intensities through a function


class ObjectiveTerms(NamedTuple):
    """The objective and its terms: total is weighted and averaged over the batch, the rest raw."""

    total: torch.Tensor  # ()
    similarity: torch.Tensor  # (N,)
    diffusion: torch.Tensor  # (N,)
    bending: torch.Tensor  # (N,)
    determinant: torch.Tensor  # (N,)
    warped: torch.Tensor | None  # (N, C, *S), unless it was not asked for

    def per_sample(self, weights: Weights) -> torch.Tensor:
        """Weighted sum of the terms of each sample, (N,)."""
        return _weighted(weights, self[1:5])


class Objective(nn.Module):
    """L = w_s S(moving o phi, fixed) + w_1 E1(u) + w_2 E2(u) + w_det E_det(u), phi = id + u.

    Args:
        similarity: one of SIMILARITIES ("ssd", "ncc", "lncc", "pls", "smooth_pls", "ngf", "mi"),
            or a measure of your own, any callable (warped, fixed, mask) -> (N,) that is minimised;
            or a mixture, for example {"ncc": 1.0, "lncc": 0.2, my_measure: 0.1}; None: that of
            the preset named by `weights`, else of "default": ncc + 0.2 lncc.
        weights: a preset (a name of `PRESETS`), a `Weights`, or 4 numbers (similarity, diffusion,
            bending, determinant).
        padding, penalty, threshold, spacing: as in `diffreg.ops.warp` and `deformation_energy`; a
            threshold of None is the preset's, where it has one.
        window: side of the box of "lncc" in voxels, odd; None: the preset's, else 9.

    Raises:
        ValueError: a name that is not known, weights that are not 4 finite numbers, or a threshold
            or window out of range.

    Source:
        Theljani and Chen 2020: its three parts; the exact form is ours.

    Example:
        >>> import torch
        >>> from diffreg.losses import Objective
        >>> image = torch.arange(64.0).reshape(1, 1, 8, 8)
        >>> Objective("ncc")(image, image, torch.zeros(1, 2, 8, 8)).total.round(decimals=6)
        tensor(0.)
    """

    def __init__(
        self,
        similarity: str | Measure | Mapping[Any, float] | None = None,
        weights: str | Sequence[float] = "default",
        padding: str = "border",
        penalty: str = "hyperelastic",
        threshold: float | None = None,
        spacing: float | Sequence[float] | None = None,
        window: int | None = None,
    ) -> None:
        super().__init__()
        self.weights = _weights(weights)
        preset = PRESETS[weights if isinstance(weights, str) else "default"]
        if similarity is None:
            similarity = preset.similarity
        if threshold is None and penalty == "hyperelastic":
            threshold = preset.threshold
        named, self.own = named_measures(similarity)
        self.similarity = checked_mixture(named, (*SIMILARITIES, *self.own))
        self.parts = nn.ModuleList(m for m in self.own.values() if isinstance(m, nn.Module))
        check_choice("padding", padding, PADDINGS)
        checked_threshold(penalty, threshold)
        self.padding, self.penalty, self.threshold = padding, penalty, threshold
        self.spacing = spacing
        self.window = preset.window if window is None else window
        check_window(self.window)

    def forward(
        self,
        moving: torch.Tensor,
        fixed: torch.Tensor,
        displacement: torch.Tensor,
        mask: torch.Tensor | None = None,
        return_warped: bool = True,
    ) -> ObjectiveTerms:
        """The objective of a displacement (N, D, *S) for images (N, C, *S), mask (N, 1, *S)."""
        apart = self._apart()
        fused = registration_objective(
            *(moving, fixed, displacement),
            mask=mask,
            return_warped=return_warped or bool(apart),
            **self._options(),
        )
        terms = ObjectiveTerms(*fused[:5], fused.warped if return_warped else None)
        if apart and fused.warped is not None:
            more = self._measured(apart, fused.warped, moving, fixed, mask)
            terms = terms._replace(similarity=terms.similarity + more)
            terms = terms._replace(total=terms.per_sample(self.weights))
        return terms._replace(total=terms.total.mean())

    def value_and_gradient_of(
        self, moving: torch.Tensor, fixed: torch.Tensor, mask: torch.Tensor | None = None
    ) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """For optimisers: a function of the displacement (1, D, *S) of one pair (1, C, *S).

        What does not depend on the displacement is measured once; there is no autograd but through
        the measures that are no part of the operator, and their warp.

        Returns:
            displacement -> (total, (), and its gradient (1, D, *S)).
        """
        options, apart = self._options(), self._apart()
        if any(name in LEVEL_SETS for name in self.similarity):
            scale_of_fixed = Measured(gradient_scale(visible(fixed, mask)))
            options |= {"eps_moving": scale_of_moving(moving, mask), "eps_fixed": scale_of_fixed}

        def evaluate(u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            terms, gradient = registration_objective_value_and_gradient(
                moving, fixed, u, mask=mask, **options
            )
            if not apart:
                return terms.total.mean(), gradient
            with torch.enable_grad():
                u = u.detach().requires_grad_()
                warped = warp(moving, u, padding=self.padding)
                value = self._measured(apart, warped, moving, fixed, mask).mean()
                value = self.weights.similarity * value
                more = torch.autograd.grad(value, u)[0]
            return terms.total.mean() + value.detach(), gradient.add_(more)

        return evaluate

    def _apart(self) -> list[str]:
        """The measures that `registration_objective` has not: "mi" and a user's own."""
        return [name for name in self.similarity if name == "mi" or name in self.own]

    def _measured(self, apart, warped, moving, fixed, mask) -> torch.Tensor:
        """Their weighted sum, (N,)."""

        def value(name: str) -> torch.Tensor:
            if name in self.own:
                return measured(name, self.own[name], warped, fixed, mask)
            return mutual_information(warped, fixed, mask=mask, moving=moving)

        return _weighted([self.similarity[name] for name in apart], [value(n) for n in apart])

    def _options(self) -> dict[str, Any]:
        # Where that leaves the operator no measure: one with a factor of 0 costs nothing.
        apart = self._apart()
        measures = {name: f for name, f in self.similarity.items() if name not in apart}
        return {
            "similarity": measures or {"ssd": 0.0},
            "weights": self.weights,
            "padding": self.padding,
            "penalty": self.penalty,
            "threshold": self.threshold,
            "spacing": self.spacing,
            "window": self.window,
        }

    def with_spacing(
        self, spacing: float | Sequence[float] | None, weights: Weights | None = None
    ) -> Objective:
        """The same objective for fields on a grid of another spacing, such as a pyramid level's,
        with weights of its own where they are given."""
        weights = self.weights if weights is None else weights
        options = self.padding, self.penalty, self.threshold
        similarity = {self.own.get(name, name): f for name, f in self.similarity.items()}
        return Objective(similarity, weights, *options, spacing, self.window)


def usual_objective(
    similarity: str, within: str = "default", window: int | None = None
) -> Objective:
    """A measure with weights found for its kind: a preset's within a modality, or "multimodal".

    That is for a measure across modalities by itself; `diffreg.register` minimises a mixture there
    (`PRESETS`, "multimodal_slice" and "multimodal_volume"), which is worth more.

    Args:
        similarity: one of SIMILARITIES.
        within: the preset within a modality.
        window: as in `Objective`.

    Raises:
        ValueError: it is none of them.

    Example:
        >>> from diffreg.losses import usual_objective
        >>> usual_objective("pls").weights.similarity
        3
    """
    return Objective(similarity, "multimodal" if similarity in ACROSS else within, window=window)


def _weights(weights: str | Sequence[float]) -> Weights:
    if isinstance(weights, str):
        check_choice("weights", weights, tuple(WEIGHTS))
        return WEIGHTS[weights]
    return checked_weights(weights)
