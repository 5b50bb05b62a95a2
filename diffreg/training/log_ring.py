"""What steps leave for the log, kept where they compute until several are read at once."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from diffreg.training.log import StepLog

TERMS = 9  # of `measure`: what a row of a step begins with
READ_EVERY = 25  # steps on a GPU: for what is read the host has to wait


class LogRing:
    """Rows of steps on the device, and what the host knows of them.

    A row (TERMS + 4,) is of all ranks: the terms, the share of cells that are folded, the smallest
    determinant, the gradient's norm, and whether the run stopped, 0 or 1.

    Args:
        batch_size: pairs a step.
        device: of the steps. On a CPU, where nothing is waited for, each row is read at once.

    Example:
        >>> import torch
        >>> from diffreg.training.log_ring import LogRing
        >>> ring = LogRing(8, torch.device("cpu"))
        >>> ring.begin()
        >>> ring.keep(torch.zeros(13), step=1, epoch=0, rate=1e-3)
        >>> [entry.step for entry, stopped in ring.read(peak_memory=100.0)]
        [1]
    """

    def __init__(self, batch_size: int, device: torch.device) -> None:
        self.batch_size = batch_size
        rows = READ_EVERY if device.type == "cuda" else 1
        self.rows = torch.zeros(rows, TERMS + 4, dtype=torch.float32, device=device)
        self.taken: list[tuple[int, int, float]] = []  # step, epoch, learning rate

    @property
    def full(self) -> bool:
        """Whether it has to be read before the next step."""
        return len(self.taken) == len(self.rows)

    def begin(self) -> None:
        """A step begins; the pace is that from the first after a reading."""
        if not self.taken:
            self._start = time.perf_counter()

    def keep(self, row: Tensor, step: int, epoch: int, rate: float) -> None:
        """What a step left, and its number, from 1 on; nothing waits for it."""
        self.rows[len(self.taken)].copy_(row, non_blocking=True)
        self.taken.append((step, epoch, rate))

    def read(self, peak_memory: float) -> list[tuple[StepLog, bool]]:
        """A line of the log for each step that is kept, and whether the run stopped at it."""
        taken, self.taken = self.taken, []
        rows = self.rows[: len(taken)].tolist()
        pace = self.batch_size * len(taken) / (time.perf_counter() - self._start)
        found = []
        for (step, epoch, rate), row in zip(taken, rows, strict=True):
            terms, extra, (folded, smallest, norm, stopped) = row[:5], row[5:TERMS], row[TERMS:]
            how = smallest, 100 * folded, norm, rate, pace, peak_memory
            entry = StepLog._make((step, epoch, *terms, *how, *extra))
            found.append((entry, stopped > 0))
        return found
