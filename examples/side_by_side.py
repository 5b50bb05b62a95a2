"""Two trainings that differ in their operators only, run by turns and printed side by side.

Called by the examples. Times are wall-clock medians of interleaved runs, so that what else the
machine does falls on both; memory is what torch's own profiler saw allocated above the start.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from diffreg.benchmark.counting import peak_bytes


class Training(Protocol):
    """What an example provides, once with each library's operators."""

    def step(self, moving: Tensor, fixed: Tensor) -> float:
        """One optimisation step; its loss."""

    def field(self, moving: Tensor, fixed: Tensor) -> Tensor:
        """What the network gives, (N, D, *S)."""

    def objective(self, moving: Tensor, fixed: Tensor, field: Tensor) -> Tensor:
        """The loss of such a field: all that was swapped."""


class Side(NamedTuple):
    """What was measured of one training."""

    losses: list[float]
    step_seconds: list[float]
    objective_seconds: list[float]
    step_bytes: int
    objective_bytes: int


def blobs(samples: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pairs of images (samples, 1, size, size) in [0, 1]: three soft blobs, moved and resized."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.linspace(-1, 1, size)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    images = []
    centres = torch.rand(samples, 3, 2, generator=generator) - 0.5
    for _ in range(2):
        moved = centres + 0.08 * torch.randn(samples, 3, 2, generator=generator)
        radii = 0.18 + 0.08 * torch.rand(samples, 3, generator=generator)
        squares = (rows - moved[..., :1, None]) ** 2 + (columns - moved[..., 1:, None]) ** 2
        edges = torch.sigmoid((radii[..., None, None] - squares.sqrt()) * 20)
        images.append(edges.amax(1, keepdim=True))
    return images[0], images[1]


def run(theirs: Training, ours: Training, moving: Tensor, fixed: Tensor, steps: int) -> list[Side]:
    """Trains both by turns on the same batch, then measures the memory of one more step each.

    Args:
        theirs, ours: the same network and weights, with each library's operators.
        moving, fixed: images (N, 1, *S).
        steps: optimisation steps of each.

    Returns:
        What was measured, theirs first.
    """
    trainings = (theirs, ours)
    losses: list[list[float]] = [[], []]
    step_seconds: list[list[float]] = [[], []]
    objective_seconds: list[list[float]] = [[], []]
    for _ in range(steps):
        for k, training in enumerate(trainings):
            loss, seconds = _timed(partial(training.step, moving, fixed))
            losses[k].append(loss)
            step_seconds[k].append(seconds)
        # The swapped part alone, forward and backward, on one field.
        field = theirs.field(moving, fixed).detach()
        for k, training in enumerate(trainings):
            _, seconds = _timed(_gradient(training, moving, fixed, field))
            objective_seconds[k].append(seconds)
    sides = []
    for k, training in enumerate(trainings):
        objective_bytes = peak_bytes(_gradient(training, moving, fixed, field))
        step_bytes = peak_bytes(partial(training.step, moving, fixed))
        sides.append(
            Side(losses[k], step_seconds[k], objective_seconds[k], step_bytes, objective_bytes)
        )
    return sides


def _gradient(
    training: Training, moving: Tensor, fixed: Tensor, field: Tensor
) -> Callable[[], None]:
    def forward_and_backward() -> None:
        leaf = field.clone().requires_grad_()
        training.objective(moving, fixed, leaf).backward()

    return forward_and_backward


def _timed(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def show(name: str, sides: list[Side]) -> None:
    """Prints both sides; `name` is the other library's."""
    first = 1 if len(sides[0].step_seconds) > 3 else 0  # the first one warms up
    rows = [
        ("loss of the first step", lambda side: f"{side.losses[0]:.5f}"),
        ("loss of the last step", lambda side: f"{side.losses[-1]:.5f}"),
        ("a step, ms", lambda side: _spread(side.step_seconds[first:])),
        ("of it warp and losses, ms", lambda side: _spread(side.objective_seconds[first:])),
        ("peak of a step, MiB", lambda side: f"{side.step_bytes / 2**20:.2f}"),
        ("of warp and losses, MiB", lambda side: f"{side.objective_bytes / 2**20:.2f}"),
    ]
    print(f"{'':28}{name:>26}{'diffreg':>26}")
    for label, value in rows:
        print(f"{label:28}" + "".join(f"{value(side):>26}" for side in sides))
    print(
        f"Times: median [quartiles] of {len(sides[0].step_seconds[first:])} interleaved runs, "
        f"threads: {torch.get_num_threads()}. Memory: held by torch's allocator above the start."
    )


def _spread(seconds: list[float]) -> str:
    """Median [first quartile, third quartile] in milliseconds."""
    if len(seconds) < 2:
        return f"{1e3 * seconds[0]:.1f}"
    low, middle, high = (1e3 * q for q in statistics.quantiles(seconds, n=4, method="inclusive"))
    return f"{middle:.1f} [{low:.1f}, {high:.1f}]"
