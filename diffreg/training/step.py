"""One optimisation step on a batch, which waits for nothing of what it computes.

Whatever is logged of it is left on the device, so that a GPU is never idle, and a CUDA graph can
hold all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from diffreg.data.drawing import drawn
from diffreg.data.samples import Batch
from diffreg.data.undrawn import Undrawn
from diffreg.losses import Objective
from diffreg.models import memory_order
from diffreg.ops import jacobian_determinant
from diffreg.training.config import Config
from diffreg.training.optimization import Optimization, parts_of
from diffreg.training.own import check_first
from diffreg.training.ranks import Ranks
from diffreg.training.terms import measure


class Step:
    """Gradients of a batch, in parts if the settings say so, and the change of the weights.

    Args:
        network: of this rank, as it is run: wrapped where there are several.
        predict: (moving, fixed) -> displacement, by that network.
        objective: of the images.
        config: of the run.
        optimization: of the network.
        ranks: the processes of the run, of which this one takes its share of each batch.
    """

    def __init__(
        self,
        network: nn.Module,
        predict: Callable[[Tensor, Tensor], Tensor],
        objective: Objective,
        config: Config,
        optimization: Optimization,
        ranks: Ranks,
    ) -> None:
        self.network, self.predict, self.objective = network, predict, objective
        self.config, self.optimization, self.ranks = config, optimization, ranks
        self._checked = False

    def __call__(self, batch: Batch | Undrawn) -> Tensor:
        """The row (TERMS + 4,) of the step, on the device: see `diffreg.training.log_ring`."""
        ranks = self.ranks
        if isinstance(batch, Undrawn):
            batch = drawn(batch)
        self.optimization.begin()
        found = [
            self._backward(batch.part(part), last=part.stop == len(batch.moving))
            for part in parts_of(len(batch.moving), self.config.training.accumulate)
        ]
        sums, smallest = zip(*found, strict=True)
        means = ranks.sum(reduce(torch.add, sums))
        least = ranks.smallest(reduce(torch.minimum, smallest))
        norm = self.optimization.change(means[0])
        return torch.cat([means, least[None], norm[None], self.optimization.stopped[None]])

    def _backward(self, batch: Batch, last: bool) -> tuple[Tensor, Tensor]:
        """The gradients of a part of the step's batch are added to those of the others.

        Returns:
            Its share of the terms and of the folded cells (TERMS + 1,), and its smallest
            determinant ().
        """
        settings, ranks = self.config.training, self.ranks
        order = memory_order(batch.fixed.ndim - 2, settings.channels_last)
        images = (
            batch.moving.contiguous(memory_format=order),
            batch.fixed.contiguous(memory_format=order),
        )
        share = len(batch.moving) / settings.batch_size
        with ranks.apart(self.network, not last):
            displacement = self.predict(*images)
            self._check(displacement)
            total, terms = measure(
                *(self.objective, self.config.objective, self.predict, images),
                *(displacement, batch.mask, batch.known),
            )
            # The ranks' gradients are averaged: a rank's weight is 1, and should be its share.
            self.optimization.backward(_times(share * ranks.count, total))
        cells = jacobian_determinant(displacement.detach(), reduce="min")
        folded = (cells <= 0).mean(dtype=torch.float32)
        return _times(share, torch.cat([terms, folded[None]])), cells.min()

    def _check(self, displacement: Any) -> None:
        """What is looked at once, for which the host waits."""
        if not self._checked:
            check_first(displacement)
            self._checked = True


def _times(factor: float, value: Tensor) -> Tensor:
    """A product, for which no kernel runs where the factor is 1."""
    return value if factor == 1 else factor * value
