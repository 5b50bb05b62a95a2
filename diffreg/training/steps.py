"""The steps of a run, one after the other: what each draws, how it is run, what it leaves."""

from __future__ import annotations

from typing import Any
from warnings import warn

from diffreg.training._parts import check_parameters
from diffreg.training.graphs import Replayed
from diffreg.training.log import StepLog
from diffreg.training.log_ring import LogRing
from diffreg.training.running import held_at_most
from diffreg.training.seeding import seeded
from diffreg.training.sent_ahead import batches
from diffreg.training.step import Step


class Steps:
    """Takes the steps of a run; nothing waits for them until their log is read.

    Args:
        step: what is done with a batch.
        dataset: what is drawn from, a `PairDataset` or `diffreg.training.own_pairs.OwnPairs`.
    """

    def __init__(self, step: Step, dataset: Any) -> None:
        self.step, self.dataset = step, dataset
        ranks, size = step.ranks, step.config.training.batch_size
        replays = step.config.training.graph and ranks.device.type == "cuda" and ranks.count == 1
        self.run = Replayed(step, replays, warn)
        self.batch = batches(dataset, size, ranks.share, ranks.device)
        self.log = LogRing(size, ranks.device)

    def drawn(self, number: int) -> Any:
        """What the step of that number, 0 being the first, is taken on; it may be waited for."""
        self.log.begin()
        return self.batch(number)

    def take(self, number: int, batch: Any) -> None:
        """The step of that number on what it draws; its line of the log is not read yet."""
        settings, ranks = self.step.config.training, self.step.ranks
        optimization = self.step.optimization
        check_parameters(optimization.network, optimization.optimizer)
        optimization.network.train()
        rate = optimization.prepare(number)
        with seeded(settings.seed, number, ranks.rank, 1, device=ranks.device):
            row = self.run(batch)
        epoch = self.dataset.position(number * settings.batch_size)[0]
        self.log.keep(row, number + 1, epoch, rate)

    def forget(self) -> None:
        """Weights and optimiser are others now: graphs are captured anew, no step is unread."""
        self.run.forget()
        self.log.taken.clear()

    @property
    def full(self) -> bool:
        """Whether the log has to be read before the next step."""
        return self.log.full

    def read(self) -> list[tuple[StepLog, bool]]:
        """The lines since the last time, and whether the run stopped at each; the host waits."""
        return self.log.read(held_at_most(self.step.ranks.device))
