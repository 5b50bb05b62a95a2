"""Measures of the user's own in an objective: named, called and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from diffreg.system.own_code import check_takes

# (warped, fixed, mask) -> (N,), minimised: images (N, C, *S), mask (N, 1, *S) or None.
Measure = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]


def named_measures(similarity: Any) -> tuple[Any, dict[str, Measure]]:
    """A similarity with names for all of its measures, and the measures that are a user's own.

    Args:
        similarity: a name, a callable, or a mapping of these to factors.

    Returns:
        The same with names alone, "module:name" of a callable; and name -> callable.

    Raises:
        TypeError: a key that is neither a name nor can be called with these three.

    Example:
        >>> from diffreg.losses.own import named_measures
        >>> def squares(warped, fixed, mask):
        ...     return ((warped - fixed) ** 2).flatten(1).mean(1)
        >>> squares.__module__ = "mine"
        >>> named_measures({"ncc": 1.0, squares: 0.2})[0]
        {'ncc': 1.0, 'mine:squares': 0.2}
    """
    if isinstance(similarity, str):
        return similarity, {}
    given = similarity if isinstance(similarity, Mapping) else {similarity: 1.0}
    named: dict[str, float] = {}
    own: dict[str, Measure] = {}
    for measure, factor in given.items():
        name = measure
        if not isinstance(measure, str):
            name = _name(measure, own)
            own[name] = measure
        named[name] = factor
    return named, own


def _name(measure: Any, taken: Mapping[str, Any]) -> str:
    if isinstance(measure, type) or not callable(measure):
        raise TypeError(
            "similarity must be a name, a callable (warped, fixed, mask) -> (N,), or a mapping of "
            f"these to factors, got {measure!r}"
        )
    named = measure if hasattr(measure, "__qualname__") else type(measure)
    name = f"{named.__module__}:{named.__qualname__}"
    number = 1 + sum(other.partition(" ")[0] == name for other in taken)
    check_takes(measure, f"the measure {name}", "warped", "fixed", "mask")
    return name if number == 1 else f"{name} {number}"


def measured(
    name: str, measure: Measure, warped: Tensor, fixed: Tensor, mask: Tensor | None
) -> Tensor:
    """The values of a measure, (N,).

    Raises:
        TypeError, ValueError: it gives something else, or nothing that can be minimised.
    """
    values: Any = measure(warped, fixed, mask)
    contract = f"the measure {name} must give one value a sample, ({len(fixed)},)"
    if not isinstance(values, Tensor):
        raise TypeError(f"{contract}, got {type(values).__name__}")
    if tuple(values.shape) != (len(fixed),):
        hint = ', such as by reduction="none"' if values.ndim == 0 else ""
        raise ValueError(f"{contract}{hint}, got {tuple(values.shape)}")
    if not values.is_floating_point():
        raise TypeError(f"{contract} of a floating dtype, got {values.dtype}")
    if torch.is_grad_enabled() and warped.requires_grad and not values.requires_grad:
        raise ValueError(f"the measure {name} must have a gradient to the warped image, got none")
    return values
