"""What a pair's search minimises: channel by channel, and with landmarks.

L = sum_k w_k w_s S(moving_k o phi, fixed_k) + energies of u + E_points
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor

from diffreg.losses import Objective
from diffreg.ops import Weights
from diffreg.ops._checks import checked_mask
from diffreg.registration.descent import ValueAndGradient
from diffreg.registration.landmarks import Pins
from diffreg.registration.whiteness import structured


class Terms(NamedTuple):
    """What is minimised, apart from the grid."""

    objective: Objective
    channels: Sequence[float] | None = None
    landmarks: Pins | None = None

    @property
    def of_similarity(self) -> float:
        """The weight of all that a similarity can gain, over the channels."""
        factors = sum(abs(factor) for factor in self.objective.similarity.values())
        return self.objective.weights.similarity * factors * sum(self.channels or (1,))


def checked_masks(
    mask: Tensor | None, fixed: Tensor, dtype: torch.dtype, weights: Sequence[float] | None = None
) -> Tensor | None:
    """The mask of all channels (N, 1, *S), or, where they have weights, of each, (N, C, *S).

    Args:
        mask: None is 1.
        fixed: images (N, C, *S).
        dtype: of the arithmetic.
        weights: of the channels, or None.

    Raises:
        TypeError, ValueError: a mask or weights that do not fit.

    Example: `checked_masks(None, fixed, torch.float32, (1, 0.5))`
    """
    if weights is None:
        return checked_mask(mask, fixed, dtype)
    if len(weights) != fixed.shape[1] or not all(0 < weight < math.inf for weight in weights):
        raise ValueError(
            f"channels must be {fixed.shape[1]} weights > 0, one for each channel, got "
            f"{list(weights)}"
        )
    if mask is None or mask.shape[1] == 1:
        return checked_mask(mask, fixed, dtype)
    if mask.shape[1] != fixed.shape[1]:
        raise ValueError(
            f"mask must have 1 channel or those of fixed, {fixed.shape[1]}, got {mask.shape[1]}"
        )
    found = (checked_mask(own, fixed, dtype) for own in mask.split(1, 1))
    return torch.cat([own for own in found if own is not None], 1)


def value_and_gradient_of(
    objective: Objective,
    moving: Tensor,
    fixed: Tensor,
    mask: Tensor | None = None,
    weights: Sequence[float] | None = None,
) -> ValueAndGradient:
    """`Objective.value_and_gradient_of`, channel by channel.

    Args:
        objective: of one channel.
        moving, fixed: images (1, C, *S).
        mask: (1, 1, *S), or (1, C, *S), one for each channel.
        weights: of the channels' similarities, the energies counting once; None: one similarity of
            all of them together.

    Example:
        >>> import torch
        >>> from diffreg.losses import Objective
        >>> from diffreg.registration.terms import value_and_gradient_of
        >>> a, b = torch.rand(2, 1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> evaluate = value_and_gradient_of(Objective("ssd", (1, 0, 0, 0)), a, b, None, (1, 3))
        >>> apart = (a - b).square().mean((0, 2, 3))
        >>> torch.allclose(evaluate(torch.zeros(1, 2, 8, 8))[0], apart[0] + 3 * apart[1])
        True
    """
    if weights is None:
        return objective.value_and_gradient_of(moving, fixed, mask)
    parts = []
    for k, weight in enumerate(weights):
        if k and not weight:
            continue  # the first has the energies
        channel = slice(k, k + 1)
        own = mask if mask is None or mask.shape[1] == 1 else mask[:, channel].contiguous()
        images = moving[:, channel].contiguous(), fixed[:, channel].contiguous(), own
        parts.append(_weighted(objective, weight, k == 0).value_and_gradient_of(*images))

    def evaluate(displacement: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = parts[0](displacement)
        for part in parts[1:]:
            more, slope = part(displacement)
            value, gradient = value + more, gradient.add_(slope)
        return value, gradient

    return evaluate


def structured_channels(
    warped: Tensor,
    fixed: Tensor,
    mask: Tensor | None = None,
    weights: Sequence[float] | None = None,
    across: bool = False,
) -> tuple[Tensor | None, float, list[float] | None]:
    """`diffreg.registration.whiteness.structured`, channel by channel where they have weights.

    Returns:
        The mask, (1, 1, *S) or (1, C, *S), the share of the image that it is, and the weights: with
        these the share is in them, and 1, or 0 where all are.
    """
    if weights is None:
        return *structured(warped, fixed, mask, across), None
    masks = [mask] * len(weights)
    if mask is not None and mask.shape[1] > 1:
        masks = list(mask.split(1, 1))
    parts = zip(warped.split(1, 1), fixed.split(1, 1), masks, strict=True)
    found = [structured(*part, across) for part in parts]
    weights = [weight * share for weight, (_, share) in zip(weights, found, strict=True)]
    whole = [torch.ones_like(fixed[:, :1]) if own is None else own for own, _ in found]
    some = any(own is not None for own, _ in found)
    return torch.cat(whole, 1) if some else None, float(any(weights)), weights


def _weighted(objective: Objective, factor: float, with_energies: bool) -> Objective:
    """The objective with its similarities times a factor, and with or without its energies."""
    of_similarity, *energies = objective.weights
    return changed(
        objective,
        {name: factor * share for name, share in objective.similarity.items()},
        Weights(of_similarity, *(weight * with_energies for weight in energies)),
    )


def changed(objective: Objective, similarity: Mapping[str, float], weights: Weights) -> Objective:
    """The same objective with other similarities and weights.

    Example:
        >>> from diffreg.losses import Objective, Weights
        >>> from diffreg.registration.terms import changed
        >>> changed(Objective("ncc"), {"ssd": 2.0}, Weights(1, 0, 0, 0)).similarity
        {'ssd': 2.0}
    """
    other = copy(objective)
    other.similarity, other.weights = dict(similarity), weights
    return other
