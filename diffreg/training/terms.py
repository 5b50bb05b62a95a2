"""What a run minimises: the objective of the images, and the terms that need more than these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from diffreg.data.known import TERMS, Known
from diffreg.losses import Dice, EndPoint, InverseConsistency, Keypoint, Objective
from diffreg.ops import warp
from diffreg.training.config import EXTRA, ObjectiveConfig
from diffreg.training.own import imported, is_path

Predict = Callable[[Tensor, Tensor], Tensor]


def objective_of(settings: ObjectiveConfig, spacing: tuple[float, ...] | None = None) -> Objective:
    """The objective of the images; measures that are import paths are imported.

    Raises:
        ImportError, ValueError: a measure that is not there, or weights that are none.
    """
    similarity: Any = settings.similarity
    if isinstance(similarity, Mapping):
        similarity = {_measure(name): factor for name, factor in similarity.items()}
    elif similarity is not None:
        similarity = _measure(similarity)
    return Objective(
        similarity,
        settings.weights,
        settings.padding,
        settings.penalty,
        settings.threshold,
        spacing,
        settings.window,
    )


def check_window(settings: ObjectiveConfig, objective: Objective) -> None:
    """Refuse a window that nothing looks through; checkpoints may have one."""
    if settings.window is not None and "lncc" not in objective.similarity:
        measures = ", ".join(objective.similarity)
        raise ValueError(f"[objective] window is of lncc, similarity is {measures}; leave it out")


def _measure(name: str) -> Any:
    """A measure's name as it is; of an import path what it names, a class made without settings."""
    if not is_path(name):
        return name
    found = imported(name, "objective.similarity")
    return found() if isinstance(found, type) else found


def terms_of(settings: ObjectiveConfig) -> tuple[str, ...]:
    """The terms with a weight that need more than the images of a pair."""
    return tuple(name for name in TERMS if getattr(settings, name) > 0)


def measure(
    objective: Objective,
    settings: ObjectiveConfig,
    predict: Predict,
    images: tuple[Tensor, Tensor],
    displacement: Tensor,
    mask: Tensor | None,
    known: Known,
) -> tuple[Tensor, Tensor]:
    """The weighted total of a batch, and its terms.

    Args:
        objective: of the images.
        settings: the weights of the other terms.
        predict: (moving, fixed) -> displacement, for the way back.
        images: moving and fixed, (N, 1, *S).
        displacement: (N, D, *S), what `predict` gave for them.
        mask: (N, 1, *S), what counts in both ways; or None.
        known: of the pairs.

    Returns:
        (), with its gradient; and (9,) without: total, similarity, diffusion, bending, determinant
        and those of EXTRA, means over the batch, raw; 0 where a term has no weight.

    """
    terms = objective(*images, displacement, mask, return_warped=False)
    total, raw = terms.total, torch.stack(terms[1:5]).detach().mean(1)
    back = None
    if settings.inverse_consistency > 0:
        moving, fixed = images
        back = predict(fixed, moving)
        other = objective(fixed, moving, back, mask, return_warped=False)
        total = (total + other.total) / 2
        raw = (raw + torch.stack(other[1:5]).detach().mean(1)) / 2
    extra = raw.new_zeros(len(EXTRA))
    for place, name in enumerate(EXTRA):
        if (weight := getattr(settings, name)) > 0:
            term = _extra(name, displacement, known, back, objective.padding).mean()
            total = total + weight * term
            extra[place] = term.detach()
    return total, torch.cat([total.detach()[None], raw, extra])


def _extra(
    name: str, displacement: Tensor, known: Known, back: Tensor | None, padding: str
) -> Tensor:
    """One of the further terms, (N,); 0 where none of the batch's pairs has what it needs."""
    moving_label, fixed_label, moving_points, fixed_points, true = known
    if name == "inverse_consistency" and back is not None:
        apart = InverseConsistency("none")
        return (apart(displacement, back) + apart(back, displacement)) / 2
    if name == "labels" and moving_label is not None and fixed_label is not None:
        return Dice("none")(warp(moving_label, displacement, padding=padding), fixed_label)
    if name == "landmarks" and moving_points is not None and fixed_points is not None:
        return Keypoint(reduction="none")(displacement, fixed_points, moving_points)
    if name == "displacement" and true is not None:
        return EndPoint("none")(displacement, true)
    return displacement.new_zeros(len(displacement))
