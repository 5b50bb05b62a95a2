"""What a network says of a pair, and variational steps from there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffreg.data.prepare import Prepared
from diffreg.losses import Objective
from diffreg.models import applied, dimensions_of
from diffreg.registration.variational import register_variational
from diffreg.system.own_code import check_takes


class Refined(NamedTuple):
    """Displacements after some steps, and what those did."""

    displacement: Tensor  # (1, D, *S), voxels
    inverse: Tensor | None  # (1, D, *S), of fixed onto moving, where there was one
    seconds: float  # of the displacement
    metrics: dict[str, Any]  # as in metrics.json


def predict(network: nn.Module, moving: Tensor, fixed: Tensor) -> Tensor:
    """The network's displacements, found where its parameters are and in their dtype.

    Args:
        network: called (moving, fixed) -> displacement; a module, or a function.
        moving: (N, 1, *S) in [0, 1].
        fixed: (N, 1, *S) in [0, 1].

    Returns:
        (N, D, *S), voxels, float32 on the CPU.

    Raises:
        TypeError: the network cannot be called, or gives no tensor.
        ValueError: the network gives no displacement of that size, or is of images and was given
            volumes, or the other way round.

    Example: `predict(network, pair.moving_values, pair.fixed_values)`
    """
    check_network(network)
    device, dtype = device_of(network), _dtype_of(network, moving.dtype)
    if isinstance(network, nn.Module):
        network.eval()
    with torch.no_grad():
        displacement = applied(network, moving.to(device, dtype), fixed.to(device, dtype))
    if not isinstance(displacement, Tensor):
        raise TypeError(f"the network must give a tensor, got {type(displacement).__name__}")
    expected = (len(fixed), fixed.ndim - 2, *fixed.shape[2:])
    if tuple(displacement.shape) != expected:
        raise ValueError(
            f"the network's displacement must be {expected}, got {tuple(displacement.shape)}"
        )
    return displacement.to("cpu", torch.float32)


def device_of(network: nn.Module) -> torch.device:
    """Where the network's parameters are; the CPU where it has none."""
    return next((parameter.device for parameter in _parameters(network)), torch.device("cpu"))


def takes_volumes(network: Any) -> bool:
    """Whether it says of itself that it is of volumes; one that says nothing is of images."""
    return dimensions_of(network) == 3


def check_network(network: Any) -> None:
    """Raises a TypeError unless it can be called with two images."""
    if isinstance(network, type) or not callable(network):
        found = repr(network) if isinstance(network, str | Path | type) else type(network).__name__
        raise TypeError(
            "network must be callable, (moving, fixed) -> displacement, such as a diffreg.models "
            f'module or what load_network gives as "network", got {found}'
        )
    check_takes(network, "the network", "moving", "fixed")


def _dtype_of(network: nn.Module, otherwise: torch.dtype) -> torch.dtype:
    """What the network's layers read: the dtype of the first that have one."""
    kinds = (p.dtype for p in _parameters(network) if p.is_floating_point())
    return next(kinds, otherwise)


def _parameters(network: nn.Module) -> Iterator[Tensor]:
    return network.parameters() if isinstance(network, nn.Module) else iter(())


def refined(
    pair: Prepared,
    predicted: Tensor,
    inverse: Tensor | None,
    objective: Objective,
    steps: int,
    progress: Callable[..., Any] | None = None,
    device: torch.device | str = "cpu",
) -> Refined:
    """A network's displacement after variational steps on the full grid.

    Args:
        pair: as the network saw it.
        predicted: (1, D, *S), voxels, the network's.
        inverse: (1, D, *S), the network's for fixed onto moving, refined too; or None.
        objective: what is minimised.
        steps: at most so many, at least 1.
        progress: as `register_variational`.
        device: what is computed on.

    Returns:
        The displacements, without a folded cell. The metrics have the objective of the predicted
        one, folds and all, and of the refined one.

    Raises:
        ValueError: a displacement that is not finite.

    Example: `refined(pair, predict(network, *images), None, Objective(), 10).displacement`
    """
    moving, fixed = pair.moving_values.to(device), pair.fixed_values.to(device)
    mask = None if pair.weights is None else pair.weights.to(device)
    predicted = predicted.to(device)
    inverse = None if inverse is None else inverse.to(device)
    start = time.perf_counter()
    found = register_variational(moving, fixed, objective, 1, steps, mask, progress, predicted)
    seconds = time.perf_counter() - start
    if inverse is not None:
        inverse = register_variational(fixed, moving, objective, 1, steps, mask, progress, inverse)
    before, after = (objective(moving, fixed, u, mask).total.item() for u in (predicted, found))
    measured = {"at_most_steps": steps, "objective_before": before, "objective_after": after}
    back = None if inverse is None else inverse.to("cpu")
    return Refined(found.to("cpu"), back, seconds, measured)
