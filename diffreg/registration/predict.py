"""What a network says of a pair, and variational steps from there."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diffreg.data.prepare import Prepared
from diffreg.losses import Objective
from diffreg.registration.variational import register_variational


class Refined(NamedTuple):
    """Displacements after some steps, and what those did."""

    displacement: Tensor  # (1, 2, *S), voxels
    inverse: Tensor | None  # (1, 2, *S), of fixed onto moving, where there was one
    seconds: float  # of the displacement
    metrics: dict[str, Any]  # as in metrics.json


def predict(network: nn.Module, moving: Tensor, fixed: Tensor) -> Tensor:
    """The network's displacements, found where its parameters are.

    Args:
        network: called (moving, fixed) -> displacement.
        moving: (N, 1, *S) in [0, 1].
        fixed: (N, 1, *S) in [0, 1].

    Returns:
        (N, 2, *S), voxels, float32 on the CPU.

    Raises:
        ValueError: the network gives no displacement of that size.

    Example: `predict(network, pair.moving_values, pair.fixed_values)`
    """
    images = moving.to(device_of(network)), fixed.to(device_of(network))
    if isinstance(network, nn.Module):
        network.eval()
        # One that was trained or stored in another precision takes its images in that.
        dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), moving.dtype)
        images = images[0].to(dtype), images[1].to(dtype)
    with torch.no_grad():
        displacement = network(*images)
    if not isinstance(displacement, Tensor):
        raise TypeError(
            "the network must return a displacement, a tensor (N, D, *S), got "
            f"{type(displacement).__name__}"
        )
    expected = (len(fixed), 2, *fixed.shape[2:])
    if tuple(displacement.shape) != expected:
        raise ValueError(
            f"the network's displacement must be {expected}, got {tuple(displacement.shape)}"
        )
    return displacement.to("cpu", torch.float32)


def device_of(network: nn.Module) -> torch.device:
    """Where the network's parameters are; the CPU where it has none."""
    parameters = network.parameters() if isinstance(network, nn.Module) else iter(())
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


def refined(
    pair: Prepared,
    predicted: Tensor,
    inverse: Tensor | None,
    objective: Objective,
    steps: int,
    progress: Callable[..., Any] | None = None,
) -> Refined:
    """A network's displacement after variational steps on the full grid.

    Args:
        pair: as the network saw it.
        predicted: (1, 2, *S), voxels, the network's.
        inverse: (1, 2, *S), the network's for fixed onto moving, refined too; or None.
        objective: what is minimised.
        steps: at most so many, at least 1.
        progress: as `register_variational`.

    Returns:
        The displacements, without a folded cell. The metrics have the objective of the predicted
        one, folds and all, and of the refined one.

    Raises:
        ValueError: a displacement that is not finite.

    Example: `refined(pair, predict(network, *images), None, Objective(), 10).displacement`
    """
    moving, fixed, mask = pair.moving_values, pair.fixed_values, pair.weights
    start = time.perf_counter()
    found = register_variational(moving, fixed, objective, 1, steps, mask, progress, predicted)
    seconds = time.perf_counter() - start
    if inverse is not None:
        inverse = register_variational(fixed, moving, objective, 1, steps, mask, progress, inverse)
    before, after = (objective(moving, fixed, u, mask).total.item() for u in (predicted, found))
    measured = {"at_most_steps": steps, "objective_before": before, "objective_after": after}
    return Refined(found, inverse, seconds, measured)
